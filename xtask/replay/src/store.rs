//! The replay against the store itself, in this process, with the trace's clock.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use session_daemon::clock::Now;
use session_daemon::store::Store;
use session_daemon::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig, Stored};

use crate::report::Report;
use crate::trace::{Trace, VALUE_LEN_MAX};

/// Accesses of a turn.
const TURN: usize = 32;
/// The moment at which traces begin.
const START_NS: u64 = 1_000_000_000_000;

/// Replays a trace against a store with `-m` of so many bytes.
///
/// # Errors
/// When such a store cannot be made, or is not consistent afterwards.
pub fn replay(trace: &Trace, memory_limit: usize, progress: impl Fn(usize)) -> Result<Report> {
    let config = StoreConfig { memory_limit, workers: 1, ..StoreConfig::default() };
    let store = Store::create(&config)?;
    let mut worker = store.worker()?;
    let values = vec![b'v'; VALUE_LEN_MAX];
    let mut report = Report::default();
    let all = trace.accesses.len();
    for (idx, (access, ns)) in trace.accesses.iter().zip(trace.clock_ns()).enumerate() {
        let boottime_ns = START_NS + ns;
        let now = Now { realtime_ns: boottime_ns, boottime_ns };
        let name = access.name();
        let key = Key::new(&name).context("keys of traces are short")?;
        let value_len = access.value_len as usize;
        let found = worker.get(key, now).map(|item| item.value_len());
        report.count(idx, all, found.is_some());
        report.wrong += u64::from(found.is_some_and(|len| len != value_len));
        if found.is_none() || access.always_set {
            let lifetime = match access.ttl_s {
                0 => Lifetime::Never,
                ttl_s => Lifetime::Until((boottime_ns / 1_000_000_000) as u32 + ttl_s),
            };
            let value = &values[..value_len];
            let stored = worker.set(key, value, ClientFlags(0), lifetime, Mode::Set, now);
            report.refused += u64::from(!matches!(stored, Stored::Stored(_)));
        }
        worker.maintain(now);
        if idx.is_multiple_of(TURN) {
            worker.quiesce();
        }
        if idx.is_multiple_of(1 << 16) {
            progress(idx);
        }
    }
    worker.quiesce();
    let totals = store.totals();
    report.evicted = totals.evictions;
    report.evicted_unfetched = totals.evicted_unfetched;
    report.pages_moved = totals.slabs_moved;
    report.items_moved = totals.items_moved;
    report.items = totals.curr_items;
    report.memory_bytes = memory_limit as u64;
    drop(worker);
    store.validate()?;
    ensure!(report.wrong == 0, "{} values have not the length that was stored", report.wrong);
    Ok(report)
}

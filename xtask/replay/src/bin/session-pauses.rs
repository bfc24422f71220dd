//! `session-pauses`: what single sets take in the store of this tree: while the index grows, while
//! it does not, in a full store, and while pages move between classes there.
//!
//! Time is the thread's processor time, so that what else the machine does counts for nothing. The
//! last set of each turn has the work of its end with it, as a client behind it would notice.
#![forbid(unsafe_code)]

use std::fs::File;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use session_daemon::clock::Now;
use session_daemon::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig, Stored};
use session_daemon::store::{MemoryFile, Store, Worker};

/// Sets of a turn.
const TURN: u64 = 32;
/// Value lengths, before and after the change of sizes.
const VALUE_LENS: [usize; 2] = [100, 300];
/// Bytes of `-m` for each set where nothing is to be evicted.
const ROOM: u64 = 200;
/// The same where the store is to be full long before the last.
const FULL: u64 = 20;

/// Measures single sets in this process; prints percentiles as one line of JSON.
#[derive(Debug, Parser)]
struct Options {
    /// Sets of each phase
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(100_000..=100_000_000))]
    sets: u64,
}

/// What the sets of one phase took, in nanoseconds.
#[derive(Debug, Serialize)]
struct Phase {
    name: &'static str,
    sets: usize,
    p50_ns: u32,
    p99_ns: u32,
    p999_ns: u32,
    p9999_ns: u32,
    max_ns: u32,
}

fn main() -> Result<()> {
    let Options { sets } = Options::parse();
    let mut phases = Vec::new();
    let mut worker = store(sets * ROOM)?;
    phases.push(phase("index grows", &mut worker, 0..sets, VALUE_LENS[0])?);
    phases.push(phase("index stays", &mut worker, 0..sets, VALUE_LENS[0])?);
    ensure!(worker.store().totals().evictions == 0, "items were evicted that were to stay");
    drop(worker);
    let mut worker = store(sets * FULL)?;
    phase("filling", &mut worker, 0..sets, VALUE_LENS[0])?;
    phases.push(phase("full", &mut worker, sets..2 * sets, VALUE_LENS[0])?);
    let moved = worker.store().totals().slabs_moved;
    phases.push(phase("pages move", &mut worker, 2 * sets..3 * sets, VALUE_LENS[1])?);
    ensure!(worker.store().totals().slabs_moved > moved, "no page has moved");
    println!("{}", serde_json::to_string(&phases)?);
    Ok(())
}

/// A worker of a store in a memory file, as the packaged service has it.
fn store(memory_limit: u64) -> Result<Worker> {
    let file = File::from(memfd_create("session-pauses", MemfdFlags::CLOEXEC)?);
    let memory = MemoryFile { file, boot_id: 1, nameless: false, map: None };
    let memory_limit = usize::try_from(memory_limit)?;
    let config = StoreConfig { memory_limit, workers: 1, ..StoreConfig::default() };
    Ok(Store::open(&config, memory, Now::sample())?.0.worker()?)
}

fn phase(
    name: &'static str,
    worker: &mut Worker,
    keys: std::ops::Range<u64>,
    value_len: usize,
) -> Result<Phase> {
    let value = vec![b'v'; value_len];
    let mut taken = Vec::with_capacity((keys.end - keys.start) as usize);
    let mut now = Now::sample();
    let mut begun = cpu_ns();
    for number in keys {
        let name = format!("{number:024}");
        let key = Key::new(name.as_bytes()).context("24 bytes are a key")?;
        begun = begun.max(cpu_ns());
        let stored = worker.set(key, &value, ClientFlags(0), Lifetime::Never, Mode::Set, now);
        ensure!(matches!(stored, Stored::Stored(_)), "{stored:?}");
        if number % TURN == TURN - 1 {
            worker.maintain(now);
            worker.quiesce();
        }
        let ended = cpu_ns();
        taken.push((ended - begun) as u32);
        begun = ended;
        if number % TURN == TURN - 1 {
            now = Now::sample();
        }
    }
    worker.quiesce();
    taken.sort_unstable();
    let at = |share: f64| taken[((taken.len() - 1) as f64 * share) as usize];
    Ok(Phase {
        name,
        sets: taken.len(),
        p50_ns: at(0.5),
        p99_ns: at(0.99),
        p999_ns: at(0.999),
        p9999_ns: at(0.9999),
        max_ns: at(1.0),
    })
}

/// Processor time of this thread.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

//! What a worker answers itself, by way of what all workers share. It owns no state.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::clock::Now;
use crate::command::admin::{Admin, AdminOutcome, DumpKind};
use crate::command::counters::Counter;
use crate::command::request::{Shutdown, StatsTopic};
use crate::server::administration::Administration;
use crate::server::connection::Services;
use crate::server::dump::Dump;
use crate::server::watchers::Watching;
use crate::server::worker::Local;
use crate::server::{admin, statistics};
use crate::store;
use std::sync::atomic::Ordering;

impl Administration for Local {
    fn is_confined(&self) -> bool {
        self.shared.config.admin_confined && !self.is_trusted()
    }

    fn administer(&self, admin: Admin<'_>, store: &mut store::Worker, now: Now) -> AdminOutcome {
        admin::administer(&self.shared, admin, store, now)
    }

    fn begin_dump(&self, kind: DumpKind, out: &mut Vec<u8>) -> Result<Dump, AdminOutcome> {
        admin::begin_dump(&self.shared, kind, out)
    }

    fn dump(&self, dump: &mut Dump, store: &store::Worker, now: Now, out: &mut Vec<u8>) -> bool {
        let prefixes: Vec<_> = self.shared.seats.iter().map(|seat| &seat.prefixes).collect();
        dump.piece(store, &prefixes, now, out)
    }

    fn watch(&self, kinds: u32) -> Result<Watching, AdminOutcome> {
        admin::watch(&self.shared, kinds)
    }
}

impl Services for Local {
    fn stats(&self, topic: StatsTopic, take: &mut dyn FnMut(&str, &str)) {
        statistics::each(&self.shared, topic, self.now(), take);
    }

    fn stats_reset(&self) {
        self.shared.reset_counters();
    }

    fn verbosity(&self, level: u32) {
        // Relaxed: only shown in `stats settings`.
        self.shared.verbosity.store(level.min(VERBOSITY_MAX), Ordering::Relaxed);
        log::set_max_level(log_level(level));
    }

    fn authenticate(&self, user: &[u8], password: &[u8]) -> bool {
        let admitted = self.shared.config.credentials.load().admit(user, password);
        self.counters().add_one(Counter::AuthCmds);
        self.counters().add(Counter::AuthErrors, u64::from(!admitted));
        admitted
    }

    fn shutdown(&self, shutdown: Option<Shutdown>) -> bool {
        let hook = self.shared.config.shutdown.as_ref();
        if let (Some(hook), Some(shutdown)) = (hook, shutdown) {
            (hook.0)(shutdown);
        }
        hook.is_some()
    }
}

/// memcached's highest verbosity.
const VERBOSITY_MAX: u32 = 3;

/// The log level of a number of `-v`.
#[must_use]
pub fn log_level(verbosity: u32) -> log::LevelFilter {
    match verbosity {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        2 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    }
}

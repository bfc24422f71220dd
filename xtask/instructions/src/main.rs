//! Runs one fixed stream of requests through the connection code and the store, without a socket.
//!
//! `session-instructions NAME` does, `session-instructions` lists the names. `cargo xtask bench
//! instructions` counts what [`measured`] executes, so nothing here may depend on time, chance or
//! addresses. The modules below are the daemon's, file for file: of a program the compiler makes
//! only what is called, so that it is made in seconds.
// The modules' own tests run in their crate.
#![cfg(not(test))]
#![deny(unsafe_code)]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "they serve a whole daemon elsewhere"
)]
#![allow(clippy::enum_variant_names, reason = "the names are exported there")]

#[path = "../../../session-daemon/src/clock.rs"]
mod clock;
#[path = "../../../session-daemon/src/command/mod.rs"]
mod command;
#[path = "../../../session-daemon/src/protocol/mod.rs"]
mod protocol;
mod server;
#[path = "../../../session-daemon/src/store/mod.rs"]
mod store;
mod streams;

use std::cell::Cell;
use std::io::IoSlice;

use anyhow::{Context, Result, ensure};

use crate::clock::Now;
use crate::command::counters::Counters;
use crate::command::execute::Executor;
use crate::command::request::{Shutdown, StatsTopic};
use crate::server::administration::Administration;
use crate::server::binding::Binding;
use crate::server::buffers::{Pool, Wire};
use crate::server::connection::{Connection, Services, Step, Turn};
use crate::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig};
use crate::store::{Store, Worker};
use crate::streams::{
    KEYS, LARGE_KEYS, LARGE_VALUE_LEN, STREAMS, Stream, VALUE_LEN, key, large_key, scattered,
};

/// memcached's default of `-R` is smaller: here no turn is cut, so that each read is one.
const REQUESTS_PER_TURN: u32 = 1024;

const NOW: Now = Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: 1_000_000_000_000 };

fn main() -> Result<()> {
    let Some(name) = std::env::args().nth(1) else {
        STREAMS
            .iter()
            .for_each(|stream| println!("{} {}", stream.name, stream.depth * stream.reads));
        return Ok(());
    };
    let stream = STREAMS.iter().find(|stream| stream.name == name);
    let &Stream { depth, reads, answer_len, spell, .. } =
        stream.with_context(|| format!("no stream {name}"))?;
    let spelt = |read: usize| {
        let mut bytes = Vec::new();
        (0..depth).for_each(|at| spell(&mut bytes, scattered(read * depth + at)));
        bytes
    };
    let reads: Vec<Vec<u8>> = (0..reads).map(spelt).collect();
    let config = StoreConfig { workers: 1, hash_seed: Some(1), ..StoreConfig::default() };
    let store = Store::create(&config)?;
    let mut desk = Desk::new(store.worker()?)?;
    let expected_len = answer_len * depth * reads.len();
    for answers_len in [desk.rehearsed(&reads), measured(&mut desk, &reads)] {
        ensure!(answers_len == expected_len, "{answers_len} bytes instead of {expected_len}");
    }
    Ok(())
}

/// What is counted.
#[inline(never)]
fn measured(desk: &mut Desk, reads: &[Vec<u8>]) -> usize {
    reads.iter().map(|read| desk.turn(read)).sum()
}

/// One connection and what it is served with.
struct Desk {
    connection: Connection,
    worker: Worker,
    counters: Counters,
    pool: Pool,
}

impl Desk {
    fn new(mut worker: Worker) -> Result<Self> {
        let none = ClientFlags(0);
        for number in 0..KEYS {
            let key = key(number);
            let key = Key::new(key.as_bytes()).context("a key")?;
            worker.set(key, &[b'v'; VALUE_LEN], none, Lifetime::Never, Mode::Set, NOW);
        }
        for number in 0..LARGE_KEYS {
            let (key, value) = (large_key(number), vec![b'v'; LARGE_VALUE_LEN]);
            let key = Key::new(key.as_bytes()).context("a key")?;
            worker.set(key, &value, none, Lifetime::Never, Mode::Set, NOW);
        }
        worker.quiesce();
        let connection = Connection::new(Binding::Auto);
        Ok(Self { connection, worker, counters: Counters::default(), pool: Pool::default() })
    }

    /// The same outside of what is counted: buffers and items are where they will be.
    fn rehearsed(&mut self, reads: &[Vec<u8>]) -> usize {
        reads.iter().map(|read| self.turn(read)).sum()
    }

    /// What one read of a client leads to, until it waits again; the length of the answers.
    fn turn(&mut self, bytes: &[u8]) -> usize {
        let wire = All(Cell::new(0));
        let space = self.connection.space(&mut self.pool);
        space[..bytes.len()].copy_from_slice(bytes);
        self.connection.filled(bytes.len());
        let mut answered_len = 0;
        loop {
            let step = self.connection.drive(&mut Turn {
                executor: Executor {
                    store: &mut self.worker,
                    counters: &self.counters,
                    now: NOW,
                    flush_allowed: true,
                    reads_only: false,
                    observer: None,
                },
                pool: &mut self.pool,
                services: &Nobody,
                requests_left: REQUESTS_PER_TURN,
                wire: Some(&wire),
            });
            let len = self.connection.output().len();
            answered_len += len;
            self.connection.sent(len, &mut self.pool);
            if step == Step::Read {
                break;
            }
        }
        self.connection.rest(&mut self.pool);
        self.worker.quiesce();
        answered_len + wire.0.get()
    }
}

/// A client that takes all at once.
struct All(Cell<usize>);

impl Wire for All {
    fn send(&self, parts: &[IoSlice<'_>]) -> usize {
        let len = parts.iter().map(|part| part.len()).sum();
        self.0.set(self.0.get() + len);
        len
    }
}

struct Nobody;

impl Administration for Nobody {}

impl Services for Nobody {
    fn stats(&self, _: StatsTopic, _: &mut dyn FnMut(&str, &str)) {}
    fn stats_reset(&self) {}
    fn verbosity(&self, _: u32) {}
    fn authenticate(&self, _: &[u8], _: &[u8]) -> bool {
        false
    }
    fn shutdown(&self, _: Option<Shutdown>) -> bool {
        false
    }
}

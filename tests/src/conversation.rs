//! A connection of `sessiond` without a socket, fed with bytes that are cut at will.
//! It owns the store behind it; every conversation has one of its own.
#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::Result;
use session_daemon::clock::Now;
use session_daemon::command::counters::Counters;
use session_daemon::command::execute::Executor;
use session_daemon::command::request::{Shutdown, StatsTopic};
use session_daemon::server::administration::Administration;
use session_daemon::server::binding::Binding;
use session_daemon::server::buffers::Pool;
use session_daemon::server::connection::{Connection, Services, Step, Turn};
use session_daemon::store::types::StoreConfig;
use session_daemon::store::{Store, Worker};

/// A store of 64 MB and whoever asks it.
#[derive(Debug)]
pub struct Conversation {
    worker: Worker,
    counters: Counters,
}

struct Nothing;

impl Administration for Nothing {}

impl Services for Nothing {
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

impl Conversation {
    /// An empty store.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new() -> Result<Self> {
        let store = Store::create(&StoreConfig { workers: 1, ..StoreConfig::default() })?;
        Ok(Self { worker: store.worker()?, counters: Counters::default() })
    }

    /// Over a store that there is already.
    ///
    /// # Errors
    /// When the store has no worker left.
    pub fn over(store: &Arc<Store>) -> Result<Self> {
        Ok(Self { worker: store.worker()?, counters: Counters::default() })
    }

    /// Feeds a new connection with the pieces, one read each. Returns all replies, and whether
    /// it was closed.
    pub fn feed(&mut self, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        self.feed_reader(pieces, usize::MAX)
    }

    /// [`Conversation::feed`] for a client that takes at most `taken_len_max` bytes of the replies
    /// at a time, at least one.
    pub fn feed_reader(&mut self, pieces: &[&[u8]], taken_len_max: usize) -> (Vec<u8>, bool) {
        let (mut pool, mut connection) = (Pool::default(), Connection::new(Binding::Auto));
        let mut replies = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while !rest.is_empty() {
                let space = connection.space(&mut pool);
                let len = space.len().min(rest.len());
                space[..len].copy_from_slice(&rest[..len]);
                connection.filled(len);
                rest = &rest[len..];
                if self.answer(&mut connection, &mut pool, &mut replies, taken_len_max) {
                    return (replies, true);
                }
                connection.rest(&mut pool);
            }
        }
        (replies, false)
    }

    fn answer(
        &mut self,
        connection: &mut Connection,
        pool: &mut Pool,
        replies: &mut Vec<u8>,
        taken_len_max: usize,
    ) -> bool {
        loop {
            let executor = Executor {
                store: &mut self.worker,
                counters: &self.counters,
                now: Now::sample(),
                flush_allowed: true,
                reads_only: false,
                observer: None,
            };
            let step = connection.drive(&mut Turn {
                executor,
                pool,
                services: &Nothing,
                requests_left: 20,
                wire: None,
            });
            while !connection.output().is_empty() {
                let taken = connection.output().len().min(taken_len_max.max(1));
                replies.extend_from_slice(&connection.output()[..taken]);
                connection.sent(taken, pool);
            }
            self.worker.quiesce();
            match step {
                Step::Close => return true,
                Step::Read | Step::Watch => return false,
                Step::Write | Step::Yield => {}
            }
        }
    }
}

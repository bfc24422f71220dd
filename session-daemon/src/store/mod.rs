//! The slab store: keys, values, lifetimes, eviction. It owns all items and their index.
//! It never sees a wire byte, a socket, a clock or a log line: `now` is an argument everywhere.
//!
//! One [`Store`] is shared by all threads; each thread has a [`Worker`] and works through it.
//!
//! ```text
//! turn:  now = sample
//!        worker.get / get_batch   -> Item<'_>, borrows the worker
//!        ... replies are copied or written from the items ...
//!        worker.set / delete / …  (need &mut, so no Item is alive)
//!        worker.quiesce()         once at the end of the turn, before the thread may sleep
//! ```
//! Memory that others removed is reused only after every worker that is in a turn has ended it.
//! A worker is in a turn from its first operation to its next [`Worker::quiesce`]: one that
//! sleeps without having called it holds all reuse of memory back. There is nothing else to call
//! before or after sleeping.

mod simple;
pub mod stats;
#[cfg(test)]
mod tests;
pub mod types;

pub use simple::{Item, Store, Upload, ValueSlices, Worker};

//! Replays traces of accesses: a get, and a set of what was missed.
//!
//! It owns the format of traces and the counting of hits; it never decides what a good ratio is.
#![forbid(unsafe_code)]

pub mod report;
pub mod server;
pub mod store;
pub mod trace;

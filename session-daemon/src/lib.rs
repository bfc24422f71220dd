//! `sessiond` and `sessionctl`: a memcached-compatible cache behind an XDP allowlist.
//!
//! ARCHITECTURE.md names the rooms and the edges between them.
#![deny(unsafe_code)]

pub mod allowlist;
mod capability;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod confine;
pub mod control;
mod files;
pub mod guard;
pub mod link;
pub mod plane;
pub mod protocol;
pub mod server;
pub mod startup;
pub mod store;
pub mod sys;
pub mod uring;

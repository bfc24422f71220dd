//! A load generator for memcached's protocols.
//!
//! Every value can be told from its key, so every reply is checked byte for byte. It measures
//! throughput in a closed loop, and latency in an open loop from the instant at which a request
//! was due. It never starts or stops a server.
#![forbid(unsafe_code)]

pub mod account;
pub mod keys;
pub mod options;
pub mod report;

mod connection;
mod datagram;
mod fill;
mod items;
mod run;
mod sizes;
mod tally;
mod target;
mod wire;
mod worker;

pub use run::run;

//! The guard's judgement: what a packet's headers say, and what the allowlist says to that.
//!
//! Everything here is pure: it reads a frame through [`Frame`] and the tables through
//! [`Tables`], so that the same source runs in the kernel and in tests on the host. It never
//! touches a map, a pointer or a helper; the binary of this crate does.
#![no_std]
#![forbid(unsafe_code)]

mod answer;
mod frame;
mod judge;
mod parse;

pub use answer::{Facts, Original, REPLY_WORDS, Reply, compose, may_answer};
pub use frame::Frame;
pub use judge::{Finding, Lookup, NO_RULE, Tables, judge};
pub use parse::{
    Address, Addresses, ETHERNET_LEN, EXTENSION_HEADERS_MAX, Headers, Link, NO_ENDPOINT, Pair,
    Target, VLAN_TAGS_MAX, parse, parse_from,
};

//! What every integration test shares: network namespaces, daemons under test, a text client,
//! and the account of skipped tests.
//!
//! Nothing here touches the machine's own interfaces, and everything it makes (namespaces,
//! processes, mounts, directories) is removed on drop, on panic, and, for runs that were killed,
//! when the next run starts.
#![forbid(unsafe_code)]

pub mod attach;
pub mod binaries;
pub mod client;
#[cfg(feature = "daemon")]
pub mod conversation;
pub mod datagram;
pub mod evasions;
pub mod exchange;
pub mod flood;
pub mod frame;
pub mod fuzz;
#[cfg(feature = "daemon")]
pub mod guard_bed;
#[cfg(feature = "daemon")]
pub mod guard_holder;
pub mod guard_program;
pub mod kernel;
pub mod leftovers;
pub mod memcached;
pub mod netns;
pub mod packet;
pub mod php;
#[cfg(feature = "daemon")]
pub mod plane_program;
pub mod process;
pub mod sandbox;
pub mod scratch;
pub mod script;
pub mod sessiond;
pub mod skip;
pub mod stopwatch;
#[cfg(feature = "daemon")]
pub mod targets;
pub mod tls;
pub mod topology;
pub mod wait;
pub mod wire;

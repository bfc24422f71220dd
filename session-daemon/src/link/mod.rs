//! The socket pair between the parent and the child: messages, frames, both ends.
//!
//! The parent asks, the child answers, one request at a time. A frame is four bytes of length
//! (little endian), then that many bytes of JSON; listening sockets ride on the length bytes.
//! It carries messages and never acts on one.
#![forbid(unsafe_code)]

mod child;
mod crossing;
mod frame;
mod parent;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::allowlist::Entry;
use crate::config::Config;
pub use crate::link::child::ChildEnd;
pub use crate::link::crossing::{receive_parked, send_parked};
pub use crate::link::frame::{receive, send};
pub use crate::link::parent::ParentEnd;
use crate::server::locks::SessionLock;
use crate::server::login::Credentials;
use crate::server::tls::{Material, Verify};

/// Largest frame. A part of a list ([`ENTRIES_PER_PART_MAX`] entries) is far below it.
pub const FRAME_LEN_MAX: usize = 16 << 20;

/// Most entries in one [`Request::ListPart`].
pub const ENTRIES_PER_PART_MAX: usize = 4096;

/// Most sockets in one [`Request::Listeners`]; the kernel takes 253 (`SCM_MAX_FD`).
pub const SOCKETS_PER_FRAME_MAX: usize = 128;

/// Version of these messages. A process takes over only from one that speaks the same.
pub const LINK_VERSION: u32 = 1;

/// What kind of listening socket comes with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenerKind {
    /// TCP, IPv4 or IPv6; what TLS asks of clients, if it is spoken.
    Tcp(Option<Verify>),
    /// UDP, IPv4 or IPv6.
    Udp,
    /// Unix domain.
    Unix,
}

/// What is known of the kernel plane's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaneFacts {
    /// Number of this boot, high half first.
    pub boot_id: [u64; 2],
    /// Number of the region's map.
    pub region_id: u32,
    /// Bytes of the region.
    pub region_len: u64,
    /// Whether nobody has had the region before.
    pub is_new: bool,
    /// CPUs that there can be: elements of the reports.
    pub cpus: u32,
    /// [`clock::ahead_ns`](crate::clock::ahead_ns), which the serving process cannot look up.
    pub clock_ahead_ns: i64,
}

/// What the parent asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// The configuration. Comes first, once.
    Configure(Box<Config>),
    /// Listening sockets, as many as kinds, before `Serve`.
    Listeners(Vec<ListenerKind>),
    /// The users and their passwords, before `Serve` and whenever they change.
    Credentials(Credentials),
    /// Certificates and key, before `Serve` and whenever they change.
    Tls(Material),
    /// The memory file's descriptor, before `Serve`, with the two halves of the boot's number.
    MemoryFile {
        /// High half first.
        boot_id: [u64; 2],
        /// Whether it is nobody's by name and has memory for what it holds alone: what an
        /// upgrade carries a store in that has no file.
        nameless: bool,
    },
    /// The maps of the kernel plane, in the place of a memory file: region, orders, reports.
    Plane(PlaneFacts),
    /// A part of a whole list; takes effect with `ListReplace`.
    ListPart(Vec<Entry>),
    /// The parts sent since the last one become the list, at once.
    ListReplace,
    /// Entries go into the list or replace those of the same prefix, then others leave, at once.
    ListChange {
        /// Entries to insert.
        insert: Vec<Entry>,
        /// Prefixes whose entries go.
        remove: Vec<IpNet>,
    },
    /// The listening socket of the metrics, before `Serve`; true for a unix socket.
    Metrics(bool),
    /// Everything is handed over: make the store and serve.
    Serve,
    /// Reset every connection that the list refuses.
    Enforce,
    /// A snapshot of the statistics.
    Statistics,
    /// The locks of PHP sessions.
    Locks,
    /// A command of one line, with the right to steer the server.
    Ask(String),
    /// Let in whom the list refuses, and count them; or refuse them again.
    Audit(bool),
    /// What the guard has counted, names and values, for `stats guard`.
    GuardCounters(Vec<(String, String)>),
    /// Lend the listening sockets and the memory file from this number on, as many as fit; none
    /// when those were all. They stay in use.
    Lend(usize),
    /// Give up connections and store, and serve no more. The socket beside it leads to the
    /// process that goes on.
    HandOver {
        /// Number of this boot, high half first.
        boot_id: [u64; 2],
    },
    /// Receive connections from the socket beside it, until its other end is closed. Before
    /// `Serve`, which waits for that.
    Adopt,
    /// Stop serving and exit with status 0.
    Stop {
        /// Whether connections may finish the request that they are in.
        graceful: bool,
    },
}

/// What a descriptor is that the child lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lent {
    /// A listening socket.
    Listener(ListenerKind),
    /// The memory file; nameless or not, as in [`Request::MemoryFile`].
    Memory {
        /// Whether it is nameless.
        nameless: bool,
    },
    /// The kernel plane's region, which is found again by its pin.
    Region,
}

/// What the child answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// Done, and a client has asked for the certificates to be read again.
    CertificatesAskedFor,
    /// How many connections were reset.
    Enforced(u64),
    /// The statistics, by memcached's names.
    Statistics(serde_json::Value),
    /// Locks that are held.
    Locks(Vec<SessionLock>),
    /// The answer to a command.
    Answer(String),
    /// What the descriptors beside it are.
    Lent(Vec<Lent>),
    /// Not done, and why.
    Failed(String),
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other process is gone.
    #[error("the other process has gone")]
    Closed,
    /// The socket failed.
    #[error("socket pair: {0}")]
    Io(#[from] std::io::Error),
    /// The frame is no message.
    #[error("socket pair: bad message: {0}")]
    Message(#[from] serde_json::Error),
    /// The frame is longer than [`FRAME_LEN_MAX`].
    #[error("socket pair: message of {0} bytes, the most is {FRAME_LEN_MAX}")]
    TooLong(usize),
    /// No answer in time.
    #[error("the serving process does not answer")]
    Timeout,
    /// The child could not do it.
    #[error("{0}")]
    Failed(String),
    /// The answer belongs to another request.
    #[error("socket pair: unexpected answer {0:?}")]
    Unexpected(Reply),
}

#[cfg(test)]
mod tests;

//! The counters behind `stats`: one block a worker, written by that worker alone and summed when
//! somebody asks. It owns their names and how a reset works; it never formats a reply.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// One counter of a worker; its name is that of `stats`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// All counters.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// The name in `stats`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Keys asked for by `get`, `gets`, `gat`, `gats`.
    CmdGet => "cmd_get",
    /// Storage commands whose value arrived whole.
    CmdSet => "cmd_set",
    /// `flush_all`.
    CmdFlush => "cmd_flush",
    /// Keys asked for by `touch`, `gat`, `gats`.
    CmdTouch => "cmd_touch",
    /// Meta commands.
    CmdMeta => "cmd_meta",
    /// Keys found.
    GetHits => "get_hits",
    /// Keys not found.
    GetMisses => "get_misses",
    /// `delete` that found nothing.
    DeleteMisses => "delete_misses",
    /// `delete` that removed.
    DeleteHits => "delete_hits",
    /// `incr` that found nothing.
    IncrMisses => "incr_misses",
    /// `incr` that counted.
    IncrHits => "incr_hits",
    /// `decr` that found nothing.
    DecrMisses => "decr_misses",
    /// `decr` that counted.
    DecrHits => "decr_hits",
    /// `cas` that found nothing.
    CasMisses => "cas_misses",
    /// `cas` that stored.
    CasHits => "cas_hits",
    /// `cas` that met another version.
    CasBadval => "cas_badval",
    /// `touch`, `gat`, `gats` that found an item.
    TouchHits => "touch_hits",
    /// `touch`, `gat`, `gats` that found nothing.
    TouchMisses => "touch_misses",
    /// Values larger than the largest item.
    StoreTooLarge => "store_too_large",
    /// Values for which no room could be made.
    StoreNoMemory => "store_no_memory",
    /// Attempts of clients to say who they are.
    AuthCmds => "auth_cmds",
    /// Attempts that failed.
    AuthErrors => "auth_errors",
    /// TLS sessions that were not taken up again.
    SslNewSessions => "ssl_new_sessions",
    /// Clients that did not get through the TLS handshake.
    SslHandshakeErrors => "ssl_handshake_errors",
    /// Clients that broke TLS later.
    SslProtoErrors => "ssl_proto_errors",
    /// Bytes received from clients.
    BytesRead => "bytes_read",
    /// Bytes sent to clients.
    BytesWritten => "bytes_written",
    /// Connections accepted.
    TotalConnections => "total_connections",
    /// Connections refused because of `-c`.
    RejectedConnections => "rejected_connections",
    /// Connections reset because the allowlist does not name their source.
    RejectedByList => "rejected_by_list",
    /// Connections reset because their source was taken off the allowlist.
    ResetByList => "reset_by_list",
    /// Times that a connection gave way after `-R` requests.
    ConnYields => "conn_yields",
    /// Connections closed by `idle_timeout`.
    IdleKicks => "idle_kicks",
    /// Connections closed because their client left a request half sent.
    ReadKicks => "read_kicks",
    /// Connections closed because there was no room to keep their half of a request.
    ReadBufOom => "read_buf_oom",
    /// Connections closed because there was no room to keep their unread answers.
    ResponseOom => "response_obj_oom",
    /// Connections closed because their client did not read its answers.
    WriteKicks => "write_kicks",
    /// Datagrams without an answer: in several parts, cut short, or from a server's port.
    UdpDropped => "udp_dropped",
    /// Datagrams from sources that the allowlist refuses.
    UdpRejectedByList => "udp_rejected_by_list",
    /// Datagrams that asked for what is not done over UDP.
    UdpRefused => "udp_refused",
    /// Replies that were larger than may be sent to a source that might be forged.
    UdpTooLarge => "udp_too_large",
    /// Datagrams of replies that could not be sent.
    UdpUnsent => "udp_unsent",
    /// Times that no connection could be accepted for want of file descriptors or memory.
    ListenDisabled => "listen_disabled_num",
}

const COUNTERS: usize = Counter::ALL.len();

/// One worker's counters. Two cache lines apart from the next, because neighbours are written by
/// other threads and lines are fetched in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    values: [AtomicU64; COUNTERS],
    // What is subtracted since the last reset; written by whoever resets.
    baseline: Mutex<[u64; COUNTERS]>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; COUNTERS],
            baseline: Mutex::new([0; COUNTERS]),
        }
    }
}

impl Counters {
    /// Adds one. Called by the worker that owns the block, and by nobody else.
    pub fn add_one(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `count`. Called by the worker that owns the block, and by nobody else.
    pub fn add(&self, counter: Counter, count: u64) {
        let Some(value) = self.values.get(counter as usize) else { return };
        // Relaxed, and no read-modify-write: there is one writer, and a reader wants a number
        // that was true at some moment, not an order between numbers.
        value.store(value.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The value since the last reset.
    #[must_use]
    pub fn value(&self, counter: Counter) -> u64 {
        let baseline = self.baseline.lock().unwrap_or_else(PoisonError::into_inner);
        let values = self.values.get(counter as usize).zip(baseline.get(counter as usize));
        values.map_or(0, |(value, base)| value.load(Ordering::Relaxed).saturating_sub(*base))
    }

    /// Makes every counter read 0.
    pub fn reset(&self) {
        let mut baseline = self.baseline.lock().unwrap_or_else(PoisonError::into_inner);
        for (base, value) in baseline.iter_mut().zip(&self.values) {
            *base = value.load(Ordering::Relaxed);
        }
    }
}

/// The sum of a counter over all workers.
#[must_use]
pub fn sum<'a>(blocks: impl IntoIterator<Item = &'a Counters>, counter: Counter) -> u64 {
    blocks.into_iter().map(|block| block.value(counter)).sum()
}

#[cfg(test)]
mod tests {
    use super::{Counter, Counters, sum};

    #[test]
    fn sums_and_resets() {
        let blocks = [Counters::default(), Counters::default()];
        blocks[0].add(Counter::BytesRead, 5);
        blocks[1].add_one(Counter::BytesRead);
        assert_eq!(sum(&blocks, Counter::BytesRead), 6);
        blocks.iter().for_each(Counters::reset);
        assert_eq!(sum(&blocks, Counter::BytesRead), 0);
        blocks[0].add_one(Counter::BytesRead);
        assert_eq!(sum(&blocks, Counter::BytesRead), 1);
    }
}

//! The part of the store that is checked, and what stands for the rest of it.
#![forbid(unsafe_code)]
#![allow(dead_code, unreachable_pub, reason = "the modules serve a whole store elsewhere")]
#![allow(clippy::enum_variant_names, reason = "the names are exported there")]

#[path = "../../session-daemon/src/store/buckets.rs"]
pub(crate) mod buckets;
#[path = "../../session-daemon/src/store/chunks.rs"]
pub(crate) mod chunks;
#[path = "../../session-daemon/src/store/epoch.rs"]
pub(crate) mod epoch;
#[path = "../../session-daemon/src/store/filling.rs"]
pub(crate) mod filling;
#[path = "../../session-daemon/src/store/item.rs"]
pub(crate) mod item;
#[path = "../../session-daemon/src/store/magazines.rs"]
pub(crate) mod magazines;
#[path = "../../session-daemon/src/store/moves.rs"]
pub(crate) mod moves;
#[path = "../../session-daemon/src/store/page_set.rs"]
pub(crate) mod page_set;
#[path = "../../session-daemon/src/store/pins.rs"]
pub(crate) mod pins;
#[path = "../../session-daemon/src/store/pool.rs"]
pub(crate) mod pool;
#[path = "../../session-daemon/src/store/types.rs"]
pub(crate) mod types;
#[path = "../../session-daemon/src/store/words.rs"]
pub(crate) mod words;

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_pages;

/// Crash tests end the process at steps; here nothing happens.
pub(crate) mod failpoint {
    /// A step of a protocol.
    pub(crate) fn step(_: &'static str) {}
}

/// The resolution of times.
pub(crate) mod reuse {
    /// Ticks in a second.
    pub(crate) const TICKS_PER_S: u32 = 16;
}

/// The atomics and locks, loom's.
pub(crate) mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    use loom::sync::{Mutex, MutexGuard};

    /// loom takes SeqCst accesses for weaker ones, but knows SeqCst fences.
    pub(crate) fn after_seq_cst() {
        fence(Ordering::SeqCst);
    }

    /// A value behind a lock for which nobody waits.
    #[derive(Debug, Default)]
    pub(crate) struct TryMutex<T>(Mutex<T>);

    impl<T> TryMutex<T> {
        /// The value, if nobody else has it.
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    /// So many words of 0.
    pub(crate) fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    /// Lets the others go on.
    pub(crate) fn backoff(_: &mut u32) {
        loom::thread::yield_now();
    }

    /// A value that stands alone on its cache line elsewhere.
    #[derive(Debug, Default)]
    pub(crate) struct Padded<T>(pub(crate) T);
}

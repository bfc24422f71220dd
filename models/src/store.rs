//! The part of the store that is checked, and what stands for the rest of it.
#![forbid(unsafe_code)]
#![allow(dead_code, unreachable_pub, reason = "the modules serve a whole store elsewhere")]
#![allow(clippy::enum_variant_names, reason = "the names are exported there")]

#[path = "../../session-daemon/src/store/buckets.rs"]
pub(crate) mod buckets;
#[path = "../../session-daemon/src/store/epoch.rs"]
pub(crate) mod epoch;
#[path = "../../session-daemon/src/store/item.rs"]
pub(crate) mod item;
#[path = "../../session-daemon/src/store/moves.rs"]
pub(crate) mod moves;
#[path = "../../session-daemon/src/store/types.rs"]
pub(crate) mod types;
#[path = "../../session-daemon/src/store/words.rs"]
pub(crate) mod words;

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;

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
    pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
    use loom::sync::{Mutex, MutexGuard};

    /// loom takes SeqCst accesses for weaker ones, but knows SeqCst fences.
    pub(crate) fn after_seq_cst() {
        fence(Ordering::SeqCst);
    }

    /// A value behind a lock.
    #[derive(Debug, Default)]
    pub(crate) struct SpinMutex<T>(Mutex<T>);

    impl<T> SpinMutex<T> {
        /// Takes the lock.
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no model panics with the lock")
        }
    }

    /// A value that stands alone on its cache line elsewhere.
    #[derive(Debug, Default)]
    pub(crate) struct Padded<T>(pub(crate) T);
}

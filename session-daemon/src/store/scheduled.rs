//! The atomics of the store where a scheduler decides which thread takes the next step
//! (`session-schedules`). Their layout is that of the plain ones, because they stand in the region.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

/// A moment at which another thread may go on.
fn point() {
    // Its load is such a moment, and nothing else; `yield_now` would be a hint to take another.
    // All threads that one scheduler knows are one of the system's.
    thread_local! {
        static MOMENT: shuttle::sync::atomic::AtomicBool =
            const { shuttle::sync::atomic::AtomicBool::new(false) };
    }
    MOMENT.with(|moment| _ = moment.load(Ordering::SeqCst));
}

/// Lets others go on, because this thread can do nothing now.
pub(super) fn yield_now() {
    shuttle::thread::yield_now();
}

pub(super) fn fence(_: Ordering) {}

macro_rules! atomics {
    ($($name:ident($value:ty)),*) => {$(
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub(super) struct $name(std::sync::atomic::$name);

        #[allow(dead_code, reason = "all have the same methods")]
        impl $name {
            pub(super) const fn new(value: $value) -> Self {
                Self(std::sync::atomic::$name::new(value))
            }

            pub(super) fn load(&self, order: Ordering) -> $value {
                point();
                self.0.load(order)
            }

            pub(super) fn store(&self, value: $value, order: Ordering) {
                point();
                self.0.store(value, order);
            }

            pub(super) fn swap(&self, value: $value, order: Ordering) -> $value {
                point();
                self.0.swap(value, order)
            }

            pub(super) fn compare_exchange(
                &self,
                seen: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                point();
                self.0.compare_exchange(seen, new, success, failure)
            }

            pub(super) fn compare_exchange_weak(
                &self,
                seen: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(seen, new, success, failure)
            }

            pub(super) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut update: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut seen = self.load(failure);
                while let Some(new) = update(seen) {
                    match self.compare_exchange(seen, new, success, failure) {
                        Ok(before) => return Ok(before),
                        Err(other) => seen = other,
                    }
                }
                Err(seen)
            }
        }
    )*};
}

macro_rules! counts {
    ($($name:ident($value:ty)),*) => {$(
        #[allow(dead_code, reason = "all have the same methods")]
        impl $name {
            pub(super) fn fetch_add(&self, by: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_add(by, order)
            }

            pub(super) fn fetch_sub(&self, by: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_sub(by, order)
            }

            pub(super) fn fetch_or(&self, bits: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_or(bits, order)
            }

            pub(super) fn fetch_and(&self, bits: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_and(bits, order)
            }

            pub(super) fn fetch_xor(&self, bits: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_xor(bits, order)
            }

            pub(super) fn fetch_min(&self, value: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_min(value, order)
            }

            pub(super) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                point();
                self.0.fetch_max(value, order)
            }
        }
    )*};
}

atomics!(AtomicBool(bool), AtomicI64(i64), AtomicU32(u32), AtomicU64(u64), AtomicUsize(usize));
counts!(AtomicI64(i64), AtomicU32(u32), AtomicU64(u64), AtomicUsize(usize));

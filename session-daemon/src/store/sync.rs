//! The atomics of the store, by one name, and the locks of its slow paths, for which nobody waits:
//! who finds one taken does something else. A model checker swaps the atomics here; nothing else in
//! the store names `std::sync::atomic`.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

#[cfg(session_schedule)]
pub(super) use crate::store::scheduled::{
    AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, fence, yield_now,
};
pub(super) use std::sync::atomic::Ordering;
#[cfg(not(session_schedule))]
pub(super) use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, fence,
};
#[cfg(not(session_schedule))]
pub(super) use std::thread::yield_now;

/// Spins before a waiter gives its core away.
const SPINS_MAX: u32 = 64;

/// Waits a little longer at each call; gives the core away when the holder seems to have lost its.
pub(super) fn backoff(step: &mut u32) {
    if *step < SPINS_MAX {
        *step += 1;
        std::hint::spin_loop();
    } else {
        yield_now();
    }
}

/// So many words of 0, which take memory when they are written to.
pub(super) fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
    let words = Box::into_raw(vec![0_u64; count].into_boxed_slice());
    // SAFETY: the box is ours, and both types have the same size, alignment and values.
    unsafe { Box::from_raw(words as *mut [AtomicU64]) }
}

/// Stands between a SeqCst read-modify-write and SeqCst loads whose order with it counts. Nothing
/// is needed here; the model checker's atomics know no such order, and get a fence instead.
pub(super) fn after_seq_cst() {}

/// Takes a lock word (0 free, 1 taken) that lives in the region, if it is free.
pub(super) fn try_lock_word(word: &AtomicU32) -> Option<WordGuard<'_>> {
    // Acquire: pairs with the Release in `WordGuard::drop`, so that what the last holder wrote is
    // seen here.
    word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).ok()?;
    Some(WordGuard { word })
}

/// A taken lock word; dropping it frees the lock.
#[derive(Debug)]
pub(super) struct WordGuard<'a> {
    word: &'a AtomicU32,
}

impl Drop for WordGuard<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `try_lock_word`.
        self.word.store(0, Ordering::Release);
    }
}

/// A value behind a lock word for which nobody waits.
#[derive(Debug, Default)]
pub(super) struct TryMutex<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through `try_lock`, by one thread at a time.
unsafe impl<T: Send> Sync for TryMutex<T> {}

impl<T> TryMutex<T> {
    pub(super) fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// The value, if nobody else has it now.
    pub(super) fn try_lock(&self) -> Option<TryGuard<'_, T>> {
        Some(TryGuard { _guard: try_lock_word(&self.word)?, value: &self.value })
    }
}

/// Access to the value of a [`TryMutex`].
pub(super) struct TryGuard<'a, T> {
    value: &'a UnsafeCell<T>,
    _guard: WordGuard<'a>,
}

impl<T> Deref for TryGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock word, so no other thread reaches the value.
        unsafe { &*self.value.get() }
    }
}

impl<T> DerefMut for TryGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock word and is borrowed mutably.
        unsafe { &mut *self.value.get() }
    }
}

/// A value alone on its cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Padded<T>(pub(super) T);

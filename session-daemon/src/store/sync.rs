//! The atomics of the store, by one name, and the two locks that its slow paths take.
//! A model checker swaps the atomics here; nothing else in the store names `std::sync::atomic`.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

pub(super) use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

/// Spins before a waiter gives its core away.
const SPINS_MAX: u32 = 64;

/// Waits a little longer at each call; gives the core away when the holder seems to have lost its.
pub(super) fn backoff(step: &mut u32) {
    if *step < SPINS_MAX {
        *step += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Stands between a SeqCst read-modify-write and SeqCst loads whose order with it counts. Nothing
/// is needed here; the model checker's atomics know no such order, and get a fence instead.
pub(super) fn after_seq_cst() {}

/// Takes a lock word (0 free, 1 taken) that lives in the region.
pub(super) fn lock_word(word: &AtomicU32) -> WordGuard<'_> {
    let mut step = 0;
    // Acquire: pairs with the Release in `WordGuard::drop`, so that what the last holder wrote is
    // seen here.
    while word.compare_exchange_weak(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        backoff(&mut step);
    }
    WordGuard { word }
}

/// [`lock_word`] that does not wait.
pub(super) fn try_lock_word(word: &AtomicU32) -> Option<WordGuard<'_>> {
    // Acquire: as in `lock_word`.
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
        // Release: pairs with the Acquire in `lock_word`.
        self.word.store(0, Ordering::Release);
    }
}

/// A value behind a lock word; for short sections only.
#[derive(Debug, Default)]
pub(super) struct SpinMutex<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only through `lock`, by one thread at a time.
unsafe impl<T: Send> Sync for SpinMutex<T> {}

impl<T> SpinMutex<T> {
    pub(super) fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    pub(super) fn lock(&self) -> SpinGuard<'_, T> {
        SpinGuard { _guard: lock_word(&self.word), value: &self.value }
    }

    /// [`Self::lock`] that does not wait.
    pub(super) fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        Some(SpinGuard { _guard: try_lock_word(&self.word)?, value: &self.value })
    }
}

/// Access to the value of a [`SpinMutex`].
pub(super) struct SpinGuard<'a, T> {
    value: &'a UnsafeCell<T>,
    _guard: WordGuard<'a>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock word, so no other thread reaches the value.
        unsafe { &*self.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock word and is borrowed mutably.
        unsafe { &mut *self.value.get() }
    }
}

/// A value alone on its cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Padded<T>(pub(super) T);

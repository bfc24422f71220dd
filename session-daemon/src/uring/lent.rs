//! Buffers that are lent to the kernel for whatever is received next (a provided-buffer ring). It
//! owns their memory and knows which are lent; it never knows for whom a buffer was filled.
//!
//! The rule: a buffer is lent from `offer` until a completion names it. While it is lent only the
//! kernel touches it; in between only the worker does. All of them outlive the ring.
#![allow(unsafe_code)]

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// Buffers of one worker: as many connections can have bytes received and not yet looked at. Those
/// beyond are told to ask again. A power of two, as the kernel wants it.
pub(super) const BUFFERS_MAX: u16 = 256;

/// Buffers that are lent at first. The kernel takes them in turn, so all that are lent are touched
/// sooner or later, however few clients there are.
const BUFFERS_FIRST: u16 = 16;

/// Bytes of a buffer: what most requests fit, those that store 10 KB too. More than that is read
/// where it is wanted, by whoever gets a full one. Memory is taken as far as requests have reached.
pub(super) const BUFFER_LEN: usize = 16 << 10;

/// From one buffer to the next: not a multiple of a page, or the beginnings of all buffers, which is
/// where most requests end, would compete for the same few sets of the processor's caches.
const STRIDE: usize = BUFFER_LEN + 5 * 64;

/// The group by which requests name the buffers.
pub(super) const GROUP: u16 = 0;

/// The kernel wants the ring at the start of a page.
const PAGE_LEN: usize = 4096;

/// The ring's place.
#[repr(C, align(4096))]
struct Page([u8; PAGE_LEN]);

const _: () = assert!(BUFFERS_MAX.is_power_of_two());
const _: () = assert!(BUFFERS_MAX as usize * size_of::<BufRingEntry>() <= PAGE_LEN);
const _: () = assert!(align_of::<Page>() == PAGE_LEN);

/// The buffers of one worker.
pub(super) struct Lent {
    /// What the entries are in.
    page: NonNull<Page>,
    /// `BUFFERS_MAX` entries, which the kernel reads.
    entries: NonNull<BufRingEntry>,
    /// All buffers, one behind the other: memory that is not touched before requests reach it.
    memory: Vec<u8>,
    lent: Box<[bool]>,
    /// Buffers from this one on have never been lent.
    untouched: u16,
    tail: u16,
}

impl Lent {
    /// Allocates the buffers and lends some.
    pub(super) fn new() -> Self {
        let page = NonNull::from(Box::leak(Box::new(Page([0; PAGE_LEN]))));
        let entries = page.cast();
        let memory = vec![0; usize::from(BUFFERS_MAX) * STRIDE];
        let lent = vec![false; usize::from(BUFFERS_MAX)].into();
        let mut all = Self { page, entries, memory, lent, untouched: BUFFERS_FIRST, tail: 0 };
        (0..BUFFERS_FIRST).for_each(|id| all.offer(id));
        all
    }

    /// Lends as many more as were lent by now, if there are any.
    pub(super) fn lend_more(&mut self) {
        let first = self.untouched;
        self.untouched = first.saturating_mul(2).min(BUFFERS_MAX);
        (first..self.untouched).for_each(|id| self.offer(id));
    }

    /// Tells a ring of the buffers.
    ///
    /// # Safety
    /// `self` must live until the ring is gone and nothing that it began is under way.
    pub(super) unsafe fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let address = self.entries.as_ptr().addr() as u64;
        // SAFETY: the entries are valid while `self` lives, which the caller promises for as long
        // as the kernel may read them.
        unsafe { submitter.register_buf_ring_with_flags(address, BUFFERS_MAX, GROUP, 0) }
    }

    /// Takes note that the kernel has filled a buffer: it is ours until it is offered again.
    pub(super) fn filled(&mut self, id: u16) {
        if let Some(lent) = self.lent.get_mut(usize::from(id)) {
            *lent = false;
        }
    }

    /// The bytes of a buffer that is not lent.
    pub(super) fn bytes(&self, id: u16) -> &[u8] {
        let lent = self.lent.get(usize::from(id)).is_none_or(|lent| *lent);
        self.memory.get(place(id)).filter(|_| !lent).unwrap_or_default()
    }

    /// Lends a buffer that is not lent.
    pub(super) fn offer(&mut self, id: u16) {
        let (memory, lent) = (self.memory.get_mut(place(id)), self.lent.get_mut(usize::from(id)));
        let (Some(buffer), Some(lent)) = (memory, lent) else { return };
        if std::mem::replace(lent, true) {
            return;
        }
        let at = usize::from(self.tail & (BUFFERS_MAX - 1));
        // SAFETY: `at < BUFFERS_MAX` by the mask, and so many entries were allocated.
        let entry = unsafe { self.entries.add(at) };
        // SAFETY: the kernel does not read the entry at the tail before the tail passes it, and
        // what it reads of entry 0 beside it, the tail itself, is not written through this.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(buffer.as_mut_ptr().addr() as u64);
        entry.set_len(u32::try_from(buffer.len()).unwrap_or(u32::MAX));
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the entries are initialised (zeroed) and begin at this address.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: two aligned bytes inside the entries, written by this thread alone.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: the entry is written; pairs with the kernel's acquire of the tail.
        tail.store(self.tail, Ordering::Release);
    }
}

/// Where in the memory a buffer is.
fn place(id: u16) -> Range<usize> {
    let start = usize::from(id) * STRIDE;
    start..start + BUFFER_LEN
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: leaked by `new`, and the ring that read it is gone (`register`).
        drop(unsafe { Box::from_raw(self.page.as_ptr()) });
    }
}

//! The elements of a BPF array as memory, for a process that may not ask the kernel for maps.
//! It owns the mapping; what a word means is the caller's.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Words that a program in the kernel reads and writes at any time.
#[derive(Debug)]
pub struct MappedWords {
    base: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping belongs to no thread, and all access to it is by atomics.
unsafe impl Send for MappedWords {}
// SAFETY: as for `Send`.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps the first `len` bytes of the elements of an array that was made to be mapped.
    ///
    /// # Errors
    /// The kernel refuses: the array is shorter, or of another kind.
    pub fn map(array: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        if len == 0 || !len.is_multiple_of(8) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing. An array
        // cannot shrink, and its memory lives as long as the mapping.
        let base = unsafe { mmap(null_mut(), len, protection, MapFlags::SHARED, array, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, count: len / 8 })
    }

    /// All words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: that many words were mapped, at a page's beginning, and live as long as `self`;
        // this process touches them as atomics alone.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and no reference outlives `self`.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.count * 8) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be unmapped");
    }
}

//! The one mapping that holds everything, and typed access to it by offset.
//! It owns the memory; it never knows what the bytes mean.

use crate::store::sync::{AtomicU32, AtomicU64};
use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap,
};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::ptr::{NonNull, null_mut};

/// A cache line of words: the unit in which the mapping is addressed.
#[repr(C, align(64))]
pub(super) struct Line([AtomicU64; 8]);

const _: () = assert!(size_of::<Line>() == 64);

/// Types that are nothing but atomics, at most 64-byte aligned, valid for every bit pattern.
///
/// # Safety
/// The type must be exactly that: a shared reference to any bytes of the region is made of it.
pub(super) unsafe trait Shared {}

/// What a mapping of a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// What is written is in the file.
    Shared,
    /// What is written stays in this process.
    Private,
    /// Nothing is written by this process; another may write.
    ReadOnly,
}

/// A mapping: anonymous, reserved whole and backed as it is touched; or of a file.
///
/// Behind it there may be addresses that are reserved for its growth. They count as its own: what
/// touches them before they are opened ends the process, and no offset leads there.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<Line>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; shared access is by atomics, or by the rules of
// `bytes` and `write`.
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` zero bytes.
    pub(super) fn map(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base =
            unsafe { mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        let base = NonNull::new(base.cast::<Line>()).expect("mmap does not return null");
        Ok(Self { base, len })
    }

    /// Maps `len` zero bytes, with addresses behind them up to `room`. Those cost no memory, and
    /// nothing that the kernel would have to promise.
    pub(super) fn map_in(room: usize, len: usize) -> io::Result<Self> {
        let region = Self::reserve(room)?;
        region.open(0..len as u64)?;
        Ok(region)
    }

    /// [`Region::map_file`] for this process and others, with addresses behind it up to `room`.
    pub(super) fn map_file_in(room: usize, file: &File, len: usize) -> io::Result<Self> {
        let region = Self::reserve(room)?;
        region.open_file(file, 0..len as u64)?;
        Ok(region)
    }

    fn reserve(len: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { mmap_anonymous(null_mut(), len, ProtFlags::empty(), flags) }?;
        let base = NonNull::new(base.cast::<Line>()).expect("mmap does not return null");
        Ok(Self { base, len })
    }

    /// Makes zeros of addresses that were reserved and not opened before, from one page of the
    /// system's to another.
    pub(super) fn open(&self, part: Range<u64>) -> io::Result<()> {
        let (start, len) = self.part(part);
        // SAFETY: the part belongs to this mapping, and nothing is taken away from it.
        Ok(unsafe { mprotect(start, len, MprotectFlags::READ | MprotectFlags::WRITE) }?)
    }

    /// Makes the same part of a file, which must have it, of addresses that were reserved and not
    /// opened before.
    pub(super) fn open_file(&self, file: &File, part: Range<u64>) -> io::Result<()> {
        let (flags, protection) =
            (MapFlags::SHARED | MapFlags::FIXED, ProtFlags::READ | ProtFlags::WRITE);
        let (start, len) = self.part(part.clone());
        // SAFETY: replaces a part of this mapping that nobody could touch. Other processes that map
        // the file: as in `map_file`.
        unsafe { mmap(start, len, protection, flags, file, part.start) }?;
        Ok(())
    }

    fn part(&self, part: Range<u64>) -> (*mut c_void, usize) {
        assert!(part.start <= part.end && part.end <= self.len(), "the part is of the region");
        let base = self.base.as_ptr().cast::<u8>();
        // SAFETY: inside the mapping, as asserted.
        let start = unsafe { base.add(part.start as usize) };
        (start.cast(), (part.end - part.start) as usize)
    }

    /// Maps the first `len` bytes of a file. The file must keep them while the mapping lives:
    /// touching what was cut off ends the process.
    pub(super) fn map_file(file: &File, len: usize, access: Access) -> io::Result<Self> {
        let (flags, protection) = match access {
            Access::Shared => (MapFlags::SHARED, ProtFlags::READ | ProtFlags::WRITE),
            Access::Private => {
                (MapFlags::PRIVATE | MapFlags::NORESERVE, ProtFlags::READ | ProtFlags::WRITE)
            }
            Access::ReadOnly => (MapFlags::SHARED, ProtFlags::READ),
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing. Other
        // processes that map the file: a lock on it keeps writers out, readers do no harm.
        let base = unsafe { mmap(null_mut(), len, protection, flags, file, 0) }?;
        let base = NonNull::new(base.cast::<Line>()).expect("mmap does not return null");
        Ok(Self { base, len })
    }

    /// Bytes of the mapping, those that are reserved among them.
    pub(super) fn len(&self) -> u64 {
        self.len as u64
    }

    fn line(&self, offset: u64) -> NonNull<Line> {
        assert!(offset < self.len(), "offset is inside the region");
        // SAFETY: the line starts inside the mapping, as asserted; the mapping is page aligned.
        unsafe { self.base.add((offset / 64) as usize) }
    }

    /// The word at an 8-byte aligned offset.
    pub(super) fn word(&self, offset: u64) -> &AtomicU64 {
        debug_assert!(offset.is_multiple_of(8), "words are aligned");
        assert!(offset < self.len(), "offset is inside the region");
        let words = self.base.cast::<AtomicU64>();
        // SAFETY: the word starts inside the mapping, as asserted, which is a number of pages.
        let word = unsafe { words.add((offset / 8) as usize) };
        // SAFETY: inside the mapping, aligned to 8, lives as long as `self`, only used atomically.
        unsafe { word.as_ref() }
    }

    /// The words of the line at a 64-byte aligned offset.
    pub(super) fn line_words(&self, offset: u64) -> &[AtomicU64; 8] {
        // SAFETY: `line` is inside the mapping, which lives as long as `self`, and is atomics.
        let line = unsafe { self.line(offset).as_ref() };
        &line.0
    }

    /// The half word at a 4-byte aligned offset.
    pub(super) fn half(&self, offset: u64) -> &AtomicU32 {
        assert!(offset < self.len(), "offset is inside the region");
        let halves = self.base.cast::<AtomicU32>();
        // SAFETY: the half word starts inside the mapping, as asserted.
        let half = unsafe { halves.add((offset / 4) as usize) };
        // SAFETY: inside the mapping, aligned to 4, lives as long as `self`, only used atomically.
        unsafe { half.as_ref() }
    }

    /// A structure of atomics at a 64-byte aligned offset.
    pub(super) fn shared<T: Shared>(&self, offset: u64) -> &T {
        const { assert!(align_of::<T>() <= 64) };
        assert!(offset.is_multiple_of(64) && offset + size_of::<T>() as u64 <= self.len());
        // SAFETY: inside the mapping, aligned, lives as long as `self`; `Shared` allows any bytes.
        unsafe { self.line(offset).cast::<T>().as_ref() }
    }

    /// Brings the line of an offset near.
    pub(super) fn prefetch(&self, offset: u64) {
        prefetch(self.line(offset));
    }

    /// [`Region::prefetch`] of so many lines, as far as the region goes.
    pub(super) fn prefetch_lines(&self, offset: u64, count: usize) {
        let first = self.line(offset);
        let beyond = (self.len() - offset / 64 * 64) / 64;
        for idx in 0..count.min(beyond as usize) {
            // SAFETY: the line starts inside the mapping, which has so many from the first one on.
            prefetch(unsafe { first.add(idx) });
        }
    }

    /// Bytes that nobody writes now.
    ///
    /// # Safety
    /// While the slice lives, nobody may write these bytes: they belong to a published item that the caller's
    /// turn protects from reuse, or to memory that the caller owns privately.
    pub(super) unsafe fn bytes(&self, offset: u64, len: usize) -> &[u8] {
        assert!(offset + len as u64 <= self.len(), "bytes are inside the region");
        let base = self.base.as_ptr().cast::<u8>();
        // SAFETY: inside the mapping, as asserted.
        let start = unsafe { base.add(offset as usize) };
        // SAFETY: inside the mapping, initialised by the kernel or by us, and unwritten while
        // the slice lives by the caller's promise.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Copies `bytes` to an offset.
    ///
    /// # Safety
    /// The caller must own the target privately: nobody else reads or writes it now. `bytes` must
    /// not overlap it.
    pub(super) unsafe fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.len(), "bytes are inside the region");
        let base = self.base.as_ptr().cast::<u8>();
        // SAFETY: inside the mapping, as asserted.
        let start = unsafe { base.add(offset as usize) };
        // SAFETY: the caller owns the target, and it does not overlap the source.
        unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Writes `len` bytes to a file, at the same offset, and gives their memory back where it is
    /// anonymous: they read as zeros, or as the file has them, from then on.
    pub(super) fn move_to(&mut self, file: &File, offset: u64, len: usize) -> io::Result<()> {
        // SAFETY: nobody else has the region, which is borrowed mutably.
        file.write_all_at(unsafe { self.bytes(offset, len) }, offset)?;
        let base = self.base.as_ptr().cast::<u8>();
        // SAFETY: inside the mapping, as `bytes` has asserted.
        let start = unsafe { base.add(offset as usize) };
        // SAFETY: the bytes are ours alone, and nobody expects anything of them.
        Ok(unsafe { madvise(start.cast(), len, Advice::LinuxDontNeed) }?)
    }

    /// Sets all of it to zero.
    pub(super) fn clear_all(&mut self) {
        // SAFETY: nobody else has the region, which is borrowed mutably. Readers in other processes
        // or in the kernel believe nothing of what they read.
        unsafe { self.clear(0, self.len) };
    }

    /// Sets `len` bytes to zero.
    ///
    /// # Safety
    /// As for [`Region::write`].
    pub(super) unsafe fn clear(&self, offset: u64, len: usize) {
        assert!(offset + len as u64 <= self.len(), "bytes are inside the region");
        let base = self.base.as_ptr().cast::<u8>();
        // SAFETY: inside the mapping, as asserted.
        let start = unsafe { base.add(offset as usize) };
        // SAFETY: the caller owns the target.
        unsafe { start.write_bytes(0, len) };
    }
}

fn prefetch(line: NonNull<Line>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint without effect on memory, whatever the address.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast::<i8>());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no reference outlives `self`.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours can be unmapped");
    }
}

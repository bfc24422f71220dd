//! The file that a store lives in: its length, its memory, its mapping.
//! It owns the file; it never knows what the bytes mean.
#![forbid(unsafe_code)]

use crate::store::layout::Layout;
use crate::store::region::{Access, Region};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

/// Bytes of a block in `st_blocks` (stat(2)).
const BLOCK_LEN: u64 = 512;
/// Least unit of allocation.
pub(super) const UNIT_LEAST: u64 = 4096;

/// A file for a store, opened for reading and writing and locked by the caller: nobody else may
/// write to it or cut it while the store lives.
#[derive(Debug)]
pub struct MemoryFile {
    /// The file.
    pub file: File,
    /// The kernel's number of this boot (`/proc/sys/kernel/random/boot_id`). What an earlier boot
    /// left is not kept.
    pub boot_id: u128,
    /// Whether no name leads to it, so that it ends with its processes. It has memory for what it
    /// holds alone, as anonymous memory has.
    pub nameless: bool,
    /// The file is a BPF array that can be mapped, of that many bytes and that number: it has all
    /// of its memory from the first moment, can neither grow nor shrink, and only privileged
    /// processes can open it.
    pub map: Option<MapFacts>,
}

/// What the kernel says of a BPF array that a store lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFacts {
    /// The map's number, which no other has until the next boot.
    pub id: u32,
    /// Bytes of all its elements.
    pub len: u64,
    /// Whether it was made for this start, so that there is nothing in it but zeros.
    pub is_new: bool,
}

/// Which file, and when it was changed last: written to, cut, renamed, or stored to in a page of a
/// mapping for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) inode: u64,
    pub(super) changed_ns: u64,
}

impl MemoryFile {
    /// Which file this is. All nameless ones are alike: nobody else can have had them.
    pub(super) fn identity(&self) -> io::Result<Identity> {
        if self.nameless {
            return Ok(Identity::default());
        }
        if let Some(map) = self.map {
            // The number cannot be an inode's.
            return Ok(Identity { inode: 1 << 63 | u64::from(map.id), changed_ns: 0 });
        }
        let found = self.file.metadata()?;
        let changed_ns = found.ctime().wrapping_mul(1_000_000_000).wrapping_add(found.ctime_nsec());
        Ok(Identity { inode: found.ino(), changed_ns: changed_ns as u64 })
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> io::Result<u64> {
        if let Some(map) = self.map {
            return Ok(map.len);
        }
        Ok(self.file.metadata()?.len())
    }

    /// Whether it is a map that nobody has had before.
    pub(super) fn is_new_map(&self) -> bool {
        self.map.is_some_and(|map| map.is_new)
    }

    /// Unit in which the file system gives memory: a huge page on hugetlbfs.
    fn unit(&self) -> io::Result<u64> {
        if self.map.is_some() {
            return Ok(UNIT_LEAST);
        }
        Ok(self.file.metadata()?.blksize().max(UNIT_LEAST))
    }

    /// Gives the file the length of a region and memory for all of it that holds anything.
    pub(super) fn make_room(&self, layout: &Layout) -> io::Result<()> {
        let unit = self.unit()?;
        let len = (layout.region_len() as u64).next_multiple_of(unit);
        if let Some(map) = self.map {
            let fits = len <= map.len;
            return if fits { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) };
        }
        let found = self.file.metadata()?;
        if found.len() != len {
            self.file.set_len(len)?;
        }
        if self.nameless {
            return Ok(());
        }
        let parts = layout.extents().map(|part| {
            let start = part.start / unit * unit;
            (start, part.end.next_multiple_of(unit) - start)
        });
        let wanted: u64 = parts.iter().map(|(_, len)| len).sum();
        // Going over memory that is there costs a second for some gigabytes.
        if self.file.metadata()?.blocks() * BLOCK_LEN >= wanted {
            return Ok(());
        }
        for (start, len) in parts {
            let allocate = || fallocate(&self.file, FallocateFlags::empty(), start, len);
            rustix::io::retry_on_intr(allocate)?;
        }
        Ok(())
    }

    /// Makes the file of `before` as long as `wanted` asks, with memory; leaves it as it is when
    /// there is none.
    pub(super) fn extend(&self, before: &Layout, wanted: &Layout) -> io::Result<()> {
        let extended = self.make_room(wanted);
        if extended.is_err() {
            // Nobody has touched what is cut off.
            self.make_room(before)?;
        }
        extended
    }

    /// Whether addresses behind its mapping may be reserved, to map more of it there later. Huge
    /// pages would have to be reserved in their own units.
    pub(super) fn can_grow(&self) -> io::Result<bool> {
        Ok(self.unit()? == UNIT_LEAST)
    }

    /// Makes the file read as zeros. Who else maps it goes on reading, where the file system can
    /// punch holes.
    pub(super) fn clear(&self) -> io::Result<()> {
        let len = self.len()?;
        if len == 0 {
            return Ok(());
        }
        if self.map.is_some() {
            self.map(len as usize, Access::Shared)?.clear_all();
            return Ok(());
        }
        let punched =
            fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, len);
        if punched.is_err() {
            self.file.set_len(0)?;
        }
        Ok(())
    }

    /// Maps the first `len` bytes, in whole units.
    pub(super) fn map(&self, len: usize, access: Access) -> io::Result<Region> {
        let len = (len as u64).next_multiple_of(self.unit()?);
        Region::map_file(&self.file, len as usize, access)
    }
}

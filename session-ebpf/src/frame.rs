//! The one way in which packet bytes are read.
#![forbid(unsafe_code)]

/// A packet's bytes.
pub trait Frame {
    /// Whether `load` is cheaper than `load_rare` where TCP and UDP begin behind an IP header
    /// without options or extensions, so that a second look for them is worth its instructions.
    const HAS_USUAL_PLACES: bool = false;

    /// The `N` bytes that begin at `offset`, or `None` when the packet ends before their end.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// The same, for a header that few packets have: short code goes before speed.
    #[inline(always)]
    fn load_rare<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.load(offset)
    }

    /// The same offset, where a program gains by its verifier not knowing what it can be: paths
    /// that differ in nothing else are then walked once.
    #[inline(always)]
    fn forget(&self, offset: usize) -> usize {
        offset
    }

    /// Copies words of four bytes that begin at `offset`; `None` as for `load`. For what has to
    /// be in memory anyway: a program's stack is short.
    #[inline(always)]
    fn copy_words<const W: usize>(&self, offset: usize, into: &mut [u32; W]) -> Option<()> {
        for (idx, word) in into.iter_mut().enumerate() {
            *word = u32::from_ne_bytes(self.load_rare(offset + idx * 4)?);
        }
        Some(())
    }
}

impl Frame for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

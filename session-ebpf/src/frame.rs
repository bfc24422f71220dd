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
}

impl Frame for [u8] {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

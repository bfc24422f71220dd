//! What the packet generator of tests and benchmarks is told.
#![forbid(unsafe_code)]

/// Length of a generated frame: the shortest that Ethernet carries, without its checksum.
pub const FRAME_LEN: usize = 60;

/// A flood of one TCP segment or UDP datagram over IPv4 from many sources.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// Index of the device that the frames leave by.
    pub ifindex: u32,
    /// The source of packet `n` is the frame's plus `n & sources_mask`; at most 0xffff, and the
    /// frame's source ends in as many zero bits.
    pub sources_mask: u32,
    /// The first packet, with valid checksums.
    pub frame: [u8; FRAME_LEN],
}

const _: () = assert!(size_of::<Flood>() == 68);

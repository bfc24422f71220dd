//! Reading a packet's bytes at each hook.
//!
//! No pointer is ever subtracted from another: that would cost the loader CAP_PERFMON.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::generated::{bpf_skb_load_bytes_relative, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};
use session_ebpf::{ETHERNET_LEN, Frame, Link};

/// An XDP packet in one piece, read in place.
pub(super) struct LinearFrame {
    data: usize,
    data_end: usize,
}

impl LinearFrame {
    #[inline(always)]
    pub(super) fn new(context: &XdpContext) -> Self {
        Self { data: context.data(), data_end: context.data_end() }
    }
}

impl Frame for LinearFrame {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.data + offset;
        if start + N > self.data_end {
            return None;
        }
        // SAFETY: `start..start + N` lies inside the packet by the check above, which the
        // verifier demands as well; a byte array has no alignment.
        Some(unsafe { *(start as *const [u8; N]) })
    }
}

/// An XDP packet of which a later piece may hold headers: the first piece is read in place.
pub(super) struct ScatteredFrame<'a> {
    first: LinearFrame,
    context: &'a XdpContext,
}

impl<'a> ScatteredFrame<'a> {
    #[inline(always)]
    pub(super) fn new(context: &'a XdpContext) -> Self {
        Self { first: LinearFrame::new(context), context }
    }

    #[inline(always)]
    fn load_slow<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes at most `N` bytes to a buffer of `N` bytes.
        let status = unsafe {
            bpf_xdp_load_bytes(self.context.ctx, offset as u32, bytes.as_mut_ptr().cast(), N as u32)
        };
        // SAFETY: on success the helper has written all `N` bytes.
        (status == 0).then(|| unsafe { bytes.assume_init() })
    }
}

impl Frame for ScatteredFrame<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        match self.first.load(offset) {
            Some(bytes) => Some(bytes),
            None => self.load_slow(offset),
        }
    }
}

/// A socket buffer at the tcx hook, read from its network header on, so that devices without a
/// link-layer header and tags that the device or the stack has stripped make no difference.
pub(super) struct SocketBuffer<'a> {
    context: &'a TcContext,
}

impl<'a> SocketBuffer<'a> {
    #[inline(always)]
    pub(super) fn new(context: &'a TcContext) -> Self {
        Self { context }
    }

    #[inline(always)]
    fn skb(&self) -> *const __sk_buff {
        self.context.skb.skb
    }

    /// Index of the device that received the packet.
    #[inline(always)]
    pub(super) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel hands a valid context to the program.
        unsafe { (*self.skb()).ifindex }
    }

    /// The ethertype as the stack has it. The link-layer header counts as Ethernet.
    #[inline(always)]
    pub(super) fn link(&self) -> Link {
        // SAFETY: as for `ifindex`.
        let protocol = unsafe { (*self.skb()).protocol };
        Link { ethertype: u16::from_be(protocol as u16), at: 0, before_len: ETHERNET_LEN }
    }
}

impl Frame for SocketBuffer<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes at most `N` bytes to a buffer of `N` bytes.
        let status = unsafe {
            bpf_skb_load_bytes_relative(
                self.context.as_ptr().cast_const(),
                offset as u32,
                bytes.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET,
            )
        };
        // SAFETY: on success the helper has written all `N` bytes.
        (status == 0).then(|| unsafe { bytes.assume_init() })
    }
}

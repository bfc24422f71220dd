//! Reading a packet's bytes at each hook.
//!
//! The verifier lets a loader without CAP_PERFMON neither subtract packet pointers nor add a
//! register to one, as both help to read memory by speculation. So no program reads a packet in
//! place but at offsets that are constants of the program.

use core::{arch::asm, mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::generated::{bpf_skb_load_bytes_relative, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::{XdpContext, sk_buff::SkBuff},
};
use session_ebpf::{ETHERNET_LEN, Frame, Link};

use super::maps::{HEAD, HEAD_LEN, Head};

/// Bytes that are copied at once.
const WORD: usize = 8;

/// The head of an XDP packet that is in one piece, copied to where any offset may be read.
/// Headers that reach beyond [`HEAD_LEN`] are cut off for it.
pub(super) struct HeadCopy {
    head: *mut Head,
    len: usize,
}

impl HeadCopy {
    /// `None` is not met in practice: the map has the element.
    #[inline(always)]
    pub(super) fn new(context: &XdpContext) -> Option<Self> {
        let head = HEAD.get_ptr_mut(0)?;
        let (mut from, end, mut to) = (context.data(), context.data_end(), head);
        let mut len = 0;
        while len < HEAD_LEN && from + WORD <= end {
            // SAFETY: eight bytes of the packet by the check above, and of the head, since
            // `HEAD_LEN` is a multiple of eight. In assembly, because packets are not aligned
            // to eight, and because the compiler must not make sums of registers of the sums.
            unsafe {
                asm!(
                    "{word} = *(u64 *)({from} + 0)",
                    "*(u64 *)({to} + 0) = {word}",
                    "{from} += 8",
                    "{to} += 8",
                    word = out(reg) _,
                    from = inout(reg) from,
                    to = inout(reg) to,
                );
            }
            len += WORD;
        }
        for _ in 1..WORD {
            if len == HEAD_LEN || from + 1 > end {
                break;
            }
            // SAFETY: one byte of each, as above.
            unsafe {
                asm!(
                    "{byte} = *(u8 *)({from} + 0)",
                    "*(u8 *)({to} + 0) = {byte}",
                    "{from} += 1",
                    "{to} += 1",
                    byte = out(reg) _,
                    from = inout(reg) from,
                    to = inout(reg) to,
                );
            }
            len += 1;
        }
        // Or the verifier walks all that follows once for each length.
        let len = forget(head, len);
        // SAFETY: as there.
        unsafe { (*head).len = len };
        Some(Self { head, len })
    }
}

impl HeadCopy {
    /// The copy that this run of the program has made before.
    #[inline(always)]
    pub(super) fn again() -> Option<Self> {
        let head = HEAD.get_ptr_mut(0)?;
        // SAFETY: `head` is a valid map value that this program run has for itself.
        Some(Self { head, len: unsafe { (*head).len } })
    }

    /// Bytes of the packet; `None` if it may be longer than the copy.
    #[inline(always)]
    pub(super) fn packet_len(&self) -> Option<usize> {
        (self.len < HEAD_LEN).then_some(self.len)
    }
}

/// The same number, of which the verifier knows nothing any more: it does not track what map
/// values hold.
#[inline(always)]
fn forget(head: *mut Head, number: usize) -> usize {
    // SAFETY: `head` is a valid map value that this program run has for itself.
    unsafe { ptr::write_volatile(&raw mut (*head).number, number) };
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const (*head).number) }
}

impl Frame for HeadCopy {
    #[inline(always)]
    fn forget(&self, offset: usize) -> usize {
        forget(self.head, offset)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // The verifier masks the sum below against speculation, by one mask for all paths that
        // lead here; offsets that it knew on some of them would ask for several.
        let offset = forget(self.head, offset);
        if offset > HEAD_LEN - N || offset + N > self.len {
            return None;
        }
        // SAFETY: `offset + N <= HEAD_LEN` by the first check; a byte array has no alignment.
        Some(unsafe { *self.head.cast::<u8>().add(offset).cast::<[u8; N]>() })
    }

    #[inline(always)]
    fn copy_words<const W: usize>(&self, offset: usize, into: &mut [u32; W]) -> Option<()> {
        let len = size_of::<[u32; W]>();
        let offset = forget(self.head, offset);
        if offset > HEAD_LEN - len || offset + len > self.len {
            return None;
        }
        for (idx, word) in into.iter_mut().enumerate() {
            // SAFETY: `offset + len <= HEAD_LEN` by the first check; a byte array has no
            // alignment. Volatile, because the compiler would call memcpy for them all, whose
            // pointer arithmetic needs CAP_PERFMON.
            *word = u32::from_ne_bytes(unsafe {
                let at = self.head.cast::<u8>().add(offset).add(idx * size_of::<u32>());
                ptr::read_volatile(at.cast())
            });
        }
        Some(())
    }
}

/// Where most headers begin: Ethernet, what follows it without a tag, and TCP or UDP behind an
/// IPv4 header without options or an IPv6 header without extensions.
mod usual {
    pub(super) const LINK: usize = 0;
    pub(super) const NETWORK: usize = 14;
    pub(super) const TRANSPORT4: usize = 34;
    pub(super) const TRANSPORT6: usize = 54;
}

/// An XDP packet that may be in several pieces. At the usual offsets it is read in place; at
/// others, and where the first piece ends early, by a helper of Linux 5.18.
pub(super) struct XdpBuffer<'a> {
    context: &'a XdpContext,
}

impl<'a> XdpBuffer<'a> {
    #[inline(always)]
    pub(super) fn new(context: &'a XdpContext) -> Self {
        Self { context }
    }

    /// Bytes of the packet, all of its pieces together.
    #[inline(always)]
    pub(super) fn packet_len(&self) -> usize {
        // SAFETY: the program's own context.
        unsafe { bpf_xdp_get_buff_len(self.context.ctx) as usize }
    }

    #[inline(always)]
    fn load_in_place<const N: usize, const AT: usize>(&self) -> Option<[u8; N]> {
        let mut start = self.context.data();
        // SAFETY: adds to a number. In assembly, because the compiler would put the number into
        // a register as soon as several places share the sum.
        unsafe { asm!("{start} += {at}", start = inout(reg) start, at = const AT) };
        if start + N > self.context.data_end() {
            return None;
        }
        // SAFETY: inside the packet by the check above, which the verifier demands as well; a
        // byte array has no alignment.
        Some(unsafe { *(start as *const [u8; N]) })
    }
}

impl Frame for XdpBuffer<'_> {
    const HAS_USUAL_PLACES: bool = true;

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let in_place = match offset {
            usual::LINK => self.load_in_place::<N, { usual::LINK }>(),
            usual::NETWORK => self.load_in_place::<N, { usual::NETWORK }>(),
            usual::TRANSPORT4 => self.load_in_place::<N, { usual::TRANSPORT4 }>(),
            usual::TRANSPORT6 => self.load_in_place::<N, { usual::TRANSPORT6 }>(),
            _ => None,
        };
        match in_place {
            Some(bytes) => Some(bytes),
            None => self.load_rare(offset),
        }
    }

    // The verifier follows speculation around a loop until it gives up: the loops over these
    // headers must be short enough for the compiler to unroll them.
    #[inline(always)]
    fn load_rare<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes at most `N` bytes to a buffer of `N` bytes.
        let status = unsafe {
            bpf_xdp_load_bytes(self.context.ctx, offset as u32, bytes.as_mut_ptr().cast(), N as u32)
        };
        // SAFETY: on success the helper has written all `N` bytes.
        (status == 0).then(|| unsafe { bytes.assume_init() })
    }

    #[inline(always)]
    fn copy_words<const W: usize>(&self, offset: usize, into: &mut [u32; W]) -> Option<()> {
        let len = size_of::<[u32; W]>() as u32;
        // SAFETY: the helper writes at most as many bytes as the words have.
        let status = unsafe {
            bpf_xdp_load_bytes(self.context.ctx, offset as u32, into.as_mut_ptr().cast(), len)
        };
        (status == 0).then_some(())
    }
}

/// A socket buffer at tcx or at a socket, read from its network header on, so that devices without
/// a link-layer header and tags that the device or the stack has stripped make no difference.
pub(super) struct SocketBuffer {
    skb: *mut __sk_buff,
}

impl SocketBuffer {
    #[inline(always)]
    pub(super) fn new(skb: &SkBuff) -> Self {
        Self { skb: skb.skb }
    }

    /// Index of the device that received the packet.
    #[inline(always)]
    pub(super) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel hands a valid context to the program.
        unsafe { (*self.skb).ifindex }
    }

    /// The kernel's name for it, for helpers.
    #[inline(always)]
    pub(super) fn skb(&self) -> *mut __sk_buff {
        self.skb
    }

    /// Bytes of the packet, with the link-layer header if the device has one.
    #[inline(always)]
    pub(super) fn len(&self) -> u32 {
        // SAFETY: as for `ifindex`.
        unsafe { (*self.skb).len }
    }

    /// The ethertype as the stack has it. The link-layer header counts as Ethernet.
    #[inline(always)]
    pub(super) fn link(&self) -> Link {
        // SAFETY: as for `ifindex`.
        let protocol = unsafe { (*self.skb).protocol };
        Link { ethertype: u16::from_be(protocol as u16), at: 0, before_len: ETHERNET_LEN }
    }
}

impl Frame for SocketBuffer {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes at most `N` bytes to a buffer of `N` bytes.
        let status = unsafe {
            bpf_skb_load_bytes_relative(
                self.skb.cast(),
                offset as u32,
                bytes.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET,
            )
        };
        // SAFETY: on success the helper has written all `N` bytes.
        (status == 0).then(|| unsafe { bytes.assume_init() })
    }

    #[inline(always)]
    fn copy_words<const W: usize>(&self, offset: usize, into: &mut [u32; W]) -> Option<()> {
        let len = size_of::<[u32; W]>() as u32;
        // SAFETY: the helper writes at most as many bytes as the words have.
        let status = unsafe {
            bpf_skb_load_bytes_relative(
                self.skb.cast(),
                offset as u32,
                into.as_mut_ptr().cast(),
                len,
                BPF_HDR_START_NET,
            )
        };
        (status == 0).then_some(())
    }
}

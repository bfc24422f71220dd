//! The generator and the bare programs, as the kernel runs them.
//!
//! Live frames are recycled with whatever the program under test left in them, so the generator
//! writes every byte of every frame.

use aya_ebpf::{
    bindings::{tcx_action_base, xdp_action},
    btf_maps::{Array, PerCpuArray},
    helpers::generated::bpf_redirect,
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use session_common::flood::{FRAME_LEN, Flood};

/// Words of a frame.
const WORDS: usize = FRAME_LEN / 4;
/// Offsets of what changes from packet to packet: IPv4 identification, low half of the IPv4
/// source, and what offsets that in the transport's checksum: in TCP the low half of the
/// sequence number, in UDP the checksum itself, which stands at the same place.
const IDENTIFICATION: usize = 18;
const SOURCE_LOW: usize = 28;
const SEQUENCE_LOW: usize = 40;

#[btf_map]
static FLOOD: Array<Flood, 1> = Array::new();
#[btf_map]
static SENT: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Drops every packet.
#[xdp]
pub(super) fn bare_drop(_context: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Passes every packet. The far end of a veth pair needs some program to receive redirects.
#[xdp]
pub(super) fn bare_pass(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Drops every packet at tcx.
#[classifier]
pub(super) fn bare_drop_tcx(_context: TcContext) -> i32 {
    tcx_action_base::TCX_DROP
}

/// Writes the next frame of the flood and sends it.
#[xdp]
pub(super) fn generate(context: XdpContext) -> u32 {
    let (Some(flood), Some(sent)) = (FLOOD.get(0), SENT.get_ptr_mut(0)) else {
        return xdp_action::XDP_DROP;
    };
    // SAFETY: this CPU's slot, and the program does not interrupt itself.
    let sent = unsafe { &mut *sent };
    let n = (*sent as u32 & flood.sources_mask) as u16;
    *sent += 1;
    let start = context.data();
    if start + FRAME_LEN > context.data_end() {
        return xdp_action::XDP_DROP;
    }
    // SAFETY: the whole frame lies inside the packet; test runs align packets to eight bytes,
    // and a map value is aligned to eight, the frame in it to four.
    unsafe {
        *(start as *mut [u32; WORDS]) = *flood.frame.as_ptr().cast::<[u32; WORDS]>();
    }
    // What the source gains, identification and transport lose: all checksums stay valid.
    change(start + SOURCE_LOW, n);
    change(start + IDENTIFICATION, !n);
    change(start + SEQUENCE_LOW, !n);
    // SAFETY: a helper that takes two numbers.
    unsafe { bpf_redirect(flood.ifindex, 0) as u32 }
}

/// Adds to a 16-bit field in ones' complement.
#[inline(always)]
fn change(address: usize, amount: u16) {
    let field = address as *mut u16;
    // SAFETY: inside the frame by the caller's check; fields of IPv4 and TCP have even offsets.
    let sum = u32::from(u16::from_be(unsafe { *field })) + u32::from(amount);
    // SAFETY: as above.
    unsafe { *field = ((sum + (sum >> 16)) as u16).to_be() };
}

/// `bpf_redirect` asks for no licence, but the object states the project's.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub(super) static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

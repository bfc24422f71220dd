//! The guard as the kernel runs it: four hooks around one judgement.
//!
//! It owns the entry points and the counting. What a packet means stands in the library of this
//! crate; where tables come from stands in `maps`, where bytes come from in `frames`.

mod frames;
mod maps;

use aya_ebpf::{
    EbpfContext,
    bindings::{tcx_action_base, xdp_action},
    macros::{classifier, socket_filter, xdp},
    programs::{SkBuffContext, TcContext, XdpContext},
};
use session_common::guard::{RULES_MAX, settings};
use session_ebpf::{Finding, Frame, Headers, Tables, judge, parse, parse_from};

use self::{
    frames::{HeadCopy, SocketBuffer, XdpBuffer},
    maps::{COUNTERS, Maps, RULES, add},
};

/// XDP for drivers that hand over a packet in one piece. Linux 5.10.
#[xdp]
pub(super) fn guard(context: XdpContext) -> u32 {
    match HeadCopy::new(&context) {
        Some(frame) => xdp_action(&context, &frame),
        None => xdp_action::XDP_DROP,
    }
}

/// XDP for drivers that hand over a packet in several pieces (MTU above a page). Linux 5.18.
#[xdp(frags)]
pub(super) fn guard_frags(context: XdpContext) -> u32 {
    xdp_action(&context, &XdpBuffer::new(&context))
}

/// tcx, for devices whose driver has no XDP and for those without an Ethernet header. Linux 6.6.
#[classifier]
pub(super) fn guard_tcx(context: TcContext) -> i32 {
    let frame = SocketBuffer::new(&context.skb);
    let maps = Maps::<true>::new(context.as_ptr(), frame.ifindex());
    let headers = parse_from(&frame, frame.link());
    if passes(&maps, &headers) { tcx_action_base::TCX_NEXT } else { tcx_action_base::TCX_DROP }
}

/// The listening sockets themselves, for what comes past the other hooks: an interface whose
/// program somebody took off, or one that nobody knows of. What it drops the other hooks have not
/// counted.
#[socket_filter]
pub(super) fn guard_socket(context: SkBuffContext) -> i64 {
    /// Bytes of the packet to keep: all.
    const KEEP: i64 = u32::MAX as i64;
    /// `LOOPBACK_IFINDEX`: the host's talk to itself, which the daemon judges at accept.
    const LOOPBACK: u32 = 1;
    let frame = SocketBuffer::new(&context.skb);
    let maps = Maps::<false>::new(context.as_ptr(), 0);
    if frame.ifindex() == LOOPBACK || maps.settings() & settings::AUDIT != 0 {
        return KEEP;
    }
    let headers = parse_from(&frame, frame.link());
    let finding = judge(&maps, &headers);
    if !finding.reason.drops() {
        return KEEP;
    }
    count(&finding, headers.len);
    0
}

#[inline(always)]
fn xdp_action(context: &XdpContext, frame: &impl Frame) -> u32 {
    let maps = Maps::<true>::new(context.as_ptr(), context.ingress_ifindex() as u32);
    let headers = parse(frame);
    if passes(&maps, &headers) { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}

/// Judges and counts one packet.
#[inline(always)]
fn passes(maps: &Maps<true>, headers: &Headers) -> bool {
    let finding = judge(maps, headers);
    count(&finding, headers.len);
    !finding.reason.drops() || maps.settings() & settings::AUDIT != 0
}

#[inline(always)]
fn count(finding: &Finding, len: u32) {
    add(&COUNTERS, finding.reason as u32, len);
    if let Some(rule) = finding.rule {
        add(&RULES, if rule < RULES_MAX { rule } else { 0 }, len);
    }
}

/// Two licences: helpers of the kernel ask for a GPL-compatible one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub(super) static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

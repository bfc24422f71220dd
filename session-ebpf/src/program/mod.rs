//! The guard as the kernel runs it: four hooks around one judgement.
//!
//! It owns the entry points and the counting. What a packet means stands in the library of this
//! crate; where tables come from stands in `maps`, where bytes come from in `frames`.

mod answers;
mod frames;
mod maps;
mod samples;

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, tcx_action_base, xdp_action, xdp_md},
    macros::{classifier, socket_filter, xdp},
    programs::{SkBuffContext, TcContext, XdpContext, sk_buff::SkBuff},
};
use session_common::answer::{Answer, Style};
use session_common::guard::{LISTS_MAX, RULES_MAX, Reason, settings};
use session_ebpf::{
    Addresses, Finding, Frame, Headers, NO_RULE, Tables, Target, judge, may_answer, parse,
    parse_from,
};

use self::{
    answers::{IS_V6, Refused, answer_frags, answer_head, answer_tcx},
    frames::{HeadCopy, SocketBuffer, XdpBuffer},
    maps::{ANSWERS, COUNTERS, Maps, PLANES, PLANES_FRAGS, REFUSAL, RULES, add, zero},
    samples::{sample, set_answer, source4, source6},
};

/// XDP for drivers that hand over a packet in one piece. Linux 5.10.
#[xdp]
pub(super) fn guard(context: XdpContext) -> u32 {
    let action = judge_head(context.ctx);
    if action >= action::PLANE {
        // SAFETY: the program's own context, of which nothing is kept.
        unsafe { PLANES.tail_call(&context, action - action::PLANE) };
        return xdp_action::XDP_PASS;
    }
    refuse_xdp(action, |refused| answer_head(&context, refused))
}

/// XDP for drivers that hand over a packet in several pieces (MTU above a page). Linux 5.18.
#[xdp(frags)]
pub(super) fn guard_frags(context: XdpContext) -> u32 {
    let action = judge_frags(context.ctx);
    if action >= action::PLANE {
        // SAFETY: as in `guard`.
        unsafe { PLANES_FRAGS.tail_call(&context, action - action::PLANE) };
        return xdp_action::XDP_PASS;
    }
    refuse_xdp(action, |refused| answer_frags(&context, refused))
}

/// tcx, for devices whose driver has no XDP and for those without an Ethernet header. Linux 6.6.
#[classifier]
pub(super) fn guard_tcx(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let action = judge_skb(skb);
    // The plane is a program of XDP.
    let action = if action >= action::PLANE { action::PASS } else { action };
    match refuse(action, |refused| answer_tcx(skb, refused)) {
        Fate::Passes => tcx_action_base::TCX_NEXT,
        Fate::Dropped => tcx_action_base::TCX_DROP,
        Fate::Answered => tcx_action_base::TCX_REDIRECT,
    }
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
    match refuse(decide(&maps, &parse_from(&frame, frame.link())), |_| Answer::Unanswerable) {
        Fate::Passes => KEEP,
        _ => 0,
    }
}

/// What is to be done with a packet, as a plain number from one function to another.
mod action {
    /// Let it go on.
    pub(super) const PASS: u32 = 0;
    /// Let it go on, and sample it as if it were dropped.
    pub(super) const AUDIT: u32 = 1;
    pub(super) const DROP: u32 = 2;
    /// Answer it, and drop it if that cannot be.
    pub(super) const ANSWER: u32 = 3;
    /// Drop it: it should be answered and must not.
    pub(super) const UNANSWERABLE: u32 = 4;
    /// Let it go on to the plane of a list, whose number is added, or else to the stack.
    pub(super) const PLANE: u32 = 8;
}

/// What is known of a packet that is refused. It stands in a map: a program's stack is short, and
/// of what maps hold the verifier follows no value, so that it walks what comes next only once.
#[repr(C)]
pub(super) struct Refusal {
    /// The source as a sample has it.
    source: [u64; 2],
    /// Bytes of the packet.
    len: u32,
    /// Port, protocol and reason for a sample.
    what: u32,
    /// Device that received it.
    ifindex: u32,
    /// How to answer: the style, and [`IS_V6`].
    how: u32,
}

/// What became of a packet.
enum Fate {
    Passes,
    Dropped,
    Answered,
}

#[inline(always)]
fn refuse_xdp(action: u32, send: impl FnOnce(Refused) -> Answer) -> u32 {
    match refuse(action, send) {
        Fate::Passes => xdp_action::XDP_PASS,
        Fate::Dropped => xdp_action::XDP_DROP,
        Fate::Answered => xdp_action::XDP_TX,
    }
}

/// Samples a packet that the list refuses; answers it if that is asked for and `send` does.
#[inline(always)]
fn refuse(action: u32, send: impl FnOnce(Refused) -> Answer) -> Fate {
    if action == action::PASS {
        return Fate::Passes;
    }
    let Some(refusal) = REFUSAL.get_ptr_mut(0) else { return Fate::Dropped };
    // SAFETY: this CPU's slot of a per-CPU map; programs of one hook do not interrupt each other.
    let Refusal { source, len, what, ifindex, how } = unsafe { ptr::read(refusal) };
    // Before an answer takes the packet's place.
    let place = sample(ifindex, what, source);
    let answer = match action {
        action::AUDIT => return Fate::Passes,
        action::ANSWER => {
            let half = if how < IS_V6 { source[1] } else { source[0] };
            send(Refused { source: half, how })
        }
        action::UNANSWERABLE => Answer::Unanswerable,
        _ => return Fate::Dropped,
    };
    add(&ANSWERS, answer as u32, len);
    set_answer(place, answer);
    match answer {
        Answer::Reset | Answer::Icmp => Fate::Answered,
        _ => Fate::Dropped,
    }
}

/// The judgement is a function of its own at each hook, because a program's stack is short and
/// what it takes is free again when the answer is made.
#[inline(never)]
fn judge_head(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    match HeadCopy::new(&context) {
        Some(frame) => judge_xdp(&context, &frame),
        None => action::DROP,
    }
}

#[inline(never)]
fn judge_frags(context: *mut xdp_md) -> u32 {
    let context = XdpContext::new(context);
    judge_xdp(&context, &XdpBuffer::new(&context))
}

#[inline(always)]
fn judge_xdp(context: &XdpContext, frame: &impl Frame) -> u32 {
    let maps = Maps::<true>::new(context.as_ptr(), context.ingress_ifindex() as u32);
    decide(&maps, &parse(frame))
}

#[inline(never)]
fn judge_skb(skb: *mut __sk_buff) -> u32 {
    let frame = SocketBuffer::new(&SkBuff::new(skb));
    let maps = Maps::<true>::new(skb.cast(), frame.ifindex());
    decide(&maps, &parse_from(&frame, frame.link()))
}

/// Judges and counts one packet.
///
/// Each family has its own copy of what follows: where they met, the compiler would carry what
/// one has and the other has not, and the verifier refuses to store what was never set.
#[inline(always)]
fn decide<const ROUTES: bool>(maps: &Maps<ROUTES>, headers: &Headers) -> u32 {
    if headers.target == Target::NotIp {
        if ROUTES {
            add(&COUNTERS, Reason::NotIp as u32, headers.len);
        }
        return action::PASS;
    }
    match headers.addresses {
        Addresses::V4(pair) => {
            let source = source4(pair.source);
            settle(maps, headers, source, 0, || may_answer(maps, &pair))
        }
        Addresses::V6(pair) => {
            let source = source6(pair.source);
            settle(maps, headers, source, IS_V6, || may_answer(maps, &pair))
        }
        Addresses::Unread => settle(maps, headers, [zero(), zero()], 0, || false),
    }
}

#[inline(always)]
fn settle<const ROUTES: bool>(
    maps: &Maps<ROUTES>,
    headers: &Headers,
    source: [u64; 2],
    family: u32,
    may_answer: impl FnOnce() -> bool,
) -> u32 {
    let finding = judge(maps, headers);
    // What a socket lets pass the other hooks have counted.
    if ROUTES || finding.reason.drops() {
        count(&finding, headers.len);
    }
    if !finding.reason.drops() {
        const UDP: u32 = 17;
        let may_be_request = finding.reason == Reason::Allowed && finding.endpoint & 0xff == UDP;
        let list = finding.list & (LISTS_MAX - 1);
        return if ROUTES && may_be_request { action::PLANE + list } else { action::PASS };
    }
    let Some(refusal) = REFUSAL.get_ptr_mut(0) else { return action::DROP };
    // SAFETY: as in `refuse`.
    let refusal = unsafe { &mut *refusal };
    let settings = maps.settings();
    let style = Style::of(finding.action, settings);
    refusal.source = source;
    refusal.len = headers.len;
    refusal.what = what(&finding);
    refusal.ifindex = maps.ifindex();
    refusal.how = style as u32 | family;
    let is_resolved = finding.endpoint != 0 && finding.reason != Reason::ForgedSource;
    if settings & settings::AUDIT != 0 {
        action::AUDIT
    } else if style == Style::Drop || !ROUTES {
        action::DROP
    } else if is_resolved && may_answer() {
        action::ANSWER
    } else {
        action::UNANSWERABLE
    }
}

/// Port, protocol and reason in one number, which is not 0.
#[inline(always)]
fn what(finding: &Finding) -> u32 {
    finding.endpoint << 8 | finding.reason as u32
}

#[inline(always)]
fn count(finding: &Finding, len: u32) {
    add(&COUNTERS, finding.reason as u32, len);
    if finding.rule != NO_RULE {
        add(&RULES, if finding.rule < RULES_MAX { finding.rule } else { 0 }, len);
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

//! Answering refused packets: out of the interface that they came in by.
//!
//! It owns tokens, the link-layer header of an answer and its way into the packet's place. What
//! an answer says is composed in the library.

use core::{
    arch::asm,
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{
        bpf_ktime_get_boot_ns, bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_store_bytes, bpf_xdp_adjust_tail,
    },
    programs::{XdpContext, sk_buff::SkBuff},
};
use session_common::answer::{
    Answer, CPU_INTERVAL_NS, SOURCE_INTERVAL_NS, SourceKey, Style, has_token, take_token,
};
use session_ebpf::{ETHERNET_LEN, Frame, Original, REPLY_WORDS, Reply, compose};

use super::{
    frames::{HeadCopy, SocketBuffer, XdpBuffer},
    maps::{CPU_BUCKET, REPLY, SOURCES},
};

/// The longest link-layer header of an answer: Ethernet with one tag.
const LINK_LEN_MAX: usize = ETHERNET_LEN + 4;

/// An answer as it is composed. The link-layer header ends where the network header begins.
#[repr(C)]
pub(super) struct ReplyBuffer {
    padding: [u8; 2],
    link: [u8; LINK_LEN_MAX],
    words: [u32; REPLY_WORDS],
    original: Original,
}

const _: () = assert!(offset_of!(ReplyBuffer, words) == 2 + LINK_LEN_MAX);

/// In [`Refused::how`] beside the style.
pub(super) const IS_V6: u32 = 256;

/// A refused packet that may be answered.
#[derive(Clone, Copy)]
pub(super) struct Refused {
    /// Key of the source's bucket: the half of its address that names an IPv4 host or an IPv6 /64.
    pub(super) source: u64,
    /// The style, and [`IS_V6`].
    pub(super) how: u32,
}

/// Style and whether it is IPv6, of [`Refused::how`].
#[inline(always)]
fn unpack(how: u32) -> (Style, bool) {
    let style = if how & 0xff == Style::Icmp as u32 { Style::Icmp } else { Style::Reset };
    (style, how >= IS_V6)
}

/// Takes a token of this CPU and one of the source. The CPU's is looked at first and taken last,
/// so that a flood from forged sources does not churn the table of sources, and one source does
/// not use up what is there for all.
#[inline(always)]
fn take_tokens(source: SourceKey) -> Result<(), Answer> {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    let cpu = CPU_BUCKET.get_ptr_mut(0).ok_or(Answer::CpuLimit)?;
    // SAFETY: this CPU's slot of a per-CPU map.
    let cpu_bucket = unsafe { *cpu };
    if !has_token(cpu_bucket, now_ns, CPU_INTERVAL_NS) {
        return Err(Answer::CpuLimit);
    }
    // SAFETY: an aligned number; a value that another CPU writes at the same time costs or gives
    // a token.
    let bucket = unsafe { SOURCES.get(source) }.map_or(0, |bucket| *bucket);
    if !has_token(bucket, now_ns, SOURCE_INTERVAL_NS) {
        return Err(Answer::SourceLimit);
    }
    let next = take_token(bucket, now_ns, SOURCE_INTERVAL_NS);
    SOURCES.insert(source, next, 0).map_err(|_| Answer::SourceLimit)?;
    // SAFETY: as above.
    unsafe { *cpu = take_token(cpu_bucket, now_ns, CPU_INTERVAL_NS) };
    Ok(())
}

/// Answers a refused packet in one piece at XDP: what was done.
#[inline(always)]
pub(super) fn answer_head(context: &XdpContext, refused: Refused) -> Answer {
    answer(send_head(context.ctx, refused.source, refused.how))
}

/// Answers a refused packet that may be in several pieces at XDP: what was done.
#[inline(always)]
pub(super) fn answer_frags(context: &XdpContext, refused: Refused) -> Answer {
    answer(send_frags(context.ctx, refused.source, refused.how))
}

/// A function of its own, for its stack and for the verifier, which lets nobody without
/// CAP_PERFMON use a place again where a pointer was: so it takes numbers and the context alone.
#[inline(never)]
fn send_head(context: *mut xdp_md, source: SourceKey, how: u32) -> u32 {
    let context = XdpContext::new(context);
    let Some(frame) = HeadCopy::again() else { return Answer::Unanswerable as u32 };
    let Some(len) = frame.packet_len() else { return Answer::Unanswerable as u32 };
    match reply_xdp(&context, &frame, source, unpack(how), len) {
        Ok(answer) | Err(answer) => answer as u32,
    }
}

/// As [`send_head`].
#[inline(never)]
fn send_frags(context: *mut xdp_md, source: SourceKey, how: u32) -> u32 {
    let context = XdpContext::new(context);
    let frame = XdpBuffer::new(&context);
    match reply_xdp(&context, &frame, source, unpack(how), frame.packet_len()) {
        Ok(answer) | Err(answer) => answer as u32,
    }
}

/// The answer of this number.
#[inline(always)]
fn answer(number: u32) -> Answer {
    const RESET: u32 = Answer::Reset as u32;
    const ICMP: u32 = Answer::Icmp as u32;
    const CPU_LIMIT: u32 = Answer::CpuLimit as u32;
    const SOURCE_LIMIT: u32 = Answer::SourceLimit as u32;
    match number {
        RESET => Answer::Reset,
        ICMP => Answer::Icmp,
        CPU_LIMIT => Answer::CpuLimit,
        SOURCE_LIMIT => Answer::SourceLimit,
        _ => Answer::Unanswerable,
    }
}

#[inline(always)]
fn reply_xdp(
    context: &XdpContext,
    frame: &impl Frame,
    source: SourceKey,
    (style, is_v6): (Style, bool),
    len: usize,
) -> Result<Answer, Answer> {
    const NONE: Answer = Answer::Unanswerable;
    let buffer = REPLY.get_ptr_mut(0).ok_or(NONE)?;
    // SAFETY: this CPU's slot of a per-CPU map; programs of one hook do not interrupt each other.
    let buffer = unsafe { &mut *buffer };
    let has_tag = set_link(buffer, frame).ok_or(NONE)?;
    let link_len = if has_tag { LINK_LEN_MAX } else { ETHERNET_LEN };
    let facts = buffer.original.load(frame, is_v6, link_len).ok_or(NONE)?;
    let reply = Reply { len_max: len.saturating_sub(link_len), checksum_is_pending: false };
    let composed = compose(&buffer.original, &facts, style, reply, &mut buffer.words);
    let (answer, words) = composed.ok_or(NONE)?;
    take_tokens(source)?;
    let reply_len = link_len + words * 4;
    let delta = reply_len as i32 - len as i32;
    // SAFETY: the program's own context. What pointed into the packet is not used any more.
    if unsafe { bpf_xdp_adjust_tail(context.ctx, delta) } != 0 {
        return Err(NONE);
    }
    let mut from = (&raw const *buffer).cast::<u8>();
    // In assembly, because the compiler would add one of two numbers from a register.
    // SAFETY: inside the buffer; the header of the link begins there.
    unsafe {
        if has_tag {
            asm!("{from} += 2", from = inout(reg) from);
        } else {
            asm!("{from} += 6", from = inout(reg) from);
        }
    }
    if copy_out(context, from, reply_len / 2) { Ok(answer) } else { Err(NONE) }
}

/// Writes the link-layer header of the answer: addresses the other way round, the same tag.
/// Whether there is a tag; `None` if the frame is to or from a group, or has more than one tag.
#[inline(always)]
fn set_link(buffer: &mut ReplyBuffer, frame: &impl Frame) -> Option<bool> {
    const GROUP: u8 = 1;
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    let ethernet = frame.load::<ETHERNET_LEN>(0)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = ethernet;
    if (d0 | s0) & GROUP != 0 {
        return None;
    }
    let ethertype = u16::from_be_bytes([t0, t1]);
    if ethertype == IPV4 || ethertype == IPV6 {
        let link = [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5, t0, t1];
        buffer.link[LINK_LEN_MAX - ETHERNET_LEN..].copy_from_slice(&link);
        return Some(false);
    }
    let [v0, v1, e0, e1] = frame.load_rare::<4>(ETHERNET_LEN)?;
    let ethertype = u16::from_be_bytes([e0, e1]);
    buffer.link = [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5, t0, t1, v0, v1, e0, e1];
    (ethertype == IPV4 || ethertype == IPV6).then_some(true)
}

/// Copies two bytes `halves` times to the front of the packet; `false` if it is shorter.
#[inline(always)]
fn copy_out(context: &XdpContext, from: *const u8, halves: usize) -> bool {
    const HALVES_MAX: usize = LINK_LEN_MAX / 2 + REPLY_WORDS * 2;
    let (mut from, mut to, end) = (from, context.data(), context.data_end());
    for done in 0..HALVES_MAX {
        if done == halves {
            return true;
        }
        if to + 2 > end {
            return false;
        }
        // SAFETY: two bytes of the packet by the check above, and of the buffer, which is as long
        // as the longest answer. In assembly, because the compiler must not make sums of
        // registers of the sums.
        unsafe {
            asm!(
                "{half} = *(u16 *)({from} + 0)",
                "*(u16 *)({to} + 0) = {half}",
                "{from} += 2",
                "{to} += 2",
                half = out(reg) _,
                from = inout(reg) from,
                to = inout(reg) to,
            );
        }
    }
    halves == HALVES_MAX
}

/// Answers a refused packet at tcx: what was done.
#[inline(always)]
pub(super) fn answer_tcx(skb: *mut __sk_buff, refused: Refused) -> Answer {
    answer(send_tcx(skb, refused.source, refused.how))
}

/// As [`send_head`].
#[inline(never)]
fn send_tcx(skb: *mut __sk_buff, source: SourceKey, how: u32) -> u32 {
    match reply_tcx(&SocketBuffer::new(&SkBuff::new(skb)), source, unpack(how)) {
        Ok(answer) | Err(answer) => answer as u32,
    }
}

#[inline(always)]
fn reply_tcx(
    frame: &SocketBuffer,
    source: SourceKey,
    (style, is_v6): (Style, bool),
) -> Result<Answer, Answer> {
    const NONE: Answer = Answer::Unanswerable;
    let buffer = REPLY.get_ptr_mut(0).ok_or(NONE)?;
    // SAFETY: as in `reply_xdp`.
    let buffer = unsafe { &mut *buffer };
    let facts = buffer.original.load(frame, is_v6, 0).ok_or(NONE)?;
    let (skb, len) = (frame.skb(), frame.len());
    // Without a link-layer header the packet has a byte so far behind its network header; with
    // Ethernet that is beyond its end.
    let has_link = frame.load::<1>((len as usize).saturating_sub(ETHERNET_LEN)).is_none();
    let link_len = if has_link { ETHERNET_LEN as u32 } else { 0 };
    if has_link {
        set_link_of_skb(buffer, skb, is_v6).ok_or(NONE)?;
    }
    let mut reply = Reply {
        len_max: (len as usize).saturating_sub(link_len as usize),
        checksum_is_pending: false,
    };
    let composed = compose(&buffer.original, &facts, style, reply, &mut buffer.words);
    let (mut answer, mut words) = composed.ok_or(NONE)?;
    take_tokens(source)?;
    let header_len = if is_v6 { 40 } else { 20 };
    // The kernel does not cut off the place where a checksum is still to be written, which is
    // behind the seventh byte of TCP and of UDP. Nothing else tells that it is.
    // SAFETY: the program's own context; nothing points into the packet.
    if unsafe { bpf_skb_change_tail(skb, link_len + header_len + 7, 0) } != 0 {
        reply.checksum_is_pending = true;
        let composed = compose(&buffer.original, &facts, style, reply, &mut buffer.words);
        (answer, words) = composed.ok_or(NONE)?;
    }
    // SAFETY: as above.
    if unsafe { bpf_skb_change_tail(skb, link_len + words as u32 * 4, 0) } != 0 {
        return Err(NONE);
    }
    store(skb, link_len, words, buffer).ok_or(NONE)?;
    // SAFETY: a helper that takes two numbers.
    unsafe { bpf_redirect(frame.ifindex(), 0) };
    Ok(answer)
}

/// The link-layer header of the answer at tcx, where a tag stands beside the packet and goes with
/// it. `None` if the packet was not for this host alone.
#[inline(always)]
fn set_link_of_skb(buffer: &mut ReplyBuffer, skb: *mut __sk_buff, is_v6: bool) -> Option<()> {
    let mut ethernet = MaybeUninit::<[u8; ETHERNET_LEN]>::uninit();
    // SAFETY: the helper writes as many bytes as the buffer has.
    let status = unsafe {
        bpf_skb_load_bytes(skb.cast(), 0, ethernet.as_mut_ptr().cast(), ETHERNET_LEN as u32)
    };
    if status != 0 {
        return None;
    }
    // SAFETY: on success the helper has written all bytes.
    let ethernet = unsafe { ethernet.assume_init() };
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = ethernet;
    // A packet that has still a tag in it is not answered.
    let ethertype = if is_v6 { 0x86dd } else { 0x0800 };
    if (d0 | s0) & 1 != 0 || u16::from_be_bytes([t0, t1]) != ethertype {
        return None;
    }
    let link = [s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5, t0, t1];
    buffer.link[LINK_LEN_MAX - ETHERNET_LEN..].copy_from_slice(&link);
    Some(())
}

/// Writes the answer over the packet, which has its length already.
#[inline(always)]
fn store(skb: *mut __sk_buff, link_len: u32, words: usize, buffer: &ReplyBuffer) -> Option<()> {
    if link_len != 0 {
        let link = buffer.link[LINK_LEN_MAX - ETHERNET_LEN..].as_ptr();
        // SAFETY: fourteen bytes of the buffer.
        let status = unsafe { bpf_skb_store_bytes(skb, 0, link.cast(), ETHERNET_LEN as u32, 0) };
        if status != 0 {
            return None;
        }
    }
    // SAFETY: at most all words of the buffer.
    let status = unsafe {
        bpf_skb_store_bytes(skb, link_len, buffer.words.as_ptr().cast(), words as u32 * 4, 0)
    };
    (status == 0).then_some(())
}

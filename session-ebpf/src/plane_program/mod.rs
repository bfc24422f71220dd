//! The plane as the kernel runs it: behind the guard's verdict, a datagram that asks for one key is
//! answered from the store that the daemon serves from; everything else goes up to the daemon.
//!
//! It owns the order of things and the counting: `request` reads the packet, `find` the store,
//! `reply` writes. Nothing of the packet is changed before the whole reply is known to be good,
//! and nothing of the store ever is.

mod find;
mod maps;
mod reply;
mod request;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns},
    macros::xdp,
    programs::XdpContext,
};
use session_common::plane::{Accessed, Orders, RING_LEN, Report, Verdict};

use self::{
    find::{Found, find},
    maps::{Scratch, forget, orders, report},
    request::{Request, Verb},
};

/// For drivers that hand over a packet in one piece.
#[xdp]
pub(super) fn plane(context: XdpContext) -> u32 {
    run(&context)
}

/// For drivers that hand over a packet in several pieces. Linux 5.18.
#[xdp(frags)]
pub(super) fn plane_frags(context: XdpContext) -> u32 {
    run(&context)
}

#[inline(always)]
fn run(context: &XdpContext) -> u32 {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let (Some(scratch), Some(orders), Some(report)) = (Scratch::get(), orders(), report(cpu))
    else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: a valid map value of integers, which the daemon writes before it serves, but for
    // the first.
    let orders = unsafe { &*orders };
    let (Ok(verdict) | Err(verdict)) = answer(context, scratch, orders, report);
    let code = forget(scratch, verdict as u64);
    // SAFETY: this CPU's element, which nothing but this program writes.
    unsafe { (*report).counters[code as usize & 7] += 1 };
    // Both are answers.
    let answered = code == Verdict::Hit as u64 || code == Verdict::Miss as u64;
    if answered { xdp_action::XDP_TX } else { xdp_action::XDP_PASS }
}

/// Answers with an item or with its absence. An error is why the packet goes up, and it is what it
/// was; none is [`Verdict::Miss`].
#[inline(always)]
fn answer(
    context: &XdpContext,
    scratch: *mut Scratch,
    orders: &Orders,
    report: *mut Report,
) -> Result<Verdict, Verdict> {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() }.wrapping_add(orders.clock_ahead_ns);
    // SAFETY: a valid map value; volatile, because the daemon stores it at any time.
    if now_ns >= unsafe { core::ptr::read_volatile(&raw const orders.until_ns) } {
        return Err(Verdict::NotServed);
    }
    let request = request::read(context, scratch, orders)?;
    let now_s = forget(scratch, now_ns / 1_000_000_000);
    // Not a loop: within one the verifier takes no two states for the same.
    let mut found = settled(scratch, find(scratch, orders, &request, now_s));
    if matches!(found, Err(Verdict::Raced)) {
        found = settled(scratch, find(scratch, orders, &request, now_s));
    }
    let (verdict, found) = match found {
        Ok(found) => (Verdict::Hit, found),
        Err(Verdict::Miss) => {
            let reply_len = reply::compose_miss(scratch, &request)?;
            (Verdict::Miss, Found { reply_len, ..Found::default() })
        }
        Err(verdict) => return Err(verdict),
    };
    reply::send(context, scratch, &request, found.reply_len)?;
    note(report, &request, verdict, &found);
    Ok(verdict)
}

/// The same outcome, which the verifier follows as one state and not as many.
#[inline(always)]
fn settled(scratch: *mut Scratch, outcome: Result<Found, Verdict>) -> Result<Found, Verdict> {
    let (code, found) = match outcome {
        Ok(found) => (Verdict::Hit as u64, found),
        Err(verdict) => (verdict as u64, Found::default()),
    };
    let code = forget(scratch, code);
    let found = Found {
        item: forget(scratch, found.item),
        cas: forget(scratch, found.cas),
        class: forget(scratch, found.class),
        reply_len: forget(scratch, found.reply_len),
    };
    match code {
        0 => Ok(found),
        5 => Err(Verdict::Raced),
        _ => Err(verdict_of(code)),
    }
}

/// The verdict of a number.
#[inline(always)]
fn verdict_of(code: u64) -> Verdict {
    match code {
        1 => Verdict::Miss,
        2 => Verdict::Other,
        3 => Verdict::Item,
        _ => Verdict::Long,
    }
}

/// Reports an answer, and an item's access.
#[inline(always)]
fn note(report: *mut Report, request: &Request, verdict: Verdict, found: &Found) {
    // SAFETY: this CPU's element, which nothing but this program writes, and which it does not
    // interrupt itself in; the daemon reads it at any time.
    let report = unsafe { &mut *report };
    report.bytes_in += request.udp_len - 8;
    report.bytes_out += found.reply_len;
    report.meta_answers += u64::from(request.verb == Verb::Meta);
    if verdict != Verdict::Hit {
        return;
    }
    report.class_hits[(found.class & 0xff) as usize] += 1;
    let place = report.accesses as usize & (RING_LEN - 1);
    report.ring[place] = Accessed { item: found.item, cas: found.cas };
    // Stored after the entry: the daemon loads it before and after it reads the ring.
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut report.accesses, report.accesses + 1) };
}

/// Two licences: helpers of the kernel ask for a GPL-compatible one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
pub(super) static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

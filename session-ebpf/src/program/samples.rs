//! Samples of dropped packets, for those who ask who is refused.
//!
//! It owns the budget. A flood costs it a count a packet: once the budget is used up the clock is
//! looked at for one packet of many.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use session_common::answer::{
    Answer, SAMPLE_INTERVAL_NS, SAMPLE_SKIP, SAMPLE_WINDOW_NS, SAMPLES_MAX,
};

use super::maps::{SAMPLES, SAMPLING};

/// Notes a dropped packet, if its turn has come: number of the place plus [`SAMPLES_MAX`], or 0.
/// `what` is port, protocol and reason, from the high bits to the low.
#[inline(always)]
pub(super) fn sample(ifindex: u32, what: u32, [high, low]: [u64; 2]) -> u32 {
    place_sample(high, low, ifindex, what)
}

/// A function of its own, for its stack.
#[inline(never)]
fn place_sample(source_high: u64, source_low: u64, ifindex: u32, what: u32) -> u32 {
    let Some(sampling) = SAMPLING.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's slot of a per-CPU map. Where programs of two hooks meet in it, a sample
    // is lost.
    let sampling = unsafe { &mut *sampling };
    sampling.unsampled += 1;
    if sampling.skip > 0 {
        sampling.skip -= 1;
        return 0;
    }
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    if sampling.bucket > now_ns + SAMPLE_WINDOW_NS {
        sampling.skip = SAMPLE_SKIP;
        return 0;
    }
    let from_ns = if sampling.bucket > now_ns { sampling.bucket } else { now_ns };
    sampling.bucket = from_ns + SAMPLE_INTERVAL_NS;
    sampling.number += 1;
    let place = sampling.number as u32 & (SAMPLES_MAX - 1);
    let Some(sample) = SAMPLES.get_ptr_mut(place) else { return 0 };
    // SAFETY: a valid map value of this CPU.
    let sample = unsafe { &mut *sample };
    sample.at_ns = now_ns;
    sample.source = [source_high, source_low];
    sample.ifindex = ifindex;
    sample.weight = sampling.unsampled;
    sample.port = (what >> 16) as u16;
    sample.protocol = (what >> 8) as u8;
    sample.reason = what as u8;
    sample.answer = 0;
    sample.number = sampling.number;
    sampling.unsampled = 0;
    place + SAMPLES_MAX
}

/// Notes how a sampled packet was answered.
#[inline(always)]
pub(super) fn set_answer(place: u32, answer: Answer) {
    if place == 0 {
        return;
    }
    if let Some(sample) = SAMPLES.get_ptr_mut(place & (SAMPLES_MAX - 1)) {
        // SAFETY: as above.
        unsafe { (*sample).answer = 1 + answer as u8 };
    }
}

/// An IPv4 source as the sample has it.
#[inline(always)]
pub(super) fn source4([a, b, c, d]: [u8; 4]) -> [u64; 2] {
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])]
}

/// An IPv6 source as the sample has it.
#[inline(always)]
pub(super) fn source6(source: [u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = source;
    let high = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
    [high, u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}

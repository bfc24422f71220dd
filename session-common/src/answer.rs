//! How a refused packet is answered, and what is told of packets that were dropped.
//!
//! It owns styles, limits and the layouts of the maps that hold them.
#![forbid(unsafe_code)]

use core::mem::size_of;

use crate::guard::{
    ACTION_DROP, ACTION_ICMP, ACTION_RESET, settings::REFUSE_ICMP, settings::REFUSE_RESET,
};

/// What a refused source is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Style {
    /// Nothing: its connect waits for its own timeout.
    #[default]
    Drop,
    /// TCP: a reset. Connect fails at once, an established connection ends at its next segment.
    Reset,
    /// TCP without ACK, and UDP: ICMP host administratively prohibited (RFC 1812 section 5.2.7.1,
    /// RFC 4443 section 3.1). Other TCP: a reset, which alone ends a connection.
    Icmp,
}

impl Style {
    /// What the entry that decided, and the settings for those that leave it open, ask for.
    #[must_use]
    pub const fn of(action: u32, settings: u32) -> Self {
        match action {
            ACTION_DROP => Self::Drop,
            ACTION_RESET => Self::Reset,
            ACTION_ICMP => Self::Icmp,
            _ if settings & REFUSE_RESET != 0 => Self::Reset,
            _ if settings & REFUSE_ICMP != 0 => Self::Icmp,
            _ => Self::Drop,
        }
    }
}

/// What became of a refused packet that should be answered: the index of its counter.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Answered by a TCP reset.
    Reset = 0,
    /// Answered by ICMP.
    Icmp = 1,
    /// Dropped: this CPU has answered enough for now.
    CpuLimit = 2,
    /// Dropped: this source has been answered enough for now.
    SourceLimit = 3,
    /// Dropped: of a form or from a source that is never answered.
    Unanswerable = 4,
}

/// How many [`Answer`]s there are.
pub const ANSWERS: usize = 5;

impl Answer {
    /// All in counter order.
    pub const ALL: [Self; ANSWERS] =
        [Self::Reset, Self::Icmp, Self::CpuLimit, Self::SourceLimit, Self::Unanswerable];

    /// The name in `sessionctl status` and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Icmp => "icmp",
            Self::CpuLimit => "cpu_limit",
            Self::SourceLimit => "source_limit",
            Self::Unanswerable => "unanswerable",
        }
    }
}

/// A token bucket as one number: the nanosecond of `CLOCK_BOOTTIME` up to which tokens are taken.
/// Full when that is not after now, empty when it is [`BUCKET_WINDOW_NS`] after now.
pub type Bucket = u64;

/// How far ahead tokens can be taken: a second's worth, at once.
pub const BUCKET_WINDOW_NS: u64 = 1_000_000_000;

/// Between two answers of one CPU: 1,000 a second.
pub const CPU_INTERVAL_NS: u64 = 1_000_000;

/// Between two answers to one source (IPv6: its /64): 100 a second.
pub const SOURCE_INTERVAL_NS: u64 = 10_000_000;

/// Sources whose buckets are kept; the least recently used make room.
pub const SOURCES_MAX: u32 = 16_384;

/// Key of a source's bucket: one half of [`Sample::source`], the first of an IPv6 address, the
/// second of an IPv4 address, which begins as no IPv6 address in use does.
pub type SourceKey = u64;

/// Whether a bucket has a token.
#[must_use]
#[inline(always)]
pub const fn has_token(bucket: Bucket, now_ns: u64, interval_ns: u64) -> bool {
    bucket + interval_ns <= now_ns + BUCKET_WINDOW_NS
}

/// The bucket after a token was taken.
#[must_use]
#[inline(always)]
pub const fn take_token(bucket: Bucket, now_ns: u64, interval_ns: u64) -> Bucket {
    (if bucket > now_ns { bucket } else { now_ns }) + interval_ns
}

/// Samples kept for each CPU; a power of two. The oldest are written over.
pub const SAMPLES_MAX: u32 = 64;

/// Between two samples of one CPU: 100 a second.
pub const SAMPLE_INTERVAL_NS: u64 = 10_000_000;

/// How far ahead samples can be taken: 32 at once, so that who reads four times a second misses
/// none.
pub const SAMPLE_WINDOW_NS: u64 = 320_000_000;

/// Packets that go by without a look at the clock once the budget is used up.
pub const SAMPLE_SKIP: u32 = 64;

/// One dropped packet of many.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Counts the samples of this CPU from 1; 0 marks a place that was never written.
    pub number: u64,
    /// `CLOCK_BOOTTIME` in nanoseconds.
    pub at_ns: u64,
    /// The two halves of the source in network byte order, an IPv4 one as `::ffff:a.b.c.d`; zeros
    /// if it was not read.
    pub source: [u64; 2],
    /// Device that received it; 0 at a socket.
    pub ifindex: u32,
    /// Packets that this CPU dropped since its sample before this, this one included.
    pub weight: u32,
    /// Destination port, 0 if it was not found.
    pub port: u16,
    /// `IPPROTO_TCP`, `IPPROTO_UDP`, or 0 if that was not found.
    pub protocol: u8,
    /// Number of the [`crate::guard::Reason`].
    pub reason: u8,
    /// 1 + number of the [`Answer`]; 0 where none was asked for.
    pub answer: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Where one CPU stands with its samples.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// As a [`Bucket`], with a window and an interval of its own.
    pub bucket: Bucket,
    /// Number of the last sample.
    pub number: u64,
    /// Packets still to go by.
    pub skip: u32,
    /// Dropped since the last sample.
    pub unsampled: u32,
}

const _: () = {
    assert!(size_of::<Sample>() == 48);
    assert!(size_of::<Sampling>() == 24);
    assert!(SAMPLES_MAX.is_power_of_two());
    assert!(Answer::ALL.len() == ANSWERS);
};

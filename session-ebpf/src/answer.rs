//! The answer to a refused packet: whether there may be one, and its bytes.
//!
//! It owns which packets are never answered and what a reset and an ICMP message look like from
//! the network header on. It never sends, never counts, and takes no token.
//!
//! Words are of four bytes, in the order in which they stand in the packet.
#![forbid(unsafe_code)]

use session_common::answer::{Answer, Style};

use crate::{Address, Frame, Lookup, Pair};

/// Words of the longest answer: ICMPv6, with the IPv6 header and eight bytes of what it answers.
pub const REPLY_WORDS: usize = 24;

/// IPv4 header, TCP header.
const RESET4_WORDS: usize = 10;
/// IPv6 header, TCP header.
const RESET6_WORDS: usize = 15;
/// IPv4 header, ICMP header, IPv4 header, eight bytes.
const ICMP4_WORDS: usize = 14;

/// Protocol numbers.
const ICMP: u32 = 1;
const TCP: u32 = 6;
const UDP: u32 = 17;
const ICMPV6: u32 = 58;

/// Flags of TCP, in the fourteenth byte of its header.
const FIN: u32 = 0x01;
const RST: u32 = 0x04;
const ACK: u32 = 0x10;

/// Hops that an answer may take, as those of the stack.
const HOPS: u32 = 64;

/// Whether a packet between these may be answered: it is for an own address and comes from
/// another host.
#[inline(always)]
pub fn may_answer<A: Address, L: Lookup<A>>(tables: &L, pair: &Pair<A>) -> bool {
    pair.source.is_host()
        && !pair.source.is_forged_source()
        && !tables.is_own(pair.source)
        && tables.is_own(pair.destination)
}

/// Words of an IPv4 header without options, and of an IPv6 header.
const IP4_WORDS: usize = 5;
const IP6_WORDS: usize = 10;

/// The headers of a refused packet, in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Original {
    ip4: [u32; IP4_WORDS],
    ip6: [u32; IP6_WORDS],
    tcp: [u32; 5],
    udp: [u32; 2],
}

/// What they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    is_v6: bool,
    /// IPv4 only: the header has options.
    has_options: bool,
    is_tcp: bool,
    /// Flags of TCP.
    flags: u32,
    /// Sequence numbers that the segment takes, SYN and FIN included.
    segment_len: u32,
}

impl Original {
    /// Reads the packet at `at`, of which the parser has found a guarded port. `None` for
    /// fragments, resets, and headers between IP and TCP or UDP.
    #[inline(always)]
    pub fn load<F: Frame + ?Sized>(&mut self, frame: &F, is_v6: bool, at: usize) -> Option<Facts> {
        let (protocol, header_len, payload_len) = if is_v6 {
            frame.copy_words(at, &mut self.ip6)?;
            let lengths = u32::from_be(self.ip6[1]);
            (lengths >> 8 & 0xff, 40, lengths >> 16)
        } else {
            frame.copy_words(at, &mut self.ip4)?;
            // The flag "more fragments"; one with an offset was not found a port of.
            if u32::from_be(self.ip4[1]) & 0x2000 != 0 {
                return None;
            }
            let front = u32::from_be(self.ip4[0]);
            let header_len = (front >> 24 & 0x0f) * 4;
            let protocol = u32::from_be(self.ip4[2]) >> 16 & 0xff;
            (protocol, header_len, (front & 0xffff).wrapping_sub(header_len))
        };
        let has_options = !is_v6 && header_len != 20;
        let mut facts =
            Facts { is_v6, has_options, is_tcp: false, flags: 0, segment_len: payload_len };
        let at = at + header_len as usize;
        if protocol == UDP {
            frame.copy_words(at, &mut self.udp)?;
            return Some(facts);
        }
        if protocol != TCP {
            return None;
        }
        frame.copy_words(at, &mut self.tcp)?;
        let word = u32::from_be(self.tcp[3]);
        facts.is_tcp = true;
        facts.flags = word >> 16 & 0xff;
        facts.segment_len = payload_len
            .wrapping_sub((word >> 28) * 4)
            .wrapping_add(facts.flags >> 1 & 1)
            .wrapping_add(facts.flags & FIN);
        (facts.flags & RST == 0).then_some(facts)
    }

    /// Ports, and what follows them in the first eight bytes.
    #[inline(always)]
    fn head(&self, facts: &Facts) -> [u32; 2] {
        if facts.is_tcp { [self.tcp[0], self.tcp[1]] } else { self.udp }
    }
}

/// Where the answer goes and how long it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Bytes that the answer may have, from the network header on: those of what it answers.
    pub len_max: usize,
    /// The device or the stack completes the checksum at the place where the packet's own stands:
    /// only a reset has one there, and it must be left begun.
    pub checksum_is_pending: bool,
}

/// Composes the answer in `style`: what it is and how many of the words it takes. `None` if this
/// packet is not answered in this style.
#[inline(always)]
pub fn compose(
    original: &Original,
    facts: &Facts,
    style: Style,
    reply: Reply,
    words: &mut [u32; REPLY_WORDS],
) -> Option<(Answer, usize)> {
    if facts.is_v6 {
        let answer = choose(facts, style, reply, REPLY_WORDS, RESET6_WORDS)?;
        Some((answer, compose6(original, facts, answer, reply, words)))
    } else {
        let answer = choose(facts, style, reply, ICMP4_WORDS, RESET4_WORDS)?;
        Some((answer, compose4(original, facts, answer, reply, words)))
    }
}

/// What is sent: a message that would be longer than the packet, or whose place the checksum
/// does not suit, becomes a reset; where there are no resets, nothing.
#[inline(always)]
fn choose(
    facts: &Facts,
    style: Style,
    reply: Reply,
    icmp_words: usize,
    reset_words: usize,
) -> Option<Answer> {
    let icmp_fits =
        icmp_words * 4 <= reply.len_max && !reply.checksum_is_pending && !facts.has_options;
    if style == Style::Icmp && icmp_fits && facts.flags & ACK == 0 {
        return Some(Answer::Icmp);
    }
    let reset_fits =
        reset_words * 4 <= reply.len_max && !(reply.checksum_is_pending && facts.has_options);
    (style != Style::Drop && facts.is_tcp && reset_fits).then_some(Answer::Reset)
}

#[inline(always)]
fn compose4(
    original: &Original,
    facts: &Facts,
    answer: Answer,
    reply: Reply,
    words: &mut [u32; REPLY_WORDS],
) -> usize {
    let (from, to) = (original.ip4[3], original.ip4[4]);
    if answer == Answer::Icmp {
        header4(words, ICMP4_WORDS as u32 * 4, ICMP, to, from);
        // Type 3, code 10: communication with destination host administratively prohibited.
        let front = 0x030a_0000_u32.to_be();
        let mut sum = Sum(0);
        sum.add(front);
        words[6] = 0;
        for (idx, word) in original.ip4.iter().chain(&original.head(facts)).enumerate() {
            words[7 + idx] = *word;
            sum.add(*word);
        }
        words[5] = with_low_half(front, sum.checksum());
        return keep_apart(ICMP4_WORDS);
    }
    header4(words, RESET4_WORDS as u32 * 4, TCP, to, from);
    let mut sum = Sum(0);
    sum.add(from);
    sum.add(to);
    let segment = reset(original, facts, sum, reply.checksum_is_pending);
    words[5..10].copy_from_slice(&segment);
    keep_apart(RESET4_WORDS)
}

#[inline(always)]
fn compose6(
    original: &Original,
    facts: &Facts,
    answer: Answer,
    reply: Reply,
    words: &mut [u32; REPLY_WORDS],
) -> usize {
    let (next, len) = match answer {
        Answer::Icmp => (ICMPV6, (REPLY_WORDS - IP6_WORDS) as u32 * 4),
        _ => (TCP, 20),
    };
    words[0] = 0x6000_0000_u32.to_be();
    words[1] = (len << 16 | next << 8 | HOPS).to_be();
    let mut sum = Sum(0);
    for idx in 0..4 {
        let (from, to) = (original.ip6[2 + idx], original.ip6[6 + idx]);
        words[2 + idx] = to;
        words[6 + idx] = from;
        sum.add(from);
        sum.add(to);
    }
    if answer == Answer::Icmp {
        // Type 1, code 1: communication with destination administratively prohibited.
        let front = 0x0101_0000_u32.to_be();
        sum.add((len + ICMPV6).to_be());
        sum.add(front);
        words[11] = 0;
        for (idx, word) in original.ip6.iter().chain(&original.head(facts)).enumerate() {
            words[12 + idx] = *word;
            sum.add(*word);
        }
        words[10] = with_low_half(front, sum.checksum());
        return keep_apart(REPLY_WORDS);
    }
    let segment = reset(original, facts, sum, reply.checksum_is_pending);
    words[10..15].copy_from_slice(&segment);
    keep_apart(RESET6_WORDS)
}

/// The same number. Ends a branch whose stores the compiler would make those of another branch as
/// well, at a place that it computes: pointer arithmetic that needs CAP_PERFMON.
#[inline(always)]
fn keep_apart(words: usize) -> usize {
    core::hint::black_box(words as u64) as usize
}

/// An IPv4 header with its checksum.
#[inline(always)]
fn header4(words: &mut [u32; REPLY_WORDS], len: u32, protocol: u32, from: u32, to: u32) {
    let front = [
        (0x4500_0000 | len).to_be(),
        // Don't fragment, and so no identification (RFC 6864).
        0x0000_4000_u32.to_be(),
        (HOPS << 24 | protocol << 16).to_be(),
    ];
    let mut sum = Sum(0);
    for word in front {
        sum.add(word);
    }
    sum.add(from);
    sum.add(to);
    words[0] = front[0];
    words[1] = front[1];
    words[2] = with_low_half(front[2], sum.checksum());
    words[3] = from;
    words[4] = to;
}

/// The TCP header of a reset (RFC 9293 section 3.10.7.1). `addresses` is the sum of both.
#[inline(always)]
fn reset(
    original: &Original,
    facts: &Facts,
    addresses: Sum,
    checksum_is_pending: bool,
) -> [u32; 5] {
    const LEN: u32 = 20;
    // In its own words: a segment with ACK names the number that its sender takes a reset by.
    let (sequence, acknowledged, flags) = if facts.flags & ACK != 0 {
        (original.tcp[2], 0, RST)
    } else {
        let next = u32::from_be(original.tcp[1]).wrapping_add(facts.segment_len);
        (0, next.to_be(), RST | ACK)
    };
    let ports = original.tcp[0].rotate_left(16);
    let flags = ((LEN / 4) << 28 | flags << 16).to_be();
    let mut sum = addresses;
    sum.add((LEN + TCP).to_be());
    if checksum_is_pending {
        return [ports, sequence, acknowledged, flags, with_high_half(!sum.checksum())];
    }
    for word in [ports, sequence, acknowledged, flags] {
        sum.add(word);
    }
    [ports, sequence, acknowledged, flags, with_high_half(sum.checksum())]
}

/// The ones' complement sum (RFC 1071), which is the same in either byte order.
#[derive(Clone, Copy)]
struct Sum(u64);

impl Sum {
    #[inline(always)]
    fn add(&mut self, word: u32) {
        self.0 += u64::from(word);
    }

    /// The checksum in the packet's byte order.
    #[inline(always)]
    fn checksum(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }
}

/// The word with its last two bytes in the packet set.
#[inline(always)]
fn with_low_half(word: u32, half: u16) -> u32 {
    word | (u32::from(u16::from_be(half))).to_be()
}

/// A word whose first two bytes in the packet are set.
#[inline(always)]
fn with_high_half(half: u16) -> u32 {
    (u32::from(u16::from_be(half)) << 16).to_be()
}

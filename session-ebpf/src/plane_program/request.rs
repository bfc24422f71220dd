//! What a packet asks for. It reads, and refuses whatever it does not understand.

use core::ptr;

use aya_ebpf::{
    helpers::generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use session_common::hash::{mix, product};
use session_common::plane::{KEY_LEN_MAX, Orders, SECRET_WORDS, Verdict, orders};

use super::maps::{FRAME_LEN, KEY_WORDS, Scratch, forget, is_own4, is_own6, length};

/// Where headers stand in the scratch space's frame, so that those of the transport stand at one
/// place for both families.
pub(super) const UDP: usize = 64;
pub(super) const IPV4: usize = UDP - 20;
pub(super) const IPV6: usize = UDP - 40;
/// The memcached header, and the text behind it.
pub(super) const HEADER: usize = UDP + 8;
pub(super) const TEXT: usize = HEADER + 8;

/// Bytes of the shortest and of the longest packet that can be a request: Ethernet with at most
/// two tags, IP, UDP, memcached's header, and a line.
const PACKET_LEN_MIN: u64 = 14 + 20 + 8 + 8 + 5;
const PACKET_LEN_MAX: u64 = 440;
/// Flags of `mg` that can be answered to; each may be there once.
const FLAGS: [(u8, u64); 6] =
    [(b'v', WITH_VALUE), (b'f', 2), (b'c', 4), (b'k', WITH_KEY), (b's', 16), (b't', 32)];
/// Most of them.
pub(super) const FLAGS_MAX: u64 = FLAGS.len() as u64;
/// Most bytes that they are: letters and their blanks.
const FLAGS_LEN_MAX: u64 = 2 * FLAGS_MAX;
/// Bits of the flags that ask for the value and for the key.
pub(super) const WITH_VALUE: u64 = 1;
/// See [`WITH_VALUE`].
pub(super) const WITH_KEY: u64 = 8;

const UDP_PROTOCOL: u8 = 17;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Gets,
    Meta,
}

/// A request for one key, whose bytes stand in the scratch space.
pub(super) struct Request {
    pub(super) verb: Verb,
    pub(super) is_v6: bool,
    /// Bytes of the packet.
    pub(super) packet_len: u64,
    /// Bytes before the IP header.
    pub(super) link_len: u64,
    /// Length by the UDP header, which counts itself.
    pub(super) udp_len: u64,
    pub(super) key_len: u64,
    /// Bytes of a meta command's flags, with the blank before the first one.
    pub(super) flags_len: u64,
    /// The flags, a bit for each.
    pub(super) flags: u64,
    pub(super) hash: u64,
}

/// Reads the packet's request.
#[inline(always)]
pub(super) fn read(
    context: &XdpContext,
    scratch: *mut Scratch,
    orders: &Orders,
) -> Result<Request, Verdict> {
    // SAFETY: the program's own context.
    let packet_len = unsafe { bpf_xdp_get_buff_len(context.ctx) };
    if !(PACKET_LEN_MIN..=PACKET_LEN_MAX).contains(&packet_len) {
        return Err(Verdict::Other);
    }
    let (link_len, is_v6) = link(context).ok_or(Verdict::Other)?;
    let link_len = forget(scratch, link_len) & 31;
    let ip = if is_v6 { IPV6 as u64 } else { IPV4 as u64 };
    let base = forget(scratch, ip - link_len) & 31;
    // SAFETY: at most 31 + 512 bytes of the frame are written.
    let status = unsafe {
        let into = (&raw mut (*scratch).frame).cast::<u8>().add(base as usize);
        bpf_xdp_load_bytes(context.ctx, 0, into.cast(), length::<511>(scratch, packet_len))
    };
    if status != 0 {
        return Err(Verdict::Other);
    }
    // SAFETY: this run has the scratch space for itself.
    let frame = unsafe { &(*scratch).frame };
    let udp_len = u64::from(be16(frame, UDP + 4));
    let ip_len = if is_v6 { check6(frame)? + 40 } else { check4(frame)? };
    if ip_len != udp_len + if is_v6 { 40 } else { 20 } || link_len + ip_len > packet_len {
        return Err(Verdict::Other);
    }
    check_ports(frame, orders)?;
    // The header of a request that is one datagram.
    if be16(frame, HEADER + 2) != 0 || be16(frame, HEADER + 4) != 1 || udp_len < 16 {
        return Err(Verdict::Other);
    }
    let (verb, verb_len) = verb(frame)?;
    let line_len = (udp_len - 16).wrapping_sub(verb_len);
    // The text is what the UDP header says it is; Ethernet pads short frames.
    let line_len = forget(scratch, line_len);
    if line_len < 3 || line_len > KEY_WORDS as u64 * 8 - 16 {
        return Err(Verdict::Other);
    }
    let at = link_len + (TEXT as u64 - ip) + verb_len;
    load_key(context, scratch, at, line_len)?;
    let key_len = forget(scratch, key_len(scratch)) & 255;
    if key_len == 0 || key_len > KEY_LEN_MAX as u64 || key_len + 2 > line_len {
        return Err(Verdict::Other);
    }
    let flags_len = line_len - key_len - 2;
    if flags_len > if verb == Verb::Meta { FLAGS_LEN_MAX } else { 0 } {
        return Err(Verdict::Other);
    }
    if byte(scratch, line_len - 2) != b'\r' || byte(scratch, line_len - 1) != b'\n' {
        return Err(Verdict::Other);
    }
    // Behind what costs less: most of what goes up asks for something else.
    check_destination(frame, orders, is_v6)?;
    let flags = if flags_len > 0 {
        load_flags(context, scratch, at + key_len, flags_len)?;
        flags_of(scratch, flags_len)?
    } else {
        0
    };
    let hash = hash(scratch, orders, key_len);
    // So that what follows is walked once for all verbs, families and lengths.
    let verb = match forget(scratch, verb as u64) {
        0 => Verb::Get,
        1 => Verb::Gets,
        _ => Verb::Meta,
    };
    Ok(Request {
        verb,
        is_v6: forget(scratch, is_v6.into()) != 0,
        packet_len: forget(scratch, packet_len),
        link_len: forget(scratch, link_len),
        udp_len: forget(scratch, udp_len),
        key_len: forget(scratch, key_len),
        flags_len: forget(scratch, flags_len),
        flags: forget(scratch, flags),
        hash,
    })
}

/// Bytes before the IP header, and whether it is IPv6.
#[inline(always)]
fn link(context: &XdpContext) -> Option<(u64, bool)> {
    const TAGS: [u16; 2] = [0x8100, 0x88a8];
    let start = context.data();
    if start + 24 > context.data_end() {
        return None;
    }
    // SAFETY: inside the packet by the check above, which the verifier demands as well.
    let bytes = unsafe { &*(start as *const [u8; 24]) };
    // Sent to a group of stations: nobody is answered for others.
    if bytes[0] & 1 != 0 {
        return None;
    }
    let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (ethertype, len) = match (word(12), word(16)) {
        (outer, inner) if TAGS.contains(&outer) && TAGS.contains(&inner) => (word(20), 22),
        (outer, inner) if TAGS.contains(&outer) => (inner, 18),
        (outer, _) => (outer, 14),
    };
    match ethertype {
        0x0800 => Some((len, false)),
        0x86dd => Some((len, true)),
        _ => None,
    }
}

/// Bytes of the packet from an IPv4 header on, without options and not a fragment.
#[inline(always)]
fn check4(frame: &[u8; FRAME_LEN]) -> Result<u64, Verdict> {
    let plain = frame[IPV4] == 0x45
        && be16(frame, IPV4 + 6) & 0x3fff == 0
        && frame[IPV4 + 9] == UDP_PROTOCOL;
    if plain { Ok(u64::from(be16(frame, IPV4 + 2))) } else { Err(Verdict::Other) }
}

/// Bytes behind an IPv6 header that UDP follows at once.
#[inline(always)]
fn check6(frame: &[u8; FRAME_LEN]) -> Result<u64, Verdict> {
    let plain = frame[IPV6] >> 4 == 6 && frame[IPV6 + 6] == UDP_PROTOCOL;
    if plain { Ok(u64::from(be16(frame, IPV6 + 4))) } else { Err(Verdict::Other) }
}

/// To our port, and from another one: a server's reply is no request.
#[inline(always)]
fn check_ports(frame: &[u8; FRAME_LEN], orders: &Orders) -> Result<(), Verdict> {
    let (source, destination) = (be16(frame, UDP), be16(frame, UDP + 2));
    if u32::from(destination) != orders.port {
        return Err(Verdict::NotServed);
    }
    if source == 0 || source == destination { Err(Verdict::Other) } else { Ok(()) }
}

/// To an address that a socket of the daemon would take it for.
#[inline(always)]
fn check_destination(frame: &[u8; FRAME_LEN], orders: &Orders, is_v6: bool) -> Result<(), Verdict> {
    let (own, listen) = if is_v6 {
        let address = array::<16>(frame, IPV6 + 24);
        let any = orders.settings & orders::ANY_V6 != 0;
        let halves = [word_of(frame, IPV6 + 24), word_of(frame, IPV6 + 32)];
        (any && is_own6(address), halves)
    } else {
        let address = array::<4>(frame, IPV4 + 16);
        let any = orders.settings & orders::ANY_V4 != 0;
        let low =
            u64::from_ne_bytes([0, 0, 0xff, 0xff, address[0], address[1], address[2], address[3]]);
        (any && is_own4(address), [0, low])
    };
    let mut found = own;
    let mut idx = 0;
    while idx < orders.listens.len() && !found {
        if idx as u32 >= orders.listens_count {
            break;
        }
        found = orders.listens[idx][0] == listen[0] && orders.listens[idx][1] == listen[1];
        idx += 1;
    }
    if found { Ok(()) } else { Err(Verdict::NotServed) }
}

/// The verb, and its bytes with the blank behind it.
#[inline(always)]
fn verb(frame: &[u8; FRAME_LEN]) -> Result<(Verb, u64), Verdict> {
    match array::<5>(frame, TEXT) {
        [b'g', b'e', b't', b' ', _] => Ok((Verb::Get, 4)),
        [b'g', b'e', b't', b's', b' '] => Ok((Verb::Gets, 5)),
        [b'm', b'g', b' ', _, _] => Ok((Verb::Meta, 3)),
        _ => Err(Verdict::Other),
    }
}

/// Loads what follows the verb, with zeros behind it.
#[inline(always)]
fn load_key(
    context: &XdpContext,
    scratch: *mut Scratch,
    at: u64,
    line_len: u64,
) -> Result<(), Verdict> {
    // SAFETY: as much as the key's words hold, by the caller's check.
    let status = unsafe {
        let into = (&raw mut (*scratch).key).cast();
        bpf_xdp_load_bytes(context.ctx, at as u32, into, length::<511>(scratch, line_len))
    };
    if status != 0 { Err(Verdict::Other) } else { Ok(()) }
}

#[inline(always)]
fn load_flags(
    context: &XdpContext,
    scratch: *mut Scratch,
    at: u64,
    flags_len: u64,
) -> Result<(), Verdict> {
    // SAFETY: at most 64 bytes, which the flags have.
    let status = unsafe {
        let into = (&raw mut (*scratch).flags).cast();
        bpf_xdp_load_bytes(context.ctx, at as u32, into, length::<63>(scratch, flags_len))
    };
    if status != 0 { Err(Verdict::Other) } else { Ok(()) }
}

/// A byte of the flags.
#[inline(always)]
pub(super) fn flag(scratch: *mut Scratch, at: u64) -> u8 {
    // SAFETY: inside the flags by the mask.
    unsafe { ptr::read_volatile(&raw const (*scratch).flags[at as usize & 63]) }
}

/// The flags of a request as bits. Each is a blank and one letter: what takes an argument, is
/// there twice or has to change something is the daemon's.
#[inline(always)]
fn flags_of(scratch: *mut Scratch, flags_len: u64) -> Result<u64, Verdict> {
    if flags_len % 2 != 0 || flags_len > FLAGS_LEN_MAX {
        return Err(Verdict::Other);
    }
    let mut seen = 0_u64;
    let mut at = 0;
    while at < FLAGS_MAX {
        if at * 2 >= flags_len {
            break;
        }
        let letter = flag(scratch, at * 2 + 1);
        let mut bit = 0;
        for (known, its) in FLAGS {
            bit = if letter == known { its } else { bit };
        }
        let bit = forget(scratch, bit);
        if flag(scratch, at * 2) != b' ' || bit == 0 || forget(scratch, seen) & bit != 0 {
            return Err(Verdict::Other);
        }
        seen = forget(scratch, seen | bit);
        at += 1;
    }
    Ok(forget(scratch, seen))
}

/// Bytes before the first that no key has: a blank or a control character. At least the words'
/// number if there is none in time.
#[inline(always)]
fn key_len(scratch: *mut Scratch) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    /// Byte `7 - n` is `n`: shifted by `8 n` bits, the highest byte is `n`.
    const PLACES: u64 = 0x0001_0203_0405_0607;
    let mut idx = 0;
    while idx < KEY_WORDS {
        // SAFETY: inside the key's words.
        let word = unsafe { ptr::read_volatile(&raw const (*scratch).key[idx]) };
        // Bit 7 of each byte below `!`; those above the lowest one may be set by its borrow.
        let ends = word.wrapping_sub(ONES * 0x21) & !word & (ONES << 7);
        if ends != 0 {
            let first = ends & ends.wrapping_neg();
            return idx as u64 * 8 + ((first >> 7).wrapping_mul(PLACES) >> 56);
        }
        idx += 1;
    }
    0
}

/// A byte of what follows the verb.
#[inline(always)]
fn byte(scratch: *mut Scratch, at: u64) -> u8 {
    let at = (forget(scratch, at) & 511) as usize;
    if at >= KEY_WORDS * 8 {
        return 0;
    }
    // SAFETY: inside the key's words.
    unsafe { ptr::read_volatile((&raw const (*scratch).key).cast::<u8>().add(at)) }
}

/// The store's hash of the key, whose last word is rid of what stands behind the key.
#[inline(always)]
fn hash(scratch: *mut Scratch, orders: &Orders, key_len: u64) -> u64 {
    let last = (key_len / 8) as usize & 31;
    // SAFETY: inside the key's words.
    let word = unsafe { &mut (*scratch).key[last] };
    *word &= (1 << (key_len % 8 * 8)) - 1;
    let mut sum = product(key_len, orders.secret[SECRET_WORDS - 1]);
    // What the loop finds out about its length is nothing to the verifier behind it.
    let key_len = forget(scratch, key_len);
    let mut idx = 0;
    while idx < SECRET_WORDS - 1 {
        if idx as u64 * 8 >= key_len {
            break;
        }
        // SAFETY: inside the key's words.
        let word = unsafe { ptr::read_volatile(&raw const (*scratch).key[idx]) };
        sum = sum.wrapping_add(product(word, orders.secret[idx]));
        idx += 1;
    }
    mix(forget(scratch, sum))
}

#[inline(always)]
pub(super) fn be16(frame: &[u8; FRAME_LEN], at: usize) -> u16 {
    u16::from_be_bytes(array(frame, at))
}

#[inline(always)]
fn word_of(frame: &[u8; FRAME_LEN], at: usize) -> u64 {
    u64::from_ne_bytes(array(frame, at))
}

/// Bytes at a place that is a constant of the program.
#[inline(always)]
fn array<const N: usize>(frame: &[u8; FRAME_LEN], at: usize) -> [u8; N] {
    core::array::from_fn(|idx| frame[at + idx])
}

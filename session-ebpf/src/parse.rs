//! From bytes to addresses, protocol and destination port: what a packet's headers say.
//!
//! It owns the walk over Ethernet, VLAN tags, IPv4 with options, IPv6 with extension headers,
//! AH and fragments. It never decides: a header that cannot be read becomes
//! [`Target::Unresolved`], and `judge` says what that means.
#![forbid(unsafe_code)]

use session_common::guard::{EndpointKey, Reason};

use crate::Frame;

/// Most VLAN tags that are walked. The kernel itself strips any number of them.
pub const VLAN_TAGS_MAX: usize = 4;

/// Most extension headers (AH included) that are walked before TCP or UDP.
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// Length of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;

/// Length of a VLAN tag.
const TAG_LEN: usize = 4;
/// Length of an IPv4 header without options.
const IPV4_LEN: usize = 20;
/// Length of an IPv6 header.
const IPV6_LEN: usize = 40;
/// The shortest extension header; one that has less left is cut off.
const EXTENSION_LEN: usize = 8;
/// Both ports, with which TCP and UDP begin.
const PORTS_LEN: usize = 4;

/// Ethertypes, as in `linux/if_ether.h`.
mod ethertype {
    pub(super) const IPV4: u16 = 0x0800;
    pub(super) const IPV6: u16 = 0x86dd;
    pub(super) const VLAN: u16 = 0x8100;
    pub(super) const QINQ: u16 = 0x88a8;
    pub(super) const QINQ_LEGACY: u16 = 0x9100;
}

/// Protocol and next-header numbers (IANA), as in `linux/in.h` and `net/ipv6.h`.
mod protocol {
    pub(super) const HOP_BY_HOP: usize = 0;
    pub(super) const TCP: usize = 6;
    pub(super) const UDP: usize = 17;
    pub(super) const ROUTING: usize = 43;
    pub(super) const FRAGMENT: usize = 44;
    pub(super) const AUTHENTICATION: usize = 51;
    pub(super) const DESTINATION: usize = 60;
    pub(super) const MOBILITY: usize = 135;
    pub(super) const HIP: usize = 139;
    pub(super) const SHIM6: usize = 140;
}

/// What the headers of one packet say, as far as they could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Bytes from the start of the link-layer header, as the IP length field claims them; of a
    /// packet whose IP header cannot be read, the bytes before it.
    pub len: u32,
    /// Source and destination.
    pub addresses: Addresses,
    /// What the packet is headed for.
    pub target: Target,
    /// The port of [`Target::Port`], else [`NO_ENDPOINT`]: set in every packet, because the
    /// compiler reads what only some have ahead of the question whether they have it, and the
    /// verifier refuses to read what was never set.
    pub endpoint: EndpointKey,
}

/// In place of an endpoint where there is none.
pub const NO_ENDPOINT: EndpointKey = EndpointKey { port: 0, protocol: 0, reserved: 0 };

/// Source and destination of a packet, in its own family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The headers end, or leave what is known, before the addresses.
    Unread,
    /// IPv4.
    V4(Pair<[u8; 4]>),
    /// IPv6.
    V6(Pair<[u8; 16]>),
}

/// Source and destination, network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
}

/// What a packet is headed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP or UDP port.
    Port(EndpointKey),
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// IPv4 or IPv6, but neither TCP nor UDP.
    OtherProtocol,
    /// A fragment that does not begin the packet and so carries no port.
    LaterFragment,
    /// Headers that do not lead to a port, with the reason.
    Unresolved(Reason),
}

/// An IP address as the guard judges it.
pub trait Address: Copy {
    /// Whether no packet on the wire may carry this source: an IPv4-mapped IPv6 address, which
    /// reads as an allowed IPv4 peer to any program that prints it (RFC 4038 section 4.2).
    fn is_forged_source(&self) -> bool;
    /// Whether the stack delivers this destination without it being an address of the host:
    /// multicast, limited broadcast, unspecified.
    fn is_group(&self) -> bool;
    /// Whether this source is one host elsewhere: not unspecified, loopback, multicast or broadcast.
    fn is_host(&self) -> bool;
}

impl Address for [u8; 4] {
    #[inline(always)]
    fn is_forged_source(&self) -> bool {
        false
    }

    #[inline(always)]
    fn is_group(&self) -> bool {
        let address = u32::from_be_bytes(*self);
        address >> 28 == 0xe || address == u32::MAX || address == 0
    }

    #[inline(always)]
    fn is_host(&self) -> bool {
        // 0/8 and 127/8 (RFC 1122 section 3.2.1.3), 224/4 and 240/4.
        self[0] != 0 && self[0] != 127 && self[0] < 224
    }
}

impl Address for [u8; 16] {
    #[inline(always)]
    fn is_forged_source(&self) -> bool {
        u128::from_be_bytes(*self) >> 32 == 0xffff
    }

    #[inline(always)]
    fn is_group(&self) -> bool {
        self[0] == 0xff
    }

    #[inline(always)]
    fn is_host(&self) -> bool {
        !self.is_group() && u128::from_be_bytes(*self) > 1
    }
}

/// Where the network header begins, and of what kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Ethertype of what begins at `at`.
    pub ethertype: u16,
    /// Offset of the network header, or of the first VLAN tag's two payload fields.
    pub at: usize,
    /// Bytes of link-layer header that lie before offset 0.
    pub before_len: usize,
}

/// Reads the headers of an Ethernet frame.
#[inline(always)]
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Headers {
    let Some(ethernet) = frame.load::<ETHERNET_LEN>(0) else {
        return unread(Target::Unresolved(Reason::Truncated), 0);
    };
    let ethertype = u16::from_be_bytes([ethernet[12], ethernet[13]]);
    parse_from(frame, Link { ethertype, at: ETHERNET_LEN, before_len: 0 })
}

/// Reads the headers of a packet whose link-layer header has been read.
#[inline(always)]
pub fn parse_from<F: Frame + ?Sized>(frame: &F, link: Link) -> Headers {
    let Link { mut ethertype, mut at, before_len } = link;
    for _ in 0..VLAN_TAGS_MAX {
        if !is_vlan_tag(ethertype) {
            break;
        }
        let Some(tag) = frame.load_rare::<TAG_LEN>(at) else {
            return unread(Target::Unresolved(Reason::Truncated), before_len + at);
        };
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        at += TAG_LEN;
    }
    at = frame.forget(at);
    match ethertype {
        ethertype::IPV4 => parse_ipv4(frame, at, before_len),
        ethertype::IPV6 => parse_ipv6(frame, at, before_len),
        tag if is_vlan_tag(tag) => unread(Target::Unresolved(Reason::TooManyTags), before_len + at),
        _ => unread(Target::NotIp, before_len + at),
    }
}

#[inline(always)]
fn is_vlan_tag(ethertype: u16) -> bool {
    ethertype == ethertype::VLAN
        || ethertype == ethertype::QINQ
        || ethertype == ethertype::QINQ_LEGACY
}

#[inline(always)]
fn unread(target: Target, len: usize) -> Headers {
    Headers { len: len as u32, addresses: Addresses::Unread, target, endpoint: NO_ENDPOINT }
}

/// RFC 791 section 3.1.
#[inline(always)]
fn parse_ipv4<F: Frame + ?Sized>(frame: &F, at: usize, before_len: usize) -> Headers {
    let Some(ip) = frame.load::<IPV4_LEN>(at) else {
        return unread(Target::Unresolved(Reason::Truncated), before_len + at);
    };
    let header_len = usize::from(ip[0] & 0x0f) * 4;
    let total_len = u16::from_be_bytes([ip[2], ip[3]]);
    let fragment_offset = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff;
    let (target, endpoint) = if ip[0] >> 4 != 4 || header_len < IPV4_LEN {
        (Target::Unresolved(Reason::BadHeader), NO_ENDPOINT)
    } else if fragment_offset != 0 {
        (Target::LaterFragment, NO_ENDPOINT)
    } else {
        walk::<F, false>(frame, ip[9], at + header_len, end_of(at, total_len))
    };
    Headers {
        len: (before_len + at) as u32 + u32::from(total_len),
        addresses: Addresses::V4(Pair {
            source: [ip[12], ip[13], ip[14], ip[15]],
            destination: [ip[16], ip[17], ip[18], ip[19]],
        }),
        target,
        endpoint,
    }
}

/// RFC 8200 section 3.
#[inline(always)]
fn parse_ipv6<F: Frame + ?Sized>(frame: &F, at: usize, before_len: usize) -> Headers {
    let Some(ip) = frame.load::<IPV6_LEN>(at) else {
        return unread(Target::Unresolved(Reason::Truncated), before_len + at);
    };
    let payload_len = u16::from_be_bytes([ip[4], ip[5]]);
    let (target, endpoint) = if ip[0] >> 4 != 6 {
        (Target::Unresolved(Reason::BadHeader), NO_ENDPOINT)
    } else {
        let payload = at + IPV6_LEN;
        walk::<F, true>(frame, ip[6], payload, end_of(payload, payload_len))
    };
    let mut pair = Pair { source: [0; 16], destination: [0; 16] };
    pair.source.copy_from_slice(&ip[8..24]);
    pair.destination.copy_from_slice(&ip[24..40]);
    Headers {
        len: (before_len + at + IPV6_LEN) as u32 + u32::from(payload_len),
        addresses: Addresses::V6(pair),
        target,
        endpoint,
    }
}

/// Where the IP packet ends, by its own word. What follows it in the frame is padding that the
/// stack cuts off, and that a stranger could fill with headers for the guard alone: a first
/// fragment that ends before its port would get one there.
#[inline(always)]
fn end_of(start: usize, len: u16) -> usize {
    // Zero is a jumbogram, or a packet that the device or the stack has merged from many: it
    // reaches to the end of the frame. The stack drops any other of that length.
    let to_the_end = all_ones_if_negative(usize::from(len).wrapping_sub(1) as isize) & FAR;
    start + usize::from(len) + to_the_end
}

/// Farther than any frame reaches.
const FAR: usize = 1 << 31;

/// `offset` if the `len` bytes there lie before `end`, else an offset that no frame has.
#[inline(always)]
fn within(offset: usize, len: usize, end: usize) -> usize {
    offset | all_ones_if_negative(end.wrapping_sub(offset + len) as isize) & FAR
}

/// A mask in place of a branch: without CAP_PERFMON the verifier follows speculation into both
/// sides of one, and gives up if the walk over the headers has more of them.
#[inline(always)]
fn all_ones_if_negative(number: isize) -> usize {
    (core::hint::black_box(number) >> (isize::BITS - 1)) as usize
}

/// Walks the chain of headers that begins with protocol `next` at `at`, to TCP or UDP. What is
/// read beyond `end` on the way comes to nothing: each header lies before the next, so that the
/// place where the walk stops tells of all.
#[inline(always)]
fn walk<F: Frame + ?Sized, const V6: bool>(
    frame: &F,
    next: u8,
    at: usize,
    end: usize,
) -> (Target, EndpointKey) {
    let (mut next, mut at) = (usize::from(next), at);
    if F::HAS_USUAL_PLACES && (next == protocol::TCP || next == protocol::UDP) {
        return port(next, frame.load(within(at, PORTS_LEN, end)));
    }
    for _ in 0..EXTENSION_HEADERS_MAX {
        if !is_extension::<V6>(next) {
            break;
        }
        let Some(header) = frame.load_rare::<EXTENSION_LEN>(at) else {
            return (Target::Unresolved(Reason::Truncated), NO_ENDPOINT);
        };
        let len = usize::from(header[1]);
        at += match next {
            protocol::FRAGMENT => EXTENSION_LEN,
            protocol::AUTHENTICATION => (len + 2) * 4,
            _ => (len + 1) * 8,
        };
        at = frame.forget(at);
        if next == protocol::FRAGMENT && u16::from_be_bytes([header[2], header[3]]) >> 3 != 0 {
            next = LATER_FRAGMENT;
            break;
        }
        next = usize::from(header[0]);
    }
    // A walk that led out of the packet has found no port: it reads one where no frame has any.
    let beyond = all_ones_if_negative(end.wrapping_sub(at) as isize);
    match next & !beyond | protocol::TCP & beyond {
        next @ (protocol::TCP | protocol::UDP) => {
            port(next, frame.load_rare(within(at, PORTS_LEN, end)))
        }
        LATER_FRAGMENT => (Target::LaterFragment, NO_ENDPOINT),
        next if is_extension::<V6>(next) => {
            (Target::Unresolved(Reason::TooManyHeaders), NO_ENDPOINT)
        }
        _ => (Target::OtherProtocol, NO_ENDPOINT),
    }
}

/// In place of a protocol: the fragment that was met does not begin its packet.
const LATER_FRAGMENT: usize = 256;

/// Whether a header of this number is walked. IPv4 knows only AH of them (RFC 4302).
#[inline(always)]
fn is_extension<const V6: bool>(next: usize) -> bool {
    next == protocol::AUTHENTICATION
        || V6
            && (next == protocol::HOP_BY_HOP
                || next == protocol::ROUTING
                || next == protocol::FRAGMENT
                || next == protocol::DESTINATION
                || next == protocol::MOBILITY
                || next == protocol::HIP
                || next == protocol::SHIM6)
}

/// The destination port stands in bytes 2 and 3 of TCP and of UDP.
#[inline(always)]
fn port(protocol: usize, ports: Option<[u8; PORTS_LEN]>) -> (Target, EndpointKey) {
    match ports {
        Some(ports) => {
            let port = u16::from_be_bytes([ports[2], ports[3]]);
            let key = EndpointKey { port, protocol: protocol as u8, reserved: 0 };
            (Target::Port(key), key)
        }
        None => (Target::Unresolved(Reason::Truncated), NO_ENDPOINT),
    }
}

//! Frames built byte by byte, well-formed or deliberately not.
//!
//! Each function wraps a payload in one header, so that a frame reads from the inside out.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

/// Ethertype of IPv4.
pub const IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of the authentication header.
pub const AUTHENTICATION: u8 = 51;
/// Next-header number of the IPv6 fragment header.
pub const FRAGMENT: u8 = 44;
/// The flag of an IPv4 fragment that others follow, in the field of the offset.
pub const MORE_FRAGMENTS: u16 = 0x2000;

/// A frame with VLAN tags of these (ethertype, VLAN id) before `ethertype`.
#[must_use]
pub fn ethernet(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    for (kind, id) in tags {
        frame.extend(kind.to_be_bytes());
        frame.extend(id.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet. `options` is padded to a multiple of four bytes; `fragment` is the field of
/// flags and offset.
#[must_use]
pub fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    options: &[u8],
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let header_len = 20 + options.len().next_multiple_of(4);
    let mut packet = vec![0; header_len];
    packet[0] = 0x40 | u8::try_from(header_len / 4).expect("at most 40 bytes of options");
    packet[2..4].copy_from_slice(&len_field(header_len + payload.len()));
    packet[4..6].copy_from_slice(&0x1234_u16.to_be_bytes());
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet[20..20 + options.len()].copy_from_slice(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv6 packet.
#[must_use]
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(len_field(payload.len()));
    packet.extend([next, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// An IPv6 extension header of `8 * (1 + units)` bytes, filled with PadN where it has options.
#[must_use]
pub fn extension(next: u8, units: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 8 * (1 + usize::from(units))];
    header[0] = next;
    header[1] = units;
    header[2] = 1;
    header[3] = 4;
    header.extend(payload);
    header
}

/// An IPv6 fragment header; `offset` counts units of eight bytes.
#[must_use]
pub fn fragment(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend((offset << 3 | u16::from(more)).to_be_bytes());
    header.extend(0x0bad_cafe_u32.to_be_bytes());
    header.extend(payload);
    header
}

/// An authentication header of 24 bytes (RFC 4302, with a check value of twelve).
#[must_use]
pub fn authentication(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 24];
    header[0] = next;
    header[1] = 4;
    header.extend(payload);
    header
}

/// A TCP SYN or a UDP datagram of eight bytes, from port 40000.
#[must_use]
pub fn transport(protocol: u8, port: u16) -> Vec<u8> {
    let mut segment = 40_000_u16.to_be_bytes().to_vec();
    segment.extend(port.to_be_bytes());
    if protocol == UDP {
        segment.extend(len_field(16));
        segment.extend([0; 10]);
    } else {
        segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x20, 0, 0, 0, 0, 0]);
    }
    segment
}

fn len_field(len: usize) -> [u8; 2] {
    u16::try_from(len).expect("a packet of at most 65535 bytes").to_be_bytes()
}

/// The Internet checksum (RFC 1071) of a header whose own field is zero.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

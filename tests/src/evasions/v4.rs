//! Forms over IPv4.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    BROADCAST, Ends, Ends4, Form, LONG, QINQ, VLAN, Wrapped, form, len, segments, to_hardware,
};
use crate::packet::{
    AUTHENTICATION, IPV4, IPV6, MORE_FRAGMENTS, TCP, UDP, authentication, checksum, ethernet, ipv4,
    ipv6,
};

/// Over IPv4.
#[must_use]
pub fn forms4() -> Vec<Form<Ipv4Addr>> {
    let mut forms: Vec<Form<Ipv4Addr>> = vec![
        form!("plain", |e| untagged4(e.plain())),
        form!("no-operation options", |e| e.optioned(&[1; 4])),
        form!("forty bytes of options", |e| e.optioned(&[1; 40])),
        form!("end of options first", |e| e.optioned(&[0, 0x2b, 0xcb, 0])),
        form!("record route", |e| e.optioned(&[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0])),
        form!("timestamps", |e| e.optioned(&[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        form!("router alert", |e| e.optioned(&[148, 4, 0, 0])),
        form!("security option", |e| e.optioned(&[130, 4, 0, 0])),
        form!("unknown option", |e| e.optioned(&[0x5e, 4, 0x2b, 0xcb])),
        form!("loose source route, at its end", |e| {
            e.optioned(&[131, 7, 8, 198, 18, 0, 66, 0])
        }),
        form!("strict source route, at its end", |e| {
            e.optioned(&[137, 7, 8, 198, 18, 0, 66, 0])
        }),
        form!("loose source route through the host", |e| {
            e.optioned(&[131, 7, 4, 198, 18, 0, 2, 0])
        }),
        form!("options that look like ports", |e| e.optioned(&[1, 1, 0, 80])),
        form!("do not fragment", |e| untagged4(e.packet(&[], 0x4000, &e.segment()))),
        form!("reserved flag", |e| untagged4(e.packet(&[], 0x8000, &e.segment()))),
        form!("time to live of 1", |e| changed4(&e, 8, 1)),
        form!("time to live of 0", |e| changed4(&e, 8, 0)),
        form!("every type-of-service bit", |e| changed4(&e, 1, 0xff)),
        form!("identification 0", |e| changed4(&e, 4, 0)),
        form!("wrong header checksum", |e| {
            let mut packet = e.plain();
            packet[10] ^= 0xff;
            untagged4(packet)
        }),
        form!("header of 16 bytes", |e| changed4(&e, 0, 0x44)),
        form!("header longer than the packet", |e| changed4(&e, 0, 0x4f)),
        form!("version 5", |e| changed4(&e, 0, 0x55)),
        form!("version 6 under IPv4's type", |e| changed4(&e, 0, 0x65)),
        form!("total length 0", |e| {
            let mut packet = e.plain();
            packet[2..4].copy_from_slice(&[0, 0]);
            untagged4(refresh(packet))
        }),
        form!("total length beyond the frame", |e| changed4(&e, 2, 0x10)),
        form!("total length before the port", |e| {
            let mut packet = e.plain();
            packet[2..4].copy_from_slice(&22_u16.to_be_bytes());
            untagged4(refresh(packet))
        }),
        form!("padding behind the packet", |e| { untagged4([e.plain(), vec![0x2b; 60]].concat()) }),
        form!("IPv4 under IPv6's type", |e| vec![ethernet(&[], IPV6, &e.plain())]),
        form!("IPv4 in a length field's frame", |e| {
            vec![ethernet(&[], 60, &[&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &e.plain()].concat())]
        }),
        form!("to everybody's hardware", |e| to_hardware(untagged4(e.plain()), BROADCAST)),
        form!("to a group's hardware", |e| {
            to_hardware(untagged4(e.plain()), [1, 0, 0x5e, 0, 0, 1])
        }),
        form!("to another's hardware", |e| {
            to_hardware(untagged4(e.plain()), [2, 0, 0, 0, 0, 9])
        }),
        form!("PPPoE", |e| {
            let session = [&[0x11, 0, 0, 1][..], &len(e.plain().len() + 2), &[0, 0x21]].concat();
            vec![ethernet(&[], 0x8864, &[session, e.plain()].concat())]
        }),
        form!("MPLS", |e| {
            vec![ethernet(&[], 0x8847, &[vec![0, 1, 1, 64], e.plain()].concat())]
        }),
        form!("MPLS, explicit null", |e| {
            vec![ethernet(&[], 0x8847, &[vec![0, 0, 1, 64], e.plain()].concat())]
        }),
    ];
    forms.extend(tags4());
    forms.extend(fragments4());
    forms.extend(inner4());
    forms.extend(addresses4());
    forms.extend(segments());
    forms
}

fn tags4() -> Vec<Form<Ipv4Addr>> {
    vec![
        form!("priority tag", |e| e.tagged(&[(VLAN, 0)])),
        form!("priority tag with a priority", |e| e.tagged(&[(VLAN, 0xe000)])),
        form!("802.1ad, VLAN 0", |e| e.tagged(&[(QINQ, 0)])),
        form!("two priority tags", |e| e.tagged(&[(VLAN, 0); 2])),
        form!("802.1ad before 802.1Q", |e| e.tagged(&[(QINQ, 0), (VLAN, 0)])),
        form!("802.1Q before 802.1ad", |e| e.tagged(&[(VLAN, 0), (QINQ, 0)])),
        form!("three priority tags", |e| e.tagged(&[(VLAN, 0); 3])),
        form!("four priority tags", |e| e.tagged(&[(VLAN, 0); 4])),
        form!("five priority tags", |e| e.tagged(&[(VLAN, 0); 5])),
        form!("eight priority tags", |e| e.tagged(&[(VLAN, 0); 8])),
        form!("an unknown VLAN", |e| e.tagged(&[(VLAN, 7)])),
        form!("legacy 0x9100", |e| e.tagged(&[(0x9100, 0), (VLAN, 0)])),
        form!("legacy 0x9200", |e| e.tagged(&[(0x9200, 0), (VLAN, 0)])),
        form!("a tag and options", |e| {
            vec![ethernet(&[(VLAN, 0)], IPV4, &e.packet(&[1; 8], 0, &e.segment()))]
        }),
        form!("a tag on each fragment", |e| {
            let pieces = e.in_pieces(&e.carrying(&LONG), &[24]);
            pieces.iter().map(|piece| ethernet(&[(VLAN, 0)], IPV4, &piece[14..])).collect()
        }),
    ]
}

fn fragments4() -> Vec<Form<Ipv4Addr>> {
    vec![
        form!("two fragments", |e| e.in_pieces(&e.carrying(&LONG), &[24])),
        form!("first fragment of eight bytes", |e| e.in_pieces(&e.carrying(&LONG), &[8])),
        form!("every fragment of eight bytes", |e| {
            let payload = e.carrying(&LONG);
            let ends: Vec<usize> = (8..payload.len()).step_by(8).collect();
            e.in_pieces(&payload, &ends)
        }),
        form!("later fragment first", |e| {
            let mut pieces = e.in_pieces(&e.carrying(&LONG), &[24]);
            pieces.reverse();
            pieces
        }),
        form!("first fragment last of many", |e| {
            let mut pieces = e.in_pieces(&e.carrying(&LONG), &[8, 16, 24, 32]);
            pieces.reverse();
            pieces
        }),
        form!("first fragment twice", |e| {
            let pieces = e.in_pieces(&e.carrying(&LONG), &[24]);
            [&pieces[..1], &pieces[..]].concat()
        }),
        form!("first fragment to another port, then again to this one", |e| {
            let other = Ends { to: 80, ..e };
            let decoy = other.in_pieces(&other.carrying(&LONG), &[24]);
            [&decoy[..1], &e.in_pieces(&e.carrying(&LONG), &[24])[..]].concat()
        }),
        form!("later fragment over the first one's end", |e| {
            let payload = e.carrying(&LONG);
            let first = e.packet(&[], MORE_FRAGMENTS, &payload[..32]);
            let rest = e.packet(&[], 1, &payload[8..]);
            [untagged4(first), untagged4(rest)].concat()
        }),
        form!("first fragment to another port, overwritten", |e| {
            let other = Ends { to: 80, ..e };
            let decoy = other.packet(&[], MORE_FRAGMENTS, &other.carrying(&LONG)[..16]);
            let payload = e.carrying(&LONG);
            let again = e.packet(&[], MORE_FRAGMENTS, &payload[..24]);
            let rest = e.packet(&[], 3, &payload[24..]);
            [untagged4(decoy), untagged4(rest), untagged4(again)].concat()
        }),
        form!("one fragment that says more come", |e| {
            untagged4(e.packet(&[], MORE_FRAGMENTS, &e.segment()))
        }),
        form!("fragments with options", |e| {
            let payload = e.carrying(&LONG);
            let first = e.packet(&[1; 40], MORE_FRAGMENTS, &payload[..24]);
            let rest = e.packet(&[1; 4], 3, &payload[24..]);
            [untagged4(first), untagged4(rest)].concat()
        }),
        form!("first fragment without a port", |e| {
            untagged4(e.packet(&[], MORE_FRAGMENTS, &e.from.to_be_bytes()))
        }),
    ]
}

/// An IPv6 address of no consequence around an inner packet.
const AROUND: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x66);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

fn inner4() -> Vec<Form<Ipv4Addr>> {
    vec![
        form!("AH", |e| {
            untagged4(e.packet_of(
                AUTHENTICATION,
                &[],
                0,
                &authentication(e.protocol, &e.segment()),
            ))
        }),
        form!("IPv4 in IPv4", |e| untagged4(e.packet_of(4, &[], 0, &e.plain()))),
        form!("GRE", |e| {
            untagged4(e.packet_of(47, &[], 0, &[vec![0, 0, 8, 0], e.plain()].concat()))
        }),
        form!("IPv4 in IPv6", |e| {
            vec![ethernet(&[], IPV6, &ipv6(AROUND, HOST6, 4, &e.plain()))]
        }),
        form!("VXLAN", |e| {
            let frame = [vec![8, 0, 0, 0, 0, 0, 1, 0], untagged4(e.plain()).concat()].concat();
            let outer = Ends { to: 4789, protocol: UDP, ..e };
            untagged4(outer.packet(&[], 0, &outer.carrying(&frame)))
        }),
        form!("the port inside an ICMP error", |e| {
            let mut message = [vec![3, 3, 0, 0, 0, 0, 0, 0], e.plain()].concat();
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            untagged4(e.packet_of(1, &[], 0, &message))
        }),
        form!("UDP-Lite", |e| untagged4(e.packet_of(136, &[], 0, &e.segment()))),
        form!("the other protocol's header", |e| {
            let other = if e.protocol == TCP { 132 } else { 33 };
            untagged4(e.packet_of(other, &[], 0, &e.segment()))
        }),
    ]
}

fn addresses4() -> Vec<Form<Ipv4Addr>> {
    vec![
        form!("to the second address", |e| {
            untagged4(e.to(Ipv4Addr::new(198, 18, 0, 2)).plain())
        }),
        form!("to the other interface's address", |e| {
            untagged4(e.to(Ipv4Addr::new(198, 18, 1, 1)).plain())
        }),
        form!("to an address that is local by routing", |e| {
            untagged4(e.to(Ipv4Addr::new(198, 18, 9, 9)).plain())
        }),
        form!("to 127.0.0.1", |e| untagged4(e.to(Ipv4Addr::LOCALHOST).plain())),
        form!("to 127.255.255.255", |e| {
            untagged4(e.to(Ipv4Addr::new(127, 255, 255, 255)).plain())
        }),
        form!("to the network's broadcast", |e| {
            untagged4(e.to(Ipv4Addr::new(198, 18, 0, 255)).plain())
        }),
        form!("to the network's old broadcast", |e| {
            untagged4(e.to(Ipv4Addr::new(198, 18, 0, 0)).plain())
        }),
        form!("to everybody", |e| {
            to_hardware(untagged4(e.to(Ipv4Addr::BROADCAST).plain()), BROADCAST)
        }),
        form!("to 0.0.0.0", |e| untagged4(e.to(Ipv4Addr::UNSPECIFIED).plain())),
        form!("to all hosts", |e| {
            let to = Ipv4Addr::new(224, 0, 0, 1);
            to_hardware(untagged4(e.to(to).plain()), [1, 0, 0x5e, 0, 0, 1])
        }),
        form!("to all hosts, by this hardware", |e| {
            untagged4(e.to(Ipv4Addr::new(224, 0, 0, 1)).plain())
        }),
    ]
}

/// Sources over IPv4 that nobody may have, and some that only look like others.
#[must_use]
pub fn sources4() -> Vec<Form<Ipv4Addr>> {
    vec![
        form!("from 0.0.0.0", |e| untagged4(e.with_source(Ipv4Addr::UNSPECIFIED).plain())),
        form!("from 127.0.0.1", |e| untagged4(e.with_source(Ipv4Addr::LOCALHOST).plain())),
        form!("from everybody", |e| untagged4(e.with_source(Ipv4Addr::BROADCAST).plain())),
        form!("from a group", |e| {
            untagged4(e.with_source(Ipv4Addr::new(224, 0, 0, 1)).plain())
        }),
        form!("from the reserved block", |e| {
            untagged4(e.with_source(Ipv4Addr::new(240, 0, 0, 1)).plain())
        }),
        form!("from the network's broadcast", |e| {
            untagged4(e.with_source(Ipv4Addr::new(198, 18, 0, 255)).plain())
        }),
        form!("from the host's own address", |e| untagged4(e.with_source(e.destination).plain())),
        form!("from the host's second address", |e| {
            untagged4(e.with_source(Ipv4Addr::new(198, 18, 0, 2)).plain())
        }),
        form!("from link-local", |e| {
            untagged4(e.with_source(Ipv4Addr::new(169, 254, 0, 11)).plain())
        }),
    ]
}

impl Ends4 {
    fn packet(&self, options: &[u8], flags: u16, payload: &[u8]) -> Vec<u8> {
        self.packet_of(self.protocol, options, flags, payload)
    }

    /// An IPv4 packet whose identification is the source port.
    fn packet_of(&self, protocol: u8, options: &[u8], flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = ipv4(self.source, self.destination, protocol, options, flags, payload);
        packet[4..6].copy_from_slice(&self.from.to_be_bytes());
        refresh(packet)
    }

    fn plain(&self) -> Vec<u8> {
        self.packet(&[], 0, &self.segment())
    }

    fn optioned(&self, options: &[u8]) -> Vec<Vec<u8>> {
        untagged4(self.packet(options, 0, &self.segment()))
    }

    fn tagged(&self, tags: &[(u16, u16)]) -> Vec<Vec<u8>> {
        vec![ethernet(tags, IPV4, &self.plain())]
    }

    /// The packet in pieces that end at these offsets (multiples of eight), in this order.
    fn in_pieces(&self, payload: &[u8], ends: &[usize]) -> Vec<Vec<u8>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for end in ends.iter().copied().chain([payload.len()]) {
            let more = if end < payload.len() { MORE_FRAGMENTS } else { 0 };
            let offset = u16::try_from(start / 8).expect("short");
            pieces.push(self.packet(&[], more | offset, &payload[start..end]));
            start = end;
        }
        pieces.into_iter().flat_map(untagged4).collect()
    }
}

fn untagged4(packet: Vec<u8>) -> Vec<Vec<u8>> {
    vec![ethernet(&[], IPV4, &packet)]
}

/// An IPv4 packet with its checksum made anew.
fn refresh(mut packet: Vec<u8>) -> Vec<u8> {
    let header_len = usize::from(packet[0] & 0x0f) * 4;
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = checksum(&packet[..header_len.min(packet.len())]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// A plain packet with one byte of its IPv4 header changed.
fn changed4(ends: &Ends4, at: usize, byte: u8) -> Vec<Vec<u8>> {
    let mut packet = ends.plain();
    packet[at] = byte;
    untagged4(refresh(packet))
}

impl Wrapped for Ends4 {
    fn wrapped(&self, segment: &[u8]) -> Vec<Vec<u8>> {
        untagged4(self.packet(&[], 0, segment))
    }
}

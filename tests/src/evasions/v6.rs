//! Forms over IPv6.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    BROADCAST, Ends, Ends6, Form, HOP_BY_HOP, LONG, OPTIONS, QINQ, ROUTING, VLAN, Wrapped, form,
    segments, to_hardware,
};
use crate::packet::{
    AUTHENTICATION, FRAGMENT, IPV4, IPV6, authentication, ethernet, extension, ipv4, ipv6,
};

/// Over IPv6.
#[must_use]
pub fn forms6() -> Vec<Form<Ipv6Addr>> {
    let mut forms: Vec<Form<Ipv6Addr>> = vec![
        form!("plain", |e| untagged6(e.plain())),
        form!("every traffic class bit and a flow label", |e| {
            let mut packet = e.plain();
            packet[..4].copy_from_slice(&[0x6f, 0xff, 0xff, 0xff]);
            untagged6(packet)
        }),
        form!("hop limit of 1", |e| changed6(&e, 7, 1)),
        form!("hop limit of 0", |e| changed6(&e, 7, 0)),
        form!("version 4", |e| changed6(&e, 0, 0x40)),
        form!("version 4 under IPv6's type, as IPv4 reads it", |e| changed6(&e, 0, 0x45)),
        form!("payload length 0", |e| {
            let mut packet = e.plain();
            packet[4..6].copy_from_slice(&[0, 0]);
            untagged6(packet)
        }),
        form!("payload length beyond the frame", |e| changed6(&e, 4, 1)),
        form!("payload length before the port", |e| changed6(&e, 5, 3)),
        form!("padding behind the packet", |e| { untagged6([e.plain(), vec![0x2b; 60]].concat()) }),
        form!("IPv6 under IPv4's type", |e| vec![ethernet(&[], IPV4, &e.plain())]),
        form!("jumbogram", |e| {
            let option = [e.protocol, 0, 0xc2, 4, 0, 1, 0, 8];
            let mut packet = e.packet_of(HOP_BY_HOP, &[&option[..], &e.segment()].concat());
            packet[4..6].copy_from_slice(&[0, 0]);
            untagged6(packet)
        }),
        form!("jumbogram of ordinary length", |e| {
            let segment = e.segment();
            let total = u32::try_from(8 + segment.len()).expect("short").to_be_bytes();
            let option = [&[e.protocol, 0, 0xc2, 4][..], &total].concat();
            let mut packet = e.packet_of(HOP_BY_HOP, &[option, segment].concat());
            packet[4..6].copy_from_slice(&[0, 0]);
            untagged6(packet)
        }),
        form!("to everybody's hardware", |e| to_hardware(untagged6(e.plain()), BROADCAST)),
        form!("to a group's hardware", |e| {
            to_hardware(untagged6(e.plain()), [0x33, 0x33, 0, 0, 0, 1])
        }),
        form!("to another's hardware", |e| {
            to_hardware(untagged6(e.plain()), [2, 0, 0, 0, 0, 9])
        }),
        form!("priority tag", |e| e.tagged(&[(VLAN, 0)])),
        form!("802.1ad, VLAN 0", |e| e.tagged(&[(QINQ, 0)])),
        form!("802.1ad before 802.1Q", |e| e.tagged(&[(QINQ, 0), (VLAN, 0)])),
        form!("three priority tags", |e| e.tagged(&[(VLAN, 0); 3])),
        form!("four priority tags", |e| e.tagged(&[(VLAN, 0); 4])),
        form!("five priority tags", |e| e.tagged(&[(VLAN, 0); 5])),
        form!("an unknown VLAN", |e| e.tagged(&[(VLAN, 7)])),
        form!("MPLS", |e| {
            vec![ethernet(&[], 0x8847, &[vec![0, 2, 1, 64], e.plain()].concat())]
        }),
        form!("IPv6 in IPv6", |e| untagged6(e.packet_of(41, &e.plain()))),
        form!("IPv6 in IPv4", |e| {
            let (from, to) = (Ipv4Addr::new(198, 18, 0, 66), Ipv4Addr::new(198, 18, 0, 1));
            vec![ethernet(&[], IPV4, &ipv4(from, to, 41, &[], 0, &e.plain()))]
        }),
        form!("no next header", |e| untagged6(e.packet_of(59, &e.segment()))),
    ];
    forms.extend(chains6());
    forms.extend(fragments6());
    forms.extend(addresses6());
    forms.extend(segments());
    forms
}

impl Ends6 {
    fn packet_of(&self, next: u8, payload: &[u8]) -> Vec<u8> {
        ipv6(self.source, self.destination, next, payload)
    }

    fn plain(&self) -> Vec<u8> {
        self.packet_of(self.protocol, &self.segment())
    }

    fn tagged(&self, tags: &[(u16, u16)]) -> Vec<Vec<u8>> {
        vec![ethernet(tags, IPV6, &self.plain())]
    }

    /// Headers of these kinds and lengths before the segment, first to last.
    fn chain(&self, kinds: &[(u8, u8)]) -> Vec<Vec<u8>> {
        let start = (self.protocol, self.segment());
        let (first, chain) = kinds.iter().rev().fold(start, |(next, rest), kind| {
            let header = match *kind {
                (FRAGMENT, _) => self.piece(next, 0, false, &rest),
                (AUTHENTICATION, _) => authentication(next, &rest),
                (ROUTING, units) => routing(next, units, &rest),
                (_, units) => padded(next, units, &rest),
            };
            (kind.0, header)
        });
        untagged6(self.packet_of(first, &chain))
    }

    /// A fragment header whose identification is the source port.
    fn piece(&self, next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![next, 0];
        header.extend((offset << 3 | u16::from(more)).to_be_bytes());
        header.extend(u32::from(self.from).to_be_bytes());
        header.extend(payload);
        header
    }

    /// What follows the IPv6 header in pieces that end at these offsets (multiples of eight).
    fn in_pieces(&self, next: u8, payload: &[u8], ends: &[usize]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut start = 0;
        for end in ends.iter().copied().chain([payload.len()]) {
            let offset = u16::try_from(start / 8).expect("short");
            let piece = self.piece(next, offset, end < payload.len(), &payload[start..end]);
            frames.extend(untagged6(self.packet_of(FRAGMENT, &piece)));
            start = end;
        }
        frames
    }
}

/// A header of options, all of it padding that the stack accepts (PadN is at most 7 bytes).
fn padded(next: u8, units: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, units, 1, 4, 0, 0, 0, 0];
    for _ in 0..units {
        header.extend([1, 6, 0, 0, 0, 0, 0, 0]);
    }
    header.extend(payload);
    header
}

/// A routing header with no segments left, which the stack skips whatever its type.
fn routing(next: u8, units: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = extension(next, units, payload);
    header[2..4].copy_from_slice(&[0, 0]);
    header
}

fn untagged6(packet: Vec<u8>) -> Vec<Vec<u8>> {
    vec![ethernet(&[], IPV6, &packet)]
}

fn changed6(ends: &Ends6, at: usize, byte: u8) -> Vec<Vec<u8>> {
    let mut packet = ends.plain();
    packet[at] = byte;
    untagged6(packet)
}

fn chains6() -> Vec<Form<Ipv6Addr>> {
    vec![
        form!("hop-by-hop", |e| e.chain(&[(HOP_BY_HOP, 0)])),
        form!("long hop-by-hop", |e| e.chain(&[(HOP_BY_HOP, 5)])),
        form!("destination options", |e| e.chain(&[(OPTIONS, 0)])),
        form!("three destination options", |e| e.chain(&[(OPTIONS, 0); 3])),
        form!("eight destination options", |e| e.chain(&[(OPTIONS, 0); 8])),
        form!("nine destination options", |e| e.chain(&[(OPTIONS, 0); 9])),
        form!("thirty destination options", |e| e.chain(&[(OPTIONS, 0); 30])),
        form!("long destination options", |e| e.chain(&[(OPTIONS, 20)])),
        form!("options beyond 512 bytes", |e| e.chain(&[(OPTIONS, 40); 2])),
        form!("routing header", |e| e.chain(&[(ROUTING, 0)])),
        form!("long routing header", |e| e.chain(&[(ROUTING, 4)])),
        form!("routing header of type 0 with a segment left", |e| {
            let mut header = vec![e.protocol, 2, 0, 1, 0, 0, 0, 0];
            header.extend(crate::wire::HOST.1.octets());
            untagged6(e.packet_of(ROUTING, &[header, e.segment()].concat()))
        }),
        form!("segment routing header", |e| {
            let mut header = vec![e.protocol, 2, 4, 0, 0, 0, 0, 0];
            header.extend(e.destination.octets());
            untagged6(e.packet_of(ROUTING, &[header, e.segment()].concat()))
        }),
        form!("hop-by-hop, options, routing, options", |e| {
            e.chain(&[(HOP_BY_HOP, 0), (OPTIONS, 0), (ROUTING, 0), (OPTIONS, 1)])
        }),
        form!("routing before hop-by-hop", |e| e.chain(&[(ROUTING, 0), (HOP_BY_HOP, 0)])),
        form!("hop-by-hop twice", |e| e.chain(&[(HOP_BY_HOP, 0); 2])),
        form!("atomic fragment", |e| e.chain(&[(FRAGMENT, 0)])),
        form!("atomic fragment behind options", |e| e.chain(&[(OPTIONS, 0), (FRAGMENT, 0)])),
        form!("options behind an atomic fragment", |e| e.chain(&[(FRAGMENT, 0), (OPTIONS, 1)])),
        form!("two atomic fragments", |e| e.chain(&[(FRAGMENT, 0); 2])),
        form!("AH", |e| e.chain(&[(AUTHENTICATION, 0)])),
        form!("mobility", |e| e.chain(&[(135, 0)])),
        form!("HIP", |e| e.chain(&[(139, 0)])),
        form!("shim6", |e| e.chain(&[(140, 0)])),
        form!("an experiment's header", |e| {
            untagged6(e.packet_of(253, &padded(e.protocol, 0, &e.segment())))
        }),
        form!("options that lead out of the packet", |e| {
            untagged6(e.packet_of(
                OPTIONS,
                &[&[e.protocol, 200, 1, 4, 0, 0, 0, 0], &e.segment()[..]].concat(),
            ))
        }),
        form!("a tag and options", |e| {
            let chain = padded(e.protocol, 1, &e.segment());
            vec![ethernet(&[(VLAN, 0)], IPV6, &e.packet_of(OPTIONS, &chain))]
        }),
    ]
}

fn fragments6() -> Vec<Form<Ipv6Addr>> {
    vec![
        form!("two fragments", |e| e.in_pieces(e.protocol, &e.carrying(&LONG), &[24])),
        form!("later fragment first", |e| {
            let mut pieces = e.in_pieces(e.protocol, &e.carrying(&LONG), &[24]);
            pieces.reverse();
            pieces
        }),
        form!("first fragment of eight bytes", |e| {
            e.in_pieces(e.protocol, &e.carrying(&LONG), &[8])
        }),
        form!("options in the first fragment, the port in the second", |e| {
            e.in_pieces(OPTIONS, &padded(e.protocol, 0, &e.carrying(&LONG)), &[8])
        }),
        form!("options across two fragments", |e| {
            e.in_pieces(OPTIONS, &padded(e.protocol, 2, &e.carrying(&LONG)), &[16])
        }),
        form!("options before the fragment header", |e| {
            let pieces = e.in_pieces(e.protocol, &e.carrying(&LONG), &[24]);
            let behind = |frame: &Vec<u8>| {
                untagged6(e.packet_of(OPTIONS, &padded(FRAGMENT, 0, &frame[54..]))).concat()
            };
            pieces.iter().map(behind).collect()
        }),
        form!("first fragment to another port, overlapped", |e| {
            let other = Ends { to: 80, ..e };
            let payload = e.carrying(&LONG);
            let decoy = other.piece(e.protocol, 0, true, &other.carrying(&LONG)[..24]);
            let rest = e.piece(e.protocol, 0, false, &payload);
            [untagged6(e.packet_of(FRAGMENT, &decoy)), untagged6(e.packet_of(FRAGMENT, &rest))]
                .concat()
        }),
        form!("fragments of fragments", |e| {
            let inner = e.piece(e.protocol, 0, false, &e.carrying(&LONG));
            e.in_pieces(FRAGMENT, &inner, &[24])
        }),
        form!("one fragment that says more come", |e| {
            let payload = e.carrying(&LONG);
            let piece = e.piece(e.protocol, 0, true, &payload[..payload.len() / 8 * 8]);
            untagged6(e.packet_of(FRAGMENT, &piece))
        }),
        form!("first fragment without a port", |e| {
            e.in_pieces(OPTIONS, &padded(OPTIONS, 0, &padded(e.protocol, 0, &e.segment())), &[8])
        }),
    ]
}

fn addresses6() -> Vec<Form<Ipv6Addr>> {
    vec![
        form!("to the other interface's address", |e| {
            untagged6(e.to(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)).plain())
        }),
        form!("to an address that is local by routing", |e| {
            untagged6(e.to(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9)).plain())
        }),
        form!("to the subnet's routers", |e| {
            untagged6(e.to(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0)).plain())
        }),
        form!("to the link-local address", |e| {
            untagged6(e.to(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1)).plain())
        }),
        form!("to ::1", |e| untagged6(e.to(Ipv6Addr::LOCALHOST).plain())),
        form!("to ::", |e| untagged6(e.to(Ipv6Addr::UNSPECIFIED).plain())),
        form!("to all nodes", |e| {
            let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            to_hardware(untagged6(e.to(to).plain()), [0x33, 0x33, 0, 0, 0, 1])
        }),
        form!("to all nodes of the interface", |e| {
            untagged6(e.to(Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 1)).plain())
        }),
        form!("to its solicited-node group", |e| {
            untagged6(e.to(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1)).plain())
        }),
        form!("to the host's IPv4-mapped address", |e| {
            untagged6(e.to(Ipv4Addr::new(198, 18, 0, 1).to_ipv6_mapped()).plain())
        }),
    ]
}

/// Sources over IPv6 that nobody may have, and some that only look like `allowed`.
#[must_use]
pub fn sources6() -> Vec<Form<Ipv6Addr>> {
    vec![
        form!("from ::", |e| untagged6(e.with_source(Ipv6Addr::UNSPECIFIED).plain())),
        form!("from ::1", |e| untagged6(e.with_source(Ipv6Addr::LOCALHOST).plain())),
        form!("from an IPv4-mapped address", |e| {
            untagged6(e.with_source(Ipv4Addr::new(198, 18, 0, 11).to_ipv6_mapped()).plain())
        }),
        form!("from an IPv4-mapped 127.0.0.1", |e| {
            untagged6(e.with_source(Ipv4Addr::LOCALHOST.to_ipv6_mapped()).plain())
        }),
        form!("from an IPv4-compatible address", |e| {
            untagged6(e.with_source(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0xc612, 0x000b)).plain())
        }),
        form!("from a 6to4 address", |e| {
            untagged6(e.with_source(Ipv6Addr::new(0x2002, 0xc612, 0xb, 0, 0, 0, 0, 1)).plain())
        }),
        form!("from a NAT64 address", |e| {
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xc612, 0x000b);
            untagged6(e.with_source(nat64).plain())
        }),
        form!("from a group", |e| {
            untagged6(e.with_source(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)).plain())
        }),
        form!("from the host's own address", |e| untagged6(e.with_source(e.destination).plain())),
        form!("from link-local", |e| {
            untagged6(e.with_source(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x11)).plain())
        }),
    ]
}

impl Wrapped for Ends6 {
    fn wrapped(&self, segment: &[u8]) -> Vec<Vec<u8>> {
        untagged6(self.packet_of(self.protocol, segment))
    }
}

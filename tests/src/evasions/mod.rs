//! The forms by which packets get past filters, as whole frames with valid checksums.
//!
//! It owns the catalogue. Which of them a kernel delivers is the kernel's affair: those who use
//! the catalogue ask it with and without a guard, and compare.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::{UDP, checksum};

pub use self::v4::{forms4, sources4};
pub use self::v6::{forms6, sources6};

mod v4;
mod v6;

/// From whom to whom, and over what.
#[derive(Clone, Copy, Debug)]
pub struct Ends<A> {
    /// Source address.
    pub source: A,
    /// Destination address, where the form does not name another.
    pub destination: A,
    /// `IPPROTO_TCP` (6) or `IPPROTO_UDP` (17).
    pub protocol: u8,
    /// Source port, which also tells fragments of one packet from those of another.
    pub from: u16,
    /// Destination port.
    pub to: u16,
}

/// A form.
#[derive(Clone, Copy, Debug)]
pub struct Form<A> {
    /// What is odd about it.
    pub name: &'static str,
    /// Its frames, in the order to send them in.
    pub build: fn(Ends<A>) -> Vec<Vec<u8>>,
}

/// Ends over IPv4.
pub type Ends4 = Ends<Ipv4Addr>;
/// Ends over IPv6.
pub type Ends6 = Ends<Ipv6Addr>;

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const OPTIONS: u8 = 60;
const NEXT: [u8; 8] = *b"evasion!";

impl<A: Copy + Into<IpAddr>> Ends<A> {
    /// A SYN or a datagram with its checksum.
    fn segment(&self) -> Vec<u8> {
        self.carrying(&NEXT)
    }

    /// The same with this payload.
    fn carrying(&self, payload: &[u8]) -> Vec<u8> {
        self.built(0x02, &[], payload)
    }

    /// With these TCP flags and options (a multiple of four bytes) besides.
    fn built(&self, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut segment = self.from.to_be_bytes().to_vec();
        segment.extend(self.to.to_be_bytes());
        if self.protocol == UDP {
            segment.extend(len(8 + payload.len()));
            segment.extend([0, 0]);
        } else {
            let words = u8::try_from(5 + options.len() / 4).expect("at most 40 bytes of options");
            segment.extend([0, 0, 0, 1, 0, 0, 0, 0, words << 4, flags, 0x20, 0, 0, 0, 0, 0]);
            segment.extend(options);
        }
        segment.extend(payload);
        let at = if self.protocol == UDP { 6 } else { 16 };
        let sum = self.checksum(&segment);
        segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    /// RFC 9293 section 3.1, RFC 8200 section 8.1.
    fn checksum(&self, segment: &[u8]) -> u16 {
        let mut pseudo = Vec::new();
        for address in [self.source, self.destination].map(Into::into) {
            match address {
                IpAddr::V4(address) => pseudo.extend(address.octets()),
                IpAddr::V6(address) => pseudo.extend(address.octets()),
            }
        }
        pseudo.extend([0, self.protocol]);
        pseudo.extend(len(segment.len()));
        pseudo.extend(segment);
        checksum(&pseudo)
    }

    fn to(self, destination: A) -> Self {
        Self { destination, ..self }
    }

    fn with_source(self, source: A) -> Self {
        Self { source, ..self }
    }
}

fn len(len: usize) -> [u8; 2] {
    u16::try_from(len).expect("at most 65,535").to_be_bytes()
}

/// Frames with another link-layer destination.
fn to_hardware(mut frames: Vec<Vec<u8>>, hardware: [u8; 6]) -> Vec<Vec<u8>> {
    frames.iter_mut().for_each(|frame| frame[..6].copy_from_slice(&hardware));
    frames
}

const BROADCAST: [u8; 6] = [0xff; 6];
/// 48 bytes, so that a packet can be cut in many places.
const LONG: [u8; 48] = [0x2e; 48];

macro_rules! form {
    ($name:expr, $build:expr) => {
        Form { name: $name, build: $build }
    };
}

use form;

/// A segment in a packet without anything odd.
trait Wrapped {
    fn wrapped(&self, segment: &[u8]) -> Vec<Vec<u8>>;
}

/// What TCP and UDP themselves can carry.
fn segments<A: Copy + Into<IpAddr>>() -> Vec<Form<A>>
where
    Ends<A>: Wrapped,
{
    vec![
        form!("no payload", |e| e.wrapped(&e.carrying(&[]))),
        form!("a long payload", |e| e.wrapped(&e.carrying(&[0x2e; 1200]))),
        form!("explicit congestion notification", |e| e.wrapped(&e.built(0xc2, &[], &[]))),
        form!("urgent and pushed", |e| e.wrapped(&e.built(0x2a, &[], &NEXT))),
        form!("fast open, asking", |e| e.wrapped(&e.built(0x02, &[34, 2, 1, 1], &NEXT))),
        form!("fast open, with a cookie", |e| {
            e.wrapped(&e.built(0x02, &[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1], &NEXT))
        }),
        form!("forty bytes of TCP options", |e| e.wrapped(&e.built(0x02, &[1; 40], &NEXT))),
        form!("no checksum", |e| {
            let mut segment = e.segment();
            let at = if e.protocol == UDP { 6 } else { 16 };
            segment[at..at + 2].copy_from_slice(&[0, 0]);
            e.wrapped(&segment)
        }),
        form!("wrong checksum", |e| {
            let mut segment = e.segment();
            segment[if e.protocol == UDP { 6 } else { 16 }] ^= 0x55;
            e.wrapped(&segment)
        }),
        form!("cut in its header", |e| e.wrapped(&e.segment()[..6])),
        form!("cut behind the ports", |e| e.wrapped(&e.segment()[..4])),
        form!("cut before the ports end", |e| e.wrapped(&e.segment()[..3])),
        form!("longer than its own length says", |e| {
            e.wrapped(&[e.segment(), vec![0; 9]].concat())
        }),
    ]
}

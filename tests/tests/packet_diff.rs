//! The parser against another one, and the real program against a plain model.
//!
//! Frames are generated from the forms that matter and then damaged. The parser is the source
//! that the program is made of, compiled for the host; what it reads is compared with what
//! `etherparse` reads. The verdicts of the real program are compared with a model that keeps its
//! entries in a vector.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use etherparse::{
    Ethernet2Header, IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, SingleVlanHeader,
    TransportSlice,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use session_common::guard::{ACTION_ALLOW, ACTION_DENY, EndpointKey, ListWord, Reason, Rule};
use session_ebpf::{Addresses, EXTENSION_HEADERS_MAX, Target, VLAN_TAGS_MAX, parse};
use session_tests::guard_program::{GuardProgram, Hook, shortest};
use session_tests::netns::Namespace;
use session_tests::packet::{
    AUTHENTICATION, FRAGMENT, IPV4, IPV6, TCP, UDP, authentication, ethernet, extension, fragment,
    ipv4, ipv6, transport,
};
use session_tests::{require_root, skip};

const PORT: u16 = 11_211;
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// How a generated frame is made.
#[derive(Clone, Debug)]
struct Recipe {
    tags: Vec<(u16, u16)>,
    source: IpAddr,
    option_words: usize,
    fragment: u16,
    extensions: Vec<(u8, u8)>,
    protocol: u8,
    port: u16,
    damage: Vec<(prop::sample::Index, u8)>,
    padding: Vec<u8>,
    cut: Option<prop::sample::Index>,
}

impl Recipe {
    fn frame(&self) -> Vec<u8> {
        let payload = transport(self.protocol, self.port);
        let (first, chain) = self.extensions.iter().rev().fold(
            (self.protocol, payload),
            |(next, rest), (kind, units)| {
                let header = match *kind {
                    FRAGMENT => fragment(next, u16::from(*units == 3), true, &rest),
                    AUTHENTICATION => authentication(next, &rest),
                    _ => extension(next, *units, &rest),
                };
                (*kind, header)
            },
        );
        let mut frame = match self.source {
            IpAddr::V4(source) => {
                let options = vec![1; self.option_words * 4];
                let host = Ipv4Addr::new(198, 18, 0, 1);
                let packet = ipv4(source, host, first, &options, self.fragment, &chain);
                ethernet(&self.tags, IPV4, &packet)
            }
            IpAddr::V6(source) => {
                let host = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
                ethernet(&self.tags, IPV6, &ipv6(source, host, first, &chain))
            }
        };
        frame.extend(&self.padding);
        for (at, byte) in &self.damage {
            let at = at.index(frame.len());
            frame[at] = *byte;
        }
        if let Some(cut) = self.cut {
            frame.truncate(cut.index(frame.len() + 1));
        }
        frame
    }
}

/// Few addresses, so that entries are met.
fn source() -> impl Strategy<Value = IpAddr> {
    let v4 = (0..4_u8, 0..4_u8).prop_map(|(net, host)| Ipv4Addr::new(198, 18, net, host).into());
    let v6 = (0..4_u16, 0..4_u16)
        .prop_map(|(net, host)| Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host).into());
    let mapped = (0..4_u8, 0..4_u8)
        .prop_map(|(net, host)| Ipv4Addr::new(198, 18, net, host).to_ipv6_mapped().into());
    prop_oneof![8 => v4, 8 => v6, 1 => mapped]
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let tags = prop_oneof![
        3 => Just(Vec::new()),
        1 => vec((prop::sample::select(&TAGS[..]), 0..3_u16), 0..=6),
    ];
    let extensions = prop_oneof![
        3 => Just(Vec::new()),
        2 => vec((prop::sample::select(&EXTENSIONS[..]), 0..=3_u8), 0..=10),
        1 => vec((Just(AUTHENTICATION), Just(0)), 0..=10),
    ];
    let fragment =
        prop_oneof![4 => Just(0), 1 => Just(0x2000), 1 => Just(0x4000), 1 => any::<u16>()];
    let protocol = prop_oneof![4 => Just(TCP), 4 => Just(UDP), 1 => any::<u8>()];
    let port = prop_oneof![3 => Just(PORT), 1 => Just(22), 1 => any::<u16>()];
    let damage = prop_oneof![
        3 => Just(Vec::new()),
        1 => vec((any::<prop::sample::Index>(), any::<u8>()), 1..=3),
    ];
    let padding = prop_oneof![3 => Just(Vec::new()), 1 => vec(any::<u8>(), 0..=40)];
    (
        tags,
        source(),
        0..=10_usize,
        fragment,
        extensions,
        protocol,
        port,
        (damage, padding, any::<Option<prop::sample::Index>>()),
    )
        .prop_map(
            |(tags, source, option_words, fragment, extensions, protocol, port, more)| {
                let (damage, padding, cut) = more;
                Recipe {
                    tags,
                    source,
                    option_words,
                    fragment,
                    extensions,
                    protocol,
                    port,
                    damage,
                    padding,
                    cut,
                }
            },
        )
}

/// What a frame says, as `etherparse` reads each of its headers.
#[derive(Debug, PartialEq)]
struct Reading {
    addresses: Option<(IpAddr, IpAddr)>,
    target: Target,
}

const fn unread(target: Target) -> Reading {
    Reading { addresses: None, target }
}

const TRUNCATED: Target = Target::Unresolved(Reason::Truncated);

fn read_by_etherparse(frame: &[u8]) -> Reading {
    let Ok((link, mut rest)) = Ethernet2Header::from_slice(frame) else {
        return unread(TRUNCATED);
    };
    let mut kind = link.ether_type.0;
    for _ in 0..VLAN_TAGS_MAX {
        if TAGS.contains(&kind) {
            let Ok((tag, behind)) = SingleVlanHeader::from_slice(rest) else {
                return unread(TRUNCATED);
            };
            (kind, rest) = (tag.ether_type.0, behind);
        }
    }
    match kind {
        IPV4 => read_ipv4(rest),
        IPV6 => read_ipv6(rest),
        kind if TAGS.contains(&kind) => unread(Target::Unresolved(Reason::TooManyTags)),
        _ => unread(Target::NotIp),
    }
}

fn read_ipv4(packet: &[u8]) -> Reading {
    // etherparse gives no address of a header that is not whole; these are read from a repaired
    // copy of its first twenty bytes.
    let Some(fixed) = packet.first_chunk::<20>() else { return unread(TRUNCATED) };
    let mut repaired = *fixed;
    repaired[0] = 0x45;
    let fields = Ipv4HeaderSlice::from_slice(&repaired).expect("a header without options");
    let target = match Ipv4HeaderSlice::from_slice(packet) {
        Err(etherparse::err::ipv4::HeaderSliceError::Content(_)) => {
            Target::Unresolved(Reason::BadHeader)
        }
        _ if fields.fragments_offset().value() != 0 => Target::LaterFragment,
        // An error is a header that the frame cuts off; its length field speaks all the same.
        whole_or_cut => {
            let total_len = usize::from(fields.total_len());
            let header_len = usize::from(packet[0] & 0x0f) * 4;
            assert!(whole_or_cut.is_ok() || header_len > packet.len());
            let payload = own_bytes(packet, total_len, 0).get(header_len..).unwrap_or_default();
            let left = claimed(total_len).checked_sub(header_len);
            read_chain(fields.protocol().0, payload, left, false)
        }
    };
    let addresses = Some((fields.source_addr().into(), fields.destination_addr().into()));
    Reading { addresses, target }
}

fn read_ipv6(packet: &[u8]) -> Reading {
    let Some(fixed) = packet.first_chunk::<40>() else { return unread(TRUNCATED) };
    let mut repaired = *fixed;
    repaired[0] = 0x60;
    let fields = Ipv6HeaderSlice::from_slice(&repaired).expect("a whole header");
    let target = match Ipv6HeaderSlice::from_slice(packet) {
        Err(_) => Target::Unresolved(Reason::BadHeader),
        Ok(header) => {
            let payload_len = usize::from(header.payload_length());
            let packet = own_bytes(packet, payload_len, 40);
            read_chain(header.next_header().0, &packet[40..], Some(claimed(payload_len)), true)
        }
    };
    let addresses = Some((fields.source_addr().into(), fields.destination_addr().into()));
    Reading { addresses, target }
}

/// The packet without the padding behind it. A length of zero is that of a jumbogram.
fn own_bytes(packet: &[u8], len: usize, header_len: usize) -> &[u8] {
    if len == 0 { packet } else { &packet[..packet.len().min(header_len + len)] }
}

/// The bytes that a length field claims.
fn claimed(len: usize) -> usize {
    if len == 0 { usize::MAX } else { len }
}

/// `left`: how much of the packet there is by its length field; `None` once a header has led
/// out of it.
fn read_chain(mut next: u8, mut rest: &[u8], mut left: Option<usize>, is_v6: bool) -> Target {
    for walked in 0.. {
        let is_extension = next == AUTHENTICATION || is_v6 && EXTENSIONS.contains(&next);
        if !is_extension {
            break;
        }
        if walked == EXTENSION_HEADERS_MAX && left.is_some() {
            return Target::Unresolved(Reason::TooManyHeaders);
        }
        if rest.len() < 8 || left.is_none() {
            return TRUNCATED;
        }
        let len = match next {
            FRAGMENT => {
                let header = Ipv6FragmentHeaderSlice::from_slice(rest).expect("eight bytes");
                if header.fragment_offset().value() != 0 {
                    return Target::LaterFragment;
                }
                8
            }
            // etherparse refuses an AH of length 0, which has no room for its own fields; the
            // guard walks the eight bytes that the length says.
            AUTHENTICATION if rest[1] == 0 => 8,
            AUTHENTICATION => match IpAuthHeaderSlice::from_slice(rest) {
                Ok(header) => header.slice().len(),
                Err(_) => cut_extension(rest, (usize::from(rest[1]) + 2) * 4),
            },
            _ => match Ipv6RawExtHeaderSlice::from_slice(rest) {
                Ok(header) => header.slice().len(),
                Err(_) => cut_extension(rest, (usize::from(rest[1]) + 1) * 8),
            },
        };
        next = rest[0];
        rest = rest.get(len..).unwrap_or_default();
        left = left.and_then(|left| left.checked_sub(len));
    }
    if left.is_none() {
        return TRUNCATED;
    }
    match (next, rest) {
        (TCP | UDP, [_, _, high, low, ..]) => Target::Port(EndpointKey {
            port: u16::from_be_bytes([*high, *low]),
            protocol: next,
            reserved: 0,
        }),
        (TCP | UDP, _) => TRUNCATED,
        _ => Target::OtherProtocol,
    }
}

/// A header that is longer than what is left of the packet.
fn cut_extension(rest: &[u8], len: usize) -> usize {
    assert!(len > rest.len(), "etherparse refuses {rest:02x?}");
    len
}

fn read_by_guard(frame: &[u8]) -> Reading {
    let headers = parse(frame);
    let addresses = match headers.addresses {
        Addresses::Unread => None,
        Addresses::V4(pair) => Some((pair.source.into(), pair.destination.into())),
        Addresses::V6(pair) => Some((pair.source.into(), pair.destination.into())),
    };
    Reading { addresses, target: headers.target }
}

proptest! {
    #![proptest_config(Config {
        cases: 20_000,
        failure_persistence: None,
        ..Config::default()
    })]

    #[test]
    fn each_header_is_read_as_etherparse_reads_it(recipe in recipe()) {
        let frame = recipe.frame();
        prop_assert_eq!(read_by_guard(&frame), read_by_etherparse(&frame), "{:02x?}", frame);
    }

    #[test]
    fn bytes_without_any_form_are_read_alike(frame in vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(read_by_guard(&frame), read_by_etherparse(&frame));
    }

    /// etherparse's own walk over the whole packet finds no port that the guard does not find.
    #[test]
    fn no_port_is_missed(recipe in recipe()) {
        let frame = recipe.frame();
        let Ok(packet) = LaxSlicedPacket::from_ethernet(&frame) else { return Ok(()) };
        // Linux opens MACsec in a device of its own, and what it holds is judged there.
        let is_macsec = |extension: &LaxLinkExtSlice<'_>| matches!(extension, LaxLinkExtSlice::Macsec(_));
        if packet.link_exts.iter().any(is_macsec) {
            return Ok(());
        }
        let (protocol, port) = match packet.transport {
            Some(TransportSlice::Tcp(tcp)) => (TCP, tcp.destination_port()),
            Some(TransportSlice::Udp(udp)) => (UDP, udp.destination_port()),
            _ => return Ok(()),
        };
        let source: Option<IpAddr> = match packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => Some(ip.header().source_addr().into()),
            Some(LaxNetSlice::Ipv6(ip)) => Some(ip.header().source_addr().into()),
            _ => None,
        };
        let found = read_by_guard(&frame);
        let source_found = found.addresses.map(|(source, _)| source);
        if source_found.map(|found| found.is_ipv4()) != source.map(|source| source.is_ipv4()) {
            // etherparse goes by the version field alone. Linux drops what contradicts its
            // EtherType, and the guard does not resolve it.
            prop_assert_eq!(found.target, Target::Unresolved(Reason::BadHeader));
            return Ok(());
        }
        prop_assert_eq!(source_found, source);
        let key = EndpointKey { port, protocol, reserved: 0 };
        // etherparse reads beyond the end of a packet whose length field is too small.
        let is_unresolved = matches!(
            found.target,
            Target::Unresolved(Reason::TooManyHeaders | Reason::Truncated)
        );
        prop_assert!(found.target == Target::Port(key) || is_unresolved, "{:?}", found);
    }
}

/// An entry of the model: list (index into [`words`]), network, prefix length and rule.
#[derive(Clone, Debug)]
struct Entry {
    list: usize,
    network: IpAddr,
    len: u32,
    rule: Rule,
}

impl Entry {
    fn covers(&self, list: usize, source: IpAddr) -> bool {
        let (network, source, bits) = match (self.network, source) {
            (IpAddr::V4(network), IpAddr::V4(source)) => {
                (u128::from(network.to_bits()), u128::from(source.to_bits()), 32)
            }
            (IpAddr::V6(network), IpAddr::V6(source)) => (network.to_bits(), source.to_bits(), 128),
            _ => return false,
        };
        self.list == list && (network ^ source).checked_shr(bits - self.len).unwrap_or(0) == 0
    }

    const fn is_host(&self) -> bool {
        matches!((self.network, self.len), (IpAddr::V4(_), 32) | (IpAddr::V6(_), 128))
    }
}

/// The list of TCP, the list of UDP, and one that is not in force, each under words that no round
/// before this one has used.
const fn words(round: u32) -> [ListWord; 3] {
    [
        ListWord::new(0, 2 * round + 1),
        ListWord::new(5, 2 * round + 1),
        ListWord::new(0, 2 * round + 2),
    ]
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let deadline = prop::sample::select(&[0, 0, 0, 1, u64::MAX][..]);
    let action = prop::sample::select(&[ACTION_ALLOW, ACTION_ALLOW, ACTION_DENY, 7][..]);
    let entry = (0..3_usize, source(), 0..=32_u32, any::<bool>(), deadline, action).prop_map(
        |(list, network, shorter, is_host, deadline_ns, action)| {
            let bits = if network.is_ipv4() { 32 } else { 128 };
            let len = if is_host { bits } else { bits - shorter };
            Entry { list, network, len, rule: Rule { deadline_ns, counter: 1, action } }
        },
    );
    vec(entry, 0..ENTRIES_MAX)
}

fn model_list(entries: &[Entry], list: usize, source: IpAddr) -> Reason {
    let is_expired = |entry: &Entry| entry.rule.deadline_ns == 1;
    // Of two entries with one key the later one was written over the earlier one.
    let mut last: Vec<&Entry> = Vec::new();
    for entry in entries.iter().rev().filter(|entry| entry.covers(list, source)) {
        if !last.iter().any(|other| other.len == entry.len) {
            last.push(entry);
        }
    }
    let found = last
        .into_iter()
        .filter(|entry| !entry.is_host() || !is_expired(entry))
        .max_by_key(|entry| entry.len);
    match found {
        None => Reason::NotListed,
        Some(entry) if is_expired(entry) => Reason::Deadline,
        Some(entry) if entry.rule.action == ACTION_ALLOW => Reason::Allowed,
        Some(_) => Reason::DenyEntry,
    }
}

/// The verdict over a packet to a host that does not forward, so that all is for itself.
fn model(entries: &[Entry], frame: &[u8]) -> Reason {
    let reading = read_by_etherparse(frame);
    let source = reading.addresses.map(|(source, _)| source);
    let is_forged = |source: IpAddr| match source {
        IpAddr::V4(_) => false,
        IpAddr::V6(source) => source.to_ipv4_mapped().is_some(),
    };
    match (reading.target, source) {
        (Target::NotIp, _) => Reason::NotIp,
        (Target::OtherProtocol, _) => Reason::NotGuarded,
        (Target::LaterFragment, _) => Reason::LaterFragment,
        (Target::Port(key), _) if key.port != PORT => Reason::NotGuarded,
        (Target::Unresolved(reason), None) => reason,
        (_, Some(source)) if is_forged(source) => Reason::ForgedSource,
        (Target::Port(key), Some(source)) => {
            model_list(entries, usize::from(key.protocol == UDP), source)
        }
        (Target::Unresolved(reason), Some(source)) => {
            let allows = |list| model_list(entries, list, source) == Reason::Allowed;
            if [0, 1].into_iter().all(allows) { Reason::Allowed } else { reason }
        }
        (Target::Port(_), None) => unreachable!("a port stands behind addresses"),
    }
}

/// Maps are filled once for as many frames.
const FRAMES: usize = 64;

/// How often that is done. All of it is more than 100,000 frames.
const CASES: u32 = 128;
const CASES_ALL: u32 = 1_600;
/// More entries than a case has.
const ENTRIES_MAX: usize = 24;

fn compare(
    guard: &mut GuardProgram,
    words: [ListWord; 3],
    entries: &[Entry],
    recipes: &[Recipe],
) -> Result<()> {
    for entry in entries {
        let list = words[entry.list];
        if entry.is_host() {
            guard.host(list, entry.network, entry.rule)?;
        } else {
            guard.prefix(list, entry.network, entry.len, entry.rule)?;
        }
    }
    guard.list(words[0])?;
    guard.list(words[1])?;
    for frame in recipes.iter().map(Recipe::frame).filter(|frame| frame.len() >= 14) {
        let expected = model(entries, &frame);
        for hook in Hook::ALL.into_iter().filter(|hook| frame.len() >= shortest(*hook, &frame)) {
            let outcome = guard.run(hook, &frame)?;
            ensure!(
                outcome.reason == expected && outcome.passes != expected.drops(),
                "{hook:?}: {outcome:?}, not {expected:?}: {frame:02x?}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_program_does_what_the_model_does() -> Result<()> {
    require_root!();
    Namespace::new("model")?.run(|| {
        // What earlier rounds wrote stays under words that no list has any more.
        let mut guard = GuardProgram::load_for(ENTRIES_MAX as u32 * CASES_ALL)?;
        for (word, protocol) in words(0).into_iter().zip([TCP, UDP]) {
            guard.endpoint(protocol, PORT, word.list())?;
        }
        let (guard, round) = (RefCell::new(guard), Cell::new(0));
        // Failures are found again by the seed that proptest writes down.
        let mut runner = TestRunner::new(Config {
            cases: if skip::all() { CASES_ALL } else { CASES },
            max_shrink_iters: 64,
            source_file: Some(file!()),
            ..Config::default()
        });
        let outcome = runner.run(&(entries(), vec(recipe(), FRAMES)), |(entries, recipes)| {
            let words = words(round.replace(round.get() + 1));
            compare(&mut guard.borrow_mut(), words, &entries, &recipes)
                .map_err(|error| TestCaseError::fail(format!("{error:#}")))
        });
        outcome.map_err(|error| anyhow::anyhow!("{error}"))
    })
}

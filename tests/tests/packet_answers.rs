//! What refused packets are answered: each reply read by an independent parser, its checksums
//! computed anew, and all that must never be answered.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use session_common::answer::Answer;
use session_common::guard::{
    ACTION_ALLOW, ACTION_DENY, ACTION_DROP, ACTION_ICMP, ACTION_RESET, ListWord, Reason, Rule,
    settings,
};
use session_tests::guard_program::{Answered, GuardProgram, Hook};
use session_tests::packet::{
    IPV4, IPV6, MORE_FRAGMENTS, TCP, UDP, ethernet, extension, ipv4, ipv6, transport,
};
use session_tests::{flood, require_root};

const PORT: u16 = 11_211;
const LIST: ListWord = ListWord::new(0, 1);
const HOST4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const STRANGER4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 66);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x66);

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A guard of the port on both hosts, that answers in the style of these settings.
fn guard(bits: u32) -> Result<GuardProgram> {
    let mut guard = GuardProgram::load()?;
    guard.settings(bits)?;
    for protocol in [TCP, UDP] {
        guard.endpoint(protocol, PORT, 0)?;
    }
    guard.own(HOST4)?;
    guard.own(HOST6)?;
    guard.list(LIST)?;
    Ok(guard)
}

/// A TCP segment with these flags, options of a SYN and a payload; its checksum is left out, as
/// the guard must not ask for it.
fn segment(flags: u8, options: usize, payload: &[u8]) -> Vec<u8> {
    let mut segment = transport(TCP, PORT);
    segment[4..8].copy_from_slice(&0xffff_fff0_u32.to_be_bytes());
    segment[8..12].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    segment[12] = u8::try_from((20 + options) / 4).expect("at most 40 bytes of options") << 4;
    segment[13] = flags;
    segment.extend(vec![1; options]);
    segment.extend(payload);
    segment
}

fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut datagram = transport(UDP, PORT)[..8].to_vec();
    let len = u16::try_from(8 + payload.len()).expect("a short payload");
    datagram[4..6].copy_from_slice(&len.to_be_bytes());
    datagram.extend(payload);
    datagram
}

fn frame(source: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    tagged(&[], source, protocol, payload)
}

fn tagged(tags: &[(u16, u16)], source: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match source {
        IpAddr::V4(source) => ethernet(tags, IPV4, &ipv4(source, HOST4, protocol, &[], 0, payload)),
        IpAddr::V6(source) => ethernet(tags, IPV6, &ipv6(source, HOST6, protocol, payload)),
    }
}

/// What a reply says, once everything that must hold of any reply has been checked.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// Sequence number, acknowledgement number, whether ACK is set.
    Reset(u32, u32, bool),
    /// Type, code, what it quotes.
    Icmp(u8, u8, Vec<u8>),
}

/// Reads a reply: link-layer and IP addresses the other way round, right lengths, checksums that
/// another implementation computes, not longer than what it answers.
fn read(request: &[u8], reply: &[u8]) -> Result<Said> {
    ensure!(reply.len() <= request.len(), "{} bytes for {}", reply.len(), request.len());
    ensure!(reply[..6] == request[6..12] && reply[6..12] == request[..6], "link-layer addresses");
    let link_len = if request[12..14] == [0x81, 0] { 18 } else { 14 };
    ensure!(reply[12..link_len] == request[12..link_len], "ethertype and tag");
    let packet = SlicedPacket::from_ethernet(reply)?;
    let (source, destination, payload) = match packet.net.context("no IP header")? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            ensure!(header.header_checksum() == header.to_header().calc_header_checksum());
            ensure!(usize::from(header.total_len()) + link_len == reply.len(), "total length");
            ensure!(request[link_len + 12..][..4] == header.destination());
            ensure!(request[link_len + 16..][..4] == header.source());
            (
                IpAddr::from(header.source()),
                IpAddr::from(header.destination()),
                ip.payload().payload.to_vec(),
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            ensure!(usize::from(header.payload_length()) + 40 + link_len == reply.len());
            ensure!(request[link_len + 8..][..16] == header.destination());
            ensure!(request[link_len + 24..][..16] == header.source());
            (
                IpAddr::from(header.source()),
                IpAddr::from(header.destination()),
                ip.payload().payload.to_vec(),
            )
        }
        other => anyhow::bail!("{other:?}"),
    };
    match packet.transport.context("no transport header")? {
        TransportSlice::Tcp(tcp) => {
            let right = match (source, destination) {
                (IpAddr::V4(a), IpAddr::V4(b)) => tcp.calc_checksum_ipv4(a.octets(), b.octets())?,
                (IpAddr::V6(a), IpAddr::V6(b)) => tcp.calc_checksum_ipv6(a.octets(), b.octets())?,
                _ => unreachable!("both are of one family"),
            };
            ensure!(tcp.checksum() == right, "TCP checksum {:x} not {right:x}", tcp.checksum());
            ensure!(tcp.rst() && !tcp.syn() && !tcp.fin() && tcp.window_size() == 0);
            ensure!(tcp.source_port() == PORT && tcp.destination_port() == 40_000);
            Ok(Said::Reset(tcp.sequence_number(), tcp.acknowledgment_number(), tcp.ack()))
        }
        TransportSlice::Icmpv4(icmp) => {
            let mut zeroed = payload;
            zeroed[2..4].fill(0);
            ensure!(session_tests::packet::checksum(&zeroed) == icmp.checksum(), "ICMP checksum");
            ensure!(matches!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(_)));
            Ok(Said::Icmp(icmp.type_u8(), icmp.code_u8(), icmp.payload().to_vec()))
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(a), IpAddr::V6(b)) = (source, destination) else {
                anyhow::bail!("ICMPv6 over IPv4")
            };
            ensure!(icmp.is_checksum_valid(a.octets(), b.octets()), "ICMPv6 checksum");
            ensure!(matches!(icmp.icmp_type(), Icmpv6Type::DestinationUnreachable(_)));
            Ok(Said::Icmp(icmp.type_u8(), icmp.code_u8(), icmp.payload().to_vec()))
        }
        other => anyhow::bail!("{other:?}"),
    }
}

/// What is said at this hook, with full buckets.
fn said(guard: &mut GuardProgram, hook: Hook, request: &[u8]) -> Result<Option<Said>> {
    guard.refill()?;
    let Answered { reply, counted } = guard.answer(hook, request)?;
    let said = reply.map(|reply| read(request, &reply)).transpose()?;
    let expected = match &said {
        Some(Said::Reset(..)) => Some(Answer::Reset),
        Some(Said::Icmp(..)) => Some(Answer::Icmp),
        None => Some(Answer::Unanswerable),
    };
    ensure!(counted == expected, "{said:?} is counted as {counted:?}");
    Ok(said)
}

const STRANGERS: [IpAddr; 2] = [IpAddr::V4(STRANGER4), IpAddr::V6(STRANGER6)];

#[test]
fn resets_are_what_tcp_asks_for() -> Result<()> {
    require_root!();
    let mut guard = guard(settings::REFUSE_RESET)?;
    // A SYN counts for one, and so do FIN and each byte of payload, round the end of the numbers.
    let table = [
        (segment(SYN, 0, &[]), Said::Reset(0, 0xffff_fff1, true)),
        (segment(SYN, 20, &[]), Said::Reset(0, 0xffff_fff1, true)),
        (segment(SYN, 0, &[7; 100]), Said::Reset(0, 0x55, true)),
        (segment(0x01, 12, &[7; 16]), Said::Reset(0, 1, true)),
        (segment(ACK, 12, &[]), Said::Reset(0x1234_5678, 0, false)),
        (segment(ACK | 8, 12, b"get foo\r\n"), Said::Reset(0x1234_5678, 0, false)),
    ];
    for hook in Hook::ALL {
        for source in STRANGERS {
            for (segment, expected) in &table {
                for tags in [&[][..], &[(0x8100, 0)], &[(0x8100, 5)]] {
                    // At tcx the stack has taken the tag off; a test run has not.
                    if hook == Hook::Tcx && !tags.is_empty() {
                        continue;
                    }
                    let frame = tagged(tags, source, TCP, segment);
                    let said = said(&mut guard, hook, &frame)
                        .with_context(|| format!("{hook:?} {source} {tags:?}"))?;
                    ensure!(said.as_ref() == Some(expected), "{hook:?} {source}: {said:?}");
                }
            }
            let udp = frame(source, UDP, &datagram(&[7; 100]));
            ensure!(said(&mut guard, hook, &udp)?.is_none(), "{hook:?}: UDP has no reset");
        }
    }
    Ok(())
}

#[test]
fn icmp_is_for_what_began_nothing_and_is_never_longer() -> Result<()> {
    require_root!();
    let mut guard = guard(settings::REFUSE_ICMP)?;
    for hook in Hook::ALL {
        for source in STRANGERS {
            let (kind, code, header_len) = if source.is_ipv4() { (3, 10, 20) } else { (1, 1, 40) };
            // The shortest that an answer is not longer than: 8 bytes of ICMP and 8 of the packet
            // come to its IP headers.
            let fits = header_len + 16;
            for payload_len in [fits - 8, fits] {
                let frame = frame(source, UDP, &datagram(&vec![7; payload_len - 8]));
                let said = said(&mut guard, hook, &frame)?;
                let quoted = frame[14..][..header_len + 8].to_vec();
                let expected = Some(Said::Icmp(kind, code, quoted)).filter(|_| payload_len == fits);
                ensure!(said == expected, "{hook:?} {source} {payload_len}: {said:?}");
            }
            let long = frame(source, TCP, &segment(SYN, 40, &[]));
            let reply = said(&mut guard, hook, &long)?;
            let is_icmp = matches!(reply, Some(Said::Icmp(..)));
            ensure!(is_icmp, "{hook:?} {source}: a long SYN: {reply:?}");
            let short = frame(source, TCP, &segment(SYN, 0, &[]));
            let reply = said(&mut guard, hook, &short)?;
            ensure!(reply == Some(Said::Reset(0, 0xffff_fff1, true)), "a short SYN: {reply:?}");
            let established = frame(source, TCP, &segment(ACK, 12, &[7; 100]));
            let reply = said(&mut guard, hook, &established)?;
            ensure!(reply == Some(Said::Reset(0x1234_5678, 0, false)), "with ACK: {reply:?}");
        }
    }
    Ok(())
}

#[test]
fn the_entry_that_decides_names_the_style() -> Result<()> {
    require_root!();
    let rule = |action| Rule { action, ..Rule::default() };
    let request =
        |last: u8| frame(Ipv4Addr::new(198, 18, 7, last).into(), TCP, &segment(SYN, 40, &[]));
    for (bits, default) in [
        (0, None),
        (settings::REFUSE_RESET, Some(Answer::Reset)),
        (settings::REFUSE_ICMP, Some(Answer::Icmp)),
    ] {
        let mut guard = guard(bits)?;
        guard.prefix(LIST, Ipv4Addr::new(198, 18, 7, 0), 24, rule(ACTION_RESET))?;
        for (last, action) in
            [(1, ACTION_ALLOW), (2, ACTION_DENY), (3, ACTION_DROP), (4, ACTION_ICMP), (5, 9)]
        {
            guard.host(LIST, Ipv4Addr::new(198, 18, 7, last), rule(action))?;
        }
        let table = [
            (1, None),
            (2, default),
            (3, None),
            (4, Some(Answer::Icmp)),
            (5, default),
            (6, Some(Answer::Reset)),
        ];
        for (last, expected) in table {
            let Answered { reply, counted } = guard.answer(Hook::Native, &request(last))?;
            ensure!(counted == expected, "{bits} {last}: {counted:?}");
            ensure!(reply.is_some() == expected.is_some(), "{bits} {last}");
        }
    }
    Ok(())
}

/// A frame with some bytes changed.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn what_is_never_answered() -> Result<()> {
    require_root!();
    let syn = segment(SYN, 40, &[]);
    let v4 = |source: [u8; 4], to: [u8; 4]| {
        ethernet(&[], IPV4, &ipv4(source.into(), to.into(), TCP, &[], 0, &syn))
    };
    let v6 = |source: &str, to: Ipv6Addr| {
        ethernet(&[], IPV6, &ipv6(source.parse().expect("an address"), to, TCP, &syn))
    };
    let plain4 = frame(STRANGER4.into(), TCP, &syn);
    let stranger = STRANGER4.octets();
    let first_fragment = ipv4(STRANGER4, HOST4, TCP, &[], MORE_FRAGMENTS, &syn);
    let behind_options = extension(TCP, 0, &syn);
    let frames = [
        ("to a link-layer group", with(plain4.clone(), 0, &[0x33])),
        ("to everyone on the link", with(plain4.clone(), 0, &[0xff; 6])),
        ("from a link-layer group", with(plain4.clone(), 6, &[0x03])),
        ("a reset", frame(STRANGER4.into(), TCP, &segment(RST, 40, &[]))),
        ("a reset with ACK", frame(STRANGER6.into(), TCP, &segment(RST | ACK, 40, &[]))),
        ("from loopback", v4([127, 0, 0, 1], HOST4.octets())),
        ("from this network", v4([0, 0, 0, 7], HOST4.octets())),
        ("from a group", v4([224, 0, 0, 1], HOST4.octets())),
        ("from everyone", v4([255; 4], HOST4.octets())),
        ("from the host itself", v4(HOST4.octets(), HOST4.octets())),
        ("to a group", v4(stranger, [239, 18, 0, 1])),
        ("to everyone", v4(stranger, [255; 4])),
        ("to an address that is not the host's", v4(stranger, [198, 18, 0, 255])),
        ("IPv6 from loopback", v6("::1", HOST6)),
        ("IPv6 from nobody", v6("::", HOST6)),
        ("IPv6 from a group", v6("ff02::1", HOST6)),
        ("IPv6 mapped", v6("::ffff:198.18.0.66", HOST6)),
        ("IPv6 from the host itself", v6("2001:db8::1", HOST6)),
        ("IPv6 to all nodes", v6("2001:db8::66", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1))),
        ("the first of several fragments", ethernet(&[], IPV4, &first_fragment)),
        ("behind options", ethernet(&[], IPV6, &ipv6(STRANGER6, HOST6, 60, &behind_options))),
        ("two tags", tagged(&[(0x88a8, 0), (0x8100, 0)], STRANGER4.into(), TCP, &syn)),
        ("cut off in the TCP header", {
            let packet = ipv4(STRANGER4, HOST4, TCP, &[], 0, &syn[..12]);
            ethernet(&[], IPV4, &packet)
        }),
        ("cut off before the port", {
            let packet = ipv4(STRANGER4, HOST4, TCP, &[], 0, &syn[..2]);
            ethernet(&[], IPV4, &packet)
        }),
    ];
    for bits in [settings::REFUSE_RESET, settings::REFUSE_ICMP] {
        let mut guard = guard(bits)?;
        let control = guard.answer(Hook::Native, &plain4)?;
        ensure!(control.reply.is_some(), "what is answered: {control:?}");
        for hook in Hook::ALL {
            for (name, frame) in &frames {
                let outcome = said(&mut guard, hook, frame).with_context(|| name.to_string())?;
                ensure!(outcome.is_none(), "{hook:?}: {name}: {outcome:?}");
                ensure!(!guard.run(hook, frame)?.passes, "{hook:?}: {name} passes");
            }
        }
    }
    Ok(())
}

/// Later fragments and what is not refused are no refusals, so that nothing is counted either;
/// and in audit mode nothing is answered.
#[test]
fn what_passes_is_not_answered() -> Result<()> {
    require_root!();
    let syn = segment(SYN, 40, &[]);
    let mut guard = guard(settings::REFUSE_RESET)?;
    let later = ethernet(&[], IPV4, &ipv4(STRANGER4, HOST4, TCP, &[], 5, &syn));
    let mut other = frame(STRANGER4.into(), TCP, &syn);
    other[36..38].copy_from_slice(&80_u16.to_be_bytes());
    let refused = frame(STRANGER4.into(), TCP, &syn);
    let nothing = Answered { reply: None, counted: None };
    for hook in Hook::ALL {
        ensure!(guard.answer(hook, &later)? == nothing);
        ensure!(guard.answer(hook, &other)? == nothing);
        guard.settings(settings::REFUSE_RESET | settings::AUDIT)?;
        ensure!(guard.answer(hook, &refused)? == nothing);
        ensure!(guard.run(hook, &refused)?.passes);
        guard.settings(settings::REFUSE_RESET)?;
    }
    Ok(())
}

/// The native program without frags reads 512 bytes: of a longer packet it does not know how much
/// there is to cut off.
#[test]
fn long_packets_are_answered_where_their_length_is_known() -> Result<()> {
    require_root!();
    let mut guard = guard(settings::REFUSE_RESET)?;
    let long = frame(STRANGER4.into(), TCP, &segment(ACK, 12, &[7; 1400]));
    for hook in [Hook::NativeFrags, Hook::Tcx] {
        let reply = said(&mut guard, hook, &long)?;
        ensure!(reply == Some(Said::Reset(0x1234_5678, 0, false)), "{hook:?}: {reply:?}");
    }
    ensure!(said(&mut guard, Hook::Native, &long)?.is_none());
    Ok(())
}

#[test]
fn a_source_and_a_cpu_have_their_tokens() -> Result<()> {
    require_root!();
    let mut guard = guard(settings::REFUSE_RESET)?;
    flood::stay_on_this_cpu()?;
    let answered = |guard: &mut GuardProgram, source: Ipv4Addr, count: u32| {
        let frame = frame(source.into(), TCP, &segment(SYN, 20, &[]));
        let mut counts = [0_u32; 5];
        for _ in 0..count {
            let counted = guard.answer(Hook::Native, &frame)?.counted;
            counts[counted.context("it is counted")? as usize] += 1;
        }
        anyhow::Ok(counts)
    };
    // 100 at once, and one more each hundredth of a second.
    let started = std::time::Instant::now();
    let counts = answered(&mut guard, STRANGER4, 150)?;
    let more = u32::try_from(started.elapsed().as_millis() / 10)? + 1;
    let resets = counts[Answer::Reset as usize];
    ensure!((100..=100 + more).contains(&resets), "{counts:?}, {more}");
    ensure!(resets + counts[Answer::SourceLimit as usize] == 150, "{counts:?}");
    // Another source is answered all the same; twenty of them use up the CPU's tokens.
    let mut all = [0; 5];
    for last in 0..20 {
        let counts = answered(&mut guard, Ipv4Addr::new(198, 18, 9, last), 100)?;
        all.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
    }
    let more = u32::try_from(started.elapsed().as_millis())? + 1;
    let resets = all[Answer::Reset as usize];
    ensure!((850..=1000 + more).contains(&resets), "{all:?}, {more}");
    ensure!(all[Answer::CpuLimit as usize] > 0 || more > 900, "{all:?}, {more}");
    Ok(())
}

#[test]
fn dropped_packets_are_sampled_within_a_budget() -> Result<()> {
    require_root!();
    let mut guard = guard(settings::REFUSE_RESET)?;
    flood::stay_on_this_cpu()?;
    let syn = frame(STRANGER6.into(), TCP, &segment(SYN, 20, &[]));
    guard.answer(Hook::Native, &syn)?;
    guard.run(Hook::NativeFrags, &frame(STRANGER4.into(), UDP, &datagram(&[0; 4])))?;
    let samples = guard.samples()?;
    ensure!(samples.len() == 2, "{samples:?}");
    let halves = |address: Ipv6Addr| {
        let bytes = address.octets();
        let half = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"));
        [half(0), half(8)]
    };
    let [first, second] = [samples[0], samples[1]];
    ensure!(
        first.source == halves(STRANGER6) && second.source == halves(STRANGER4.to_ipv6_mapped())
    );
    ensure!((first.port, first.protocol, first.weight) == (PORT, TCP, 1), "{first:?}");
    ensure!(first.reason == Reason::NotListed as u8);
    ensure!(
        first.answer == 1 + Answer::Reset as u8 && second.answer == 1 + Answer::Unanswerable as u8
    );
    ensure!((second.protocol, second.number) == (UDP, 2), "{second:?}");
    // A flood is sampled at first, then by its budget, and what is not sampled is counted in
    // the weight of the next.
    let started = std::time::Instant::now();
    for _ in 0..5_000 {
        guard.run(Hook::Native, &syn)?;
    }
    let samples = guard.samples()?;
    let last = samples.last().context("there are samples")?;
    let allowed = 2 + 33 + u64::try_from(started.elapsed().as_millis())? / 10 + 1;
    ensure!((20..=allowed).contains(&last.number), "{last:?}, {allowed}");
    ensure!(samples.iter().any(|sample| sample.weight > 1) || last.number > 4_000, "{last:?}");
    Ok(())
}

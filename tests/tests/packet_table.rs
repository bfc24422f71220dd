//! Each form that a packet to a guarded port can take, on the real program, at every hook.
//!
//! The forms are those by which filters are known to be passed by. A form is run from an allowed
//! source and from a stranger, as TCP and as UDP; the verdict, its counter and the counted bytes
//! are all checked.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use session_common::guard::{ACTION_ALLOW, ListWord, Reason, Rule};
use session_tests::guard_program::{GuardProgram, Hook, Outcome, shortest};
use session_tests::netns::Namespace;
use session_tests::packet::{
    AUTHENTICATION, FRAGMENT, IPV4, IPV6, MORE_FRAGMENTS, TCP, UDP, authentication, ethernet,
    extension, fragment, ipv4, ipv6, transport,
};
use session_tests::{require_root, skip};

const PORT: u16 = 11_211;
const LIST: ListWord = ListWord::new(0, 1);

const HOST4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const ALLOWED4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 11);
const STRANGER4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 66);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const ALLOWED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x66);

const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const OPTIONS: u8 = 60;

/// Builds a frame of the form from a source, carrying a protocol.
type Build<Address> = fn(Address, u8) -> Vec<u8>;

/// A form, and the verdict over a stranger's and over an allowed source's.
struct Form<Address> {
    name: &'static str,
    stranger: Reason,
    allowed: Reason,
    build: Build<Address>,
}

/// A form that leads to the port.
const fn plain<Address>(name: &'static str, build: Build<Address>) -> Form<Address> {
    Form { name, stranger: Reason::NotListed, allowed: Reason::Allowed, build }
}

/// A form whose port cannot be found, though its source can.
const fn unresolved<Address>(
    name: &'static str,
    stranger: Reason,
    build: Build<Address>,
) -> Form<Address> {
    Form { name, stranger, allowed: Reason::Allowed, build }
}

/// A form that has the same verdict whoever sent it.
const fn same<Address>(
    name: &'static str,
    verdict: Reason,
    build: Build<Address>,
) -> Form<Address> {
    Form { name, stranger: verdict, allowed: verdict, build }
}

fn v4(source: Ipv4Addr, protocol: u8, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(source, HOST4, protocol, options, fragment, payload))
}

fn tagged4(tags: &[(u16, u16)], source: Ipv4Addr, protocol: u8) -> Vec<u8> {
    let packet = ipv4(source, HOST4, protocol, &[], 0, &transport(protocol, PORT));
    ethernet(tags, IPV4, &packet)
}

fn to4(destination: Ipv4Addr, source: Ipv4Addr, protocol: u8) -> Vec<u8> {
    let packet = ipv4(source, destination, protocol, &[], 0, &transport(protocol, PORT));
    ethernet(&[], IPV4, &packet)
}

/// `count` authentication headers before TCP or UDP.
fn authenticated(count: usize, protocol: u8) -> Vec<u8> {
    let (_, chain) = (0..count).fold((protocol, transport(protocol, PORT)), |(next, rest), _| {
        (AUTHENTICATION, authentication(next, &rest))
    });
    chain
}

/// A frame with one byte changed.
fn with(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    frame
}

fn forms4() -> Vec<Form<Ipv4Addr>> {
    vec![
        plain("plain", |s, p| v4(s, p, &[], 0, &transport(p, PORT))),
        plain("one option word", |s, p| v4(s, p, &[1, 1, 1, 0], 0, &transport(p, PORT))),
        plain("forty bytes of options", |s, p| v4(s, p, &[1; 40], 0, &transport(p, PORT))),
        plain("record route", |s, p| {
            v4(s, p, &[7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0], 0, &transport(p, PORT))
        }),
        plain("options that look like a port", |s, p| {
            v4(s, p, &[0x9c, 0x40, 0, 80], 0, &transport(p, PORT))
        }),
        plain("don't fragment", |s, p| v4(s, p, &[], 0x4000, &transport(p, PORT))),
        plain("reserved flag", |s, p| v4(s, p, &[], 0x8000, &transport(p, PORT))),
        plain("priority tag", |s, p| tagged4(&[(VLAN, 0)], s, p)),
        plain("priority tag with a priority", |s, p| tagged4(&[(VLAN, 0xe000)], s, p)),
        plain("VLAN 5", |s, p| tagged4(&[(VLAN, 5)], s, p)),
        plain("two tags", |s, p| tagged4(&[(VLAN, 0), (VLAN, 0)], s, p)),
        plain("802.1ad", |s, p| tagged4(&[(QINQ, 0), (VLAN, 0)], s, p)),
        plain("802.1ad alone", |s, p| tagged4(&[(QINQ, 0)], s, p)),
        plain("legacy QinQ", |s, p| tagged4(&[(0x9100, 0), (VLAN, 0)], s, p)),
        plain("three tags", |s, p| tagged4(&[(VLAN, 0); 3], s, p)),
        plain("four tags", |s, p| tagged4(&[(VLAN, 0); 4], s, p)),
        same("five tags", Reason::TooManyTags, |s, p| tagged4(&[(VLAN, 0); 5], s, p)),
        plain("first fragment", |s, p| v4(s, p, &[], MORE_FRAGMENTS, &transport(p, PORT))),
        plain("first fragment with options", |s, p| {
            v4(s, p, &[1; 8], MORE_FRAGMENTS, &transport(p, PORT))
        }),
        unresolved("first fragment without a port", Reason::Truncated, |s, p| {
            v4(s, p, &[], MORE_FRAGMENTS, &[0x9c, 0x40])
        }),
        unresolved("no transport header", Reason::Truncated, |s, p| v4(s, p, &[], 0, &[])),
        same("later fragment", Reason::LaterFragment, |s, p| {
            v4(s, p, &[], MORE_FRAGMENTS | 1, &transport(p, PORT))
        }),
        same("last fragment", Reason::LaterFragment, |s, p| {
            v4(s, p, &[], 0x1fff, &transport(p, PORT))
        }),
        plain("AH", |s, p| v4(s, AUTHENTICATION, &[], 0, &authenticated(1, p))),
        plain("AH twice", |s, p| v4(s, AUTHENTICATION, &[], 0, &authenticated(2, p))),
        plain("AH eight times", |s, p| v4(s, AUTHENTICATION, &[], 0, &authenticated(8, p))),
        unresolved("AH nine times", Reason::TooManyHeaders, |s, p| {
            v4(s, AUTHENTICATION, &[], 0, &authenticated(9, p))
        }),
        unresolved("AH in a first fragment of its own", Reason::Truncated, |s, p| {
            v4(s, AUTHENTICATION, &[], MORE_FRAGMENTS, &authenticated(1, p)[..24])
        }),
        unresolved("AH in a first fragment, its port in the padding", Reason::Truncated, |s, p| {
            let chain = authentication(p, &transport(p, 80));
            let (own, padding) = chain.split_at(24);
            [v4(s, AUTHENTICATION, &[], MORE_FRAGMENTS, own), padding.to_vec()].concat()
        }),
        unresolved("port in the padding", Reason::Truncated, |s, p| {
            [v4(s, p, &[], 0, &[]), transport(p, 80)].concat()
        }),
        unresolved("header of 16 bytes", Reason::BadHeader, |s, p| {
            with(v4(s, p, &[], 0, &transport(p, PORT)), 14, 0x44)
        }),
        unresolved("header of no bytes", Reason::BadHeader, |s, p| {
            with(v4(s, p, &[], 0, &transport(p, PORT)), 14, 0x40)
        }),
        unresolved("version 6", Reason::BadHeader, |s, p| {
            with(v4(s, p, &[], 0, &transport(p, PORT)), 14, 0x65)
        }),
        plain("to all hosts", |s, p| to4(Ipv4Addr::new(224, 0, 0, 1), s, p)),
        plain("to a group", |s, p| to4(Ipv4Addr::new(239, 18, 0, 1), s, p)),
        plain("to everyone", |s, p| to4(Ipv4Addr::BROADCAST, s, p)),
        plain("to the network's broadcast", |s, p| to4(Ipv4Addr::new(198, 18, 0, 255), s, p)),
        plain("to an address not told", |s, p| to4(Ipv4Addr::new(198, 18, 0, 2), s, p)),
    ]
}

fn v6(source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV6, &ipv6(source, HOST6, next, payload))
}

fn tagged6(tags: &[(u16, u16)], source: Ipv6Addr, protocol: u8) -> Vec<u8> {
    ethernet(tags, IPV6, &ipv6(source, HOST6, protocol, &transport(protocol, PORT)))
}

fn to6(destination: Ipv6Addr, source: Ipv6Addr, protocol: u8) -> Vec<u8> {
    ethernet(&[], IPV6, &ipv6(source, destination, protocol, &transport(protocol, PORT)))
}

/// Extension headers of these kinds and lengths, first to last, before TCP or UDP.
fn chain6(source: Ipv6Addr, kinds: &[(u8, u8)], protocol: u8) -> Vec<u8> {
    let (first, chain) =
        kinds.iter().rev().fold((protocol, transport(protocol, PORT)), |(next, rest), kind| {
            let header = match *kind {
                (FRAGMENT, _) => fragment(next, 0, false, &rest),
                (AUTHENTICATION, _) => authentication(next, &rest),
                (_, units) => extension(next, units, &rest),
            };
            (kind.0, header)
        });
    v6(source, first, &chain)
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn forms6() -> Vec<Form<Ipv6Addr>> {
    vec![
        plain("plain", |s, p| chain6(s, &[], p)),
        plain("priority tag", |s, p| tagged6(&[(VLAN, 0)], s, p)),
        plain("802.1ad", |s, p| tagged6(&[(QINQ, 0), (VLAN, 0)], s, p)),
        plain("four tags", |s, p| tagged6(&[(VLAN, 0); 4], s, p)),
        same("five tags", Reason::TooManyTags, |s, p| tagged6(&[(VLAN, 0); 5], s, p)),
        plain("hop-by-hop", |s, p| chain6(s, &[(HOP_BY_HOP, 0)], p)),
        plain("long hop-by-hop", |s, p| chain6(s, &[(HOP_BY_HOP, 30)], p)),
        plain("one option header", |s, p| chain6(s, &[(OPTIONS, 0)], p)),
        plain("three option headers", |s, p| chain6(s, &[(OPTIONS, 0); 3], p)),
        plain("seven option headers", |s, p| chain6(s, &[(OPTIONS, 0); 7], p)),
        plain("eight option headers", |s, p| chain6(s, &[(OPTIONS, 0); 8], p)),
        plain("four long option headers", |s, p| chain6(s, &[(OPTIONS, 40); 4], p)),
        unresolved("nine option headers", Reason::TooManyHeaders, |s, p| {
            chain6(s, &[(OPTIONS, 0); 9], p)
        }),
        unresolved("thirty option headers", Reason::TooManyHeaders, |s, p| {
            chain6(s, &[(OPTIONS, 0); 30], p)
        }),
        plain("routing header", |s, p| chain6(s, &[(ROUTING, 2)], p)),
        plain("atomic fragment", |s, p| chain6(s, &[(FRAGMENT, 0)], p)),
        plain("two atomic fragments", |s, p| chain6(s, &[(FRAGMENT, 0); 2], p)),
        plain("first fragment", |s, p| v6(s, FRAGMENT, &fragment(p, 0, true, &transport(p, PORT)))),
        plain("options in a first fragment", |s, p| {
            let options = extension(p, 1, &transport(p, PORT));
            v6(s, FRAGMENT, &fragment(OPTIONS, 0, true, &options))
        }),
        unresolved("first fragment without a port", Reason::Truncated, |s, p| {
            v6(s, FRAGMENT, &fragment(OPTIONS, 0, true, &extension(p, 0, &[])))
        }),
        unresolved("first fragment of two bytes", Reason::Truncated, |s, p| {
            v6(s, FRAGMENT, &fragment(p, 0, true, &[0x9c, 0x40]))
        }),
        unresolved("first fragment whose port stands in the padding", Reason::Truncated, |s, p| {
            let options = extension(OPTIONS, 0, &[]);
            let padding = extension(p, 0, &transport(p, 80));
            [v6(s, FRAGMENT, &fragment(OPTIONS, 0, true, &options)), padding].concat()
        }),
        unresolved("port of TCP or UDP in the padding", Reason::Truncated, |s, p| {
            [v6(s, OPTIONS, &extension(p, 0, &[])), transport(p, 80)].concat()
        }),
        same("later fragment", Reason::LaterFragment, |s, p| {
            v6(s, FRAGMENT, &fragment(p, 1, true, &transport(p, PORT)))
        }),
        same("later fragment behind options", Reason::LaterFragment, |s, p| {
            let rest = fragment(p, 100, false, &transport(p, PORT));
            v6(s, OPTIONS, &extension(FRAGMENT, 0, &rest))
        }),
        plain("AH", |s, p| chain6(s, &[(AUTHENTICATION, 0)], p)),
        plain("mobility", |s, p| chain6(s, &[(135, 0)], p)),
        plain("HIP", |s, p| chain6(s, &[(139, 0)], p)),
        plain("shim6", |s, p| chain6(s, &[(140, 0)], p)),
        plain("one of each", |s, p| {
            let kinds = [(HOP_BY_HOP, 1), (OPTIONS, 0), (ROUTING, 2), (FRAGMENT, 0)];
            chain6(s, &[&kinds[..], &[(AUTHENTICATION, 0), (OPTIONS, 2)]].concat(), p)
        }),
        plain("no payload length", |s, p| {
            with(with(chain6(s, &[(HOP_BY_HOP, 0)], p), 18, 0), 19, 0)
        }),
        unresolved("no transport header", Reason::Truncated, |s, p| v6(s, p, &[])),
        unresolved("option header cut off", Reason::Truncated, |s, _| v6(s, OPTIONS, &[TCP, 0])),
        unresolved("version 4", Reason::BadHeader, |s, p| with(chain6(s, &[], p), 14, 0x45)),
        plain("to all nodes", |s, p| to6(ALL_NODES, s, p)),
        plain("to an address not told", |s, p| {
            to6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2), s, p)
        }),
        same("IPv4-mapped source", Reason::ForgedSource, |_, p| {
            chain6(ALLOWED4.to_ipv6_mapped(), &[], p)
        }),
        same("IPv4-mapped source without a port", Reason::ForgedSource, |_, p| {
            v6(ALLOWED4.to_ipv6_mapped(), p, &[])
        }),
        same("IPv4-mapped source to all nodes", Reason::ForgedSource, |_, p| {
            to6(ALL_NODES, ALLOWED4.to_ipv6_mapped(), p)
        }),
        same("IPv4-compatible source", Reason::NotListed, |_, p| {
            let [a, b, c, d] = ALLOWED4.octets().map(u16::from);
            chain6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, a << 8 | b, c << 8 | d), &[], p)
        }),
        same("link-local source", Reason::NotListed, |_, p| {
            chain6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x11), &[], p)
        }),
    ]
}

/// A host with two addresses that forwards to one network of each family.
fn host() -> Result<Namespace> {
    let host = Namespace::new("packets")?;
    host.ip_batch(
        "link add eth0 type veth peer name far0
         link set eth0 up
         link set far0 up
         addr add 198.18.0.1/24 dev eth0
         addr add 198.18.0.2/24 dev eth0
         addr add 2001:db8::1/64 dev eth0 nodad
         addr add 2001:db8::2/64 dev eth0 nodad
         route add 198.18.1.0/24 via 198.18.0.9
         route add 2001:db8:1::/64 via 2001:db8::9",
    )?;
    host.sysctl("net/ipv4/conf/all/forwarding", "1")?;
    host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    Ok(host)
}

/// The guard over TCP and UDP port 11211, with one allowed host of each family. Of the host's
/// addresses it is told the first only; routing decides about the second.
fn guard() -> Result<GuardProgram> {
    GuardProgram::letting_in(LIST, (ALLOWED4, ALLOWED6), (HOST4, HOST6), PORT)
}

/// Bytes that the headers claim, up to four tags: what the guard counts.
fn claimed(frame: &[u8]) -> u64 {
    let field = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let mut at = 12;
    while [VLAN, QINQ, 0x9100].contains(&field(at)) && at < 12 + 4 * 4 {
        at += 4;
    }
    let network = at + 2;
    let len = match field(at) {
        IPV4 => usize::from(field(network + 2)),
        IPV6 => 40 + usize::from(field(network + 4)),
        _ => 0,
    };
    u64::try_from(network + len).expect("at most 65,609")
}

fn expect(guard: &mut GuardProgram, hook: Hook, frame: &[u8], reason: Reason) -> Result<()> {
    let expected = Outcome { passes: !reason.drops(), reason, bytes: claimed(frame) };
    let outcome = guard.run(hook, frame)?;
    ensure!(outcome == expected, "{hook:?}: {outcome:?}, not {expected:?}: {frame:02x?}");
    Ok(())
}

/// Whether a frame's port lies beyond what the hook reads: XDP without fragments stops at 512
/// bytes, so that it loads on kernels without a helper for more.
fn is_cut(hook: Hook, frame: &[u8]) -> bool {
    hook == Hook::Native && frame.len() - 20 > 512
}

fn each_form<Address: Copy>(
    guard: &mut GuardProgram,
    forms: &[Form<Address>],
    stranger: Address,
    allowed: Address,
) -> Result<usize> {
    let mut runs = 0;
    for form in forms {
        for protocol in [TCP, UDP] {
            for (source, reason) in [(stranger, form.stranger), (allowed, form.allowed)] {
                let frame = (form.build)(source, protocol);
                for hook in Hook::ALL {
                    let reason = match reason {
                        Reason::NotListed if is_cut(hook, &frame) => Reason::Truncated,
                        reason => reason,
                    };
                    expect(guard, hook, &frame, reason)
                        .with_context(|| format!("{} protocol {protocol}", form.name))?;
                    runs += 1;
                }
            }
        }
    }
    Ok(runs)
}

#[test]
fn every_form_meets_its_verdict() -> Result<()> {
    require_root!();
    host()?.run(|| {
        let mut guard = guard()?;
        let runs = each_form(&mut guard, &forms4(), STRANGER4, ALLOWED4)?
            + each_form(&mut guard, &forms6(), STRANGER6, ALLOWED6)?;
        assert_eq!(runs, (forms4().len() + forms6().len()) * 12);
        Ok(())
    })
}

/// A cut frame passes only if its source is allowed, or if it was a form that passes anyway.
#[test]
fn no_cut_opens_the_port() -> Result<()> {
    require_root!();
    host()?.run(|| {
        let mut guard = guard()?;
        for form in forms4() {
            cut(&mut guard, &form, STRANGER4, ALLOWED4)?;
        }
        for form in forms6() {
            cut(&mut guard, &form, STRANGER6, ALLOWED6)?;
        }
        Ok(())
    })
}

fn cut<Address: Copy>(
    guard: &mut GuardProgram,
    form: &Form<Address>,
    stranger: Address,
    allowed: Address,
) -> Result<()> {
    for (protocol, hook) in [TCP, UDP].into_iter().flat_map(|p| Hook::ALL.map(|hook| (p, hook))) {
        let whole = (form.build)(stranger, protocol);
        for len in shortest(hook, &whole)..=whole.len() {
            let outcome = guard.run(hook, &whole[..len])?;
            let may_pass =
                form.stranger == Reason::LaterFragment && outcome.reason == form.stranger;
            ensure!(
                outcome.passes == may_pass,
                "{} cut to {len} of {}: {hook:?} {outcome:?}",
                form.name,
                whole.len()
            );
        }
        let whole = (form.build)(allowed, protocol);
        for len in shortest(hook, &whole)..=whole.len() {
            let outcome = guard.run(hook, &whole[..len])?;
            // Cut before the addresses end, it is nobody's.
            ensure!(
                outcome.passes || form.allowed.drops() || outcome.reason == Reason::Truncated,
                "{} cut to {len}: {hook:?} {outcome:?}",
                form.name
            );
            ensure!(len < whole.len() || outcome.passes != form.allowed.drops());
        }
    }
    Ok(())
}

/// Everything that is not for a guarded port of this host.
fn other_traffic() -> Vec<(&'static str, Reason, Vec<u8>)> {
    let v4 = |protocol, payload: &[u8]| v4(STRANGER4, protocol, &[], 0, payload);
    let v6 = |next, payload: &[u8]| v6(STRANGER6, next, payload);
    let to_guarded = transport(TCP, PORT);
    let away4 = Ipv4Addr::new(198, 18, 1, 5);
    let away6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5);
    let inner = ipv4(STRANGER4, HOST4, TCP, &[], 0, &to_guarded);
    vec![
        ("ARP", Reason::NotIp, ethernet(&[], 0x0806, &[0; 28])),
        ("tagged ARP", Reason::NotIp, ethernet(&[(VLAN, 7)], 0x0806, &[0; 28])),
        ("LLDP", Reason::NotIp, ethernet(&[], 0x88cc, &[2, 7, 4, 0])),
        ("802.3 with LLC", Reason::NotIp, ethernet(&[], 38, &[0x42; 38])),
        ("SNAP", Reason::NotIp, ethernet(&[], 60, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0, 0x45])),
        ("PPPoE", Reason::NotIp, ethernet(&[], 0x8864, &[0x11; 40])),
        ("SSH", Reason::NotGuarded, v4(TCP, &transport(TCP, 22))),
        ("DNS", Reason::NotGuarded, v4(UDP, &transport(UDP, 53))),
        ("swapped port", Reason::NotGuarded, v4(TCP, &transport(TCP, PORT.swap_bytes()))),
        ("from the guarded port", Reason::NotGuarded, v4(TCP, &[0x2b, 0xcb, 0, 80, 0, 0, 0, 0])),
        ("SCTP", Reason::NotGuarded, v4(132, &to_guarded)),
        ("UDP-Lite", Reason::NotGuarded, v4(136, &to_guarded)),
        ("ICMP echo", Reason::NotGuarded, v4(1, &[8, 0, 0, 0, 0, 1, 0, 1])),
        ("GRE", Reason::NotGuarded, v4(47, &[0, 0, 8, 0])),
        ("IPIP", Reason::NotGuarded, v4(4, &inner)),
        ("ESP", Reason::NotGuarded, v4(50, &[0; 16])),
        ("options header in IPv4", Reason::NotGuarded, v4(60, &extension(TCP, 0, &to_guarded))),
        ("empty ICMP", Reason::NotGuarded, v4(1, &[])),
        ("neighbour solicitation", Reason::NotGuarded, v6(58, &[135, 0, 0, 0, 0, 0, 0, 0])),
        ("MLD", Reason::NotGuarded, v6(0, &extension(58, 0, &[143, 0, 0, 0]))),
        ("SSH over IPv6", Reason::NotGuarded, v6(TCP, &transport(TCP, 22))),
        ("DNS in options", Reason::NotGuarded, v6(60, &extension(UDP, 1, &transport(UDP, 53)))),
        ("no next header", Reason::NotGuarded, v6(59, &to_guarded)),
        ("forwarded", Reason::NotLocal, to4(away4, STRANGER4, TCP)),
        ("forwarded UDP", Reason::NotLocal, to4(away4, STRANGER4, UDP)),
        ("forwarded IPv6", Reason::NotLocal, to6(away6, STRANGER6, TCP)),
        ("forwarded without a port", Reason::NotLocal, {
            ethernet(&[], IPV6, &ipv6(STRANGER6, away6, TCP, &[]))
        }),
        ("forwarded mapped source", Reason::NotLocal, {
            to6(away6, ALLOWED4.to_ipv6_mapped(), TCP)
        }),
        ("forwarded from an allowed host", Reason::Allowed, to4(away4, ALLOWED4, TCP)),
    ]
}

#[test]
fn other_traffic_is_unharmed() -> Result<()> {
    require_root!();
    host()?.run(|| {
        let mut guard = guard()?;
        for (name, reason, frame) in other_traffic() {
            for hook in Hook::ALL {
                expect(&mut guard, hook, &frame, reason).context(name)?;
            }
        }
        Ok(())
    })
}

/// A guard that guards nothing harms nothing, whatever the packet looks like.
#[test]
fn without_an_endpoint_everything_passes() -> Result<()> {
    require_root!();
    host()?.run(|| {
        let mut guard = GuardProgram::load()?;
        let frames4 = forms4().into_iter().map(|form| (form.build)(STRANGER4, TCP));
        let frames6 = forms6().into_iter().map(|form| (form.build)(STRANGER6, UDP));
        for frame in frames4.chain(frames6) {
            for hook in Hook::ALL {
                for len in shortest(hook, &frame)..=frame.len() {
                    let outcome = guard.run(hook, &frame[..len])?;
                    ensure!(outcome.passes, "{hook:?} {outcome:?}: {frame:02x?}");
                }
            }
        }
        Ok(())
    })
}

/// A list for a whole network allows the host's own addresses too, and whoever forges them.
#[test]
fn an_own_address_from_outside_is_forged() -> Result<()> {
    require_root!();
    host()?.run(|| {
        let mut guard = guard()?;
        let allow = Rule { deadline_ns: 0, counter: 1, action: ACTION_ALLOW };
        guard.prefix(LIST, HOST4, 24, allow)?;
        guard.prefix(LIST, HOST6, 64, allow)?;
        let neighbour4 = Ipv4Addr::new(198, 18, 0, 200);
        let neighbour6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200);
        for hook in Hook::ALL {
            for protocol in [TCP, UDP] {
                let frame = |source| to4(HOST4, source, protocol);
                expect(&mut guard, hook, &frame(HOST4), Reason::ForgedSource)?;
                expect(&mut guard, hook, &frame(neighbour4), Reason::Allowed)?;
                let frame = |source| to6(HOST6, source, protocol);
                expect(&mut guard, hook, &frame(HOST6), Reason::ForgedSource)?;
                expect(&mut guard, hook, &frame(neighbour6), Reason::Allowed)?;
            }
        }
        Ok(())
    })
}

/// Where forwarding is off the host can only be the destination itself.
#[test]
fn without_forwarding_every_destination_is_local() -> Result<()> {
    require_root!();
    let host = host()?;
    host.sysctl("net/ipv4/conf/all/forwarding", "0")?;
    host.sysctl("net/ipv6/conf/all/forwarding", "0")?;
    host.run(|| {
        let mut guard = guard()?;
        for (name, reason, frame) in other_traffic() {
            if reason == Reason::NotLocal {
                for hook in Hook::ALL {
                    ensure!(!guard.run(hook, &frame)?.passes, "{hook:?} {name}");
                }
            }
        }
        Ok(())
    })
}

/// Headers that lie in a later piece of a packet are read as well.
#[test]
fn scattered_headers_are_read() -> Result<()> {
    require_root!();
    host()?.run(|| {
        let mut guard = guard()?;
        let probe = (forms4()[0].build)(STRANGER4, TCP);
        if let Err(error) = guard.run_scattered(&probe, 20) {
            skip!("this kernel has no test runs of scattered packets: {error:#}");
        }
        let frames4 = forms4().into_iter().map(|f| ((f.build)(STRANGER4, TCP), f.stranger));
        let frames6 = forms6().into_iter().map(|f| ((f.build)(STRANGER6, TCP), f.stranger));
        for (frame, reason) in frames4.chain(frames6) {
            for linear_len in 14..u32::try_from(frame.len())? {
                let outcome = guard.run_scattered(&frame, linear_len)?;
                ensure!(outcome.reason == reason, "{linear_len}: {outcome:?}: {frame:02x?}");
            }
        }
        Ok(())
    })
}

//! Which entry of which list decides, on the real program: switching, deadlines, longest match,
//! several lists, settings, and the entries' own counters.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use session_common::guard::{
    ACTION_ALLOW, ACTION_DENY, Counter, ListWord, RULES_MAX, Reason, Rule, settings,
};
use session_tests::guard_program::{GuardProgram, Hook};
use session_tests::netns::Namespace;
use session_tests::packet::{IPV4, IPV6, TCP, UDP, ethernet, ipv4, ipv6, transport};
use session_tests::require_root;

const PORT: u16 = 11_211;
const FIRST: ListWord = ListWord::new(0, 1);
const HOST4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

const fn rule(action: u32, counter: u32, deadline_ns: u64) -> Rule {
    Rule { deadline_ns, counter, action }
}

const ALLOW: Rule = rule(ACTION_ALLOW, 1, 0);
const DENY: Rule = rule(ACTION_DENY, 2, 0);

fn frame(source: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let segment = transport(protocol, port);
    match source {
        IpAddr::V4(source) => ethernet(&[], IPV4, &ipv4(source, HOST4, protocol, &[], 0, &segment)),
        IpAddr::V6(source) => ethernet(&[], IPV6, &ipv6(source, HOST6, protocol, &segment)),
    }
}

/// The guard over TCP port 11211 by list 0, of which nothing is written yet.
fn guard() -> Result<GuardProgram> {
    let mut guard = GuardProgram::load()?;
    guard.own(HOST4)?;
    guard.own(HOST6)?;
    guard.list(FIRST)?;
    guard.endpoint(TCP, PORT, 0)?;
    Ok(guard)
}

fn check(guard: &mut GuardProgram, source: &str, reason: Reason) -> Result<()> {
    let frame = frame(source.parse()?, TCP, PORT);
    for hook in Hook::ALL {
        let outcome = guard.run(hook, &frame)?;
        ensure!(outcome.reason == reason, "{source}: {hook:?} {outcome:?}, not {reason:?}");
        ensure!(outcome.passes != reason.drops(), "{source}: {hook:?} {outcome:?}");
    }
    Ok(())
}

fn in_namespace(test: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    Namespace::new("lists")?.run(test)
}

fn prefix(guard: &mut GuardProgram, list: ListWord, network: &str, rule: Rule) -> Result<()> {
    let (address, len) = network.split_once('/').context("a prefix")?;
    guard.prefix(list, address.parse::<IpAddr>()?, len.parse()?, rule)
}

fn host(guard: &mut GuardProgram, list: ListWord, source: &str, rule: Rule) -> Result<()> {
    guard.host(list, source.parse::<IpAddr>()?, rule)
}

#[test]
fn the_longest_match_decides() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        prefix(&mut guard, FIRST, "198.18.0.0/16", ALLOW)?;
        prefix(&mut guard, FIRST, "198.18.7.0/24", DENY)?;
        prefix(&mut guard, FIRST, "198.18.7.128/25", ALLOW)?;
        host(&mut guard, FIRST, "198.18.7.200", DENY)?;
        host(&mut guard, FIRST, "198.18.7.1", ALLOW)?;
        prefix(&mut guard, FIRST, "2001:db8::/32", ALLOW)?;
        prefix(&mut guard, FIRST, "2001:db8:7::/48", DENY)?;
        host(&mut guard, FIRST, "2001:db8:7::1", ALLOW)?;
        for (source, reason) in [
            ("198.18.1.1", Reason::Allowed),
            ("198.18.7.2", Reason::DenyEntry),
            ("198.18.7.129", Reason::Allowed),
            ("198.18.7.200", Reason::DenyEntry),
            ("198.18.7.1", Reason::Allowed),
            ("198.17.255.255", Reason::NotListed),
            ("198.19.0.0", Reason::NotListed),
            ("2001:db8::5", Reason::Allowed),
            // The host's own.
            ("2001:db8::1", Reason::ForgedSource),
            ("2001:db8:7::2", Reason::DenyEntry),
            ("2001:db8:7::1", Reason::Allowed),
            ("2001:db9::1", Reason::NotListed),
        ] {
            check(&mut guard, source, reason)?;
        }
        Ok(())
    })
}

#[test]
fn every_prefix_length_ends_where_it_says() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        let lens4 = (1..=32).map(|len| (IpAddr::V4(Ipv4Addr::new(198, 18, 85, 170)), len));
        let base6 = Ipv6Addr::new(0x2001, 0xdb8, 0x5555, 0xaaaa, 0x3333, 0xcccc, 0x0f0f, 0xf0f0);
        let lens6 = (1..=128).map(|len| (IpAddr::V6(base6), len));
        for (generation, (source, len)) in (2..).zip(lens4.chain(lens6)) {
            let list = ListWord::new(0, generation);
            guard.prefix(list, source, len, ALLOW)?;
            guard.list(list)?;
            for bit in [len - 1, len] {
                let other = flip(source, bit);
                let inside = bit == len;
                let reason = if inside { Reason::Allowed } else { Reason::NotListed };
                check(&mut guard, &other.to_string(), reason).context(format!("/{len}"))?;
            }
        }
        Ok(())
    })
}

/// The address with one bit changed, counted from the left; beyond its end it stays as it is.
fn flip(address: IpAddr, bit: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            Ipv4Addr::from_bits(address.to_bits() ^ 0x8000_0000_u32.checked_shr(bit).unwrap_or(0))
                .into()
        }
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() ^ (1_u128 << 127).checked_shr(bit).unwrap_or(0))
                .into()
        }
    }
}

/// Four maps change at one instant: entries of another generation never count.
#[test]
fn the_list_word_switches_all_entries_at_once() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        let second = ListWord::new(0, 2);
        for source in ["198.18.0.11", "2001:db8::11"] {
            host(&mut guard, FIRST, source, ALLOW)?;
            host(&mut guard, second, source, DENY)?;
        }
        for (old, new) in
            [("198.18.7.0/24", "198.18.8.0/24"), ("2001:db8:7::/48", "2001:db8:8::/48")]
        {
            prefix(&mut guard, FIRST, old, ALLOW)?;
            prefix(&mut guard, second, new, ALLOW)?;
        }
        let sources = ["198.18.0.11", "2001:db8::11", "198.18.7.1", "2001:db8:7::1"];
        for source in sources {
            check(&mut guard, source, Reason::Allowed)?;
        }
        for source in ["198.18.8.1", "2001:db8:8::1"] {
            check(&mut guard, source, Reason::NotListed)?;
        }
        guard.list(second)?;
        check(&mut guard, "198.18.0.11", Reason::DenyEntry)?;
        check(&mut guard, "2001:db8::11", Reason::DenyEntry)?;
        check(&mut guard, "198.18.7.1", Reason::NotListed)?;
        check(&mut guard, "2001:db8:8::1", Reason::Allowed)?;
        guard.no_list(0)?;
        for source in sources {
            check(&mut guard, source, Reason::NotListed)?;
        }
        Ok(())
    })
}

/// Hosts of a large list stand in a place that the word names, and nowhere else.
#[test]
fn the_list_word_says_where_hosts_stand() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        let word = |generation| ListWord::new(0, generation);
        let words = [
            word(1),
            word(2).in_large(false),
            word(3).in_large(true),
            word(4).in_large(false),
            word(5),
        ];
        let sources = |idx: usize| [format!("198.18.0.{}", 10 + idx), format!("2001:db8::{idx}a")];
        for (idx, list) in words.into_iter().enumerate() {
            for source in sources(idx) {
                host(&mut guard, list, &source, ALLOW)?;
            }
            prefix(&mut guard, list, &format!("198.18.{}.0/24", 100 + idx), ALLOW)?;
        }
        for (current, list) in words.into_iter().enumerate() {
            guard.list(list)?;
            for idx in 0..words.len() {
                let reason = if idx == current { Reason::Allowed } else { Reason::NotListed };
                for source in sources(idx) {
                    check(&mut guard, &source, reason).context(format!("{list:?}"))?;
                }
                check(&mut guard, &format!("198.18.{}.9", 100 + idx), reason)?;
            }
        }
        // Another list's hosts are looked for in its own places, of which one is empty.
        for list in [ListWord::new(1, 2), ListWord::new(1, 2).in_large(false)] {
            guard.endpoint(TCP, PORT, 1)?;
            guard.list(list)?;
            for source in (0..words.len()).flat_map(sources) {
                check(&mut guard, &source, Reason::NotListed)?;
            }
        }
        Ok(())
    })
}

fn boottime_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::Boottime);
    Ok(u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec)?)
}

#[test]
fn an_entry_ends_at_its_deadline() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        let now_ns = boottime_ns()?;
        let (past, future) = (now_ns - 1, now_ns + 3_600_000_000_000);
        prefix(&mut guard, FIRST, "198.18.7.0/24", ALLOW)?;
        host(&mut guard, FIRST, "198.18.7.1", rule(ACTION_DENY, 3, past))?;
        host(&mut guard, FIRST, "198.18.7.2", rule(ACTION_DENY, 3, future))?;
        host(&mut guard, FIRST, "198.18.9.1", rule(ACTION_ALLOW, 3, past))?;
        host(&mut guard, FIRST, "198.18.9.2", rule(ACTION_ALLOW, 3, future))?;
        prefix(&mut guard, FIRST, "198.18.7.64/26", rule(ACTION_ALLOW, 3, past))?;
        prefix(&mut guard, FIRST, "198.18.7.128/26", rule(ACTION_DENY, 3, past))?;
        prefix(&mut guard, FIRST, "198.18.8.0/24", rule(ACTION_ALLOW, 3, future))?;
        prefix(&mut guard, FIRST, "2001:db8:7::/48", rule(ACTION_ALLOW, 3, past))?;
        host(&mut guard, FIRST, "2001:db8:7::1", rule(ACTION_ALLOW, 3, future))?;
        host(&mut guard, FIRST, "2001:db8:7::2", rule(ACTION_ALLOW, 3, past))?;
        for (source, reason) in [
            ("198.18.7.1", Reason::Allowed),
            ("198.18.7.2", Reason::DenyEntry),
            ("198.18.9.1", Reason::NotListed),
            ("198.18.9.2", Reason::Allowed),
            ("198.18.7.65", Reason::Deadline),
            ("198.18.7.129", Reason::Deadline),
            ("198.18.8.1", Reason::Allowed),
            ("2001:db8:7::1", Reason::Allowed),
            ("2001:db8:7::2", Reason::Deadline),
        ] {
            check(&mut guard, source, reason)?;
        }
        Ok(())
    })
}

/// A deadline in the kernel needs no daemon: the verdict changes while nothing is written.
#[test]
fn a_deadline_passes_by_itself() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        let now_ns = boottime_ns()?;
        let until = rule(ACTION_ALLOW, 1, now_ns + 300_000_000);
        host(&mut guard, FIRST, "198.18.9.1", until)?;
        let packet = frame("198.18.9.1".parse()?, TCP, PORT);
        let mut passed = 0;
        while guard.run(Hook::Native, &packet)?.passes {
            passed += 1;
        }
        ensure!(passed > 0 && boottime_ns()? > until.deadline_ns, "ended after {passed} packets");
        Ok(())
    })
}

/// Each endpoint is judged by its own list; a packet without a port must satisfy all of them.
#[test]
fn several_lists_stand_side_by_side() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        let other = ListWord::new(7, 9);
        guard.list(other)?;
        guard.endpoint(UDP, PORT, 7)?;
        guard.endpoint(TCP, 11_212, 7)?;
        host(&mut guard, FIRST, "198.18.0.11", ALLOW)?;
        host(&mut guard, other, "198.18.0.12", ALLOW)?;
        host(&mut guard, FIRST, "198.18.0.13", ALLOW)?;
        host(&mut guard, other, "198.18.0.13", ALLOW)?;
        for (source, tcp, udp, neither) in [
            ("198.18.0.11", true, false, false),
            ("198.18.0.12", false, true, false),
            ("198.18.0.13", true, true, true),
            ("198.18.0.14", false, false, false),
        ] {
            let source: IpAddr = source.parse()?;
            let cut = frame(source, TCP, PORT)[..34].to_vec();
            let frames = [
                (frame(source, TCP, PORT), tcp),
                (frame(source, UDP, PORT), udp),
                (frame(source, TCP, 11_212), udp),
                (frame(source, TCP, 11_213), true),
                (cut, neither),
            ];
            for (frame, passes) in frames {
                for hook in Hook::ALL {
                    let outcome = guard.run(hook, &frame)?;
                    ensure!(outcome.passes == passes, "{source} {hook:?} {outcome:?}");
                }
            }
        }
        Ok(())
    })
}

/// An endpoint whose list has no word refuses everybody.
#[test]
fn an_endpoint_without_a_list_is_closed() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        host(&mut guard, FIRST, "198.18.0.11", ALLOW)?;
        host(&mut guard, ListWord::NONE, "198.18.0.11", ALLOW)?;
        for list in [3, 8, 0xffff_ffff] {
            guard.endpoint(TCP, PORT, list)?;
            check(&mut guard, "198.18.0.11", Reason::NotListed)?;
        }
        Ok(())
    })
}

#[test]
fn an_unknown_action_refuses() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        for action in [2, 0x100, 0xffff_ffff] {
            host(&mut guard, FIRST, "198.18.0.11", rule(action, 1, 0))?;
            check(&mut guard, "198.18.0.11", Reason::DenyEntry)?;
        }
        Ok(())
    })
}

#[test]
fn audit_counts_and_passes() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        guard.settings(settings::AUDIT)?;
        let packet = frame("198.18.0.66".parse()?, TCP, PORT);
        for hook in Hook::ALL {
            let outcome = guard.run(hook, &packet)?;
            ensure!(outcome.passes && outcome.reason == Reason::NotListed, "{outcome:?}");
        }
        guard.settings(0)?;
        check(&mut guard, "198.18.0.66", Reason::NotListed)
    })
}

/// A router that forwards: a packet for another host passes, unless any destination is judged.
#[test]
fn any_destination_is_judged_when_asked() -> Result<()> {
    require_root!();
    let router = Namespace::new("router")?;
    router.ip_batch(
        "link add eth0 type veth peer name far0
         link set eth0 up
         link set far0 up
         addr add 198.18.5.1/24 dev eth0",
    )?;
    router.sysctl("net/ipv4/conf/all/forwarding", "1")?;
    router.run(|| {
        let mut guard = guard()?;
        let away = Ipv4Addr::new(198, 18, 5, 9);
        let stranger = Ipv4Addr::new(198, 18, 0, 66);
        let packet = ipv4(stranger, away, TCP, &[], 0, &transport(TCP, PORT));
        let packet = ethernet(&[], IPV4, &packet);
        for hook in Hook::ALL {
            guard.settings(0)?;
            let outcome = guard.run(hook, &packet)?;
            ensure!(outcome.passes && outcome.reason == Reason::NotLocal, "{outcome:?}");
            guard.settings(settings::DESTINATION_ANY)?;
            let outcome = guard.run(hook, &packet)?;
            ensure!(!outcome.passes && outcome.reason == Reason::NotListed, "{outcome:?}");
        }
        Ok(())
    })
}

#[test]
fn each_entry_counts_what_it_decides() -> Result<()> {
    require_root!();
    in_namespace(|| {
        let mut guard = guard()?;
        host(&mut guard, FIRST, "198.18.0.11", rule(ACTION_ALLOW, 11, 0))?;
        prefix(&mut guard, FIRST, "198.18.7.0/24", rule(ACTION_DENY, 12, 0))?;
        prefix(&mut guard, FIRST, "198.18.8.0/24", rule(ACTION_ALLOW, 13, 1))?;
        host(&mut guard, FIRST, "198.18.0.12", rule(ACTION_ALLOW, RULES_MAX - 1, 0))?;
        host(&mut guard, FIRST, "198.18.0.13", rule(ACTION_ALLOW, RULES_MAX, 0))?;
        host(&mut guard, FIRST, "198.18.0.14", rule(ACTION_ALLOW, u32::MAX, 0))?;
        for (source, reason) in [
            ("198.18.0.11", Reason::Allowed),
            ("198.18.7.1", Reason::DenyEntry),
            ("198.18.8.1", Reason::Deadline),
            ("198.18.0.12", Reason::Allowed),
            ("198.18.0.13", Reason::Allowed),
            ("198.18.0.14", Reason::Allowed),
            ("198.18.0.66", Reason::NotListed),
        ] {
            check(&mut guard, source, reason)?;
        }
        // Three hooks; an Ethernet, an IPv4 and a TCP header.
        let once = Counter { packets: 3, bytes: 3 * 54 };
        for counter in [11, 12, 13, RULES_MAX - 1] {
            ensure!(guard.rule(counter)? == once, "{counter}: {:?}", guard.rule(counter)?);
        }
        // Entries beyond the counters share the first.
        ensure!(guard.rule(0)? == Counter { packets: 6, bytes: 6 * 54 });
        ensure!(guard.rule(1)? == Counter::default());
        Ok(())
    })
}

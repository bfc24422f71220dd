//! The list against a naive model that walks all entries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use session_common::guard::Reason;

use crate::allowlist::{Action, Allowlist, Entry, Origin, Verdict, canonical};

/// All entries in a row; each verdict looks at every one.
#[derive(Default)]
struct Model(Vec<Entry>);

impl Model {
    fn insert(&mut self, entry: Entry) -> Option<Entry> {
        let old = self.remove(entry.prefix);
        self.0.push(entry);
        old
    }

    fn remove(&mut self, prefix: IpNet) -> Option<Entry> {
        let position = self.0.iter().position(|entry| entry.prefix == prefix)?;
        Some(self.0.remove(position))
    }

    fn verdict(&self, source: IpAddr, now: u64) -> (bool, Reason) {
        let source = match source {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(source, IpAddr::V4),
            IpAddr::V4(_) => source,
        };
        if source.is_loopback() {
            return (true, Reason::Allowed);
        }
        let mut matching: Vec<&Entry> =
            self.0.iter().filter(|entry| entry.prefix.contains(&source)).collect();
        matching.sort_by_key(|entry| std::cmp::Reverse(entry.prefix.prefix_len()));
        let over = |entry: &Entry| entry.deadline_ns.is_some_and(|deadline| deadline < now);
        if matching.len() > 1 && matching[0].is_host() && over(matching[0]) {
            matching.remove(0);
        }
        match matching.first() {
            None => (false, Reason::NotListed),
            Some(entry) if over(entry) => (false, Reason::Deadline),
            Some(entry) if entry.action == Action::Deny => (false, Reason::DenyEntry),
            Some(_) => (true, Reason::Allowed),
        }
    }
}

/// Addresses that collide often: few distinct low and high bits.
fn v4() -> impl Strategy<Value = Ipv4Addr> {
    (prop_oneof![Just(198u8), Just(127), Just(0)], any::<bool>(), 0u8..4, 0u8..4)
        .prop_map(|(a, b, c, d)| Ipv4Addr::new(a, u8::from(b), c, d))
}

fn v6() -> impl Strategy<Value = Ipv6Addr> {
    let mapped = v4().prop_map(|v4| v4.to_ipv6_mapped());
    let plain = (prop_oneof![Just(0u16), Just(0x2001)], 0u16..2, 0u16..3)
        .prop_map(|(a, d, h)| Ipv6Addr::new(a, 0, 0, d, 0, 0, 0, h));
    prop_oneof![mapped, plain]
}

fn source() -> impl Strategy<Value = IpAddr> {
    prop_oneof![v4().prop_map(IpAddr::V4), v6().prop_map(IpAddr::V6)]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (v4(), 0u8..=32).prop_map(|(a, l)| IpNet::V4(Ipv4Net::new(a, l).unwrap())),
        v4().prop_map(|a| IpNet::from(IpAddr::V4(a))),
        (v6(), 0u8..=128).prop_map(|(a, l)| IpNet::V6(Ipv6Net::new(a, l).unwrap())),
        v6().prop_map(|a| IpNet::from(IpAddr::V6(a))),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    (prefix(), action, prop::option::of(0u64..8)).prop_map(|(prefix, action, deadline_ns)| Entry {
        deadline_ns,
        ..Entry::new(prefix, action, Origin::Control)
    })
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Entry),
    Remove(IpNet),
    RemoveNth(usize),
    Judge(IpAddr, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => entry().prop_map(Step::Insert),
        1 => prefix().prop_map(Step::Remove),
        1 => any::<usize>().prop_map(Step::RemoveNth),
        4 => (source(), 0u64..9).prop_map(|(source, now)| Step::Judge(source, now)),
    ]
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|entry| entry.prefix);
    entries
}

proptest! {
    #[test]
    fn the_list_is_the_model(steps in prop::collection::vec(step(), 1..120)) {
        let (mut list, mut model) = (Allowlist::new(), Model::default());
        for step in steps {
            match step {
                Step::Insert(entry) => assert_eq!(list.insert(entry.clone()), model.insert(entry)),
                Step::Remove(prefix) => {
                    assert_eq!(list.remove(prefix), model.remove(canonical(prefix)));
                }
                Step::RemoveNth(n) if !model.0.is_empty() => {
                    let prefix = model.0[n % model.0.len()].prefix;
                    assert_eq!(list.remove(prefix), model.remove(prefix));
                }
                Step::RemoveNth(_) => {}
                Step::Judge(source, now) => {
                    let Verdict { allowed, reason, .. } = list.verdict(source, now);
                    assert_eq!((allowed, reason), model.verdict(source, now), "{source} at {now}");
                }
            }
            assert_eq!(list.len(), model.0.len());
        }
        assert_eq!(sorted(list.entries().cloned().collect()), sorted(model.0));
    }

    #[test]
    fn a_diff_leads_from_one_list_to_the_other(
        ours in prop::collection::vec(entry(), 0..40),
        theirs in prop::collection::vec(entry(), 0..40),
    ) {
        let mut list: Allowlist = ours.into_iter().collect();
        let other: Allowlist = theirs.into_iter().collect();
        let diff = list.diff(&other);
        assert_eq!(diff.is_empty(), list.diff(&other).is_empty());
        for entry in diff.removed {
            assert_eq!(list.remove(entry.prefix), Some(entry));
        }
        for entry in diff.added {
            assert_eq!(list.insert(entry), None);
        }
        for (old, new) in diff.changed {
            assert_eq!(list.insert(new), Some(old));
        }
        assert!(list.diff(&other).is_empty());
        assert_eq!(
            sorted(list.entries().cloned().collect()),
            sorted(other.entries().cloned().collect())
        );
    }

    #[test]
    fn what_is_printed_parses_to_the_same_prefix(prefix in prefix()) {
        let prefix = canonical(prefix);
        assert_eq!(crate::allowlist::parse::parse_prefix(&prefix.to_string()), Ok(prefix));
    }
}

fn list(entries: &[(&str, Action, Option<u64>)]) -> Allowlist {
    let entry = |(prefix, action, deadline_ns): &(&str, Action, Option<u64>)| Entry {
        deadline_ns: *deadline_ns,
        ..Entry::new(prefix.parse().unwrap(), *action, Origin::Config)
    };
    entries.iter().map(entry).collect()
}

#[test]
fn a_host_past_its_deadline_asks_the_prefix() {
    let host = ("198.18.0.1/32", Action::Deny, Some(10));
    let source: IpAddr = "198.18.0.1".parse().unwrap();
    let covered = list(&[host, ("198.18.0.0/24", Action::Allow, None)]);
    assert_eq!(covered.verdict(source, 10).reason, Reason::DenyEntry);
    assert_eq!(covered.verdict(source, 11).reason, Reason::Allowed);
    assert_eq!(list(&[host]).verdict(source, 11).reason, Reason::Deadline);
}

#[test]
fn a_prefix_past_its_deadline_refuses() {
    let list =
        list(&[("198.18.0.0/24", Action::Allow, Some(10)), ("198.18.0.0/16", Action::Allow, None)]);
    let verdict = |now| list.verdict("198.18.0.9".parse().unwrap(), now).reason;
    assert_eq!((verdict(10), verdict(11)), (Reason::Allowed, Reason::Deadline));
}

#[test]
fn loopback_and_mapped_sources() {
    let list = list(&[("0.0.0.0/0", Action::Deny, None), ("198.18.0.1/32", Action::Allow, None)]);
    for source in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::ffff:198.18.0.1"] {
        assert!(list.verdict(source.parse().unwrap(), 0).allowed, "{source}");
    }
    for source in ["198.18.0.2", "::ffff:198.18.0.2", "::2", "2001:db8::1"] {
        assert!(!list.verdict(source.parse().unwrap(), 0).allowed, "{source}");
    }
}

#[test]
fn a_million_hosts_fit_and_one_more_does_not() {
    let mut list = Allowlist::new();
    let hosts = u32::try_from(super::LIST_HOSTS_MAX).unwrap();
    for n in 0..hosts {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + n));
        list.insert(Entry::new(IpNet::from(address), Action::Allow, Origin::File));
    }
    assert_eq!(list.check_size(), Ok(()));
    assert!(list.verdict(IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + hosts - 1)), 0).allowed);
    assert!(!list.verdict(IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + hosts)), 0).allowed);
    let one_more = IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + hosts));
    list.insert(Entry::new(IpNet::from(one_more), Action::Allow, Origin::File));
    let message = list.check_size().unwrap_err().to_string();
    assert!(message.contains("IPv4 hosts") && message.contains("the most is 1048576"), "{message}");
}

//! The boot rule: a table of nftables that keeps a port closed from boot on, before there is a
//! guard, and that goes only when the guard stands on every interface.
//!
//! Its text is for `nft`, which loads it. Whether one stands, and its end, are asked of the kernel
//! itself: a daemon that has lowered its capabilities starts no program.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io;

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;

use crate::guard::Guard;
use crate::guard::error::GuardError;
use crate::guard::questions::{NLM_F_ACK, NLM_F_REQUEST, Questions, attributes, text};
use crate::guard::status::InterfaceState;
use crate::guard::watch::GuardEvent;

/// What a table is called, but for its port. A table a port: each daemon lifts its own.
const TABLE: &str = "session_boot_";

/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h, in the upper byte of a message's kind.
const NFTABLES: u16 = 10;
const NFT_MSG_GETTABLE: u16 = NFTABLES << 8 | 1;
const NFT_MSG_DELTABLE: u16 = NFTABLES << 8 | 2;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFTA_TABLE_NAME: u16 = 1;
/// `struct nfgenmsg`: family, version, the subsystem of a batch.
const NFGENMSG_LEN: usize = 4;
/// IPv4 and IPv6 in one table.
const NFPROTO_INET: u8 = 1;

/// The rule as `nft -f` takes it: loaded whole or not at all, in place of one that is there.
///
/// Before connection tracking it judges as the guard does, by the port on the wire and for the
/// host's own addresses alone; and once more behind what rewrites ports.
#[must_use]
pub(crate) fn rule(ports: &BTreeSet<u16>) -> String {
    let mut rule = String::new();
    for port in ports {
        let table = format!("table inet {TABLE}{port}");
        let refused = format!("meta l4proto {{ tcp, udp }} th dport {port} counter drop");
        let _ = write!(
            rule,
            "{table}\n\
             delete {table}\n\
             {table} {{\n\
             \tchain prerouting {{\n\
             \t\ttype filter hook prerouting priority -300; policy accept;\n\
             \t\tiifname != \"lo\" fib daddr type {{ local, broadcast, anycast, multicast }} {refused}\n\
             \t}}\n\
             \tchain input {{\n\
             \t\ttype filter hook input priority 0; policy accept;\n\
             \t\tiifname != \"lo\" {refused}\n\
             \t}}\n\
             }}\n"
        );
    }
    rule
}

/// The rules of this network namespace.
#[derive(Debug)]
pub(crate) struct BootRules {
    /// None on a kernel without nftables.
    questions: Option<Questions>,
}

impl BootRules {
    /// Those of this thread's network namespace.
    ///
    /// # Errors
    /// No socket is to be had.
    pub(crate) fn open() -> io::Result<Self> {
        match Questions::open(Some(NETFILTER)) {
            Ok(questions) => Ok(Self { questions: Some(questions) }),
            Err(error) if is_absent(&error) => Ok(Self { questions: None }),
            Err(error) => Err(error),
        }
    }

    /// The ports that rules keep closed.
    ///
    /// # Errors
    /// The kernel does not say, as to somebody without CAP_NET_ADMIN.
    pub(crate) fn standing(&mut self) -> io::Result<BTreeSet<u16>> {
        let Some(questions) = &mut self.questions else { return Ok(BTreeSet::new()) };
        let port = |_, body: &[u8]| {
            let mut attributes = attributes(body.get(NFGENMSG_LEN..).unwrap_or_default());
            let name = attributes.find(|(kind, _)| *kind == NFTA_TABLE_NAME);
            Ok(name.and_then(|(_, name)| port_of(&text(name))))
        };
        match questions.dump(NFT_MSG_GETTABLE, &head(NFPROTO_INET, 0), port) {
            Ok(ports) => Ok(ports.into_iter().collect()),
            Err(error) if is_absent(&error) => {
                // Nor is it asked again, which would look for the kernel's module each time.
                self.questions = None;
                Ok(BTreeSet::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the rule of a port away; whether there was one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn remove(&mut self, port: u16) -> io::Result<bool> {
        let Some(questions) = &mut self.questions else { return Ok(false) };
        let batch = head(0, NFTABLES);
        let mut table = head(NFPROTO_INET, 0).to_vec();
        let name = format!("{TABLE}{port}\0");
        let len = u16::try_from(4 + name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        table.extend(len.to_ne_bytes());
        table.extend(NFTA_TABLE_NAME.to_ne_bytes());
        table.extend(name.as_bytes());
        let outcome = questions.act(&[
            (NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, &batch),
            (NFT_MSG_DELTABLE, NLM_F_REQUEST | NLM_F_ACK, &table),
            (NFNL_MSG_BATCH_END, NLM_F_REQUEST, &batch),
        ]);
        match outcome {
            Ok(()) => Ok(true),
            Err(error) if is(&error, Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `struct nfgenmsg`.
fn head(family: u8, subsystem: u16) -> [u8; NFGENMSG_LEN] {
    let [high, low] = subsystem.to_be_bytes();
    [family, 0, high, low]
}

/// The port of a table of ours.
fn port_of(table: &str) -> Option<u16> {
    table.strip_prefix(TABLE)?.parse().ok()
}

/// Whether the kernel has no nftables: no netfilter netlink at all, or nobody who answers there.
fn is_absent(error: &io::Error) -> bool {
    [Errno::PROTONOSUPPORT, Errno::OPNOTSUPP, Errno::INVAL].iter().any(|one| is(error, *one))
}

fn is(error: &io::Error, number: Errno) -> bool {
    error.raw_os_error() == Some(number.raw_os_error())
}

impl Guard {
    /// Takes away the boot rules of the own ports, if there are any and the guard stands on every
    /// interface that it should stand on. To be called when the ports are served.
    pub(crate) fn lift_boot_rule(&mut self) -> Vec<GuardEvent> {
        let mut events = Vec::new();
        let outcome = self.check_boot_rule(&mut events);
        self.note("boot rule", outcome, &mut events);
        events
    }

    fn check_boot_rule(&mut self, events: &mut Vec<GuardEvent>) -> Result<(), GuardError> {
        let fault = |error| GuardError::io("asking nftables for the boot rule", error);
        let standing = self.boot_rules.standing().map_err(fault)?;
        let own = |port: &u16| self.config.endpoints.iter().any(|(_, own)| own == port);
        let ports: Vec<u16> = standing.into_iter().filter(own).collect();
        if ports.is_empty() {
            return Ok(());
        }
        let summary = self.summary();
        let open = summary.interfaces.iter().filter(|one| one.state == InterfaceState::Open);
        let open: Vec<&str> = open.map(|one| one.name.as_str()).collect();
        for port in ports {
            if !open.is_empty() {
                return Err(GuardError::BootRule { port, interfaces: open.join(", ") });
            }
            let fault = |error| GuardError::io(format!("lifting the boot rule of {port}"), error);
            if self.boot_rules.remove(port).map_err(fault)? {
                events.push(GuardEvent::BootRuleLifted { port });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_closes_each_port_to_all_but_the_loopback_and_replaces_itself() {
        let rule = rule(&BTreeSet::from([11_211, 11_311]));
        for port in ["11211", "11311"] {
            let table = format!("table inet session_boot_{port}");
            let head = format!("{table}\ndelete {table}\n{table} {{\n");
            assert!(rule.contains(&head), "{rule}");
            let drops = format!("meta l4proto {{ tcp, udp }} th dport {port} counter drop\n");
            assert_eq!(rule.matches(&drops).count(), 2, "{rule}");
        }
        assert_eq!(rule.matches("iifname != \"lo\" ").count(), 4, "{rule}");
        assert_eq!(rule.matches('{').count(), rule.matches('}').count());
    }

    #[test]
    fn tables_of_others_are_no_rules_of_ours() {
        assert_eq!(port_of("session_boot_11211"), Some(11_211));
        for other in ["filter", "session_boot_", "session_boot_70000", "my_session_boot_1"] {
            assert_eq!(port_of(other), None, "{other}");
        }
    }
}

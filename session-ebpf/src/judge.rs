//! From headers and tables to a verdict.
//!
//! It owns the order of the questions: is the port guarded, is the source allowed, is the
//! destination this host. It never reads a packet's bytes and never counts.
#![forbid(unsafe_code)]

use session_common::guard::{
    ACTION_ALLOW, ACTION_DENY, EndpointKey, LISTS_MAX, ListWord, Reason, Rule, settings,
};

use crate::{Address, Addresses, Headers, Pair, Target};

/// What the judgement asks of the tables that are the same for both families.
pub trait Tables: Lookup<[u8; 4]> + Lookup<[u8; 16]> {
    /// The list that judges this endpoint, or `None` when it is not guarded.
    fn endpoint(&self, key: EndpointKey) -> Option<u32>;
    /// The word of a list; [`ListWord::NONE`] of a list that is not registered.
    fn list_word(&self, list: u32) -> ListWord;
    /// Bits of [`settings`].
    fn settings(&self) -> u32;
    /// `CLOCK_BOOTTIME` in nanoseconds.
    fn boottime_ns(&self) -> u64;
}

/// What the judgement asks about addresses of one family.
pub trait Lookup<A> {
    /// The host entry of `source`.
    fn host(&self, list: ListWord, source: A) -> Option<Rule>;
    /// The longest prefix entry that covers `source`.
    fn prefix(&self, list: ListWord, source: A) -> Option<Rule>;
    /// Whether `address` is known as one of this host.
    fn is_own(&self, address: A) -> bool;
    /// Whether the routing tables send the packet on to another host. `false` when they cannot
    /// tell.
    fn is_forwarded(&self, pair: &Pair<A>) -> bool;
}

/// Port and protocol in one number.
#[inline(always)]
fn pack(key: EndpointKey) -> u32 {
    u32::from(key.port) << 8 | u32::from(key.protocol)
}

/// In place of a counter where no entry decided.
pub const NO_RULE: u32 = u32::MAX;

/// Cleared in every number of a counter, none of which is so high.
const NO_RULE_BIT: u32 = 1 << 31;

/// The verdict over one packet. It passes unless [`Reason::drops`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Why.
    pub reason: Reason,
    /// Counter of the entry that decided, else [`NO_RULE`].
    pub rule: u32,
    /// Action of that entry, else [`ACTION_DENY`].
    pub action: u32,
    /// The guarded endpoint, port above protocol in the low byte; 0 when the packet led to none.
    pub endpoint: u32,
    /// The list of that endpoint.
    pub list: u32,
}

impl Finding {
    #[inline(always)]
    const fn new(reason: Reason) -> Self {
        Self { reason, rule: NO_RULE, action: ACTION_DENY, endpoint: 0, list: 0 }
    }
}

/// Judges a packet by its headers.
#[inline(always)]
pub fn judge<T: Tables>(tables: &T, headers: &Headers) -> Finding {
    match &headers.addresses {
        Addresses::V4(pair) => judge_pair(tables, pair, headers),
        Addresses::V6(pair) => judge_pair(tables, pair, headers),
        Addresses::Unread => judge_unread(tables, headers.target),
    }
}

#[inline(always)]
fn judge_pair<A: Address, T: Tables + Lookup<A>>(
    tables: &T,
    pair: &Pair<A>,
    headers: &Headers,
) -> Finding {
    let finding = match headers.target {
        Target::Port(_) => match tables.endpoint(headers.endpoint) {
            Some(list) => Finding {
                endpoint: pack(headers.endpoint),
                list,
                ..judge_source(tables, tables.list_word(list), pair.source)
            },
            None => return Finding::new(Reason::NotGuarded),
        },
        Target::Unresolved(reason) => judge_by_every_list(tables, pair.source, reason),
        Target::LaterFragment => return Finding::new(Reason::LaterFragment),
        Target::OtherProtocol => return Finding::new(Reason::NotGuarded),
        Target::NotIp => return Finding::new(Reason::NotIp),
    };
    if finding.reason.drops() && !is_local(tables, pair) {
        return Finding::new(Reason::NotLocal);
    }
    finding
}

/// No address was read. The stack delivers such a packet only if it has more VLAN tags than the
/// parser walks; it is dropped as soon as there is a port to guard.
#[inline(always)]
fn judge_unread<T: Tables>(tables: &T, target: Target) -> Finding {
    match target {
        Target::Unresolved(reason) => {
            for list in 0..LISTS_MAX {
                if tables.list_word(list) != ListWord::NONE {
                    return Finding::new(reason);
                }
            }
            Finding::new(Reason::NotGuarded)
        }
        _ => Finding::new(Reason::NotIp),
    }
}

/// The port is unknown, so each guarded one may be meant: passes only a source that all allow.
#[inline(always)]
fn judge_by_every_list<A: Address, T: Tables + Lookup<A>>(
    tables: &T,
    source: A,
    reason: Reason,
) -> Finding {
    let mut registered = false;
    for list in 0..LISTS_MAX {
        let word = tables.list_word(list);
        if word == ListWord::NONE {
            continue;
        }
        registered = true;
        match judge_source(tables, word, source).reason {
            Reason::Allowed => {}
            Reason::ForgedSource => return Finding::new(Reason::ForgedSource),
            _ => return Finding::new(reason),
        }
    }
    Finding::new(if registered { Reason::Allowed } else { Reason::NotGuarded })
}

/// What one list says about a source: the host entry, else the longest prefix.
#[inline(always)]
fn judge_source<A: Address, T: Tables + Lookup<A>>(
    tables: &T,
    list: ListWord,
    source: A,
) -> Finding {
    if source.is_forged_source() {
        return Finding::new(Reason::ForgedSource);
    }
    if list == ListWord::NONE {
        return Finding::new(Reason::NotListed);
    }
    // A host entry past its deadline no longer counts. A prefix past its deadline refuses: the
    // trie cannot be asked for the next shorter one.
    let host = tables.host(list, source).filter(|rule| !is_expired(tables, rule));
    match host.or_else(|| tables.prefix(list, source)) {
        Some(rule) => match apply(tables, &rule) {
            // The host talks to itself over the loopback device alone. Asked of allowed sources
            // only: the others are dropped anyway, and faster.
            Reason::Allowed if tables.is_own(source) => Finding::new(Reason::ForgedSource),
            reason => Finding {
                rule: rule.counter & !NO_RULE_BIT,
                action: rule.action,
                ..Finding::new(reason)
            },
        },
        None => Finding::new(Reason::NotListed),
    }
}

#[inline(always)]
fn apply<T: Tables>(tables: &T, rule: &Rule) -> Reason {
    if is_expired(tables, rule) {
        Reason::Deadline
    } else if rule.action == ACTION_ALLOW {
        Reason::Allowed
    } else {
        Reason::DenyEntry
    }
}

#[inline(always)]
fn is_expired<T: Tables>(tables: &T, rule: &Rule) -> bool {
    rule.deadline_ns != 0 && tables.boottime_ns() > rule.deadline_ns
}

/// Whether the packet is for this host. Asked last, of packets about to be dropped.
#[inline(always)]
fn is_local<A: Address, T: Tables + Lookup<A>>(tables: &T, pair: &Pair<A>) -> bool {
    tables.settings() & settings::DESTINATION_ANY != 0
        || pair.destination.is_group()
        || tables.is_own(pair.destination)
        || !tables.is_forwarded(pair)
}

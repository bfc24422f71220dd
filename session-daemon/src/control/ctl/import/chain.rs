//! What chains of rules do with a new connection to a port, by its source.
//!
//! It owns the walk over rules whatever wrote them. What depends on more than the source is
//! refused by the rule's name: the result never lets in more than the chains do.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use ipnet::IpNet;

use crate::allowlist::{Action, Allowlist, Entry, Origin};
use crate::control::ctl::import::ranges::{Family, Ranges};

/// Deepest chain of jumps; the kernel's own bound is the same (`NFT_JUMP_STACK_SIZE`).
const DEPTH_MAX: usize = 16;

/// Entries that the rules' own wording may take beyond twice the fewest networks.
const SPARE_ENTRIES: usize = 8;

/// What becomes of a packet that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// It is logged, counted or marked, and goes on.
    Continue,
    /// Something that a list of sources cannot say.
    Unknown(String),
}

/// One rule, as far as it concerns a new connection to the port.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// Where it stands and how it reads, for messages.
    pub(super) text: String,
    /// What is said beside it.
    pub(super) comment: Option<String>,
    /// Whether it can match such a packet at all.
    pub(super) matches: bool,
    /// The sources that it matches.
    pub(super) sources: Ranges,
    /// What else it depends on.
    pub(super) unknown: Option<String>,
    pub(super) target: Target,
}

/// A chain.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    pub(super) rules: Vec<Rule>,
    /// What happens at its end; None for a chain that only jumps lead to.
    pub(super) accepts: Option<bool>,
}

/// Chains of one family, and those that every packet to the host walks.
#[derive(Clone, Debug)]
pub(super) struct Chains {
    pub(super) family: Family,
    pub(super) chains: HashMap<String, Chain>,
    pub(super) base: Vec<String>,
}

/// What the chains say.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Sources that all of them accept.
    pub(super) accepted: Ranges,
    /// The rules that accepted, in order, with what they match and what they accepted.
    pub(super) grants: Vec<Grant>,
}

/// What one rule let in.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    matched: Ranges,
    comment: Option<String>,
}

impl Chains {
    /// Walks every base chain; a packet gets in when all of them accept it.
    pub(super) fn outcome(&self) -> Result<Outcome> {
        let mut outcome = Outcome { accepted: Ranges::all(self.family), grants: Vec::new() };
        for name in &self.base {
            let mut walk =
                Walk { chains: self, accepted: Ranges::default(), grants: Vec::new(), depth: 0 };
            let left = walk.chain(name, outcome.accepted.clone())?;
            let accepts = self.chains.get(name).and_then(|chain| chain.accepts);
            if accepts == Some(true) && !left.is_empty() {
                let matched = Ranges::all(self.family);
                walk.grants.push(Grant { matched, comment: None });
                walk.accepted = walk.accepted.union(&left);
            }
            outcome.accepted = walk.accepted;
            outcome.grants.extend(walk.grants);
        }
        Ok(outcome)
    }
}

struct Walk<'a> {
    chains: &'a Chains,
    accepted: Ranges,
    grants: Vec<Grant>,
    depth: usize,
}

impl Walk<'_> {
    /// Walks a chain with undecided sources; returns those that come out at its end undecided.
    fn chain(&mut self, name: &str, undecided: Ranges) -> Result<Ranges> {
        ensure!(self.depth < DEPTH_MAX, "the chains jump more than {DEPTH_MAX} deep at {name}");
        let Some(chain) = self.chains.chains.get(name) else {
            bail!("there is no chain {name}, which a rule jumps to; give the whole ruleset");
        };
        let family = self.chains.family;
        let mut here = undecided;
        let mut returned = Ranges::default();
        self.depth += 1;
        for rule in &chain.rules {
            let hit = here.intersection(&rule.sources);
            if !rule.matches || hit.is_empty() || rule.target == Target::Continue {
                continue;
            }
            if let Some(reason) = &rule.unknown {
                bail!("{}: {reason}", rule.text);
            }
            here = here.without(&hit, family);
            match &rule.target {
                Target::Accept => {
                    self.accepted = self.accepted.union(&hit);
                    let matched = rule.sources.clone();
                    self.grants.push(Grant { matched, comment: rule.comment.clone() });
                }
                Target::Return => returned = returned.union(&hit),
                Target::Jump(to) => here = here.union(&self.chain(to, hit)?),
                // What a goto's chain leaves undecided goes on behind the jump that led here.
                Target::Goto(to) => returned = returned.union(&self.chain(to, hit)?),
                Target::Unknown(what) => bail!("{}: {what}", rule.text),
                Target::Drop | Target::Continue => {}
            }
        }
        self.depth -= 1;
        Ok(here.union(&returned))
    }
}

/// Entries that let in exactly `accepted`: as the rules put it where that is the same, otherwise
/// the fewest networks.
pub(super) fn entries(accepted: &Ranges, grants: &[Grant], family: Family) -> Vec<Entry> {
    let networks = accepted.networks(family);
    let worded = worded(accepted, grants, family);
    let is_short = worded.len() <= 2 * networks.len() + SPARE_ENTRIES;
    if is_short && says(&worded, family) == *accepted {
        let mut entries: Vec<Entry> = worded.entries().cloned().collect();
        entries.sort_by_key(|entry| entry.prefix);
        return entries;
    }
    let allow = |net| Entry::new(net, Action::Allow, Origin::File);
    networks.into_iter().map(allow).collect()
}

/// The networks that rules accept, with denials for what earlier rules took out of them.
fn worded(accepted: &Ranges, grants: &[Grant], family: Family) -> Allowlist {
    let mut list = Allowlist::new();
    // A chain that lets everybody on to the next one says nothing about the list.
    let all = Ranges::all(family);
    let says_something = |grant: &&Grant| grant.matched != all || accepted.is_most(family);
    for grant in grants.iter().filter(says_something) {
        let refused = grant.matched.without(accepted, family);
        for net in refused.networks(family) {
            list.insert(Entry::new(net, Action::Deny, Origin::File));
        }
        for net in grant.matched.networks(family) {
            if !Ranges::of(net).intersection(accepted).is_empty() && list.get(net).is_none() {
                let entry = Entry::new(net, Action::Allow, Origin::File);
                list.insert(Entry { comment: grant.comment.clone(), ..entry });
            }
        }
    }
    list
}

/// The sources that a list lets in: shorter prefixes first, so that longer ones decide.
fn says(list: &Allowlist, family: Family) -> Ranges {
    let mut entries: Vec<&Entry> = list.entries().collect();
    entries.sort_by_key(|entry| entry.prefix.prefix_len());
    let of = |net: IpNet| Ranges::of(net);
    entries.into_iter().fold(Ranges::default(), |all, entry| match entry.action {
        Action::Allow => all.union(&of(entry.prefix)),
        _ => all.without(&of(entry.prefix), family),
    })
}

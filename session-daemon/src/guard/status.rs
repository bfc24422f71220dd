//! What the guard does, for `sessionctl status`, metrics and the log.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use session_common::answer::Answer;
use session_common::guard::Reason;

use crate::allowlist::Action;
use crate::guard::interfaces::{Interface, Interfaces, Plan, plan};
use crate::guard::samples::{PlaceDrops, TopSource};
use crate::guard::{Destination, Guard, Mode, Refuse, attach, maps};

/// The whole state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// Name of this daemon's list.
    pub list: String,
    /// How often the list was replaced, modulo 2^24, over restarts.
    pub generation: u32,
    /// Entries in force.
    pub entries: usize,
    /// Directory of the pins.
    pub pins: String,
    /// Which destinations are judged.
    pub destination: Destination,
    /// Whether dropped packets are only counted.
    pub audit: bool,
    /// What refused sources are told, unless an entry says otherwise.
    pub refuse: Refuse,
    /// Whether every selected interface is guarded.
    pub complete: bool,
    /// Every interface of the namespace.
    pub interfaces: Vec<InterfaceStatus>,
    /// Packets by what became of them, over all daemons of this guard.
    pub reasons: Vec<ReasonCount>,
    /// What became of refused packets that were to be answered.
    pub answers: Vec<AnswerCount>,
    /// Sources that were refused most lately, estimated from samples.
    pub top_sources: Vec<TopSource>,
    /// Dropped packets by interface and reason since the daemon started, estimated from samples.
    pub drops: Vec<PlaceDrops>,
    /// Packets by entry, of the entries with a counter of their own.
    pub counts: Vec<EntryCount>,
    /// What the operator should see to.
    pub warnings: Vec<String>,
}

/// How one interface is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceState {
    /// By a program of its own.
    Guarded,
    /// By the device below it.
    Covered,
    /// Not selected; the loopback, or left out with `--interface`.
    Excluded,
    /// It should be guarded and is not: strangers reach the port through it.
    Open,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name now.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
    /// How it is guarded.
    pub state: InterfaceState,
    /// Mode of the program on it.
    pub mode: Option<Mode>,
    /// Number of the program on it.
    pub program_id: Option<u32>,
    /// Number of the link that holds the program.
    pub link_id: Option<u32>,
    /// Whether the guard outlives the daemon here.
    pub pinned: bool,
    /// What the operator should know.
    pub warning: Option<String>,
}

/// Packets with one fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// As [`Reason::name`] has it.
    pub reason: String,
    /// Whether they were dropped.
    pub dropped: bool,
    /// How many.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Packets that were to be answered and met one fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerCount {
    /// As [`Answer::name`] has it.
    pub answer: String,
    /// How many.
    pub packets: u64,
}

/// Packets that one entry decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryCount {
    /// Its sources.
    pub prefix: IpNet,
    /// What it says about them.
    pub action: Action,
    /// How many.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Guard {
    /// The state now. Counters are read from the kernel; interfaces are as [`Guard::tick`] saw
    /// them last.
    #[must_use]
    pub fn status(&self) -> GuardStatus {
        GuardStatus { counts: self.counts(), ..self.summary() }
    }

    /// The state without the entries' counts, each of which is a question to the kernel.
    #[must_use]
    pub fn summary(&self) -> GuardStatus {
        let (plans, absent) = plan(&self.interfaces, &self.config.interfaces);
        let interfaces: Vec<InterfaceStatus> = self
            .interfaces
            .iter()
            .zip(plans)
            .map(|(interface, plan)| self.interface_status(interface, &plan))
            .collect();
        let mut warnings: Vec<String> = self.troubles.values().cloned().collect();
        let warned = interfaces.iter().filter_map(|interface| {
            Some(format!("{}: {}", interface.name, interface.warning.as_ref()?))
        });
        warnings.extend(warned);
        warnings.extend(absent.iter().map(|name| format!("{name}: no such interface now")));
        if self.written.sizes.total() == 0 {
            warnings.push("the list is empty: only the loopback is served".to_owned());
        }
        GuardStatus {
            list: self.config.list.clone(),
            generation: self.written.word.generation(),
            entries: self.written.sizes.total(),
            pins: self.pins.root().display().to_string(),
            destination: self.config.destination,
            audit: self.config.audit,
            refuse: self.config.refuse,
            complete: interfaces.iter().all(|one| one.state != InterfaceState::Open),
            interfaces,
            reasons: self.reasons(),
            answers: self.answers(),
            top_sources: self.samples.top(),
            drops: self.samples.by_place(),
            counts: Vec::new(),
            warnings,
        }
    }

    fn interface_status(&self, interface: &Interface, plan: &Plan) -> InterfaceStatus {
        let link = self.links.get(&interface.ifindex);
        let facts = link.and_then(|link| link.facts().ok());
        let attached = facts.is_some_and(|facts| facts.ifindex == interface.ifindex);
        let fault = self.faults.get(&interface.ifindex);
        let state = match plan {
            Plan::Leave => InterfaceState::Excluded,
            Plan::CoveredBy(lower) if self.stands_on(*lower) => InterfaceState::Covered,
            Plan::Guard if attached => InterfaceState::Guarded,
            Plan::Guard if self.is_covered_by_ports(interface) => InterfaceState::Covered,
            // A device that is down delivers nothing.
            Plan::Guard | Plan::CoveredBy(_) if !interface.is_up() => InterfaceState::Excluded,
            Plan::Guard | Plan::CoveredBy(_) => InterfaceState::Open,
        };
        let warning = match (fault, link.and_then(|link| link.warning)) {
            (Some(fault), _) if state != InterfaceState::Covered => Some(fault.clone()),
            (_, Some(warning)) => Some(warning.to_owned()),
            _ => None,
        };
        InterfaceStatus {
            name: interface.name.clone(),
            ifindex: interface.ifindex,
            state,
            mode: link.filter(|_| attached).map(|link| link.mode),
            program_id: facts.filter(|_| attached).map(|facts| facts.program_id),
            link_id: link.filter(|_| attached).map(|link| link.id),
            pinned: link.is_some_and(|link| {
                attach::pinned_id(&self.pins, interface.ifindex) == Some(link.id)
            }),
            warning,
        }
    }

    /// Whether a live link holds this device.
    pub(super) fn stands_on(&self, ifindex: u32) -> bool {
        let facts = self.links.get(&ifindex).and_then(|link| link.facts().ok());
        facts.is_some_and(|facts| facts.ifindex == ifindex)
    }

    /// Whether every port of a bridge is guarded, where the bridge itself cannot be.
    pub(super) fn is_covered_by_ports(&self, interface: &Interface) -> bool {
        let mut ports =
            self.interfaces.iter().filter(|port| port.master == Some(interface.ifindex));
        interface.kind == "bridge"
            && self.config.interfaces == Interfaces::All
            && ports.all(|port| self.stands_on(port.ifindex))
    }

    /// Packets by what became of them, over all daemons of this guard.
    #[must_use]
    pub fn reasons(&self) -> Vec<ReasonCount> {
        let counts = Reason::ALL.iter().filter_map(|reason| {
            let values = self.maps.counters.get(&(*reason as u32), 0).ok()?;
            let counter = maps::sum(&values);
            Some(ReasonCount {
                reason: reason.name().to_owned(),
                dropped: reason.drops(),
                packets: counter.packets,
                bytes: counter.bytes,
            })
        });
        counts.collect()
    }

    fn answers(&self) -> Vec<AnswerCount> {
        let counts = Answer::ALL.iter().filter_map(|answer| {
            let values = self.maps.answers.get(&(*answer as u32), 0).ok()?;
            let packets = maps::sum(&values).packets;
            Some(AnswerCount { answer: answer.name().to_owned(), packets })
        });
        counts.collect()
    }

    /// Sorted by prefix.
    fn counts(&self) -> Vec<EntryCount> {
        let counts = self.written.counters.all().filter_map(|(prefix, action, idx)| {
            let counter = maps::sum(&self.maps.rules.get(&idx, 0).ok()?);
            let (packets, bytes) = (counter.packets, counter.bytes);
            Some(EntryCount { prefix, action, packets, bytes })
        });
        let mut counts: Vec<EntryCount> = counts.collect();
        counts.sort_by_key(|count| count.prefix);
        counts
    }

    /// Number of the program that a link runs, if the link lives.
    pub(super) fn program_on(&self, ifindex: u32) -> Option<u32> {
        let link = self.links.get(&ifindex)?;
        let facts = crate::sys::link_facts(link.fd.as_fd()).ok()?;
        (facts.ifindex == ifindex).then_some(facts.program_id)
    }
}

//! Watching that the guard really stands, and mending it.
//!
//! It owns the checks and what is done about each finding. Everything it does is announced as a
//! [`GuardEvent`]; it never takes a standing program off.
//!
//! ```text
//! 4 times a second   links: on their device, with a program of ours, first at tcx; the bpffs, a file
//!                    a pin
//! twice a second,    what the files stand for; devices and addresses listed anew: new, renamed,
//! and on netlink's   moved and re-created ones
//! word
//! ```
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use crate::guard::Guard;
use crate::guard::attach::{self, Found, Link, Outcome, Taken};
use crate::guard::error::GuardError;
use crate::guard::interfaces::{Interface, Plan, plan};
use crate::guard::lists;
use crate::guard::maps::SPECS;
use crate::guard::pins::{LINKS, MAPS};
use crate::sys::{self, LinkFacts};

/// How long [`Watch::ready`] waits without news before the links are looked at.
const TICK_INTERVAL: Duration = Duration::from_millis(250);

/// How long a listing of devices is believed without news.
const LISTING_AGE_MAX: Duration = Duration::from_millis(500);

/// How long a daemon that holds the lock may take to pin the program that it put on a device.
const PIN_PATIENCE: Duration = Duration::from_millis(500);

/// What happened to the guard, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardEvent {
    /// A new interface is guarded.
    Guarded {
        /// Its name.
        interface: String,
        /// How long it stood open at most, from the last listing without it.
        open_at_most: Duration,
    },
    /// Somebody detached the link; a new one stands.
    Reattached {
        /// The interface.
        interface: String,
    },
    /// Somebody put another program into our link; ours is back.
    ProgramRestored {
        /// The interface.
        interface: String,
        /// Number of the other program.
        program_id: u32,
    },
    /// Somebody put a program before the guard at tcx; the guard stands before it.
    WentFirst {
        /// The interface.
        interface: String,
        /// Number of the other program.
        program_id: u32,
    },
    /// Pins were missing and are back.
    Repinned {
        /// Which.
        what: String,
    },
    /// The bpffs was gone; it is mounted and filled again.
    Remounted,
    /// An interface went away.
    Gone {
        /// Its number.
        ifindex: u32,
    },
    /// An interface has another name now.
    Renamed {
        /// The old name.
        from: String,
        /// The new name.
        to: String,
    },
    /// The guard stands on every interface, so that the rule of nftables for the time before is gone.
    BootRuleLifted {
        /// The port that it kept closed.
        port: u16,
    },
    /// Something is wrong and could not be mended; it is tried again at every tick.
    Trouble {
        /// What is wrong and what to do.
        message: String,
    },
    /// What [`GuardEvent::Trouble`] said is over.
    Over {
        /// What was wrong.
        message: String,
    },
}

impl GuardEvent {
    /// Whether the operator has to know.
    #[must_use]
    pub const fn is_warning(&self) -> bool {
        !matches!(
            self,
            Self::Guarded { .. }
                | Self::Gone { .. }
                | Self::Renamed { .. }
                | Self::BootRuleLifted { .. }
                | Self::Over { .. }
        )
    }
}

impl fmt::Display for GuardEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guarded { interface, open_at_most } => {
                let ms = open_at_most.as_millis();
                write!(formatter, "interface {interface} is guarded now; open for at most {ms} ms")
            }
            Self::Reattached { interface } => {
                write!(formatter, "the guard was detached from {interface}; it stands again")
            }
            Self::ProgramRestored { interface, program_id } => write!(
                formatter,
                "program {program_id} took the guard's place on {interface}; the guard is back"
            ),
            Self::WentFirst { interface, program_id } => write!(
                formatter,
                "program {program_id} was put before the guard on {interface}; the guard is first again"
            ),
            Self::Repinned { what } => {
                write!(formatter, "pins were removed ({what}); they are back")
            }
            Self::Remounted => {
                write!(formatter, "the bpffs was unmounted; it is mounted and filled again")
            }
            Self::Gone { ifindex } => write!(formatter, "interface {ifindex} went away"),
            Self::Renamed { from, to } => write!(formatter, "interface {from} is called {to} now"),
            Self::BootRuleLifted { port } => write!(
                formatter,
                "the guard is on every interface that it should be on: the boot rule of port {port} is lifted"
            ),
            Self::Trouble { message } => write!(formatter, "{message}"),
            Self::Over { message } => write!(formatter, "over: {message}"),
        }
    }
}

/// Tells when to call [`Guard::tick`].
#[derive(Debug)]
pub struct Watch {
    announcements: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Returns when netlink has news, or after a quarter of a second. May be dropped while it
    /// waits.
    pub async fn ready(&self) {
        let news = tokio::time::timeout(TICK_INTERVAL, self.announcements.readable()).await;
        if let Ok(Ok(mut news)) = news {
            // The tick that follows reads until nothing is left.
            news.clear_ready();
        }
    }
}

impl Guard {
    /// The waiting side of [`Guard::tick`]; needs a tokio runtime.
    pub fn watch(&self) -> io::Result<Watch> {
        let announcements = self.netlink.announcements().try_clone_to_owned()?;
        Ok(Watch { announcements: sys::async_fd(announcements)? })
    }

    /// Looks whether the guard stands, and mends it. Call it when [`Watch::ready`] returns, at
    /// least twice a second, on a thread of the guard's network namespace.
    pub fn tick(&mut self) -> Vec<GuardEvent> {
        let mut events = Vec::new();
        self.check_bpffs(&mut events);
        let news = self.netlink.drain();
        let all_stand = self.check_links(&mut events);
        let outcome = self.check_order(&mut events);
        self.note("order", outcome, &mut events);
        let is_old = self.listed_at.elapsed() >= LISTING_AGE_MAX || !self.faults.is_empty();
        if is_old || !all_stand || !self.pins_exist() || !matches!(news, Ok(false)) {
            let outcome = self.check_interfaces(&mut events);
            self.note("interfaces", outcome, &mut events);
            let outcome = self.check_pins(&mut events);
            self.note("pins", outcome, &mut events);
            events.extend(self.lift_boot_rule());
        }
        self.ticked_at = Instant::now();
        events
    }

    /// Says a lasting trouble once, and once that it is over.
    pub(super) fn note(
        &mut self,
        subject: &'static str,
        outcome: Result<(), GuardError>,
        events: &mut Vec<GuardEvent>,
    ) {
        match outcome {
            Ok(()) => {
                if let Some(message) = self.troubles.remove(subject) {
                    events.push(GuardEvent::Over { message });
                }
            }
            Err(error) => {
                let message = error.to_string();
                if self.troubles.get(subject) != Some(&message) {
                    self.troubles.insert(subject, message.clone());
                    events.push(GuardEvent::Trouble { message });
                }
            }
        }
    }

    /// Mounts the bpffs again if it is gone, and pins everything.
    fn check_bpffs(&mut self, events: &mut Vec<GuardEvent>) {
        // Another daemon may have mounted it again already.
        let is_there = self.pins.is_mounted() && self.slot.is_in(&self.pins);
        if is_there && !self.is_adrift {
            return;
        }
        self.is_adrift = true;
        let outcome = match self.remount() {
            Ok(false) => return,
            Ok(true) => {
                self.is_adrift = false;
                events.push(GuardEvent::Remounted);
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.note("mount", outcome, events);
    }

    /// False if another daemon has the directory: it is not waited for, since the links are to be
    /// looked at meanwhile, but tried again at the next tick.
    fn remount(&mut self) -> Result<bool, GuardError> {
        self.pins.prepare()?;
        let Some(_lock) = self.pins.lock_at_once()? else { return Ok(false) };
        lists::reclaim(&self.pins, &mut self.slot)?;
        self.slot.mark_known(&self.pins);
        self.pin_everything()?;
        Ok(true)
    }

    /// Looks at every link, and gives it our program back. Whether each is still on its device.
    fn check_links(&mut self, events: &mut Vec<GuardEvent>) -> bool {
        let mut all_stand = true;
        let ours: HashSet<u32> = self.programs.loaded().map(|(_, program)| program.id).collect();
        let mut suspects = Vec::new();
        for ifindex in self.links.keys().copied().collect::<Vec<_>>() {
            match self.program_on(ifindex) {
                Some(id) if ours.contains(&id) => {}
                Some(id) => suspects.push((ifindex, id)),
                // The device is gone, or the link was detached: the listing says which.
                None => all_stand = false,
            }
        }
        self.check_suspects(&suspects, events);
        all_stand
    }

    /// Puts the guard back where the program of a stranger stands: one that no daemon of this
    /// guard has pinned.
    fn check_suspects(&mut self, suspects: &[(u32, u32)], events: &mut Vec<GuardEvent>) {
        if suspects.is_empty() {
            self.suspected_at = None;
            return;
        }
        // A daemon that starts puts its program there before it pins it, under the lock. Whoever
        // keeps the lock for longer than that does not keep the guard off.
        let lock = self.pins.try_lock();
        let since = self.suspected_at.get_or_insert_with(Instant::now);
        if lock.is_none() && self.pins.root().exists() && since.elapsed() < PIN_PATIENCE {
            return;
        }
        let pinned = attach::pinned_programs(&self.pins);
        for (ifindex, id) in suspects.iter().filter(|(_, id)| !pinned.contains_key(id)) {
            self.restore_program(*ifindex, *id, events);
        }
        self.suspected_at = None;
    }

    fn restore_program(&mut self, ifindex: u32, program_id: u32, events: &mut Vec<GuardEvent>) {
        let Some(link) = self.links.get_mut(&ifindex) else { return };
        let Ok(program) = self.programs.for_mode(link.mode) else { return };
        if sys::link_update(link.fd.as_fd(), program.fd()).is_ok() {
            link.program_id = program.id;
            let interface = self.name(ifindex);
            events.push(GuardEvent::ProgramRestored { interface, program_id });
        }
    }

    /// Lists devices and addresses, and stands on those that the guard should and does not.
    fn check_interfaces(&mut self, events: &mut Vec<GuardEvent>) -> Result<(), GuardError> {
        let fault = |error| GuardError::io("listing interfaces", error);
        let before =
            std::mem::replace(&mut self.interfaces, self.netlink.interfaces().map_err(fault)?);
        let addresses = self.netlink.addresses().map_err(fault)?;
        // A device that was there at the last tick was announced and seen then.
        let open_at_most = self.ticked_at.elapsed();
        self.listed_at = Instant::now();
        self.sync_addresses(addresses)?;
        self.note_names(&before, events);
        self.forget_gone(events);
        let (plans, _) = plan(&self.interfaces, &self.config.interfaces);
        let planned: Vec<_> = self.interfaces.iter().cloned().zip(plans).collect();
        for (interface, plan) in planned {
            if plan == Plan::Guard && !self.is_guarded(&interface) {
                self.mend(&interface, open_at_most, events);
            }
        }
        Ok(())
    }

    /// Whether our link stands on the device, and the device shows a program of ours.
    fn is_guarded(&self, interface: &Interface) -> bool {
        let Some(program_id) = self.program_on(interface.ifindex) else { return false };
        let is_xdp = self.links[&interface.ifindex].mode != crate::guard::Mode::Tcx;
        // A device elsewhere can have the same number; the one here must show the program.
        !is_xdp || interface.xdp.iter().any(|(_, id)| *id == program_id)
    }

    fn mend(
        &mut self,
        interface: &Interface,
        open_at_most: Duration,
        events: &mut Vec<GuardEvent>,
    ) {
        // Whoever has the lock may be about to stand here; the next tick comes soon.
        let lock = self.pins.try_lock();
        if lock.is_none() && self.pins.root().exists() {
            return;
        }
        let was_known = self.links.contains_key(&interface.ifindex);
        let existing = self.existing(interface);
        match attach::stand(
            &mut self.programs,
            self.config.mode,
            interface,
            existing,
            Taken::Behind,
        ) {
            Ok(Outcome::Gone) => {}
            Ok(Outcome::Standing { link, created }) => {
                self.faults.remove(&interface.ifindex);
                self.links.insert(interface.ifindex, link);
                let link = &self.links[&interface.ifindex];
                let outcome = self.pin_link(interface.ifindex, link);
                let name = interface.name.clone();
                let warning = link.warning.map(|warning| format!("interface {name}: {warning}"));
                events.push(if was_known && created {
                    GuardEvent::Reattached { interface: name }
                } else {
                    GuardEvent::Guarded { interface: name, open_at_most }
                });
                events.extend(warning.map(|message| GuardEvent::Trouble { message }));
                self.note("link pin", outcome, events);
            }
            Err(_) if self.is_covered_by_ports(interface) => {}
            Err(error) => {
                let message = format!("{error}; strangers reach the guarded ports through it");
                if self.faults.get(&interface.ifindex) != Some(&message) {
                    self.faults.insert(interface.ifindex, message.clone());
                    events.push(GuardEvent::Trouble { message });
                }
            }
        }
    }

    /// A live link that stands on the device already: one that came back with it from another
    /// namespace, or one that another daemon of this guard pinned. A detached one is forgotten.
    fn existing(&mut self, interface: &Interface) -> Option<Found> {
        // A live link is never dropped here: its descriptor may be all that holds the program.
        self.strays.extend(self.links.remove(&interface.ifindex));
        let is_here = |link: &Link| {
            link.facts()
                .is_ok_and(|facts| facts.ifindex == interface.ifindex && shows(interface, &facts))
        };
        self.strays.retain(|link| link.facts().is_ok_and(|facts| facts.ifindex != 0));
        let stray = self.strays.iter().position(&is_here).map(|idx| self.strays.swap_remove(idx));
        let moved =
            || self.links.iter().find(|(_, link)| is_here(link)).map(|(ifindex, _)| *ifindex);
        let held = match stray {
            Some(link) => Some(link),
            None => moved().and_then(|ifindex| self.links.remove(&ifindex)),
        };
        if let Some(link) = held {
            let facts = link.facts().ok()?;
            return Some(Found { fd: link.fd, facts });
        }
        let pinned = attach::pinned_links(&self.pins).remove(&interface.ifindex);
        pinned.filter(|found| shows(interface, &found.facts))
    }

    /// Forgets links whose device is gone; links of devices that moved to another namespace are
    /// kept, for the day they come back.
    fn forget_gone(&mut self, events: &mut Vec<GuardEvent>) {
        let here: HashSet<u32> = self.interfaces.iter().map(|one| one.ifindex).collect();
        self.faults.retain(|ifindex, _| here.contains(ifindex));
        let gone: Vec<u32> = self
            .links
            .iter()
            .filter(|(ifindex, link)| {
                !here.contains(ifindex) && link.facts().is_ok_and(|facts| facts.ifindex == 0)
            })
            .map(|(ifindex, _)| *ifindex)
            .collect();
        // Those of devices that are gone wherever they went are of no more use.
        self.strays.retain(|link| link.facts().is_ok_and(|facts| facts.ifindex != 0));
        for ifindex in gone {
            self.links.remove(&ifindex);
            let _ = self.pins.unpin(LINKS, &ifindex.to_string());
            events.push(GuardEvent::Gone { ifindex });
        }
    }

    fn note_names(&self, before: &[Interface], events: &mut Vec<GuardEvent>) {
        for now in &self.interfaces {
            let old = before.iter().find(|old| old.ifindex == now.ifindex);
            if let Some(old) = old.filter(|old| old.name != now.name) {
                let (from, to) = (old.name.clone(), now.name.clone());
                events.push(GuardEvent::Renamed { from, to });
            }
        }
    }

    /// Puts back pins that somebody removed or replaced.
    fn check_pins(&mut self, events: &mut Vec<GuardEvent>) -> Result<(), GuardError> {
        if self.missing_pins().is_empty() {
            return Ok(());
        }
        let Some(_lock) = self.pins.try_lock() else { return Ok(()) };
        // The pins may be of another daemon, which went before somebody's program.
        self.go_first(events)?;
        let missing = self.missing_pins();
        if missing.is_empty() {
            return Ok(());
        }
        self.pins.prepare()?;
        self.pin_everything()?;
        events.push(GuardEvent::Repinned { what: missing.join(", ") });
        Ok(())
    }

    /// Whether every pin has a file; what the files stand for is looked at with the listing.
    fn pins_exist(&self) -> bool {
        let is_there = |directory, name: &str| self.pins.path(directory, name).exists();
        SPECS.iter().all(|spec| is_there(MAPS, spec.name))
            && self.links.keys().all(|ifindex| is_there(LINKS, &ifindex.to_string()))
    }

    fn missing_pins(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (spec, id) in SPECS.iter().zip(self.maps.ids()) {
            if crate::guard::start::pinned_map_id(&self.pins, spec.name) != Some(id) {
                missing.push(format!("{MAPS}/{}", spec.name));
            }
        }
        for (ifindex, link) in &self.links {
            if attach::pinned_id(&self.pins, *ifindex) != Some(link.id) {
                missing.push(format!("{LINKS}/{}", self.name(*ifindex)));
            }
        }
        missing
    }

    pub(super) fn name(&self, ifindex: u32) -> String {
        let interface = self.interfaces.iter().find(|one| one.ifindex == ifindex);
        interface.map_or_else(|| ifindex.to_string(), |one| one.name.clone())
    }
}

/// Whether a link of the device's number really stands on this device: one that moved to another
/// namespace may have the same number there.
fn shows(interface: &Interface, facts: &LinkFacts) -> bool {
    !facts.is_xdp || interface.xdp.iter().any(|(_, id)| *id == facts.program_id)
}

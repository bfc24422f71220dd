//! Standing first at tcx: a program before the guard could pass packets to the stack past it.
//!
//! It owns going before a program that was put there. It never takes that one off, and at no time
//! is the guard off the device: it comes back by a second link before the first one goes.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use crate::guard::attach::{self, Found, Link};
use crate::guard::error::GuardError;
use crate::guard::object::program_name;
use crate::guard::pins::PROGRAMS;
use crate::guard::watch::GuardEvent;
use crate::guard::{Guard, Mode};
use crate::sys::{self, Hook};

impl Guard {
    /// Goes before programs that were put before the guard since the last look.
    pub(super) fn check_order(&mut self, events: &mut Vec<GuardEvent>) -> Result<(), GuardError> {
        if self.behind().is_empty() {
            return Ok(());
        }
        // Another daemon of this guard may be about the same.
        let Some(_lock) = self.pins.try_lock() else { return Ok(()) };
        self.go_first(events)
    }

    /// [`Guard::check_order`] for whoever has the lock.
    pub(super) fn go_first(&mut self, events: &mut Vec<GuardEvent>) -> Result<(), GuardError> {
        let behind = self.behind();
        if behind.is_empty() {
            return Ok(());
        }
        let pinned = attach::pinned_programs(&self.pins);
        let mut links = attach::pinned_links(&self.pins);
        for (ifindex, first) in behind {
            if pinned.contains_key(&first) {
                // Another daemon of this guard went first: its link is the one to hold.
                self.hold(ifindex, links.remove(&ifindex));
                continue;
            }
            self.stand_first(ifindex)?;
            let interface = self.name(ifindex);
            events.push(GuardEvent::WentFirst { interface, program_id: first });
        }
        Ok(())
    }

    /// Devices where the guard is at tcx and another program is run before it: that one's number.
    fn behind(&self) -> Vec<(u32, u32)> {
        let at_tcx = self.links.iter().filter(|(_, link)| link.mode == Mode::Tcx);
        let behind = at_tcx.filter_map(|(ifindex, _)| {
            let ours = self.program_on(*ifindex)?;
            let first = *sys::tcx_programs(*ifindex).ok()?.first()?;
            (first != ours).then_some((*ifindex, first))
        });
        behind.collect()
    }

    fn hold(&mut self, ifindex: u32, found: Option<Found>) {
        let (Some(found), Some(link)) = (found, self.links.get_mut(&ifindex)) else { return };
        let (id, program_id) = (found.facts.id, found.facts.program_id);
        *link = Link { fd: found.fd, id, program_id, ..*link };
    }

    /// A hook takes a program once, so the guard is loaded once more. All its links get that one.
    fn stand_first(&mut self, ifindex: u32) -> Result<(), GuardError> {
        let name = program_name(Mode::Tcx);
        let program = self.programs.load_again(Mode::Tcx);
        let program = program
            .map_err(|refusal| GuardError::Load { what: name.to_owned(), error: refusal.text })?;
        let fault = |what: &str| {
            let what = what.to_owned();
            move |error| GuardError::io(what, error)
        };
        // Pinned first: other daemons of this guard know it by that.
        self.pins
            .pin(program.fd(), PROGRAMS, name)
            .map_err(fault("pinning the guard's program"))?;
        let fd = sys::link_create(program.fd(), ifindex, Hook::Tcx)
            .map_err(fault("going before another program at tcx"))?;
        let id = sys::link_facts(fd.as_fd()).map_err(fault("asking for a link's number"))?.id;
        if let Some(link) = self.links.get_mut(&ifindex) {
            *link = Link { fd, id, program_id: program.id, ..*link };
        }
        let at_tcx = self.links.iter_mut().filter(|(_, link)| link.mode == Mode::Tcx);
        for (_, link) in at_tcx.filter(|(other, _)| **other != ifindex) {
            if sys::link_update(link.fd.as_fd(), program.fd()).is_ok() {
                link.program_id = program.id;
            }
        }
        self.pin_link(ifindex, &self.links[&ifindex])
    }
}

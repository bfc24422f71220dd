//! Putting the guard's program on an interface: the ladder of modes, links that are updated and
//! never detached, and who stands in the way.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::guard::error::{GuardError, Tries};
use crate::guard::interfaces::{Attached, Interface};
use crate::guard::object::Programs;
use crate::guard::pins::{LINKS, PROGRAMS, Pins, with_mount_capability};
use crate::guard::{Mode, ModeChoice};
use crate::sys::{self, Hook, LinkFacts};

/// A link that holds the guard on an interface.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) fd: OwnedFd,
    pub(super) id: u32,
    pub(super) program_id: u32,
    pub(super) mode: Mode,
    /// What the operator should know about it.
    pub(super) warning: Option<&'static str>,
}

impl Link {
    /// What the kernel says about it now.
    pub(super) fn facts(&self) -> io::Result<LinkFacts> {
        sys::link_facts(self.fd.as_fd())
    }
}

/// A link found among the pins or held from before.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) fd: OwnedFd,
    pub(super) facts: LinkFacts,
}

/// What came of one interface.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The guard stands on it. `created`: by a new link, which still has to be pinned.
    Standing { link: Link, created: bool },
    /// The interface went away meanwhile.
    Gone,
}

const NO_MODE_FIX: &str = "run with --guard-mode generic if its cost will do, or leave the interface out with --interface";
const NO_MODE_FIX_GENERIC: &str = "leave the interface out with --interface";
const NO_HEADER: &str = "its packets have no Ethernet header; only tcx can guard it";
const BEHIND: &str = "behind another XDP program, which sees every packet first; what that one redirects, the guard does not see";
const KEPT_GENERIC: &str = "kept in generic mode, in which an earlier start attached it; to change that, run sessionctl detach and restart";
const KEPT_NATIVE: &str = "kept in native mode, which is better than the generic mode asked for";

/// The modes to try on an interface, best first.
fn ladder(choice: ModeChoice, interface: &Interface) -> &'static [Mode] {
    match (choice, interface.is_ethernet()) {
        (ModeChoice::Auto, true) => &[Mode::NativeFrags, Mode::Native, Mode::Tcx],
        (ModeChoice::Native, true) => &[Mode::NativeFrags, Mode::Native],
        (ModeChoice::Generic, true) => &[Mode::Generic],
        (ModeChoice::Tcx, _) | (ModeChoice::Auto, false) => &[Mode::Tcx],
        (ModeChoice::Native | ModeChoice::Generic, false) => &[],
    }
}

/// The hook of a mode.
const fn hook(mode: Mode) -> Hook {
    match mode {
        Mode::NativeFrags | Mode::Native => Hook::XdpNative,
        Mode::Generic => Hook::XdpGeneric,
        Mode::Tcx => Hook::Tcx,
    }
}

/// Where another program has the hook of XDP, and the mode is not prescribed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// That is an error, for the operator to decide.
    Refuse,
    /// The guard stands behind it at tcx: better than an interface that is open.
    Behind,
}

/// Stands the guard on `interface`, over `existing` if that is given. What guards the interface
/// already is never taken off before its successor stands.
pub(super) fn stand(
    programs: &mut Programs,
    choice: ModeChoice,
    interface: &Interface,
    mut existing: Option<Found>,
    taken: Taken,
) -> Result<Outcome, GuardError> {
    let mut tries = Tries::default();
    let mut busy = None;
    // Where it stands behind another program already, it goes on doing so.
    let goes_behind =
        taken == Taken::Behind || existing.as_ref().is_some_and(|found| !found.facts.is_xdp);
    for mode in ladder(choice, interface) {
        let program = match programs.for_mode(*mode) {
            Ok(program) => program,
            Err(refusal) if refusal.not_permitted => return Err(not_permitted(interface)),
            Err(refusal) => {
                tries.0.push((*mode, refusal.text));
                continue;
            }
        };
        if let Some((actual, warning)) =
            existing.as_ref().and_then(|found| reuse(found, interface, *mode))
        {
            let found = existing.take().expect("it was there a line before");
            match sys::link_update(found.fd.as_fd(), program.fd()) {
                Ok(()) => {
                    let link = Link {
                        id: found.facts.id,
                        fd: found.fd,
                        program_id: program.id,
                        mode: actual,
                        warning: warning.or(busy.as_ref().map(|_| BEHIND)),
                    };
                    return Ok(Outcome::Standing { link, created: false });
                }
                // The device is gone, or somebody detached the link: it is of no more use.
                Err(error) if is(&error, Errno::NOLINK) => {}
                Err(error) => {
                    tries.0.push((*mode, error.to_string()));
                    existing = Some(found);
                    continue;
                }
            }
        }
        match create(program.fd(), interface, *mode, program.id) {
            // A link of another hook that stood before goes when `existing` is dropped.
            Ok(mut link) => {
                link.warning = busy.map(|_| BEHIND);
                return Ok(Outcome::Standing { link, created: true });
            }
            Err(error) if is(&error, Errno::NODEV) => return Ok(Outcome::Gone),
            Err(error) if is(&error, Errno::BUSY) || is(&error, Errno::EXIST) => {
                let (name, owner) = (interface.name.clone(), owner(interface));
                let error = GuardError::Busy { interface: name, owner };
                if !goes_behind {
                    return Err(error);
                }
                busy = Some(error);
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(not_permitted(interface));
            }
            Err(error) => tries.0.push((*mode, error.to_string())),
        }
    }
    Err(busy.unwrap_or_else(|| no_mode(choice, interface, tries)))
}

/// Whether a link can carry a mode's program: its actual mode, and what to say about it. XDP
/// links in the driver and on socket buffers exclude each other, so the one there is stays.
fn reuse(found: &Found, interface: &Interface, mode: Mode) -> Option<(Mode, Option<&'static str>)> {
    if found.facts.is_xdp != (hook(mode) != Hook::Tcx) {
        return None;
    }
    let is_generic = interface
        .xdp
        .iter()
        .any(|(attached, id)| *attached == Attached::Generic && *id == found.facts.program_id);
    Some(match mode {
        Mode::NativeFrags | Mode::Native if is_generic => (Mode::Generic, Some(KEPT_GENERIC)),
        Mode::Generic if !is_generic => (Mode::Native, Some(KEPT_NATIVE)),
        mode => (mode, None),
    })
}

fn create(
    program: BorrowedFd<'_>,
    interface: &Interface,
    mode: Mode,
    program_id: u32,
) -> io::Result<Link> {
    let fd = sys::link_create(program, interface.ifindex, hook(mode))?;
    let id = sys::link_facts(fd.as_fd())?.id;
    Ok(Link { fd, id, program_id, mode, warning: None })
}

fn not_permitted(interface: &Interface) -> GuardError {
    GuardError::NotPermitted {
        what: format!("attaching the guard to {}", interface.name),
        capabilities: "CAP_BPF and CAP_NET_ADMIN",
    }
}

fn no_mode(choice: ModeChoice, interface: &Interface, mut tries: Tries) -> GuardError {
    if !interface.is_ethernet() && choice != ModeChoice::Auto && choice != ModeChoice::Tcx {
        tries.0.push((Mode::Native, NO_HEADER.to_owned()));
    }
    let fix = match choice {
        ModeChoice::Generic => NO_MODE_FIX_GENERIC,
        _ if interface.is_ethernet() => NO_MODE_FIX,
        _ => NO_MODE_FIX_GENERIC,
    };
    GuardError::NoMode { interface: interface.name.clone(), tries, fix }
}

/// The program on an interface, as well as this process may know it.
fn owner(interface: &Interface) -> String {
    let Some((_, id)) = interface.xdp.first() else {
        return "another XDP program".to_owned();
    };
    let name = with_mount_capability(|| sys::program_by_id(*id))
        .and_then(|program| sys::program_facts(program.as_fd()));
    match name {
        Ok((_, name)) if name.starts_with("guard") => format!(
            "XDP program {id} (`{name}`), a guard that is pinned in another bpffs or namespace"
        ),
        Ok((_, name)) => format!("XDP program {id} (`{name}`)"),
        Err(_) => format!("XDP program {id}"),
    }
}

/// Opens all pinned links; those that no longer hold a device are unpinned. One that cannot be
/// opened is left out and keeps its pin.
pub(super) fn pinned_links(pins: &Pins) -> HashMap<u32, Found> {
    let mut links = HashMap::new();
    for name in pins.names(LINKS) {
        let fd = match sys::object_open(&pins.path(LINKS, &name)) {
            Ok(fd) => fd,
            // Out of descriptors or memory: the pin may be all that holds the guard, so it stays.
            Err(error) => {
                log::warn!("guard: opening the pinned link {name}: {error}");
                continue;
            }
        };
        match sys::link_facts(fd.as_fd()) {
            Ok(facts) if facts.ifindex != 0 => {
                links.insert(facts.ifindex, Found { fd, facts });
            }
            // Not a link of ours, or one without a device: nothing is lost with its pin.
            _ => drop(pins.unpin(LINKS, &name)),
        }
    }
    links
}

/// Opens all pinned programs, by number.
pub(super) fn pinned_programs(pins: &Pins) -> HashMap<u32, OwnedFd> {
    let opened = pins.names(PROGRAMS).into_iter().filter_map(|name| {
        let fd = sys::object_open(&pins.path(PROGRAMS, &name)).ok()?;
        let (id, _) = sys::program_facts(fd.as_fd()).ok()?;
        Some((id, fd))
    });
    opened.collect()
}

/// Pins a link under its device's number.
pub(super) fn pin(pins: &Pins, ifindex: u32, link: &Link) -> Result<(), GuardError> {
    pins.pin(link.fd.as_fd(), LINKS, &ifindex.to_string())
        .map_err(|error| GuardError::io(format!("pinning the link of device {ifindex}"), error))
}

/// Number of the link pinned for a device.
pub(super) fn pinned_id(pins: &Pins, ifindex: u32) -> Option<u32> {
    let fd = sys::object_open(&pins.path(LINKS, &ifindex.to_string())).ok()?;
    Some(sys::link_facts(fd.as_fd()).ok()?.id)
}

/// Takes a link's program off its device.
pub(super) fn detach(found: &Found) -> Result<(), GuardError> {
    sys::link_detach(found.fd.as_fd())
        .map_err(|error| GuardError::io(format!("detaching link {}", found.facts.id), error))
}

fn is(error: &io::Error, code: Errno) -> bool {
    error.raw_os_error() == Some(code.raw_os_error())
}

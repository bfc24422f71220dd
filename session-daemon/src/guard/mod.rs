//! The guard from user space: loaded, filled, attached, watched.
//!
//! It owns the XDP program's life and the maps. It never sees a client's byte and is never on
//! the request path; what a packet meets is decided in `session-ebpf`.
#![forbid(unsafe_code)]

mod attach;
pub(crate) mod boot;
mod counters;
pub mod error;
mod inner;
pub mod interfaces;
pub mod lists;
mod maps;
mod netlink;
mod object;
mod order;
mod pins;
pub mod plane;
pub mod probe;
mod questions;
pub mod samples;
mod start;
pub mod status;
pub(crate) mod survey;
mod tables;
pub mod watch;
pub mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::allowlist::{Allowlist, Entry, Sizes, canonical};
use crate::guard::attach::Link;
use crate::guard::boot::BootRules;
use crate::guard::error::GuardError;
use crate::guard::interfaces::{Interface, Interfaces};
use crate::guard::lists::{Protocol, Slot};
use crate::guard::maps::Maps;
use crate::guard::netlink::Netlink;
use crate::guard::object::Programs;
use crate::guard::pins::Pins;
use crate::guard::plane::Plane;
use crate::guard::samples::Samples;
use crate::guard::tables::Keys;
use crate::guard::written::{Predecessor, Successor, Writing, Written, next_word};
use crate::sys;

/// How the guard stands on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// XDP in the driver, with packets of several pieces. Linux 5.18.
    NativeFrags,
    /// XDP in the driver.
    Native,
    /// tcx: after the socket buffer was made, before the stack. Linux 6.6.
    Tcx,
    /// XDP on socket buffers, for any driver.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NativeFrags => "native with frags",
            Self::Native => "native",
            Self::Tcx => "tcx",
            Self::Generic => "generic",
        })
    }
}

/// `--guard-mode`: which modes may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeChoice {
    /// The best that each interface has: native with frags, native, tcx; never generic.
    #[default]
    Auto,
    /// XDP in the driver or nothing.
    Native,
    /// tcx or nothing.
    Tcx,
    /// Generic XDP or nothing.
    Generic,
}

/// Which destinations are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Destination {
    /// The host's own addresses, as a firewall's INPUT chain.
    #[default]
    Local,
    /// Every address, forwarded traffic included.
    Any,
}

/// `--refuse`: what a refused source is told, unless the entry that refuses it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refuse {
    /// Nothing.
    #[default]
    Drop,
    /// A TCP reset.
    Reset,
    /// ICMP: administratively prohibited.
    Icmp,
}

impl Refuse {
    /// The style of a name, as flags and commands have it.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "drop" => Some(Self::Drop),
            "reset" => Some(Self::Reset),
            "icmp" => Some(Self::Icmp),
            _ => None,
        }
    }
}

/// What to guard and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardConfig {
    /// Where to stand.
    pub interfaces: Interfaces,
    /// Which modes may be used.
    pub mode: ModeChoice,
    /// The guarded ports.
    pub endpoints: Vec<(Protocol, u16)>,
    /// Where the bpffs is or will be mounted, usually `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// Which destinations are judged.
    pub destination: Destination,
    /// Count what would be dropped, and pass it.
    pub audit: bool,
    /// What refused sources are told.
    pub refuse: Refuse,
    /// Name of this daemon's list, the same over restarts; one daemon a name and namespace.
    pub list: String,
}

/// Where a bpffs is mounted by convention.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The guard of this daemon, standing. Dropping it takes nothing off: the pins stay.
#[derive(Debug)]
pub struct Guard {
    config: GuardConfig,
    pins: Pins,
    slot: Slot,
    maps: Maps,
    programs: Programs,
    netlink: Netlink,
    boot_rules: BootRules,
    /// The list in force.
    written: Written,
    samples: Samples,
    /// What answers in front of the daemon, if it is asked for.
    plane: Option<Plane>,
    /// Own addresses as they stand in the maps.
    addresses: BTreeSet<IpAddr>,
    /// Devices as they were listed last.
    interfaces: Vec<Interface>,
    /// Links by device number.
    links: BTreeMap<u32, Link>,
    /// Links of devices that are not here now: they moved to another namespace.
    strays: Vec<Link>,
    /// Why a device that should be guarded is not, by number.
    faults: BTreeMap<u32, String>,
    /// Faults of the guard as a whole that last, by subject.
    troubles: BTreeMap<&'static str, String>,
    /// Generation that was written last, in force or not.
    generation: u32,
    /// The bpffs was gone, and what is there now does not hold this guard yet.
    is_adrift: bool,
    listed_at: Instant,
    ticked_at: Instant,
    /// Since when a stranger's program may stand on a device, for all that is known.
    suspected_at: Option<Instant>,
}

/// The guard on the listening sockets themselves: a second layer, which needs no interface.
#[derive(Debug)]
pub struct SocketGuard(OwnedFd);

impl SocketGuard {
    /// Has the kernel drop what the list refuses before the socket sees it. A connection inherits
    /// the filter; whoever accepts it takes it off.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn stand_on(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        sys::attach_filter(socket, self.0.as_fd())
    }
}

/// Changes need no lock: every key and counter that they touch carries the number of the list's
/// slot, which is this daemon's for as long as it lives. So no other daemon delays a denial.
impl Guard {
    /// Adds an entry, in place of one with the same prefix. In force when it returns.
    ///
    /// # Errors
    /// [`GuardError::Outgrown`] says that there is no room for one more host: the list has to be
    /// replaced as a whole by one with the entry. Nothing has changed then.
    pub fn insert(&mut self, entry: &Entry) -> Result<(), GuardError> {
        self.written.insert(&Entry { prefix: canonical(entry.prefix), ..entry.clone() })
    }

    /// Removes the entry of exactly this prefix; whether there was one. In force when it returns.
    pub fn remove(&mut self, prefix: IpNet) -> Result<bool, GuardError> {
        self.written.remove(canonical(prefix))
    }

    /// Puts `list` in the place of the one in force, at one instant. On an error the old one
    /// stays, whole.
    pub fn replace(&mut self, list: &Allowlist) -> Result<(), GuardError> {
        let mut successor = self.successor(list.sizes())?;
        successor.fill(list, &Writing::default())?;
        self.switch(successor)?.remove();
        Ok(())
    }

    /// [`Guard::replace`] in steps, for a list so long that others need the guard meanwhile: room
    /// for a list of so many entries; then [`Successor::fill`], [`Guard::switch`] and
    /// [`Predecessor::remove`]. Entries must not be inserted or removed between the first and the
    /// third.
    pub fn successor(&mut self, sizes: Sizes) -> Result<Successor, GuardError> {
        sizes.check()?;
        // What a crash left behind was swept when this process started.
        self.generation = Keys::default().next_generation(self.generation);
        let word = next_word(self.slot.number, self.generation, &sizes, self.written.word);
        Written::begin(&self.maps, word, sizes, self.written.counters.clone()).map(Successor)
    }

    /// Brings a filled list into force.
    ///
    /// # Errors
    /// The kernel refuses; the old list stays.
    pub fn switch(&mut self, successor: Successor) -> Result<Predecessor, GuardError> {
        let Successor(next) = successor;
        if let Err(error) = self.maps.lists.set(self.slot.number, next.word, 0) {
            next.clear();
            return Err(maps::write_error("LISTS", &error));
        }
        Ok(Predecessor(std::mem::replace(&mut self.written, next)))
    }

    /// The guard's program for sockets, over the same list.
    ///
    /// # Errors
    /// The kernel does not take it, or no descriptor is left.
    pub fn for_sockets(&mut self) -> Result<SocketGuard, GuardError> {
        let fault = |error| GuardError::Load { what: "the sockets' program".to_owned(), error };
        let program = self.programs.for_sockets().map_err(|refusal| fault(refusal.text))?;
        let fd = program.fd().try_clone_to_owned().map_err(|error| fault(error.to_string()))?;
        Ok(SocketGuard(fd))
    }
}

/// What [`detach_all`] took off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// Links that held a device.
    pub links: usize,
}

/// Takes the guard of this network namespace off every interface and removes its pins: the only
/// way to end it. Refused while a daemon runs.
pub fn detach_all(bpffs: &Path) -> Result<Detached, GuardError> {
    let own = Pins::locate(bpffs)?;
    let mut directories = own.of_other_schemas();
    directories.extend(own.root().exists().then_some(own));
    let mut links = 0;
    for pins in &directories {
        let _lock = pins.lock()?;
        lists::refuse_live(pins)?;
        for found in attach::pinned_links(pins).values() {
            attach::detach(found)?;
            links += 1;
        }
        pins.remove_all().map_err(|error| {
            GuardError::io(format!("removing {}", pins.root().display()), error)
        })?;
    }
    Ok(Detached { links })
}

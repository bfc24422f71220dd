//! The start of a guard: claim a list, check the pins, fill, attach, pin, in this order.
//!
//! A start that fails leaves what stood before in force: staged entries are taken out again,
//! updated links get their former program back, new links end with their descriptors.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use session_common::guard::{ListWord, MAGIC, Meta, SCHEMA, settings};

use crate::allowlist::{Allowlist, Sizes};
use crate::guard::attach::{self, Link, Outcome, Taken};
use crate::guard::boot::BootRules;
use crate::guard::counters::RuleCounters;
use crate::guard::error::GuardError;
use crate::guard::interfaces::{Interfaces, Plan, plan};
use crate::guard::lists;
use crate::guard::maps::{self, Pinned, write_error};
use crate::guard::netlink::Netlink;
use crate::guard::object;
use crate::guard::pins::{Lock, MAPS, PROGRAMS, Pins, mounts_are_private};
use crate::guard::samples::Samples;
use crate::guard::tables::{Keys, Places, clear_shared};
use crate::guard::written::{Successor, Writing, Written, next_word, wait_for_readers};
use crate::guard::{Destination, Guard, GuardConfig, Refuse};
use crate::sys;

const PRIVATE_MOUNT: &str = "the bpffs was mounted in a mount namespace of this process's own: the pins end with it; mount it before sessiond starts";

const NO_MAPS: &str = "the maps are missing";

impl Guard {
    /// Puts the guard up. When it returns every selected interface is guarded and `list` is in
    /// force for the endpoints; the caller binds the ports after it.
    pub fn attach(config: GuardConfig, list: &Allowlist) -> Result<Self, GuardError> {
        Self::attach_with(config, list, None)
    }

    /// [`Guard::attach`] of a process that has had this list with another program: `lock` is what
    /// [`Guard::copy_lock`] gave there. The list is this daemon's all the time.
    pub fn attach_with(
        config: GuardConfig,
        list: &Allowlist,
        lock: Option<OwnedFd>,
    ) -> Result<Self, GuardError> {
        list.check_size()?;
        let pins = Pins::locate(&config.bpffs)?;
        let mounted = pins.prepare()?;
        let _lock = pins.lock()?;
        let slot = lists::claim(&pins, &config.list, lock.map(Lock::taken_before))?;
        let live = lists::live(&pins, Some(slot.number))?;
        // Theirs would be the ports that no longer were guarded.
        let others = pins.of_other_schemas();
        others.iter().try_for_each(lists::refuse_live)?;
        let pinned = match maps::inspect(&pins, slot.number) {
            Pinned::Trusted(ids) => Some(ids),
            Pinned::Absent if live.is_empty() => None,
            // They guard over maps whose pins somebody removed a moment ago: new maps without
            // their lists would open their ports.
            Pinned::Absent => {
                let (path, others) = (pins.root().to_owned(), lists::join(&live));
                return Err(GuardError::Untrusted { path, what: NO_MAPS.to_owned(), others });
            }
            Pinned::Untrusted(what) if live.is_empty() => {
                log::warn!("guard: not using the pins in {}: {what}", pins.root().display());
                None
            }
            Pinned::Untrusted(what) => {
                let (path, others) = (pins.root().to_owned(), lists::join(&live));
                return Err(GuardError::Untrusted { path, what, others });
            }
        };
        let (programs, maps) = object::open(&pins, pinned.as_deref())?;
        let netlink = Netlink::open().map_err(|error| GuardError::io("opening netlink", error))?;
        let boot_rules = BootRules::open();
        let boot_rules =
            boot_rules.map_err(|error| GuardError::io("opening netlink to nftables", error))?;
        let counters = RuleCounters::new(slot.number);
        let mut guard = Self {
            written: Written::begin(&maps, ListWord::NONE, Sizes::default(), counters)?,
            samples: Samples::default(),
            plane: None,
            config,
            pins,
            slot,
            maps,
            programs,
            netlink,
            boot_rules,
            addresses: BTreeSet::new(),
            interfaces: Vec::new(),
            links: BTreeMap::new(),
            strays: Vec::new(),
            faults: BTreeMap::new(),
            troubles: BTreeMap::new(),
            generation: 0,
            listed_at: Instant::now(),
            ticked_at: Instant::now(),
            suspected_at: None,
            is_adrift: false,
        };
        if mounted && mounts_are_private() {
            guard.troubles.insert("bpffs", PRIVATE_MOUNT.to_owned());
        }
        guard.start(list, pinned.is_some(), &live, &others)?;
        Ok(guard)
    }

    /// The lock that makes the list this daemon's, for another program in this process.
    pub fn copy_lock(&self) -> std::io::Result<OwnedFd> {
        self.slot.copy_lock()
    }

    fn start(
        &mut self,
        list: &Allowlist,
        reused: bool,
        live: &HashMap<u32, String>,
        others: &[Pins],
    ) -> Result<(), GuardError> {
        let slot = self.slot.number;
        self.check_settings(reused, live)?;
        lists::check_endpoints(&self.maps, slot, &self.config.endpoints, live)?;
        if reused && self.slot.is_new(&self.pins) {
            lists::close_endpoints(&mut self.maps, slot)?;
            self.take_plane_off()?;
        }
        let before = Keys::of_slot(&self.maps, slot)?;
        let word = self.maps.lists.get(&slot, 0).map_err(|error| write_error("LISTS", &error))?;
        let counters = RuleCounters::recover(&self.maps, &before, word, list);
        self.generation = before.next_generation(word.generation());
        let next = next_word(slot, self.generation, &list.sizes(), word);
        let mut staged = Written::begin(&self.maps, next, list.sizes(), counters)?;
        staged.fill(list, &Writing::default())?;
        // New maps guard nothing yet, so they are completed first; maps in use change last.
        let mut staged = Some(Successor(staged));
        let mut outcome = Ok(());
        if !reused {
            outcome = self.commit(staged.take());
        }
        let outcome = outcome.and_then(|()| self.stand_everywhere(others));
        if let Err(error) = outcome {
            if let Some(Successor(staged)) = staged {
                staged.clear();
            }
            return Err(error);
        }
        if reused {
            self.commit(staged.take())?;
        }
        // Soon: until its program is pinned, other daemons of this guard take it for a stranger's.
        self.pin_everything()?;
        let mut events = Vec::new();
        self.go_first(&mut events)?;
        events.iter().for_each(|event| log::warn!("guard: {event}"));
        self.remove_before(&before)?;
        self.slot.mark_known(&self.pins);
        for other in others {
            // Its links run this program now and have their pins here.
            if let Err(error) = other.remove_all() {
                log::warn!("guard: removing {}: {error}", other.root().display());
            }
        }
        Ok(())
    }

    /// Removes what earlier processes left of this list.
    fn remove_before(&mut self, before: &Keys) -> Result<(), GuardError> {
        wait_for_readers();
        clear_shared(&mut self.maps, before);
        let (own, word) = (self.written.word, ListWord::new(self.slot.number, 0));
        for place in [word.in_large(false), word.in_large(true)] {
            if !own.is_large() || place.half() != own.half() {
                Places::of(&self.maps, place)?.clear();
            }
        }
        Ok(())
    }

    /// Settings are of the guard, not of one list: other daemons must agree to them.
    fn check_settings(&self, reused: bool, live: &HashMap<u32, String>) -> Result<(), GuardError> {
        if !reused || live.is_empty() {
            return Ok(());
        }
        let meta = self.maps.meta.get(&0, 0).map_err(|error| write_error("META", &error))?;
        if meta.settings == self.settings() {
            return Ok(());
        }
        Err(GuardError::Settings { others: lists::join(live) })
    }

    fn settings(&self) -> u32 {
        let destination = match self.config.destination {
            Destination::Local => 0,
            Destination::Any => settings::DESTINATION_ANY,
        };
        let refuse = match self.config.refuse {
            Refuse::Drop => 0,
            Refuse::Reset => settings::REFUSE_RESET,
            Refuse::Icmp => settings::REFUSE_ICMP,
        };
        destination | refuse | if self.config.audit { settings::AUDIT } else { 0 }
    }

    /// Counts what would be dropped and passes it, from now on; or drops it again.
    ///
    /// # Errors
    /// Other daemons share the guard, which has one such setting; or the kernel refuses.
    pub fn set_audit(&mut self, on: bool) -> Result<(), GuardError> {
        let others = lists::live(&self.pins, Some(self.slot.number))?;
        if !others.is_empty() {
            return Err(GuardError::Settings { others: lists::join(&others) });
        }
        let before = std::mem::replace(&mut self.config.audit, on);
        let meta = Meta { magic: MAGIC, schema: SCHEMA, settings: self.settings(), reserved: 0 };
        self.maps.meta.set(0, meta, 0).map_err(|error| {
            self.config.audit = before;
            write_error("META", &error)
        })
    }

    /// Brings the settings, the staged list and the endpoints into force.
    fn commit(&mut self, staged: Option<Successor>) -> Result<(), GuardError> {
        let meta = Meta { magic: MAGIC, schema: SCHEMA, settings: self.settings(), reserved: 0 };
        self.maps.meta.set(0, meta, 0).map_err(|error| write_error("META", &error))?;
        if let Some(staged) = staged {
            self.switch(staged)?;
        }
        lists::register_endpoints(&mut self.maps, self.slot.number, &self.config.endpoints)
    }

    /// Stands on every selected interface, or on none that was not guarded before. Links of daemons
    /// with `others`' layouts are taken over.
    fn stand_everywhere(&mut self, others: &[Pins]) -> Result<(), GuardError> {
        let fault = |error| GuardError::io("listing interfaces", error);
        self.interfaces = self.netlink.interfaces().map_err(fault)?;
        let addresses = self.netlink.addresses().map_err(fault)?;
        self.sync_addresses(addresses)?;
        let (plans, absent) = plan(&self.interfaces, &self.config.interfaces);
        if let Some(name) = absent.into_iter().next() {
            return Err(GuardError::NoInterface { name });
        }
        let (mut former, mut pinned) = (HashMap::new(), HashMap::new());
        for pins in others.iter().chain([&self.pins]) {
            former.extend(attach::pinned_programs(pins));
            pinned.extend(attach::pinned_links(pins));
        }
        let mut updated = Vec::new();
        let planned: Vec<_> = self.interfaces.iter().cloned().zip(plans).collect();
        for (interface, plan) in planned {
            if plan != Plan::Guard {
                continue;
            }
            let existing = pinned.remove(&interface.ifindex);
            let former_id = existing.as_ref().map(|found| found.facts.program_id);
            let choice = self.config.mode;
            match attach::stand(&mut self.programs, choice, &interface, existing, Taken::Refuse) {
                Ok(Outcome::Gone) => {}
                Ok(Outcome::Standing { link, created }) => {
                    if !created {
                        updated.push((interface.ifindex, former_id));
                    }
                    self.links.insert(interface.ifindex, link);
                }
                Err(error) if self.may_leave(&interface, &error) => {
                    log::warn!("guard: {error}");
                    self.faults.insert(interface.ifindex, error.to_string());
                }
                Err(error) => {
                    self.revert(&updated, &former);
                    return Err(error);
                }
            }
        }
        self.listed_at = Instant::now();
        Ok(())
    }

    /// Gives updated links their former programs back.
    fn revert(&mut self, updated: &[(u32, Option<u32>)], former: &HashMap<u32, OwnedFd>) {
        for (ifindex, former_id) in updated {
            let program = former_id.and_then(|id| former.get(&id));
            if let (Some(link), Some(program)) = (self.links.get(ifindex), program) {
                // The new program guards as well, over the same maps, so a failure opens nothing.
                let _ = sys::link_update(link.fd.as_fd(), program.as_fd());
            }
        }
        self.links.clear();
    }

    /// Whether the start may go on without this interface: it is gone; or nobody named it, and
    /// its packets have no Ethernet header and no tcx hook, or all come through guarded ports.
    fn may_leave(
        &mut self,
        interface: &crate::guard::interfaces::Interface,
        error: &GuardError,
    ) -> bool {
        if !matches!(error, GuardError::NoMode { .. }) {
            return false;
        }
        let now = self.netlink.interfaces().unwrap_or_default();
        if !now.iter().any(|other| other.ifindex == interface.ifindex) {
            return true;
        }
        let unnamed = self.config.interfaces == Interfaces::All;
        unnamed && (!interface.is_ethernet() || interface.kind == "bridge")
    }

    /// Pins maps, programs and links; what is pinned already stays.
    pub(super) fn pin_everything(&self) -> Result<(), GuardError> {
        let fault = |what: &str| {
            let what = format!("pinning {what} in {}", self.pins.root().display());
            move |error| GuardError::io(what, error)
        };
        self.pins.mark_namespace()?;
        for (name, id, fd) in self.maps.handles() {
            if pinned_map_id(&self.pins, name) != Some(id) {
                self.pins.pin(fd, MAPS, name).map_err(fault(name))?;
            }
        }
        for (name, program) in self.programs.loaded() {
            self.pins.pin(program.fd(), PROGRAMS, name).map_err(fault(name))?;
        }
        for (ifindex, link) in &self.links {
            self.pin_link(*ifindex, link)?;
        }
        self.pin_plane().map_err(fault("the kernel plane"))
    }

    /// Pins one link unless its pin is there.
    pub(super) fn pin_link(&self, ifindex: u32, link: &Link) -> Result<(), GuardError> {
        if attach::pinned_id(&self.pins, ifindex) == Some(link.id) {
            return Ok(());
        }
        attach::pin(&self.pins, ifindex, link)
    }

    /// Makes the tables of own addresses what netlink says. First the new ones, then the old.
    pub(super) fn sync_addresses(
        &mut self,
        addresses: BTreeSet<std::net::IpAddr>,
    ) -> Result<(), GuardError> {
        if self.addresses.is_empty() {
            self.addresses = self.maps.local_addresses()?;
        }
        for address in addresses.difference(&self.addresses) {
            self.maps.add_local(*address)?;
        }
        for address in self.addresses.difference(&addresses) {
            self.maps.remove_local(*address)?;
        }
        self.addresses = addresses;
        Ok(())
    }
}

/// Number of the map pinned under a name.
pub(super) fn pinned_map_id(pins: &Pins, name: &str) -> Option<u32> {
    Some(aya::maps::MapInfo::from_pin(pins.path(MAPS, name)).ok()?.id())
}

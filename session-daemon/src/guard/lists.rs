//! Several daemons on one guard: who owns which list and which ports.
//!
//! It owns list numbers and the endpoint table. All of it happens under the guard's lock.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use session_common::guard::{ENDPOINTS_MAX, EndpointKey, EndpointValue, LISTS_MAX, ListWord};

use crate::guard::error::GuardError;
use crate::guard::maps::{Maps, write_error};
use crate::guard::pins::{LISTS, Lock, Pins, escape, unescape};

/// List number of a port whose daemon is gone for good: none, so every source is refused.
const NO_LIST: u32 = u32::MAX;

/// A transport protocol that can be guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A daemon's list number, its own while the lock is held.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) number: u32,
    directory: String,
    _lock: Lock,
}

/// Finds the list called `name`, or gives it a number: a free one, else that of a dead daemon.
/// `held` is the lock of the list that this process had with another program.
pub(super) fn claim(pins: &Pins, name: &str, held: Option<Lock>) -> Result<Slot, GuardError> {
    let taken = taken(pins);
    let own = || taken.iter().find(|(_, other)| other.as_str() == name).map(|(n, _)| *n);
    if let (Some(lock), Some(number)) = (held, own()) {
        return Ok(Slot { number, directory: directory(number, name), _lock: lock });
    }
    if let Some(number) = own() {
        return match take(pins, number, name)? {
            Some(slot) => Ok(slot),
            None => Err(GuardError::ListInUse { list: name.to_owned() }),
        };
    }
    let free = (0..LISTS_MAX).find(|number| !taken.contains_key(number));
    let number = match free {
        Some(number) => Some(number),
        None => bury(pins, &taken)?,
    };
    let number = number.ok_or(GuardError::ListsExhausted { count: LISTS_MAX })?;
    match take(pins, number, name)? {
        Some(slot) => Ok(slot),
        None => Err(GuardError::ListInUse { list: name.to_owned() }),
    }
}

/// Takes the slot's directory again, after the bpffs was mounted anew.
pub(super) fn reclaim(pins: &Pins, slot: &mut Slot) -> Result<(), GuardError> {
    if let Some(lock) = pins.take_list(&slot.directory)? {
        slot._lock = lock;
    }
    Ok(())
}

/// Names of lists that belong to live daemons, by number, but for `own`.
pub(super) fn live(pins: &Pins, own: Option<u32>) -> Result<HashMap<u32, String>, GuardError> {
    let mut live = HashMap::new();
    for (number, name) in taken(pins) {
        if Some(number) != own && pins.take_list(&directory(number, &name))?.is_none() {
            live.insert(number, name);
        }
    }
    Ok(live)
}

/// Refuses to take away what live daemons rely on.
pub(super) fn refuse_live(pins: &Pins) -> Result<(), GuardError> {
    let live = live(pins, None)?;
    if live.is_empty() { Ok(()) } else { Err(GuardError::DaemonsRun { lists: join(&live) }) }
}

/// Names in a stable order, for messages.
pub(super) fn join(live: &HashMap<u32, String>) -> String {
    let mut names: Vec<&str> = live.values().map(String::as_str).collect();
    names.sort_unstable();
    names.join(", ")
}

/// Refuses endpoints that belong to a live daemon.
pub(super) fn check_endpoints(
    maps: &Maps,
    slot: u32,
    wanted: &[(Protocol, u16)],
    live: &HashMap<u32, String>,
) -> Result<(), GuardError> {
    let mut count = maps.endpoints.keys().filter_map(Result::ok).count();
    for (protocol, port) in wanted {
        match maps.endpoints.get(&key(*protocol, *port), 0) {
            Ok(value) if value.list == slot => {}
            Ok(value) => {
                if let Some(list) = live.get(&value.list) {
                    return Err(GuardError::EndpointInUse {
                        protocol: protocol.name(),
                        port: *port,
                        list: list.clone(),
                    });
                }
            }
            Err(_) => count += 1,
        }
    }
    if count > ENDPOINTS_MAX as usize {
        return Err(GuardError::EndpointsExhausted { max: ENDPOINTS_MAX });
    }
    Ok(())
}

/// Guards the wanted endpoints with the list, and no longer those it guarded before.
pub(super) fn register_endpoints(
    maps: &mut Maps,
    slot: u32,
    wanted: &[(Protocol, u16)],
) -> Result<(), GuardError> {
    let fault = |error| write_error("ENDPOINTS", &error);
    let wanted: Vec<EndpointKey> =
        wanted.iter().map(|(protocol, port)| key(*protocol, *port)).collect();
    for key in &wanted {
        maps.endpoints.insert(key, EndpointValue { list: slot }, 0).map_err(fault)?;
    }
    for (key, value) in endpoints(maps)? {
        if value.list == slot && !wanted.contains(&key) {
            maps.endpoints.remove(&key).map_err(fault)?;
        }
    }
    Ok(())
}

/// Ports that a dead daemon of this number left stay closed, to everybody.
pub(super) fn close_endpoints(maps: &mut Maps, slot: u32) -> Result<(), GuardError> {
    for (key, value) in endpoints(maps)? {
        if value.list == slot {
            maps.endpoints
                .insert(key, EndpointValue { list: NO_LIST }, 0)
                .map_err(|error| write_error("ENDPOINTS", &error))?;
        }
    }
    maps.lists.set(slot, ListWord::NONE, 0).map_err(|error| write_error("LISTS", &error))
}

impl Slot {
    /// The lock, for another program in this process.
    pub(super) fn copy_lock(&self) -> std::io::Result<std::os::fd::OwnedFd> {
        self._lock.copy()
    }

    /// Whether the directory that says whose the list is stands where it should.
    pub(super) fn is_in(&self, pins: &Pins) -> bool {
        pins.path(LISTS, &self.directory).exists()
    }

    /// A path in the directory that says whose the list is.
    pub(super) fn path(&self, pins: &Pins, name: &str) -> std::path::PathBuf {
        pins.path(LISTS, &self.directory).join(name)
    }

    /// Whether the list stood in the maps under another name before, whose ports stay closed.
    pub(super) fn is_new(&self, pins: &Pins) -> bool {
        // A directory without a mark has never been committed by the daemon of this name.
        !pins.path(LISTS, &self.directory).join("known").exists()
    }

    /// Notes that the maps hold this daemon's list and ports.
    pub(super) fn mark_known(&self, pins: &Pins) {
        let _ = std::fs::create_dir(pins.path(LISTS, &self.directory).join("known"));
    }
}

fn endpoints(maps: &Maps) -> Result<Vec<(EndpointKey, EndpointValue)>, GuardError> {
    maps.endpoints
        .iter()
        .collect::<Result<_, _>>()
        .map_err(|error| write_error("ENDPOINTS", &error))
}

fn key(protocol: Protocol, port: u16) -> EndpointKey {
    EndpointKey { port, protocol: protocol.number(), reserved: 0 }
}

fn directory(number: u32, name: &str) -> String {
    format!("{number}-{}", escape(name))
}

/// Numbers and names that have a directory.
fn taken(pins: &Pins) -> HashMap<u32, String> {
    let names = pins.names(LISTS).into_iter();
    let parsed = names.filter_map(|name| {
        let (number, name) = name.split_once('-')?;
        let number: u32 = number.parse().ok()?;
        (number < LISTS_MAX).then(|| (number, unescape(name)))
    });
    parsed.collect()
}

fn take(pins: &Pins, number: u32, name: &str) -> Result<Option<Slot>, GuardError> {
    let directory = directory(number, name);
    let lock = pins.take_list(&directory)?;
    Ok(lock.map(|lock| Slot { number, directory, _lock: lock }))
}

/// Removes the directory of a dead daemon and returns its number.
fn bury(pins: &Pins, taken: &HashMap<u32, String>) -> Result<Option<u32>, GuardError> {
    let mut numbers: Vec<u32> = taken.keys().copied().collect();
    numbers.sort_unstable();
    for number in numbers {
        let directory = directory(number, &taken[&number]);
        if pins.take_list(&directory)?.is_some() {
            let path = pins.path(LISTS, &directory);
            std::fs::remove_dir_all(&path)
                .map_err(|error| GuardError::io(format!("removing {}", path.display()), error))?;
            return Ok(Some(number));
        }
    }
    Ok(None)
}

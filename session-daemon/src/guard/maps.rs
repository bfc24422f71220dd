//! The guard's maps: which they must be, whether pinned ones are, and typed access.
//!
//! It owns the table of what each map has to look like; a pinned map that differs in anything is
//! not used. Which entries belong into the maps is decided in `entries`.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::lpm_trie::Key;
use aya::maps::{
    Array, ArrayOfMaps, HashMap, IterableMap, LpmTrie, Map, MapData, MapError, MapInfo, MapType,
    PerCpuArray, PerCpuValues, ProgramArray,
};
use aya::{Ebpf, Pod};
use session_common::answer::{ANSWERS, SAMPLES_MAX, Sample, Sampling};
use session_common::guard::{
    Counter, ENDPOINTS_MAX, EndpointKey, EndpointValue, HOSTS_MAX, HostKey4, HostKey6,
    LARGE_PLACES, LISTS_MAX, LOCAL_MAX, ListWord, MAGIC, Meta, PREFIXES_MAX, PrefixKey6, REASONS,
    RULES_MAX, Rule, SCHEMA,
};

use crate::guard::error::GuardError;
use crate::guard::inner;
use crate::guard::pins::{MAPS, Pins, with_mount_capability};
use crate::sys;

/// `BPF_F_NO_PREALLOC`.
pub(super) const NO_PREALLOC: u32 = 1;

/// What a map must look like.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    kind: MapType,
    key_len: usize,
    value_len: usize,
    entries_max: u32,
    flags: u32,
}

const fn spec<K, V>(name: &'static str, kind: MapType, entries_max: u32, flags: u32) -> Spec {
    Spec { name, kind, key_len: size_of::<K>(), value_len: size_of::<V>(), entries_max, flags }
}

/// All maps of the object.
pub(super) const SPECS: [Spec; 18] = [
    spec::<u32, Meta>("META", MapType::Array, 1, 0),
    spec::<EndpointKey, EndpointValue>("ENDPOINTS", MapType::Hash, ENDPOINTS_MAX, 0),
    spec::<u32, ListWord>("LISTS", MapType::Array, LISTS_MAX, 0),
    spec::<HostKey4, Rule>("HOSTS4", MapType::Hash, HOSTS_MAX, NO_PREALLOC),
    spec::<HostKey6, Rule>("HOSTS6", MapType::Hash, HOSTS_MAX, NO_PREALLOC),
    spec::<u32, u32>("LARGE4", MapType::ArrayOfMaps, LARGE_PLACES, 0),
    spec::<u32, u32>("LARGE6", MapType::ArrayOfMaps, LARGE_PLACES, 0),
    spec::<Key<HostKey4>, Rule>("PREFIXES4", MapType::LpmTrie, PREFIXES_MAX, NO_PREALLOC),
    spec::<Key<PrefixKey6>, Rule>("PREFIXES6", MapType::LpmTrie, PREFIXES_MAX, NO_PREALLOC),
    spec::<[u8; 4], u32>("LOCAL4", MapType::Hash, LOCAL_MAX, NO_PREALLOC),
    spec::<[u8; 16], u32>("LOCAL6", MapType::Hash, LOCAL_MAX, NO_PREALLOC),
    spec::<u32, Counter>("COUNTERS", MapType::PerCpuArray, REASONS as u32, 0),
    spec::<u32, Counter>("RULES", MapType::PerCpuArray, RULES_MAX, 0),
    spec::<u32, Counter>("ANSWERS", MapType::PerCpuArray, ANSWERS as u32, 0),
    spec::<u32, Sampling>("SAMPLING", MapType::PerCpuArray, 1, 0),
    spec::<u32, Sample>("SAMPLES", MapType::PerCpuArray, SAMPLES_MAX, 0),
    spec::<u32, u32>("PLANES", MapType::ProgramArray, LISTS_MAX, 0),
    spec::<u32, u32>("PLANES_FRAGS", MapType::ProgramArray, LISTS_MAX, 0),
];

impl Spec {
    /// What is wrong with a map, if anything.
    fn fault(&self, info: &MapInfo) -> Option<String> {
        let kind = info.map_type().ok();
        let differs = |what: &str, is: &dyn std::fmt::Debug, should: &dyn std::fmt::Debug| {
            Some(format!("map {} has {what} {is:?} instead of {should:?}", self.name))
        };
        if kind != Some(self.kind) {
            return differs("type", &kind, &self.kind);
        }
        let table = [
            ("key size", info.key_size() as usize, self.key_len),
            ("value size", info.value_size() as usize, self.value_len),
            ("max_entries", info.max_entries() as usize, self.entries_max as usize),
            ("flags", info.map_flags() as usize, self.flags as usize),
        ];
        table
            .iter()
            .find(|(_, is, should)| is != should)
            .and_then(|(what, is, should)| differs(what, is, should))
    }
}

/// What the pins hold.
#[derive(Debug)]
pub(super) enum Pinned {
    /// All maps, each as it must be: their numbers, in the order of [`SPECS`].
    Trusted(Vec<u32>),
    /// Nothing at all.
    Absent,
    /// Something else; why.
    Untrusted(String),
}

/// Compares pinned maps with [`SPECS`] and their `META` with this program's. `slot` is the number
/// of a list that this process owns.
pub(super) fn inspect(pins: &Pins, slot: u32) -> Pinned {
    if pins.is_left_over() {
        return Pinned::Untrusted("left by a network namespace that is gone".to_owned());
    }
    if pins.names(MAPS).is_empty() {
        return Pinned::Absent;
    }
    let mut ids = Vec::with_capacity(SPECS.len());
    for spec in &SPECS {
        match MapInfo::from_pin(pins.path(MAPS, spec.name)) {
            Ok(info) => match spec.fault(&info) {
                Some(fault) => return Pinned::Untrusted(fault),
                None => ids.push(info.id()),
            },
            Err(error) => return Pinned::Untrusted(format!("map {}: {error}", spec.name)),
        }
    }
    let fits = try_inner::<HostKey4>(pins, "LARGE4", slot)
        .and_then(|()| try_inner::<HostKey6>(pins, "LARGE6", slot));
    if let Err(error) = fits {
        return Pinned::Untrusted(format!("tables of large lists take no hosts: {error}"));
    }
    match read_meta(pins) {
        Ok(meta) if meta.magic == MAGIC && meta.schema == SCHEMA && meta.reserved == 0 => {
            Pinned::Trusted(ids)
        }
        Ok(meta) => Pinned::Untrusted(format!("META is {meta:?}")),
        Err(error) => Pinned::Untrusted(format!("META: {error}")),
    }
}

/// Puts a table where no packet looks, which the kernel refuses where tables of another shape
/// belong, and takes it out again.
fn try_inner<K: Pod>(pins: &Pins, name: &str, slot: u32) -> io::Result<()> {
    let inner = inner::create::<K>(1)?;
    let outer = sys::object_open(&pins.path(MAPS, name))?;
    let lists = MapData::from_pin(pins.path(MAPS, "LISTS")).map_err(io::Error::other)?;
    let lists = Array::<_, ListWord>::try_from(Map::Array(lists)).map_err(io::Error::other)?;
    let word = lists.get(&slot, 0).map_err(io::Error::other)?;
    let place = ListWord::new(slot, 0).in_large(!word.half()).large_place();
    sys::map_set_inner(outer.as_fd(), place, inner.map().fd().as_fd())?;
    sys::map_delete(outer.as_fd(), &place)
}

fn read_meta(pins: &Pins) -> Result<Meta, MapError> {
    let data = MapData::from_pin(pins.path(MAPS, "META"))?;
    Array::<_, Meta>::try_from(Map::Array(data))?.get(&0, 0)
}

/// Networks of one family.
pub(super) type Prefixes4 = LpmTrie<MapData, HostKey4, Rule>;
pub(super) type Prefixes6 = LpmTrie<MapData, PrefixKey6, Rule>;

/// The entries' counters.
pub(super) type Rules = PerCpuArray<MapData, Counter>;

/// Tables for hosts of both families.
pub(super) struct Hosts {
    pub(super) v4: HashMap<MapData, HostKey4, Rule>,
    pub(super) v6: HashMap<MapData, HostKey6, Rule>,
}

/// The maps, open.
pub(super) struct Maps {
    pub(super) meta: Array<MapData, Meta>,
    pub(super) endpoints: HashMap<MapData, EndpointKey, EndpointValue>,
    pub(super) lists: Array<MapData, ListWord>,
    pub(super) hosts4: HashMap<MapData, HostKey4, Rule>,
    pub(super) hosts6: HashMap<MapData, HostKey6, Rule>,
    pub(super) prefixes4: Prefixes4,
    pub(super) prefixes6: Prefixes6,
    pub(super) local4: HashMap<MapData, [u8; 4], u32>,
    pub(super) local6: HashMap<MapData, [u8; 16], u32>,
    pub(super) counters: PerCpuArray<MapData, Counter>,
    pub(super) rules: Rules,
    pub(super) answers: PerCpuArray<MapData, Counter>,
    pub(super) sampling: PerCpuArray<MapData, Sampling>,
    pub(super) samples: PerCpuArray<MapData, Sample>,
    /// What allowed datagrams go on to, by list.
    pub(super) planes: ProgramArray<MapData>,
    /// The same for packets in several pieces.
    pub(super) planes_frags: ProgramArray<MapData>,
    /// A second descriptor of each map with its number, for pinning, in the order of [`SPECS`].
    handles: Vec<(u32, std::os::fd::OwnedFd)>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Maps").field("handles", &self.handles).finish_non_exhaustive()
    }
}

impl Maps {
    /// Takes the maps out of the loaded object, each checked against [`SPECS`].
    pub(super) fn take(object: &mut Ebpf) -> Result<Self, GuardError> {
        let mut handles = Vec::with_capacity(SPECS.len());
        for spec in &SPECS {
            let fault =
                |error: String| GuardError::Load { what: format!("map {}", spec.name), error };
            let map = object.map(spec.name).ok_or_else(|| fault("not in the object".to_owned()))?;
            let data = data_of(map).ok_or_else(|| fault("of an unknown type".to_owned()))?;
            let info = data.info().map_err(|error| fault(error.to_string()))?;
            if let Some(error) = spec.fault(&info) {
                return Err(fault(error));
            }
            let handle = data.fd().as_fd().try_clone_to_owned();
            handles.push((info.id(), handle.map_err(|error| fault(error.to_string()))?));
        }
        Ok(Self {
            meta: take(object, "META")?,
            endpoints: take(object, "ENDPOINTS")?,
            lists: take(object, "LISTS")?,
            hosts4: take(object, "HOSTS4")?,
            hosts6: take(object, "HOSTS6")?,
            prefixes4: take(object, "PREFIXES4")?,
            prefixes6: take(object, "PREFIXES6")?,
            local4: take(object, "LOCAL4")?,
            local6: take(object, "LOCAL6")?,
            counters: take(object, "COUNTERS")?,
            rules: take(object, "RULES")?,
            answers: take(object, "ANSWERS")?,
            sampling: take(object, "SAMPLING")?,
            samples: take(object, "SAMPLES")?,
            planes: take(object, "PLANES")?,
            planes_frags: take(object, "PLANES_FRAGS")?,
            handles,
        })
    }

    /// Numbers of the maps, in the order of [`SPECS`].
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.handles.iter().map(|(id, _)| *id)
    }

    /// A map's descriptor. Panics if there is no such map.
    pub(super) fn fd(&self, name: &str) -> BorrowedFd<'_> {
        let found = self.handles().find(|(other, _, _)| *other == name);
        found.expect("SPECS has every map").2
    }

    /// Another handle on a map.
    pub(super) fn copy<T>(&self, name: &'static str) -> Result<T, GuardError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let fault = |error| GuardError::io("copying a map's descriptor", error);
        let fd = self.fd(name).try_clone_to_owned().map_err(fault)?;
        let map = MapData::from_fd(fd).and_then(Map::from_map_data).and_then(T::try_from);
        map.map_err(|error| write_error(name, &error))
    }

    /// The hosts that stand under a word, whoever has written them: none where they are in tables
    /// of a list's own, which only CAP_SYS_ADMIN opens, and that is missing.
    pub(super) fn hosts_of(&self, word: ListWord) -> Option<Hosts> {
        if !word.is_large() {
            return Some(Hosts { v4: self.copy("HOSTS4").ok()?, v6: self.copy("HOSTS6").ok()? });
        }
        let place = word.large_place();
        let v4 = self.copy::<ArrayOfMaps<_, _>>("LARGE4").ok()?;
        let v6 = self.copy::<ArrayOfMaps<_, _>>("LARGE6").ok()?;
        with_mount_capability(|| {
            Some(Hosts { v4: v4.get(&place, 0).ok()?, v6: v6.get(&place, 0).ok()? })
        })
    }

    /// Each map's name, number and descriptor.
    pub(super) fn handles(&self) -> impl Iterator<Item = (&'static str, u32, BorrowedFd<'_>)> {
        SPECS.iter().zip(&self.handles).map(|(spec, (id, fd))| (spec.name, *id, fd.as_fd()))
    }
}

/// Takes one map out of the object with its type.
fn take<T>(object: &mut Ebpf, name: &'static str) -> Result<T, GuardError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let fault = |error: String| GuardError::Load { what: format!("map {name}"), error };
    let map = object.take_map(name).ok_or_else(|| fault("not in the object".to_owned()))?;
    T::try_from(map).map_err(|error| fault(error.to_string()))
}

pub(super) fn data_of(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data) => Some(data),
        _ => None,
    }
}

/// The sum of a counter over all CPUs.
pub(super) fn sum(values: &PerCpuValues<Counter>) -> Counter {
    values.iter().fold(Counter::default(), |sum, value| Counter {
        packets: sum.packets.wrapping_add(value.packets),
        bytes: sum.bytes.wrapping_add(value.bytes),
    })
}

/// The system's error behind aya's.
pub(super) fn io_error(error: &MapError) -> Option<&io::Error> {
    match error {
        MapError::SyscallError(call) => Some(&call.io_error),
        MapError::CreateError { io_error, .. } => Some(io_error),
        _ => None,
    }
}

/// Turns a failed write to `table` into the operator's message.
pub(super) fn write_error(table: &'static str, error: &MapError) -> GuardError {
    match io_error(error)
        .and_then(io::Error::raw_os_error)
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::TOOBIG | rustix::io::Errno::NOSPC) => GuardError::Full { table },
        Some(code) => GuardError::io(format!("writing map {table}"), code),
        None => GuardError::Io {
            what: format!("writing map {table}"),
            error: io::Error::other(error.to_string()),
        },
    }
}

/// All keys of a hash map or trie, as they are now.
pub(super) fn keys<K: Pod>(
    keys: impl Iterator<Item = Result<K, MapError>>,
    table: &'static str,
) -> Result<Vec<K>, GuardError> {
    keys.collect::<Result<_, _>>().map_err(|error| write_error(table, &error))
}

impl Maps {
    /// Own addresses that the maps hold.
    pub(super) fn local_addresses(&self) -> Result<BTreeSet<IpAddr>, GuardError> {
        let v4 = keys(self.local4.keys(), "LOCAL4")?.into_iter().map(IpAddr::from);
        let v6 = keys(self.local6.keys(), "LOCAL6")?.into_iter().map(IpAddr::from);
        Ok(v4.chain(v6).collect())
    }

    /// Notes an own address. Beyond the table's size the program asks the routing tables.
    pub(super) fn add_local(&mut self, address: IpAddr) -> Result<(), GuardError> {
        let (table, outcome) = match address {
            IpAddr::V4(address) => ("LOCAL4", self.local4.insert(address.octets(), 0, 0)),
            IpAddr::V6(address) => ("LOCAL6", self.local6.insert(address.octets(), 0, 0)),
        };
        match outcome.map_err(|error| write_error(table, &error)) {
            Err(GuardError::Full { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Forgets an address that is no longer own.
    pub(super) fn remove_local(&mut self, address: IpAddr) -> Result<(), GuardError> {
        let (table, outcome) = match address {
            IpAddr::V4(address) => ("LOCAL4", self.local4.remove(&address.octets())),
            IpAddr::V6(address) => ("LOCAL6", self.local6.remove(&address.octets())),
        };
        match outcome {
            Err(error) if !is_absent(&error) => Err(write_error(table, &error)),
            _ => Ok(()),
        }
    }
}

/// Whether an error only says that the key is not in the map.
pub(super) fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound)
        || io_error(error).is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

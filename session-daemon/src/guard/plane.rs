//! The kernel plane from user space: its maps and its program, and its place behind the guard.
//!
//! It owns what takes capabilities; the serving process gets the maps by descriptor, and says in
//! them whether and where there are answers. The store's region is pinned beside the list, so that
//! the next start goes on with it. What it answers, and why it is right: docs/kernel-plane.md.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use aya::maps::{Map, MapData, MapError, MapInfo, MapType};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader};
use caps::Capability;
use session_common::plane::{ELEMENT_LEN, Orders, Report};

use crate::capability::with_capability;
use crate::guard::Guard;
use crate::guard::error::GuardError;
use crate::guard::maps::{data_of, is_absent, write_error};
use crate::guard::object::{self, PLANE_OBJECT, text_of};
use crate::guard::pins::{MAPS, pin_at, unpin_at};
use crate::guard::start::pinned_map_id;
use crate::guard::written::wait_for_readers;

/// `BPF_F_MMAPABLE`.
const MMAPABLE: u32 = 1 << 10;

/// Name of the region's pin in the list's directory.
const REGION_PIN: &str = "region";

/// Tables of the guard that the program reads as well.
const SHARED: [&str; 2] = ["LOCAL4", "LOCAL6"];

/// The programs, by the kind of packets that they take.
const PROGRAM: &str = "plane";
const PROGRAM_FRAGS: &str = "plane_frags";

/// Which region will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The one that the last daemon of this list has left, or else a new one.
    Any,
    /// That one, and no other: it is in use.
    Left,
}

/// What is known of the maps without their descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneFacts {
    /// Number of the region's map.
    pub region_id: u32,
    /// Bytes of the region.
    pub region_len: u64,
    /// Whether the region was made now.
    pub is_new: bool,
    /// CPUs that there can be: elements of the reports.
    pub cpus: u32,
}

/// The maps that the serving process needs.
#[derive(Debug)]
pub struct PlaneMaps {
    /// The store's region.
    pub region: OwnedFd,
    /// What the program is told.
    pub orders: OwnedFd,
    /// What it tells.
    pub reports: OwnedFd,
    /// What is known of them.
    pub facts: PlaneFacts,
}

/// The loaded plane.
#[derive(Debug)]
pub(super) struct Plane {
    /// Keeps maps and programs.
    object: Ebpf,
    region: OwnedFd,
    region_id: u32,
}

impl Guard {
    /// Makes the plane ready for a store of so many bytes: in the region that the last daemon of
    /// this list has left, if that is as long. It answers nothing before [`Guard::put_plane_on`].
    ///
    /// # Errors
    /// The kernel is too old, has not the memory, or refuses the program; or the region that has
    /// to be there is not.
    pub fn make_plane(&mut self, len: usize, region: Region) -> Result<PlaneMaps, GuardError> {
        let elements = u32::try_from(len.div_ceil(ELEMENT_LEN)).unwrap_or(u32::MAX);
        let cpus = aya::util::nr_cpus().map_err(|(file, error)| GuardError::io(file, error))?;
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        let is_new = !self.region_is_left(elements)?;
        if is_new {
            self.bury_region(region)?;
        }
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("REGION", elements).map_max_entries("REPORTS", cpus);
        if !is_new {
            loader.map_pin_path("REGION", self.region_path());
        }
        for name in SHARED {
            loader.map_pin_path(name, self.pins.path(MAPS, name));
        }
        // Of whoever lacks the capability the kernel rounds an array up to a power of two, lest
        // speculation read behind its end: up to twice the memory.
        let loaded = with_capability(Capability::CAP_PERFMON, || loader.load(PLANE_OBJECT));
        let mut object = loaded.map_err(|error| fault("maps", text_of(&error)))?;
        for name in SHARED {
            let ours = pinned_map_id(&self.pins, name);
            if info(&object, name)?.id() != ours.unwrap_or(0) {
                return Err(fault(name, "its pin is another map's"));
            }
        }
        for name in [PROGRAM, PROGRAM_FRAGS] {
            load(&mut object, name)?;
        }
        let region_info = info(&object, "REGION")?;
        let region_len = u64::from(region_info.max_entries()) * u64::from(region_info.value_size());
        let region_id = region_info.id();
        let facts = PlaneFacts { region_id, region_len, is_new, cpus };
        let region = descriptor(&object, "REGION")?;
        let maps = PlaneMaps {
            region: region.try_clone().map_err(|error| GuardError::io("the region", error))?,
            orders: descriptor(&object, "ORDERS")?,
            reports: descriptor(&object, "REPORTS")?,
            facts,
        };
        self.plane = Some(Plane { object, region, region_id });
        let what = format!("pinning the region in {}", self.region_path().display());
        self.pin_plane().map_err(|error| GuardError::io(what, error))?;
        Ok(maps)
    }

    /// Has allowed datagrams meet the plane before they meet the network stack.
    ///
    /// # Errors
    /// The kernel refuses; then they do not.
    pub fn put_plane_on(&mut self) -> Result<(), GuardError> {
        let Some(plane) = &self.plane else { return Ok(()) };
        let slot = self.slot.number;
        let (whole, frags) =
            (program(&plane.object, PROGRAM)?, program(&plane.object, PROGRAM_FRAGS)?);
        self.maps.planes.set(slot, whole, 0).map_err(|error| write_error("PLANES", &error))?;
        let set = self.maps.planes_frags.set(slot, frags, 0);
        set.map_err(|error| write_error("PLANES_FRAGS", &error))
    }

    /// Has nothing answered in front of the daemon any more. When this returns no program of the
    /// plane runs that has been put on for this list, whoever did.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take_plane_off(&mut self) -> Result<(), GuardError> {
        let slot = self.slot.number;
        let cleared = self.maps.planes.clear_index(&slot);
        let were_there = was_there("PLANES", cleared)?;
        let cleared = self.maps.planes_frags.clear_index(&slot);
        if was_there("PLANES_FRAGS", cleared)? || were_there {
            wait_for_readers();
        }
        Ok(())
    }

    /// [`Guard::take_plane_off`] for good: the region that a daemon of this list has left goes, with
    /// its memory.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn drop_plane(&mut self) -> Result<(), GuardError> {
        self.take_plane_off()?;
        self.plane = None;
        self.unpin_region()
    }

    fn region_path(&self) -> PathBuf {
        self.slot.path(&self.pins, REGION_PIN)
    }

    /// Whether a region of so many elements is pinned.
    fn region_is_left(&self, elements: u32) -> Result<bool, GuardError> {
        let path = self.region_path();
        if !path.exists() {
            return Ok(false);
        }
        let info = MapInfo::from_pin(&path).map_err(|error| fault("the region's pin", error))?;
        Ok(info.map_type().ok() == Some(MapType::Array)
            && info.value_size() as usize == ELEMENT_LEN
            && info.max_entries() == elements
            && info.map_flags() == MMAPABLE)
    }

    /// Removes the pin of a region that is not the one that is asked for, if there is one.
    fn bury_region(&self, region: Region) -> Result<(), GuardError> {
        let path = self.region_path();
        if region == Region::Left {
            return Err(GuardError::Region { path });
        }
        if path.exists() {
            log::warn!(
                "kernel plane: {} was made for another -m: starting empty; an array's memory \
                 neither grows nor shrinks",
                path.display(),
            );
        }
        self.unpin_region()
    }

    fn unpin_region(&self) -> Result<(), GuardError> {
        let path = self.region_path();
        unpin_at(&path)
            .map_err(|error| GuardError::io(format!("removing {}", path.display()), error))
    }

    /// Pins the region unless its pin is there.
    pub(super) fn pin_plane(&self) -> io::Result<()> {
        let Some(plane) = &self.plane else { return Ok(()) };
        let path = self.region_path();
        if MapInfo::from_pin(&path).is_ok_and(|info| info.id() == plane.region_id) {
            return Ok(());
        }
        pin_at(plane.region.as_fd(), &path)
    }
}

/// Whether there was a program at a place that was cleared.
fn was_there(table: &'static str, cleared: Result<(), MapError>) -> Result<bool, GuardError> {
    match cleared {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(write_error(table, &error)),
    }
}

/// Loads a program. It computes places in packets and in the region, and copies kernel memory, so
/// there is no kernel that takes it without CAP_PERFMON.
fn load(object: &mut Ebpf, name: &'static str) -> Result<(), GuardError> {
    let loaded = with_capability(Capability::CAP_PERFMON, || object::load_as_is(object, name));
    match loaded {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.not_permitted => Err(GuardError::NotPermitted {
            what: "loading the kernel plane".to_owned(),
            capabilities: "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
        }),
        Err(refusal) => Err(fault(name, refusal.text)),
    }
}

fn fault(what: &str, error: impl std::fmt::Display) -> GuardError {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    GuardError::Plane {
        what: what.to_owned(),
        error: error.to_string(),
        release: release.trim().to_owned(),
    }
}

fn program<'a>(object: &'a Ebpf, name: &str) -> Result<&'a ProgramFd, GuardError> {
    let program = object.program(name).ok_or_else(|| fault(name, "not in the object"))?;
    let program = <&Xdp>::try_from(program).map_err(|error| fault(name, error))?;
    program.fd().map_err(|error| fault(name, error))
}

fn data<'a>(object: &'a Ebpf, name: &str) -> Result<&'a MapData, GuardError> {
    let map: Option<&Map> = object.map(name);
    map.and_then(data_of).ok_or_else(|| fault(name, "not in the object"))
}

fn info(object: &Ebpf, name: &str) -> Result<MapInfo, GuardError> {
    data(object, name)?.info().map_err(|error| fault(name, error))
}

fn descriptor(object: &Ebpf, name: &str) -> Result<OwnedFd, GuardError> {
    let fd = data(object, name)?.fd().as_fd().try_clone_to_owned();
    fd.map_err(|error| GuardError::io("copying a map's descriptor", error))
}

const _: () = {
    // Elements of a map are words, side by side.
    assert!(size_of::<Orders>().is_multiple_of(8) && size_of::<Report>().is_multiple_of(8));
};

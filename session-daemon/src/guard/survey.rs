//! What a guard would find on this host, without loading or changing anything.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io;
use std::path::Path;

use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};

use crate::guard::attach;
use crate::guard::interfaces::{Attached, Interface, Interfaces, Plan, plan};
use crate::guard::netlink::Netlink;
use crate::guard::pins::{Pins, is_bpffs};
use crate::sys;

/// A program that stands on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Its number.
    pub(crate) id: u32,
    /// Its name, if it can be asked for.
    pub(crate) name: String,
    /// Whether it is the guard's own, by its pin.
    pub(crate) ours: bool,
    /// `native`, `generic`, `offloaded` or `tcx`.
    pub(crate) hook: &'static str,
}

/// A device and what stands on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its name.
    pub(crate) name: String,
    /// Its number.
    pub(crate) ifindex: u32,
    /// `vlan`, `veth`, `bridge`; empty for a physical one.
    pub(crate) kind: String,
    /// Whether its packets begin with an Ethernet header.
    pub(crate) ethernet: bool,
    /// Whether the guard would stand on it itself.
    pub(crate) selected: bool,
    /// Programs at XDP and tcx.
    pub(crate) programs: Vec<Standing>,
}

/// The devices of this network namespace but the loopback.
///
/// # Errors
/// Netlink does not answer.
pub(crate) fn devices(bpffs: &Path) -> io::Result<Vec<Device>> {
    let interfaces = Netlink::open()?.interfaces()?;
    let (plans, _) = plan(&interfaces, &Interfaces::All);
    let ours = own_programs(bpffs);
    let devices = interfaces.iter().zip(plans).filter(|(interface, _)| !interface.is_loopback());
    Ok(devices
        .map(|(interface, plan)| Device {
            name: interface.name.clone(),
            ifindex: interface.ifindex,
            kind: interface.kind.clone(),
            ethernet: interface.is_ethernet(),
            selected: plan == Plan::Guard,
            programs: programs(interface, &ours),
        })
        .collect())
}

/// Whether a bpffs is mounted at a path.
pub(crate) fn has_bpffs(path: &Path) -> bool {
    is_bpffs(path)
}

fn own_programs(bpffs: &Path) -> HashSet<u32> {
    match Pins::locate(bpffs) {
        Ok(pins) if pins.root().exists() => attach::pinned_programs(&pins).into_keys().collect(),
        _ => HashSet::new(),
    }
}

fn programs(interface: &Interface, ours: &HashSet<u32>) -> Vec<Standing> {
    let mut programs: Vec<Standing> = interface
        .xdp
        .iter()
        .map(|(attached, id)| {
            let hook = match attached {
                Attached::Native => "native",
                Attached::Generic => "generic",
                Attached::Offloaded => "offloaded",
            };
            Standing { id: *id, name: name(*id), ours: ours.contains(id), hook }
        })
        .collect();
    // Before Linux 6.6 there is nothing to ask.
    let tcx = SchedClassifier::query_tcx(&interface.name, TcAttachType::Ingress);
    for info in tcx.map(|(_, infos)| infos).unwrap_or_default() {
        let id = info.id();
        let name = info.name_as_str().unwrap_or_default().to_owned();
        programs.push(Standing { id, name, ours: ours.contains(&id), hook: "tcx" });
    }
    programs
}

fn name(id: u32) -> String {
    let by_descriptor = || {
        let program = sys::program_by_id(id).ok()?;
        let (_, name) = sys::program_facts(std::os::fd::AsFd::as_fd(&program)).ok()?;
        Some(name)
    };
    let by_listing = || {
        let found = loaded_programs().flatten().find(|info| info.id() == id)?;
        found.name_as_str().map(str::to_owned)
    };
    by_descriptor().or_else(by_listing).unwrap_or_else(|| "unknown".to_owned())
}

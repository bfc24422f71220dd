//! Network devices: what XDP and they think of each other.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::control::ctl::doctor::{Finding, Plan, number, output, read};
use crate::guard::survey::{self, Device};

/// Drivers with XDP of their own, as of Linux 6.12.
const NATIVE: [&str; 30] = [
    "atlantic",
    "bnxt_en",
    "bonding",
    "dpaa2-eth",
    "fsl_dpaa2_eth",
    "ena",
    "fec",
    "fun_eth",
    "gve",
    "hv_netvsc",
    "i40e",
    "iavf",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "sfc",
    "stmmac",
    "tun",
    "veth",
    "virtio_net",
    "xen_netfront",
];
/// Largest MTU of XDP without frags on most drivers.
const MTU_NO_FRAGS: u64 = 3498;

pub(super) fn findings(plan: &Plan) -> Vec<Finding> {
    let devices = match survey::devices(&plan.bpffs) {
        Ok(devices) => devices,
        Err(error) => {
            let text = format!("netlink does not list them: {error}");
            return vec![Finding::fail("interfaces", text, "run it as root")];
        }
    };
    if devices.is_empty() {
        return vec![Finding::ok("interfaces", "only lo: nothing to guard")];
    }
    devices.iter().flat_map(device).collect()
}

fn device(device: &Device) -> Vec<Finding> {
    let name = &device.name;
    let mut findings = vec![xdp(device)];
    findings.extend(occupied(device));
    if !device.selected {
        return findings;
    }
    findings.extend(offloads(name, &output("ethtool", &["-k", name]).unwrap_or_default()));
    findings.extend(sysfs(device).as_deref().and_then(|place| queues(name, place)));
    findings
}

/// The device in sysfs; None where the sysfs that is mounted is another namespace's.
fn sysfs(device: &Device) -> Option<PathBuf> {
    let place = Path::new("/sys/class/net").join(&device.name);
    (number(place.join("ifindex")) == Some(device.ifindex.into())).then_some(place)
}

/// The driver's name: of a physical device its module, otherwise its kind.
fn driver(device: &Device, place: Option<&Path>) -> Option<String> {
    let link = place.and_then(|place| std::fs::read_link(place.join("device/driver")).ok());
    let module = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let kind = match device.kind.as_str() {
        "" => None,
        "bond" => Some("bonding"),
        kind => Some(kind),
    };
    module.or(kind).map(str::to_owned)
}

fn xdp(device: &Device) -> Finding {
    let check = format!("{}: XDP", device.name);
    let place = sysfs(device);
    let driver = driver(device, place.as_deref()).unwrap_or_else(|| "unknown driver".to_owned());
    let mtu = place.and_then(|place| number(place.join("mtu")));
    let shown = mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
    let frags = read("/proc/sys/kernel/osrelease")
        .and_then(|release| super::host::version(&release))
        .is_some_and(|version| version >= (5, 18));
    if !device.ethernet {
        return Finding::ok(check, format!("{driver}, no Ethernet header: guarded by tcx"));
    }
    if !device.selected {
        return Finding::ok(check, format!("{driver}: guarded by the device below or above it"));
    }
    if let Some(finding) = too_large(&device.name, &driver, mtu.filter(|_| !frags)) {
        return finding;
    }
    if NATIVE.contains(&driver.as_str()) {
        return Finding::ok(check, format!("{driver}{shown}: in the driver"));
    }
    let text = format!("{driver}{shown}: not known to have XDP; tcx costs about 4 times as much");
    Finding::warn(check, text, "none is needed from Linux 6.6 on; before it --guard-mode generic")
}

/// An MTU that XDP does not take in one piece.
pub(super) fn too_large(name: &str, driver: &str, mtu: Option<u64>) -> Option<Finding> {
    let mtu = mtu.filter(|mtu| *mtu > MTU_NO_FRAGS)?;
    Some(Finding::warn(
        format!("{name}: XDP"),
        format!("{driver}, MTU {mtu}: too large for XDP before Linux 5.18"),
        format!("ip link set {name} mtu {MTU_NO_FRAGS}"),
    ))
}

/// Programs of others.
fn occupied(device: &Device) -> Vec<Finding> {
    let finding = |standing: &survey::Standing| {
        let check = format!("{}: programs", device.name);
        let what = format!("{} program {} ({})", standing.hook, standing.id, standing.name);
        if standing.ours {
            return Finding::ok(check, format!("{what}: the guard's own"));
        }
        if standing.hook == "tcx" {
            return Finding::ok(
                check,
                format!("{what}: another program's; the guard stands before it"),
            );
        }
        Finding::warn(
            check,
            format!("{what}: another program's; the guard never displaces it"),
            format!("--guard-mode tcx, or end it: ip link set dev {} xdp off", device.name),
        )
    };
    device.programs.iter().map(finding).collect()
}

/// Offloads that keep a driver from XDP, from what `ethtool -k` prints.
pub(super) fn offloads(name: &str, features: &str) -> Vec<Finding> {
    let is_on = |feature: &str| {
        features.lines().any(|line| {
            line.trim().strip_prefix(feature).is_some_and(|rest| rest.starts_with(": on"))
        })
    };
    let table = [("large-receive-offload", "lro"), ("rx-gro-hw", "gro-hw")];
    let finding = |(feature, short): (&str, &str)| {
        is_on(feature).then(|| {
            Finding::warn(
                format!("{name}: offloads"),
                format!("{feature} is on: many drivers refuse XDP with it"),
                format!("ethtool -K {name} {short} off"),
            )
        })
    };
    table.into_iter().filter_map(finding).collect()
}

/// Receive queues beside processors.
fn queues(name: &str, place: &Path) -> Option<Finding> {
    let entries = std::fs::read_dir(place.join("queues")).ok()?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let queues = names.filter(|name| name.starts_with("rx-")).count();
    let cpus = std::thread::available_parallelism().ok()?.get();
    // A device without hardware has no queues to add.
    Some(enough(name, queues, if place.join("device").exists() { cpus } else { 0 }, cpus))
}

/// Queues beside the processors that could each have one.
pub(super) fn enough(name: &str, queues: usize, wanted: usize, cpus: usize) -> Finding {
    let check = format!("{name}: queues");
    let text = format!("{queues} receive queues, {cpus} processors");
    if queues >= wanted {
        return Finding::ok(check, text);
    }
    Finding::warn(
        check,
        format!("{text}: a flood is dropped by as many processors as there are queues"),
        format!("ethtool -L {name} combined {cpus}, if `ethtool -l {name}` allows it"),
    )
}

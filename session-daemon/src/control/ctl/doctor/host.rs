//! The kernel and what it lets us do.
#![forbid(unsafe_code)]

use caps::{CapSet, Capability};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::control::ctl::doctor::{Finding, Plan, number, read};
use crate::guard::survey;

/// Oldest kernel of the guard.
const KERNEL_MIN: (u32, u32) = (5, 10);
/// Since then BPF memory is not counted against the limit on locked memory.
const KERNEL_NO_MEMLOCK: (u32, u32) = (5, 11);
/// Since then a program in the driver takes packets of several pieces.
const KERNEL_FRAGS: (u32, u32) = (5, 18);
/// Since then there is tcx.
const KERNEL_TCX: (u32, u32) = (6, 6);

pub(super) fn findings(plan: &Plan) -> Vec<Finding> {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = version(&release);
    let mut findings = vec![kernel(&release, version), btf(), bpffs(plan)];
    findings.extend(capabilities());
    findings.extend(memlock(version));
    findings.push(jit());
    findings.push(io_uring(number("/proc/sys/kernel/io_uring_disabled")));
    findings
}

/// Major and minor number of a release such as `6.1.0-18-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) fn kernel(release: &str, version: Option<(u32, u32)>) -> Finding {
    let check = "kernel";
    match version {
        None => Finding::warn(check, format!("`{release}` is no version"), "uname -r"),
        Some(version) if version < KERNEL_MIN => Finding::fail(
            check,
            format!("Linux {release}: the guard needs 5.10"),
            "install a newer kernel, or start sessiond with --guard=user",
        ),
        Some(version) if version < KERNEL_FRAGS => Finding::warn(
            check,
            format!("Linux {release}: no XDP with an MTU above about 3,500, and no tcx"),
            "install Linux 6.6 or newer",
        ),
        Some(version) if version < KERNEL_TCX => Finding::warn(
            check,
            format!("Linux {release}: no tcx for devices without XDP of their own"),
            "install Linux 6.6 or newer",
        ),
        Some(_) => Finding::ok(check, format!("Linux {release}: XDP, frags and tcx")),
    }
}

fn btf() -> Finding {
    if std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Finding::ok("BTF", "the kernel describes its types");
    }
    let fix = "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions build it";
    Finding::warn("BTF", "/sys/kernel/btf/vmlinux is missing: bpftool shows less", fix)
}

fn bpffs(plan: &Plan) -> Finding {
    let path = plan.bpffs.display();
    if survey::has_bpffs(&plan.bpffs) {
        return Finding::ok("bpffs", format!("mounted at {path}"));
    }
    Finding::warn(
        "bpffs",
        format!("not mounted at {path}: sessiond mounts it itself, which takes CAP_SYS_ADMIN"),
        format!("mount -t bpf bpf {path}"),
    )
}

fn capabilities() -> Vec<Finding> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    let finding = |capability: Capability| {
        if held.contains(&capability) {
            return None;
        }
        Some(Finding::fail(
            "capabilities",
            format!("{capability} is missing here: no guard can be attached"),
            "run it as root, or grant the unit AmbientCapabilities=CAP_BPF CAP_NET_ADMIN",
        ))
    };
    let missing: Vec<Finding> =
        [Capability::CAP_BPF, Capability::CAP_NET_ADMIN].into_iter().filter_map(finding).collect();
    if missing.is_empty() {
        return vec![Finding::ok("capabilities", "CAP_BPF and CAP_NET_ADMIN are held")];
    }
    missing
}

fn memlock(version: Option<(u32, u32)>) -> Option<Finding> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    if soft == RLIM_INFINITY {
        return Some(Finding::ok("memlock", "unlimited"));
    }
    let kb = soft >> 10;
    let fix = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit";
    Some(match version {
        Some(version) if version < KERNEL_NO_MEMLOCK => Finding::fail(
            "memlock",
            format!("{kb} KB: before Linux 5.11 the guard's maps count against it"),
            fix,
        ),
        _ => Finding::ok("memlock", format!("{kb} KB, which matters with -k alone")),
    })
}

fn jit() -> Finding {
    match number("/proc/sys/net/core/bpf_jit_enable") {
        Some(0) => Finding::warn(
            "BPF compiler",
            "off: the guard is interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        _ => Finding::ok("BPF compiler", "on"),
    }
}

pub(super) fn io_uring(disabled: Option<u64>) -> Finding {
    let fix = "sysctl -w kernel.io_uring_disabled=0";
    match disabled {
        None | Some(0) => Finding::ok("io_uring", "permitted"),
        Some(1) => Finding::warn("io_uring", "for privileged processes alone: epoll is used", fix),
        Some(_) => Finding::warn("io_uring", "forbidden: epoll is used", fix),
    }
}

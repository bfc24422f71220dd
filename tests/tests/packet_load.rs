//! What the kernel and other loaders ask of the guard's object.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use aya::EbpfLoader;
use aya::programs::Program;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use session_daemon::allowlist::Allowlist;
use session_daemon::guard::interfaces::Interfaces;
use session_daemon::guard::lists::Protocol;
use session_daemon::guard::plane::Region;
use session_daemon::guard::{Destination, Guard, GuardConfig, ModeChoice, Refuse};
use session_tests::guard_program::{GuardProgram, object_path};
use session_tests::netns::Namespace;
use session_tests::scratch::Scratch;
use session_tests::{flood, kernel, plane_program, require_program, require_root, skip};

/// Instructions that the verifier may walk for one program. Linux gives up at a million; older
/// kernels walk more for the same program, so that a tenth of it is the promise.
const VERIFIED_MAX: u32 = 100_000;

/// Loads every program of the object on a thread that holds these capabilities and no others.
fn load_with(held: CapabilitySet) -> Result<()> {
    let load = move || {
        let sets = CapabilitySets {
            effective: held,
            permitted: held,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets)?;
        ensure!(capabilities(None)?.effective == held, "the kernel gave other capabilities");
        GuardProgram::load().map(drop)
    };
    thread::spawn(load).join().expect("loading does not panic")
}

/// No packet pointer is subtracted from another, so CAP_PERFMON is not needed.
#[test]
fn two_capabilities_load_it() -> Result<()> {
    require_root!();
    let two = CapabilitySet::BPF | CapabilitySet::NET_ADMIN;
    match load_with(two) {
        // Their verifiers take less from a loader without it.
        Err(_) if kernel::is_before(6, 12) => {
            load_with(two | CapabilitySet::PERFMON).context("with CAP_PERFMON as well")?;
        }
        outcome => outcome.context("with CAP_BPF and CAP_NET_ADMIN only")?,
    }
    ensure!(load_with(CapabilitySet::BPF).is_err(), "CAP_BPF alone");
    ensure!(load_with(CapabilitySet::NET_ADMIN).is_err(), "CAP_NET_ADMIN alone");
    Ok(())
}

/// libbpf's tools accept the object: its maps are defined by BTF, not in the legacy section.
#[test]
fn libbpf_loads_all_objects() -> Result<()> {
    require_root!();
    require_program!("bpftool");
    if kernel::is_before(5, 18) {
        skip!("libbpf loads an object whole, and this kernel has no XDP with fragments");
    }
    let scratch = Scratch::new("libbpf")?;
    let bpffs = scratch.mount_bpffs()?;
    for (object, programs) in [
        (object_path(), &["guard", "guard_frags", "guard_socket", "guard_tcx"][..]),
        (flood::object_path(), &["bare_drop", "bare_drop_tcx", "bare_pass", "generate"]),
        (plane_program::object_path(), &["plane", "plane_frags"]),
    ] {
        let pins = bpffs.join(format!("of-{}", programs[0]));
        let mut bpftool = Command::new("bpftool");
        bpftool.args(["prog", "loadall"]).args([&object, &pins]);
        let output = bpftool.output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {errors}", object.display());
        for program in programs {
            ensure!(pins.join(program).exists(), "{} lacks {program}", object.display());
        }
    }
    Ok(())
}

/// So does xdp-tools' loader, which others put programs before and behind each other with.
#[test]
fn xdp_loader_attaches_it() -> Result<()> {
    require_root!();
    require_program!("xdp-loader");
    if kernel::is_before(5, 18) {
        skip!("libbpf loads an object whole, and this kernel has no XDP with fragments");
    }
    let scratch = Scratch::new("loader")?;
    let bpffs = scratch.mount_bpffs()?;
    let host = Namespace::new("loader")?;
    host.ip("link add eth0 type veth peer name eth1")?;
    let xdp_loader = |arguments: &[&str]| -> Result<()> {
        let mut command = Command::new("xdp-loader");
        let output = host.output(command.args(arguments).env("LIBXDP_BPFFS", &bpffs))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "xdp-loader {arguments:?}: {errors}");
        Ok(())
    };
    let object = object_path();
    let object = object.to_str().context("a path of ours")?;
    for (mode, program) in [("native", "guard_frags"), ("skb", "guard")] {
        xdp_loader(&["load", "--mode", mode, "--prog-name", program, "eth0", object])?;
        let shown = host.ip("-details link show eth0")?;
        ensure!(shown.contains(&format!("name {program} ")), "{shown}");
        xdp_loader(&["unload", "eth0", "--all"])?;
    }
    Ok(())
}

#[test]
fn the_verifier_is_far_from_its_limit() -> Result<()> {
    require_root!();
    verified(&object_path())?;
    if !kernel::is_before(5, 18) {
        verified(&plane_program::object_path())?;
    }
    Ok(())
}

/// Loads every program of an object, and says how far the verifier walked.
fn verified(object: &Path) -> Result<()> {
    let mut ebpf = EbpfLoader::new().load_file(object)?;
    for (hook, program) in ebpf.programs_mut() {
        if hook == "guard_frags" && kernel::is_before(5, 18) {
            continue;
        }
        match program {
            Program::Xdp(program) => program.load()?,
            Program::SchedClassifier(program) => program.load()?,
            Program::SocketFilter(program) => program.load()?,
            _ => bail!("{hook} is of another type"),
        }
        let info = program.info()?;
        ensure!(info.gpl_compatible() == Some(true), "{hook}: the licence");
        let Some(verified) = info.verified_instruction_count() else {
            ensure!(kernel::is_before(5, 16), "{hook}: no count of verified instructions");
            continue;
        };
        let translated = info.size_translated().context("Linux 4.13 tells")? / 8;
        println!("{hook}: {translated} instructions, {verified} verified");
        ensure!(verified < VERIFIED_MAX, "{hook}: {verified} instructions verified");
    }
    Ok(())
}

/// The maps that the daemon looks for, and no others: no hidden globals, no log buffer.
#[test]
fn the_object_has_the_documented_maps() -> Result<()> {
    require_root!();
    let ebpf = EbpfLoader::new().load_file(object_path())?;
    let mut maps: Vec<&str> = ebpf.maps().map(|(name, _)| name).collect();
    maps.sort_unstable();
    let documented = [
        "ANSWERS",
        "COUNTERS",
        "CPU_BUCKET",
        "ENDPOINTS",
        "HEAD",
        "HOSTS4",
        "HOSTS6",
        "LARGE4",
        "LARGE6",
        "LISTS",
        "LOCAL4",
        "LOCAL6",
        "META",
        "PLANES",
        "PLANES_FRAGS",
        "PREFIXES4",
        "PREFIXES6",
        "REFUSAL",
        "REPLY",
        "RULES",
        "SAMPLES",
        "SAMPLING",
        "SOURCES",
    ];
    assert_eq!(maps, documented);
    Ok(())
}

/// The kernel plane is loaded beside the guard, or whoever asked for it is told which kernel has it.
#[test]
fn the_kernel_plane_is_loaded_or_a_newer_kernel_is_asked_for() -> Result<()> {
    require_root!();
    let scratch = Scratch::new("plane")?;
    let config = GuardConfig {
        interfaces: Interfaces::All,
        mode: ModeChoice::Auto,
        endpoints: vec![(Protocol::Udp, 11_211)],
        bpffs: scratch.mount_bpffs()?,
        destination: Destination::Local,
        audit: false,
        refuse: Refuse::Drop,
        list: "plane".to_owned(),
    };
    Namespace::new("plane")?.run(|| {
        let mut guard = Guard::attach(config, &Allowlist::new())?;
        let outcome = guard.make_plane(1 << 20, Region::Any);
        if !kernel::is_before(5, 18) {
            return outcome.map(drop).context("the kernel plane");
        }
        let error = outcome.err().context("this kernel cannot load it")?.to_string();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        for words in [release.trim(), "needs Linux 5.18", "leave --kernel-plane out"] {
            ensure!(error.contains(words), "no `{words}` in: {error}");
        }
        Ok(())
    })
}

//! When the guard cannot or must not stand as asked: what it says, and that what stood before
//! still stands.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use aya::EbpfLoader;
use aya::maps::{Array, Map, MapData};
use aya::programs::Xdp;
use aya::programs::xdp::XdpMode;
use nix::sys::signal::Signal;
use session_common::guard::{MAGIC, Meta, SCHEMA};
use session_daemon::guard::interfaces::Interfaces;
use session_daemon::guard::lists::Protocol;
use session_daemon::guard::status::GuardStatus;
use session_daemon::guard::{Mode, ModeChoice, detach_all};
use session_daemon::sys;
use session_tests::guard_bed::{Bed, EVERY_WAY, interface, packets};
use session_tests::guard_holder::{Holder, Setup, program};
use session_tests::{flood, require_program, require_root};

fn maps(status: &GuardStatus) -> PathBuf {
    Path::new(&status.pins).join("maps")
}

#[test]
fn a_foreign_program_is_named_and_left_alone() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let mut object = EbpfLoader::new().load_file(flood::object_path())?;
    let pass: &mut Xdp = object.program_mut("bare_pass").context("no program")?.try_into()?;
    pass.load()?;
    for mode in [XdpMode::Driver, XdpMode::Skb] {
        let link = bed.topology.cache.run(|| pass.attach("eth0", mode))?;
        let foreign = bed.program_on("eth0")?.context("it is attached")?;
        let error = bed.start(&bed.setup()).unwrap_err().to_string();
        let owner = format!("interface eth0 already runs XDP program {foreign} (`bare_pass`)");
        assert!(error.contains(&owner) && error.contains("--guard-mode tcx"), "{error}");
        assert_eq!(bed.program_on("eth0")?, Some(foreign));
        let (mut holder, status) = bed.start(&Setup { mode: ModeChoice::Tcx, ..bed.setup() })?;
        assert_eq!(interface(&status, "eth0").mode, Some(Mode::Tcx));
        assert_eq!(bed.program_on("eth0")?, Some(foreign));
        bed.assert_guarded(&sockets);
        holder.kill();
        bed.topology.cache.run(|| detach_all(&bed.bpffs))?;
        pass.detach(link)?;
    }
    Ok(())
}

#[test]
fn a_start_that_fails_leaves_what_stood_before() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, before) = bed.start(&bed.setup())?;
    holder.kill();
    // A second interface, taken by another program, comes after eth0 in the order of devices.
    bed.topology.cache.namespace.ip("link add spare0 type veth peer name spare1")?;
    let mut object = EbpfLoader::new().load_file(flood::object_path())?;
    let pass: &mut Xdp = object.program_mut("bare_pass").context("no program")?.try_into()?;
    pass.load()?;
    bed.topology.cache.run(|| pass.attach("spare0", XdpMode::Driver))?;
    let stranger = bed.topology.stranger.v4.to_string();
    let changed = Setup { audit: true, ..Setup::new(&bed.bpffs, &stranger) };
    let error = bed.start(&changed).unwrap_err().to_string();
    assert!(error.contains("spare0 already runs"), "{error}");
    let program = interface(&before, "eth0").program_id.map(u64::from);
    assert_eq!(bed.program_on("eth0")?, program, "the former program is back");
    bed.assert_guarded(&sockets);
    for absent in ["nope", "eth7"] {
        let interfaces = Interfaces::Named(vec![absent.to_owned(), "eth0".to_owned()]);
        assert!(bed.start(&Setup { interfaces, ..changed.clone() }).is_err());
        bed.assert_guarded(&sockets);
    }
    bed.topology.cache.namespace.ip("link delete spare0")?;
    let (_holder, after) = bed.start(&bed.setup())?;
    assert_eq!(interface(&after, "eth0").link_id, interface(&before, "eth0").link_id);
    Ok(())
}

/// A start that cannot open what is pinned must not take it for something to tidy up.
#[test]
fn a_start_without_descriptors_takes_nothing_off() -> Result<()> {
    require_root!();
    require_program!("prlimit");
    let bed = Bed::new(1)?;
    let (mut holder, before) = bed.start(&bed.setup())?;
    holder.kill();
    let guard = interface(&before, "eth0");
    let pin = Path::new(&before.pins).join("links").join(guard.ifindex.to_string());
    let mut refused = 0;
    for limit in 4..64 {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}")).arg(program()).stderr(Stdio::null());
        let started = Holder::start_command(command, &bed.topology.cache.namespace, &bed.setup());
        anyhow::ensure!(pin.exists(), "the link's pin went with {limit} descriptors");
        anyhow::ensure!(bed.program_on("eth0")?.is_some(), "open with {limit} descriptors");
        match started {
            Ok(_) => break,
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 20, "only {refused} starts lacked descriptors");
    Ok(())
}

/// A daemon that cannot look for a moment still guards, over maps that are its own now.
#[test]
fn maps_that_are_gone_are_not_made_anew_beside_a_live_daemon() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (holder, status) = bed.start(&bed.setup())?;
    let pid = rustix::process::Pid::from_raw(holder.pid().try_into()?).context("a pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
    for entry in std::fs::read_dir(maps(&status))? {
        std::fs::remove_file(entry?.path())?;
    }
    let other =
        Setup { list: "other".to_owned(), endpoints: vec![(Protocol::Tcp, 11_311)], ..bed.setup() };
    let error = bed.start(&other).unwrap_err().to_string();
    assert!(error.contains("the maps are missing") && error.contains("default"), "{error}");
    bed.assert_guarded(&sockets);
    Ok(())
}

/// Something that is not the guard's own among the pins.
type Tampering = fn(&Path) -> Result<()>;

/// Pins another map at `path`.
fn replace(path: &Path, kind: &str, key: u32, value: u32, entries: u32, flags: u32) -> Result<()> {
    std::fs::remove_file(path)?;
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["map", "create"]).arg(path).args(["type", kind, "name", "tampered"]);
    for (name, number) in [("key", key), ("value", value), ("entries", entries), ("flags", flags)] {
        bpftool.args([name, &number.to_string()]);
    }
    anyhow::ensure!(bpftool.status()?.success(), "{bpftool:?}");
    Ok(())
}

fn write_meta(maps: &Path, meta: Meta) -> Result<()> {
    let map = Map::Array(MapData::from_pin(maps.join("META"))?);
    Ok(Array::<_, Meta>::try_from(map)?.set(0, meta, 0)?)
}

const TAMPERINGS: [(&str, Tampering); 9] = [
    ("map HOSTS4: ", |maps| Ok(std::fs::remove_file(maps.join("HOSTS4"))?)),
    ("map HOSTS4 has type", |maps| replace(&maps.join("HOSTS4"), "lru_hash", 8, 16, 2_097_152, 0)),
    ("map HOSTS4 has value size 24", |maps| {
        replace(&maps.join("HOSTS4"), "hash", 8, 24, 2_097_152, 1)
    }),
    ("map HOSTS6 has key size 16", |maps| {
        replace(&maps.join("HOSTS6"), "hash", 16, 16, 2_097_152, 1)
    }),
    ("map HOSTS4 has max_entries 10", |maps| replace(&maps.join("HOSTS4"), "hash", 8, 16, 10, 1)),
    ("map ENDPOINTS has flags 1", |maps| replace(&maps.join("ENDPOINTS"), "hash", 4, 4, 256, 1)),
    ("META is", |maps| {
        write_meta(maps, Meta { magic: MAGIC + 1, schema: SCHEMA, settings: 0, reserved: 0 })
    }),
    ("META is", |maps| {
        write_meta(maps, Meta { magic: MAGIC, schema: SCHEMA + 1, settings: 0, reserved: 0 })
    }),
    ("another program", |maps| {
        // Not even a map.
        let program = sys::object_open(&maps.with_file_name("programs").join("guard_frags"))?;
        std::fs::remove_file(maps.join("LISTS"))?;
        Ok(sys::object_pin(program.as_fd(), &maps.join("LISTS"))?)
    }),
];

#[test]
fn pins_that_are_not_as_they_must_be_are_not_used() -> Result<()> {
    require_root!();
    require_program!("bpftool");
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, mut status) = bed.start(&bed.setup())?;
    let link_id = interface(&status, "eth0").link_id;
    for (what, tamper) in TAMPERINGS {
        bed.assert_guarded(&sockets);
        let counted = packets(&holder.status(), "allowed");
        assert!(counted > 0);
        holder.kill();
        tamper(&maps(&status)).with_context(|| what.to_owned())?;
        (holder, status) = bed.start(&bed.setup()).with_context(|| what.to_owned())?;
        assert_eq!(packets(&status, "allowed"), 0, "{what}: new maps");
        assert_eq!(interface(&status, "eth0").link_id, link_id, "{what}: the same link");
        let meta = Map::Array(MapData::from_pin(maps(&status).join("META"))?);
        assert_eq!(Array::<_, Meta>::try_from(meta)?.get(&0, 0)?.schema, SCHEMA, "{what}");
    }
    bed.assert_guarded(&sockets);
    Ok(())
}

#[test]
fn tampered_pins_are_refused_while_another_daemon_uses_them() -> Result<()> {
    require_root!();
    require_program!("bpftool");
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (first, status) = bed.start(&bed.setup())?;
    // The daemon that runs would put the pins right within a second, so it is stopped.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first.pid())?);
    nix::sys::signal::kill(pid, Signal::SIGSTOP)?;
    replace(&maps(&status).join("HOSTS4"), "hash", 8, 24, 16, 1)?;
    let second = Setup { list: "second".to_owned(), endpoints: Vec::new(), ..bed.setup() };
    let error = bed.start(&second).unwrap_err().to_string();
    assert!(error.contains("cannot be trusted (map HOSTS4 has value size 24"), "{error}");
    assert!(error.contains("(default); restart those daemons"), "{error}");
    bed.assert_guarded(&sockets);
    nix::sys::signal::kill(pid, Signal::SIGCONT)?;
    Ok(())
}

#[test]
fn what_a_dead_namespace_of_the_same_number_left_is_not_used() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    bed.assert_guarded(&sockets);
    holder.kill();
    let root = Path::new(&status.pins);
    let marks: Vec<PathBuf> = std::fs::read_dir(root)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().contains("namespace-"))
        .collect();
    assert_eq!(marks.len(), 1, "{marks:?}");
    std::fs::rename(&marks[0], root.join("namespace-1"))?;
    let (_holder, status) = bed.start(&bed.setup())?;
    assert_eq!(packets(&status, "allowed"), 0, "new maps");
    assert!(marks[0].exists() && !root.join("namespace-1").exists());
    bed.assert_guarded(&sockets);
    Ok(())
}

#[test]
fn somebody_elses_directory_is_refused() -> Result<()> {
    require_root!();
    let bed = Bed::new(0)?;
    let directory = bed.bpffs.join("session");
    std::fs::create_dir(&directory)?;
    std::os::unix::fs::chown(&directory, Some(65534), None)?;
    let error = bed.start(&bed.setup()).unwrap_err().to_string();
    assert!(error.contains("written by somebody else; run: rm -r"), "{error}");
    assert_eq!(bed.program_on("eth0")?, None);
    Ok(())
}

/// Starts the holder as root with these capabilities and no others.
fn start_with(bed: &Bed, capabilities: &str, setup: &Setup) -> Result<(Holder, GuardStatus)> {
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-all,{capabilities}")).arg("--inh-caps=-all");
    command.arg(program());
    Holder::start_command(command, &bed.topology.cache.namespace, setup)
}

#[test]
fn two_capabilities_are_enough_and_needed() -> Result<()> {
    require_root!();
    require_program!("setpriv");
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    for missing in ["+net_admin", "+bpf"] {
        let error = start_with(&bed, missing, &bed.setup()).unwrap_err().to_string();
        assert!(error.contains("CAP_BPF and CAP_NET_ADMIN"), "{missing}: {error}");
        assert_eq!(bed.program_on("eth0")?, None);
    }
    for mode in [ModeChoice::Auto, ModeChoice::Tcx] {
        let setup = Setup { mode, ..bed.setup() };
        let (mut holder, status) = start_with(&bed, "+bpf,+net_admin", &setup)?;
        assert!(status.complete && interface(&status, "eth0").pinned, "{status:?}");
        bed.assert_guarded(&sockets);
        holder.kill();
        bed.assert_guarded(&sockets);
        // Again over the pins.
        let (mut holder, again) = start_with(&bed, "+bpf,+net_admin", &setup)?;
        assert_eq!(interface(&again, "eth0").link_id, interface(&status, "eth0").link_id);
        bed.assert_guarded(&sockets);
        holder.kill();
    }
    Ok(())
}

#[test]
fn a_bpffs_is_mounted_where_there_is_none_or_the_command_is_named() -> Result<()> {
    require_root!();
    require_program!("setpriv");
    let bed = Bed::new(1)?;
    let nowhere = bed.scratch.join("other-bpffs");
    let setup = Setup { bpffs: nowhere.clone(), ..bed.setup() };
    let error = start_with(&bed, "+bpf,+net_admin", &setup).unwrap_err().to_string();
    assert!(error.contains(&format!("run: mount -t bpf bpf {}", nowhere.display())), "{error}");
    assert_eq!(bed.program_on("eth0")?, None);
    let (mut holder, status) = bed.start(&setup)?;
    assert!(status.pins.starts_with(nowhere.to_str().context("plain path")?), "{status:?}");
    assert!(interface(&status, "eth0").pinned);
    holder.kill();
    let sockets = bed.listen()?;
    bed.assert_guarded(&sockets);
    Ok(())
}

#[test]
fn only_detaching_ends_it_and_not_while_a_daemon_runs() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, status) = bed.start(&bed.setup())?;
    let detach = || bed.topology.cache.run(|| detach_all(&bed.bpffs));
    let error = detach().unwrap_err().to_string();
    assert!(error.contains("daemons still run") && error.contains("default"), "{error}");
    holder.kill();
    bed.assert_guarded(&sockets);
    assert_eq!(detach()?.links, 1);
    assert_eq!(bed.program_on("eth0")?, None);
    assert_eq!(sockets.reached_by(&bed.topology.stranger), EVERY_WAY);
    assert!(!Path::new(&status.pins).exists());
    assert!(!bed.bpffs.join("session").exists(), "no directory is left");
    assert_eq!(detach()?.links, 0, "again is no error");
    Ok(())
}

/// A daemon with maps of another layout takes the links over: no packet meets an interface
/// without a program, and nothing of the other layout is left.
#[test]
fn a_guard_with_maps_of_another_layout_is_succeeded() -> Result<()> {
    require_root!();
    let bed = Bed::new(1)?;
    let sockets = bed.listen()?;
    let (mut holder, first) = bed.start(&bed.setup())?;
    let own = PathBuf::from(&first.pins);
    let other = own.with_file_name(format!("v{}", SCHEMA - 1));
    // While its daemon lives it is left alone. Stopped, or it would mend what is done here.
    holder.signal(Signal::SIGSTOP);
    std::fs::rename(&own, &other)?;
    let error = bed.start(&Setup { list: "second".to_owned(), ..bed.setup() }).unwrap_err();
    assert!(error.to_string().contains("daemons still run"), "{error}");
    holder.kill();
    let _ = std::fs::remove_dir_all(&own);
    bed.assert_guarded(&sockets);
    let (mut holder, second) = bed.start(&bed.setup())?;
    let (before, after) = (interface(&first, "eth0"), interface(&second, "eth0"));
    assert_eq!((after.link_id, after.pinned), (before.link_id, true));
    assert_ne!(after.program_id, before.program_id);
    assert!(!other.exists() && own.exists());
    bed.assert_guarded(&sockets);
    holder.kill();
    // What such a guard has left is detached too.
    std::fs::rename(&own, &other)?;
    let cache = &bed.topology.cache;
    let detached = cache.run(|| detach_all(&bed.bpffs))?;
    assert_eq!((detached.links, other.exists()), (1, false));
    assert_eq!(bed.program_on("eth0")?, None);
    Ok(())
}

//! Lists as long as they may be: set, compared and replaced by the daemon, which goes on to mend its
//! guard meanwhile, and takes memory for them only as long as it has them.
//!
//! A hundredth of the length is enough to find what breaks; all of it with `SESSION_TEST_ALL=1`.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use session_daemon::sys;
use session_tests::binaries;
use session_tests::client::{Client, REFUSAL_TIMEOUT};
use session_tests::netns::Namespace;
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::Topology;
use session_tests::{require_root, skip, wait};

const HOSTS: u32 = 1_000_000;
const PREFIXES: u32 = 100_000;

/// What of it the short run has.
const PART: u32 = 100;

/// Most memory that the daemon takes for a list of a million entries beside its successor.
const MEMORY_MAX: u64 = 1 << 30;

/// Writes a list of hosts from 10.0.0.0 and prefixes from 11.0.0.0 on, both moved by `first`.
fn write(path: &Path, hosts: u32, prefixes: u32, first: u32, more: &str) -> Result<()> {
    let mut text = String::from(more);
    for n in first..first + hosts {
        writeln!(text, "{}", Ipv4Addr::from_bits(0x0a00_0000 + n))?;
    }
    for n in first..first + prefixes {
        writeln!(text, "{}/28 # net {n}", Ipv4Addr::from_bits(0x0b00_0000 + (n << 4)))?;
    }
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?)
}

/// The pin of the one link there is.
fn pinned_link(bpffs: &Path) -> Result<PathBuf> {
    let only = |path: &Path| -> Result<PathBuf> {
        let entry = std::fs::read_dir(path)?.next().context("an empty directory")?;
        Ok(entry?.path())
    };
    only(&only(&only(&bpffs.join("session"))?)?.join("links"))
}

/// Starts `sessionctl sync`, whose answer goes to a file: it is longer than a pipe takes. So does
/// how far it is.
fn sync(setup: &Setup, list: &Path, answer: &Path, progress: &Path) -> Result<Child> {
    let mut command = Command::new(binaries::sessionctl());
    command.arg("--control").arg(setup.control()).args(["--json", "sync"]).arg(list);
    command.stdin(Stdio::null()).stdout(File::create(answer)?).stderr(File::create(progress)?);
    command.spawn().context("starting sessionctl")
}

/// Detaches the guard from its interface again and again until the child has ended, and counts how
/// often it stood again while the child ran.
fn detach_while_running(daemon: &Sessiond<'_>, child: &mut Child) -> Result<u32> {
    const STANDS: &str = "the guard was detached from eth0; it stands again";
    let stands = || daemon.process.log().matches(STANDS).count();
    let mut mended = 0;
    while child.try_wait()?.is_none() {
        let before = stands();
        let link = sys::object_open(&pinned_link(daemon.setup.bpffs())?)?;
        sys::link_detach(link.as_fd())?;
        drop(link);
        wait::until("the guard to stand again", || (stands() > before).then_some(()));
        mended += u32::from(child.try_wait()?.is_none());
    }
    Ok(mended)
}

/// Most memory that a process has had, in bytes.
fn memory_peak(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Memory of the guard's tables of hosts.
fn tables(bpffs: &Path, namespace: &Namespace) -> Result<u64> {
    let maps = pinned_link(bpffs)?;
    let maps = maps.ancestors().nth(2).context("a directory of pins")?.join("maps");
    let mut sum = 0;
    for name in ["HOSTS4", "HOSTS6"] {
        let mut bpftool = Command::new("bpftool");
        bpftool.args(["-j", "map", "show", "pinned"]).arg(maps.join(name));
        let map: Value = serde_json::from_slice(&namespace.output(&mut bpftool)?.stdout)?;
        sum += map["bytes_memlock"].as_u64().context("no size")?;
    }
    Ok(sum)
}

fn assert_guarded(topology: &Topology) {
    let address = topology.cache.v4.into();
    let reach = |host: &session_tests::topology::Host, limit| {
        host.run(|| Client::connect_within(address, PORT, limit))
    };
    let mut client = reach(&topology.allowed[0], Duration::from_secs(10)).expect("allowed");
    assert!(client.command("version").expect("served").starts_with("VERSION"));
    let error = reach(&topology.stranger, REFUSAL_TIMEOUT).expect_err("a stranger");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
}

/// What `sessionctl test` says of a source.
fn is_let_in(daemon: &Sessiond<'_>, source: &str) -> Result<bool> {
    let answer = daemon.ctl_json(&["test", source])?;
    let packets = answer["packets"].as_array().context("no packets")?;
    let passes = packets.iter().all(|one| one["passes"] == true);
    ensure!(answer["allowed"] == passes, "the two sides differ: {answer}");
    Ok(passes)
}

#[test]
fn a_list_of_a_million_is_set_and_replaced_while_the_guard_is_mended() -> Result<()> {
    require_root!();
    let part = if skip::all() { 1 } else { PART };
    let (hosts, prefixes) = (HOSTS / part, PREFIXES / part);
    let topology = Topology::new(1)?;
    let web = topology.allow_argument();
    let setup = Setup::guarded()?.args(["--allow", &web]);
    let daemon = setup.start(Some(&topology.cache.namespace))?;
    let idle = tables(setup.bpffs(), &topology.cache.namespace)?;
    assert!(idle < 8 << 20, "{idle} bytes for two hosts");

    let path = |name| setup.scratch().join(name);
    let (file, answer, progress) = (path("list"), path("answer"), path("progress"));
    // The second has half of the first and as many others; the last one differs in few.
    for (first, more) in [(0, ""), (hosts / 2, ""), (hosts / 2, "192.0.2.1\n")] {
        let more = format!("{}\n{more}", web.replace(',', "\n"));
        write(&file, hosts, prefixes, first, &more)?;
        let start = Instant::now();
        let dry: Value = daemon.ctl_json(&["sync", "--dry-run", &file.to_string_lossy()])?;
        let compared = start.elapsed();
        let start = Instant::now();
        let mut child = sync(&setup, &file, &answer, &progress)?;
        let mended = detach_while_running(&daemon, &mut child)?;
        let took = start.elapsed();
        ensure!(child.wait()?.success(), "sync: {}", daemon.process.log());
        let done: Value = serde_json::from_slice(&std::fs::read(&answer)?)?;
        assert_eq!(done["counts"], dry["counts"]);
        let shown = std::fs::read_to_string(&progress)?;
        let is_shown = |line: &str| line.contains("being compared") || line.contains("are written");
        assert!(shown.lines().count() >= 1 && shown.lines().all(is_shown), "{shown}");
        println!(
            "{}: compared in {compared:?}, in force in {took:?}, mended {mended} times, at most {} MiB",
            done["counts"],
            memory_peak(daemon.process.pid())? >> 20,
        );
        assert!(mended >= 1 || took < Duration::from_secs(2), "not mended in {took:?}");
        let (last, next) = (first + hosts - 1, first + hosts);
        let address = |n: u32| Ipv4Addr::from_bits(0x0a00_0000 + n).to_string();
        assert!(is_let_in(&daemon, &address(last))? && !is_let_in(&daemon, &address(next))?);
        assert_eq!(is_let_in(&daemon, &address(0))?, first == 0);
        let prefix = Ipv4Addr::from_bits(0x0b00_0000 + ((first + prefixes) << 4) - 1).to_string();
        assert!(is_let_in(&daemon, &prefix)?);
        assert_eq!(is_let_in(&daemon, "192.0.2.1")?, more.contains("192.0.2.1"));
        assert_guarded(&topology);
    }
    let peak = memory_peak(daemon.process.pid())?;
    assert!(peak < MEMORY_MAX, "{peak} bytes");

    // A short list again: nothing of the long one is left.
    write(&file, 0, 0, 0, &web.replace(',', "\n"))?;
    daemon.ctl(&["sync", &file.to_string_lossy()])?;
    assert!(!is_let_in(&daemon, "10.0.0.9")?);
    assert_guarded(&topology);
    Ok(())
}

#[test]
fn a_short_list_grows_long_by_single_entries() -> Result<()> {
    require_root!();
    let topology = Topology::new(1)?;
    let setup = Setup::guarded()?;
    let file = setup.scratch().join("list");
    // As many as the tables for short lists take of one list.
    let more = format!("{}\n", topology.allow_argument().replace(',', "\n"));
    write(&file, 4_095, 0, 0, &more)?;
    let setup = setup.arg("--allow-file").arg(&file);
    let mut daemon = setup.start(Some(&topology.cache.namespace))?;
    for round in 0..3 {
        let source = format!("198.18.9.{round}");
        assert!(!is_let_in(&daemon, &source)?);
        daemon.ctl(&["allow", &source])?;
        assert!(is_let_in(&daemon, &source)? && is_let_in(&daemon, "10.0.15.254")?);
        assert_guarded(&topology);
    }
    assert_eq!(daemon.guard()?["entries"], 4_095 + 2 + 3);
    daemon.ctl(&["remove", "198.18.9.0"])?;
    assert!(!is_let_in(&daemon, "198.18.9.0")? && is_let_in(&daemon, "198.18.9.1")?);
    // A long list stands over a restart as a short one does.
    daemon.process.kill();
    let daemon = setup.start(Some(&topology.cache.namespace))?;
    assert!(is_let_in(&daemon, "198.18.9.1")? && is_let_in(&daemon, "10.0.0.0")?);
    assert!(!is_let_in(&daemon, "198.18.9.0")?);
    assert_guarded(&topology);
    Ok(())
}

//! The packages: what is in them; and the one for Debian installed, started by the command line of
//! its unit, upgraded, removed and purged, on a machine made of this one with a layer on top.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use session_tests::client::Client;
use session_tests::process::Process;
use session_tests::sandbox::Sandbox;
use session_tests::scratch::Scratch;
use session_tests::sessiond::PORT;
use session_tests::topology::Topology;
use session_tests::{binaries, require_program, require_root, skip, wait};

const UNIT: &str = "usr/lib/systemd/system/sessiond.service";

/// Exposure of the whole unit, parent and serving process, tenths; memcached's on Debian is 48.
const EXPOSURE: &str = "25";

fn pack(kind: &str, scratch: &Scratch, revision: &str) -> PathBuf {
    let mut command = Command::new(binaries::xtask());
    let built = binaries::sessiond();
    command.args(["package", kind, "--fast", "--revision", revision, "--binaries"]);
    command.arg(built.parent().unwrap()).arg("--out").arg(scratch.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

fn text(output: &Output) -> String {
    let (out, error) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(error))
}

#[track_caller]
fn ran(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// What both packages hold.
const HELD: &[&str] = &[
    "/etc/sessiond/allow",
    "/etc/sessiond/sessiond.conf",
    "/usr/bin/sessionctl",
    "/usr/lib/systemd/system/sessiond-boot-rule.service",
    "/usr/lib/systemd/system/sessiond.service",
    "/usr/sbin/sessiond",
    "/usr/share/bash-completion/completions/sessionctl",
    "/usr/share/bash-completion/completions/sessiond",
    "/usr/share/doc/session/migrate-from-memcached.md",
    "/usr/share/fish/vendor_completions.d/sessionctl.fish",
    "/usr/share/man/man1/sessionctl.1.gz",
    "/usr/share/man/man8/sessiond.8.gz",
    "/usr/share/zsh/vendor-completions/_sessionctl",
];

#[test]
fn the_rpm_holds_what_it_should() {
    require_program!("rpmbuild");
    require_program!("rpm");
    let scratch = Scratch::new("rpm").unwrap();
    let package = pack("rpm", &scratch, "1");
    let ask = |what: &[&str]| {
        ran(Command::new("rpm").arg("-qp").args(what).arg(&package).output().unwrap())
    };
    let list = ask(&["--list"]);
    for place in HELD {
        assert!(list.lines().any(|line| line == *place), "{place}: {list}");
    }
    assert_eq!(ask(&["--configfiles"]), "/etc/sessiond/allow\n/etc/sessiond/sessiond.conf\n");
    let scripts = ask(&["--scripts"]);
    assert!(scripts.contains("useradd --system") && scripts.contains("sessionctl detach --yes"));
    assert!(scripts.contains("sessionctl boot-rule clear"), "{scripts}");
    let owners = ask(&["--queryformat", "[%{FILEUSERNAME} %{FILEMODES:perms} %{FILENAMES}\n]"]);
    for line in owners.lines() {
        let program = line.ends_with("bin/sessiond") || line.ends_with("bin/sessionctl");
        let mode = if program { "-rwxr-xr-x" } else { "-rw-r--r--" };
        assert!(line.starts_with(&format!("root {mode} /")), "{line}");
    }
}

#[test]
fn the_unit_is_sound_and_confined() {
    require_program!("systemd-analyze");
    let unit = binaries::workspace_root().join("packaging/systemd/sessiond.service");
    let threshold = format!("--threshold={EXPOSURE}");
    let analyze = |arguments: &[&str]| {
        Command::new("systemd-analyze").args(arguments).arg(&unit).output().unwrap()
    };
    ran(analyze(&["security", "--offline=true", &threshold]));
    let unit = fs::read_to_string(&unit).unwrap();
    for line in ["Type=notify", "Before=network-pre.target network.target shutdown.target"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    // What the analysis does not look at, and what it takes for granted of a name.
    let verified = text(&analyze(&["verify"]));
    for line in verified.lines() {
        let missing = line.contains("is not executable") || line.contains("Command 'man ");
        assert!(missing || !line.contains("sessiond.service"), "{verified}");
    }
}

/// The rule that keeps the port closed is there before a network is, before sessiond, and behind those
/// who begin by flushing all rules; nothing but the administrator enables or ends it.
#[test]
fn the_unit_of_the_boot_rule_comes_first_and_is_not_enabled() {
    require_program!("systemd-analyze");
    let directory = binaries::workspace_root().join("packaging/systemd");
    let path = directory.join("sessiond-boot-rule.service");
    let unit = fs::read_to_string(&path).unwrap();
    let words = |name: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default().split(' ').collect::<Vec<_>>()
    };
    for first in ["network-pre.target", "sessiond.service", "memcached.service"] {
        assert!(words("Before").contains(&first), "{unit}");
    }
    assert!(words("After").contains(&"nftables.service"), "{unit}");
    assert_eq!(words("WantedBy"), ["sysinit.target"]);
    // Neither is there a way by which a shutdown, or sessiond's end, would open the port.
    assert!(words("DefaultDependencies") == ["no"] && !unit.contains("Conflicts="), "{unit}");
    let sessiond = fs::read_to_string(directory.join("sessiond.service")).unwrap();
    assert!(!sessiond.contains("boot-rule"), "{sessiond}");
    for script in ["deb/postinst", "rpm/session.spec.in"] {
        let script = fs::read_to_string(directory.join("..").join(script)).unwrap();
        let enables = script.lines().filter(|line| line.contains("enable sessiond"));
        assert!(enables.clone().count() > 0 && !enables.clone().any(|line| line.contains("boot")));
    }
    let mut verify = Command::new("systemd-analyze");
    let verified = text(&verify.args(["verify"]).arg(&path).output().unwrap());
    for line in verified.lines() {
        let missing = line.contains("is not executable") || line.contains("Command 'man ");
        assert!(missing || !line.contains("sessiond-boot-rule"), "{verified}");
    }
}

#[test]
fn the_deb_is_installed_started_upgraded_and_removed() {
    require_root!();
    require_program!("dpkg-deb");
    require_program!("nft");
    let sandbox = match Sandbox::new() {
        Ok(sandbox) => sandbox,
        Err(error) => skip!("needs overlayfs: {error:#}"),
    };
    let scratch = Scratch::new("deb").unwrap();
    let topology = Topology::new(1).unwrap();
    let cache = &topology.cache;
    let shell = |line: &str| sandbox.shell(&cache.namespace, line).unwrap();

    let first = pack("deb", &scratch, "1");
    let list = ran(Command::new("dpkg-deb").arg("--contents").arg(&first).output().unwrap());
    for place in HELD {
        assert!(list.contains(&format!(" .{place}\n")), "{place}: {list}");
    }
    install(&sandbox, &topology, &first);
    assert!(ran(shell("getent passwd sessiond")).contains(":/usr/sbin/nologin"));
    assert!(ran(shell("man --path sessiond || true; sessiond -V")).contains("memcached 1.6.45"));
    assert!(ran(shell("sessionctl --help")).contains("allow"));

    let allowed = &topology.allowed[0];
    let allow = format!("{} # web1\n", allowed.v4);
    fs::write(sandbox.path("etc/sessiond/allow"), &allow).unwrap();
    let daemon = start(&sandbox, &topology, &scratch);
    let stored = allowed.run(|| Client::connect(cache.v4.into(), PORT)?.set("kept", b"1"));
    assert_eq!(stored.unwrap(), "STORED");
    let limit = Duration::from_millis(600);
    let refused = || Client::connect_within(cache.v4.into(), PORT, limit).map(drop);
    assert!(topology.stranger.run(refused).is_err());
    assert!(ran(shell("sessionctl status")).contains("eth0"));
    stop(daemon);

    // The next revision: what the administrator wrote stays, and so does every item.
    install(&sandbox, &topology, &pack("deb", &scratch, "2"));
    assert!(ran(shell("dpkg-query -W session")).contains("0-2"));
    assert_eq!(fs::read_to_string(sandbox.path("etc/sessiond/allow")).unwrap(), allow);
    let daemon = start(&sandbox, &topology, &scratch);
    let kept = allowed.run(|| Client::connect(cache.v4.into(), PORT)?.get("kept"));
    assert_eq!(kept.unwrap().as_deref(), Some(b"1".as_slice()));
    stop(daemon);

    // At the next boot the rule of nftables is there first. It ends with the package, as the guard does.
    let unit =
        fs::read_to_string(sandbox.path("usr/lib/systemd/system/sessiond-boot-rule.service"));
    let unit = unit.unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    assert!(ran(shell(line)).contains("port 11211: closed"));
    assert!(ran(shell("nft list tables")).contains("session_boot_11211"));

    // Stopped, the port is closed to strangers without an answer; removed, it is any closed port.
    assert_eq!(topology.stranger.run(refused).unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    ran(shell("dpkg --remove session"));
    let error = topology.stranger.run(refused).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "the guard is still there");
    assert_eq!(ran(shell("nft list tables")), "");
    assert!(sandbox.path("etc/sessiond/allow").exists(), "a configuration outlives a removal");
    ran(shell("dpkg --purge session"));
    for place in ["etc/sessiond", "var/lib/sessiond", "dev/shm/sessiond-11211", UNIT] {
        assert!(!sandbox.path(place).exists(), "{place} is still there");
    }
    assert!(!shell("getent passwd sessiond").status.success());
}

fn install(sandbox: &Sandbox, topology: &Topology, package: &Path) {
    let place = "root/session.deb";
    fs::copy(package, sandbox.path(place)).unwrap();
    let line = format!("dpkg --force-confold --install /{place}");
    ran(sandbox.shell(&topology.cache.namespace, &line).unwrap());
}

/// Starts the daemon by its unit's command line, and returns when it says that it is ready.
fn start(sandbox: &Sandbox, topology: &Topology, scratch: &Scratch) -> Process {
    let unit = fs::read_to_string(sandbox.path(UNIT)).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let mut words = line.split(' ');
    let mut command = sandbox.command(words.next().unwrap());
    command.args(words).env("NOTIFY_SOCKET", "/run/notify");
    let path = sandbox.path("run/notify");
    let _ = fs::remove_file(&path);
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let log = scratch.join("log");
    let mut daemon = Process::start(&mut command, Some(&topology.cache.namespace), &log).unwrap();
    daemon.until("READY=1", || {
        let mut state = [0; 64];
        let len = manager.recv(&mut state).ok()?;
        (&state[..len] == b"READY=1").then_some(())
    });
    // Ready means guarded and served, at once.
    let version = topology.allowed[0]
        .run(|| Client::connect(topology.cache.v4.into(), PORT)?.command("version"));
    assert!(version.unwrap().starts_with("VERSION "));
    daemon
}

fn stop(mut daemon: Process) {
    daemon.signal(Signal::SIGTERM);
    let status = daemon.wait(wait::PATIENCE).expect("SIGTERM ends it");
    assert!(status.success(), "{}", daemon.log());
}

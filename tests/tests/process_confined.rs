//! What is left to somebody who has taken the serving process over: by what a confined process can
//! do, by what the kernel says of the one that serves, and by systemd's measure of a unit.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Pid, getppid, setuid};
use session_daemon::confine::{
    CALLS, CALLS_JUDGED, CALLS_OF_MACHINE, CALLS_OF_URING, Files, close_files, filter_calls,
};
use session_tests::sessiond::Setup;
use session_tests::{binaries, require_program, require_root};

/// Tells this program, started by itself, that it is the process to be confined.
const CONFINED: &str = "SESSION_TEST_CONFINED";

/// Exposure of the serving process as a unit, tenths (systemd-analyze(1)).
const EXPOSURE: &str = "15";

#[test]
fn a_confined_process_has_no_way_out() {
    if let Some(file) = std::env::var_os(CONFINED) {
        return attempts(Path::new(&file));
    }
    require_root!();
    let victim = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_confined_process_has_no_way_out", "--nocapture"]);
    let output = command.env(CONFINED, victim.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(victim.path().exists());
}

/// As root, with all capabilities: what keeps a process in is nothing but the confinement.
fn attempts(victim: &Path) {
    rustix::thread::set_no_new_privs(true).unwrap();
    let (mut one, mut other) = UnixStream::pair().unwrap();
    let mut open = File::options().read(true).write(true).open(victim).unwrap();
    let files = close_files().unwrap();
    filter_calls(false).unwrap();

    if files == Files::Closed {
        File::open("/etc/passwd").unwrap_err();
        File::open(victim).unwrap_err();
        File::options().write(true).open(victim).unwrap_err();
        File::create(victim.with_extension("new")).unwrap_err();
        fs::write("/proc/self/comm", "other").unwrap_err();
    }
    fs::remove_file(victim).unwrap_err();
    fs::rename(victim, victim.with_extension("moved")).unwrap_err();
    Command::new("/bin/true").spawn().unwrap_err();
    TcpStream::connect("127.0.0.1:9").unwrap_err();
    for family in [AddressFamily::Inet, AddressFamily::Unix, AddressFamily::Netlink] {
        let made = socket(family, SockType::Datagram, SockFlag::empty(), None);
        assert_eq!(made.unwrap_err(), nix::Error::ENOSYS);
    }
    unshare(CloneFlags::CLONE_NEWUSER).unwrap_err();
    kill(getppid(), None).unwrap_err();
    kill(Pid::this(), None).unwrap_err();
    setuid(nix::unistd::getuid()).unwrap_err();
    let dumpable = rustix::process::DumpableBehavior::Dumpable;
    rustix::process::set_dumpable_behavior(dumpable).unwrap_err();
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limits).unwrap_err();

    // And what serving is made of goes on.
    assert!(fs::read_to_string("/proc/self/status").unwrap().contains("NoNewPrivs:\t1"));
    open.write_all(b"value").unwrap();
    open.set_len(1 << 20).unwrap();
    let told = thread::spawn(move || {
        let mut bytes = [0; 4];
        other.read_exact(&mut bytes).map(|()| bytes)
    });
    one.write_all(b"word").unwrap();
    assert_eq!(&told.join().unwrap().unwrap(), b"word");
}

/// The fields of `/proc/PID/status` of every thread.
fn threads(pid: u32) -> Vec<HashMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let texts = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    let fields = |text: &str| -> HashMap<String, String> {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
    };
    texts.map(|text| fields(&text)).collect()
}

/// Filters of system calls on a process, beyond those that this test is under itself.
fn filters(of: &HashMap<String, String>) -> u32 {
    let count = |status: &HashMap<String, String>| -> u32 {
        status.get("Seccomp_filters").map_or(0, |count| count.parse().unwrap())
    };
    count(of) - count(&threads(std::process::id())[0])
}

#[test]
fn the_process_that_serves_is_confined_and_serves() {
    for (engine, asked) in [("tokio", true), ("auto", true), ("uring", true), ("auto", false)] {
        let option = if asked { "drop_privileges" } else { "no_drop_privileges" };
        let setup = Setup::loopback().unwrap().args(["-t", "2", "-o", option]);
        let setup = setup.arg(format!("--io={engine}"));
        let daemon = match setup.start(None) {
            Ok(daemon) => daemon,
            Err(error) if engine == "uring" => {
                eprintln!("no io_uring here: {error:#}");
                continue;
            }
            Err(error) => panic!("{error:#}"),
        };
        let mut client = daemon.client();
        assert_eq!(client.set("kept", &vec![b'v'; 300_000]).unwrap(), "STORED");
        assert_eq!(client.get("kept").unwrap().unwrap().len(), 300_000);
        let shown = if asked { "yes" } else { "no" };
        assert_eq!(client.stats("settings").unwrap()["drop_privileges"], shown);
        let threads_then = threads(daemon.serving().unwrap());
        assert!(threads_then.len() >= 3, "{threads_then:?}");
        for thread in &threads_then {
            assert_eq!(thread["NoNewPrivs"], "1");
            assert_eq!(filters(thread), u32::from(asked), "--io={engine}: {}", thread["Name"]);
        }
        assert_eq!(filters(&threads(daemon.process.pid())[0]), 0, "the parent is under no filter");
    }
}

/// The unit as the serving process has it: the packaged one's settings, which it inherits, with
/// the user, capabilities, calls and sockets that are its own. `process_pair` and the test above
/// read from the process itself that it has them.
#[test]
fn the_serving_process_is_exposed_less_than_a_hardened_service() {
    require_program!("systemd-analyze");
    let root = binaries::workspace_root();
    let unit = fs::read_to_string(root.join("packaging/systemd/sessiond.service")).unwrap();
    let packaged = fs::read_to_string(root.join("packaging/sessiond.conf")).unwrap();
    assert!(packaged.lines().any(|line| line == "-o drop_privileges"));
    let user = packaged.lines().find_map(|line| line.strip_prefix("-u ")).unwrap();
    assert_ne!(user, "root");
    let own = [
        "DefaultDependencies=",
        "CapabilityBoundingSet=",
        "SystemCallFilter=",
        "SystemCallErrorNumber=",
        "RestrictAddressFamilies=",
    ];
    let mut text = String::new();
    for line in unit.lines().filter(|line| !own.iter().any(|name| line.starts_with(name))) {
        text.push_str(line);
        text.push('\n');
        if line == "[Service]" {
            let calls =
                CALLS.iter().chain(CALLS_OF_MACHINE).chain(CALLS_JUDGED).chain(CALLS_OF_URING);
            let calls: Vec<&str> = calls.map(|(name, _)| *name).collect();
            text.push_str(&format!("User={user}\nCapabilityBoundingSet=\n"));
            text.push_str("RestrictAddressFamilies=none\n");
            text.push_str(&format!("SystemCallFilter={}\n", calls.join(" ")));
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("sessiond-serving.service");
    fs::write(&path, &text).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", &format!("--threshold={EXPOSURE}")])
        .arg(&path)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    eprintln!("{}", told.lines().last().unwrap_or_default());
}

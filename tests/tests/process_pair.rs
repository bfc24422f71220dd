//! The two processes: what each may do, and that neither outlives the other.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use session_tests::client::{Client, REFUSAL_TIMEOUT};
use session_tests::memcached::free_port;
use session_tests::process::{Process, children, is_gone};
use session_tests::require_root;
use session_tests::sessiond::{PORT, Setup};
use session_tests::topology::Topology;
use session_tests::wait;

const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_BPF: u64 = 1 << 39;
const CAP_KILL: u64 = 1 << 5;
const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// The fields of `/proc/PID/status`.
fn status(pid: u32) -> HashMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn capabilities(pid: u32, set: &str) -> u64 {
    u64::from_str_radix(&status(pid)[set], 16).unwrap()
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Waits for a process to be gone or a zombie; returns how long that took.
fn gone(pid: u32) -> Duration {
    let start = Instant::now();
    wait::until("the end of the other process", || is_gone(pid).then_some(()));
    start.elapsed()
}

#[test]
fn the_child_inherits_no_descriptor_of_whoever_started_the_daemon() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let setup = Setup::loopback().unwrap();
    let daemon = setup.start(None).unwrap();
    let open_in = |pid: u32| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
            .any(|target| target == secret.path())
    };
    assert!(open_in(daemon.process.pid()), "the daemon itself was handed the file");
    assert!(!open_in(daemon.serving().unwrap()), "its serving process was handed it too");
}

#[test]
fn the_child_serves_as_nobody_with_nothing_and_the_parent_keeps_two_capabilities() {
    require_root!();
    let topology = Topology::new(0).unwrap();
    let setup = Setup::guarded().unwrap();
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    let (parent, child) = (daemon.process.pid(), daemon.serving().unwrap());

    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let of_child = status(child);
    let four = |id: u32| vec![id.to_string(); 4].join("\t");
    assert_eq!(of_child["Uid"], four(nobody.uid.as_raw()));
    assert_eq!(of_child["Gid"], four(nobody.gid.as_raw()));
    assert_eq!(of_child["Groups"], "");
    assert_eq!(of_child["NoNewPrivs"], "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(capabilities(child, set), 0, "{set} of the child");
    }
    for task in fs::read_dir(format!("/proc/{child}/task")).unwrap() {
        let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(text.contains("\nCapEff:\t0000000000000000\n"), "{text}");
    }

    assert_eq!(status(parent)["NoNewPrivs"], "1");
    assert_eq!(capabilities(parent, "CapEff"), CAP_BPF | CAP_NET_ADMIN);
    let reserve = CAP_SYS_ADMIN | CAP_KILL | CAP_SETUID | CAP_SETGID;
    let permitted = CAP_BPF | CAP_NET_ADMIN | reserve;
    assert_eq!(capabilities(parent, "CapPrm"), permitted);
    // An upgrade hands down what is kept, and nothing else can be had.
    assert_eq!(capabilities(parent, "CapInh"), permitted);
    for set in ["CapBnd", "CapAmb"] {
        assert_eq!(capabilities(parent, set), 0, "{set} of the parent");
    }
}

#[test]
fn the_child_of_root_has_no_capability_either() {
    require_root!();
    let setup = Setup::loopback().unwrap().args(["-u", "root"]);
    let daemon = setup.start(None).unwrap();
    let child = daemon.serving().unwrap();
    assert!(status(child)["Uid"].starts_with("0\t"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(capabilities(child, set), 0, "{set}");
    }
    // Nothing to guard, nothing to load: not even the guard's two.
    assert_eq!(capabilities(daemon.process.pid(), "CapEff"), 0);
}

#[test]
fn the_child_ends_with_a_killed_parent_within_a_second_and_the_port_is_free_for_the_next() {
    let setup = Setup::loopback().unwrap();
    for _ in 0..3 {
        let mut daemon = setup.start(None).unwrap();
        let child = daemon.serving().unwrap();
        let mut client = daemon.client();
        daemon.process.kill();
        // The next start of the loop finds the port, though the child may still be ending.
        assert!(gone(child) < Duration::from_secs(1));
        client.closed().unwrap();
    }
}

#[test]
fn the_parent_ends_with_a_killed_child_says_so_and_leaves_the_port_guarded() {
    require_root!();
    let topology = Topology::new(1).unwrap();
    let allow = format!("--allow={}", topology.allowed[0].v4);
    let setup = Setup::guarded().unwrap().arg(allow);
    let mut daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    daemon.ctl(&["status"]).unwrap();
    signal(daemon.serving().unwrap(), Signal::SIGKILL);
    let status = daemon.process.wait(Duration::from_secs(1)).expect("the parent ends as well");
    assert_eq!(status.code(), Some(1));
    let log = daemon.process.log();
    assert!(log.contains("the serving process ended by SIGKILL"), "{log}");
    assert!(log.contains("the guard stays attached: the port is closed"), "{log}");
    // An allowed host is answered by the kernel; the stranger's packets do not get that far.
    let cache = topology.cache.v4.into();
    let connect = || Client::connect_within(cache, PORT, REFUSAL_TIMEOUT).map(drop);
    let refused = topology.allowed[0].run(connect).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let dropped = topology.stranger.run(connect).unwrap_err();
    assert_eq!(dropped.kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn sigterm_and_sigint_and_sigusr1_end_both_with_status_0() {
    for (name, text) in [
        (Signal::SIGTERM, "SIGTERM: stopping"),
        (Signal::SIGINT, "SIGINT: stopping"),
        (Signal::SIGUSR1, "SIGUSR1: gracefully stopping"),
    ] {
        let setup = Setup::loopback().unwrap();
        let mut daemon = setup.start(None).unwrap();
        let child = daemon.serving().unwrap();
        let _idle = daemon.client();
        // Clients are answered a moment before the start is over, which ends in other words.
        let log = || daemon.process.log().contains("serving ").then_some(());
        wait::until("the end of the start", log);
        // What a terminal or a service manager sends to both is the parent's business alone.
        signal(child, name);
        assert!(daemon.client().command("version").is_ok(), "{name}");
        daemon.process.signal(name);
        let status = daemon.process.wait(Duration::from_secs(10)).expect("it ends");
        assert_eq!(status.code(), Some(0), "{name}");
        gone(child);
        assert!(daemon.process.log().contains(text), "{}", daemon.process.log());
        assert!(!setup.control().exists(), "the control socket stays behind");
    }
}

#[test]
fn a_child_that_does_not_answer_is_ended_with_its_parent() {
    // As root the child runs as nobody and the parent has given up every way but one to end it.
    let setup = Setup::loopback().unwrap();
    let mut daemon = setup.start(None).unwrap();
    daemon.ctl(&["status"]).expect("the start is over");
    let child = daemon.serving().unwrap();
    signal(child, Signal::SIGSTOP);
    daemon.process.signal(Signal::SIGTERM);
    let status = daemon.process.wait(Duration::from_secs(15)).expect("it ends nevertheless");
    assert_eq!(status.code(), Some(0));
    gone(child);

    let mut daemon = setup.start(None).unwrap();
    daemon.ctl(&["status"]).expect("the start is over");
    let child = daemon.serving().unwrap();
    signal(child, Signal::SIGSTOP);
    // Nobody asked for the end this time: the command fails, and then the daemon.
    assert!(daemon.ctl(&["allow", "198.18.0.1"]).is_err());
    let status = daemon.process.wait(Duration::from_secs(15)).expect("it ends");
    assert_eq!(status.code(), Some(1));
    let log = daemon.process.log();
    assert!(log.contains("the serving process does not answer"), "{log}");
    gone(child);
}

#[test]
fn a_start_whose_child_hangs_can_be_ended() {
    let setup = Setup::loopback().unwrap();
    let mut process = setup.spawn(None).unwrap();
    let command_line = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok();
    let parent = process.pid();
    let child = process.until("the child", || {
        let child = *children(parent).first()?;
        // Until its exec it is a copy of the parent, which waits for that exec.
        (command_line(child)? != command_line(parent)?).then_some(child)
    });
    // As early as can be: it has not answered its first request, or not its last.
    signal(child, Signal::SIGSTOP);
    process.signal(Signal::SIGTERM);
    let status = process.wait(Duration::from_secs(15)).expect("it ends nevertheless");
    assert_eq!(status.code(), Some(0), "{}", process.log());
    gone(child);
}

#[test]
fn a_port_is_refused_to_a_second_daemon_and_to_one_beside_another_server() {
    let first = Setup::loopback().unwrap();
    let _daemon = first.start(None).unwrap();
    let second = Setup::loopback().unwrap();
    let port = first.port().to_string();
    let output = second.command().args(["-p", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let text = "failed to listen on one of interface(s) 127.0.0.1: Address already in use";
    assert!(stderr.contains(text), "{stderr}");

    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let output = second.command().args(["-p", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
}

#[test]
fn two_guarded_daemons_share_no_port_and_coexist_on_two() {
    require_root!();
    let topology = Topology::new(1).unwrap();
    let namespace = &topology.cache.namespace;
    let allow = format!("--allow={}", topology.allowed[0].v4);
    let first = Setup::guarded().unwrap().arg(&allow);
    let _daemon = first.start(Some(namespace)).unwrap();

    let second = Setup::loopback().unwrap();
    let mut command = second.command();
    // The later flags win; a guard of its own on the same port must not touch the first one's.
    command.args(["--guard=xdp", "-p", &PORT.to_string(), "--bpffs"]).arg(first.bpffs());
    command.args(["-l", &topology.cache.v4.to_string()]);
    let output = namespace.output(&mut command).unwrap();
    assert_eq!(output.status.code(), Some(71));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Address already in use"));

    let other = Setup::loopback().unwrap();
    let mut command = other.command();
    command.args(["--guard=xdp", "-l", &topology.cache.v4.to_string(), "--bpffs"]);
    command.arg(first.bpffs());
    let log = other.scratch().join("log");
    let mut process = Process::start(&mut command, Some(namespace), &log).unwrap();
    let connect = |port| {
        let cache = topology.cache.v4.into();
        move || Client::connect_within(cache, port, REFUSAL_TIMEOUT)
    };
    process.until("both daemons", || {
        namespace.run(connect(other.port())).ok()?;
        namespace.run(connect(PORT)).ok()
    });
    // Each has its own list: the first one's guest is a stranger to the second.
    assert!(topology.allowed[0].run(connect(PORT)).is_ok());
    assert!(topology.allowed[0].run(connect(other.port())).is_err());
}

#[test]
fn d_returns_when_the_port_serves_and_the_pid_file_names_the_parent() {
    let setup = Setup::loopback().unwrap();
    let pidfile = setup.scratch().join("pid");
    let mut command = setup.command();
    command.arg("-d").arg("-P").arg(&pidfile).stdin(Stdio::null());
    let status = command.status().unwrap();
    assert_eq!(status.code(), Some(0));
    // No waiting: it serves by now.
    let mut client = Client::connect(Ipv4Addr::LOCALHOST.into(), setup.port()).unwrap();
    let pid: u32 = fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    let _kill_on_panic = KillOnDrop(pid);
    assert_eq!(client.stats("").unwrap()["pid"], pid.to_string(), "one pid for all who ask");
    let fields = status_line(pid);
    assert_eq!(fields.session, pid, "it leads a session of its own");
    assert_eq!(fs::read_link(format!("/proc/{pid}/fd/2")).unwrap(), Path::new("/dev/null"));
    signal(pid, Signal::SIGTERM);
    gone(pid);
    assert!(!pidfile.exists());
}

#[test]
fn d_relays_the_error_and_the_status() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let setup = Setup::loopback().unwrap();
    let output = setup.command().args(["-d", "-p", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(71));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("Address already in use"), "{stderr}");
}

#[test]
fn the_service_manager_is_told_when_it_serves_and_when_it_stops() {
    let setup = Setup::loopback().unwrap();
    let path = setup.scratch().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let mut command = setup.command();
    command.env("NOTIFY_SOCKET", &path);
    let log = setup.scratch().join("log");
    let process = Process::start(&mut command, None, &log).unwrap();
    let mut buffer = [0; 64];
    let mut told = || {
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert_eq!(told(), "READY=1");
    Client::connect(Ipv4Addr::LOCALHOST.into(), setup.port()).unwrap();
    process.signal(Signal::SIGTERM);
    assert_eq!(told(), "STOPPING=1");
}

#[test]
fn a_developer_needs_no_root_on_the_loopback() {
    require_root!();
    let setup = Setup::loopback().unwrap();
    // As nobody, with the default guard and nothing but an address and a port.
    let port = free_port();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.arg(readable_copy(&setup)).args(["-l", "127.0.0.1", "-p", &port.to_string()]);
    command.env_remove("XDG_RUNTIME_DIR").env_remove("HOME").env_remove("XDG_STATE_HOME");
    let log = setup.scratch().join("log");
    let mut process = Process::start(&mut command, None, &log).unwrap();
    let mut client = process
        .until("a server without root", || Client::connect(Ipv4Addr::LOCALHOST.into(), port).ok());
    assert_eq!(client.set("key", b"value").unwrap(), "STORED");
    assert!(process.log().contains("there is nothing to guard"), "{}", process.log());
}

/// A copy of the binary where any user reaches it; build directories are often in a home.
fn readable_copy(setup: &Setup) -> std::path::PathBuf {
    let copy = setup.scratch().join("sessiond");
    fs::copy(session_tests::binaries::sessiond(), &copy).unwrap();
    copy
}

struct StatusLine {
    session: u32,
}

/// Field 6 of `/proc/PID/stat`.
fn status_line(pid: u32) -> StatusLine {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = text.rsplit(") ").next().unwrap();
    StatusLine { session: rest.split(' ').nth(3).unwrap().parse().unwrap() }
}

struct KillOnDrop(u32);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = kill(Pid::from_raw(i32::try_from(self.0).unwrap_or(i32::MAX)), Signal::SIGKILL);
        }
    }
}

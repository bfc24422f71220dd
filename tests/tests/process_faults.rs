//! What an operator's machine does to a daemon: too little memory, a stop in the middle, floods of
//! connections from those who may come and those who may not, places that cannot be written.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use session_tests::client::Client;
use session_tests::process::Process;
use session_tests::sessiond::{PORT, Setup};
use session_tests::topology::Topology;
use session_tests::wait::{self, EndOnDrop};
use session_tests::{leftovers, require_root, skip};

/// A control group with a limit on memory; removed when it is dropped.
struct Group(PathBuf);

impl Group {
    fn new(limit: u64) -> Option<Self> {
        let name = leftovers::fresh_name("group");
        let tops =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        for (top, file) in tops {
            if !Path::new(top).join("cgroup.procs").exists() {
                continue;
            }
            let group = Self(Path::new(top).join(&name));
            fs::create_dir(&group.0).ok()?;
            if fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }

    /// Starts the daemon inside.
    fn start(&self, setup: &Setup) -> Process {
        let daemon = setup.command();
        let mut command = Command::new("sh");
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        command.args(["-c", script]).arg(self.0.join("cgroup.procs"));
        command.arg(daemon.get_program()).args(daemon.get_args());
        Process::start(&mut command, None, &setup.scratch().join("log")).unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        wait::within(wait::PATIENCE, || fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn a_control_group_below_m_is_refused_and_above_it_is_never_outgrown() {
    require_root!();
    let Some(group) = Group::new(96 << 20) else {
        skip!("needs a control group of its own with a limit on memory");
    };
    let setup = Setup::loopback().unwrap().args(["-m", "256"]);
    let mut daemon = group.start(&setup);
    let status = daemon.wait(wait::PATIENCE).expect("it does not start");
    assert_eq!(status.code(), Some(71));
    let log = daemon.log();
    assert!(log.contains("may have 96 MB, and 272 MB are needed; raise its limit"), "{log}");

    let setup = Setup::loopback().unwrap().args(["-m", "64", "-t", "2"]);
    let mut daemon = group.start(&setup);
    let mut client =
        daemon.until("answer", || Client::connect("127.0.0.1".parse().unwrap(), setup.port()).ok());
    // Twice as much as fits.
    let value = vec![b'v'; 100_000];
    for number in 0..1_400 {
        assert_eq!(client.set(&format!("key:{number}"), &value).unwrap(), "STORED");
    }
    assert_eq!(client.get("key:1399").unwrap().unwrap(), value);
    assert!(client.stats("").unwrap()["evictions"].parse::<u64>().unwrap() > 0);
}

#[test]
fn what_came_while_it_was_stopped_is_answered() {
    let setup = Setup::loopback().unwrap();
    let daemon = setup.start(None).unwrap();
    let child = Pid::from_raw(daemon.serving().unwrap().cast_signed());
    kill(child, Signal::SIGSTOP).unwrap();
    daemon.process.signal(Signal::SIGSTOP);
    let mut queued: Vec<Client> = (0..50)
        .map(|_| {
            let mut client = daemon.client();
            client.send(b"set k 0 0 1\r\nx\r\nget k\r\n").unwrap();
            client
        })
        .collect();
    // The pace of the fault itself: longer than every timer of the pair, but one.
    wait::pause(Duration::from_secs(2));
    daemon.process.signal(Signal::SIGCONT);
    kill(child, Signal::SIGCONT).unwrap();
    for client in &mut queued {
        assert_eq!(client.line().unwrap(), "STORED");
        assert_eq!(client.line().unwrap(), "VALUE k 0 1");
    }
    assert!(daemon.client().command("version").unwrap().starts_with("VERSION"));
}

#[test]
fn floods_of_connections_do_not_disturb_whoever_is_served() {
    require_root!();
    let topology = Topology::new(2).unwrap();
    let setup = Setup::guarded()
        .unwrap()
        .args(["-c", "64", "-t", "2"])
        .arg(format!("--allow={}", topology.allow_argument()));
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    let target = SocketAddr::new(topology.cache.v4.into(), PORT);
    let [canary, flooder] = topology.allowed.as_slice() else { unreachable!() };
    let mut served = canary.run(|| Client::connect(target.ip(), PORT)).unwrap();
    let before = daemon.dropped().unwrap();
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = EndOnDrop(&end);
        // Those who may come: far more than -c, opened and dropped as fast as one thread can.
        scope.spawn(|| {
            flooder.run(|| {
                let mut held = Vec::new();
                while !end.load(Ordering::Relaxed) {
                    held.extend(TcpStream::connect_timeout(&target, Duration::from_millis(200)));
                    if held.len() >= 200 {
                        held.clear();
                    }
                }
            });
        });
        // Those who may not: every attempt ends in the driver.
        scope.spawn(|| {
            topology.stranger.run(|| {
                while !end.load(Ordering::Relaxed) {
                    let limit = Duration::from_millis(2);
                    assert!(TcpStream::connect_timeout(&target, limit).is_err());
                }
            });
        });
        for round in 0..500 {
            let value = round.to_string();
            assert_eq!(served.set("canary", value.as_bytes()).unwrap(), "STORED");
            assert_eq!(served.get("canary").unwrap().unwrap(), value.as_bytes());
        }
    });
    assert!(daemon.dropped().unwrap() > before, "the stranger was not seen");
    // The samples say where it came from and on which interface; they are read now and then.
    let seen = wait::until("samples of the stranger", || {
        let guard = daemon.guard().unwrap();
        let place = guard["drops"].as_array()?.iter().find(|one| one["interface"] == "eth0")?;
        let stranger = topology.stranger.v4.to_string();
        let sources = guard["top_sources"].as_array()?;
        sources.iter().find(|one| one["source"] == stranger.as_str())?;
        Some(place.clone())
    });
    assert!(seen["reason"] == "not_listed" && seen["packets"].as_u64() > Some(0), "{seen}");
    // The next one is served as soon as the flood is over.
    wait::until("a free place", || {
        canary
            .run(|| Client::connect(target.ip(), PORT).ok()?.command("version").ok())
            .filter(|line| line.starts_with("VERSION"))
    });
    let stats = served.stats("").unwrap();
    assert!(stats["rejected_connections"].parse::<u64>().unwrap() > 0, "{stats:?}");
}

#[test]
fn a_place_that_cannot_be_written_ends_the_start_and_is_named() {
    require_root!();
    let setup = Setup::loopback().unwrap();
    let place = setup.scratch().mount_tmpfs(1).unwrap();
    let (none, flags) = (None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
    mount(none, &place, none, flags, none).unwrap();
    let place = place.join("x");
    for (flag, status) in [
        ("-P", 1),
        ("--control", 1),
        ("--state", 1),
        ("-e", 1),
        ("--metrics-listen", 1),
        ("-s", 71),
    ] {
        let mut value = place.clone().into_os_string();
        if flag == "--metrics-listen" {
            value = format!("unix:{}", place.display()).into();
        }
        let output = setup.command().arg(flag).arg(value).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{flag}: {stderr}");
        let named = stderr.contains(&*place.to_string_lossy());
        assert!(named && stderr.contains("Read-only file system"), "{flag}: {stderr}");
    }
    // None of them left a daemon, a lock or a port behind.
    assert!(setup.start(None).unwrap().client().command("version").unwrap().starts_with("VER"));
}

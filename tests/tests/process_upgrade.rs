//! An upgrade under load: the daemon becomes another program file, and nobody notices.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use session_tests::client::{Client, REFUSAL_TIMEOUT};
use session_tests::process::{Process, children, is_gone};
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::Topology;
use session_tests::{binaries, require_root, wait};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What clients found while the daemon was upgraded.
#[derive(Default)]
struct Found {
    connections: AtomicU64,
    requests: AtomicU64,
}

/// Connects, stores, reads and leaves, again and again.
fn come_and_go(address: IpAddr, port: u16, number: usize, over: &AtomicBool, found: &Found) {
    let mut turn = 0_u64;
    // Relaxed: the flag stands for itself.
    while !over.load(Ordering::Relaxed) {
        let mut client = Client::connect(address, port).expect("no connection is refused");
        let (key, value) = (format!("guest:{number}:{}", turn % 50), format!("{turn}"));
        assert_eq!(client.set(&key, value.as_bytes()).expect("no request is cut off"), "STORED");
        assert_eq!(client.get(&key).unwrap().as_deref(), Some(value.as_bytes()), "{key}");
        turn += 1;
        found.connections.fetch_add(1, Ordering::Relaxed);
    }
}

/// Keeps one connection, with values of all sizes and a counter.
fn stay(address: IpAddr, port: u16, number: usize, over: &AtomicBool, found: &Found) {
    let mut client = Client::connect(address, port).unwrap();
    let counter = format!("count:{number}");
    assert_eq!(client.set(&counter, b"0").unwrap(), "STORED");
    let mut turn = 0_usize;
    while !over.load(Ordering::Relaxed) {
        turn += 1;
        let count = client.command(&format!("incr {counter} 1")).expect("the connection stays");
        assert_eq!(count, turn.to_string(), "no increment is lost or done twice");
        let value = vec![b'a' + (turn % 26) as u8; [1, 100, 3_000, 90_000][turn % 4]];
        let key = format!("stay:{number}:{}", turn % 4);
        assert_eq!(client.set(&key, &value).unwrap(), "STORED");
        assert!(client.get(&key).unwrap() == Some(value), "{key}");
        found.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// Upgrades so often under guests and residents, and checks what was there before.
fn upgrade_under_load(daemon: &Sessiond<'_>, rounds: usize) {
    let (port, over, found) = (daemon.setup.port(), AtomicBool::new(false), Found::default());
    let mut idle = daemon.client();
    for number in 0..300 {
        let stored = idle.command(&format!("set old:{number} 5 0 6\r\nv{number:05}")).unwrap();
        assert_eq!(stored, "STORED");
    }
    let mut half = daemon.client();
    half.send(b"get old:1").unwrap();
    let pid = daemon.process.pid();
    std::thread::scope(|scope| {
        let _end = wait::EndOnDrop(&over);
        let (over, found) = (&over, &found);
        for number in 0..2 {
            scope.spawn(move || come_and_go(LOCAL, port, number, over, found));
            scope.spawn(move || stay(LOCAL, port, number, over, found));
        }
        for round in 0..rounds {
            let before = (found.connections.load(Ordering::Relaxed), children(pid));
            let said = daemon.ctl(&["upgrade"]).unwrap();
            assert!(said.contains(&format!(" serves, pid {pid}, ")), "{said}");
            assert_eq!(children(pid).len(), 1, "the former child has ended");
            assert_ne!(children(pid), before.1, "another one serves");
            wait::until("guests after the upgrade", || {
                (found.connections.load(Ordering::Relaxed) > before.0 + 2).then_some(())
            });
            let value = idle.get(&format!("old:{round}")).unwrap();
            assert_eq!(value.unwrap(), format!("v{round:05}").as_bytes());
        }
    });
    // Its line was half said through all of that.
    half.send(b"99\r\n").unwrap();
    assert_eq!(half.line().unwrap(), "VALUE old:199 5 6");
    for number in 0..300 {
        let value = idle.get(&format!("old:{number}")).unwrap();
        assert_eq!(value.unwrap(), format!("v{number:05}").as_bytes());
    }
    assert!(found.requests.load(Ordering::Relaxed) > rounds as u64);
}

#[test]
fn twenty_upgrades_refuse_no_connection_and_lose_no_item() {
    require_root!();
    let setup = Setup::loopback().unwrap();
    let path = setup.scratch().mount_tmpfs(80).unwrap().join("store");
    let pidfile = setup.scratch().join("pid");
    let setup = setup.arg("-e").arg(&path).arg("-P").arg(&pidfile).args(["-m", "64"]);
    let mut daemon = setup.start(None).unwrap();
    upgrade_under_load(&daemon, 20);
    let pid = daemon.process.pid().to_string();
    assert_eq!(fs::read_to_string(&pidfile).unwrap().trim(), pid);
    assert_eq!(daemon.client().stats("").unwrap()["pid"], pid);
    let status = daemon.ctl_json(&["status"]).unwrap();
    assert_eq!(status["statistics"]["memory_file_lost"], "0", "{status}");
    // As after any other end: the locks, the socket and the pid file are gone, the items are not.
    daemon.process.signal(Signal::SIGTERM);
    assert!(daemon.process.wait(wait::PATIENCE).unwrap().success());
    assert!(!pidfile.exists() && !setup.control().exists());
    let daemon = setup.start(None).unwrap();
    assert_eq!(daemon.client().get("old:7").unwrap().unwrap(), b"v00007");
}

#[test]
fn without_a_memory_file_the_items_pass_as_well() {
    let setup = Setup::loopback().unwrap().args(["-m", "64"]);
    let daemon = setup.start(None).unwrap();
    upgrade_under_load(&daemon, 4);
}

#[test]
fn a_limit_that_was_raised_passes_as_well() {
    let setup = Setup::loopback().unwrap().args(["-m", "8"]);
    let daemon = setup.start(None).unwrap();
    let mut client = daemon.client();
    assert_eq!(client.command("cache_memlimit 64").unwrap(), "OK");
    let value = vec![b'v'; 10_000];
    for number in 0..2_000 {
        assert_eq!(client.set(&format!("key:{number}"), &value).unwrap(), "STORED");
    }
    daemon.ctl(&["upgrade"]).unwrap();
    for number in 0..2_000 {
        assert_eq!(client.get(&format!("key:{number}")).unwrap().as_ref(), Some(&value));
    }
    assert_eq!(client.stats("").unwrap()["limit_maxbytes"], (64 << 20).to_string());
    assert_eq!(client.stats("").unwrap()["evictions"], "0");
}

#[test]
fn datagrams_unix_sockets_and_binary_clients_pass_as_well() {
    let udp = free_udp_port();
    let setup = Setup::loopback().unwrap().args(["-U", &udp.to_string()]);
    let daemon = setup.start(None).unwrap();
    assert_eq!(daemon.client().set("key", b"value").unwrap(), "STORED");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let mut binary = daemon.client();
    let noop = [&[0x80, 0x0a][..], &[0; 22]].concat();
    for round in 0..3_u8 {
        binary.send(&noop[..10]).unwrap();
        daemon.ctl(&["upgrade"]).unwrap();
        binary.send(&noop[10..]).unwrap();
        assert_eq!(binary.exactly(24).unwrap()[..2], [0x81, 0x0a], "round {round}");
        let request = [&[0, round, 0, 0, 0, 1, 0, 0][..], b"get key\r\n"].concat();
        socket.send_to(&request, ("127.0.0.1", udp)).unwrap();
        let mut answer = [0; 100];
        let len = socket.recv(&mut answer).unwrap();
        assert_eq!(&answer[8..len], b"VALUE key 0 5\r\nvalue\r\nEND\r\n", "round {round}");
    }
}

fn free_udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn the_guard_stays_attached_and_goes_on_counting() {
    require_root!();
    let topology = Topology::new(1).unwrap();
    let setup = Setup::guarded().unwrap().args(["--allow", &topology.allow_argument()]);
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    let cache: IpAddr = topology.cache.v4.into();
    let over = AtomicBool::new(false);
    let found = Found::default();
    let link = daemon.interface("eth0").unwrap()["link_id"].clone();
    std::thread::scope(|scope| {
        let _end = wait::EndOnDrop(&over);
        let (over, found, topology) = (&over, &found, &topology);
        let guest = move || come_and_go(cache, PORT, 0, over, found);
        scope.spawn(move || topology.allowed[0].run(guest));
        scope.spawn(|| {
            topology.stranger.run(|| {
                while !over.load(Ordering::Relaxed) {
                    let limit = Duration::from_millis(20);
                    let error = Client::connect_within(cache, PORT, limit).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::TimedOut, "a stranger hears nothing");
                }
            });
        });
        let mut dropped = 0;
        for round in 0..6 {
            if round == 3 {
                daemon.ctl(&["allow", "198.18.0.99"]).unwrap();
            }
            let before = found.connections.load(Ordering::Relaxed);
            daemon.ctl(&["upgrade"]).unwrap();
            let now = daemon.dropped().unwrap();
            assert!(now > dropped, "round {round}: {now} after {dropped}");
            dropped = now;
            assert_eq!(daemon.interface("eth0").unwrap()["link_id"], link, "the same link");
            wait::until("guests after the upgrade", || {
                (found.connections.load(Ordering::Relaxed) > before + 2).then_some(())
            });
        }
    });
    assert!(daemon.ctl(&["list"]).unwrap().contains("198.18.0.99"), "what was allowed stays");
    // A second layer that stood before stands again: the list is the one in force.
    daemon.ctl(&["deny", &topology.allowed[0].v4.to_string()]).unwrap();
    let reach = || Client::connect_within(cache, PORT, REFUSAL_TIMEOUT).map(drop);
    let refused = topology.allowed[0].run(reach).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TimedOut);
}

/// A script in the place of the program: `rehearsed` for the rehearsal, `started` for the start.
fn script(setup: &Setup, rehearsed: &str, started: &str) -> PathBuf {
    let path = setup.scratch().join("program.sh");
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --rehearse-upgrade ]; then {rehearsed}; else {started}; fi\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_program_that_cannot_take_over_leaves_the_running_one_serving() {
    let setup = Setup::loopback().unwrap();
    let allow_file = setup.scratch().join("allow");
    fs::write(&allow_file, "198.18.0.7\n").unwrap();
    let setup = setup.arg("--allow-file").arg(&allow_file);
    let real = binaries::sessiond().display().to_string();
    let daemon = setup.start(None).unwrap();
    let mut client = daemon.client();
    assert_eq!(client.set("key", b"value").unwrap(), "STORED");
    let child = children(daemon.process.pid());
    let remove = format!("rm {}; exec {real} \"$@\"", allow_file.display());
    let cases = [
        ("exit 3", "exit 3", "is no sessiond that can take over"),
        ("echo bad layout >&2; exit 1", "exit 1", "bad layout"),
        (&format!("exec {real} \"$@\" --bogus"), "exit 1", "bogus"),
        // It could have taken over, and then cannot.
        (&format!("exec {real} \"$@\""), &remove, "No such file or directory"),
    ];
    for (rehearsed, started, complaint) in cases {
        let program = script(&setup, rehearsed, started);
        let output = setup.ctl_output(&["upgrade", "--binary", program.to_str().unwrap()]).unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(complaint), "{told}");
        assert_eq!(children(daemon.process.pid()), child, "{complaint}: the same child serves");
        assert_eq!(client.get("key").unwrap().unwrap(), b"value", "{complaint}");
        assert_eq!(daemon.client().get("key").unwrap().unwrap(), b"value", "{complaint}");
    }
    let absent = setup.ctl_output(&["upgrade", "--binary", "/no/such/program"]).unwrap();
    assert!(String::from_utf8_lossy(&absent.stderr).contains("/no/such/program"));
    assert_eq!(client.get("key").unwrap().unwrap(), b"value");
    fs::write(&allow_file, "198.18.0.7\n").unwrap();
    daemon.ctl(&["upgrade"]).unwrap();
    assert_eq!(client.get("key").unwrap().unwrap(), b"value");
    assert_ne!(children(daemon.process.pid()), child);
}

#[test]
fn the_service_manager_is_told_of_an_upgrade_and_a_signal_asks_for_one() {
    let setup = Setup::loopback().unwrap();
    let path = setup.scratch().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    let mut command = setup.command();
    command.env("NOTIFY_SOCKET", &path);
    let process = Process::start(&mut command, None, &setup.scratch().join("log")).unwrap();
    let mut buffer = [0; 64];
    let mut told = || {
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert_eq!(told(), "READY=1");
    let mut client = Client::connect(LOCAL, setup.port()).unwrap();
    for _ in 0..2 {
        process.signal(Signal::SIGUSR2);
        assert!(told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(told(), format!("READY=1\nMAINPID={}", process.pid()));
        assert!(client.command("version").unwrap().starts_with("VERSION"));
    }
    process.signal(Signal::SIGTERM);
    assert_eq!(told(), "STOPPING=1");
}

/// Who is killed in the middle of an upgrade.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Parent,
    OldChild,
    NewChild,
}

/// Kills one of the three `after` the upgrade began; whatever that leads to, the port is served
/// with every item, or closed with every item in the file.
fn kill_within_upgrade(setup: &Setup, topology: &Topology, victim: Victim, after: Duration) {
    let mut daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    let mut client = daemon.client();
    for number in 0..200 {
        assert_eq!(client.set(&format!("key:{number}"), b"value").unwrap(), "STORED");
    }
    let parent = daemon.process.pid();
    let old = children(parent)[0];
    let killed = std::thread::scope(|scope| {
        // What it says depends on the moment.
        scope.spawn(|| drop(setup.ctl_output(&["upgrade"])));
        let target = match victim {
            Victim::Parent => Some(parent),
            Victim::OldChild => Some(old),
            Victim::NewChild => wait::within(Duration::from_secs(3), || {
                children(parent).into_iter().find(|pid| *pid != old && is_child(*pid))
            }),
        };
        std::thread::sleep(after);
        let target = target.filter(|pid| victim_is_there(*pid, parent))?;
        // It may end in this moment.
        let _ = kill(Pid::from_raw(target.cast_signed()), Signal::SIGKILL);
        wait::until("the victim's end", || is_gone(target).then_some(()));
        Some(target)
    });
    // A killed parent's child serves on for a moment.
    let parent_ended = killed == Some(parent);
    let served = || {
        let read = || Client::connect_within(LOCAL, PORT, REFUSAL_TIMEOUT)?.get("key:1");
        topology.cache.run(read)
    };
    let sane = wait::within(wait::PATIENCE, || {
        let ended = parent_ended || daemon.process.wait(Duration::ZERO).is_some();
        (ended || served().is_ok()).then_some(ended)
    });
    let ended = sane.expect("served or ended");
    let cache: IpAddr = topology.cache.v4.into();
    let strange = topology.stranger.run(|| Client::connect_within(cache, PORT, REFUSAL_TIMEOUT));
    assert_eq!(strange.unwrap_err().kind(), ErrorKind::TimedOut, "{victim:?} {after:?}");
    if ended {
        wait::until("the end of the serving processes", || served().is_err().then_some(()));
        daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    }
    let mut client = daemon.client();
    for number in 0..200 {
        let value = client.get(&format!("key:{number}")).unwrap();
        assert_eq!(value.as_deref(), Some(&b"value"[..]), "{victim:?} {after:?} key:{number}");
    }
    assert_eq!(client.stats("").unwrap()["memory_file_lost"], "0");
}

/// Whether the pid is that of a serving process, and not of a rehearsal.
fn is_child(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.windows(19).any(|part| part == b"--serve-from-parent"))
}

/// Pids are used again: only the daemon itself and its children are killed.
fn victim_is_there(pid: u32, parent: u32) -> bool {
    pid == parent || children(parent).contains(&pid)
}

#[test]
fn whoever_is_killed_within_an_upgrade_the_port_is_served_or_closed_and_no_item_is_lost() {
    require_root!();
    let topology = Topology::new(1).unwrap();
    let setup = Setup::guarded().unwrap().args(["--allow", &topology.allow_argument()]);
    let path = setup.scratch().mount_tmpfs(80).unwrap().join("store");
    let setup = setup.arg("-e").arg(&path).args(["-m", "64"]);
    let rounds: BTreeMap<&str, (Victim, [u64; 4])> = [
        ("parent", (Victim::Parent, [10, 60, 130, 220])),
        ("old child", (Victim::OldChild, [10, 90, 160, 240])),
        ("new child", (Victim::NewChild, [0, 5, 15, 40])),
    ]
    .into();
    for (victim, moments) in rounds.into_values() {
        for after_ms in moments {
            kill_within_upgrade(&setup, &topology, victim, Duration::from_millis(after_ms));
        }
    }
}

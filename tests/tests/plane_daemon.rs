//! A daemon with `--kernel-plane`: an allowed host is answered in the kernel and told what the daemon
//! would have told it, a stranger is not; what happens to items shows at once; a restart keeps them,
//! and with `=persist` the answers too.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use aya::{Ebpf, EbpfLoader};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use session_tests::attach::{Attachment, Mode, attach};
use session_tests::client::Client;
use session_tests::datagram::DatagramClient;
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::{Host, Topology};
use session_tests::wait::EndOnDrop;
use session_tests::{flood, kernel, require_root, skip, wait};

/// One allowed host, and what makes its link take what XDP sends back.
struct Playground {
    topology: Topology,
    _passing: (Ebpf, Attachment),
}

impl Playground {
    fn new() -> Self {
        let topology = Topology::new(1).unwrap();
        let mut bare = EbpfLoader::new().load_file(flood::object_path()).unwrap();
        let passing =
            topology.switch().run(|| attach(&mut bare, "bare_pass", "port1", Mode::Native));
        Self { topology, _passing: (bare, passing.unwrap()) }
    }

    fn setup(&self, plane: &str) -> Setup {
        Setup::guarded()
            .unwrap()
            .args(["-U", "11211", "-m", "16", "-t", "2", plane])
            .arg(format!("--allow={}", self.topology.allow_argument()))
    }

    fn start<'a>(&'a self, setup: &'a Setup) -> Sessiond<'a> {
        setup.start(Some(&self.topology.cache.namespace)).unwrap()
    }

    /// A client on the allowed host.
    fn asker(&self) -> DatagramClient {
        asker(&self.topology.allowed[0], self.topology.cache.v4.into())
    }
}

macro_rules! playground_or_skip {
    () => {{
        require_root!();
        if kernel::is_before(5, 18) {
            skip!("the kernel plane needs Linux 5.18");
        }
        Playground::new()
    }};
}

fn asker(host: &Host, address: IpAddr) -> DatagramClient {
    host.run(|| DatagramClient::new(SocketAddr::new(address, PORT))).unwrap()
}

fn count(daemon: &Sessiond<'_>, name: &str) -> u64 {
    daemon.client().stats("").unwrap()[name].parse().unwrap()
}

/// Asks, and says whether the kernel answered.
fn asked(daemon: &Sessiond<'_>, udp: &mut DatagramClient, request: &str) -> (String, bool) {
    let answers = || count(daemon, "kernel_plane_hits") + count(daemon, "kernel_plane_misses");
    let before = answers();
    let reply = udp.text(request).unwrap();
    (reply, answers() > before)
}

#[track_caller]
fn answered_in_kernel(daemon: &Sessiond<'_>, udp: &mut DatagramClient, request: &str, reply: &str) {
    assert_eq!(asked(daemon, udp, request), (reply.to_owned(), true), "{request}");
}

#[track_caller]
fn answered_by_daemon(daemon: &Sessiond<'_>, udp: &mut DatagramClient, request: &str, reply: &str) {
    assert_eq!(asked(daemon, udp, request), (reply.to_owned(), false), "{request}");
}

/// Ends the daemon, and returns when the serving process is gone.
fn end(mut daemon: Sessiond<'_>, signal: Signal) {
    let child = daemon.serving().unwrap();
    kill(Pid::from_raw(daemon.process.pid().cast_signed()), signal).unwrap();
    daemon.process.wait(wait::PATIENCE).expect("it ends");
    wait::until("the end of the serving process", || {
        (!Path::new(&format!("/proc/{child}")).exists()).then_some(())
    });
}

#[test]
fn an_allowed_host_is_answered_in_the_kernel_and_a_stranger_never() {
    let playground = playground_or_skip!();
    let cache = &playground.topology.cache;
    for mode in ["auto", "native", "generic"] {
        let setup = playground.setup("--kernel-plane").arg(format!("--guard-mode={mode}"));
        let daemon = playground.start(&setup);
        daemon.client().command("set key 5 0 5\r\nvalue").unwrap();
        let version = daemon.client().command("mg key c").unwrap();
        let version = version.trim_start_matches("HD c").to_owned();
        for address in cache.addresses() {
            let mut udp = asker(&playground.topology.allowed[0], address);
            let mut is = |request: &str, reply: &str| {
                answered_in_kernel(&daemon, &mut udp, request, reply);
            };
            is("get key\r\n", "VALUE key 5 5\r\nvalue\r\nEND\r\n");
            is("gets key\r\n", &format!("VALUE key 5 5 {version}\r\nvalue\r\nEND\r\n"));
            is("mg key v f t k s\r\n", "VA 5 f5 t-1 kkey s5\r\nvalue\r\n");
            answered_by_daemon(
                &daemon,
                &mut udp,
                "get key none\r\n",
                "VALUE key 5 5\r\nvalue\r\nEND\r\n",
            );
            answered_in_kernel(&daemon, &mut udp, "get none\r\n", "END\r\n");
            answered_in_kernel(&daemon, &mut udp, "mg none v\r\n", "EN\r\n");
            let (dropped, judged) = (daemon.dropped().unwrap(), judged(&daemon));
            let stranger = asker(&playground.topology.stranger, address);
            stranger.send(b"\0\0\0\0\0\x01\0\0get key\r\n").unwrap();
            assert!(stranger.is_silent().unwrap(), "{mode} {address}: the stranger was answered");
            assert!(daemon.dropped().unwrap() > dropped);
            assert_eq!(self::judged(&daemon), judged, "the plane saw a stranger");
        }
    }
}

/// Datagrams that the plane has looked at.
fn judged(daemon: &Sessiond<'_>) -> u64 {
    let statistics = daemon.client().stats("").unwrap();
    let of_plane = statistics.iter().filter(|(name, _)| name.starts_with("kernel_plane_"));
    of_plane.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
}

#[test]
fn what_happens_to_an_item_shows_at_once() {
    let playground = playground_or_skip!();
    let setup = playground.setup("--kernel-plane");
    let daemon = playground.start(&setup);
    let (mut tcp, mut udp) = (daemon.client(), playground.asker());
    let hit = |value: &str| format!("VALUE key 0 {}\r\n{value}\r\nEND\r\n", value.len());
    let mut done = |command: &str, reply: &str| assert_eq!(tcp.command(command).unwrap(), reply);
    for round in 0..20 {
        let value = format!("{round}");
        done(&format!("set key 0 0 {}\r\n{value}", value.len()), "STORED");
        answered_in_kernel(&daemon, &mut udp, "get key\r\n", &hit(&value));
        done("incr key 7", &format!("{}", round + 7));
        answered_in_kernel(&daemon, &mut udp, "get key\r\n", &hit(&format!("{}", round + 7)));
        done("append key 0 0 1\r\nx", "STORED");
        answered_in_kernel(&daemon, &mut udp, "get key\r\n", &hit(&format!("{}x", round + 7)));
        match round % 4 {
            0 => done("delete key", "DELETED"),
            1 => done("touch key -1", "TOUCHED"),
            2 => done("flush_all", "OK"),
            _ => done("md key", "HD"),
        }
        // What is dead is the daemon's, which takes it out: by the second time it has.
        assert_eq!(udp.text("get key\r\n").unwrap(), "END\r\n");
        answered_in_kernel(&daemon, &mut udp, "get key\r\n", "END\r\n");
    }
    done("set key 0 2 1\r\n1", "STORED");
    answered_in_kernel(&daemon, &mut udp, "get key\r\n", &hit("1"));
    done("touch key 1", "TOUCHED");
    wait::until("the end of the item", || {
        (udp.text("get key\r\n").unwrap() == "END\r\n").then_some(())
    });
    done("get key", "END");
    done("set key 0 0 1\r\n1", "STORED");
    done("flush_all 1", "OK");
    wait::until("the flush", || (udp.text("get key\r\n").unwrap() == "END\r\n").then_some(()));
    done("get key", "END");
}

#[test]
fn statistics_and_items_know_of_what_the_kernel_answered() {
    let playground = playground_or_skip!();
    let setup = playground.setup("--kernel-plane");
    let daemon = playground.start(&setup);
    let (mut tcp, mut udp) = (daemon.client(), playground.asker());
    tcp.set("key", b"value").unwrap();
    assert!(tcp.command("me key").unwrap().contains("fetch=no"));
    assert_eq!(tcp.command("stats reset").unwrap(), "RESET");
    let before = tcp.stats("").unwrap();
    for _ in 0..10 {
        udp.text("get key\r\n").unwrap();
    }
    udp.text("mg key v\r\n").unwrap();
    for request in ["get none\r\n", "gets none\r\n", "mg none v\r\n"] {
        udp.text(request).unwrap();
    }
    let after = tcp.stats("").unwrap();
    let grown = |name: &str| {
        let count = |stats: &std::collections::BTreeMap<String, String>| {
            stats[name].parse::<u64>().unwrap()
        };
        count(&after) - count(&before)
    };
    assert_eq!((grown("kernel_plane_hits"), grown("get_hits"), grown("cmd_get")), (11, 11, 14));
    assert_eq!((grown("kernel_plane_misses"), grown("get_misses")), (3, 3));
    assert_eq!(grown("cmd_meta"), 2);
    assert!(grown("bytes_read") >= 10 * (8 + 9) + 8 + 10 + 3 * 8 + 32);
    assert!(grown("bytes_written") >= 10 * (8 + 27) + 3 * 8 + 14);
    let slabs = tcp.stats("slabs").unwrap();
    let hits = slabs.iter().filter(|(name, _)| name.ends_with(":get_hits"));
    assert_eq!(hits.map(|(_, count)| count.parse::<u64>().unwrap()).sum::<u64>(), 11);
    wait::until("the item's fetched mark", || {
        tcp.command("me key").unwrap().contains("fetch=yes").then_some(())
    });
    assert!(
        daemon.ctl(&["status"]).unwrap().contains("kernel plane 14 datagrams answered, 0 left")
    );
    assert_eq!(tcp.command("stats reset").unwrap(), "RESET");
    assert_eq!(count(&daemon, "kernel_plane_hits"), 0);
    assert_eq!(count(&daemon, "get_hits"), 0);
}

/// In a time namespace the boot clock of a process is not that by which the kernel judges.
#[test]
fn what_ends_does_so_in_time_where_the_boot_clock_is_another() {
    let playground = playground_or_skip!();
    for ahead_s in ["86400", "-60"] {
        let setup = playground.setup("--kernel-plane").through(["unshare", "--time"]);
        let setup = setup.through([format!("--boottime={ahead_s}")]);
        let daemon = playground.start(&setup);
        let namespace_of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/time")).unwrap();
        if namespace_of(daemon.process.pid()) == namespace_of(std::process::id()) {
            skip!("before Linux 6.3 a program does not enter a time namespace by its start");
        }
        let (mut tcp, mut udp) = (daemon.client(), playground.asker());
        assert_eq!(tcp.command("set key 0 3 1\r\n1").unwrap(), "STORED");
        answered_in_kernel(&daemon, &mut udp, "get key\r\n", "VALUE key 0 1\r\n1\r\nEND\r\n");
        wait::until("the end of the item", || {
            (udp.text("get key\r\n").unwrap() == "END\r\n").then_some(())
        });
        // So do entries of the list.
        let stranger = &playground.topology.stranger;
        daemon.ctl(&["allow", &stranger.v4.to_string(), "--for", "3s"]).unwrap();
        let mut asking = asker(stranger, playground.topology.cache.v4.into());
        assert_eq!(asking.text("get none\r\n").unwrap(), "END\r\n");
        wait::until("the end of the entry", || is_silent(&asking).then_some(()));
        end(daemon, Signal::SIGKILL);
        wait::until("the end of the lease", || is_silent(&playground.asker()).then_some(()));
    }
}

const ITEMS: usize = 100;

fn fill(tcp: &mut Client, text: &str) {
    for number in 0..ITEMS {
        assert_eq!(tcp.set(&format!("key:{number}"), text.as_bytes()).unwrap(), "STORED");
    }
}

/// Asks for every item, of a daemon or of the kernel alone.
#[track_caller]
fn all_are_answered(udp: &mut DatagramClient, text: &str) {
    for number in 0..ITEMS {
        let expected = format!("VALUE key:{number} 0 {}\r\n{text}\r\nEND\r\n", text.len());
        assert_eq!(udp.text(&format!("get key:{number}\r\n")).unwrap(), expected);
    }
}

/// Whether nobody answers.
fn is_silent(udp: &DatagramClient) -> bool {
    udp.send(b"\0\0\0\0\0\x01\0\0get key:0\r\n").unwrap();
    udp.is_silent().unwrap()
}

#[test]
fn items_outlive_the_daemon_and_answers_do_not() {
    let playground = playground_or_skip!();
    let setup = playground.setup("--kernel-plane");
    let mut text = "first".to_owned();
    fill(&mut playground.start(&setup).client(), &text);
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGUSR1] {
        let daemon = playground.start(&setup);
        let hits = count(&daemon, "kernel_plane_hits");
        all_are_answered(&mut playground.asker(), &text);
        assert_eq!(count(&daemon, "kernel_plane_hits") - hits, ITEMS as u64);
        text = format!("before {signal}");
        fill(&mut daemon.client(), &text);
        end(daemon, signal);
        if signal == Signal::SIGKILL {
            // Nobody has told the kernel: the lease ends it.
            wait::until("silence", || is_silent(&playground.asker()).then_some(()));
        }
        assert!(is_silent(&playground.asker()), "answered after {signal}");
    }
    let daemon = playground.start(&setup);
    assert_eq!(daemon.client().stats("").unwrap()["memory_file_start"], "kept");
    all_are_answered(&mut playground.asker(), &text);
}

#[test]
fn with_persist_the_kernel_answers_while_the_daemon_is_started_again() {
    let playground = playground_or_skip!();
    let setup = playground.setup("--kernel-plane=persist");
    let mut text = "first".to_owned();
    fill(&mut playground.start(&setup).client(), &text);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let daemon = playground.start(&setup);
        text = format!("before {signal}");
        fill(&mut daemon.client(), &text);
        daemon.client().command("delete key:7").unwrap();
        daemon.client().set("key:7", text.as_bytes()).unwrap();
        daemon.client().command("delete gone").unwrap();
        end(daemon, signal);
        all_are_answered(&mut playground.asker(), &text);
        assert_eq!(playground.asker().text("get gone\r\n").unwrap(), "END\r\n");
        let stranger = asker(&playground.topology.stranger, playground.topology.cache.v4.into());
        assert!(is_silent(&stranger), "a stranger was answered after {signal}");
    }
    let daemon = playground.start(&setup);
    all_are_answered(&mut playground.asker(), &text);
    fill(&mut daemon.client(), "after all");
    all_are_answered(&mut playground.asker(), "after all");
    assert!(count(&daemon, "kernel_plane_hits") >= ITEMS as u64);
    end(daemon, Signal::SIGTERM);
    // Who starts without it wants none: neither answers nor memory.
    let plain = setup
        .with_only(["-U", "11211", "-m", "16"])
        .arg(format!("--allow={}", playground.topology.allow_argument()));
    let daemon = playground.start(&plain);
    assert_eq!(playground.asker().text("get key:0\r\n").unwrap(), "END\r\n");
    assert!(!daemon.client().stats("").unwrap().contains_key("kernel_plane_hits"));
}

/// A start looks at what was left, or makes the index anew: it must not show.
#[test]
fn no_key_is_missed_while_a_killed_daemon_is_started_again() {
    let playground = playground_or_skip!();
    let setup = playground.setup("--kernel-plane=persist");
    let mut daemon = playground.start(&setup);
    fill(&mut daemon.client(), "stays");
    let (mut udp, ends) = (playground.asker(), AtomicBool::new(false));
    thread::scope(|scope| {
        let _ends = EndOnDrop(&ends);
        let reader = scope.spawn(|| {
            let mut answers = 0;
            for number in (0..ITEMS).cycle().take_while(|_| !ends.load(Ordering::Relaxed)) {
                // A datagram may be lost with the socket of a process that is killed.
                let Ok(reply) = udp.text(&format!("get key:{number}\r\n")) else { continue };
                assert_eq!(reply, format!("VALUE key:{number} 0 5\r\nstays\r\nEND\r\n"));
                answers += 1;
            }
            answers
        });
        for _ in 0..if skip::all() { 20 } else { 2 } {
            end(daemon, Signal::SIGKILL);
            daemon = playground.start(&setup);
        }
        ends.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
        drop(daemon);
    });
}

#[test]
fn another_memory_limit_begins_empty_and_says_so() {
    let playground = playground_or_skip!();
    let setup = playground.setup("--kernel-plane=persist");
    let daemon = playground.start(&setup);
    fill(&mut daemon.client(), "x");
    end(daemon, Signal::SIGTERM);
    let larger = setup
        .with_only(["-U", "11211", "-m", "24", "--kernel-plane"])
        .arg(format!("--allow={}", playground.topology.allow_argument()));
    let daemon = playground.start(&larger);
    assert!(daemon.process.log().contains("was made for another -m: starting empty"));
    assert_eq!(playground.asker().text("get key:0\r\n").unwrap(), "END\r\n");
    fill(&mut daemon.client(), "y");
    all_are_answered(&mut playground.asker(), "y");
}

#[test]
fn an_upgrade_goes_on_in_the_same_memory() {
    let playground = playground_or_skip!();
    let setup = playground.setup("--kernel-plane");
    let daemon = playground.start(&setup);
    fill(&mut daemon.client(), "before");
    let child = daemon.serving().unwrap();
    daemon.ctl(&["upgrade"]).unwrap();
    assert_ne!(daemon.serving().unwrap(), child);
    all_are_answered(&mut playground.asker(), "before");
    assert_eq!(count(&daemon, "kernel_plane_hits"), ITEMS as u64);
    fill(&mut daemon.client(), "after");
    all_are_answered(&mut playground.asker(), "after");
}

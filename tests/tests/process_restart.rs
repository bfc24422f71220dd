//! A daemon with a memory file serves after its end what it served before, however it ended.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use session_tests::client::Client;
use session_tests::require_root;
use session_tests::sessiond::{Sessiond, Setup};
use session_tests::wait;

const ITEMS: usize = 400;

/// What is done to a memory file.
type Damage = fn(&fs::File);

/// A daemon with a memory file on a tmpfs of its own.
fn setup(megabytes: u32) -> (Setup, PathBuf) {
    let setup = Setup::loopback().unwrap();
    let path = setup.scratch().mount_tmpfs(megabytes).unwrap().join("store");
    let setup = setup.arg("-e").arg(&path).args(["-m", "64"]);
    (setup, path)
}

fn value(number: usize) -> Vec<u8> {
    let len = [3, 100, 1_000, 9_000, 120_000][number % 5] + number;
    (0..len).map(|at| b'a' + ((at * 7 + number) % 26) as u8).collect()
}

fn fill(client: &mut Client) {
    for number in 0..ITEMS {
        assert_eq!(client.set(&format!("key:{number}"), &value(number)).unwrap(), "STORED");
    }
}

#[track_caller]
fn check(client: &mut Client) {
    for number in 0..ITEMS {
        let found = client.get(&format!("key:{number}")).unwrap();
        assert!(found == Some(value(number)), "key:{number}");
    }
}

/// Ends the daemon in one of the ways that it can end.
fn end(mut daemon: Sessiond<'_>, how: &str) {
    let child = daemon.serving().unwrap().cast_signed();
    match how {
        "SIGTERM" => daemon.process.signal(Signal::SIGTERM),
        "SIGUSR1" => daemon.process.signal(Signal::SIGUSR1),
        "kill -9 of the parent" => daemon.process.kill(),
        "kill -9 of the child" => kill(Pid::from_raw(child), Signal::SIGKILL).unwrap(),
        "crash" => kill(Pid::from_raw(child), Signal::SIGABRT).unwrap(),
        _ => unreachable!("{how}"),
    }
    daemon.process.wait(wait::PATIENCE).expect("it ends");
    // The port is free when the serving process is gone, which is what a service manager waits for.
    wait::until("the end of the serving process", || {
        (!PathBuf::from(format!("/proc/{child}")).exists()).then_some(())
    });
}

#[test]
fn whatever_ends_the_daemon_the_next_one_serves_the_same() {
    require_root!();
    let (setup, path) = setup(80);
    let mut daemon = setup.start(None).unwrap();
    let mut client = daemon.client();
    fill(&mut client);
    assert_eq!(client.command("set for-ever 7 0 1\r\nx").unwrap(), "STORED");
    assert_eq!(client.command("set a-while 0 1000 1\r\nx").unwrap(), "STORED");
    assert_eq!(client.command("set a-moment 0 1 1\r\nx").unwrap(), "STORED");
    assert_eq!(client.command("delete key:0").unwrap(), "DELETED");
    assert_eq!(client.set("key:0", &value(0)).unwrap(), "STORED");
    assert_eq!(client.set("gone", b"1").unwrap(), "STORED");
    assert_eq!(client.command("delete gone").unwrap(), "DELETED");
    let cas = client.command("gets for-ever").unwrap();
    assert_eq!((client.line().unwrap(), client.line().unwrap()), ("x".into(), "END".into()));
    assert_eq!(client.stats("").unwrap()["memory_file_start"], "it is new");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    // The short one ends, and the sweep removes it.
    wait::until("the end of a moment", || {
        (client.stats("").unwrap()["curr_items"] == "402").then_some(())
    });
    for how in ["SIGTERM", "kill -9 of the parent", "kill -9 of the child", "crash", "SIGUSR1"] {
        drop(client);
        end(daemon, how);
        daemon = setup.start(None).unwrap();
        client = daemon.client();
        check(&mut client);
        assert_eq!(client.get("gone").unwrap(), None, "{how}");
        assert_eq!(client.get("a-moment").unwrap(), None, "{how}");
        assert_eq!(client.get("a-while").unwrap().unwrap(), b"x", "{how}");
        assert_eq!(client.command("gets for-ever").unwrap(), cas, "{how}");
        assert_eq!((client.line().unwrap(), client.line().unwrap()), ("x".into(), "END".into()));
        // Behind the start after a kill everything is looked through while it serves.
        let stats = wait::until("the check", || {
            let stats = client.stats("").unwrap();
            (stats["memory_file_checked_percent"] == "100").then_some(stats)
        });
        assert_eq!(stats["memory_file_start"], "kept", "{how}");
        assert_eq!(stats["memory_file_in_place"], "1", "{how}");
        assert_eq!(stats["memory_file_lost"], "0", "{how}");
        assert_eq!(stats["curr_items"], stats["memory_file_items"], "{how}");
        assert_eq!(client.stats("settings").unwrap()["memory_file"], path.to_str().unwrap());
        let status = daemon.ctl(&["status"]).unwrap();
        assert!(status.contains("memory file  402 items kept in place in "), "{how}: {status}");
        let log = daemon.process.log();
        let line = log.lines().rfind(|line| line.contains(" kept in place in ")).unwrap();
        let is_checked = line.contains("is looked for while serving");
        if is_checked {
            let found = "memory file: checked: it had 402 items of ";
            wait::until("what the check found", || {
                daemon.process.log().contains(found).then_some(())
            });
        }
        match how {
            // The serving process closes the store, if it has the time.
            "kill -9 of the parent" => {}
            "SIGTERM" | "SIGUSR1" => assert!(!is_checked, "{how}: {log}"),
            _ => assert!(is_checked, "{how}: {log}"),
        }
    }
    // A new version is newer than what was kept.
    let old: u64 = cas.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(client.set("for-ever", b"y").unwrap(), "STORED");
    let newer = client.command("gets for-ever").unwrap();
    assert!(newer.rsplit(' ').next().unwrap().parse::<u64>().unwrap() > old);
}

#[test]
fn two_daemons_never_share_a_memory_file() {
    require_root!();
    let (setup, path) = setup(80);
    let daemon = setup.start(None).unwrap();
    fill(&mut daemon.client());
    let other = Setup::loopback().unwrap().arg("-e").arg(&path);
    let mut second = other.spawn(None).unwrap();
    let status = second.wait(wait::PATIENCE).expect("the second is refused");
    assert!(!status.success());
    assert!(second.log().contains("another daemon uses it"), "{}", second.log());
    let served = setup.ctl_output(&["check", path.to_str().unwrap()]).unwrap();
    assert!(!served.status.success());
    assert!(String::from_utf8_lossy(&served.stderr).contains("a daemon serves from"));
    check(&mut daemon.client());
    // Nobody serves from it: a check tells what the next one will keep, and leaves it alone.
    end(daemon, "kill -9 of the parent");
    let checked = setup.ctl_output(&["check", path.to_str().unwrap()]).unwrap();
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(text.starts_with("400 items of "), "{text}");
    assert!(text.ends_with("0 lost; every invariant holds\n"), "{text}");
    check(&mut setup.start(None).unwrap().client());
}

#[test]
fn a_file_system_without_room_is_refused_at_the_start() {
    require_root!();
    let (setup, _) = setup(40);
    let mut daemon = setup.spawn(None).unwrap();
    let status = daemon.wait(wait::PATIENCE).expect("the start is refused");
    assert!(!status.success());
    let log = daemon.log();
    assert!(log.contains("cannot have its 67108864 bytes: No space left"), "{log}");
}

/// The file has its memory from the start on: who fills the file system meanwhile takes none of it,
/// and no access ends in SIGBUS.
#[test]
fn a_file_system_that_others_fill_ends_nothing() {
    require_root!();
    let (setup, path) = setup(80);
    let daemon = setup.start(None).unwrap();
    let serving = daemon.serving().unwrap();
    let mut other = fs::File::create(path.with_file_name("other")).unwrap();
    let full = std::io::copy(&mut std::io::repeat(b'x'), &mut other).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    // Twice what there is room for: every page of the file is written to.
    let mut client = daemon.client();
    let large = vec![b'v'; 100_000];
    for number in 0..1_300 {
        assert_eq!(client.set(&format!("large:{number}"), &large).unwrap(), "STORED");
    }
    assert_eq!(client.set("last", b"kept").unwrap(), "STORED");
    assert_ne!(client.stats("").unwrap()["evictions"], "0");
    // More memory is not to be had, and that is all.
    let refused = client.command("cache_memlimit 128").unwrap();
    assert!(refused.starts_with("MEMLIMIT_ADJUST_FAILED"), "{refused}");
    assert_eq!(client.get("last").unwrap().unwrap(), b"kept");
    assert_eq!(daemon.serving().unwrap(), serving);
    drop(client);
    end(daemon, "kill -9 of the child");
    let daemon = setup.start(None).unwrap();
    assert_eq!(daemon.client().get("last").unwrap().unwrap(), b"kept");
}

#[test]
fn a_file_of_somebody_else_is_refused_and_left_alone() {
    require_root!();
    let (setup, path) = setup(80);
    fs::write(&path, "-----BEGIN PRIVATE KEY-----").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut daemon = setup.spawn(None).unwrap();
    let status = daemon.wait(wait::PATIENCE).expect("the start is refused");
    assert!(!status.success());
    let log = daemon.log();
    assert!(log.contains("is not a memory file of sessiond, and is left as it is"), "{log}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "-----BEGIN PRIVATE KEY-----");
}

#[test]
fn a_damaged_file_is_begun_again_and_the_log_says_so() {
    require_root!();
    let (setup, path) = setup(80);
    let damages: [(&str, Damage); 3] = [
        ("did not come to an end", |file| file.write_all_at(&[0; 8], 0).unwrap()),
        ("was cut short", |file| file.set_len(1 << 20).unwrap()),
        ("is damaged", |file| file.write_all_at(b"garbage", 500).unwrap()),
    ];
    for (text, damage) in damages {
        let daemon = setup.start(None).unwrap();
        fill(&mut daemon.client());
        end(daemon, "SIGTERM");
        damage(&fs::OpenOptions::new().write(true).open(&path).unwrap());
        let daemon = setup.start(None).unwrap();
        assert!(daemon.process.log().contains(text), "{}", daemon.process.log());
        let mut client = daemon.client();
        assert_eq!(client.get("key:1").unwrap(), None);
        fill(&mut client);
        check(&mut client);
        drop(client);
        end(daemon, "SIGTERM");
        let daemon = setup.start(None).unwrap();
        check(&mut daemon.client());
        end(daemon, "kill -9 of the parent");
    }
}

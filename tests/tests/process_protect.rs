//! `--protect`: sessions outlive a flood of everything else, before and after a kill.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use session_tests::client::Client;
use session_tests::require_root;
use session_tests::sessiond::{Sessiond, Setup};

const SESSIONS: usize = 4_000;
const SESSION_LEN: usize = 600;
/// Bytes of a flood: more than `-m`.
const FLOOD_LEN: usize = 12 << 20;

fn key(number: usize) -> String {
    format!("memc.sess.key.{number:026}")
}

/// Stores items of one length without waiting, and returns when all have been.
fn flood(client: &mut Client, name: &str, len: usize) {
    let value = "v".repeat(len);
    for number in 0..FLOOD_LEN / len {
        let set = format!("set {name}.{number} 0 0 {len} noreply\r\n{value}\r\n");
        client.send(set.as_bytes()).unwrap();
    }
    assert!(client.command("version").unwrap().starts_with("VERSION"));
}

#[track_caller]
fn none_is_lost(daemon: &Sessiond<'_>, after: &str) {
    let mut client = daemon.client();
    let there = (0..SESSIONS).filter(|number| client.get(&key(*number)).unwrap().is_some());
    assert_eq!(there.count(), SESSIONS, "{after}");
    let stats = client.stats("").unwrap();
    let expected = [("protected_lost", "0"), ("protected_items", "4000")];
    for (name, value) in expected {
        assert_eq!(stats[name], value, "{after}: {stats:?}");
    }
    assert!(stats["evictions"].parse::<u64>().unwrap() > 100, "{after}: {stats:?}");
}

#[test]
fn a_flood_takes_no_session_before_or_after_a_kill() {
    require_root!();
    let setup = Setup::loopback().unwrap();
    let path = setup.scratch().mount_tmpfs(12).unwrap().join("store");
    let setup = setup.arg("-e").arg(&path).args(["-m", "8", "-t", "2"]);
    let setup = setup.arg("--protect=memc.sess.key.=40");
    let mut daemon = setup.start(None).unwrap();
    let mut client = daemon.client();
    let value = vec![b's'; SESSION_LEN];
    for number in 0..SESSIONS {
        assert_eq!(client.set(&key(number), &value).unwrap(), "STORED");
    }
    for len in [SESSION_LEN, 5_000, 100_000] {
        flood(&mut client, "flood", len);
        none_is_lost(&daemon, &format!("a flood of {len} bytes each"));
    }
    daemon.process.kill();
    drop(daemon);
    let daemon = setup.start(None).unwrap();
    let mut client = daemon.client();
    for len in [2_000, SESSION_LEN] {
        flood(&mut client, "again", len);
        none_is_lost(&daemon, &format!("a kill and a flood of {len} bytes each"));
    }
    let status = daemon.ctl(&["status"]).unwrap();
    let line = status.lines().find(|line| line.starts_with("protected    4000 items in "));
    assert!(line.is_some_and(|line| line.ends_with(" 0 lost")), "{status}");
}

#[test]
fn without_it_the_same_flood_takes_sessions() {
    let setup = Setup::loopback().unwrap().args(["-m", "8", "-t", "2"]);
    let daemon = setup.start(None).unwrap();
    let mut client = daemon.client();
    let value = vec![b's'; SESSION_LEN];
    for number in 0..SESSIONS {
        assert_eq!(client.set(&key(number), &value).unwrap(), "STORED");
    }
    // What is read is worth more than what is not, so the sessions go.
    for name in ["flood", "again"] {
        flood(&mut client, name, SESSION_LEN);
        for number in FLOOD_LEN / SESSION_LEN - SESSIONS..FLOOD_LEN / SESSION_LEN {
            client.get(&format!("{name}.{number}")).unwrap();
        }
    }
    let there = (0..SESSIONS).filter(|number| client.get(&key(*number)).unwrap().is_some());
    assert!(there.count() < SESSIONS);
    assert!(!client.stats("").unwrap().contains_key("protected_lost"));
}

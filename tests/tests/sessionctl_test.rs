//! `sessionctl test`: what is said is what happens, and saying it leaves no trace.
#![forbid(unsafe_code)]

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use session_tests::require_root;
use session_tests::sessiond::Setup;
use session_tests::topology::Topology;

/// How long a connect of somebody who is refused in silence is waited for.
const SILENCE: Duration = Duration::from_millis(300);

#[test]
fn what_is_said_is_what_happens() {
    require_root!();
    let topology = Topology::new(2).unwrap();
    let (web1, web2) = (&topology.allowed[0], &topology.allowed[1]);
    let (allowed, denied, stranger) = (web1.v4, web2.v4, topology.stranger.v4);
    let setup = Setup::guarded().unwrap();
    let port = setup.port();
    let setup = setup
        .args(["-U".to_owned(), port.to_string()])
        .args(["--refuse".to_owned(), "reset".to_owned()])
        .arg(format!("--allow={allowed},{}", web1.v6));
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    daemon.ctl(&["deny", &denied.to_string(), "--name", "web2"]).unwrap();
    let told = |words: &[&str]| daemon.ctl(&[&["test"], words].concat()).unwrap();
    let dropped = || daemon.dropped().unwrap();
    let before = dropped();

    let text = told(&[&allowed.to_string()]);
    assert_eq!(text.lines().count(), 2, "{text}");
    for protocol in ["tcp", "udp"] {
        let line = format!("{allowed} to {protocol} {port}: let in by allow {allowed}/32");
        assert!(text.contains(&line), "{text}");
    }
    let text = told(&[&web1.v6.to_string()]);
    assert!(text.contains(&format!("to tcp {port}: let in by allow")), "{text}");
    let text = told(&[&denied.to_string(), &port.to_string()]);
    let line =
        format!("tcp {port}: dropped by deny {denied}/32 web2, told by a TCP reset (deny_entry)");
    assert!(text.contains(&line), "{text}");
    for address in [stranger.to_string(), topology.stranger.v6.to_string()] {
        let text = told(&[&address]);
        for (protocol, told) in [("tcp", "told by a TCP reset"), ("udp", "told nothing")] {
            let line = format!("{protocol} {port}: dropped, since no entry names it, {told}");
            assert!(text.contains(&line), "{text}");
        }
    }
    assert!(told(&[&stranger.to_string(), "22"]).contains("tcp 22: passes: not guarded"));
    assert!(told(&["::ffff:198.18.0.11"]).contains("(forged_source)"));
    daemon.ctl(&["deny", "198.18.0.99", "--refuse", "drop"]).unwrap();
    let line = format!("tcp {port}: dropped by drop 198.18.0.99/32, told nothing (deny_entry)");
    assert!(told(&["198.18.0.99"]).contains(&line), "{}", told(&["198.18.0.99"]));
    for own in [topology.cache.v4.to_string(), "127.0.0.1".to_owned(), "::1".to_owned()] {
        assert!(told(&[&own]).contains("this host itself"), "{own}");
    }
    assert_eq!(dropped(), before, "nothing was counted");
    for (host, is_let_in) in [(web1, true), (web2, false), (&topology.stranger, false)] {
        let target = SocketAddr::from((topology.cache.v4, port));
        let connected = host.run(|| TcpStream::connect_timeout(&target, SILENCE)).is_ok();
        assert_eq!(connected, is_let_in, "{}", host.role);
    }
    daemon.ctl(&["audit", "on"]).unwrap();
    let text = told(&[&stranger.to_string(), &port.to_string()]);
    assert!(text.contains("let in, because audit is on; else dropped"), "{text}");
}

#[test]
fn without_a_guard_the_check_at_accept_is_what_decides() {
    let setup = Setup::loopback().unwrap().args(["--guard=user", "--allow=198.18.0.0/24"]);
    let daemon = setup.start(None).unwrap();
    let text = daemon.ctl(&["test", "198.18.0.7"]).unwrap();
    assert_eq!(text, "198.18.0.7: let in by allow 198.18.0.0/24 (allowed)\n");
    let text = daemon.ctl(&["test", "198.18.1.7", "11211"]).unwrap();
    assert_eq!(text, "198.18.1.7: refused at accept, since no entry names it (not_listed)\n");
    let answer: Value = daemon.ctl_json(&["test", "198.18.1.7"]).unwrap();
    assert_eq!((&answer["allowed"], &answer["reason"]), (&false.into(), &"not_listed".into()));
    let refusal = daemon.ctl(&["test", "198.18.0.0/24"]).unwrap_err().to_string();
    assert!(refusal.contains("invalid IP address"), "{refusal}");
}

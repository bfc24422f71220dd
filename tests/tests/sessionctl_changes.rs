//! Names, changes on trial and audit mode, from outside.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use session_tests::client::{Client, REFUSAL_TIMEOUT};
use session_tests::require_root;
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::Topology;
use session_tests::wait;

fn setup() -> Setup {
    Setup::loopback().unwrap().arg("--guard=user")
}

/// Starts a daemon after one that was killed, whose child may answer for a moment longer.
fn start_again(setup: &Setup) -> Sessiond<'_> {
    let daemon = setup.start(None).unwrap();
    wait::until("the new daemon's control socket", || {
        setup.ctl_output(&["list"]).unwrap().status.success().then_some(())
    });
    daemon
}

/// What `list --export` prints, which a file for `sync` looks like.
fn export(daemon: &Sessiond<'_>) -> String {
    daemon.ctl(&["list", "--export"]).unwrap()
}

fn refusal(setup: &Setup, arguments: &[&str]) -> String {
    let output = setup.ctl_output(arguments).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn pending(daemon: &Sessiond<'_>) -> Value {
    daemon.ctl_json(&["status"]).unwrap()["list"]["pending"].take()
}

#[test]
fn names_are_shown_kept_exported_and_removed_by() {
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    daemon.ctl(&["allow", "198.18.0.11,2001:db8::11", "--name", "web1"]).unwrap();
    daemon.ctl(&["allow", "198.18.0.12", "--name", "web2", "--comment", "new"]).unwrap();
    let text = "allow 198.18.0.11/32 name=web1\nallow 198.18.0.12/32 name=web2 # new\n\
                allow 2001:db8::11/128 name=web1\n";
    assert_eq!(export(&daemon), text);
    assert!(daemon.ctl(&["list"]).unwrap().contains("control web2 # new"));
    let file = setup.scratch().join("list");
    fs::write(&file, text).unwrap();
    assert_eq!(daemon.ctl(&["sync", file.to_str().unwrap()]).unwrap(), "nothing to change\n");
    let mut daemon = daemon;
    daemon.process.kill();
    let daemon = start_again(&setup);
    assert_eq!(export(&daemon), text);
    assert_eq!(
        daemon.ctl(&["remove", "web1"]).unwrap(),
        "- allow 198.18.0.11/32 name=web1\n- allow 2001:db8::11/128 name=web1\n"
    );
    assert!(refusal(&setup, &["remove", "web1"]).contains("no entry has the name web1"));
    assert!(refusal(&setup, &["allow", "198.18.1.1", "--name", "10.0.0.1"]).contains("no name"));
}

#[test]
fn a_dry_run_names_what_could_go() {
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    let file = setup.scratch().join("list");
    fs::write(&file, "198.18.0.0/24\n198.18.0.7\ndeny 198.18.0.9\n").unwrap();
    let text = daemon.ctl(&["sync", "--dry-run", file.to_str().unwrap()]).unwrap();
    assert!(text.ends_with("198.18.0.7/32 could go: 198.18.0.0/24 says the same\n"), "{text}");
    assert_eq!(text.matches("could go").count(), 1, "{text}");
}

#[test]
fn a_change_is_taken_back_unless_it_is_confirmed() {
    let setup = setup().arg("--allow=198.18.0.0/24");
    let daemon = setup.start(None).unwrap();
    let before = export(&daemon);
    let text = daemon.ctl(&["deny", "198.18.0.9", "--confirm", "1s"]).unwrap();
    assert!(text.contains("unless you run: sessionctl confirm"), "{text}");
    assert_eq!(pending(&daemon)["command"], "deny");
    assert!(
        refusal(&setup, &["allow", "198.18.1.1", "--confirm", "60s"]).contains("waits already")
    );
    wait::until("the end of the trial", || pending(&daemon).is_null().then_some(()));
    assert_eq!(export(&daemon), before);
    assert!(daemon.process.log().contains("not confirmed in time"));

    daemon.ctl(&["allow", "198.18.1.1", "--confirm", "60s"]).unwrap();
    let entry = &daemon.ctl_json(&["list"]).unwrap()["entries"][1];
    assert!((55..=64).contains(&entry["left_s"].as_u64().unwrap()), "{entry}");
    // What comes meanwhile stays, whatever becomes of the trial.
    daemon.ctl(&["deny", "198.18.0.66"]).unwrap();
    assert_eq!(daemon.ctl(&["confirm"]).unwrap(), "confirmed\n");
    assert_eq!(export(&daemon), "allow 198.18.0.0/24\ndeny 198.18.0.66/32\nallow 198.18.1.1/32\n");
    assert!(refusal(&setup, &["confirm"]).contains("no change waits"));

    let file = setup.scratch().join("list");
    fs::write(&file, "2001:db8::1\n").unwrap();
    let before = export(&daemon);
    daemon.ctl(&["sync", file.to_str().unwrap(), "--confirm", "60s"]).unwrap();
    assert_ne!(export(&daemon), before);
    assert!(refusal(&setup, &["sync", file.to_str().unwrap()]).contains("waits already"));
    daemon.ctl(&["rollback"]).unwrap();
    assert_eq!(export(&daemon), before);
    assert!(refusal(&setup, &["rollback"]).contains("no change waits"));
}

#[test]
fn a_trial_goes_on_over_a_restart_and_ends_while_no_daemon_runs() {
    let setup = setup().arg("--allow=198.18.0.0/24");
    let mut daemon = setup.start(None).unwrap();
    daemon.ctl(&["allow", "198.18.1.1", "--confirm", "60s"]).unwrap();
    daemon.process.kill();
    let mut daemon = start_again(&setup);
    assert_eq!(pending(&daemon)["command"], "allow");
    assert!(export(&daemon).contains("198.18.1.1"));
    daemon.ctl(&["confirm"]).unwrap();
    let started = Instant::now();
    daemon.ctl(&["remove", "198.18.0.0/24", "--confirm", "1s"]).unwrap();
    daemon.process.kill();
    while started.elapsed() < Duration::from_millis(1_100) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut daemon = start_again(&setup);
    assert_eq!(export(&daemon), "allow 198.18.0.0/24\nallow 198.18.1.1/32\n");
    assert!(daemon.process.log().contains("not confirmed in time"));
    daemon.process.signal(Signal::SIGTERM);
    daemon.process.wait(wait::PATIENCE).unwrap();
}

#[test]
fn audit_lets_everybody_in_counts_them_and_says_so() {
    require_root!();
    let topology = Topology::new(1).unwrap();
    let setup = Setup::guarded().unwrap().args(["--allow=198.18.0.11", "--guard=audit"]);
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    let connect = || {
        let mut client = Client::connect_within(topology.cache.v4.into(), PORT, REFUSAL_TIMEOUT)?;
        client.command("version").map(|_| client)
    };
    let mut stranger = topology.stranger.run(connect).unwrap();
    assert!(daemon.dropped().unwrap() > 0, "counted as it would be dropped");
    assert!(daemon.process.log().contains("AUDIT"));
    assert!(daemon.ctl(&["status"]).unwrap().contains("AUDIT: everybody is let in"));
    assert!(daemon.ctl(&["list"]).unwrap().contains("AUDIT is on"));
    let answer = daemon.ctl_json(&["allow", "198.18.0.12"]).unwrap();
    assert!(answer["warning"].as_str().unwrap().contains("sessionctl audit off"));

    let answer = daemon.ctl_json(&["audit", "off"]).unwrap();
    assert_eq!((&answer["audit"], &answer["reset"]), (&json!(false), &json!(1)));
    stranger.closed().unwrap();
    let refused = topology.stranger.run(connect).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut);
    topology.allowed[0].run(connect).unwrap();
    daemon.ctl(&["audit", "on"]).unwrap();
    topology.stranger.run(connect).unwrap();
}

#[test]
fn audit_is_refused_where_nobody_is() {
    let setup = Setup::loopback().unwrap();
    let _daemon = setup.start(None).unwrap();
    assert!(refusal(&setup, &["audit", "on"]).contains("nothing to audit"));
    let output = setup.ctl_output(&["audit", "perhaps"]).unwrap();
    assert_eq!(output.status.code(), Some(2));
}

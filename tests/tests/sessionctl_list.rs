//! `sessionctl` from outside: every command, its text, its JSON, its exit status, and what is
//! left of it after a restart.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use session_tests::binaries;
use session_tests::client::{Client, REFUSAL_TIMEOUT};
use session_tests::require_root;
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::Topology;
use session_tests::wait;

/// A daemon that judges sources and needs no root: whoever is on this host is let in.
fn setup() -> Setup {
    Setup::loopback().unwrap().arg("--guard=user")
}

/// Exit status, standard output, standard error.
fn ctl(setup: &Setup, arguments: &[&str]) -> (i32, String, String) {
    let output = setup.ctl_output(arguments).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The list as `action prefix origin`.
fn list(daemon: &Sessiond<'_>) -> Vec<String> {
    let answer = daemon.ctl_json(&["list"]).unwrap();
    let word = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    let entries = answer["entries"].as_array().unwrap().iter();
    entries
        .map(|entry| {
            let [action, prefix, origin] = ["action", "prefix", "origin"].map(|n| word(entry, n));
            format!("{action} {prefix} {origin}")
        })
        .collect()
}

#[test]
fn allow_deny_remove_and_list() {
    let setup = setup().arg("--allow=198.18.0.0/24");
    let daemon = setup.start(None).unwrap();
    let done = |arguments: &[&str], text: &str| {
        assert_eq!(ctl(&setup, arguments), (0, text.to_owned(), String::new()), "{arguments:?}");
    };
    done(
        &["allow", "198.18.7.7", "2001:db8::/64", "--comment", "new host"],
        "+ allow 198.18.7.7/32 # new host\n+ allow 2001:db8::/64 # new host\n",
    );
    done(&["allow", "198.18.7.7"], "nothing to change\n");
    done(
        &["deny", "198.18.7.7,198.18.0.9"],
        concat!(
            "- allow 198.18.7.7/32 # new host\n+ deny 198.18.7.7/32\n",
            "+ deny 198.18.0.9/32\n",
        ),
    );
    done(&["remove", "198.18.0.0/24"], "- allow 198.18.0.0/24\n");
    assert_eq!(
        list(&daemon),
        ["deny 198.18.0.9/32 control", "deny 198.18.7.7/32 control", "allow 2001:db8::/64 control"]
    );
    done(
        &["list"],
        concat!(
            "deny  198.18.0.9/32            control\n",
            "deny  198.18.7.7/32            control\n",
            "allow 2001:db8::/64            control # new host\n",
            "-     198.18.0.0/24            taken out of the configuration by sessionctl\n",
        ),
    );
    let log = daemon.process.log();
    assert!(log.contains("audit: ") && log.contains("deny: + deny 198.18.0.9/32"), "{log}");
}

#[test]
fn refusals_name_the_fix_and_change_nothing() {
    let setup = setup().arg("--allow=198.18.0.0/24");
    let daemon = setup.start(None).unwrap();
    for (arguments, status, text) in [
        (&["allow", "198.18.0.77/24"][..], 1, "write 198.18.0.0/24 for the network"),
        (&["allow", "zork"], 1, "neither an address nor a prefix"),
        (&["allow", "198.18.1.1", "0.0.0.0/0"], 1, "--any"),
        (&["allow", "::/0"], 1, "--any"),
        (&["allow", "198.18.1.1", "--comment", "two\nlines"], 1, "one line"),
        (&["allow", "198.18.1.1", "--for", "100000d"], 1, "ten years"),
        (&["remove", "198.18.0.0/25"], 1, "not on the list"),
        (&["deny"], 2, "PREFIX"),
        (&["allow", "198.18.1.1", "--for", "soon"], 2, "90s, 15m, 1h or 7d"),
        (&["zork"], 2, "unrecognized subcommand"),
        (&["detach"], 1, "--yes"),
        (&["sync", "/no/such/file"], 1, "/no/such/file"),
    ] {
        let (code, out, err) = ctl(&setup, arguments);
        assert_eq!((code, out.as_str()), (status, ""), "{arguments:?}: {err}");
        assert!(err.contains(text), "{arguments:?}: {err}");
        if status == 1 {
            let (code, out, _) = ctl(&setup, &[arguments, &["--json"]].concat());
            let answer: Value = serde_json::from_str(&out).unwrap();
            assert_eq!((code, &answer["ok"]), (1, &json!(false)), "{arguments:?}");
            assert!(answer["error"].as_str().unwrap().contains(text), "{arguments:?}");
        }
    }
    assert_eq!(list(&daemon), ["allow 198.18.0.0/24 config"]);
    let everybody = daemon.ctl_json(&["allow", "0.0.0.0/0", "--any"]).unwrap();
    assert_eq!(everybody["diff"]["added"][0]["prefix"], "0.0.0.0/0");
}

#[test]
fn sync_shows_the_difference_and_applies_it_whole_or_not_at_all() {
    let setup = setup().arg("--allow=198.18.0.0/24,198.18.1.0/24");
    let daemon = setup.start(None).unwrap();
    let file = setup.scratch().join("list");
    let path = file.to_str().unwrap();
    fs::write(&file, "allow 198.18.0.0/24\ndeny 198.18.0.9 # loud\n2001:db8::1\n").unwrap();
    let difference =
        "- allow 198.18.1.0/24\n+ deny 198.18.0.9/32 # loud\n+ allow 2001:db8::1/128\n";
    let expected = (0, difference.to_owned(), String::new());
    assert_eq!(ctl(&setup, &["sync", path, "--dry-run"]), expected);
    let before = list(&daemon);
    assert_eq!(before, ["allow 198.18.0.0/24 config", "allow 198.18.1.0/24 config"]);
    assert_eq!(ctl(&setup, &["sync", path]), expected);
    let after = [
        "allow 198.18.0.0/24 config",
        "deny 198.18.0.9/32 control",
        "allow 2001:db8::1/128 control",
    ];
    assert_eq!(list(&daemon), after);
    assert_eq!(ctl(&setup, &["sync", path]).1, "nothing to change\n");
    fs::write(&file, "allow 198.18.5.0/24\nzork\n").unwrap();
    let (code, _, err) = ctl(&setup, &["sync", path]);
    assert!(code == 1 && err.contains("line 2"), "{err}");
    assert_eq!(list(&daemon), after);
}

#[test]
fn a_list_of_20_000_entries_is_synced_and_listed() {
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    let file = setup.scratch().join("list");
    let lines: String = (0..20_000_u32)
        .map(|n| format!("allow 198.18.{}.{} # host {n}\n", n / 256, n % 256))
        .collect();
    fs::write(&file, lines).unwrap();
    let answer = daemon.ctl_json(&["sync", file.to_str().unwrap()]).unwrap();
    assert_eq!(answer["diff"]["added"].as_array().unwrap().len(), 20_000);
    assert_eq!(list(&daemon).len(), 20_000);
    let status = daemon.ctl_json(&["status"]).unwrap();
    assert_eq!(status["list"]["allow"], 20_000);
}

#[test]
fn changes_survive_a_restart_and_a_kill() {
    let setup = setup().arg("--allow=198.18.0.0/24,198.18.1.0/24");
    let mut daemon = setup.start(None).unwrap();
    daemon.ctl(&["allow", "198.18.7.7", "--comment", "kept", "--for", "1h"]).unwrap();
    daemon.ctl(&["deny", "198.18.0.9"]).unwrap();
    // An entry of the configuration, which will name it again.
    daemon.ctl(&["remove", "198.18.1.0/24"]).unwrap();
    let before = list(&daemon);
    daemon.process.kill();
    let mut daemon = setup.start(None).unwrap();
    assert_eq!(list(&daemon), before);
    daemon.process.signal(Signal::SIGTERM);
    daemon.process.wait(wait::PATIENCE).unwrap();
    let daemon = setup.start(None).unwrap();
    assert_eq!(list(&daemon), before);
    let answer = daemon.ctl_json(&["list"]).unwrap();
    assert_eq!(answer["taken_out"], json!(["198.18.1.0/24"]));
    let entry = answer["entries"].as_array().unwrap().iter().find(|e| e["comment"] == "kept");
    let left_s = entry.unwrap()["left_s"].as_u64().unwrap();
    assert!((3_000..3_600).contains(&left_s), "{left_s}");
    assert!(daemon.process.log().contains("`sessionctl allow 198.18.1.0/24` brings it back"));
}

#[test]
fn an_entry_with_a_deadline_ends_by_itself() {
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    let started = std::time::Instant::now();
    daemon.ctl(&["allow", "198.18.7.7", "--for", "1s"]).unwrap();
    wait::until("the end of the entry", || list(&daemon).is_empty().then_some(()));
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(daemon.process.log().contains("expire: - allow 198.18.7.7/32"));
}

#[test]
fn sighup_reads_the_files_again_and_keeps_the_old_list_over_a_bad_one() {
    let base = setup();
    let file = base.scratch().join("allow");
    fs::write(&file, "198.18.0.0/24\n").unwrap();
    let setup = base.arg("--allow-file").arg(&file);
    let daemon = setup.start(None).unwrap();
    daemon.ctl(&["deny", "198.18.0.9"]).unwrap();
    fs::write(&file, "198.18.0.0/24\n198.18.3.0/24 # more\n").unwrap();
    daemon.process.signal(Signal::SIGHUP);
    let after =
        ["allow 198.18.0.0/24 file", "deny 198.18.0.9/32 control", "allow 198.18.3.0/24 file"];
    wait::until("the new list", || (list(&daemon) == after).then_some(()));
    fs::write(&file, "198.18.4.0/24\nzork\n").unwrap();
    daemon.process.signal(Signal::SIGHUP);
    wait::until("the refusal in the log", || {
        daemon.process.log().contains("the old list stays in force").then_some(())
    });
    assert!(daemon.process.log().contains("line 2"), "{}", daemon.process.log());
    assert_eq!(list(&daemon), after);
}

#[test]
fn status_says_what_is_served_and_how() {
    let setup = setup().arg("--allow=198.18.0.0/24");
    let daemon = setup.start(None).unwrap();
    let mut client = daemon.client();
    client.set("key", b"value").unwrap();
    let answer = daemon.ctl_json(&["status"]).unwrap();
    assert_eq!(answer["enforced"], "user");
    assert_eq!(answer["memcached_version"], "1.6.45");
    assert_eq!(answer["pid"], daemon.process.pid());
    assert_eq!(answer["serving"]["tcp"], json!([format!("127.0.0.1:{}", setup.port())]));
    assert_eq!(answer["list"]["entries"], 1);
    assert_eq!(answer["statistics"]["curr_items"], "1");
    let text = daemon.ctl(&["status"]).unwrap();
    for part in ["sessiond 0.1.0 (memcached 1.6.45)", "list         1 entries", "items        1 in"]
    {
        assert!(text.contains(part), "{text}");
    }
}

/// `sessionctl watch --json`, killed on drop.
struct Watch {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Watch {
    fn start(setup: &Setup) -> Self {
        let mut command = Command::new(binaries::sessionctl());
        command.arg("--control").arg(setup.control()).args(["watch", "--json"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next event of this kind. The counters come every second, so this always ends.
    fn next(&mut self, kind: &str) -> Value {
        for _ in 0..20 {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["event"] == kind {
                return event;
            }
        }
        panic!("no {kind} among 20 events");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn watch_tells_counters_every_second_and_changes_at_once() {
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    let mut watch = Watch::start(&setup);
    watch.next("counters");
    daemon.ctl(&["allow", "198.18.7.7"]).unwrap();
    let event = watch.next("list");
    assert_eq!(event["command"], "allow");
    assert_eq!(event["diff"]["added"][0]["prefix"], "198.18.7.7/32");
    assert_eq!(event["by"]["uid"], nix::unistd::geteuid().as_raw());
    let mut client = daemon.client();
    for _ in 0..5 {
        client.get("missing").unwrap();
    }
    let grown = wait::until("the gets in the counters", || {
        let event = watch.next("counters");
        event["grown"]["cmd_get"].as_u64()
    });
    assert!((1..=5).contains(&grown), "{grown}");
}

#[test]
fn a_daemon_that_is_down_is_named_with_what_to_do() {
    let setup = setup();
    let (code, _, err) = ctl(&setup, &["allow", "198.18.0.1"]);
    assert_eq!(code, 1);
    assert!(err.contains("no daemon answers there"), "{err}");
}

#[test]
fn a_denied_source_loses_its_live_connection_before_the_command_answers() {
    require_root!();
    let topology = Topology::new(2).unwrap();
    let [guest, other] = topology.allowed.as_slice() else { panic!("two were asked for") };
    let setup = Setup::guarded().unwrap().arg("--allow=198.18.0.0/24");
    let daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    let connect = || Client::connect(topology.cache.v4.into(), PORT).unwrap();
    let mut clients = [guest, guest, other].map(|host| host.run(connect));
    for client in &mut clients {
        client.command("version").unwrap();
    }
    let answer = daemon.ctl_json(&["deny", &guest.v4.to_string()]).unwrap();
    assert_eq!(answer["reset"], 2);
    let [first, second, third] = &mut clients;
    first.closed().unwrap();
    second.closed().unwrap();
    assert!(third.command("version").is_ok());
    let denied =
        guest.run(|| Client::connect_within(topology.cache.v4.into(), PORT, REFUSAL_TIMEOUT));
    assert_eq!(denied.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[test]
fn detach_is_refused_while_a_daemon_runs_and_is_what_opens_the_port() {
    require_root!();
    let topology = Topology::new(0).unwrap();
    let setup = Setup::guarded().unwrap();
    let mut daemon = setup.start(Some(&topology.cache.namespace)).unwrap();
    let detach = || {
        let mut command = Command::new(binaries::sessionctl());
        command.args(["detach", "--yes", "--json", "--bpffs"]).arg(setup.bpffs());
        topology.cache.namespace.output(&mut command).unwrap()
    };
    let refused = detach();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    daemon.process.kill();
    // A plain server on the guarded port: the guard outlives its daemon.
    let server = wait::until("the port", || {
        topology.cache.run(|| std::net::TcpListener::bind((topology.cache.v4, PORT)).ok())
    });
    let cache = topology.cache.v4.into();
    let connect = || Client::connect_within(cache, PORT, REFUSAL_TIMEOUT).map(drop);
    let dropped = topology.stranger.run(connect).unwrap_err();
    assert_eq!(dropped.kind(), std::io::ErrorKind::TimedOut);
    let done = detach();
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(answer["links"], 1);
    topology.stranger.run(connect).unwrap();
    drop(server);
}

//! The control socket and the overlay under attack and after damage.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use session_tests::binaries;
use session_tests::require_root;
use session_tests::sessiond::{Sessiond, Setup};
use session_tests::wait::{self, PATIENCE};

fn setup() -> Setup {
    Setup::loopback().unwrap().arg("--guard=user")
}

fn connect(setup: &Setup) -> UnixStream {
    let stream = UnixStream::connect(setup.control()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The answer to one line, if the daemon gives one.
fn ask(stream: &UnixStream, line: &str) -> Option<Value> {
    let mut writer = stream;
    // The daemon may have closed already; what it said before is still there.
    let _ = writer.write_all(line.as_bytes());
    let mut answer = String::new();
    let _ = BufReader::new(stream).read_line(&mut answer);
    serde_json::from_str(&answer).ok()
}

fn is_well(daemon: &Sessiond<'_>) {
    assert!(daemon.client().command("version").unwrap().starts_with("VERSION"));
    assert_eq!(daemon.ctl_json(&["status"]).unwrap()["ok"], true);
}

#[test]
fn another_user_can_neither_connect_nor_replace_the_socket() {
    require_root!();
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    let mode = fs::metadata(setup.control()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let copy = setup.scratch().join("sessionctl");
    fs::copy(binaries::sessionctl(), &copy).unwrap();
    let as_nobody = |program: &std::path::Path, arguments: &[&str]| -> Output {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
        command.args(arguments).output().unwrap()
    };
    let control = setup.control();
    let output = as_nobody(&copy, &["--control", control.to_str().unwrap(), "allow", "198.18.0.1"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("only root may steer the daemon"), "{stderr}");
    let removed = as_nobody("rm".as_ref(), &["-f", control.to_str().unwrap()]);
    assert!(!removed.status.success());
    // Even through a socket whose mode was widened by mistake, the peer's user is looked at.
    fs::set_permissions(&control, fs::Permissions::from_mode(0o666)).unwrap();
    let output = as_nobody(&copy, &["--control", control.to_str().unwrap(), "allow", "198.18.0.1"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("uid 65534 may not change the list"), "{stderr}");
    assert_eq!(daemon.ctl_json(&["list"]).unwrap()["count"], 0);
    is_well(&daemon);
}

#[test]
fn a_line_of_a_megabyte_is_refused() {
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    for line in ["x".repeat(1 << 20), format!("{{\"command\":\"{}\"}}\n", "x".repeat(1 << 20))] {
        let stream = connect(&setup);
        if let Some(answer) = ask(&stream, &line) {
            assert_eq!(answer["ok"], false);
            assert!(answer["error"].as_str().unwrap().contains("sync FILE"), "{answer}");
        }
        // Either way the connection is over.
        let mut rest = Vec::new();
        match (&stream).read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    is_well(&daemon);
}

#[test]
fn what_is_no_request_is_refused_and_ends_the_connection() {
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    for line in [
        "\n",
        "zork\n",
        "{}\n",
        "[]\n",
        "{\"command\":\"deny\"}\n",
        "{\"command\":\"allow\",\"prefixes\":[\"198.18.0.1\"],\"sudo\":true}\n",
        "{\"command\":\"sync\",\"count\":99999999}\n",
        "\u{0}\n",
    ] {
        let answer = ask(&connect(&setup), line).unwrap_or_else(|| panic!("{line:?}: no answer"));
        assert_eq!(answer["ok"], false, "{line:?}");
        assert!(!answer["error"].as_str().unwrap().is_empty(), "{line:?}");
    }
    // A sync that ends early changes nothing.
    let stream = connect(&setup);
    let line = "{\"prefix\":\"198.18.0.1\",\"action\":\"allow\"}\n";
    (&stream)
        .write_all(format!("{{\"command\":\"sync\",\"count\":2}}\n{line}").as_bytes())
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(ask(&stream, "").unwrap()["ok"], false);
    assert_eq!(daemon.ctl_json(&["list"]).unwrap()["count"], 0);
    is_well(&daemon);
}

#[test]
fn a_thousand_connections_are_bounded_and_go_away() {
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    let fds = || {
        let directory = format!("/proc/{}/fd", daemon.process.pid());
        fs::read_dir(directory).unwrap().count()
    };
    // The port answers before the parent has opened all that it keeps.
    is_well(&daemon);
    std::thread::sleep(Duration::from_millis(300));
    let before = fds();
    let mut held = Vec::new();
    for _ in 0..1_000 {
        // Without a place in the backlog a connect fails or waits: both are bounds as well.
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.set_nonblocking(true).unwrap();
        let address = socket2::SockAddr::unix(setup.control()).unwrap();
        if socket.connect(&address).is_ok() {
            held.push(socket);
        }
    }
    assert!(held.len() > 32, "{}", held.len());
    // 32 are served at one time; the rest is closed unanswered.
    let bound = before + 32 + 4;
    wait::until("the bound on open connections", || (fds() <= bound).then_some(()));
    assert!(daemon.client().command("version").is_ok());
    drop(held);
    wait::until("the end of all of them", || (fds() <= before).then_some(()));
    is_well(&daemon);
}

#[test]
fn an_idle_connection_is_closed_and_frees_its_place() {
    let setup = setup();
    let daemon = setup.start(None).unwrap();
    let idle = connect(&setup);
    (&idle).write_all(b"{\"command\":").unwrap();
    // Half a line is not waited for without end: the daemon says so within its ten seconds.
    let answer = ask(&idle, "").unwrap();
    assert!(answer["error"].as_str().unwrap().contains("no whole line"), "{answer}");
    is_well(&daemon);
}

#[test]
fn a_live_control_socket_is_never_taken_over_and_a_dead_one_is_replaced() {
    let setup = setup();
    let mut daemon = setup.start(None).unwrap();
    let second = Setup::loopback().unwrap();
    let output = second.command().arg("--control").arg(setup.control()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("another daemon answers there"), "{stderr}");
    is_well(&daemon);
    daemon.process.kill();
    assert!(setup.control().exists(), "a killed daemon leaves its socket");
    is_well(&setup.start(None).unwrap());
}

#[test]
fn a_trap_in_the_place_of_a_path_is_refused_and_left_alone() {
    let setup = setup();
    let target = setup.scratch().join("target");
    fs::write(&target, "kept").unwrap();
    for (flag, name) in [("--control", "c"), ("--state", "s"), ("-P", "p")] {
        let path = setup.scratch().join(name);
        symlink(&target, &path).unwrap();
        let output = setup.command().arg(flag).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{flag}: {output:?}");
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink(), "{flag}");
        assert_eq!(fs::read(&target).unwrap(), b"kept", "{flag}");
    }
    let directory = setup.scratch().join("directory");
    fs::create_dir(&directory).unwrap();
    for flag in ["--control", "--state", "-P", "--allow-file"] {
        let output = setup.command().arg(flag).arg(&directory).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{flag}: {output:?}");
    }
    let _live = UnixListener::bind(setup.scratch().join("live")).unwrap();
    let output =
        setup.command().arg("--control").arg(setup.scratch().join("live")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_damaged_overlay_is_refused_and_never_opens_more_than_it_said() {
    let setup = setup().arg("--allow=198.18.0.0/24");
    let overlay = setup.scratch().join("overlay.json");
    {
        let daemon = setup.start(None).unwrap();
        daemon.ctl(&["deny", "198.18.0.9"]).unwrap();
        daemon.ctl(&["remove", "198.18.0.0/24"]).unwrap();
    }
    let whole = fs::read(&overlay).unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("torn", whole[..whole.len() / 2].to_vec()),
        ("flipped", flipped),
        ("binary", vec![0xff; 4096]),
    ] {
        fs::write(&overlay, bytes).unwrap();
        let output = setup.command().output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("overlay.json"), "{name}: {stderr}");
        assert!(stderr.contains("--allow-file"), "{name}: {stderr}");
    }
    // A file that another user could have written says nothing either.
    fs::write(&overlay, &whole).unwrap();
    fs::set_permissions(&overlay, fs::Permissions::from_mode(0o666)).unwrap();
    let output = setup.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod go-w"));
    fs::set_permissions(&overlay, fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = setup.start(None).unwrap();
    assert_eq!(daemon.ctl_json(&["list"]).unwrap()["count"], 1);
}

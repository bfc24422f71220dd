//! `sessionctl top` as text, and on a terminal of its own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use session_tests::sessiond::Setup;
use session_tests::{binaries, require_program};

#[test]
fn one_frame_is_text() {
    let setup = Setup::loopback().unwrap().args(["--guard=user", "--allow=198.18.0.0/24"]);
    let daemon = setup.start(None).unwrap();
    let mut client = daemon.client();
    for n in 0..100 {
        client.set(&format!("key{n}"), b"value").unwrap();
    }
    let text = daemon.ctl(&["top", "--once", "--interval", "1s"]).unwrap();
    for part in ["sessiond 0.1.0", "traffic", "gets", "memory by class", "100 items", "127.0.0.1"] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    assert!(!daemon.process.log().contains("admin: stats"), "looking is not written to the log");
    let output = setup.ctl_output(&["top"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--once"), "{output:?}");
}

#[test]
fn a_terminal_is_drawn_on_and_given_back() {
    require_program!("script");
    let setup = Setup::loopback().unwrap();
    let _daemon = setup.start(None).unwrap();
    let top = format!(
        "stty rows 40 cols 100; {} --control {} top --interval 1s",
        binaries::sessionctl().display(),
        setup.control().display()
    );
    let mut command = Command::new("script");
    command.args(["-qec", &top, "/dev/null"]).env("TERM", "xterm");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = command.spawn().unwrap();
    let mut keys = script.stdin.take().unwrap();
    // Two frames, then the key that ends it; the key is read whenever it comes.
    std::thread::sleep(Duration::from_millis(2_500));
    keys.write_all(b"q").unwrap();
    let output = script.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    // The alternate screen is entered and left.
    let (entered, left) = (text.find("\x1b[?1049h"), text.rfind("\x1b[?1049l"));
    assert!(entered.is_some() && entered < left, "{text:?}");
    assert!(text.contains("traffic") && text.contains("evicted"), "{text:?}");
}

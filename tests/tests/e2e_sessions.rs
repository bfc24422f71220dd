//! `cargo xtask demo sessions`: everything that it shows is so, and nothing stays behind, however
//! it ends. What is shown is in `xtask/src/demo/`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use session_tests::process::{Process, children};
use session_tests::scratch::Scratch;
use session_tests::{binaries, leftovers, php, require_root, skip, wait};

/// What the run shows, each by the beginning of its line.
const SHOWN: &[&str] = &[
    "ann logs in once and is known on all four",
    "a stranger gets no answer, over IPv4 and IPv6",
    "a fifth web server has no sessions, until `sessionctl allow",
    "`sessionctl remove 198.18.0.14`: its connection is reset",
    "kill -9: served again",
    "SIGTERM: served again",
    "sessionctl upgrade: ",
    "memcache,  text ",
    "memcache,  binary",
    "memcached, text ",
    "memcached, binary",
    "twemproxy with ketama: 20 sessions of both handlers",
    "session_redundancy = 2 and sess_number_of_replicas = 1: all 20 sessions are in both",
    "one cache is killed: memcache goes on with 10 of 10 sessions, memcached reads 10 of 10",
    "sessiond, started an hour ahead and set right: fay logs in and stays",
    "the clock is set two hours ahead, two back, and right again: fay is still known",
    "memcache, text     sessiond ",
    "memcached, binary  sessiond ",
];

/// Longest that the run may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn everything_is_shown_and_nothing_stays() {
    require_root!();
    let missing = php::missing();
    if !missing.is_empty() {
        skip!("needs {}; `cargo xtask test` as root installs them on Debian", missing.join(", "));
    }
    let scratch = Scratch::new("demo").unwrap();
    let mut demo = start(&scratch);
    let inner = inner_pid(&mut demo);
    let status = demo.wait(LIMIT).expect("it comes to its end");
    let text = demo.log();
    assert!(status.success(), "{text}");
    let shown: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("  ✓ ")).collect();
    assert_eq!(shown.len(), SHOWN.len(), "{text}");
    for (line, expected) in shown.iter().zip(SHOWN) {
        assert!(line.starts_with(expected), "{line:?} is not {expected:?}");
    }
    for line in shown.iter().filter(|line| line.contains("sessions lost")) {
        assert!(line.contains(" 0 of 24 sessions lost"), "{line}");
    }
    assert_nothing_is_left(inner);
}

#[test]
fn a_signal_in_the_middle_removes_everything() {
    require_root!();
    let missing = php::missing();
    if !missing.is_empty() {
        skip!("needs {}; `cargo xtask test` as root installs them on Debian", missing.join(", "));
    }
    let scratch = Scratch::new("demo").unwrap();
    let mut demo = start(&scratch);
    demo.until("the first thing shown", || {
        fs::read_to_string(scratch.join("log")).ok()?.contains('✓').then_some(())
    });
    let inner = inner_pid(&mut demo);
    demo.signal(Signal::SIGTERM);
    let status = demo.wait(wait::PATIENCE).expect("SIGTERM ends it");
    assert!(status.success(), "{status}: {}", demo.log());
    assert_nothing_is_left(inner);
}

fn start(scratch: &Scratch) -> Process {
    let mut command = Command::new(binaries::xtask());
    let binaries = binaries::sessiond();
    command.args(["demo", "sessions", "--binaries"]).arg(binaries.parent().unwrap());
    Process::start(&mut command, None, &scratch.join("log")).unwrap()
}

/// The process that makes the hosts: what it makes carries its number.
fn inner_pid(demo: &mut Process) -> u32 {
    let outer = demo.pid();
    demo.until("the inner process", || children(outer).first().copied())
}

fn assert_nothing_is_left(inner: u32) {
    let marker = format!("{}-{inner}-", leftovers::PREFIX);
    for directory in [leftovers::NETNS_DIRECTORY.into(), std::env::temp_dir()] {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(!name.starts_with(&marker), "{name} is still there");
        }
    }
}

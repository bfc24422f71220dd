//! `cargo xtask run`: every command that it prints works as it says, and nothing stays behind,
//! however it ends.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use session_tests::process::Process;
use session_tests::scratch::Scratch;
use session_tests::{binaries, leftovers, require_root, wait};

/// A playground that nobody ends goes away by itself after so many seconds.
const SECONDS: &str = "120";

#[test]
fn the_printed_commands_work_and_a_signal_removes_everything() {
    require_root!();
    let scratch = Scratch::new("playground").unwrap();
    let mut playground = start(&scratch, SECONDS);
    let text = playground.until("a line of counters", || shown(&scratch));
    let names = namespaces(&text);
    assert_eq!(names.len(), 3, "{text}");
    assert_eq!(text.matches("refused").count(), 2, "{text}");

    for (host, expected) in [("web1", "VALUE greeting"), ("web2", "STORED")] {
        let outputs: Vec<_> = commands(&text, host).iter().map(|line| shell(line)).collect();
        assert_eq!(outputs.len(), 3, "{text}");
        assert!(outputs.iter().all(|output| output.status.success()), "{outputs:#?}");
        assert!(outputs.iter().any(|output| says(output, expected)), "{outputs:#?}");
        assert!(says(&outputs[2], "STAT curr_connections"), "{outputs:#?}");
    }
    let [over_v4, over_v6, other_port] = commands(&text, "stranger").try_into().unwrap();
    let [status, allow, remove] = commands(&text, "cache").try_into().unwrap();
    assert!(says(&shell(&status), "eth0"));
    for line in [&over_v4, &over_v6] {
        let refused = shell(line);
        assert!(!refused.status.success() && !says(&refused, "VALUE"), "{refused:#?}");
    }
    let closed = shell(&other_port);
    assert!(String::from_utf8_lossy(&closed.stderr).contains("Connection refused"), "{closed:#?}");
    assert!(shell(&allow).status.success());
    assert!(says(&shell(&over_v4), "VALUE greeting"), "the stranger was allowed");
    assert!(shell(&remove).status.success());
    assert!(!says(&shell(&over_v4), "VALUE"), "the stranger was removed");

    playground.signal(Signal::SIGTERM);
    let status = playground.wait(wait::PATIENCE).expect("SIGTERM ends it");
    assert!(status.success(), "{status}: {}", playground.log());
    assert_gone(&names);
}

#[test]
fn it_ends_by_itself_and_removes_what_a_killed_one_left() {
    require_root!();
    let scratch = Scratch::new("playground").unwrap();
    let mut killed = start(&scratch, SECONDS);
    let text = killed.until("a line of counters", || shown(&scratch));
    let names = namespaces(&text);
    killed.kill();
    let inner = inner_pid(&names[0]);
    wait::until("the inner process to end with the outer one", || {
        (!std::path::Path::new(&format!("/proc/{inner}")).exists()).then_some(())
    });

    let scratch = Scratch::new("playground").unwrap();
    let mut next = start(&scratch, "1");
    let status = next.wait(Duration::from_secs(60)).expect("it ends after a second");
    assert!(status.success(), "{status}: {}", next.log());
    assert_gone(&names);
    assert_gone(&namespaces(&next.log()));
}

fn start(scratch: &Scratch, seconds: &str) -> Process {
    let mut command = Command::new(binaries::xtask());
    command.args(["run", "--built", "--seconds", seconds]);
    Process::start(&mut command, None, &scratch.join("log")).unwrap()
}

/// What was printed, once the first line of counters stands there.
fn shown(scratch: &Scratch) -> Option<String> {
    let text = fs::read_to_string(scratch.join("log")).ok()?;
    text.contains("\nserved ").then_some(text)
}

/// The commands printed for a host.
fn commands(text: &str, host: &str) -> Vec<String> {
    let heading = format!("  from {host}:\n");
    let (_, after) = text.split_once(&heading).unwrap();
    after.lines().take_while(|line| !line.is_empty()).map(|line| line.trim().to_owned()).collect()
}

fn shell(line: &str) -> Output {
    Command::new("sh").args(["-c", line]).output().unwrap()
}

fn says(output: &Output, text: &str) -> bool {
    String::from_utf8_lossy(&output.stdout).contains(text)
}

/// The names of the namespaces that the playground made: all that carry its inner process's pid.
fn namespaces(text: &str) -> Vec<String> {
    let mut names: Vec<String> = text
        .split_whitespace()
        .filter(|word| word.starts_with(leftovers::PREFIX) && word.matches('-').count() == 3)
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

fn inner_pid(name: &str) -> u32 {
    name.split('-').nth(1).unwrap().parse().unwrap()
}

fn assert_gone(names: &[String]) {
    assert!(!names.is_empty());
    let marker = format!("{}-{}-", leftovers::PREFIX, inner_pid(&names[0]));
    for directory in [leftovers::NETNS_DIRECTORY.into(), std::env::temp_dir()] {
        for entry in fs::read_dir(directory).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(!name.starts_with(&marker), "{name} is still there");
        }
    }
}

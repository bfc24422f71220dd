//! The command line from outside: texts and exit statuses of memcached, and nothing left behind.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::process::{Command, Output};

use session_tests::netns::Namespace;
use session_tests::scratch::Scratch;
use session_tests::{binaries, require_program, require_root, skip};

/// Longest that a daemon may take to refuse, in seconds.
const PATIENCE_S: &str = "20";

/// Runs `sessiond` in a network namespace of its own: one that starts although it should refuse
/// must not guard an interface of this machine, and is ended.
fn sessiond(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg(PATIENCE_S).arg(binaries::sessiond()).args(arguments);
    let output = if skip::is_root() {
        Namespace::new("flags").unwrap().output(&mut command).unwrap()
    } else {
        command.output().unwrap()
    };
    assert_ne!(output.status.code(), Some(124), "{arguments:?} started a daemon");
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

/// What `sessiond` says, with its name in getopt's messages replaced by memcached's.
fn as_memcached(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), stderr(output).replace("sessiond: ", "memcached: "))
}

#[test]
fn refusals_are_word_for_word_those_of_the_real_memcached() {
    require_root!();
    require_program!("memcached");
    for arguments in [
        &["-Q"][..],
        &["--zork"],
        &["--lis=x"],
        &["-p"],
        &["--port"],
        &["--daemon=1"],
        &["-u", "no-such-user"],
        &["-u", "root", "-p", "70000"],
        &["-u", "root", "-c", "0"],
        &["-u", "root", "-t", "0"],
        &["-u", "root", "-f", "1"],
        &["-u", "root", "-n", "0"],
        &["-u", "root", "-R", "0"],
        &["-u", "root", "-I", "10"],
        &["-u", "root", "-I", "2g"],
        &["-u", "root", "-I", "600m"],
        &["-u", "root", "-I", "1100m", "-m", "9000"],
        &["-u", "root", "-B", "zork"],
        &["-u", "root", "-o", "zork"],
        &["-u", "root", "-o", "maxconns_fast,zork=1"],
        &["-u", "root", "-o", "idle_timeout"],
    ] {
        let real = Command::new("memcached").args(arguments).output().unwrap();
        let expected = (real.status.code(), stderr(&real));
        assert_eq!(as_memcached(&sessiond(arguments)), expected, "{arguments:?}");
    }
}

#[test]
fn root_has_to_say_whom_it_serves_as() {
    require_root!();
    let output = sessiond(&[]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(stderr(&output), "must add '-u root' to start as root");
}

#[test]
fn help_and_version_begin_with_the_version_that_is_answered_for() {
    for flag in ["-h", "--help", "-V", "--version", "-i"] {
        let output = sessiond(&[flag]);
        assert!(output.status.success(), "{flag}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().next(), Some("memcached 1.6.45"), "{flag}");
    }
    let version = String::from_utf8(sessiond(&["-V"]).stdout).unwrap();
    assert!(version.lines().nth(1).unwrap().starts_with("sessiond "), "{version}");
}

#[test]
fn what_is_not_served_is_refused_and_never_ignored() {
    for arguments in [
        &["-S"][..],
        &["-S", "-U", "11211"],
        &["-Z"],
        &["-o", "ext_path=/tmp/x:1G"],
        &["-o", "ssl_ciphers=x"],
        &["-o", "ssl_kernel_tls"],
        &["-l", "127.0.0.1", "stray"],
    ] {
        let output = sessiond(&[arguments, &["-u", "nobody"]].concat());
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn an_address_of_another_host_is_status_71() {
    require_root!();
    let scratch = Scratch::new("flags").unwrap();
    let control = scratch.join("control.sock");
    let state = scratch.join("overlay.json");
    let output = sessiond(&[
        "-u",
        "nobody",
        "-l",
        "127.0.0.1,198.18.255.254",
        "-p",
        "-1",
        "--control",
        control.to_str().unwrap(),
        "--state",
        state.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(71));
    assert!(
        stderr(&output).contains("failed to listen on one of interface(s) 198.18.255.254: "),
        "{}",
        stderr(&output)
    );
    assert!(!control.exists());
}

#[test]
fn the_second_process_is_not_for_the_command_line() {
    let output = sessiond(&["--serve-from-parent"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("sessiond's own second process"), "{}", stderr(&output));
}

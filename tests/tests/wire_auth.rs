//! Clients that have to say who they are first: `-Y` in the text protocol, `-S` in the binary.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use session_tests::client::{Client, REPLY_TIMEOUT};
use session_tests::process::Process;
use session_tests::sessiond::Setup;
use session_tests::wait;

/// A daemon's set-up with a file of passwords that root alone can read.
fn setup(flag: &str, users: &str) -> Result<(Setup, PathBuf)> {
    let setup = Setup::loopback()?;
    let file = setup.scratch().join("users");
    fs::write(&file, users)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let path = file.to_str().context("a path of letters")?.to_owned();
    Ok((setup.args([flag.to_owned(), path]), file))
}

fn log_in(client: &mut Client, token: &str) -> Result<String> {
    client.send(format!("set any 0 0 {}\r\n{token}\r\n", token.len()).as_bytes())?;
    Ok(client.line()?)
}

#[test]
fn a_text_client_logs_in_by_a_set() -> Result<()> {
    let (setup, _) = setup("-Y", "user:pass\nother:word")?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    for line in ["get a", "version", "flush_all", "stats", "shutdown", "mn", ""] {
        let reply = client.command(line)?;
        ensure!(reply == "CLIENT_ERROR unauthenticated", "{line:?}: {reply}");
    }
    let failure = "CLIENT_ERROR authentication failure";
    for wrong in ["user word", "user passs", "user pas", "us pass", "other pass"] {
        ensure!(log_in(&mut client, wrong)? == failure, "{wrong}");
    }
    ensure!(log_in(&mut client, "user")? == "CLIENT_ERROR bad authentication token format", "one");
    ensure!(log_in(&mut client, "other word")? == "STORED", "the last line has no newline");
    ensure!(client.set("a", b"1")? == "STORED", "set");
    ensure!(client.get("a")? == Some(b"1".to_vec()), "get");
    ensure!(client.get("any")?.is_none(), "the password was stored");
    let stats = client.stats("")?;
    ensure!(stats["auth_cmds"] == "6" && stats["auth_errors"] == "5", "{stats:?}");
    let settings = client.stats("settings")?;
    ensure!(settings["auth_enabled_ascii"] == "yes", "settings");
    ensure!(settings["binding_protocol"] == "ascii", "settings");
    // One client's login is not another's.
    ensure!(daemon.client().command("get a")? == "CLIENT_ERROR unauthenticated", "another client");
    Ok(())
}

#[test]
fn a_binary_client_is_not_heard_where_text_is_asked_for() -> Result<()> {
    let (setup, _) = setup("-Y", "user:pass\n")?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    client.send(&[
        0x80, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'\n',
    ])?;
    ensure!(client.line()? == "CLIENT_ERROR unauthenticated", "a binary request");
    Ok(())
}

#[test]
fn a_hangup_signal_reads_the_passwords_again() -> Result<()> {
    let (setup, file) = setup("-Y", "user:old\n")?;
    let daemon = setup.start(None)?;
    let mut known = daemon.client();
    ensure!(log_in(&mut known, "user old")? == "STORED", "the first password");
    fs::write(&file, "user:new\n")?;
    daemon.process.signal(Signal::SIGHUP);
    wait::until("the new password", || {
        (log_in(&mut daemon.client(), "user new").ok()? == "STORED").then_some(())
    });
    ensure!(log_in(&mut daemon.client(), "user old")? != "STORED", "the old password");
    ensure!(known.get("a")?.is_none(), "who is known stays so");
    // A file that cannot be used changes nothing.
    fs::write(&file, "no colon\n")?;
    daemon.process.signal(Signal::SIGHUP);
    wait::until("a word of it in the log", || {
        fs::read_to_string(setup.scratch().join("log"))
            .ok()?
            .contains("stay as they were")
            .then_some(())
    });
    ensure!(log_in(&mut daemon.client(), "user new")? == "STORED", "after a bad file");
    Ok(())
}

#[test]
fn a_file_that_cannot_be_used_is_refused_at_the_start() -> Result<()> {
    for users in ["", "no colon\n", "user:\n", ":pass\n"] {
        let (setup, _) = setup("-Y", users)?;
        let output = setup.command().output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{users:?}: {:?} {text}", output.status);
        ensure!(text.contains("-Y "), "{users:?}: {text}");
    }
    let (setup, file) = setup("-Y", "user:pass\n")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    let daemon = setup.start(None)?;
    ensure!(log_in(&mut daemon.client(), "user pass")? == "STORED", "not served");
    let log = fs::read_to_string(setup.scratch().join("log"))?;
    ensure!(log.contains("others can read the secrets"), "no warning in {log}");
    Ok(())
}

fn frame(opcode: u8, key: &[u8], value: &[u8]) -> Vec<u8> {
    let len = |len: usize| u8::try_from(len).expect("a short frame");
    let lens = (len(key.len()), len(key.len() + value.len()));
    let mut frame = vec![0x80, opcode, 0, lens.0, 0, 0, 0, 0, 0, 0, 0, lens.1];
    frame.extend_from_slice(&[0; 12]);
    frame.extend_from_slice(key);
    frame.extend_from_slice(value);
    frame
}

/// Sends a frame and returns the status and the body of its reply.
fn ask(stream: &mut TcpStream, frame: &[u8]) -> Result<(u8, Vec<u8>)> {
    stream.write_all(frame)?;
    let mut header = [0; 24];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; usize::from(header[11])];
    stream.read_exact(&mut body)?;
    ensure!((header[0], header[1]) == (0x81, frame[1]), "{header:?}");
    Ok((header[7], body))
}

/// A connection of a daemon that speaks the binary protocol alone.
fn binary_client(setup: &Setup) -> Option<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, setup.port())).ok()?;
    stream.set_read_timeout(Some(REPLY_TIMEOUT)).ok()?;
    ask(&mut stream, &frame(0x0b, b"", b"")).ok().map(|_| stream)
}

fn started(setup: &Setup) -> Result<Process> {
    let mut process = setup.spawn(None)?;
    process.until("answer of sessiond", || binary_client(setup));
    Ok(process)
}

#[test]
fn a_binary_client_logs_in_by_sasl() -> Result<()> {
    let (setup, _) = setup("--sasl-pwdb", "user@host:pass\n")?;
    let setup = setup.arg("-S");
    let _process = started(&setup)?;
    let client = || binary_client(&setup).context("no connection");
    let mut stream = client()?;
    ensure!(ask(&mut stream, &frame(0x20, b"", b""))? == (0, b"PLAIN".to_vec()), "mechanisms");
    let wrong = ask(&mut stream, &frame(0x21, b"PLAIN", b"\0user\0word"))?;
    ensure!(wrong == (0x20, b"Auth failure.".to_vec()), "{wrong:?}");
    let right = ask(&mut stream, &frame(0x21, b"PLAIN", b"\0user\0pass"))?;
    ensure!(right == (0, b"Authenticated".to_vec()), "{right:?}");
    let mut set = frame(0x01, b"\0\0\0\0\0\0\0\0key", b"value");
    (set[3], set[4]) = (3, 8);
    ensure!(ask(&mut stream, &set)?.0 == 0, "set");
    ensure!(ask(&mut stream, &frame(0x00, b"key", b""))?.1.ends_with(b"value"), "get");
    // Before the login every command but two is refused, and the connection ends.
    for opcode in [0x00, 0x04, 0x08, 0x0a, 0x10] {
        let mut stranger = client()?;
        let refused = ask(&mut stranger, &frame(opcode, b"", b""))?;
        ensure!(refused == (0x20, b"Auth failure.".to_vec()), "{opcode:x}: {refused:?}");
        ensure!(stranger.read(&mut [0])? == 0, "{opcode:x}: still open");
    }
    // Text is not spoken at all.
    let mut text = client()?;
    text.write_all(b"version\r\n")?;
    ensure!(text.read(&mut [0])? == 0, "text was answered");
    Ok(())
}

#[test]
fn the_environment_names_the_file_as_it_does_for_memcached() -> Result<()> {
    let setup = Setup::loopback()?.arg("-S");
    let file = setup.scratch().join("users");
    fs::write(&file, "user:pass\n")?;
    let output = setup.command().env_remove("MEMCACHED_SASL_PWDB").output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(64) && text.contains("MEMCACHED_SASL_PWDB"), "{text}");
    let mut command = setup.command();
    command.env("MEMCACHED_SASL_PWDB", &file);
    let mut process = Process::start(&mut command, None, &setup.scratch().join("log"))?;
    let mut stream = process.until("answer of sessiond", || binary_client(&setup));
    let right = ask(&mut stream, &frame(0x21, b"PLAIN", b"\0user\0pass"))?;
    ensure!(right.0 == 0, "{right:?}");
    Ok(())
}

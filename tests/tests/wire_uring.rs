//! The io_uring engine from outside: that it is used or refused as `--io` says, and clients that go
//! while the kernel still works for them. Where io_uring cannot be had the tests are skipped.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use session_daemon::server::uring::probe::probe;
use session_tests::client::Client;
use session_tests::process::Process;
use session_tests::sessiond::{Sessiond, Setup};
use session_tests::{binaries, require_program, require_root, skip, wait};

/// Installs a filter of system calls that refuses `io_uring_setup`, as containers do, and becomes
/// the command that follows.
const WITHOUT_URING: &str = r#"
import ctypes, os, struct, sys
# Load the number; if it is io_uring_setup (425): errno EPERM; else: allow.
words = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
program = b"".join(struct.pack("HBBI", *word) for word in words)
buffer = ctypes.create_string_buffer(program)
prog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(words), ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, prog, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"#;

/// Connections at once in the test of many.
const MANY: usize = 2000;

fn uring() -> Result<Setup> {
    Ok(Setup::loopback()?.arg("--io=uring"))
}

macro_rules! require_uring {
    () => {
        if let Err(lacking) = probe(1) {
            skip!("{lacking}");
        }
    };
}

/// Rings that a process holds.
fn rings(daemon: &Sessiond<'_>) -> Result<usize> {
    let child = daemon.serving()?;
    let mut count = 0;
    for entry in std::fs::read_dir(format!("/proc/{child}/fd"))? {
        let target = std::fs::read_link(entry?.path()).unwrap_or_default();
        count += usize::from(target.to_string_lossy().contains("io_uring"));
    }
    Ok(count)
}

#[test]
fn the_engine_is_the_one_that_was_asked_for() -> Result<()> {
    require_root!();
    require_uring!();
    for (engine, expected) in [("uring", 3), ("auto", 3), ("tokio", 0)] {
        let setup = Setup::loopback()?.arg(format!("--io={engine}")).args(["-t", "3"]);
        let daemon = setup.start(None)?;
        ensure!(daemon.client().set("a", b"1")? == "STORED", "{engine}: not served");
        // Each worker makes its own ring when its thread begins; the first may serve before that.
        wait::until(&format!("{expected} rings under --io={engine}"), || {
            (rings(&daemon).ok()? == expected).then_some(())
        });
    }
    Ok(())
}

/// A daemon that may not have io_uring.
fn without_uring(setup: &Setup) -> Command {
    let mut filtered = Command::new("/usr/bin/python3");
    filtered.args(["-c", WITHOUT_URING]);
    filtered.arg(binaries::sessiond()).args(setup.command().get_args());
    filtered
}

#[test]
fn what_cannot_be_had_is_refused_before_anything_listens() -> Result<()> {
    require_program!("python3");
    require_uring!();
    let setup = uring()?;
    let filtered = without_uring(&setup);
    let mut limited = Command::new("timeout");
    let output =
        limited.arg("20").arg(filtered.get_program()).args(filtered.get_args()).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(71), "{:?}: {text}", output.status);
    ensure!(text.contains("--io=uring: io_uring is not permitted"), "{text}");
    ensure!(!text.contains("serving"), "{text}");
    Ok(())
}

/// Sockets that the serving process's epoll instances watch.
fn watched(daemon: &Sessiond<'_>) -> Result<usize> {
    let child = daemon.serving()?;
    let mut count = 0;
    for entry in std::fs::read_dir(format!("/proc/{child}/fdinfo"))? {
        // Closed since it was listed.
        let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
        count += text.lines().filter(|line| line.starts_with("tfd:")).count();
    }
    Ok(count)
}

#[test]
fn left_to_itself_it_goes_over_when_many_speak_and_back_when_few_do() -> Result<()> {
    const CLIENTS: usize = 64;
    require_root!();
    require_uring!();
    let setup = Setup::loopback()?.args(["--io=auto", "-t", "1"]);
    let daemon = setup.start(None)?;
    let mut streams = (0..CLIENTS).map(|_| daemon.stream()).collect::<Result<Vec<_>>>()?;
    each_speaks(&mut streams)?;
    let before = watched(&daemon)?;
    ensure!(before >= CLIENTS, "epoll watches {before}");
    // Each goes over in the middle of what it says.
    let value = vec![b'v'; 300_000];
    for _ in 0..2 {
        wait::until("epoll to watch few of them", || {
            all_speak(&daemon, &mut streams, &value).expect("right answers");
            (watched(&daemon).ok()? < CLIENTS / 2).then_some(())
        });
        all_speak(&daemon, &mut streams, &value)?;
        wait::until("epoll to watch all of them", || {
            each_speaks(&mut streams).expect("right answers");
            (watched(&daemon).ok()? >= CLIENTS).then_some(())
        });
    }
    all_speak(&daemon, &mut streams, &value)
}

/// One client after the other speaks.
fn each_speaks(streams: &mut [TcpStream]) -> Result<()> {
    for stream in streams {
        stream.write_all(b"version\r\n")?;
        let mut heard = [0; 100];
        let len = stream.read(&mut heard)?;
        ensure!(heard[..len].starts_with(b"VERSION "), "{}", heard[..len].escape_ascii());
    }
    Ok(())
}

/// Large values that one of the clients asks for at once.
const LARGE_ANSWERS: usize = 30;

/// All clients speak at the same time: small things and large ones, half requests.
fn all_speak(daemon: &Sessiond<'_>, streams: &mut [TcpStream], value: &[u8]) -> Result<()> {
    let head = format!("set large 0 0 {}\r\n", value.len());
    let serving = Pid::from_raw(i32::try_from(daemon.serving()?)?);
    for piece in [&b"set a 0 0 1\r\nx\r\nget a\r\nge"[..], b"t none\r\nversi"] {
        // What comes while it stands still is all there when it goes on.
        kill(serving, Signal::SIGSTOP)?;
        for stream in &mut *streams {
            stream.write_all(piece)?;
        }
        kill(serving, Signal::SIGCONT)?;
    }
    let answer = b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\nEND\r\n";
    for stream in &mut *streams {
        let mut heard = [0; 36];
        stream.read_exact(&mut heard[..answer.len()])?;
        ensure!(heard[..answer.len()] == *answer, "{}", heard.escape_ascii());
    }
    for stream in &mut *streams {
        stream.write_all(b"on\r\n")?;
    }
    for stream in &mut *streams {
        let mut heard = [0; 100];
        let len = stream.read(&mut heard)?;
        ensure!(heard[..len].starts_with(b"VERSION "), "{}", heard[..len].escape_ascii());
    }
    let [first, second, ..] = streams else { anyhow::bail!("too few") };
    first.write_all(&[head.as_bytes(), value, b"\r\n"].concat())?;
    let mut stored = [0; b"STORED\r\n".len()];
    first.read_exact(&mut stored)?;
    // More than the sockets take: some of it waits for the client.
    second.write_all("get large\r\n".repeat(LARGE_ANSWERS).as_bytes())?;
    let expected =
        [format!("VALUE large 0 {}\r\n", value.len()).as_bytes(), value, b"\r\nEND\r\n"].concat();
    let mut heard = vec![0; expected.len()];
    for round in 0..LARGE_ANSWERS {
        second.read_exact(&mut heard)?;
        ensure!(heard == expected, "{round}: another value");
    }
    Ok(())
}

#[test]
fn left_to_itself_it_does_without_and_says_why() -> Result<()> {
    require_program!("python3");
    require_uring!();
    let setup = Setup::loopback()?.args(["--io=auto", "-v", "-t", "1"]);
    let log = setup.scratch().join("log");
    let mut process = Process::start(&mut without_uring(&setup), None, &log)?;
    process.until("a client to be served", || {
        let mut client = Client::connect(Ipv4Addr::LOCALHOST.into(), setup.port()).ok()?;
        client.set("a", b"value").ok().filter(|answer| answer == "STORED")
    });
    let text = std::fs::read_to_string(log)?;
    let reason = "clients are served by way of epoll: io_uring is not permitted";
    ensure!(text.contains(reason), "{text}");
    Ok(())
}

#[test]
fn nobody_waits_for_a_client_that_never_rests() -> Result<()> {
    require_uring!();
    let setup = uring()?.args(["-t", "1"]);
    let daemon = setup.start(None)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut restless = daemon.client();
    let talk = {
        let is_over = Arc::clone(&is_over);
        thread::spawn(move || -> Result<u32> {
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                ensure!(restless.command("version")?.starts_with("VERSION"), "no version");
                count += 1;
            }
            Ok(count)
        })
    };
    // Accepting is the runtime's, and so is what another thread asks of a worker.
    for round in 0..60 {
        let key = format!("key{round}");
        ensure!(daemon.client().set(&key, b"value")? == "STORED", "{round}: not stored");
        if round % 20 == 10 {
            ensure!(daemon.ctl(&["admin", "verbosity", "0"])?.contains("OK"), "{round}: not heard");
        }
    }
    // Its timers too: the clock of a worker goes on, and what has a lifetime ends.
    let mut client = daemon.client();
    client.command("set short 0 1 1\r\nx")?;
    wait::until("an item to end", || client.get("short").ok()?.is_none().then_some(()));
    is_over.store(true, Ordering::Relaxed);
    let count = talk.join().expect("no panic")?;
    ensure!(count > 0, "it was never answered");
    Ok(())
}

#[test]
fn thousands_of_connections_are_served_and_let_go() -> Result<()> {
    require_uring!();
    let setup = uring()?.args(["-c", "4000", "-t", "2"]);
    let daemon = setup.start(None)?;
    daemon.client().set("a", b"value")?;
    let mut streams = (0..MANY).map(|_| daemon.stream()).collect::<Result<Vec<_>>>()?;
    for _ in 0..3 {
        for stream in &mut streams {
            stream.write_all(b"get a\r\nget none\r\n")?;
        }
        for stream in &mut streams {
            let mut reply = [0; b"VALUE a 0 5\r\nvalue\r\nEND\r\nEND\r\n".len()];
            stream.read_exact(&mut reply)?;
            ensure!(
                &reply == b"VALUE a 0 5\r\nvalue\r\nEND\r\nEND\r\n",
                "{}",
                reply.escape_ascii()
            );
        }
    }
    drop(streams);
    wait::until("all let go", || {
        let stats = daemon.client().stats("").ok()?;
        // Who asks is one, and memcached's own count begins with the listening socket.
        (stats.get("curr_connections")?.parse::<u32>().ok()? <= 3).then_some(())
    });
    Ok(())
}

#[test]
fn clients_that_go_while_the_kernel_works_for_them_harm_nobody() -> Result<()> {
    require_uring!();
    let setup = uring()?.args(["-t", "1"]);
    let daemon = setup.start(None)?;
    let value = vec![b'v'; 900_000];
    daemon.client().set("large", &value)?;
    for round in 0..60 {
        let mut stream = daemon.stream()?;
        match round % 4 {
            // An answer that does not fit is under way, and a receive.
            0 => stream.write_all("get large\r\n".repeat(20).as_bytes())?,
            // Half a value is there.
            1 => stream.write_all(b"set half 0 0 500000\r\nabc")?,
            // The end comes with the request.
            2 => {
                stream.write_all(b"get large\r\n")?;
                stream.shutdown(Shutdown::Write)?;
            }
            _ => stream.write_all(b"get a")?,
        }
        if round % 8 < 4 {
            // With unread bytes this is a reset.
            drop(stream);
        } else {
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(5));
                drop(stream);
            });
        }
        let read = daemon.client().get("large")?;
        ensure!(read.as_ref() == Some(&value), "round {round}: another value");
    }
    Ok(())
}

#[test]
fn a_client_that_has_said_everything_still_gets_its_answers() -> Result<()> {
    require_uring!();
    let setup = uring()?;
    let daemon = setup.start(None)?;
    let value = vec![b'v'; 700_000];
    daemon.client().set("large", &value)?;
    let mut stream = daemon.stream()?;
    stream.write_all("get large\r\n".repeat(9).as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let expected = 9 * (value.len() + b"VALUE large 0 700000\r\n\r\nEND\r\n".len());
    ensure!(all.len() == expected, "{} of {expected} bytes", all.len());
    Ok(())
}

#[test]
fn large_values_arrive_however_they_are_cut() -> Result<()> {
    require_uring!();
    let setup = uring()?;
    let daemon = setup.start(None)?;
    let value: Vec<u8> = (0..=250).cycle().take(1_000_000).collect();
    let request = [b"set large 0 0 1000000\r\n", value.as_slice(), b"\r\n"].concat();
    for piece_len in [1_000_100, 65_537, 65_536, 7_777] {
        let mut client = daemon.client();
        client.command("delete large")?;
        for piece in request.chunks(piece_len) {
            client.send(piece)?;
            if piece_len < 65_537 {
                thread::yield_now();
            }
        }
        ensure!(client.line()? == "STORED", "{piece_len}: not stored");
        ensure!(client.get("large")?.as_ref() == Some(&value), "{piece_len}: another value");
    }
    Ok(())
}

#[test]
fn a_killed_daemon_starts_again_with_its_items() -> Result<()> {
    require_uring!();
    require_root!();
    let setup = uring()?;
    let file = setup.scratch().mount_tmpfs(128)?.join("store");
    let setup = setup.arg("-e").arg(file);
    let daemon = setup.start(None)?;
    let streams = (0..50).map(|_| daemon.stream()).collect::<Result<Vec<_>>>()?;
    ensure!(daemon.client().set("kept", b"yes")? == "STORED", "not stored");
    daemon.process.signal(Signal::SIGKILL);
    for mut stream in streams {
        // The end, or a reset.
        ensure!(stream.read(&mut [0]).unwrap_or(0) == 0, "an answer to nothing");
    }
    drop(daemon);
    let daemon = setup.start(None)?;
    ensure!(daemon.client().get("kept")? == Some(b"yes".to_vec()), "lost");
    Ok(())
}

#[test]
fn an_upgrade_keeps_connections_and_what_they_have_half_said() -> Result<()> {
    require_uring!();
    let setup = uring()?.args(["-m", "64"]);
    let daemon = setup.start(None)?;
    ensure!(daemon.client().set("key", b"value")? == "STORED", "not stored");
    let (mut silent, mut text, mut binary) = (daemon.client(), daemon.client(), daemon.client());
    ensure!(silent.set("other", b"value")? == "STORED", "not stored");
    let noop = [&[0x80, 0x0a][..], &[0; 22]].concat();
    for round in 0..2 {
        text.send(b"get k")?;
        binary.send(&noop[..10])?;
        daemon.ctl(&["upgrade"])?;
        text.send(b"ey\r\n")?;
        let answer = b"VALUE key 0 5\r\nvalue\r\nEND\r\n";
        ensure!(text.exactly(answer.len())? == answer, "round {round}: another answer");
        binary.send(&noop[10..])?;
        ensure!(binary.exactly(24)?[..2] == [0x81, 0x0a], "round {round}: another answer");
        ensure!(silent.set("other", b"again")? == "STORED", "round {round}: not stored");
    }
    Ok(())
}

#[test]
fn an_upgrade_keeps_who_has_not_read_its_answers() -> Result<()> {
    require_uring!();
    let setup = uring()?.args(["-m", "64"]);
    let daemon = setup.start(None)?;
    let value: Vec<u8> = (0..=250).cycle().take(900_000).collect();
    ensure!(daemon.client().set("large", &value)? == "STORED", "not stored");
    let answer = [b"VALUE large 0 900000\r\n", value.as_slice(), b"\r\nEND\r\n"].concat();
    let mut slow = daemon.stream()?;
    // Far more than the sockets take.
    slow.write_all("get large\r\n".repeat(20).as_bytes())?;
    daemon.ctl(&["upgrade"])?;
    slow.write_all(b"version\r\n")?;
    let mut heard = vec![0; answer.len()];
    for round in 0..20 {
        slow.read_exact(&mut heard)?;
        ensure!(heard == answer, "{round}: another answer");
    }
    let len = slow.read(&mut heard)?;
    ensure!(heard[..len].starts_with(b"VERSION "), "{}", heard[..len].escape_ascii());
    Ok(())
}

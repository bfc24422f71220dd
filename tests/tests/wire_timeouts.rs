//! Clients that stop half-way: with a request, with reading, or with everything.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use session_tests::client::{Client, REPLY_TIMEOUT};
use session_tests::sessiond::Setup;
use session_tests::wait;

fn stat(client: &mut Client, topic: &str, name: &str) -> Option<u64> {
    client.stats(topic).ok()?.get(name)?.parse().ok()
}

/// Reads to the end, which a reset is too. How many bytes came.
fn drain(stream: &mut TcpStream) -> Result<usize> {
    let mut total = 0;
    let mut bytes = vec![0; 64 << 10];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(total),
            Ok(len) => total += len,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(total),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn a_client_that_does_not_read_is_closed_after_the_write_timeout() -> Result<()> {
    let setup = Setup::loopback()?.arg("--write-timeout=1");
    let daemon = setup.start(None)?;
    let mut observer = daemon.client();
    observer.set("large", &vec![b'v'; 1_000_000])?;
    let mut stream = daemon.stream()?;
    stream.write_all("get large\r\n".repeat(50).as_bytes())?;
    wait::until("a client that was closed", || {
        (stat(&mut observer, "guard", "write_kicks")? == 1).then_some(())
    });
    let total = drain(&mut stream)?;
    ensure!(total < 50 * 1_000_000, "all {total} bytes came");
    ensure!(observer.get("none")?.is_none(), "another client was closed too");
    Ok(())
}

#[test]
fn a_slow_reader_that_reads_is_not_closed() -> Result<()> {
    let setup = Setup::loopback()?.arg("--write-timeout=2");
    let daemon = setup.start(None)?;
    let value = vec![b'v'; 1_000_000];
    daemon.client().set("large", &value)?;
    let mut stream = daemon.stream()?;
    stream.write_all("get large\r\n".repeat(30).as_bytes())?;
    let expected = 30 * (value.len() + "VALUE large 0 1000000\r\n\r\nEND\r\n".len());
    let (start, mut total, mut bytes) = (Instant::now(), 0, vec![0; 1 << 20]);
    while total < expected {
        // Far more time in all than the time-out, but never so long without a byte.
        std::thread::sleep(Duration::from_millis(100));
        total += stream.read(&mut bytes)?;
    }
    ensure!(total == expected, "{total} of {expected} bytes");
    ensure!(start.elapsed() > Duration::from_secs(2), "not slow");
    Ok(())
}

#[test]
fn a_request_that_stays_half_sent_is_closed_after_the_read_timeout() -> Result<()> {
    let setup = Setup::loopback()?.arg("--read-timeout=1");
    let daemon = setup.start(None)?;
    let mut observer = daemon.client();
    let mut idle = daemon.client();
    ensure!(idle.command("version")?.starts_with("VERSION"), "not served");
    let binary_set = b"\x80\x01\0\x03\x08\0\0\0\0\0\x27\x10";
    let halves: [&[u8]; 5] = [
        b"get a",
        b"set a 0 0 10\r\nabc",
        b"set a 0 0 1000000\r\nabc",
        b"set bad flags 0 100\r\nabc",
        binary_set,
    ];
    let mut streams = Vec::new();
    for half in halves {
        let mut stream = daemon.stream()?;
        stream.write_all(half)?;
        streams.push(stream);
    }
    for (half, stream) in halves.iter().zip(&mut streams) {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest)?;
        let expected: &[u8] = if half.starts_with(b"set bad") {
            b"CLIENT_ERROR bad command line format\r\n"
        } else {
            b""
        };
        ensure!(rest == expected, "{}: {}", half.escape_ascii(), rest.escape_ascii());
    }
    wait::until("five in the counters", || {
        (stat(&mut observer, "guard", "read_kicks")? == 5).then_some(())
    });
    ensure!(idle.command("version")?.starts_with("VERSION"), "who asks nothing was closed too");
    ensure!(observer.get("a")?.is_none(), "half a value was stored");
    Ok(())
}

#[test]
fn a_request_that_comes_byte_by_byte_is_closed_all_the_same() -> Result<()> {
    let setup = Setup::loopback()?.arg("--read-timeout=2");
    let daemon = setup.start(None)?;
    let mut steady = daemon.client();
    let mut slow = daemon.stream()?;
    let start = Instant::now();
    // Never silent for as long as the time-out, and never done.
    while slow.write_all(b"k").is_ok() {
        ensure!(start.elapsed() < REPLY_TIMEOUT, "a client that sends bytes one by one is served");
        ensure!(steady.command("version")?.starts_with("VERSION"), "who asks was closed too");
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(start.elapsed() >= Duration::from_secs(1), "closed after {:?}", start.elapsed());
    ensure!(stat(&mut steady, "guard", "read_kicks") == Some(1), "not counted");
    Ok(())
}

#[test]
fn an_idle_client_is_closed_where_that_was_asked_for() -> Result<()> {
    let setup = Setup::loopback()?.args(["-o", "idle_timeout=2"]);
    let daemon = setup.start(None)?;
    let mut idle = daemon.client();
    let mut busy = daemon.client();
    ensure!(idle.command("version")?.starts_with("VERSION"), "not served");
    let start = Instant::now();
    while stat(&mut busy, "", "idle_kicks") != Some(1) {
        ensure!(start.elapsed() < REPLY_TIMEOUT, "not closed");
        std::thread::sleep(Duration::from_millis(50));
    }
    idle.closed()?;
    ensure!(start.elapsed() >= Duration::from_secs(1), "closed after {:?}", start.elapsed());
    ensure!(busy.command("version")?.starts_with("VERSION"), "who asks was closed too");
    Ok(())
}

//! What a client can take from the server is bounded: lines, memory, connections.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use session_tests::client::Client;
use session_tests::sessiond::{Sessiond, Setup};
use session_tests::wait;

/// Bytes in memory of the process that serves.
fn resident(client: &mut Client) -> Result<u64> {
    let stats = client.stats("")?;
    let statm = fs::read_to_string(format!("/proc/{}/statm", stats["pid"]))?;
    let pages: u64 = statm.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}

fn connect(daemon: &Sessiond<'_>) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, daemon.setup.port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

#[test]
fn an_endless_line_is_closed_in_bounded_memory() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut observer = daemon.client();
    let before = resident(&mut observer)?;
    let keys = format!("{} ", "k".repeat(249));
    for (start, filler) in [("get ", "k"), ("gets ", &keys), ("set ", "k"), ("", " ")] {
        let mut stream = connect(&daemon)?;
        stream.write_all(start.as_bytes())?;
        let block = filler.repeat((1 << 20) / filler.len());
        let mut sent = 0;
        while sent < 100 << 20 && stream.write_all(block.as_bytes()).is_ok() {
            sent += block.len();
        }
        ensure!(sent < 64 << 20, "{sent} bytes of {:?} were taken", &filler[..1]);
    }
    let grown = resident(&mut observer)?.saturating_sub(before);
    ensure!(grown < 8 << 20, "grown by {grown} bytes");
    Ok(())
}

#[test]
fn seventy_thousand_keys_are_all_answered() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    client.set("here", b"value")?;
    client.send(format!("get{}\r\n", " here".repeat(70_000)).as_bytes())?;
    let expected = format!("{}END\r\n", "VALUE here 0 5\r\nvalue\r\n".repeat(70_000));
    ensure!(client.exactly(expected.len())? == expected.as_bytes(), "another answer");
    ensure!(client.command("version")?.starts_with("VERSION"), "bytes were left over");
    Ok(())
}

#[test]
fn half_sent_values_do_not_take_the_cache() -> Result<()> {
    let setup = Setup::loopback()?.args(["-m", "64"]);
    let daemon = setup.start(None)?;
    let mut other = daemon.client();
    let before = resident(&mut other)?;
    let mut slow = Vec::new();
    for idx in 0..200 {
        let mut stream = connect(&daemon)?;
        write!(stream, "set slow{idx} 0 0 1000000\r\n{}", "x".repeat(24))?;
        slow.push(stream);
    }
    let value = vec![b'v'; 900_000];
    for idx in 0..20 {
        ensure!(other.set(&format!("big{idx}"), &value)? == "STORED", "value {idx}");
    }
    for idx in 0..20 {
        ensure!(other.get(&format!("big{idx}"))? == Some(value.clone()), "value {idx} is gone");
    }
    let grown = resident(&mut other)?.saturating_sub(before);
    ensure!(grown < 50 << 20, "grown by {grown} bytes, of which 18 MB are values");
    // A slow client that goes on is still served.
    let stream = slow.first_mut().context("a slow client")?;
    stream.write_all(&vec![b'x'; 1_000_000 - 24])?;
    stream.write_all(b"\r\n")?;
    let mut reply = [0; 8];
    stream.read_exact(&mut reply)?;
    ensure!(&reply == b"STORED\r\n", "{}", reply.escape_ascii());
    Ok(())
}

#[test]
fn idle_connections_cost_less_than_a_page() -> Result<()> {
    const COUNT: u64 = 1000;
    let setup = Setup::loopback()?.args(["-c", "2048", "-t", "2"]);
    let daemon = setup.start(None)?;
    let mut observer = daemon.client();
    let before = resident(&mut observer)?;
    let mut idle = Vec::new();
    for _ in 0..COUNT {
        let mut client = daemon.client();
        client.command("version")?;
        idle.push(client);
    }
    let each = resident(&mut observer)?.saturating_sub(before) / COUNT;
    ensure!(each < 4096, "{each} bytes each");
    Ok(())
}

#[test]
fn a_client_that_does_not_read_is_bounded() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut observer = daemon.client();
    let value = vec![b'v'; 1_000_000];
    observer.set("large", &value)?;
    let before = resident(&mut observer)?;
    let mut stream = connect(&daemon)?;
    stream.write_all("get large\r\n".repeat(200).as_bytes())?;
    // Others are served meanwhile.
    for _ in 0..100 {
        ensure!(observer.get("none")?.is_none(), "a value came from nowhere");
    }
    let grown = resident(&mut observer)?.saturating_sub(before);
    ensure!(grown < 8 << 20, "grown by {grown} bytes");
    let expected = [&b"VALUE large 0 1000000\r\n"[..], &value, b"\r\nEND\r\n"].concat();
    let mut reply = vec![0; expected.len()];
    for idx in 0..200 {
        stream.read_exact(&mut reply)?;
        ensure!(reply == expected, "reply {idx} differs");
    }
    Ok(())
}

#[test]
fn a_connection_too_many_is_told_so() -> Result<()> {
    let setup = Setup::loopback()?.args(["-c", "10"]);
    let daemon = setup.start(None)?;
    let mut open: Vec<Client> = Vec::new();
    // The connection that found the port open may still hold its place.
    wait::until("ten places", || {
        let mut client = daemon.client();
        let served = client.command("version").is_ok_and(|line| line.starts_with("VERSION"));
        if served {
            open.push(client);
        }
        (open.len() == 10).then_some(())
    });
    let mut refused = connect(&daemon)?;
    let mut text = String::new();
    refused.read_to_string(&mut text)?;
    ensure!(text == "ERROR Too many open connections\r\n", "{text:?}");
    let stats = open.first_mut().context("a client")?.stats("")?;
    ensure!(stats["curr_connections"] == "10", "{:?}", stats["curr_connections"]);
    ensure!(stats["rejected_connections"].parse::<u64>()? >= 1, "not counted");
    open.clear();
    wait::until("a place", || {
        daemon
            .client()
            .command("version")
            .is_ok_and(|line| line.starts_with("VERSION"))
            .then_some(())
    });
    Ok(())
}

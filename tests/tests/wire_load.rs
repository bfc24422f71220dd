//! Many requests at once: order, counts, and clients that wait for nothing.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use session_tests::sessiond::Setup;

#[test]
fn ten_thousand_pipelined_requests_are_answered_in_order() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, setup.port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut requests = b"set n 0 0 1\r\n0\r\n".to_vec();
    for idx in 0..5000 {
        requests.extend_from_slice(format!("incr n 1\r\nget n none{idx}\r\n").as_bytes());
    }
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || writer.write_all(&requests));
    let mut lines = BufReader::new(&mut stream).lines();
    let mut next = || lines.next().unwrap_or_else(|| Ok(String::from("<closed>")));
    ensure!(next()? == "STORED", "no STORED");
    for count in 1..=5000u32 {
        let text = count.to_string();
        ensure!(next()? == text, "incr {count}");
        ensure!(next()? == format!("VALUE n 0 {}", text.len()), "get {count}");
        ensure!(next()? == text, "value {count}");
        ensure!(next()? == "END", "end {count}");
    }
    sender.join().expect("the sender does not panic")?;
    let stats = daemon.client().stats("")?;
    ensure!(stats["conn_yields"].parse::<u64>()? > 0, "one client had all turns");
    Ok(())
}

#[test]
fn no_update_is_lost() -> Result<()> {
    const CLIENTS: u64 = 4;
    const EACH: u64 = 3000;
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    daemon.client().set("n", b"0")?;
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = daemon.client();
                for _ in 0..EACH {
                    client
                        .command("incr n 1")
                        .expect("an answer")
                        .parse::<u64>()
                        .expect("a number");
                }
            });
        }
    });
    let value = daemon.client().get("n")?;
    ensure!(value == Some((CLIENTS * EACH).to_string().into_bytes()), "{value:?}");
    Ok(())
}

/// A PHP session handler sends three small requests in three calls, without TCP_NODELAY: each
/// has to be answered at once, or the client's delayed ACK costs 40 ms a request.
#[test]
fn clients_with_nagle_are_not_kept_waiting() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut times = Vec::new();
    for round in 0..40 {
        let mut client = daemon.client();
        client.socket().set_nodelay(false)?;
        let start = Instant::now();
        client.send(format!("incr lock{round} 1\r\n").as_bytes())?;
        client.send(format!("add lock{round} 768 15 1\r\n1\r\n").as_bytes())?;
        client.send(format!("get session{round}\r\n").as_bytes())?;
        for expected in ["NOT_FOUND", "STORED", "END"] {
            ensure!(client.line()? == expected, "no {expected}");
        }
        times.push(start.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2];
    ensure!(median < Duration::from_millis(30), "{median:?} for three requests");
    Ok(())
}

#[test]
fn statistics_are_true() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    client.command("stats reset")?;
    client.set("a", b"1")?;
    client.set("large", &vec![b'x'; 2 << 20])?;
    client.get("a")?;
    client.get("none")?;
    for line in ["incr a 1", "incr none 1", "decr a 1", "decr none 1", "touch a 0", "touch none 0"]
    {
        client.command(line)?;
    }
    client.send(b"cas a 0 0 1 1\r\nx\r\ncas none 0 0 1 1\r\nx\r\n")?;
    ensure!(client.line()? == "EXISTS" && client.line()? == "NOT_FOUND", "cas");
    for line in ["delete a", "delete a", "flush_all"] {
        client.command(line)?;
    }
    let stats = client.stats("")?;
    let expected = [
        ("cmd_get", "2"),
        ("get_hits", "1"),
        ("get_misses", "1"),
        ("cmd_set", "3"),
        ("incr_hits", "1"),
        ("incr_misses", "1"),
        ("decr_hits", "1"),
        ("decr_misses", "1"),
        ("cmd_touch", "2"),
        ("touch_hits", "1"),
        ("touch_misses", "1"),
        ("cas_badval", "1"),
        ("cas_misses", "1"),
        ("cas_hits", "0"),
        ("delete_hits", "1"),
        ("delete_misses", "1"),
        ("cmd_flush", "1"),
        ("store_too_large", "1"),
        ("curr_items", "0"),
    ];
    for (name, value) in expected {
        ensure!(
            stats.get(name).map(String::as_str) == Some(value),
            "{name} is {:?}",
            stats.get(name)
        );
    }
    Ok(())
}

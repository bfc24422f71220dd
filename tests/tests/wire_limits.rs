//! What a client can take from the server is bounded: lines, memory, connections.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use session_tests::client::Client;
use session_tests::sessiond::{Sessiond, Setup};
use session_tests::wait;

/// Bytes in memory of the process that serves.
fn resident(daemon: &Sessiond<'_>) -> Result<u64> {
    let statm = fs::read_to_string(format!("/proc/{}/statm", daemon.serving()?))?;
    let pages: u64 = statm.split(' ').nth(1).context("statm")?.parse()?;
    Ok(pages * 4096)
}

#[test]
fn an_endless_line_is_closed_in_bounded_memory() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    daemon.client().command("version")?;
    let before = resident(&daemon)?;
    let keys = format!("{} ", "k".repeat(249));
    for (start, filler) in [("get ", "k"), ("gets ", &keys), ("set ", "k"), ("", " ")] {
        let mut stream = daemon.stream()?;
        stream.write_all(start.as_bytes())?;
        let block = filler.repeat((1 << 20) / filler.len());
        let mut sent = 0;
        while sent < 100 << 20 && stream.write_all(block.as_bytes()).is_ok() {
            sent += block.len();
        }
        ensure!(sent < 64 << 20, "{sent} bytes of {:?} were taken", &filler[..1]);
    }
    let grown = resident(&daemon)?.saturating_sub(before);
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
    let before = resident(&daemon)?;
    let mut slow = Vec::new();
    for idx in 0..200 {
        let mut stream = daemon.stream()?;
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
    let grown = resident(&daemon)?.saturating_sub(before);
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
    for engine in engines() {
        let setup = Setup::loopback()?.args(["-c", "2048", "-t", "2"]);
        let setup = setup.arg(format!("--io={engine}"));
        let daemon = setup.start(None)?;
        daemon.client().command("version")?;
        let before = resident(&daemon)?;
        let mut idle = Vec::new();
        for _ in 0..COUNT {
            let mut client = daemon.client();
            client.command("version")?;
            idle.push(client);
        }
        let each = resident(&daemon)?.saturating_sub(before) / COUNT;
        ensure!(each < 4096, "--io={engine}: {each} bytes each");
    }
    Ok(())
}

/// The engines that this machine has.
fn engines() -> Vec<&'static str> {
    if session_daemon::server::uring::probe::probe(1).is_ok() {
        return vec!["tokio", "uring"];
    }
    eprintln!("no io_uring here");
    vec!["tokio"]
}

#[test]
fn a_client_that_does_not_read_is_bounded() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut observer = daemon.client();
    let value = vec![b'v'; 1_000_000];
    observer.set("large", &value)?;
    let before = resident(&daemon)?;
    let mut stream = daemon.stream()?;
    stream.write_all("get large\r\n".repeat(200).as_bytes())?;
    // Others are served meanwhile.
    for _ in 0..100 {
        ensure!(observer.get("none")?.is_none(), "a value came from nowhere");
    }
    let grown = resident(&daemon)?.saturating_sub(before);
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
    let mut refused = daemon.stream()?;
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

#[test]
fn a_connection_too_many_waits_where_that_was_asked_for() -> Result<()> {
    let setup = Setup::loopback()?.args(["-c", "3", "-t", "2", "-o", "no_maxconns_fast"]);
    let daemon = setup.start(None)?;
    let mut open: Vec<Client> = Vec::new();
    wait::until("three places", || {
        let mut client = daemon.client();
        client.socket().set_read_timeout(Some(Duration::from_millis(300))).ok()?;
        if client.command("version").is_ok_and(|line| line.starts_with("VERSION")) {
            open.push(client);
        }
        (open.len() == 3).then_some(())
    });
    // The kernel accepts it; the daemon leaves it waiting, and says nothing.
    let mut waiting = daemon.stream()?;
    waiting.write_all(b"version\r\n")?;
    waiting.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut reply = [0; 16];
    let early = waiting.read(&mut reply);
    ensure!(early.as_ref().is_err_and(session_tests::client::is_timeout), "{early:?}");
    let client = open.first_mut().context("a client")?;
    let stats = client.stats("")?;
    ensure!(stats["curr_connections"] == "3", "{:?}", stats["curr_connections"]);
    ensure!(!stats.contains_key("rejected_connections"), "memcached has no such name then");
    open.pop();
    waiting.set_read_timeout(Some(Duration::from_secs(10)))?;
    waiting.read_exact(&mut reply)?;
    ensure!(&reply == b"VERSION 1.6.45\r\n", "{}", reply.escape_ascii());
    Ok(())
}

#[test]
fn whoever_is_closed_while_sending_is_told_why() -> Result<()> {
    let value = vec![b'v'; 2 << 20];
    let line = format!("set k 0 0 {}x\r\n", value.len());
    let told = "CLIENT_ERROR bad command line format\r\n";
    for engine in engines() {
        let setup = Setup::loopback()?.arg(format!("--io={engine}"));
        let daemon = setup.start(None)?;
        let mut observer = daemon.client();
        for _ in 0..20 {
            let mut stream = daemon.stream()?;
            stream.write_all(line.as_bytes())?;
            stream.write_all(&value).context("the value is passed over")?;
            stream.write_all(b"\r\nget smuggled\r\n")?;
            let mut replies = String::new();
            stream.read_to_string(&mut replies).context("no reset")?;
            ensure!(replies == told, "{replies:?}");
        }
        // Who goes on for ever is not listened to for ever.
        let mut stream = daemon.stream()?;
        stream.write_all(line.as_bytes())?;
        let mut sent = 0;
        while sent < 64 << 20 && stream.write_all(&value).is_ok() {
            sent += value.len();
        }
        ensure!(sent < 64 << 20, "{sent} bytes were passed over");
        wait::until("no connection but one", || {
            (observer.stats("").ok()?["curr_connections"] == "1").then_some(())
        });
    }
    Ok(())
}

/// What the process that serves has used of the processors, in clock ticks.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("stat")?;
    let field = |idx: usize| fields.split_whitespace().nth(idx).context("stat");
    Ok(field(11)?.parse::<u64>()? + field(12)?.parse::<u64>()?)
}

#[test]
fn without_descriptors_it_waits_for_some_and_serves_the_others() -> Result<()> {
    // Another user's limits are for those with CAP_SYS_RESOURCE, which a container's root lacks.
    let user: &[&str] = if session_tests::skip::is_root() { &["-u", "root"] } else { &[] };
    let setup = Setup::loopback()?.args(user);
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    // A worker answers before all have opened what they keep; sessionctl hears of it afterwards.
    wait::until("the end of the start", || daemon.ctl(&["status"]).ok());
    let pid = daemon.serving()?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    let process = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let hard = files.and_then(|files| files.split_whitespace().nth(1)).context("limits")?;
    let hard: u64 = hard.parse()?;
    let limit = |number| rustix::process::Rlimit { current: Some(number), maximum: Some(hard) };
    let nofile = rustix::process::Resource::Nofile;
    let before = rustix::process::prlimit(Some(process), nofile, limit(descriptors + 5))?;
    let mut others = (0..30).map(|_| daemon.stream()).collect::<Result<Vec<_>>>()?;
    wait::until("an accept that failed", || {
        (client.stats("").ok()?["listen_disabled_num"].parse::<u64>().ok()? > 0).then_some(())
    });
    // Who is served stays so, and the failure is not asked for again and again.
    let ticks = cpu_ticks(pid)?;
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        ensure!(client.get("none")?.is_none(), "a value came from nowhere");
    }
    let used = cpu_ticks(pid)? - ticks;
    ensure!(used < 30, "{used} hundredths of a second of a processor in one second");
    rustix::process::prlimit(Some(process), nofile, before)?;
    for other in &mut others {
        other.write_all(b"version\r\n")?;
        let mut reply = [0; 16];
        other.read_exact(&mut reply)?;
        ensure!(&reply == b"VERSION 1.6.45\r\n", "{}", reply.escape_ascii());
    }
    Ok(())
}

#[test]
fn all_connections_together_keep_no_more_than_the_limit() -> Result<()> {
    let setup = Setup::loopback()?.arg("--buffer-limit=1");
    let daemon = setup.start(None)?;
    let mut observer = daemon.client();
    // Half a list of keys that could go on: 1900 bytes each, which 551 clients may leave.
    let half = format!("delete {}", "k".repeat(1893));
    let mut halves = Vec::new();
    for _ in 0..600 {
        let mut stream = daemon.stream()?;
        stream.write_all(half.as_bytes())?;
        halves.push(stream);
    }
    // All that is on its way has come when no more are refused.
    let mut before = 0;
    wait::until("clients that were refused", || {
        std::thread::sleep(Duration::from_millis(200));
        let refused = observer.stats("").ok()?["read_buf_oom"].parse::<u64>().ok()?;
        (refused >= 40 && refused == std::mem::replace(&mut before, refused)).then_some(())
    });
    let stats = observer.stats("")?;
    let refused: usize = stats["read_buf_oom"].parse()?;
    ensure!(stats["read_buf_bytes"].parse::<u64>()? <= 1 << 20, "{}", stats["read_buf_bytes"]);
    let mut told = 0;
    for stream in &mut halves {
        stream.set_nonblocking(true)?;
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        told += usize::from(text == "SERVER_ERROR out of memory reading request\r\n");
    }
    ensure!(told == refused && refused < 100, "{told} were told, {refused} counted");
    drop(halves);
    wait::until("nothing that is kept", || {
        (observer.stats("").ok()?["read_buf_bytes"] == "0").then_some(())
    });
    // The same for answers: of thirty clients that do not read theirs only a few fit. What the
    // kernel took of a value is not kept, so each keeps another part of 500 kB.
    observer.set("large", &vec![b'v'; 500_000])?;
    let mut deaf = Vec::new();
    for _ in 0..30 {
        let mut stream = daemon.stream()?;
        stream.write_all("get large\r\n".repeat(40).as_bytes())?;
        deaf.push(stream);
    }
    wait::until("clients that were closed", || {
        let stats = observer.stats("").ok()?;
        let kept: u64 = stats["read_buf_bytes"].parse().ok()?;
        assert!(kept <= 1 << 20, "{kept} bytes are kept");
        (stats["response_obj_oom"].parse::<u64>().ok()? >= 15).then_some(())
    });
    ensure!(observer.get("large")?.is_some_and(|value| value.len() == 500_000), "not served");
    Ok(())
}

//! What has brought caches down elsewhere: each is answered or closed over, and the process that
//! serves goes on, with every value right. What wrong lengths and numbers do is the business of
//! tests/scripts; what half-sent requests cost, of `wire_limits`.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::thread;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use session_tests::client::Client;
use session_tests::frame;
use session_tests::sessiond::{Sessiond, Setup};

/// Sends something, says that nothing follows, and reads what comes until the server closes.
fn say(daemon: &Sessiond<'_>, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = daemon.stream()?;
    let mut reader = stream.try_clone()?;
    let replies = thread::spawn(move || {
        let mut replies = Vec::new();
        // A reset is an end too.
        let _ = reader.read_to_end(&mut replies);
        replies
    });
    // Closed in the middle is closed.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    replies.join().map_err(|_| anyhow::anyhow!("reading"))
}

/// A well-behaved client: what it stores it gets, whatever the others do.
fn canary(client: &mut Client, round: usize) -> Result<()> {
    let value = format!("value {round}").into_bytes();
    ensure!(client.set("canary", &value)? == "STORED", "round {round}");
    ensure!(client.get("canary")? == Some(value), "round {round}");
    Ok(())
}

#[test]
fn what_ended_other_servers_is_answered_or_closed_over() -> Result<()> {
    let setup = Setup::loopback()?.args(["-t", "2"]);
    let daemon = setup.start(None)?;
    let pid = daemon.serving()?;
    let mut client = daemon.client();
    let mut watcher = daemon.client();
    ensure!(watcher.command("watch fetchers mutations evictions deletions")? == "OK", "watch");
    let large = vec![b'v'; 1_100_000];
    let set = |opcode| frame::plain(opcode, &[0; 8], b"large", &large, 7);
    let leases = "mg lease N30 k O1 v q\r\nms lease x\r\nms lease 1 MX\r\n1\r\nmd lease !\r\n";
    let forms: Vec<Vec<u8>> = vec![
        // A value that is too large while somebody watches what is stored.
        [set(0x01), set(0x11), frame::plain(0x0e, &[], b"large", &large, 7)].concat(),
        // Pages and windows that cannot be.
        b"slabs reassign -2147483648 1\r\nslabs reassign 1 -1\r\nslabs reassign 255 255\r\n".into(),
        b"slabs automove window 0\r\nslabs automove window -5\r\nslabs automove ratio -1\r\n"
            .into(),
        b"lru mode\r\nlru temp_ttl\r\nlru tune\r\nlru_crawler crawl ,\r\n".into(),
        // Lines of nothing, and of blanks to the end of the buffer.
        b"\r\n\n \r\n".repeat(5_000),
        [&[b' '; 2_046][..], b"\r\n"].concat(),
        b"mg  \r\nms  \r\nme \r\nmn x\r\n".into(),
        // References that errors on the way might leave behind.
        leases.repeat(3_000).into_bytes(),
        b"incr none 18446744073709551615\r\ntouch none -9223372036854775808\r\n".into(),
        format!("get{}\r\n", " a".repeat(100_000)).into_bytes(),
        // A step of SASL before its start, and lengths that underflow.
        frame::plain(0x22, &[], b"PLAIN", b"\0user\0pass", 0),
        b"\x80\x0e\xff\xff\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0".into(),
        b"\x80\x01\0\x01\xff\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0".into(),
        b"\x80\x01\0\x01\x08\0\0\0\x7f\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0".into(),
        b"\x80\x01\0\x01\x08\0\0\0\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".into(),
        b"\x80\x21\0\x20\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0".into(),
    ];
    for (round, form) in forms.iter().enumerate() {
        let shown = form[..form.len().min(60)].escape_ascii();
        ensure!(!say(&daemon, form)?.is_empty(), "silence over {shown}");
        canary(&mut client, round).with_context(|| format!("after {shown}"))?;
    }
    // A dump that nobody reads, whose client goes; and a watcher who goes.
    for idx in 0..20_000 {
        client.send(format!("set key:{idx} 0 0 1 noreply\r\nv\r\n").as_bytes())?;
    }
    let mut deaf = daemon.client();
    deaf.send(b"lru_crawler metadump all\r\n")?;
    deaf.exactly(100)?;
    canary(&mut client, 100)?;
    drop((deaf, watcher));
    canary(&mut client, 101)?;
    ensure!(daemon.serving()? == pid, "another process serves by now");
    Ok(())
}

#[test]
fn what_comes_before_a_login_ends_nothing() -> Result<()> {
    let setup = Setup::loopback()?;
    let file = setup.scratch().join("users");
    fs::write(&file, "user:pass\n")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let setup = setup.arg("-Y").arg(file);
    let daemon = setup.start(None)?;
    let pid = daemon.serving()?;
    let log_in = "set a 0 0 9\r\nuser pass\r\n";
    for form in [
        "set foo 0 0 2147483646\r\nuser pass\r\n".to_owned(),
        "set foo 0 0 2147483647\r\nuser pass\r\n".to_owned(),
        "set foo 0 0 4294967295\r\n".to_owned(),
        "set foo 0 0 -1\r\n\r\n".to_owned(),
        "\r\n".repeat(10_000),
        format!("set foo 0 0 10000000\r\n{}\r\n", "x".repeat(10_000_000)),
        format!("{}\r\n", " ".repeat(5_000)),
        format!("set {} 0 0 9\r\nuser pass\r\n", "k".repeat(5_000)),
    ] {
        let shown = &form[..form.len().min(60)];
        let replies = String::from_utf8(say(&daemon, form.as_bytes())?)?;
        ensure!(!replies.contains("STORED"), "{shown:?}: {replies:?}");
        let mut client = daemon.client();
        client.send(log_in.as_bytes())?;
        ensure!(client.line()? == "STORED", "no login after {shown:?}");
        canary(&mut client, 0).with_context(|| format!("after {shown:?}"))?;
    }
    ensure!(daemon.serving()? == pid, "another process serves by now");
    Ok(())
}

#[test]
fn without_addresses_for_more_memory_everybody_is_served_or_told() -> Result<()> {
    // Another user's limits are for those with CAP_SYS_RESOURCE, which a container's root lacks.
    let user: &[&str] = if session_tests::skip::is_root() { &["-u", "root"] } else { &[] };
    let setup = Setup::loopback()?.args(user).args(["-t", "2"]);
    let daemon = setup.start(None)?;
    let pid = daemon.serving()?;
    let mut client = daemon.client();
    let large = vec![b'v'; 100_000];
    ensure!(client.set("large", &large)? == "STORED", "large");
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages: u64 = statm.split(' ').next().context("statm")?.parse()?;
    let limit = Rlimit { current: Some(pages * 4096 + (40 << 20)), maximum: None };
    prlimit(Pid::from_raw(pid.cast_signed()), Resource::As, limit)?;
    // Two hundred clients leave answers of 10 MB each, half a value and an endless list of keys.
    let mut others = Vec::new();
    for idx in 0..200 {
        let mut other = daemon.stream()?;
        let said = match idx % 3 {
            0 => "get large\r\n".repeat(100),
            1 => format!("set half:{idx} 0 0 1000000\r\n{}", "x".repeat(50_000)),
            _ => format!("get{}", " key".repeat(400)),
        };
        other.write_all(said.as_bytes())?;
        others.push(other);
    }
    for round in 0..1_500 {
        canary(&mut client, round)?;
    }
    ensure!(client.get("large")? == Some(large), "large");
    drop(others);
    canary(&mut client, 0)?;
    ensure!(daemon.serving()? == pid, "another process serves by now");
    Ok(())
}

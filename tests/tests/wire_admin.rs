//! Administration of a running daemon: statistics in memcached's order, dumps, watchers, limits
//! of memory, and commands that only `sessionctl` may give.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use session_tests::client::Client;
use session_tests::frame;
use session_tests::memcached::Memcached;
use session_tests::sessiond::Setup;
use session_tests::wait;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn connect(port: u16) -> Result<Client> {
    Ok(Client::connect(HOST, port)?)
}

/// Lines of an answer up to `end`, that one left out.
fn lines(client: &mut Client, command: &str, end: &str) -> Result<Vec<String>> {
    client.send(format!("{command}\r\n").as_bytes())?;
    let mut lines = Vec::new();
    loop {
        // metadump ends its lines with a newline alone.
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.extend(client.exactly(1)?);
        }
        let line = String::from_utf8(line)?.trim_end().to_owned();
        if line == end {
            return Ok(lines);
        }
        lines.push(line);
    }
}

fn names(port: u16, topic: &str) -> Result<Vec<String>> {
    let lines = lines(&mut connect(port)?, &format!("stats {topic}"), "END")?;
    let name = |line: &String| Some(line.strip_prefix("STAT ")?.split(' ').next()?.to_owned());
    Ok(lines.iter().filter_map(name).collect())
}

fn value(port: u16, topic: &str, name: &str) -> Result<String> {
    let lines = lines(&mut connect(port)?, &format!("stats {topic}"), "END")?;
    let found = lines.iter().find_map(|line| line.strip_prefix(&format!("STAT {name} ")));
    Ok(found.with_context(|| format!("no {name} in stats {topic}"))?.to_owned())
}

fn fill(port: u16, count: usize, value_len: usize) -> Result<()> {
    let mut client = connect(port)?;
    for part in (0..count).collect::<Vec<_>>().chunks(100) {
        let mut request = Vec::new();
        for idx in part {
            request.extend(format!("set key:{idx} 0 0 {value_len} noreply\r\n").into_bytes());
            request.extend(vec![b'v'; value_len]);
            request.extend(b"\r\n");
        }
        client.send(&request)?;
    }
    client.command("version")?;
    Ok(())
}

/// Names that both have must stand in the same order, and all of memcached's must be there but
/// those that 1.6.45 has no more.
#[test]
fn statistics_have_the_names_and_the_order_of_memcached() -> Result<()> {
    session_tests::require_program!("memcached");
    let memcached = Memcached::start(&[])?;
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let port = daemon.setup.port();
    let gone = ["slab_reassign_evictions_nomem", "ext", "slab_automove_freeratio"];
    for topic in ["", "settings", "items", "slabs", "conns"] {
        for port in [port, memcached.port] {
            assert_eq!(connect(port)?.command("set a 0 0 1\r\na")?, "STORED");
        }
        let plain = |name: String| name.rsplit(':').next().unwrap_or_default().to_owned();
        let strip = |names: Vec<String>| names.into_iter().map(plain).collect::<Vec<_>>();
        let (ours, theirs) = (strip(names(port, topic)?), strip(names(memcached.port, topic)?));
        let (known, present) =
            (theirs.iter().collect::<BTreeSet<_>>(), ours.iter().collect::<BTreeSet<_>>());
        let missing: Vec<_> = theirs
            .iter()
            .filter(|name| !present.contains(name))
            .filter(|name| !gone.iter().any(|gone| name.starts_with(gone)))
            .collect();
        println!("stats {topic}: missing {missing:?}");
        let mut common = Vec::new();
        for name in ours.iter().filter(|name| known.contains(name)) {
            if !common.contains(&name) {
                common.push(name);
            }
        }
        let mut expected = Vec::new();
        for name in theirs.iter().filter(|name| present.contains(name)) {
            if !expected.contains(&name) {
                expected.push(name);
            }
        }
        assert_eq!(common, expected, "stats {topic}");
        assert!(missing.len() <= 4, "stats {topic}: {missing:?}");
    }
    Ok(())
}

#[test]
fn dumps_list_every_item_once_and_hold_nobody_up() -> Result<()> {
    let setup = Setup::loopback()?.args(["-t", "1", "-o", "track_sizes"]);
    let daemon = setup.start(None)?;
    let port = daemon.setup.port();
    fill(port, 30_000, 50)?;
    // A client that does not read its dump; the other client has the same worker.
    let mut deaf = connect(port)?;
    deaf.send(b"lru_crawler metadump all\r\n")?;
    let mut other = connect(port)?;
    for _ in 0..100 {
        other.command("version")?;
    }
    let dumped = lines(&mut deaf, "", "END")?;
    let keys: BTreeSet<&str> =
        dumped.iter().filter_map(|line| line.strip_prefix("key=")?.split(' ').next()).collect();
    assert_eq!((keys.len(), dumped[0].as_str()), (30_000, "OK"));
    assert!(dumped[1].contains(" exp=-1 la=") && dumped[1].contains(" fetch=no cls="));
    let listed = lines(&mut connect(port)?, "lru_crawler mgdump all", "EN")?;
    assert_eq!(listed.iter().filter(|line| line.starts_with("mg key:")).count(), 30_000);
    let class = names(port, "items")?[0].split(':').nth(1).context("a class")?.to_owned();
    let cached = lines(&mut connect(port)?, &format!("stats cachedump {class} 7"), "END")?;
    assert_eq!(cached.len(), 7);
    assert!(cached[0].starts_with("ITEM key:") && cached[0].ends_with(" [50 b; 0 s]"));
    let sizes = lines(&mut connect(port)?, "stats sizes", "END")?;
    let count = |line: &String| line.rsplit(' ').next().and_then(|n| n.parse::<usize>().ok());
    assert_eq!(sizes.iter().filter_map(count).sum::<usize>(), 30_000);
    Ok(())
}

/// Asked of ours alone: memcached ends its crawler's thread some time after it said so.
#[test]
fn the_crawler_can_be_switched_off_and_on() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut client = connect(daemon.setup.port())?;
    for (command, reply) in [
        ("lru_crawler disable", "OK"),
        ("lru_crawler disable", "OK"),
        ("lru_crawler crawl all", "CLIENT_ERROR lru crawler disabled"),
        ("lru_crawler metadump all", "CLIENT_ERROR lru crawler disabled"),
        ("lru_crawler enable", "OK"),
        ("lru_crawler crawl all", "OK"),
    ] {
        assert_eq!(client.command(command)?, reply, "{command}");
    }
    Ok(())
}

#[test]
fn a_page_that_is_given_to_another_class_is_told() -> Result<()> {
    let setup = Setup::loopback()?.args(["-t", "1"]);
    let daemon = setup.start(None)?;
    let port = daemon.setup.port();
    fill(port, 3_000, 1_000)?;
    let from = names(port, "items")?[0].split(':').nth(1).context("a class")?.to_owned();
    let mut watcher = connect(port)?;
    assert_eq!(watcher.command("watch sysevents")?, "OK");
    assert_eq!(connect(port)?.command(&format!("slabs reassign {from} 1"))?, "OK");
    let mut told = Vec::new();
    while !told.ends_with(format!("type=slab_move src={from} dst=1\n").as_bytes()) {
        told.extend(watcher.exactly(1)?);
    }
    wait::until("the page", || (value(port, "slabs", "1:total_pages").ok()? == "1").then_some(()));
    assert_eq!(value(port, "", "slabs_moved")?, "1");
    Ok(())
}

#[test]
fn watchers_are_told_what_happens() -> Result<()> {
    let setup = Setup::loopback()?.args(["-t", "2"]);
    let daemon = setup.start(None)?;
    let port = daemon.setup.port();
    let mut watcher = connect(port)?;
    let kinds = "fetchers mutations deletions connevents rawcmds";
    assert_eq!(watcher.command(&format!("watch {kinds}"))?, "OK");
    let mut client = connect(port)?;
    assert_eq!(client.command("set a:b 0 100 3\r\nabc")?, "STORED");
    assert_eq!(client.command("get a:b")?, "VALUE a:b 0 3");
    client.line()?;
    client.line()?;
    assert_eq!(client.command("mg none")?, "EN");
    assert_eq!(client.command("delete a:b")?, "DELETED");
    client.send(b"quit\r\n")?;
    client.closed()?;
    let mut browser = connect(port)?;
    browser.send(b"GET / HTTP/1.1\r\n")?;
    browser.closed()?;
    let of_client = [
        "type=conn_new rip=127.0.0.1 rport=",
        "set a:b 0 100 3",
        "type=item_store key=a%3Ab status=stored cmd=set ttl=100 clsid=",
        "type=item_get key=a%3Ab status=found clsid=",
        "type=item_get key=none status=not_found clsid=0 cfd=",
        "type=deleted key=a%3Ab cmd=delete clsid=",
        "reason=normal cfd=",
    ];
    // The two may have been served by different workers, between whose lines there is no order.
    let of_browser = "reason=error cfd=";
    let mut outstanding = of_client.iter();
    let (mut next, mut was_thrown_out) = (outstanding.next(), false);
    while next.is_some() || !was_thrown_out {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let more = watcher.exactly(1);
            line.extend(more.with_context(|| format!("no {next:?}, or no {of_browser:?}"))?);
        }
        let line = String::from_utf8(line)?;
        ensure!(line.starts_with("ts="), "{line}");
        was_thrown_out |= line.contains(of_browser);
        if next.is_some_and(|words| line.contains(words)) {
            next = outstanding.next();
        }
    }
    assert_eq!(value(port, "", "log_watchers")?, "1");
    Ok(())
}

/// One reply of the binary protocol: status, key and value.
fn reply(client: &mut Client) -> Result<(u16, Vec<u8>, Vec<u8>)> {
    let header = client.exactly(frame::HEADER_LEN)?;
    let short = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let body_len = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
    let mut body = client.exactly(body_len as usize)?;
    let value = body.split_off(usize::from(short(2)));
    Ok((short(6), body, value))
}

#[test]
fn sizes_are_counted_in_binary_too() -> Result<()> {
    let setup = Setup::loopback()?.args(["-t", "1", "-o", "track_sizes"]);
    let daemon = setup.start(None)?;
    let port = daemon.setup.port();
    fill(port, 3_000, 50)?;
    let listed = lines(&mut connect(port)?, "stats sizes", "END")?;
    let mut client = connect(port)?;
    // What follows is answered behind the list.
    client.send(&frame::plain(0x10, &[], b"sizes", &[], 0))?;
    client.send(&frame::plain(0x0a, &[], &[], &[], 0))?;
    let mut counted = Vec::new();
    loop {
        let (status, size, count) = reply(&mut client)?;
        assert_eq!(status, 0);
        if size.is_empty() {
            break;
        }
        let word = String::from_utf8_lossy;
        counted.push(format!("STAT {} {}", word(&size), word(&count)));
    }
    assert!(!counted.is_empty());
    assert_eq!(counted, listed);
    assert_eq!(reply(&mut client)?, (0, Vec::new(), Vec::new()));
    Ok(())
}

#[test]
fn a_dump_follows_no_other_answer_of_one_write() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    for (dump, end) in [("metadump", "END"), ("mgdump", "EN")] {
        client.send(format!("mn\r\nlru_crawler {dump} all\r\n").as_bytes())?;
        assert_eq!(client.line()?, "MN");
        let refused = format!("ERROR cannot pipeline other commands before {dump}");
        assert_eq!(client.line()?, refused);
        assert_eq!(client.command(&format!("lru_crawler {dump} all"))?, "OK");
        assert_eq!(client.line()?, end);
    }
    Ok(())
}

#[test]
fn uses_of_prefixes_are_counted_in_binary_too() -> Result<()> {
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let mut client = connect(daemon.setup.port())?;
    let stat = |topic: &str| frame::plain(0x10, &[], topic.as_bytes(), &[], 0);
    let end = (0, Vec::new(), Vec::new());
    client.send(&stat("detail on"))?;
    assert_eq!(reply(&mut client)?, end);
    client.send(&frame::plain(0x01, &[0; 8], b"user:1", b"v", 0))?;
    assert_eq!(reply(&mut client)?, end);
    client.send(&frame::plain(0x00, &[], b"user:2", &[], 0))?;
    assert_eq!(reply(&mut client)?.0, 1);
    client.send(&stat("detail dump"))?;
    let counted = b"PREFIX user get 1 hit 0 set 1 del 0\r\nEND\r\n".to_vec();
    assert_eq!(reply(&mut client)?, (0, b"detailed".to_vec(), counted));
    assert_eq!(reply(&mut client)?, end);
    client.send(&stat("detail off"))?;
    assert_eq!(reply(&mut client)?, end);
    client.send(&stat("detail x"))?;
    assert_eq!(reply(&mut client)?.0, 1);
    assert_eq!(value(daemon.setup.port(), "settings", "detail_enabled")?, "no");
    Ok(())
}

#[test]
fn the_clock_moves_where_that_is_switched_on() -> Result<()> {
    let setup = Setup::loopback()?.args(["-o", "relaxed_privileges"]);
    let daemon = setup.start(None)?;
    let mut client = connect(daemon.setup.port())?;
    assert_eq!(client.command("set a 0 100 1\r\na")?, "STORED");
    assert_eq!(client.command("debugtime p")?, "OK");
    assert_eq!(client.command("debugtime 99")?, "OK");
    assert_eq!(client.command("mg a t")?, "HD t1");
    assert_eq!(client.command("debugtime +1")?, "OK");
    assert_eq!(client.command("mg a t")?, "EN");
    assert_eq!(client.command("debugtime -50")?, "OK");
    assert_eq!(client.command("set b 0 10 1\r\nb")?, "STORED");
    assert_eq!(client.command("mg b t")?, "HD t10");
    assert_eq!(client.command("debugtime r")?, "OK");
    assert_eq!(client.command("debugtime x")?, "ERROR");
    Ok(())
}

#[test]
fn a_limit_of_memory_moves_while_clients_are_served() -> Result<()> {
    let setup = Setup::loopback()?.args(["-m", "64"]);
    let daemon = setup.start(None)?;
    let port = daemon.setup.port();
    fill(port, 100_000, 300)?;
    let items = |port| -> Result<u64> { Ok(value(port, "", "curr_items")?.parse()?) };
    assert_eq!(items(port)?, 100_000);
    assert_eq!(connect(port)?.command("cache_memlimit 16")?, "OK");
    let mut tries = 0;
    while value(port, "store", "pages_used")?.parse::<u64>()? * 65_536 > 16 << 20 {
        tries += 1;
        ensure!(tries < 3000, "the limit is never reached");
    }
    assert!(items(port)? < 60_000);
    assert_eq!(value(port, "", "limit_maxbytes")?, (16 << 20).to_string());
    assert_eq!(connect(port)?.command("cache_memlimit 64")?, "OK");
    fill(port, 100_000, 300)?;
    assert_eq!(items(port)?, 100_000);
    Ok(())
}

#[test]
fn a_limit_of_memory_is_raised_above_the_start_s() -> Result<()> {
    for in_a_file in [false, true] {
        let setup = Setup::loopback()?.args(["-m", "8"]);
        let file = setup.scratch().join("store");
        let setup = if in_a_file { setup.arg("-e").arg(&file) } else { setup };
        let daemon = setup.start(None)?;
        let port = daemon.setup.port();
        let limits = |port| -> Result<[u64; 2]> {
            let (limit, evictions) =
                (value(port, "settings", "maxbytes")?, value(port, "", "evictions")?);
            Ok([limit.parse()?, evictions.parse()?])
        };
        fill(port, 50_000, 300)?;
        let [_, evictions] = limits(port)?;
        ensure!(evictions > 0, "all of it fits");
        assert_eq!(connect(port)?.command("cache_memlimit 32")?, "OK");
        fill(port, 50_000, 300)?;
        assert_eq!(limits(port)?, [32 << 20, evictions]);
        assert_eq!(value(port, "", "curr_items")?, "50000");
        assert_eq!(
            connect(port)?.command("cache_memlimit 1000")?,
            "MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust"
        );
        assert_eq!(limits(port)?, [32 << 20, evictions]);
    }
    Ok(())
}

#[test]
fn administration_can_be_confined_to_sessionctl() -> Result<()> {
    let setup = Setup::loopback()?.arg("--admin=control");
    let daemon = setup.start(None)?;
    let port = daemon.setup.port();
    let mut client = connect(port)?;
    client.command("set a 0 0 1\r\na")?;
    let refused = "CLIENT_ERROR administration is confined to the control socket";
    for command in [
        "flush_all",
        "verbosity 1",
        "stats reset",
        "stats detail on",
        "cache_memlimit 32",
        "slabs reassign 1 2",
        "lru_crawler crawl all",
        "lru temp_ttl 5",
    ] {
        assert_eq!(client.command(command)?, refused, "{command}");
    }
    assert_eq!(client.command("get a")?, "VALUE a 0 1");
    let asked = |words: &[&str]| -> Result<String> {
        let output = setup.ctl_output(&[&["admin"], words].concat())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    assert_eq!(asked(&["cache_memlimit", "32"])?, "OK\r\n");
    assert_eq!(value(port, "settings", "maxbytes")?, (32 << 20).to_string());
    assert!(asked(&["lru_crawler metadump all"])?.contains("key=a "));
    assert_eq!(asked(&["flush_all"])?, "OK\r\n");
    assert_eq!(connect(port)?.command("get a")?, "END");
    let stats = asked(&["stats", "settings"])?;
    assert!(stats.ends_with("END\r\n") && stats.contains("STAT admin control\r\n"), "{stats}");
    Ok(())
}

#[test]
fn what_is_switched_off_is_refused_in_memcached_s_words() -> Result<()> {
    let setup = Setup::loopback()?.args(["-X", "-W", "-o", "no_modern"]);
    let daemon = setup.start(None)?;
    let port = daemon.setup.port();
    let mut client = connect(port)?;
    for (command, answer) in [
        ("stats cachedump 1 1", "CLIENT_ERROR stats cachedump not allowed"),
        ("stats detail dump", "CLIENT_ERROR stats detail not allowed"),
        ("watch", "CLIENT_ERROR watch commands not allowed"),
        ("lru_crawler metadump all", "CLIENT_ERROR lru crawler disabled"),
        ("lru_crawler enable", "OK"),
        ("lru_crawler metadump all", "ERROR metadump not allowed"),
        ("lru_crawler mgdump all", "ERROR key dump not allowed"),
        ("slabs reassign 1 2", "CLIENT_ERROR slab reassignment disabled"),
        ("lru mode flat", "ERROR"),
    ] {
        assert_eq!(client.command(command)?, answer, "{command}");
    }
    let names = names(port, "")?;
    for absent in ["rejected_connections", "slabs_moved", "moves_to_cold", "evicted_active"] {
        assert!(!names.iter().any(|name| name == absent), "{absent}");
    }
    Ok(())
}

//! Who serves a connection: the worker that accepted it, and from when it is one that stays the one
//! with the fewest; nobody notices the change. And how a connection ends that asks for its end.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};

use anyhow::{Context, Result, ensure};
use session_tests::client::Client;
use session_tests::netns::Namespace;
use session_tests::require_root;
use session_tests::sessiond::{Sessiond, Setup};

/// Requests, one a read, after which a connection has been where it was accepted for long enough.
const UNTIL_IT_STAYS: u32 = 40;

/// Nanoseconds that each worker has run so far.
fn ran_ns(daemon: &Sessiond<'_>) -> Result<BTreeMap<String, u64>> {
    let mut ran_ns = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", daemon.serving()?))? {
        let path = task?.path();
        let name = fs::read_to_string(path.join("comm"))?.trim().to_owned();
        let account = fs::read_to_string(path.join("schedstat"))?;
        if name.starts_with("worker-") {
            let ns = account.split(' ').next().context("an empty account")?;
            ran_ns.insert(name, ns.parse()?);
        }
    }
    Ok(ran_ns)
}

/// Who serves the client: the worker that runs meanwhile.
fn worker_of(daemon: &Sessiond<'_>, client: &mut Client) -> Result<String> {
    let before = ran_ns(daemon)?;
    for _ in 0..300 {
        ensure!(client.command("get none")? == "END", "a value from nowhere");
    }
    let ran = |(name, ns): (String, u64)| (ns - before.get(&name).unwrap_or(&0), name);
    let (_, name) = ran_ns(daemon)?.into_iter().map(ran).max().context("no worker")?;
    Ok(name)
}

/// Counts to [`UNTIL_IT_STAYS`], request for request.
fn count(client: &mut Client, key: &str) -> Result<()> {
    ensure!(client.set(key, b"0")? == "STORED", "{key} is not stored");
    for number in 1..=UNTIL_IT_STAYS {
        let reply = client.command(&format!("incr {key} 1"))?;
        ensure!(reply == number.to_string(), "{key}: {reply} instead of {number}");
    }
    Ok(())
}

#[test]
fn connections_that_stay_are_spread_over_the_workers() -> Result<()> {
    let setup = Setup::loopback()?.args(["-t", "2"]);
    let daemon = setup.start(None)?;
    let mut clients: Vec<_> = (0..6).map(|_| daemon.client()).collect();
    for (idx, client) in clients.iter_mut().enumerate() {
        count(client, &format!("n{idx}"))?;
    }
    let mut served = BTreeMap::new();
    for client in &mut clients {
        *served.entry(worker_of(&daemon, client)?).or_insert(0) += 1;
    }
    ensure!(served.values().eq(&[3, 3]), "{served:?}");
    // Who comes when others have gone takes their place.
    clients.truncate(1);
    let left = worker_of(&daemon, &mut clients[0])?;
    let others: Vec<_> = (0..3)
        .map(|idx| {
            let mut client = daemon.client();
            count(&mut client, &format!("m{idx}"))?;
            Ok((worker_of(&daemon, &mut client)?, client))
        })
        .collect::<Result<_>>()?;
    let beside = others.iter().filter(|(name, _)| *name == left).count();
    ensure!(beside == 1, "{beside} of 3 beside the one that was left");
    Ok(())
}

#[test]
fn a_change_of_hands_cuts_no_request_and_is_no_event() -> Result<()> {
    const CLIENTS: u32 = 5;
    let setup = Setup::loopback()?.args(["-t", "4"]);
    let daemon = setup.start(None)?;
    let mut watcher = daemon.stream()?;
    watcher.write_all(b"watch connevents\r\n")?;
    let mut events = BufReader::new(watcher).lines();
    let mut event = || events.next().context("the watcher is closed")?.context("an event");
    ensure!(event()?.trim() == "OK", "nobody may watch");
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| daemon.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let key = format!("n{number}");
        client.set(&key, b"0")?;
        // Pieces of 7 bytes: most end in the middle of a request.
        let requests = format!("incr {key} 1\r\n").repeat(100);
        for piece in requests.as_bytes().chunks(7) {
            client.send(piece)?;
        }
        for value in 1..=100 {
            let reply = client.line()?;
            ensure!(reply == value.to_string(), "{key}: {reply} instead of {value}");
        }
        count(client, &key)?;
    }
    drop(clients);
    let (mut opened, mut closed) = (0, 0);
    while closed < CLIENTS {
        let event = event()?;
        opened += u32::from(event.contains("type=conn_new "));
        closed += u32::from(event.contains("type=conn_close "));
    }
    ensure!(opened == CLIENTS, "{opened} connections began, {closed} ended");
    Ok(())
}

#[test]
fn who_comes_and_goes_without_a_word_leaves_nothing_behind() -> Result<()> {
    let setup = Setup::loopback()?.args(["-t", "2"]);
    let mut daemon = setup.start(None)?;
    let mut client = daemon.client();
    for _ in 0..200 {
        drop(daemon.client());
    }
    daemon.process.until("end of all others", || {
        let open = client.stats("").expect("it answers")["curr_connections"].parse::<u32>();
        (open.expect("a number") == 1).then_some(())
    });
    ensure!(!daemon.process.log().contains("panicked"), "{}", daemon.process.log());
    Ok(())
}

/// Segments that were sent in the namespace.
fn segments(namespace: &Namespace) -> Result<u64> {
    let text = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
    let mut pairs = names.split(' ').zip(values.split(' '));
    let (_, value) = pairs.find(|(name, _)| *name == "OutSegs").context("no OutSegs")?;
    Ok(value.parse()?)
}

#[test]
fn the_answer_to_quit_and_the_end_behind_it_are_one_segment() -> Result<()> {
    require_root!();
    // Version, then quit, of the binary protocol.
    let mut requests = [0; 48];
    (requests[0], requests[1], requests[24], requests[25]) = (0x80, 0x0b, 0x80, 0x07);
    let namespace = Namespace::new("cache")?;
    let setup = Setup::loopback()?;
    let daemon = setup.start(Some(&namespace))?;
    let mut least = u64::MAX;
    // A machine that is slow adds segments that only acknowledge.
    for _ in 0..50 {
        let before = segments(&namespace)?;
        let mut client = daemon.client();
        client.send(&requests)?;
        let version = client.exactly(24)?;
        client.exactly(usize::from(version[11]))?;
        ensure!(client.exactly(24)?[1] == 0x07, "quit is not answered");
        client.closed()?;
        drop(client);
        least = least.min(segments(&namespace)? - before);
    }
    // Three that begin, the requests, the answers with the end, the client's end, and what
    // acknowledges the two ends.
    ensure!(least <= 8, "{least} segments");
    Ok(())
}

//! Requests by datagram: what is answered, in how many pieces, and how little a forged source
//! would be worth.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use session_tests::client::Client;
use session_tests::datagram::DatagramClient;
use session_tests::sessiond::{Sessiond, Setup};
use session_tests::wait;

fn setup() -> Result<Setup> {
    let setup = Setup::loopback()?;
    let port = setup.port().to_string();
    Ok(setup.args(["-U", &port]))
}

fn asker(daemon: &Sessiond<'_>) -> Result<DatagramClient> {
    Ok(DatagramClient::new((Ipv4Addr::LOCALHOST, daemon.setup.port()).into())?)
}

fn guard_stat(client: &mut Client, name: &str) -> Result<u64> {
    Ok(client.stats("guard")?[name].parse()?)
}

fn frame(opcode: u8, key: &[u8]) -> Vec<u8> {
    let len = u8::try_from(key.len()).expect("a short key");
    let mut frame = vec![0x80, opcode, 0, len, 0, 0, 0, 0, 0, 0, 0, len];
    frame.extend_from_slice(&[9, 8, 7, 6, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(key);
    frame
}

#[test]
fn text_and_binary_reads_are_answered() -> Result<()> {
    let setup = setup()?;
    let daemon = setup.start(None)?;
    daemon.client().set("a", b"value")?;
    let mut asker = asker(&daemon)?;
    ensure!(asker.text("get a\r\n")? == "VALUE a 0 5\r\nvalue\r\nEND\r\n", "get");
    ensure!(asker.text("get none\r\n")? == "END\r\n", "miss");
    ensure!(asker.text("version\r\n")? == "VERSION 1.6.45\r\n", "version");
    ensure!(
        asker.text("get a\r\nget none\r\n")? == "VALUE a 0 5\r\nvalue\r\nEND\r\nEND\r\n",
        "two requests in one datagram"
    );
    let hit = asker.ask(&frame(0, b"a"))?.payload;
    ensure!(hit[0] == 0x81 && hit[12..16] == [9, 8, 7, 6] && hit.ends_with(b"value"), "{hit:?}");
    let noop = asker.ask(&[frame(9, b"none"), frame(0x0a, b"")].concat())?.payload;
    ensure!(noop.len() == 24 && noop[1] == 0x0a, "a quiet miss was answered: {noop:?}");
    // A datagram that leaves its line open does not reach into the next one.
    asker.send(b"\0\0\0\0\0\x01\0\0get no")?;
    ensure!(asker.text("version\r\n")? == "VERSION 1.6.45\r\n", "version behind half a line");
    let stats = daemon.client().stats("settings")?;
    ensure!(stats["udpport"] == setup.port().to_string(), "udpport {}", stats["udpport"]);
    Ok(())
}

#[test]
fn a_lookup_by_datagram_wins_nothing() -> Result<()> {
    let setup = setup()?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    client.set("a", b"value")?;
    ensure!(client.command("md a I T60")? == "HD", "not marked");
    let mut asker = asker(&daemon)?;
    for _ in 0..2 {
        ensure!(asker.text("mg a v\r\n")? == "VA 5 X\r\nvalue\r\n", "won by datagram");
    }
    ensure!(client.command("mg a")? == "HD X W", "nobody can win");
    ensure!(asker.text("mg a\r\n")? == "HD Z X\r\n", "not as it is");
    drop(daemon);
    let setup = self::setup()?.arg("--udp-writes");
    let daemon = setup.start(None)?;
    daemon.client().set("a", b"value")?;
    ensure!(daemon.client().command("md a I T60")? == "HD", "not marked");
    let won = DatagramClient::new((Ipv4Addr::LOCALHOST, setup.port()).into())?.text("mg a\r\n")?;
    ensure!(won == "HD X W\r\n", "not won where writes are done: {won}");
    Ok(())
}

#[test]
fn a_long_reply_is_cut_into_numbered_datagrams() -> Result<()> {
    let setup = setup()?;
    let daemon = setup.start(None)?;
    let value: Vec<u8> = (0..=255).cycle().take(9_000).collect();
    daemon.client().set("long", &value)?;
    // Long enough that 32 times the request is more than the reply.
    let request = format!("get long{}\r\n", " none".repeat(60));
    let reply = asker(&daemon)?.ask(request.as_bytes())?;
    let expected = [&b"VALUE long 0 9000\r\n"[..], &value, b"\r\nEND\r\n"].concat();
    ensure!(reply.payload == expected, "another reply");
    let mut lens = reply.datagram_lens;
    lens.sort_unstable();
    ensure!(lens == [682, 1400, 1400, 1400, 1400, 1400, 1400], "{lens:?}");
    Ok(())
}

#[test]
fn a_train_of_requests_is_answered_one_by_one() -> Result<()> {
    const REQUESTS: u16 = 40;
    let setup = setup()?;
    let daemon = setup.start(None)?;
    let value = |number: u16| "v".repeat(usize::from(number % 4) * 10);
    for number in (0..REQUESTS).step_by(2) {
        daemon.client().set(&format!("k{number:02}"), value(number).as_bytes())?;
    }
    let datagram = |number: u16| {
        let id = number.to_be_bytes();
        // One of them says that it is the second of two.
        let sequence = u8::from(number == 7);
        let header = [id[0], id[1], 0, sequence, 0, 1, 0, 0];
        [&header[..], format!("get k{number:02}\r\n").as_bytes()].concat()
    };
    let train: Vec<u8> = (0..REQUESTS).flat_map(datagram).collect();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect((Ipv4Addr::LOCALHOST, daemon.setup.port()))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    setsockopt(&socket, UdpGsoSegment, &i32::try_from(datagram(0).len())?)?;
    ensure!(socket.send(&train)? == train.len(), "the train was cut short");
    let mut replies = vec![None; usize::from(REQUESTS)];
    for _ in 0..REQUESTS - 1 {
        let mut bytes = [0; 2048];
        let len = socket.recv(&mut bytes)?;
        let number = u16::from_be_bytes([bytes[0], bytes[1]]);
        ensure!(bytes[2..8] == [0, 0, 0, 1, 0, 0], "header of {number}: {:?}", &bytes[..8]);
        replies[usize::from(number)] = Some(String::from_utf8_lossy(&bytes[8..len]).into_owned());
    }
    for (number, reply) in (0..REQUESTS).zip(&replies) {
        let value = value(number);
        let hit = format!("VALUE k{number:02} 0 {}\r\n{value}\r\nEND\r\n", value.len());
        let expected = match number {
            7 => None,
            _ if number.is_multiple_of(2) => Some(hit),
            _ => Some("END\r\n".to_owned()),
        };
        ensure!(*reply == expected, "{number}: {reply:?}");
    }
    ensure!(guard_stat(&mut daemon.client(), "udp_dropped")? == 1, "the odd one is counted");
    Ok(())
}

#[test]
fn no_reply_is_larger_than_32_times_its_request() -> Result<()> {
    let setup = setup()?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    let mut asker = asker(&daemon)?;
    // "get k\r\n" and its header: 15 bytes, so 480 may come back, of which 30 are no value.
    for (value_len, fits) in [(450, true), (451, false), (1_000_000, false)] {
        client.set("k", &vec![b'x'; value_len])?;
        let reply = asker.ask(b"get k\r\n")?;
        let total: usize = reply.datagram_lens.iter().sum();
        ensure!(total <= 480, "{total} bytes for a value of {value_len}");
        let told = reply.payload == b"SERVER_ERROR response too large for udp\r\n";
        ensure!(told != fits, "{value_len}: {}", reply.payload.escape_ascii());
    }
    let reply = asker.text("stats\r\n")?;
    ensure!(reply.starts_with("SERVER_ERROR"), "{reply}");
    let many = format!("get{}\r\n", " k".repeat(500));
    ensure!(asker.text(&many)?.starts_with("SERVER_ERROR"), "a value 500 times");
    let binary = asker.ask(&frame(0, b"k"))?.payload;
    ensure!(binary[..8] == [0x81, 0, 0, 0, 0, 0, 0, 3], "{binary:?}");
    ensure!(guard_stat(&mut client, "udp_too_large")? == 5, "not counted");
    Ok(())
}

#[test]
fn writes_are_refused_unless_asked_for() -> Result<()> {
    let setup = setup()?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    client.set("n", b"1")?;
    let mut udp = asker(&daemon)?;
    for write in ["set n 0 0 1\r\n2\r\n", "incr n 1\r\n", "delete n\r\n", "touch n 1\r\n"] {
        let reply = udp.text(write)?;
        ensure!(reply == "CLIENT_ERROR udp writes not allowed\r\n", "{write:?}: {reply}");
    }
    for never in ["flush_all\r\n", "shutdown\r\n", "cache_memlimit 8\r\n", "watch\r\n"] {
        ensure!(udp.text(never)? == "ERROR\r\n", "{never:?}");
    }
    ensure!(udp.ask(&frame(4, b"n"))?.payload[7] == 0x20, "a binary delete");
    ensure!(client.get("n")? == Some(b"1".to_vec()), "a write was done");
    ensure!(guard_stat(&mut client, "udp_refused")? == 9, "not counted");
    drop(daemon);

    // On another port: the sockets of the first daemon may take datagrams until it has ended.
    let setup = self::setup()?.arg("--udp-writes");
    let daemon = setup.start(None)?;
    let mut udp = asker(&daemon)?;
    ensure!(udp.text("set n 0 0 1\r\n1\r\n")? == "STORED\r\n", "set");
    ensure!(udp.text("incr n 41\r\n")? == "42\r\n", "incr");
    ensure!(udp.text("get n\r\n")? == "VALUE n 0 2\r\n42\r\nEND\r\n", "get");
    ensure!(udp.ask(&frame(4, b"n"))?.payload[6..8] == [0, 0], "a binary delete");
    // Neither a value nor what follows one is run as a command, and administration never is.
    let reply = udp.text("set v 0 0 11\r\nflush_all\r\n\r\nflush_all\r\n")?;
    ensure!(reply == "STORED\r\nERROR\r\n", "{reply}");
    ensure!(daemon.client().get("v")?.is_some_and(|value| value == b"flush_all\r\n"), "no value");
    Ok(())
}

#[test]
fn odd_datagrams_are_counted_and_not_answered() -> Result<()> {
    let setup = setup()?;
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    let mut udp = asker(&daemon)?;
    let odd: [&[u8]; 8] = [
        b"",
        b"\0\0\0\0\0\x01\0",
        b"\0\0\0\0\0\x01\0\0",
        b"\0\0\0\0\0\x02\0\0get a\r\n",
        b"\0\0\0\x01\0\x02\0\0get a\r\n",
        b"\0\0\0\x05\0\x01\0\0get a\r\n",
        b"\0\0\0\0\0\0\0\0get a\r\n",
        b"\0\0\0\0\0\x01\0\0get a",
    ];
    for datagram in odd {
        udp.send(datagram)?;
    }
    ensure!(udp.is_silent()?, "an odd datagram was answered");
    wait::until("eight odd datagrams in the counters", || {
        (guard_stat(&mut client, "udp_dropped").ok()? == 8).then_some(())
    });
    ensure!(udp.text("get a\r\n")? == "END\r\n", "not served any more");
    Ok(())
}

#[test]
fn whatever_comes_the_server_stays() -> Result<()> {
    let setup = setup()?.arg("--udp-writes");
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    client.set("canary", b"sings")?;
    let udp = asker(&daemon)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..5_000_u32 {
        let mut datagram = Vec::new();
        if round % 2 == 0 {
            datagram.extend_from_slice(b"\0\0\0\0\0\x01\0\0");
        }
        if round % 4 == 0 {
            datagram.push(0x80);
        }
        for _ in 0..state % 200 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            datagram.push(state.to_le_bytes()[0]);
        }
        state = state.wrapping_add(u64::from(round));
        udp.send(&datagram)?;
        if round % 500 == 0 {
            ensure!(client.get("canary")? == Some(b"sings".to_vec()), "round {round}");
        }
    }
    let mut fresh = asker(&daemon)?;
    ensure!(fresh.text("get canary\r\n")?.contains("sings"), "not served any more");
    Ok(())
}

#[test]
fn servers_are_not_set_against_each_other() -> Result<()> {
    let setup = setup()?;
    let daemon = setup.start(None)?;
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, setup.port()));
    // Another address of the loopback, but the server's own port, as a second server has it.
    let other = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), setup.port()))?;
    let other = DatagramClient::over(other, server)?;
    other.send(b"\0\0\0\0\0\x01\0\0ERROR\r\n")?;
    ensure!(other.is_silent()?, "a server's port was answered");
    ensure!(guard_stat(&mut daemon.client(), "udp_dropped")? == 1, "not counted");
    Ok(())
}

#[test]
fn many_clients_at_once_each_get_their_own_answers() -> Result<()> {
    let setup = setup()?.args(["-t", "2"]);
    let daemon = setup.start(None)?;
    let mut client = daemon.client();
    for idx in 0..200 {
        client.set(&format!("key{idx}"), format!("value{idx}").as_bytes())?;
    }
    let mut askers = (0..20).map(|_| asker(&daemon)).collect::<Result<Vec<_>>>()?;
    for idx in 0..200 {
        for udp in &mut askers {
            let reply = udp.text(&format!("get key{idx}\r\n"))?;
            ensure!(reply.contains(&format!("\r\nvalue{idx}\r\n")), "{idx}: {reply}");
        }
    }
    Ok(())
}

#[test]
fn udp_alone_is_served_and_shows_in_the_list_of_connections() -> Result<()> {
    let setup = setup()?;
    let daemon = setup.start(None)?;
    let notation = format!("udp:127.0.0.1:{}", setup.port());
    // A worker lists its socket when it first runs.
    wait::until("a socket for each of the four threads", || {
        let conns = daemon.client().stats("conns").ok()?;
        let ours =
            |(name, value): &(&String, &String)| name.ends_with(":addr") && **value == notation;
        (conns.iter().filter(ours).count() == 4).then_some(())
    });
    drop(daemon);
    // The second -p wins: no TCP.
    let setup = setup.args(["-p", "0"]);
    let mut process = setup.spawn(None)?;
    process.until("an answer by datagram", || {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, setup.port()));
        let mut udp = DatagramClient::new(server).ok()?;
        udp.send(b"\0\0\0\0\0\x01\0\0version\r\n").ok()?;
        (!udp.is_silent().ok()?).then_some(())?;
        udp.text("version\r\n").ok()
    });
    ensure!(Client::connect(Ipv4Addr::LOCALHOST.into(), setup.port()).is_err(), "TCP is open");
    Ok(())
}

#[test]
fn a_port_that_another_program_has_is_refused() -> Result<()> {
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = taken.local_addr()?.port();
    let setup = Setup::loopback()?;
    let mut command: Command = setup.command();
    let output = command.args(["-U", &port.to_string()]).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(71), "{:?}: {text}", output.status);
    ensure!(text.contains(&format!("UDP port {port}: Address already in use")), "{text}");
    Ok(())
}

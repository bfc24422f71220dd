//! twemproxy with ketama over two daemons: keys are spread, and what clients ask passes through.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Result, ensure};
use session_tests::client::Client;
use session_tests::memcached::free_port;
use session_tests::process::Process;
use session_tests::require_program;
use session_tests::scratch::Scratch;
use session_tests::sessiond::Setup;

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Keys that are spread over the two.
const KEYS: usize = 200;

#[test]
fn twemproxy_spreads_keys_over_two_daemons() -> Result<()> {
    require_program!("nutcracker");
    let (first, second) = (Setup::loopback()?, Setup::loopback()?);
    let (first, second) = (first.start(None)?, second.start(None)?);
    let (port, scratch) = (free_port(), Scratch::new("proxy")?);
    let servers = [first.setup.port(), second.setup.port()];
    let file = scratch.join("nutcracker.yml");
    fs::write(
        &file,
        format!(
            "pool:\n  listen: 127.0.0.1:{port}\n  hash: md5\n  distribution: ketama\n  \
             timeout: 4000\n  servers:\n   - 127.0.0.1:{}:1\n   - 127.0.0.1:{}:1\n",
            servers[0], servers[1]
        ),
    )?;
    let mut command = Command::new("nutcracker");
    command.arg("-c").arg(&file).args(["-s", &free_port().to_string()]);
    command.arg("-p").arg(scratch.join("pid"));
    let mut proxy = Process::start(&mut command, None, &scratch.join("log"))?;
    let mut client = proxy.until("a connection to twemproxy", || Client::connect(HOST, port).ok());
    spread(&mut client, servers)?;
    commands(&mut client)
}

fn spread(client: &mut Client, servers: [u16; 2]) -> Result<()> {
    let keys: Vec<String> = (0..KEYS).map(|idx| format!("key:{idx}")).collect();
    for key in &keys {
        ensure!(client.set(key, key.as_bytes())? == "STORED", "{key}");
    }
    let mut counts = [0, 0];
    for (count, port) in counts.iter_mut().zip(servers) {
        let mut direct = Client::connect(HOST, port)?;
        for key in &keys {
            *count += usize::from(direct.get(key)?.is_some());
        }
    }
    let (a, b) = (counts[0], counts[1]);
    ensure!(a + b == KEYS && a > KEYS / 4 && b > KEYS / 4, "spread {a} and {b}");
    // One line for both: the proxy splits it and joins the answers in the line's order.
    client.send(format!("get {}\r\n", keys.join(" ")).as_bytes())?;
    for key in &keys {
        ensure!(client.line()? == format!("VALUE {key} 0 {}", key.len()), "{key}");
        ensure!(client.line()? == *key, "the value of {key}");
    }
    ensure!(client.line()? == "END", "no end");
    Ok(())
}

fn commands(client: &mut Client) -> Result<()> {
    let large = vec![b'v'; 900_000];
    ensure!(client.set("large", &large)? == "STORED", "large");
    ensure!(client.get("large")?.as_deref() == Some(&large[..]), "large comes back");
    for (command, reply) in [
        ("set n 5 100 1\r\n9", "STORED"),
        ("incr n 5", "14"),
        ("decr n 20", "0 "),
        ("add n 0 0 1\r\nx", "NOT_STORED"),
        ("replace none 0 0 1\r\nx", "NOT_STORED"),
        ("append n 0 0 1\r\n1", "STORED"),
        ("prepend n 0 0 1\r\n2", "STORED"),
        ("touch n 100", "TOUCHED"),
        ("touch none 100", "NOT_FOUND"),
        ("cas none 0 0 1 5\r\nx", "NOT_FOUND"),
        ("incr none 1", "NOT_FOUND"),
        ("delete n", "DELETED"),
        ("delete n", "NOT_FOUND"),
        ("get n", "END"),
    ] {
        let answer = client.command(command)?;
        ensure!(answer.trim_end() == reply.trim_end(), "{command}: {answer}");
    }
    Ok(())
}

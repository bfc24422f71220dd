//! What the playground shows by itself, and the commands that it offers.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use session_tests::client::Client;
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::{Host, Topology};

/// How long the stranger's attempt may take.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Prints who is who.
pub(super) fn hosts(topology: &Topology, daemon: &Sessiond<'_>) -> Result<()> {
    println!("\nFour hosts, each in a network namespace of its own, on one bridge:\n");
    for host in topology.hosts() {
        let role = match host.role.as_str() {
            "cache" => format!("sessiond on port {PORT}, guarded"),
            "stranger" => "not on the allowlist".to_owned(),
            _ => "on the allowlist".to_owned(),
        };
        println!("  {:<9} {:<12} {:<14} {role}", host.role, host.v4, host.v6);
    }
    println!("\n$ sessionctl status\n{}", daemon.ctl(&["status"])?.trim_end());
    Ok(())
}

/// Shows a stranger refused and allowed hosts served; an error when it is otherwise.
pub(super) fn proof(topology: &Topology) -> Result<()> {
    let cache = &topology.cache;
    println!("\nA stranger and two allowed hosts ask the cache:\n");
    for address in cache.addresses() {
        let start = Instant::now();
        let attempt =
            topology.stranger.run(|| Client::connect_within(address, PORT, ATTEMPT).map(drop));
        let Err(error) = attempt else { bail!("the stranger reached {address}") };
        let ms = start.elapsed().as_millis();
        println!("  stranger -> {address}:  refused ({error} after {ms} ms)");
    }
    let [web1, web2] = topology.allowed.as_slice() else { bail!("the playground has two webs") };
    let stored = web1
        .run(|| Client::connect(cache.v4.into(), PORT)?.set("greeting", b"hello"))
        .context("web1 asks the cache")?;
    println!("  web1     -> {}:  set greeting hello   {stored}", cache.v4);
    let value = web2
        .run(|| Client::connect(cache.v6.into(), PORT)?.get("greeting"))
        .context("web2 asks the cache")?;
    let value = value.map(|value| String::from_utf8_lossy(&value).into_owned());
    println!(
        "  web2     -> {}:  get greeting         {}",
        cache.v6,
        value.as_deref().unwrap_or("-")
    );
    ensure!(stored == "STORED" && value.as_deref() == Some("hello"), "the cache answers wrongly");
    Ok(())
}

/// Prints three commands to try from each host.
pub(super) fn commands(topology: &Topology, setup: &Setup) {
    println!("\nTry, as root in another terminal:");
    for host in topology.hosts() {
        println!("\n  from {}:", host.role);
        for command in commands_of(host, topology, setup) {
            println!("    {command}");
        }
    }
}

fn commands_of(host: &Host, topology: &Topology, setup: &Setup) -> [String; 3] {
    let cache = &topology.cache;
    let stranger = topology.stranger.v4;
    let talk = |address: &str, request: &str| {
        format!(
            "ip netns exec {} timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{PORT}; \
             printf \"{request}quit\\r\\n\" >&3; cat <&3'",
            host.namespace.name()
        )
    };
    let (v4, v6) = (cache.v4.to_string(), cache.v6.to_string());
    let control = |arguments: &str| {
        let sessionctl = session_tests::binaries::sessionctl();
        format!("{} --control {} {arguments}", sessionctl.display(), setup.control().display())
    };
    match host.role.as_str() {
        "cache" => [
            control("status"),
            control(&format!("allow {stranger}")),
            control(&format!("remove {stranger}")),
        ],
        "stranger" => [
            talk(&v4, "get greeting\\r\\n"),
            talk(&v6, "get greeting\\r\\n"),
            // Any other port answers as ever: only the cache's port is guarded.
            format!(
                "ip netns exec {} timeout 3 bash -c 'echo >/dev/tcp/{v4}/80'",
                host.namespace.name()
            ),
        ],
        _ => [
            talk(&v4, "get greeting\\r\\n"),
            talk(&v6, "set greeting 0 0 7\\r\\nbonjour\\r\\n"),
            talk(&v4, "stats\\r\\n"),
        ],
    }
}

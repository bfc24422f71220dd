//! The inner process of `cargo xtask run`: hosts, daemon, demonstration, and the live line.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use session_tests::client::Client;
use session_tests::sessiond::{PORT, Sessiond, Setup};
use session_tests::topology::{Host, Topology};

use super::demonstration;

/// Requests a second that each allowed host sends.
const REQUESTS_PER_SECOND: u64 = 20;

/// How long an attempt of the stranger lasts, and so how often it tries.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Room for the memory file of a daemon with the default `-m`.
const MEMORY_FILE_ROOM_MB: u32 = 72;

/// Between two lines where the output is not a terminal, in turns of a second.
const TURNS_PER_LINE: u64 = 5;

/// Makes the playground, shows what it is for, and keeps it until `seconds` have passed.
pub(super) fn run(seconds: Option<u64>) -> Result<()> {
    // The outer process removes what this one made, so this one must not outlive it.
    set_pdeathsig(Signal::SIGKILL)?;
    let topology = Topology::new(2)?;
    let setup = Setup::guarded()?;
    let memory_file = setup.scratch().mount_tmpfs(MEMORY_FILE_ROOM_MB)?.join("store");
    let setup = setup
        .arg(format!("--allow={}", topology.allow_argument()))
        .arg("--guard-mode=native")
        .arg("-e")
        .arg(memory_file);
    let daemon = setup.start(Some(&topology.cache.namespace))?;
    demonstration::hosts(&topology, &daemon)?;
    demonstration::proof(&topology)?;
    demonstration::commands(&topology, &setup);
    watch(&topology, &daemon, seconds)
}

/// Keeps a little traffic going and shows the counters.
fn watch(topology: &Topology, daemon: &Sessiond<'_>, seconds: Option<u64>) -> Result<()> {
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        for host in &topology.allowed {
            scope.spawn(|| host.run(|| converse(&topology.cache, &end)));
        }
        scope.spawn(|| topology.stranger.run(|| knock(&topology.cache, &end)));
        let shown = show(daemon, seconds);
        // Relaxed: the flag stands for itself, nothing is published with it.
        end.store(true, Ordering::Relaxed);
        shown
    })
}

/// An allowed host at work: stores and reads a key of its own.
fn converse(cache: &Host, end: &AtomicBool) {
    let mut client = None;
    while !end.load(Ordering::Relaxed) {
        let connected = match client.take() {
            Some(client) => Ok(client),
            None => Client::connect(cache.v4.into(), PORT),
        };
        if let Ok(mut connected) = connected
            && connected.set("counter", b"1").is_ok()
            && connected.get("counter").is_ok()
        {
            client = Some(connected);
        }
        // Each round is two requests.
        thread::sleep(Duration::from_millis(2 * 1000 / REQUESTS_PER_SECOND));
    }
}

/// The stranger: tries again and again.
fn knock(cache: &Host, end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        let start = Instant::now();
        let _ = Client::connect_within(cache.v4.into(), PORT, ATTEMPT);
        thread::sleep(ATTEMPT.saturating_sub(start.elapsed()));
    }
}

fn show(daemon: &Sessiond<'_>, seconds: Option<u64>) -> Result<()> {
    println!("\nCtrl-C ends the playground. web1 and web2 are served, the stranger knocks:");
    let mut out = std::io::stdout();
    let terminal = out.is_terminal();
    let mut client = daemon.client_at(Ipv4Addr::LOCALHOST.into());
    for turn in 0.. {
        let line = counters(&mut client, daemon)?;
        if terminal {
            write!(out, "\r\x1b[K{line}")?;
        } else if turn % TURNS_PER_LINE == 0 {
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        if seconds.is_some_and(|seconds| turn >= seconds) {
            break;
        }
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

fn counters(client: &mut Client, daemon: &Sessiond<'_>) -> Result<String> {
    let stats = client.stats("").context("asking sessiond for its statistics")?;
    let number = |name: &str| stats.get(name).and_then(|value| value.parse().ok()).unwrap_or(0_u64);
    Ok(format!(
        "served {}   dropped by the guard {}   connections {}",
        number("cmd_get") + number("cmd_set"),
        daemon.dropped()?,
        number("curr_connections"),
    ))
}

//! `cargo xtask fuzz diff`: the same random streams to `sessiond` and to memcached; what differs
//! is cut down and printed as a byte script.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use session_tests::fuzz::{self, KNOWN, Known, Protocol};
use session_tests::memcached::{Memcached, free_port};
use session_tests::process::Process;
use session_tests::scratch::Scratch;
use session_tests::sessiond::Setup;
use session_tests::{client::Client, wait};

use crate::shell;

/// Differences after which a run ends.
const FOUND_MAX: usize = 20;

/// What is fuzzed.
#[derive(Debug, Subcommand)]
pub(crate) enum Options {
    /// Send the same random streams to sessiond and to memcached, and show where they differ
    Diff(Diff),
}

/// How much, and beside what.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Commands to send
    #[arg(long, default_value_t = 100_000)]
    commands: u64,
    /// Decides every stream
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// text, meta or binary; all three, one after the other, unless given
    #[arg(long)]
    protocol: Option<Protocol>,
    /// The memcached to compare with [default: the installed one]
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
}

/// Runs the command; fails when there is a difference that is not known.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let Options::Diff(options) = options;
    shell::run(shell::cargo().args(["build", "--package", "session-daemon"]))?;
    let setup = Setup::loopback()?;
    let daemon = setup.start(None)?;
    let (port, _baseline) = baseline(options)?;
    let protocols = match options.protocol {
        Some(protocol) => vec![protocol],
        None => vec![Protocol::Text, Protocol::Meta, Protocol::Binary],
    };
    let mut count = 0;
    for protocol in protocols {
        let found = fuzz::run(
            &fuzz::Options {
                commands: options.commands,
                seed: options.seed,
                protocol,
                ours: daemon.setup.port(),
                theirs: port,
            },
            FOUND_MAX,
        )?;
        println!("{protocol:?}: {} differences (seed {})", found.len(), options.seed);
        found.iter().for_each(|difference| println!("\n{difference}"));
        count += found.len();
    }
    println!("not told, because it is known:");
    KNOWN.iter().for_each(|Known { what, why, .. }| println!("  {what}: {why}"));
    Ok(if count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What keeps the baseline running.
enum Baseline {
    Installed(#[expect(dead_code, reason = "ends the server when it is dropped")] Memcached),
    Named(#[expect(dead_code, reason = "ends the server when it is dropped")] (Process, Scratch)),
}

fn baseline(options: &Diff) -> Result<(u16, Baseline)> {
    let Some(path) = &options.baseline else {
        let memcached = Memcached::start(&[]).context("no memcached: apt-get install memcached")?;
        return Ok((memcached.port, Baseline::Installed(memcached)));
    };
    let (port, scratch) = (free_port(), Scratch::new("baseline")?);
    let mut command = Command::new(path);
    command.args(["-l", "127.0.0.1", "-U", "0", "-u", "nobody", "-p", &port.to_string()]);
    let process = Process::start(&mut command, None, &scratch.join("log"))?;
    wait::until("connection to the baseline", || {
        Client::connect(std::net::Ipv4Addr::LOCALHOST.into(), port).ok()
    });
    Ok((port, Baseline::Named((process, scratch))))
}

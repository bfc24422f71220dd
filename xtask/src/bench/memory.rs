//! `cargo xtask bench memory`: how many items fit at the same `-m`, and what a full server takes
//! of the machine's memory.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use session_load::report::Report;

use super::machine::{Machine, Placement};
use super::markdown::thousands;
use super::points::Transport;
use super::servers::{Program, Server, Setup};
use super::{build, directory, generator};
use crate::packages;

const KEY_LEN: u32 = 24;
/// Bytes that are stored for each byte of `-m`: more than any server can hold.
const OVERFILL: f64 = 1.5;
/// Threads of both servers; memory for them is part of what they take.
const THREADS: u32 = 1;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// `-m` of both servers, in megabytes
    #[arg(long, value_name = "MB,MB", value_delimiter = ',', default_values_t = [64, 256], value_parser = clap::value_parser!(u32).range(8..=4096))]
    limits: Vec<u32>,
    /// Lengths of the values in bytes
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_values_t = [32, 100, 200, 512, 1024, 4096], value_parser = clap::value_parser!(u32).range(1..=500_000))]
    values: Vec<u32>,
    /// Store client flags with each item, for which both servers take four bytes; most clients
    /// store none with strings
    #[arg(long)]
    client_flags: bool,
    /// Another memcached than the one in PATH
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
}

/// What was found for one server, limit and value length.
#[derive(Clone, Copy, Debug, Serialize)]
struct Holding {
    /// Items that were stored one after the other, each with a key of its own.
    stored: u64,
    /// Items that were there afterwards, each compared byte for byte.
    held: u64,
    resident_idle_bytes: u64,
    resident_full_bytes: u64,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Line {
    limit_mb: u32,
    value_len: u32,
    ours: Holding,
    other: Holding,
}

/// Everything that is written.
#[derive(Debug, Serialize)]
struct Holdings {
    machine: Machine,
    ours: String,
    other: String,
    lines: Vec<Line>,
}

/// Runs the command.
pub(super) fn run(options: &Options) -> Result<()> {
    packages::ensure(&["memcached"]);
    build(true)?;
    let ours = Program::sessiond()?;
    let other = Program::memcached(options.baseline.as_deref())?;
    let mut lines = Vec::new();
    for &limit_mb in &options.limits {
        for &value_len in &options.values {
            let line = Line {
                limit_mb,
                value_len,
                ours: hold(&ours, limit_mb, value_len, options.client_flags)?,
                other: hold(&other, limit_mb, value_len, options.client_flags)?,
            };
            println!("{}", row(&line));
            lines.push(line);
        }
    }
    let holdings =
        Holdings { machine: Machine::here()?, ours: ours.version, other: other.version, lines };
    let directory = directory()?;
    fs::write(directory.join("memory.json"), serde_json::to_string_pretty(&holdings)?)?;
    let table = render(&holdings);
    fs::write(directory.join("memory.md"), &table)?;
    println!("\n{table}\nwritten to {}", directory.display());
    Ok(())
}

/// Fills a server beyond its limit and counts what it holds.
fn hold(program: &Program, limit_mb: u32, value_len: u32, client_flags: bool) -> Result<Holding> {
    let placement = Placement::of(THREADS)?;
    let server = Server::start(
        program,
        &Setup {
            threads: THREADS,
            memory_mb: limit_mb,
            transport: Transport::Tcp,
            cpus: &placement.server,
        },
    )?;
    let resident_idle_bytes = server.resident_bytes()?;
    let bytes = f64::from(limit_mb) * 1024.0 * 1024.0 * OVERFILL;
    let keys = (bytes / f64::from(KEY_LEN + value_len)).ceil();
    let mut arguments: Vec<String> = ["--fill", "--scan", "--misses"].map(str::to_owned).to_vec();
    arguments.extend(["--keys".to_owned(), keys.to_string()]);
    arguments.extend(["--key-size".to_owned(), KEY_LEN.to_string()]);
    arguments.extend(["--value-size".to_owned(), value_len.to_string()]);
    if !client_flags {
        arguments.push("--no-flags".to_owned());
    }
    let report = generator::load(&server, &placement.load, &arguments, 0.0)?;
    let Report { hits: held, not_served: None, fault: None, .. } = report else {
        bail!("{}: {report}", program.version);
    };
    if held as f64 >= keys {
        bail!("{} holds all {keys} items: more are needed to fill it", program.version);
    }
    let resident_full_bytes = server.resident_bytes().context("the server was filled")?;
    Ok(Holding { stored: keys as u64, held, resident_idle_bytes, resident_full_bytes })
}

impl Holding {
    fn above_idle(&self) -> u64 {
        self.resident_full_bytes.saturating_sub(self.resident_idle_bytes)
    }

    /// Resident bytes above idle for each item held.
    fn bytes_an_item(&self) -> f64 {
        self.above_idle() as f64 / self.held.max(1) as f64
    }
}

fn render(holdings: &Holdings) -> String {
    let machine = &holdings.machine;
    let mut text = format!(
        "{} ({}) beside {}, keys of {KEY_LEN} bytes. {} processors ({}), kernel {}.\n\n\
         | -m | value | items held, ours | memcached | ratio | resident above idle, ours \
         | memcached | bytes an item, ours | memcached |\n\
         |--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        holdings.ours,
        machine.commit,
        holdings.other,
        machine.processors,
        machine.processor,
        machine.kernel
    );
    for line in &holdings.lines {
        let _ = writeln!(text, "{}", row(line));
    }
    text
}

fn row(line: &Line) -> String {
    let Line { limit_mb, value_len, ours, other } = line;
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1024.0 / 1024.0);
    format!(
        "| {limit_mb} | {value_len} | {} | {} | {:.2} | {} | {} | {:.0} | {:.0} |",
        thousands(ours.held as f64),
        thousands(other.held as f64),
        ours.held as f64 / other.held.max(1) as f64,
        megabytes(ours.above_idle()),
        megabytes(other.above_idle()),
        ours.bytes_an_item(),
        other.bytes_an_item()
    )
}

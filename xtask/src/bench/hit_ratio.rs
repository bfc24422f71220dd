//! `cargo xtask bench hit-ratio`: the share of hits of traces in this tree's store and in memcached
//! at the same `-m`. It owns which trace is replayed with how much memory, and the table.
#![forbid(unsafe_code)]

mod plot;
mod replay;
mod traces;

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::machine::Machine;
use super::servers::Program;
use super::{build_replay, directory};
use crate::packages;
use replay::{Replay, Replayer};
use traces::Trace;

/// memcached may take so much more than `-m` before the traces are replayed at what it took, too.
const MEMORY_SLACK: f64 = 1.05;
/// A phase has recovered when a window has this part of the phase's steady state.
const RECOVERED: f64 = 0.98;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// A folder with traces (*.bin), or with gen.py that makes them
    folder: PathBuf,
    /// The seed for gen.py
    #[arg(long, value_name = "NUMBER", default_value_t = 42)]
    seed: u64,
    /// Only the traces whose names begin so
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    traces: Vec<String>,
    /// -m in megabytes for traces that have none in the method
    #[arg(long, value_name = "MB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    memory: u32,
    /// Another memcached than the one in PATH
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Line {
    trace: Trace,
    ours: Replay,
    other: Replay,
    /// This tree's store with as much memory as memcached took, where that is more than `-m`.
    ours_with_as_much: Option<(u32, Replay)>,
}

/// Everything that is written.
#[derive(Debug, Serialize)]
struct Results {
    machine: Machine,
    other: String,
    seed: u64,
    lines: Vec<Line>,
}

/// Runs the command.
pub(super) fn run(options: &Options) -> Result<()> {
    packages::ensure(&["memcached"]);
    build_replay()?;
    let traces = traces::find(&options.folder, options.seed, options.memory, &options.traces)?;
    ensure!(!traces.is_empty(), "no trace in {}", options.folder.display());
    let replayer = Replayer::new(Program::memcached(options.baseline.as_deref())?)?;
    let mut lines = Vec::new();
    for (number, trace) in traces.iter().enumerate() {
        eprintln!("{} of {}: {}, -m {}", number + 1, traces.len(), trace.name, trace.memory_mb);
        let line = replay(&replayer, trace)?;
        println!("{}", row(&line));
        lines.push(line);
    }
    let other = replayer.memcached_version().to_owned();
    let results = Results { machine: Machine::here()?, other, seed: options.seed, lines };
    let directory = directory()?;
    fs::write(directory.join("hit-ratio.json"), serde_json::to_string_pretty(&results)?)?;
    let table = render(&results);
    fs::write(directory.join("hit-ratio.md"), &table)?;
    plot::write(&results, &directory)?;
    println!("\n{table}\nwritten to {}", directory.display());
    Ok(())
}

fn replay(replayer: &Replayer, trace: &Trace) -> Result<Line> {
    let ours = replayer.store(trace, trace.memory_mb)?;
    let other = replayer.memcached(trace)?;
    let taken_mb = (other.memory_bytes >> 20) as u32;
    let more = f64::from(taken_mb) > f64::from(trace.memory_mb) * MEMORY_SLACK;
    let ours_with_as_much =
        more.then(|| anyhow::Ok((taken_mb, replayer.store(trace, taken_mb)?))).transpose()?;
    Ok(Line { trace: trace.clone(), ours, other, ours_with_as_much })
}

fn render(results: &Results) -> String {
    let mut text = format!(
        "sessiond's store ({}) beside {}, traces of seed {}.\n\n\
         | trace | -m | hit ratio, ours | memcached | difference | evicted, ours | memcached \
         | memory for items, memcached |\n|---|--:|--:|--:|--:|--:|--:|--:|\n",
        results.machine.commit, results.other, results.seed
    );
    for line in &results.lines {
        let _ = writeln!(text, "{}", row(line));
    }
    for line in results.lines.iter().filter(|line| line.trace.phases > 1) {
        text.push_str(&recovery(line));
    }
    text
}

fn row(line: &Line) -> String {
    let Line { trace, ours, other, ours_with_as_much } = line;
    let (mine, theirs) = (ours.hit_ratio(trace.warm_up), other.hit_ratio(trace.warm_up));
    let mut text = format!(
        "| {} | {} | {mine:.4} | {theirs:.4} | {:+.4} | {} | {} | {} MB |",
        trace.name,
        trace.memory_mb,
        mine - theirs,
        ours.evicted,
        other.evicted,
        other.memory_bytes >> 20
    );
    if let Some((taken_mb, ours)) = ours_with_as_much {
        let mine = ours.hit_ratio(trace.warm_up);
        let _ = write!(
            text,
            "\n| {}, as much memory | {taken_mb} | {mine:.4} | {theirs:.4} | {:+.4} | {} | {} | {} MB |",
            trace.name,
            mine - theirs,
            ours.evicted,
            other.evicted,
            other.memory_bytes >> 20
        );
    }
    text
}

/// How long each phase of a trace takes to be as good as memcached is at its end.
fn recovery(line: &Line) -> String {
    let phases = line.trace.phases;
    let mut text = format!(
        "\nPart of each phase of {} until a window has {:.0} % of memcached's share of hits in the \
         phase's last quarter:\n\n\
         | phase | ours | memcached | hit ratio of the last quarter, ours | memcached |\n\
         |--:|--:|--:|--:|--:|\n",
        line.trace.name,
        RECOVERED * 100.0
    );
    for phase in 0..phases {
        let steady = [&line.ours, &line.other].map(|side| side.steady(phase, phases));
        let [ours, other] =
            [&line.ours, &line.other].map(|side| side.recovery(phase, phases, steady[1]));
        let [mine, theirs] = steady;
        let number = phase + 1;
        let _ = writeln!(text, "| {number} | {ours:.2} | {other:.2} | {mine:.3} | {theirs:.3} |");
    }
    text
}

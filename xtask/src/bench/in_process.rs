//! `cargo xtask bench in-process`: the store beside other caches and maps of Rust, in one process.
//! It owns the table; what is measured, and how, is `xtask/in-process`'s.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::fs;
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::statistics::median;
use super::{directory, measured};
use crate::shell;

const MANIFEST: &str = "xtask/in-process/Cargo.toml";

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Rounds, in each of which every cache has its turn
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Keys, each stored before the measurement
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    keys: u32,
    /// Only the caches whose names begin so
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    caches: Vec<String>,
}

/// What one run took, as the program says it.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    cache: String,
    round: u32,
    threads: u64,
    gets_percent: u32,
    requests: u64,
    misses: u64,
    wall_ns: u64,
    cpu_ns: u64,
}

/// What the program prints.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    keys: u32,
    key_len: usize,
    value_len: usize,
    requests: u32,
    runs: Vec<Run>,
}

/// Everything that is written.
#[derive(Debug, Serialize)]
struct Results {
    machine: Machine,
    measured: Measured,
}

/// Runs the command.
pub(super) fn run(options: &Options) -> Result<()> {
    let target = shell::target_directory().join("in-process");
    let mut build = shell::cargo();
    build.args(["build", "--release", "--locked", "--manifest-path", MANIFEST, "--target-dir"]);
    shell::run(build.arg(&target))?;
    let mut command = Command::new(target.join("release/session-in-process"));
    command.args(["--rounds", &options.rounds.to_string(), "--keys", &options.keys.to_string()]);
    if !options.caches.is_empty() {
        command.args(["--caches", &options.caches.join(",")]);
    }
    let measured: Measured = measured(&mut command)?;
    let results = Results { machine: Machine::here()?, measured };
    let directory = directory()?;
    fs::write(directory.join("in-process.json"), serde_json::to_string_pretty(&results)?)?;
    let table = render(&results);
    fs::write(directory.join("in-process.md"), &table)?;
    println!("\n{table}\nwritten to {}", directory.display());
    Ok(())
}

fn render(results: &Results) -> String {
    let Results { machine, measured } = results;
    let mut text = format!(
        "{} beside other caches in one process: {} keys of {} bytes, values of {}, million requests \
         for each second of processor time of a thread. {} processors ({}).\n\n\
         | cache | 95:5, 1 thread | 2 threads | 2 / 1 | 50:50, 1 thread | 2 threads | 2 / 1 \
         | misses |\n|---|--:|--:|--:|--:|--:|--:|--:|\n",
        machine.commit,
        measured.keys,
        measured.key_len,
        measured.value_len,
        machine.processors,
        machine.processor
    );
    let mut names: Vec<&str> = Vec::new();
    for run in measured.runs.iter().filter(|run| run.round == 0) {
        if !names.contains(&run.cache.as_str()) {
            names.push(&run.cache);
        }
    }
    for name in names {
        let _ = writeln!(text, "{}", row(name, &measured.runs));
    }
    text
}

fn row(name: &str, runs: &[Run]) -> String {
    let of = |gets_percent, threads| {
        let runs = runs.iter().filter(|run| run.cache == name);
        let runs = runs.filter(|run| run.gets_percent == gets_percent && run.threads == threads);
        median(runs.map(|run| run.requests as f64 * 1e3 / run.cpu_ns.max(1) as f64))
    };
    let mut text = format!("| {name} |");
    for gets_percent in [95, 50] {
        let (one, two) = (of(gets_percent, 1), of(gets_percent, 2));
        let _ = write!(text, " {one:.2} | {two:.2} | {:.2} |", two / one);
    }
    let misses: u64 = runs.iter().filter(|run| run.cache == name).map(|run| run.misses).sum();
    let _ = write!(text, " {misses} |");
    text
}

#[cfg(test)]
mod tests {
    use super::{Run, row};

    #[test]
    fn a_row_has_the_medians_of_its_own_cache() {
        let run = |cache: &str, round, threads, gets_percent, cpu_ns| Run {
            cache: cache.to_owned(),
            round,
            threads,
            gets_percent,
            requests: 1000 * threads,
            misses: 1,
            wall_ns: 1,
            cpu_ns,
        };
        let mut runs = vec![run("other", 0, 1, 95, 1)];
        for (round, cpu_ns) in [(0, 1_000_000), (1, 500_000), (2, 100_000)] {
            for (threads, gets_percent) in [(1, 95), (2, 95), (1, 50), (2, 50)] {
                runs.push(run("one", round, threads, gets_percent, cpu_ns));
            }
        }
        assert_eq!(row("one", &runs), "| one | 2.00 | 4.00 | 2.00 | 2.00 | 4.00 | 2.00 | 12 |");
    }
}

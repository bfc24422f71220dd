//! `cargo xtask bench pauses` and `cargo xtask bench starts`: what single sets take in the store while
//! it works at something else, and how long its starts with a memory file take. It owns the tables;
//! what is measured, and how, is `xtask/replay`'s.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::fs;
use std::process::Command;

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::markdown::thousands;
use super::{build_replay, directory, measured};
use crate::shell;

/// Options of `bench pauses`.
#[derive(Debug, clap::Args)]
pub(super) struct Pauses {
    /// Sets of each phase
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(100_000..=100_000_000))]
    sets: u64,
}

/// Options of `bench starts`.
#[derive(Debug, clap::Args)]
pub(super) struct Starts {
    /// Items in the memory file, each of which takes 200 bytes of /dev/shm
    #[arg(long, value_name = "N", default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(100_000..=1_000_000_000))]
    items: u64,
}

/// What the sets of one phase took.
#[derive(Debug, Serialize, Deserialize)]
struct Phase {
    name: String,
    sets: usize,
    p50_ns: u32,
    p99_ns: u32,
    p999_ns: u32,
    p9999_ns: u32,
    max_ns: u32,
}

/// What starts took.
#[derive(Debug, Serialize, Deserialize)]
struct Started {
    items: u64,
    memory_bytes: u64,
    processors: usize,
    killed_ns: u64,
    check_ns: u64,
    closed_ns: u64,
    rebuilt_ns: u64,
    rebuilt_cpu_ns: u64,
}

/// Everything that is written.
#[derive(Debug, Serialize)]
struct Results<T> {
    machine: Machine,
    measured: T,
}

/// Runs `bench pauses`.
pub(super) fn pauses(options: &Pauses) -> Result<()> {
    let phases: Vec<Phase> = measure("session-pauses", &["--sets", &options.sets.to_string()])?;
    finish("pauses", phases, |phases| table_of_pauses(phases))
}

/// Runs `bench starts`.
pub(super) fn starts(options: &Starts) -> Result<()> {
    let started: Started = measure("session-starts", &["--items", &options.items.to_string()])?;
    finish("starts", started, table_of_starts)
}

fn measure<T: DeserializeOwned>(program: &str, arguments: &[&str]) -> Result<T> {
    build_replay()?;
    let mut command = Command::new(shell::target_directory().join("release").join(program));
    measured(command.args(arguments))
}

fn finish<T: Serialize>(name: &str, measured: T, table: impl FnOnce(&T) -> String) -> Result<()> {
    let results = Results { machine: Machine::here()?, measured };
    let machine = &results.machine;
    let text = format!(
        "{}. {} processors ({}).\n\n{}",
        machine.commit,
        machine.processors,
        machine.processor,
        table(&results.measured)
    );
    let directory = directory()?;
    fs::write(directory.join(format!("{name}.json")), serde_json::to_string_pretty(&results)?)?;
    fs::write(directory.join(format!("{name}.md")), &text)?;
    println!("\n{text}\nwritten to {}", directory.display());
    Ok(())
}

/// What each phase is compared with: what does not happen in the other.
const COMPARED: [(&str, &str); 2] = [("index grows", "index stays"), ("pages move", "full")];

fn table_of_pauses(phases: &[Phase]) -> String {
    let mut text = "| sets while | p50 ns | p99 | p99.9 | p99.99 | longest | p99.99, of what |\n\
                    |---|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for phase in phases {
        let usual = COMPARED.iter().find(|(name, _)| *name == phase.name);
        let usual = usual.and_then(|(_, usual)| phases.iter().find(|one| one.name == *usual));
        let ratio = usual.map_or("-".to_owned(), |usual| {
            let ratio = f64::from(phase.p9999_ns) / f64::from(usual.p9999_ns.max(1));
            format!("{ratio:.2} of \"{}\"", usual.name)
        });
        let Phase { name, p50_ns, p99_ns, p999_ns, p9999_ns, max_ns, .. } = phase;
        let _ = writeln!(
            text,
            "| {name} | {p50_ns} | {p99_ns} | {p999_ns} | {p9999_ns} | {max_ns} | {ratio} |"
        );
    }
    text
}

fn table_of_starts(started: &Started) -> String {
    let rate = |ns: u64| format!("{:.1}", started.items as f64 * 1e3 / ns.max(1) as f64);
    let row =
        |what: &str, ns: u64, rate: &str| format!("| {what} | {:.1} | {rate} |\n", ns as f64 / 1e6);
    let Started { killed_ns, check_ns, closed_ns, rebuilt_ns, rebuilt_cpu_ns, .. } = *started;
    let processors = started.processors.max(1) as u64;
    let head = format!(
        "{} items in {} MB, {} threads.\n\n| a start after | ms to the first command | million items a \
         second |\n|---|--:|--:|\n",
        thousands(started.items as f64),
        started.memory_bytes >> 20,
        started.processors
    );
    head + &row("an ordinary end", closed_ns, "-")
        + &row("a kill", killed_ns, "-")
        + &row("a kill: the check behind it, while serving", check_ns, &rate(check_ns))
        + &row(
            "somebody else has touched the file: the index is built",
            rebuilt_ns,
            &rate(rebuilt_ns),
        )
        + &row(
            "the same, by its processor time: a machine without other work",
            rebuilt_cpu_ns / processors,
            &rate(rebuilt_cpu_ns / processors),
        )
}

#[cfg(test)]
mod tests {
    use super::{Phase, Started, table_of_pauses, table_of_starts};

    #[test]
    fn each_phase_is_compared_with_its_own() {
        let phase = |name: &str, p9999_ns| Phase {
            name: name.to_owned(),
            sets: 1,
            p50_ns: 1,
            p99_ns: 2,
            p999_ns: 3,
            p9999_ns,
            max_ns: 9_999,
        };
        let phases = [phase("index grows", 300), phase("index stays", 200), phase("full", 100)];
        let table = table_of_pauses(&phases);
        assert!(
            table.contains("| index grows | 1 | 2 | 3 | 300 | 9999 | 1.50 of \"index stays\" |")
        );
        assert!(table.contains("| full | 1 | 2 | 3 | 100 | 9999 | - |"), "{table}");
    }

    #[test]
    fn rates_are_of_all_items() {
        let started = Started {
            items: 4_000_000,
            memory_bytes: 800 << 20,
            processors: 2,
            killed_ns: 3_400_000,
            check_ns: 200_000_000,
            closed_ns: 1_000_000,
            rebuilt_ns: 400_000_000,
            rebuilt_cpu_ns: 500_000_000,
        };
        let table = table_of_starts(&started);
        assert!(table.contains("in 800 MB, 2 threads"));
        assert!(table.contains("| a kill | 3.4 | - |"));
        assert!(table.contains("| 400.0 | 10.0 |"), "{table}");
        assert!(table.contains("| 250.0 | 16.0 |"), "{table}");
    }
}

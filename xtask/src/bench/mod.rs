//! `cargo xtask bench`: `sessiond` beside memcached on the same processors, in turn.
//!
//! It owns the points, the order of the runs, the rules by which a result counts, and what is
//! written of it. The load itself is `session-load`; docs/benchmarks.md is the method in words.
#![forbid(unsafe_code)]

mod callgrind;
mod compare;
mod document;
mod generator;
mod hit_ratio;
mod in_process;
mod instructions;
mod kernel_plane;
mod machine;
mod markdown;
mod memory;
mod plot;
mod points;
mod results;
mod servers;
pub(crate) mod statistics;
mod store_times;
pub(crate) mod svg;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use serde::de::DeserializeOwned;

use crate::{bench_guard, shell};

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    compare: compare::Options,
}

/// What else can be measured.
#[derive(Debug, Subcommand)]
enum What {
    /// What the guard costs for each dropped packet, beside iptables and nft
    Guard(bench_guard::Options),
    /// The share of hits of traces, beside memcached at the same -m
    HitRatio(hit_ratio::Options),
    /// The store beside other caches and maps of Rust, in one process
    InProcess(in_process::Options),
    /// Instructions a request, beside those that were recorded
    Instructions(instructions::Options),
    /// A request by datagram with the kernel plane, without it, and by memcached
    KernelPlane(kernel_plane::Options),
    /// Items held, and memory used, beside memcached at the same -m
    Memory(memory::Options),
    /// What single sets take while the index grows and while pages move, in one process
    Pauses(store_times::Pauses),
    /// How long starts with a memory file take, in one process
    Starts(store_times::Starts),
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    match &options.what {
        None => compare::run(&options.compare),
        Some(What::HitRatio(traces)) => hit_ratio::run(traces).map(|()| ExitCode::SUCCESS),
        Some(What::InProcess(options)) => in_process::run(options).map(|()| ExitCode::SUCCESS),
        Some(What::Instructions(options)) => instructions::run(options),
        Some(What::KernelPlane(options)) => kernel_plane::run(options),
        Some(What::Memory(memory)) => memory::run(memory).map(|()| ExitCode::SUCCESS),
        Some(What::Pauses(options)) => store_times::pauses(options).map(|()| ExitCode::SUCCESS),
        Some(What::Starts(options)) => store_times::starts(options).map(|()| ExitCode::SUCCESS),
        Some(What::Guard(guard)) => bench_guard::run(guard).map(|()| ExitCode::SUCCESS),
    }
}

/// Where results are written.
fn directory() -> Result<PathBuf> {
    let directory = shell::target_directory().join("bench");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// Builds what is measured, and what measures, with optimisation.
pub(crate) fn build(with_daemon: bool) -> Result<()> {
    if with_daemon {
        shell::run(shell::cargo().args(["build", "--release", "-p", "session-daemon", "--bins"]))?;
    }
    shell::run(shell::cargo().args(["build", "--release", "-p", "session-load", "--bins"]))
}

/// Status of a run of which noise left too much undecided.
const NOISY: u8 = 2;

/// Builds the programs that run the store alone.
fn build_replay() -> Result<()> {
    shell::run(shell::cargo().args(["build", "--release", "-p", "session-replay", "--bins"]))
}

/// Runs a program that prints what it measured as JSON; what it says besides is shown.
fn measured<T: DeserializeOwned>(command: &mut Command) -> Result<T> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| shell::line(command))?;
    ensure!(output.status.success(), "{}: {}", shell::line(command), output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

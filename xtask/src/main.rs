//! The project's chores, one file a command: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

mod bench_guard;
mod build_ebpf;

use clap::{Parser, Subcommand};

/// The project's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
enum Command {
    /// Rebuild the kept eBPF object and its digest from source
    BuildEbpf(build_ebpf::Options),
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
}

/// What can be measured.
#[derive(Debug, Subcommand)]
enum Bench {
    /// What the guard costs for each dropped packet, beside iptables and nft
    Guard(bench_guard::Options),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::BuildEbpf(options) => build_ebpf::run(&options),
        Command::Bench(Bench::Guard(options)) => bench_guard::run(&options),
    }
}

//! `session-replay`: the hit ratio of a trace, in this tree's store or in a server.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, stderr};
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use session_replay::trace::Trace;
use session_replay::{server, store};

/// Replays a trace of accesses and prints a report as one line of JSON.
#[derive(Debug, Parser)]
struct Options {
    /// The trace
    trace: PathBuf,
    /// -m of the store, in megabytes
    #[arg(long, value_name = "MB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    memory: u32,
    /// A server's unix socket: it is asked instead of the store
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,
    /// A file that holds the trace's time while it is replayed, for the server's clock
    #[arg(long, value_name = "PATH", requires = "unix")]
    clock: Option<PathBuf>,
    /// Also print the share of hits after this share of the requests
    #[arg(long, value_name = "SHARE")]
    warm_up: Option<f64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let trace = Trace::read(&options.trace)?;
    let all = trace.accesses.len();
    let progress = |done: usize| {
        if stderr().is_terminal() {
            eprint!("\r{} % ", done * 100 / all);
        }
    };
    let report = match &options.unix {
        Some(socket) => server::replay(&trace, socket, options.clock.as_deref(), progress)?,
        None => store::replay(&trace, (options.memory as usize) << 20, progress)?,
    };
    if let Some(warm_up) = options.warm_up {
        eprintln!("{:.4}", report.hit_ratio(warm_up));
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

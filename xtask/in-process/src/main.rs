//! `session-in-process`: the store beside other concurrent caches and maps, in one process.
//!
//! Each round makes each of them in turn, fills it, and runs the same requests on it with one thread
//! and with two. Prints what was measured as JSON; `cargo xtask bench in-process` makes tables of it.
//! The modules of the store are the daemon's, file for file, so that nothing else of it is compiled.
#![deny(unsafe_code)]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the store's modules serve a whole daemon elsewhere"
)]

mod bounds;
mod caches;
#[path = "../../../session-daemon/src/clock.rs"]
mod clock;
mod load;
mod ours;
#[path = "../../../session-daemon/src/store/mod.rs"]
mod store;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use crate::bounds::Arithmetic;
use crate::caches::{Dash, Moka, Papaya, Quick, Scc, Seg};
use crate::load::{Cache, Load, Run};
use crate::ours::{Ours, OursApart, OursSingly};

/// Measures the store beside other caches and maps of Rust in this process.
#[derive(Debug, Parser)]
struct Options {
    /// Keys, each stored before the measurement
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    keys: u32,
    /// Requests of each thread in a run
    #[arg(long, value_name = "N", default_value_t = 1_500_000)]
    requests: u32,
    /// Rounds, in each of which every cache has its turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u32,
    /// Only the caches whose names begin so
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    caches: Vec<String>,
}

/// Everything that is printed.
#[derive(Debug, Serialize)]
struct Results {
    keys: u32,
    key_len: usize,
    value_len: usize,
    requests: u32,
    runs: Vec<Run>,
}

/// Measures one cache in one round.
type Measure = fn(&Load, u32) -> Result<Vec<Run>>;

/// A cache by its name.
fn entry<C: Cache>() -> (&'static str, Measure) {
    (C::NAME, load::measure::<C>)
}

fn main() -> Result<()> {
    let options = Options::parse();
    let all = [
        entry::<Ours>(),
        entry::<OursSingly>(),
        entry::<OursApart>(),
        entry::<Arithmetic>(),
        entry::<Dash>(),
        entry::<Papaya>(),
        entry::<Scc>(),
        entry::<Quick>(),
        entry::<Moka>(),
        entry::<Seg>(),
    ];
    let is_wanted = |name: &str| {
        options.caches.is_empty() || options.caches.iter().any(|wanted| name.starts_with(wanted))
    };
    let mut caches: Vec<_> = all.into_iter().filter(|(name, _)| is_wanted(name)).collect();
    let load = Load::new(options.keys, options.requests);
    let mut runs = Vec::new();
    for round in 0..options.rounds {
        for (name, measure) in &caches {
            eprintln!("round {} of {}: {name}", round + 1, options.rounds);
            runs.extend(measure(&load, round)?);
        }
        // None has the same neighbours in each round.
        if !caches.is_empty() {
            caches.rotate_left(1);
        }
    }
    let results = Results {
        keys: options.keys,
        key_len: load::KEY_LEN,
        value_len: load::VALUE_LEN,
        requests: options.requests,
        runs,
    };
    println!("{}", serde_json::to_string(&results)?);
    Ok(())
}

//! `cargo xtask bench guard`: what one refused packet costs, beside other ways to refuse it; and what
//! a flood of them leaves to those who are let in.
//!
//! It makes two namespaces and a veth pair, floods one end from a generator in the kernel and
//! filters at the other. All rows are measured in turn, round after round, so that a machine that is
//! busy for a while hurts all of them alike. No real interface is touched.
#![forbid(unsafe_code)]

mod bed;
mod flooded;
mod plot;
mod rows;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use session_tests::skip::is_root;

use self::bed::Bed;
use self::rows::{Filter, Place, Row, Traffic};

/// Nanoseconds that a refused packet may cost beyond a bare drop.
const GOAL_NS: u64 = 200;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Packets of each row in each round; chains of 10,000 rules get a twentieth
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1000..=1_000_000))]
    packets: u32,
    /// Rounds
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Instead, what a flood leaves to those who are let in; needs two processors
    #[arg(long)]
    flooded: bool,
    /// With --flooded, seconds of each load
    #[arg(long, default_value_t = 3.0, requires = "flooded")]
    seconds: f64,
    /// Draw guard-refused.svg and guard-allowed.svg, or guard-flooded.svg, in this directory
    #[arg(long, value_name = "DIRECTORY")]
    svg: Option<PathBuf>,
}

/// Times of each row, round by round.
type Times = BTreeMap<Row, Vec<Duration>>;

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(is_root(), "needs root, to make network namespaces");
    if options.flooded {
        return flooded::run(options);
    }
    let mut bed = Bed::new()?;
    let mut times = Times::new();
    for round in 1..=options.rounds {
        eprint!("\rround {round} of {}", options.rounds);
        for row in rows::all().into_iter().filter(|(_, filter)| filter.is_possible()) {
            let packets = options.packets / row.1.slowness();
            let time = bed.measure(row, packets).with_context(|| row.1.to_string())?;
            times.entry(row).or_default().push(time);
        }
    }
    eprintln!();
    print(options, &times);
    if let Some(directory) = &options.svg {
        draw(directory, &times)?;
    }
    Ok(())
}

fn draw(directory: &std::path::Path, times: &Times) -> Result<()> {
    let medians: BTreeMap<Row, u64> =
        times.iter().map(|(row, rounds)| (*row, median_ns(rounds))).collect();
    for (traffic, name, title) in [
        (
            Traffic::Refused,
            "guard-refused.svg",
            "One refused packet: a SYN from one of 65,536 sources",
        ),
        (
            Traffic::Allowed,
            "guard-allowed.svg",
            "One packet that is let in: a datagram of 18 bytes",
        ),
    ] {
        let path = directory.join(name);
        let drawing = plot::draw(title, traffic, &rows::all(), &medians);
        std::fs::write(&path, drawing).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Median of some times, in nanoseconds.
fn median_ns(times: &[Duration]) -> u64 {
    let mut sorted: Vec<u64> =
        times.iter().map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).collect();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

fn print(options: &Options, times: &Times) {
    for (traffic, what) in [
        (Traffic::Refused, "One refused packet: a TCP SYN of 60 bytes from one of 65,536 sources"),
        (Traffic::Allowed, "One packet that is let in: a datagram of 18 bytes to a full socket"),
    ] {
        println!(
            "{what}; generator and veth hop included. {} rounds of {} packets, in ns.\n",
            options.rounds, options.packets
        );
        println!("| | median | least | most | beyond the bare drop |\n|---|--:|--:|--:|--:|");
        for row in rows::all().into_iter().filter(|row| row.0 == traffic) {
            let Some(rounds) = times.get(&row) else {
                println!(
                    "| {} | not installed: {} | | | |",
                    row.1,
                    row.1.needs().unwrap_or_default()
                );
                continue;
            };
            let ns = |time: Option<&Duration>| time.map_or(0, Duration::as_nanos);
            let (least, most) = (ns(rounds.iter().min()), ns(rounds.iter().max()));
            let beyond = beyond_bare_ns(row, times).map_or_else(String::new, |ns| ns.to_string());
            println!("| {} | {} | {least} | {most} | {beyond} |", row.1, median_ns(rounds));
        }
        println!();
    }
    let guard = (Traffic::Refused, Filter::Guard(Place::Native, 10));
    let beyond_ns = beyond_bare_ns(guard, times).unwrap_or_default();
    let outcome = if beyond_ns <= GOAL_NS { "met" } else { "MISSED" };
    println!(
        "goal: the guard costs at most {GOAL_NS} ns beyond a bare drop: {beyond_ns}, {outcome}"
    );
}

/// Median over the rounds of what a row takes beyond the bare drop of the same round.
fn beyond_bare_ns(row: Row, times: &Times) -> Option<u64> {
    let (own, bare) = (times.get(&row)?, times.get(&(row.0, row.1.bare()?))?);
    let beyond: Vec<Duration> =
        own.iter().zip(bare).map(|(own, bare)| own.saturating_sub(*bare)).collect();
    Some(median_ns(&beyond))
}

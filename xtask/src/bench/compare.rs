//! The comparison itself: rounds over points over servers, with its progress shown.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use session_load::report::Report;

use super::machine::{Machine, Placement};
use super::points::{PEAK, Point};
use super::results::{PointResult, Results, Run};
use super::servers::{Io, Program, Server, Setup, Side};
use super::statistics::{Spread, Verdict};
use super::{NOISY, build, directory, document, generator, markdown, plot, points};
use crate::packages;

/// `-m` of both servers: everything that a point stores fits.
const MEMORY_MB: u32 = 1024;
/// Runs of which the peak is the median.
const PEAK_RUNS: u32 = 3;
/// Most rounds and longest run that can be asked for, so that a run is bounded.
const ROUNDS_MAX: i64 = 50;
const SECONDS_MAX: f64 = 60.0;

/// Options of the comparison.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Options {
    /// Only the points whose names begin so, joined by commas
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    points: Vec<String>,
    /// Rounds over all points
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=ROUNDS_MAX))]
    rounds: u32,
    /// Seconds that are measured of each run
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    seconds: f64,
    /// A first look: three rounds of 0.3 s
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// Another memcached than the one in PATH
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
    /// The engine of sessiond, instead of the one that it takes by itself
    #[arg(long, conflicts_with = "null")]
    io: Option<Io>,
    /// memcached on both sides: what the method says where there is no difference
    #[arg(long)]
    null: bool,
    /// Measure nothing, and write table and plots again from the JSON of an earlier run
    #[arg(long, value_name = "JSON", conflicts_with_all = ["points", "quick", "baseline", "null"])]
    render: Option<PathBuf>,
    /// Write the tables into docs/benchmarks.md too, in the place of those of the run before
    #[arg(long)]
    document: bool,
}

/// Both programs, and how long each run takes.
struct Comparison {
    ours: Program,
    other: Program,
    seconds: f64,
    rounds: u32,
    peak: Option<f64>,
}

/// Runs the comparison.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(path) = &options.render {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return finish(&serde_json::from_str(&text)?, options.document);
    }
    let (rounds, seconds) =
        if options.quick { (3, 0.3) } else { (options.rounds, options.seconds) };
    ensure!(seconds > 0.0 && seconds <= SECONDS_MAX, "--seconds is at most {SECONDS_MAX}");
    let chosen = points::choose(&options.points)?;
    packages::ensure(&["memcached"]);
    build(!options.null)?;
    let other = Program::memcached(options.baseline.as_deref())?;
    let ours = if options.null { other.clone() } else { Program::sessiond()?.by(options.io) };
    let mut comparison = Comparison { ours, other, seconds, rounds, peak: None };
    if chosen.iter().any(|point| point.of_peak.is_some()) {
        comparison.peak = Some(comparison.find_peak()?);
    }
    let points = comparison.measure(&chosen)?;
    let results = Results {
        machine: Machine::here()?,
        ours: comparison.ours.version,
        other: comparison.other.version,
        rounds,
        seconds,
        peak: comparison.peak,
        points,
    };
    finish(&results, options.document)
}

impl Comparison {
    /// Requests a second of the other server under a closed loop. Both servers then meet the
    /// same rates.
    fn find_peak(&self) -> Result<f64> {
        let runs = (0..PEAK_RUNS).map(|_| Ok(self.load(&PEAK, Side::Other)?.requests_per_s()));
        let rates: Vec<f64> = runs.collect::<Result<_>>()?;
        let peak = Spread::of(rates).context("the peak has runs")?.median;
        ensure!(peak > 0.0, "memcached answers nothing");
        println!("peak of {}, 50 connections: {peak:.0} requests/s", self.other.version);
        Ok(peak)
    }

    fn measure(&self, chosen: &[&Point]) -> Result<Vec<PointResult>> {
        let mut results: Vec<PointResult> =
            chosen.iter().map(|point| self.empty(point)).collect::<Result<_>>()?;
        let (start, all) = (Instant::now(), self.rounds as usize * chosen.len());
        let mut done = 0;
        for round in 0..self.rounds {
            for (idx, (point, result)) in chosen.iter().zip(&mut results).enumerate() {
                // Which server comes first alternates, over the rounds and over the points.
                let ours_first = (round as usize + idx).is_multiple_of(2);
                let order =
                    if ours_first { [Side::Ours, Side::Other] } else { [Side::Other, Side::Ours] };
                for side in order {
                    if result.not_served(side).is_none() && result.fault(side).is_none() {
                        let report = self.load(point, side)?;
                        result.runs.push(Run { round, side, report });
                    }
                }
                done += 1;
                progress(result, round, self.rounds, left(start, done, all));
            }
        }
        Ok(results)
    }

    fn empty(&self, point: &Point) -> Result<PointResult> {
        Ok(PointResult {
            name: point.name.to_owned(),
            title: point.title.to_owned(),
            load: point.load.iter().map(|&argument| argument.to_owned()).collect(),
            threads: point.threads,
            rate: self.rate(point),
            shared: Placement::of(point.threads)?.is_shared(),
            runs: Vec::new(),
        })
    }

    fn rate(&self, point: &Point) -> Option<f64> {
        Some((point.of_peak? * self.peak?).round())
    }

    /// One run: a fresh server, its items, the load.
    fn load(&self, point: &Point, side: Side) -> Result<Report> {
        let placement = Placement::of(point.threads)?;
        let program = match side {
            Side::Ours => &self.ours,
            Side::Other => &self.other,
        };
        let server = Server::start(
            program,
            &Setup {
                threads: point.threads,
                memory_mb: MEMORY_MB,
                transport: point.transport,
                cpus: &placement.server,
            },
        )?;
        let mut arguments = vec!["--fill".to_owned()];
        arguments.extend(point.load.iter().map(|&argument| argument.to_owned()));
        arguments.extend(["--threads".to_owned(), placement.load_threads().to_string()]);
        if let Some(rate) = self.rate(point) {
            arguments.extend(["--rate".to_owned(), rate.to_string()]);
        }
        generator::load(&server, &placement.load, &arguments, self.seconds)
    }
}

fn left(start: Instant, done: usize, all: usize) -> Duration {
    start.elapsed().mul_f64((all - done) as f64 / done as f64)
}

/// Prints the newest run of both servers.
fn progress(result: &PointResult, round: u32, rounds: u32, left: Duration) {
    let newest = |side| {
        let report = result.runs.iter().rev().find(|run| run.side == side && run.round == round);
        report.map_or_else(|| "-".to_owned(), |run| summary(&run.report))
    };
    println!(
        "{}/{rounds} {:<19} ours {:<30} other {:<30} {}:{:02} left",
        round + 1,
        result.name,
        newest(Side::Ours),
        newest(Side::Other),
        left.as_secs() / 60,
        left.as_secs() % 60,
    );
}

fn summary(report: &Report) -> String {
    match (&report.not_served, &report.fault) {
        (Some(words), _) => format!("not served: {words}"),
        (None, Some(fault)) => format!("FAULT: {fault}"),
        (None, None) => format!(
            "{:>9.0}/s {:>7.0} ns/request",
            report.requests_per_s(),
            report.server_ns().unwrap_or(f64::NAN)
        ),
    }
}

/// Writes and prints the results.
fn finish(results: &Results, with_document: bool) -> Result<ExitCode> {
    let directory = directory()?;
    let json = directory.join("results.json");
    fs::write(&json, serde_json::to_string_pretty(results)?)?;
    let table = markdown::render(results);
    fs::write(directory.join("results.md"), &table)?;
    plot::write(results, &directory)?;
    println!("\n{table}");
    println!("written to {}", directory.display());
    if with_document {
        document::write("", &table)?;
    }
    let faults = results.points.iter().filter(|point| {
        [Side::Ours, Side::Other].into_iter().any(|side| point.fault(side).is_some())
    });
    let faults = faults.count();
    if faults > 0 {
        println!("{faults} points had wrong replies or broken connections");
        return Ok(ExitCode::FAILURE);
    }
    Ok(conclude(results))
}

/// Says what the whole comes to, unless most of it was noise.
fn conclude(results: &Results) -> ExitCode {
    let ratios = results.points.iter().filter_map(PointResult::processor);
    let verdicts: Vec<Verdict> = ratios.map(|ratio| ratio.verdict).collect();
    let count = |verdict| verdicts.iter().filter(|&&each| each == verdict).count();
    let noisy = count(Verdict::Noisy);
    if noisy * 2 > verdicts.len() {
        println!(
            "no conclusion: {noisy} of {} points were too noisy. Let the machine rest, or give \
             more --rounds and --seconds.",
            verdicts.len()
        );
        return ExitCode::from(NOISY);
    }
    println!(
        "processor time a request: better at {} points, level at {}, worse at {}, noisy at {noisy}",
        count(Verdict::Better),
        count(Verdict::Level),
        count(Verdict::Worse)
    );
    ExitCode::SUCCESS
}

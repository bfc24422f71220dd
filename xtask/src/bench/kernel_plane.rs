//! `cargo xtask bench kernel-plane`: the server's processor time of a request by datagram, with the
//! kernel plane, without it, and by memcached.
//!
//! Two namespaces and a veth pair. A client in the kernel asks from one end, and looks at every
//! answer; at the other end one server after the other serves. What the server's side does for a
//! packet is done by a thread of the kernel that can be pinned and whose time is accounted: both its
//! time and the server's count, the client's does not. No real interface is touched.
#![forbid(unsafe_code)]

mod results;
mod scene;
mod servers;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use session_load::keys::{Popularity, Random};
use session_tests::exchange::{Draw, Outcome, Reads};
use session_tests::skip::is_root;

use self::results::{Asked, Point, Results, Run, Side};
use self::scene::Scene;
use self::servers::Running;
use super::machine::Machine;
use super::servers::Program;
use super::{NOISY, build, directory, document};
use crate::packages;

/// Keys that are there, and how unequally they are asked for.
const KEYS: u32 = 100_000;
const ALPHA: f64 = 0.99;
/// Share of the run that is not measured, before it.
const WARM_UP: f64 = 0.25;
/// Requests without an answer, beyond which a run does not count: one in so many.
const LOST_MAX: u64 = 1000;

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Rounds over all servers
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Seconds that are measured of each run
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    seconds: f64,
    /// A first look: three rounds of 0.3 s
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// Requests without an answer at a time; memcached's socket has room for about fifty
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=256))]
    window: u64,
    /// Another sessiond than this tree's, which is built with optimisation otherwise
    #[arg(long, value_name = "PATH")]
    ours: Option<PathBuf>,
    /// Another memcached than the one in PATH
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
    /// Measure nothing, and write table and plot again from the JSON of an earlier run
    #[arg(long, value_name = "JSON", conflicts_with_all = ["quick", "ours", "baseline"])]
    render: Option<PathBuf>,
    /// Write the table into docs/benchmarks.md and the plot beside it
    #[arg(long)]
    document: bool,
}

/// Runs the command.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(path) = &options.render {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return finish(&serde_json::from_str(&text)?, options.document);
    }
    ensure!(is_root(), "needs root, to make network namespaces");
    ensure!(options.seconds > 0.0 && options.seconds <= 60.0, "--seconds is at most 60");
    let (rounds, seconds) =
        if options.quick { (3, 0.3) } else { (options.rounds, options.seconds) };
    packages::ensure(&["memcached", "ethtool"]);
    let ours = match &options.ours {
        Some(path) => Program::sessiond_at(path)?,
        None => {
            build(true)?;
            Program::sessiond()?
        }
    };
    let other = Program::memcached(options.baseline.as_deref())?;
    let mut points: Vec<Point> =
        Asked::ALL.into_iter().map(|asked| Point { asked, runs: Vec::new() }).collect();
    let mut scene = Scene::new()?;
    let work = Work { programs: [&ours, &other], seconds, window: options.window };
    let all = rounds * (Side::ALL.len() * points.len()) as u32;
    let mut progress = Progress { start: Instant::now(), done: 0, all };
    for round in 0..rounds {
        let mut sides = Side::ALL;
        // Which server comes first goes round.
        sides.rotate_left(round as usize % Side::ALL.len());
        for side in sides {
            work.measure(&mut scene, side, round, &mut points, &mut progress)?;
        }
    }
    let results = Results {
        machine: Machine::here()?,
        ours: ours.version.clone(),
        other: other.version.clone(),
        rounds,
        seconds,
        window: options.window,
        points,
    };
    finish(&results, options.document)
}

/// What all runs have in common.
struct Work<'a> {
    /// Ours, and the other one.
    programs: [&'a Program; 2],
    seconds: f64,
    window: u64,
}

impl Work<'_> {
    /// All points with one server.
    fn measure(
        &self,
        scene: &mut Scene,
        side: Side,
        round: u32,
        points: &mut [Point],
        progress: &mut Progress,
    ) -> Result<()> {
        let program = self.programs[usize::from(side == Side::Memcached)];
        let server = Running::start(program, side, scene)?;
        server.fill(&scene.host, KEYS)?;
        for point in points {
            let context = || format!("{side}, {}", point.asked);
            let run = self.run(scene, &server, side, round, point.asked).with_context(context)?;
            progress.show(&run, point.asked);
            point.runs.push(run);
        }
        Ok(())
    }

    fn run(
        &self,
        scene: &mut Scene,
        server: &Running,
        side: Side,
        round: u32,
        asked: Asked,
    ) -> Result<Run> {
        // The same requests for each server of a round.
        let mut random = Random::new(u64::from(round) << 8 | asked as u64);
        let popularity = Popularity::new(KEYS, ALPHA);
        let writes = asked.writes();
        scene.prepare(asked.reads(), self.window, || Draw {
            key: popularity.draw(&mut random),
            is_write: random.open_unit() < writes,
        })?;
        scene.load(self.seconds * WARM_UP)?;
        let counted = server.counts(&scene.host)?;
        let before = scene.account(server)?;
        let begun = Instant::now();
        let outcome = scene.load(self.seconds)?;
        let seconds = begun.elapsed().as_secs_f64();
        let used = scene.account(server)?.since(&before);
        let counts = server.counts(&scene.host)?.since(&counted);
        check(asked, &outcome, &counts)?;
        let requests = outcome.reads + outcome.writes - outcome.lost;
        let each = |count: u64| count as f64 / requests as f64;
        Ok(Run {
            round,
            side,
            requests,
            lost: outcome.lost,
            seconds,
            napi_ns: each(used.receiving_ns),
            server_ns: each(used.serving_ns),
            in_kernel: each(counts.in_kernel),
            others: used.others(seconds),
        })
    }
}

/// What the client found and what the server has counted must be the same.
fn check(asked: Asked, outcome: &Outcome, counts: &servers::Counts) -> Result<()> {
    let Outcome { reads, writes, lost, wrong, strange } = *outcome;
    ensure!(wrong == 0 && strange == 0, "answers were wrong: {outcome:?}");
    ensure!(lost * LOST_MAX <= reads + writes, "answers were lost: {outcome:?}");
    let hits = if asked.reads() == Reads::Misses { 0 } else { reads };
    // What is lost is lost before or behind the server.
    for (name, found, sent) in
        [("gets", counts.gets, reads), ("hits", counts.hits, hits), ("sets", counts.sets, writes)]
    {
        let least = sent.saturating_sub(4 * lost);
        ensure!((least..=sent).contains(&found), "{found} {name} were counted of {sent}");
    }
    Ok(())
}

/// How far the whole is.
struct Progress {
    start: Instant,
    done: u32,
    all: u32,
}

impl Progress {
    fn show(&mut self, run: &Run, asked: Asked) {
        self.done += 1;
        let left = self.start.elapsed().mul_f64(f64::from(self.all - self.done)) / self.done;
        println!(
            "{:>3}/{} {:<34} {:<26} {:>6.0} + {:>6.0} ns, {:>5.1} % in the kernel, {:>7.0}/s, \
             {}:{:02} left",
            self.done,
            self.all,
            asked.to_string(),
            run.side.to_string(),
            run.napi_ns,
            run.server_ns,
            100.0 * run.in_kernel,
            run.requests as f64 / run.seconds,
            left.as_secs() / 60,
            left.as_secs() % 60,
        );
    }
}

/// Writes and prints the results, and says what they come to.
fn finish(results: &Results, with_document: bool) -> Result<ExitCode> {
    let directory = directory()?;
    fs::write(directory.join("kernel-plane.json"), serde_json::to_string_pretty(results)?)?;
    let table = results.table();
    fs::write(directory.join("kernel-plane.md"), &table)?;
    let plot = results.plot();
    fs::write(directory.join("kernel-plane.svg"), &plot)?;
    println!("\n{table}\nwritten to {}", directory.display());
    if with_document {
        document::write(" kernel-plane", &table)?;
        document::write_plot("kernel-plane.svg", &plot)?;
    }
    Ok(if results.is_decided() { ExitCode::SUCCESS } else { ExitCode::from(NOISY) })
}

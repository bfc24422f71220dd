//! A load from its options to its report.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::account::Account;
use crate::items::Items;
use crate::keys::Popularity;
use crate::options::{Options, Protocol};
use crate::report::{Latency, Processor, Report};
use crate::sizes::Shape;
use crate::tally::Tally;
use crate::target::Target;
use crate::worker::{Outcome, Pace, Plan, Worker};
use crate::{datagram, fill};

/// Most datagrams that every kernel with UDP GSO sends as one train.
const DATAGRAMS_MAX: usize = 64;

/// Runs the load.
///
/// A server that refuses the kind of request, or answers wrongly, is told in the report.
///
/// # Errors
/// When the options contradict each other, the server cannot be reached, or an account of
/// processor time cannot be read.
pub fn run(options: &Options) -> Result<Report> {
    check(options)?;
    pin(&options.cpus)?;
    let plan = plan(options)?;
    if let Some(words) = fill::refusal(&plan)? {
        return Ok(Report { not_served: Some(words), ..Report::default() });
    }
    if options.fill
        && let Err(error) = fill::fill(&plan)
    {
        return Ok(fault(&error.context("storing the items")));
    }
    if options.scan {
        return Ok(match fill::scan(&plan) {
            Ok(tally) => counted(&tally),
            Err(error) => fault(&error),
        });
    }
    let outcomes = match options.udp {
        Some(server) => datagrams(&plan, server, options.depth),
        None => load(&plan, options.threads),
    };
    match outcomes {
        Ok(outcomes) => Ok(report(&outcomes)),
        Err(error) => Ok(fault(&error)),
    }
}

fn check(options: &Options) -> Result<()> {
    ensure!((0.0..=1.0).contains(&options.gets), "--gets is a share: 0 to 1");
    ensure!(options.threads <= options.connections, "more --threads than --connections");
    ensure!(options.zipf >= 0.0, "--zipf is at least 0");
    ensure!((0.0..=3600.0).contains(&options.seconds), "--seconds is at most an hour");
    ensure!((0.0..=3600.0).contains(&options.warmup), "--warmup is at most an hour");
    ensure!(options.rate.is_none_or(|rate| rate > 0.0), "--rate is more than 0");
    let trains = options.depth as usize <= DATAGRAMS_MAX;
    ensure!(options.udp.is_none() || trains, "a train has at most {DATAGRAMS_MAX} datagrams");
    ensure!(options.udp.is_none() || options.threads == 1, "datagrams are sent by one thread");
    let text = options.protocol == Protocol::Text;
    ensure!(text || options.multiget == 1, "--multiget is for the text protocol");
    ensure!(text || !options.page, "--page is for the text protocol");
    ensure!(options.multiget == 1 || options.gets == 1.0, "--multiget is for gets alone");
    ensure!(
        !options.page || options.keys >= options.connections,
        "fewer --keys than --connections"
    );
    Ok(())
}

fn pin(cpus: &[usize]) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &cpu in cpus {
        ensure!(cpu < CpuSet::MAX_CPU, "there is no processor {cpu}");
        set.set(cpu);
    }
    sched_setaffinity(None, &set).with_context(|| format!("running on processors {cpus:?}"))
}

fn plan(options: &Options) -> Result<Plan> {
    let shape = Shape::of(options);
    let target = match (&options.tcp, &options.unix) {
        (Some(address), _) => Target::Tcp(*address),
        (None, Some(path)) => Target::Unix(path.clone()),
        (None, None) => anyhow::bail!("--tcp or --unix says where the server is"),
    };
    let pace = match options.rate {
        _ if options.page => Pace::Page,
        Some(rate) => Pace::Open { mean_ns: 1e9 * f64::from(options.threads) / rate },
        None => Pace::Closed { depth: options.depth },
    };
    let items = Items::new(options.keys, &shape);
    Ok(Plan {
        target,
        protocol: options.protocol,
        items: if options.no_flags { items.without_flags() } else { items },
        popularity: Popularity::new(options.keys, shape.zipf),
        gets: shape.gets,
        multiget: options.multiget,
        misses: options.misses,
        pace,
        spin: options.spin,
        connections: options.connections,
        seed: options.seed,
        warmup_ns: (options.warmup * 1e9) as u64,
        measure_ns: (options.seconds * 1e9) as u64,
        server: options.server.clone(),
    })
}

/// Loads by datagrams, with one thread.
fn datagrams(plan: &Plan, server: SocketAddr, depth: u32) -> Result<Vec<Outcome>> {
    let worker = datagram::Worker::open(plan, server, depth).context("opening the sockets")?;
    Ok(vec![worker.run()?])
}

/// Loads with all threads and waits for them.
fn load(plan: &Plan, threads: u32) -> Result<Vec<Outcome>> {
    let mut workers = Vec::new();
    let mut first = 0;
    for number in 0..threads {
        let share = plan.connections / threads + u32::from(number < plan.connections % threads);
        workers.push(Worker::connect(plan, first, share).context("connecting to the server")?);
        first += share;
    }
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> =
            workers.into_iter().map(|worker| scope.spawn(move || worker.run(start))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker does not panic")).collect()
    })
}

fn report(outcomes: &[Outcome]) -> Report {
    let mut tally = Tally::new();
    outcomes.iter().for_each(|outcome| tally.add(&outcome.tally));
    let first = &outcomes[0];
    Report {
        seconds: first.seconds,
        server: processor(first.server),
        load: processor(first.load),
        stolen: first.stolen,
        ..counted(&tally)
    }
}

fn counted(tally: &Tally) -> Report {
    let at = |quantile| tally.latency_ns.value_at_quantile(quantile);
    Report {
        requests: tally.requests,
        hits: tally.hits,
        misses: tally.misses,
        lost: tally.lost,
        latency_ns: Latency {
            mean: tally.latency_ns.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: tally.latency_ns.max(),
        },
        ..Report::default()
    }
}

fn fault(error: &anyhow::Error) -> Report {
    Report { fault: Some(format!("{error:#}")), ..Report::default() }
}

fn processor(account: Account) -> Processor {
    Processor { run_ns: account.run_ns, wait_ns: account.wait_ns }
}

//! `session-starts`: how long a start takes that goes on with a memory file: one that was closed,
//! one whose process was killed, with the check behind it, and one whose index has to be built
//! anew. Each start has to have every item.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use session_daemon::clock::Now;
use session_daemon::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig, Stored};
use session_daemon::store::{Kept, MemoryFile, Start, Store};

const VALUE_LEN: usize = 100;
/// Sets of a turn.
const TURN: u64 = 32;
/// Bytes of `-m` for each item: none is to be evicted.
const ROOM: u64 = 200;
/// After so long a change of the file cannot have been the killed process's.
const CHANGE_NOTICED: Duration = Duration::from_millis(100);

/// Measures starts of the store with a memory file; prints them as one line of JSON.
#[derive(Debug, Parser)]
struct Options {
    /// Items in the memory file
    #[arg(long, value_name = "N", default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(100_000..=1_000_000_000))]
    items: u64,
    /// The memory file, which must not exist
    #[arg(long, value_name = "PATH", default_value = "/dev/shm/session-starts")]
    file: PathBuf,
    /// Fill the memory file, and be killed
    #[arg(long, hide = true)]
    fill: bool,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    items: u64,
    memory_bytes: u64,
    processors: usize,
    /// From the start after a kill to the first command.
    killed_ns: u64,
    /// The check behind it, by all processors.
    check_ns: u64,
    /// From the start after an ordinary end to the first command.
    closed_ns: u64,
    /// From the start with a file that something else has touched to the first command.
    rebuilt_ns: u64,
    /// Processor time of that, of all threads.
    rebuilt_cpu_ns: u64,
}

/// Removes the file on every way out.
struct Removed<'p>(&'p Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // Nothing can be done about a file that is gone already.
        let _ = std::fs::remove_file(self.0);
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.fill {
        return fill(&options);
    }
    let shown = options.file.display();
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&options.file)
        .with_context(|| format!("making {shown}"))?;
    let _removed = Removed(&options.file);
    let mut child = Command::new(std::env::current_exe()?);
    child.args(["--fill", "--items", &options.items.to_string()]);
    let status = child.arg("--file").arg(&options.file).status()?;
    ensure!(status.code().is_none(), "filling {shown}: {status}");
    let measured = measure(&options)?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn config(options: &Options) -> Result<StoreConfig> {
    let memory_limit = usize::try_from(options.items * ROOM)?;
    Ok(StoreConfig { memory_limit, workers: processors(), ..StoreConfig::default() })
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Opens the store; how long that took, and how it began.
fn open(options: &Options) -> Result<(Arc<Store>, Start, u64)> {
    let begun = Instant::now();
    let file = OpenOptions::new().read(true).write(true).open(&options.file)?;
    let memory = MemoryFile { file, boot_id: 1, nameless: false, map: None };
    let (store, start) = Store::open(&config(options)?, memory, Now::sample())?;
    Ok((store, start, begun.elapsed().as_nanos() as u64))
}

/// Stores every item, and ends as a process does that is killed.
fn fill(options: &Options) -> Result<()> {
    let (store, start, _) = open(options)?;
    ensure!(matches!(start, Start::Cold(_)), "the file is in use");
    let mut worker = store.worker()?;
    let value = [b'v'; VALUE_LEN];
    for number in 0..options.items {
        let name = format!("{number:024}");
        let key = Key::new(name.as_bytes()).context("24 bytes are a key")?;
        let (flags, now) = (ClientFlags(0), Now::sample());
        let stored = worker.set(key, &value, flags, Lifetime::Never, Mode::Set, now);
        ensure!(matches!(stored, Stored::Stored(_)), "{stored:?}");
        if number % TURN == 0 {
            worker.maintain(now);
            worker.quiesce();
        }
    }
    worker.maintain(Now::sample());
    let us = rustix::process::getpid();
    rustix::process::kill_process(us, rustix::process::Signal::KILL)?;
    bail!("the kernel spared us")
}

fn measure(options: &Options) -> Result<Measured> {
    let (store, start, killed_ns) = open(options)?;
    ensure!(kept(start)?.in_place, "the index was built anew after a kill");
    let check_ns = check(&store)?;
    has_all(&store, options)?;
    ensure!(store.close(), "the store is in use");
    let (store, start, closed_ns) = open(options)?;
    ensure!(kept(start)?.in_place && store.checked().is_none(), "a closed store was checked");
    has_all(&store, options)?;
    drop(store);
    thread::sleep(CHANGE_NOTICED);
    File::open(&options.file)?.set_modified(SystemTime::now())?;
    let cpu_begun_ns = cpu_ns();
    let (store, start, rebuilt_ns) = open(options)?;
    let rebuilt_cpu_ns = cpu_ns() - cpu_begun_ns;
    ensure!(!kept(start)?.in_place, "a file that was changed was believed");
    has_all(&store, options)?;
    Ok(Measured {
        items: options.items,
        memory_bytes: options.items * ROOM,
        processors: processors(),
        killed_ns,
        check_ns,
        closed_ns,
        rebuilt_ns,
        rebuilt_cpu_ns,
    })
}

/// Processor time of this process.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn kept(start: Start) -> Result<Kept> {
    match start {
        Start::Kept(kept) => Ok(kept),
        Start::Cold(cold) => bail!("nothing was kept: {cold}"),
    }
}

/// Checks the whole store with a thread for each processor.
fn check(store: &Arc<Store>) -> Result<u64> {
    let begun = Instant::now();
    let workers: Result<Vec<_>, _> = (0..processors()).map(|_| store.worker()).collect();
    thread::scope(|scope| {
        for mut worker in workers? {
            scope.spawn(move || while worker.check_more() {});
        }
        anyhow::Ok(())
    })?;
    ensure!(
        store.checked().is_some_and(|checked| checked.percent == 100),
        "the check has not ended"
    );
    Ok(begun.elapsed().as_nanos() as u64)
}

/// Whether every item is there.
fn has_all(store: &Arc<Store>, options: &Options) -> Result<()> {
    let held = store.totals().curr_items;
    ensure!(held == options.items, "{held} of {} items are there", options.items);
    Ok(())
}

//! The store's own check of histories (`session-daemon/src/store/tests/history.rs`) with the kernel
//! plane as a reader: threads that write and read the same keys, some through the store's commands
//! and some by requests to the program in the kernel, and for each key an order of all commands that
//! explains every answer. What the program passes up the reader asks the store for, as the daemon
//! would; the moments of call and return are those of both together.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use session_common::plane::{Verdict, trial};
use session_daemon::clock::Now;
use session_daemon::store::Worker;
use session_daemon::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig};
use session_tests::plane_program::{Path, PlaneProgram};
use session_tests::{kernel, require_root, skip};

// The names by which the included file knows the store.
pub(crate) use session_daemon::{clock, store};

#[path = "../../session-daemon/src/store/tests/history.rs"]
#[allow(dead_code, reason = "the store's own tests use all of it")]
mod history;
use history::{
    Answer, Command, Entry, Event, State, Version, below, choose, is_linearizable, name, run,
    version_in,
};

const WRITERS: u64 = 2;
const READERS: u64 = 2;
const KEYS: u64 = 2;
/// Commands of each thread between two moments at which all stand still.
const COMMANDS: usize = 8;
/// The first key; all are text, as the protocol wants them.
const FIRST: u64 = u64::from_be_bytes(*b"key:0000");
/// Seconds that no item's end is nearer than.
const FAR_S: u32 = 100_000;
/// How long a search for a wrong answer may take, on a machine that has other work to do.
const LIMIT: Duration = Duration::from_secs(240);

/// What a run is made of.
#[derive(Clone, Copy)]
struct Plan {
    /// Bits of [`trial`].
    trial: u32,
    memory_limit: usize,
    /// Whether that is too little for all items.
    vanishes: bool,
    rounds: u64,
    /// Longest pause of a writer between two commands, in microseconds.
    pause_us_max: u64,
}

/// Where threads meet between rounds.
struct Meeting {
    barrier: Barrier,
    ends: AtomicBool,
    clock: AtomicU64,
    events: Mutex<Vec<Event>>,
    /// The first answer of the program that is none.
    strange: Mutex<Option<String>>,
    /// The second that the ends of items are counted from.
    base_s: u32,
}

/// What a run came to.
#[derive(Debug, Default)]
struct Found {
    rounds: u64,
    /// Answers of the program by what they said.
    items: u64,
    absences: u64,
    wrong: Option<String>,
}

fn second() -> u32 {
    u32::try_from(Now::sample().boottime_ns / 1_000_000_000).unwrap()
}

impl Meeting {
    /// The same command where it fits a store whose clock runs: items end in a far future. What a
    /// lease makes would have ended long ago.
    fn fitted(&self, command: Command) -> Command {
        let later = |until_s: u32| if until_s == 0 { 0 } else { self.base_s + until_s };
        match command {
            Command::Set(mode, value, until_s) => Command::Set(mode, value, later(until_s)),
            Command::Touch(until_s) => Command::Touch(later(until_s)),
            Command::GetAndTouch(until_s) => Command::GetAndTouch(later(until_s)),
            Command::Lease => Command::Get,
            other => other,
        }
    }

    /// Does commands, whenever all others do.
    fn take_part(&self, mut act: impl FnMut()) {
        loop {
            self.barrier.wait();
            if self.ends.load(Ordering::SeqCst) {
                return;
            }
            act();
            self.barrier.wait();
        }
    }

    /// Notes a command and its answer.
    fn note(&self, key: u64, command: Command, act: impl FnOnce() -> Answer) -> Answer {
        let called = self.clock.fetch_add(1, Ordering::SeqCst);
        let answer = act();
        let returned = self.clock.fetch_add(1, Ordering::SeqCst);
        let event = Event { key, command, answer: answer.clone(), called, returned };
        self.events.lock().unwrap().push(event);
        answer
    }
}

fn write(meeting: &Meeting, mut worker: Worker, seed: u64, pause_us_max: u64) {
    let mut random = seed * 0x9e37_79b9 + 1;
    let mut versions = [1_u64; KEYS as usize];
    meeting.take_part(|| {
        for _ in 0..COMMANDS {
            let key = below(&mut random, KEYS);
            let command = meeting.fitted(choose(&mut random, versions[key as usize]));
            let act = || run(&mut worker, FIRST + key, &command, Now::sample());
            let answer = meeting.note(key, command.clone(), act);
            if let Some(version) = version_in(&answer) {
                versions[key as usize] = version;
            }
            worker.quiesce();
            let (begun, pause) = (Instant::now(), below(&mut random, pause_us_max + 1));
            while begun.elapsed() < Duration::from_micros(pause) {
                spin_loop();
            }
        }
    });
}

fn read(meeting: &Meeting, plane: &PlaneProgram, mut worker: Worker, seed: u64) {
    let mut random = seed * 0x9e37_79b9 + 1;
    meeting.take_part(|| {
        for _ in 0..COMMANDS {
            let key = below(&mut random, KEYS);
            meeting.note(key, Command::Get, || match asked(plane, FIRST + key, meeting.base_s) {
                Ok(Some(found)) => Answer::Item(found),
                Ok(None) => run(&mut worker, FIRST + key, &Command::Get, Now::sample()),
                Err(error) => {
                    meeting.strange.lock().unwrap().get_or_insert(format!("{error:#}"));
                    Answer::Item(None)
                }
            });
            worker.quiesce();
        }
    });
}

/// What the program in the kernel answers, if it does: an item or none.
fn asked(plane: &PlaneProgram, number: u64, base_s: u32) -> Result<Option<Option<Entry>>> {
    let path = Path::v4();
    let request = [b"mg ".as_slice(), &name(number), b" v c t\r\n"].concat();
    let before_s = second();
    let Some(reply) = plane.run(&path.frame(7, &request))? else { return Ok(None) };
    let after_s = second();
    let text = path.text(7, &reply)?;
    if text == b"EN\r\n" {
        return Ok(Some(None));
    }
    let end = text.iter().position(|byte| *byte == b'\n').context("a line")?;
    let line = std::str::from_utf8(&text[..end])?.trim_end();
    let words: Vec<&str> = line.split(' ').collect();
    let ["VA", len, version, left] = words[..] else { anyhow::bail!("{line}") };
    let value = text[end + 1..].strip_suffix(b"\r\n").context("an end")?;
    ensure!(value.len() == len.parse::<usize>()?, "{line}: {} bytes", value.len());
    let left = left.strip_prefix('t').context("a lifetime")?;
    let until_s = match left {
        "-1" => 0,
        _ => {
            let left_s: u32 = left.parse()?;
            let ends = before_s + left_s..=after_s + left_s;
            let found = [400, 800].map(|until_s| base_s + until_s);
            found.into_iter().find(|until_s| ends.contains(until_s)).context("no such end")?
        }
    };
    let version = Version::Is(version.strip_prefix('c').context("a version")?.parse()?);
    let entry = Entry { value: value.to_vec(), version, until_s, stale: false, won: false };
    Ok(Some(Some(entry)))
}

/// Stores other keys, so that buckets split, chunks are used again and memory runs short where it
/// is.
fn disturb(mut worker: Worker, ends: &AtomicBool, keys: u64) {
    let mut random = 77;
    while !ends.load(Ordering::Acquire) {
        let now = Now::sample();
        for _ in 0..16 {
            let name = name(1_000 + below(&mut random, keys));
            let (key, len) = (Key::new(&name).unwrap(), below(&mut random, 300) as usize);
            worker.set(key, &vec![b'x'; len], ClientFlags(0), Lifetime::Never, Mode::Set, now);
            if below(&mut random, 4) == 0 {
                let _ = worker.delete(key, None, now);
            }
        }
        worker.maintain(now);
        worker.quiesce();
    }
}

fn histories(plan: Plan, keys: u64) -> Result<Found> {
    let config = StoreConfig {
        memory_limit: plan.memory_limit,
        item_size_max: 64 << 10,
        workers: (WRITERS + READERS) as usize + 2,
        ..StoreConfig::default()
    };
    let plane = PlaneProgram::load_trial(&config, plan.trial, Now::sample())?;
    let mut reader = plane.store.worker()?;
    let meeting = Meeting {
        barrier: Barrier::new((WRITERS + READERS) as usize + 1),
        ends: AtomicBool::new(false),
        clock: AtomicU64::new(1),
        events: Mutex::default(),
        strange: Mutex::default(),
        base_s: second() + FAR_S,
    };
    let workers = (0..WRITERS + READERS).map(|_| plane.store.worker());
    let workers: Vec<Worker> = workers.collect::<Result<_, _>>()?;
    let disturbing = plane.store.worker()?;
    let (meeting, plane) = (&meeting, Arc::new(plane));
    let found = thread::scope(|scope| -> Result<Found> {
        scope.spawn(|| disturb(disturbing, &meeting.ends, keys));
        let threads: Vec<_> = workers
            .into_iter()
            .zip(1..)
            .map(|(worker, seed)| {
                let plane = Arc::clone(&plane);
                scope.spawn(move || {
                    if seed <= WRITERS {
                        write(meeting, worker, seed, plan.pause_us_max)
                    } else {
                        read(meeting, &plane, worker, seed)
                    }
                })
            })
            .collect();
        let found = judge(meeting, &mut reader, &plan);
        meeting.ends.store(true, Ordering::SeqCst);
        meeting.barrier.wait();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        }
        Ok(found)
    })?;
    let evictions = plane.store.totals().evictions;
    ensure!(!plan.vanishes || evictions > 0 || found.wrong.is_some(), "memory was not short");
    ensure!(plan.vanishes || evictions == 0, "memory was short");
    drop(reader);
    plane.store.validate()?;
    let (items, absences) = (plane.counted(Verdict::Hit)?, plane.counted(Verdict::Miss)?);
    Ok(Found { items, absences, ..found })
}

/// Lets the threads go on, round by round, and judges what they noted.
fn judge(meeting: &Meeting, reader: &mut Worker, plan: &Plan) -> Found {
    let mut states: Vec<State> = vec![None; KEYS as usize];
    let (mut found, begun) = (Found::default(), Instant::now());
    while found.rounds < plan.rounds && found.wrong.is_none() && begun.elapsed() < LIMIT {
        // All begin, and all have done.
        meeting.barrier.wait();
        meeting.barrier.wait();
        for key in 0..KEYS {
            let act = || run(reader, FIRST + key, &Command::Get, Now::sample());
            let Answer::Item(last) = meeting.note(key, Command::Get, act) else {
                unreachable!("a get answers with an item")
            };
            let events = meeting.events.lock().unwrap();
            let of_key: Vec<Event> =
                events.iter().filter(|event| event.key == key).cloned().collect();
            let state = std::mem::replace(&mut states[key as usize], last);
            if !is_linearizable(&of_key, &state, plan.vanishes) {
                found.wrong = Some(format!("from {state:?} no order explains {of_key:#?}"));
            }
        }
        meeting.events.lock().unwrap().clear();
        found.wrong = found.wrong.or(meeting.strange.lock().unwrap().take());
        reader.quiesce();
        found.rounds += 1;
    }
    found
}

fn rounds(plan: &Plan) -> u64 {
    if skip::all() { plan.rounds * 100 } else { plan.rounds }
}

/// Few keys in much memory, and others beside them by which buckets split.
const CALM: Plan =
    Plan { trial: 0, memory_limit: 32 << 20, vanishes: false, rounds: 1_000, pause_us_max: 20 };

/// So little memory that a chunk has another item at once.
const SHORT: Plan = Plan { memory_limit: 1 << 20, vanishes: true, ..CALM };

/// The same with pauses between finding an item and copying it.
const SLOW: Plan = Plan { trial: trial::SLOW, rounds: 60, pause_us_max: 200, ..SHORT };

macro_rules! histories_or_skip {
    ($plan:expr, $keys:expr) => {{
        require_root!();
        if kernel::is_before(5, 18) {
            skip!("the plane needs Linux 5.18");
        }
        let plan: Plan = $plan;
        let found = histories(Plan { rounds: rounds(&plan), ..plan }, $keys)?;
        let Found { rounds, items, absences, .. } = &found;
        eprintln!("{rounds} rounds, in the kernel {items} items and {absences} times none");
        found
    }};
}

#[track_caller]
fn has_an_order(found: &Found) -> Result<()> {
    if let Some(wrong) = &found.wrong {
        anyhow::bail!("{wrong}");
    }
    // Every other command, and some of them are of no item.
    let asked = found.rounds * READERS * COMMANDS as u64;
    for (count, what) in [(found.items, "items"), (found.absences, "absences")] {
        ensure!(count * 10 > asked, "{count} {what} in the kernel of {asked} asked for");
    }
    Ok(())
}

#[test]
fn every_history_with_the_plane_has_an_order() -> Result<()> {
    has_an_order(&histories_or_skip!(CALM, 20_000))
}

#[test]
fn every_history_has_an_order_where_items_are_evicted() -> Result<()> {
    has_an_order(&histories_or_skip!(SHORT, 20_000))
}

#[test]
fn every_history_has_an_order_where_the_plane_takes_long() -> Result<()> {
    has_an_order(&histories_or_skip!(SLOW, 20_000))
}

#[test]
fn without_the_last_look_a_history_has_none() -> Result<()> {
    let believing = Plan { trial: trial::SLOW | trial::BELIEVING, rounds: 1_000_000, ..SLOW };
    let found = histories_or_skip!(believing, 20_000);
    ensure!(found.wrong.is_some(), "{found:?}");
    Ok(())
}

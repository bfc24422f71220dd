//! The kernel plane's program with long pauses between finding an item and copying it, so that
//! writers come between again and again: no answer may show it. The same program without its last
//! look at what led to the item gives wrong answers here, which shows that this test would notice.
//! The same of keys that stay while their buckets split and overflow lines come and go.
#![forbid(unsafe_code)]

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use session_common::hash::{mix, product};
use session_common::plane::{Orders, SECRET_WORDS, Verdict, trial};
use session_daemon::clock::Now;
use session_daemon::store::Worker;
use session_daemon::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig};
use session_tests::plane_program::{Path, PlaneProgram};
use session_tests::wait::EndOnDrop;
use session_tests::{kernel, require_root, skip};

/// Keys whose items all are of one slab class, and live where others lived a moment ago.
const KEYS: usize = 16;
/// Changes in a row, many times as many as one of the program's pauses sees.
const BURST: u64 = 2_000;
/// Longest pause between bursts, in which the program meets items that nobody changes.
const CALM_US_MAX: u64 = 3_000;
/// Answers that a run asks for at least, and hits.
const READS: u64 = 3_000;
/// Keys that come and stay, by which all buckets split several times.
const STAYING: u64 = 100_000;
/// Buckets, of those that are split next, of which keys are asked for.
const SOON: usize = 16;
/// How long a run may take to meet what it waits for, on a machine that has other work to do.
const LIMIT: Duration = Duration::from_secs(240);

/// Changes of a key that were begun, and changes that were acknowledged.
#[derive(Default)]
struct Known {
    begun: AtomicU64,
    done: AtomicU64,
}

fn name(key: usize) -> String {
    format!("key:{key:03}")
}

/// What a change leaves: key and change, and letters that follow from both.
fn value(key: usize, change: u64) -> Vec<u8> {
    let mut value = format!("{key:03}:{change:012}:").into_bytes();
    let letter = b'a' + ((change + key as u64 * 7) % 26) as u8;
    value.resize(200, letter);
    value
}

fn change(worker: &mut Worker, known: &[Known; KEYS], key: usize, now: Now) -> Result<()> {
    let name = name(key);
    let at = Key::new(name.as_bytes()).context("a key")?;
    let next = known[key].done.load(Ordering::Relaxed) + 1;
    known[key].begun.store(next, Ordering::SeqCst);
    // What is deleted and what is replaced leave the index in different ways.
    if next.is_multiple_of(3) {
        worker.delete(at, None, now);
    }
    worker.set(at, &value(key, next), ClientFlags(0), Lifetime::Never, Mode::Set, now);
    known[key].done.store(next, Ordering::SeqCst);
    worker.maintain(now);
    worker.quiesce();
    Ok(())
}

fn write(
    mut worker: Worker,
    known: &[Known; KEYS],
    calm_us_max: u64,
    ends: &AtomicBool,
) -> Result<()> {
    let mut count = 0_u64;
    while !ends.load(Ordering::Relaxed) {
        let now = Now::sample();
        for _ in 0..BURST {
            change(&mut worker, known, count as usize % KEYS, now)?;
            count += 1;
        }
        let calm = Duration::from_micros(count.wrapping_mul(0x9e37_79b9) % (calm_us_max + 1));
        let begun = Instant::now();
        while begun.elapsed() < calm {
            spin_loop();
        }
    }
    Ok(())
}

/// Whether an answer is what one of these changes left, or was there in the middle of one.
fn is_right(key: usize, text: &[u8], least: u64, most: u64) -> bool {
    if text == b"END\r\n" {
        return (least + 1..=most).any(|change| change.is_multiple_of(3));
    }
    let body = text.strip_prefix(format!("VALUE {} 0 200\r\n", name(key)).as_bytes());
    let Some(body) = body.and_then(|body| body.strip_suffix(b"\r\nEND\r\n")) else { return false };
    let digits = body.get(4..16).and_then(|digits| std::str::from_utf8(digits).ok());
    let change = digits.and_then(|digits| digits.parse::<u64>().ok());
    change.is_some_and(|change| (least..=most).contains(&change) && body == value(key, change))
}

/// What the program answered while a writer was at the same items.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    reads: u64,
    right: u64,
    wrong: u64,
    raced: u64,
}

/// Asks until `enough`.
fn run(trial: u32, calm_us_max: u64, enough: impl Fn(&Outcome) -> bool) -> Result<Outcome> {
    // Just enough memory, so that chunks are used again at once.
    let config = StoreConfig {
        memory_limit: 1 << 20,
        item_size_max: 8 << 10,
        workers: 2,
        ..StoreConfig::default()
    };
    let plane = PlaneProgram::load_trial(&config, trial, Now::sample())?;
    let known: [Known; KEYS] = Default::default();
    let mut worker = plane.store.worker()?;
    for key in 0..KEYS {
        change(&mut worker, &known, key, Now::sample())?;
    }
    let (ends, begun) = (AtomicBool::new(false), Instant::now());
    let path = Path::v4();
    let mut outcome = Outcome::default();
    thread::scope(|scope| -> Result<()> {
        let _ends = EndOnDrop(&ends);
        let writer = scope.spawn(|| write(worker, &known, calm_us_max, &ends));
        while !enough(&outcome) && begun.elapsed() < LIMIT {
            let key = outcome.reads as usize % KEYS;
            outcome.reads += 1;
            let least = known[key].done.load(Ordering::SeqCst);
            let reply = plane.run(&path.frame(7, format!("get {}\r\n", name(key)).as_bytes()))?;
            let most = known[key].begun.load(Ordering::SeqCst);
            let Some(reply) = reply else { continue };
            if is_right(key, &path.text(7, &reply)?, least, most) {
                outcome.right += 1;
            } else {
                outcome.wrong += 1;
            }
        }
        ends.store(true, Ordering::Relaxed);
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?
    })?;
    outcome.raced = plane.counted(Verdict::Raced)?;
    eprintln!("trial {trial}: {outcome:?} in {:?}", begun.elapsed());
    plane.store.validate()?;
    Ok(outcome)
}

#[test]
fn no_writer_shows_in_an_answer_that_took_long() -> Result<()> {
    require_root!();
    if kernel::is_before(5, 18) {
        skip!("the plane needs Linux 5.18");
    }
    let enough = |so_far: &Outcome| so_far.reads >= READS && so_far.right >= READS / 20;
    let outcome = run(trial::SLOW, CALM_US_MAX, enough)?;
    ensure!(outcome.wrong == 0, "{outcome:?}");
    ensure!(outcome.right > 0 && outcome.raced > 0, "they did not meet: {outcome:?}");
    Ok(())
}

#[test]
fn without_the_last_look_writers_would_show() -> Result<()> {
    require_root!();
    if kernel::is_before(5, 18) {
        skip!("the plane needs Linux 5.18");
    }
    let outcome = run(trial::SLOW | trial::BELIEVING, 0, |so_far| so_far.wrong > 0)?;
    ensure!(outcome.wrong > 0, "{outcome:?}");
    Ok(())
}

/// What the program said of keys that were there.
#[derive(Clone, Copy, Debug, Default)]
struct Staying {
    found: u64,
    missed: u64,
}

/// The keys that stay, by the buckets that they are in at a level of the index.
struct Map {
    hashes: Vec<u64>,
    level: u32,
    buckets: Vec<Vec<usize>>,
}

impl Map {
    fn new(orders: &Orders) -> Self {
        let hashes = (0..STAYING).map(|number| hash(orders, staying(number).as_bytes()));
        // One bucket, which is level 0.
        Self { hashes: hashes.collect(), level: 0, buckets: vec![(0..STAYING as usize).collect()] }
    }

    /// One of the first `count` keys whose bucket is split soon, if all goes as it should: the next of
    /// `2^level` buckets where there are eight keys a bucket.
    fn split_soon(&mut self, count: usize, random: usize) -> Option<usize> {
        let buckets = count / 8;
        let level = buckets.checked_ilog2()?;
        if level != self.level {
            self.level = level;
            self.buckets = vec![Vec::new(); 1 << level];
            for (number, hash) in self.hashes.iter().enumerate() {
                self.buckets[*hash as usize & ((1 << level) - 1)].push(number);
            }
        }
        let next = buckets - (1 << level) + random % SOON;
        let mut keys = self.buckets[next % (1 << level)].iter();
        keys.find(|number| **number < count).copied()
    }
}

/// The store's hash of a key.
fn hash(orders: &Orders, key: &[u8]) -> u64 {
    let mut sum = product(key.len() as u64, orders.secret[SECRET_WORDS - 1]);
    for (part, secret) in key.chunks(8).zip(orders.secret) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        sum = sum.wrapping_add(product(u64::from_le_bytes(word), secret));
    }
    mix(sum)
}

/// Asks for keys while others come, again and again from an empty store, until `enough`.
fn ask_for_what_stays(trial: u32, enough: impl Fn(&Staying) -> bool) -> Result<Staying> {
    let config = StoreConfig {
        memory_limit: 32 << 20,
        item_size_max: 8 << 10,
        workers: 1,
        ..StoreConfig::default()
    };
    let (mut outcome, begun) = (Staying::default(), Instant::now());
    while !enough(&outcome) && begun.elapsed() < LIMIT {
        let plane = PlaneProgram::load_trial(&config, trial, Now::sample())?;
        let mut map = Map::new(&plane.store.orders());
        let (worker, there) = (plane.store.worker()?, AtomicU64::new(0));
        let ends = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let _ends = EndOnDrop(&ends);
            scope.spawn(|| come(worker, &there, &ends));
            let (path, mut random) = (Path::v4(), 1_usize);
            loop {
                let count = there.load(Ordering::SeqCst);
                if count == STAYING || enough(&outcome) {
                    return Ok(());
                }
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let Some(number) = map.split_soon(count as usize, random >> 33) else { continue };
                let request = format!("mg {}\r\n", staying(number as u64));
                let Some(reply) = plane.run(&path.frame(7, request.as_bytes()))? else { continue };
                match path.text(7, &reply)?.as_slice() {
                    b"HD\r\n" => outcome.found += 1,
                    _ => outcome.missed += 1,
                }
            }
        })?;
        ensure!(plane.store.totals().evictions == 0, "memory was short");
    }
    eprintln!("trial {trial}: {outcome:?} in {:?}", begun.elapsed());
    Ok(outcome)
}

fn staying(number: u64) -> String {
    format!("stays:{number}")
}

/// Stores the keys that stay, and says how many there are.
fn come(mut worker: Worker, there: &AtomicU64, ends: &AtomicBool) {
    for number in (0..STAYING).take_while(|_| !ends.load(Ordering::Relaxed)) {
        let (name, now) = (staying(number), Now::sample());
        let key = Key::new(name.as_bytes()).expect("short");
        worker.set(key, b"", ClientFlags(0), Lifetime::Never, Mode::Set, now);
        worker.maintain(now);
        worker.quiesce();
        there.store(number + 1, Ordering::SeqCst);
    }
}

#[test]
fn a_key_that_stays_is_never_missed() -> Result<()> {
    require_root!();
    if kernel::is_before(5, 18) {
        skip!("the plane needs Linux 5.18");
    }
    let reads = if skip::all() { 100_000 } else { 300 };
    for trial in [0, trial::SLOW_SEARCH] {
        let outcome = ask_for_what_stays(trial, |so_far| so_far.found >= reads)?;
        ensure!(outcome.missed == 0 && outcome.found > 0, "{outcome:?}");
    }
    Ok(())
}

#[test]
fn without_the_last_look_keys_would_be_missed() -> Result<()> {
    require_root!();
    if kernel::is_before(5, 18) {
        skip!("the plane needs Linux 5.18");
    }
    let believing = trial::SLOW_SEARCH | trial::BELIEVING;
    let outcome = ask_for_what_stays(believing, |so_far| so_far.missed > 0)?;
    ensure!(outcome.missed > 0, "{outcome:?}");
    Ok(())
}

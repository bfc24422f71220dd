//! The requests, and what they take. It owns the choice of keys and the measurement; it knows no
//! cache.
#![forbid(unsafe_code)]

use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Result, ensure};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Bytes of a key.
pub(crate) const KEY_LEN: usize = 24;
/// Bytes of a value.
pub(crate) const VALUE_LEN: usize = 100;
/// What a cache may take that can be bounded: more than all items need in any of them.
pub(crate) const LIMIT: usize = 512 << 20;
/// Requests that are made together, as a server does with what a read brings.
const BATCH: usize = 32;
/// Exponent of the keys' popularity by rank.
const ZIPF: f64 = 0.99;
/// Shares of gets, in hundredths.
const GETS: [u32; 2] = [95, 50];
const THREADS: [usize; 2] = [1, 2];
/// Marks a request that stores.
const SET: u32 = 1 << 31;

pub(crate) type Key = [u8; KEY_LEN];
pub(crate) type Value = [u8; VALUE_LEN];

/// A cache or map.
pub(crate) trait Cache: Sync + Sized {
    const NAME: &'static str;
    /// One thread's access to it.
    type Handle<'c>: Handle
    where
        Self: 'c;

    /// An empty one with room for so many items.
    fn new(items: usize) -> Result<Self>;

    fn handle(&self) -> Result<Self::Handle<'_>>;

    /// What has to be filled, each with every key.
    fn parts(&self) -> Result<Vec<Self::Handle<'_>>> {
        Ok(vec![self.handle()?])
    }
}

/// One thread's access to a cache.
pub(crate) trait Handle {
    /// Copies the values of keys to `out`. Calls `found` with each key's place and whether it is
    /// there, when the value has been copied.
    fn get(&mut self, keys: &[Key], out: &mut Value, found: impl FnMut(usize, bool, &Value));

    fn set(&mut self, key: &Key, value: &Value);

    /// Some requests have been answered.
    fn end_turn(&mut self) {}
}

/// What one run took.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    cache: &'static str,
    round: u32,
    threads: usize,
    gets_percent: u32,
    /// Requests of all threads.
    requests: u64,
    /// Keys that were not there, and were stored then.
    misses: u64,
    wall_ns: u64,
    /// Processor time of the thread that took most.
    cpu_ns: u64,
}

/// Requests of each share of gets and each thread.
#[derive(Debug)]
pub(crate) struct Load {
    keys: u32,
    streams: Vec<(u32, Vec<Vec<u32>>)>,
}

impl Load {
    pub(crate) fn new(keys: u32, requests: u32) -> Self {
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=keys)
            .map(|rank| {
                sum += f64::from(rank).powf(-ZIPF);
                sum
            })
            .collect();
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let mut request = |gets_percent: u32| {
            let at = random.share() * sum;
            let rank = sums.partition_point(|sum| *sum < at).min(keys as usize - 1) as u32;
            let stores = random.share() * 100.0 >= f64::from(gets_percent);
            // Neighbours in rank are none in any table: the key's digits follow from this number.
            rank | if stores { SET } else { 0 }
        };
        let most = THREADS[THREADS.len() - 1];
        let mut stream = |gets| (0..requests).map(|_| request(gets)).collect::<Vec<u32>>();
        let streams = GETS.map(|gets| (gets, (0..most).map(|_| stream(gets)).collect()));
        Self { keys, streams: streams.into() }
    }
}

/// xorshift64*.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Scatters numbers over all 32 bits, and what brings them back.
const SCATTER: u32 = 0x9e37_79b1;
const GATHER: u32 = 0x0e8b_2f51;
const _: () = assert!(SCATTER.wrapping_mul(GATHER) == 1);

/// The key of a number: digits in front, by which keys differ.
fn key(number: u32) -> Key {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut key = *b"--------key-of-an-item--";
    let scattered = number.wrapping_mul(SCATTER);
    for (idx, digit) in key[..8].iter_mut().enumerate() {
        *digit = DIGITS[(scattered >> (28 - 4 * idx) & 15) as usize];
    }
    key
}

/// The number of a key.
pub(crate) fn number_of(key: &Key) -> u32 {
    let digit = |byte: u8| u32::from(if byte < b'a' { byte - b'0' } else { byte - b'a' + 10 });
    key[..8].iter().fold(0, |sum, byte| sum << 4 | digit(*byte)).wrapping_mul(GATHER)
}

/// The value of a number, which says which it is.
fn value(number: u32) -> Value {
    let mut value = [b'v'; VALUE_LEN];
    value[..4].copy_from_slice(&number.to_le_bytes());
    value
}

/// Fills a cache and makes every run on it.
pub(crate) fn measure<C: Cache>(load: &Load, round: u32) -> Result<Vec<Run>> {
    let cache = C::new(load.keys as usize)?;
    for mut part in cache.parts()? {
        for number in 0..load.keys {
            part.set(&key(number), &value(number));
            if number as usize % BATCH == 0 {
                part.end_turn();
            }
        }
        part.end_turn();
    }
    let mut runs = Vec::new();
    for (gets_percent, streams) in &load.streams {
        for threads in THREADS {
            runs.push(run(&cache, round, *gets_percent, &streams[..threads])?);
        }
    }
    Ok(runs)
}

fn run<C: Cache>(cache: &C, round: u32, gets_percent: u32, streams: &[Vec<u32>]) -> Result<Run> {
    let barrier = Barrier::new(streams.len());
    let outcomes: Result<Vec<Outcome>> = std::thread::scope(|scope| {
        let threads: Vec<_> = streams
            .iter()
            .map(|stream| scope.spawn(|| requests(cache, stream, &barrier)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread panicked")).collect()
    });
    let outcomes = outcomes?;
    let most = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).max().unwrap_or(0);
    let wrong: u64 = outcomes.iter().map(|outcome| outcome.wrong).sum();
    ensure!(wrong == 0, "{}: {wrong} values are not their keys'", C::NAME);
    Ok(Run {
        cache: C::NAME,
        round,
        threads: streams.len(),
        gets_percent,
        requests: streams.iter().map(|stream| stream.len() as u64).sum(),
        misses: outcomes.iter().map(|outcome| outcome.misses).sum(),
        wall_ns: most(|outcome| outcome.wall_ns),
        cpu_ns: most(|outcome| outcome.cpu_ns),
    })
}

#[derive(Debug, Default)]
struct Outcome {
    misses: u64,
    wrong: u64,
    wall_ns: u64,
    cpu_ns: u64,
}

/// One thread's requests: of each batch the gets, then the sets, then the sets of what was missed.
fn requests<C: Cache>(cache: &C, stream: &[u32], barrier: &Barrier) -> Result<Outcome> {
    let mut handle = cache.handle()?;
    let mut outcome = Outcome::default();
    let mut out = [0; VALUE_LEN];
    let mut numbers = Vec::with_capacity(BATCH);
    let mut keys = Vec::with_capacity(BATCH);
    let mut stores = Vec::with_capacity(BATCH);
    barrier.wait();
    let (start, cpu_start) = (Instant::now(), cpu_ns()?);
    for batch in stream.chunks(BATCH) {
        for request in batch {
            let number = request & !SET;
            if request & SET == 0 {
                numbers.push(number);
                keys.push(key(number));
            } else {
                stores.push(number);
            }
        }
        let (misses, wrong) = (&mut outcome.misses, &mut outcome.wrong);
        handle.get(&keys, &mut out, |idx, found, value| {
            if found {
                *wrong += u64::from(value[..4] != numbers[idx].to_le_bytes());
            } else {
                *misses += 1;
                stores.push(numbers[idx]);
            }
        });
        for number in &stores {
            handle.set(&key(*number), &value(*number));
        }
        handle.end_turn();
        numbers.clear();
        keys.clear();
        stores.clear();
    }
    outcome.wall_ns = start.elapsed().as_nanos() as u64;
    outcome.cpu_ns = cpu_ns()? - cpu_start;
    Ok(outcome)
}

/// Processor time of this thread.
fn cpu_ns() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

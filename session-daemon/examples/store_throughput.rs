//! Measures the store in process: items held, and commands a second.
//!
//! `cargo run --release --example store_throughput -- [threads] [commands a thread]`
//! Keys of 24 bytes, values of 100 bytes, 1 million keys, Zipf-like choice with s = 0.99. Rates
//! are those of the threads' own CPU time, so that they can be read on a busy machine.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use session_daemon::clock::Now;
use session_daemon::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig};
use session_daemon::store::{Store, Worker};

const KEYS: u64 = 1_000_000;
const VALUE: [u8; 100] = [b'v'; 100];
const COMMANDS_PER_TURN: u64 = 64;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Zipf with s = 0.99 over the keys, by inversion of the continuous distribution.
    fn key(&mut self) -> u64 {
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let most = (KEYS as f64).powf(0.01);
        let rank = (1.0 + uniform * (most - 1.0)).powf(100.0) as u64;
        rank.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS
    }
}

fn name(number: u64) -> [u8; 24] {
    let mut name = *b"benchmark:key:0000000000";
    let mut rest = number;
    for digit in name[14..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    name
}

fn set(worker: &mut Worker, number: u64, now: Now) {
    let name = name(number);
    let key = Key::new(&name).expect("24 bytes are a key");
    worker.set(key, &VALUE, ClientFlags(0), Lifetime::Never, Mode::Set, now);
}

fn run(worker: &mut Worker, commands: u64, sets_percent: u64, seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut out = Vec::with_capacity(128);
    let mut hits = 0;
    for _ in 0..commands / COMMANDS_PER_TURN {
        let now = Now::sample();
        for _ in 0..COMMANDS_PER_TURN {
            let number = random.key();
            if random.next() % 100 < sets_percent {
                set(worker, number, now);
                continue;
            }
            let name = name(number);
            let key = Key::new(&name).expect("24 bytes are a key");
            if let Some(item) = worker.get(key, now) {
                out.clear();
                item.value().for_each(|slice| out.extend_from_slice(slice));
                hits += u64::from(std::hint::black_box(&out).len() == VALUE.len());
            }
        }
        worker.maintain(now);
        worker.quiesce();
    }
    hits
}

fn held(memory_limit: usize, value_len: usize) -> Result<u64> {
    let store = Store::create(&StoreConfig { memory_limit, workers: 1, ..Default::default() })?;
    let mut worker = store.worker()?;
    let now = Now::sample();
    let value = vec![b'v'; value_len];
    let count = 2 * memory_limit / (value_len + 24);
    for number in 0..count as u64 {
        let name = name(number);
        let key = Key::new(&name).context("24 bytes are a key")?;
        worker.set(key, &value, ClientFlags(0), Lifetime::Never, Mode::Set, now);
        if number % 64 == 0 {
            worker.quiesce();
        }
    }
    Ok(store.totals().curr_items)
}

fn throughput(memory_limit: usize, threads: u64, commands: u64, sets_percent: u64) -> Result<f64> {
    let workers = threads as usize;
    let store = Store::create(&StoreConfig { memory_limit, workers, ..Default::default() })?;
    let mut ready = (0..threads).map(|_| store.worker()).collect::<Result<Vec<_>, _>>()?;
    let now = Now::sample();
    for number in 0..KEYS {
        set(&mut ready[0], number, now);
    }
    ready[0].quiesce();
    let cpu_s: f64 = std::thread::scope(|scope| {
        let started = ready.into_iter().enumerate().map(|(idx, mut worker)| {
            scope.spawn(move || {
                let start = cpu_s();
                run(&mut worker, commands, sets_percent, idx as u64 + 88_172);
                cpu_s() - start
            })
        });
        let threads: Vec<_> = started.collect();
        threads.into_iter().map(|thread| thread.join().expect("a run does not panic")).sum()
    });
    Ok((threads * threads * commands) as f64 / cpu_s / 1e6)
}

/// Seconds of CPU that this thread has used: waiting for a busy machine's cores does not count.
fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let threads: u64 = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let commands: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    for value_len in [32, 100, 200, 512, 1024, 4096] {
        println!("-m 64, values of {value_len} bytes: {} items", held(64 << 20, value_len)?);
    }
    for sets_percent in [5, 50] {
        for threads in [1, threads] {
            for memory_limit in [512 << 20, 96 << 20] {
                let rate = throughput(memory_limit, threads, commands, sets_percent)?;
                let megabytes = memory_limit >> 20;
                println!("{threads} threads, -m {megabytes}, {sets_percent} % sets: {rate:.2} M/s");
            }
        }
    }
    Ok(())
}

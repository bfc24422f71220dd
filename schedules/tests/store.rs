//! The whole store under random schedules: three threads' commands on few keys while memory is
//! short, pages drain and buckets split; and what a start finds of a process that was killed at any
//! step, with the check behind it beside new commands.

#![forbid(unsafe_code)]
#![cfg(session_schedule)]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use session_schedules::clock::Now;
use session_schedules::store::types::{
    ClientFlags, Deleted, Key, Lifetime, Mode, StoreConfig, Stored,
};
use session_schedules::store::{MemoryFile, Start, Store, Worker};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, Runner, thread};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) use session_schedules::{clock, store};

#[path = "../../session-daemon/src/store/tests/history.rs"]
#[allow(dead_code, reason = "the store's own tests use all of it")]
mod history;
use history::{Command, Event, State, choose, is_linearizable, run, version_in};

const KEYS: u64 = 2;
const THREADS: u64 = 3;
const MEGABYTE: usize = 1 << 20;
/// How long each test tries schedules, in seconds; with `SESSION_TEST_ALL=1`.
const SECONDS: u64 = 2;
const SECONDS_ALL: u64 = 120;
/// Where the sequence of schedules begins, but for the long run, which takes another each time.
const SEED: u64 = 0x5e55;
/// Fewest schedules, however slow the machine is.
const SCHEDULES_MIN: u64 = 10;

fn at(second: u64) -> Now {
    Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: second * 1_000_000_000 }
}

/// Tries random schedules of a body.
fn schedules(body: impl Fn() + Send + Sync + 'static) {
    let all = std::env::var_os("SESSION_TEST_ALL").is_some_and(|all| all == "1");
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.max_time = Some(Duration::from_secs(if all { SECONDS_ALL } else { SECONDS }));
    // The seed is printed, which is enough.
    config.failure_persistence = shuttle::FailurePersistence::None;
    config.max_steps = shuttle::MaxSteps::FailAfter(20_000_000);
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let body = move || {
        body();
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let scheduler = if all {
        RandomScheduler::new(usize::MAX)
    } else {
        RandomScheduler::new_from_seed(SEED, usize::MAX)
    };
    Runner::new(scheduler, config).run(body);
    let count = count.load(Ordering::Relaxed);
    println!("{count} schedules");
    assert!(count >= SCHEDULES_MIN || !all, "only {count} schedules");
    assert!(count > 0, "not one schedule was tried to its end");
}

fn config(workers: usize) -> StoreConfig {
    StoreConfig {
        memory_limit: MEGABYTE,
        item_size_max: 64 << 10,
        workers,
        hash_seed: Some(7),
        ..StoreConfig::default()
    }
}

fn put(worker: &mut Worker, name: &str, len: usize) -> Stored {
    let key = Key::new(name.as_bytes()).unwrap();
    let value = vec![b'x'; len];
    worker.set(key, &value, ClientFlags(0), Lifetime::Never, Mode::Set, at(10))
}

/// The commands of one thread, with the moments at which they were called and had returned.
fn take_part(worker: &mut Worker, clock: &AtomicU64, count: usize) -> Vec<Event> {
    let mut random = thread_rng().r#gen::<u64>() | 1;
    let mut versions = [1; KEYS as usize];
    let mut events = Vec::new();
    for _ in 0..count {
        let key = random % KEYS;
        let command = choose(&mut random, versions[key as usize]);
        let called = clock.fetch_add(1, Ordering::SeqCst);
        let answer = run(worker, key, &command, at(10));
        let returned = clock.fetch_add(1, Ordering::SeqCst);
        if let Some(version) = version_in(&answer) {
            versions[key as usize] = version;
        }
        events.push(Event { key, command, answer, called, returned });
        if random % 2 == 0 {
            worker.quiesce();
        }
    }
    worker.quiesce();
    events
}

/// Runs threads that use the same keys beside one that does something else to the store; checks
/// the answers, and the store behind them.
fn histories(store: &Arc<Store>, vanishes: bool, disturb: fn(&mut Worker)) {
    let clock = Arc::new(AtomicU64::new(1));
    let threads: Vec<_> = (1..THREADS)
        .map(|_| {
            let (store, clock) = (Arc::clone(store), Arc::clone(&clock));
            thread::spawn(move || take_part(&mut store.worker().unwrap(), &clock, 3))
        })
        .collect();
    let mut worker = store.worker().unwrap();
    disturb(&mut worker);
    worker.quiesce();
    let mut events: Vec<Event> =
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    for key in 0..KEYS {
        let called = clock.fetch_add(1, Ordering::SeqCst);
        let answer = run(&mut worker, key, &Command::Get, at(10));
        events.push(Event { key, command: Command::Get, answer, called, returned: called + 1 });
        clock.fetch_add(1, Ordering::SeqCst);
        let of_key: Vec<Event> = events.iter().filter(|event| event.key == key).cloned().collect();
        let start: State = None;
        assert!(is_linearizable(&of_key, &start, vanishes), "no order explains {of_key:#?}");
    }
    drop(worker);
    store.validate().unwrap();
}

#[test]
fn commands_have_an_order_while_buckets_split() {
    schedules(|| {
        let store = Store::create(&config(THREADS as usize + 1)).unwrap();
        let mut worker = store.worker().unwrap();
        // One key more, and buckets are split beside every store.
        for number in 0..256 + 3 {
            put(&mut worker, &number.to_string(), 1);
        }
        drop(worker);
        histories(&store, false, |worker| {
            for number in 0..6 {
                put(worker, &format!("more:{number}"), 1);
            }
        });
    });
}

/// Stores until memory is short.
fn fill(worker: &mut Worker) {
    for number in 0..150 {
        put(worker, &format!("fill:{number}"), if number % 3 == 0 { 20_000 } else { 4_000 });
        worker.quiesce();
    }
}

#[test]
fn commands_have_an_order_while_memory_is_short_and_pages_drain() {
    schedules(|| {
        let store = Store::create(&config(THREADS as usize + 1)).unwrap();
        let mut worker = store.worker().unwrap();
        fill(&mut worker);
        drop(worker);
        assert!(store.totals().evictions > 0);
        histories(&store, true, |worker| {
            let class = worker.store().class_of(7, ClientFlags(0), 4_000) as i32;
            worker.reassign(class, 0, at(10));
            for number in 0..3 {
                put(worker, &format!("new:{number}"), 900);
            }
            worker.maintain(at(11));
        });
    });
}

const WRITERS: u64 = 2;
const OWN_KEYS: u64 = 3;

/// What a writer has begun last and done last with each of its keys; 0 for nothing, and odd
/// numbers for deletions.
type Journal = [[AtomicU64; OWN_KEYS as usize]; 2];

fn own_name(writer: u64, number: u64) -> String {
    format!("{writer}:{number}")
}

/// The length that a version's value has: some lie in one chunk, some in pieces.
fn len_of(version: u64) -> usize {
    [30, 900, 9_000, 200][version as usize / 2 % 4]
}

fn write(mut worker: Worker, writer: u64, journal: &Journal, done: &AtomicBool) {
    for version in (2..).step_by(2).take(5) {
        if done.load(Ordering::Relaxed) {
            break;
        }
        let number = thread_rng().gen_range(0..OWN_KEYS);
        let deletes = thread_rng().gen_range(0..4) == 0;
        let word = version | u64::from(deletes);
        let name = own_name(writer, number);
        let key = Key::new(name.as_bytes()).unwrap();
        journal[0][number as usize].store(word, Ordering::Relaxed);
        if deletes {
            let deleted = worker.delete(key, None, at(10));
            assert!(matches!(deleted, Deleted::Deleted | Deleted::NotFound));
        } else {
            let mut value = version.to_le_bytes().to_vec();
            value.resize(len_of(version), version as u8);
            let stored =
                worker.set(key, &value, ClientFlags(0), Lifetime::Never, Mode::Set, at(10));
            assert!(matches!(stored, Stored::Stored(_)));
        }
        journal[1][number as usize].store(word, Ordering::Relaxed);
        if version % 4 == 0 {
            worker.quiesce();
        }
    }
}

/// The words of a journal.
fn read(journal: &Journal) -> Vec<[u64; 2]> {
    let word = |which: usize, number: usize| journal[which][number].load(Ordering::Relaxed);
    (0..OWN_KEYS as usize).map(|number| [word(0, number), word(1, number)]).collect()
}

fn memory(file: File) -> MemoryFile {
    MemoryFile { file, boot_id: 9, nameless: true, map: None }
}

/// A file like this one as it is at this moment: what a process leaves that is killed now.
fn copy(file: &File) -> File {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let copy = File::from(memfd());
    copy.write_all_at(&bytes, 0).unwrap();
    copy
}

fn memfd() -> std::os::fd::OwnedFd {
    rustix::fs::memfd_create("store", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

/// The version that a key has, its value being whole; 0 for none.
fn version_of(worker: &Worker, name: &str) -> u64 {
    let Some(item) = worker.get(Key::new(name.as_bytes()).unwrap(), at(10)) else { return 0 };
    let value: Vec<u8> = item.value().flatten().copied().collect();
    let version = u64::from_le_bytes(value[..8].try_into().unwrap());
    assert_eq!(value.len(), len_of(version), "{name}: a torn value");
    assert!(value[8..].iter().all(|byte| *byte == version as u8), "{name}: a torn value");
    version
}

/// Whether a version is what a key may have of which that was begun and done last.
fn is_right(found: u64, words: [u64; 2]) -> bool {
    words.into_iter().any(|word| if word & 1 == 1 { found == 0 } else { found == word })
}

/// A process that is killed at a random step, and the next one's start, check and commands.
fn killed_and_started(keys: u64) {
    let file = File::from(memfd());
    let kept = file.try_clone().unwrap();
    let (store, _) = Store::open(&config(4), memory(file), at(10)).unwrap();
    let mut worker = store.worker().unwrap();
    for number in 0..keys {
        put(&mut worker, &format!("fill:{number}"), if number % 40 == 0 { 9_000 } else { 5 });
        worker.quiesce();
    }
    drop(worker);
    let journals: Arc<[Journal; WRITERS as usize]> = Arc::default();
    let done = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (worker, journals) = (store.worker().unwrap(), Arc::clone(&journals));
            let done = Arc::clone(&done);
            thread::spawn(move || write(worker, writer, &journals[writer as usize], &done))
        })
        .collect();
    for _ in 0..thread_rng().gen_range(0..400) {
        thread::yield_now();
    }
    // Nothing between these is a step of the schedule: it is one moment.
    let (left, words) = (copy(&kept), journals.each_ref().map(read));
    done.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop(store);
    start_behind(left, &words);
}

fn start_behind(left: File, words: &[Vec<[u64; 2]>; WRITERS as usize]) {
    let (store, start) = Store::open(&config(4), memory(left), at(10)).unwrap();
    let Start::Kept(kept) = start else { panic!("{start:?}") };
    assert!(kept.in_place && kept.lost == 0, "{kept:?}");
    let checks = {
        let store = Arc::clone(&store);
        thread::spawn(move || {
            let mut worker = store.worker().unwrap();
            while worker.check_more() {}
        })
    };
    let found = Arc::new(Mutex::new(Vec::new()));
    let readers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, found) = (Arc::clone(&store), Arc::clone(&found));
            let words = words[writer as usize].clone();
            thread::spawn(move || {
                let mut worker = store.worker().unwrap();
                for (number, words) in (0..).zip(words) {
                    let name = own_name(writer, number);
                    let version = version_of(&worker, &name);
                    assert!(is_right(version, words), "{name}: {version} of {words:?}");
                    worker.quiesce();
                    let last = match number {
                        0 => put_version(&mut worker, &name, 1_000),
                        1 => {
                            let _ = worker.delete(Key::new(name.as_bytes()).unwrap(), None, at(10));
                            0
                        }
                        _ => version,
                    };
                    found.lock().unwrap().push((name, last));
                    worker.quiesce();
                }
            })
        })
        .collect();
    readers.into_iter().for_each(|thread| thread.join().unwrap());
    checks.join().unwrap();
    let mut worker = store.worker().unwrap();
    while worker.check_more() {}
    for (name, last) in found.lock().unwrap().iter() {
        assert_eq!(version_of(&worker, name), *last, "{name} after the check");
        worker.quiesce();
    }
    for _ in 0..4 {
        put(&mut worker, "turns", 1);
        worker.maintain(at(12));
        worker.quiesce();
    }
    drop(worker);
    assert!(store.checked().is_some_and(|checked| checked.lost == 0 && checked.percent == 100));
    let census = store.validate().unwrap();
    assert_eq!(census.chunks_private, 0, "{census:?}");
}

fn put_version(worker: &mut Worker, name: &str, version: u64) -> u64 {
    let mut value = version.to_le_bytes().to_vec();
    value.resize(len_of(version), version as u8);
    let key = Key::new(name.as_bytes()).unwrap();
    let stored = worker.set(key, &value, ClientFlags(0), Lifetime::Never, Mode::Set, at(10));
    assert!(matches!(stored, Stored::Stored(_)), "{stored:?}");
    version
}

#[test]
fn killed_at_any_step_nothing_is_lost_torn_stale_or_back() {
    schedules(|| killed_and_started(20));
}

#[test]
fn killed_at_any_step_while_buckets_split_nothing_is_lost_torn_stale_or_back() {
    schedules(|| killed_and_started(256 + 4));
}

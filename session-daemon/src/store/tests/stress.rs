//! Several threads on one store: small memory, so that growth, eviction, reuse and moving of
//! pages all run; and ample memory, where nothing may be lost. Longer with `SESSION_TEST_ALL=1`.

use super::{at, key};
use crate::clock::Now;
use crate::store::types::{
    Arithmetic, ClientFlags, Counted, Deleted, Key, Lifetime, Mode, StoreConfig, Stored,
};
use crate::store::{Store, Worker};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Turns of each thread.
fn turns() -> u64 {
    let all = std::env::var_os("SESSION_TEST_ALL").is_some_and(|all| all == "1");
    if all { 200_000 } else { 2_400 }
}

/// Commands in a turn, and turns after which the usual size of values changes.
const COMMANDS: u64 = 16;
const TURNS_PER_SIZE: u64 = 300;

fn create(memory_limit: usize, workers: usize) -> (Arc<Store>, Vec<Worker>) {
    let item_size_max = (memory_limit / 4).min(1 << 20);
    let config = StoreConfig { memory_limit, item_size_max, workers, ..StoreConfig::default() };
    let store = Store::create(&config).unwrap();
    let workers = (0..workers).map(|_| store.worker().unwrap()).collect();
    (store, workers)
}

struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % below
    }
}

/// A value that says whose it is: owner, key, version, and bytes that differ between versions.
fn describe(owner: u64, number: u64, version: u64, len: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(len + 24);
    for word in [owner, number, version] {
        value.extend_from_slice(&word.to_le_bytes());
    }
    let seed = owner * 31 + number * 7 + version * 13;
    value.resize(len + 24, seed as u8);
    value
}

/// Checks a value and returns its version.
#[track_caller]
fn version_of(value: &[u8], owner: u64, number: u64) -> u64 {
    let word = |idx: usize| u64::from_le_bytes(value[idx * 8..idx * 8 + 8].try_into().unwrap());
    assert_eq!((word(0), word(1)), (owner, number), "the value of another key");
    assert!(value == describe(owner, number, word(2), value.len() - 24), "a torn value");
    word(2)
}

struct Own {
    worker: Worker,
    owner: u64,
    random: Random,
    versions: HashMap<u64, Option<u64>>,
    seen: HashMap<(u64, u64), u64>,
    version: u64,
    owners: u64,
    keys: u64,
    usual: [usize; 4],
}

impl Own {
    fn name(owner: u64, number: u64) -> String {
        format!("owner:{owner}:key:{number}")
    }

    fn len(&mut self, turn: u64) -> usize {
        // The usual size shifts, so that pages move between classes.
        let usual = self.usual[(turn / TURNS_PER_SIZE % 4) as usize];
        match self.random.below(400) {
            0 => self.random.below(200_000) as usize,
            1..40 => self.random.below(3_000) as usize,
            _ => usual + self.random.below(64) as usize,
        }
    }

    fn step(&mut self, now: Now, turn: u64) {
        let number = self.random.below(self.keys);
        let name = Self::name(self.owner, number);
        let flags = ClientFlags(self.owner as u32);
        match self.random.below(100) {
            0..40 => self.read(number, now),
            40..75 => {
                self.version += 1;
                let len = self.len(turn);
                let value = describe(self.owner, number, self.version, len);
                let stored = if self.random.below(4) == 0 {
                    self.upload(&name, &value, now)
                } else {
                    let life = Lifetime::Never;
                    self.worker.set(key(name.as_bytes()), &value, flags, life, Mode::Set, now)
                };
                assert!(matches!(stored, Stored::Stored(_)), "{stored:?} for {len} bytes");
                self.versions.insert(number, Some(self.version));
            }
            75..80 => {
                let deleted = self.worker.delete(key(name.as_bytes()), None, now);
                let known = self.versions.insert(number, None).flatten();
                assert!(known.is_some() || deleted == Deleted::NotFound);
            }
            80..84 => {
                let found = self.worker.touch(key(name.as_bytes()), Lifetime::Never, now);
                assert!(!found || self.versions.get(&number).copied().flatten().is_some());
            }
            84..88 => self.compare_and_swap(number, now),
            _ => self.read_other(now),
        }
    }

    fn upload(&mut self, name: &str, value: &[u8], now: Now) -> Stored {
        let flags = ClientFlags(self.owner as u32);
        let k = key(name.as_bytes());
        let mut upload = self.worker.begin_upload(k, flags, value.len()).unwrap();
        for part in value.chunks(7_000) {
            upload.write(&mut self.worker, part, now).unwrap();
        }
        if self.random.below(8) == 0 {
            let mut dropped = self.worker.begin_upload(k, flags, 90_000).unwrap();
            dropped.write(&mut self.worker, value.get(..20_000).unwrap_or(value), now).unwrap();
        }
        self.worker.store_upload(k, upload, flags, Lifetime::Never, Mode::Set, now)
    }

    fn read(&mut self, number: u64, now: Now) {
        let name = Self::name(self.owner, number);
        let Some(item) = self.worker.get(key(name.as_bytes()), now) else { return };
        let value: Vec<u8> = item.value().flatten().copied().collect();
        assert_eq!(item.flags(), ClientFlags(self.owner as u32));
        let version = version_of(&value, self.owner, number);
        let known = self.versions.get(&number).copied().flatten();
        assert_eq!(Some(version), known, "a stale value or a deleted one");
    }

    fn compare_and_swap(&mut self, number: u64, now: Now) {
        let name = Self::name(self.owner, number);
        let k = key(name.as_bytes());
        let Some(cas) = self.worker.get(k, now).map(|item| item.cas()) else { return };
        self.version += 1;
        let value = describe(self.owner, number, self.version, 100);
        let flags = ClientFlags(self.owner as u32);
        match self.worker.set(k, &value, flags, Lifetime::Never, Mode::Cas(cas), now) {
            Stored::Stored(new) => {
                assert!(new > cas);
                self.versions.insert(number, Some(self.version));
            }
            other => assert_eq!(other, Stored::NotFound),
        }
    }

    fn read_other(&mut self, now: Now) {
        let owner = self.random.below(self.owners);
        let numbers: Vec<u64> = (0..4).map(|_| self.random.below(self.keys)).collect();
        let names: Vec<String> = numbers.iter().map(|n| Self::name(owner, *n)).collect();
        let keys: Vec<Key<'_>> = names.iter().map(|name| key(name.as_bytes())).collect();
        let mut items = vec![None; keys.len()];
        self.worker.get_batch(&keys, now, &mut items);
        for (number, item) in numbers.iter().zip(items) {
            let Some(item) = item else { continue };
            let value: Vec<u8> = item.value().flatten().copied().collect();
            let version = version_of(&value, owner, *number);
            let seen = self.seen.entry((owner, *number)).or_default();
            assert!(version >= *seen, "an older version than one seen before");
            *seen = version;
        }
    }

    fn run(mut self) -> Worker {
        for turn in 0..turns() {
            let now = Now { realtime_ns: 0, boottime_ns: 10_000_000_000 + turn * 10_000_000 };
            for _ in 0..COMMANDS {
                self.step(now, turn);
            }
            self.worker.maintain(now);
            self.worker.quiesce();
        }
        self.worker
    }
}

fn own_versions(memory_limit: usize, threads: u64, keys: u64, usual: [usize; 4]) {
    let (store, workers) = create(memory_limit, threads as usize);
    let handles: Vec<_> = workers
        .into_iter()
        .enumerate()
        .map(|(owner, worker)| {
            let own = Own {
                worker,
                owner: owner as u64,
                random: Random(owner as u64 * 977 + 12_345),
                versions: HashMap::new(),
                seen: HashMap::new(),
                version: 0,
                owners: threads,
                keys,
                usual,
            };
            std::thread::spawn(move || own.run())
        })
        .collect();
    let done: Vec<Worker> = handles.into_iter().map(|handle| handle.join().unwrap()).collect();
    let census = store.validate().unwrap();
    assert_eq!(census.chunks_private, 0);
    let totals = store.totals();
    assert!(totals.evictions > 0, "memory was never short");
    assert_eq!(done.len() as u64, threads);
}

#[test]
fn no_value_is_ever_wrong_torn_or_stale_in_little_memory() {
    own_versions(4 << 20, 3, 20_000, [40, 900, 250, 5_000]);
}

#[test]
fn no_value_is_ever_wrong_torn_or_stale_in_large_pages() {
    own_versions(64 << 20, 2, 50_000, [20_000, 900, 9_000, 70_000]);
}

/// Runs `body` in threads on ample memory; then checks that nothing was evicted.
fn together(threads: usize, body: impl Fn(usize, &mut Worker) + Sync) -> (Arc<Store>, Worker) {
    let (store, mut workers) = create(64 << 20, threads + 1);
    let last = workers.pop().unwrap();
    std::thread::scope(|scope| {
        for (idx, mut worker) in workers.into_iter().enumerate() {
            let body = &body;
            scope.spawn(move || {
                body(idx, &mut worker);
                worker.quiesce();
            });
        }
    });
    assert_eq!(store.totals().evictions, 0);
    assert_eq!(store.validate().unwrap().chunks_private, 0);
    (store, last)
}

fn number_of(worker: &Worker, name: &[u8]) -> u64 {
    let item = worker.get(key(name), at(10)).unwrap();
    let text: Vec<u8> = item.value().flatten().copied().collect();
    std::str::from_utf8(&text).unwrap().trim_end().parse().unwrap()
}

fn put(worker: &mut Worker, name: &[u8], value: &[u8], mode: Mode) -> Stored {
    worker.set(key(name), value, ClientFlags(0), Lifetime::Never, mode, at(10))
}

#[test]
fn no_increment_is_lost() {
    const STEPS: u64 = 9_000;
    const NAMES: [&[u8]; 3] = [b"n0", b"n1", b"n2"];
    let sum = AtomicU64::new(0);
    let (_, worker) = together(3, |idx, worker| {
        for name in NAMES {
            put(worker, name, b"0", Mode::Add);
        }
        let mut last = [0; NAMES.len()];
        for step in 0..STEPS as usize {
            let k = (step + idx) % NAMES.len();
            let counted = worker.arithmetic(key(NAMES[k]), Arithmetic::Increment, 1, None, at(10));
            let Counted::Value { value, .. } = counted else { panic!("{counted:?}") };
            assert!(value > last[k], "a counter went back");
            last[k] = value;
            if step % 8 == 0 {
                worker.quiesce();
            }
        }
        sum.fetch_add(STEPS, Ordering::Relaxed);
    });
    let total: u64 = NAMES.iter().map(|name| number_of(&worker, name)).sum();
    assert_eq!(total, sum.into_inner());
}

#[test]
fn compare_and_swap_has_one_winner() {
    let won = AtomicU64::new(0);
    let (_, worker) = together(3, |_, worker| {
        put(worker, b"n", b"0", Mode::Add);
        for _ in 0..6_000 {
            let item = worker.get(key(b"n"), at(10)).unwrap();
            let cas = item.cas();
            let next = number_of(worker, b"n") + 1;
            // The number may be newer than the version: then the version has been replaced.
            match put(worker, b"n", next.to_string().as_bytes(), Mode::Cas(cas)) {
                Stored::Stored(_) => won.fetch_add(1, Ordering::Relaxed),
                other => {
                    assert_eq!(other, Stored::Exists);
                    0
                }
            };
            worker.quiesce();
        }
    });
    assert_eq!(number_of(&worker, b"n"), won.into_inner());
}

#[test]
fn adds_and_deletes_alternate() {
    const NAMES: u64 = 5;
    let balance: Vec<AtomicU64> = (0..NAMES).map(|_| AtomicU64::new(1_000)).collect();
    let (_, worker) = together(3, |idx, worker| {
        let mut random = Random(idx as u64 + 99);
        for step in 0..15_000 {
            let k = random.below(NAMES);
            let name = k.to_le_bytes();
            if random.below(2) == 0 {
                if matches!(put(worker, &name, b"v", Mode::Add), Stored::Stored(_)) {
                    balance[k as usize].fetch_add(1, Ordering::Relaxed);
                }
            } else if worker.delete(key(&name), None, at(10)) == Deleted::Deleted {
                balance[k as usize].fetch_sub(1, Ordering::Relaxed);
            }
            if step % 16 == 0 {
                worker.quiesce();
            }
        }
    });
    for (k, balance) in balance.into_iter().enumerate() {
        let present = worker.get(key(&(k as u64).to_le_bytes()), at(10)).is_some();
        assert_eq!(balance.into_inner(), 1_000 + u64::from(present));
    }
}

#[test]
fn no_append_is_lost() {
    const STEPS: usize = 1_500;
    let (_, worker) = together(3, |idx, worker| {
        put(worker, b"list", b"", Mode::Add);
        for step in 0..STEPS {
            let token = [b'a' + idx as u8, (step % 256) as u8];
            let mode = if idx == 0 { Mode::Prepend } else { Mode::Append };
            assert!(matches!(put(worker, b"list", &token, mode), Stored::Stored(_)));
            worker.quiesce();
        }
    });
    let item = worker.get(key(b"list"), at(10)).unwrap();
    let list: Vec<u8> = item.value().flatten().copied().collect();
    assert_eq!(list.len(), 3 * STEPS * 2);
    for idx in 0..3_u8 {
        let mut steps: Vec<u8> =
            list.chunks(2).filter(|token| token[0] == b'a' + idx).map(|token| token[1]).collect();
        if idx == 0 {
            steps.reverse();
        }
        assert!(steps.iter().enumerate().all(|(step, seen)| *seen == step as u8));
    }
}

#[test]
fn a_key_that_stays_is_found_while_the_index_grows() {
    const STAYING: u64 = 3_000;
    let ready = AtomicBool::new(false);
    let done = AtomicBool::new(false);
    let (store, _) = together(3, |idx, worker| {
        if idx == 0 {
            for n in 0..STAYING {
                put(worker, format!("stay{n}").as_bytes(), &n.to_le_bytes(), Mode::Set);
            }
            ready.store(true, Ordering::Release);
            for n in 0..60_000 {
                put(worker, format!("new{n}").as_bytes(), b"v", Mode::Set);
                if n % 32 == 0 {
                    worker.quiesce();
                }
            }
            done.store(true, Ordering::Release);
        } else {
            while !ready.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let mut n = idx as u64;
            while !done.load(Ordering::Acquire) {
                n = (n + 7) % STAYING;
                let item = worker.get(key(format!("stay{n}").as_bytes()), at(10));
                assert_eq!(item.unwrap().value().next().unwrap(), n.to_le_bytes());
                if n.is_multiple_of(32) {
                    worker.quiesce();
                }
            }
        }
    });
    assert!(store.validate().unwrap().buckets > 60_000 / 8);
}

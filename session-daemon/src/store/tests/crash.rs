//! What is left when the process ends at any moment: a child of this test program works on a
//! store in a file, is killed, and the store is taken over and compared with the child's journal.
//!
//! The journal has two words a key: what was begun last, and what was done last.

use super::{FLAGS, at, key};
use crate::store::attach::Start;
use crate::store::failpoint::{STEPS, VARIABLE};
use crate::store::recover::Kept;
use crate::store::types::{Deleted, Lifetime, Mode, StoreConfig, Stored};
use crate::store::{MemoryFile, OutsideReader, Store, Worker};
use rustix::thread::{Timespec, nanosleep};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Tells the child where the store and the journal are, and how it is to work.
const DIRECTORY: &str = "SESSION_TEST_CRASH_DIRECTORY";
const ROUND: &str = "SESSION_TEST_CRASH_ROUND";
const LIMIT: &str = "SESSION_TEST_CRASH_MEGABYTES";
const WRITERS: u64 = 2;
const KEYS: u64 = 3_000;
/// Limits of a store that holds all keys, with small pages so that its index grows soon, and of
/// one that does not.
const AMPLE: usize = 60;
const TIGHT: usize = 4;
/// What a child does before it ends by itself, so that none outlives a failed test for long.
const COMMANDS_MAX: u64 = 1_000_000;
/// The same for a child that is to end at a step.
const COMMANDS_TO_STEP: u64 = 6_000;
const BOOT: u128 = 99;

struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % below
    }
}

/// A word of the journal: a version, and whether it is a deletion.
fn word(version: u64, deletes: bool) -> u64 {
    version << 1 | u64::from(deletes)
}

fn name(number: u64) -> String {
    format!("crash:{number}")
}

/// A value that says whose it is, and would show that it is of two versions.
fn describe(number: u64, version: u64, len: usize) -> Vec<u8> {
    let mut value = [number, version, len as u64].map(u64::to_le_bytes).concat();
    let mut random = Random(number << 32 ^ version ^ 0x9e37_79b9_7f4a_7c15);
    let word = random.below(u64::MAX).to_le_bytes();
    value.extend(word.iter().cycle().take(len));
    value
}

fn version_of(number: u64, value: &[u8]) -> u64 {
    let word = |idx: usize| u64::from_le_bytes(value[idx * 8..idx * 8 + 8].try_into().unwrap());
    assert_eq!(word(0), number, "the value of another key");
    assert!(value == describe(number, word(1), value.len() - 24), "a torn value");
    word(1)
}

fn config(megabytes: usize) -> StoreConfig {
    StoreConfig {
        memory_limit: megabytes << 20,
        item_size_max: 400_000,
        workers: WRITERS as usize,
        ..StoreConfig::default()
    }
}

fn open(directory: &Path, name: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).open(directory.join(name)).unwrap()
}

fn attach(directory: &Path, megabytes: usize, round: u64) -> (Arc<Store>, Start) {
    let memory = MemoryFile { file: open(directory, "store"), boot_id: BOOT, nameless: false };
    Store::open(&config(megabytes), memory, at(10 + round)).unwrap()
}

fn journal_word(journal: &File, number: u64, which: u64) -> u64 {
    let mut word = [0; 8];
    // A journal that is too short has not heard of the key.
    let _ = journal.read_exact_at(&mut word, (number * 2 + which) * 8);
    u64::from_le_bytes(word)
}

fn note(journal: &File, number: u64, which: u64, word: u64) {
    journal.write_all_at(&word.to_le_bytes(), (number * 2 + which) * 8).unwrap();
}

/// The child's work; nothing when it is not a child.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (round, megabytes) = (number(ROUND), number(LIMIT) as usize);
    let directory = Path::new(&directory);
    let (store, _) = attach(directory, megabytes, round);
    let journal = open(directory, "journal");
    println!("\nworking");
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (worker, journal) = (store.worker().unwrap(), &journal);
            scope.spawn(move || work(worker, journal, writer, round));
        }
    });
}

fn work(mut worker: Worker, journal: &File, writer: u64, round: u64) {
    let mut random = Random((round << 8 | writer).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let now = at(10 + round);
    let usual = [20, 200, 1_500, 6_000][(round % 4) as usize];
    let to_step = std::env::var_os(VARIABLE).is_some();
    for command in 0..if to_step { COMMANDS_TO_STEP } else { COMMANDS_MAX } {
        let number = random.below(KEYS / WRITERS) * WRITERS + writer;
        let name = name(number);
        let key = key(name.as_bytes());
        let version = (journal_word(journal, number, 0) >> 1) + 1;
        let deletes = random.below(10) == 0;
        note(journal, number, 0, word(version, deletes));
        if deletes {
            let deleted = worker.delete(key, None, now);
            assert!(matches!(deleted, Deleted::Deleted | Deleted::NotFound));
        } else {
            let len = match random.below(200) {
                0 => 100_000 + random.below(150_000),
                1..8 => 8_000 + random.below(40_000),
                _ => random.below(usual),
            };
            let value = describe(number, version, len as usize);
            let stored = if len > 8_000 && random.below(2) == 0 {
                let mut upload = worker.begin_upload(key, FLAGS, value.len()).unwrap();
                value.chunks(5_000).for_each(|part| upload.write(&mut worker, part, now).unwrap());
                worker.store_upload(key, upload, FLAGS, Lifetime::Never, Mode::Set, now)
            } else {
                worker.set(key, &value, FLAGS, Lifetime::Never, Mode::Set, now)
            };
            assert!(matches!(stored, Stored::Stored(_)), "{stored:?}");
        }
        note(journal, number, 1, word(version, deletes));
        if command % 8 == 0 {
            let _ = worker.touch(key, Lifetime::Never, now);
            worker.maintain(now);
            worker.quiesce();
        }
    }
}

fn start_child(directory: &Path, megabytes: usize, round: u64, step: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["store::tests::crash::child", "--exact", "--nocapture"]);
    command.env(DIRECTORY, directory).env(ROUND, round.to_string());
    command.env(LIMIT, megabytes.to_string());
    if let Some(step) = step {
        command.env(VARIABLE, step);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Waits until the child works; false if it ended before.
fn is_working(child: &mut Child) -> bool {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).any(|line| line == "working")
}

/// Takes over what a child left and compares it with the journal. Returns how many keys had been
/// stored last, and how many of them are there.
fn verify(directory: &Path, megabytes: usize, round: u64) -> (u64, u64) {
    let (store, start) = attach(directory, megabytes, round);
    assert!(matches!(start, Start::Kept(Kept { lost: 0, .. })), "{start:?}");
    let census = store.validate().unwrap();
    assert_eq!((census.chunks_private, census.chunks_in_limbo), (0, 0), "{census:?}");
    let journal = open(directory, "journal");
    let mut worker = store.worker().unwrap();
    let (mut stored, mut found) = (0, 0);
    for number in 0..KEYS {
        let [begun, done] = [0, 1].map(|which| journal_word(&journal, number, which));
        let now = at(10 + round);
        let name = name(number);
        let value = worker.get(key(name.as_bytes()), now);
        let value = value.map(|item| item.value().flatten().copied().collect::<Vec<u8>>());
        match value {
            Some(value) => {
                let there = word(version_of(number, &value), false);
                assert!(there == begun || there == done, "{number}: {there} of {begun}, {done}");
                found += 1;
            }
            None => stored += u64::from(begun == done && done != 0 && done & 1 == 0),
        }
    }
    worker.quiesce();
    (stored + found, found)
}

/// Kills children at random moments.
fn rounds(megabytes: usize, count: u64, evicts: bool) {
    let directory = tempfile::Builder::new().prefix("store-").tempdir_in("/dev/shm").unwrap();
    let directory = directory.path();
    let mut random = Random(u64::from(std::process::id()) << 20 | 1);
    let mut held = 0;
    for round in 0..count {
        let mut child = start_child(directory, megabytes, round, None);
        assert!(is_working(&mut child), "round {round}");
        let tv_nsec = random.below(if round % 2 == 0 { 20_000_000 } else { 200_000_000 }) as i64;
        let _ = nanosleep(&Timespec { tv_sec: 0, tv_nsec });
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "round {round}");
        let (stored, found) = verify(directory, megabytes, round);
        assert!(evicts || stored == found, "round {round}: {found} of {stored}");
        held += found;
    }
    assert!(held > count * KEYS / 50, "the children did work: {held}");
}

/// What another process copies from the mapping while a child works on it is what the journal
/// says, whole, or missing where the child evicts.
fn copies(megabytes: usize, evicts: bool) {
    let directory = tempfile::Builder::new().prefix("store-").tempdir_in("/dev/shm").unwrap();
    let directory = directory.path();
    let journal = open(directory, "journal");
    let (mut found, mut steady) = (0_u64, 0_u64);
    for round in 0..count(4).min(40) {
        let mut child = start_child(directory, megabytes, round, None);
        assert!(is_working(&mut child), "round {round}");
        let memory = MemoryFile { file: open(directory, "store"), boot_id: BOOT, nameless: false };
        let reader = OutsideReader::open(&memory, at(10 + round)).unwrap().unwrap();
        let mut random = Random(round + 77);
        for _ in 0..3_000 {
            let number = random.below(KEYS);
            let words = || [0, 1].map(|which| journal_word(&journal, number, which));
            let before = words();
            let value = reader.copy(key(name(number).as_bytes()), at(10 + round));
            let after = words();
            let there = value.map(|value| version_of(number, &value));
            if let Some(there) = there {
                assert!(there >= before[1] >> 1, "{number}: {there} is older than {before:?}");
                assert!(there <= after[0] >> 1, "{number}: {there} is newer than {after:?}");
                found += 1;
            }
            // Nobody was at it: the last done is there, unless it was evicted.
            if before == after && before[0] == before[1] {
                let deleted = before[1] & 1 == 1 || before[1] == 0;
                assert!(!deleted || there.is_none(), "{number}: {there:?} was deleted");
                assert!(evicts || deleted || there.is_some(), "{number}: {before:?} is missing");
                steady += u64::from(!deleted);
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        verify(directory, megabytes, round);
    }
    assert!(found > 100 && steady > 100, "{found} found, {steady} steady");
}

#[test]
fn another_process_copies_whole_items_only() {
    copies(AMPLE, false);
}

#[test]
fn another_process_copies_whole_items_only_while_memory_is_reused() {
    copies(TIGHT, true);
}

fn count(few: u64) -> u64 {
    let all = std::env::var_os("SESSION_TEST_ALL").is_some_and(|all| all == "1");
    if all { 500 } else { few }
}

#[test]
fn killed_at_any_moment_nothing_is_lost_torn_stale_or_back() {
    rounds(AMPLE, count(12), false);
}

#[test]
fn killed_at_any_moment_under_pressure_nothing_is_torn_stale_or_back() {
    rounds(TIGHT, count(12), true);
}

#[test]
fn ended_at_any_step_nothing_is_lost_torn_stale_or_back() {
    let directory = tempfile::Builder::new().prefix("store-").tempdir_in("/dev/shm").unwrap();
    let mut reached = HashSet::new();
    for (idx, step) in STEPS.iter().enumerate() {
        // The tight one, so that pages drain and are moved; the other, so that the index grows.
        for megabytes in [AMPLE, TIGHT] {
            let directory = directory.path().join(format!("{idx}-{megabytes}"));
            std::fs::create_dir(&directory).unwrap();
            // Taking over needs something to take over.
            start_child(&directory, megabytes, 0, Some("insert: decided:1000")).wait().unwrap();
            for round in 1..=count(1).min(2) {
                let asked = format!("{step}:{}", (round - 1) * 7);
                // Ended by the step, or by its number of commands where that is not reached.
                let status =
                    start_child(&directory, megabytes, round, Some(&asked)).wait().unwrap();
                let by_step = status.signal() == Some(6);
                assert!(status.success() || by_step, "{asked}: {status}");
                if by_step {
                    reached.insert(*step);
                }
                let (stored, found) = verify(&directory, megabytes, round);
                assert!(megabytes == TIGHT || stored == found, "{asked}: {found} of {stored}");
            }
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }
    let missed: Vec<_> = STEPS.iter().filter(|step| !reached.contains(*step)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

//! What is left when the process ends at any moment: a child of this test program works on a
//! store in a file, is killed, and the store is taken over and compared with the child's journal.
//!
//! The journal has two words a key: what was begun last, and what was done last.

use super::resume::settle;
use super::{FLAGS, at, key};
use crate::clock::Now;
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
const KEYS: u64 = 4_000;
/// Limits of a store that holds all keys, with small pages so that its index grows soon, and of
/// one that does not.
const AMPLE: usize = 60;
const TIGHT: usize = 4;
/// What a child does before it ends by itself, so that none outlives a failed test for long.
const COMMANDS_MAX: u64 = 1_000_000;
/// The same for a child that is to end at a step.
const COMMANDS_TO_STEP: u64 = 8_000;
/// A step that is not reached so often: the child ends by its number of commands, and closes.
const NEVER: &str = "set: private:999999999";
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

/// A word of the journal: a version, whether it is a deletion, and the second at which it expires.
fn word(version: u64, deletes: bool, exptime_s: u64) -> u64 {
    exptime_s << 32 | version << 1 | u64::from(deletes)
}

fn version_in(word: u64) -> u64 {
    (word & 0xffff_ffff) >> 1
}

/// Whether a key of which this was done last has nothing at a second.
fn is_gone(word: u64, second: u64) -> bool {
    word == 0 || word & 1 == 1 || (1..=second).contains(&(word >> 32))
}

fn name(number: u64) -> String {
    format!("crash:{number}")
}

/// A value that says whose it is, and would show that it is of two versions.
fn describe(number: u64, version: u64, exptime_s: u64, len: usize) -> Vec<u8> {
    let mut value = [number, version, exptime_s, len as u64].map(u64::to_le_bytes).concat();
    let mut random = Random(number << 32 ^ version ^ 0x9e37_79b9_7f4a_7c15);
    let word = random.below(u64::MAX).to_le_bytes();
    value.extend(word.iter().cycle().take(len));
    value
}

/// The word of the journal for a value that was found.
fn word_of(number: u64, value: &[u8]) -> u64 {
    let word = |idx: usize| u64::from_le_bytes(value[idx * 8..idx * 8 + 8].try_into().unwrap());
    assert_eq!(word(0), number, "the value of another key");
    let [version, exptime_s] = [1, 2].map(word);
    assert!(value == describe(number, version, exptime_s, value.len() - 32), "a torn value");
    self::word(version, false, exptime_s)
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

/// The store's file. That it has no name for others makes a start go on with it as it stands.
fn memory(directory: &Path) -> MemoryFile {
    MemoryFile { file: open(directory, "store"), boot_id: BOOT, nameless: true, map: None }
}

fn attach(directory: &Path, megabytes: usize, round: u64) -> (Arc<Store>, Start) {
    Store::open(&config(megabytes), memory(directory), at(10 + round)).unwrap()
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
    // What looks at all of it is done where a step of that is asked for.
    let step = std::env::var(VARIABLE).unwrap_or_default();
    let memory = MemoryFile { nameless: !step.starts_with("recover"), ..memory(directory) };
    let (store, _) = Store::open(&config(megabytes), memory, at(10 + round)).unwrap();
    let journal = open(directory, "journal");
    // The index grows when the check behind the start is done; else both go on side by side.
    if !step.is_empty() || round % 2 == 1 {
        settle(&store, &mut store.worker().unwrap());
    }
    println!("\nworking");
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (worker, journal) = (store.worker().unwrap(), &journal);
            scope.spawn(move || work(worker, journal, writer, round, megabytes == TIGHT));
        }
    });
    assert!(store.close());
}

/// `evicts`: items may go, so that pages may be drained at any time.
fn work(mut worker: Worker, journal: &File, writer: u64, round: u64, evicts: bool) {
    let mut random = Random((round << 8 | writer).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let now = at(10 + round);
    let usual = [20, 200, 1_500, 6_000][(round % 4) as usize];
    let to_step = std::env::var_os(VARIABLE).is_some();
    for command in 0..if to_step { COMMANDS_TO_STEP } else { COMMANDS_MAX } {
        let now = Now { boottime_ns: now.boottime_ns + command * 500, ..now };
        let number = random.below(KEYS / WRITERS) * WRITERS + writer;
        let name = name(number);
        let key = key(name.as_bytes());
        let version = version_in(journal_word(journal, number, 0)) + 1;
        let deletes = random.below(10) == 0;
        // Some end before the next round, some much later, most never.
        let exptime_s = match random.below(8) {
            0 if !deletes => 11 + round,
            1 if !deletes => 100_000,
            _ => 0,
        };
        let lifetime = match exptime_s {
            0 => Lifetime::Never,
            second => Lifetime::Until(second as u32),
        };
        note(journal, number, 0, word(version, deletes, exptime_s));
        if deletes {
            let deleted = worker.delete(key, None, now);
            assert!(matches!(deleted, Deleted::Deleted | Deleted::NotFound));
        } else {
            let len = match random.below(200) {
                0 => 100_000 + random.below(150_000),
                1..8 => 8_000 + random.below(40_000),
                _ => random.below(usual),
            };
            let value = describe(number, version, exptime_s, len as usize);
            let stored = if len > 8_000 && random.below(2) == 0 {
                let mut upload = worker.begin_upload(key, FLAGS, value.len()).unwrap();
                value.chunks(5_000).for_each(|part| upload.write(&mut worker, part, now).unwrap());
                worker.store_upload(key, upload, FLAGS, lifetime, Mode::Set, now)
            } else {
                worker.set(key, &value, FLAGS, lifetime, Mode::Set, now)
            };
            assert!(matches!(stored, Stored::Stored(_)), "{stored:?}");
        }
        note(journal, number, 1, word(version, deletes, exptime_s));
        if command % 8 == 0 {
            let _ = worker.touch(key, lifetime, now);
            worker.maintain(now);
            worker.quiesce();
        }
        // All that such a page holds is worth moving.
        if evicts && command % 16 == 15 {
            let class = worker.store().class_of(10, FLAGS, 32 + random.below(usual) as usize);
            let _ = worker.reassign(class as i32, 0, now);
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
/// stored last, and how many of them are there. `anew` if it left nothing to go on with.
fn verify(directory: &Path, megabytes: usize, round: u64, anew: bool) -> (u64, u64) {
    // Now and then with a look at all of it; else as it stands, and at times without the check.
    let memory = MemoryFile { nameless: round % 5 != 4, ..memory(directory) };
    let (store, start) = Store::open(&config(megabytes), memory, at(10 + round)).unwrap();
    let Start::Kept(kept) = start else { panic!("{start:?}") };
    assert_eq!((kept.lost, kept.in_place), (0, round % 5 != 4 && !anew), "round {round}");
    if round % 5 == 2 {
        return compare(&store, directory, round);
    }
    check(&store, start, directory, round)
}

/// Compares with the journal before and after the check, and validates.
fn check(store: &Arc<Store>, start: Start, directory: &Path, round: u64) -> (u64, u64) {
    assert!(matches!(start, Start::Kept(Kept { lost: 0, .. })), "{start:?}");
    let before = compare(store, directory, round);
    let mut worker = store.worker().unwrap();
    settle(store, &mut worker);
    drop(worker);
    let census = store.validate().unwrap();
    assert_eq!((census.chunks_private, census.chunks_in_limbo), (0, 0), "{census:?}");
    assert!(store.checked().is_none_or(|checked| checked.lost == 0));
    assert_eq!(compare(store, directory, round), before);
    before
}

/// How many keys had been stored last, and how many of them are there, none of them another.
fn compare(store: &Arc<Store>, directory: &Path, round: u64) -> (u64, u64) {
    let journal = open(directory, "journal");
    let mut worker = store.worker().unwrap();
    let (mut stored, mut found) = (0, 0);
    for number in 0..KEYS {
        let [begun, done] = [0, 1].map(|which| journal_word(&journal, number, which));
        let now = at(10 + round);
        let name = name(number);
        let Some(item) = worker.get(key(name.as_bytes()), now) else {
            stored += u64::from(begun == done && !is_gone(done, 10 + round));
            continue;
        };
        let there = word_of(number, &item.value().flatten().copied().collect::<Vec<u8>>());
        assert!(there == begun || there == done, "{number}: {there:x} of {begun:x}, {done:x}");
        let exptime_s = match item.lifetime() {
            Lifetime::Until(second) => u64::from(second),
            _ => 0,
        };
        assert_eq!(exptime_s, there >> 32, "{number}: the lifetime of another version");
        found += 1;
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
        let (stored, found) = verify(directory, megabytes, round, false);
        assert!(evicts || stored == found, "round {round}: {found} of {stored}");
        held += found;
    }
    assert!(held > count * KEYS / 50, "the children did work: {held}");
}

/// Children that end by themselves close their store; the next start goes on with that.
fn closes(megabytes: usize, count: u64, evicts: bool) {
    let directory = tempfile::Builder::new().prefix("store-").tempdir_in("/dev/shm").unwrap();
    let directory = directory.path();
    for round in 0..count {
        let mut child = start_child(directory, megabytes, round, Some(NEVER));
        assert!(child.wait().unwrap().success(), "round {round}");
        let (store, start) = attach(directory, megabytes, round);
        assert!(matches!(start, Start::Kept(Kept { in_place: true, .. })), "{start:?}");
        let (stored, found) = check(&store, start, directory, round);
        assert!(evicts || stored == found, "round {round}: {found} of {stored}");
        assert!(store.close());
    }
}

#[test]
fn closed_again_and_again_nothing_is_lost() {
    closes(AMPLE, count(4).min(50), false);
    closes(TIGHT, count(4).min(50), true);
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
        let reader = OutsideReader::open(&memory(directory), at(10 + round)).unwrap().unwrap();
        let mut random = Random(round + 77);
        for _ in 0..3_000 {
            let number = random.below(KEYS);
            let words = || [0, 1].map(|which| journal_word(&journal, number, which));
            let before = words();
            let value = reader.copy(key(name(number).as_bytes()), at(10 + round));
            let after = words();
            let there = value.map(|value| version_in(word_of(number, &value)));
            if let Some(there) = there {
                let [least, most] = [before[1], after[0]].map(version_in);
                assert!(there >= least, "{number}: {there} is older than {before:x?}");
                assert!(there <= most, "{number}: {there} is newer than {after:x?}");
                found += 1;
            }
            // Nobody was at it: the last done is there, unless it was evicted.
            if before == after && before[0] == before[1] {
                let deleted = is_gone(before[1], 10 + round);
                assert!(!deleted || there.is_none(), "{number}: {there:?} was deleted");
                assert!(evicts || deleted || there.is_some(), "{number}: {before:?} is missing");
                steady += u64::from(!deleted);
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        verify(directory, megabytes, round, false);
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
            // Taking over needs something to take over,
            // and taking a note away one that was closed.
            let before = if step.starts_with("close") { NEVER } else { "insert: decided:1000" };
            start_child(&directory, megabytes, 0, Some(before)).wait().unwrap();
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
                // A look at all of it that was cut short is begun again.
                let anew = by_step && step.starts_with("recover");
                let (stored, found) = verify(&directory, megabytes, round, anew);
                assert!(megabytes == TIGHT || stored == found, "{asked}: {found} of {stored}");
            }
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }
    let missed: Vec<_> = STEPS.iter().filter(|step| !reached.contains(*step)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

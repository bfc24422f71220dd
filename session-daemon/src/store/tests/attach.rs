//! Starts from a memory file that an ended store left: whole, changed, damaged.

use super::{FLAGS, at, key, value};
use crate::clock::Now;
use crate::store::attach::{Cold, Start};
use crate::store::buckets::Buckets;
use crate::store::item::{GONE, LINKED};
use crate::store::layout::{CHUNK_LEN_HALF, LAYOUT_VERSION, PageState};
use crate::store::recover::Kept;
use crate::store::sync::Ordering;
use crate::store::types::{Flush, Lifetime, Mode, StoreConfig, StoreError, Stored};
use crate::store::{MemoryFile, Store, Worker};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

pub(super) const BOOT: u128 = 0x1234_5678_9abc_def0_0fed_cba9_8765_4321;

pub(super) fn file() -> File {
    File::from(memfd_create("store", MemfdFlags::CLOEXEC).unwrap())
}

/// The file for a start that looks at all of it, whoever has had it.
pub(super) fn memory(file: &File) -> MemoryFile {
    MemoryFile { file: file.try_clone().unwrap(), boot_id: BOOT, nameless: false, map: None }
}

pub(super) fn config(megabytes: usize) -> StoreConfig {
    let memory_limit = megabytes << 20;
    StoreConfig { memory_limit, item_size_max: memory_limit / 4, ..StoreConfig::default() }
}

fn open(file: &File, config: &StoreConfig, second: u64) -> (Arc<Store>, Worker, Start) {
    open_at(memory(file), config, at(second))
}

pub(super) fn open_at(
    memory: MemoryFile,
    config: &StoreConfig,
    now: Now,
) -> (Arc<Store>, Worker, Start) {
    let (store, start) = Store::open(config, memory, now).unwrap();
    let worker = store.worker().unwrap();
    (store, worker, start)
}

pub(super) fn kept(start: Start) -> Kept {
    match start {
        Start::Kept(kept) => kept,
        Start::Cold(cold) => panic!("nothing was kept: {cold}"),
    }
}

/// Values of every shape: in a chunk, with a tail and chunks, with pages.
pub(super) fn fill(worker: &mut Worker, second: u64) -> Vec<(String, Vec<u8>)> {
    let lens = [0, 1, 30, 100, 500, 2_000, 4_000, 8_000, 9_000, 40_000, 70_000, 200_000];
    let names = (0..600).map(|n| (format!("key:{n}"), lens[n % lens.len()]));
    names
        .map(|(name, len)| {
            let bytes: Vec<u8> = (0..len).map(|i| ((i * 7 + name.len()) >> 2) as u8).collect();
            let key = key(name.as_bytes());
            let stored = worker.set(key, &bytes, FLAGS, Lifetime::Never, Mode::Set, at(second));
            assert!(matches!(stored, Stored::Stored(_)));
            (name, bytes)
        })
        .collect()
}

pub(super) fn check(worker: &mut Worker, items: &[(String, Vec<u8>)], second: u64) {
    for (name, bytes) in items {
        let found = value(worker, name.as_bytes(), at(second));
        assert!(found.as_ref() == Some(bytes), "{name} of {} bytes", bytes.len());
    }
    worker.quiesce();
}

#[test]
fn a_start_keeps_every_item_and_goes_on() {
    let file = file();
    let (store, mut worker, start) = open(&file, &config(64), 10);
    assert_eq!(start, Start::Cold(Cold::New));
    let items = fill(&mut worker, 10);
    worker.set(key(b"later"), b"v", FLAGS, Lifetime::Until(100), Mode::Set, at(10));
    worker.set(key(b"soon"), b"v", FLAGS, Lifetime::Until(20), Mode::Set, at(10));
    let cas = worker.get(key(b"key:1"), at(10)).unwrap().cas();
    worker.maintain(at(11));
    let before = store.totals();
    drop((worker, store));

    let (store, mut worker, start) = open(&file, &config(64), 30);
    let kept = kept(start);
    assert_eq!((kept.items, kept.dead, kept.lost, kept.replaced), (601, 1, 0, 0));
    assert_eq!(store.start(), Some(start));
    assert_eq!(store.totals().curr_items, before.curr_items - 1);
    let census = store.validate().unwrap();
    assert_eq!((census.items, census.bytes), (kept.items, kept.bytes));
    assert_eq!((census.chunks_private, census.chunks_in_limbo), (0, 0));
    check(&mut worker, &items, 30);
    assert_eq!(worker.get(key(b"key:1"), at(30)).unwrap().cas(), cas);
    assert_eq!(value(&worker, b"soon", at(30)), None);
    assert!(value(&worker, b"later", at(99)).is_some());
    assert!(value(&worker, b"later", at(100)).is_none());
    worker.quiesce();
    // What was kept can be replaced, with a higher version, and removed.
    let again = worker.set(key(b"key:1"), b"new", FLAGS, Lifetime::Never, Mode::Set, at(30));
    let Stored::Stored(newer) = again else { panic!("{again:?}") };
    assert!(newer > cas);
    for (name, _) in &items {
        worker.delete(key(name.as_bytes()), None, at(30));
    }
    worker.quiesce();
    store.validate().unwrap();
}

#[test]
fn a_flush_lasts() {
    let file = file();
    let (store, mut worker, _) = open(&file, &config(8), 10);
    worker.set(key(b"old"), b"v", FLAGS, Lifetime::Never, Mode::Set, at(10));
    worker.flush_all(Flush::Now, at(10));
    worker.set(key(b"new"), b"v", FLAGS, Lifetime::Never, Mode::Set, at(10));
    worker.flush_all(Flush::At(50), at(10));
    drop((worker, store));
    let (_, worker, start) = open(&file, &config(8), 20);
    assert_eq!((kept(start).items, kept(start).dead), (1, 1));
    assert!(value(&worker, b"new", at(49)).is_some());
    assert!(value(&worker, b"new", at(50)).is_none());
}

#[test]
fn other_limits_keep_what_fits() {
    let file = file();
    let (store, mut worker, _) = open(&file, &config(60), 10);
    let items = fill(&mut worker, 10);
    drop((worker, store));
    // Larger, beyond the limit at which a new store has larger pages; other workers.
    let larger = StoreConfig { workers: 9, ..config(200) };
    let (store, mut worker, start) = open(&file, &larger, 11);
    assert_eq!((kept(start).items, kept(start).lost), (600, 0));
    assert_eq!(store.totals().limit_maxbytes, 200 << 20);
    check(&mut worker, &items, 11);
    store.validate().unwrap();
    assert!(file.metadata().unwrap().len() > 200 << 20);
    drop((worker, store));
    // Far smaller: what lies beyond the limit is gone, the rest is whole.
    let (store, mut worker, start) = open(&file, &config(12), 12);
    let few = kept(start).items;
    assert!((50..600).contains(&few), "{few}");
    store.validate().unwrap();
    let found = items.iter().filter(|(name, bytes)| {
        let found = value(&worker, name.as_bytes(), at(12));
        assert!(found.is_none() || found.as_ref() == Some(bytes));
        found.is_some()
    });
    assert_eq!(found.count() as u64, few);
    worker.quiesce();
    drop((worker, store));
    let (store, mut worker, start) = open(&file, &config(100), 13);
    assert_eq!(kept(start).items, few);
    fill(&mut worker, 13);
    store.validate().unwrap();
    drop((worker, store));
    // The tables have room for 16 times the first limit.
    let (_, _, start) = open(&file, &config(1_000), 14);
    assert_eq!(start, Start::Cold(Cold::Geometry));
}

#[test]
fn what_cannot_be_kept_is_begun_again() {
    let (megabytes, secs) = (8, 10);
    let cold = |name: &str, expected: Cold, change: &dyn Fn(&File)| {
        let file = file();
        let (store, mut worker, _) = open(&file, &config(megabytes), secs);
        worker.set(key(b"k"), b"v", FLAGS, Lifetime::Never, Mode::Set, at(secs));
        worker.maintain(at(secs));
        drop((worker, store));
        change(&file);
        let (store, mut worker, start) = open(&file, &config(megabytes), secs);
        assert_eq!(start, Start::Cold(expected), "{name}");
        assert_eq!(value(&worker, b"k", at(secs)), None, "{name}");
        fill(&mut worker, secs);
        store.validate().unwrap();
        drop((worker, store));
        assert!(matches!(open(&file, &config(megabytes), secs).2, Start::Kept(_)), "{name}");
    };
    let write = |file: &File, offset: u64, bytes: &[u8]| file.write_all_at(bytes, offset).unwrap();
    cold("unfinished", Cold::Unfinished, &|file| write(file, 0, &[0; 8]));
    cold("empty", Cold::New, &|file| file.set_len(0).unwrap());
    cold("older", Cold::Version(1), &|file| write(file, 8, &1_u32.to_le_bytes()));
    cold("newer", Cold::Version(LAYOUT_VERSION + 1), &|file| {
        write(file, 8, &(LAYOUT_VERSION + 1).to_le_bytes());
    });
    cold("page size", Cold::Damaged, &|file| write(file, 12, &17_u32.to_le_bytes()));
    cold("secret", Cold::Damaged, &|file| write(file, 400, b"x"));
    cold("class table", Cold::Damaged, &|file| {
        write(file, 4096 + 64 + 4 * CHUNK_LEN_HALF, b"xxxx")
    });
    cold("class count", Cold::Damaged, &|file| write(file, 36, &u32::MAX.to_le_bytes()));
    cold("page count", Cold::Damaged, &|file| write(file, 32, &u32::MAX.to_le_bytes()));
    cold("no pages", Cold::Truncated, &|file| file.set_len(200_000).unwrap());
}

#[test]
fn what_somebody_else_wrote_is_left_alone() {
    for bytes in [b"#!/bin/sh".to_vec(), vec![b'x'; 1 << 20]] {
        let file = file();
        file.write_all_at(&bytes, 0).unwrap();
        let outcome = Store::open(&config(8), memory(&file), at(10));
        assert!(matches!(outcome, Err(StoreError::NotOurs)));
        let mut left = vec![0; bytes.len()];
        file.read_exact_at(&mut left, 0).unwrap();
        assert_eq!((left, file.metadata().unwrap().len()), (bytes.clone(), bytes.len() as u64));
    }
}

/// As a start under a smaller limit leaves it that was killed behind the cut.
#[test]
fn a_file_that_was_cut_keeps_the_rest() {
    let file = file();
    let (store, mut worker, _) = open(&file, &config(60), 10);
    let items = fill(&mut worker, 10);
    drop((worker, store));
    file.set_len(12 << 20).unwrap();
    let (store, mut worker, start) = open(&file, &config(60), 11);
    let few = kept(start).items;
    assert!((50..600).contains(&few), "{few}");
    store.validate().unwrap();
    for (name, bytes) in &items {
        let found = value(&worker, name.as_bytes(), at(11));
        assert!(found.is_none() || found.as_ref() == Some(bytes));
    }
    worker.quiesce();
}

/// A version that has ended was the newest all the same: the one before does not come back.
#[test]
fn what_an_ended_version_replaced_stays_replaced() {
    let file = file();
    let (store, mut worker, _) = open(&file, &config(8), 10);
    worker.set(key(b"k"), b"old", FLAGS, Lifetime::Never, Mode::Set, at(10));
    let old = worker.get(key(b"k"), at(10)).expect("it is there").offset;
    worker.set(key(b"k"), b"new", FLAGS, Lifetime::Until(20), Mode::Set, at(10));
    // As a kill between the end of the old version and all that follows leaves it.
    let new = store.times(old).successor().expect("it was replaced");
    store.region.word(old).fetch_xor(LINKED | GONE, Ordering::Relaxed);
    store.region.word(new).fetch_and(!LINKED, Ordering::Relaxed);
    drop((worker, store));
    let (store, mut worker, start) = open(&file, &config(8), 30);
    assert_eq!((kept(start).items, kept(start).dead, kept(start).replaced), (0, 1, 0));
    assert_eq!(value(&worker, b"k", at(30)), None);
    worker.quiesce();
    store.validate().unwrap();
}

#[test]
fn another_boot_clock_or_class_table_begins_again() {
    let file = file();
    let fill_one = |start: Start, worker: &mut Worker| {
        worker.set(key(b"k"), b"v", FLAGS, Lifetime::Never, Mode::Set, at(100));
        worker.maintain(at(100));
        start
    };
    let (_, mut worker, start) = open(&file, &config(8), 100);
    fill_one(start, &mut worker);
    drop(worker);
    let (_, mut worker, start) = open(&file, &config(8), 99);
    assert_eq!(fill_one(start, &mut worker), Start::Cold(Cold::Clock));
    drop(worker);
    let coarse = StoreConfig { growth_factor: Some(1.5), ..config(8) };
    let (_, mut worker, start) = open(&file, &coarse, 100);
    assert_eq!(fill_one(start, &mut worker), Start::Cold(Cold::Geometry));
    drop(worker);
    let other = MemoryFile { boot_id: 7, ..memory(&file) };
    let (_, start) = Store::open(&coarse, other, at(100)).unwrap();
    assert_eq!(start, Start::Cold(Cold::Boot));
}

#[test]
fn a_check_finds_what_a_start_would_and_changes_nothing() {
    let file = file();
    assert_eq!(Store::inspect(&memory(&file), at(10)).unwrap().unwrap_err(), Cold::New);
    let (store, mut worker, _) = open(&file, &config(16), 10);
    let items = fill(&mut worker, 10);
    drop((worker, store));
    let mut before = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut before, 0).unwrap();
    let inspected = Store::inspect(&memory(&file), at(10)).unwrap().unwrap();
    assert_eq!(inspected.validated.unwrap().items, inspected.kept.items);
    let mut after = vec![0; before.len()];
    file.read_exact_at(&mut after, 0).unwrap();
    assert!(before == after, "the check wrote to the file");
    let (_, _, start) = open(&file, &config(16), 10);
    assert_eq!(kept(start), inspected.kept);
    assert!(inspected.kept.items <= items.len() as u64);
}

#[test]
fn a_full_file_system_is_refused_at_the_start() {
    // A file that may not grow stands in for a file system without room.
    let sealed = File::from(memfd_create("sealed", MemfdFlags::ALLOW_SEALING).unwrap());
    rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::GROW).unwrap();
    let refused = Store::open(&config(8), memory(&sealed), at(10)).unwrap_err();
    assert!(matches!(refused, StoreError::Room { .. }), "{refused}");
}

/// Whatever a word of the file becomes, a start neither fails nor serves what was not stored.
#[test]
fn damaged_words_lose_items_and_nothing_else() {
    let all = std::env::var_os("SESSION_TEST_ALL").is_some_and(|all| all == "1");
    let file = file();
    let (store, mut worker, _) = open(&file, &config(8), 10);
    let items = fill(&mut worker, 10);
    drop(worker);
    let layout = store.layout;
    let pages = |wanted: fn(PageState) -> bool| -> Vec<u64> {
        let all = (0..layout.pages).filter(|page| wanted(store.page_state(*page)));
        all.map(|page| layout.page(page)).collect()
    };
    let slabs = pages(|state| matches!(state, PageState::Slab(class) if class > 0));
    let heads: Vec<u64> = slabs
        .iter()
        .flat_map(|page| {
            let PageState::Slab(class) = store.page_state(layout.page_of(*page)) else { panic!() };
            let size = store.classes.size(class) as u64;
            let carved = store.page_carved(layout.page_of(*page));
            (0..u64::from(carved)).map(move |idx| page + idx * size)
        })
        .collect();
    let tables: Vec<u64> = (0..layout.pages).map(|page| layout.page_meta(page)).collect();
    drop(store);
    let mut whole = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut whole, 0).unwrap();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 16) as usize % below
    };
    for _ in 0..if all { 400 } else { 8 } {
        file.write_all_at(&whole, 0).unwrap();
        for _ in 0..next(40) + 1 {
            let (places, words) = if next(3) == 0 { (&tables, 8) } else { (&heads, 4) };
            let at = places[next(places.len())] + next(words) as u64 * 8;
            let mut word = [0; 8];
            file.read_exact_at(&mut word, at).unwrap();
            let word = match next(3) {
                0 => u64::from_le_bytes(word) ^ 1 << next(64),
                1 => next(usize::MAX) as u64,
                _ => heads[next(heads.len())] / 8,
            };
            file.write_all_at(&word.to_le_bytes(), at).unwrap();
        }
        let (store, mut worker, start) = open(&file, &config(8), 10);
        kept(start);
        store.validate().unwrap();
        for (name, _) in &items {
            // A damaged length, key or flag is a damaged item; reading it must do no harm.
            let _ = value(&worker, name.as_bytes(), at(10));
        }
        worker.quiesce();
        fill(&mut worker, 11);
        worker.maintain(at(12));
        store.validate().unwrap();
    }
}

//! Starts that go on with a memory file as it stands: one that was closed, one that was not.

use super::attach::{BOOT, check, config, file, fill, kept, memory, open_at};
use super::{FLAGS, at, key, value};
use crate::clock::Now;
use crate::store::attach::Start;
use crate::store::layout::Superblock;
use crate::store::region::Access;
use crate::store::sync::Ordering;
use crate::store::types::{Flush, Lifetime, Mode, StoreConfig, Stored};
use crate::store::{MemoryFile, Store, Worker};
use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The file for a start that goes on with what is there: nobody else has had it.
fn ours(file: &File) -> MemoryFile {
    MemoryFile { nameless: true, ..memory(file) }
}

fn go_on(file: &File, config: &StoreConfig, second: u64) -> (Arc<Store>, Worker, Start) {
    open_at(ours(file), config, at(second))
}

/// What a start has gone on with: a store that was closed, one that was not, or the items alone.
fn how(store: &Store, start: Start) -> &'static str {
    match (kept(start).in_place, store.checked()) {
        (true, None) => "closed",
        (true, Some(_)) => "adopted",
        (false, _) => "anew",
    }
}

/// Waits for the check behind a start, and for what it has found.
pub(super) fn settle(store: &Store, worker: &mut Worker) {
    while worker.check_more() {}
    // What is ripe may make something else wait, a chunk its page; but not for ever.
    for _ in 0..20 {
        worker.begin();
        worker.turn_over(true);
        worker.quiesce();
        if !worker.is_waiting() {
            break;
        }
    }
    assert!(store.checked().is_none_or(|checked| checked.percent == 100));
}

/// Closes a store; its next start goes on as it stands.
fn close(worker: Worker, store: Arc<Store>) {
    drop(worker);
    assert!(store.close());
}

#[test]
fn a_closed_store_goes_on_as_it_stands() {
    let file = file();
    let (store, mut worker, _) = go_on(&file, &config(64), 10);
    let mut items = fill(&mut worker, 10);
    for (name, bytes) in items.iter_mut().step_by(3) {
        bytes.push(b'!');
        worker.set(key(name.as_bytes()), bytes, FLAGS, Lifetime::Never, Mode::Set, at(10));
    }
    for (name, _) in items.drain(..50) {
        worker.delete(key(name.as_bytes()), None, at(10));
    }
    worker.set(key(b"later"), b"v", FLAGS, Lifetime::Until(100), Mode::Set, at(10));
    worker.set(key(b"soon"), b"v", FLAGS, Lifetime::Until(20), Mode::Set, at(10));
    worker.flush_all(Flush::At(500), at(10));
    let cas = worker.get(key(b"key:99"), at(10)).unwrap().cas();
    // A page drains, chunks wait for a turn that is open.
    let class = store.class_of(6, FLAGS, 30) as i32;
    worker.reassign(class, 0, at(10));
    let before = store.totals();
    close(worker, store);

    let (store, mut worker, start) = go_on(&file, &config(64), 30);
    let found = kept(start);
    assert_eq!(how(&store, start), "closed");
    assert_eq!((found.items, found.bytes), (552, before.bytes));
    assert_eq!(store.totals().curr_items, before.curr_items);
    let census = store.validate().unwrap();
    assert_eq!((census.items, census.bytes), (found.items, found.bytes));
    assert_eq!((census.chunks_private, census.chunks_in_limbo), (0, 0));
    check(&mut worker, &items, 30);
    assert_eq!(value(&worker, b"key:0", at(30)), None, "it was deleted");
    assert_eq!(worker.get(key(b"key:99"), at(30)).unwrap().cas(), cas);
    assert_eq!(value(&worker, b"soon", at(30)), None);
    assert!(value(&worker, b"later", at(99)).is_some());
    assert!(value(&worker, b"later", at(100)).is_none());
    worker.quiesce();
    let again = worker.set(key(b"key:99"), b"new", FLAGS, Lifetime::Never, Mode::Set, at(30));
    let Stored::Stored(newer) = again else { panic!("{again:?}") };
    assert!(newer > cas);
    assert_eq!(value(&worker, b"key:98", at(500)), None, "the flush lasts");
    worker.quiesce();
    let items = fill(&mut worker, 31);
    close(worker, store);
    // Others of everything that may differ.
    let other = StoreConfig { workers: 9, cas: false, evictions: false, ..config(200) };
    let (store, mut worker, start) = go_on(&file, &other, 32);
    assert_eq!(how(&store, start), "closed");
    store.validate().unwrap();
    check(&mut worker, &items, 32);
    for round in 0..20_000 {
        let (name, bytes) = (format!("more:{round}"), vec![b'x'; round % 3_000]);
        worker.set(key(name.as_bytes()), &bytes, FLAGS, Lifetime::Never, Mode::Set, at(33));
        worker.quiesce();
    }
    assert!(store.totals().pages_used as usize * 65_536 > 30 << 20, "pages beyond the old end");
    store.validate().unwrap();
    close(worker, store);
    // What lies beyond a smaller limit is lost: that needs a look at all pages.
    let (store, _, start) = go_on(&file, &config(13), 34);
    assert_eq!(how(&store, start), "anew");
    store.validate().unwrap();
}

#[test]
fn a_store_full_to_the_limit_goes_on_as_it_stands() {
    let file = file();
    for round in 0..4 {
        let (store, mut worker, start) = go_on(&file, &config(4), 10 + round);
        assert!(round == 0 || how(&store, start) == "closed");
        let census = store.validate().unwrap();
        assert_eq!((census.chunks_private, census.chunks_in_limbo), (0, 0));
        for number in 0..40_000 {
            let name = format!("{round}:{number}");
            let bytes = vec![b'x'; (number * (7 + round as usize)) % 400];
            let stored = worker.set(
                key(name.as_bytes()),
                &bytes,
                FLAGS,
                Lifetime::Never,
                Mode::Set,
                at(10 + round),
            );
            assert!(matches!(stored, Stored::Stored(_)));
            if number % 16 == 0 {
                worker.maintain(at(10 + round));
            }
        }
        assert!(store.totals().evictions > 1_000);
        store.validate().unwrap();
        close(worker, store);
    }
}

/// A store that nobody closed goes on in place, with memory that only the dead knew of found while
/// it serves.
#[test]
fn a_store_that_was_not_closed_goes_on_while_it_is_checked() {
    for megabytes in [4, 60] {
        let file = file();
        let mut stored: Vec<(String, Vec<u8>)> = Vec::new();
        for round in 0..6 {
            // Others of what may differ, and more memory each time.
            let other = StoreConfig { workers: 1 + round % 3, ..config(megabytes + round) };
            let (store, mut worker, start) = go_on(&file, &other, 10 + round as u64);
            let second = 10 + round as u64;
            assert!(round == 0 || how(&store, start) == "adopted");
            let mut found = 0;
            for (name, bytes) in &stored {
                let there = value(&worker, name.as_bytes(), at(second));
                assert!(there.is_none() || there.as_ref() == Some(bytes), "{name}");
                found += usize::from(there.is_some());
                worker.quiesce();
            }
            assert!(megabytes == 4 || found == stored.len(), "{found} of {}", stored.len());
            stored.clear();
            for number in 0..6_000_usize {
                let name = format!("{}:{number}", round % 2);
                let len = if number % 97 == 0 { 30_000 } else { number * 7 % 600 };
                let bytes = vec![(number % 251) as u8 ^ round as u8; len];
                let set = worker.set(
                    key(name.as_bytes()),
                    &bytes,
                    FLAGS,
                    Lifetime::Never,
                    Mode::Set,
                    at(second),
                );
                assert!(matches!(set, Stored::Stored(_)));
                stored.push((name, bytes));
                if number % 5 == 0 {
                    worker.delete(key(stored.swap_remove(0).0.as_bytes()), None, at(second));
                }
                // Slices of the check beside stores; at odd rounds it is left to the next start.
                if round % 2 == 0 && number % 64 == 0 {
                    worker.check_some();
                    worker.quiesce();
                }
            }
            if round % 3 == 2 {
                settle(&store, &mut worker);
                let census = store.validate().unwrap();
                assert_eq!(census.chunks_private, 0);
                let kept = store.checked().unwrap();
                assert_eq!((kept.percent, kept.lost), (100, 0));
            }
            // What a killed process leaves: magazines, lines at hand, limbo.
            std::mem::forget(worker);
        }
    }
}

/// What ends one process after the other before it has checked everything is not gone on with.
#[test]
fn what_nobody_came_to_check_is_looked_at_as_a_whole() {
    let file = file();
    let (store, mut worker, _) = go_on(&file, &config(60), 10);
    let items = fill(&mut worker, 10);
    worker.maintain(at(11));
    drop((worker, store));
    for expected in ["adopted", "adopted", "adopted", "anew", "adopted"] {
        let (store, mut worker, start) = go_on(&file, &config(60), 11);
        assert_eq!(how(&store, start), expected);
        assert_eq!((kept(start).items, store.totals().curr_items), (600, 600), "as noted");
        check(&mut worker, &items, 11);
    }
}

/// What a process left is good for that very file, and while nobody else has changed it.
#[test]
fn a_file_that_somebody_else_had_is_looked_at_as_a_whole() {
    let real = |file: &File| memory(file).identity().unwrap().changed_ns;
    let now = |file: &File, second| Now { realtime_ns: real(file), ..at(second) };
    let begin = |closed: bool| {
        let file = file();
        let (store, mut worker, _) = open_at(memory(&file), &config(60), now(&file, 10));
        let items = fill(&mut worker, 10);
        worker.maintain(now(&file, 10));
        if closed {
            close(worker, store);
        }
        (file, items)
    };
    let expect = |expected: &str, name: &str, file: &File, items: &[(String, Vec<u8>)]| {
        let (store, mut worker, start) = open_at(memory(file), &config(60), now(file, 11));
        assert_eq!(how(&store, start), expected, "{name}");
        check(&mut worker, items, 11);
        settle(&store, &mut worker);
        store.validate().unwrap();
        check(&mut worker, items, 11);
        worker.maintain(now(file, 11));
    };
    for closed in [true, false] {
        let (file, items) = begin(closed);
        expect(if closed { "closed" } else { "adopted" }, "the first", &file, &items);
        expect("adopted", "one that was not closed", &file, &items);
        expect("adopted", "nor that one", &file, &items);

        let (file, items) = begin(closed);
        let mut whole = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut whole, 0).unwrap();
        let copy = self::file();
        copy.write_all_at(&whole, 0).unwrap();
        expect("anew", "a copy", &copy, &items);
        // By somebody, when the process had ended long before.
        let alive = offset_of!(Superblock, alive_ns) as u64;
        let long_before = real(&file) - 5_000_000_000;
        file.write_all_at(&long_before.to_le_bytes(), alive).unwrap();
        expect("anew", "a file that was written to", &file, &items);

        let (file, items) = begin(closed);
        let map = memory(&file).map(4096, Access::Shared).unwrap();
        map.word(offset_of!(Superblock, noted_stamp) as u64).fetch_xor(1, Ordering::Relaxed);
        map.word(alive).store(real(&file), Ordering::Relaxed);
        expect("adopted", "a damaged note", &file, &items);
    }
}

#[test]
fn a_store_that_somebody_has_is_not_closed() {
    let file = file();
    let (store, mut worker, _) = go_on(&file, &config(60), 10);
    let items = fill(&mut worker, 10);
    assert!(!Arc::clone(&store).close());
    let upload = worker.begin_upload(key(b"k"), FLAGS, 100_000).unwrap();
    drop(worker);
    assert!(!store.close());
    drop(upload);
    let (store, mut worker, start) = go_on(&file, &config(60), 11);
    assert_eq!(how(&store, start), "adopted");
    check(&mut worker, &items, 11);
    settle(&store, &mut worker);
    let census = store.validate().unwrap();
    assert_eq!((census.chunks_private, census.chunks_in_limbo), (0, 0), "the upload's memory");
}

#[test]
fn a_store_without_a_file_passes_on_as_it_stands() {
    let store = Store::create(&config(60)).unwrap();
    let mut worker = store.worker().unwrap();
    let items = fill(&mut worker, 10);
    drop(worker);
    let file = store.leave(file(), BOOT).unwrap();
    let memory = MemoryFile { file, boot_id: BOOT, nameless: true, map: None };
    let (store, start) = Store::open(&config(60), memory, at(11)).unwrap();
    assert_eq!(how(&store, start), "closed");
    store.validate().unwrap();
    let mut worker = store.worker().unwrap();
    check(&mut worker, &items, 11);
    fill(&mut worker, 12);
    store.validate().unwrap();
}

#[test]
fn a_limit_that_was_set_while_serving_passes_on_to_a_successor_alone() {
    let succeeding = StoreConfig { succeeding: true, ..config(8) };
    for is_file in [true, false] {
        let mut file = file();
        let (store, mut worker) = if is_file {
            let (store, worker, _) = go_on(&file, &config(8), 10);
            (store, worker)
        } else {
            let store = Store::create(&config(8)).unwrap();
            let worker = store.worker().unwrap();
            (store, worker)
        };
        store.set_memory_limit(40 << 20).unwrap();
        let items = fill(&mut worker, 10);
        let before = store.totals();
        assert!((before.curr_items, before.evictions) == (items.len() as u64, 0), "{before:?}");
        assert!(before.pages_used * before.page_len > 9 << 20, "{before:?}");
        drop(worker);
        if is_file {
            assert!(store.close());
        } else {
            file = store.leave(file, BOOT).unwrap();
        }
        for limit in [40 << 20, 30 << 20] {
            let (store, mut worker, start) = go_on(&file, &succeeding, 11);
            assert_eq!(how(&store, start), "closed");
            assert_eq!(store.totals().limit_maxbytes, limit as u64);
            store.validate().unwrap();
            check(&mut worker, &items, 11);
            // Lowered above what is in use: nothing has to go.
            store.set_memory_limit(30 << 20).unwrap();
            close(worker, store);
        }
        let (store, _, start) = go_on(&file, &config(8), 12);
        assert_eq!(how(&store, start), "anew");
        assert_eq!(store.totals().limit_maxbytes, 8 << 20);
        store.validate().unwrap();
        drop(store);
        let (store, _, _) = go_on(&file, &succeeding, 13);
        assert_eq!(store.totals().limit_maxbytes, 8 << 20, "a start forgets it");
    }
}

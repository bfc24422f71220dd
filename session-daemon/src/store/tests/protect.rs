//! Protected keys are evicted after all others, and counted as what they are.

use super::attach::file;
use super::resume::settle;
use super::{at, key};
use crate::store::layout::PageState;
use crate::store::reuse::Worth;
use crate::store::types::{ClientFlags, Lifetime, Mode, StoreConfig, Stored};
use crate::store::{MemoryFile, Protected, Start, Store, Worker};
use std::collections::HashSet;
use std::sync::Arc;

const PREFIX: &str = "sess.";

fn config(megabytes: usize, workers: usize) -> StoreConfig {
    let memory_limit = megabytes << 20;
    StoreConfig { memory_limit, item_size_max: memory_limit / 4, workers, ..StoreConfig::default() }
}

fn protect(store: &Store, percent: u8) {
    store.protect(&[PREFIX.as_bytes().into(), b"other.".as_slice().into()], percent);
}

fn protecting(megabytes: usize, percent: u8) -> (Arc<Store>, Worker) {
    let store = Store::create(&config(megabytes, 1)).unwrap();
    protect(&store, percent);
    let worker = store.worker().unwrap();
    (store, worker)
}

#[track_caller]
fn put(worker: &mut Worker, name: &str, len: usize, lifetime: Lifetime, second: u64) {
    let value = vec![b'v'; len];
    let flags = ClientFlags(0);
    let stored = worker.set(key(name.as_bytes()), &value, flags, lifetime, Mode::Set, at(second));
    assert!(matches!(stored, Stored::Stored(_)), "{name} of {len} bytes: {stored:?}");
    worker.maintain(at(second));
    worker.quiesce();
}

fn session(number: usize) -> String {
    format!("{PREFIX}{number}")
}

/// How many of the first sessions are there.
fn left(worker: &mut Worker, count: usize, second: u64) -> usize {
    let there = |number| worker.get(key(session(number).as_bytes()), at(second)).is_some();
    let left = (0..count).filter(|number| there(*number)).count();
    worker.quiesce();
    left
}

#[track_caller]
fn protected(store: &Store) -> Protected {
    store.validate().unwrap();
    store.protected().unwrap()
}

#[test]
fn a_flood_of_the_same_size_takes_no_protected_item() {
    let (store, mut worker) = protecting(4, 50);
    for number in 0..3_000 {
        put(&mut worker, &session(number), 300, Lifetime::Never, 10);
    }
    // Others that are in use: to an ordinary store the sessions are what is worth least.
    for number in 0..60_000 {
        put(&mut worker, &format!("flood{number}"), 300, Lifetime::Never, 20);
        assert!(worker.get(key(format!("flood{number}").as_bytes()), at(20)).is_some());
    }
    assert_eq!(left(&mut worker, 3_000, 20), 3_000);
    let now = protected(&store);
    assert_eq!((now.items, now.lost), (3_000, 0));
    assert!(now.bytes <= now.bytes_max && store.totals().evictions > 40_000, "{now:?}");
}

#[test]
fn no_size_of_others_displaces_protected_items() {
    let (store, mut worker) = protecting(8, 60);
    // Of every shape: one chunk, head and chunks, pages. They hold about two fifths.
    let len = |number: usize| [80, 300, 2_000, 9_000, 70_000][number % 5];
    for number in 0..200 {
        put(&mut worker, &session(number), len(number), Lifetime::Never, 10);
    }
    for (round, len) in [100, 3_000, 500, 40_000, 150_000, 60, 1_000].into_iter().enumerate() {
        let second = 20 + round as u64;
        for number in 0..(60 << 20) / (len + 100).max(2_000) {
            put(&mut worker, &format!("r{round}.{number}"), len, Lifetime::Never, second);
        }
        assert_eq!(left(&mut worker, 200, second), 200, "after items of {len} bytes");
        assert_eq!(protected(&store).lost, 0, "after items of {len} bytes");
    }
    assert!(store.totals().slabs_moved > 50, "{:?}", store.totals());
}

#[test]
fn sparse_pages_of_protected_items_are_packed_for_others() {
    let (store, mut worker) = protecting(4, 80);
    for number in 0..9_000 {
        put(&mut worker, &session(number), 200, Lifetime::Never, 10);
    }
    // Nine of ten log out, all over the pages.
    for number in (0..9_000).filter(|number| number % 10 != 0) {
        worker.delete(key(session(number).as_bytes()), None, at(10));
        worker.quiesce();
    }
    for number in 0..4_000 {
        put(&mut worker, &format!("large{number}"), 4_000, Lifetime::Never, 20);
    }
    let there = (0..900).filter(|n| worker.get(key(session(n * 10).as_bytes()), at(20)).is_some());
    assert_eq!(there.count(), 900);
    worker.quiesce();
    assert_eq!(protected(&store).lost, 0);
    // The pages of those that left serve others.
    let large = store.classes().into_iter().find(|class| class.chunk_size > 4_000).unwrap();
    assert!(large.number > 400, "{large:?}");
}

#[test]
fn protected_items_of_a_page_that_drains_count() {
    let (store, mut worker) = protecting(4, 80);
    for number in 0..2_000 {
        put(&mut worker, &session(number), 200, Lifetime::Never, 10);
    }
    let class = store.class_of(session(1_000).len(), ClientFlags(0), 200);
    let page = store.page_of_class(class).unwrap();
    worker.begin();
    assert!(worker.drain(page, class, Worth::NONE, None));
    worker.quiesce();
    assert_eq!(store.page_state(page), PageState::Draining(class));
    assert_eq!(protected(&store).items, 2_000);
    // With room elsewhere they move, and the page goes.
    for number in (0..2_000).step_by(2) {
        worker.delete(key(session(number).as_bytes()), None, at(10));
        worker.quiesce();
    }
    for number in 0..2_000 {
        put(&mut worker, &format!("other{number}"), 300, Lifetime::Never, 20);
    }
    assert_ne!(store.page_state(page), PageState::Draining(class));
    assert_eq!(left(&mut worker, 2_000, 20), 1_000);
    assert_eq!((protected(&store).items, protected(&store).lost), (1_000, 0));
}

#[test]
fn beyond_their_share_protected_items_are_ordinary() {
    let (store, mut worker) = protecting(4, 20);
    for number in 0..8_000 {
        put(&mut worker, &session(number), 300, Lifetime::Never, 10);
    }
    let before = protected(&store);
    assert!(before.bytes > 2 * before.bytes_max && before.lost == 0, "{before:?}");
    for number in 0..60_000 {
        put(&mut worker, &format!("flood{number}"), 300, Lifetime::Never, 20);
        assert!(worker.get(key(format!("flood{number}").as_bytes()), at(20)).is_some());
    }
    let after = protected(&store);
    assert_eq!(after.items + after.lost, 8_000);
    // What is within the share stays, and not much more.
    assert!(after.bytes * 100 > after.bytes_max * 95, "{after:?}");
    assert!(after.bytes * 100 < after.bytes_max * 130, "{after:?}");
}

#[test]
fn a_store_of_protected_items_alone_goes_on() {
    let (store, mut worker) = protecting(3, 90);
    for number in 0..40_000 {
        put(&mut worker, &session(number), 200, Lifetime::Never, 10);
    }
    put(&mut worker, "large", 300_000, Lifetime::Never, 10);
    let now = protected(&store);
    assert!(now.lost > 20_000 && now.items + now.lost == 40_000, "{now:?}");
}

#[test]
fn what_has_ended_is_not_lost() {
    let (store, mut worker) = protecting(4, 50);
    for number in 0..4_000 {
        put(&mut worker, &session(number), 300, Lifetime::Until(15), 10);
    }
    for number in 0..30_000 {
        put(&mut worker, &format!("flood{number}"), 300, Lifetime::Never, 20);
    }
    assert_eq!(protected(&store), Protected { items: 0, bytes: 0, lost: 0, ..protected(&store) });
}

#[test]
fn a_start_counts_what_is_there_and_may_protect_other_keys() {
    let file = file();
    let open = |second| {
        let file = file.try_clone().unwrap();
        let memory = MemoryFile { file, boot_id: 7, nameless: false, map: None };
        Store::open(&config(8, 4), memory, at(second)).unwrap().0
    };
    let store = open(10);
    protect(&store, 50);
    let mut worker = store.worker().unwrap();
    for number in 0..600 {
        let len = [50, 400, 9_000][number % 3];
        put(&mut worker, &session(number), len, Lifetime::Never, 10);
        put(&mut worker, &format!("not.{number}"), 100, Lifetime::Never, 10);
    }
    let before = protected(&store);
    assert_eq!(before.items, 600);
    drop((worker, store));
    let store = open(20);
    protect(&store, 50);
    assert_eq!(protected(&store), before);
    drop(store);
    let store = open(30);
    store.protect(&[b"not.".as_slice().into()], 10);
    assert_eq!(protected(&store).items, 600);
    drop(store);
    assert_eq!(open(40).protected(), None);
}

#[test]
fn what_is_protected_is_counted_behind_a_start_after_a_kill() {
    let file = file();
    let open = |second| {
        let memory =
            MemoryFile { file: file.try_clone().unwrap(), boot_id: 7, nameless: true, map: None };
        let (store, start) = Store::open(&config(16, 4), memory, at(second)).unwrap();
        protect(&store, 90);
        let worker = store.worker().unwrap();
        (store, worker, start)
    };
    // Of every shape: one chunk, head and chunks, pages.
    let len = |number: usize| [50, 400, 9_000, 40_000][number % 4];
    let (store, mut worker, _) = open(10);
    for number in 0..400 {
        put(&mut worker, &session(number), len(number), Lifetime::Never, 10);
        put(&mut worker, &format!("not.{number}"), 100, Lifetime::Never, 10);
    }
    assert_eq!(protected(&store).items, 400);
    let mut there: HashSet<usize> = (0..400).collect();
    for round in 0..4 {
        // What a killed process leaves: magazines, lines at hand, limbo.
        std::mem::forget(worker);
        let (store, next, start) = open(20 + round as u64);
        worker = next;
        assert!(matches!(start, Start::Kept(kept) if kept.in_place), "{start:?}");
        assert!(store.checked().is_some_and(|checked| checked.percent < 100));
        // Some go before they are counted, some have another shape by then.
        for number in (round..400).step_by(7) {
            worker.delete(key(session(number).as_bytes()), None, at(20));
            there.remove(&number);
        }
        for number in (round..400).step_by(5) {
            put(&mut worker, &session(number), len(number + round), Lifetime::Never, 20);
            there.insert(number);
        }
        settle(&store, &mut worker);
        assert_eq!(protected(&store).items, there.len() as u64);
        assert_eq!(protected(&store).lost, 0);
    }
}

#[test]
fn many_threads_lose_no_protected_item_and_count_right() {
    let store = Store::create(&config(6, 3)).unwrap();
    protect(&store, 50);
    let mut worker = store.worker().unwrap();
    for number in 0..2_000 {
        put(&mut worker, &session(number), 300, Lifetime::Never, 10);
    }
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let mut worker = store.worker().unwrap();
            scope.spawn(move || {
                for number in 0..20_000_usize {
                    let len = [60, 300, 310, 2_500, 12_000][number / 500 % 5];
                    put(&mut worker, &format!("{thread}.{number}"), len, Lifetime::Never, 20);
                    if number % 20 == 0 {
                        // Sessions are written again, deleted and made again meanwhile.
                        let name = session(number % 2_000);
                        put(&mut worker, &name, 250 + number % 100, Lifetime::Never, 20);
                        let brief = format!("other.{thread}.{}", number % 300);
                        put(&mut worker, &brief, 500, Lifetime::Never, 20);
                        worker.delete(key(brief.as_bytes()), None, at(20));
                        worker.quiesce();
                    }
                }
            });
        }
    });
    assert_eq!(left(&mut worker, 2_000, 20), 2_000);
    let now = protected(&store);
    assert_eq!((now.items, now.lost), (2_000, 0));
}

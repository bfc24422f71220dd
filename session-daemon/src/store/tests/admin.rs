//! What an administrator does to a store: walking, limits, pages taken.
use crate::clock::Now;
use crate::store::scan::Scan;
use crate::store::types::{
    ClientFlags, Key, Lifetime, LimitError, Mode, Reassigned, StoreConfig, Stored,
};
use crate::store::{Store, Worker};
use std::collections::HashMap;
use std::sync::Arc;

const NOW: Now = Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: 1_000_000_000_000 };

fn store(memory_limit: usize) -> (Arc<Store>, Worker) {
    let item_size_max = 1 << 20;
    let config = StoreConfig { memory_limit, item_size_max, workers: 1, ..StoreConfig::default() };
    let store = Store::create(&config).unwrap();
    let worker = store.worker().unwrap();
    (store, worker)
}

fn later(ms: u64) -> Now {
    Now { boottime_ns: NOW.boottime_ns + ms * 1_000_000, ..NOW }
}

fn set(worker: &mut Worker, key: &str, value_len: usize, now: Now) {
    let (key, value) = (Key::new(key.as_bytes()).unwrap(), vec![b'v'; value_len]);
    let stored = worker.set(key, &value, ClientFlags(0), Lifetime::Never, Mode::Set, now);
    assert!(matches!(stored, Stored::Stored(_)), "{stored:?}");
}

#[test]
fn a_walk_meets_every_item_once_while_the_index_grows() {
    let (store, mut worker) = store(32 << 20);
    for idx in 0..3_000 {
        set(&mut worker, &format!("old{idx}"), 10, NOW);
    }
    let buckets = store.totals().hash_power_level;
    let (mut scan, mut met, mut more, mut added) = (Scan::default(), HashMap::new(), true, 0);
    while more {
        more = worker.scan(&mut scan, NOW, &mut |item| {
            *met.entry(item.key().to_vec()).or_insert(0) += 1;
        });
        worker.quiesce();
        for _ in 0..if added < 20_000 { 40 } else { 0 } {
            set(&mut worker, &format!("new{added}"), 10, NOW);
            added += 1;
        }
    }
    assert!(store.totals().hash_power_level > buckets, "the index has grown meanwhile");
    for idx in 0..3_000 {
        assert_eq!(met.get(format!("old{idx}").as_bytes()), Some(&1), "old{idx}");
    }
    assert!(met.values().all(|count| *count == 1));
}

#[test]
fn a_lowered_limit_is_reached_page_by_page_and_can_be_raised_again() {
    let (store, mut worker) = store(64 << 20);
    for idx in 0..100_000 {
        set(&mut worker, &format!("key{idx}"), 300, NOW);
    }
    let before = store.totals();
    assert!(before.pages_used * before.page_len > 30 << 20);
    store.set_memory_limit(16 << 20).unwrap();
    let mut ms = 0;
    while store.totals().pages_used * before.page_len > 16 << 20 {
        ms += 1;
        assert!(ms < 60_000, "the limit is never reached: {:?}", store.totals());
        worker.maintain(later(ms));
    }
    assert!(store.totals().curr_items > 20_000);
    for idx in 0..50_000 {
        set(&mut worker, &format!("more{idx}"), 300, later(ms));
    }
    let full = store.totals();
    assert!(full.pages_used * full.page_len <= 16 << 20, "{full:?}");
    assert_eq!(full.limit_maxbytes, 16 << 20);
    store.set_memory_limit(64 << 20).unwrap();
    for idx in 0..100_000 {
        set(&mut worker, &format!("again{idx}"), 300, later(ms));
    }
    assert!(store.totals().pages_used * full.page_len > 30 << 20);
    assert!(matches!(store.set_memory_limit(2 << 30), Err(LimitError::NoRoom)));
    assert!(matches!(store.set_memory_limit(1 << 20), Err(LimitError::TooSmall)));
    worker.quiesce();
    drop(worker);
    store.validate().unwrap();
}

#[test]
fn a_limit_is_raised_above_that_of_the_start_and_lowered_again() {
    let (store, mut worker) = store(8 << 20);
    let items = 100_000;
    for idx in 0..items {
        set(&mut worker, &format!("key{idx}"), 300, NOW);
    }
    let before = store.totals();
    assert!(before.evictions > 0 && before.pages_used * before.page_len <= 8 << 20);
    store.set_memory_limit(64 << 20).unwrap();
    for idx in 0..items {
        set(&mut worker, &format!("key{idx}"), 300, NOW);
    }
    let raised = store.totals();
    assert_eq!((raised.curr_items, raised.limit_maxbytes), (items, 64 << 20));
    assert_eq!(raised.evictions, before.evictions);
    assert!(raised.pages_used * raised.page_len > 30 << 20);
    let mut met = 0;
    let (mut scan, mut more) = (Scan::default(), true);
    while more {
        more = worker.scan(&mut scan, NOW, &mut |_| met += 1);
        worker.quiesce();
    }
    assert_eq!(met, items);
    store.set_memory_limit(8 << 20).unwrap();
    let mut ms = 0;
    while store.totals().pages_used * before.page_len > 8 << 20 {
        ms += 1;
        assert!(ms < 60_000, "the limit is never reached: {:?}", store.totals());
        worker.maintain(later(ms));
    }
    worker.quiesce();
    drop(worker);
    store.validate().unwrap();
}

#[test]
fn without_room_a_limit_goes_as_high_as_it_was() {
    let config = StoreConfig { growing: false, workers: 1, ..StoreConfig::default() };
    let store = Store::create(&config).unwrap();
    store.set_memory_limit(32 << 20).unwrap();
    store.set_memory_limit(64 << 20).unwrap();
    assert!(matches!(store.set_memory_limit(65 << 20), Err(LimitError::NoRoom)));
}

#[test]
fn a_page_is_taken_from_a_class_that_can_spare_it() {
    let (store, mut worker) = store(64 << 20);
    for idx in 0..3_000 {
        set(&mut worker, &format!("key{idx}"), 1000, NOW);
    }
    let class = store.classes().into_iter().find(|class| class.number > 0).unwrap();
    let from = class.class as i32;
    assert_eq!(worker.reassign(from, from, NOW), Reassigned::Same);
    assert_eq!(worker.reassign(0, from, NOW), Reassigned::NoSpare);
    assert_eq!(worker.reassign(from, 1_000, NOW), Reassigned::BadClass);
    assert_eq!(worker.reassign(-2, from, NOW), Reassigned::BadClass);
    assert_eq!(worker.reassign(from + 1, from, NOW), Reassigned::NoSpare);
    assert_eq!(worker.reassign(-1, 0, NOW), Reassigned::Begun { from: class.class });
    let mut ms = 0;
    while store.totals().pages_draining > 0 {
        ms += 1;
        assert!(ms < 1_000, "the page is never empty");
        worker.maintain(later(ms));
    }
    let after = store.classes().into_iter().find(|after| after.class == class.class).unwrap();
    assert_eq!(after.total_pages, class.total_pages - 1);
    assert_eq!(store.totals().slabs_moved, 1);
}

#[test]
fn a_page_goes_to_the_class_that_was_named() {
    let (store, mut worker) = store(64 << 20);
    for idx in 0..3_000 {
        set(&mut worker, &format!("key{idx}"), 1000, NOW);
    }
    let class = |id| store.classes().into_iter().find(|class| class.class == id);
    let from = store.classes().into_iter().find(|class| class.number > 0).unwrap();
    let to = store.class_of(4, ClientFlags(0), 300);
    assert!(class(to).is_none_or(|to| to.total_pages == 0));
    let used = store.totals().pages_used;
    let reassigned = worker.reassign(from.class as i32, to as i32, NOW);
    assert_eq!(reassigned, Reassigned::Begun { from: from.class });
    let mut ms = 0;
    while store.totals().pages_draining > 0 {
        ms += 1;
        assert!(ms < 1_000, "the page is never empty");
        worker.maintain(later(ms));
    }
    let after = class(to).unwrap();
    assert_eq!((after.total_pages, after.used_chunks), (1, 0));
    assert_eq!(class(from.class).unwrap().total_pages, from.total_pages - 1);
    assert_eq!(store.totals().pages_used, used, "no page came from the pool or went there");
    for idx in 0..after.free_chunks {
        set(&mut worker, &format!("n{idx:03}"), 300, later(ms));
    }
    assert_eq!(class(to).unwrap().total_pages, 1, "its chunks are of use");
    worker.quiesce();
    drop(worker);
    store.validate().unwrap();
}

#[test]
fn evictions_are_told_to_those_who_ask() {
    let (store, mut worker) = store(8 << 20);
    worker.note_evictions(true);
    let mut told = 0;
    for idx in 0..20_000 {
        set(&mut worker, &format!("key{idx}"), 1000, NOW);
        let evicted = worker.take_evicted();
        for evicted in &evicted {
            assert!(evicted.key.starts_with(b"key"));
            assert_eq!((evicted.value_len, evicted.ttl_s, evicted.fetched), (1000, None, false));
        }
        told += evicted.len() as u64;
        worker.quiesce();
    }
    assert_eq!(told, store.totals().evictions);
    assert!(told > 10_000);
}

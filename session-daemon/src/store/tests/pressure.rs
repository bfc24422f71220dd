//! Full stores: eviction, moving pages between classes, limits, uploads, expiry.

use super::{at, key, value};
use crate::store::types::{
    ClientFlags, Deleted, Flush, Lifetime, Mode, StoreConfig, StoreError, Stored,
};
use crate::store::{Store, Worker};
use rustix::thread::{Timespec, nanosleep};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

fn full(memory_limit: usize, workers: usize) -> (Arc<Store>, Vec<Worker>) {
    let item_size_max = (memory_limit / 2).min(1 << 20);
    let config = StoreConfig { memory_limit, item_size_max, workers, ..StoreConfig::default() };
    let store = Store::create(&config).unwrap();
    let workers = (0..workers).map(|_| store.worker().unwrap()).collect();
    (store, workers)
}

fn put(worker: &mut Worker, name: &str, len: usize, second: u64) -> Stored {
    let value = vec![name.len() as u8; len];
    let flags = ClientFlags(0);
    worker.set(key(name.as_bytes()), &value, flags, Lifetime::Never, Mode::Set, at(second))
}

#[track_caller]
fn must_put(worker: &mut Worker, name: &str, len: usize, second: u64) {
    let stored = put(worker, name, len, second);
    assert!(matches!(stored, Stored::Stored(_)), "{stored:?} for {len} bytes as {name}");
    let found = worker.get(key(name.as_bytes()), at(second)).map(|item| item.value_len());
    assert_eq!(found, Some(len));
    worker.quiesce();
}

fn check(store: &Store, workers: &mut [Worker]) {
    for worker in workers {
        worker.quiesce();
    }
    let census = store.validate().unwrap();
    assert_eq!(census.chunks_private, 0);
}

#[test]
fn any_size_displaces_any_other() {
    for (memory_limit, count) in [(2 << 20, 1), (2 << 20, 8), (8 << 20, 2)] {
        let (store, mut workers) = full(memory_limit, count);
        let small = memory_limit / 120;
        let large = (memory_limit / 2).min(1 << 20) - 100;
        for (round, len) in [100, large, 100, 3_000, large / 2, 30, 9_000].into_iter().enumerate() {
            let count = if len == 100 { small } else { 2 * memory_limit / (len + 40) };
            for i in 0..count.min(30_000) {
                let worker = i % workers.len();
                must_put(&mut workers[worker], &format!("{round}:{i}"), len, round as u64 + 10);
            }
        }
        assert!(store.totals().evictions > 0);
        check(&store, &mut workers);
    }
}

#[test]
fn a_shift_of_sizes_moves_the_pages() {
    let (store, mut workers) = full(2 << 20, 1);
    let mut second = 10;
    for (round, len) in [100, 1_000, 300].into_iter().enumerate() {
        for i in 0..30_000 {
            second += u64::from(i % 300 == 0);
            must_put(&mut workers[0], &format!("{round}:{i}"), len, second);
            workers[0].quiesce();
        }
        let class = store.classes().into_iter().max_by_key(|class| class.number).unwrap();
        let held = class.number as usize * len;
        assert!(held > 2 << 19, "only {held} bytes of {len}-byte values are held");
    }
    check(&store, &mut workers);
}

#[test]
fn items_in_use_outlive_others() {
    let (_, mut workers) = full(3 << 20, 1);
    let worker = &mut workers[0];
    for i in 0..1_000 {
        must_put(worker, &format!("hot{i}"), 100, 10);
    }
    for i in 0..60_000_u64 {
        must_put(worker, &format!("cold{i}"), 100, 10 + i / 3_000);
        let hot = format!("hot{}", i % 1_000);
        let _ = value(worker, hot.as_bytes(), at(10 + i / 3_000));
    }
    let hot = (0..1_000).filter(|i| value(worker, format!("hot{i}").as_bytes(), at(40)).is_some());
    assert!(hot.count() > 950);
}

#[test]
fn without_evictions_a_full_store_says_so_and_loses_nothing() {
    let config = StoreConfig {
        memory_limit: 2 << 20,
        item_size_max: 1 << 19,
        evictions: false,
        workers: 2,
        ..StoreConfig::default()
    };
    let store = Store::create(&config).unwrap();
    let mut workers: Vec<Worker> = (0..2).map(|_| store.worker().unwrap()).collect();
    let mut held = 0;
    while matches!(put(&mut workers[held % 2], &format!("k{held}"), 1_000, 10), Stored::Stored(_)) {
        held += 1;
    }
    assert!(held > 1_600, "{held}");
    assert_eq!(put(&mut workers[0], "large", 300_000, 10), Stored::NoMemory);
    for i in 0..held {
        assert!(value(&workers[0], format!("k{i}").as_bytes(), at(10)).is_some());
    }
    check(&store, &mut workers);
    // What is deleted, expired or flushed makes room, in other classes too.
    workers[0].flush_all(Flush::Now, at(11));
    for i in 0..200 {
        let stored = put(&mut workers[1], &format!("n{i}"), 5_000, 11);
        assert!(matches!(stored, Stored::Stored(_)), "{i}");
    }
    assert_eq!(store.totals().evictions, 0);
    check(&store, &mut workers);
}

#[test]
fn uploads_are_charged_as_they_come() {
    let (store, mut workers) = full(8 << 20, 1);
    let free = store.totals().pages_free;
    let worker = &mut workers[0];
    let mut uploads: Vec<_> = (0..200)
        .map(|_| worker.begin_upload(key(b"u"), ClientFlags(0), 1_000_000).unwrap())
        .collect();
    for upload in &mut uploads {
        upload.write(worker, &[1; 24], at(10)).unwrap();
    }
    let page_len = store.totals().page_len;
    assert!((free - store.totals().pages_free) * page_len <= 256 << 10);
    must_put(worker, "other", 500_000, 10);
    worker.quiesce();
    std::thread::spawn(move || drop(uploads)).join().unwrap();
    for i in 0..20 {
        must_put(&mut workers[0], &format!("k{i}"), 900_000, 10);
    }
    check(&store, &mut workers);
}

#[test]
fn large_values_are_whole_at_every_length() {
    for memory_limit in [16 << 20, 64 << 20] {
        let (store, mut workers) = full(memory_limit, 1);
        let page = store.totals().page_len as usize;
        let lens = [2_000, 4_000, 8_000, 8_200, page / 2, page - 300, page, 2 * page, 10 * page];
        for len in lens.into_iter().flat_map(|len| len - 40..len + 40) {
            let bytes: Vec<u8> =
                (0..len).map(|i| ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let k = key(b"large");
            let stored =
                workers[0].set(k, &bytes, ClientFlags(1), Lifetime::Never, Mode::Set, at(10));
            assert!(matches!(stored, Stored::Stored(_)));
            assert!(value(&workers[0], b"large", at(10)).unwrap() == bytes, "{len}");
            workers[0].quiesce();
        }
        check(&store, &mut workers);
    }
}

#[test]
fn the_sweep_removes_what_nobody_asks_for() {
    let (store, mut workers) = full(2 << 20, 1);
    let worker = &mut workers[0];
    for i in 0..2_000 {
        let name = format!("k{i}");
        let lifetime = if i % 2 == 0 { Lifetime::Until(20) } else { Lifetime::Never };
        worker.set(key(name.as_bytes()), b"v", ClientFlags(0), lifetime, Mode::Set, at(10));
    }
    let mut now = at(20);
    for _ in 0..2_000 {
        now.boottime_ns += 1_000_000;
        worker.maintain(now);
    }
    let totals = store.totals();
    assert_eq!((totals.curr_items, totals.crawler_reclaimed), (1_000, 1_000));
    assert_eq!((totals.expired_unfetched, totals.evictions), (1_000, 0));
    worker.flush_all(Flush::At(30), now);
    for _ in 0..20_000 {
        now.boottime_ns += 1_000_000;
        worker.maintain(now);
    }
    assert_eq!(store.totals().curr_items, 0);
    check(&store, &mut workers);
}

#[test]
fn a_worker_in_a_turn_keeps_its_items_whole() {
    let (store, mut workers) = full(2 << 20, 2);
    let mut writer = workers.pop().unwrap();
    let mut reader = workers.pop().unwrap();
    must_put(&mut writer, "held", 1_000, 10);
    writer.quiesce();
    {
        let item = reader.get(key(b"held"), at(10)).unwrap();
        assert_eq!(writer.delete(key(b"held"), None, at(10)), Deleted::Deleted);
        for i in 0..500 {
            must_put(&mut writer, &format!("k{i}"), 1_000, 10);
        }
        assert!(item.value().flatten().all(|byte| *byte == 4), "the chunk was reused");
    }
    reader.quiesce();
    for i in 0..5_000 {
        must_put(&mut writer, &format!("k{i}"), 1_000, 10);
    }
    check(&store, &mut [writer, reader]);
}

#[test]
fn limits_are_checked_at_creation() {
    let create = |memory_limit, item_size_max, workers| {
        let config = StoreConfig { memory_limit, item_size_max, workers, ..StoreConfig::default() };
        Store::create(&config).map(|_| ())
    };
    assert!(matches!(create(100_000, 1_024, 1), Err(StoreError::MemoryLimit { .. })));
    assert!(matches!(create(1 << 20, 1 << 20, 1), Err(StoreError::ItemSizeMax { .. })));
    assert!(matches!(create(1 << 20, 1 << 19, 0), Err(StoreError::Workers { .. })));
    assert!(create(1 << 20, 1 << 19, 255).is_ok());
    let (store, workers) = full(2 << 20, 2);
    assert!(matches!(store.worker(), Err(StoreError::NoWorkerLeft(2))));
    drop(workers);
    assert!(store.worker().is_ok());
}

#[test]
fn a_small_store_serves_many_workers() {
    let (store, mut workers) = full(1 << 20, 64);
    for i in 0..8_000 {
        let worker = i % workers.len();
        must_put(&mut workers[worker], &format!("k{i}"), i % 3_000, 10);
        workers[worker].quiesce();
    }
    check(&store, &mut workers);
}

/// Pages of which nothing can go are not what a store empties first, though they are worth nothing.
#[test]
fn values_that_are_half_sent_keep_nobody_from_room() {
    let (store, mut workers) = full(1 << 20, 2);
    for number in 0..9_000 {
        must_put(&mut workers[0], &format!("k{number}"), 100, 10);
    }
    let sender = &mut workers[0];
    let begin = |_| sender.begin_upload(key(b"u"), ClientFlags(0), 8_000).unwrap();
    let mut uploads: Vec<_> = (0..100).map(begin).collect();
    for upload in &mut uploads {
        upload.write(sender, &[1; 4_000], at(10)).unwrap();
    }
    sender.quiesce();
    for len in [500, 9_000, 300, 2_000, 700, 40, 1_200, 12_000, 3_000] {
        must_put(&mut workers[1], &format!("of {len}"), len, 10);
    }
    drop(uploads);
    check(&store, &mut workers);
}

/// A size that nothing else has finds room beside writers who take every page that becomes free.
#[test]
fn a_rare_size_finds_room_beside_writers_of_others() {
    let (store, mut workers) = full(1 << 20, 4);
    let mut rare = workers.pop().unwrap();
    let done = AtomicBool::new(false);
    let refused = std::thread::scope(|scope| {
        for (thread, worker) in workers.iter_mut().enumerate() {
            let done = &done;
            scope.spawn(move || {
                for turn in 0_usize.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    for number in 0..16 {
                        let number = turn * 16 + number;
                        let name = format!("{thread}:{}", number % 8_000);
                        put(worker, &name, number * 37 % 300, 10);
                    }
                    worker.quiesce();
                }
                worker.quiesce();
            });
        }
        let refused = (0..200).filter(|number| {
            let stored = put(&mut rare, &format!("rare{number}"), 9_000, 10);
            rare.quiesce();
            !matches!(stored, Stored::Stored(_))
        });
        let refused = refused.count();
        done.store(true, Ordering::Relaxed);
        refused
    });
    assert_eq!(refused, 0, "of 200");
    workers.push(rare);
    check(&store, &mut workers);
}

/// A worker that loses its core in a turn holds back what is evicted; nobody is refused for that.
#[test]
fn a_set_waits_for_a_worker_that_has_stopped_in_a_turn() {
    const STOPPED: Timespec = Timespec { tv_sec: 1, tv_nsec: 200_000_000 };
    let (store, mut workers) = full(2 << 20, 2);
    let mut stopped = workers.pop().unwrap();
    must_put(&mut workers[0], "held", 1_000, 10);
    let begun = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(stopped.get(key(b"held"), at(10)).is_some());
            begun.wait();
            // What is waited for is that this much time passes.
            let _ = nanosleep(&STOPPED);
            stopped.quiesce();
        });
        begun.wait();
        // Twice what the store holds.
        for number in 0..4_000 {
            must_put(&mut workers[0], &format!("k{number}"), 1_000, 10);
        }
    });
    workers.push(stopped);
    check(&store, &mut workers);
}

#[test]
fn a_pinned_value_outlives_its_item_and_holds_nothing_else_up() {
    let (store, mut workers) = full(8 << 20, 2);
    let whole: Vec<u8> = (0..=255).cycle().take(500_000).collect();
    let (name, flags) = (key(b"pinned"), ClientFlags(0));
    workers[0].set(name, &whole, flags, Lifetime::Never, Mode::Set, at(1));
    let pin = |worker: &mut Worker| {
        let pinned = worker.get(name, at(1)).and_then(|item| item.pin());
        worker.quiesce();
        pinned
    };
    let first = pin(&mut workers[0]).expect("little is pinned");
    let second = pin(&mut workers[1]).expect("the same item costs nothing more");
    // Replaced, and all memory but its own used several times over.
    workers[1].set(name, &whole, flags, Lifetime::Never, Mode::Set, at(1));
    let other = pin(&mut workers[1]).expect("within an eighth of the store");
    workers[1].set(name, &whole, flags, Lifetime::Never, Mode::Set, at(1));
    assert!(pin(&mut workers[0]).is_none(), "more than an eighth of the store");
    for i in 0..100 {
        must_put(&mut workers[i % 2], &format!("filling:{i}"), 400_000, 2);
    }
    assert!(store.totals().evictions > 0);
    for pinned in [&first, &second, &other] {
        assert_eq!(pinned.slices().collect::<Vec<_>>().concat(), whole);
    }
    check(&store, &mut workers);
    drop(first);
    drop(other);
    for i in 0..100 {
        must_put(&mut workers[i % 2], &format!("again:{i}"), 400_000, 3);
    }
    assert_eq!(second.slices().collect::<Vec<_>>().concat(), whole);
    drop(second);
    for i in 0..100 {
        must_put(&mut workers[i % 2], &format!("at last:{i}"), 400_000, 4);
    }
    check(&store, &mut workers);
    assert_eq!(store.validate().unwrap().chunks_in_limbo, 0);
}

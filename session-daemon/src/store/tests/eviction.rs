//! What is evicted, what is spared, and what moves.

use super::{at, key, value};
use crate::clock::Now;
use crate::store::types::{ClientFlags, Lifetime, Mode, StoreConfig, Stored};
use crate::store::{Store, Worker};
use std::sync::Arc;

fn full(memory_limit: usize) -> (Arc<Store>, Worker) {
    let config = StoreConfig {
        memory_limit,
        item_size_max: memory_limit / 2,
        workers: 1,
        ..StoreConfig::default()
    };
    let store = Store::create(&config).unwrap();
    let worker = store.worker().unwrap();
    (store, worker)
}

/// A thousand accesses to a second.
fn moment(access: u64) -> Now {
    let mut now = at(100);
    now.boottime_ns += access * 1_000_000;
    now
}

fn put(worker: &mut Worker, name: &str, len: usize, lifetime: Lifetime, now: Now) {
    let bytes = vec![b'v'; len];
    let (key, flags) = (key(name.as_bytes()), ClientFlags(0));
    let stored = worker.set(key, &bytes, flags, lifetime, Mode::Set, now);
    assert!(matches!(stored, Stored::Stored(_)), "{stored:?}");
}

/// A get, and a set if it missed. Whether it hit.
fn access(worker: &mut Worker, name: &str, len: usize, now: Now) -> bool {
    let hit = worker.get(key(name.as_bytes()), now).is_some();
    if !hit {
        put(worker, name, len, Lifetime::Never, now);
    }
    worker.maintain(now);
    worker.quiesce();
    hit
}

#[test]
fn a_scan_leaves_what_is_used() {
    let (store, mut worker) = full(4 << 20);
    // 8,000 keys in turn, which fit, among three times as many that come once: an LRU hits none.
    let (mut hits, mut asked) = (0, 0);
    for i in 0..200_000_u64 {
        if i % 4 == 0 {
            let hit = access(&mut worker, &format!("used{}", i / 4 % 8_000), 100, moment(i));
            if i >= 100_000 {
                asked += 1;
                hits += u64::from(hit);
            }
        } else {
            access(&mut worker, &format!("once{i}"), 100, moment(i));
        }
    }
    assert!(hits * 100 > asked * 70, "{hits} of {asked}");
    store.validate().unwrap();
}

#[test]
fn where_the_latest_are_used_they_are_kept() {
    let (store, mut worker) = full(4 << 20);
    // Each key is used often within 15,000 accesses, and never again; about 20,000 items fit.
    let (mut hits, mut asked) = (0, 0);
    let mut random = 1_u64;
    for i in 0..300_000_u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let back = (random >> 33) % 3_000;
        let hit = access(&mut worker, &format!("s{}", i / 5 + 3_000 - back), 100, moment(i));
        if i >= 150_000 {
            asked += 1;
            hits += u64::from(hit);
        }
    }
    // A fifth of the accesses at most are to new keys.
    assert!(hits * 100 > asked * 78, "{hits} of {asked}");
    store.validate().unwrap();
}

#[test]
fn dead_items_go_first() {
    let (store, mut worker) = full(8 << 20);
    let mut kept = 0;
    for i in 0..48_000 {
        let short = i % 2 == 0;
        let lifetime = if short { Lifetime::Until(110) } else { Lifetime::Never };
        kept += u64::from(!short);
        put(&mut worker, &format!("k{i}"), 100, lifetime, at(100));
        worker.quiesce();
    }
    let before = store.totals();
    assert_eq!(before.evictions, 0, "everything fits at first");
    for i in 0..21_000 {
        put(&mut worker, &format!("n{i}"), 100, Lifetime::Never, at(120));
        worker.quiesce();
    }
    let after = store.totals();
    assert!(after.reclaimed > 10_000, "{after:?}");
    // Only a page that the index takes as a whole costs live items.
    assert!(after.evictions * 20 < after.reclaimed, "the dead made room: {after:?}");
    let alive =
        (0..48_000).filter(|i| value(&worker, format!("k{i}").as_bytes(), at(120)).is_some());
    assert!(alive.count() as u64 >= kept - after.evictions);
    worker.quiesce();
    store.validate().unwrap();
}

#[test]
fn items_in_use_move_with_their_page() {
    let (store, mut worker) = full(8 << 20);
    // Small items of which a fifth are used, then larger ones that are all used.
    let small = |i: u64| format!("small{i}");
    for i in 0..200_000_u64 {
        let name = if i % 2 == 0 { small(i / 2 % 4_000) } else { format!("once{i}") };
        access(&mut worker, &name, 100, moment(i));
    }
    let before = store.totals();
    for i in 200_000..400_000_u64 {
        if i % 4 == 0 {
            access(&mut worker, &small(i / 4 % 4_000), 100, moment(i));
        } else {
            access(&mut worker, &format!("large{}", i % 5_000), 1_000, moment(i));
        }
    }
    let after = store.totals();
    assert!(after.slabs_moved > before.slabs_moved + 50, "{after:?}");
    assert!(after.items_moved > before.items_moved + 500, "{after:?}");
    let now = moment(400_000);
    let used = (0..4_000).filter(|i| value(&worker, small(*i).as_bytes(), now).is_some());
    let used = used.count();
    assert!(used > 3_600, "{used} of 4000 used items are left");
    worker.quiesce();
    store.validate().unwrap();
}

#[test]
fn what_was_never_read_is_counted_apart() {
    let (store, mut worker) = full(2 << 20);
    for i in 0..40_000_u64 {
        put(&mut worker, &format!("k{i}"), 100, Lifetime::Never, moment(i));
        if i % 2 == 0 {
            assert!(worker.get(key(format!("k{i}").as_bytes()), moment(i)).is_some());
        }
        worker.quiesce();
    }
    let totals = store.totals();
    assert_eq!(totals.curr_items + totals.evictions, 40_000);
    let classes: u64 = store.classes().iter().map(|class| class.evicted).sum();
    let unfetched: u64 = store.classes().iter().map(|class| class.evicted_unfetched).sum();
    assert_eq!((classes, unfetched), (totals.evictions, totals.evicted_unfetched));
    assert!(unfetched > totals.evictions / 3 && unfetched < totals.evictions, "{totals:?}");
}

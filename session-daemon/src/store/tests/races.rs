//! Threads that meet where a decision and its execution are two steps: draining, sweeping.

use super::{at, key};
use crate::store::layout::PageState;
use crate::store::types::{ClientFlags, Deleted, Lifetime, Mode, StoreConfig, Stored};
use crate::store::{Store, Worker};
use std::collections::HashMap;
use std::sync::Arc;

fn create(config: StoreConfig) -> (Arc<Store>, Vec<Worker>) {
    let store = Store::create(&config).unwrap();
    let workers = (0..config.workers).map(|_| store.worker().unwrap()).collect();
    (store, workers)
}

fn below(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 20) % below
}

/// Stores, reads and deletes keys that nobody else touches, in a store that may lose none.
fn keep_own(owner: u64, worker: &mut Worker, turns: u64) {
    const SIZES: [u64; 8] = [40, 1_500, 3_300, 90, 2_500, 700, 3_900, 5];
    let mut own: HashMap<u64, u64> = HashMap::new();
    let mut random = owner * 7_919 + 17;
    for turn in 0..turns {
        let now = at(10);
        for _ in 0..8 {
            let number = below(&mut random, 160);
            let name = format!("{owner}:{number}");
            let found = worker.get(key(name.as_bytes()), now).map(|item| item.value_len() as u64);
            assert_eq!(found, own.get(&number).copied(), "{name} in turn {turn}");
            if below(&mut random, 2) == 0 {
                let deleted = worker.delete(key(name.as_bytes()), None, now);
                assert_eq!(deleted == Deleted::Deleted, own.remove(&number).is_some());
                continue;
            }
            let len = SIZES[(turn / 64 + owner) as usize % 8] + below(&mut random, 100);
            let value = vec![7; len as usize];
            let (flags, life) = (ClientFlags(0), Lifetime::Never);
            match worker.set(key(name.as_bytes()), &value, flags, life, Mode::Set, now) {
                Stored::Stored(_) => drop(own.insert(number, len)),
                other => assert_eq!(other, Stored::NoMemory),
            }
        }
        worker.quiesce();
    }
}

#[test]
fn without_evictions_no_page_drains_that_holds_something() {
    let all = std::env::var_os("SESSION_TEST_ALL").is_some_and(|all| all == "1");
    let turns = if all { 40_000 } else { 4_000 };
    let config = StoreConfig {
        memory_limit: 1 << 20,
        item_size_max: 1 << 18,
        evictions: false,
        workers: 4,
        ..StoreConfig::default()
    };
    let (store, mut workers) = create(config);
    std::thread::scope(|scope| {
        for (owner, worker) in workers.iter_mut().enumerate() {
            scope.spawn(move || {
                keep_own(owner as u64, worker, turns);
                worker.quiesce();
            });
        }
    });
    assert_eq!(store.totals().evictions, 0);
    assert_eq!(store.validate().unwrap().chunks_private, 0);
}

#[test]
fn only_an_empty_page_is_marked_as_empty() {
    let (store, mut workers) = create(StoreConfig { workers: 1, ..StoreConfig::default() });
    let class = store.classes.last();
    let taken = store.pool_take().unwrap();
    let page = taken.page;
    store.class_add_page(class, taken);
    let mut chunk = [0];
    assert_eq!(store.class_take(class, &mut chunk), 1);
    assert!(!workers[0].drain_empty(page, class));
    workers[0].give_chunk_to_page(chunk[0]);
    assert!(workers[0].drain_empty(page, class));
    assert!(!workers[0].drain_empty(page, class));
    assert_eq!(store.page_state(page), PageState::Retired);
    for _ in 0..3 {
        workers[0].begin();
        workers[0].turn_over(true);
        workers[0].quiesce();
    }
    assert_eq!(store.page_state(page), PageState::Free);
    store.validate().unwrap();
}

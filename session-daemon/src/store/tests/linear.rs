//! Histories of threads that use the same keys are recorded, and for each key an order is looked
//! for that explains the answers (`history`).

use super::history::{
    Answer, Command, Event, State, apply, below, choose, is_linearizable, name, run, version_in,
};
use super::{at, key};
use crate::store::types::{
    Arithmetic, CasUnique, ClientFlags, Deleted, Lifetime, Mode, StoreConfig, Stored,
};
use crate::store::{Store, Worker};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const THREADS: usize = 3;
const KEYS: u64 = 4;
/// Commands of each thread between two moments at which all stand still.
const COMMANDS: usize = 8;

fn rounds() -> u64 {
    let all = std::env::var_os("SESSION_TEST_ALL").is_some_and(|all| all == "1");
    if all { 200_000 } else { 3_000 }
}

/// Where threads meet between rounds.
struct Meeting {
    arrived: AtomicUsize,
    clock: AtomicU64,
    round: AtomicU64,
    events: Mutex<Vec<Event>>,
}

impl Meeting {
    /// Waits until the round begins.
    fn wait(&self, round: u64) {
        while self.round.load(Ordering::Acquire) < round {
            std::thread::yield_now();
        }
    }
}

fn take_part(mut worker: Worker, seed: u64, meeting: &Meeting) {
    let mut random = seed * 0x9e37_79b9 + 1;
    let mut versions = [1_u64; KEYS as usize];
    for round in 1..=rounds() {
        meeting.wait(round);
        let mut events = Vec::with_capacity(COMMANDS);
        for _ in 0..COMMANDS {
            let number = below(&mut random, KEYS);
            let command = choose(&mut random, versions[number as usize]);
            let called = meeting.clock.fetch_add(1, Ordering::SeqCst);
            let answer = run(&mut worker, number, &command, at(10));
            let returned = meeting.clock.fetch_add(1, Ordering::SeqCst);
            if let Some(version) = version_in(&answer) {
                versions[number as usize] = version;
            }
            events.push(Event { key: number, command, answer, called, returned });
        }
        worker.quiesce();
        meeting.events.lock().unwrap().extend(events);
        meeting.arrived.fetch_add(1, Ordering::AcqRel);
    }
}

/// Stores other keys, so that buckets split and memory runs short where it is.
fn disturb(mut worker: Worker, done: &AtomicBool, keys: u64) {
    let mut random = 77;
    while !done.load(Ordering::Acquire) {
        for _ in 0..16 {
            let number = 1_000 + below(&mut random, keys);
            let value = vec![b'x'; below(&mut random, 300) as usize];
            let (name, life) = (name(number), Lifetime::Never);
            worker.set(key(&name), &value, ClientFlags(0), life, Mode::Set, at(10));
            if below(&mut random, 4) == 0 {
                let _ = worker.delete(key(&name), None, at(10));
            }
        }
        worker.maintain(at(10));
        worker.quiesce();
    }
}

fn histories(memory_limit: usize, keys: u64, vanishes: bool) {
    let workers = THREADS + 2;
    let item_size_max = 64 << 10;
    let config = StoreConfig { memory_limit, item_size_max, workers, ..StoreConfig::default() };
    let store: Arc<Store> = Store::create(&config).unwrap();
    let mut reader = store.worker().unwrap();
    let (meeting, done) = (
        Meeting {
            arrived: AtomicUsize::new(0),
            clock: AtomicU64::new(1),
            round: AtomicU64::new(0),
            events: Mutex::new(Vec::new()),
        },
        AtomicBool::new(false),
    );
    let (meeting, done) = (&meeting, &done);
    std::thread::scope(|scope| {
        for seed in 0..THREADS as u64 {
            let worker = store.worker().unwrap();
            scope.spawn(move || take_part(worker, seed + 1, meeting));
        }
        let worker = store.worker().unwrap();
        scope.spawn(move || disturb(worker, done, keys));
        let mut states: Vec<State> = vec![None; KEYS as usize];
        let mut wrong = None;
        for round in 1..=rounds() {
            meeting.round.store(round, Ordering::Release);
            while meeting.arrived.load(Ordering::Acquire) < THREADS * round as usize {
                std::thread::yield_now();
            }
            let mut events = std::mem::take(&mut *meeting.events.lock().unwrap());
            for number in 0..KEYS {
                let called = meeting.clock.fetch_add(1, Ordering::SeqCst);
                let answer = run(&mut reader, number, &Command::Get, at(10));
                let Answer::Item(state) = answer.clone() else { unreachable!() };
                let returned = meeting.clock.fetch_add(1, Ordering::SeqCst);
                events.push(Event { key: number, command: Command::Get, answer, called, returned });
                let of_key: Vec<Event> =
                    events.iter().filter(|event| event.key == number).cloned().collect();
                if !is_linearizable(&of_key, &states[number as usize], vanishes) {
                    wrong = wrong.or(Some((states[number as usize].clone(), of_key)));
                }
                states[number as usize] = state;
            }
            reader.quiesce();
        }
        done.store(true, Ordering::Release);
        assert!(wrong.is_none(), "no order explains {wrong:#?}");
    });
    assert_eq!(store.totals().evictions > 0, vanishes, "memory was short or not as intended");
    drop(reader);
    store.validate().unwrap();
}

#[test]
fn every_history_has_an_order() {
    histories(64 << 20, 40_000, false);
}

#[test]
fn every_history_has_an_order_where_items_are_evicted() {
    histories(1 << 20, 20_000, true);
}

#[test]
fn a_history_without_an_order_is_found() {
    let event =
        |command, answer, called, returned| Event { key: 0, command, answer, called, returned };
    let stored = |cas| Answer::Stored(Stored::Stored(CasUnique(cas)));
    let set = Command::Set(Mode::Set, b"1".to_vec(), 0);
    let add = Command::Set(Mode::Add, b"2".to_vec(), 0);
    let after = |cas| apply(&None, &set, &stored(cas)).unwrap();
    let item = |cas| Answer::Item(after(cas));
    let stale = [
        event(set.clone(), stored(5), 1, 2),
        event(Command::Delete(None), Answer::Deleted(Deleted::Deleted), 3, 4),
        event(Command::Get, item(5), 5, 6),
    ];
    assert!(!is_linearizable(&stale, &None, true));
    let missed =
        [event(set.clone(), stored(5), 1, 2), event(Command::Get, Answer::Item(None), 3, 4)];
    assert!(!is_linearizable(&missed, &None, false) && is_linearizable(&missed, &None, true));
    let both = [event(add.clone(), stored(5), 1, 4), event(add, stored(6), 2, 3)];
    assert!(!is_linearizable(&both, &None, false));
    let overlap = [event(Command::Get, item(5), 1, 4), event(set.clone(), stored(5), 2, 3)];
    assert!(is_linearizable(&overlap, &None, false));
    let up = Command::Count(Arithmetic::Increment);
    let lost = [
        event(up.clone(), Answer::Counted(Some((2, 6))), 1, 4),
        event(up, Answer::Counted(Some((2, 7))), 2, 3),
    ];
    assert!(!is_linearizable(&lost, &after(5), false));
    // Of two who meet a stale item one wins it.
    let before = apply(&after(5), &Command::Stale, &Answer::Renewed(true)).unwrap();
    let seen = before.clone().map(|entry| entry.with_version(6)).unwrap();
    let wins = |won, called| {
        event(Command::Lease, Answer::Leased(seen.clone(), false, won), called, called + 2)
    };
    assert!(!is_linearizable(&[wins(true, 1), wins(true, 2)], &before, false));
    assert!(!is_linearizable(&[wins(false, 1)], &before, false));
    // A touch that was done is not undone by what it met.
    let touched = [
        event(Command::Touch(400), Answer::Touched(true), 1, 2),
        event(Command::Get, item(5), 3, 4),
    ];
    assert!(!is_linearizable(&touched, &after(5), false));
}

//! Histories of threads that use the same keys are recorded, and for each key an order is looked
//! for in which a plain value would have answered the same: each command between its call and its
//! return (Wing and Gong). Where memory is short an item may vanish at any time, never come back.

use super::{at, key};
use crate::store::types::{
    Arithmetic, CasUnique, ClientFlags, Counted, Deleted, Lifetime, Mode, StoreConfig, Stored,
};
use crate::store::{Store, Worker};
use std::collections::HashSet;
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

/// What a key has: a value and its version.
type State = Option<(Vec<u8>, u64)>;

#[derive(Clone, Debug)]
enum Command {
    Get,
    Set(Mode, Vec<u8>),
    Increment,
    Delete(Option<u64>),
    Touch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Item(State),
    Stored(Stored),
    Counted(Option<(u64, u64)>),
    NotANumber,
    Deleted(Deleted),
    Touched(bool),
}

#[derive(Clone, Debug)]
struct Event {
    key: u64,
    command: Command,
    answer: Answer,
    called: u64,
    returned: u64,
}

/// What a plain value would have become, if it could have answered that.
fn apply(state: &State, command: &Command, answer: &Answer) -> Option<State> {
    let version = state.as_ref().map(|state| state.1);
    match (command, answer) {
        (Command::Get, Answer::Item(item)) => (item == state).then(|| state.clone()),
        (Command::Touch, Answer::Touched(found)) => {
            (*found == state.is_some()).then(|| state.clone())
        }
        (Command::Delete(asked), Answer::Deleted(deleted)) => match (deleted, version) {
            (Deleted::NotFound, None) => Some(None),
            (Deleted::Exists, Some(version)) if asked.is_some_and(|asked| asked != version) => {
                Some(state.clone())
            }
            (Deleted::Deleted, Some(version)) if asked.is_none_or(|asked| asked == version) => {
                Some(None)
            }
            _ => None,
        },
        (Command::Set(mode, value), Answer::Stored(stored)) => {
            let refused = match (mode, version) {
                (Mode::Add, Some(_)) | (Mode::Replace | Mode::Append, None) => {
                    Some(Stored::NotStored)
                }
                (Mode::Cas(_), None) => Some(Stored::NotFound),
                (Mode::Cas(asked), Some(version)) if asked.0 != version => Some(Stored::Exists),
                _ => None,
            };
            match (refused, stored) {
                (Some(refused), stored) => (refused == *stored).then(|| state.clone()),
                (None, Stored::Stored(cas)) if version.is_none_or(|version| version < cas.0) => {
                    let before = state.as_ref().filter(|_| *mode == Mode::Append);
                    let before = before.map(|state| state.0.clone()).unwrap_or_default();
                    Some(Some(([before, value.clone()].concat(), cas.0)))
                }
                _ => None,
            }
        }
        (Command::Increment, answer) => {
            let text = state.as_ref().map(|state| std::str::from_utf8(&state.0).unwrap());
            // A sum keeps the length that the number had, padded with blanks, and what stands
            // behind a blank does not count, as in memcached.
            let first = |text: &str| text.split(' ').next().unwrap_or_default().parse::<u64>();
            let number = text.map(first);
            match (number, answer) {
                (None, Answer::Counted(None)) => Some(None),
                (Some(Err(_)), Answer::NotANumber) => Some(state.clone()),
                (Some(Ok(number)), Answer::Counted(Some((sum, cas)))) => {
                    let right = number + 1 == *sum && version < Some(*cas);
                    let len = text.map_or(0, str::len);
                    right.then(|| Some((format!("{sum:<len$}").into_bytes(), *cas)))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Looks for an order of the events of one key. `vanishes`: an item may go at any time.
fn is_linearizable(events: &[Event], start: &State, vanishes: bool) -> bool {
    let all = (1_u64 << events.len()) - 1;
    let mut seen = HashSet::new();
    let mut stack = vec![(0_u64, start.clone())];
    while let Some((done, state)) = stack.pop() {
        if done == all {
            return true;
        }
        if !seen.insert((done, state.clone())) {
            continue;
        }
        if vanishes && state.is_some() {
            stack.push((done, None));
        }
        let open = |idx: &usize| done >> idx & 1 == 0;
        let first_return =
            (0..events.len()).filter(open).map(|idx| events[idx].returned).min().unwrap_or(0);
        for idx in (0..events.len()).filter(open) {
            let event = &events[idx];
            if event.called < first_return
                && let Some(next) = apply(&state, &event.command, &event.answer)
            {
                stack.push((done | 1 << idx, next));
            }
        }
    }
    false
}

fn name(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

fn run(worker: &mut Worker, number: u64, command: &Command) -> Answer {
    let (name, now) = (name(number), at(10));
    let key = key(&name);
    match command {
        Command::Get => Answer::Item(
            worker
                .get(key, now)
                .map(|item| (item.value().flatten().copied().collect(), item.cas().0)),
        ),
        Command::Set(mode, value) => {
            Answer::Stored(worker.set(key, value, ClientFlags(0), Lifetime::Never, *mode, now))
        }
        Command::Increment => match worker.arithmetic(key, Arithmetic::Increment, 1, None, now) {
            Counted::Value { value, cas, .. } => Answer::Counted(Some((value, cas.0))),
            Counted::NotFound => Answer::Counted(None),
            Counted::NonNumeric => Answer::NotANumber,
            other => panic!("{other:?}"),
        },
        Command::Delete(cas) => Answer::Deleted(worker.delete(key, cas.map(CasUnique), now)),
        Command::Touch => Answer::Touched(worker.touch(key, Lifetime::Never, now)),
    }
}

fn below(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 20) % below
}

fn choose(random: &mut u64, version: u64) -> Command {
    let value = below(random, 1_000).to_string().into_bytes();
    let set = |mode| Command::Set(mode, value.clone());
    match below(random, 12) {
        0 | 1 => set(Mode::Set),
        2 | 3 => set(Mode::Add),
        4 => set(Mode::Replace),
        5 => set(Mode::Append),
        6 => set(Mode::Cas(CasUnique(version))),
        7 => Command::Increment,
        8 => Command::Delete(None),
        9 => Command::Delete(Some(version)),
        10 => Command::Touch,
        _ => Command::Get,
    }
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
            let answer = run(&mut worker, number, &command);
            let returned = meeting.clock.fetch_add(1, Ordering::SeqCst);
            if let Answer::Item(Some((_, cas))) = answer {
                versions[number as usize] = cas;
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
                let answer = run(&mut reader, number, &Command::Get);
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
    let set = Command::Set(Mode::Set, b"1".to_vec());
    let add = Command::Set(Mode::Add, b"2".to_vec());
    let item = |cas| Answer::Item(Some((b"1".to_vec(), cas)));
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
    let overlap = [event(Command::Get, item(5), 1, 4), event(set, stored(5), 2, 3)];
    assert!(is_linearizable(&overlap, &None, false));
    let lost = [
        event(Command::Increment, Answer::Counted(Some((2, 6))), 1, 4),
        event(Command::Increment, Answer::Counted(Some((2, 7))), 2, 3),
    ];
    assert!(!is_linearizable(&lost, &Some((b"1".to_vec(), 5)), false));
}

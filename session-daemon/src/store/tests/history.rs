//! Histories of commands on one key, and the search for an order in which a plain value would have
//! answered the same: each command between its call and its return (Wing and Gong). Where memory
//! is short an item may vanish at any time, never come back.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Worker;
use crate::store::types::{
    Arithmetic, CasUnique, ClientFlags, CountTerms, Counted, Deleted, Key, LeaseTerms, Lifetime,
    Mode, Renewal, Renewed, Stored, Terms,
};
use std::collections::HashSet;

/// A version, as far as it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Version {
    Is(u64),
    /// Some version above this one.
    After(u64),
}

impl Version {
    fn may_be(self, version: u64) -> bool {
        match self {
            Self::Is(this) => this == version,
            Self::After(least) => version > least,
        }
    }

    fn may_be_below(self, version: u64) -> bool {
        match self {
            Self::Is(this) | Self::After(this) => this < version,
        }
    }
}

/// What a key has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) value: Vec<u8>,
    pub(crate) version: Version,
    /// Second at which it ends, 0 for never.
    pub(crate) until_s: u32,
    pub(crate) stale: bool,
    pub(crate) won: bool,
}

impl Entry {
    /// The same, once its version was seen.
    pub(crate) fn with_version(self, version: u64) -> Self {
        Self { version: Version::Is(version), ..self }
    }
}

/// What a key has, if anything.
pub(crate) type State = Option<Entry>;

#[derive(Clone, Debug)]
pub(crate) enum Command {
    Get,
    GetAndTouch(u32),
    Touch(u32),
    /// The value, and the second at which it ends.
    Set(Mode, Vec<u8>, u32),
    Count(Arithmetic),
    Delete(Option<u64>),
    /// Marks the item stale.
    Stale,
    /// A lookup that wins what is stale or ends soon, and makes an item where there is none.
    Lease,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Item(State),
    Stored(Stored),
    Counted(Option<(u64, u64)>),
    NotANumber,
    Deleted(Deleted),
    Touched(bool),
    Renewed(bool),
    /// What was found or made, whether it was made, and whether it is the caller's to renew.
    Leased(Entry, bool, bool),
}

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) key: u64,
    pub(crate) command: Command,
    pub(crate) answer: Answer,
    pub(crate) called: u64,
    pub(crate) returned: u64,
}

/// The second before which a lease wins what ends.
const RECACHE_S: u32 = 500;
/// How long what a lease has made lives.
const VIVIFIED_S: u32 = 900;

fn lifetime(until_s: u32) -> Lifetime {
    if until_s == 0 { Lifetime::Never } else { Lifetime::Until(until_s) }
}

/// Whether this entry may be the one that was seen.
fn is_seen(entry: &Entry, seen: &Entry) -> bool {
    let Version::Is(version) = seen.version else { return false };
    entry.version.may_be(version) && Entry { version: seen.version, ..entry.clone() } == *seen
}

/// What a plain value would have become, if it could have answered that.
pub(crate) fn apply(state: &State, command: &Command, answer: &Answer) -> Option<State> {
    match (command, answer, state) {
        (Command::Get | Command::GetAndTouch(_), Answer::Item(None), None) => Some(None),
        (Command::Get, Answer::Item(Some(seen)), Some(entry)) => {
            is_seen(entry, seen).then(|| Some(seen.clone()))
        }
        (Command::GetAndTouch(until_s), Answer::Item(Some(seen)), Some(entry)) => {
            // The item is shown with its new lifetime.
            let touched = Entry { until_s: *until_s, ..entry.clone() };
            is_seen(&touched, seen).then(|| Some(seen.clone()))
        }
        (Command::Touch(_), Answer::Touched(false), None) => Some(None),
        (Command::Touch(until_s), Answer::Touched(true), Some(entry)) => {
            Some(Some(Entry { until_s: *until_s, ..entry.clone() }))
        }
        (Command::Delete(asked), Answer::Deleted(deleted), _) => match (deleted, state) {
            (Deleted::NotFound, None) => Some(None),
            (Deleted::Exists, Some(entry)) => asked
                .is_some_and(|asked| entry.version != Version::Is(asked))
                .then(|| state.clone()),
            (Deleted::Deleted, Some(entry)) => {
                asked.is_none_or(|asked| entry.version.may_be(asked)).then_some(None)
            }
            _ => None,
        },
        (Command::Set(mode, value, until_s), Answer::Stored(stored), _) => {
            apply_set(state, *mode, value, *until_s, *stored)
        }
        (Command::Count(_), Answer::Counted(None), None) => Some(None),
        (Command::Count(way), answer, Some(entry)) => apply_count(entry, *way, answer).map(Some),
        (Command::Stale, Answer::Renewed(false), None) => Some(None),
        (Command::Stale, Answer::Renewed(true), Some(entry)) => {
            let (Version::Is(before) | Version::After(before)) = entry.version;
            let version = Version::After(before);
            Some(Some(Entry { version, stale: true, won: false, ..entry.clone() }))
        }
        (Command::Lease, Answer::Leased(made, true, true), None) => {
            let is_empty = made.value.is_empty() && made.until_s == VIVIFIED_S && !made.stale;
            is_empty.then(|| Some(made.clone()))
        }
        (Command::Lease, Answer::Leased(seen, false, won), Some(entry)) => {
            let ends_soon = entry.until_s != 0 && entry.until_s < RECACHE_S;
            let wins = !entry.won && (entry.stale || ends_soon);
            // The item is shown as it was before.
            let is_right = *won == wins && is_seen(entry, seen);
            is_right.then(|| Some(Entry { won: entry.won || wins, ..seen.clone() }))
        }
        _ => None,
    }
}

fn apply_set(
    state: &State,
    mode: Mode,
    value: &[u8],
    until_s: u32,
    stored: Stored,
) -> Option<State> {
    let is_joined = matches!(mode, Mode::Append | Mode::Prepend);
    let may_be_refused = match (mode, state, stored) {
        (Mode::Add, Some(_), Stored::NotStored) => true,
        (Mode::Replace | Mode::Append | Mode::Prepend, None, Stored::NotStored) => true,
        (Mode::Cas(_), None, Stored::NotFound) => true,
        (Mode::Cas(asked), Some(entry), Stored::Exists) => entry.version != Version::Is(asked.0),
        _ => false,
    };
    if may_be_refused {
        return Some(state.clone());
    }
    let Stored::Stored(cas) = stored else { return None };
    let may_store = match (mode, state) {
        (Mode::Set, _) | (Mode::Add, None) => true,
        (Mode::Replace | Mode::Append | Mode::Prepend, Some(_)) => true,
        (Mode::Cas(asked), Some(entry)) => entry.version.may_be(asked.0),
        _ => false,
    };
    let grows = state.as_ref().is_none_or(|entry| entry.version.may_be_below(cas.0));
    if !may_store || !grows {
        return None;
    }
    let before = state.as_ref().filter(|_| is_joined);
    let old = before.map(|entry| entry.value.as_slice()).unwrap_or_default();
    Some(Some(Entry {
        value: if mode == Mode::Prepend { [value, old].concat() } else { [old, value].concat() },
        version: Version::Is(cas.0),
        until_s: before.map_or(until_s, |entry| entry.until_s),
        stale: false,
        won: false,
    }))
}

fn apply_count(entry: &Entry, way: Arithmetic, answer: &Answer) -> Option<Entry> {
    // A sum keeps the length that the number had, padded with blanks, and what stands behind a
    // blank does not count, as in memcached.
    let text = std::str::from_utf8(&entry.value).ok()?;
    let number = text.split(' ').next().unwrap_or_default().parse::<u64>();
    match (number, answer) {
        (Err(_), Answer::NotANumber) => Some(entry.clone()),
        (Ok(number), Answer::Counted(Some((sum, cas)))) => {
            let right = match way {
                Arithmetic::Increment => number.wrapping_add(1),
                Arithmetic::Decrement => number.saturating_sub(1),
            };
            let is_right = right == *sum && entry.version.may_be_below(*cas);
            let len = text.len();
            is_right.then(|| Entry {
                value: format!("{sum:<len$}").into_bytes(),
                version: Version::Is(*cas),
                ..entry.clone()
            })
        }
        _ => None,
    }
}

/// Looks for an order of the events of one key. `vanishes`: an item may go at any time.
pub(crate) fn is_linearizable(events: &[Event], start: &State, vanishes: bool) -> bool {
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

pub(crate) fn name(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

fn entry(item: &crate::store::Item<'_>) -> Entry {
    Entry {
        value: item.value().flatten().copied().collect(),
        version: Version::Is(item.cas().0),
        until_s: match item.lifetime() {
            Lifetime::Until(second) => second,
            _ => 0,
        },
        stale: item.is_stale(),
        won: item.is_won(),
    }
}

/// Does a command, and says what was answered.
pub(crate) fn run(worker: &mut Worker, number: u64, command: &Command, now: Now) -> Answer {
    let name = name(number);
    let key = Key::new(&name).expect("eight bytes are a key");
    match command {
        Command::Get => Answer::Item(worker.get(key, now).map(|item| entry(&item))),
        Command::GetAndTouch(until_s) => {
            let item = worker.get_and_touch(key, lifetime(*until_s), now);
            Answer::Item(item.map(|item| entry(&item)))
        }
        Command::Touch(until_s) => Answer::Touched(worker.touch(key, lifetime(*until_s), now)),
        Command::Set(mode, value, until_s) => {
            let terms = Terms::new(ClientFlags(0), lifetime(*until_s), *mode);
            Answer::Stored(worker.put(key, value, &terms, now).stored)
        }
        Command::Count(way) => {
            match worker.count_up_or_down(key, *way, 1, &CountTerms::default(), now) {
                Counted::Value { value, cas, .. } => Answer::Counted(Some((value, cas.0))),
                Counted::NotFound => Answer::Counted(None),
                Counted::NonNumeric => Answer::NotANumber,
                other => panic!("{other:?}"),
            }
        }
        Command::Delete(cas) => Answer::Deleted(worker.delete(key, cas.map(CasUnique), now)),
        Command::Stale => {
            let renewal = Renewal { stale: true, ..Renewal::default() };
            match worker.renew(key, &renewal, now) {
                Renewed::Renewed => Answer::Renewed(true),
                Renewed::NotFound => Answer::Renewed(false),
                other => panic!("{other:?}"),
            }
        }
        Command::Lease => {
            let terms = LeaseTerms {
                vivify: Some(Lifetime::Until(VIVIFIED_S)),
                recache: Some(Lifetime::Until(RECACHE_S)),
                ..LeaseTerms::default()
            };
            let leased = worker.lease(key, &terms, now).expect("there is memory");
            Answer::Leased(entry(&leased.item), leased.created, leased.won)
        }
    }
}

/// A number below `below`, from a sequence of the caller's.
pub(crate) fn below(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 20) % below
}

/// A command of any kind, with the version of the key that the caller has seen last.
pub(crate) fn choose(random: &mut u64, version: u64) -> Command {
    let mut value = below(random, 1_000).to_string().into_bytes();
    if below(random, 40) == 0 {
        value.resize(9_000, b'x');
    }
    let until_s = [0, 0, 400, 800][below(random, 4) as usize];
    let set = |mode| Command::Set(mode, value.clone(), until_s);
    match below(random, 20) {
        0..3 => set(Mode::Set),
        3 | 4 => set(Mode::Add),
        5 => set(Mode::Replace),
        6 => set(Mode::Append),
        7 => set(Mode::Prepend),
        8 | 9 => set(Mode::Cas(CasUnique(version))),
        10 => Command::Count(Arithmetic::Increment),
        11 => Command::Count(Arithmetic::Decrement),
        12 => Command::Delete(None),
        13 => Command::Delete(Some(version)),
        14 => Command::Touch(until_s),
        15 => Command::GetAndTouch(until_s),
        16 => Command::Stale,
        17 => Command::Lease,
        _ => Command::Get,
    }
}

/// The version that an answer shows.
pub(crate) fn version_in(answer: &Answer) -> Option<u64> {
    match answer {
        Answer::Item(Some(Entry { version: Version::Is(version), .. }))
        | Answer::Leased(Entry { version: Version::Is(version), .. }, ..) => Some(*version),
        Answer::Stored(Stored::Stored(cas)) => Some(cas.0),
        _ => None,
    }
}

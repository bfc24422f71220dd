//! All commands against a plain map, with a logical clock, then the check of everything.

use super::{at, key};
use crate::store::types::{
    Arithmetic, CasUnique, ClientFlags, CountTerms, Counted, Deleted, Flush, Key, LeaseTerms,
    Lifetime, Mode, Renewal, Renewed, StoreConfig, Stored, Terms,
};
use crate::store::{Store, Worker};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use std::collections::HashMap;

const KEYS: usize = 12;

#[derive(Clone, Debug)]
enum Command {
    Get(usize),
    GetBatch(Vec<usize>),
    GetAndTouch(usize, Life),
    Store(usize, Verb, usize, u32, Life, bool),
    /// [`Command::Store`] of a few bytes with a version of its own, or stale if older, or made.
    Put(usize, Verb, Option<u64>, bool, bool),
    /// A lookup: new lifetime, lifetime of what is made, win below so many seconds left.
    Lease(usize, Option<Life>, Option<Life>, Option<u32>, bool),
    /// Stale, emptied, new lifetime, chosen version.
    Renew(usize, Version, bool, bool, Option<Life>, Option<u64>),
    Delete(usize, Version),
    Count(usize, bool, u64, Version),
    Touch(usize, Life),
    FlushNow,
    FlushAt(u32),
    Wait(u32),
    Quiesce,
    Maintain,
    AbandonUpload(usize),
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Set,
    SetNumber(u64),
    Add,
    Replace,
    Append,
    Prepend,
    Cas(Version),
}

#[derive(Clone, Copy, Debug)]
enum Version {
    Any,
    Right,
    Wrong,
}

#[derive(Clone, Copy, Debug)]
enum Life {
    Never,
    In(u32),
    Past,
}

impl Life {
    fn from(self, now_s: u32) -> Lifetime {
        match self {
            Self::Never => Lifetime::Never,
            Self::In(seconds) => Lifetime::Until(now_s + seconds),
            Self::Past => Lifetime::Past,
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    value: Vec<u8>,
    flags: u32,
    life: Lifetime,
    cas: CasUnique,
    stale: bool,
    won: bool,
    /// Moment of storing: number of commands before it, and second.
    at: (u64, u32),
}

/// Versions below this are chosen by clients here.
const CHOSEN_MAX: u64 = 100;

impl Entry {
    fn fresh(at: (u64, u32)) -> Self {
        let (life, cas) = (Lifetime::Never, CasUnique(0));
        Self { value: Vec::new(), flags: 0, life, cas, stale: false, won: false, at }
    }

    /// What stays of an item that something is joined to.
    fn joined(&self, at: (u64, u32)) -> Self {
        Self { stale: false, won: false, at, ..self.clone() }
    }
}

#[derive(Debug, Default)]
struct Model {
    items: HashMap<usize, Entry>,
    tick: u64,
    now_s: u32,
    flushed_before: u64,
    flush_at_s: Option<u32>,
}

impl Model {
    fn settle(&mut self) {
        self.tick += 1;
        let (now_s, flush) = (self.now_s, self.flush_at_s);
        let before = self.flushed_before;
        self.items.retain(|_, entry| {
            let lives = match entry.life {
                Lifetime::Never => true,
                Lifetime::Until(second) => now_s < second,
                Lifetime::Past => false,
            };
            let flushed = entry.at.0 < before
                || flush.is_some_and(|second| now_s >= second && entry.at.1 < second);
            lives && !flushed
        });
    }
}

fn life() -> impl Strategy<Value = Life> {
    prop_oneof![4 => Just(Life::Never), 3 => (1..6_u32).prop_map(Life::In), 1 => Just(Life::Past)]
}

fn version() -> impl Strategy<Value = Version> {
    prop_oneof![Just(Version::Any), Just(Version::Right), Just(Version::Wrong)]
}

fn verb() -> impl Strategy<Value = Verb> {
    prop_oneof![
        3 => Just(Verb::Set),
        2 => any::<u64>().prop_map(Verb::SetNumber),
        2 => (0..200_u64).prop_map(Verb::SetNumber),
        2 => Just(Verb::Add),
        2 => Just(Verb::Replace),
        2 => Just(Verb::Append),
        2 => Just(Verb::Prepend),
        2 => version().prop_map(Verb::Cas),
    ]
}

fn value_len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..40_usize, 2 => 0..5_000_usize, 1 => 3_900..4_200_usize, 1 => 0..60_000_usize]
}

fn command() -> impl Strategy<Value = Command> {
    let k = 0..KEYS;
    prop_oneof![
        6 => k.clone().prop_map(Command::Get),
        1 => vec(k.clone(), 0..40).prop_map(Command::GetBatch),
        2 => (k.clone(), life()).prop_map(|(k, l)| Command::GetAndTouch(k, l)),
        12 => (k.clone(), verb(), value_len(), 0..3_u32, life(), any::<bool>())
            .prop_map(|(k, v, n, f, l, u)| Command::Store(k, v, n, f, l, u)),
        3 => (k.clone(), verb(), option::of(0..9_u64), any::<bool>(), any::<bool>())
            .prop_map(|(k, v, c, o, m)| Command::Put(k, v, c, o, m)),
        4 => (k.clone(), option::of(life()), option::of(life()), option::of(0..9_u32), any::<bool>())
            .prop_map(|(k, t, v, r, f)| Command::Lease(k, t, v, r, f)),
        4 => (k.clone(), version(), any::<bool>(), any::<bool>(), option::of(life()),
            option::of(0..9_u64)).prop_map(|(k, v, s, e, l, c)| Command::Renew(k, v, s, e, l, c)),
        3 => (k.clone(), version()).prop_map(|(k, v)| Command::Delete(k, v)),
        5 => (k.clone(), any::<bool>(), prop_oneof![0..50_u64, any::<u64>()], version())
            .prop_map(|(k, up, by, v)| Command::Count(k, up, by, v)),
        2 => (k, life()).prop_map(|(k, l)| Command::Touch(k, l)),
        1 => Just(Command::FlushNow),
        1 => (1..4_u32).prop_map(Command::FlushAt),
        2 => (1..4_u32).prop_map(Command::Wait),
        2 => Just(Command::Quiesce),
        2 => Just(Command::Maintain),
        1 => (0..70_000_usize).prop_map(Command::AbandonUpload),
    ]
}

fn name(idx: usize) -> Vec<u8> {
    let mut name = format!("key-{idx}").into_bytes();
    name.resize(name.len() + idx * idx, b'.');
    name
}

/// What memcached's `strtoull` reads: blanks, a sign, digits up to a blank, whatever follows.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.trim_ascii_start();
    let digits = digits.strip_prefix(b"+").unwrap_or(digits);
    let digits = digits.split(u8::is_ascii_whitespace).next()?;
    let is_number = digits.iter().all(u8::is_ascii_digit) && text.len() <= 64;
    std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()
}

/// A store beside its model; memory is ample, so that a miss is an error.
struct Pair {
    workers: Vec<Worker>,
    model: Model,
    next: usize,
}

impl Pair {
    fn run(&mut self, command: &Command) {
        self.model.settle();
        self.next += 1;
        let idx = self.next % self.workers.len();
        let mut worker = std::mem::take(&mut self.workers);
        self.apply(&mut worker[idx], command);
        self.workers = worker;
    }

    fn version(&self, k: usize, version: Version) -> Option<CasUnique> {
        let right = self.model.items.get(&k).map_or(CasUnique(77), |entry| entry.cas);
        match version {
            Version::Any => None,
            Version::Right => Some(right),
            Version::Wrong => Some(CasUnique(right.0 + 1)),
        }
    }

    fn apply(&mut self, worker: &mut Worker, command: &Command) {
        let now_s = self.model.now_s;
        let now = at(u64::from(now_s));
        match command {
            Command::Get(k) => self.check(worker, *k),
            Command::GetBatch(ks) => {
                let names: Vec<Vec<u8>> = ks.iter().map(|k| name(*k)).collect();
                let keys: Vec<Key<'_>> = names.iter().map(|name| key(name)).collect();
                let mut items = vec![None; keys.len()];
                worker.get_batch(&keys, now, &mut items);
                for (k, item) in ks.iter().zip(items) {
                    let cas = self.model.items.get(k).map(|entry| entry.cas);
                    assert_eq!(item.map(|item| item.cas()), cas);
                }
            }
            Command::GetAndTouch(k, life) => {
                let life = life.from(now_s);
                let found = worker.get_and_touch(key(&name(*k)), life, now).map(|i| i.lifetime());
                let entry = self.model.items.get_mut(k);
                assert_eq!(found, entry.as_ref().map(|_| life));
                if let Some(entry) = entry {
                    entry.life = life;
                }
            }
            Command::Touch(k, life) => {
                let life = life.from(now_s);
                let found = worker.touch(key(&name(*k)), life, now);
                let entry = self.model.items.get_mut(k);
                assert_eq!(found, entry.is_some());
                if let Some(entry) = entry {
                    entry.life = life;
                }
            }
            Command::Store(k, verb, len, flags, life, upload) => {
                self.store(worker, *k, *verb, *len, *flags, life.from(now_s), *upload);
            }
            Command::Put(k, verb, chosen, older, make) => {
                self.put(worker, *k, *verb, chosen.map(CasUnique), *older, *make);
            }
            Command::Lease(k, touch, vivify, recache, touch_first) => {
                let from = |life: &Option<Life>| life.map(|life| life.from(now_s));
                let terms = LeaseTerms {
                    touch: from(touch),
                    vivify: from(vivify),
                    recache: recache.map(|seconds| Lifetime::Until(now_s + seconds)),
                    touch_first: *touch_first,
                    ..LeaseTerms::default()
                };
                self.lease(worker, *k, &terms);
            }
            Command::Renew(k, version, stale, emptied, life, chosen) => {
                let renewal = Renewal {
                    cas: self.version(*k, *version),
                    stale: *stale,
                    emptied: emptied.then_some(ClientFlags(5)),
                    lifetime: life.map(|life| life.from(now_s)),
                    version: chosen.map(CasUnique),
                };
                self.renew(worker, *k, &renewal);
            }
            Command::Delete(k, version) => {
                let cas = self.version(*k, *version);
                let expected = match self.model.items.get(k) {
                    None => Deleted::NotFound,
                    Some(entry) if cas.is_some_and(|cas| cas != entry.cas) => Deleted::Exists,
                    Some(_) => Deleted::Deleted,
                };
                assert_eq!(worker.delete(key(&name(*k)), cas, now), expected);
                if expected == Deleted::Deleted {
                    self.model.items.remove(k);
                }
            }
            Command::Count(k, up, by, version) => self.count(worker, *k, *up, *by, *version),
            Command::FlushNow => {
                worker.flush_all(Flush::Now, now);
                self.model.flushed_before = self.model.tick;
                self.model.flush_at_s = None;
            }
            Command::FlushAt(seconds) => {
                worker.flush_all(Flush::At(now_s + seconds), now);
                self.model.flush_at_s = Some(now_s + seconds);
            }
            Command::Wait(seconds) => self.model.now_s += seconds,
            Command::Quiesce => worker.quiesce(),
            Command::Maintain => {
                worker.maintain(now);
            }
            Command::AbandonUpload(len) => {
                let mut upload = worker.begin_upload(key(b"u"), ClientFlags(0), *len).unwrap();
                upload.write(worker, &vec![1; len / 2], now).unwrap();
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn store(
        &mut self,
        worker: &mut Worker,
        k: usize,
        verb: Verb,
        len: usize,
        flags: u32,
        life: Lifetime,
        upload: bool,
    ) {
        let now = at(u64::from(self.model.now_s));
        let tick = self.model.tick;
        let mut value: Vec<u8> = (0..len).map(|i| (i as u64 * 7 + tick) as u8).collect();
        let mode = match verb {
            Verb::Set => Mode::Set,
            Verb::SetNumber(number) => {
                value = number.to_string().into_bytes();
                Mode::Set
            }
            Verb::Add => Mode::Add,
            Verb::Replace => Mode::Replace,
            Verb::Append => Mode::Append,
            Verb::Prepend => Mode::Prepend,
            Verb::Cas(version) => Mode::Cas(self.version(k, version).unwrap_or(CasUnique(1))),
        };
        let name = name(k);
        let flags = ClientFlags(flags);
        let stored = if upload {
            let mut upload = worker.begin_upload(key(&name), flags, value.len()).unwrap();
            for part in value.chunks(1 + len / 3) {
                upload.write(worker, part, now).unwrap();
            }
            worker.store_upload(key(&name), upload, flags, life, mode, now)
        } else {
            worker.set(key(&name), &value, flags, life, mode, now)
        };
        let old = self.model.items.get(&k);
        let at = (tick, self.model.now_s);
        let fits = |len: usize| len + 63 + name.len() <= 300_000;
        let entry = Entry { value: value.clone(), flags: flags.0, life, ..Entry::fresh(at) };
        let expected = match (mode, old) {
            (Mode::Add, Some(_)) | (Mode::Replace | Mode::Append | Mode::Prepend, None) => {
                Err(Stored::NotStored)
            }
            (Mode::Cas(_), None) => Err(Stored::NotFound),
            (Mode::Cas(cas), Some(old)) if cas != old.cas || cas.0 == 0 => Err(Stored::Exists),
            (Mode::Append | Mode::Prepend, Some(old)) if !fits(old.value.len() + value.len()) => {
                Err(Stored::TooLarge)
            }
            (Mode::Append, Some(old)) => {
                Ok(Entry { value: [&*old.value, &*value].concat(), ..old.joined(at) })
            }
            (Mode::Prepend, Some(old)) => {
                Ok(Entry { value: [&*value, &*old.value].concat(), ..old.joined(at) })
            }
            _ => Ok(entry),
        };
        match expected {
            Err(refused) => assert_eq!(stored, refused),
            Ok(mut entry) => {
                let Stored::Stored(cas) = stored else { panic!("{stored:?} for {mode:?}") };
                let grows = |old: &Entry| cas > old.cas || old.cas.0 < CHOSEN_MAX;
                assert!(old.is_none_or(grows), "versions of a key grow");
                entry.cas = cas;
                self.model.items.insert(k, entry);
            }
        }
    }

    fn put(
        &mut self,
        worker: &mut Worker,
        k: usize,
        verb: Verb,
        chosen: Option<CasUnique>,
        older_is_stale: bool,
        make: bool,
    ) {
        let (now_s, at_tick) = (self.model.now_s, (self.model.tick, self.model.now_s));
        let asked = match verb {
            Verb::Cas(version) => self.version(k, version).unwrap_or(CasUnique(3)),
            _ => CasUnique(3),
        };
        let (mode, joins) = match verb {
            Verb::Set | Verb::SetNumber(_) => (Mode::Set, false),
            Verb::Add => (Mode::Add, false),
            Verb::Replace => (Mode::Replace, false),
            Verb::Append => (Mode::Append, true),
            Verb::Prepend => (Mode::Prepend, true),
            Verb::Cas(_) => (Mode::Cas(asked), false),
        };
        let life = Lifetime::Until(now_s + 4);
        let terms = Terms {
            vivify: (make && joins).then_some(life),
            joined_to: (make && joins).then(|| self.version(k, Version::Right)).flatten(),
            older_is_stale,
            version: chosen,
            ..Terms::new(ClientFlags(2), Lifetime::Never, mode)
        };
        let placed = worker.put(key(&name(k)), b"12", &terms, at(u64::from(now_s)));
        let old = self.model.items.get(&k);
        let fresh = Entry { value: b"12".to_vec(), flags: 2, ..Entry::fresh(at_tick) };
        let expected = match (mode, old) {
            (Mode::Append | Mode::Prepend, None) if make => Ok(Entry { life, ..fresh }),
            (Mode::Add, Some(_)) | (Mode::Replace | Mode::Append | Mode::Prepend, None) => {
                Err(Stored::NotStored)
            }
            (Mode::Cas(_), None) => Err(Stored::NotFound),
            (Mode::Cas(cas), Some(old)) if cas == old.cas && cas.0 != 0 => Ok(fresh),
            (Mode::Cas(cas), Some(old)) if older_is_stale && cas < old.cas && cas.0 != 0 => {
                Ok(Entry { stale: true, won: old.won, life: old.life, ..fresh })
            }
            (Mode::Cas(_), Some(_)) => Err(Stored::Exists),
            (Mode::Append, Some(old)) => {
                Ok(Entry { value: [&*old.value, b"12"].concat(), ..old.joined(at_tick) })
            }
            (Mode::Prepend, Some(old)) => {
                Ok(Entry { value: [b"12", &*old.value].concat(), ..old.joined(at_tick) })
            }
            _ => Ok(fresh),
        };
        match expected {
            Err(refused) => assert_eq!((placed.stored, placed.value_len), (refused, 0)),
            Ok(mut entry) => {
                let Stored::Stored(cas) = placed.stored else { panic!("{placed:?} for {mode:?}") };
                assert_eq!(placed.value_len, entry.value.len());
                assert!(chosen.is_none_or(|chosen| chosen == cas));
                entry.cas = cas;
                self.model.items.insert(k, entry);
            }
        }
    }

    fn lease(&mut self, worker: &mut Worker, k: usize, terms: &LeaseTerms) {
        let now_s = self.model.now_s;
        let name = name(k);
        let leased = worker.lease(key(&name), terms, at(u64::from(now_s)));
        let Some(entry) = self.model.items.get_mut(&k) else {
            assert_eq!(leased.is_some(), terms.vivify.is_some());
            if let (Some(leased), Some(life)) = (leased, terms.vivify) {
                assert!(leased.created && leased.won && leased.item.value_len() == 0);
                let fresh = Entry::fresh((self.model.tick, now_s));
                let made = Entry { won: true, life, cas: leased.item.cas(), ..fresh };
                self.model.items.insert(k, made);
            }
            return;
        };
        let leased = leased.expect("the item is there");
        let (item, before) = (&leased.item, entry.life);
        assert_eq!((item.cas(), item.lifetime()), (entry.cas, before));
        assert_eq!((item.is_stale(), item.is_won()), (entry.stale, entry.won));
        let judged = terms.touch.filter(|_| terms.touch_first).unwrap_or(before);
        let ends_before = match (judged, terms.recache) {
            (Lifetime::Until(end), Some(Lifetime::Until(limit))) => end < limit,
            (Lifetime::Past, Some(Lifetime::Until(_))) => true,
            _ => false,
        };
        let wins = !entry.won && (entry.stale || ends_before);
        assert_eq!((leased.won, leased.created), (wins, false));
        entry.won |= wins;
        entry.life = terms.touch.unwrap_or(before);
    }

    fn renew(&mut self, worker: &mut Worker, k: usize, renewal: &Renewal) {
        let now = at(u64::from(self.model.now_s));
        let renewed = worker.renew(key(&name(k)), renewal, now);
        let Some(entry) = self.model.items.get_mut(&k) else {
            assert_eq!(renewed, Renewed::NotFound);
            return;
        };
        if renewal.cas.is_some_and(|cas| cas != entry.cas) {
            assert_eq!(renewed, Renewed::Exists);
            return;
        }
        assert_eq!(renewed, Renewed::Renewed);
        let cas = worker.peek(key(&name(k)), now).map(|item| item.cas());
        let kept = renewal.version.or((!renewal.stale).then_some(entry.cas));
        if let (Some(kept), Some(cas)) = (kept, cas) {
            assert_eq!(kept, cas);
        }
        if let Some(flags) = renewal.emptied {
            (entry.value, entry.flags) = (Vec::new(), flags.0);
        }
        (entry.stale, entry.won) = (renewal.stale, false);
        entry.life = renewal.lifetime.unwrap_or(entry.life);
        // An item whose lifetime is over at once shows no version any more.
        entry.cas = cas.unwrap_or(entry.cas);
        entry.at = (self.model.tick, self.model.now_s);
    }

    fn count(&mut self, worker: &mut Worker, k: usize, up: bool, by: u64, version: Version) {
        let cas = self.version(k, version);
        let way = if up { Arithmetic::Increment } else { Arithmetic::Decrement };
        let now = at(u64::from(self.model.now_s));
        let terms = CountTerms { cas, ..CountTerms::default() };
        let counted = worker.count_up_or_down(key(&name(k)), way, by, &terms, now);
        let Some(entry) = self.model.items.get_mut(&k) else {
            assert_eq!(counted, Counted::NotFound);
            return;
        };
        if entry.value.is_empty() {
            assert_eq!(counted, Counted::NonNumeric);
            return;
        }
        if cas.is_some_and(|cas| cas != entry.cas) {
            assert_eq!(counted, Counted::Exists);
            return;
        }
        let Some(number) = number(&entry.value) else {
            assert_eq!(counted, Counted::NonNumeric);
            return;
        };
        let sum = if up { number.wrapping_add(by) } else { number.saturating_sub(by) };
        let Counted::Value { value, cas, .. } = counted else { panic!("{counted:?}") };
        assert_eq!(value, sum);
        let len = entry.value.len();
        entry.value = format!("{sum:<len$}").into_bytes();
        entry.cas = cas;
        entry.at = (self.model.tick, self.model.now_s);
    }

    fn check(&self, worker: &Worker, k: usize) {
        let name = name(k);
        let found = worker.get(key(&name), at(u64::from(self.model.now_s)));
        match (found, self.model.items.get(&k)) {
            (None, None) => {}
            (Some(item), Some(entry)) => {
                let value: Vec<u8> = item.value().flatten().copied().collect();
                assert!(value == entry.value, "the value of {k} differs");
                assert_eq!(item.value_len(), value.len());
                assert_eq!(item.flags(), ClientFlags(entry.flags));
                assert_eq!((item.cas(), item.lifetime()), (entry.cas, entry.life));
                assert_eq!((item.is_stale(), item.is_won()), (entry.stale, entry.won));
                assert_eq!(item.key(), name);
            }
            (found, entry) => panic!("key {k}: found {found:?}, expected {entry:?}"),
        }
    }
}

fn run(commands: &[Command], workers: usize) {
    let config = StoreConfig {
        memory_limit: 16 << 20,
        item_size_max: 300_000,
        workers,
        ..StoreConfig::default()
    };
    let store = Store::create(&config).unwrap();
    let workers = (0..workers).map(|_| store.worker().unwrap()).collect();
    let model = Model { now_s: 100, ..Model::default() };
    let mut pair = Pair { workers, model, next: 0 };
    for command in commands {
        pair.run(command);
    }
    pair.model.settle();
    for k in 0..KEYS {
        pair.check(&pair.workers[k % pair.workers.len()], k);
    }
    for worker in &mut pair.workers {
        worker.quiesce();
    }
    let census = store.validate().unwrap();
    assert_eq!(census.chunks_private, 0);
    assert_eq!(store.totals().evictions, 0);
    assert!(census.items >= pair.model.items.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn commands_do_what_a_plain_map_does(commands in vec(command(), 1..200), workers in 1..4_usize) {
        run(&commands, workers);
    }
}

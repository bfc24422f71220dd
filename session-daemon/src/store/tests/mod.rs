//! The store's commands, one by one, through its public interface.

mod admin;
mod attach;
mod crash;
mod eviction;
pub(crate) mod history;
mod linear;
mod model;
mod pressure;
mod protect;
mod races;
mod resume;
mod stress;

use crate::clock::Now;
use crate::store::types::{
    Arithmetic, CasUnique, ClientFlags, Counted, Deleted, Flush, Key, Lifetime, Mode, StoreConfig,
    Stored, UploadError,
};
use crate::store::{Store, Worker};
use std::sync::Arc;

const FLAGS: ClientFlags = ClientFlags(7);

fn at(second: u64) -> Now {
    Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: second * 1_000_000_000 }
}

fn key(bytes: &[u8]) -> Key<'_> {
    Key::new(bytes).unwrap()
}

fn store() -> (Arc<Store>, Worker) {
    let store = Store::create(&StoreConfig::default()).unwrap();
    let worker = store.worker().unwrap();
    (store, worker)
}

fn value(worker: &Worker, name: &[u8], now: Now) -> Option<Vec<u8>> {
    worker.get(key(name), now).map(|item| item.value().flatten().copied().collect())
}

fn set(worker: &mut Worker, name: &[u8], value: &[u8], mode: Mode, now: Now) -> Stored {
    worker.set(key(name), value, FLAGS, Lifetime::Never, mode, now)
}

#[test]
fn what_is_set_is_got() {
    let (store, mut worker) = store();
    let Stored::Stored(cas) = set(&mut worker, b"a", b"one", Mode::Set, at(10)) else { panic!() };
    let item = worker.get(key(b"a"), at(10)).unwrap();
    assert_eq!((item.key(), item.flags(), item.cas()), (&b"a"[..], FLAGS, cas));
    assert_eq!((item.value_len(), item.fetched()), (3, false));
    assert!(worker.get(key(b"a"), at(10)).unwrap().fetched());
    assert_eq!(store.totals().curr_items, 1);
    assert_eq!(value(&worker, b"b", at(10)), None);
}

#[test]
fn modes_ask_for_what_they_say() {
    let (_, mut worker) = store();
    let now = at(10);
    assert_eq!(set(&mut worker, b"k", b"x", Mode::Replace, now), Stored::NotStored);
    assert_eq!(set(&mut worker, b"k", b"x", Mode::Append, now), Stored::NotStored);
    assert_eq!(set(&mut worker, b"k", b"x", Mode::Prepend, now), Stored::NotStored);
    assert_eq!(set(&mut worker, b"k", b"x", Mode::Cas(CasUnique(1)), now), Stored::NotFound);
    let Stored::Stored(first) = set(&mut worker, b"k", b"m", Mode::Add, now) else { panic!() };
    assert_eq!(set(&mut worker, b"k", b"x", Mode::Add, now), Stored::NotStored);
    assert!(matches!(set(&mut worker, b"k", b"r", Mode::Append, now), Stored::Stored(_)));
    assert!(matches!(set(&mut worker, b"k", b"l", Mode::Prepend, now), Stored::Stored(_)));
    assert_eq!(value(&worker, b"k", now).unwrap(), b"lmr");
    assert_eq!(set(&mut worker, b"k", b"x", Mode::Cas(first), now), Stored::Exists);
    let cas = worker.get(key(b"k"), now).unwrap().cas();
    assert!(cas > first);
    assert!(matches!(set(&mut worker, b"k", b"y", Mode::Cas(cas), now), Stored::Stored(_)));
}

#[test]
fn lifetimes_end() {
    let (_, mut worker) = store();
    worker.set(key(b"k"), b"v", FLAGS, Lifetime::Until(20), Mode::Set, at(10));
    assert!(worker.get(key(b"k"), at(19)).is_some());
    assert!(worker.touch(key(b"k"), Lifetime::Until(30), at(19)));
    assert!(worker.get(key(b"k"), at(29)).is_some());
    assert!(worker.get_and_touch(key(b"k"), Lifetime::Until(40), at(29)).is_some());
    assert!(worker.get(key(b"k"), at(40)).is_none());
    assert!(!worker.touch(key(b"k"), Lifetime::Never, at(40)));
    worker.set(key(b"k"), b"v", FLAGS, Lifetime::Past, Mode::Set, at(40));
    assert!(worker.get(key(b"k"), at(40)).is_none());
}

#[test]
fn counters_follow_memcached() {
    let (_, mut worker) = store();
    let now = at(10);
    let mut count = |start: &[u8], way, delta| {
        set(&mut worker, b"n", start, Mode::Set, now);
        let counted = worker.arithmetic(key(b"n"), way, delta, None, now);
        let number = match counted {
            Counted::Value { value, .. } => Some(value),
            Counted::NonNumeric => None,
            other => panic!("{other:?}"),
        };
        (number, value(&worker, b"n", now).unwrap())
    };
    assert_eq!(count(b"9", Arithmetic::Increment, 1), (Some(10), b"10".to_vec()));
    assert_eq!(count(b"10", Arithmetic::Decrement, 1), (Some(9), b"9 ".to_vec()));
    assert_eq!(count(b"10 ", Arithmetic::Increment, 1), (Some(11), b"11 ".to_vec()));
    assert_eq!(count(b"5", Arithmetic::Decrement, 6), (Some(0), b"0".to_vec()));
    let most = u64::MAX.to_string();
    assert_eq!(count(most.as_bytes(), Arithmetic::Increment, 2).0, Some(1));
    assert_eq!(count(b"18446744073709551616", Arithmetic::Increment, 2).0, None);
    assert_eq!(count(b"x", Arithmetic::Increment, 2).0, None);
    assert_eq!(count(b"", Arithmetic::Increment, 2).0, None);
    assert_eq!(count(b"-1", Arithmetic::Increment, 2).0, None);
    assert_eq!(
        worker.arithmetic(key(b"m"), Arithmetic::Increment, 1, None, now),
        Counted::NotFound
    );
    let cas = Some(CasUnique(1));
    assert_eq!(worker.arithmetic(key(b"n"), Arithmetic::Increment, 1, cas, now), Counted::Exists);
}

#[test]
fn deletes_by_version() {
    let (store, mut worker) = store();
    let now = at(10);
    assert_eq!(worker.delete(key(b"k"), None, now), Deleted::NotFound);
    let Stored::Stored(cas) = set(&mut worker, b"k", b"v", Mode::Set, now) else { panic!() };
    let other = CasUnique(cas.0 + 1);
    assert_eq!(worker.delete(key(b"k"), Some(other), now), Deleted::Exists);
    assert_eq!(worker.delete(key(b"k"), Some(cas), now), Deleted::Deleted);
    assert_eq!(value(&worker, b"k", now), None);
    assert_eq!((store.totals().curr_items, store.totals().bytes), (0, 0));
}

#[test]
fn a_flush_ends_what_was_stored_before_it() {
    let (_, mut worker) = store();
    set(&mut worker, b"old", b"v", Mode::Set, at(10));
    worker.flush_all(Flush::Now, at(10));
    set(&mut worker, b"new", b"v", Mode::Set, at(10));
    assert_eq!(value(&worker, b"old", at(10)), None);
    assert!(value(&worker, b"new", at(10)).is_some());
    worker.flush_all(Flush::At(20), at(10));
    set(&mut worker, b"newer", b"v", Mode::Set, at(15));
    assert!(value(&worker, b"new", at(19)).is_some());
    assert_eq!(value(&worker, b"newer", at(20)), None);
    set(&mut worker, b"new", b"v", Mode::Add, at(20));
    assert!(value(&worker, b"new", at(21)).is_some());
}

#[test]
fn uploads_are_stored_whole() {
    let (_, mut worker) = store();
    let now = at(10);
    for len in [0_usize, 1, 100, 5_000, 8_192, 70_000, 1_000_000] {
        let bytes: Vec<u8> = (0..len).map(|i| ((i * 31) >> 3) as u8).collect();
        let mut upload = worker.begin_upload(key(b"u"), FLAGS, len).unwrap();
        for part in bytes.chunks(1_400) {
            upload.write(&mut worker, part, now).unwrap();
        }
        assert_eq!(upload.missing(), 0);
        let stored = worker.store_upload(key(b"u"), upload, FLAGS, Lifetime::Never, Mode::Set, now);
        assert!(matches!(stored, Stored::Stored(_)));
        assert_eq!(value(&worker, b"u", now).unwrap(), bytes);
    }
    assert_eq!(worker.begin_upload(key(b"u"), FLAGS, 1 << 20).unwrap_err(), UploadError::TooLarge);
}

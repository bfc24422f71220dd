//! What requests do to a store, where that takes more than handing them on.
use super::counters::{Counter, Counters};
use super::execute::Executor;
use super::number::Number;
use super::request::{
    Counting, Direction, Exptime, Key, Lease, Outcome, Removal, Store, StoreMode, StoreTerms,
    Versioned,
};
use crate::clock::Now;
use crate::store::types::{self, Lifetime, StoreConfig};
use crate::store::{Store as Shared, Worker};

const NOW: Now = Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: 100_000_000_000 };

fn with_executor(test: impl FnOnce(&mut Executor<'_>)) {
    let store = Shared::create(&StoreConfig { workers: 1, ..StoreConfig::default() });
    let mut worker: Worker = store.expect("the default fits").worker().expect("the only one");
    let counters = Counters::default();
    let (store, counters) = (&mut worker, &counters);
    test(&mut Executor {
        store,
        counters,
        now: NOW,
        flush_allowed: true,
        reads_only: false,
        observer: None,
    });
}

fn key(bytes: &[u8]) -> Key<'_> {
    Key::new(bytes).expect("test keys are short")
}

fn put(executor: &mut Executor<'_>, mode: StoreMode, value: &[u8]) -> Versioned {
    let store = Store { key: key(b"k"), terms: StoreTerms::new(7, Exptime(50), mode) };
    executor.store(&store, value)
}

fn value(executor: &Executor<'_>, bytes: &'static [u8]) -> Option<Vec<u8>> {
    let item = executor.store.get(types::Key::new(bytes)?, NOW)?;
    Some(item.value().collect::<Vec<_>>().concat())
}

fn join(executor: &mut Executor<'_>, mode: StoreMode, cas: u64, pieces: &[&[u8]]) -> Versioned {
    let terms = StoreTerms { joined_to: Some(cas), ..StoreTerms::new(0, Exptime(0), mode) };
    let store = Store { key: key(b"k"), terms };
    let value_len = pieces.iter().map(|piece| piece.len()).sum();
    let mut upload = match executor.begin_upload(&store, value_len) {
        Ok(upload) => upload,
        Err(outcome) => return outcome.into(),
    };
    for piece in pieces {
        executor.upload(&store, &mut upload, piece).expect("room for a few bytes");
    }
    executor.store_upload(&store, upload)
}

#[test]
fn numbers_are_made_where_none_is() {
    with_executor(|executor| {
        let counting = |cas, create| Counting {
            cas,
            create,
            ..Counting::new(key(b"n"), Direction::Increment, 5)
        };
        let missing = executor.count(&counting(None, None));
        assert_eq!(missing, Number::Refused(Outcome::NotFound));
        let made = executor.count(&counting(None, Some((10, Exptime(0))))).versioned();
        assert_eq!(made.outcome, Outcome::Number(10));
        assert_eq!(value(executor, b"n").as_deref(), Some(&b"10"[..]));
        let counted = executor.count(&counting(Some(made.cas), Some((10, Exptime(0))))).versioned();
        assert_eq!(counted.outcome, Outcome::Number(15));
        assert_ne!(counted.cas, made.cas);
        let stale = executor.count(&counting(Some(made.cas), None));
        assert_eq!(stale, Number::Refused(Outcome::Exists));
        let counted = |counter| executor.counters.value(counter);
        assert_eq!((counted(Counter::IncrMisses), counted(Counter::IncrHits)), (1, 1));
        let expired = executor
            .count(&Counting { key: key(b"old"), ..counting(None, Some((1, Exptime(-1)))) });
        assert_eq!(expired.outcome(), Outcome::Number(1));
        assert_eq!(value(executor, b"old"), None);
    });
}

#[test]
fn numbers_take_new_lifetimes_and_chosen_versions() {
    with_executor(|executor| {
        put(executor, StoreMode::Set, b"9");
        let counting = Counting {
            touch: Some(Exptime(20)),
            version: Some(3),
            ..Counting::new(key(b"k"), Direction::Increment, 1)
        };
        let lifetime = Lifetime::Until(150);
        let counted = Number::Counted { value: 10, cas: 3, lifetime };
        assert_eq!(executor.count(&counting), counted);
        let item = executor.peek(key(b"k")).expect("there");
        assert_eq!((item.lifetime(), item.flags().0), (Lifetime::Until(120), 7));
    });
}

#[test]
fn older_versions_store_stale() {
    with_executor(|executor| {
        let first = put(executor, StoreMode::Set, b"v").cas;
        let second = put(executor, StoreMode::Set, b"w").cas;
        let with = |cas| {
            let terms = StoreTerms::new(0, Exptime(900), StoreMode::Cas(cas));
            Store { key: key(b"k"), terms: StoreTerms { older_is_stale: true, ..terms } }
        };
        assert_eq!(executor.store(&with(second + 1), b"x").outcome, Outcome::Exists);
        assert_eq!(executor.store(&with(0), b"x").outcome, Outcome::Exists);
        assert_eq!(executor.store(&with(first), b"x").outcome, Outcome::Stored);
        let item = executor.peek(key(b"k")).expect("there");
        assert!(item.is_stale() && !item.is_won());
        assert_eq!(item.lifetime(), Lifetime::Until(150));
        let third = item.cas().0;
        assert!(executor.lease(key(b"k"), &Lease::default()).expect("there").won);
        assert_eq!(executor.store(&with(first), b"y").outcome, Outcome::Stored);
        let item = executor.peek(key(b"k")).expect("there");
        assert!(item.is_stale() && item.is_won() && item.cas().0 > third);
        let fourth = item.cas().0;
        assert_eq!(executor.store(&with(fourth), b"z").outcome, Outcome::Stored);
        let item = executor.peek(key(b"k")).expect("there");
        assert!(!item.is_stale() && !item.is_won());
        assert_eq!(item.lifetime(), Lifetime::Until(1000));
    });
}

#[test]
fn joins_make_what_is_missing() {
    with_executor(|executor| {
        let terms = StoreTerms {
            vivify: Some(Exptime(30)),
            version: Some(5),
            key_is_binary: true,
            ..StoreTerms::new(9, Exptime(99), StoreMode::Append)
        };
        let store = Store { key: key(b"k"), terms };
        let made = executor.store(&store, b"ab");
        assert_eq!(made, Versioned { outcome: Outcome::Stored, cas: 5, value_len: 2 });
        let item = executor.peek(key(b"k")).expect("there");
        assert_eq!((item.lifetime(), item.flags().0), (Lifetime::Until(130), 9));
        let terms = StoreTerms { version: None, ..terms };
        let joined = executor.store(&Store { terms, ..store }, b"c");
        assert_eq!((joined.outcome, joined.value_len), (Outcome::Stored, 3));
        assert_ne!(joined.cas, 5);
        assert!(executor.peek(key(b"k")).expect("there").key_is_binary());
    });
}

#[test]
fn removals_that_leave_an_item() {
    with_executor(|executor| {
        let stored = put(executor, StoreMode::Set, b"v");
        let removal = Removal {
            key: key(b"k"),
            cas: Some(stored.cas + 1),
            stale: true,
            emptied: None,
            exptime: Some(Exptime(5)),
            version: None,
        };
        assert_eq!(executor.remove(&removal), Outcome::Exists);
        assert_eq!(executor.remove(&Removal { cas: None, ..removal }), Outcome::Deleted);
        let item = executor.peek(key(b"k")).expect("there");
        assert_eq!((item.is_stale(), item.lifetime()), (true, Lifetime::Until(105)));
        let emptied = Removal { cas: None, emptied: Some(3), version: Some(8), ..removal };
        assert_eq!(executor.remove(&emptied), Outcome::Deleted);
        let item = executor.peek(key(b"k")).expect("there");
        assert_eq!((item.value_len(), item.flags().0, item.cas().0), (0, 3, 8));
        assert!(item.is_stale());
        let gone = Removal { cas: None, stale: false, ..removal };
        assert_eq!(executor.remove(&gone), Outcome::Deleted);
        assert_eq!(executor.remove(&emptied), Outcome::NotFound);
        let counted = |counter| executor.counters.value(counter);
        assert_eq!((counted(Counter::DeleteHits), counted(Counter::DeleteMisses)), (1, 2));
    });
}

#[test]
fn versions_decide_over_removal() {
    with_executor(|executor| {
        let stored = put(executor, StoreMode::Set, b"v");
        assert_eq!(stored.outcome, Outcome::Stored);
        assert_eq!(executor.delete(key(b"k"), Some(stored.cas + 1)), Outcome::Exists);
        assert_eq!(executor.delete(key(b"k"), Some(stored.cas)), Outcome::Deleted);
        assert_eq!(executor.delete(key(b"k"), Some(stored.cas)), Outcome::NotFound);
    });
}

#[test]
fn stored_versions_are_those_that_are_found() {
    with_executor(|executor| {
        let stored = put(executor, StoreMode::Set, b"v");
        assert_eq!(put(executor, StoreMode::Cas(stored.cas + 1), b"w"), Outcome::Exists.into());
        let again = put(executor, StoreMode::Cas(stored.cas), b"w");
        let found = executor.store.get(types::Key::new(b"k").expect("short"), NOW);
        assert_eq!(found.map(|item| item.cas().0), Some(again.cas));
        assert_eq!(put(executor, StoreMode::Add, b"x"), Outcome::NotStored.into());
    });
}

#[test]
fn joins_ask_for_the_version() {
    with_executor(|executor| {
        assert_eq!(join(executor, StoreMode::Append, 1, &[b"x"]), Outcome::NotStored.into());
        let stored = put(executor, StoreMode::Set, b"mid");
        let other = stored.cas + 1;
        assert_eq!(join(executor, StoreMode::Append, other, &[b"x"]), Outcome::Exists.into());
        assert_eq!(join(executor, StoreMode::Prepend, other, &[b"x"]), Outcome::Exists.into());
        let appended = join(executor, StoreMode::Append, stored.cas, &[b"dle", b"", b"!"]);
        assert_eq!(appended.outcome, Outcome::Stored);
        assert_eq!(value(executor, b"k").as_deref(), Some(&b"middle!"[..]));
        let prepended = join(executor, StoreMode::Prepend, appended.cas, &[b"the ", b"very "]);
        assert_eq!(prepended.outcome, Outcome::Stored);
        assert_eq!(value(executor, b"k").as_deref(), Some(&b"the very middle!"[..]));
        let item = executor.store.get(types::Key::new(b"k").expect("short"), NOW).expect("there");
        assert_eq!((item.flags().0, item.lifetime()), (7, Lifetime::Until(150)));
        assert_eq!(item.cas().0, prepended.cas);
    });
}

#[test]
fn joins_that_grow_too_large() {
    with_executor(|executor| {
        let stored = put(executor, StoreMode::Set, &vec![b'v'; 700 << 10]);
        let half = vec![b'h'; 700 << 10];
        assert_eq!(
            join(executor, StoreMode::Append, stored.cas, &[&half]),
            Outcome::NotStored.into()
        );
        let terms = StoreTerms::new(0, Exptime(0), StoreMode::Append);
        let store = Store { key: key(b"k"), terms };
        let refused = executor.begin_upload(&store, 2 << 20);
        assert_eq!(refused.err(), Some(Outcome::TooLarge));
        assert_eq!(value(executor, b"k").map(|value| value.len()), Some(700 << 10));
    });
}

//! What requests do to a store, where that takes more than handing them on.
use super::counters::{Counter, Counters};
use super::execute::Executor;
use super::request::{Counting, Direction, Exptime, Key, Outcome, Store, StoreMode, Versioned};
use crate::clock::Now;
use crate::store::types::{self, Lifetime, StoreConfig};
use crate::store::{Store as Shared, Worker};

const NOW: Now = Now { realtime_ns: 1_700_000_000_000_000_000, boottime_ns: 100_000_000_000 };

fn with_executor(test: impl FnOnce(&mut Executor<'_>)) {
    let store = Shared::create(&StoreConfig { workers: 1, ..StoreConfig::default() });
    let mut worker: Worker = store.expect("the default fits").worker().expect("the only one");
    let counters = Counters::default();
    let (store, counters) = (&mut worker, &counters);
    test(&mut Executor { store, counters, now: NOW, flush_allowed: true });
}

fn key(bytes: &[u8]) -> Key<'_> {
    Key::new(bytes).expect("test keys are short")
}

fn put(executor: &mut Executor<'_>, mode: StoreMode, value: &[u8]) -> Versioned {
    let store = Store { key: key(b"k"), flags: 7, exptime: Exptime(50), mode };
    executor.store(&store, value)
}

fn value(executor: &Executor<'_>, bytes: &'static [u8]) -> Option<Vec<u8>> {
    let item = executor.store.get(types::Key::new(bytes)?, NOW)?;
    Some(item.value().collect::<Vec<_>>().concat())
}

fn join(executor: &mut Executor<'_>, mode: StoreMode, cas: u64, pieces: &[&[u8]]) -> Versioned {
    let store = Store { key: key(b"k"), flags: 0, exptime: Exptime(0), mode };
    let value_len = pieces.iter().map(|piece| piece.len()).sum();
    let mut upload = match executor.begin_joined(&store, cas, value_len) {
        Ok(upload) => upload,
        Err(outcome) => return outcome.into(),
    };
    for piece in pieces {
        executor.upload(&store, &mut upload, piece).expect("room for a few bytes");
    }
    executor.finish_joined(&store, cas, upload)
}

#[test]
fn numbers_are_made_where_none_is() {
    with_executor(|executor| {
        let counting = |cas, create| Counting {
            key: key(b"n"),
            direction: Direction::Increment,
            delta: 5,
            cas,
            create,
        };
        let missing = executor.count(&counting(None, None));
        assert_eq!(missing, Outcome::NotFound.into());
        let made = executor.count(&counting(None, Some((10, Exptime(0)))));
        assert_eq!(made.outcome, Outcome::Number(10));
        assert_eq!(value(executor, b"n").as_deref(), Some(&b"10"[..]));
        let counted = executor.count(&counting(Some(made.cas), Some((10, Exptime(0)))));
        assert_eq!(counted.outcome, Outcome::Number(15));
        assert_ne!(counted.cas, made.cas);
        let stale = executor.count(&counting(Some(made.cas), None));
        assert_eq!(stale, Outcome::Exists.into());
        let counted = |counter| executor.counters.value(counter);
        assert_eq!((counted(Counter::IncrMisses), counted(Counter::IncrHits)), (1, 1));
        let expired = executor
            .count(&Counting { key: key(b"old"), ..counting(None, Some((1, Exptime(-1)))) });
        assert_eq!(expired.outcome, Outcome::Number(1));
        assert_eq!(value(executor, b"old"), None);
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
        let store =
            Store { key: key(b"k"), flags: 0, exptime: Exptime(0), mode: StoreMode::Append };
        let refused = executor.begin_joined(&store, stored.cas, 2 << 20);
        assert_eq!(refused.err(), Some(Outcome::TooLarge));
        assert_eq!(value(executor, b"k").map(|value| value.len()), Some(700 << 10));
    });
}

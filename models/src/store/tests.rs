//! The models. Each runs two threads in every order of their atomic steps, with at most
//! `PREEMPTIONS` switches from a thread that could go on, and every value that the memory model
//! lets a load see.

use crate::store::epoch::{Epochs, Retired};
use crate::store::memory::Memory;
use crate::store::sync::{AtomicU64, Ordering};
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

const PREEMPTIONS: usize = 3;

pub(super) fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 20_000;
    builder.check(body);
}

/// Runs two threads on a memory with these keys; returns what they returned.
fn both<A: 'static, B: 'static>(
    memory: &Arc<Memory>,
    one: impl FnOnce(&Memory) -> A + 'static,
    other: impl FnOnce(&Memory) -> B + 'static,
) -> (A, B) {
    let shared = Arc::clone(memory);
    let thread = thread::spawn(move || one(&shared));
    let other = other(memory);
    (thread.join().unwrap(), other)
}

/// Even keys stay in bucket 0 when it splits; odd ones move.
const STAYS: u8 = 2;
const MOVES: u8 = 3;

fn memory(keys: &[u8]) -> Arc<Memory> {
    Arc::new(Memory::new(keys, keys.len() as u64 + 2))
}

#[test]
fn one_of_two_adds_of_a_key_wins() {
    model(|| {
        let memory = memory(&[]);
        let wins = both(&memory, |m| m.add_by(0, 0, STAYS), |m| m.add_by(1, 1, STAYS));
        assert!(wins.0 != wins.1);
        assert_eq!(memory.get(STAYS), Some(u64::from(wins.1)));
        assert_eq!(memory.check(), 1);
    });
}

#[test]
fn adds_of_two_keys_both_stay() {
    model(|| {
        let memory = memory(&[]);
        both(&memory, |m| m.add_by(0, 0, STAYS), |m| m.add_by(1, 1, MOVES));
        assert_eq!((memory.get(STAYS), memory.get(MOVES)), (Some(0), Some(1)));
        assert_eq!(memory.check(), 2);
    });
}

#[test]
fn two_sets_of_a_key_leave_one_item() {
    model(|| {
        let memory = memory(&[]);
        both(&memory, |m| m.set_by(0, 0, STAYS), |m| m.set_by(1, 1, STAYS));
        assert!(memory.get(STAYS).is_some());
        assert_eq!(memory.check(), 1);
    });
}

#[test]
fn adds_to_a_full_bucket_take_lines() {
    model(|| {
        let memory = memory(&[4, 6]);
        both(&memory, |m| m.add_by(0, 2, STAYS), |m| m.add_by(1, 3, MOVES));
        assert_eq!((memory.get(STAYS), memory.get(MOVES)), (Some(2), Some(3)));
        assert_eq!(memory.check(), 4);
    });
}

#[test]
fn an_index_is_filled_with_each_key_once() {
    model(|| {
        let memory = memory(&[]);
        let fills = both(&memory, |m| m.fill_by(0, 0, STAYS), |m| m.fill_by(1, 1, STAYS));
        assert!(fills.0 != fills.1);
        assert_eq!(memory.get(STAYS), Some(u64::from(fills.1)));
        assert_eq!(memory.check(), 1);
    });
    model(|| {
        let memory = Arc::new(Memory::new(&[4], 4));
        let two = |m: &Memory| m.fill_by(0, 1, STAYS) && m.fill_by(0, 3, 8);
        assert_eq!(both(&memory, two, |m| m.fill_by(1, 2, MOVES)), (true, true));
        let found = [4, STAYS, MOVES, 8].map(|key| memory.get(key));
        assert_eq!(found, [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(memory.check(), 4);
    });
}

#[test]
fn a_key_is_added_or_deleted_in_some_order() {
    model(|| {
        let memory = memory(&[]);
        let (_, deleted) = both(&memory, |m| m.add_by(0, 0, STAYS), |m| m.delete(STAYS));
        assert_eq!(memory.get(STAYS).is_none(), deleted);
        assert_eq!(memory.check(), usize::from(!deleted));
    });
}

#[test]
fn an_item_is_deleted_once() {
    model(|| {
        let memory = memory(&[STAYS]);
        let wins = both(&memory, |m| m.delete(STAYS), |m| m.delete(STAYS));
        assert!(wins.0 != wins.1);
        assert_eq!(memory.check(), 0);
    });
}

#[test]
fn an_item_is_replaced_once_or_deleted() {
    model(|| {
        let memory = memory(&[STAYS]);
        let one = |m: &Memory| m.replace_by(1, STAYS, Some(0));
        let wins = both(&memory, one, |m| m.replace_by(2, STAYS, Some(0)));
        assert!(wins.0 != wins.1);
        assert_eq!(memory.get(STAYS), Some(if wins.0 { 1 } else { 2 }));
        assert_eq!(memory.check(), 1);
    });
    model(|| {
        let memory = memory(&[STAYS]);
        let one = |m: &Memory| m.replace_by(1, STAYS, Some(0));
        let (replaced, deleted) = both(&memory, one, |m| m.delete(STAYS));
        // Replaced and then deleted, or only deleted.
        assert!(deleted && memory.get(STAYS).is_none(), "{replaced}");
        assert_eq!(memory.check(), 0);
    });
}

#[test]
fn a_set_and_a_delete_leave_what_came_last() {
    model(|| {
        let memory = memory(&[STAYS]);
        let ((), deleted) = both(&memory, |m| m.set_by(0, 1, STAYS), |m| m.delete(STAYS));
        assert!(deleted);
        assert!(matches!(memory.get(STAYS), None | Some(1)));
        memory.check();
    });
}

#[test]
fn a_touch_is_kept_by_what_it_met() {
    model(|| {
        let memory = memory(&[STAYS]);
        let (touched, replaced) =
            both(&memory, |m| m.touch(STAYS, 7), |m| m.replace_by(1, STAYS, Some(0)));
        assert!(touched && replaced);
        assert_eq!(memory.get(STAYS), Some(1));
        assert_eq!(memory.check(), 1);
    });
}

#[test]
fn readers_find_one_of_two_versions_and_never_none() {
    model(|| {
        let memory = memory(&[STAYS]);
        let (_, seen) =
            both(&memory, |m| m.replace_by(1, STAYS, None), |m| [m.get(STAYS), m.get(STAYS)]);
        let seen = seen.map(|seen| seen.expect("the key is always there"));
        assert!(seen[0] <= seen[1], "{seen:?}");
        assert_eq!(memory.check(), 1);
    });
}

#[test]
fn readers_find_what_stays_while_others_come_and_go() {
    model(|| {
        let memory = memory(&[4, STAYS]);
        let (_, seen) = both(&memory, |m| (m.delete(4), m.add_by(0, 2, MOVES)), |m| m.get(STAYS));
        assert_eq!(seen, Some(1));
        assert_eq!(memory.check(), 2);
    });
}

#[test]
fn readers_find_all_keys_during_a_split() {
    for key in [STAYS, MOVES] {
        model(move || {
            let memory = memory(&[STAYS, MOVES]);
            let (split, seen) = both(&memory, Memory::split, move |m| m.get(key));
            assert!(split);
            assert_eq!(seen, Some(u64::from(key == MOVES)));
            assert_eq!(memory.check(), 2);
        });
    }
}

#[test]
fn a_split_meets_an_insertion() {
    for key in [4, 5] {
        model(move || {
            let memory = memory(&[MOVES]);
            let (split, added) = both(&memory, Memory::split, move |m| m.add_by(1, 1, key));
            assert!(split && added);
            assert_eq!((memory.get(key), memory.get(MOVES)), (Some(1), Some(0)));
            assert_eq!(memory.check(), 2);
        });
    }
}

#[test]
fn a_split_meets_a_replacement() {
    model(|| {
        let memory = memory(&[MOVES]);
        let (split, replaced) = both(&memory, Memory::split, |m| m.replace_by(1, MOVES, Some(0)));
        assert!(split && replaced);
        assert_eq!(memory.get(MOVES), Some(1));
        assert_eq!(memory.check(), 1);
    });
}

#[test]
fn a_split_meets_a_deletion() {
    model(|| {
        let memory = memory(&[STAYS, MOVES]);
        let (split, deleted) = both(&memory, Memory::split, |m| m.delete(MOVES));
        assert!(split && deleted);
        assert_eq!((memory.get(STAYS), memory.get(MOVES)), (Some(0), None));
        assert_eq!(memory.check(), 1);
    });
}

#[test]
fn a_split_that_empties_a_line_meets_a_deletion_or_an_insertion() {
    model(|| {
        let memory = memory(&[5, MOVES, STAYS]);
        let (split, deleted) = both(&memory, Memory::split, |m| m.delete(STAYS));
        assert!(split && deleted);
        assert_eq!((memory.get(5), memory.get(MOVES), memory.get(STAYS)), (Some(0), Some(1), None));
        assert_eq!(memory.check(), 2);
    });
    model(|| {
        let memory = memory(&[5, MOVES, STAYS]);
        let (split, replaced) = both(&memory, Memory::split, |m| m.replace_by(3, STAYS, Some(2)));
        assert!(split && replaced);
        assert_eq!(memory.get(STAYS), Some(3));
        assert_eq!(memory.check(), 3);
    });
    model(|| {
        let memory = memory(&[5, MOVES, STAYS]);
        let (split, seen) = both(&memory, Memory::split, |m| m.get(STAYS));
        assert!(split);
        assert_eq!(seen, Some(2));
        assert_eq!(memory.check(), 3);
    });
}

#[test]
fn a_line_that_empties_meets_an_insertion() {
    model(|| {
        let memory = memory(&[4, 6, STAYS]);
        let (deleted, added) = both(&memory, |m| m.delete(STAYS), |m| m.add_by(1, 3, MOVES));
        assert!(deleted && added);
        assert_eq!((memory.get(STAYS), memory.get(MOVES)), (None, Some(3)));
        assert_eq!(memory.check(), 3);
    });
}

/// Two keys in the bucket and one in its overflow line, which moves when one of the two goes.
fn compacting() -> Arc<Memory> {
    Arc::new(Memory::compacting(&[4, 6, STAYS], 5))
}

#[test]
fn a_compaction_meets_a_lookup_of_what_moves() {
    model(|| {
        let memory = compacting();
        let (deleted, seen) = both(&memory, |m| m.delete(4), |m| m.get(STAYS));
        assert!(deleted);
        assert_eq!(seen, Some(2));
        assert_eq!((memory.check(), memory.lines_of_first()), (2, 0));
    });
}

#[test]
fn a_compaction_meets_a_deletion_of_what_moves() {
    model(|| {
        let memory = compacting();
        let (one, other) = both(&memory, |m| m.delete(4), |m| m.delete(STAYS));
        assert!(one && other);
        assert_eq!((memory.get(STAYS), memory.get(6)), (None, Some(1)));
        assert_eq!(memory.check(), 1);
    });
}

#[test]
fn a_compaction_meets_a_replacement_of_what_moves() {
    model(|| {
        let memory = compacting();
        let (deleted, replaced) =
            both(&memory, |m| m.delete(4), |m| m.replace_by(3, STAYS, Some(2)));
        assert!(deleted && replaced);
        assert_eq!(memory.get(STAYS), Some(3));
        assert_eq!(memory.check(), 2);
    });
}

#[test]
fn a_compaction_meets_an_insertion() {
    model(|| {
        let memory = compacting();
        let (deleted, added) = both(&memory, |m| m.delete(4), |m| m.add_by(0, 3, MOVES));
        assert!(deleted && added);
        assert_eq!((memory.get(STAYS), memory.get(MOVES)), (Some(2), Some(3)));
        assert_eq!(memory.check(), 3);
    });
}

#[test]
fn two_compactions_meet() {
    model(|| {
        let memory = compacting();
        let (one, other) = both(&memory, |m| m.delete(4), |m| m.delete(6));
        assert!(one && other);
        assert_eq!(memory.get(STAYS), Some(2));
        assert_eq!(memory.check(), 1);
    });
}

#[test]
fn a_compaction_meets_a_split() {
    model(|| {
        let memory = compacting();
        let (deleted, _) = both(&memory, |m| m.delete(4), Memory::split);
        assert!(deleted);
        assert_eq!((memory.get(STAYS), memory.get(6)), (Some(2), Some(1)));
        assert_eq!(memory.check(), 2);
    });
}

#[test]
fn what_a_turn_found_is_not_reused_before_it_ends() {
    model(|| {
        let epochs = Arc::new(Epochs::new(2));
        let slot = Arc::new(AtomicU64::new(1));
        let freed = Arc::new(AtomicU64::new(0));
        let reader = {
            let (epochs, slot, freed) =
                (Arc::clone(&epochs), Arc::clone(&slot), Arc::clone(&freed));
            thread::spawn(move || {
                epochs.enter(0);
                if slot.load(Ordering::Acquire) == 1 {
                    assert_eq!(freed.load(Ordering::Relaxed), 0, "it was freed in the turn");
                }
                epochs.leave(0);
                // Parked: holds nothing back, and begins anew.
                epochs.enter(0);
                if slot.load(Ordering::Acquire) == 1 {
                    assert_eq!(freed.load(Ordering::Relaxed), 0, "it was freed in the turn");
                }
                epochs.leave(0);
            })
        };
        slot.store(0, Ordering::Release);
        epochs.retire(1, Retired::Chunk(8));
        let mut ripe = Vec::new();
        for _ in 0..2 {
            epochs.advance();
            epochs.collect(1, 1, &mut ripe);
        }
        if !ripe.is_empty() {
            freed.store(1, Ordering::Relaxed);
        }
        reader.join().unwrap();
        epochs.advance();
        epochs.advance();
        epochs.collect(1, 1, &mut ripe);
        assert_eq!(ripe, [Retired::Chunk(8)], "a worker in no turn holds nothing back");
    });
}

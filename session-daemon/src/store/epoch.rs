//! Reclamation by quiescent states: when memory that was unlinked may be used again.
//! It owns the epoch, the workers' turns and the limbo lists; it never frees anything itself.
//!
//! A worker in a turn shows the epoch at which the turn began; one that is not shows
//! [`OFFLINE`]. The epoch advances from `e` to `e + 1` when no turn of an earlier epoch than `e`
//! is left. What is retired in epoch `e` (after it was unlinked) is ripe at `e + 2`: every turn
//! that could have found it began at `e` or before, and has ended.
#![forbid(unsafe_code)]

use crate::store::sync::{AtomicU64, AtomicUsize, Ordering, Padded, TryMutex, backoff, fence};
use std::collections::VecDeque;

/// Shown by a worker that is in no turn.
const OFFLINE: u64 = u64::MAX;
/// Epochs until what was retired is ripe.
const GRACE_EPOCHS: u64 = 2;

/// What waits for the turns of its time to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retired {
    /// A chunk, with the pieces that hang on it if it was an item's head; offset.
    Chunk(u64),
    /// A chain of pieces that never got a head; offset of the first.
    Pieces(u64),
    /// An overflow line of the index, or a head without its pieces; offset.
    Alone(u64),
    /// A page that has drained.
    Page(u32),
}

/// One worker's part.
#[derive(Debug, Default)]
struct Turn {
    /// Epoch of the current turn, or [`OFFLINE`].
    epoch: Padded<AtomicU64>,
    limbo: TryMutex<VecDeque<(u64, Retired)>>,
    limbo_len: AtomicUsize,
}

/// The epoch and everything that waits for it.
#[derive(Debug)]
pub(super) struct Epochs {
    now: Padded<AtomicU64>,
    turns: Box<[Turn]>,
}

impl Epochs {
    pub(super) fn new(workers: usize) -> Self {
        let turns: Box<[Turn]> = (0..workers).map(|_| Turn::default()).collect();
        for turn in &turns {
            turn.epoch.0.store(OFFLINE, Ordering::Relaxed);
        }
        Self { now: Padded(AtomicU64::new(1)), turns }
    }

    /// Begins a turn of `worker`.
    pub(super) fn enter(&self, worker: usize) {
        let epoch = self.now.0.load(Ordering::SeqCst);
        // SeqCst store and fence: the turn is visible before any load of the turn is made; pairs
        // with the fence in `advance`. Either that sees the turn, or the turn sees all unlinking
        // that was done before.
        self.turns[worker].epoch.0.store(epoch, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Ends the turn of `worker`.
    pub(super) fn leave(&self, worker: usize) {
        // Release: all reads of the turn are done; pairs with the load in `advance`.
        self.turns[worker].epoch.0.store(OFFLINE, Ordering::Release);
    }

    /// Advances the epoch if no older turn is left; true when it did.
    pub(super) fn advance(&self) -> bool {
        let epoch = self.now.0.load(Ordering::SeqCst);
        fence(Ordering::SeqCst);
        for turn in &self.turns {
            // SeqCst (hence Acquire): pairs with the stores in `enter` and `leave`.
            let seen = turn.epoch.0.load(Ordering::SeqCst);
            if seen != OFFLINE && seen != epoch {
                return false;
            }
        }
        let next = epoch + 1;
        self.now.0.compare_exchange(epoch, next, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Puts what was unlinked before this call into the limbo of `worker`, or if somebody is at
    /// that into another's. Any thread may. A thread has one limbo at a time, so as many workers
    /// find one that nobody has, wherever the others are stopped.
    pub(super) fn retire(&self, worker: usize, retired: Retired) {
        // SeqCst: the unlinking is visible before the epoch is read; pairs with `enter`.
        fence(Ordering::SeqCst);
        let mut step = 0;
        let others = (worker..self.turns.len()).chain(0..worker).cycle();
        for turn in others.map(|id| &self.turns[id]) {
            if let Some(mut limbo) = turn.limbo.try_lock() {
                // Read while nobody else has the list, so that it is in order of epochs.
                limbo.push_back((self.now.0.load(Ordering::SeqCst), retired));
                turn.limbo_len.store(limbo.len(), Ordering::Relaxed);
                return;
            }
            backoff(&mut step);
        }
    }

    /// Moves what is ripe in the limbo of `worker`, at most `most`, to `ripe`; nothing if somebody
    /// else is at it.
    pub(super) fn collect(&self, worker: usize, most: usize, ripe: &mut Vec<Retired>) {
        let turn = &self.turns[worker];
        if turn.limbo_len.load(Ordering::Relaxed) == 0 {
            return;
        }
        // SeqCst (hence Acquire): pairs with `advance`; the reads of ended turns happened before.
        let now = self.now.0.load(Ordering::SeqCst);
        let Some(mut limbo) = turn.limbo.try_lock() else { return };
        while ripe.len() < most
            && let Some(&(epoch, retired)) = limbo.front()
            && epoch + GRACE_EPOCHS <= now
        {
            limbo.pop_front();
            ripe.push(retired);
        }
        turn.limbo_len.store(limbo.len(), Ordering::Relaxed);
    }

    /// Entries in the limbo of `worker`; a little old when others change it.
    pub(super) fn limbo_len(&self, worker: usize) -> usize {
        // Relaxed: a hint for when to collect.
        self.turns[worker].limbo_len.load(Ordering::Relaxed)
    }

    /// Number of workers.
    pub(super) fn workers(&self) -> usize {
        self.turns.len()
    }

    /// Calls `visit` for everything that waits. Nobody else may use the lists meanwhile.
    pub(super) fn for_each(&self, mut visit: impl FnMut(Retired)) {
        for turn in &self.turns {
            let limbo = turn.limbo.try_lock().expect("nobody else uses the lists");
            for (_, retired) in limbo.iter() {
                visit(*retired);
            }
        }
    }
}

#[cfg(all(test, not(session_model)))]
mod tests {
    use super::{Epochs, Retired};

    fn ripe(epochs: &Epochs, worker: usize) -> usize {
        let mut ripe = Vec::new();
        epochs.collect(worker, 100, &mut ripe);
        ripe.len()
    }

    #[test]
    fn a_turn_holds_back_what_was_retired_in_it() {
        let epochs = Epochs::new(2);
        epochs.enter(0);
        epochs.retire(1, Retired::Chunk(8));
        assert!(epochs.advance());
        assert!(!epochs.advance());
        assert_eq!(ripe(&epochs, 1), 0);
        epochs.leave(0);
        assert!(epochs.advance());
        assert_eq!(ripe(&epochs, 1), 1);
        assert_eq!(epochs.limbo_len(1), 0);
    }

    #[test]
    fn later_turns_hold_nothing_back() {
        let epochs = Epochs::new(2);
        epochs.retire(1, Retired::Chunk(8));
        assert!(epochs.advance());
        epochs.enter(0);
        assert!(epochs.advance());
        assert_eq!(ripe(&epochs, 1), 1);
        assert!(!epochs.advance());
    }
}

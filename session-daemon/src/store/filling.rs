//! Filling an index that nobody reads, by several threads: at a start that builds it anew.
//! It owns the way of an item into its bucket then; which items belong there is `recover`'s.
//!
//! A bucket is one thread's while its header says COPYING, which nothing else does at such a start.
//! A key that is there already is left to who knows which of both items is the newer one.
#![forbid(unsafe_code)]

use crate::store::buckets::Buckets;
use crate::store::sync::{Ordering, backoff};
use crate::store::words::{
    COPYING, LINE_LEN, LINK_MASK, changed, has_tag, is_copying, link, redirect, slot_item,
    slot_word,
};

/// What became of an item that was to be put into an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    Done,
    /// Its key is there already.
    Twin,
    /// There is no overflow line for it.
    Homeless,
}

/// Buckets of a part of the index, as a shift, at least: a megabyte of them, for which and whose
/// overflow lines a processor remembers where the pages are.
const PART_SHIFT: u32 = 14;
/// Most parts; those of larger indexes are larger.
const PARTS_MAX: u64 = 512;
/// Items that are put into a part of the index in one go.
const PART_ITEMS: usize = 2048;

/// Items on their way into an index, by the parts of it where their buckets are: buckets all over a
/// large index would cost a walk over the tables of pages each.
#[derive(Debug)]
pub(super) struct Parts {
    shift: u32,
    /// Hashes and items.
    items: Vec<Vec<(u64, u64)>>,
}

impl Parts {
    /// For an index of so many buckets.
    pub(super) fn new(buckets: u64) -> Self {
        let least = buckets.div_ceil(PARTS_MAX).next_power_of_two().ilog2();
        let shift = PART_SHIFT.max(least);
        let parts = buckets.div_ceil(1 << shift);
        Self { shift, items: (0..parts).map(|_| Vec::with_capacity(PART_ITEMS)).collect() }
    }

    /// Lays an item aside whose bucket has this number. The part that it belongs to, if that is to
    /// be filled now.
    pub(super) fn put(&mut self, number: u64, hash: u64, item: u64) -> Option<usize> {
        let part = (number >> self.shift) as usize;
        self.items[part].push((hash, item));
        (self.items[part].len() == PART_ITEMS).then_some(part)
    }

    /// Number of parts.
    pub(super) fn count(&self) -> usize {
        self.items.len()
    }

    /// Takes out what belongs to a part.
    pub(super) fn take(&mut self, part: usize) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.items[part])
    }

    /// Gives back the memory of what was taken out.
    pub(super) fn give(&mut self, part: usize, mut items: Vec<(u64, u64)>) {
        items.clear();
        self.items[part] = items;
    }
}

/// What fills an index.
pub(super) trait Fills: Buckets {
    /// Puts an item that is linked into the index, unless its key is there. The item itself is far
    /// away: `key` is asked only if it has to be. `line` gets an overflow line of which nobody knows.
    fn fill_in<'k>(
        &self,
        hash: u64,
        item: u64,
        key: impl Fn() -> &'k [u8],
        line: impl FnOnce() -> Option<u64>,
    ) -> Filled {
        let number = self.home(hash);
        let bucket = self.bucket(number);
        let header = self.take_bucket(bucket);
        debug_assert!(redirect(header, number, hash).is_none(), "no bucket is split meanwhile");
        let mut free = None;
        for (slot, word) in self.lines(bucket, header).flat_map(|line| self.slots(line)) {
            // Relaxed: written by who has the bucket.
            let word = word.load(Ordering::Relaxed);
            if word == 0 {
                free = free.or(Some(slot));
            } else if has_tag(word, hash) && self.has_key(slot_item(word), key()) {
                self.give_bucket(bucket, header);
                return Filled::Twin;
            }
        }
        let word = slot_word(hash, item);
        if let Some(slot) = free {
            // Release: for who reads the file from outside; pairs with the Acquire loads of slots.
            self.word(slot).store(word, Ordering::Release);
            self.give_bucket(bucket, changed(header));
            return Filled::Done;
        }
        let Some(line) = line() else {
            self.give_bucket(bucket, header);
            return Filled::Homeless;
        };
        self.fill_line(line, &[word], link(header));
        self.give_bucket(bucket, changed(header) & !LINK_MASK | (line / LINE_LEN));
        Filled::Done
    }

    /// Takes a bucket, which another thread has for some instructions at most; its header.
    fn take_bucket(&self, bucket: u64) -> u64 {
        let word = self.word(bucket);
        let mut step = 0;
        loop {
            // Relaxed: the swap decides.
            let header = word.load(Ordering::Relaxed);
            // Acquire: pairs with the Release in `give_bucket`.
            let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
            if !is_copying(header)
                && word.compare_exchange(header, header | COPYING, success, failure).is_ok()
            {
                return header;
            }
            backoff(&mut step);
        }
    }

    /// Gives a bucket back, with this header.
    fn give_bucket(&self, bucket: u64, header: u64) {
        // Release: what was changed in it; pairs with the Acquire in `take_bucket`, and for who
        // reads the file from outside with the loads of headers.
        self.word(bucket).store(header, Ordering::Release);
    }
}

impl<T: Buckets> Fills for T {}

#[cfg(all(test, not(session_model)))]
mod tests {
    use super::{Filled, Fills, PARTS_MAX, Parts};
    use crate::clock::Now;
    use crate::store::Store;
    use crate::store::buckets::Buckets;
    use crate::store::types::{ClientFlags, Key, Lifetime, Mode, StoreConfig};
    use std::thread;

    const ITEMS: u64 = 40_000;

    fn name(number: u64) -> String {
        format!("item:{number}")
    }

    /// A store whose index is empty, and its items.
    fn without_index() -> (std::sync::Arc<Store>, Vec<u64>) {
        let store = Store::create(&StoreConfig::default()).expect("there is memory");
        let now = Now { boottime_ns: 1_000_000_000, realtime_ns: 0 };
        let mut worker = store.worker().expect("the first one");
        for number in 0..ITEMS {
            let name = name(number);
            let key = Key::new(name.as_bytes()).expect("it is short");
            worker.set(key, b"v", ClientFlags(0), Lifetime::Never, Mode::Set, now);
            worker.quiesce();
        }
        drop(worker);
        let hash = |number| store.secret.hash(name(number).as_bytes());
        let item =
            |number| store.lookup(hash(number), name(number).as_bytes()).expect("it was stored");
        let items = (0..ITEMS).map(item).collect();
        let index: Vec<u32> =
            (0..store.layout.pages).filter(|page| store.is_index_page(*page)).collect();
        store.index_format(&index, 2);
        (store, items)
    }

    #[test]
    fn each_key_is_put_in_once_by_many_threads() {
        let (store, items) = without_index();
        let fill = || {
            let (mut done, mut twins) = (0, 0);
            let line = || {
                let mut line = [0];
                (store.take_lines(&mut line) == 1).then_some(line[0])
            };
            for item in &items {
                let (hash, key) = (store.item_hash(*item), || store.item_key(*item));
                match store.fill_in(hash, *item, key, line) {
                    Filled::Done => done += 1,
                    Filled::Twin => twins += 1,
                    Filled::Homeless => panic!("there is memory for lines"),
                }
            }
            (done, twins)
        };
        let counts: Vec<(u64, u64)> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(fill)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it has filled")).collect()
        });
        let sum = counts.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        assert_eq!(sum, (ITEMS, 3 * ITEMS));
        for (number, item) in (0..).zip(&items) {
            let name = name(number);
            assert_eq!(store.lookup(store.item_hash(*item), name.as_bytes()), Some(*item));
        }
        let (mut slots, mut lines) = (0, 0);
        store.for_each_bucket(|bucket| {
            assert!(!bucket.unfinished);
            (slots, lines) = (slots + bucket.slots.len() as u64, lines + bucket.overflow.len());
        });
        assert_eq!(slots, ITEMS);
        assert!(lines > 0, "some buckets are full");
    }

    #[test]
    fn parts_cover_every_bucket() {
        for buckets in [1, 1024, 16_384, 16_385, 1 << 20, (1 << 23) + 1, 1 << 30] {
            let mut parts = Parts::new(buckets);
            assert!((1..=PARTS_MAX as usize).contains(&parts.count()));
            for number in [0, buckets / 3, buckets - 1] {
                assert_eq!(parts.put(number, number, 8), None);
            }
            let all = (0..parts.count()).flat_map(|part| parts.take(part));
            assert_eq!(all.collect::<Vec<_>>().len(), 3);
        }
    }

    #[test]
    fn without_a_line_nothing_is_lost() {
        let config =
            StoreConfig { memory_limit: 2 << 20, item_size_max: 1 << 16, ..StoreConfig::default() };
        let store = Store::create(&config).expect("there is memory");
        while store.pool_take().is_some() {}
        assert_eq!(store.take_lines(&mut [0; 3]), 0);
        // Any words will do: an item is not looked at unless its tag is there already.
        let filled = (1..).map(|tag| store.fill_in(tag << 48, 8 * tag, || b"", || None));
        let filled: Vec<Filled> = filled.take(9).collect();
        assert_eq!(filled[..7], [Filled::Done; 7]);
        assert_eq!(filled[7..], [Filled::Homeless; 2]);
    }
}

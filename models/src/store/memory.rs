//! A small memory with two buckets, an overflow line and some items, and the commands of the store
//! as sequences of the steps that `buckets` offers.
#![forbid(unsafe_code)]

use crate::store::buckets::{Buckets, Inserted};
use crate::store::filling::{Filled, Fills};
use crate::store::item::{GONE, LINKED, Marks, State, TIMES, Times};
use crate::store::moves::{Moved, Moves};
use crate::store::sync::{AtomicU64, Ordering, TryMutex};
use crate::store::types::Lifetime;
use crate::store::words::{LINE_LEN, SLOTS, depth, header_of, is_pending, slot_item};
use std::collections::HashMap;

/// Offsets of bucket 0 and of the one that splits off it.
pub(crate) const BUCKETS: [u64; 2] = [64, 128];
const LINES: [u64; 3] = [192, 256, 320];
const ITEMS: u64 = 1024;
const ITEM_LEN: u64 = 64;
/// Where an item has its key.
const KEY: u64 = 16;

/// A key: its lowest bit decides into which bucket it goes at a split.
pub(crate) type Key = u8;

/// Words at the offsets that the models use.
#[derive(Debug)]
pub(crate) struct Memory {
    words: HashMap<u64, AtomicU64>,
    /// For who moves slots; none where a bucket that an item has left only loses empty lines.
    moving: Option<TryMutex<()>>,
}

fn hash(key: Key) -> u64 {
    u64::from(key) << 56 | u64::from(key & 1)
}

impl Memory {
    /// Bucket 0 of depth 0, with items 0 and so on that have these keys. More than its slots go
    /// into overflow lines.
    pub(crate) fn new(keys: &[Key], items: u64) -> Self {
        let mut words = HashMap::new();
        for line in BUCKETS.into_iter().chain(LINES) {
            words.extend((0..=SLOTS).map(|idx| (line + idx * 8, AtomicU64::new(0))));
        }
        for item in 0..items {
            let at = Self::item(item);
            words.extend([0, TIMES, KEY].map(|word| (at + word, AtomicU64::new(0))));
        }
        let memory = Self { words, moving: None };
        memory.word(BUCKETS[0]).store(header_of(0), Ordering::Relaxed);
        for (item, key) in keys.iter().enumerate() {
            let line = LINES[2 - item / SLOTS as usize % 2];
            memory.write(item as u64, *key);
            assert!(memory.add(item as u64, *key, line));
        }
        memory
    }

    /// [`Memory::new`] where a bucket that an item has left takes in what stands in its first
    /// overflow line, as in the whole store.
    pub(crate) fn compacting(keys: &[Key], items: u64) -> Self {
        Self { moving: Some(TryMutex::default()), ..Self::new(keys, items) }
    }

    /// Offset of an item.
    pub(crate) fn item(number: u64) -> u64 {
        ITEMS + number * ITEM_LEN
    }

    /// Makes an item whole that nobody knows.
    pub(crate) fn write(&self, number: u64, key: Key) {
        let item = Self::item(number);
        // Relaxed: published by the state and the slot, which is what is checked.
        self.word(item + KEY).store(u64::from(key) + 1, Ordering::Relaxed);
        self.word(item + TIMES).store(Times::new(Lifetime::Never, 0).0, Ordering::Relaxed);
        let state = State::new(1, 1, 0, false, Marks::default());
        self.word(item).store(state.0, Ordering::Release);
    }

    /// Stores an item if the key has none.
    pub(crate) fn add(&self, number: u64, key: Key, line: u64) -> bool {
        loop {
            let found = self.find(hash(key), &[key]);
            if found.item.is_some() {
                return false;
            }
            if self.insert(&found, hash(key), Self::item(number), line) != Inserted::Changed {
                return true;
            }
        }
    }

    /// `add` with the overflow line of a thread.
    pub(crate) fn add_by(&self, thread: usize, number: u64, key: Key) -> bool {
        self.write(number, key);
        self.add(number, key, LINES[thread])
    }

    /// Puts an item that was linked into an index that is built anew; false if its key is there.
    pub(crate) fn fill_by(&self, thread: usize, number: u64, key: Key) -> bool {
        self.write(number, key);
        let (item, bytes) = (Self::item(number), [key]);
        self.link(item);
        let filled = self.fill_in(hash(key), item, || &bytes, || Some(LINES[thread]));
        assert_ne!(filled, Filled::Homeless);
        filled == Filled::Done
    }

    /// Stores an item whatever the key has.
    pub(crate) fn set_by(&self, thread: usize, number: u64, key: Key) {
        self.write(number, key);
        loop {
            if self.replace(number, key, None) || self.add(number, key, LINES[thread]) {
                return;
            }
        }
    }

    /// Stores an item in place of the one that the key has, or of that very one; false if there
    /// is none.
    pub(crate) fn replace(&self, number: u64, key: Key, expected: Option<u64>) -> bool {
        loop {
            let Some(old) = self.find(hash(key), &[key]).item else { return false };
            if expected.is_some_and(|expected| Self::item(expected) != old) {
                return false;
            }
            let times = self.times(old);
            if times.successor().is_some() {
                continue;
            }
            if self.supersede(old, times, Self::item(number)) {
                self.finish(hash(key), old, Self::item(number));
                self.check_unreachable(old);
                return true;
            }
        }
    }

    /// `replace` with an item to be written.
    pub(crate) fn replace_by(&self, number: u64, key: Key, expected: Option<u64>) -> bool {
        self.write(number, key);
        self.replace(number, key, expected)
    }

    /// Removes what the key has; false if it has nothing.
    pub(crate) fn delete(&self, key: Key) -> bool {
        loop {
            let Some(item) = self.lookup(hash(key), &[key]) else { return false };
            let times = self.times(item);
            if times.successor().is_none() && self.supersede(item, times, 0) {
                self.finish(hash(key), item, 0);
                self.check_unreachable(item);
                return true;
            }
        }
    }

    /// Changes the times of what the key has; false if it has nothing.
    pub(crate) fn touch(&self, key: Key, exptime_s: u32) -> bool {
        loop {
            let Some(item) = self.lookup(hash(key), &[key]) else { return false };
            let times = self.times(item);
            let new = Times::new(Lifetime::Until(exptime_s), 0);
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            let word = self.word(item + TIMES);
            if times.successor().is_none()
                && word.compare_exchange(times.0, new.0, success, failure).is_ok()
            {
                return true;
            }
        }
    }

    /// Splits bucket 0; false if others were in the way.
    pub(crate) fn split(&self) -> bool {
        let moving = self.moving.as_ref().map(TryMutex::try_lock);
        if matches!(moving, Some(None)) {
            return false;
        }
        let mut lines = vec![LINES[0]];
        let moved = self.split_bucket(0, BUCKETS[1], &mut lines);
        assert!(!matches!(moved, Moved::NeedsLines(_)));
        moved != Moved::Busy
    }

    /// The number of the item that a key has.
    pub(crate) fn get(&self, key: Key) -> Option<u64> {
        self.lookup(hash(key), &[key]).map(|item| (item - ITEMS) / ITEM_LEN)
    }

    /// Checks the two buckets when nothing is under way: each item that counts is there once, in
    /// its bucket, linked; none else is. Returns how many there are.
    pub(crate) fn check(&self) -> usize {
        let mut count = 0;
        let split = depth(self.load(BUCKETS[0])) == 1;
        for (number, bucket) in BUCKETS.into_iter().enumerate().take(1 + usize::from(split)) {
            let header = self.settle(bucket);
            let lines: Vec<u64> = self.lines(bucket, header).collect();
            let mut keys = Vec::new();
            for line in lines {
                for slot in (1..=SLOTS).map(|idx| line + idx * 8) {
                    let word = self.load(slot);
                    if word == 0 {
                        continue;
                    }
                    let item = slot_item(word);
                    let (key, state) = (self.load(item + KEY), State(self.load(item)));
                    assert!(!keys.contains(&key), "key {key} is there twice");
                    assert!(self.times(item).successor().is_none(), "{item} has ended");
                    assert!(state.is_linked() && state.0 & GONE == 0, "{item} is not linked");
                    assert!(!split || (key - 1) & 1 == number as u64, "{item} is a stranger");
                    keys.push(key);
                    count += 1;
                }
            }
        }
        for item in self.words.keys().filter(|at| **at >= ITEMS && **at % ITEM_LEN == 0) {
            let state = self.load(*item);
            assert!(state & (LINKED | GONE) != LINKED | GONE);
            if self.times(*item).successor().is_some() {
                assert!(state & GONE != 0, "{item} has ended and is not gone");
            }
        }
        count
    }

    /// No slot leads to an item that is retired now: who begins a turn later cannot find it.
    fn check_unreachable(&self, retired: u64) {
        let split = depth(self.load(BUCKETS[0])) == 1;
        for bucket in BUCKETS.into_iter().take(1 + usize::from(split)) {
            let lines: Vec<u64> = self.lines(bucket, self.load(bucket)).collect();
            for slot in lines.iter().flat_map(|line| (1..=SLOTS).map(move |idx| line + idx * 8)) {
                let word = self.load(slot);
                let mut item = slot_item(word);
                while word != 0 && !is_pending(word) && item != 0 {
                    assert_ne!(item, retired, "a slot leads to a retired item");
                    item = self.times(item).successor().unwrap_or(0);
                }
            }
        }
    }

    /// Overflow lines of bucket 0.
    pub(crate) fn lines_of_first(&self) -> usize {
        self.lines(BUCKETS[0], self.settle(BUCKETS[0])).count() - 1
    }

    fn load(&self, offset: u64) -> u64 {
        self.word(offset).load(Ordering::SeqCst)
    }
}

impl Buckets for Memory {
    fn word(&self, offset: u64) -> &AtomicU64 {
        self.words.get(&offset).unwrap_or_else(|| panic!("{offset} is in no line and no item"))
    }

    fn has_key(&self, item: u64, key: &[u8]) -> bool {
        let found = self.word(item + KEY).load(Ordering::Relaxed);
        assert_ne!(found, 0, "item {item} was found before it was whole");
        found == u64::from(key[0]) + 1
    }

    fn hash_of(&self, item: u64) -> u64 {
        let found = self.word(item + KEY).load(Ordering::Relaxed);
        assert_ne!(found, 0, "item {item} was found before it was whole");
        hash(found as u8 - 1)
    }

    fn home(&self, _hash: u64) -> u64 {
        0
    }

    fn bucket(&self, number: u64) -> u64 {
        BUCKETS[number as usize]
    }

    fn is_splitting(&self, number: u64) -> bool {
        number == 1
    }

    fn shorten(&self, bucket: u64) -> Option<u64> {
        let Some(moving) = &self.moving else { return self.unlink_empty(bucket) };
        if !self.line_fits(bucket) {
            return None;
        }
        match moving.try_lock() {
            Some(_guard) => self.compact_line(bucket),
            None => self.unlink_empty(bucket),
        }
    }
}

const _: () = assert!(LINE_LEN == 64 && SLOTS == 2);

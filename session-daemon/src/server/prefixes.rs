//! `stats detail`: how often keys of each prefix are used. Every worker has a table of its own,
//! so that none waits for another; a dump takes pieces of all tables in turn.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most prefixes that a worker counts, as memcached: keys of further ones are not counted.
const PREFIXES_MAX: usize = 65_536;

/// Prefixes of one worker that a piece of a dump holds at most.
const PIECE: usize = 128;

/// How often keys of a prefix were used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Keys looked up.
    pub gets: u64,
    /// Of them, found.
    pub hits: u64,
    /// Storage commands.
    pub sets: u64,
    /// Deletes.
    pub deletes: u64,
}

type Table = BTreeMap<Box<[u8]>, Uses>;

impl Uses {
    fn add(&mut self, others: &Self) {
        self.gets = self.gets.saturating_add(others.gets);
        self.hits = self.hits.saturating_add(others.hits);
        self.sets = self.sets.saturating_add(others.sets);
        self.deletes = self.deletes.saturating_add(others.deletes);
    }
}

/// One worker's table.
#[derive(Debug, Default)]
pub struct Prefixes(Mutex<Table>);

impl Prefixes {
    fn table(&self) -> MutexGuard<'_, Table> {
        // The worker alone writes; a dump holds the lock for the time of one piece.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a use of a key; one without the delimiter has no prefix.
    pub fn count(&self, key: &[u8], delimiter: u8, count: impl FnOnce(&mut Uses)) {
        let Some(end) = memchr::memchr(delimiter, key) else { return };
        let Some(prefix) = key.get(..end) else { return };
        let mut table = self.table();
        if let Some(uses) = table.get_mut(prefix) {
            return count(uses);
        }
        if table.len() < PREFIXES_MAX {
            count(table.entry(prefix.into()).or_default());
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.table().clear();
    }

    /// The next prefixes of all tables together, in order; none when there are no more.
    #[must_use]
    pub fn piece(tables: &[&Self], after: Option<&[u8]>) -> BTreeMap<Box<[u8]>, Uses> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut piece, mut end): (Table, Option<Box<[u8]>>) = (BTreeMap::new(), None);
        for table in tables {
            let table = table.table();
            let part = table.range::<[u8], _>((start, Bound::Unbounded)).take(PIECE);
            let mut len = 0_usize;
            let mut last = None;
            for (prefix, uses) in part {
                piece.entry(prefix.clone()).or_default().add(uses);
                (len, last) = (len.saturating_add(1), Some(prefix));
            }
            // Behind the last of a full part this table may have more: no sum is whole there.
            if len == PIECE {
                end = end.into_iter().chain(last.cloned()).min();
            }
        }
        match end {
            None => piece,
            Some(end) => {
                piece.retain(|prefix, _| *prefix <= end);
                piece
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PIECE, Prefixes, Uses};

    #[test]
    fn only_keys_with_the_delimiter_count() {
        let table = Prefixes::default();
        for key in [&b"a:1"[..], b"a:2:3", b"none", b":x"] {
            table.count(key, b':', |uses| uses.sets += 1);
        }
        let all = Prefixes::piece(&[&table], None);
        let sets: Vec<_> = all.iter().map(|(prefix, uses)| (&**prefix, uses.sets)).collect();
        assert_eq!(sets, [(&b""[..], 1), (b"a", 2)]);
        table.clear();
        assert!(Prefixes::piece(&[&table], None).is_empty());
    }

    #[test]
    fn pieces_of_several_tables_give_every_prefix_once_and_whole() {
        let tables: Vec<Prefixes> = (0..3).map(|_| Prefixes::default()).collect();
        for idx in 0..1000 {
            let key = format!("p{idx:04}:x");
            for table in tables.iter().skip(idx % 3) {
                table.count(key.as_bytes(), b':', |uses| uses.gets += 1);
            }
        }
        let tables: Vec<&Prefixes> = tables.iter().collect();
        let (mut after, mut seen) = (None::<Box<[u8]>>, Vec::new());
        loop {
            let piece = Prefixes::piece(&tables, after.as_deref());
            let Some((last, _)) = piece.last_key_value() else { break };
            assert!(piece.len() <= 3 * PIECE);
            after = Some(last.clone());
            seen.extend(piece);
        }
        let expected: Vec<_> = (0..1000_u64)
            .map(|idx| {
                let uses = Uses { gets: 3 - idx % 3, ..Uses::default() };
                (format!("p{idx:04}").into_bytes().into_boxed_slice(), uses)
            })
            .collect();
        assert_eq!(seen, expected);
    }
}

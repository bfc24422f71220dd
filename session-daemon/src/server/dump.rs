//! Lists that are sent piece by piece: `lru_crawler metadump` and `mgdump`, `stats cachedump`,
//! `stats sizes`, `stats detail dump`. It owns their words. A piece is a few buckets of the
//! index: whoever dumps gives way to the other connections between two of them, and sends what
//! has been collected before more is.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::clock::Now;
use crate::command::admin::{ClassSet, DumpKind};
use crate::protocol::meta::base64;
use crate::server::prefixes::Prefixes;
use crate::server::watchers::Shown;
use crate::store::scan::Scan;
use crate::store::types::Lifetime;
use crate::store::{Item, Worker};
use std::collections::BTreeMap;
use std::io::Write;

/// Buckets of the index that one piece looks at: two hundred items.
const BUCKETS_PER_PIECE: u32 = 32;

/// `stats sizes` counts in steps of so many bytes.
const SIZE_STEP: usize = 32;

const NS: u64 = 1_000_000_000;

/// A list that has begun.
#[derive(Debug)]
pub struct Dump {
    kind: DumpKind,
    scan: Scan,
    listed: u32,
    sizes: BTreeMap<usize, u64>,
    /// The prefix that was listed last.
    prefix: Option<Box<[u8]>>,
}

impl Dump {
    /// A list of which nothing has been sent.
    #[must_use]
    pub fn new(kind: DumpKind) -> Self {
        Self { kind, scan: Scan::default(), listed: 0, sizes: BTreeMap::new(), prefix: None }
    }

    /// Appends the next piece; false when that was the last.
    pub fn piece(
        &mut self,
        store: &Worker,
        prefixes: &[&Prefixes],
        now: Now,
        out: &mut Vec<u8>,
    ) -> bool {
        if self.kind == DumpKind::Prefixes {
            return self.prefixes(prefixes, out);
        }
        for _ in 0..BUCKETS_PER_PIECE {
            let Self { kind, scan, listed, sizes, .. } = self;
            let more =
                store.scan(scan, now, &mut |item| list(*kind, item, now, listed, sizes, out));
            if !more || self.is_enough() {
                self.end(out);
                return false;
            }
        }
        true
    }

    /// What was counted of `stats sizes`: lengths, and how many items have each.
    pub fn sizes(&self) -> impl Iterator<Item = (usize, u64)> {
        self.sizes.iter().map(|(step, count)| (step.saturating_mul(SIZE_STEP), *count))
    }

    fn is_enough(&self) -> bool {
        matches!(self.kind, DumpKind::Cachedump { limit, .. } if limit > 0 && self.listed >= limit)
    }

    fn end(&self, out: &mut Vec<u8>) {
        for (size, count) in self.sizes() {
            line(out, format_args!("STAT {size} {count}\r\n"));
        }
        out.extend_from_slice(match self.kind {
            DumpKind::Mgdump(_) => b"EN\r\n",
            _ => b"END\r\n",
        });
    }

    fn prefixes(&mut self, prefixes: &[&Prefixes], out: &mut Vec<u8>) -> bool {
        let piece = Prefixes::piece(prefixes, self.prefix.as_deref());
        for (prefix, uses) in &piece {
            out.extend_from_slice(b"PREFIX ");
            out.extend_from_slice(prefix);
            line(
                out,
                format_args!(
                    " get {} hit {} set {} del {}\r\n",
                    uses.gets, uses.hits, uses.sets, uses.deletes
                ),
            );
        }
        let Some((last, _)) = piece.last_key_value() else {
            self.end(out);
            return false;
        };
        self.prefix = Some(last.clone());
        true
    }
}

/// Lists an item, if it is asked for.
fn list(
    kind: DumpKind,
    item: &Item<'_>,
    now: Now,
    listed: &mut u32,
    sizes: &mut BTreeMap<usize, u64>,
    out: &mut Vec<u8>,
) {
    let of = |classes: ClassSet| u8::try_from(item.class()).is_ok_and(|id| classes.contains(id));
    match kind {
        DumpKind::Metadump(classes) if of(classes) => metadump(item, now, out),
        DumpKind::Mgdump(classes) if of(classes) => mgdump(item, out),
        DumpKind::Cachedump { class, limit }
            if item.class() == class && (limit == 0 || *listed < limit) =>
        {
            *listed = listed.saturating_add(1);
            cachedump(item, now, out);
        }
        DumpKind::Sizes => {
            let count = sizes.entry(item.item_len().div_ceil(SIZE_STEP)).or_default();
            *count = count.saturating_add(1);
        }
        _ => {}
    }
}

/// A second of the boot clock as a date.
fn date(second: u32, now: Now) -> u64 {
    let started_ns = now.realtime_ns.saturating_sub(now.boottime_ns);
    (started_ns / NS).saturating_add(second.into())
}

/// When the item ends, as a date; none for never.
fn ends(item: &Item<'_>, now: Now) -> Option<u64> {
    match item.lifetime() {
        Lifetime::Never => None,
        Lifetime::Past => Some(0),
        Lifetime::Until(second) => Some(date(second, now)),
    }
}

fn metadump(item: &Item<'_>, now: Now, out: &mut Vec<u8>) {
    let exptime = ends(item, now).map_or(-1, |date| i64::try_from(date).unwrap_or(i64::MAX));
    line(
        out,
        format_args!(
            "key={} exp={exptime} la={} cas={} fetch={} cls={} size={} flags={}\n",
            Shown(item.key()),
            date(item.last_access_s(), now),
            item.cas().0,
            if item.fetched() { "yes" } else { "no" },
            item.class(),
            item.item_len(),
            item.flags().0,
        ),
    );
}

/// Keys that a text command cannot hold, and those that came in base64, go in base64.
fn mgdump(item: &Item<'_>, out: &mut Vec<u8>) {
    let key = item.key();
    out.extend_from_slice(b"mg ");
    if item.key_is_binary() || key.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        base64::encode(out, key);
        out.extend_from_slice(b" b\r\n");
    } else {
        out.extend_from_slice(key);
        out.extend_from_slice(b"\r\n");
    }
}

fn cachedump(item: &Item<'_>, now: Now, out: &mut Vec<u8>) {
    out.extend_from_slice(b"ITEM ");
    out.extend_from_slice(item.key());
    let exptime = ends(item, now).unwrap_or(0);
    line(out, format_args!(" [{} b; {exptime} s]\r\n", item.value_len()));
}

fn line(out: &mut Vec<u8>, words: std::fmt::Arguments<'_>) {
    // Writing to a vector does not fail.
    let _ = out.write_fmt(words);
}

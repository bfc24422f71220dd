//! Named steps of the store's protocols at which a test can end the process.
//! Outside the store's own tests a step is nothing.
#![forbid(unsafe_code)]

#[cfg(test)]
use crate::store::sync::{AtomicU32, Ordering};
#[cfg(test)]
use std::sync::OnceLock;

/// Every step, in the order of the protocols that they cut.
#[cfg(test)]
pub(super) const STEPS: &[&str] = &[
    "set: private",
    "set: whole",
    "set: owned in part",
    "insert: pending",
    "insert: decided",
    "insert: slot settled",
    "replace: decided",
    "delete: decided",
    "end: successor linked",
    "end: out of the slot",
    "end: gone",
    "split: new bucket filled",
    "split: decided",
    "split: old slots emptied",
    "split: compacted",
    "compaction: copied",
    "compaction: decided",
    "line: unlinked",
    "index: page cleared",
    "index: page added",
    "page: taken",
    "page: cleared",
    "page: of a class",
    "chunk: taken",
    "drain: marked",
    "drain: swept",
    "move: copied",
    "move: decided",
    "move: done",
    "drain: drained",
    "upload: piece begun",
    "upload: piece linked",
    "retire: disowned in part",
    "adopt: begun",
    "adopt: pages",
    "adopt: split mended",
    "adopt: done",
    "check: looked through",
    "check: listed",
    "check: rest",
    "check: done",
    "close: counted",
    "close: noted",
    "close: note taken",
    "recover: pages",
    "recover: index",
    "recover: scanned",
    "recover: extents",
    "recover: dead",
    "recover: lists",
    "recover: settled",
];

/// Variable with the step at which to end, a colon, and how often it is passed before.
#[cfg(test)]
pub(super) const VARIABLE: &str = "SESSION_TEST_FAILPOINT";

/// Ends the process here if a test asked for it.
#[cfg(not(test))]
pub(super) fn step(_: &'static str) {}

/// Ends the process here if a test asked for it.
#[cfg(test)]
pub(super) fn step(name: &'static str) {
    static ASKED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static PASSED: AtomicU32 = AtomicU32::new(0);
    debug_assert!(STEPS.contains(&name), "{name} is in the list");
    let asked = ASKED.get_or_init(|| {
        let asked = std::env::var(VARIABLE).ok()?;
        let (step, times) = asked.rsplit_once(':')?;
        Some((step.to_owned(), times.parse().ok()?))
    });
    let Some((step, times)) = asked else { return };
    if step == name && PASSED.fetch_add(1, Ordering::Relaxed) == *times {
        std::process::abort();
    }
}

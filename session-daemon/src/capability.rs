//! Capabilities in reserve: taken up for one piece of work, and put away again. Which ones a process
//! keeps is `startup`'s.
#![forbid(unsafe_code)]

use caps::{CapSet, Capability};

/// Runs `work` with a capability in effect, if this thread may have it, and puts it away again unless
/// it was in effect before.
pub(crate) fn with_capability<T>(capability: Capability, work: impl FnOnce() -> T) -> T {
    let has = |set| caps::has_cap(None, set, capability).unwrap_or(false);
    let raise = !has(CapSet::Effective) && has(CapSet::Permitted);
    if raise {
        // A failure shows as EPERM in `work`, which says what is missing.
        let _ = caps::raise(None, CapSet::Effective, capability);
    }
    let outcome = work();
    if raise && caps::drop(None, CapSet::Effective, capability).is_err() {
        log::error!("{capability} stays in effect: it cannot be lowered");
    }
    outcome
}

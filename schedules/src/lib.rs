//! The whole store, file for file the daemon's, with atomics that ask a scheduler before each
//! access which thread goes on. The tests are in `tests/`; the scheduler knows no weak memory, for
//! which `models` is.

#[path = "../../session-daemon/src/clock.rs"]
pub mod clock;
#[path = "../../session-daemon/src/store/mod.rs"]
pub mod store;

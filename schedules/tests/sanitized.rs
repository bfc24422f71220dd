//! The store's own tests with its plain atomics, without the rest of the daemon: what a sanitizer
//! instruments in a minute.
//! `SESSION_PLAIN_ATOMICS=1 cargo test -p session-schedules --test sanitized` runs them; elsewhere
//! this is empty, because `session-daemon` has them.
#![cfg(not(session_schedule))]
#![allow(
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "the modules serve a whole daemon elsewhere"
)]

#[path = "../../session-daemon/src/clock.rs"]
mod clock;
#[path = "../../session-daemon/src/store/mod.rs"]
mod store;

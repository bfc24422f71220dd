//! What was asked, and doing it. It owns the logical requests, what each does to the store and
//! the counters of `stats`; it never sees a wire format, a socket or a clock.
#![forbid(unsafe_code)]

pub mod admin;
pub mod counters;
pub mod execute;
pub mod expiry;
pub mod lease;
pub mod number;
pub mod observe;
pub mod request;
#[cfg(test)]
mod tests;

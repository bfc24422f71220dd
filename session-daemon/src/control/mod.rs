//! The control socket: `sessionctl`'s protocol, the keeper of the list, what it changed on disk.
//! It is never on the request path.
#![forbid(unsafe_code)]

mod changes;
mod connection;
pub mod ctl;
pub(crate) mod keeper;
pub(crate) mod metrics;
pub(crate) mod overlay;
mod protocol;
pub(crate) mod server;
pub(crate) mod sides;
pub(crate) mod socket;

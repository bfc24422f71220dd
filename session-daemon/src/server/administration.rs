//! What an administrator asks of a server, beside requests and statistics. It owns the interface
//! between a connection and the server behind it; the default is a server that takes none of it.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::clock::Now;
use crate::command::admin::{Admin, AdminOutcome, DumpKind};
use crate::command::request::Request;
use crate::protocol::text::admin as words;
use crate::server::buffers::Output;
use crate::server::connection::Turn;
use crate::server::dump::Dump;
use crate::server::watchers::Watching;
use crate::store::Worker;

/// What an administrator asks of a server.
pub trait Administration {
    /// Whether commands that change the server are refused on this connection.
    fn is_confined(&self) -> bool {
        false
    }

    /// Does what a command asks.
    fn administer(&self, _: Admin<'_>, _: &mut Worker, _: Now) -> AdminOutcome {
        AdminOutcome::Error
    }

    /// Begins to list something, and appends what comes first.
    ///
    /// # Errors
    /// The answer, when the list is not allowed or empty.
    fn begin_dump(&self, _: DumpKind, _: &mut Vec<u8>) -> Result<Dump, AdminOutcome> {
        Err(AdminOutcome::Error)
    }

    /// Appends a bounded piece of a list; false when that was the last.
    fn dump(&self, _: &mut Dump, _: &Worker, _: Now, _: &mut Vec<u8>) -> bool {
        false
    }

    /// Begins to collect events of these kinds.
    ///
    /// # Errors
    /// The answer, when that is not allowed or too many watch.
    fn watch(&self, _: u32) -> Result<Watching, AdminOutcome> {
        Err(AdminOutcome::WatchNotAllowed)
    }
}

/// Whether a request changes the server, not an item.
#[must_use]
pub fn is_administration(request: &Request<'_>) -> bool {
    matches!(
        request,
        Request::FlushAll { .. }
            | Request::Verbosity { .. }
            | Request::StatsReset
            | Request::Shutdown(_)
    )
}

/// Does an administration command, where it may be asked, and answers it.
pub fn administer(admin: Admin<'_>, noreply: bool, output: &mut Output, turn: &mut Turn<'_>) {
    let outcome = if turn.services.is_confined() {
        AdminOutcome::Confined
    } else {
        turn.services.administer(admin, turn.executor.store, turn.executor.now)
    };
    if !noreply {
        output.tail(turn.pool).extend_from_slice(words::words(outcome));
    }
}

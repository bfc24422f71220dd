//! How a connection ends that is closed for what its client sent. A close with unread bytes is a
//! reset, which can overtake the answers and the error that says why; so the client hears the end
//! of the answers first, and what it still sends is passed over, within bounds.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::client::Presence;
use crate::server::connection::Connection;
use crate::server::stream::Stream;
use std::io;
use std::time::Duration;

/// Bytes that are passed over at most: a value of four times the usual limit.
pub const FAREWELL_LEN_MAX: usize = 4 << 20;

/// How long a client has to take notice.
pub const FAREWELL_TIME_MAX: Duration = Duration::from_secs(2);

/// Whether the client was told something and may be sending still: its bytes made no sense, or
/// there was no memory for them.
#[must_use]
pub fn is_due(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::OutOfMemory)
}

/// Ends the answers, and waits within bounds until the client ends too.
pub async fn say(presence: &Presence, connection: &mut Connection, stream: &mut impl Stream) {
    stream.finish();
    pass_over(async || {
        connection.pass_over(&mut presence.local.pool.borrow_mut());
        stream.exchange(connection, presence).await
    })
    .await;
}

/// Receives until the client ends, at most [`FAREWELL_LEN_MAX`] bytes and [`FAREWELL_TIME_MAX`].
pub async fn pass_over(mut receive: impl AsyncFnMut() -> io::Result<usize>) {
    let over = async {
        let mut len = 0_usize;
        while len < FAREWELL_LEN_MAX {
            match receive().await {
                Ok(0) | Err(_) => return,
                Ok(more) => len = len.saturating_add(more),
            }
        }
    };
    // Whether or not the client has ended by then, the connection does.
    let _ = tokio::time::timeout(FAREWELL_TIME_MAX, over).await;
}

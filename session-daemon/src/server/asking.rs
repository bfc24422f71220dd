//! Commands of one line that `sessionctl` hands in: asked on a worker as a client would ask them,
//! with the right to steer the server. It owns the bounds of such an answer.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::binding::Binding;
use crate::server::connection::{Connection, Step};
use crate::server::socket::yield_turn;
use crate::server::worker::Local;
use std::rc::Rc;
use std::sync::mpsc;

/// Longest line that is asked.
pub const LINE_LEN_MAX: usize = 1024;

/// Longest answer; what is longer ends within a line that says so.
const ANSWER_LEN_MAX: usize = 4 << 20;

/// Asks a line that has no line's end yet, and sends the answer.
pub async fn ask(local: Rc<Local>, line: Vec<u8>, reply: mpsc::Sender<Vec<u8>>) {
    let mut connection = Connection::new(Binding::Ascii);
    let mut answer = Vec::new();
    let space_len = {
        let space = connection.space(&mut local.pool.borrow_mut());
        let bytes = line.iter().take(LINE_LEN_MAX).chain(b"\r\n");
        space.iter_mut().zip(bytes).map(|(place, byte)| *place = *byte).count()
    };
    connection.filled(space_len);
    loop {
        let step = local.drive_trusted(&mut connection);
        answer.extend_from_slice(connection.output());
        connection.sent(connection.output().len(), &mut local.pool.borrow_mut());
        if answer.len() > ANSWER_LEN_MAX {
            answer.truncate(ANSWER_LEN_MAX);
            answer.extend_from_slice(b"\r\nSERVER_ERROR the rest of the answer is left out\r\n");
            break;
        }
        match step {
            // What waits for more will not get it; events are told to clients only.
            Step::Read | Step::Close | Step::Watch => break,
            Step::Write | Step::Yield => yield_turn().await,
        }
    }
    connection.rest(&mut local.pool.borrow_mut());
    // Whoever asked may have given up.
    let _ = reply.send(answer);
}

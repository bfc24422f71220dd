//! Requests that carry no value and are no fetch: done and answered in the words of the classic
//! protocol. It owns what the store cannot answer itself; it never looks at the input.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::execute::Answer;
use crate::command::request::{Outcome, Request};
use crate::protocol::text::encode;
use crate::server::administration::is_administration;
use crate::server::buffers::Output;
use crate::server::connection::Turn;

/// Does a request, where it may be asked, and answers it.
pub fn answer(request: Request<'_>, noreply: bool, output: &mut Output, turn: &mut Turn<'_>) {
    if is_administration(&request) && turn.services.is_confined() {
        if !noreply {
            encode::outcome(output.tail(turn.pool), Outcome::Confined);
        }
        return;
    }
    let outcome = match turn.executor.execute(request) {
        Answer::Line(outcome) => outcome,
        Answer::Verbosity(level) => {
            turn.services.verbosity(level);
            Outcome::Ok
        }
        Answer::StatsReset => {
            turn.services.stats_reset();
            Outcome::Reset
        }
        Answer::Stats(topic) => {
            let out = output.tail(turn.pool);
            turn.services.stats(topic, &mut |name, value| encode::stat(out, name, value));
            return encode::end(out);
        }
        Answer::Shutdown(mode) if !turn.services.shutdown(mode) => Outcome::ShutdownNotEnabled,
        Answer::Shutdown(Some(_)) => return,
        Answer::Shutdown(None) => Outcome::BadShutdownMode,
    };
    if !noreply {
        encode::outcome(output.tail(turn.pool), outcome);
    }
}

//! A conversation that leaves this process, or comes from another one: what of it can be told.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::binary;
use crate::server::buffers::Pool;
use crate::server::connection::{Connection, State};
use crate::server::talk::Talk;

impl Connection {
    /// Whether a request or an answer is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let between = self.is_between() || matches!(self.state, State::Watch(_));
        !between || !self.input.waiting().is_empty() || !self.output.is_empty()
    }

    /// Whether nothing has come that is not answered.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.is_between() && self.input.waiting().is_empty()
    }

    /// Whether no request has begun.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.state, State::Line | State::Fresh)
            || matches!(&self.state, State::Binary(conversation) if !conversation.is_busy())
    }

    /// What another process has to know to go on with it; none in the middle of a value, of an
    /// answer or of a login.
    #[must_use]
    pub fn talk(&mut self) -> Option<Talk> {
        let binary = match &self.state {
            State::Fresh => None,
            State::Line => Some(false),
            State::Binary(conversation) if !conversation.is_busy() => Some(true),
            _ => return None,
        };
        // Nothing of it may be in a store that is left.
        self.output.settle();
        let (unread, unsent) = (self.input.waiting().to_vec(), self.output.waiting().to_vec());
        Some(Talk { binary, known: self.lock.known()?, unread, unsent })
    }

    /// Takes back answers that were given away to be sent.
    pub fn take_back(&mut self, unsent: &[u8], pool: &mut Pool) {
        self.output.tail(pool).extend_from_slice(unsent);
    }

    /// Goes on with what another process has begun.
    pub fn go_on_with(&mut self, talk: &Talk, pool: &mut Pool) {
        match talk.binary {
            None => {}
            Some(false) => self.state = State::Line,
            Some(true) => self.state = State::Binary(binary::Conversation::default()),
        }
        if talk.known {
            self.lock.open();
        }
        let space = self.input.space(pool);
        let len = space.len().min(talk.unread.len());
        if let (Some(space), Some(unread)) = (space.get_mut(..len), talk.unread.get(..len)) {
            space.copy_from_slice(unread);
        }
        self.input.filled(len);
        self.take_back(&talk.unsent, pool);
    }
}

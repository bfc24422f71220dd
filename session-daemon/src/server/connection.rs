//! One client's conversation: bytes in, bytes out, no socket. It owns what is half-received and
//! what is not yet sent; it decides, and leaves reading words to `protocol` and doing to `command`.
//!
//! ```text
//!            a line                    its value is not all here
//!   Line ------------> answer, Line ------------------------------> Value --> answer, Line
//!    |  a key list                a rejected line with a value
//!    +------------> Keys --> Line ------------------------------> Swallow --> Line
//! ```
//! That is text; a connection that begins in binary is a [`binary::Conversation`] to its end.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

// Where it stands is said because another crate takes this file by its path.
#[path = "connection/parking.rs"]
mod parking;
use crate::command::admin::{AdminOutcome, DumpKind};
use crate::command::execute::Executor;
use crate::command::observe::Event;
use crate::command::request::{Shutdown, StatsTopic};
use crate::protocol::binary::REQUEST_MAGIC;
use crate::protocol::meta::parse::Verb;
use crate::protocol::text::parse::{After, Line, LineError};
use crate::protocol::text::{CRLF, LINE_LEN_MAX, admin, encode, parse};
use crate::server::administration::{Administration, administer};
use crate::server::binding::Binding;
use crate::server::buffers::{Input, Output, Pool, Wire};
use crate::server::dump::Dump;
use crate::server::fetch::{self, List};
use crate::server::incoming::{Incoming, Swallow};
use crate::server::login::{self, Lock, Login};
use crate::server::reply::{KeptReply, Reply};
use crate::server::requests::answer;
use crate::server::values::{Begun, begin_meta_value, begin_value, count_request};
use crate::server::watchers::{Filled, Watching};
use crate::server::{binary, meta};
use memchr::memchr;
use std::io::{self, IoSlice};

/// What the server answers itself.
pub trait Services: Administration {
    /// Hands over each statistic of a topic: its name and its value.
    fn stats(&self, topic: StatsTopic, take: &mut dyn FnMut(&str, &str));
    /// Zeroes the counters.
    fn stats_reset(&self);
    /// Sets the log level, 0 to 3.
    fn verbosity(&self, level: u32);
    /// Whether this is a user and its password; counted.
    fn authenticate(&self, user: &[u8], password: &[u8]) -> bool;
    /// Asks the process to end, if there is such a way; false when that is switched off.
    fn shutdown(&self, shutdown: Option<Shutdown>) -> bool;
}

/// What a connection works with during one turn.
pub struct Turn<'a> {
    /// The store, the counters and the time.
    pub executor: Executor<'a>,
    /// Spare buffers.
    pub pool: &'a mut Pool,
    /// What the server answers itself.
    pub services: &'a dyn Services,
    /// Requests after which the connection gives way (`-R`).
    pub requests_left: u32,
    /// Where large values may be sent from the store; none where answers must stay together.
    pub wire: Option<&'a dyn Wire>,
}

/// What a connection needs next. Whatever [`Connection::output`] holds is to be sent first,
/// except before [`Step::Yield`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes.
    Read,
    /// Its answers sent, before it looks at further requests.
    Write,
    /// Another turn, after the others had theirs.
    Yield,
    /// An event to tell, or the client's end; what the client sends meanwhile is passed over.
    Watch,
    /// To be closed.
    Close,
}

#[derive(Debug)]
enum State {
    Line,
    Keys(List),
    Value(KeptReply, Box<Incoming>),
    Swallow(Swallow),
    /// A list is sent piece by piece.
    Dump(Box<Dump>),
    /// Events are sent until the client closes.
    Watch(Watching),
    /// No byte has been looked at, and the first decides.
    Fresh,
    Binary(binary::Conversation),
    Closing,
}

/// What one look at the input led to.
enum Progress {
    More,
    Wait,
}

/// One client's conversation.
#[derive(Debug)]
pub struct Connection {
    binding: Binding,
    lock: Lock,
    state: State,
    input: Input,
    output: Output,
    /// Bytes that have come since this was asked last.
    received_len: usize,
    /// It is closed for what the client sent.
    wrong: bool,
}

impl Connection {
    /// A conversation in which nothing has been said.
    #[must_use]
    pub fn new(binding: Binding) -> Self {
        let state = first_state(binding);
        let (lock, input, output) = <(Lock, Input, Output)>::default();
        Self { binding, lock, state, input, output, received_len: 0, wrong: false }
    }

    /// The same for a client that has to say who it is before anything else.
    #[must_use]
    pub fn with_login(self, login: Login) -> Self {
        Self { lock: Lock::new(login), ..self }
    }

    /// Room for bytes from the client.
    pub fn space(&mut self, pool: &mut Pool) -> &mut [u8] {
        self.input.space(pool)
    }

    /// Says that `len` bytes were read into [`Connection::space`].
    pub fn filled(&mut self, len: usize) {
        self.input.filled(len);
        self.received_len = self.received_len.saturating_add(len);
    }

    /// Bytes that have come since this was called last.
    pub fn take_received_len(&mut self) -> usize {
        std::mem::take(&mut self.received_len)
    }

    /// Why it is closed, after [`Step::Close`].
    ///
    /// # Errors
    /// When it is for what the client sent.
    pub fn end(&self) -> io::Result<()> {
        if self.wrong { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }

    /// Gives away all bytes for the client: the memory, and the index from which they stand.
    pub fn take_output(&mut self) -> (Vec<u8>, usize) {
        if let State::Keys(list) = &mut self.state {
            list.values_sent();
        }
        self.output.take()
    }

    /// Gives pooled memory back before a wait.
    pub fn rest(&mut self, pool: &mut Pool) {
        self.input.rest(pool);
    }

    /// Gives pooled memory back while others have their turn, where that is cheap.
    pub fn give_way(&mut self, pool: &mut Pool) {
        self.input.give_way(pool);
    }

    /// Forgets what was said, for a client that says everything anew.
    pub fn begin_anew(&mut self, pool: &mut Pool) {
        self.state = first_state(self.binding);
        self.wrong = false;
        self.input.clear(pool);
        self.output.clear(pool);
    }

    /// Forgets what was said, and looks at nothing that comes.
    pub fn pass_over(&mut self, pool: &mut Pool) {
        self.state = State::Closing;
        self.input.clear(pool);
        self.output.clear(pool);
        // Nothing is kept meanwhile, not even room.
        (self.input, self.output) = Default::default();
    }

    /// Bytes of memory that it keeps besides its own few: none between two requests.
    #[must_use]
    pub fn kept_len(&self) -> usize {
        self.input.capacity().saturating_add(self.output.capacity())
    }

    /// Bytes for the client, as far as they stand in one place; empty when there are none.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.waiting()
    }

    /// All bytes for the client in their order, as far as `parts` has room; how many places they
    /// take.
    pub fn output_parts<'a>(&'a self, parts: &mut [IoSlice<'a>]) -> usize {
        self.output.parts(parts)
    }

    /// Whether a part of a value for the client is still in the store, where it should not stay
    /// for long.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.output.is_pinned()
    }

    /// Copies what is still in the store.
    pub fn settle(&mut self) {
        self.output.settle();
    }

    /// Says that `len` bytes of [`Connection::output_parts`] were sent.
    pub fn sent(&mut self, len: usize, pool: &mut Pool) {
        self.output.sent(len, pool);
        if let State::Keys(list) = &mut self.state {
            list.values_sent();
        }
    }

    /// Answers what can be answered with the bytes at hand.
    pub fn drive(&mut self, turn: &mut Turn<'_>) -> Step {
        loop {
            if matches!(self.state, State::Closing) {
                return Step::Close;
            }
            if self.output.is_full() {
                return Step::Write;
            }
            match self.beside_the_input(turn) {
                Some(Step::Read) => continue,
                Some(step) => return step,
                None => {}
            }
            if self.input.waiting().is_empty() {
                return Step::Read;
            }
            if turn.requests_left == 0 {
                return Step::Yield;
            }
            // Whether what comes next says who the client is, and is nothing else.
            if self.is_between() && self.lock.concerns(self.input.waiting()) {
                match self.unlock(turn) {
                    Progress::More => continue,
                    Progress::Wait => return Step::Read,
                }
            }
            let progress = match &mut self.state {
                State::Line | State::Keys(_) => self.line(turn),
                State::Value(..) => self.value(turn),
                State::Swallow(_) => self.swallow(),
                State::Fresh => self.first_byte(),
                State::Binary(conversation) => {
                    match conversation.step(&mut self.input, &mut self.output, turn) {
                        binary::Progress::More => Progress::More,
                        binary::Progress::Wait => Progress::Wait,
                        binary::Progress::Leave => self.enter(State::Closing),
                        binary::Progress::Close => self.close(),
                    }
                }
                State::Dump(_) | State::Watch(_) | State::Closing => Progress::More,
            };
            if matches!(progress, Progress::Wait) {
                return Step::Read;
            }
        }
    }

    fn unlock(&mut self, turn: &mut Turn<'_>) -> Progress {
        match self.lock.hear(&mut self.input, &mut self.output, turn) {
            login::Heard::More => Progress::More,
            login::Heard::Wait => Progress::Wait,
            login::Heard::Close => self.close(),
            login::Heard::PassOver(len) => {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                self.enter(State::Binary(binary::Conversation::Swallow(len)))
            }
        }
    }

    /// Goes on with what does not wait for the client: a list, or events. `Step::Read` when the
    /// list is over.
    fn beside_the_input(&mut self, turn: &mut Turn<'_>) -> Option<Step> {
        match &mut self.state {
            State::Dump(dump) => {
                let (store, now) = (&*turn.executor.store, turn.executor.now);
                let out = self.output.tail(turn.pool);
                if turn.services.dump(dump, store, now, out) {
                    return Some(if self.output.is_full() { Step::Write } else { Step::Yield });
                }
                self.state = State::Line;
                Some(Step::Read)
            }
            State::Watch(watching) => {
                self.input.consume(usize::MAX);
                watching.take(self.output.tail(turn.pool));
                Some(if self.output.is_empty() { Step::Watch } else { Step::Write })
            }
            _ => None,
        }
    }

    /// Tells when there are events for a connection that watches.
    #[must_use]
    pub fn events(&self) -> Option<Filled> {
        match &self.state {
            State::Watch(watching) => Some(watching.filled()),
            _ => None,
        }
    }

    /// Which protocol is spoken from here on.
    fn first_byte(&mut self) -> Progress {
        match self.input.waiting().first() {
            None => Progress::Wait,
            Some(&REQUEST_MAGIC) => self.enter(State::Binary(binary::Conversation::default())),
            Some(_) => self.enter(State::Line),
        }
    }

    /// At the start of a line, or within a key list.
    fn line(&mut self, turn: &mut Turn<'_>) -> Progress {
        let waiting = self.input.waiting();
        let open = if let State::Keys(list) = &self.state { Some(*list) } else { None };
        if open.is_none() && waiting.first() == Some(&b'm') {
            let done = meta::lookups(waiting, &mut self.output, turn);
            self.input.consume(done);
            return if done > 0 { Progress::More } else { self.request(turn) };
        }
        match fetch::run(waiting, open, &mut self.output, turn) {
            fetch::Progress::Next(done, list) => {
                self.input.consume(done);
                self.state = list.map_or(State::Line, State::Keys);
                Progress::More
            }
            fetch::Progress::Wait if open.is_none() && waiting.len() >= LINE_LEN_MAX => {
                self.close()
            }
            fetch::Progress::Wait => Progress::Wait,
            fetch::Progress::Endless => {
                encode::error(self.output.tail(turn.pool), LineError::BadFormat);
                self.close()
            }
            fetch::Progress::Other => self.request(turn),
        }
    }

    fn request(&mut self, turn: &mut Turn<'_>) -> Progress {
        let waiting = self.input.waiting();
        let window = waiting.get(..LINE_LEN_MAX).unwrap_or(waiting);
        let Some((line, line_len)) =
            memchr(b'\n', window).and_then(|end| Some((window.get(..end)?, end.saturating_add(1))))
        else {
            return if waiting.len() < LINE_LEN_MAX { Progress::Wait } else { self.close() };
        };
        turn.executor.note(&Event::Command(line.strip_suffix(b"\r").unwrap_or(line)));
        let behind = waiting.get(line_len..).unwrap_or_default();
        let line = parse::line(line);
        if let Line::Store { store, value_len, noreply } = line {
            let reply = Reply::Text { noreply };
            let begun = begin_value(&store, value_len, reply, behind, &mut self.output, turn);
            return self.value_begun(begun, line_len, turn);
        }
        if let Line::Meta(Verb::Set, words) = line {
            return match begin_meta_value(words, behind, &mut self.output, turn) {
                Ok(begun) => self.value_begun(begun, line_len, turn),
                Err(after) => self.go_on(after, line_len),
            };
        }
        turn.requests_left = turn.requests_left.saturating_sub(1);
        let after = match line {
            Line::Request { request, noreply } => {
                answer(request, noreply, &mut self.output, turn);
                After::NextLine
            }
            Line::Rejected { error, after, noreply } => {
                // A connection that ends says why, whatever the line said about replies.
                if !noreply || after == After::Close {
                    encode::error(self.output.tail(turn.pool), error);
                }
                after
            }
            Line::Meta(verb, words) => {
                meta::answer(verb, words, &mut self.output, turn);
                After::NextLine
            }
            Line::Admin { admin, noreply } => {
                administer(admin, noreply, &mut self.output, turn);
                After::NextLine
            }
            Line::Dump(kind) => return self.dump(kind, line_len, turn),
            Line::Watch(kinds) => return self.watch(kinds, line_len, turn),
            Line::Quit => return self.enter(State::Closing),
            Line::Store { .. } | Line::HangUp => After::Close,
        };
        self.go_on(after, line_len)
    }

    /// Behind a line that is done.
    fn go_on(&mut self, after: After, line_len: usize) -> Progress {
        self.input.consume(line_len);
        match after {
            After::NextLine => Progress::More,
            After::Swallow(value_len) => self.enter(State::Swallow(Swallow::new(value_len))),
            After::Close => self.close(),
        }
    }

    fn dump(&mut self, kind: DumpKind, line_len: usize, turn: &mut Turn<'_>) -> Progress {
        self.input.consume(line_len);
        let behind_others = !self.output.is_empty();
        let out = self.output.tail(turn.pool);
        let refused = behind_others.then(|| kind.behind_others()).flatten();
        match refused.map_or_else(|| turn.services.begin_dump(kind, out), Err) {
            Ok(dump) => self.enter(State::Dump(Box::new(dump))),
            Err(outcome) => {
                out.extend_from_slice(admin::words(outcome));
                Progress::More
            }
        }
    }

    fn watch(&mut self, kinds: u32, line_len: usize, turn: &mut Turn<'_>) -> Progress {
        self.input.consume(line_len);
        let watching = turn.services.watch(kinds);
        let outcome = watching.as_ref().err().copied().unwrap_or(AdminOutcome::Ok);
        self.output.tail(turn.pool).extend_from_slice(admin::words(outcome));
        match watching {
            Ok(watching) => self.enter(State::Watch(watching)),
            Err(_) => Progress::More,
        }
    }

    fn value_begun(&mut self, begun: Begun, line_len: usize, turn: &mut Turn<'_>) -> Progress {
        if !matches!(begun, Begun::Wait) {
            self.input.consume(line_len);
        }
        match begun {
            Begun::Wait => Progress::Wait,
            Begun::Here { value_len } => {
                self.input.consume(value_len.saturating_add(CRLF.len()));
                Progress::More
            }
            Begun::Pieces(reply, incoming) => self.enter(State::Value(reply, incoming)),
            Begun::Refused { value_len } => self.enter(State::Swallow(Swallow::new(value_len))),
            Begun::BadEnd => self.bad_data(turn),
        }
    }

    /// Within a value that goes to the store in pieces.
    fn value(&mut self, turn: &mut Turn<'_>) -> Progress {
        let State::Value(reply, incoming) = &mut self.state else { return Progress::More };
        let waiting = self.input.waiting();
        let left_len = incoming.missing();
        let taken_len = waiting.len().min(left_len);
        let piece = waiting.get(..taken_len).unwrap_or_default();
        if let Err(outcome) = incoming.write(piece, &mut turn.executor) {
            count_request(turn);
            reply.write(self.output.tail(turn.pool), outcome.into());
            return self.enter(State::Swallow(Swallow::new(left_len as u64)));
        }
        if incoming.missing() > 0 {
            self.input.consume(taken_len);
            return Progress::Wait;
        }
        match waiting.get(taken_len..).unwrap_or_default() {
            [b'\r', b'\n', ..] => {}
            [] | [b'\r'] => {
                self.input.consume(taken_len);
                return Progress::Wait;
            }
            _ => return self.bad_data(turn),
        }
        self.input.consume(taken_len.saturating_add(CRLF.len()));
        if let State::Value(reply, incoming) = std::mem::replace(&mut self.state, State::Line) {
            let versioned = incoming.finish(&mut turn.executor);
            count_request(turn);
            reply.write(self.output.tail(turn.pool), versioned);
        }
        Progress::More
    }

    /// Within the value of a storage line that was rejected.
    fn swallow(&mut self) -> Progress {
        let State::Swallow(swallow) = &mut self.state else { return Progress::More };
        let consumed_len = swallow.take(self.input.waiting());
        let state = (swallow.is_done(), swallow.is_bad());
        self.input.consume(consumed_len);
        match state {
            // The value did not end where its line said, so the next line may be part of it.
            (_, true) => self.close(),
            (true, false) => self.enter(State::Line),
            (false, false) => Progress::Wait,
        }
    }

    /// What follows cannot be told from the value, and must not be run as commands.
    fn bad_data(&mut self, turn: &mut Turn<'_>) -> Progress {
        encode::error(self.output.tail(turn.pool), LineError::BadData);
        self.close()
    }

    fn close(&mut self) -> Progress {
        self.wrong = true;
        self.enter(State::Closing)
    }

    fn enter(&mut self, state: State) -> Progress {
        self.state = state;
        Progress::More
    }
}

fn first_state(binding: Binding) -> State {
    match binding {
        Binding::Auto => State::Fresh,
        Binding::Ascii => State::Line,
        Binding::Binary => State::Binary(binary::Conversation::default()),
    }
}

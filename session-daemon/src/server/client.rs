//! One client's task: read, drive, write, and again. It owns the order of the three; what they
//! mean is the business of `connection`.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::command::counters::Counter;
use crate::protocol::text::encode::NO_MEMORY_FOR_REQUEST;
use crate::server::buffers::Wire;
use crate::server::connection::{Connection, Step};
use crate::server::farewell;
use crate::server::handover::{Parked, Told};
use crate::server::listener::{Accepted, Past};
use crate::server::mixed::MixedStream;
use crate::server::observing;
use crate::server::placement::{self, STAYS_FROM};
use crate::server::shared::{Activity, ConnectionInfo};
use crate::server::socket::{ReadInto, Socket, read_now, yield_turn};
use crate::server::stream::Stream;
use crate::server::talk::Talk;
use crate::server::tls::{Verify, session};
use crate::server::worker::Local;
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long a client that reads slowly may keep a value in the store.
const PINNED_TIME_MAX: Duration = Duration::from_secs(1);

/// Pieces of a value that are handed to the kernel at once.
const PARTS_MAX: usize = 32;

/// Begins to serve a connection that has its place and counts in this worker's load.
pub fn begin(local: &Rc<Local>, accepted: Accepted) {
    let now = local.now();
    let stays = accepted.stays();
    let Accepted { fd, peer, listener, tls, past } = accepted;
    let id = local.shared.next_id();
    let info = Arc::new(ConnectionInfo::new(id, fd.as_raw_fd(), peer, listener, now));
    local.seat().connections().insert(id, Arc::clone(&info));
    let talk = match past {
        // Whoever watches has heard of it.
        Past::Worker(talk) => Some(talk),
        past => {
            observing::opened(&local.shared, &info.peer, info.fd, now);
            if let Past::Process(talk) = past { Some(talk) } else { None }
        }
    };
    let presence = Presence::new(local, &info, stays);
    // A list that changed while the connection changed hands is minded here.
    if !local.shared.admits(&info.peer, now) {
        info.reset();
    }
    let mut newcomer = Newcomer { fd: Some(fd), talk, tls, presence };
    let task = tokio::task::spawn_local(async move {
        let (fd, talk) = (newcomer.fd.take(), newcomer.talk.take());
        let presence = &newcomer.presence;
        let served = match (fd, newcomer.tls) {
            (None, _) => Ok(()),
            (Some(fd), None) => serve(presence, fd, talk.as_deref()).await,
            // On the heap, or every plain connection would have room for it too.
            (Some(fd), Some(verify)) => Box::pin(session::serve(presence, fd, verify)).await,
        };
        presence.ended.set(if served.is_ok() { "normal" } else { "error" });
        if let Err(error) = served {
            log::debug!("{}: {error}", presence.info.peer.notation(None));
        }
    });
    let abort = task.abort_handle();
    if info.is_reset() {
        abort.abort();
    }
    info.served_by(abort);
}

/// Counts the connection while it is there.
pub struct Presence {
    /// The worker that serves it.
    pub local: Rc<Local>,
    /// What others see of it.
    pub info: Arc<ConnectionInfo>,
    /// Bytes that it keeps while it waits, counted among those of all connections.
    held: Cell<usize>,
    /// Why it ends, in memcached's words: when nothing else is said, the server ended it.
    ended: Cell<&'static str>,
    /// Whether it counts as one that stays.
    stays: Cell<bool>,
    /// Whether another worker goes on with it.
    left: Cell<bool>,
}

impl Presence {
    fn new(local: &Rc<Local>, info: &Arc<ConnectionInfo>, stays: bool) -> Self {
        Self {
            local: Rc::clone(local),
            info: Arc::clone(info),
            held: Cell::new(0),
            ended: Cell::new("shutdown"),
            stays: Cell::new(stays),
            left: Cell::new(false),
        }
    }

    /// From here on it counts as one that stays with this worker.
    pub fn stays(&self) {
        if !self.stays.replace(true) {
            // Relaxed, here as below: a hint for whoever deals connections out.
            self.local.seat().staying.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether it counts as one that stays.
    #[must_use]
    pub fn has_settled(&self) -> bool {
        self.stays.get()
    }

    /// It ends here alone: another worker has its place.
    pub fn leaves(&self) {
        self.left.set(true);
    }

    /// Counts `len` bytes as kept for a wait; false when all connections together keep too many.
    pub fn hold(&self, len: usize) -> bool {
        let before = self.held.replace(0);
        self.local.shared.release(before);
        let held = len == 0 || self.local.shared.hold(len);
        if held {
            self.held.set(len);
        }
        held
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.hold(0);
        let Self { local, info, ended, .. } = &*self;
        local.seat().connections().remove(&info.id);
        let seat = local.seat();
        seat.load.fetch_sub(1, Ordering::Relaxed);
        seat.staying.fetch_sub(usize::from(self.stays.get()), Ordering::Relaxed);
        if self.left.get() {
            return;
        }
        let reason = if info.is_idle_closed() { "idle_timeout" } else { ended.get() };
        observing::closed(&local.shared, &info.peer, info.fd, reason, local.now());
        local.shared.give_place();
    }
}

/// A connection whose task has not had its first turn.
struct Newcomer {
    fd: Option<OwnedFd>,
    talk: Option<Box<Talk>>,
    tls: Option<Verify>,
    presence: Presence,
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let Presence { local, info, .. } = &self.presence;
        let Some(fd) = self.fd.take().filter(|_| self.tls.is_none()) else { return };
        if local.is_handing_over() && !info.is_reset() {
            let talk = self.talk.take().map(|talk| *talk).unwrap_or_default();
            let told = Told { listener: info.listener.to_string(), talk };
            local.park(Some(Parked { fd, told }));
        }
    }
}

/// A plain connection while its task lives.
struct Client<'a, S: Stream> {
    connection: Connection,
    stream: S,
    presence: &'a Presence,
}

impl<S: Stream> Drop for Client<'_, S> {
    fn drop(&mut self) {
        let Presence { local, info, .. } = self.presence;
        if local.is_handing_over() {
            let fd = self.stream.leave(&mut self.connection);
            local.park(fd.and_then(|fd| Parked::new(fd, info, &mut self.connection)));
        }
        self.connection.pass_over(&mut local.pool.borrow_mut());
    }
}

async fn serve(presence: &Presence, fd: OwnedFd, talk: Option<&Talk>) -> io::Result<()> {
    let local = &presence.local;
    let mut connection =
        Connection::new(local.shared.config.binding).with_login(local.shared.config.login);
    if let Some(talk) = talk {
        connection.go_on_with(talk, &mut local.pool.borrow_mut());
    } else {
        // A client that speaks at once has done so by now: its first request is read before the
        // engine is told of the socket, which saves a wait.
        let read = read_now(&fd, connection.space(&mut local.pool.borrow_mut()));
        match read {
            Ok(len @ 1..) => received(&mut connection, local, len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            over => {
                connection.pass_over(&mut local.pool.borrow_mut());
                return over.map(drop);
            }
        }
    }
    if local.reactor.is_some() {
        converse(presence, connection, MixedStream::new(fd, presence)?).await
    } else {
        converse(presence, connection, TokioStream::new(fd, presence)?).await
    }
}

/// Serves the connection to its end over whatever moves its bytes.
async fn converse(
    presence: &Presence,
    connection: Connection,
    stream: impl Stream,
) -> io::Result<()> {
    let mut client = Client { connection, stream, presence };
    let Client { connection, stream, .. } = &mut client;
    loop {
        match drive(presence, connection, stream).await {
            Ok(End::Over) => return Ok(()),
            Ok(End::Leaves(seat_idx)) => {
                if placement::move_to(seat_idx, presence, connection, stream) {
                    return Ok(());
                }
            }
            Err(error) => {
                if farewell::is_due(&error) {
                    farewell::say(presence, connection, stream).await;
                }
                return Err(error);
            }
        }
    }
}

/// How a conversation ends that nothing is wrong with.
enum End {
    /// Nobody goes on with it.
    Over,
    /// The worker of that seat goes on with it.
    Leaves(usize),
}

async fn drive(
    presence: &Presence,
    connection: &mut Connection,
    stream: &mut impl Stream,
) -> io::Result<End> {
    let Presence { local, info, .. } = presence;
    let (mut spoke_in, mut reads) = (None, 0_u32);
    loop {
        match local.drive(connection, info, Some(stream.wire())) {
            Step::Yield => {
                local.counters().add_one(Counter::ConnYields);
                connection.give_way(&mut local.pool.borrow_mut());
                yield_turn().await;
            }
            Step::Write => stream.flush(connection, presence).await?,
            Step::Read => {
                reads = reads.saturating_add(1);
                if local.is_handing_over() && connection.is_waiting() {
                    stream.flush(connection, presence).await?;
                    return Ok(End::Over);
                }
                if reads > STAYS_FROM
                    && let Some(seat_idx) = settle(presence, connection, stream).await?
                {
                    return Ok(End::Leaves(seat_idx));
                }
                match stream.exchange(connection, presence).await? {
                    0 => return Ok(End::Over),
                    len => {
                        local.speaks(&mut spoke_in);
                        info.doing(Activity::Parse, true);
                        local.counters().add(Counter::BytesRead, len as u64);
                    }
                }
            }
            Step::Watch => {
                info.doing(Activity::Watch, false);
                let filled = connection.events();
                let event = async {
                    if let Some(filled) = &filled {
                        filled.wait().await;
                    }
                };
                tokio::select! {
                    len = stream.exchange(connection, presence) => match len? {
                        0 => return Ok(End::Over),
                        len => local.counters().add(Counter::BytesRead, len as u64),
                    },
                    () = event => {}
                }
            }
            Step::Close => {
                stream.flush_last(connection, presence).await?;
                connection.end()?;
                return Ok(End::Over);
            }
        }
    }
}

/// Decides between two requests, once, where a connection that stays is served from now on. None:
/// here, or nothing is decided yet.
async fn settle(
    presence: &Presence,
    connection: &mut Connection,
    stream: &mut impl Stream,
) -> io::Result<Option<usize>> {
    if presence.has_settled() || !connection.is_waiting() {
        return Ok(None);
    }
    stream.flush(connection, presence).await?;
    Ok(placement::settle(presence))
}

fn received(connection: &mut Connection, local: &Local, len: usize) {
    local.speaks(&mut None);
    local.counters().add(Counter::BytesRead, len as u64);
    connection.filled(len);
}

/// A client's socket under tokio.
pub struct TokioStream {
    socket: Socket,
    local: Rc<Local>,
}

impl TokioStream {
    /// Hands the descriptor to the reactor of this thread.
    ///
    /// # Errors
    /// When the reactor cannot take it.
    pub fn new(fd: OwnedFd, presence: &Presence) -> io::Result<Self> {
        let socket = Socket::new(fd, Arc::clone(&presence.info))?;
        Ok(Self { socket, local: Rc::clone(&presence.local) })
    }

    /// Gives the socket up, for another engine to go on with.
    pub fn take(&mut self) -> Option<OwnedFd> {
        self.socket.take()
    }
}

impl Stream for TokioStream {
    fn leave(&mut self, _: &mut Connection) -> Option<OwnedFd> {
        self.take()
    }

    fn wire(&self) -> &dyn Wire {
        self
    }

    async fn flush(&mut self, connection: &mut Connection, presence: &Presence) -> io::Result<()> {
        let local = &presence.local;
        let mut pinned_left = PINNED_TIME_MAX;
        while !connection.output().is_empty() {
            if let Some(len) = write_now(connection, &self.socket)? {
                local.counters().add(Counter::BytesWritten, len as u64);
                connection.sent(len, &mut local.pool.borrow_mut());
                continue;
            }
            connection.rest(&mut local.pool.borrow_mut());
            let socket = &mut self.socket;
            if connection.is_pinned() {
                wait_pinned(connection, socket, presence, &mut pinned_left).await?;
            } else {
                wait_until_writable(socket, presence, connection.kept_len()).await?;
            }
        }
        presence.hold(0);
        Ok(())
    }

    async fn flush_last(
        &mut self,
        connection: &mut Connection,
        presence: &Presence,
    ) -> io::Result<()> {
        if !connection.output().is_empty() {
            self.socket.holds_back();
            self.flush(connection, presence).await?;
            self.socket.finish();
        }
        Ok(())
    }

    async fn exchange(
        &mut self,
        connection: &mut Connection,
        presence: &Presence,
    ) -> io::Result<usize> {
        self.flush(connection, presence).await?;
        if !presence.info.is_watching() {
            presence.info.doing(Activity::Read, connection.is_busy());
        }
        let read = self.socket.read(&mut Into { connection, presence }).await;
        let len = read.map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => cannot_keep_request(presence, self),
            _ => error,
        })?;
        connection.filled(len);
        presence.hold(0);
        Ok(len)
    }

    fn finish(&self) {
        self.socket.finish();
    }
}

impl Wire for TokioStream {
    fn send(&self, parts: &[IoSlice<'_>]) -> usize {
        let len = self.socket.write_parts_now(parts).ok().flatten().unwrap_or_default();
        self.local.counters().add(Counter::BytesWritten, len as u64);
        len
    }
}

/// Sends what the kernel takes now; none when it takes nothing.
fn write_now(connection: &Connection, socket: &Socket) -> io::Result<Option<usize>> {
    if !connection.is_pinned() {
        return socket.write_now(connection.output());
    }
    let mut parts = [IoSlice::new(&[]); PARTS_MAX];
    let count = connection.output_parts(&mut parts);
    socket.write_parts_now(parts.get(..count).unwrap_or_default())
}

/// Waits for a client to whom a value goes from the store. The value is copied when that takes
/// longer than what is left of the time, so that a slow client keeps no memory of the store.
async fn wait_pinned(
    connection: &mut Connection,
    socket: &mut Socket,
    presence: &Presence,
    left: &mut Duration,
) -> io::Result<()> {
    let begun = Instant::now();
    match wait(socket, presence, connection.kept_len(), *left).await {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => *left = Duration::ZERO,
        waited => waited?,
    }
    *left = left.saturating_sub(begun.elapsed());
    if left.is_zero() {
        connection.settle();
    }
    Ok(())
}

/// Waits until the client takes more, while `kept_len` bytes are kept for it.
///
/// # Errors
/// When all connections together keep too much, or the client takes nothing for too long.
pub async fn wait_until_writable(
    socket: &mut Socket,
    presence: &Presence,
    kept_len: usize,
) -> io::Result<()> {
    let limit = presence.local.shared.config.write_timeout;
    let waited = wait(socket, presence, kept_len, limit).await;
    if waited.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
        return Err(write_timed_out(presence));
    }
    waited
}

async fn wait(
    socket: &mut Socket,
    presence: &Presence,
    kept_len: usize,
    timeout: Duration,
) -> io::Result<()> {
    keep_answers(presence, kept_len)?;
    socket.writable(timeout).await
}

/// Counts answers as kept for a client that is slow to take them.
///
/// # Errors
/// When all connections together keep too much.
pub fn keep_answers(presence: &Presence, kept_len: usize) -> io::Result<()> {
    presence.info.doing(Activity::Write, true);
    if presence.hold(kept_len) {
        return Ok(());
    }
    presence.local.counters().add_one(Counter::ResponseOom);
    Err(io::ErrorKind::QuotaExceeded.into())
}

/// Tells a client that what it has half sent may not be kept.
#[must_use]
pub fn cannot_keep_request(presence: &Presence, wire: &dyn Wire) -> io::Error {
    presence.local.counters().add_one(Counter::ReadBufOom);
    // Whether or not the client hears why, it is closed.
    wire.send(&[IoSlice::new(NO_MEMORY_FOR_REQUEST)]);
    io::ErrorKind::OutOfMemory.into()
}

/// Counts a client that took nothing for too long.
#[must_use]
pub fn write_timed_out(presence: &Presence) -> io::Error {
    presence.local.counters().add_one(Counter::WriteKicks);
    io::ErrorKind::TimedOut.into()
}

struct Into<'a> {
    connection: &'a mut Connection,
    presence: &'a Presence,
}

impl ReadInto for Into<'_> {
    fn read<R>(&mut self, read: impl FnOnce(&mut [u8]) -> R) -> R {
        read(self.connection.space(&mut self.presence.local.pool.borrow_mut()))
    }

    fn rest(&mut self) -> io::Result<()> {
        self.connection.rest(&mut self.presence.local.pool.borrow_mut());
        if self.presence.hold(self.connection.kept_len()) {
            Ok(())
        } else {
            Err(io::ErrorKind::OutOfMemory.into())
        }
    }
}

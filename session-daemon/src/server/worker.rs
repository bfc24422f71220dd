//! One worker: a thread with its own runtime, store access, buffers and connections. It owns the
//! turn: one clock sample at its start, one quiesce at its end, before the thread may sleep.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::clock::Now;
use crate::command::admin::watch;
use crate::command::counters::{Counter, Counters};
use crate::command::execute::Executor;
use crate::command::observe::Observer;
use crate::command::request::Shutdown;
use crate::server::buffers::{Pool, Wire};
use crate::server::client;
use crate::server::config::Engine;
use crate::server::connection::{Connection, Step, Turn};
use crate::server::crowd::Crowd;
use crate::server::grace::{close_all, finish, last_requests, settle};
use crate::server::handover::Parked;
use crate::server::listener::{Accepted, Door, accept};
use crate::server::locks::{self, SessionLock};
use crate::server::observing::{self, Observing};
use crate::server::shared::{ConnectionInfo, Seat, Shared};
use crate::server::socket::yield_turn;
use crate::server::turns::LOOKED_AT_EVERY;
use crate::server::udp::{self, Inlet};
use crate::server::uring::reactor::Reactor;
use crate::server::uring::rounds::rounds;
use crate::server::{asking, plane};
use crate::store::scan::Scan;
use crate::store::types::{CasUnique, Key};
use crate::store::{self, Item};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

/// Looks at connections within one turn after which the turn ends though others are ready.
const DRIVES_PER_TURN_MAX: u32 = 64;

/// How often idle connections are looked for, and how often a worker without clients does the
/// store's upkeep.
const TICK: Duration = Duration::from_secs(1);

/// What a worker is told by other threads.
#[derive(Debug)]
pub enum Message {
    /// Serve this connection.
    Adopt(Accepted),
    /// Reset the connections that the allowlist refuses, and say how many there were.
    Enforce(mpsc::Sender<u64>),
    /// Do this command of one line, and send its answer.
    Ask(Vec<u8>, mpsc::Sender<Vec<u8>>),
    /// Look for locks of PHP sessions, and send them.
    Locks(mpsc::Sender<Vec<SessionLock>>),
    /// Say so when no request is half done, or when that has been waited for long enough.
    Settle(mpsc::Sender<()>),
    /// Accept nobody any more.
    CloseDoors(mpsc::Sender<()>),
    /// End, and give up the connections for another process to go on with.
    HandOver(mpsc::Sender<Vec<Parked>>),
    /// End.
    Stop(Shutdown),
}

/// What a connection may do.
#[derive(Clone, Copy, Debug, Default)]
struct Rights {
    /// It may steer the server, whatever clients may.
    trusted: bool,
    /// Nothing that it asks changes an item.
    reads_only: bool,
}

/// The sockets by which clients come to a worker.
#[derive(Debug, Default)]
pub struct WaysIn {
    /// Listening sockets.
    pub doors: Vec<Door>,
    /// Datagram sockets.
    pub inlets: Vec<Inlet>,
}

/// How a worker and the others talk to each other.
pub struct Post {
    /// All workers' ears.
    pub mailboxes: Arc<[UnboundedSender<Message>]>,
    /// This one's.
    pub mailbox: UnboundedReceiver<Message>,
}

/// What the tasks of a worker share. Never leaves its thread.
pub struct Local {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// This worker's place in it.
    pub seat_idx: usize,
    /// All workers' ears.
    pub mailboxes: Arc<[UnboundedSender<Message>]>,
    /// Spare buffers.
    pub pool: RefCell<Pool>,
    /// What moves the bytes of plain connections; none under tokio.
    pub reactor: Option<Rc<Reactor>>,
    store: RefCell<store::Worker>,
    now: Cell<Now>,
    /// Looks at connections since the turn began; 0 before it has.
    drives: Cell<u32>,
    /// Turns that have ended.
    turns: Cell<u32>,
    /// Connections that have spoken in this turn.
    speakers: Cell<u32>,
    crowd: Crowd,
    /// Whether connections may be given to other workers: these listen still.
    hands_on: Cell<bool>,
    /// Whether the connection that has its turn may steer the server.
    trusted: Cell<bool>,
    /// Connections for another process, from when there is to be one.
    parked: RefCell<Option<Vec<Parked>>>,
}

thread_local! {
    // The runtime calls the end of a turn through a plain function.
    static LOCAL: RefCell<Option<Rc<Local>>> = const { RefCell::new(None) };
}

impl Local {
    /// This worker's place.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "there is one for each worker")]
    pub fn seat(&self) -> &Seat {
        &self.shared.seats[self.seat_idx]
    }

    /// This worker's counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.seat().counters
    }

    /// Whether connections that end now are for another process to go on with.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        self.parked.borrow().is_some()
    }

    /// The ring, if a connection that speaks now is to use it.
    #[must_use]
    pub fn reactor_of_many(&self) -> Option<&Rc<Reactor>> {
        let is_for_all = self.shared.config.engine == Engine::Uring;
        self.reactor.as_ref().filter(|_| is_for_all || self.crowd.is_there())
    }

    /// Whether many connections speak at a time.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.crowd.is_there()
    }

    /// Whether connections may be given to other workers.
    #[must_use]
    pub fn may_hand_on(&self) -> bool {
        self.hands_on.get()
    }

    /// A connection speaks; `spoke_in` is its own, and says in which turn it last did.
    pub fn speaks(&self, spoke_in: &mut Option<u32>) {
        let turn = Some(self.turns.get());
        if std::mem::replace(spoke_in, turn) != turn {
            self.speakers.set(self.speakers.get().saturating_add(1));
        }
    }

    /// Keeps a connection for another process.
    pub fn park(&self, parked: Option<Parked>) {
        if let Some(all) = self.parked.borrow_mut().as_mut() {
            all.extend(parked);
        }
    }

    /// Whether the connection that has its turn may steer the server.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.trusted.get()
    }

    /// The time of this turn.
    #[must_use]
    pub fn now(&self) -> Now {
        if self.drives.get() == 0 {
            self.now.set(self.shared.sample());
            self.drives.set(1);
        } else if self.shared.config.debug_commands {
            // What `debugtime` has moved is asked for at once, within the turn.
            self.now.set(self.shared.sample());
        }
        self.now.get()
    }

    /// Brings the memory of keys near that clients ask for in this turn, which has begun with that.
    pub fn bring_near(&self, keys: &[Key<'_>]) {
        // What has looked at the store has to leave it: with the time the turn begins that ends that.
        let _ = self.now();
        self.store.borrow().prefetch(keys);
    }

    /// Marks an item accessed that the kernel has answered with, if it is there still.
    pub fn note_access(&self, item: u64, cas: CasUnique) {
        let now = self.now();
        self.store.borrow().note_access(item, cas, now);
    }

    /// Shows the items of the next bucket; false when it was the last.
    pub fn scan(&self, scan: &mut Scan, visit: &mut dyn FnMut(&Item<'_>)) -> bool {
        let now = self.now();
        self.store.borrow().scan(scan, now, &mut |item| visit(item))
    }

    /// Gives a connection its part of the turn.
    pub fn drive(
        &self,
        connection: &mut Connection,
        info: &ConnectionInfo,
        wire: Option<&dyn Wire>,
    ) -> Step {
        info.active(self.now());
        info.received(connection.take_received_len());
        let (step, asked) = self.drive_as(connection, info.fd, Rights::default(), wire);
        if asked {
            info.asked();
        }
        step
    }

    /// Gives the connection of a datagram its part of the turn.
    pub fn drive_datagram(
        &self,
        connection: &mut Connection,
        info: &ConnectionInfo,
        writes: bool,
    ) -> Step {
        info.active(self.now());
        let rights = Rights { reads_only: !writes, ..Rights::default() };
        self.drive_as(connection, info.fd, rights, None).0
    }

    /// Gives what answers datagrams without a connection its part of the turn; it changes nothing.
    pub fn answer_datagrams<R>(
        &self,
        info: &ConnectionInfo,
        answer: impl FnOnce(&mut Turn<'_>) -> R,
    ) -> R {
        info.active(self.now());
        self.in_turn(info.fd, Rights { reads_only: true, ..Rights::default() }, None, answer)
    }

    /// Gives a connection without a client its part of the turn, and the right to steer the server.
    pub fn drive_trusted(&self, connection: &mut Connection) -> Step {
        self.drive_as(connection, -1, Rights { trusted: true, ..Rights::default() }, None).0
    }

    /// Gives a connection its part of the turn; whether a request was answered in it.
    fn drive_as(
        &self,
        connection: &mut Connection,
        fd: i32,
        rights: Rights,
        wire: Option<&dyn Wire>,
    ) -> (Step, bool) {
        self.in_turn(fd, rights, wire, |turn| {
            let requests_max = turn.requests_left;
            (connection.drive(turn), turn.requests_left < requests_max)
        })
    }

    /// Hands out what is worked with during a turn.
    fn in_turn<R>(
        &self,
        fd: i32,
        rights: Rights,
        wire: Option<&dyn Wire>,
        work: impl FnOnce(&mut Turn<'_>) -> R,
    ) -> R {
        let _abort = AbortOnPanic;
        if self.drives.get() > DRIVES_PER_TURN_MAX {
            self.end_turn();
        }
        let now = self.now();
        self.drives.set(self.drives.get().saturating_add(1));
        self.trusted.set(rights.trusted);
        let shared = &*self.shared;
        let (kinds, delimiter) = (shared.watchers.kinds(), shared.detail_delimiter());
        let observing = Observing { shared, seat: self.seat(), fd, now, delimiter };
        let observed = kinds != 0 || delimiter.is_some();
        let mut store = self.store.borrow_mut();
        store.note_evictions(kinds & watch::EVICTIONS != 0);
        let mut pool = self.pool.borrow_mut();
        let mut turn = Turn {
            executor: Executor {
                store: &mut store,
                counters: self.counters(),
                now,
                flush_allowed: self.shared.config.flush_allowed,
                reads_only: rights.reads_only,
                observer: observed.then_some(&observing as &dyn Observer),
            },
            pool: &mut pool,
            services: self,
            requests_left: shared.config.requests_per_turn,
            wire,
        };
        work(&mut turn)
    }

    /// The thread is about to sleep.
    fn before_sleep(&self) {
        self.end_turn();
        if let Some(reactor) = &self.reactor {
            reactor.before_sleep(self);
        }
    }

    /// Ends the turn, and says when the last one began: nothing of the store is held, and the time is
    /// no longer true.
    pub fn end_turn(&self) -> Now {
        if self.drives.replace(0) > 0 {
            self.turns.set(self.turns.get().wrapping_add(1));
            if let speakers @ 1.. = self.speakers.take() {
                self.crowd.note(speakers);
            }
            if self.turns.get().is_multiple_of(LOOKED_AT_EVERY) {
                let (begun, ended) = (self.now.get(), self.shared.sample());
                self.seat().turns.note(ended.boottime_ns.saturating_sub(begun.boottime_ns));
            }
            let mut store = self.store.borrow_mut();
            store.maintain(self.now.get());
            for evicted in store.take_evicted() {
                observing::evicted(&self.shared, &evicted, self.now.get());
            }
            store.quiesce();
        }
        self.now.get()
    }
}

/// A panic while a request is executed ends the process: the store may be half changed, and a
/// supervisor's restart is better than a worker that is gone.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// The worker's runtime, made before its thread so that a failure can be told.
///
/// # Errors
/// When the kernel gives no epoll descriptor.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_park(|| {
            LOCAL.with_borrow(|local| {
                if let Some(local) = local {
                    local.before_sleep();
                }
            });
        })
        .build()
}

/// Serves until told to stop. Says first whether it can.
pub fn run(
    runtime: &Runtime,
    shared: Arc<Shared>,
    seat_idx: usize,
    store: store::Worker,
    post: Post,
    ways_in: WaysIn,
    ready: mpsc::Sender<io::Result<()>>,
) {
    let context = runtime.enter();
    let reactor = match Reactor::of(shared.config.engine) {
        Ok(reactor) => reactor,
        // Whoever started the worker waits for this, and no client is served before.
        Err(error) => return drop(ready.send(Err(error))),
    };
    drop(context);
    // Whoever waits for it waits until all senders are gone.
    let _ = ready.send(Ok(()));
    drop(ready);
    let Post { mailboxes, mailbox } = post;
    let local = Rc::new(Local {
        shared,
        seat_idx,
        mailboxes,
        pool: RefCell::default(),
        reactor,
        store: RefCell::new(store),
        now: Cell::default(),
        drives: Cell::new(0),
        turns: Cell::new(0),
        speakers: Cell::new(0),
        crowd: Crowd::default(),
        hands_on: Cell::new(true),
        trusted: Cell::new(false),
        parked: RefCell::default(),
    });
    LOCAL.set(Some(Rc::clone(&local)));
    let tasks = LocalSet::new();
    let serve = tasks.run_until(serve(Rc::clone(&local), mailbox, ways_in));
    match local.reactor.clone() {
        Some(reactor) => runtime.block_on(rounds(&local, &reactor, serve)),
        None => runtime.block_on(serve),
    }
    drop(tasks);
    LOCAL.set(None);
}

async fn serve(local: Rc<Local>, mut mailbox: UnboundedReceiver<Message>, ways_in: WaysIn) {
    let doors = ways_in.doors.into_iter().map(|door| spawn_local(accept(Rc::clone(&local), door)));
    let inlets =
        ways_in.inlets.into_iter().map(|inlet| spawn_local(udp::serve(Rc::clone(&local), inlet)));
    let ways_in: Vec<_> = doors.chain(inlets).collect();
    let upkeep = spawn_local(upkeep(Rc::clone(&local)));
    if local.seat_idx == 0 {
        spawn_local(plane::attend(Rc::clone(&local)));
    }
    while let Some(message) = mailbox.recv().await {
        match message {
            Message::Adopt(accepted) => client::begin(&local, accepted),
            Message::Enforce(reply) => {
                let count = enforce(&local).await;
                // Nobody waits any more: then nobody needs the number.
                let _ = reply.send(count);
            }
            Message::Ask(line, reply) => {
                spawn_local(asking::ask(Rc::clone(&local), line, reply));
            }
            Message::Locks(reply) => {
                spawn_local(locks::locks(Rc::clone(&local), reply));
            }
            Message::Settle(reply) => {
                spawn_local(settle(Rc::clone(&local), reply));
            }
            Message::CloseDoors(reply) => {
                local.hands_on.set(false);
                ways_in.iter().for_each(JoinHandle::abort);
                // Nobody waits any more: then the other process is not to be.
                let _ = reply.send(());
            }
            Message::HandOver(reply) => {
                upkeep.abort();
                // As above.
                let _ = reply.send(hand_over(&local).await);
                return;
            }
            Message::Stop(shutdown) => {
                local.hands_on.set(false);
                ways_in.iter().for_each(JoinHandle::abort);
                upkeep.abort();
                if shutdown == Shutdown::Graceful {
                    finish(&local).await;
                }
                return;
            }
        }
    }
}

/// Takes the connections from their tasks; those that cannot be told in bytes are closed.
async fn hand_over(local: &Local) -> Vec<Parked> {
    local.parked.replace(Some(Vec::new()));
    close_all(local, |info| !info.is_busy());
    // The others leave by themselves when they have answered.
    last_requests(local).await;
    close_all(local, |_| true);
    while !local.seat().connections().is_empty() {
        yield_turn().await;
    }
    local.parked.take().unwrap_or_default()
}

/// Resets the connections whose clients the allowlist refuses by now.
async fn enforce(local: &Local) -> u64 {
    let now = Now::sample();
    let refused: Vec<_> = local
        .seat()
        .connections()
        .values()
        .filter(|info| !local.shared.admits(&info.peer, now))
        .cloned()
        .collect();
    refused.iter().for_each(|info| info.reset());
    while refused.iter().any(|info| local.seat().connections().contains_key(&info.id)) {
        yield_turn().await;
    }
    local.counters().add(Counter::ResetByList, refused.len() as u64);
    refused.len() as u64
}

/// What is done once a second whether or not clients come.
async fn upkeep(local: Rc<Local>) {
    loop {
        tokio::time::sleep(TICK).await;
        let now = local.now();
        if let Some(timeout) = local.shared.config.idle_timeout {
            let idle: Vec<_> = local
                .seat()
                .connections()
                .values()
                .filter(|info| info.idle_s(now) >= timeout.as_secs() && !info.is_watching())
                .cloned()
                .collect();
            local.counters().add(Counter::IdleKicks, idle.len() as u64);
            idle.iter().for_each(|info| info.close_idle());
        }
        let limit = local.shared.config.read_timeout;
        let stuck: Vec<_> = local
            .seat()
            .connections()
            .values()
            .filter(|info| info.is_half_received_for(limit, now))
            .cloned()
            .collect();
        local.counters().add(Counter::ReadKicks, stuck.len() as u64);
        stuck.iter().for_each(|info| info.close());
        loop {
            let more = {
                let mut store = local.store.borrow_mut();
                store.maintain(local.now()) | store.check_more()
            };
            if !more {
                break;
            }
            yield_turn().await;
        }
    }
}

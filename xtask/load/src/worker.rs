//! One thread of the load: its connections, and when each of them is given a request.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::Timespec;

use crate::account::{Account, Machine};
use crate::connection::{Connection, Judge, Received};
use crate::items::Items;
use crate::keys::{Popularity, Random};
use crate::options::Protocol;
use crate::tally::Tally;
use crate::target::Target;
use crate::wire::{open_page, save_page, text_get, unlock_page};

/// Bytes read at once.
const BUFFER_LEN: usize = 256 * 1024;
/// Events taken at once.
const EVENTS_MAX: usize = 256;
/// How long no reply may come before the load gives up.
const STALL_NS: u64 = 5_000_000_000;
/// How long a worker sleeps at most before it looks at the clock.
const SLEEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What all threads of a load share.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) protocol: Protocol,
    pub(crate) items: Items,
    pub(crate) popularity: Popularity,
    pub(crate) gets: f64,
    pub(crate) multiget: u32,
    pub(crate) misses: bool,
    pub(crate) pace: Pace,
    pub(crate) spin: bool,
    pub(crate) connections: u32,
    pub(crate) seed: u64,
    pub(crate) warmup_ns: u64,
    pub(crate) measure_ns: u64,
    pub(crate) server: Vec<u32>,
}

/// When requests are made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// So many at once, the next ones when all are answered.
    Closed { depth: u32 },
    /// At instants of a Poisson process, so many nanoseconds apart on average.
    Open { mean_ns: f64 },
    /// A connection for each page.
    Page,
}

/// What a thread measured.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    pub(crate) seconds: f64,
    /// The server's account over the time; of the first thread alone.
    pub(crate) server: Account,
    pub(crate) load: Account,
    pub(crate) stolen: f64,
}

/// Accounts at one end of the measured time.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at_ns: u64,
    server: Account,
    load: Account,
    machine: Machine,
}

/// A connection and what it is used for.
#[derive(Debug)]
struct Slot {
    connection: Connection,
    waits_to_write: bool,
    /// The page that it serves.
    page: Page,
}

/// How far a page has come.
#[derive(Clone, Copy, Debug)]
struct Page {
    stage: Stage,
    idx: u32,
    start_ns: u64,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Opening,
    Saving,
    Unlocking,
}

/// A thread of the load.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    /// Connections of the threads before this one; the first thread keeps the accounts.
    first: u32,
    slots: Vec<Slot>,
    /// Slots without a request, in an open loop.
    idle: VecDeque<usize>,
    /// When the requests were due that no connection was free for.
    due: VecDeque<u64>,
    next_due_ns: f64,
    epoll: OwnedFd,
    random: Random,
    start: Instant,
    tally: Tally,
    buffer: Vec<u8>,
    out: Vec<u8>,
    line: Vec<u8>,
    idxs: Vec<u32>,
}

impl<'a> Worker<'a> {
    /// Connects `connections` times; nothing is sent yet.
    pub(crate) fn connect(plan: &'a Plan, first: u32, connections: u32) -> Result<Self> {
        let mut worker = Self {
            plan,
            first,
            slots: Vec::new(),
            idle: (0..connections as usize).collect(),
            due: VecDeque::new(),
            next_due_ns: 0.0,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            random: Random::new(plan.seed.wrapping_add(u64::from(first) << 32)),
            start: Instant::now(),
            tally: Tally::new(),
            buffer: vec![0; BUFFER_LEN],
            out: Vec::new(),
            line: Vec::new(),
            idxs: Vec::new(),
        };
        for slot in 0..connections as usize {
            let socket = plan.target.connect()?;
            rustix::io::ioctl_fionbio(&socket, true)?;
            let page = Page { stage: Stage::Unlocking, idx: 0, start_ns: 0 };
            let connection = Connection::new(socket);
            worker.slots.push(Slot { connection, waits_to_write: false, page });
            worker.watch(slot)?;
        }
        Ok(worker)
    }

    /// Loads the server from `start` on, and returns what it measured.
    pub(crate) fn run(mut self, start: Instant) -> Result<Outcome> {
        self.start = start;
        self.begin()?;
        let sleep = self.plan.spin || matches!(self.plan.pace, Pace::Open { .. });
        let timeout = if sleep { POLL } else { SLEEP };
        let mut begin: Option<Mark> = None;
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let (mut answered, mut answered_at_ns) = (0, 0);
        loop {
            let now_ns = self.now_ns();
            match begin {
                None if now_ns >= self.plan.warmup_ns => {
                    self.tally.reset();
                    begin = Some(self.mark()?);
                }
                Some(begin) if now_ns >= begin.at_ns + self.plan.measure_ns => {
                    return self.outcome(begin);
                }
                _ => {}
            }
            if self.tally.requests != answered || self.awaits_nothing() {
                (answered, answered_at_ns) = (self.tally.requests, now_ns);
            } else if now_ns - answered_at_ns > STALL_NS {
                bail!("no reply for {} s", STALL_NS / 1_000_000_000);
            }
            self.arrive(now_ns)?;
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let (slot, flags) = (event.data.u64() as usize, event.flags);
                self.handle(slot, flags)?;
            }
        }
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn mark(&self) -> Result<Mark> {
        let first = self.first == 0;
        let account = |pids: &[u32]| if first { Account::of(pids) } else { Ok(Account::default()) };
        Ok(Mark {
            server: account(&self.plan.server)?,
            load: account(&[std::process::id()])?,
            machine: Machine::now()?,
            at_ns: self.now_ns(),
        })
    }

    fn outcome(self, begin: Mark) -> Result<Outcome> {
        let end = self.mark()?;
        Ok(Outcome {
            seconds: (end.at_ns - begin.at_ns) as f64 / 1e9,
            server: end.server.since(begin.server),
            load: end.load.since(begin.load),
            stolen: end.machine.stolen_since(begin.machine),
            tally: self.tally,
        })
    }

    fn awaits_nothing(&self) -> bool {
        matches!(self.plan.pace, Pace::Open { .. }) && self.idle.len() == self.slots.len()
    }

    /// Gives every connection its first request; an open loop waits for its instants.
    fn begin(&mut self) -> Result<()> {
        match self.plan.pace {
            Pace::Closed { .. } => (0..self.slots.len()).try_for_each(|slot| self.batch(slot)),
            Pace::Page => (0..self.slots.len()).try_for_each(|slot| self.open_page(slot)),
            Pace::Open { .. } => Ok(()),
        }
    }

    /// Handles what epoll says of a connection.
    fn handle(&mut self, slot: usize, flags: EventFlags) -> Result<()> {
        if flags.contains(EventFlags::OUT) && self.slots[slot].connection.flush()? {
            self.await_writing(slot, false)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.receive(slot)?;
        }
        Ok(())
    }

    fn receive(&mut self, slot: usize) -> Result<()> {
        let judge = Judge {
            items: &self.plan.items,
            protocol: self.plan.protocol,
            misses: self.plan.misses,
        };
        let start = self.start;
        let now_ns = || start.elapsed().as_nanos() as u64;
        let connection = &mut self.slots[slot].connection;
        loop {
            let (buffer, line, tally) = (&mut self.buffer, &mut self.line, &mut self.tally);
            if connection.receive(&judge, buffer, line, now_ns, tally)? != Received::Full {
                break;
            }
        }
        if !connection.is_idle() {
            return Ok(());
        }
        match self.plan.pace {
            Pace::Closed { .. } => self.batch(slot),
            Pace::Page => self.advance_page(slot),
            Pace::Open { .. } => {
                if let Some(due_ns) = self.due.pop_front() {
                    return self.request(slot, due_ns);
                }
                self.idle.push_back(slot);
                Ok(())
            }
        }
    }

    /// Writes as many requests as the depth says.
    fn batch(&mut self, slot: usize) -> Result<()> {
        let Pace::Closed { depth } = self.plan.pace else { return Ok(()) };
        self.out.clear();
        let now_ns = self.now_ns();
        for _ in 0..depth {
            self.push_request(slot, now_ns);
        }
        self.send(slot)
    }

    /// Writes one request that was due at `due_ns`.
    fn request(&mut self, slot: usize, due_ns: u64) -> Result<()> {
        self.out.clear();
        self.push_request(slot, due_ns);
        self.send(slot)
    }

    fn push_request(&mut self, slot: usize, start_ns: u64) {
        let plan = self.plan;
        let mut exchange = self.slots[slot].connection.exchange(&mut self.out);
        if plan.gets < 1.0 && self.random.open_unit() >= plan.gets {
            let idx = plan.popularity.draw(&mut self.random);
            return plan.protocol.set(&plan.items, idx, start_ns, &mut exchange);
        }
        if plan.multiget == 1 {
            let idx = plan.popularity.draw(&mut self.random);
            return plan.protocol.get(&plan.items, idx, start_ns, &mut exchange);
        }
        self.idxs.clear();
        for _ in 0..plan.multiget {
            self.idxs.push(plan.popularity.draw(&mut self.random));
        }
        text_get(&plan.items, &self.idxs, start_ns, &mut exchange);
    }

    fn send(&mut self, slot: usize) -> Result<()> {
        if !self.slots[slot].connection.send(&self.out)? {
            self.await_writing(slot, true)?;
        }
        Ok(())
    }

    /// Makes the requests of an open loop that are due, while connections are free.
    fn arrive(&mut self, now_ns: u64) -> Result<()> {
        let Pace::Open { mean_ns } = self.plan.pace else { return Ok(()) };
        while self.next_due_ns <= now_ns as f64 {
            let due_ns = self.next_due_ns as u64;
            self.next_due_ns -= mean_ns * self.random.open_unit().ln();
            match self.idle.pop_front() {
                Some(slot) => self.request(slot, due_ns)?,
                None => self.due.push_back(due_ns),
            }
        }
        Ok(())
    }

    /// Connects anew and writes what a page begins with.
    fn open_page(&mut self, slot: usize) -> Result<()> {
        let plan = self.plan;
        let start_ns = self.now_ns();
        // No two connections ask for the same session, so each finds it unlocked.
        let own = self.first + slot as u32;
        let groups = (plan.items.count() / plan.connections).max(1);
        let idx = self.random.below(groups) * plan.connections + own;
        self.slots[slot].connection = Connection::new(plan.target.begin_connect()?);
        self.slots[slot].waits_to_write = false;
        self.slots[slot].page = Page { stage: Stage::Opening, idx, start_ns };
        self.watch(slot)?;
        self.out.clear();
        let mut exchange = self.slots[slot].connection.exchange(&mut self.out);
        open_page(&plan.items, idx, start_ns, &mut exchange);
        self.send(slot)
    }

    /// Writes what follows in a page, or closes the connection and begins the next page.
    fn advance_page(&mut self, slot: usize) -> Result<()> {
        let Page { stage, idx, start_ns } = self.slots[slot].page;
        self.out.clear();
        let mut exchange = self.slots[slot].connection.exchange(&mut self.out);
        self.slots[slot].page.stage = match stage {
            Stage::Opening => {
                save_page(&self.plan.items, idx, start_ns, &mut exchange);
                Stage::Saving
            }
            Stage::Saving => {
                unlock_page(&self.plan.items, idx, start_ns, &mut exchange);
                Stage::Unlocking
            }
            Stage::Unlocking => return self.open_page(slot),
        };
        self.send(slot)
    }

    fn watch(&self, slot: usize) -> Result<()> {
        let data = EventData::new_u64(slot as u64);
        Ok(epoll::add(&self.epoll, &self.slots[slot].connection, data, EventFlags::IN)?)
    }

    /// Asks epoll to say, or not to say, when the connection takes bytes again.
    fn await_writing(&mut self, slot: usize, awaits: bool) -> Result<()> {
        if self.slots[slot].waits_to_write != awaits {
            self.slots[slot].waits_to_write = awaits;
            let flags = if awaits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            let data = EventData::new_u64(slot as u64);
            epoll::modify(&self.epoll, &self.slots[slot].connection, data, flags)?;
        }
        Ok(())
    }
}

//! The request path: listeners, workers, connections. It owns sockets, threads and the memory of
//! bytes under way; it never knows the guard.
#![forbid(unsafe_code)]

pub mod admin;
pub mod administration;
pub mod asking;
pub mod binary;
pub mod binding;
pub mod buffers;
pub mod client;
pub mod config;
pub mod connection;
pub mod crowd;
pub mod dump;
pub mod farewell;
pub mod fetch;
pub mod glance;
pub mod grace;
pub mod handover;
pub mod incoming;
pub mod listener;
pub mod locks;
pub mod login;
pub mod meta;
pub mod mixed;
pub mod observing;
pub mod placement;
pub mod plane;
pub mod prefixes;
pub mod reply;
pub mod requests;
pub mod services;
pub mod shared;
pub mod socket;
pub mod statistics;
pub mod stream;
pub mod talk;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod tuning;
pub mod turns;
pub mod udp;
pub mod uring;
pub mod values;
pub mod watchers;
pub mod worker;

use crate::allowlist::Allowlist;
use crate::clock::Now;
use crate::command::request::{Shutdown, StatsTopic};
use crate::server::config::{Listener, ServerConfig};
use crate::server::handover::Parked;
use crate::server::listener::Door;
use crate::server::locks::SessionLock;
use crate::server::shared::Shared;
use crate::server::udp::Inlet;
use crate::server::worker::{Message, Post, WaysIn};
use crate::store::{Checked, Store};
use arc_swap::ArcSwap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread::JoinHandle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A server that serves clients on threads of its own until it is stopped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    mailboxes: Arc<[UnboundedSender<Message>]>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// Starts `config.threads` workers. The listeners are dealt out to them in order; a worker
    /// that accepts hands a connection over when another has fewer.
    ///
    /// # Errors
    /// When the store has no room for so many workers, or the kernel refuses a thread, an epoll
    /// descriptor or a socket option.
    pub fn start(
        config: ServerConfig,
        listeners: Vec<Listener>,
        store: Arc<Store>,
        allowlist: Arc<ArcSwap<Allowlist>>,
    ) -> io::Result<Self> {
        Self::go_on(config, listeners, Vec::new(), store, allowlist)
    }

    /// [`Server::start`] with connections that another process has served.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn go_on(
        config: ServerConfig,
        listeners: Vec<Listener>,
        parked: Vec<Parked>,
        store: Arc<Store>,
        allowlist: Arc<ArcSwap<Allowlist>>,
    ) -> io::Result<Self> {
        if config.threads == 0 {
            return Err(io::Error::other("a server needs at least one thread"));
        }
        let (mut doors, mut inlets) = (Vec::new(), Vec::new());
        for listener in listeners {
            match listener {
                Listener::Tcp(socket, tls) => doors.push(Door::tcp(socket, tls)?),
                Listener::Unix(socket) => {
                    doors.push(Door::unix(socket, config.unix_path.as_deref())?);
                }
                Listener::Udp(socket) => inlets.push(Inlet::new(socket)?),
            }
        }
        let listings = doors.iter().map(Door::listing).collect();
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..config.threads).map(|_| unbounded_channel()).unzip();
        let shared = Arc::new(Shared::new(config, store, allowlist, listings));
        let mut server = Self { shared, mailboxes: senders.into(), threads: Vec::new() };
        server.adopt(parked);
        server.spawn(deal(doors, inlets, receivers.len()), receivers)?;
        Ok(server)
    }

    /// Deals out connections, before the workers listen: they come first.
    fn adopt(&self, parked: Vec<Parked>) {
        // A client that has gone meanwhile is no loss.
        let accepted = parked.into_iter().filter_map(|parked| parked.unpark().ok());
        for (accepted, idx) in accepted.zip((0..self.mailboxes.len()).cycle()) {
            // Relaxed: no worker runs yet. Within -c or not, it was let in before.
            self.shared.connections.fetch_add(1, Ordering::Relaxed);
            self.shared.seats[idx].load.fetch_add(1, Ordering::Relaxed);
            self.shared.seats[idx].staying.fetch_add(1, Ordering::Relaxed);
            let _ = self.mailboxes[idx].send(Message::Adopt(accepted));
        }
    }

    fn spawn(
        &mut self,
        ways_in: Vec<WaysIn>,
        mailboxes: Vec<UnboundedReceiver<Message>>,
    ) -> io::Result<()> {
        let (ready, started) = mpsc::channel();
        for (seat_idx, (ways_in, mailbox)) in ways_in.into_iter().zip(mailboxes).enumerate() {
            let store = self.shared.store.worker().map_err(io::Error::other)?;
            let runtime = worker::runtime()?;
            let shared = Arc::clone(&self.shared);
            let post = Post { mailboxes: Arc::clone(&self.mailboxes), mailbox };
            let ready = ready.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{seat_idx}")).spawn(
                move || {
                    worker::run(&runtime, shared, seat_idx, store, post, ways_in, ready);
                },
            )?;
            self.threads.push(thread);
        }
        drop(ready);
        started.iter().collect()
    }

    /// Resets every TCP connection whose client the allowlist refuses by now. Returns when all
    /// workers have done so, with the number of connections.
    #[must_use]
    pub fn enforce(&self) -> u64 {
        let (reply, replies) = mpsc::channel();
        for mailbox in self.mailboxes.iter() {
            // A worker that has ended has no connection either.
            let _ = mailbox.send(Message::Enforce(reply.clone()));
        }
        drop(reply);
        replies.iter().sum()
    }

    /// Lets in whom the allowlist refuses, and counts them; or refuses them again.
    pub fn audit(&self, on: bool) {
        self.shared.audit(on);
    }

    /// Does a command of one line, with the right to steer the server, and returns its answer.
    /// Empty when the server is stopping.
    #[must_use]
    pub fn ask(&self, line: &str) -> Vec<u8> {
        let (reply, replies) = mpsc::channel();
        for mailbox in self.mailboxes.iter().take(1) {
            // A worker that has ended drops the sender, which ends the wait.
            let _ = mailbox.send(Message::Ask(line.as_bytes().to_vec(), reply.clone()));
        }
        drop(reply);
        replies.recv().unwrap_or_default()
    }

    /// Locks of PHP sessions that are held now. Empty when the server is stopping.
    #[must_use]
    pub fn locks(&self) -> Vec<SessionLock> {
        let (reply, replies) = mpsc::channel();
        for mailbox in self.mailboxes.iter().take(1) {
            // A worker that has ended drops the sender, which ends the wait.
            let _ = mailbox.send(Message::Locks(reply.clone()));
        }
        drop(reply);
        replies.recv().unwrap_or_default()
    }

    /// Ends all workers: at once, or after what is under way but within five seconds. Returns the
    /// store, which nobody uses any more.
    pub fn stop(mut self, shutdown: Shutdown) -> Arc<Store> {
        self.tell_all_to_stop(shutdown);
        for thread in self.threads.drain(..) {
            // A worker that panicked has ended the process already.
            let _ = thread.join();
        }
        if let Some(plane) = &self.shared.config.plane {
            plane.leave(Now::sample());
        }
        Arc::clone(&self.shared.store)
    }

    /// Ends all workers and returns the connections, for another process to go on with, and the
    /// store, which nobody uses any more. Whoever is in the middle of a request is served to its
    /// end first, within half a second.
    #[must_use]
    pub fn hand_over(mut self) -> (Vec<Parked>, Arc<Store>) {
        self.all(Message::Settle);
        // No worker accepts and hands a connection to one that has ended.
        self.all(Message::CloseDoors);
        let parked = self.all(Message::HandOver).into_iter().flatten().collect();
        for thread in self.threads.drain(..) {
            // As in `stop`.
            let _ = thread.join();
        }
        (parked, Arc::clone(&self.shared.store))
    }

    /// Sends a message to all workers and waits for their answers.
    fn all<T>(&self, message: impl Fn(mpsc::Sender<T>) -> Message) -> Vec<T> {
        let (reply, replies) = mpsc::channel();
        for mailbox in self.mailboxes.iter() {
            // A worker that has ended drops the sender, which ends the wait.
            let _ = mailbox.send(message(reply.clone()));
        }
        drop(reply);
        replies.iter().collect()
    }

    /// Makes every counter read 0, as `stats reset` does.
    pub fn stats_reset(&self) {
        self.shared.reset_counters();
    }

    /// Takes what the guard has counted, to be told by `stats guard`.
    pub fn guard_counters(&self, counters: Vec<(String, String)>) {
        self.shared.guard_counters.store(Arc::new(counters));
    }

    /// Whether a client has asked for the certificates to be read again since the last call.
    #[must_use]
    pub fn certificates_are_asked_for(&self) -> bool {
        self.shared.config.tls.as_ref().is_some_and(|tls| tls.take_asked())
    }

    /// How far the check behind the store's start is; `None` where there is none.
    #[must_use]
    pub fn checked(&self) -> Option<Checked> {
        self.shared.store.checked()
    }

    /// The general statistics, names and values in the order of `stats`.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(String, String)> {
        statistics::general_text(&self.shared)
    }

    /// The statistics of a topic, names and values in the order of `stats`.
    #[must_use]
    pub fn statistics(&self, topic: StatsTopic) -> Vec<(String, String)> {
        let mut all = Vec::new();
        statistics::each(&self.shared, topic, Now::sample(), &mut |name, value| {
            all.push((name.to_owned(), value.to_owned()));
        });
        all
    }

    fn tell_all_to_stop(&self, shutdown: Shutdown) {
        for mailbox in self.mailboxes.iter() {
            // A worker that does not listen has stopped.
            let _ = mailbox.send(Message::Stop(shutdown));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tell_all_to_stop(Shutdown::Now);
    }
}

/// Deals sockets out to `workers` hands.
fn deal(doors: Vec<Door>, inlets: Vec<Inlet>, workers: usize) -> Vec<WaysIn> {
    let mut hands: Vec<WaysIn> = (0..workers).map(|_| WaysIn::default()).collect();
    for (idx, door) in doors.into_iter().enumerate() {
        hands[idx % workers].doors.push(door);
    }
    for (idx, inlet) in inlets.into_iter().enumerate() {
        hands[idx % workers].inlets.push(inlet);
    }
    hands
}

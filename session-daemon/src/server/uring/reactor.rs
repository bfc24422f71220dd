//! A worker's ring, turned whenever nothing else is left to do on its thread: when the runtime is
//! about to sleep. It owns when the kernel is called; under load that is once for all connections
//! that have something to say, and waits for the next that has.
//!
//! While clients speak, the thread sleeps in the ring, which then watches the runtime's epoll too.
//! When they have been silent for some milliseconds it sleeps in the runtime's poll, as it does
//! without a ring, and a doorbell of the ring ends that.
#![forbid(unsafe_code)]

use crate::command::counters::Counter;
use crate::server::config::Engine;
use crate::server::shared::{Activity, ConnectionInfo};
use crate::server::socket::watch;
use crate::server::worker::Local;
use crate::sys::epolls::epoll_that_watches;
use crate::uring::ring::{Came, Ring, User};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::{Cell, RefCell, RefMut};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Calls of the kernel in a row that wake nobody, before the runtime has its turn again.
const CALLS_MAX: u32 = 8;

/// A worker's ring and what wakes its thread.
pub struct Reactor {
    ring: RefCell<Ring<Arc<ConnectionInfo>>>,
    /// Rings while the thread sleeps in the runtime's poll. Each signal is an edge of its own: nobody
    /// need read the counter.
    _doorbell: AsyncFd<OwnedFd>,
    /// The runtime's epoll; without it the thread never sleeps in the ring.
    epoll: Option<OwnedFd>,
    /// Whether clients have spoken lately.
    is_lively: Cell<bool>,
    /// Wakes a task that does nothing: with a task to run the runtime looks at its epoll without a
    /// wait.
    idler: RefCell<Option<Waker>>,
}

impl User for Arc<ConnectionInfo> {
    fn sent(&self, busy_behind: bool) {
        self.doing(Activity::Read, busy_behind);
    }
}

impl Reactor {
    /// A ring for this thread, which alone may use it; none under tokio. Needs the thread's runtime.
    ///
    /// # Errors
    /// What the kernel lacks or refuses.
    pub fn of(engine: Engine) -> io::Result<Option<Rc<Self>>> {
        if engine == Engine::Tokio {
            return Ok(None);
        }
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let ring = RefCell::new(Ring::new(&doorbell)?);
        let doorbell = watch(doorbell, Interest::READABLE)?;
        let epoll = epoll_that_watches(doorbell.get_ref());
        if epoll.is_none() {
            log::debug!("io_uring: the runtime's epoll was not found");
        }
        let (is_lively, idler) = (Cell::new(false), RefCell::default());
        Ok(Some(Rc::new(Self { ring, _doorbell: doorbell, epoll, is_lively, idler })))
    }

    pub(super) fn ring(&self) -> RefMut<'_, Ring<Arc<ConnectionInfo>>> {
        self.ring.borrow_mut()
    }

    /// Hands over what is queued and takes what has come, while other tasks are to go on.
    pub fn turn(&self, local: &Local) {
        let came = self.ring().turn();
        self.account(local);
        self.is_lively.set(self.is_lively.get() || came.any);
    }

    /// Turns the ring until somebody is woken, or until the runtime is to sleep; the doorbell rings
    /// then.
    pub fn before_sleep(&self, local: &Local) {
        self.ring().wake_up();
        let mut calls_left = CALLS_MAX;
        loop {
            let came = self.call(calls_left > 0);
            self.account(local);
            calls_left = calls_left.saturating_sub(1);
            self.is_lively.set(came.any);
            if came.woken || came.beside && self.wake_idler() {
                return;
            }
            let goes_on = came.any && calls_left > 0;
            if !goes_on && self.ring().fall_asleep() {
                return;
            }
        }
    }

    fn wake_idler(&self) -> bool {
        self.idler.borrow().as_ref().map(Waker::wake_by_ref).is_some()
    }

    fn call(&self, may_wait: bool) -> Came {
        match self.epoll.as_ref().filter(|_| may_wait && self.is_lively.get()) {
            Some(epoll) => self.ring().wait(epoll),
            None => self.ring().turn(),
        }
    }

    fn account(&self, local: &Local) {
        let mut ring = self.ring();
        let sent_len = ring.take_sent_len();
        if sent_len > 0 {
            local.counters().add(Counter::BytesWritten, sent_len);
        }
        let mut pool = local.pool.borrow_mut();
        ring.take_spent().for_each(|buffer| pool.give_output(buffer));
    }
}

/// The task of a worker's ring, which does nothing.
pub async fn idle(reactor: Rc<Reactor>) {
    poll_fn(|context| {
        reactor.idler.replace(Some(context.waker().clone()));
        Poll::<()>::Pending
    })
    .await;
}

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
use crate::server::glance::first_key;
use crate::server::shared::{Activity, ConnectionInfo};
use crate::server::socket::watch;
use crate::server::worker::Local;
use crate::store::types::Key;
use crate::sys::epolls::epoll_that_watches;
use crate::uring::ring::{Came, Ring, User};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::{Cell, RefCell, RefMut};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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
        match Self::new() {
            Err(error) if engine == Engine::Both => {
                log::warn!("a worker serves by way of epoll: io_uring: {error}");
                Ok(None)
            }
            made => made.map(Rc::new).map(Some),
        }
    }

    fn new() -> io::Result<Self> {
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let ring = RefCell::new(Ring::new(&doorbell)?);
        let doorbell = watch(doorbell, Interest::READABLE)?;
        let epoll = epoll_that_watches(doorbell.get_ref());
        if epoll.is_none() {
            log::debug!("io_uring: the runtime's epoll was not found");
        }
        let is_lively = Cell::new(false);
        Ok(Self { ring, _doorbell: doorbell, epoll, is_lively })
    }

    pub(super) fn ring(&self) -> RefMut<'_, Ring<Arc<ConnectionInfo>>> {
        self.ring.borrow_mut()
    }

    /// Hands over what is queued and takes what has come.
    pub fn turn(&self, local: &Local) -> Came {
        let came = self.ring().turn();
        self.account(local, came);
        self.is_lively.set(self.is_lively.get() || came.any);
        came
    }

    /// [`Reactor::turn`] that waits for something to come, while clients speak.
    pub fn wait(&self, local: &Local) -> Came {
        let Some(epoll) = self.epoll.as_ref().filter(|_| self.is_lively.get()) else {
            return self.turn(local);
        };
        let came = {
            let mut ring = self.ring();
            ring.wake_up();
            ring.wait(epoll)
        };
        self.account(local, came);
        self.is_lively.set(came.any);
        came
    }

    /// Turns the ring until somebody is woken, or until the runtime may sleep; the doorbell rings
    /// then.
    pub fn before_sleep(&self, local: &Local) {
        self.ring().wake_up();
        while !self.turn(local).woken && !self.ring().fall_asleep() {}
    }

    fn account(&self, local: &Local, came: Came) {
        let mut ring = self.ring();
        // Only where somebody reads it next: that turn of the store has to end.
        if came.woken {
            bring_near(&ring, local);
        }
        let sent_len = ring.take_sent_len();
        if sent_len > 0 {
            local.counters().add(Counter::BytesWritten, sent_len);
        }
        let mut pool = local.pool.borrow_mut();
        ring.take_spent().for_each(|buffer| pool.give_output(buffer));
    }
}

/// Brings the memory of what clients have asked for near, for all of them together: each by itself
/// would have to wait for its own.
fn bring_near(ring: &Ring<Arc<ConnectionInfo>>, local: &Local) {
    let mut keys = [NO_KEY; KEYS_MAX];
    let mut count: usize = 0;
    for (place, key) in keys.iter_mut().zip(ring.heard().filter_map(first_key)) {
        *place = key;
        count = count.saturating_add(1);
    }
    // One alone waits for its memory all the same.
    if count > 1 {
        local.bring_near(keys.get(..count).unwrap_or_default());
    }
}

/// Keys that are brought near at most: what these lead to has to stay in the nearest cache.
const KEYS_MAX: usize = 64;

const NO_KEY: Key<'static> = match Key::new(b"-") {
    Some(key) => key,
    None => unreachable!(),
};

//! The task that turns a worker's ring, beside the runtime that serves all else. It owns when the
//! kernel is called; under load that is once for all connections that have something to say.
#![forbid(unsafe_code)]

use crate::command::counters::Counter;
use crate::server::config::Engine;
use crate::server::shared::{Activity, ConnectionInfo};
use crate::server::socket::{watch, yield_turn};
use crate::server::worker::Local;
use crate::uring::ring::{Ring, User};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::{RefCell, RefMut};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A worker's ring and what wakes it.
pub struct Reactor {
    ring: RefCell<Ring<Arc<ConnectionInfo>>>,
}

/// What the kernel signals while the reactor sleeps.
pub struct Doorbell(OwnedFd);

impl User for Arc<ConnectionInfo> {
    fn sent(&self, busy_behind: bool) {
        self.doing(Activity::Read, busy_behind);
    }
}

impl Reactor {
    /// A ring for this thread, which alone may use it, and its doorbell; none under tokio.
    ///
    /// # Errors
    /// What the kernel lacks or refuses.
    pub fn of(engine: Engine) -> io::Result<Option<(Rc<Self>, Doorbell)>> {
        if engine == Engine::Tokio {
            return Ok(None);
        }
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let ring = RefCell::new(Ring::new(&doorbell)?);
        Ok(Some((Rc::new(Self { ring }), Doorbell(doorbell))))
    }

    pub(super) fn ring(&self) -> RefMut<'_, Ring<Arc<ConnectionInfo>>> {
        self.ring.borrow_mut()
    }

    fn turn(&self, local: &Local) -> bool {
        let mut ring = self.ring();
        let moved = ring.turn();
        let spent = ring.take_spent();
        if spent.sent_len > 0 {
            local.counters().add(Counter::BytesWritten, spent.sent_len);
        }
        let mut pool = local.pool.borrow_mut();
        spent.buffers.into_iter().for_each(|buffer| pool.give_output(buffer));
        moved
    }

    async fn sleep(&self, doorbell: &AsyncFd<OwnedFd>) -> io::Result<()> {
        let mut asleep = false;
        poll_fn(|context| {
            if !asleep {
                asleep = self.ring().fall_asleep(context);
                if !asleep {
                    return Poll::Ready(Ok(()));
                }
            } else if !self.ring().is_asleep() {
                return Poll::Ready(Ok(()));
            }
            // Each signal is an edge of its own: the counter need not be read.
            doorbell.poll_read_ready(context).map_ok(|mut ready| ready.clear_ready())
        })
        .await?;
        self.ring().wake_up();
        Ok(())
    }
}

/// Turns the ring for as long as the worker runs.
pub async fn run(local: Rc<Local>, reactor: Rc<Reactor>, doorbell: Doorbell) {
    let doorbell = match watch(doorbell.0, Interest::READABLE) {
        Ok(doorbell) => doorbell,
        Err(error) => return log::error!("io_uring: {error}"),
    };
    loop {
        if reactor.turn(&local) {
            yield_turn().await;
        } else if let Err(error) = reactor.sleep(&doorbell).await {
            return log::error!("io_uring: {error}");
        }
    }
}

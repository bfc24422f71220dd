//! A worker's outermost future where it has a ring: its tasks, then the ring, and again. It owns when
//! the runtime has its turn in between: when its epoll has something, when timers may be due, and
//! when the thread is to sleep outside the ring. What is said over the ring is the tasks' business.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::uring::reactor::Reactor;
use crate::server::worker::Local;
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Rounds in a row before the runtime has its turn.
const ROUNDS_MAX: u32 = 256;

/// How long rounds go on before the runtime has its turn: so much later than asked for may its timers
/// be.
const ROUNDS_TIME_MAX: Duration = Duration::from_millis(4);

thread_local! {
    /// Whose rounds this thread is in, between two turns of its runtime.
    static INSIDE: Cell<*const Nudge> = const { Cell::new(std::ptr::null()) };
}

/// Polls `tasks`, and turns the ring when they have nothing left to do, to the end of `tasks`.
pub async fn rounds(local: &Local, reactor: &Reactor, tasks: impl Future<Output = ()>) {
    let mut tasks = pin!(tasks);
    let mut nudge: Option<(Arc<Nudge>, Waker)> = None;
    poll_fn(|context| {
        let (nudge, waker) = nudge.get_or_insert_with(|| Nudge::for_runtime(context.waker()));
        let mut context = Context::from_waker(waker);
        let inside = Inside::begin(nudge);
        let mut begun_ns = None;
        for _ in 0..ROUNDS_MAX {
            nudge.is_set.store(false, Ordering::Relaxed);
            if tasks.as_mut().poll(&mut context).is_ready() {
                return Poll::Ready(());
            }
            // Acquire: what the tasks are to look at; pairs with the Release in `wake_by_ref`.
            let goes_on = nudge.is_set.load(Ordering::Acquire);
            let turn_ns = local.end_turn().boottime_ns;
            let came = if goes_on { reactor.turn(local) } else { reactor.wait(local) };
            let past_ns = turn_ns.saturating_sub(*begun_ns.get_or_insert(turn_ns));
            let is_over = Duration::from_nanos(past_ns) >= ROUNDS_TIME_MAX;
            if came.beside || is_over || !(goes_on || came.woken) {
                break;
            }
        }
        drop(inside);
        // Acquire: as above.
        if nudge.is_set.load(Ordering::Acquire) {
            nudge.runtime.wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

/// Wakes the tasks. The runtime hears of it only from outside the rounds: inside they are polled again
/// anyway, and a runtime that has heard of it once would not be heard when it is woken again.
struct Nudge {
    is_set: AtomicBool,
    runtime: Waker,
}

impl Nudge {
    fn for_runtime(runtime: &Waker) -> (Arc<Self>, Waker) {
        let nudge = Arc::new(Self { is_set: AtomicBool::new(false), runtime: runtime.clone() });
        (Arc::clone(&nudge), Waker::from(nudge))
    }
}

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Release: pairs with the Acquire in `rounds`.
        self.is_set.store(true, Ordering::Release);
        // Another worker's tasks are often woken from inside one's own rounds.
        if INSIDE.get() != Arc::as_ptr(self) {
            self.runtime.wake_by_ref();
        }
    }
}

/// The thread is between two turns of its runtime while this lives.
struct Inside;

impl Inside {
    fn begin(nudge: &Arc<Nudge>) -> Self {
        INSIDE.set(Arc::as_ptr(nudge));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(std::ptr::null());
    }
}

#[cfg(test)]
mod tests {
    use super::{Inside, Nudge};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Wake, Waker};

    /// Counts how often a runtime is woken.
    #[derive(Default)]
    struct Runtime(AtomicU32);

    impl Wake for Runtime {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_runtime_hears_of_all_but_what_its_own_rounds_do() {
        let (own, other) = (Arc::new(Runtime::default()), Arc::new(Runtime::default()));
        let (own_nudge, own_waker) = Nudge::for_runtime(&Waker::from(Arc::clone(&own)));
        let (_, other_waker) = Nudge::for_runtime(&Waker::from(Arc::clone(&other)));
        let heard = || (own.0.load(Ordering::Relaxed), other.0.load(Ordering::Relaxed));
        let inside = Inside::begin(&own_nudge);
        own_waker.wake_by_ref();
        assert!(own_nudge.is_set.load(Ordering::Relaxed));
        assert_eq!(heard(), (0, 0));
        other_waker.wake_by_ref();
        assert_eq!(heard(), (0, 1));
        std::thread::scope(|scope| scope.spawn(|| own_waker.wake_by_ref()).join())
            .expect("no panic");
        assert_eq!(heard(), (1, 1));
        drop(inside);
        own_waker.wake_by_ref();
        assert_eq!(heard(), (2, 1));
    }
}

//! The parent's life: signals, the child's end, the guard's watch, deadlines.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::Config;
use crate::control::server::{Control, Upgrade};
use crate::control::sides::{SharedGuard, SharedLink};
use crate::control::socket::ControlSocket;
use crate::link::{LinkError, Request};
use crate::startup::baton::{Facts, Thing};
use crate::startup::lock::Lock;
use crate::startup::parent::AUDITED;
use crate::startup::process::{End, Serving};
use crate::startup::sockets::Listening;
use crate::startup::upgrade::upgrade;
use crate::startup::{certificates, credentials, lists, metrics, supervision};

/// How often deadlines are looked at and watchers get counters.
const SECOND: Duration = Duration::from_secs(1);
/// How often the log says that nobody is refused.
const AUDIT_TOLD_EVERY_S: u32 = 600;
/// How long the child is given to stop at once.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the child is given to stop gracefully.
const GRACE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why the parent ends.
pub(super) enum Ending {
    /// A signal or a client's `shutdown` asked for it.
    Asked,
    /// Something else ended it.
    Failed(anyhow::Error),
}

/// A parent whose child serves.
pub(super) struct Running {
    pub(super) child: Serving,
    pub(super) link: SharedLink,
    pub(super) guard: Option<SharedGuard>,
    pub(super) control: Control,
    pub(super) signals: Signals,
    pub(super) upgrades: mpsc::Receiver<Upgrade>,
    /// Where the words of the command line were said.
    pub(super) directory: PathBuf,
    pub(super) locks: Vec<Lock>,
    /// Where the metrics are served.
    pub(super) metrics: Option<metrics::Bound>,
    /// The control socket and its listening end.
    pub(super) socket: Option<(ControlSocket, OwnedFd)>,
    /// What is served; the sockets themselves are the child's.
    pub(super) listening: Listening,
    /// Whether the overlay is in this process's memory only.
    pub(super) overlay_is_nowhere: bool,
    /// Whether the store is in the kernel plane's region.
    pub(super) in_kernel: bool,
}

/// The signals that the parent acts on.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    graceful: Signal,
    reload: Signal,
    upgrade: Signal,
    child: Signal,
}

/// What woke the parent.
enum Wake {
    Stop { name: &'static str, graceful: bool },
    Reload,
    Upgrade(Upgrade),
    ChildEnded(std::io::Result<End>),
    Failed(anyhow::Error),
}

impl Signals {
    /// Takes the signals over. Those that come before the serving process runs wait for it.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            graceful: signal(SignalKind::user_defined1())?,
            reload: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
            child: signal(SignalKind::child())?,
        })
    }

    /// Waits for a signal that ends the daemon at once, and names it.
    pub(super) async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.graceful.recv() => "SIGUSR1",
        }
    }
}

impl Running {
    /// What a successor has to know.
    pub(super) fn facts(&self) -> Facts {
        let mut facts = Facts::new(self.directory.clone(), self.child.pid());
        facts.addresses.clone_from(&self.listening.addresses);
        facts.datagram_addresses.clone_from(&self.listening.datagram_addresses);
        facts.unix.clone_from(&self.listening.unix);
        facts.in_kernel = self.in_kernel;
        facts.control = self.socket.as_ref().map(|(socket, _)| socket.path().to_owned());
        facts
    }

    /// What a successor needs of this process beside the link.
    pub(super) fn estate(&self) -> anyhow::Result<Vec<(Thing, OwnedFd)>> {
        let mut things = Vec::new();
        for lock in &self.locks {
            let (path, file) = lock.copy().context("a lock")?;
            things.push((Thing::Lock(path), file));
        }
        if let Some((_, listener)) = &self.socket {
            things.push((Thing::Control, listener.try_clone().context("the control socket")?));
        }
        if let Some(metrics) = &self.metrics {
            let socket = metrics.as_fd().try_clone_to_owned().context("the metrics socket")?;
            things.push((Thing::Metrics { unix: metrics.is_unix() }, socket));
        }
        if let Some(guard) = &self.guard {
            let lock = guard.hold().copy_lock().context("the guard's lock")?;
            things.push((Thing::GuardLock, lock));
        }
        Ok(things)
    }

    /// Runs until a signal or the child's end; the child has ended when this returns.
    pub(super) async fn until_end(&mut self, config: &Config) -> Ending {
        let mut chores = JoinSet::new();
        if let Some(guard) = &self.guard {
            match supervision::begin(SharedGuard::clone(guard)) {
                Ok(news) => {
                    chores.spawn_local(supervision::tell(news, self.control.clone()));
                }
                Err(error) => {
                    self.stop(false).await;
                    return Ending::Failed(error);
                }
            }
        }
        let link = SharedLink::clone(&self.link);
        chores.spawn_local(every_second(self.control.clone(), config.clone(), link));
        loop {
            let wake = tokio::select! {
                wake = self.wake() => wake,
                Some(failed) = chores.join_next() => Wake::Failed(match failed {
                    Ok(error) => error,
                    Err(error) => error.into(),
                }),
            };
            match wake {
                Wake::Reload => {
                    log::info!("SIGHUP: reading the lists again");
                    self.control.reload(lists::configured(config)).await;
                    credentials::reload(config, &self.link).await;
                    certificates::reload(config, &self.link).await;
                }
                Wake::Upgrade(wish) => upgrade(self, wish).await,
                Wake::Stop { name, graceful } => {
                    log::info!(
                        "{name}: {}",
                        if graceful { "gracefully stopping" } else { "stopping" }
                    );
                    self.stop(graceful).await;
                    return Ending::Asked;
                }
                Wake::Failed(error) => {
                    self.stop(false).await;
                    return Ending::Failed(error);
                }
                Wake::ChildEnded(end) => return ended(end),
            }
        }
    }

    async fn wake(&mut self) -> Wake {
        let signals = &mut self.signals;
        tokio::select! {
            _ = signals.terminate.recv() => Wake::Stop { name: "SIGTERM", graceful: false },
            _ = signals.interrupt.recv() => Wake::Stop { name: "SIGINT", graceful: false },
            _ = signals.graceful.recv() => Wake::Stop { name: "SIGUSR1", graceful: true },
            _ = signals.reload.recv() => Wake::Reload,
            _ = signals.upgrade.recv() => Wake::Upgrade(Upgrade { binary: None, asker: None }),
            Some(wish) = self.upgrades.recv() => Wake::Upgrade(wish),
            end = exit(&self.child, &mut signals.child) => Wake::ChildEnded(end),
        }
    }

    /// Ends the child: asked, and killed if it does not end.
    async fn stop(&mut self, graceful: bool) {
        let limit = if graceful { GRACE_TIMEOUT } else { STOP_TIMEOUT };
        let link = SharedLink::clone(&self.link);
        let asked = timeout(limit, async move {
            match link.lock().await.done(&Request::Stop { graceful }).await {
                // It may end before its answer is out.
                Ok(()) | Err(LinkError::Closed) => {}
                Err(error) => log::warn!("{error}"),
            }
        });
        // A second signal does not wait for the first one's grace.
        let signals = &mut self.signals;
        tokio::select! {
            _ = asked => {}
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
        }
        self.child.end_within(STOP_TIMEOUT).await;
    }
}

/// Waits for the child's end. May be dropped while it waits.
async fn exit(child: &Serving, sigchld: &mut Signal) -> std::io::Result<End> {
    loop {
        // Looked at first: the signal may have come before its receiver was there.
        if let Some(end) = child.ended()? {
            return Ok(end);
        }
        sigchld.recv().await;
    }
}

/// What the child's end means.
fn ended(end: std::io::Result<End>) -> Ending {
    match end {
        Ok(End::Status(0)) => {
            log::info!("a client's shutdown command ended the serving process");
            Ending::Asked
        }
        Ok(End::Status(status)) => {
            Ending::Failed(anyhow!("the serving process ended with status {status}"))
        }
        Ok(End::Signal(signal)) => {
            Ending::Failed(anyhow!("the serving process ended by {}", signal.as_str()))
        }
        Err(error) => Ending::Failed(anyhow!("waiting for the serving process: {error}")),
    }
}

/// Ends deadlines and tells watchers the counters; returns only when the child is out of reach.
async fn every_second(control: Control, config: Config, link: SharedLink) -> anyhow::Error {
    let mut ticks = interval(SECOND);
    let mut since_told = 0;
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        control.expire().await;
        since_told += 1;
        if control.is_audited() && since_told >= AUDIT_TOLD_EVERY_S {
            log::warn!("{AUDITED}");
            since_told = 0;
        }
        if control.publish_guard().await {
            log::info!("refresh_certs: reading the certificates again");
            certificates::reload(&config, &link).await;
        }
        control.count().await;
        if control.child_is_out_of_reach().await {
            return anyhow!("the serving process does not answer");
        }
    }
}

//! The parent's life: signals, the child's end, the guard's watch, deadlines.
#![forbid(unsafe_code)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::anyhow;
use caps::Capability;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::Config;
use crate::control::server::Control;
use crate::control::sides::{SharedGuard, SharedLink};
use crate::link::{LinkError, Request};
use crate::startup::parent::AUDITED;
use crate::startup::{certificates, credentials, lists, privileges};

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
    pub(super) child: Child,
    pub(super) link: SharedLink,
    pub(super) guard: Option<SharedGuard>,
    pub(super) control: Control,
    pub(super) signals: Signals,
}

/// The signals that the parent acts on.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    graceful: Signal,
    reload: Signal,
    child: Signal,
}

/// What woke the parent.
enum Wake {
    Stop { name: &'static str, graceful: bool },
    Reload,
    ChildEnded(std::io::Result<ExitStatus>),
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
    /// Runs until a signal or the child's end; the child has ended when this returns.
    pub(super) async fn until_end(mut self, config: &Config) -> Ending {
        let mut chores = JoinSet::new();
        if let Some(guard) = &self.guard {
            chores.spawn_local(watch(SharedGuard::clone(guard), self.control.clone()));
        }
        chores.spawn_local(every_second(self.control.clone()));
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
                Wake::ChildEnded(status) => return ended(status),
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
            status = exit(&mut self.child, &mut signals.child) => Wake::ChildEnded(status),
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
        let ended = timeout(STOP_TIMEOUT, exit(&mut self.child, &mut signals.child)).await;
        if ended.is_err() {
            log::warn!("the serving process does not stop; killing it");
            kill(&mut self.child);
        }
    }
}

/// Ends the serving process, whatever it is doing, and waits for its end.
pub(super) fn kill(child: &mut Child) {
    let killed = privileges::with_capability(Capability::CAP_KILL, || child.kill());
    if let Err(error) = killed {
        log::error!("killing the serving process: {error}");
        return;
    }
    // Killed for certain; a wait that fails has nothing left to wait for.
    let _ = child.wait();
}

/// Waits for the child's end. May be dropped while it waits.
async fn exit(child: &mut Child, sigchld: &mut Signal) -> std::io::Result<ExitStatus> {
    loop {
        // Looked at first: the signal may have come before its receiver was there.
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        sigchld.recv().await;
    }
}

/// What the child's exit status means.
fn ended(status: std::io::Result<ExitStatus>) -> Ending {
    let status = match status {
        Ok(status) => status,
        Err(error) => return Ending::Failed(anyhow!("waiting for the serving process: {error}")),
    };
    if status.success() {
        log::info!("a client's shutdown command ended the serving process");
        return Ending::Asked;
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("with status {code}"),
        (None, Some(signal)) => {
            let name = nix::sys::signal::Signal::try_from(signal).map(|signal| signal.as_str());
            format!("by {}", name.unwrap_or("a signal"))
        }
        (None, None) => "in an unknown way".to_owned(),
    };
    Ending::Failed(anyhow!("the serving process ended {how}"))
}

/// Looks at the guard and tells what it found and mended; returns only when it cannot look.
async fn watch(guard: SharedGuard, control: Control) -> anyhow::Error {
    let watch = guard.borrow().watch();
    let watch = match watch {
        Ok(watch) => watch,
        Err(error) => return error.into(),
    };
    loop {
        watch.ready().await;
        let events = guard.borrow_mut().tick();
        for event in events {
            let level = if event.is_warning() { log::Level::Warn } else { log::Level::Info };
            log::log!(level, "guard: {event}");
            control.event(json!({"event": "guard", "text": event.to_string()}));
        }
    }
}

/// Ends deadlines and tells watchers the counters; returns only when the child is out of reach.
async fn every_second(control: Control) -> anyhow::Error {
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
        control.publish_guard().await;
        control.count().await;
        if control.child_is_out_of_reach().await {
            return anyhow!("the serving process does not answer");
        }
    }
}

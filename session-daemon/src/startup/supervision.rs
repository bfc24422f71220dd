//! The guard's supervision: a thread of its own, so that nothing else that the parent does, such as
//! replacing a list of a million entries, keeps it from looking and mending.
#![forbid(unsafe_code)]

use std::thread;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::control::server::Control;
use crate::control::sides::SharedGuard;
use crate::guard::watch::GuardEvent;

/// News that the rest of the parent may be behind. What is too much is in the log and is not told to
/// those who watch.
const NEWS_MAX: usize = 1024;

/// What the thread found.
pub(super) enum News {
    /// For those who watch.
    Event(Value),
    /// It cannot look.
    Failed(anyhow::Error),
}

/// Begins to look at the guard, until the process ends.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn begin(guard: SharedGuard) -> Result<Receiver<News>> {
    let (sender, receiver) = channel(NEWS_MAX);
    let look = move || {
        if let Err(error) = supervise(&guard, &sender) {
            // Taken or not: the end of the thread says the same.
            let _ = sender.try_send(News::Failed(error));
        }
    };
    let name = "guard".to_owned();
    thread::Builder::new().name(name).spawn(look).context("starting the guard's supervision")?;
    Ok(receiver)
}

fn supervise(guard: &SharedGuard, news: &Sender<News>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let watch = guard.hold().watch()?;
        loop {
            watch.ready().await;
            let (events, drops) = {
                let mut guard = guard.hold();
                (guard.tick(), guard.drops())
            };
            for event in events {
                log_event(&event);
                let text = event.to_string();
                let _ = news.try_send(News::Event(json!({"event": "guard", "text": text})));
            }
            for drop in drops {
                let _ = news.try_send(News::Event(json!({"event": "drop", "drop": drop})));
            }
        }
    })
}

/// Tells the log what happened to the guard.
pub(super) fn log_event(event: &GuardEvent) {
    let level = if event.is_warning() { log::Level::Warn } else { log::Level::Info };
    log::log!(level, "guard: {event}");
}

/// Tells those who watch what the thread found; returns only when it cannot look.
pub(super) async fn tell(mut news: Receiver<News>, control: Control) -> anyhow::Error {
    while let Some(one) = news.recv().await {
        match one {
            News::Event(event) => control.event(event),
            News::Failed(error) => return error,
        }
    }
    anyhow!("the guard's supervision has ended")
}

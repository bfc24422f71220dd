//! How long a worker that is to end waits for what is under way. It owns the bounds; what ends then is
//! the worker's business.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::worker::Local;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

/// How long a graceful stop waits for what is under way.
const GRACE: Duration = Duration::from_secs(5);

/// How long a hand-over waits for what is under way. Everybody is served meanwhile.
const SETTLE: Duration = Duration::from_millis(500);

/// How often a graceful stop or a hand-over looks whether it is over.
const GRACE_STEP: Duration = Duration::from_millis(10);

/// How long a hand-over waits for requests that were begun behind [`SETTLE`]: a value that comes in
/// pieces cannot be told to another process.
const LAST_REQUESTS: Duration = Duration::from_millis(200);

/// How often it looks.
const LAST_REQUESTS_STEP: Duration = Duration::from_millis(1);

/// Closes what is idle at once and waits a while for the rest.
#[expect(clippy::arithmetic_side_effects, reason = "a few seconds from now there is a time")]
pub async fn finish(local: &Local) {
    let give_up = tokio::time::Instant::now() + GRACE;
    while tokio::time::Instant::now() < give_up {
        let connections: Vec<_> = local.seat().connections().values().cloned().collect();
        if connections.is_empty() {
            return;
        }
        connections.iter().filter(|info| !info.is_busy()).for_each(|info| info.close());
        tokio::time::sleep(GRACE_STEP).await;
    }
}

/// Waits a while for requests that are half received and answers that are half sent.
#[expect(clippy::arithmetic_side_effects, reason = "a moment from now there is a time")]
pub async fn settle(local: Rc<Local>, reply: mpsc::Sender<()>) {
    let give_up = tokio::time::Instant::now() + SETTLE;
    let is_busy = || local.seat().connections().values().any(|info| info.is_busy());
    while is_busy() && tokio::time::Instant::now() < give_up {
        tokio::time::sleep(GRACE_STEP).await;
    }
    // Nobody waits any more: then nobody needs to know.
    let _ = reply.send(());
}

/// Waits a moment for the connections that leave when they have answered.
#[expect(clippy::arithmetic_side_effects, reason = "a moment from now there is a time")]
pub async fn last_requests(local: &Local) {
    let give_up = tokio::time::Instant::now() + LAST_REQUESTS;
    while !local.seat().connections().is_empty() && tokio::time::Instant::now() < give_up {
        tokio::time::sleep(LAST_REQUESTS_STEP).await;
    }
}

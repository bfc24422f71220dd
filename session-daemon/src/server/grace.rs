//! How long a worker that is to end waits for what is under way. It owns the bounds; what ends then is
//! the worker's business.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::shared::ConnectionInfo;
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
pub async fn finish(local: &Local) {
    wait_while(GRACE, GRACE_STEP, || {
        close_all(local, |info| !info.is_busy());
        !local.seat().connections().is_empty()
    })
    .await;
}

/// Waits a while for requests that are half received and answers that are half sent.
pub async fn settle(local: Rc<Local>, reply: mpsc::Sender<()>) {
    let is_busy = || local.seat().connections().values().any(|info| info.is_busy());
    wait_while(SETTLE, GRACE_STEP, is_busy).await;
    // Nobody waits any more: then nobody needs to know.
    let _ = reply.send(());
}

/// Waits a moment for the connections that leave when they have answered.
pub async fn last_requests(local: &Local) {
    let is_there = || !local.seat().connections().is_empty();
    wait_while(LAST_REQUESTS, LAST_REQUESTS_STEP, is_there).await;
}

/// Closes the worker's connections that are `which`.
pub fn close_all(local: &Local, which: impl Fn(&ConnectionInfo) -> bool) {
    let connections: Vec<_> = local.seat().connections().values().cloned().collect();
    connections.iter().filter(|info| which(info)).for_each(|info| info.close());
}

/// Looks every `step` whether something is under way, for at most `limit`.
#[expect(clippy::arithmetic_side_effects, reason = "a few seconds from now there is a time")]
async fn wait_while(limit: Duration, step: Duration, is_under_way: impl Fn() -> bool) {
    let give_up = tokio::time::Instant::now() + limit;
    while is_under_way() && tokio::time::Instant::now() < give_up {
        tokio::time::sleep(step).await;
    }
}

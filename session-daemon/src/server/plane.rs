//! What one worker does for the kernel plane: says that the daemon lives, and marks the items that
//! the kernel has answered with as accessed, so that eviction and `fetched` know of them.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use std::rc::Rc;
use std::time::Duration;

use session_common::plane::RING_LEN;

use crate::plane::Plane;
use crate::server::socket::yield_turn;
use crate::server::worker::Local;
use crate::store::types::CasUnique;

/// Pause between two looks while the kernel answers much: at most so many times a ring a second are
/// known of each CPU's answers.
const PAUSE_MIN: Duration = Duration::from_millis(4);
/// Pause while it answers little. Far below the daemon's lease.
const PAUSE_MAX: Duration = Duration::from_millis(256);

/// Accesses that are marked within a turn.
const MARKED_PER_TURN_MAX: usize = 256;

/// Renews the plane's lease and applies what it tells, until the worker ends.
pub async fn attend(local: Rc<Local>) {
    let Some(plane) = local.shared.config.plane.clone() else { return };
    let mut accesses = plane.accesses();
    let mut pause = PAUSE_MAX;
    let mut told = Vec::with_capacity(RING_LEN);
    loop {
        renew(&local, &plane);
        accesses.each(|item, cas| told.push((item, CasUnique(cas))));
        pause = next_pause(pause, told.len());
        for part in told.chunks(MARKED_PER_TURN_MAX) {
            for (item, cas) in part {
                local.note_access(*item, *cas);
            }
            yield_turn().await;
        }
        told.clear();
        tokio::time::sleep(pause).await;
    }
}

fn renew(local: &Local, plane: &Plane) {
    plane.renew(local.now());
}

/// Half as long when a ring was half full, twice as long when it was nearly empty.
fn next_pause(pause: Duration, told: usize) -> Duration {
    let next = match told {
        _ if told >= RING_LEN / 2 => pause.checked_div(2),
        _ if told < RING_LEN / 8 => pause.checked_mul(2),
        _ => Some(pause),
    };
    next.unwrap_or(pause).clamp(PAUSE_MIN, PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_follow_what_comes_within_bounds() {
        let mut pause = PAUSE_MAX;
        for _ in 0..20 {
            pause = next_pause(pause, RING_LEN);
        }
        assert_eq!(pause, PAUSE_MIN);
        assert_eq!(next_pause(pause, RING_LEN / 4), pause);
        assert_eq!(next_pause(pause, 0), PAUSE_MIN * 2);
        assert_eq!(next_pause(PAUSE_MAX, 0), PAUSE_MAX);
    }
}

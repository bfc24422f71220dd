//! Which worker serves a connection: the one that accepted it, until it turns out to stay, and then
//! the one that serves the fewest of those. A page of PHP is over before that, and costs no second
//! worker its sleep. It owns that choice and the change; it never looks at what a client says.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::client::{self, Presence};
use crate::server::connection::Connection;
use crate::server::listener::{Accepted, Past};
use crate::server::shared::Seat;
use crate::server::stream::Stream;
use crate::server::worker::{Local, Message};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Reads after which a connection is one that stays. PHP's session handlers make at most seven on
/// one for a page.
pub const STAYS_FROM: u32 = 16;

/// Serves a connection that was accepted here: here, unless it is one of TLS, which cannot change
/// hands later, or many clients speak already.
pub fn place(local: &Rc<Local>, accepted: Accepted) {
    let is_light = accepted.tls.is_none() && !local.is_crowded();
    let seat_idx = if is_light { local.seat_idx } else { emptier(local, |seat| &seat.load) };
    hand(local, seat_idx, accepted);
}

/// Decides where a connection that stays is served from now on. None: here, where it is counted.
#[must_use]
pub fn settle(presence: &Presence) -> Option<usize> {
    let local = &presence.local;
    let seat_idx = emptier(local, |seat| &seat.staying);
    if seat_idx == local.seat_idx || !local.may_hand_on() {
        presence.stays();
        return None;
    }
    Some(seat_idx)
}

/// Hands a connection that stays, between two requests and with nothing to send, to another worker;
/// false when it cannot be told in bytes, and it stays here then.
pub fn move_to(
    seat_idx: usize,
    presence: &Presence,
    connection: &mut Connection,
    stream: &mut impl Stream,
) -> bool {
    let Presence { local, info, .. } = presence;
    let Some(talk) = connection.talk() else {
        presence.stays();
        return false;
    };
    let Some(fd) = stream.leave(connection) else { return true };
    let (peer, listener) = (info.peer.clone(), Arc::clone(&info.listener));
    let past = Past::Worker(Box::new(talk));
    presence.leaves();
    hand(local, seat_idx, Accepted { fd, peer, listener, tls: None, past });
    true
}

/// The worker with the fewest connections; this one if no other has fewer.
fn emptier(local: &Local, count: impl Fn(&Seat) -> &AtomicUsize) -> usize {
    // Relaxed throughout: a count that is off by one costs a hand-over, no more.
    let here = count(local.seat()).load(Ordering::Relaxed);
    let counts = local.shared.seats.iter().map(|seat| count(seat).load(Ordering::Relaxed));
    let least = counts.enumerate().min_by_key(|(_, count)| *count);
    least.filter(|(_, count)| *count < here).map_or(local.seat_idx, |(idx, _)| idx)
}

/// Gives a connection that has its place to a worker, where it is counted from now on.
fn hand(local: &Rc<Local>, seat_idx: usize, accepted: Accepted) {
    let (seats, mailboxes) = (&local.shared.seats, &local.mailboxes);
    let (Some(seat), Some(mailbox)) = (seats.get(seat_idx), mailboxes.get(seat_idx)) else {
        return local.shared.give_place();
    };
    let staying = usize::from(accepted.stays());
    seat.load.fetch_add(1, Ordering::Relaxed);
    seat.staying.fetch_add(staying, Ordering::Relaxed);
    if seat_idx == local.seat_idx {
        return client::begin(local, accepted);
    }
    if let Err(unsent) = mailbox.send(Message::Adopt(accepted)) {
        // That worker is stopping, and so is the server.
        seat.load.fetch_sub(1, Ordering::Relaxed);
        seat.staying.fetch_sub(staying, Ordering::Relaxed);
        local.shared.give_place();
        drop(unsent);
    }
}

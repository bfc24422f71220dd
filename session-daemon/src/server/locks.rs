//! Locks of PHP sessions among the items, as the two handlers write them. It owns how such a lock
//! is told from other items; who holds one is in no item.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use crate::server::socket::yield_turn;
use crate::server::watchers::Shown;
use crate::server::worker::Local;
use crate::store::Item;
use crate::store::scan::Scan;
use crate::store::types::Lifetime;
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use std::sync::mpsc;

/// Buckets of the index looked at before other tasks have their turn.
const BUCKETS_PER_PIECE: u32 = 32;
/// Most locks told; a shop with more waits for something else.
const LOCKS_MAX: usize = 10_000;
/// What the handler `memcached` puts before the session's number.
const PREFIX: &[u8] = b"lock.";
/// What the handler `memcache` puts behind it.
const SUFFIX: &[u8] = b".lock";
/// Shortest number of a session that PHP makes.
const SESSION_LEN_MIN: usize = 22;

/// Which handler's words a lock is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handler {
    /// `session.save_handler = memcache`: `NUMBER.lock` is 1, and 0 when it is given back.
    Memcache,
    /// `session.save_handler = memcached`: `…lock.NUMBER` is there, and removed when it is given back.
    Memcached,
}

/// A lock that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLock {
    /// Its key, fit for a line of text.
    pub key: String,
    /// Whose words it is in.
    pub handler: Handler,
    /// Seconds until it ends by itself; none if it never does.
    pub left_s: Option<u64>,
}

/// Looks through all items and sends the locks that are held.
pub async fn locks(local: Rc<Local>, reply: mpsc::Sender<Vec<SessionLock>>) {
    let mut found = Vec::new();
    let mut scan = Scan::default();
    let mut more = true;
    while more && found.len() < LOCKS_MAX {
        let now_s = local.now().boottime_ns / 1_000_000_000;
        for _ in 0..BUCKETS_PER_PIECE {
            more = local.scan(&mut scan, &mut |item| found.extend(held(item, now_s)));
            if !more {
                break;
            }
        }
        yield_turn().await;
    }
    found.truncate(LOCKS_MAX);
    // Whoever asked may have given up.
    let _ = reply.send(found);
}

fn held(item: &Item<'_>, now_s: u64) -> Option<SessionLock> {
    let key = item.key();
    let handler = handler(key)?;
    // Both handlers write one character, the first one 0 when the lock is free.
    if item.value().flatten().copied().collect::<Vec<u8>>() != b"1" {
        return None;
    }
    let left_s = match item.lifetime() {
        Lifetime::Never => None,
        Lifetime::Past => Some(0),
        Lifetime::Until(second) => Some(u64::from(second).saturating_sub(now_s)),
    };
    Some(SessionLock { key: Shown(key).to_string(), handler, left_s })
}

/// The handler that writes locks of this form.
fn handler(key: &[u8]) -> Option<Handler> {
    let is_session = |number: &[u8]| {
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b",-".contains(byte);
        number.len() >= SESSION_LEN_MIN && number.iter().all(fits)
    };
    // A prefix of the operator's may stand before either; the number is behind the last dot.
    let last = |key: &[u8]| key.rsplit(|byte| *byte == b'.').next().is_some_and(is_session);
    if let Some(session) = key.strip_suffix(SUFFIX) {
        return last(session).then_some(Handler::Memcache);
    }
    let begin = key.windows(PREFIX.len()).rposition(|window| window == PREFIX)?;
    let number = key.get(begin.saturating_add(PREFIX.len())..)?;
    is_session(number).then_some(Handler::Memcached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_told_by_their_keys() {
        let number = "0123456789abcdefghijklmnop";
        for (key, expected) in [
            (format!("{number}.lock"), Some(Handler::Memcache)),
            (format!("shop.{number}.lock"), Some(Handler::Memcache)),
            (format!("memc.sess.key.lock.{number}"), Some(Handler::Memcached)),
            (format!("lock.{number}"), Some(Handler::Memcached)),
            (format!("memc.sess.key.{number}"), None),
            (number.to_owned(), None),
            ("door.lock".to_owned(), None),
            ("lock.short".to_owned(), None),
            (format!("{number}.locked"), None),
            (String::new(), None),
        ] {
            assert_eq!(handler(key.as_bytes()), expected, "{key}");
        }
    }
}

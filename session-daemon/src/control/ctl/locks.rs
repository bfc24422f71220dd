//! `sessionctl locks`: sessions whose lock is held for long, and the clients that may hold it.
//!
//! An item says when its lock ends, and nobody says when it began or who took it. The age is what
//! has passed of the handler's expiry. PHP keeps its connection open and silent while the page
//! runs, so the holder is among the clients that have been silent for about as long.
#![forbid(unsafe_code)]

use std::fmt::Write;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::ctl::top::sample::connections;

/// How much longer or shorter than the lock's age a holder may be silent: both are whole seconds,
/// and the page reads the session just after it has the lock.
const SILENCE_TOLERANCE_S: u64 = 2;
/// Most clients that are named for one lock.
const CLIENTS_MAX: usize = 4;

/// What is asked for, and how long the handlers' locks last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) longer_s: u64,
    pub(super) memcache_s: u64,
    pub(super) memcached_s: u64,
}

/// Which handler's words a lock is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Handler {
    Memcache,
    Memcached,
}

/// A lock as the daemon tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lock {
    key: String,
    handler: Handler,
    /// Seconds until it ends by itself; none if it never does.
    left_s: Option<u64>,
}

/// A lock that is held for long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Held {
    #[serde(flatten)]
    lock: Lock,
    /// Seconds for which it is held; none where it never ends and so says nothing.
    age_s: Option<u64>,
    /// Addresses of the clients that may hold it.
    clients: Vec<String>,
}

/// The locks of an answer that are held longer than asked for, the oldest first.
pub(super) fn held(answer: &Value, terms: Terms) -> Result<Vec<Held>> {
    let locks = serde_json::from_value::<Vec<Lock>>(answer["locks"].clone());
    let locks = locks.context("the answer has no locks")?;
    let silent = connections(answer["connections"].as_str().unwrap_or_default());
    let aged = locks.into_iter().map(|lock| {
        let whole = match lock.handler {
            Handler::Memcache => terms.memcache_s,
            Handler::Memcached => terms.memcached_s,
        };
        let age_s = lock.left_s.map(|left| whole.saturating_sub(left));
        let may_hold = |silence: u64| match age_s {
            Some(age) => silence.abs_diff(age) <= SILENCE_TOLERANCE_S,
            None => silence > terms.longer_s,
        };
        let mut clients: Vec<String> = silent
            .iter()
            .filter(|(_, silence)| may_hold(*silence))
            .map(|(address, _)| address.clone())
            .collect();
        clients.sort();
        clients.dedup();
        Held { lock, age_s, clients }
    });
    let mut held: Vec<Held> =
        aged.filter(|held| held.age_s.is_none_or(|age| age > terms.longer_s)).collect();
    held.sort_by_key(|held| std::cmp::Reverse(held.age_s.unwrap_or(u64::MAX)));
    Ok(held)
}

/// One line a lock.
pub(super) fn render(held: &[Held], terms: Terms) -> String {
    if held.is_empty() {
        return format!("no session is locked for more than {} s\n", terms.longer_s);
    }
    let mut text = String::new();
    for one in held {
        let age = match (one.age_s, one.lock.left_s) {
            (Some(age), Some(left)) => format!("held for {age} s, ends in {left} s"),
            _ => "never ends by itself: delete it".to_owned(),
        };
        let clients = match one.clients.as_slice() {
            [] => "by a client that has gone".to_owned(),
            [client] => format!("by {client}"),
            clients if clients.len() <= CLIENTS_MAX => format!("by one of {}", clients.join(", ")),
            clients => format!("by one of {} clients", clients.len()),
        };
        let _ = writeln!(text, "{}  {age}, {clients}", one.lock.key);
    }
    text
}

/// The same as JSON.
pub(super) fn to_json(held: &[Held]) -> Value {
    json!({"ok": true, "locks": held})
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { longer_s: 5, memcache_s: 15, memcached_s: 30 };

    #[test]
    fn the_age_is_what_has_passed_of_the_expiry() {
        let lock = |key: &str, handler: &str, left: Value| json!({"key": key, "handler": handler, "left_s": left});
        let answer = json!({
            "locks": [
                lock("a.lock", "memcache", json!(3)),
                lock("b.lock", "memcache", json!(14)),
                lock("lock.c", "memcached", json!(9)),
                lock("lock.d", "memcached", Value::Null),
            ],
            "connections": "STAT 30:addr tcp:198.18.0.11:4000\r\n\
                STAT 30:state conn_read\r\nSTAT 30:secs_since_last_cmd 12\r\n\
                STAT 31:addr tcp:198.18.0.12:4000\r\nSTAT 31:state conn_read\r\n\
                STAT 31:secs_since_last_cmd 0\r\nEND\r\n",
        });
        let held = held(&answer, TERMS).unwrap();
        let text = render(&held, TERMS);
        assert_eq!(
            text,
            "lock.d  never ends by itself: delete it, by 198.18.0.11\n\
             lock.c  held for 21 s, ends in 9 s, by a client that has gone\n\
             a.lock  held for 12 s, ends in 3 s, by 198.18.0.11\n"
        );
        assert_eq!(render(&[], TERMS), "no session is locked for more than 5 s\n");
    }
}

//! The control server: accepts, answers the commands, tells watchers, writes the audit log.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, broadcast};

use crate::allowlist::parse::Any;
use crate::allowlist::{Action, Allowlist, Diff, Entry};
use crate::clock::Now;
use crate::config::GuardKind;
use crate::control::connection;
use crate::control::keeper::{Changed, Keeper};
use crate::control::protocol::Peer;
use crate::control::sides::{KernelSide, ServingSide, SharedGuard, SharedLink};
use crate::guard::status::GuardStatus;
use crate::link::Request;

/// Connections served at one time; more are closed unanswered.
pub(crate) const CONNECTIONS_MAX: usize = 32;
/// Events that a slow watcher may be behind.
const EVENTS_MAX: usize = 256;
/// Longest command of `admin`.
const ADMIN_LEN_MAX: usize = 1024;
/// Longest `--for`: ten years.
const FOR_MAX_S: u64 = 10 * 366 * 86_400;

/// What `status` says of the start.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// memcached's version that is answered for.
    pub(crate) memcached_version: &'static str,
    /// `--guard`.
    pub(crate) guard: GuardKind,
    /// Addresses served over TCP.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Path served over a unix socket.
    pub(crate) unix: Option<PathBuf>,
    /// Where the overlay is.
    pub(crate) state: Option<PathBuf>,
    /// The serving process.
    pub(crate) child: u32,
}

/// Everything that a command needs; cheap to clone.
#[derive(Clone)]
pub(crate) struct Control {
    shared: Rc<Shared>,
}

struct Shared {
    keeper: Mutex<Keeper<KernelSide, ServingSide>>,
    guard: Option<SharedGuard>,
    link: SharedLink,
    facts: Facts,
    started: Instant,
    events: broadcast::Sender<Value>,
    connections: Cell<usize>,
    /// Counters of the last look, for the differences that watchers see.
    last: RefCell<BTreeMap<String, u64>>,
}

impl Control {
    /// Takes over what the start made.
    pub(crate) fn new(
        keeper: Keeper<KernelSide, ServingSide>,
        guard: Option<SharedGuard>,
        link: SharedLink,
        facts: Facts,
    ) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let shared = Shared {
            keeper: Mutex::new(keeper),
            guard,
            link,
            facts,
            started: Instant::now(),
            events,
            connections: Cell::new(0),
            last: RefCell::default(),
        };
        Self { shared: Rc::new(shared) }
    }

    /// Accepts for ever; needs a `LocalSet`.
    pub(crate) async fn accept(self, listener: UnixListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log::error!("control: accept: {error}");
                    // Out of descriptors: they come back when connections end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let connections = &self.shared.connections;
            if connections.get() >= CONNECTIONS_MAX {
                log::warn!("control: {CONNECTIONS_MAX} connections are open; one more is refused");
                continue;
            }
            connections.set(connections.get() + 1);
            let control = self.clone();
            tokio::task::spawn_local(async move {
                connection::serve(stream, control.clone()).await;
                let connections = &control.shared.connections;
                connections.set(connections.get() - 1);
            });
        }
    }

    /// `allow`.
    pub(crate) async fn allow(
        &self,
        prefixes: &[IpNet],
        for_s: Option<u64>,
        comment: Option<String>,
        any: bool,
        peer: Peer,
    ) -> Result<Value> {
        ensure!(
            for_s.is_none_or(|for_s| (1..=FOR_MAX_S).contains(&for_s)),
            "--for must be from one second to ten years"
        );
        let now = Now::sample();
        let deadline_ns = for_s.map(|for_s| now.boottime_ns + for_s * 1_000_000_000);
        let mut keeper = self.shared.keeper.lock().await;
        let result = keeper.allow(prefixes, deadline_ns, comment, permission(any), now).await;
        self.tell("allow", peer, result)
    }

    /// `deny`.
    pub(crate) async fn deny(
        &self,
        prefixes: &[IpNet],
        comment: Option<String>,
        peer: Peer,
    ) -> Result<Value> {
        let mut keeper = self.shared.keeper.lock().await;
        let result = keeper.deny(prefixes, comment, Now::sample()).await;
        self.tell("deny", peer, result)
    }

    /// `remove`.
    pub(crate) async fn remove(&self, prefixes: &[IpNet], peer: Peer) -> Result<Value> {
        let mut keeper = self.shared.keeper.lock().await;
        let result = keeper.remove(prefixes, Now::sample()).await;
        self.tell("remove", peer, result)
    }

    /// `sync`.
    pub(crate) async fn sync(
        &self,
        entries: &[Entry],
        dry_run: bool,
        any: bool,
        peer: Peer,
    ) -> Result<Value> {
        let mut keeper = self.shared.keeper.lock().await;
        if dry_run {
            let (_, diff) = keeper.sync_diff(entries, permission(any))?;
            return Ok(json!({"ok": true, "dry_run": true, "diff": diff}));
        }
        let result = keeper.sync(entries, permission(any), Now::sample()).await;
        self.tell("sync", peer, result)
    }

    /// `list`: the head, and the entries sorted by prefix.
    pub(crate) async fn list(&self) -> (Value, Vec<Value>) {
        let keeper = self.shared.keeper.lock().await;
        let now = Now::sample();
        let mut entries: Vec<&Entry> = keeper.list().entries().collect();
        entries.sort_by_key(|entry| entry.prefix);
        let lines: Vec<Value> = entries.iter().map(|entry| entry_json(entry, now)).collect();
        let head = json!({
            "ok": true,
            "count": lines.len(),
            "taken_out": keeper.taken_out(),
            "enforced": self.enforced(),
        });
        (head, lines)
    }

    /// `status`.
    pub(crate) async fn status(&self) -> Result<Value> {
        let statistics = self.shared.link.lock().await.statistics().await;
        let statistics = statistics.context("asking the serving process")?;
        let keeper = self.shared.keeper.lock().await;
        let facts = &self.shared.facts;
        let mut list = list_json(keeper.list());
        list["taken_out"] = keeper.taken_out().len().into();
        list["state"] = json!(facts.state);
        Ok(json!({
            "ok": true,
            "version": env!("CARGO_PKG_VERSION"),
            "memcached_version": facts.memcached_version,
            "pid": std::process::id(),
            "child_pid": facts.child,
            "uptime_s": self.shared.started.elapsed().as_secs(),
            "serving": {"tcp": facts.addresses, "unix": facts.unix},
            "enforced": self.enforced(),
            "guard": self.guard_status(),
            "list": list,
            "statistics": statistics,
        }))
    }

    /// `admin`: a command of one line, as a client would send it.
    pub(crate) async fn admin(&self, line: String, peer: Peer) -> Result<Value> {
        ensure!(
            line.len() <= ADMIN_LEN_MAX && !line.contains(['\r', '\n', '\0']),
            "write one command of one line, at most {ADMIN_LEN_MAX} bytes"
        );
        let Peer { uid, pid } = peer;
        log::info!(target: "audit", "uid {uid} pid {pid} admin: {line}");
        let answer = self.shared.link.lock().await.command(line).await;
        Ok(json!({"ok": true, "answer": answer.context("asking the serving process")?}))
    }

    /// Who keeps strangers out: `xdp`, `user`, `off`, or `loopback` where none can come.
    fn enforced(&self) -> &'static str {
        match self.shared.facts.guard {
            GuardKind::Xdp if self.shared.guard.is_none() => "loopback",
            GuardKind::Xdp => "xdp",
            GuardKind::User => "user",
            GuardKind::Off => "off",
        }
    }

    fn guard_status(&self) -> Value {
        let Some(guard) = &self.shared.guard else { return Value::Null };
        match serde_json::to_value(guard.borrow().status()) {
            Ok(status) => status,
            Err(error) => json!({"error": error.to_string()}),
        }
    }

    /// Packets by what became of them.
    fn packets(&self) -> Value {
        let Some(guard) = &self.shared.guard else { return Value::Null };
        let reasons = guard.borrow().status().reasons;
        let packets = reasons.into_iter().map(|count| (count.reason, count.packets.into()));
        Value::Object(packets.collect())
    }

    /// Tells the serving process what the guard has counted, for `stats guard`; to be called once
    /// a second. A process that is gone is noticed elsewhere.
    pub(crate) async fn publish_guard(&self) {
        let Some(guard) = &self.shared.guard else { return };
        let counters = guard_counters(&guard.borrow().status());
        let request = Request::GuardCounters(counters);
        if let Err(error) = self.shared.link.lock().await.done(&request).await {
            log::debug!("stats guard stays as it was: {error}");
        }
    }

    /// Takes the configuration anew (SIGHUP).
    pub(crate) async fn reload(&self, base: Result<Allowlist>) {
        let result = match base {
            Ok(base) => self.shared.keeper.lock().await.reload(base, Now::sample()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = self.tell("reload", ourselves(), result) {
            log::error!("reload: the old list stays in force: {error:#}");
        }
    }

    /// Removes entries that are over; to be called about once a second.
    pub(crate) async fn expire(&self) {
        let mut keeper = self.shared.keeper.lock().await;
        match keeper.expire(Now::sample()).await {
            Ok(changed) if changed.diff.is_empty() => {}
            result => {
                if let Err(error) = self.tell("expire", ourselves(), result) {
                    log::error!("an entry that is over stays listed: {error:#}");
                }
            }
        }
    }

    /// Whether the serving process has left a request unanswered.
    pub(crate) async fn child_is_out_of_reach(&self) -> bool {
        self.shared.link.lock().await.is_out_of_step()
    }

    /// A receiver of events.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Value> {
        self.shared.events.subscribe()
    }

    /// Tells watchers something; costs nothing without one.
    pub(crate) fn event(&self, event: Value) {
        let _ = self.shared.events.send(event);
    }

    /// Tells watchers the counters and how they grew; to be called once a second.
    pub(crate) async fn count(&self) {
        if self.shared.events.receiver_count() == 0 {
            self.shared.last.borrow_mut().clear();
            return;
        }
        let statistics = match self.shared.link.lock().await.statistics().await {
            Ok(statistics) => statistics,
            Err(error) => json!({"error": error.to_string()}),
        };
        let guard = self.packets();
        let mut now = BTreeMap::new();
        numbers("", &statistics, &mut now);
        numbers("guard.", &guard, &mut now);
        let mut last = self.shared.last.borrow_mut();
        let grown: BTreeMap<&String, u64> = now
            .iter()
            .filter_map(|(name, value)| {
                let before = last.get(name)?;
                Some((name, value.checked_sub(*before).filter(|grown| *grown > 0)?))
            })
            .collect();
        self.event(json!({
            "event": "counters",
            "grown": grown,
            "guard": guard,
            "statistics": statistics,
        }));
        *last = now;
    }

    /// The answer to a command, told to the audit log and the watchers as well.
    fn tell(&self, command: &str, peer: Peer, result: Result<Changed>) -> Result<Value> {
        let Peer { uid, pid } = peer;
        match result {
            Ok(changed) => {
                audit(command, peer, &changed);
                if !changed.diff.is_empty() {
                    self.event(json!({
                        "event": "list", "command": command, "by": peer,
                        "diff": changed.diff, "reset": changed.reset,
                    }));
                }
                let mut answer = json!({
                    "ok": true, "diff": changed.diff, "reset": changed.reset,
                });
                if matches!(self.shared.facts.guard, GuardKind::Off) {
                    answer["warning"] =
                        "--guard=off serves everybody: the list is kept and not enforced".into();
                }
                Ok(answer)
            }
            Err(error) => {
                log::warn!(target: "audit", "uid {uid} pid {pid} {command} failed: {error:#}");
                Err(error)
            }
        }
    }
}

/// The guard's state by names of `stats guard`.
fn guard_counters(status: &GuardStatus) -> Vec<(String, String)> {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let mut counters = vec![
        ("guard_generation".to_owned(), status.generation.to_string()),
        ("guard_complete".to_owned(), yes_no(status.complete)),
        ("guard_audit".to_owned(), yes_no(status.audit)),
    ];
    for interface in &status.interfaces {
        let mode = interface.mode.map_or_else(|| "none".to_owned(), |mode| mode.to_string());
        counters.push((format!("interface:{}:mode", interface.name), mode));
    }
    for count in &status.reasons {
        let verdict = if count.dropped { "dropped" } else { "passed" };
        let name = |what: &str| format!("{verdict}:{}:{what}", count.reason);
        counters.push((name("packets"), count.packets.to_string()));
        counters.push((name("bytes"), count.bytes.to_string()));
    }
    counters
}

/// Who asked when nobody did: the daemon itself.
fn ourselves() -> Peer {
    Peer {
        uid: rustix::process::geteuid().as_raw(),
        pid: std::process::id().try_into().unwrap_or(0),
    }
}

/// One line a changed entry, and one for the command.
fn audit(command: &str, peer: Peer, changed: &Changed) {
    let Peer { uid, pid } = peer;
    let Changed { diff, reset } = changed;
    for line in diff_lines(diff) {
        log::info!(target: "audit", "uid {uid} pid {pid} {command}: {line}");
    }
    let count = diff.added.len() + diff.removed.len() + diff.changed.len();
    log::info!(
        target: "audit",
        "uid {uid} pid {pid} {command}: {count} entries changed, {reset} connections reset"
    );
}

/// A difference as `sync --dry-run` prints it: `-` what goes, `+` what comes.
pub(crate) fn diff_lines(diff: &Diff) -> Vec<String> {
    let line = |sign: char, entry: &Entry| {
        let action = match entry.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        let comment = entry.comment.as_deref().map(|text| format!(" # {text}"));
        format!("{sign} {action} {}{}", entry.prefix, comment.unwrap_or_default())
    };
    let removed = diff.removed.iter().map(|entry| line('-', entry));
    let changed = diff.changed.iter().flat_map(|(old, new)| [line('-', old), line('+', new)]);
    let added = diff.added.iter().map(|entry| line('+', entry));
    removed.chain(changed).chain(added).collect()
}

/// An entry as `list` tells it, with the seconds that are left of it.
fn entry_json(entry: &Entry, now: Now) -> Value {
    let left = entry.deadline_ns.map(|at| at.saturating_sub(now.boottime_ns) / 1_000_000_000);
    json!({
        "prefix": entry.prefix,
        "action": entry.action,
        "origin": entry.origin,
        "comment": entry.comment,
        "left_s": left,
    })
}

fn list_json(list: &Allowlist) -> Value {
    let allowed = list.entries().filter(|entry| entry.action == Action::Allow).count();
    json!({"entries": list.len(), "allow": allowed, "deny": list.len() - allowed})
}

fn permission(any: bool) -> Any {
    if any { Any::Permitted } else { Any::Refused }
}

/// Every whole number in `value`, named by its path.
fn numbers(prefix: &str, value: &Value, into: &mut BTreeMap<String, u64>) {
    let text = |text: &str| text.parse::<u64>().ok();
    let Some(fields) = value.as_object() else { return };
    for (name, value) in fields {
        let name = format!("{prefix}{name}");
        match value.as_u64().or_else(|| value.as_str().and_then(text)) {
            Some(number) => drop(into.insert(name, number)),
            None => numbers(&format!("{name}."), value, into),
        }
    }
}

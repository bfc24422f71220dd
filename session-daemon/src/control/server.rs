//! The control server: accepts, answers the commands, tells watchers, writes the audit log.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, MutexGuard, broadcast, mpsc};

use crate::allowlist::{Action, Allowlist, Entry};
use crate::clock::Now;
use crate::config::GuardKind;
use crate::control::connection;
use crate::control::keeper::Keeper;
use crate::control::overlay::Pending;
use crate::control::protocol::Peer;
use crate::control::sides::{KernelSide, ServingSide, SharedGuard, SharedLink};
use crate::guard::status::{GuardStatus, InterfaceState};

/// Connections served at one time; more are closed unanswered.
pub(crate) const CONNECTIONS_MAX: usize = 32;
/// Events that a slow watcher may be behind.
const EVENTS_MAX: usize = 256;
/// Longest command of `admin`.
const ADMIN_LEN_MAX: usize = 1024;

/// A wish for another program file.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// The file; the one that runs, by its name, if none.
    pub(crate) binary: Option<PathBuf>,
    /// Who wants to know what came of it.
    pub(crate) asker: Option<OwnedFd>,
}

/// What `status` says of the start.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// memcached's version that is answered for.
    pub(crate) memcached_version: &'static str,
    /// `--guard`.
    pub(crate) guard: GuardKind,
    /// `--guard=audit`.
    pub(crate) audit: bool,
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
    pub(super) shared: Rc<Shared>,
}

/// What all clones of the control server share.
pub(super) struct Shared {
    pub(super) keeper: Mutex<Keeper<KernelSide, ServingSide>>,
    pub(super) guard: Option<SharedGuard>,
    pub(super) link: SharedLink,
    pub(super) facts: Facts,
    started: Instant,
    events: broadcast::Sender<Value>,
    upgrades: mpsc::Sender<Upgrade>,
    connections: Cell<usize>,
    /// Whether nobody is refused, only counted.
    pub(super) audited: Cell<bool>,
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
        upgrades: mpsc::Sender<Upgrade>,
    ) -> Self {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let audited = facts.audit;
        let shared = Shared {
            keeper: Mutex::new(keeper),
            guard,
            link,
            facts,
            started: Instant::now(),
            events,
            upgrades,
            connections: Cell::new(0),
            audited: Cell::new(audited),
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
            "pending": keeper.pending().map(|pending| pending_json(pending, now)),
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
        list["pending"] =
            keeper.pending().map_or(Value::Null, |one| pending_json(one, Now::sample()));
        Ok(json!({
            "ok": true,
            "version": env!("CARGO_PKG_VERSION"),
            "memcached_version": facts.memcached_version,
            "pid": std::process::id(),
            "child_pid": facts.child,
            "uptime_s": self.shared.started.elapsed().as_secs(),
            "serving": {"tcp": facts.addresses, "unix": facts.unix},
            "enforced": self.enforced(),
            "guard": self.guard_status(keeper.list()),
            "list": list,
            "statistics": statistics,
        }))
    }

    /// `test`: what the list says of a source, and what the guard's program does with its packets.
    pub(crate) async fn test(&self, address: IpAddr, port: Option<u16>) -> Result<Value> {
        let keeper = self.shared.keeper.lock().await;
        let now = Now::sample();
        let verdict = keeper.list().verdict(address, now.boottime_ns);
        let guard = self.shared.guard.as_ref();
        let is_own = guard.is_some_and(|guard| guard.hold().is_own(address));
        // What the host sends to itself meets no interface, and a wire carries no such source.
        let packets = match guard {
            Some(guard) if !is_own && !address.is_loopback() => {
                Some(guard.hold().test(address, port)?)
            }
            _ => None,
        };
        Ok(json!({
            "ok": true,
            "address": address,
            "is_own": is_own || address.is_loopback(),
            "enforced": self.enforced(),
            "allowed": verdict.allowed,
            "reason": verdict.reason.name(),
            "entry": verdict.entry.map(|entry| entry_json(entry, now)),
            "packets": packets,
        }))
    }
    /// `locks`: those that are held, and the connections that one may be held by.
    pub(crate) async fn locks(&self) -> Result<Value> {
        let mut link = self.shared.link.lock().await;
        let locks = link.locks().await.context("asking the serving process")?;
        let connections = link.command("stats conns".to_owned()).await;
        let connections = connections.context("asking the serving process")?;
        Ok(json!({"ok": true, "locks": locks, "connections": connections}))
    }

    /// `admin`: a command of one line, as a client would send it.
    pub(crate) async fn admin(&self, line: String, peer: Peer) -> Result<Value> {
        ensure!(
            line.len() <= ADMIN_LEN_MAX && !line.contains(['\r', '\n', '\0']),
            "write one command of one line, at most {ADMIN_LEN_MAX} bytes"
        );
        let Peer { uid, pid } = peer;
        // What only reads is asked again and again by those who watch.
        if line != "stats" && !line.starts_with("stats ") || line.contains("reset") {
            log::info!(target: "audit", "uid {uid} pid {pid} admin: {line}");
        }
        let answer = self.shared.link.lock().await.command(line).await;
        Ok(json!({"ok": true, "answer": answer.context("asking the serving process")?}))
    }

    /// `upgrade`: told to whoever can do it, who answers.
    pub(crate) async fn upgrade(
        &self,
        binary: Option<PathBuf>,
        asker: Option<OwnedFd>,
        peer: Peer,
    ) {
        let Peer { uid, pid } = peer;
        log::info!(target: "audit", "uid {uid} pid {pid} upgrade");
        // The receiver is gone only when the daemon ends, and the connection with it.
        let _ = self.shared.upgrades.send(Upgrade { binary, asker }).await;
    }

    /// The list, which nobody changes while this is held.
    pub(crate) async fn hold(&self) -> MutexGuard<'_, Keeper<KernelSide, ServingSide>> {
        self.shared.keeper.lock().await
    }

    /// Who keeps strangers out: `xdp`, `user`, `audit` and `off` for nobody, or `loopback` where
    /// none can come.
    pub(super) fn enforced(&self) -> &'static str {
        match self.shared.facts.guard {
            GuardKind::Xdp | GuardKind::User if self.shared.audited.get() => "audit",
            GuardKind::Xdp if self.shared.guard.is_none() => "loopback",
            GuardKind::Xdp => "xdp",
            GuardKind::User => "user",
            GuardKind::Off => "off",
        }
    }

    fn guard_status(&self, list: &Allowlist) -> Value {
        let Some(guard) = &self.shared.guard else { return Value::Null };
        let status = guard.hold().status();
        let names: Vec<Option<&str>> = status
            .counts
            .iter()
            .map(|count| list.get(count.prefix).and_then(|entry| entry.name.as_deref()))
            .collect();
        let mut value = match serde_json::to_value(&status) {
            Ok(value) => value,
            Err(error) => return json!({"error": error.to_string()}),
        };
        for (idx, name) in names.into_iter().enumerate() {
            value["counts"][idx]["name"] = json!(name);
        }
        value
    }

    /// Packets by what became of them.
    fn packets(&self) -> Value {
        let Some(guard) = &self.shared.guard else { return Value::Null };
        let reasons = guard.hold().reasons();
        let packets = reasons.into_iter().map(|count| (count.reason, count.packets.into()));
        Value::Object(packets.collect())
    }

    /// Tells the serving process what the guard has counted, for `stats guard`; to be called once
    /// a second. A process that is gone is noticed elsewhere. True when a client has asked for the
    /// certificates to be read again.
    pub(crate) async fn publish_guard(&self) -> bool {
        let mut counters = match &self.shared.guard {
            Some(guard) => guard_counters(&guard.hold().summary()),
            None => Vec::new(),
        };
        counters.extend(self.list_counters().await);
        let told = self.shared.link.lock().await.guard_counters(counters).await;
        told.unwrap_or_else(|error| {
            log::debug!("stats guard stays as it was: {error}");
            false
        })
    }

    /// The list by names of `stats guard`.
    async fn list_counters(&self) -> Vec<(String, String)> {
        let keeper = self.shared.keeper.lock().await;
        let allowed = keeper.allowed();
        let denied = keeper.list().len() - allowed;
        let pending = if keeper.pending().is_some() { "yes" } else { "no" };
        [
            ("list_allow", allowed.to_string()),
            ("list_deny", denied.to_string()),
            ("list_pending", pending.to_owned()),
            ("enforced_by", self.enforced().to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
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
        let open = interface.state == InterfaceState::Open;
        counters.push((format!("interface:{}:open", interface.name), yes_no(open)));
    }
    for count in &status.reasons {
        let verdict = if count.dropped { "dropped" } else { "passed" };
        let name = |what: &str| format!("{verdict}:{}:{what}", count.reason);
        counters.push((name("packets"), count.packets.to_string()));
        counters.push((name("bytes"), count.bytes.to_string()));
    }
    for count in &status.drops {
        let place = count.interface.as_deref().unwrap_or("socket");
        let name = format!("interface:{place}:dropped:{}", count.reason);
        counters.push((name, count.packets.to_string()));
    }
    for count in &status.answers {
        counters.push((format!("answer:{}:packets", count.answer), count.packets.to_string()));
    }
    counters
}

/// An entry as `list` tells it, with the seconds that are left of it.
fn entry_json(entry: &Entry, now: Now) -> Value {
    let left = entry.deadline_ns.map(|at| at.saturating_sub(now.boottime_ns) / 1_000_000_000);
    json!({
        "prefix": entry.prefix,
        "action": entry.action,
        "origin": entry.origin,
        "name": entry.name,
        "comment": entry.comment,
        "left_s": left,
    })
}

/// What waits to be confirmed, and for how long.
fn pending_json(pending: &Pending, now: Now) -> Value {
    let left = pending.deadline_ns.saturating_sub(now.boottime_ns) / 1_000_000_000;
    json!({"command": pending.command, "left_s": left})
}

fn list_json(list: &Allowlist) -> Value {
    let allowed = list.entries().filter(|entry| entry.action == Action::Allow).count();
    json!({"entries": list.len(), "allow": allowed, "deny": list.len() - allowed})
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

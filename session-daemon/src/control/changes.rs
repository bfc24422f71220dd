//! The commands that change the list, and what every change is told to: the one who asked, the
//! audit log, the watchers.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::allowlist::parse::{Any, check_name, parse_prefix};
use crate::allowlist::{Action, Allowlist, Diff, Entry, Note};
use crate::clock::Now;
use crate::config::GuardKind;
use crate::control::keeper::{Changed, Trial};
use crate::control::protocol::{NO_PREFIX, Peer};
use crate::control::server::Control;
use crate::guard::Refuse;
use crate::link::Request;

/// Longest `--for`: ten years.
const FOR_MAX_S: u64 = 10 * 366 * 86_400;
/// Longest `--confirm`: a day.
const CONFIRM_MAX_S: u64 = 86_400;
/// Most changed entries that an answer, an event and the audit log repeat of one command.
const SHOWN_MAX: usize = 50_000;
/// Most redundant entries that a dry run names.
const REDUNDANT_MAX: usize = 10;

/// How long and how wide an entry is meant.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    /// Seconds after which it ends.
    pub(crate) for_s: Option<u64>,
    /// Whether it may stand for every address.
    pub(crate) any: bool,
    /// Seconds after which it is taken back unless it is confirmed.
    pub(crate) confirm_s: Option<u64>,
}

impl Control {
    /// `allow`.
    pub(crate) async fn allow(
        &self,
        prefixes: &[IpNet],
        note: &Note,
        terms: Terms,
        peer: Peer,
    ) -> Result<Value> {
        ensure!(
            terms.for_s.is_none_or(|for_s| (1..=FOR_MAX_S).contains(&for_s)),
            "--for must be from one second to ten years"
        );
        let now = Now::sample();
        let deadline_ns = terms.for_s.map(|for_s| after(now, for_s));
        let trial = trial("allow", terms.confirm_s, now)?;
        let any = permission(terms.any);
        let mut keeper = self.shared.keeper.lock().await;
        let result = keeper.allow(prefixes, deadline_ns, note, any, trial, now).await;
        self.tell("allow", peer, result).map(|answer| on_trial(answer, terms.confirm_s))
    }

    /// `deny`, in a style or in that of `--refuse`.
    pub(crate) async fn deny(
        &self,
        prefixes: &[IpNet],
        refuse: Option<Refuse>,
        note: &Note,
        confirm_s: Option<u64>,
        peer: Peer,
    ) -> Result<Value> {
        let now = Now::sample();
        let trial = trial("deny", confirm_s, now)?;
        let mut keeper = self.shared.keeper.lock().await;
        let action = match refuse {
            None => Action::Deny,
            Some(Refuse::Drop) => Action::Drop,
            Some(Refuse::Reset) => Action::Reset,
            Some(Refuse::Icmp) => Action::Icmp,
        };
        let result = keeper.deny(prefixes, action, note, trial, now).await;
        self.tell("deny", peer, result).map(|answer| on_trial(answer, confirm_s))
    }

    /// `remove`, by prefix or by name.
    pub(crate) async fn remove(
        &self,
        words: &[String],
        confirm_s: Option<u64>,
        peer: Peer,
    ) -> Result<Value> {
        ensure!(!words.is_empty(), NO_PREFIX);
        let now = Now::sample();
        let trial = trial("remove", confirm_s, now)?;
        let mut keeper = self.shared.keeper.lock().await;
        let mut prefixes = Vec::new();
        for word in words {
            match parse_prefix(word) {
                Ok(prefix) => prefixes.push(prefix),
                Err(error) if check_name(word).is_err() => return Err(error.into()),
                Err(_) => {
                    let named = keeper.named(word);
                    ensure!(
                        !named.is_empty(),
                        "no entry has the name {word}; `sessionctl list` shows the names, and \
                         an address is written as 198.18.0.1"
                    );
                    prefixes.extend(named);
                }
            }
        }
        let result = keeper.remove(&prefixes, trial, now).await;
        self.tell("remove", peer, result).map(|answer| on_trial(answer, confirm_s))
    }

    /// What `sync` would change, and which entries could go.
    pub(crate) async fn sync_diff(&self, entries: Vec<Entry>, any: bool) -> Result<Value> {
        let keeper = self.shared.keeper.lock().await;
        let (wanted, diff) = keeper.sync_diff(entries, permission(any)).await?;
        drop(keeper);
        let mut answer = diff_json(&diff);
        answer["ok"] = true.into();
        answer["dry_run"] = true.into();
        answer["redundant"] = wanted
            .redundant()
            .take(REDUNDANT_MAX)
            .map(|(entry, larger)| json!([entry.prefix, larger.prefix]))
            .collect();
        Ok(answer)
    }

    /// `sync`.
    pub(crate) async fn sync(
        &self,
        entries: Vec<Entry>,
        any: bool,
        confirm_s: Option<u64>,
        peer: Peer,
    ) -> Result<Value> {
        let now = Now::sample();
        let trial = trial("sync", confirm_s, now)?;
        let mut keeper = self.shared.keeper.lock().await;
        let result = keeper.sync(entries, permission(any), trial, now).await;
        self.tell("sync", peer, result).map(|answer| on_trial(answer, confirm_s))
    }

    /// `confirm`.
    pub(crate) async fn confirm(&self, peer: Peer) -> Result<Value> {
        let result = self.shared.keeper.lock().await.confirm(Now::sample()).await;
        self.tell("confirm", peer, result)
    }

    /// `rollback`.
    pub(crate) async fn rollback(&self, peer: Peer) -> Result<Value> {
        let result = self.shared.keeper.lock().await.take_back(Now::sample()).await;
        self.tell("rollback", peer, result)
    }

    /// `audit`: on for the user side first, off for the kernel first.
    pub(crate) async fn audit(&self, on: bool, peer: Peer) -> Result<Value> {
        match self.shared.facts.guard {
            GuardKind::Off => bail!("--guard=off refuses nobody: there is nothing to audit"),
            GuardKind::Xdp if self.shared.guard.is_none() => {
                bail!("only this host reaches the addresses: there is nothing to audit")
            }
            GuardKind::Xdp | GuardKind::User => {}
        }
        let Peer { uid, pid } = peer;
        let word = if on { "on" } else { "off" };
        log::warn!(target: "audit", "uid {uid} pid {pid} audit {word}");
        if on {
            self.audit_serving(true).await?;
            if let Err(error) = self.audit_kernel(true) {
                self.audit_serving(false).await?;
                return Err(error);
            }
        } else {
            self.audit_kernel(false)?;
            self.audit_serving(false).await?;
        }
        let changed = self.shared.audited.replace(on) != on;
        let reset = match on {
            true => 0,
            false => self.shared.link.lock().await.enforce().await?,
        };
        self.event(json!({"event": "guard", "text": format!("audit is {word}")}));
        Ok(json!({"ok": true, "audit": on, "changed": changed, "reset": reset}))
    }

    fn audit_kernel(&self, on: bool) -> Result<()> {
        let Some(guard) = &self.shared.guard else { return Ok(()) };
        Ok(guard.hold().set_audit(on)?)
    }

    async fn audit_serving(&self, on: bool) -> Result<()> {
        let mut link = self.shared.link.lock().await;
        link.done(&Request::Audit(on)).await.context("telling the serving process")
    }

    /// Entries of a list that are in the kernel's tables, and that there will be, while it is
    /// written.
    pub(crate) fn written(&self) -> Option<(usize, usize)> {
        self.shared.guard.as_ref()?.written()
    }

    /// Whether everybody is let in.
    pub(crate) fn is_audited(&self) -> bool {
        self.enforced() == "audit"
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

    /// Takes back what was not confirmed and removes entries that are over; to be called about
    /// once a second.
    pub(crate) async fn expire(&self) {
        let mut keeper = self.shared.keeper.lock().await;
        let now = Now::sample();
        if keeper.pending().is_some_and(|pending| pending.deadline_ns <= now.boottime_ns) {
            let result = keeper.take_back(now).await;
            log::warn!("a change was not confirmed in time and is taken back");
            if let Err(error) = self.tell("rollback", ourselves(), result) {
                log::error!("a change that was not confirmed stays in force: {error:#}");
            }
        }
        match keeper.expire(now).await {
            Ok(changed) if changed.diff.is_empty() => {}
            result => {
                if let Err(error) = self.tell("expire", ourselves(), result) {
                    log::error!("an entry that is over stays listed: {error:#}");
                }
            }
        }
    }

    /// The answer to a command, told to the audit log and the watchers as well.
    fn tell(&self, command: &str, peer: Peer, result: Result<Changed>) -> Result<Value> {
        let Peer { uid, pid } = peer;
        let changed = match result {
            Ok(changed) => changed,
            Err(error) => {
                log::warn!(target: "audit", "uid {uid} pid {pid} {command} failed: {error:#}");
                return Err(error);
            }
        };
        audit(command, peer, &changed);
        let mut answer = diff_json(&changed.diff);
        answer["reset"] = changed.reset.into();
        if !changed.diff.is_empty() {
            let mut event = answer.clone();
            event["event"] = "list".into();
            event["command"] = command.into();
            event["by"] = json!(peer);
            self.event(event);
        }
        answer["ok"] = true.into();
        let warning = match self.enforced() {
            "off" => "--guard=off serves everybody: the list is kept and not enforced",
            "audit" => "audit is on: everybody is let in; `sessionctl audit off` enforces the list",
            _ => return Ok(answer),
        };
        answer["warning"] = warning.into();
        Ok(answer)
    }
}

/// A difference as answers have it: how much, and the first entries of it.
fn diff_json(diff: &Diff) -> Value {
    let shown = |entries: &[Entry]| entries.iter().take(SHOWN_MAX).cloned().collect();
    let first = Diff {
        added: shown(&diff.added),
        removed: shown(&diff.removed),
        changed: diff.changed.iter().take(SHOWN_MAX).cloned().collect(),
    };
    json!({
        "diff": first,
        "counts": {
            "added": diff.added.len(),
            "removed": diff.removed.len(),
            "changed": diff.changed.len(),
        },
    })
}

/// The boot clock's time in some seconds.
fn after(now: Now, seconds: u64) -> u64 {
    now.boottime_ns.saturating_add(seconds.saturating_mul(1_000_000_000))
}

fn trial(command: &str, confirm_s: Option<u64>, now: Now) -> Result<Option<Trial>> {
    let Some(seconds) = confirm_s else { return Ok(None) };
    if !(1..=CONFIRM_MAX_S).contains(&seconds) {
        return Err(anyhow!("--confirm must be from one second to a day"));
    }
    Ok(Some(Trial { command: command.to_owned(), deadline_ns: after(now, seconds) }))
}

/// Says in the answer to a change that it waits, if it changed anything.
fn on_trial(mut answer: Value, confirm_s: Option<u64>) -> Value {
    let changed = answer["counts"].as_object().into_iter().flatten().any(|(_, count)| *count != 0);
    if let Some(seconds) = confirm_s.filter(|_| changed) {
        answer["confirm_s"] = seconds.into();
    }
    answer
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
    for line in diff_lines(diff).take(SHOWN_MAX) {
        log::info!(target: "audit", "uid {uid} pid {pid} {command}: {line}");
    }
    log::info!(
        target: "audit",
        "uid {uid} pid {pid} {command}: {} entries changed, {reset} connections reset",
        diff.len(),
    );
}

/// A difference as `sync --dry-run` prints it: `-` what goes, `+` what comes.
pub(crate) fn diff_lines(diff: &Diff) -> impl Iterator<Item = String> {
    let removed = diff.removed.iter().map(|entry| format!("- {}", entry_line(entry)));
    let changed = diff.changed.iter().flat_map(|(old, new)| {
        [format!("- {}", entry_line(old)), format!("+ {}", entry_line(new))]
    });
    let added = diff.added.iter().map(|entry| format!("+ {}", entry_line(entry)));
    removed.chain(changed).chain(added)
}

/// An entry as an allow file has it.
pub(crate) fn entry_line(entry: &Entry) -> String {
    let action = entry.action.word();
    let name = entry.name.as_deref().map(|name| format!(" name={name}")).unwrap_or_default();
    let comment = entry.comment.as_deref().map(|text| format!(" # {text}")).unwrap_or_default();
    format!("{action} {}{name}{comment}", entry.prefix)
}

fn permission(any: bool) -> Any {
    if any { Any::Permitted } else { Any::Refused }
}

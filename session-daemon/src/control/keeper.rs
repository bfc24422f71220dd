//! The keeper of the list: every change, in its order, whole or not at all.
//!
//! Allow: user side, then kernel. Deny and remove: kernel, then user side, then the live
//! connections are reset. The overlay is on disk beside its place before anything changes and
//! is renamed after everything has; a failure on the way puts the old list back. A change on
//! trial is in force like any other and is taken back unless it is confirmed in time.
#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use ipnet::IpNet;
use serde::Serialize;

use crate::allowlist::parse::{Any, check_any};
use crate::allowlist::{Action, Allowlist, Diff, Entry, Note, Origin};
use crate::clock::Now;
use crate::control::overlay::{Overlay, OverlayFile, Pending, Prepared};
use crate::guard::error::GuardError;
use crate::link::ENTRIES_PER_PART_MAX;

/// The list in the kernel.
pub(crate) trait Kernel {
    /// Inserts an entry or replaces that of the same prefix. [`GuardError::Outgrown`] asks for a
    /// replacement of the whole list.
    fn insert(&mut self, entry: &Entry) -> Result<()>;
    /// Removes the entry of a prefix.
    fn remove(&mut self, prefix: IpNet) -> Result<()>;
    /// Replaces the whole list at one instant.
    async fn replace(&mut self, list: &Arc<Allowlist>) -> Result<()>;
}

/// The list of the serving process.
pub(crate) trait UserSide {
    /// Inserts and removes entries at one instant.
    async fn change(&mut self, insert: Vec<Entry>, remove: Vec<IpNet>) -> Result<()>;
    /// Replaces the whole list at one instant.
    async fn replace(&mut self, list: &Allowlist) -> Result<()>;
    /// Resets the connections that the list refuses; returns how many.
    async fn enforce(&mut self) -> Result<u64>;
}

/// What a command changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Changed {
    /// How the list before differs from the list after.
    pub(crate) diff: Diff,
    /// Live connections that were reset.
    pub(crate) reset: u64,
}

/// A change that is to be taken back unless it is confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trial {
    /// What was asked for, for the log.
    pub(crate) command: String,
    /// `CLOCK_BOOTTIME` nanoseconds at which it is taken back.
    pub(crate) deadline_ns: u64,
}

/// In which order the two sides learn of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// More may come in: user side first.
    Opening,
    /// Less may come in: kernel first, and live connections are looked through.
    Closing,
    /// Both: the whole list at one instant, kernel first, and live connections are looked through.
    Whole,
}

/// The list in force and everything that has to agree with it.
pub(crate) struct Keeper<K, U> {
    base: Arc<Allowlist>,
    overlay: Arc<Overlay>,
    list: Arc<Allowlist>,
    /// Entries of the list that allow.
    allowed: usize,
    file: Option<OverlayFile>,
    kernel: K,
    user: U,
}

impl<K: Kernel, U: UserSide> Keeper<K, U> {
    /// Takes over what the start made: `base` with `overlay` is in force on both sides.
    pub(crate) fn new(
        base: Allowlist,
        overlay: Overlay,
        file: Option<OverlayFile>,
        kernel: K,
        user: U,
    ) -> Self {
        let list = Arc::new(overlay.over(&base));
        let allowed = allowed(&list);
        let (base, overlay) = (Arc::new(base), Arc::new(overlay));
        Self { base, overlay, list, allowed, file, kernel, user }
    }

    /// The list in force.
    pub(crate) fn list(&self) -> &Allowlist {
        &self.list
    }

    /// The list of the configuration.
    pub(crate) fn base(&self) -> &Allowlist {
        &self.base
    }

    /// What is on top of the configuration.
    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Prefixes that the configuration names and `sessionctl` took out.
    pub(crate) fn taken_out(&self) -> Vec<IpNet> {
        self.overlay.taken_out().collect()
    }

    /// How many entries allow.
    pub(crate) fn allowed(&self) -> usize {
        self.allowed
    }

    /// The change that waits to be confirmed.
    pub(crate) fn pending(&self) -> Option<&Pending> {
        self.overlay.pending()
    }

    /// Prefixes of the entries that have this name.
    pub(crate) fn named(&self, name: &str) -> Vec<IpNet> {
        let named = self.list.entries().filter(|entry| entry.name.as_deref() == Some(name));
        named.map(|entry| entry.prefix).collect()
    }

    /// Puts entries on the list, in place of those with the same prefixes.
    pub(crate) async fn put(
        &mut self,
        entries: Vec<Entry>,
        any: Any,
        trial: Option<Trial>,
        now: Now,
    ) -> Result<Changed> {
        let mut overlay = Overlay::clone(&self.overlay);
        let mut order = Order::Opening;
        for entry in entries {
            check_any(entry.prefix, entry.action, any)?;
            if entry.action != Action::Allow {
                order = Order::Closing;
            }
            if !self.says_already(&entry) {
                overlay.put(entry);
            }
        }
        self.change(overlay, order, trial, now).await
    }

    /// Allows prefixes, until `deadline_ns` (`CLOCK_BOOTTIME`) if there is one.
    pub(crate) async fn allow(
        &mut self,
        prefixes: &[IpNet],
        deadline_ns: Option<u64>,
        note: &Note,
        any: Any,
        trial: Option<Trial>,
        now: Now,
    ) -> Result<Changed> {
        let entry = |prefix: &IpNet| Entry {
            deadline_ns,
            ..Entry::new(*prefix, Action::Allow, Origin::Control).noted(note.clone())
        };
        self.put(prefixes.iter().map(entry).collect(), any, trial, now).await
    }

    /// Refuses prefixes, in the style of `action`.
    pub(crate) async fn deny(
        &mut self,
        prefixes: &[IpNet],
        action: Action,
        note: &Note,
        trial: Option<Trial>,
        now: Now,
    ) -> Result<Changed> {
        let entry =
            |prefix: &IpNet| Entry::new(*prefix, action, Origin::Control).noted(note.clone());
        self.put(prefixes.iter().map(entry).collect(), Any::Refused, trial, now).await
    }

    /// Keeps the pending change for good.
    pub(crate) async fn confirm(&mut self, now: Now) -> Result<Changed> {
        let overlay = self.overlay.confirmed().context(NOTHING_PENDING)?;
        self.bring_into_force(None, overlay, Order::Opening, now).await
    }

    /// Takes the pending change back.
    pub(crate) async fn take_back(&mut self, now: Now) -> Result<Changed> {
        let overlay = self.overlay.taken_back().context(NOTHING_PENDING)?;
        self.bring_into_force(None, overlay, Order::Whole, now).await
    }

    /// Removes the entries of exactly these prefixes, wherever they come from.
    pub(crate) async fn remove(
        &mut self,
        prefixes: &[IpNet],
        trial: Option<Trial>,
        now: Now,
    ) -> Result<Changed> {
        let mut overlay = Overlay::clone(&self.overlay);
        for prefix in prefixes {
            ensure!(
                self.list.get(*prefix).is_some(),
                "{prefix} is not on the list; `sessionctl list` shows what is, and \
                 `sessionctl deny` refuses a part of a larger prefix"
            );
            overlay.take_out(*prefix, &self.base);
        }
        self.change(overlay, Order::Closing, trial, now).await
    }

    /// What would change if the list said exactly `entries`, and that list.
    pub(crate) async fn sync_diff(
        &self,
        entries: Vec<Entry>,
        any: Any,
    ) -> Result<(Allowlist, Diff)> {
        let list = Arc::clone(&self.list);
        beside(move || {
            let wanted = wanted(&list, entries, any)?;
            let diff = list.diff(&wanted);
            Ok((wanted, diff))
        })
        .await
    }

    /// Makes the list say exactly `entries`, at one instant.
    pub(crate) async fn sync(
        &mut self,
        entries: Vec<Entry>,
        any: Any,
        trial: Option<Trial>,
        now: Now,
    ) -> Result<Changed> {
        ensure!(self.pending().is_none(), WAITS);
        let (base, list) = (Arc::clone(&self.base), Arc::clone(&self.list));
        let overlay =
            beside(move || Ok(Overlay::between(&base, wanted(&list, entries, any)?))).await?;
        self.change(overlay, Order::Whole, trial, now).await
    }

    /// Takes a new configuration and the overlay as it is on disk, at one instant.
    pub(crate) async fn reload(&mut self, base: Allowlist, now: Now) -> Result<Changed> {
        let overlay = match &self.file {
            Some(file) => file.read(now)?,
            None => Overlay::clone(&self.overlay),
        };
        let (overlay, _) = overlay.settled(now);
        self.bring_into_force(Some(base), overlay, Order::Whole, now).await
    }

    /// Removes entries whose deadline has passed; both sides refuse them already. What an entry
    /// with a deadline stood in place of does not come back: a source that was let in for an
    /// hour is out after it.
    pub(crate) async fn expire(&mut self, now: Now) -> Result<Changed> {
        let over = |entry: &&Entry| entry.is_over(now.boottime_ns);
        let prefixes: Vec<IpNet> =
            self.list.entries().filter(over).map(|entry| entry.prefix).collect();
        if prefixes.is_empty() {
            return Ok(Changed::default());
        }
        self.remove(&prefixes, None, now).await
    }

    /// Brings an overlay into force, on trial if that is asked for.
    async fn change(
        &mut self,
        overlay: Overlay,
        order: Order,
        trial: Option<Trial>,
        now: Now,
    ) -> Result<Changed> {
        let Some(Trial { command, deadline_ns }) = trial else {
            return self.bring_into_force(None, overlay, order, now).await;
        };
        ensure!(self.pending().is_none(), WAITS);
        if overlay == *self.overlay {
            return Ok(Changed::default());
        }
        let overlay = self.overlay.on_trial(overlay, &self.base, command, deadline_ns);
        self.bring_into_force(None, overlay, order, now).await
    }

    /// Whether the list says the same of the same prefix, so that nothing has to change.
    fn says_already(&self, entry: &Entry) -> bool {
        says_already(&self.list, entry)
    }

    async fn bring_into_force(
        &mut self,
        base: Option<Allowlist>,
        overlay: Overlay,
        order: Order,
        now: Now,
    ) -> Result<Changed> {
        let plan = self.plan(base, overlay, now).await?;
        let Plan { base, overlay, list, allowed, diff, prepared } = plan;
        if diff.is_empty() && *overlay == *self.overlay {
            self.base = base;
            return Ok(Changed::default());
        }
        let done = match self.apply(&diff, &list, order).await {
            Ok(reset) => prepared.map_or(Ok(()), |prepared| prepared.commit()).map(|()| reset),
            Err(error) => Err(error),
        };
        let reset = match done {
            Ok(reset) => reset,
            Err(error) => return Err(self.roll_back(error, now).await),
        };
        (self.base, self.overlay, self.list, self.allowed) = (base, overlay, list, allowed);
        Ok(Changed { diff, reset })
    }

    /// What is to be done, worked out beside what the daemon does, for a long list takes seconds.
    async fn plan(&self, base: Option<Allowlist>, overlay: Overlay, now: Now) -> Result<Plan> {
        let base = base.map_or_else(|| Arc::clone(&self.base), Arc::new);
        let (before, in_force) = (Arc::clone(&self.overlay), Arc::clone(&self.list));
        let file = self.file.clone();
        beside(move || {
            let list = overlay.over(&base);
            list.check_size()?;
            let diff = in_force.diff(&list);
            let is_new = !diff.is_empty() || overlay != *before;
            let prepared = match file.filter(|_| is_new) {
                Some(file) => Some(file.prepare(&overlay, now)?),
                None => None,
            };
            let allowed = allowed(&list);
            let (overlay, list) = (Arc::new(overlay), Arc::new(list));
            Ok(Plan { base, overlay, list, allowed, diff, prepared })
        })
        .await
    }

    /// Brings both sides from the list in force to `list`; returns how many connections ended.
    async fn apply(&mut self, diff: &Diff, list: &Arc<Allowlist>, order: Order) -> Result<u64> {
        if diff.is_empty() {
            return Ok(0);
        }
        if order == Order::Whole && !is_small(diff, list) {
            self.kernel.replace(list).await.context(KERNEL)?;
            self.user.replace(list).await.context(USER_SIDE)?;
            return self.user.enforce().await.context(RESETTING);
        }
        let changed = diff.changed.iter().map(|(_, entry)| entry);
        let insert: Vec<Entry> = diff.added.iter().chain(changed).cloned().collect();
        let remove: Vec<IpNet> = diff.removed.iter().map(|entry| entry.prefix).collect();
        match order {
            Order::Opening => {
                self.user.change(insert.clone(), remove.clone()).await.context(USER_SIDE)?;
                self.change_kernel(&insert, &remove, list).await.context(KERNEL)?;
                Ok(0)
            }
            Order::Closing | Order::Whole => {
                let (insert, remove) = in_order(insert, remove);
                self.change_kernel(&insert, &remove, list).await.context(KERNEL)?;
                self.user.change(insert, remove).await.context(USER_SIDE)?;
                self.user.enforce().await.context(RESETTING)
            }
        }
    }

    /// Changes the kernel's list entry by entry; where that has no room for one more, it becomes
    /// `list` as a whole.
    async fn change_kernel(
        &mut self,
        insert: &[Entry],
        remove: &[IpNet],
        list: &Arc<Allowlist>,
    ) -> Result<()> {
        for entry in insert {
            match self.kernel.insert(entry) {
                Err(error) if is_outgrown(&error) => return self.kernel.replace(list).await,
                outcome => outcome?,
            }
        }
        for prefix in remove {
            self.kernel.remove(*prefix)?;
        }
        Ok(())
    }

    /// Puts the list in force back on both sides and on disk; returns the error to be told.
    async fn roll_back(&mut self, error: anyhow::Error, now: Now) -> anyhow::Error {
        let mut failures = Vec::new();
        if let Err(error) = self.kernel.replace(&self.list).await {
            failures.push(format!("{KERNEL}: {error:#}"));
        }
        if let Err(error) = self.user.replace(&self.list).await {
            failures.push(format!("{USER_SIDE}: {error:#}"));
        }
        let restored = self.file.as_ref().map(|file| -> Result<()> {
            // Untouched unless the failure came after the rename.
            if file.read(now)? == *self.overlay { Ok(()) } else { self.rewrite(file, now) }
        });
        if let Some(Err(error)) = restored {
            failures.push(format!("the overlay: {error:#}"));
        }
        if failures.is_empty() {
            return error.context("nothing was changed");
        }
        anyhow!(
            "{error:#}; and the old list could not be put back everywhere ({}); \
             restart sessiond to make both sides agree",
            failures.join("; ")
        )
    }

    fn rewrite(&self, file: &OverlayFile, now: Now) -> Result<()> {
        file.prepare(&self.overlay, now)?.commit()
    }
}

/// What a change comes to.
struct Plan {
    base: Arc<Allowlist>,
    overlay: Arc<Overlay>,
    list: Arc<Allowlist>,
    allowed: usize,
    diff: Diff,
    prepared: Option<Prepared>,
}

/// Works on another thread: what is said of a million entries keeps nobody waiting.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("working on the list")?
}

/// The list that says exactly `entries`; an entry that says nothing new stays as it is.
fn wanted(list: &Allowlist, entries: Vec<Entry>, any: Any) -> Result<Allowlist> {
    let mut wanted = Allowlist::new();
    for entry in entries {
        check_any(entry.prefix, entry.action, any)?;
        let entry = Entry { origin: Origin::Control, ..entry };
        let kept = list.get(entry.prefix).filter(|_| says_already(list, &entry));
        wanted.insert(kept.cloned().unwrap_or(entry));
    }
    wanted.check_size()?;
    Ok(wanted)
}

fn says_already(list: &Allowlist, wanted: &Entry) -> bool {
    list.get(wanted.prefix).is_some_and(|entry| {
        entry.action == wanted.action
            && entry.deadline_ns == wanted.deadline_ns
            && (wanted.name.is_none() || entry.name == wanted.name)
            && (wanted.comment.is_none() || entry.comment == wanted.comment)
    })
}

fn is_outgrown(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(GuardError::Outgrown))
}

/// The order in which each source goes from its old verdict to its new one at one instant and
/// never through a third: what comes is written longest prefix first, so that whichever new entry
/// decides stands before a shorter one could; what goes is taken shortest prefix first, so that the
/// one that decided goes last.
fn in_order(mut insert: Vec<Entry>, mut remove: Vec<IpNet>) -> (Vec<Entry>, Vec<IpNet>) {
    insert.sort_by_key(|entry| std::cmp::Reverse(entry.prefix.prefix_len()));
    remove.sort_by_key(IpNet::prefix_len);
    (insert, remove)
}

/// Whether so little of a large list changes that the rest is better left where it stands.
fn is_small(diff: &Diff, list: &Allowlist) -> bool {
    list.len() >= DELTA_LIST_MIN
        && diff.len() <= (list.len() / DELTA_SHARE).min(ENTRIES_PER_PART_MAX)
}

fn allowed(list: &Allowlist) -> usize {
    list.entries().filter(|entry| entry.action == Action::Allow).count()
}

/// Smallest list that is changed entry by entry: a smaller one is replaced in milliseconds.
const DELTA_LIST_MIN: usize = 10_000;
/// Part of the list that may differ then.
const DELTA_SHARE: usize = 16;

const NOTHING_PENDING: &str =
    "no change waits to be confirmed; `sessionctl list` shows what is in force";
const WAITS: &str =
    "a change waits already; run `sessionctl confirm` or `sessionctl rollback` first";
const KERNEL: &str = "changing the list in the kernel";
const USER_SIDE: &str = "changing the list of the serving process";
const RESETTING: &str = "resetting live connections";

#[cfg(test)]
mod tests;

//! What `sessionctl` changed, kept over restarts: entries put in, prefixes taken out.
//!
//! The list in force is configuration and allow files with the overlay on top. The file has two
//! lines: a head with a checksum and the changes as JSON. It is written beside its place, synced
//! and renamed. A file that cannot be read whole is an error and never an empty overlay, because
//! a lost denial would open the port.
#![forbid(unsafe_code)]

mod text;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Cursor, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;

use crate::allowlist::{Action, Allowlist, Entry};
use crate::clock::Now;
use crate::control::overlay::text::{decode, write};
use crate::files::UNTRUSTED;

/// Longest file: a million entries with comments.
const LEN_MAX: u64 = 512 << 20;

/// What was done to one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has this entry, whatever the configuration says.
    Put(Entry),
    /// It has no entry, whatever the configuration says.
    Out,
}

type Changes = BTreeMap<IpNet, Change>;

/// Changes by prefix, and the one of them that waits to be confirmed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overlay {
    changes: Changes,
    pending: Option<Box<Pending>>,
}

/// A change in force that is taken back unless somebody confirms it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// What was asked for, for the log.
    pub(crate) command: String,
    /// `CLOCK_BOOTTIME` nanoseconds at which it is taken back.
    pub(crate) deadline_ns: u64,
    /// The changes without it.
    before: Changes,
    /// The changes when it is confirmed.
    after: Changes,
}

/// How long after the deadline of a pending change the kernel ends what the change opened, if no
/// daemon is there to take it back.
const GRACE_NS: u64 = 3_000_000_000;

impl Overlay {
    /// The list in force: `base` with the changes.
    pub(crate) fn over(&self, base: &Allowlist) -> Allowlist {
        over(&self.changes, base)
    }

    /// Puts an entry on top. It stays whatever becomes of a pending change.
    pub(crate) fn put(&mut self, entry: Entry) {
        for changes in self.all_changes() {
            changes.insert(entry.prefix, Change::Put(entry.clone()));
        }
    }

    /// Takes a prefix out, whatever becomes of a pending change; the record stays only if `base`
    /// has an entry to be hidden.
    pub(crate) fn take_out(&mut self, prefix: IpNet, base: &Allowlist) {
        for changes in self.all_changes() {
            if base.get(prefix).is_some() {
                changes.insert(prefix, Change::Out);
            } else {
                changes.remove(&prefix);
            }
        }
    }

    fn all_changes(&mut self) -> impl Iterator<Item = &mut Changes> {
        let pending = self.pending.as_deref_mut().into_iter();
        std::iter::once(&mut self.changes)
            .chain(pending.flat_map(|pending| [&mut pending.before, &mut pending.after]))
    }

    /// The change that waits to be confirmed.
    pub(crate) fn pending(&self) -> Option<&Pending> {
        self.pending.as_deref()
    }

    /// `after` in the place of this overlay, until `deadline_ns` unless it is confirmed. What it
    /// opens carries the deadline, so that the kernel ends it where no daemon does.
    pub(crate) fn on_trial(
        &self,
        after: Self,
        base: &Allowlist,
        command: String,
        deadline_ns: u64,
    ) -> Self {
        let diff = self.over(base).diff(&after.over(base));
        let mut changes = after.changes.clone();
        let opened = diff.added.into_iter().chain(
            diff.changed
                .into_iter()
                .filter_map(|(before, after)| (before.action != Action::Allow).then_some(after)),
        );
        for entry in opened.filter(|entry| entry.action == Action::Allow) {
            let end = deadline_ns.saturating_add(GRACE_NS);
            let end = entry.deadline_ns.map_or(end, |own| own.min(end));
            changes.insert(entry.prefix, Change::Put(Entry { deadline_ns: Some(end), ..entry }));
        }
        let before = self.changes.clone();
        let pending = Pending { command, deadline_ns, before, after: after.changes };
        Self { changes, pending: Some(Box::new(pending)) }
    }

    /// The overlay with the pending change for good; None if nothing is pending.
    pub(crate) fn confirmed(&self) -> Option<Self> {
        let pending = self.pending.as_ref()?;
        Some(Self { changes: pending.after.clone(), pending: None })
    }

    /// The overlay without the pending change; None if nothing is pending.
    pub(crate) fn taken_back(&self) -> Option<Self> {
        let pending = self.pending.as_ref()?;
        Some(Self { changes: pending.before.clone(), pending: None })
    }

    /// The overlay with a pending change taken back whose time is over, and what it was.
    pub(crate) fn settled(self, now: Now) -> (Self, Option<String>) {
        match self.pending.as_ref().filter(|pending| pending.deadline_ns <= now.boottime_ns) {
            Some(pending) => {
                let command = pending.command.clone();
                (Self { changes: pending.before.clone(), pending: None }, Some(command))
            }
            None => (self, None),
        }
    }

    /// Makes the changes that turn `base` into `wanted`.
    pub(crate) fn between(base: &Allowlist, wanted: Allowlist) -> Self {
        let mut overlay = Self::default();
        for entry in base.entries() {
            if wanted.get(entry.prefix).is_none() {
                overlay.changes.insert(entry.prefix, Change::Out);
            }
        }
        for entry in wanted.into_entries() {
            if base.get(entry.prefix) != Some(&entry) {
                overlay.put(entry);
            }
        }
        overlay
    }

    /// Prefixes that the configuration names and the overlay takes out.
    pub(crate) fn taken_out(&self) -> impl Iterator<Item = IpNet> {
        self.changes
            .iter()
            .filter(|(_, change)| matches!(change, Change::Out))
            .map(|(prefix, _)| *prefix)
    }
}

fn over(changes: &Changes, base: &Allowlist) -> Allowlist {
    let mut list = base.clone();
    for (prefix, change) in changes {
        match change {
            Change::Put(entry) => drop(list.insert(entry.clone())),
            Change::Out => drop(list.remove(*prefix)),
        }
    }
    list
}

impl Overlay {
    /// The overlay as a file would have it.
    pub(crate) fn to_text(&self, now: Now) -> Result<String> {
        let mut text = Cursor::new(Vec::new());
        write(self, &boot_id(), now, &mut text)?;
        Ok(String::from_utf8(text.into_inner())?)
    }

    /// The overlay of [`Overlay::to_text`].
    pub(crate) fn from_text(text: &[u8], now: Now) -> Result<Self> {
        decode(text, &boot_id(), now)
    }
}

/// The overlay's place on disk.
#[derive(Clone, Debug)]
pub(crate) struct OverlayFile {
    path: PathBuf,
}

/// A new overlay on disk beside the old one.
#[derive(Debug)]
pub(crate) struct Prepared {
    temporary: PathBuf,
    path: PathBuf,
}

impl OverlayFile {
    /// The overlay at `path`; nothing is read or made.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the overlay; a file that is not there is an empty one.
    ///
    /// # Errors
    /// A symbolic link, a file that others could have written, a torn or altered one.
    pub(crate) fn read(&self, now: Now) -> Result<Overlay> {
        let Some(bytes) = self.bytes()? else { return Ok(Overlay::default()) };
        decode(&bytes, &boot_id(), now).with_context(|| {
            format!(
                "{0} is damaged; what sessionctl changed is not known, so sessiond does not start. \
                 Put a copy back, or list what it should say in an --allow-file and remove {0}",
                self.path.display()
            )
        })
    }

    fn bytes(&self) -> Result<Option<Vec<u8>>> {
        let path = self.path.display();
        let mut options = OpenOptions::new();
        let mut file = match options.read(true).custom_flags(UNTRUSTED).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) => {
                bail!("{path} is a symbolic link; name the file itself with --state");
            }
            Err(error) => return Err(error).with_context(|| format!("reading {path}")),
        };
        let found = file.metadata()?;
        ensure!(found.is_file(), "{path} is not a regular file; name another with --state");
        let us = rustix::process::geteuid().as_raw();
        ensure!(
            found.uid() == 0 || found.uid() == us,
            "{path} belongs to uid {}; run: chown {us} {path}",
            found.uid()
        );
        ensure!(
            found.mode() & 0o022 == 0,
            "{path} can be written by its group or by others; run: chmod go-w {path}"
        );
        ensure!(found.len() <= LEN_MAX, "{path} is longer than {LEN_MAX} bytes");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("reading {path}"))?;
        Ok(Some(bytes))
    }

    /// Writes the overlay beside its place and syncs it.
    ///
    /// # Errors
    /// Those of the file system; the old overlay is untouched.
    pub(crate) fn prepare(&self, overlay: &Overlay, now: Now) -> Result<Prepared> {
        let mut temporary = self.path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let what = || format!("writing {}", temporary.display());
        // What an interrupted run left, or a trap; either way it is not written through.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(what);
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(UNTRUSTED)
            .open(&temporary)
            .with_context(what)?;
        let prepared = Prepared { temporary: temporary.clone(), path: self.path.clone() };
        write(overlay, &boot_id(), now, &mut file).with_context(what)?;
        file.sync_all().with_context(what)?;
        Ok(prepared)
    }
}

impl Prepared {
    /// Puts the new overlay into its place, on disk when this returns.
    ///
    /// # Errors
    /// Those of the file system; the old overlay is in its place then.
    pub(crate) fn commit(self) -> Result<()> {
        let what = || format!("replacing {}", self.path.display());
        fs::rename(&self.temporary, &self.path).with_context(what)?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(parent.unwrap_or(Path::new("."))).with_context(what)?;
        directory.sync_all().with_context(what)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        // Gone already if it was committed.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::allowlist::Origin;
    use crate::allowlist::parse::parse_prefix;

    const NOW: Now = Now { realtime_ns: 1_000_000, boottime_ns: 1_000 };

    fn entry(prefix: &str, action: Action, origin: Origin) -> Entry {
        Entry::new(parse_prefix(prefix).unwrap(), action, origin)
    }

    fn base() -> Allowlist {
        [
            entry("198.18.0.0/24", Action::Allow, Origin::Config),
            entry("2001:db8::/32", Action::Allow, Origin::File),
        ]
        .into_iter()
        .collect()
    }

    fn text(overlay: &Overlay) -> String {
        let mut text = Cursor::new(Vec::new());
        write(overlay, "boot", NOW, &mut text).unwrap();
        String::from_utf8(text.into_inner()).unwrap()
    }

    fn sample() -> Overlay {
        let mut overlay = Overlay::default();
        overlay.put(Entry {
            deadline_ns: Some(5_000),
            comment: Some("a, \"b\"\n# c".to_owned()),
            ..entry("198.18.7.7", Action::Allow, Origin::Control)
        });
        overlay.put(entry("198.18.0.128/25", Action::Deny, Origin::Control));
        overlay.take_out(parse_prefix("2001:db8::/32").unwrap(), &base());
        overlay
    }

    fn prefixes(list: &Allowlist) -> Vec<String> {
        let mut prefixes: Vec<_> =
            list.entries().map(|entry| (entry.prefix, entry.action)).collect();
        prefixes.sort_by_key(|(prefix, _)| *prefix);
        prefixes.iter().map(|(prefix, action)| format!("{action:?} {prefix}")).collect()
    }

    #[test]
    fn changes_lie_over_the_configuration() {
        let list = sample().over(&base());
        assert_eq!(
            prefixes(&list),
            ["Allow 198.18.0.0/24", "Deny 198.18.0.128/25", "Allow 198.18.7.7/32"]
        );
        assert_eq!(Overlay::between(&base(), list), sample());
    }

    #[test]
    fn taking_out_what_the_configuration_does_not_name_leaves_no_record() {
        let mut overlay = sample();
        overlay.take_out(parse_prefix("198.18.7.7").unwrap(), &base());
        assert_eq!(overlay.taken_out().count(), 1);
        assert_eq!(overlay.changes.len(), 2);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = OverlayFile::new(directory.path().join("overlay.json"));
        assert_eq!(file.read(NOW).unwrap(), Overlay::default());
        file.prepare(&sample(), NOW).unwrap().commit().unwrap();
        assert_eq!(file.read(NOW).unwrap(), sample());
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // One that is not committed leaves the old one and nothing beside it.
        drop(file.prepare(&Overlay::default(), NOW).unwrap());
        assert_eq!(file.read(NOW).unwrap(), sample());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn every_torn_or_flipped_byte_is_noticed() {
        let text = text(&sample());
        assert_eq!(decode(text.as_bytes(), "boot", NOW).unwrap(), sample());
        for len in 0..text.len() {
            assert!(decode(&text.as_bytes()[..len], "boot", NOW).is_err(), "cut at {len}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(decode(&bytes, "boot", NOW).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn deadlines_move_to_the_boot_clock_of_another_boot() {
        let text = text(&sample());
        let deadline = |now| {
            let list = decode(text.as_bytes(), "other", now).unwrap().over(&Allowlist::new());
            list.get(parse_prefix("198.18.7.7").unwrap()).unwrap().deadline_ns.unwrap()
        };
        // 4,000 ns were left; 1,000 of them passed while the machine was down.
        assert_eq!(deadline(Now { realtime_ns: 1_001_000, boottime_ns: 50 }), 3_050);
        assert_eq!(deadline(Now { realtime_ns: 9_000_000, boottime_ns: 50 }), 1);
    }

    #[test]
    fn a_pending_change_is_kept_with_both_ends() {
        let before = sample();
        let mut after = before.clone();
        after.put(entry("198.18.9.0/24", Action::Allow, Origin::Control));
        after.put(entry("198.18.0.7", Action::Deny, Origin::Control));
        let trial = before.on_trial(after.clone(), &base(), "sync".to_owned(), 9_000);
        let list = trial.over(&base());
        let deadline = |prefix| list.get(parse_prefix(prefix).unwrap()).unwrap().deadline_ns;
        assert_eq!(deadline("198.18.9.0/24"), Some(9_000 + GRACE_NS));
        assert_eq!(deadline("198.18.0.7"), None, "what closes stays closed without a daemon");
        assert_eq!((trial.confirmed(), trial.taken_back()), (Some(after), Some(before.clone())));
        let text = text(&trial);
        assert_eq!(decode(text.as_bytes(), "boot", NOW).unwrap(), trial);
        let early = Now { boottime_ns: 8_999, ..NOW };
        assert_eq!(trial.clone().settled(early), (trial.clone(), None));
        let late = Now { boottime_ns: 9_000, ..NOW };
        assert_eq!(trial.settled(late), (before, Some("sync".to_owned())));
        // After a boot the wall clock says how much is left of it.
        let now = Now { realtime_ns: 1_003_000, boottime_ns: 50 };
        let moved = decode(text.as_bytes(), "other", now).unwrap();
        assert_eq!(moved.pending().unwrap().deadline_ns, 5_050);
    }

    #[test]
    fn what_is_changed_meanwhile_outlives_a_pending_change() {
        let mut after = Overlay::default();
        after.put(entry("198.18.9.0/24", Action::Allow, Origin::Control));
        let mut trial = Overlay::default().on_trial(after, &base(), "allow".to_owned(), 9_000);
        trial.put(entry("198.18.0.66", Action::Deny, Origin::Control));
        trial.take_out(parse_prefix("2001:db8::/32").unwrap(), &base());
        assert_eq!(
            prefixes(&trial.taken_back().unwrap().over(&base())),
            ["Allow 198.18.0.0/24", "Deny 198.18.0.66/32"]
        );
        assert_eq!(
            prefixes(&trial.confirmed().unwrap().over(&base())),
            ["Allow 198.18.0.0/24", "Deny 198.18.0.66/32", "Allow 198.18.9.0/24"]
        );
    }

    #[test]
    fn links_and_files_of_others_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = OverlayFile::new(directory.path().join("overlay.json"));
        let target = directory.path().join("target");
        fs::write(&target, "kept").unwrap();
        symlink(&target, file.path()).unwrap();
        assert!(file.read(NOW).unwrap_err().to_string().contains("symbolic link"));
        fs::remove_file(file.path()).unwrap();
        // A link in the place of the temporary file is removed, not followed.
        let temporary = directory.path().join("overlay.json.new");
        symlink(&target, &temporary).unwrap();
        file.prepare(&sample(), NOW).unwrap().commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"kept");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o666)).unwrap();
        assert!(file.read(NOW).unwrap_err().to_string().contains("chmod go-w"));
    }
}

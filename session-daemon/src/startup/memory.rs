//! The memory file (`-e`): opened where others might have put a trap, locked, handed on.
//! It owns who may have such a file; what is in it is the store's.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock, fstatfs};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::clock::Now;
use crate::files::{UNTRUSTED, directory};
use crate::startup::privileges::Identity;
use crate::store::{MemoryFile, Store};

/// How long a daemon that is just ending may hold the file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_EVERY: Duration = Duration::from_millis(20);

/// `TMPFS_MAGIC` and `HUGETLBFS_MAGIC` of the kernel's magic.h.
const MEMORY_FILE_SYSTEMS: [u64; 2] = [0x0102_1994, 0x9584_58f6];

/// Opens the file, or makes it, and locks it. The lock is held until every descriptor that came
/// of this one is closed: it goes with the descriptor to the serving process.
///
/// # Errors
/// It is not a file of ours alone, or another daemon has it.
pub(super) fn open(path: &Path, identity: Option<Identity>) -> Result<File> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    directory(parent.unwrap_or(Path::new(".")))?;
    let end = Instant::now() + LOCK_TIMEOUT;
    loop {
        let file = open_once(path)?;
        check(path, &file, identity)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_named(path, &file) => return Ok(file),
            // Replaced between opening and locking.
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < end => sleep(LOCK_EVERY),
            Err(Errno::WOULDBLOCK) => {
                bail!("{}: another daemon uses it; give this one a file of its own", path.display())
            }
            Err(error) => {
                return Err(error).with_context(|| format!("locking {}", path.display()));
            }
        }
    }
}

/// Not made and opened in one: the kernel refuses that for other users' files in /dev/shm.
fn open_once(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(UNTRUSTED);
    let opened = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            options.create_new(true).mode(0o600).open(path)
        }
        opened => opened,
    };
    match opened {
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            bail!("{} is a symbolic link; name the file itself", path.display())
        }
        // Made by another between the two.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            options.create_new(false).open(path).with_context(|| path.display().to_string())
        }
        opened => opened.with_context(|| format!("opening {}", path.display())),
    }
}

fn check(path: &Path, file: &File, identity: Option<Identity>) -> Result<()> {
    let found = file.metadata()?;
    let shown = path.display();
    if !found.is_file() || found.nlink() > 1 {
        bail!("{shown} is not a regular file with one name");
    }
    let us = rustix::process::geteuid().as_raw();
    let owners = [0, us, identity.map_or(us, |identity| identity.uid)];
    if !owners.contains(&found.uid()) {
        bail!("{shown} belongs to uid {}; remove it, or run: chown {us} {shown}", found.uid());
    }
    if found.mode() & 0o077 != 0 {
        bail!("others can open {shown}, which holds everybody's values; run: chmod 600 {shown}");
    }
    let file_system = fstatfs(file)?.f_type as u64 & 0xffff_ffff;
    if !MEMORY_FILE_SYSTEMS.contains(&file_system) {
        log::warn!(
            "{shown} is not on tmpfs or hugetlbfs: the kernel writes the items to the disk again \
             and again, and serving waits for it"
        );
    }
    Ok(())
}

fn is_named(path: &Path, file: &File) -> bool {
    let inode = |found: fs::Metadata| (found.dev(), found.ino());
    let named = fs::symlink_metadata(path).map(inode);
    named.is_ok_and(|named| file.metadata().map(inode).is_ok_and(|locked| locked == named))
}

/// The kernel's number of this boot.
///
/// # Errors
/// There is no `/proc`.
pub(super) fn boot_id() -> Result<u128> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).context(path)?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).context(path)
}

/// What is in a memory file that nobody serves from.
pub(super) fn check_file(path: &Path) -> Result<Value> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(UNTRUSTED).open(path);
    let file = opened.with_context(|| format!("opening {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => bail!("a daemon serves from {}; stop it first", path.display()),
        locked => locked.with_context(|| format!("locking {}", path.display()))?,
    }
    let memory = MemoryFile { file, boot_id: boot_id()?, nameless: false, map: None };
    let inspected = match Store::inspect(&memory, Now::sample())? {
        Ok(inspected) => inspected,
        Err(cold) => bail!("{}: a start would begin empty: {cold}", path.display()),
    };
    let kept = inspected.kept;
    inspected.validated.with_context(|| path.display().to_string())?;
    Ok(json!({
        "ok": true,
        "items": kept.items,
        "bytes": kept.bytes,
        "ended": kept.dead,
        "replaced": kept.replaced,
        "lost": kept.lost,
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_had_by_one_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let first = open(&path, None).unwrap();
        assert_eq!(first.metadata().unwrap().mode() & 0o777, 0o600);
        let handed_on = first.try_clone().unwrap();
        drop(first);
        let second = File::open(&path).unwrap();
        let locked = flock(&second, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(locked, Err(Errno::WOULDBLOCK), "the lock went with the descriptor");
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || open(&path, None).map(drop)
        });
        drop(handed_on);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn traps_are_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        fs::write(&path, "others").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(open(&path, None).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(open(&link, None).unwrap_err().to_string().contains("symbolic link"));
        let name = directory.path().join("name");
        fs::hard_link(&path, &name).unwrap();
        assert!(open(&path, None).is_err());
        assert!(open(directory.path(), None).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "others");
    }

    #[test]
    fn the_boot_has_a_number() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_ne!(boot_id().unwrap(), 0);
    }
}

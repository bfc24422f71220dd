//! Locks that a daemon holds while it lives: one a guarded port, one for its overlay.
//!
//! The guard judges by (network namespace, port), so two daemons on different addresses of one
//! port would overwrite each other's list; the socket itself cannot tell them that.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::files::{UNTRUSTED, directory};

/// Where the locks of guarded ports are: the same for every daemon of the machine.
const DIRECTORY: &str = "/run/sessiond";

/// A lock that is held until this is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    file: Option<Flock<File>>,
    path: PathBuf,
}

/// What came of an attempt to take a lock.
#[derive(Debug)]
pub(super) enum Locked {
    /// It was free.
    Now(Lock),
    /// This process held it already.
    Before,
    /// Another daemon has it.
    Elsewhere,
}

impl Lock {
    /// The lock at `path` that another program in this process has taken.
    ///
    /// # Errors
    /// It is somebody else's by now.
    pub(super) fn taken_before(path: &Path, file: OwnedFd) -> Result<Self> {
        // Granted at once to whoever has it already through the same open file.
        let file = Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| io::Error::from(error))
            .with_context(|| format!("locking {}", path.display()))?;
        Ok(Self { file: Some(file), path: path.to_owned() })
    }

    /// The lock's file and another descriptor of it: the lock is held until both are closed.
    pub(super) fn copy(&self) -> io::Result<(PathBuf, OwnedFd)> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok((self.path.clone(), file.as_fd().try_clone_to_owned()?))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while it is held: whoever opened it before finds out in `take` that it is no
        // longer the file of this name.
        let _ = fs::remove_file(&self.path);
        drop(self.file.take());
    }
}

/// Takes the lock of a guarded TCP port of this network namespace, unless its path is among those
/// that this process holds already.
///
/// # Errors
/// The lock file cannot be made or is not a file of ours.
pub(super) fn endpoint(port: u16, held: &[PathBuf]) -> Result<Locked> {
    directory(Path::new(DIRECTORY))?;
    let path = Path::new(DIRECTORY).join(format!("{}-tcp-{port}.lock", namespace()?));
    take_unless(&path, held)
}

/// Takes the lock of the overlay at `path`, as [`endpoint`] does.
///
/// # Errors
/// As [`endpoint`].
pub(super) fn overlay(path: &Path, held: &[PathBuf]) -> Result<Locked> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    take_unless(Path::new(&name), held)
}

fn take_unless(path: &Path, held: &[PathBuf]) -> Result<Locked> {
    if held.iter().any(|other| other == path) {
        return Ok(Locked::Before);
    }
    Ok(take(path)?.map_or(Locked::Elsewhere, Locked::Now))
}

fn take(path: &Path) -> Result<Option<Lock>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(UNTRUSTED)
            .open(path)
            .with_context(|| format!("opening the lock {}", path.display()))?;
        if !file.metadata()?.is_file() {
            bail!("{} is not a regular file; remove it", path.display());
        }
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => {
                let what = || format!("locking {}", path.display());
                return Err(io::Error::from(error)).with_context(what);
            }
        };
        let named = fs::symlink_metadata(path).map(|named| named.ino());
        if named.is_ok_and(|named| file.metadata().is_ok_and(|locked| locked.ino() == named)) {
            return Ok(Some(Lock { file: Some(file), path: path.to_owned() }));
        }
    }
}

/// Inode of the network namespace, its name in lock files.
fn namespace() -> Result<u64> {
    let found = fs::metadata("/proc/self/ns/net").context("/proc/self/ns/net")?;
    Ok(found.ino())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn taken(path: &Path) -> Option<Lock> {
        match overlay(path, &[]).unwrap() {
            Locked::Now(lock) => Some(lock),
            Locked::Before => unreachable!("nothing is held"),
            Locked::Elsewhere => None,
        }
    }

    #[test]
    fn a_lock_is_taken_once_and_free_again_after_its_holder() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("overlay.json");
        let held = taken(&path).unwrap();
        assert!(taken(&path).is_none());
        drop(held);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing stays behind");
        assert!(taken(&path).is_some());
    }

    #[test]
    fn a_lock_outlives_the_program_that_took_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("overlay.json");
        let held = taken(&path).unwrap();
        let (lock, file) = held.copy().unwrap();
        assert!(matches!(overlay(&path, std::slice::from_ref(&lock)), Ok(Locked::Before)));
        // As an exec does it: the first descriptor is closed, and nothing else happens.
        std::mem::forget(held);
        assert!(taken(&path).is_none());
        let held = Lock::taken_before(&lock, file).unwrap();
        assert!(taken(&path).is_none());
        drop(held);
        assert!(!lock.exists());
    }

    #[test]
    fn a_symlink_in_the_place_of_a_lock_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "kept").unwrap();
        symlink(&target, directory.path().join("o.lock")).unwrap();
        assert!(overlay(&directory.path().join("o"), &[]).is_err());
        assert_eq!(fs::read(&target).unwrap(), b"kept");
    }
}

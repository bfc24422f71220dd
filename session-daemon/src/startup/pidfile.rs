//! The file of `-P`: the parent's pid, written at the start, removed at the end.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::files::UNTRUSTED;

/// A written pid file, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Pidfile {
    path: PathBuf,
    file: File,
}

impl Pidfile {
    /// Writes this process's pid. A symbolic link in the last place is refused, and so is
    /// anything but a regular file.
    pub(super) fn write(path: &Path) -> Result<Self> {
        let mut pidfile = Self::open(path)?;
        let what = || format!("writing the pid file {}", path.display());
        pidfile.file.set_len(0).with_context(what)?;
        writeln!(pidfile.file, "{}", std::process::id()).with_context(what)?;
        Ok(pidfile)
    }

    /// The pid file that this process has written with another program: it says the same.
    pub(super) fn written_before(path: &Path) -> Result<Self> {
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self> {
        let what = || format!("writing the pid file {}", path.display());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(UNTRUSTED)
            .open(path)
            .with_context(what)?;
        if !file.metadata().with_context(what)?.is_file() {
            bail!("{}: not a regular file", what());
        }
        Ok(Self { path: path.to_owned(), file })
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // In a directory of another user the file can only be emptied: the capability to remove
        // it was given up at the start.
        if fs::remove_file(&self.path).is_err() && self.file.set_len(0).is_err() {
            log::warn!("the pid file {} stays behind", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_is_written_and_the_file_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        fs::write(&path, "a longer line of an older process\n").unwrap();
        let pidfile = Pidfile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(pidfile);
        assert!(!path.exists());
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, directory.path().join("pid")).unwrap();
        assert!(Pidfile::write(&directory.path().join("pid")).is_err());
        assert_eq!(fs::read(&target).unwrap(), b"kept");
    }
}

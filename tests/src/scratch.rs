//! A private directory for each daemon under test: control socket, pidfile, state, logs, and a
//! bpffs of its own.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::leftovers;

/// A directory that goes away, with what is mounted in it, when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A fresh directory, readable by all so that a daemon that dropped its rights reaches it.
    ///
    /// # Errors
    /// When the temporary directory cannot be written.
    pub fn new(role: &str) -> Result<Self> {
        leftovers::reap_once();
        let path = std::env::temp_dir().join(leftovers::fresh_name(role));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { path })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in the directory.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Mounts a bpffs of its own at `bpffs` in the directory, and returns where.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN or without bpffs in the kernel.
    pub fn mount_bpffs(&self) -> Result<PathBuf> {
        let target = self.join("bpffs");
        fs::create_dir_all(&target)?;
        mount(Some("bpffs"), &target, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("mounting bpffs at {}", target.display()))?;
        Ok(target)
    }

    /// Mounts a tmpfs of so many megabytes at `memory` in the directory, and returns where.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn mount_tmpfs(&self, megabytes: u32) -> Result<PathBuf> {
        let target = self.join("memory");
        fs::create_dir_all(&target)?;
        let options = format!("mode=0755,size={megabytes}m");
        mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .with_context(|| format!("mounting tmpfs at {}", target.display()))?;
        Ok(target)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        leftovers::remove_directory(&self.path);
    }
}

//! Files and directories in places where others might have put a trap.
//! It owns how such a path is opened; what stands in the file is its user's.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::OFlags;

/// Flags for `OpenOptions::custom_flags`: no symbolic link in the last place, no wait for a FIFO's
/// other end, no descriptor for a child.
pub(crate) const UNTRUSTED: i32 =
    OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC).bits() as i32;

/// The text of a file that only we and root can write. A symbolic link is followed: what counts is
/// who could have written what it leads to.
///
/// # Errors
/// It cannot be read, is longer than `len_max` bytes, or somebody else could have written it.
pub(crate) fn text(path: &Path, len_max: u64) -> Result<String> {
    let flags = OFlags::NONBLOCK.union(OFlags::CLOEXEC).bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        bail!("not a regular file");
    }
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != us {
        bail!("belongs to uid {}; run: chown {us} {}", found.uid(), path.display());
    }
    if found.mode() & 0o022 != 0 {
        bail!("others can write to it; run: chmod go-w {}", path.display());
    }
    let mut text = String::new();
    file.take(len_max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > len_max {
        bail!("longer than {len_max} bytes");
    }
    Ok(text)
}

/// Makes a directory that only we and root can write, or checks that it is one.
///
/// # Errors
/// It cannot be made, or somebody else could put files there.
pub(crate) fn directory(path: &Path) -> Result<()> {
    match DirBuilder::new().recursive(true).mode(0o755).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("making the directory {}", path.display()));
        }
        _ => {}
    }
    let found = fs::metadata(path).with_context(|| path.display().to_string())?;
    if !found.is_dir() {
        bail!("{} is not a directory", path.display());
    }
    let sticky = found.mode() & 0o1000 != 0;
    if found.mode() & 0o022 != 0 && !sticky {
        bail!("others can write to {0}; run: chmod go-w {0}", path.display());
    }
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != us {
        bail!("{0} belongs to uid {1}; run: chown {us} {0}", path.display(), found.uid());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_that_others_could_have_written_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conf");
        fs::write(&path, "-v\n").unwrap();
        assert_eq!(text(&path, 3).unwrap(), "-v\n");
        assert!(text(&path, 2).unwrap_err().to_string().contains("longer than 2"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        assert!(text(&path, 3).unwrap_err().to_string().contains("chmod go-w"));
        assert!(text(directory.path(), 3).unwrap_err().to_string().contains("not a regular"));
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("run");
        directory(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(directory(&path).unwrap_err().to_string().contains("chmod go-w"));
    }
}

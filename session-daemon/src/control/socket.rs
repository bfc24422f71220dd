//! The control socket's place: made by us, for root alone, never taken from a live daemon.
#![forbid(unsafe_code)]

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::files::directory;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// The listening control socket; its file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    path: PathBuf,
    inode: u64,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// A daemon answers there.
    #[error("{0}: another daemon answers there; give this one a --control of its own")]
    Live(PathBuf),
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl ControlSocket {
    /// Makes the socket at `path`, mode 0600, in a directory that only root and we can write.
    /// The socket of a dead daemon is replaced.
    ///
    /// # Errors
    /// A live daemon's socket, a symbolic link or any other file in its place, or a directory
    /// that others can write.
    pub(crate) fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        directory(parent.unwrap_or(Path::new(".")))?;
        vacate(path)?;
        // Bound under another name, so that the socket has its mode when its name appears.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let made = (|| -> Result<_> {
            let listener = UnixListener::bind(&temporary)
                .with_context(|| format!("binding {}", temporary.display()))?;
            fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
            let inode = fs::symlink_metadata(&temporary)?.ino();
            listener.set_nonblocking(true)?;
            rustix::net::listen(&listener, BACKLOG)?;
            // A link fails if the name was taken meanwhile; a rename would take it over.
            fs::hard_link(&temporary, path)
                .with_context(|| format!("naming the socket {}", path.display()))?;
            Ok((Self { path: path.to_owned(), inode }, listener))
        })();
        let _ = fs::remove_file(&temporary);
        Ok(made?)
    }
}

impl ControlSocket {
    /// The socket that this process has made at `path` with another program.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn made_before(path: &Path) -> Result<Self> {
        let found = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
        Ok(Self { path: path.to_owned(), inode: found.ino() })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket of a dead daemon.
fn vacate(path: &Path) -> Result<(), SocketError> {
    let shown = path.display();
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(SocketError::Other(anyhow::Error::new(error).context(shown.to_string())));
        }
    };
    let refuse = || -> Result<()> {
        if found.file_type().is_symlink() {
            bail!("{shown} is a symbolic link; name the socket itself with --control");
        }
        if !found.file_type().is_socket() {
            bail!("{shown} is there and is not a socket; remove it or name another --control");
        }
        Ok(())
    };
    refuse()?;
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        // Full backlog, no permission: somebody lives there.
        _ => return Err(SocketError::Live(path.to_owned())),
    }
    fs::remove_file(path)
        .with_context(|| format!("removing the socket of a dead daemon, {shown}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let (socket, listener) = ControlSocket::bind(&path).unwrap();
        let found = fs::symlink_metadata(&path).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        UnixStream::connect(&path).unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(SocketError::Live(_))));
        // As `kill -9` leaves it: the name without a listener.
        drop(listener);
        std::mem::forget(socket);
        let (socket, _listener) = ControlSocket::bind(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn links_and_other_files_are_refused_and_untouched() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let path = directory.path().join("control.sock");
        fs::write(&target, "kept").unwrap();
        symlink(&target, &path).unwrap();
        let error = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        fs::remove_file(&path).unwrap();
        fs::hard_link(&target, &path).unwrap();
        let error = ControlSocket::bind(&path).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert_eq!(fs::read(&target).unwrap(), b"kept");
    }

    #[test]
    fn a_socket_that_was_replaced_is_left_alone_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let (socket, _listener) = ControlSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(socket);
        assert_eq!(fs::read(&path).unwrap(), b"another's");
    }
}

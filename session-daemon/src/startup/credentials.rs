//! The file of passwords: read by the parent, which may, and handed to the serving process, which
//! never opens it.
#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::config::Config;
use crate::control::sides::SharedLink;
use crate::files::UNTRUSTED;
use crate::link::Request;
use crate::server::login::Credentials;

/// Longest file that is read: far more than any list of users or chain of certificates.
const FILE_LEN_MAX: u64 = 1 << 20;

/// The users that the configuration names; none without `-Y` and `-S`.
///
/// # Errors
/// A file that cannot be read, or that says something else than users.
pub(super) fn configured(config: &Config) -> Result<Option<Credentials>> {
    let Some((flag, path)) = config.passwords() else { return Ok(None) };
    users(path).map(Some).with_context(|| format!("{flag} {}", path.display()))
}

fn users(path: &Path) -> Result<Credentials> {
    Ok(Credentials::parse(&read(path, Kept::Secret)?)?)
}

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Everybody may.
    Open,
    /// Only its owner and its group should; the operator is told if others may.
    Secret,
}

/// Reads a regular file of at most [`FILE_LEN_MAX`] bytes. A symbolic link is followed: service
/// managers put secrets behind them.
pub(super) fn read(path: &Path, kept: Kept) -> Result<Vec<u8>> {
    let follow = UNTRUSTED & !rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(follow).open(path)?;
    let found = file.metadata()?;
    ensure!(found.is_file(), "not a regular file");
    if kept == Kept::Secret && found.mode() & 0o007 != 0 {
        log::warn!("others can read the secrets in {0}; run: chmod o= {0}", path.display());
    }
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= FILE_LEN_MAX, "longer than {FILE_LEN_MAX} bytes");
    Ok(bytes)
}

/// Reads the file again and hands it over; what was read before stays when it cannot be.
pub(super) async fn reload(config: &Config, link: &SharedLink) {
    let credentials = match configured(config) {
        Ok(None) => return,
        Ok(Some(credentials)) => credentials,
        Err(error) => return log::error!("the passwords stay as they were: {error:#}"),
    };
    match link.lock().await.done(&Request::Credentials(credentials)).await {
        Ok(()) => log::info!("the passwords were read again"),
        Err(error) => log::error!("the passwords stay as they were: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_read_and_what_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users");
        fs::write(&path, "user:pass").unwrap();
        assert!(users(&path).unwrap().admit(b"user", b"pass"));
        let link = directory.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(users(&link).unwrap().admit(b"user", b"pass"));
        assert!(users(directory.path()).is_err());
        assert!(users(&directory.path().join("none")).is_err());
        fs::write(&path, "x".repeat(1_100_000)).unwrap();
        assert!(users(&path).unwrap_err().to_string().contains("longer than"));
    }
}

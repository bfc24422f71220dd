//! Where a daemon has its control socket and its overlay unless it is told. It makes nothing there.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::config::{Config, PORT};

/// Directory of root's control sockets unless told otherwise.
pub const CONTROL_DIR: &str = "/run/sessiond";
/// Directory of the overlay of changes unless told otherwise.
pub const STATE_DIR: &str = "/var/lib/sessiond";

impl Config {
    /// Where the control socket is, for a daemon whose first TCP port is `port`.
    #[must_use]
    pub fn control_path(&self, port: Option<u16>, root: bool) -> Option<PathBuf> {
        self.control.clone().or_else(|| default_control(port, root))
    }

    /// Where the overlay of changes is, for a daemon whose first TCP port is `port`.
    #[must_use]
    pub fn state_path(&self, port: Option<u16>, root: bool) -> Option<PathBuf> {
        let directory = if root {
            Some(PathBuf::from(STATE_DIR))
        } else {
            let home =
                || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
            user_directory("XDG_STATE_HOME").or_else(home).map(|home| home.join("sessiond"))
        };
        self.state.clone().or_else(|| Some(directory?.join(named("overlay", "json", port))))
    }
}

/// Where the control socket of the daemon on `port` is unless `--control` says otherwise. None for
/// a user without `XDG_RUNTIME_DIR`.
#[must_use]
pub fn default_control(port: Option<u16>, root: bool) -> Option<PathBuf> {
    let directory = if root {
        Some(PathBuf::from(CONTROL_DIR))
    } else {
        user_directory("XDG_RUNTIME_DIR").map(|directory| directory.join("sessiond"))
    };
    Some(directory?.join(named("control", "sock", port)))
}

/// The name of a file of the daemon on `port`: without the port for memcached's.
fn named(stem: &str, extension: &str, port: Option<u16>) -> String {
    match port {
        None | Some(PORT) => format!("{stem}.{extension}"),
        Some(port) => format!("{stem}-{port}.{extension}"),
    }
}

/// An absolute directory of the environment (XDG Base Directory Specification).
fn user_directory(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

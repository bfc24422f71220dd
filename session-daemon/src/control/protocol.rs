//! What goes over the control socket: one JSON object a line, described in docs/operations.md.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::allowlist::Action;
use crate::guard::Refuse;

/// Longest request line in bytes, without its newline.
pub(crate) const LINE_LEN_MAX: usize = 64 << 10;

/// What a command without prefixes is told.
pub(crate) const NO_PREFIX: &str =
    "no prefix given; write an address such as 198.18.0.1 or a prefix such as 198.18.0.0/24";

/// A request; `sync` is followed by as many [`SyncLine`]s as it announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Request {
    /// Let sources in.
    Allow {
        /// Addresses and prefixes.
        prefixes: Vec<String>,
        /// Seconds after which the entries end; for ever if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        for_s: Option<u64>,
        /// What the sources are called.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// What the operator notes beside them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        comment: Option<String>,
        /// Whether a prefix may stand for every address.
        #[serde(default)]
        any: bool,
        /// Seconds after which it is taken back unless it is confirmed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confirm_s: Option<u64>,
    },
    /// Keep sources out, whatever larger prefix lets them in.
    Deny {
        /// Addresses and prefixes.
        prefixes: Vec<String>,
        /// What they are told; as `--refuse` of the daemon says if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refuse: Option<Refuse>,
        /// What the sources are called.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// What the operator notes beside them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        comment: Option<String>,
        /// As for `allow`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confirm_s: Option<u64>,
    },
    /// Delete the entries of exactly these prefixes, or of these names.
    Remove {
        /// Addresses, prefixes and names.
        prefixes: Vec<String>,
        /// As for `allow`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confirm_s: Option<u64>,
    },
    /// Keep the change that waits to be confirmed.
    Confirm,
    /// Take it back at once.
    Rollback,
    /// Count what the guard would drop, and drop nothing; or drop again.
    Audit {
        /// Whether to let everybody in.
        on: bool,
    },
    /// All entries: a line with their count, then one line each.
    List,
    /// One line that says how the daemon is.
    Status,
    /// What would become of a source's packets.
    Test {
        /// Its address.
        address: IpAddr,
        /// A port; each guarded one if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
    },
    /// Locks of PHP sessions that are held.
    Locks,
    /// A command of memcached's, one line without its end.
    Admin {
        /// The command.
        line: String,
    },
    /// Make the list say exactly what the following lines say.
    Sync {
        /// How many lines follow.
        count: usize,
        /// Only tell what would change.
        #[serde(default)]
        dry_run: bool,
        /// Whether a prefix may stand for every address.
        #[serde(default)]
        any: bool,
        /// As for `allow`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        confirm_s: Option<u64>,
        /// Whether lines with a [`Progress`] may come before the answer.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        progress: bool,
    },
    /// One line an event until the connection ends.
    Watch,
    /// Go on with another program file, at best without anybody noticing.
    Upgrade {
        /// The file; the one that runs, by its name, if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        binary: Option<PathBuf>,
    },
}

/// One entry of a `sync`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SyncLine {
    /// Address or prefix.
    pub(crate) prefix: String,
    /// `allow` or `deny`.
    pub(crate) action: Action,
    /// What the sources are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// What the file notes beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) comment: Option<String>,
}

/// How far a `sync` is; alone in a line, under the name `progress`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Entries in the kernel's tables.
    pub(crate) done: usize,
    /// Entries that will be there; 0 while the lists are compared or the serving process is told.
    pub(crate) of: usize,
}

/// Who asked, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Peer {
    /// User of the asking process.
    pub(crate) uid: u32,
    /// Its pid, 0 if it is in another pid namespace.
    pub(crate) pid: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        for (line, request) in [
            (
                r#"{"command":"allow","prefixes":["198.18.0.1"],"for_s":60}"#,
                Request::Allow {
                    prefixes: vec!["198.18.0.1".to_owned()],
                    for_s: Some(60),
                    name: None,
                    comment: None,
                    any: false,
                    confirm_s: None,
                },
            ),
            (r#"{"command":"list"}"#, Request::List),
            (
                r#"{"command":"sync","count":2,"dry_run":true}"#,
                Request::Sync {
                    count: 2,
                    dry_run: true,
                    any: false,
                    confirm_s: None,
                    progress: false,
                },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        }
        for bad in [
            "{}",
            r#"{"command":"drop"}"#,
            r#"{"command":"deny"}"#,
            r#"{"command":"deny","prefixes":["198.18.0.1"],"for_s":60}"#,
        ] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }
}

//! The command line as `getopt_long` reads it: which flags exist and which were given.
//! It owns spelling; what a flag's argument means is `config`'s.
#![forbid(unsafe_code)]

mod getopt;
mod table;
mod usage;

pub use getopt::{UsageError, parse};
pub use table::{Flag, UNSERVED, Unserved, spelling};
pub use usage::{license, usage, version};

/// memcached's version whose behaviour is answered for; the first line of `-h` and `-V`.
pub const MEMCACHED_VERSION: &str = "1.6.45";

/// First argument of the re-executed process that serves clients. Not for the command line.
pub const SERVE_MARKER: &str = "--serve-from-parent";

/// First argument of the re-executed process that `-d` leaves in the background.
pub const DETACHED_MARKER: &str = "--detached-from-launcher";

/// First argument of a program that only says whether it could take over from the running one.
pub const REHEARSE_MARKER: &str = "--rehearse-upgrade";

//! The command line of `sessionctl`.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::default_control;
use crate::guard::Refuse;

/// Steers sessiond: who may reach the cache, and how it is.
#[derive(Debug, Parser)]
#[command(
    name = "sessionctl",
    version,
    after_help = "Exit status: 0 done, 1 refused or failed, 2 wrong usage."
)]
pub(super) struct Arguments {
    /// The daemon's control socket [default: /run/sessiond/control.sock]
    #[arg(long, value_name = "PATH", global = true)]
    pub(super) control: Option<PathBuf>,
    /// The daemon on this port, if it is not 11211
    #[arg(short, long, value_name = "PORT", global = true, conflicts_with = "control")]
    pub(super) port: Option<u16>,
    /// Print JSON: one object, for `watch` one a line
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

impl Arguments {
    /// Path of the control socket; none for a user without a place for one.
    pub(super) fn control_path(&self) -> Option<PathBuf> {
        let root = rustix::process::geteuid().is_root();
        self.control.clone().or_else(|| default_control(self.port, root))
    }
}

/// What is asked for.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Let addresses or prefixes in
    Allow {
        /// Addresses and prefixes, such as 198.18.0.7, 198.18.0.0/24 or 2001:db8::/64
        #[arg(required = true, value_name = "PREFIX")]
        prefixes: Vec<String>,
        /// End the entries after this time, such as 90s, 15m, 1h or 7d
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        until: Option<Duration>,
        #[command(flatten)]
        note: Note,
        /// Accept 0.0.0.0/0 or ::/0, which let everybody in
        #[arg(long)]
        any: bool,
        #[command(flatten)]
        trial: Trial,
    },
    /// Keep addresses or prefixes out, and reset their connections
    Deny {
        /// Addresses and prefixes
        #[arg(required = true, value_name = "PREFIX")]
        prefixes: Vec<String>,
        /// What they are told, if it is not what --refuse of the daemon says
        #[arg(long, value_name = "drop|reset|icmp", value_parser = refuse)]
        refuse: Option<Refuse>,
        #[command(flatten)]
        note: Note,
        #[command(flatten)]
        trial: Trial,
    },
    /// Delete entries, and reset the connections that nothing allows then
    Remove {
        /// Prefixes exactly as `list` shows them, or names
        #[arg(required = true, value_name = "PREFIX")]
        prefixes: Vec<String>,
        #[command(flatten)]
        trial: Trial,
    },
    /// Keep the change that was made with --confirm
    Confirm,
    /// Take the change that was made with --confirm back at once
    Rollback,
    /// Count whom the list refuses and let them in (on), or refuse them again (off)
    Audit {
        /// on or off
        #[arg(value_name = "on|off", value_parser = ["on", "off"])]
        state: String,
    },
    /// Show all entries and where they come from
    List {
        /// Print what `sync` and `--allow-file` read
        #[arg(long, conflicts_with = "json")]
        export: bool,
    },
    /// Ask the server a command of memcached's, such as `stats items` or `cache_memlimit 128`
    Admin {
        /// The words of the command
        #[arg(required = true, value_name = "WORD", allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Show what is served, how it is guarded, and what was refused
    Status,
    /// Say what would become of a source's packets, asked of the guard's own program
    Test {
        /// The source, such as 198.18.0.7 or 2001:db8::7
        #[arg(value_name = "ADDRESS")]
        address: IpAddr,
        /// To this port, guarded or not [default: each guarded one]
        #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        to: Option<u16>,
    },
    /// Make the list say exactly what a file says, at one instant
    Sync {
        /// One entry a line: allow or deny (allow if neither), a prefix, name=NAME, # and a comment
        file: PathBuf,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
        /// Accept 0.0.0.0/0 or ::/0, which let everybody in
        #[arg(long)]
        any: bool,
        #[command(flatten)]
        trial: Trial,
    },
    /// Print the list that equals another program's rules; changes nothing
    #[command(subcommand)]
    Import(Import),
    /// Look at this host for what keeps the guard or the cache from working, and name the fix
    Doctor {
        /// `-m` of the daemon, in megabytes
        #[arg(short = 'm', long, value_name = "MB", default_value_t = 64)]
        memory_limit: u64,
        /// `-e` of the daemon
        #[arg(short = 'e', long, value_name = "PATH")]
        memory_file: Option<PathBuf>,
        /// Where the guard is pinned
        #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
        bpffs: PathBuf,
    },
    /// Show traffic, memory, drops and connections on one screen, until q
    Top {
        /// Time between two looks, such as 1s
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1s")]
        interval: Duration,
        /// Print one frame as text
        #[arg(long, conflicts_with = "json")]
        once: bool,
    },
    /// Show locks of PHP sessions that are held for long, and who may hold them
    Locks {
        /// Only those held longer than this
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
        longer: Duration,
        /// `memcache.lock_timeout` of the web servers
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "15s")]
        memcache_expiry: Duration,
        /// `memcached.sess_lock_expire` of the web servers, or their max_execution_time
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
        memcached_expiry: Duration,
    },
    /// Show changes of the list, events of the guard and counters, until interrupted
    Watch {
        /// What: everything but dropped packets, or samples of those alone
        #[arg(value_enum, default_value_t = Watched::Events)]
        what: Watched,
    },
    /// Show the sources that the guard refuses most, estimated from samples
    TopSources,
    /// Go on with a new program file: the items, the connections and the guard stay
    Upgrade {
        /// The file; the one that runs, by its name, if absent
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
    },
    /// Check a memory file that no daemon serves from: what a start would keep, every invariant
    Check {
        /// What `-e` named
        file: PathBuf,
    },
    /// Keep the port closed from boot on, by a table of nftables, until the guard is on every interface
    #[command(subcommand)]
    BootRule(BootRule),
    /// Take the guard off every interface and open the ports; refused while a daemon runs
    Detach {
        /// Really do it
        #[arg(long)]
        yes: bool,
        /// Where the guard is pinned
        #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
        bpffs: PathBuf,
    },
    /// Print the manual page or a completion of a shell, for packages
    #[command(hide = true)]
    Generate {
        /// What
        what: Generated,
    },
}

/// What `generate` prints.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Generated {
    /// The manual page, in roff.
    Man,
    /// A completion of bash.
    Bash,
    /// A completion of zsh.
    Zsh,
    /// A completion of fish.
    Fish,
}

/// What `watch` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Watched {
    /// Changes, the guard's events, counters
    Events,
    /// Dropped packets: source, port, reason, interface
    Drops,
}

/// What is done about the rule. Its port is that of --port, if no file says another.
#[derive(Debug, Subcommand)]
pub(super) enum BootRule {
    /// Print it as `nft -f` takes it
    Print {
        /// The ports that sessiond would guard with this --config
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Load it with nft, in place of one that is there: nobody but this host reaches the port
    Set {
        /// The ports that sessiond would guard with this --config
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Take it away, guard or no guard: that of --port, or all
    Clear,
}

/// What a list is made from.
#[derive(Debug, Subcommand)]
pub(super) enum Import {
    /// From the file of memcached's service: memcached.conf, or its sysconfig file
    Config {
        /// /etc/memcached.conf or /etc/sysconfig/memcached
        file: PathBuf,
    },
    /// From iptables-save, ip6tables-save, `ipset save` and `nft --json list ruleset`
    Iptables {
        /// What they wrote, `-` for standard input; without a file this host's own rules
        files: Vec<PathBuf>,
        /// The port of the cache among the rules [default: 11211, or that of --port]
        #[arg(long, value_name = "PORT")]
        dport: Option<u16>,
        /// What `ipset save` wrote
        #[arg(long, value_name = "FILE")]
        ipset: Option<PathBuf>,
        /// Accept rules that let nearly everybody in
        #[arg(long)]
        any: bool,
    },
}

/// What is noted beside entries.
#[derive(Debug, Args)]
pub(super) struct Note {
    /// What the sources are called: letters, digits, dots, dashes, underscores
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Why, for whoever reads the list later
    #[arg(long, value_name = "TEXT")]
    pub(super) comment: Option<String>,
}

/// Changes that have to be confirmed.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Trial {
    /// Take the change back after this time, such as 60s, unless `sessionctl confirm` comes
    #[arg(long, value_name = "TIME", value_parser = duration)]
    confirm: Option<Duration>,
}

impl Trial {
    /// Seconds until the change is taken back.
    pub(super) fn confirm_s(self) -> Option<u64> {
        self.confirm.map(|time| time.as_secs())
    }
}

/// A style by its name.
fn refuse(text: &str) -> Result<Refuse, String> {
    Refuse::of_name(text).ok_or_else(|| "write drop, reset or icmp".to_owned())
}

/// A number with s, m, h or d; several may follow each other (`1h30m`).
fn duration(text: &str) -> Result<Duration, String> {
    let fault = || format!("`{text}` is no time; write 90s, 15m, 1h or 7d");
    let mut rest = text;
    let mut seconds = 0_u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| fault())?;
        let unit = match rest.as_bytes().get(digits) {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3_600,
            Some(b'd') => 86_400,
            _ => return Err(fault()),
        };
        let more = number.checked_mul(unit).ok_or_else(fault)?;
        seconds = seconds.checked_add(more).ok_or_else(fault)?;
        rest = &rest[digits + 1..];
    }
    if seconds == 0 { Err(fault()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h30m", 5_400), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "0s", "5", "h", "1w", "-1s", "1 h", "99999999999999999999s", "1hé"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}

//! The one place that wires everything: from the command line to two processes that serve.
//!
//! | file | does |
//! |---|---|
//! | `parent` | the order of the start: list, locks, control socket, guard, sockets, child |
//! | `run` | the parent's life: signals, child, guard, control |
//! | `child` | the serving process |
//! | `upgrade` | the parent becomes another program: would it do, and the exec |
//! | `takeover` | the start of that program, from what the one before passes on |
//! | `baton` | what is passed on, and its way through the exec |
//! | `process` | the serving process as its parent sees it |
//! | `daemonize` | `-d` |
//! | `certificates`, `credentials`, `sockets`, `lock`, `memory`, `pidfile`, `portfile` | one part each |
//! | `boot` | the rule that keeps the port closed before there is a guard |
//! | `privileges`, `lists`, `logger`, `flag_files`, `import`, `memory_limit`, `plane`, `told` | one part each |
//! | `notify` | the service manager |
#![forbid(unsafe_code)]

mod baton;
mod boot;
mod certificates;
mod child;
mod credentials;
mod daemonize;
mod engine;
mod flag_files;
mod import;
mod lists;
mod lock;
mod logger;
mod memory;
mod memory_limit;
mod metrics;
mod notify;
mod parent;
mod pidfile;
mod plane;
mod portfile;
mod privileges;
mod process;
mod run;
mod sockets;
mod supervision;
mod takeover;
mod told;
mod upgrade;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::cli::{self, DETACHED_MARKER, Flag, REHEARSE_MARKER, SERVE_MARKER};
use crate::config::{Config, Refusal};
use crate::startup::baton::Baton;
use crate::startup::daemonize::Detached;

/// Runs `sessiond` with `arguments` (without the program's name); the result is the exit status.
#[must_use]
pub fn sessiond(arguments: Vec<OsString>) -> u8 {
    let marker = arguments.first().and_then(|first| first.to_str());
    if marker == Some(SERVE_MARKER) {
        return child::run();
    }
    if marker == Some(REHEARSE_MARKER) {
        return upgrade::rehearsal(&arguments[1..]);
    }
    match Baton::taken() {
        Ok(Some(baton)) => return takeover::run(&arguments, baton),
        Ok(None) => {}
        Err(error) => {
            eprintln!("sessiond: {error:#}");
            return 1;
        }
    }
    let detached = marker == Some(DETACHED_MARKER);
    let words = if detached { &arguments[1..] } else { &arguments[..] };
    let flags = match cli::parse(words.iter().cloned()) {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("{error}");
            return if error.0.contains("Illegal argument") {
                1
            } else {
                crate::config::EXIT_USAGE
            };
        }
    };
    for (flag, _) in &flags {
        let text = match flag {
            Flag::Help => cli::usage(),
            Flag::Version => cli::version(),
            Flag::License => cli::license(),
            _ => continue,
        };
        print!("{text}");
        return 0;
    }
    let outcome = configured(flags).and_then(|config| {
        logger::start(config.verbosity);
        // Told here as well, so that -d fails in the foreground and at once.
        let identity = privileges::identity(&config)?;
        engine::check(&config)?;
        if config.daemonize && !detached {
            return daemonize::launch(words);
        }
        let detached = if detached { Some(Detached::begin(config.verbosity > 0)?) } else { None };
        parent::run(&config, identity, detached)
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        error.downcast_ref::<Refusal>().map_or(1, |refusal| refusal.status)
    })
}

/// What the flags mean, those in files included.
fn configured(flags: Vec<(Flag, Option<String>)>) -> anyhow::Result<Config> {
    let (flags, remarks) = flag_files::expand(flags)?;
    let mut config = Config::from_flags(flags)?.with_absolute_paths()?;
    config.remarks.extend(remarks);
    Ok(config)
}

/// Checks a memory file as a start would take it over, and changes nothing: what it holds.
///
/// # Errors
/// A daemon serves from it, nothing of it would be kept, or an invariant does not hold.
pub fn check_memory_file(path: &Path) -> anyhow::Result<Value> {
    memory::check_file(path)
}

/// Says what a file of memcached's service means here, line by line and as a command.
///
/// # Errors
/// It cannot be read or trusted, or a line of it says nothing known.
pub fn import_config_file(path: &Path) -> anyhow::Result<Value> {
    import::config(path)
}

/// The ports that a daemon would guard which is started with `--config path`; none if it would have
/// no guard.
///
/// # Errors
/// The file cannot be read or trusted, a line of it says nothing known, or it names no port.
pub fn boot_ports(path: &Path) -> anyhow::Result<BTreeSet<u16>> {
    boot::ports(path)
}

/// The runtime of the parent, which does one thing at a time.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the parent's runtime")
}

/// Ends the process at once when any thread or task panics: a worker that is gone would leave its
/// connections unanswered for ever, a task of the parent its chore undone. The other process ends
/// with this one, and the service manager starts both again.
fn abort_on_panic() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        std::process::abort();
    }));
}

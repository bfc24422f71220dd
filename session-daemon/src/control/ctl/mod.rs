//! `sessionctl`: asks the daemon and prints the answer.
//! It owns no state; `detach` and `boot-rule` alone act by themselves, `detach` only when no daemon runs.
#![forbid(unsafe_code)]

mod args;
mod boot;
mod client;
mod doctor;
mod drops;
mod generate;
mod import;
mod locks;
mod render;
mod tested;
mod top;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};

use crate::allowlist::parse::{Any, read_file};
use crate::config::PORT;
use crate::control::ctl::args::{Arguments, Command, Import, Watched};
use crate::control::ctl::client::Client;
use crate::control::protocol::{Progress, Request, SyncLine};
use crate::guard::detach_all;

/// Entries from which on a `sync` tells how far it is.
const PROGRESS_FROM: usize = 10_000;

/// Exit status of a request that was refused or failed.
const EXIT_FAILED: u8 = 1;
/// Exit status of a wrong command line, as clap has it.
const EXIT_USAGE: u8 = 2;

/// What is done without a daemon, by what a daemon does it with at its start.
#[derive(Clone, Copy, Debug)]
pub struct Offline {
    /// Checks a memory file and says what is in it.
    pub check_file: fn(&Path) -> Result<Value>,
    /// Says what a file of memcached's service means here.
    pub import_config: fn(&Path) -> Result<Value>,
    /// The ports that a daemon with a file of flags would guard.
    pub boot_ports: fn(&Path) -> Result<BTreeSet<u16>>,
}

/// Runs `sessionctl` with `arguments` (the program's name first); the result is the exit status.
#[must_use]
pub fn sessionctl(arguments: impl IntoIterator<Item = OsString>, offline: Offline) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody is left to be told of a closed output.
            let _ = error.print();
            return if error.use_stderr() { EXIT_USAGE } else { 0 };
        }
    };
    match run(&arguments, offline) {
        Ok(()) => 0,
        Err(error) if error.is::<Unsound>() => EXIT_FAILED,
        Err(error) if is_closed_output(&error) => 0,
        Err(error) => {
            let text = format!("{error:#}");
            if arguments.json {
                println!("{}", json!({"ok": false, "error": text}));
            }
            eprintln!("sessionctl: {text}");
            EXIT_FAILED
        }
    }
}

/// What `doctor` found is printed already.
#[derive(Debug, thiserror::Error)]
#[error("something has to be mended")]
struct Unsound;

fn run(arguments: &Arguments, offline: Offline) -> Result<()> {
    let request = match &arguments.command {
        Command::BootRule(what) => return boot::run(arguments, what, offline),
        Command::Detach { yes, bpffs } => return detach(arguments, *yes, bpffs),
        Command::Sync { file, dry_run, any, trial } => {
            return sync(arguments, file, *dry_run, *any, trial.confirm_s());
        }
        Command::Generate { what } => return generate::generate(*what),
        Command::Check { file } => {
            let answer = (offline.check_file)(file)?;
            return print(arguments, &answer, &render::checked(&answer));
        }
        Command::List { export } => return list(arguments, *export),
        Command::Import(Import::Config { file }) => {
            let answer = (offline.import_config)(file)?;
            return print(arguments, &answer, &render::config(&answer));
        }
        Command::Import(Import::Iptables { files, dport, ipset, any }) => {
            let files: Vec<PathBuf> = files.iter().chain(ipset).cloned().collect();
            let port = dport.or(arguments.port).unwrap_or(PORT);
            let imported = import::import(&import::sources(&files)?, port, *any)?;
            for remark in &imported.remarks {
                eprintln!("sessionctl: {remark}");
            }
            let text = import::render(&imported, port);
            return print(arguments, &import::to_json(&imported), &text);
        }
        Command::Doctor { memory_limit, memory_file, bpffs } => {
            let plan = doctor::Plan {
                port: arguments.port.unwrap_or(PORT),
                memory_limit: memory_limit.saturating_mul(1 << 20),
                memory_file: memory_file.clone(),
                bpffs: bpffs.clone(),
            };
            return doctor(arguments, &plan);
        }
        Command::Top { interval, once: true } => {
            return top::once(&mut connect(arguments)?, *interval, &mut std::io::stdout());
        }
        Command::Top { interval, once: false } => {
            ensure!(!arguments.json, "top has no JSON; `sessionctl watch --json` tells counters");
            return top::run(&mut connect(arguments)?, *interval);
        }
        Command::Locks { longer, memcache_expiry, memcached_expiry } => {
            let answer = connect(arguments)?.ask([&Request::Locks])?;
            let terms = locks::Terms {
                longer_s: longer.as_secs(),
                memcache_s: memcache_expiry.as_secs(),
                memcached_s: memcached_expiry.as_secs(),
            };
            let held = locks::held(&answer, terms)?;
            return print(arguments, &locks::to_json(&held), &locks::render(&held, terms));
        }
        Command::Watch { what } => return watch(arguments, *what),
        Command::TopSources => {
            let status = connect(arguments)?.ask([&Request::Status])?;
            let answer = drops::top_answer(&status)?;
            return print(arguments, &answer, &drops::top(&answer));
        }
        Command::Status => Request::Status,
        Command::Test { address, to } => Request::Test { address: *address, port: *to },
        Command::Upgrade { binary } => {
            let absolute = binary.as_ref().map(std::path::absolute).transpose()?;
            Request::Upgrade { binary: absolute }
        }
        Command::Admin { words } => Request::Admin { line: words.join(" ") },
        Command::Confirm => Request::Confirm,
        Command::Rollback => Request::Rollback,
        Command::Audit { state } => Request::Audit { on: state == "on" },
        Command::Allow { prefixes, until, note, any, trial } => Request::Allow {
            prefixes: split(prefixes),
            for_s: until.map(|until| until.as_secs()),
            name: note.name.clone(),
            comment: note.comment.clone(),
            any: *any,
            confirm_s: trial.confirm_s(),
        },
        Command::Deny { prefixes, refuse, note, trial } => Request::Deny {
            prefixes: split(prefixes),
            refuse: *refuse,
            name: note.name.clone(),
            comment: note.comment.clone(),
            confirm_s: trial.confirm_s(),
        },
        Command::Remove { prefixes, trial } => {
            Request::Remove { prefixes: split(prefixes), confirm_s: trial.confirm_s() }
        }
    };
    let answer = connect(arguments)?.ask([&request])?;
    let text = match &request {
        Request::Status => render::status(&answer),
        Request::Test { .. } => tested::render(&answer),
        Request::Audit { .. } => render::audited(&answer),
        Request::Confirm => "confirmed\n".to_owned(),
        Request::Upgrade { .. } => render::upgraded(&answer),
        Request::Admin { .. } => answer["answer"].as_str().unwrap_or_default().to_owned(),
        _ => render::changed(&answer),
    };
    print(arguments, &answer, &text)
}

/// Without a daemon only the host is looked at.
fn doctor(arguments: &Arguments, plan: &doctor::Plan) -> Result<()> {
    let status = connect(arguments).and_then(|mut client| client.ask([&Request::Status])).ok();
    let (answer, text, sound) = doctor::report(plan, status.as_ref())?;
    print(arguments, &answer, &text)?;
    if sound { Ok(()) } else { Err(Unsound.into()) }
}

/// Commas separate prefixes as they do behind `--allow`.
fn split(prefixes: &[String]) -> Vec<String> {
    prefixes.iter().flat_map(|word| word.split(',')).map(str::to_owned).collect()
}

fn connect(arguments: &Arguments) -> Result<Client> {
    let path = arguments
        .control_path()
        .context("no control socket to be found: name it with --control, or set XDG_RUNTIME_DIR")?;
    Client::connect(&path).map_err(boot::without_daemon)
}

fn print(arguments: &Arguments, answer: &Value, text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if arguments.json {
        writeln!(out, "{answer}")?
    } else {
        out.write_all(text.as_bytes())?
    }
    Ok(out.flush()?)
}

fn list(arguments: &Arguments, export: bool) -> Result<()> {
    let mut client = connect(arguments)?;
    let mut head = client.ask([&Request::List])?;
    let count = head["count"].as_u64().context("the answer has no count")?;
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(client.line()?.context("the daemon ended within its answer")?);
    }
    let text = if export { render::exported(&entries) } else { render::list(&head, &entries) };
    head["entries"] = Value::Array(entries);
    print(arguments, &head, &text)
}

fn sync(
    arguments: &Arguments,
    file: &Path,
    dry_run: bool,
    any: bool,
    confirm_s: Option<u64>,
) -> Result<()> {
    let permission = if any { Any::Permitted } else { Any::Refused };
    let entries =
        read_file(file, permission).with_context(|| format!("reading {}", file.display()))?;
    let count = entries.len();
    // A shorter list is in force before anybody looks up.
    let progress = !dry_run && count >= PROGRESS_FROM;
    let request = Request::Sync { count, dry_run, any, confirm_s, progress };
    let lines = entries.into_iter().map(|entry| SyncLine {
        prefix: entry.prefix.to_string(),
        action: entry.action,
        name: entry.name,
        comment: entry.comment,
    });
    let lines = lines.map(|line| serde_json::to_value(line).unwrap_or_default());
    let request = serde_json::to_value(request)?;
    let lines = std::iter::once(request).chain(lines);
    let answer = connect(arguments)?.ask_watched(lines, |progress| show(count, progress))?;
    print(arguments, &answer, &render::changed(&answer))
}

/// One line to the operator, whom the answer does not concern yet.
fn show(count: usize, Progress { done, of }: Progress) {
    let end = if std::io::stderr().is_terminal() { "\x1b[K\r" } else { "\n" };
    // Nobody is left to be told of a closed output.
    let _ = match of {
        0 => write!(std::io::stderr(), "sessionctl: {count} entries: being compared{end}"),
        of => write!(std::io::stderr(), "sessionctl: {done} of {of} entries are written{end}"),
    };
}

fn watch(arguments: &Arguments, what: Watched) -> Result<()> {
    let mut client = connect(arguments)?;
    client.ask([&Request::Watch])?;
    client.wait_for_ever()?;
    while let Some(event) = client.line()? {
        match (what, event["event"] == "drop") {
            (Watched::Drops, true) => print(arguments, &event, &drops::line(&event["drop"]))?,
            (Watched::Drops, false) if event["event"] == "missed" => {
                print(arguments, &event, &render::event(&event))?;
            }
            (Watched::Events, false) => print(arguments, &event, &render::event(&event))?,
            _ => {}
        }
    }
    bail!("the daemon has ended")
}

fn detach(arguments: &Arguments, yes: bool, bpffs: &Path) -> Result<()> {
    if !yes {
        bail!(
            "detaching the guard opens its ports to everybody who can reach this host; \
             add --yes if that is meant"
        );
    }
    let detached = detach_all(bpffs)?;
    let answer = json!({"ok": true, "links": detached.links});
    let text = match detached.links {
        0 => "no guard was attached\n".to_owned(),
        links => format!("the guard is off: {links} interfaces are open\n"),
    };
    print(arguments, &answer, &text)
}

/// `sessionctl list | head` is no error.
fn is_closed_output(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

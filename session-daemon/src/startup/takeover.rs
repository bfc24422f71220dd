//! The start of a program in a process that another program has run in: it goes on with sockets,
//! locks, guard and store, from the serving process that serves meanwhile to one of its own.
//!
//! ```text
//! old child   serves ........................ gives up connections and store, ends
//! new child          started, all but the store |  takes them, serves ......
//! parent      exec, lists, guard, sockets       |<-- requests wait -->|
//! ```
//! What fails before the old child has given up is no loss: the process becomes the program of
//! before again, and the old child serves on. What fails later leads there as well, and that
//! program starts a child of its own with the same sockets and the same store.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::allowlist::{Allowlist, Entry};
use crate::cli::{DETACHED_MARKER, parse};
use crate::clock::Now;
use crate::config::Config;
use crate::control::overlay::Overlay;
use crate::control::socket::ControlSocket;
use crate::guard::Guard;
use crate::guard::plane::Region;
use crate::link::{Lent, ParentEnd, Request};
use crate::startup::baton::{Baton, Thing, hear_signals, text_of};
use crate::startup::lock::Lock;
use crate::startup::parent::{
    GUARD_STAYS, Held, Memory, NOT_STARTED, Prepared, Reign, hand_over, lend_memory, prepare, rule,
    socket_guard, spawn, stand_guard,
};
use crate::startup::pidfile::Pidfile;
use crate::startup::privileges::{self, Holding, Identity};
use crate::startup::process::Serving;
use crate::startup::run::Signals;
use crate::startup::sockets::Listening;
use crate::startup::upgrade::answer;
use crate::startup::{abort_on_panic, configured, logger, memory, metrics, notify, plane, runtime};

/// How long a process that has given everything up may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs this program in the place of the one that has passed `baton` on, or goes back to that.
/// The result is the exit status.
pub(super) fn run(arguments: &[OsString], mut baton: Baton) -> u8 {
    abort_on_panic();
    match begin(arguments, &mut baton) {
        Ok(status) => status,
        Err(Fault::Later(error)) => {
            eprintln!("{error:#}");
            1
        }
        Err(Fault::Early(error)) => {
            eprintln!("sessiond: taking over: {error:#}");
            go_back(baton, error)
        }
    }
}

/// What ended a program that takes over.
enum Fault {
    /// It has not taken over.
    Early(anyhow::Error),
    /// It had.
    Later(anyhow::Error),
}

/// Becomes the program of before again.
fn go_back(mut baton: Baton, error: anyhow::Error) -> u8 {
    if let Some(first) = &baton.facts.failed {
        eprintln!("sessiond: the upgrade had failed: {first}");
        return 1;
    }
    baton.facts.failed = Some(format!("{error:#}"));
    let gone = match baton.copy(&Thing::Before) {
        Ok(Some(before)) => {
            let program = format!("/proc/self/fd/{}", before.as_raw_fd());
            baton.pass_on(Path::new(&program))
        }
        Ok(None) => anyhow::anyhow!("the program of before was not passed on"),
        Err(error) => error.into(),
    };
    eprintln!("sessiond: going back: {gone:#}");
    1
}

fn begin(arguments: &[OsString], baton: &mut Baton) -> Result<u8, Fault> {
    let (config, identity) = settings(arguments, baton).map_err(Fault::Early)?;
    let (runtime, local) = (runtime().map_err(Fault::Early)?, LocalSet::new());
    local.block_on(&runtime, async {
        let begun = Instant::now();
        let (reign, pause) = take_over(&config, identity, baton).await.map_err(Fault::Early)?;
        let child_pid = reign.child.pid();
        let failed = baton.facts.failed.take();
        let asker = baton.copy(&Thing::Asker).ok().flatten();
        baton.things.clear();
        let guarded = reign.guard.is_some();
        let ruled = rule(&config, reign, async || {
            notify::ready();
            match failed {
                Some(error) => {
                    log::error!("upgrade: the program of before serves on: {error}");
                    answer(asker, &json!({"ok": false, "error": error}));
                }
                None => {
                    log::info!(
                        "upgrade: done in {:.3} s; requests waited for {:.3} s",
                        begun.elapsed().as_secs_f64(),
                        pause.as_secs_f64()
                    );
                    let done = json!({
                        "ok": true,
                        "version": env!("CARGO_PKG_VERSION"),
                        "pid": std::process::id(),
                        "child_pid": child_pid,
                        "pause_us": u64::try_from(pause.as_micros()).unwrap_or(u64::MAX),
                    });
                    answer(asker, &done);
                }
            }
            Ok(())
        });
        let outcome = ruled.await.map_err(Fault::Later);
        if guarded {
            log::info!("{GUARD_STAYS}");
        }
        outcome
    })
}

fn settings(arguments: &[OsString], baton: &Baton) -> Result<(Config, Option<Identity>)> {
    baton.facts.check()?;
    let directory = &baton.facts.directory;
    std::env::set_current_dir(directory)
        .with_context(|| format!("changing to {}", directory.display()))?;
    let detached = arguments.first().is_some_and(|word| word == DETACHED_MARKER);
    let words = if detached { &arguments[1..] } else { arguments };
    let config = configured(parse(words.iter().cloned())?)?;
    baton.facts.check_store(&config)?;
    logger::start(config.verbosity);
    if detached {
        std::env::set_current_dir("/").context("changing to /")?;
    }
    let identity = privileges::identity(&config)?;
    Ok((config, identity))
}

/// Takes everything over. Also returns for how long nobody was served.
async fn take_over(
    config: &Config,
    identity: Option<Identity>,
    baton: &mut Baton,
) -> Result<(Reign, Duration)> {
    let signals = Signals::new()?;
    hear_signals()?;
    privileges::raise_limits(config)?;
    let facts = baton.facts.clone();
    let sockets = baton.copies(|thing| match thing {
        Thing::Lent(Lent::Listener(kind)) => Some(*kind),
        _ => None,
    })?;
    let tcp = facts.addresses.clone();
    let mut listening =
        Listening::made_before(sockets, facts.addresses, facts.datagram_addresses, facts.unix);
    let overlay = match baton.copy(&Thing::Overlay)? {
        Some(text) => Some(Overlay::from_text(&text_of(text)?, Now::sample())?),
        None => None,
    };
    // Whoever goes back depends on nothing that may have changed meanwhile.
    let goes_back = facts.failed.is_some();
    let base = match baton.copy(&Thing::Base)?.filter(|_| goes_back) {
        Some(text) => {
            let entries: Vec<Entry> = serde_json::from_slice(&text_of(text)?)?;
            Some(entries.into_iter().collect::<Allowlist>())
        }
        None => None,
    };
    let secrets = goes_back && facts.child.is_some();
    let held = Held { locks: baton.locks(), overlay, base, secrets };
    let mut prepared = prepare(config, listening.all_addresses(), &tcp, held)?;
    let mut guard = stand_guard(config, &prepared, baton.copy(&Thing::GuardLock)?)?;
    if let Some(filter) = guard.as_mut().and_then(socket_guard) {
        listening.stand(&filter).context("the guard on the listening sockets")?;
    }
    let holding = Holding::of(config, guard.is_some());
    privileges::keep_over_upgrade(holding)?;
    let before = Before::of(baton)?;
    let (child, end, pause) = match before {
        Some(mut before) if goes_back => {
            before
                .end
                .replace(prepared.list.entries())
                .await
                .context("the list of the serving process")?;
            privileges::lower_parent(holding)?;
            (before.child, before.end, Duration::ZERO)
        }
        before => {
            let (child, mut end) = spawn(config, identity, false)?;
            let guard = guard.as_mut();
            let new =
                New { end: &mut end, config, prepared: &prepared, listening: &listening, guard };
            match succeed(new, before, baton).await {
                Ok(pause) => (child, end, pause),
                Err(error) => {
                    child.kill();
                    return Err(error);
                }
            }
        }
    };
    // From here on nothing fails: what follows is removed from the file system when it ends.
    listening.close();
    for (path, file) in baton.copies(|thing| match thing {
        Thing::Lock(path) => Some(path.clone()),
        _ => None,
    })? {
        prepared.locks.push(Lock::taken_before(&path, file)?);
    }
    if let (Some((_, socket)), Some(listen)) =
        (baton.copies(metrics_of)?.pop(), config.metrics.as_ref())
    {
        let bound = metrics::Bound::made_before(socket, listen);
        prepared.metrics = bound.inspect_err(|error| log::warn!("{error:#}")).ok();
    }
    let control = control(baton)?;
    let pidfile = config.pidfile.as_deref().and_then(|path| {
        let written = Pidfile::written_before(path);
        written.inspect_err(|error| log::warn!("{error:#}")).ok()
    });
    let directory = facts.directory;
    let reign =
        Reign { prepared, directory, signals, child, end, control, guard, pidfile, listening };
    Ok((reign, pause))
}

fn metrics_of(thing: &Thing) -> Option<bool> {
    match thing {
        Thing::Metrics { unix } => Some(*unix),
        _ => None,
    }
}

fn control(baton: &Baton) -> Result<Option<(ControlSocket, UnixListener)>> {
    let (Some(path), Some(listener)) = (&baton.facts.control, baton.copy(&Thing::Control)?) else {
        return Ok(None);
    };
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    match ControlSocket::made_before(path) {
        Ok(socket) => Ok(Some((socket, listener))),
        Err(error) => {
            log::warn!("the control socket has been removed: {error:#}");
            Ok(None)
        }
    }
}

/// The child of the program before.
struct Before {
    child: Serving,
    end: ParentEnd,
}

impl Before {
    fn of(baton: &Baton) -> Result<Option<Self>> {
        let (Some(pid), Some(link)) = (baton.facts.child, baton.copy(&Thing::Link)?) else {
            return Ok(None);
        };
        let end = ParentEnd::new(UnixStream::from(link)).context("the socket pair")?;
        Ok(Some(Self { child: Serving::new(pid), end }))
    }
}

/// A child to be, and what it gets.
struct New<'a> {
    end: &'a mut ParentEnd,
    config: &'a Config,
    prepared: &'a Prepared,
    listening: &'a Listening,
    guard: Option<&'a mut Guard>,
}

/// Has the new child serve what the one before served. Returns for how long nobody did.
async fn succeed(new: New<'_>, before: Option<Before>, baton: &mut Baton) -> Result<Duration> {
    let New { end, config, prepared, listening, mut guard } = new;
    let from = if before.is_some() { Region::Left } else { Region::Any };
    let maps = plane::make(config, guard.as_deref_mut(), from)?;
    let metrics = baton.copies(metrics_of)?.pop();
    let metrics = metrics.as_ref().map(|(is_unix, socket)| (socket.as_fd(), *is_unix));
    hand_over(end, config, prepared, listening, metrics).await?;
    let begun = Instant::now();
    let before = match before {
        Some(before) => give_up(before, end, baton).await?,
        None => None,
    };
    for (nameless, file) in baton.copies(|thing| match thing {
        Thing::Lent(Lent::Memory { nameless }) => Some(*nameless),
        _ => None,
    })? {
        lend_memory(end, &Memory { file, boot_id: memory::boot_id()?, nameless }).await?;
    }
    plane::lend(end, guard.as_deref_mut(), maps).await?;
    // Before a client's first byte is read.
    privileges::lower_parent(Holding::of(config, guard.is_some()))?;
    end.done(&Request::Serve).await.context(NOT_STARTED)?;
    plane::put_on(guard)?;
    let pause = begun.elapsed();
    if let Some(mut before) = before {
        let stop = Request::Stop { graceful: false };
        // It may end before its answer is out, or be killed in a moment.
        let _ = timeout(END_TIMEOUT, before.end.done(&stop)).await;
        before.child.end_within(END_TIMEOUT).await;
    }
    Ok(pause)
}

/// Has the child of before give up its connections and its store. It neither reads a client nor
/// writes to the store any more when this returns; none if it had to be killed for that.
async fn give_up(
    mut before: Before,
    end: &mut ParentEnd,
    baton: &mut Baton,
) -> Result<Option<Before>> {
    let (way_in, way_out) = UnixStream::pair().context("making a socket pair")?;
    end.adopt(way_in.as_fd()).await.context(NOT_STARTED)?;
    drop(way_in);
    let given = before.end.hand_over(way_out.as_fd(), memory::boot_id()?).await;
    drop(way_out);
    baton.facts.child = None;
    match given {
        Ok(lent) => {
            baton.things.extend(lent.into_iter().map(|(kind, fd)| (Thing::Lent(kind), fd)));
            Ok(Some(before))
        }
        Err(error) => {
            log::error!("upgrade: the serving process of before does not give up: {error}");
            before.child.kill();
            Ok(None)
        }
    }
}

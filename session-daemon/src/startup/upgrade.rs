//! The upgrade as the running parent sees it: whether another program could take over, and its
//! becoming that program.
//!
//! The parent executes the new program in its own place, so that its pid, what supervises it and
//! what waits for it stay the same, and the serving process serves on meanwhile. Whatever fails
//! from there on leads back to the program that ran before (`takeover`).
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cli::{DETACHED_MARKER, REHEARSE_MARKER, parse};
use crate::clock::Now;
use crate::control::server::Upgrade;
use crate::control::sides::SharedGuard;
use crate::startup::baton::{Baton, Facts, Thing, text_file};
use crate::startup::run::Running;
use crate::startup::{certificates, configured, credentials, lists, notify};

/// How long the new program may take to say that it could take over.
const REHEARSAL_TIMEOUT: Duration = Duration::from_secs(20);
const REHEARSAL_LOOK: Duration = Duration::from_millis(5);

/// What a program says that could take over; another program would hardly.
const READY: &str = "sessiond is ready to take over\n";

/// Longest account of what is wrong that is told on.
const COMPLAINT_LEN_MAX: u64 = 16 << 10;

/// Longest wait for whoever asked to take the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Becomes the program that is asked for. Returns only when that is not to be, and has told whoever
/// asked; the daemon runs as before then.
pub(super) async fn upgrade(running: &Running, wish: Upgrade) {
    let asker = wish.asker.as_ref().and_then(|asker| asker.try_clone().ok());
    let binary = wish.binary.clone();
    let Err(error) = attempt(running, wish).await;
    let what = match binary {
        Some(binary) => format!("upgrade to {}", binary.display()),
        None => "upgrade".to_owned(),
    };
    log::error!("{what}: the running sessiond serves on: {error:#}");
    answer(asker, &json!({"ok": false, "error": format!("{error:#}")}));
}

async fn attempt(running: &Running, wish: Upgrade) -> Result<Infallible> {
    let program = match wish.binary {
        Some(path) => path,
        None => own_path()?,
    };
    log::info!("upgrade: trying {}", program.display());
    let facts = running.facts();
    rehearse(&program, &facts).await?;
    // Nobody changes the list, or asks the serving process anything, from here on.
    let keeper = running.control.hold().await;
    let mut link = running.link.lock().await;
    let mut things = vec![(Thing::Link, link.copy().context("the socket pair")?)];
    things.extend(running.estate().context("collecting what is passed on")?);
    let base: Vec<_> = keeper.base().entries().collect();
    things.push((Thing::Base, text_file(&serde_json::to_string(&base)?)?));
    if running.overlay_is_nowhere {
        let text = keeper.overlay().to_text(Now::sample())?;
        things.push((Thing::Overlay, text_file(&text)?));
    }
    let lent = link.lend().await.context("asking the serving process")?;
    things.extend(lent.into_iter().map(|(kind, fd)| (Thing::Lent(kind), fd)));
    things.extend(wish.asker.map(|asker| (Thing::Asker, asker)));
    let before = std::fs::File::open("/proc/self/exe").context("opening /proc/self/exe")?;
    things.push((Thing::Before, before.into()));
    log::info!("upgrade: executing {}", program.display());
    // The thread that mends the guard ends with this program: not in the middle of it.
    let _guard = running.guard.as_ref().map(SharedGuard::hold);
    notify::reloading();
    let error = Baton { facts, things }.pass_on(&program);
    notify::notify("READY=1");
    Err(error)
}

/// The running program's file by its name; the file there may be another by now.
fn own_path() -> Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe").context("/proc/self/exe")?;
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
    let path = PathBuf::from(std::ffi::OsString::from_vec(bytes.to_vec()));
    ensure!(
        path.is_absolute() && path.exists(),
        "there is no {}; name the program with --binary",
        path.display()
    );
    Ok(path)
}

/// Has the program say whether it could take over.
async fn rehearse(program: &Path, facts: &Facts) -> Result<()> {
    let mut words: Vec<_> = std::env::args_os().skip(1).collect();
    if words.first().is_some_and(|word| word == DETACHED_MARKER) {
        words.remove(0);
    }
    let shown = program.display().to_string();
    let mut command = Command::new(program);
    command.arg(REHEARSE_MARKER).args(words).current_dir(&facts.directory);
    command.env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("executing {shown}"))?;
    let text = serde_json::to_vec(facts)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not want to hear it says why, or is no sessiond.
        let _ = stdin.write_all(&text);
    }
    let give_up = Instant::now() + REHEARSAL_TIMEOUT;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < give_up => tokio::time::sleep(REHEARSAL_LOOK).await,
            None => {
                // It may end in this moment.
                let _ = child.kill();
                child.wait()?;
                bail!("{shown} does not say whether it can take over");
            }
        }
    };
    let said = read(child.stdout.take()).context("reading what the program says")?;
    if status.success() && said == READY.as_bytes() {
        return Ok(());
    }
    let complaint = read(child.stderr.take()).context("reading what the program says")?;
    match String::from_utf8_lossy(&complaint).trim() {
        "" => bail!("{shown} is no sessiond that can take over"),
        text => bail!("{shown}: {text}"),
    }
}

/// What waits in a pipe, up to a limit.
fn read(pipe: Option<impl Read>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(COMPLAINT_LEN_MAX).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The other side of [`rehearse`]: what a start would check is checked, and nothing is touched.
/// The result is the exit status.
pub(super) fn rehearsal(words: &[std::ffi::OsString]) -> u8 {
    let checked = (|| {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text)?;
        let facts: Facts = serde_json::from_slice(&text)
            .context("the running sessiond cannot be upgraded to this one: restart it")?;
        facts.check()?;
        let config = configured(parse(words.iter().cloned())?)?;
        facts.check_store(&config)?;
        lists::configured(&config)?;
        credentials::configured(&config)?;
        certificates::configured(&config)?;
        anyhow::Ok(())
    })();
    match checked {
        Ok(()) => {
            print!("{READY}");
            0
        }
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    }
}

/// Tells whoever asked for the upgrade what came of it.
pub(super) fn answer(asker: Option<OwnedFd>, value: &Value) {
    let Some(asker) = asker.map(UnixStream::from) else { return };
    let told = (|| {
        asker.set_nonblocking(false)?;
        asker.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        (&asker).write_all(format!("{value}\n").as_bytes())
    })();
    if let Err(error) = told {
        log::warn!("control: whoever asked for the upgrade has gone: {error}");
    }
}

//! Holds a guard in the network namespace that it is started in; see `guard_holder` in the
//! library for what it reads and writes.
#![forbid(unsafe_code)]

use std::io::{BufRead, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use session_daemon::allowlist::Allowlist;
use session_daemon::guard::Guard;
use session_tests::guard_holder::{Reply, Request, Setup};
use tokio::sync::mpsc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&Reply::Error(format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let argument = std::env::args().nth(1).context("needs a setup as JSON")?;
    let setup: Setup = serde_json::from_str(&argument)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(hold(&setup))
}

async fn hold(setup: &Setup) -> Result<()> {
    let list: Allowlist = setup.entries.iter().cloned().collect();
    let mut guard = Guard::attach(setup.config(), &list)?;
    let watch = guard.watch()?;
    say(&Reply::Status(Box::new(guard.status())));
    let mut requests = requests();
    loop {
        let ready = watch.ready();
        tokio::pin!(ready);
        // Whoever asks again and again does not keep it from looking.
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => say(&answer(&mut guard, request)),
                    None => return Ok(()),
                },
                () = &mut ready => break,
            }
        }
        for event in guard.tick() {
            say(&Reply::Event(event.to_string()));
        }
    }
}

fn answer(guard: &mut Guard, request: Request) -> Reply {
    let outcome = match request {
        Request::Status => Ok(()),
        Request::Replace(entries) => guard.replace(&entries.into_iter().collect()),
        Request::Insert(entry) => guard.insert(&entry),
        Request::Remove(prefix) => guard.remove(prefix).map(drop),
    };
    match outcome {
        Ok(()) => Reply::Status(Box::new(guard.status())),
        Err(error) => Reply::Error(error.to_string()),
    }
}

/// Lines of standard input, read on a thread of their own.
fn requests() -> mpsc::UnboundedReceiver<Request> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let request = serde_json::from_str(&line).expect("the test writes requests");
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    receiver
}

fn say(reply: &Reply) {
    let line = serde_json::to_string(reply).expect("replies are plain data");
    // The reader may be gone already, which ends the process soon.
    let _ = writeln!(std::io::stdout(), "{line}");
}

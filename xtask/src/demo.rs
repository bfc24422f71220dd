//! `cargo xtask demo sessions`: the shop of docs/migrate-from-memcached.md in namespaces. A load
//! balancer, web servers with PHP, a cache host; every step says what happened and fails if it
//! should not have.
#![forbid(unsafe_code)]

mod clocks;
mod copies;
mod cost;
mod locks;
mod restarts;
mod shop;
mod story;
mod visits;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use session_tests::{binaries, php};

use self::shop::Shop;
use self::story::Story;
use crate::packages;
use crate::shell;
use crate::supervise;

/// What there is to be shown.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Demo {
    /// Sessions of load-balanced PHP servers: who is let in, restarts, locks, copies, clocks
    Sessions(Options),
}

/// Options of `cargo xtask demo sessions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The directory of sessiond and sessionctl that are already built
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    binaries: Option<PathBuf>,
    /// The inner process, started by the outer one
    #[arg(long, hide = true)]
    inner: bool,
}

/// Runs the command.
pub(crate) fn run(demo: &Demo) -> Result<ExitCode> {
    let Demo::Sessions(options) = demo;
    if options.inner {
        return sessions().map(|()| ExitCode::SUCCESS);
    }
    let binaries = match &options.binaries {
        Some(directory) => directory.clone(),
        None => build()?,
    };
    let words = |more: &[&str]| -> Vec<String> {
        ["demo", "sessions"].iter().chain(more).map(|word| (*word).to_owned()).collect()
    };
    if !shell::is_root() {
        let directory = binaries.to_str().context("the path of the target directory")?;
        return Err(supervise::through_sudo(&words(&["--binaries", directory])));
    }
    packages::ensure(packages::FOR_PHP);
    let code = supervise::run(&words(&["--inner"]), &binaries)?;
    println!("\nthe shop is removed");
    Ok(code)
}

/// Builds what is shown as it is shipped: figures of a debug build would say nothing.
fn build() -> Result<PathBuf> {
    let arguments = ["build", "--release", "--package", "session-daemon", "--bins"];
    shell::run(shell::cargo().args(arguments))?;
    Ok(shell::target_directory().join("release"))
}

fn sessions() -> Result<()> {
    // The outer process removes what this one made, so this one must not outlive it.
    set_pdeathsig(Signal::SIGKILL)?;
    let missing = php::missing();
    if !missing.is_empty() {
        bail!("not on this machine: {}; {}", missing.join(", "), packages::advice());
    }
    let mut story = Story::begin();
    let shop = Shop::build()?;
    let setup = shop.cache_setup()?;
    let mut daemon = setup.start(Some(&shop.topology.cache.namespace))?;
    visits::the_shop(&mut story, &shop)?;
    visits::strangers(&mut story, &shop, &daemon)?;
    daemon = restarts::show(&mut story, &shop, &setup, daemon)?;
    locks::show(&mut story, &shop)?;
    copies::show(&mut story, &shop, &daemon)?;
    clocks::show(&mut story, &shop)?;
    cost::show(&mut story, &shop, &daemon, is_debug())?;
    story.end();
    Ok(())
}

/// Whether the daemon is a debug build.
fn is_debug() -> bool {
    binaries::sessiond().parent().is_some_and(|directory| directory.ends_with("debug"))
}

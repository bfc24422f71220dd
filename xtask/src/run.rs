//! The README's first command: a playground of network namespaces with a guarded `sessiond`.
//!
//! The inner process makes the playground; the outer one builds and watches over it.
#![forbid(unsafe_code)]

mod demonstration;
mod playground;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::packages;
use crate::shell;
use crate::supervise;

/// Options of `cargo xtask run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// End by itself after so many seconds
    #[arg(long, value_name = "N", conflicts_with = "host")]
    seconds: Option<u64>,
    /// Run sessiond on this machine itself, with the arguments after `--`, instead of a playground
    #[arg(long)]
    host: bool,
    /// Arguments for sessiond, with --host
    #[arg(last = true, requires = "host")]
    arguments: Vec<String>,
    /// The inner process, started by the outer one
    #[arg(long, hide = true, conflicts_with = "host")]
    inner: bool,
    /// The binaries are built; set when the command starts itself again through sudo
    #[arg(long, hide = true)]
    built: bool,
}

impl Options {
    /// The arguments for starting this command again, as another part of itself.
    fn words(&self, part: &str) -> Vec<String> {
        let mut words = vec!["run".to_owned(), part.to_owned()];
        if let Some(seconds) = self.seconds {
            words.extend(["--seconds".to_owned(), seconds.to_string()]);
        }
        words
    }
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.inner {
        return playground::run(options.seconds).map(|()| ExitCode::SUCCESS);
    }
    if !options.built {
        build()?;
    }
    if options.host {
        return Err(on_the_host(&shell::binary_directory().join("sessiond"), &options.arguments));
    }
    if !shell::is_root() {
        return Err(supervise::through_sudo(&options.words("--built")));
    }
    packages::ensure(&["iproute2"]);
    let code = supervise::run(&options.words("--inner"), &shell::binary_directory())?;
    println!("\nthe playground is removed");
    Ok(code)
}

fn build() -> Result<()> {
    shell::run(shell::cargo().args(["build", "--package", "session-daemon", "--bins"]))
}

/// Becomes `sessiond` on the machine itself. Returns only when that fails.
fn on_the_host(sessiond: &Path, arguments: &[String]) -> anyhow::Error {
    eprintln!(
        "WARNING: this is no playground. sessiond attaches its guard to the real interfaces of\n\
         WARNING: this machine, and the guard stays when sessiond ends: the port then refuses\n\
         WARNING: everything until `sessionctl detach` or a reboot."
    );
    let mut command = match shell::find("sudo") {
        Some(sudo) if !shell::is_root() => {
            let mut command = Command::new(sudo);
            command.arg("--").arg(sessiond);
            command
        }
        _ => Command::new(sessiond),
    };
    command.args(arguments);
    anyhow::Error::from(command.exec()).context("starting sessiond")
}

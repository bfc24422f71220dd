//! Running other programs, and what the chores know about the machine.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The top of the source tree.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate stands below the root")
}

/// The cargo that runs this chore.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where cargo puts what it builds in this program's own profile: where this program stands.
/// Also true through sudo, which drops what the environment said.
pub(crate) fn binary_directory() -> PathBuf {
    let program = std::env::current_exe().expect("/proc/self/exe is readable");
    program.parent().expect("a program stands in a directory").to_owned()
}

/// Where cargo puts what it builds, all profiles.
pub(crate) fn target_directory() -> PathBuf {
    binary_directory().parent().expect("a profile's directory stands in another").to_owned()
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Where `program` is, in `PATH` or where Debian keeps what only root runs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// Prints the command, runs it with this process's output, and fails when it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("+ {}", line(command));
    let status = command.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("starting {:?}", command.get_program()))?;
    ensure!(status.success(), "{}: {status}", line(command));
    Ok(())
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let words = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(name).chain(words).collect::<Vec<_>>().join(" ")
}

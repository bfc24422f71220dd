//! Placeholder that the module's owner replaces.
#![forbid(unsafe_code)]

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}

/// Runs the command.
pub(crate) fn run(_options: &Options) -> anyhow::Result<()> {
    anyhow::bail!("this command is not part of this tree yet")
}

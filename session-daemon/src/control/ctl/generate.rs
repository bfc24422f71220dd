//! The manual page and the completions, made of the command line itself.
#![forbid(unsafe_code)]

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::control::ctl::args::{Arguments, Generated};

/// Prints one of them.
pub(super) fn generate(what: Generated) -> Result<()> {
    let mut command = Arguments::command();
    let mut text = Vec::new();
    let shell = match what {
        Generated::Man => {
            manual(&mut command, &mut text)?;
            return Ok(std::io::stdout().write_all(&text)?);
        }
        Generated::Bash => Shell::Bash,
        Generated::Zsh => Shell::Zsh,
        Generated::Fish => Shell::Fish,
    };
    clap_complete::generate(shell, &mut command, "sessionctl", &mut text);
    Ok(std::io::stdout().write_all(&text)?)
}

/// One page: the whole, then every command's description and options.
fn manual(command: &mut clap::Command, out: &mut Vec<u8>) -> Result<()> {
    command.build();
    let page = clap_mangen::Man::new(command.clone()).section("1");
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
        let name = part.get_name().to_uppercase();
        writeln!(out, ".SH \"THE COMMAND {name}\"")?;
        let about = part.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(out, "{}", about.replace('-', "\\-"))?;
        let mut options = Vec::new();
        clap_mangen::Man::new(part.clone()).render_options_section(&mut options)?;
        let options = String::from_utf8_lossy(&options).replace(".SH OPTIONS", ".PP");
        out.extend_from_slice(options.as_bytes());
    }
    page.render_extra_section(out)?;
    Ok(())
}

//! `session-load`: the command line over the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use session_load::options::Options;

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let report = session_load::run(&options)?;
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

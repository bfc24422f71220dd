//! The project's chores, one file a command: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

mod bench;
mod bench_guard;
mod build_ebpf;
mod ci;
mod demo;
mod fuzz;
mod kernels;
mod package;
mod packages;
mod ramdisk;
mod run;
mod sanitize;
mod shell;
mod supervise;
mod tally;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::Parser;

/// The project's chores.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
enum Command {
    /// Start a guarded sessiond in a playground of network namespaces
    Run(run::Options),
    /// Show what the project is for, with other people's programs
    #[command(subcommand)]
    Demo(demo::Demo),
    /// Make a package for Debian, or for Fedora and RHEL
    #[command(subcommand)]
    Package(package::Package),
    /// Set up, build and run every test
    Test(test::Options),
    /// Check what a compiler does not: layers, module headers, lengths, links
    Tidy,
    /// Everything that a change must pass, the tests last; .ci/run installs what it needs
    Ci,
    /// Rebuild the kept eBPF object and its digest from source
    BuildEbpf(build_ebpf::Options),
    /// Hold sessiond against memcached with random streams
    #[command(subcommand)]
    Fuzz(fuzz::Options),
    /// Run the store's tests under ThreadSanitizer
    Sanitize(sanitize::Options),
    /// Measure sessiond beside memcached, or what else is named
    Bench(bench::Options),
}

fn main() -> ExitCode {
    match run(&Command::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(options) => return run::run(options),
        Command::Demo(demo) => return demo::run(demo),
        Command::Test(options) => return test::run(options),
        Command::Ci => return ci::run(),
        Command::Tidy => return tidy::run(),
        Command::Fuzz(options) => return fuzz::run(options),
        Command::Sanitize(options) => return sanitize::run(options),
        Command::Bench(options) => return bench::run(options),
        Command::Package(package) => package::run(package)?,
        Command::BuildEbpf(options) => build_ebpf::run(options)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Command;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }
}

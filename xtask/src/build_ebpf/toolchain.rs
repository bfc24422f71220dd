//! Finding, and on request installing, a compiler and a linker for eBPF.
//!
//! Two are known to work: rustup's nightly, and Debian's `rustc-web` (whose package of sources
//! belongs to the same compiler). Both need bpf-linker.
#![forbid(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

/// Debian's matched compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// LLVM of that compiler, which the linker must be built with.
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";
/// Packages of the above.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "rust-web-src", "llvm-22-dev", "libclang-22-dev"];
/// How the linker is installed for Debian's compiler.
const DEBIAN_LINKER: [&str; 5] =
    ["install", "bpf-linker", "--no-default-features", "--features", "llvm-22"];

/// Which toolchain to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Choice {
    /// Debian's if it is there, else nightly
    Auto,
    /// Debian's rustc-web and rust-web-src
    Debian,
    /// rustup's nightly with rust-src
    Nightly,
}

/// A compiler that can build `core` for eBPF, and a linker.
pub(super) struct Toolchain {
    /// Compiler and linker with their versions.
    pub(super) name: String,
    /// Where the sources of `core` stand.
    pub(super) std_sources: PathBuf,
    /// bpf-linker.
    pub(super) linker: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Debian,
    Nightly,
}

impl Toolchain {
    /// `cargo` with this compiler.
    pub(super) fn cargo(&self) -> Command {
        match self.kind {
            Kind::Debian => {
                let mut cargo = clean("cargo");
                // Debian's compiler is a stable one; this lets it build `core`.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Kind::Nightly => {
                let mut rustup = clean("rustup");
                rustup.args(["run", "nightly", "cargo"]);
                rustup
            }
        }
    }
}

/// A command that does not inherit what `cargo xtask` itself was started with.
fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let is_home = text == "CARGO_HOME" || text.ends_with("_HOME");
        if !is_home && (text.starts_with("CARGO") || text.starts_with("RUST")) {
            command.env_remove(&name);
        }
    }
    command
}

/// The toolchain to use, or an error that says what is missing and how to get it.
pub(super) fn find(choice: Choice, install: bool) -> anyhow::Result<Toolchain> {
    let missing = match probe(choice) {
        Ok(toolchain) => return Ok(toolchain),
        Err(missing) => missing,
    };
    if !install {
        bail!(
            "no eBPF toolchain is complete:\n{}\n`cargo xtask build-ebpf --install` does this",
            missing.join("\n")
        );
    }
    install_for(choice)?;
    probe(choice).map_err(|missing| anyhow::anyhow!("still missing:\n{}", missing.join("\n")))
}

/// Each fault names a remedy.
fn probe(choice: Choice) -> Result<Toolchain, Vec<String>> {
    let mut missing = Vec::new();
    if choice != Choice::Nightly {
        match probe_debian() {
            Ok(toolchain) => return Ok(toolchain),
            Err(faults) => missing.extend(faults),
        }
    }
    if choice != Choice::Debian {
        match probe_nightly() {
            Ok(toolchain) => return Ok(toolchain),
            Err(faults) => missing.extend(faults),
        }
    }
    Err(missing)
}

fn probe_debian() -> Result<Toolchain, Vec<String>> {
    let mut missing = Vec::new();
    let std_sources = sysroot_sources(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]));
    if std_sources.is_none() {
        missing.push(format!("  Debian: apt-get install {}", DEBIAN_PACKAGES.join(" ")));
    }
    let linker = linker();
    if linker.is_none() {
        missing
            .push(format!("  Debian: LLVM_PREFIX={DEBIAN_LLVM} cargo {}", DEBIAN_LINKER.join(" ")));
    }
    complete(Kind::Debian, version(Command::new(DEBIAN_RUSTC).arg("-V")), std_sources, linker)
        .ok_or(missing)
}

fn probe_nightly() -> Result<Toolchain, Vec<String>> {
    let mut missing = Vec::new();
    let rustc = |argument: &[&str]| {
        let mut rustup = clean("rustup");
        rustup.args(["run", "nightly", "rustc"]).args(argument);
        rustup
    };
    let version = version(&mut rustc(&["-V"]));
    let std_sources = sysroot_sources(&mut rustc(&["--print", "sysroot"]));
    if std_sources.is_none() {
        missing.push("  rustup: rustup toolchain install nightly -c rust-src".to_owned());
    }
    let linker = linker();
    if linker.is_none() {
        missing.push("  rustup: cargo install bpf-linker".to_owned());
    }
    complete(Kind::Nightly, version, std_sources, linker).ok_or(missing)
}

fn complete(
    kind: Kind,
    rustc: Option<String>,
    std_sources: Option<PathBuf>,
    linker: Option<PathBuf>,
) -> Option<Toolchain> {
    let linker = linker?;
    let linker_version = version(Command::new(&linker).arg("--version"))?;
    Some(Toolchain {
        name: format!("{}, {linker_version}", rustc?),
        std_sources: std_sources?,
        linker,
        kind,
    })
}

/// The directory of `core`'s sources, if they are installed.
fn sysroot_sources(print_sysroot: &mut Command) -> Option<PathBuf> {
    let sources = Path::new(&version(print_sysroot)?).join("lib/rustlib/src/rust/library");
    sources.join("core/Cargo.toml").is_file().then_some(sources)
}

/// The first line that a command prints, if it succeeds.
fn version(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.lines().next()?.to_owned())
}

/// bpf-linker from `PATH` or from cargo's own directory.
fn linker() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = super::cargo_home().ok().map(|home| home.join("bin"));
    env::split_paths(&path)
        .chain(home)
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
}

/// Debian's packages where apt has them, rustup's components elsewhere.
fn install_for(choice: Choice) -> anyhow::Result<()> {
    let debian = choice == Choice::Debian || choice == Choice::Auto && has_debian_packages();
    if debian {
        run(Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(DEBIAN_PACKAGES))?;
        if linker().is_none() {
            run(clean("cargo").args(DEBIAN_LINKER).env("LLVM_PREFIX", DEBIAN_LLVM))?;
        }
        return Ok(());
    }
    run(clean("rustup").args(["toolchain", "install", "nightly", "--component", "rust-src"]))?;
    if linker().is_none() {
        run(clean("cargo").args(["install", "bpf-linker"]))?;
    }
    Ok(())
}

fn has_debian_packages() -> bool {
    DEBIAN_PACKAGES.iter().all(|package| {
        version(Command::new("apt-cache").args(["show", "--no-all-versions", package])).is_some()
    })
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    println!("{command:?}");
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

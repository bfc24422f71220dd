//! `cargo xtask package deb` and `rpm`: one tree of files, packed by each distribution's own tool,
//! so that no packer of Rust's has to be compiled and both packages hold the same.
#![forbid(unsafe_code)]

mod deb;
mod rpm;
mod tree;

use std::path::PathBuf;

use anyhow::Result;

use self::tree::Tree;
use crate::shell;

/// What is packed.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Package {
    /// A package for Debian, by dpkg-deb
    Deb(Options),
    /// A package for Fedora and RHEL, by rpmbuild
    Rpm(Options),
}

/// Options of both.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Where the package is put
    #[arg(long, value_name = "DIRECTORY", default_value = "target/package")]
    out: PathBuf,
    /// Which package of this version it is
    #[arg(long, value_name = "N", default_value_t = 1)]
    revision: u32,
    /// Pack what is already built, instead of a release build
    #[arg(long, value_name = "DIRECTORY")]
    binaries: Option<PathBuf>,
    /// Do not compress
    #[arg(long)]
    fast: bool,
}

/// Runs the command and prints the path of the package.
pub(crate) fn run(package: &Package) -> Result<()> {
    let (Package::Deb(options) | Package::Rpm(options)) = package;
    let binaries = match &options.binaries {
        Some(directory) => std::path::absolute(directory)?,
        None => {
            let arguments = ["build", "--release", "--package", "session-daemon", "--bins"];
            shell::run(shell::cargo().args(arguments))?;
            shell::target_directory().join("release")
        }
    };
    std::fs::create_dir_all(&options.out)?;
    let out = std::path::absolute(&options.out)?;
    let tree = Tree::build(&binaries)?;
    let path = match package {
        Package::Deb(_) => deb::pack(&tree, &out, options.revision, options.fast)?,
        Package::Rpm(_) => rpm::pack(&tree, &out, options.revision, options.fast)?,
    };
    println!("{}", path.display());
    Ok(())
}

//! `cargo xtask build-ebpf`: the kept eBPF objects, from source.
//!
//! It owns how the objects are compiled and stripped and the file of digests. It never depends
//! on the daemon, whose build fails as long as an object is stale.
#![forbid(unsafe_code)]

mod strip;
mod toolchain;

#[path = "../../session-ebpf/digest.rs"]
mod digest;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, bail, ensure};

use self::toolchain::{Choice, Toolchain};

/// The compiler's name of the machine that the kernel runs the objects on.
const TARGET: &str = "bpfel-unknown-none";

/// Binary of `session-ebpf` and name of the object made of it. The first is the guard.
const OBJECTS: [(&str, &str); 3] =
    [("guard", "guard.bpf.o"), ("bench", "bench.bpf.o"), ("plane", "plane.bpf.o")];

/// Options of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Install what is missing, as far as this machine allows
    #[arg(long)]
    install: bool,
    /// Write nothing; say whether the kept objects are what their sources give
    #[arg(long, conflicts_with = "out")]
    check: bool,
    /// Write the objects there and leave the kept ones alone: a directory, or the guard's
    /// object alone if the name ends in `.o`
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Which compiler
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let workspace = workspace()?;
    let toolchain = toolchain::find(options.toolchain, options.install)?;
    println!("building with {}", toolchain.name);
    let objects = build(&workspace, &toolchain)?;
    match &options.out {
        Some(path) => write_elsewhere(path, &objects),
        None if options.check => check(&workspace, &objects),
        None => keep(&workspace, &toolchain, &objects),
    }
}

fn workspace() -> anyhow::Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.parent().context("xtask stands in a workspace")?;
    Ok(workspace.canonicalize()?)
}

/// The stripped objects by name.
type Objects = BTreeMap<&'static str, Vec<u8>>;

fn build(workspace: &Path, toolchain: &Toolchain) -> anyhow::Result<Objects> {
    let target_directory = workspace.join("target/ebpf");
    let mut cargo = toolchain.cargo();
    cargo
        .current_dir(workspace)
        .args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", TARGET])
        .args(["--package", "session-ebpf"])
        .arg("--target-dir")
        .arg(&target_directory)
        .envs(digest::PROFILE)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace, toolchain)?)
        .env("CARGO_INCREMENTAL", "0");
    for (binary, _) in OBJECTS {
        cargo.args(["--bin", binary]);
    }
    let status = cargo.status().with_context(|| format!("cannot run {cargo:?}"))?;
    ensure!(status.success(), "the eBPF build failed; `{}` is in use", toolchain.name);
    OBJECTS
        .into_iter()
        .map(|(binary, object)| {
            let path = target_directory.join(TARGET).join("release").join(binary);
            let linked = fs::read(&path).with_context(|| path.display().to_string())?;
            Ok((object, strip::strip(&linked)?))
        })
        .collect()
}

/// The compiler's flags in cargo's encoding. No path of this machine may reach the object.
fn flags(workspace: &Path, toolchain: &Toolchain) -> anyhow::Result<OsString> {
    let mut flags: Vec<OsString> = digest::FLAGS.iter().map(Into::into).collect();
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    remap(workspace, "/session");
    let std_sources = &toolchain.std_sources;
    for sources in [std_sources, &std_sources.canonicalize()?] {
        remap(sources, "/rust/library");
    }
    let registry = cargo_home()?.join("registry/src");
    for entry in fs::read_dir(&registry).into_iter().flatten().flatten() {
        remap(&entry.path(), "/crates");
    }
    Ok(flags.join(&OsString::from("\x1f")))
}

fn cargo_home() -> anyhow::Result<PathBuf> {
    match env::var_os("CARGO_HOME") {
        Some(path) => Ok(path.into()),
        None => Ok(Path::new(&env::var_os("HOME").context("HOME is not set")?).join(".cargo")),
    }
}

fn write_elsewhere(path: &Path, objects: &Objects) -> anyhow::Result<()> {
    if path.extension().is_some_and(|extension| extension == "o") {
        let (_, guard) = OBJECTS[0];
        return write(path, &objects[guard]);
    }
    fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    objects.iter().try_for_each(|(name, bytes)| write(&path.join(name), bytes))
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{} ({} bytes)", path.display(), bytes.len());
    Ok(())
}

fn keep(workspace: &Path, toolchain: &Toolchain, objects: &Objects) -> anyhow::Result<()> {
    let directory = workspace.join(digest::DIRECTORY);
    let mut digests = format!("# {}\n", toolchain.name);
    let sources = digest::of_sources(workspace)?;
    digests.push_str(&format!("{sources}  {}\n", digest::SOURCES));
    for (name, bytes) in objects {
        write(&directory.join(name), bytes)?;
        digests.push_str(&format!("{}  {name}\n", digest::of_bytes(bytes)));
    }
    write(&directory.join(digest::DIGEST_FILE), digests.as_bytes())
}

fn check(workspace: &Path, objects: &Objects) -> anyhow::Result<()> {
    let directory = workspace.join(digest::DIRECTORY);
    let text = fs::read_to_string(directory.join(digest::DIGEST_FILE))?;
    let kept = digest::parse(&text);
    let mut faults = Vec::new();
    if kept.get(digest::SOURCES) != Some(&digest::of_sources(workspace)?.as_str()) {
        faults.push("the sources are not those that the digest was taken of".to_owned());
    }
    for (name, fresh) in objects {
        let bytes = fs::read(directory.join(name)).with_context(|| (*name).to_owned())?;
        if kept.get(name) != Some(&digest::of_bytes(&bytes).as_str()) {
            faults.push(format!("{name}: not what the digest was taken of"));
        }
        match strip::differences(&bytes, fresh)? {
            sections if sections.is_empty() => println!("{name}: as its sources give"),
            sections => faults.push(format!("{name}: differs in {}", sections.join(", "))),
        }
    }
    if !faults.is_empty() {
        let made_with = text.lines().next().unwrap_or_default();
        bail!("{}\nthe kept objects were made with{}", faults.join("\n"), &made_with[1..]);
    }
    Ok(())
}

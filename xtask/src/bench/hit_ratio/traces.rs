//! Which traces there are, and with how much memory each is replayed.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::bench::directory;
use crate::shell;

/// Name, `-m` in megabytes, phases. The sizes of the working sets differ, so one `-m` does not
/// suit all of them.
const KNOWN: [(&str, u32, usize); 8] = [
    ("zipf100", 64, 1),
    ("zipfmix", 64, 1),
    ("scanmix", 64, 1),
    ("orm-busy", 64, 1),
    ("phpsess", 32, 1),
    ("web07", 8, 1),
    ("web12", 8, 1),
    ("shift", 32, 3),
];
/// Part of a trace that fills the store and does not count. Of one with phases all counts.
const WARM_UP: f64 = 0.35;

/// A trace and how it is replayed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Trace {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) memory_mb: u32,
    pub(super) phases: usize,
    pub(super) warm_up: f64,
}

impl Trace {
    fn of(path: PathBuf, memory_mb: u32) -> Self {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let known = KNOWN.iter().find(|known| known.0 == name);
        let (memory_mb, phases) = known.map_or((memory_mb, 1), |known| (known.1, known.2));
        let warm_up = if phases == 1 { WARM_UP } else { 0.0 };
        Self { name, path, memory_mb, phases, warm_up }
    }
}

/// The traces of a folder whose names begin with one of the words: those that the method names in
/// its order, then others by name. Made first where there is only their generator.
pub(super) fn find(
    folder: &Path,
    seed: u64,
    memory_mb: u32,
    words: &[String],
) -> Result<Vec<Trace>> {
    let mut paths = traces_of(folder)?;
    let generator = folder.join("gen.py");
    if paths.is_empty() && generator.is_file() {
        paths = traces_of(&generate(&generator, seed)?)?;
    }
    let mut traces: Vec<Trace> = paths.into_iter().map(|path| Trace::of(path, memory_mb)).collect();
    traces.retain(|trace| {
        words.is_empty() || words.iter().any(|word| trace.name.starts_with(word.as_str()))
    });
    let place = |name: &str| KNOWN.iter().position(|known| known.0 == name).unwrap_or(KNOWN.len());
    traces.sort_by(|a, b| (place(&a.name), &a.name).cmp(&(place(&b.name), &b.name)));
    Ok(traces)
}

fn traces_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "bin")).collect())
}

/// Runs gen.py once for each seed; what it makes is kept.
fn generate(generator: &Path, seed: u64) -> Result<PathBuf> {
    let folder = directory()?.join(format!("traces-{seed}"));
    let done = folder.join("complete");
    if !done.is_file() {
        fs::create_dir_all(&folder)?;
        let mut command = Command::new(python()?);
        command.arg(generator).arg(&folder).arg(seed.to_string());
        shell::run(&mut command)?;
        fs::write(done, "")?;
    }
    Ok(folder)
}

/// A Python that has numpy: the machine's, or one of our own.
fn python() -> Result<PathBuf> {
    let mut probe = Command::new("python3");
    probe.args(["-c", "import numpy"]).stdout(Stdio::null()).stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok("python3".into());
    }
    let own = directory()?.join("python");
    let python = own.join("bin/python3");
    if !python.is_file() {
        shell::run(Command::new("python3").args(["-m", "venv"]).arg(&own))?;
    }
    shell::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "numpy"]))?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::find;

    #[test]
    fn known_traces_come_first_and_have_their_memory() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.bin", "shift.bin", "zipf100.bin", "notes.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let traces = find(folder.path(), 1, 7, &words).unwrap();
            traces.into_iter().map(|trace| (trace.name, trace.memory_mb)).collect::<Vec<_>>()
        };
        let all = [("zipf100".into(), 64), ("shift".into(), 32), ("a".into(), 7)];
        assert_eq!(found(&[]), all);
        assert_eq!(found(&["zipf", "a"]), [all[0].clone(), all[2].clone()]);
    }
}

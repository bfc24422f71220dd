//! The files of `--config`: opened, read, and put in the place of the flag.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::cli::Flag;
use crate::config::file::{self, FlagFile};
use crate::files;

/// A file may name others, those no more: a circle would have no end.
const DEPTH_MAX: usize = 2;

/// Longest file, bytes.
const FILE_LEN_MAX: u64 = 1 << 20;

/// Flags of the command line, and lines for the log.
pub(super) type Expanded = (Vec<(Flag, Option<String>)>, Vec<String>);

/// The flags with those of every `--config` file in its place, so that a later flag of the command
/// line overrides what an earlier file says.
///
/// # Errors
/// A file that cannot be read or that others could have written; the first line that says nothing.
pub(super) fn expand(flags: Vec<(Flag, Option<String>)>) -> Result<Expanded> {
    let (mut expanded, mut remarks) = (Vec::new(), Vec::new());
    for (flag, value) in flags {
        match (flag, value) {
            (Flag::Config, Some(path)) => {
                take(Path::new(&path), 1, &mut expanded, &mut remarks)?;
            }
            given => expanded.push(given),
        }
    }
    Ok((expanded, remarks))
}

fn take(
    path: &Path,
    depth: usize,
    expanded: &mut Vec<(Flag, Option<String>)>,
    remarks: &mut Vec<String>,
) -> Result<()> {
    let what = || format!("--config {}", path.display());
    let read = read(path).with_context(what)?;
    remarks.extend(read.remarks.iter().map(|remark| format!("{}: {remark}", what())));
    for (line, flag, value) in read.flags {
        match (flag, value) {
            (Flag::Config, Some(other)) => {
                ensure!(depth < DEPTH_MAX, "{}: line {line}: --config goes no deeper", what());
                take(Path::new(&other), depth + 1, expanded, remarks)?;
            }
            (Flag::Help | Flag::Version | Flag::License, _) => {
                bail!("{}: line {line}: the flag is for the command line", what())
            }
            given => expanded.push(given),
        }
    }
    Ok(())
}

/// Reads one file of flags.
///
/// # Errors
/// As [`expand`].
pub(super) fn read(path: &Path) -> Result<FlagFile> {
    Ok(file::read(&files::text(path, FILE_LEN_MAX)?)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_stands_where_its_flag_stood() {
        let directory = tempfile::tempdir().unwrap();
        let old = directory.path().join("memcached");
        let new = directory.path().join("sessiond.conf");
        fs::write(&old, "PORT=1\nLANG=C\nOPTIONS=\"-l 127.0.0.1\"\n").unwrap();
        fs::write(&new, format!("-m 70\n--config {}\n-p 2\n", old.display())).unwrap();
        let given = |flag, value: &str| (flag, Some(value.to_owned()));
        let config = given(Flag::Config, new.to_str().unwrap());
        let flags = vec![given(Flag::Port, "0"), config, given(Flag::Port, "3")];
        let (expanded, remarks) = expand(flags).unwrap();
        assert_eq!(
            expanded,
            [
                given(Flag::Port, "0"),
                given(Flag::MemoryLimit, "70"),
                given(Flag::Port, "1"),
                given(Flag::Listen, "127.0.0.1"),
                given(Flag::Port, "2"),
                given(Flag::Port, "3"),
            ]
        );
        assert!(remarks[0].contains("memcached: line 2: LANG: "), "{remarks:?}");
    }

    #[test]
    fn a_circle_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("self");
        fs::write(&path, format!("-v\n--config {}\n", path.display())).unwrap();
        let flags = vec![(Flag::Config, Some(path.display().to_string()))];
        let error = format!("{:#}", expand(flags).unwrap_err());
        assert!(error.ends_with("line 2: --config goes no deeper"), "{error}");
    }
}

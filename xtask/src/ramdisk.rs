//! An initial ramdisk in cpio's newc form (initramfs, Documentation/driver-api/early-userspace).
//! Pure but for reading the files that go into it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// A ramdisk as it is filled.
#[derive(Debug)]
pub(crate) struct Ramdisk {
    bytes: Vec<u8>,
    inode: u32,
    places: BTreeSet<String>,
}

impl Default for Ramdisk {
    /// Holds a console, without which init has no output.
    fn default() -> Self {
        let mut disk = Self { bytes: Vec::new(), inode: 0, places: BTreeSet::new() };
        disk.directory("/dev");
        disk.entry("dev/console", CHARACTER_DEVICE | 0o600, &[], (5, 1));
        disk
    }
}

impl Ramdisk {
    /// A directory with those above it.
    pub(crate) fn directory(&mut self, place: &str) {
        let mut path = String::new();
        for part in place.split('/').filter(|part| !part.is_empty()) {
            path = if path.is_empty() { part.to_owned() } else { format!("{path}/{part}") };
            if self.places.insert(path.clone()) {
                self.entry(&path, DIRECTORY | 0o755, &[], (0, 0));
            }
        }
    }

    /// A file, unless one is there.
    pub(crate) fn file(&mut self, place: &str, bytes: &[u8], mode: u32) {
        let place = place.trim_start_matches('/');
        if let Some((directory, _)) = place.rsplit_once('/') {
            self.directory(directory);
        }
        if self.places.insert(place.to_owned()) {
            self.entry(place, FILE | mode, bytes, (0, 0));
        }
    }

    /// A program with the libraries that it is linked to, those at the same paths as here.
    pub(crate) fn program(&mut self, path: &Path, place: &str) -> Result<()> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        self.file(place, &bytes, 0o755);
        // A static program has none, which is ldd's way to fail.
        let output = Command::new("ldd").arg(path).output().context("starting ldd")?;
        for library in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if library.starts_with('/') {
                self.file(library, &fs::read(library)?, 0o755);
            }
        }
        Ok(())
    }

    /// The whole, as the kernel reads it.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8], (major, minor): (u32, u32)) {
        self.inode += 1;
        let len = u32::try_from(bytes.len()).expect("files of less than 4 GiB");
        let name_len = u32::try_from(name.len() + 1).expect("a short name");
        let fields = [self.inode, mode, 0, 0, 1, 0, len, 0, 0, major, minor, name_len, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(bytes);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Ramdisk;

    #[test]
    fn entries_are_aligned_and_directories_come_first_and_once() {
        let mut disk = Ramdisk::default();
        disk.file("/a/b/one", b"12345", 0o644);
        disk.file("a/b/two", b"", 0o755);
        disk.file("a/b/two", b"again", 0o755);
        let bytes = disk.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<&str> = text
            .match_indices("070701")
            .map(|(at, _)| text[at + 110..].split('\0').next().unwrap())
            .collect();
        assert_eq!(names, ["dev", "dev/console", "a", "a/b", "a/b/one", "a/b/two", "TRAILER!!!"]);
    }
}

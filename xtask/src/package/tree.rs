//! The files of a package, in the places where they are installed.
#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::shell;

/// Files of the repository: source, place, mode.
const KEPT: &[(&str, &str, u32)] = &[
    ("packaging/systemd/sessiond.service", "usr/lib/systemd/system/sessiond.service", 0o644),
    (
        "packaging/systemd/sessiond-boot-rule.service",
        "usr/lib/systemd/system/sessiond-boot-rule.service",
        0o644,
    ),
    ("packaging/sessiond.conf", "etc/sessiond/sessiond.conf", 0o644),
    ("packaging/allow", "etc/sessiond/allow", 0o644),
    ("README.md", "usr/share/doc/session/README.md", 0o644),
    ("CHANGELOG.md", "usr/share/doc/session/CHANGELOG.md", 0o644),
    ("LICENSE-MIT", "usr/share/doc/session/LICENSE-MIT", 0o644),
    ("LICENSE-APACHE", "usr/share/doc/session/LICENSE-APACHE", 0o644),
    ("docs/operations.md", "usr/share/doc/session/operations.md", 0o644),
    ("docs/guard.md", "usr/share/doc/session/guard.md", 0o644),
    ("docs/migrate-from-memcached.md", "usr/share/doc/session/migrate-from-memcached.md", 0o644),
    ("docs/security.md", "usr/share/doc/session/security.md", 0o644),
];

/// What `sessionctl generate` makes: its argument, the place.
const GENERATED: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/sessionctl"),
    ("zsh", "usr/share/zsh/vendor-completions/_sessionctl"),
    ("fish", "usr/share/fish/vendor_completions.d/sessionctl.fish"),
];

/// A directory that holds what `/` will hold.
pub(super) struct Tree {
    root: TempDir,
    /// Every file: where it is installed, without the leading slash, and its mode.
    pub(super) files: Vec<(String, u32)>,
}

impl Tree {
    /// Gathers everything. The binaries tell their own help.
    pub(super) fn build(binaries: &Path) -> Result<Self> {
        let mut tree = Self { root: tempfile::tempdir()?, files: Vec::new() };
        fs::set_permissions(tree.root.path(), Permissions::from_mode(0o755))?;
        for (name, place) in
            [("sessiond", "usr/sbin/sessiond"), ("sessionctl", "usr/bin/sessionctl")]
        {
            let path = tree.place(place)?;
            // Names of functions stay for backtraces, lines go.
            let strip = Command::new("strip")
                .args(["--strip-debug", "-o"])
                .args([&path, &binaries.join(name)])
                .status();
            if !strip.is_ok_and(|status| status.success()) {
                fs::copy(binaries.join(name), &path).with_context(|| name.to_owned())?;
            }
            tree.finish(place, 0o755)?;
        }
        for (source, place, mode) in KEPT {
            let path = tree.place(place)?;
            fs::copy(shell::root().join(source), &path).with_context(|| (*source).to_owned())?;
            tree.finish(place, *mode)?;
        }
        let ctl = tree.path().join("usr/bin/sessionctl");
        for (what, place) in GENERATED {
            let text = output(Command::new(&ctl).args(["generate", what]))?;
            tree.write(place, &text)?;
        }
        let help = output(Command::new(tree.path().join("usr/sbin/sessiond")).arg("-h"))?;
        tree.write("usr/share/bash-completion/completions/sessiond", &completions(&help))?;
        tree.manual("usr/share/man/man8/sessiond.8", &manual(&help)?)?;
        let page = output(Command::new(&ctl).args(["generate", "man"]))?;
        tree.manual("usr/share/man/man1/sessionctl.1", &page)?;
        tree.files.sort();
        Ok(tree)
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        self.root.path()
    }

    /// Files that an administrator changes, and that an upgrade keeps.
    pub(super) fn is_configuration(place: &str) -> bool {
        place.starts_with("etc/")
    }

    fn place(&self, place: &str) -> Result<PathBuf> {
        let path = self.path().join(place);
        fs::create_dir_all(path.parent().context("a file in a directory")?)?;
        Ok(path)
    }

    fn finish(&mut self, place: &str, mode: u32) -> Result<()> {
        fs::set_permissions(self.path().join(place), Permissions::from_mode(mode))?;
        self.files.push((place.to_owned(), mode));
        Ok(())
    }

    fn write(&mut self, place: &str, text: &str) -> Result<()> {
        fs::write(self.place(place)?, text)?;
        self.finish(place, 0o644)
    }

    fn manual(&mut self, place: &str, text: &str) -> Result<()> {
        let path = self.place(place)?;
        fs::write(&path, text)?;
        output(Command::new("gzip").args(["--best", "--no-name"]).arg(&path))?;
        self.finish(&format!("{place}.gz"), 0o644)
    }
}

/// What a command wrote.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| shell::line(command))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", shell::line(command), stderr.trim());
    Ok(String::from_utf8(output.stdout)?)
}

/// The version of the workspace.
pub(super) fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// A bash completion of the long flags that the help names.
fn completions(help: &str) -> String {
    let mut flags: Vec<&str> = help
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .collect();
    flags.sort_unstable();
    flags.dedup();
    format!(
        "_sessiond() {{\n    local current=${{COMP_WORDS[COMP_CWORD]}}\n    \
         COMPREPLY=($(compgen -W \"{}\" -- \"$current\"))\n}}\n\
         complete -o default -F _sessiond sessiond\n",
        flags.join(" ")
    )
}

/// The manual page of sessiond: its head in the repository, its flags as it tells them itself.
fn manual(help: &str) -> Result<String> {
    let path = shell::root().join("packaging/man/sessiond.8.in");
    let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // The first line of the help is a version.
    let flags = help.split_once('\n').map_or(help, |(_, flags)| flags);
    let flags = flags.replace('\\', "\\e").replace('-', "\\-").replace("\n.", "\n\\&.");
    Ok(page.replace("@VERSION@", version()).replace("@FLAGS@", &flags))
}

#[cfg(test)]
mod tests {
    use super::{completions, manual};

    #[test]
    fn flags_of_the_help_are_completed_and_printed() {
        let help = "memcached 1.6.45\n-p, --port=<num> the port\n.x --allow=<prefix>[,..] who\n";
        assert!(completions(help).contains("-W \"--allow --port\""));
        let page = manual(help).unwrap();
        assert!(page.contains("\\-p, \\-\\-port=<num> the port\n\\&.x \\-\\-allow"), "{page}");
        assert!(!page.contains('@') && !page.contains("1.6.45"), "{page}");
    }
}

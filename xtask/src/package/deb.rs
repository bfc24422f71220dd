//! A package for Debian, by dpkg-deb.
#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::tree::{Tree, output, version};
use crate::shell;

/// Scripts that dpkg runs.
const SCRIPTS: &[&str] = &["postinst", "prerm", "postrm"];

/// Packs the tree; returns the package's path.
pub(super) fn pack(tree: &Tree, out: &Path, revision: u32, fast: bool) -> Result<PathBuf> {
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let control = tree.path().join("DEBIAN");
    fs::create_dir_all(&control)?;
    let mut len = 0;
    for (place, _) in &tree.files {
        len += fs::metadata(tree.path().join(place))?.len();
    }
    let kilobytes = len.div_ceil(1024);
    let text = format!(
        "Package: session\nVersion: {version}-{revision}\nArchitecture: {architecture}\n\
         Maintainer: The session developers <session@example.org>\n\
         Installed-Size: {kilobytes}\nDepends: libc6 (>= 2.34), libgcc-s1, passwd\n\
         Suggests: nftables\n\
         Section: net\nPriority: optional\nHomepage: {url}\n\
         Description: memcached-compatible cache server behind an XDP allowlist\n \
         sessiond serves memcached's protocols with memcached's flags, from a store that\n \
         outlives restarts. An XDP program drops every packet to its port whose source is\n \
         not on the allowlist. sessionctl changes the list while it runs.\n",
        version = version(),
        url = env!("CARGO_PKG_REPOSITORY"),
    );
    fs::write(control.join("control"), text)?;
    let kept: String = tree
        .files
        .iter()
        .filter(|(place, _)| Tree::is_configuration(place))
        .map(|(place, _)| format!("/{place}\n"))
        .collect();
    fs::write(control.join("conffiles"), kept)?;
    for name in SCRIPTS {
        let path = control.join(name);
        let source = shell::root().join("packaging/deb").join(name);
        fs::copy(&source, &path).with_context(|| source.display().to_string())?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    }
    let path = out.join(format!("session_{}-{revision}_{architecture}.deb", version()));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", if fast { "-Znone" } else { "-Zxz" }]);
    output(command.arg("--build").args([tree.path(), &path]))?;
    fs::remove_dir_all(control)?;
    Ok(path)
}

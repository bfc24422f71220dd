//! The configured list: `--allow` and the allow files.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};

use crate::allowlist::parse::read_file;
use crate::allowlist::{Allowlist, Entry};
use crate::config::Config;

/// Reads the configured list, all of it or none.
///
/// # Errors
/// A file that cannot be read or trusted, a line that cannot be read, two sources that
/// contradict each other, too many entries.
pub(super) fn configured(config: &Config) -> Result<Allowlist> {
    let mut list = Allowlist::new();
    for entry in config.entries() {
        add(&mut list, entry, "--allow")?;
    }
    for path in &config.allow_files {
        let what = format!("--allow-file {}", path.display());
        for entry in read_file(path, config.any()).with_context(|| what.clone())? {
            add(&mut list, entry, &what)?;
        }
    }
    list.check_size()?;
    Ok(list)
}

fn add(list: &mut Allowlist, entry: Entry, source: &str) -> Result<()> {
    let Some(before) = list.get(entry.prefix) else {
        list.insert(entry);
        return Ok(());
    };
    ensure!(
        before.action == entry.action,
        "{source}: {} is {} there and {} elsewhere in the configuration; keep one of the two",
        entry.prefix,
        entry.action.participle(),
        before.action.participle(),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::allowlist::parse::parse_prefix;

    #[test]
    fn flags_and_files_come_together_and_may_not_contradict() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("allow");
        let config = Config {
            allow: vec![parse_prefix("198.18.0.0/24").unwrap()],
            allow_files: vec![file.clone()],
            ..Config::default()
        };
        fs::write(&file, "allow 198.18.0.0/24 # twice is no harm\ndeny 198.18.0.7\n").unwrap();
        assert_eq!(configured(&config).unwrap().len(), 2);
        fs::write(&file, "deny 198.18.0.0/24\n").unwrap();
        let error = format!("{:#}", configured(&config).unwrap_err());
        assert!(error.contains("198.18.0.0/24 is denied there and allowed elsewhere"), "{error}");
        fs::write(&file, "198.18.0.1\nzork\n").unwrap();
        let error = format!("{:#}", configured(&config).unwrap_err());
        assert!(error.contains("line 2") && error.contains("allow"), "{error}");
    }
}

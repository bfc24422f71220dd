//! What a file of memcached's service would mean here: for `sessionctl import config`.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::User;
use serde_json::{Value, json};

use crate::cli::{self, Flag};
use crate::config::Config;
use crate::startup::flag_files;

/// Reads the file and says what every line of it becomes, what nothing is made of, and the command
/// lines that mean the same. Nothing is changed.
///
/// # Errors
/// The file cannot be read or trusted, or a line says nothing known.
pub(super) fn config(path: &Path) -> Result<Value> {
    let file = flag_files::read(path).with_context(|| path.display().to_string())?;
    let understood: Vec<Value> = file
        .flags
        .iter()
        .map(|(line, flag, value)| {
            json!({"line": line, "flag": cli::spelling(*flag), "value": value})
        })
        .collect();
    let words: Vec<String> = file
        .flags
        .iter()
        .flat_map(|(_, flag, value)| {
            std::iter::once(cli::spelling(*flag)).chain(value.as_deref().map(quoted))
        })
        .collect();
    let mut remarks = file.remarks;
    let flags: Vec<(Flag, Option<String>)> =
        file.flags.into_iter().map(|(_, flag, value)| (flag, value)).collect();
    let config = Config::from_flags(flags).with_context(|| path.display().to_string())?;
    remarks.extend(config.remarks.iter().cloned());
    remarks.extend(missing_user(&config));
    Ok(json!({
        "ok": true,
        "understood": understood,
        "remarks": remarks,
        "commands": [
            format!("sessiond --config {} --allow-file /etc/sessiond/allow", path.display()),
            format!("sessiond {} --allow-file /etc/sessiond/allow", words.join(" ")),
        ],
    }))
}

/// A user that went with the package of memcached.
fn missing_user(config: &Config) -> Option<String> {
    let name = config.user.as_deref()?;
    let known = User::from_name(name).is_ok_and(|user| user.is_some());
    (!known).then(|| format!("-u {name}: there is no such user; `-u sessiond` is the package's"))
}

/// The word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_sysconfig_file_is_told_line_by_line_and_as_commands() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memcached");
        let text =
            "PORT=\"11311\"\nUSER=\"no-such-user\"\nLANG=C\nOPTIONS=\"-l ::1 -s '/a b' -L\"\n";
        fs::write(&path, text).unwrap();
        let told = config(&path).unwrap();
        assert_eq!(told["understood"][0], json!({"line": 1, "flag": "-p", "value": "11311"}));
        let remarks = told["remarks"].as_array().unwrap();
        assert_eq!(remarks.len(), 3, "{remarks:?}");
        assert!(remarks[0].as_str().unwrap().starts_with("line 3: LANG"));
        assert!(remarks[1].as_str().unwrap().starts_with("-L: "));
        assert!(remarks[2].as_str().unwrap().starts_with("-u no-such-user: there is no such"));
        let command = "sessiond -p 11311 -u no-such-user -l ::1 -s '/a b' -L \
                       --allow-file /etc/sessiond/allow";
        assert_eq!(told["commands"][1], command);
    }

    #[test]
    fn a_value_out_of_range_is_said_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memcached");
        fs::write(&path, "MAXCONN=0\n").unwrap();
        let error = format!("{:#}", config(&path).unwrap_err());
        assert!(error.contains("Maximum connections must be greater than 0"), "{error}");
    }
}

//! A file of flags: Debian's `/etc/memcached.conf` (flags, one a line) and the sysconfig file of
//! Fedora and RHEL (`PORT USER MAXCONN CACHESIZE OPTIONS`), as the services of memcached read them.
//! Pure: text in, flags out.
#![forbid(unsafe_code)]

use std::ffi::OsString;

use crate::cli::{self, Flag};

/// Variables of the sysconfig file that stand for one flag each, as memcached's unit has them.
const VARIABLES: &[(&str, &str)] =
    &[("PORT", "-p"), ("USER", "-u"), ("MAXCONN", "-c"), ("CACHESIZE", "-m")];

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlagFile {
    /// The flags, in the order of the file, each with its line.
    pub flags: Vec<(usize, Flag, Option<String>)>,
    /// What nothing is made of, and why; with the line.
    pub remarks: Vec<String>,
}

/// A line that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {text}")]
pub struct Fault {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub text: String,
}

/// Reads the text of a file of flags.
///
/// # Errors
/// The first line that is neither a flag, a variable nor a comment, or whose flag does not exist.
pub fn read(text: &str) -> Result<FlagFile, Fault> {
    let mut file = FlagFile::default();
    let mut lines = text.lines().enumerate();
    while let Some((index, first)) = lines.next() {
        let mut whole = first.to_owned();
        // A backslash at the end joins lines, as in systemd's EnvironmentFile.
        while whole.ends_with('\\') {
            whole.pop();
            let Some((_, next)) = lines.next() else { break };
            whole.push_str(next);
        }
        file.line(index + 1, &whole)?;
    }
    Ok(file)
}

impl FlagFile {
    fn line(&mut self, line: usize, text: &str) -> Result<(), Fault> {
        let fault = |text: String| Fault { line, text };
        let trimmed = text.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            return Ok(());
        }
        if let Some((name, value)) = variable(trimmed) {
            let value = words(value).map_err(fault)?.join(" ");
            return self.variable(line, name, &value);
        }
        let words = words(trimmed).map_err(fault)?;
        let Some(first) = words.first() else { return Ok(()) };
        match first.as_str() {
            "-d" | "-h" => {
                let why = "the service manager starts the daemon, as with Debian's memcached";
                self.remark(line, &format!("{first}: {why}"));
                Ok(())
            }
            "logfile" => {
                self.remark(line, "logfile: the log goes to standard error, and so to the journal");
                Ok(())
            }
            flag if flag.starts_with('-') => self.flags(line, words),
            _ => Err(fault(format!("`{trimmed}` is neither a flag nor NAME=VALUE"))),
        }
    }

    fn variable(&mut self, line: usize, name: &str, value: &str) -> Result<(), Fault> {
        if name == "OPTIONS" {
            let words = words(value).map_err(|text| Fault { line, text })?;
            return self.flags(line, words);
        }
        match VARIABLES.iter().find(|(known, _)| *known == name) {
            Some(_) if value.is_empty() => Ok(()),
            Some((_, flag)) => self.flags(line, vec![(*flag).to_owned(), value.to_owned()]),
            None => {
                self.remark(line, &format!("{name}: memcached's service has no such variable"));
                Ok(())
            }
        }
    }

    fn flags(&mut self, line: usize, words: Vec<String>) -> Result<(), Fault> {
        let given = cli::parse(words.into_iter().map(OsString::from));
        let given = given.map_err(|error| {
            let text = error.0.lines().next().unwrap_or_default().to_owned();
            Fault { line, text }
        })?;
        self.flags.extend(given.into_iter().map(|(flag, value)| (line, flag, value)));
        Ok(())
    }

    fn remark(&mut self, line: usize, text: &str) {
        self.remarks.push(format!("line {line}: {text}; the line changes nothing"));
    }
}

/// `NAME=VALUE` in its two parts, if the line is one.
fn variable(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let mut bytes = name.bytes();
    let first = bytes.next()?;
    let good = first.is_ascii_alphabetic() || first == b'_';
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (good && rest).then_some((name, value.trim()))
}

/// The words of a line as a shell has them: quotes, backslashes, a comment behind a `#`.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '#' if word.is_none() => break,
            c if c.is_whitespace() => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(chars.next()),
            quote @ ('"' | '\'') => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err(format!("a quote {quote} has no end")),
                        Some(c) if c == quote => break,
                        Some('\\') if quote == '"' => word.extend(chars.next()),
                        Some(c) => word.push(c),
                    }
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(text: &str) -> (Config, Vec<String>) {
        let file = read(text).unwrap();
        let flags = file.flags.into_iter().map(|(_, flag, value)| (flag, value)).collect();
        (Config::from_flags(flags).unwrap(), file.remarks)
    }

    #[test]
    fn a_sysconfig_file_reads_unchanged() {
        let text = "PORT=\"11311\"\nUSER=\"memcached\"\nMAXCONN=\"2048\"\nCACHESIZE=\"128\"\n\
                    OPTIONS=\"-l 127.0.0.1,::1 \\\n -o idle_timeout=60\"\n# a comment\nTZ=UTC\n";
        let (config, remarks) = config(text);
        assert_eq!(config.port_number(), Some(11311));
        assert_eq!(config.user.as_deref(), Some("memcached"));
        assert_eq!((config.connections_max, config.memory_limit), (2048, 128 << 20));
        assert_eq!(config.listen_words().as_deref(), Some("127.0.0.1,::1"));
        assert_eq!(config.idle_timeout_s, 60);
        assert_eq!(remarks.len(), 1);
        assert!(remarks[0].starts_with("line 8: TZ: "), "{remarks:?}");
    }

    #[test]
    fn empty_variables_say_nothing() {
        let (config, remarks) = config("PORT=\nUSER=''\nMAXCONN=\"\"\nCACHESIZE=\nOPTIONS=\"\"\n");
        assert_eq!(config, Config::default());
        assert!(remarks.is_empty());
    }

    #[test]
    fn debians_file_reads_unchanged() {
        let text = "# memcached default config file\n# 2003 - Jay Bonci\n\n-d\n\n\
                    logfile /var/log/memcached.log\n\n# -v\n\n-m 64\n-p 11211\n-u memcache\n\
                    -l 127.0.0.1\n#-l ::1\n# -c 1024\n-P /var/run/memcached/memcached.pid # here\n";
        let (config, remarks) = config(text);
        assert!(!config.daemonize);
        assert_eq!(config.user.as_deref(), Some("memcache"));
        assert_eq!(
            config.pidfile.as_deref().and_then(|path| path.to_str()),
            Some("/var/run/memcached/memcached.pid")
        );
        assert_eq!(config.listen_words().as_deref(), Some("127.0.0.1"));
        assert_eq!(remarks.len(), 2, "{remarks:?}");
    }

    #[test]
    fn words_are_split_as_a_shell_does() {
        for (text, expected) in [
            ("-s '/run/a b' -v", vec!["-s", "/run/a b", "-v"]),
            ("-D \\# -v#x # y", vec!["-D", "#", "-v#x"]),
            ("\"a \\\" b\"'c'd ''", vec!["a \" bcd", ""]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
        assert_eq!(words("-s 'x").unwrap_err(), "a quote ' has no end");
    }

    #[test]
    fn a_line_that_means_nothing_is_named() {
        for (text, line, part) in [
            ("-m 64\nserver 1.2.3.4\n", 2, "neither a flag"),
            ("\n\n--zork\n", 3, "unrecognized option '--zork'"),
            ("OPTIONS=\"-l a b\"\n", 1, "stray argument 'b'"),
            ("-p \"11211\n", 1, "has no end"),
        ] {
            let fault = read(text).unwrap_err();
            assert_eq!(fault.line, line, "{text}");
            assert!(fault.text.contains(part), "{fault}");
        }
    }
}

//! `getopt_long`: bundled letters, shortened long names, values joined or apart.
//!
//! The texts are glibc's, because scripts and people know them from memcached.
#![forbid(unsafe_code)]

use std::ffi::OsString;

use crate::cli::table::{Argument, Flag, Row, rows};

/// What is wrong with the command line, ready for stderr, one or more lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// One flag as given, with its argument.
pub(super) type Given = (Flag, Option<String>);

/// Reads `arguments` (without the program's name) into flags in the order given.
///
/// # Errors
/// An unknown or ambiguous flag, a missing or superfluous argument, an operand (memcached
/// skips operands silently, so that `-l A B` listens on A only; here that is refused), or an
/// argument that is not UTF-8.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<Given>, UsageError> {
    let mut words = Vec::new();
    for argument in arguments {
        words.push(argument.into_string().map_err(|bad| {
            UsageError(format!("sessiond: argument is not UTF-8: {}", bad.to_string_lossy()))
        })?);
    }
    let table: Vec<Row> = rows().collect();
    let mut given = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            return match words.next() {
                Some(operand) => Err(stray(&operand)),
                None => Ok(given),
            };
        }
        if let Some(long) = word.strip_prefix("--") {
            given.push(long_flag(&table, long, &mut words)?);
        } else if word.len() > 1 && word.starts_with('-') {
            short_flags(&table, &word[1..], &mut words, &mut given)?;
        } else {
            return Err(stray(&word));
        }
    }
    Ok(given)
}

fn stray(operand: &str) -> UsageError {
    UsageError(format!(
        "sessiond: stray argument '{operand}': every value belongs to a flag, \
         and several addresses to -l are joined by commas"
    ))
}

/// memcached's own second line after getopt's message.
fn illegal(message: &str) -> UsageError {
    UsageError(format!("sessiond: {message}\nIllegal argument \"?\""))
}

fn short_flags(
    table: &[Row],
    letters: &str,
    words: &mut impl Iterator<Item = String>,
    given: &mut Vec<Given>,
) -> Result<(), UsageError> {
    for (at, letter) in letters.char_indices() {
        let row = table
            .iter()
            .find(|row| row.short == letter && letter != '\0')
            .ok_or_else(|| illegal(&format!("invalid option -- '{letter}'")))?;
        if row.argument != Argument::Required {
            given.push((row.flag, None));
            continue;
        }
        let joined = &letters[at + letter.len_utf8()..];
        let value = if joined.is_empty() { words.next() } else { Some(joined.to_owned()) };
        let value =
            value.ok_or_else(|| illegal(&format!("option requires an argument -- '{letter}'")))?;
        given.push((row.flag, Some(value)));
        return Ok(());
    }
    Ok(())
}

fn long_flag(
    table: &[Row],
    word: &str,
    words: &mut impl Iterator<Item = String>,
) -> Result<Given, UsageError> {
    let (name, joined) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (word, None),
    };
    let row = named(table, name, word)?;
    match (row.argument, joined) {
        (Argument::None, Some(_)) => {
            Err(illegal(&format!("option '--{}' doesn't allow an argument", row.long)))
        }
        (Argument::Required, None) => match words.next() {
            Some(value) => Ok((row.flag, Some(value))),
            None => Err(illegal(&format!("option '--{}' requires an argument", row.long))),
        },
        (_, joined) => Ok((row.flag, joined)),
    }
}

/// The row whose long name is `name` or, if there is only one, begins with it. Messages repeat
/// the whole `word`.
fn named<'t>(table: &'t [Row], name: &str, word: &str) -> Result<&'t Row, UsageError> {
    let long = || table.iter().filter(|row| !row.long.is_empty());
    if let Some(exact) = long().find(|row| row.long == name) {
        return Ok(exact);
    }
    let matching: Vec<&Row> = long().filter(|row| row.long.starts_with(name)).collect();
    match matching.as_slice() {
        [only] => Ok(only),
        [] => Err(illegal(&format!("unrecognized option '--{word}'"))),
        several => {
            let names: Vec<String> =
                several.iter().map(|row| format!("'--{}'", row.long)).collect();
            Err(illegal(&format!(
                "option '--{word}' is ambiguous; possibilities: {}",
                names.join(" ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<Vec<Given>, String> {
        parse(words.split_whitespace().map(OsString::from)).map_err(|error| error.0)
    }

    fn with(flag: Flag, value: &str) -> Given {
        (flag, Some(value.to_owned()))
    }

    #[test]
    fn an_existing_sysconfig_line_reads_unchanged() {
        assert_eq!(
            read("-p 11211 -u memcache -m 64 -c 1024 -l 0.0.0.0").unwrap(),
            [
                with(Flag::Port, "11211"),
                with(Flag::User, "memcache"),
                with(Flag::MemoryLimit, "64"),
                with(Flag::ConnLimit, "1024"),
                with(Flag::Listen, "0.0.0.0"),
            ]
        );
    }

    #[test]
    fn letters_bundle_and_values_join() {
        assert_eq!(
            read("-vvdp11211 -vv --po=1 --port 2 --listen=a,b --verbose=x").unwrap(),
            [
                (Flag::Verbose, None),
                (Flag::Verbose, None),
                (Flag::Daemon, None),
                with(Flag::Port, "11211"),
                (Flag::Verbose, None),
                (Flag::Verbose, None),
                with(Flag::Port, "1"),
                with(Flag::Port, "2"),
                with(Flag::Listen, "a,b"),
                with(Flag::Verbose, "x"),
            ]
        );
    }

    #[test]
    fn texts_are_those_of_getopt_and_memcached() {
        for (words, text) in [
            ("-Q", "sessiond: invalid option -- 'Q'\nIllegal argument \"?\""),
            ("--zork", "sessiond: unrecognized option '--zork'\nIllegal argument \"?\""),
            ("-p", "sessiond: option requires an argument -- 'p'\nIllegal argument \"?\""),
            ("--port", "sessiond: option '--port' requires an argument\nIllegal argument \"?\""),
            (
                "--daemon=1",
                "sessiond: option '--daemon' doesn't allow an argument\nIllegal argument \"?\"",
            ),
            (
                "--lis=1 --allow-=x",
                "sessiond: option '--lis=1' is ambiguous; possibilities: '--listen' \
                 '--listen-backlog'\nIllegal argument \"?\"",
            ),
        ] {
            assert_eq!(read(words).unwrap_err(), text, "{words}");
        }
        assert!(read("-l 1.1.1.1 2.2.2.2").unwrap_err().contains("stray argument '2.2.2.2'"));
        assert!(read("-- x").unwrap_err().contains("stray argument 'x'"));
    }

    #[test]
    fn an_exact_name_wins_over_longer_ones() {
        assert_eq!(
            read("--listen=a --allow=b --guard=off --user=u").unwrap(),
            [
                with(Flag::Listen, "a"),
                with(Flag::Allow, "b"),
                with(Flag::Guard, "off"),
                with(Flag::User, "u"),
            ]
        );
    }
}

//! Rules for one file by itself.
#![forbid(unsafe_code)]

use std::path::Path;

use super::{Finding, mask};

/// Longest Rust file.
const LINES_MAX: usize = 600;

/// Directories that exist on one machine only. Written in two parts, so as not to find itself.
const MACHINE_PATHS: &[&str] =
    &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];

/// What clippy would also refuse, refused where clippy is not run as well.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!"];

/// Rooms in which nothing that a client says may panic, and the line that has clippy see to it.
const FOR_CLIENTS: &[&str] =
    &["session-daemon/src/protocol", "session-daemon/src/command", "session-daemon/src/server"];
/// What stands there and is done with before, or hears no client: the start, listening sockets,
/// another process, the kernel.
const NOT_FOR_CLIENTS: &[&str] = &[
    "session-daemon/src/server/binding.rs",
    "session-daemon/src/server/config.rs",
    "session-daemon/src/server/handover.rs",
    "session-daemon/src/server/listener.rs",
    "session-daemon/src/server/mod.rs",
    "session-daemon/src/server/tls/mod.rs",
    "session-daemon/src/server/uring/probe.rs",
    "session-daemon/src/server/uring/reactor.rs",
];
const NO_PANIC: &str =
    "#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]";

/// Rules for every text file.
pub(super) fn any_file(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| names_directory(line, path)) {
            findings.push(Finding::new(index + 1, format!("names {path}, a path of one machine")));
        }
    }
    findings
}

/// Rules for a Rust file; `code` is its masked text.
pub(super) fn rust_file(path: &Path, text: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(Finding::new(1, "does not open with //! and what the file is for"));
    }
    let count = text.lines().count();
    if count > LINES_MAX {
        findings.push(Finding::new(0, format!("{count} lines, more than {LINES_MAX}: split it")));
    }
    let is_in = |paths: &[&str]| paths.iter().any(|known| path.starts_with(known));
    let for_clients = is_in(FOR_CLIENTS) && !is_in(NOT_FOR_CLIENTS);
    if for_clients && !is_test(path) && has_word(code, "fn") && !text.contains(NO_PANIC) {
        findings.push(Finding::new(1, format!("has not {NO_PANIC}")));
    }
    for (number, line) in mask::lines_before_tests(code) {
        if !is_test(path) && is_glob_import(line) {
            findings.push(Finding::new(number, "glob import: name what is used"));
        }
        if let Some(word) = UNFINISHED.iter().find(|word| has_word(line, word)) {
            findings.push(Finding::new(number, format!("{word} in finished code")));
        }
    }
    findings
}

/// Whether `line` names a directory that starts at the root of a file system.
fn names_directory(line: &str, directory: &str) -> bool {
    line.match_indices(directory).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "./_-~}*".contains(c))
    })
}

fn is_test(path: &Path) -> bool {
    path.starts_with("tests/tests") || path.ends_with("tests.rs")
}

fn is_glob_import(line: &str) -> bool {
    let line = line.trim();
    line.ends_with("::*;") || line.contains("::*}") || line.contains("::*,")
}

/// Whether `word` stands in `line` and does not continue another word.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let after = line[at + word.len()..].chars().next();
        !line[..at].chars().next_back().is_some_and(joins)
            && (word.ends_with(['!', ':']) || !after.is_some_and(joins))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{NO_PANIC, any_file, has_word, rust_file};
    use crate::tidy::mask;

    fn messages(text: &str) -> Vec<String> {
        let findings = rust_file(Path::new("xtask/src/x.rs"), text, &mask::code(text));
        findings.into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn a_good_file_has_no_finding() {
        assert!(messages("//! Does x.\nuse a::{b, c};\n// todo! is a word here\n").is_empty());
    }

    #[test]
    fn each_fault_is_found() {
        assert_eq!(messages("use a::b;\n").len(), 1);
        assert_eq!(messages("//! x\nuse a::*;\n").len(), 1);
        assert_eq!(messages("//! x\nuse a::{b::*, c};\n").len(), 1);
        assert_eq!(messages("//! x\nfn f() { dbg!(1); }\n").len(), 1);
        assert_eq!(messages(&format!("//! x\n{}", "\n".repeat(600))).len(), 1);
    }

    #[test]
    fn clippy_sees_to_it_that_no_client_makes_a_panic() {
        let found = |path: &str, text: &str| rust_file(Path::new(path), text, text).len();
        let path = "session-daemon/src/protocol/new.rs";
        assert_eq!(found(path, "//! x\nfn f() {}\n"), 1);
        assert_eq!(found(path, &format!("//! x\n{NO_PANIC}\nfn f() {{}}\n")), 0);
        assert_eq!(found("session-daemon/src/protocol/tests.rs", "//! x\nfn f() {}\n"), 0);
        assert_eq!(found("session-daemon/src/guard/new.rs", "//! x\nfn f() {}\n"), 0);
    }

    #[test]
    fn tests_may_import_globs() {
        assert!(messages("//! x\n#[cfg(test)]\nmod tests { use super::*; }\n").is_empty());
    }

    #[test]
    fn paths_of_one_machine_are_found_and_others_are_not() {
        assert_eq!(any_file(concat!("see /ho", "me/ann/x\n")).len(), 1);
        assert!(any_file(concat!("see tests/wo", "rk/x, https://a.b/ho", "me/x\n")).is_empty());
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("use libc::c_int;", "libc"));
        assert!(!has_word("use libc_extra::x;", "libc"));
        assert!(!has_word("my_todo!()", "todo!"));
    }
}

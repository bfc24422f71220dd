//! The layers of ARCHITECTURE.md: which room of `session-daemon` may name which other room, and
//! where unsafe code, sockets, clocks, logs and outside crates may be named.
#![forbid(unsafe_code)]

use std::path::Path;

use super::text::has_word;
use super::{Finding, mask};

const DAEMON: &str = "session-daemon/src";

/// One room: its name and the rooms that it may name. What is not in the table is an error, so
/// that a new room is thought about.
const ROOMS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("capability", &[]),
    ("sys", &[]),
    ("uring", &[]),
    ("store", &["clock"]),
    ("plane", &["clock", "sys"]),
    ("command", &["store", "clock"]),
    ("protocol", &["command"]),
    ("server", &["protocol", "command", "store", "plane", "allowlist", "clock", "sys", "uring"]),
    ("allowlist", &["clock"]),
    ("guard", &["allowlist", "capability", "clock", "sys"]),
    ("link", &["allowlist", "config", "server", "store", "clock"]),
    ("control", &["allowlist", "config", "files", "guard", "link", "clock"]),
    ("files", &[]),
    ("confine", &[]),
    ("cli", &[]),
    ("config", &["cli", "allowlist", "guard", "server", "store"]),
];

/// Rooms that wire others together and may name all of them.
const WIRING: &[&str] = &["startup", "bin", "lib"];

/// Words that no code of a room may hold. A word that ends in `::` is a path's beginning.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("store", &["tokio", "std::net", "std::time", "Instant", "SystemTime", "sample", "log::"]),
    ("protocol", &["tokio", "std::net", "std::time", "socket2", "sample", "log::"]),
    ("command", &["tokio", "std::net", "std::time", "socket2", "sample", "log::"]),
    ("allowlist", &["tokio", "socket2", "TcpStream", "UdpSocket", "UnixStream"]),
    ("cli", &["tokio", "std::net", "socket2"]),
    ("config", &["tokio", "socket2"]),
];

/// Words that only some places may hold: the word, and the beginnings of paths that may.
const CONFINED: &[(&str, &[&str])] = &[
    (
        "unsafe",
        &[
            "session-daemon/src/store/",
            "session-daemon/src/sys.rs",
            "session-daemon/src/sys/",
            "session-daemon/src/uring/",
            "session-ebpf/src/",
            "session-common/src/guard.rs",
            "session-common/src/plane.rs",
        ],
    ),
    (
        "tokio",
        &[
            "session-daemon/src/server/",
            "session-daemon/src/guard/",
            "session-daemon/src/control/",
            "session-daemon/src/startup/",
            "session-daemon/src/link/",
            "session-daemon/src/bin/",
            "session-daemon/src/sys.rs",
            "tests/",
        ],
    ),
    (
        "aya",
        &[
            "session-daemon/src/guard/",
            "session-common/src/guard.rs",
            "session-common/src/plane.rs",
            "tests/",
            "xtask/src/bench_guard",
        ],
    ),
    ("aya_ebpf", &["session-ebpf/src/"]),
    ("aya_log_ebpf", &["session-ebpf/src/"]),
    (
        "libc",
        // The last for the numbers of system calls.
        &[
            "session-daemon/src/store/",
            "session-daemon/src/sys.rs",
            "session-daemon/src/sys/",
            "session-daemon/src/confine",
        ],
    ),
];

/// What a module says so that the compiler keeps unsafe code out of it.
const FORBID_UNSAFE: &str = "#![forbid(unsafe_code)]";

/// Checks one Rust file, given as masked code.
pub(super) fn check(path: &Path, code: &str) -> Vec<Finding> {
    // Unit tests in a file of their own may use what the room itself may not.
    if path.ends_with("tests.rs") {
        return Vec::new();
    }
    let mut findings = confined(path, code);
    if let Some(room) = room(path) {
        findings.extend(edges(path, room, code));
        findings.extend(forbidden(room, code));
    }
    findings
}

/// The room of a file: the first part of its path below the daemon's sources.
fn room(path: &Path) -> Option<&str> {
    let first = path.strip_prefix(DAEMON).ok()?.components().next()?;
    first.as_os_str().to_str().map(|name| name.trim_end_matches(".rs"))
}

fn edges(path: &Path, room: &str, code: &str) -> Vec<Finding> {
    if WIRING.contains(&room) {
        return Vec::new();
    }
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        return vec![Finding::new(0, format!("room {room} is not in the table of layers"))];
    };
    let mut findings = Vec::new();
    for (number, name) in named_rooms(code) {
        if name != room && !allowed.contains(&name) {
            findings
                .push(Finding::new(number, format!("{room} names crate::{name}: not its layer")));
        }
    }
    let is_root = path.ends_with("mod.rs") || path.parent().is_some_and(|p| p.ends_with("src"));
    for (number, line) in mask::lines_before_tests(code) {
        if line.contains("super::super::") || (is_root && line.contains("super::")) {
            findings.push(Finding::new(number, "reaches out of its room by super::"));
        }
    }
    findings
}

/// Every `crate::NAME` before the unit tests, also inside one level of braces, with its line.
fn named_rooms(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let end = code.find("#[cfg(test)]").unwrap_or(code.len());
    let code = &code[..end];
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        let number = code[..at].lines().count().max(1);
        let names = match rest.strip_prefix('{') {
            Some(group) => group_heads(group),
            None => vec![identifier(rest)],
        };
        found.extend(names.into_iter().map(|name| (number, name)));
    }
    found
}

/// The first identifiers of the parts of a brace group, the opening brace being read.
fn group_heads(group: &str) -> Vec<&str> {
    let mut heads = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                heads.push(identifier(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn forbidden(room: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (_, words) in FORBIDDEN.iter().filter(|(name, _)| *name == room) {
        for (number, line) in mask::lines_before_tests(code) {
            for word in words.iter().filter(|word| has_word(line, word)) {
                findings.push(Finding::new(number, format!("{room} may not name {word}")));
            }
        }
    }
    findings
}

fn confined(path: &Path, code: &str) -> Vec<Finding> {
    let path = path.to_string_lossy();
    let mut findings = Vec::new();
    for (word, places) in CONFINED {
        if places.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for (number, line) in mask::lines_before_tests(code) {
            if has_word(line, word) {
                findings.push(Finding::new(number, format!("{word} may not be named here")));
            }
        }
    }
    let (_, unsafe_places) = CONFINED[0];
    let may_be_unsafe = unsafe_places.iter().any(|place| path.starts_with(place));
    // A crate's root only denies it: modules below may be allowed to have it.
    let roots = [
        "xtask/instructions/src/main.rs",
        "xtask/in-process/src/main.rs",
        "schedules/tests/sanitized.rs",
    ];
    let is_library = path.ends_with("src/lib.rs") || roots.contains(&&*path);
    // libFuzzer's macro exports a symbol, which counts as unsafe; nothing else stands in there.
    let is_fuzz_target = path.starts_with("fuzz/fuzz_targets");
    if !may_be_unsafe && !is_library && !is_fuzz_target && !code.contains(FORBID_UNSAFE) {
        findings.push(Finding::new(0, format!("lacks {FORBID_UNSAFE}")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{FORBID_UNSAFE, check, named_rooms};

    fn count(path: &str, code: &str) -> usize {
        check(Path::new(path), &format!("{FORBID_UNSAFE}\n{code}")).len()
    }

    #[test]
    fn every_forbidden_edge_is_found() {
        for (path, code) in [
            ("session-daemon/src/store/mod.rs", "use crate::server::Server;"),
            ("session-daemon/src/store/mod.rs", "use crate::{clock::Now, protocol::text};"),
            ("session-daemon/src/store/mod.rs", "fn f() { log::info!(); }"),
            ("session-daemon/src/store/mod.rs", "use std::net::IpAddr;"),
            ("session-daemon/src/store/x.rs", "fn f() { let now = Now::sample(); }"),
            ("session-daemon/src/protocol/mod.rs", "use crate::store::Store;"),
            ("session-daemon/src/protocol/mod.rs", "use tokio::io::AsyncRead;"),
            ("session-daemon/src/server/mod.rs", "use crate::guard::Guard;"),
            ("session-daemon/src/server/worker.rs", "use crate::control::Change;"),
            ("session-daemon/src/server/mod.rs", "use super::guard::Guard;"),
            ("session-daemon/src/server/x.rs", "use super::super::guard::Guard;"),
            ("session-daemon/src/server/x.rs", "fn f() { crate::startup::f(); }"),
            ("session-daemon/src/control/mod.rs", "use aya::Ebpf;"),
            ("session-daemon/src/server/x.rs", "fn f() { libc::getpid(); }"),
            ("session-daemon/src/server/x.rs", "fn f() { unsafe { g() } }"),
            ("session-daemon/src/attic/mod.rs", "fn f() {}"),
            ("xtask/src/run.rs", "use tokio::net::TcpStream;"),
        ] {
            assert!(count(path, code) > 0, "{path}: {code}");
        }
        let path = Path::new("session-daemon/src/server/x.rs");
        assert_eq!(check(path, "fn f() {}\n").len(), 1, "unsafe code is not forbidden");
    }

    #[test]
    fn the_layers_themselves_are_not() {
        for (path, code) in [
            ("session-daemon/src/server/mod.rs", "use crate::{protocol::text, store::Worker};"),
            ("session-daemon/src/server/x.rs", "use super::worker::Worker;"),
            ("session-daemon/src/store/x.rs", "use crate::clock::Now; fn f() { unsafe { g() } }"),
            ("session-daemon/src/guard/mod.rs", "use aya::Ebpf;"),
            ("session-daemon/src/startup/mod.rs", "use crate::{guard::Guard, server::Server};"),
            (
                "session-daemon/src/server/x.rs",
                "#[cfg(test)]\nmod tests { use crate::guard::Guard; }",
            ),
        ] {
            assert_eq!(count(path, code), 0, "{path}: {code}");
        }
    }

    #[test]
    fn names_in_nested_groups_are_read() {
        let code = "use crate::{a::{b, c}, d, e::f as g,\n};\nlet x = crate::h();";
        assert_eq!(named_rooms(code), [(1, "a"), (1, "d"), (1, "e"), (3, "h")]);
    }
}

//! Whether the byte scripts are complete: what memcached 1.6.45 knows of verbs, words, flags and
//! opcodes is sent by some case, and what the cases send that is a command is in these lists.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use session_daemon::protocol::text::parse::{Line, LineError, line};
use session_tests::binaries::workspace_root;
use session_tests::frame::HEADER_LEN;
use session_tests::script;

/// Verbs of the classic protocol, of the meta protocol and of administration.
const VERBS: [&str; 33] = [
    "get",
    "gets",
    "gat",
    "gats",
    "set",
    "add",
    "replace",
    "append",
    "prepend",
    "cas",
    "delete",
    "incr",
    "decr",
    "touch",
    "flush_all",
    "version",
    "verbosity",
    "quit",
    "stats",
    "shutdown",
    "slabs",
    "lru",
    "lru_crawler",
    "cache_memlimit",
    "watch",
    "refresh_certs",
    "debugtime",
    "mg",
    "ms",
    "md",
    "ma",
    "mn",
    "me",
];

/// Verbs that only a build of memcached with more in it has: nothing here knows them.
const ABSENT: [&str; 2] = ["extstore", "misbehave"];

/// Second words of verbs that have some.
const WORDS: [(&str, &[&str]); 5] = [
    ("stats", &["sizes", "sizes_enable", "sizes_disable", "reset", "detail", "cachedump"]),
    ("slabs", &["reassign", "automove"]),
    ("slabs automove", &["0", "1", "2", "ratio", "freeratio", "window"]),
    ("lru", &["tune", "mode", "temp_ttl"]),
    ("lru_crawler", &["enable", "sleep", "tocrawl", "crawl", "metadump", "mgdump"]),
];

/// Answers that are as long as the server is busy, and those that come unasked, are looked at by
/// tests: words, and the file below tests/tests that has them.
const ELSEWHERE: [(&str, &str); 12] = [
    ("\"items\"", "wire_admin.rs"),
    ("\"slabs\"", "wire_admin.rs"),
    ("\"settings\"", "wire_admin.rs"),
    ("\"conns\"", "wire_admin.rs"),
    ("lru_crawler disable", "wire_admin.rs"),
    ("fetchers", "wire_admin.rs"),
    ("mutations", "wire_admin.rs"),
    ("evictions", "wire_admin.rs"),
    ("connevents", "wire_admin.rs"),
    ("deletions", "wire_admin.rs"),
    ("rawcmds", "wire_admin.rs"),
    ("sysevents", "wire_admin.rs"),
];

/// Flags of the meta verbs, and how many words stand before the first.
const FLAGS: [(&str, usize, &str); 4] = [
    ("mg", 2, "bcfhklqstuvCENORTPL"),
    ("ms", 3, "bcCEFIkOqsMNTPL"),
    ("md", 2, "bCEIkOqTxPL"),
    ("ma", 2, "bcCEtkOqNJDTvMPL"),
];

/// Opcodes that are served, those of SASL, and of those that are not: verbosity, the next free
/// ones and the first and last of the range operations.
const OPCODES: [u8; 41] = [
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
    0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x20,
    0x21, 0x22, 0x23, 0x24, 0x30, 0x3c, 0x3d, 0x45, 0xff,
];

/// All that the scripts send, a request at a time.
fn sent() -> Result<(Vec<String>, BTreeSet<u8>)> {
    let (mut lines, mut opcodes) = (Vec::new(), BTreeSet::new());
    for case in script::all()? {
        for exchange in &case.exchanges {
            let bytes = &exchange.send;
            if bytes.first() == Some(&0x80) {
                opcodes.extend(opcodes_of(bytes));
                continue;
            }
            let text = String::from_utf8_lossy(bytes);
            lines.extend(text.split('\n').map(|line| line.trim_end_matches('\r').to_owned()));
        }
    }
    Ok((lines, opcodes))
}

/// The opcodes of frames in a row, as far as their headers tell the truth.
fn opcodes_of(mut frames: &[u8]) -> Vec<u8> {
    let mut opcodes = Vec::new();
    while let Some(header) = frames.get(..HEADER_LEN) {
        opcodes.push(header[1]);
        let body_len = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        frames = frames.get(HEADER_LEN + body_len as usize..).unwrap_or_default();
    }
    opcodes
}

#[test]
fn every_verb_word_flag_and_opcode_is_sent() -> Result<()> {
    let (lines, opcodes) = sent()?;
    let has = |start: &str| {
        lines.iter().any(|line| *line == start || line.starts_with(&format!("{start} ")))
    };
    let mut missing: Vec<String> = Vec::new();
    missing.extend(VERBS.iter().filter(|verb| !has(verb)).map(|verb| (*verb).to_owned()));
    for (verb, words) in WORDS {
        let starts = words.iter().map(|word| format!("{verb} {word}"));
        missing.extend(starts.filter(|start| !has(start)));
    }
    for (verb, before, flags) in FLAGS {
        let words = lines.iter().filter(|line| line.starts_with(&format!("{verb} ")));
        let used: BTreeSet<char> = words
            .flat_map(|line| line.split(' ').skip(before).filter_map(|word| word.chars().next()))
            .collect();
        missing.extend(
            flags.chars().filter(|flag| !used.contains(flag)).map(|flag| format!("{verb} {flag}")),
        );
    }
    let unsent = OPCODES.iter().filter(|opcode| !opcodes.contains(opcode));
    missing.extend(unsent.map(|opcode| format!("opcode {opcode:02x}")));
    for (words, file) in ELSEWHERE {
        let text = std::fs::read_to_string(workspace_root().join("tests/tests").join(file))?;
        if !text.contains(words) {
            missing.push(format!("{words} in {file}"));
        }
    }
    ensure!(missing.is_empty(), "no case has: {missing:#?}");
    Ok(())
}

#[test]
fn every_command_of_the_scripts_is_listed() -> Result<()> {
    let (lines, _) = sent()?;
    let known =
        |line: &str| !matches!(line_of(line), Line::Rejected { error: LineError::Unknown, .. });
    let unlisted: BTreeSet<&str> = lines
        .iter()
        .filter(|line| known(line))
        .filter_map(|line| line.split(' ').find(|word| !word.is_empty()))
        .filter(|verb| !VERBS.contains(verb))
        .filter(|verb| verb.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        .filter(|verb| known(verb))
        .collect();
    ensure!(unlisted.is_empty(), "not in the list: {unlisted:?}");
    for verb in ABSENT {
        ensure!(!known(&format!("{verb} x")), "{verb} is known by now");
    }
    Ok(())
}

fn line_of(text: &str) -> Line<'_> {
    line(text.as_bytes())
}

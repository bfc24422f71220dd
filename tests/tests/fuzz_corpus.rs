//! The fuzzers' corpora against their targets, as they are and with bytes changed by a fixed seed;
//! fuzz/README.md tells how they are made.
#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Context, Result, ensure};
use session_tests::binaries::workspace_root;
use session_tests::targets::TARGETS;
use session_tests::{script, skip};

/// Changes of each file of a corpus, and where everything is tested.
const CHANGES: u64 = 30;
const CHANGES_ALL: u64 = 20_000;

#[test]
fn no_file_of_a_corpus_finds_anything() -> Result<()> {
    let changes = if skip::all() { CHANGES_ALL } else { CHANGES };
    for (name, target) in TARGETS {
        let directory = workspace_root().join("fuzz/corpus").join(name);
        let mut played = 0;
        for file in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let bytes = fs::read(file?.path())?;
            target(&bytes);
            for seed in 0..changes {
                target(&changed(&bytes, seed));
            }
            played += 1;
        }
        ensure!(played > 0, "the corpus of {name} is empty");
    }
    Ok(())
}

/// Longest script that is changed: what is longer is so by its values.
const SCRIPT_LEN_MAX: usize = 8 << 10;
/// Changes of each script, and where everything is tested.
const SCRIPT_CHANGES: u64 = 1;
const SCRIPT_CHANGES_ALL: u64 = 1_000;

#[test]
fn no_script_with_bytes_changed_finds_anything() -> Result<()> {
    let changes = if skip::all() { SCRIPT_CHANGES_ALL } else { SCRIPT_CHANGES };
    let [_, _, _, _, _, (name, connection), _] = TARGETS;
    ensure!(name == "connection", "the targets are others");
    let mut played = 0;
    for case in script::all()? {
        let sent: Vec<u8> =
            case.exchanges.iter().flat_map(|exchange| exchange.send.clone()).collect();
        if sent.len() > SCRIPT_LEN_MAX {
            continue;
        }
        for seed in 0..changes {
            // Cut into a few bytes each, and read by few.
            connection(&[&[3 + played as u8 % 29, 7], &changed(&sent, seed + played)[..]].concat());
        }
        played += 1;
    }
    ensure!(played > 150, "{played} scripts were short enough");
    Ok(())
}

/// Some bytes changed, left out or said twice.
fn changed(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize % below.max(1)
    };
    for _ in 0..1 + random(4) {
        let at = random(bytes.len());
        let Some(byte) = bytes.get_mut(at) else { break };
        match random(5) {
            0 => *byte = random(256) as u8,
            1 => *byte = b" \r\n\0-09:kb\x80\x81\xff"[random(13)],
            2 => bytes.truncate(at),
            3 => {
                bytes.remove(at);
            }
            _ => {
                let again = bytes[at..].to_vec();
                bytes.extend(again);
            }
        }
    }
    bytes
}

//! The fuzzers' corpora against their targets, as they are and with bytes changed by a fixed seed;
//! fuzz/README.md tells how they are made.
#![forbid(unsafe_code)]

use std::fs;

use anyhow::{Context, Result, ensure};
use session_tests::binaries::workspace_root;
use session_tests::targets::TARGETS;

/// Changes of each file of a corpus.
const CHANGES: u64 = 30;

#[test]
fn no_file_of_a_corpus_finds_anything() -> Result<()> {
    for (name, target) in TARGETS {
        let directory = workspace_root().join("fuzz/corpus").join(name);
        let mut played = 0;
        for file in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let bytes = fs::read(file?.path())?;
            target(&bytes);
            for seed in 0..CHANGES {
                target(&changed(&bytes, seed));
            }
            played += 1;
        }
        ensure!(played > 0, "the corpus of {name} is empty");
    }
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

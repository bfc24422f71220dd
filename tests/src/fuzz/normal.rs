//! What may differ between two servers, and why. Everything else is a difference.
#![forbid(unsafe_code)]

use super::Protocol;

/// Every difference that is none, with its reason.
pub const KNOWN: &[(&str, &str)] = &[
    ("cas uniques", "each server counts versions its own way"),
    ("remaining seconds", "the second may change between the two"),
    (
        "ERROR, and CLIENT_ERROR bad command line format",
        "memcached since 1.6.40 answers malformed commands by the second, as sessiond does",
    ),
    (
        "errors in a row",
        "memcached runs the value of a rejected storage line as a command; sessiond passes it over",
    ),
    (
        "what follows a value that does not end where its line said, or a length that cannot be \
         read",
        "sessiond closes: a value must never be run as a command",
    ),
    (
        "not sent: numbers whose digits become fewer",
        "memcached pads them only while nobody reads the old number; sessiond always does",
    ),
    ("not sent: `s` of ms, `q` of ma", "1.6.18 does not know the first and forgets the second"),
    ("not sent: `h` of mg", "memcached counts a touch as a fetch"),
    ("the words of other CLIENT_ERROR lines of meta commands", "1.6.45 changed them"),
];

/// Whether two answers are the same but for what is known.
pub(super) fn same(protocol: Protocol, ours: &[u8], theirs: &[u8]) -> bool {
    if protocol == Protocol::Binary {
        return frames(ours) == frames(theirs);
    }
    let (ours, theirs) = (lines(ours), lines(theirs));
    if ours == theirs {
        return true;
    }
    // Closed after an error.
    let closed = ours.last().is_some_and(|last| last == ERROR || last.ends_with(b"data chunk"));
    closed && theirs.starts_with(&ours)
}

const ERROR: &[u8] = b"<error>";

fn lines(answer: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for line in answer.split(|byte| *byte == b'\n') {
        let line = line_without_versions(line.strip_suffix(b"\r").unwrap_or(line));
        if line == ERROR && lines.last().is_some_and(|last| last == ERROR) {
            continue;
        }
        if !line.is_empty() {
            lines.push(line);
        }
    }
    lines
}

fn line_without_versions(line: &[u8]) -> Vec<u8> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let is_bad_format = line.starts_with(b"CLIENT_ERROR bad command line format");
    let is_meta_error = [&b"CLIENT_ERROR invalid"[..], b"CLIENT_ERROR duplicate"]
        .iter()
        .any(|words| line.starts_with(words) && !line.ends_with(b"argument"));
    match words.as_slice() {
        [b"ERROR"] => ERROR.to_vec(),
        _ if is_bad_format || is_meta_error => ERROR.to_vec(),
        [b"VALUE", key, flags, len, _] => [b"VALUE", *key, *flags, *len].join(&b' '),
        [b"HD" | b"VA" | b"EN" | b"NS" | b"NF" | b"EX", ..] => {
            let time = |word: &&[u8]| word.first() == Some(&b't') && word.len() > 1;
            let timeless = words.iter().map(|word| if time(word) { &b"t#"[..] } else { word });
            timeless.collect::<Vec<_>>().join(&b' ')
        }
        _ => line.to_vec(),
    }
}

/// The frames of an answer without versions; bytes that make no frame are one at the end.
fn frames(mut answer: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while answer.len() >= 24 {
        let body_len = u32::from_be_bytes([answer[8], answer[9], answer[10], answer[11]]);
        let len = (24 + body_len as usize).min(answer.len());
        let mut frame = answer[..len].to_vec();
        frame[16..24].fill(0);
        frames.push(frame);
        answer = &answer[len..];
    }
    if !answer.is_empty() {
        frames.push(answer.to_vec());
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::{Protocol, same};

    #[test]
    fn only_what_is_listed_may_differ() {
        let text = |ours: &[u8], theirs: &[u8]| same(Protocol::Text, ours, theirs);
        assert!(text(b"VALUE k 0 1 5\r\nx\r\nEND\r\n", b"VALUE k 0 1 9\r\nx\r\nEND\r\n"));
        assert!(!text(b"VALUE k 0 1 5\r\nx\r\nEND\r\n", b"VALUE k 0 1 5\r\ny\r\nEND\r\n"));
        assert!(text(b"CLIENT_ERROR bad command line format\r\n", b"ERROR\r\nERROR\r\n"));
        assert!(text(b"CLIENT_ERROR bad data chunk\r\n", b"CLIENT_ERROR bad data chunk\r\nOK\r\n"));
        assert!(!text(b"STORED\r\n", b"STORED\r\nSTORED\r\n"));
        assert!(!text(b"STORED\r\nSTORED\r\n", b"STORED\r\n"));
        assert!(same(Protocol::Meta, b"HD t99\r\n", b"HD t100\r\n"));
        assert!(!same(Protocol::Meta, b"HD s1\r\n", b"HD s2\r\n"));
    }
}

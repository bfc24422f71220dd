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
    (
        "what `me` tells of an item beside its key",
        "classes, sizes and versions are each server's own",
    ),
    (
        "not sent: a key list with a key over 250 bytes behind other commands; a browser's request",
        "memcached 1.6.18 forgets what it had not sent yet",
    ),
    ("not sent: a line over 2 KiB but key lists", "memcached serves it if it came in one piece"),
    ("not sent: `T` of ma", "memcached gives the time to an item that it replaces at that moment"),
    (
        "not sent: append and prepend beside meta commands; not compared: W, X and Z",
        "memcached forgets who won an item when it is joined or, while it is read, counted",
    ),
    (
        "not sent: `I` of md; values over half a megabyte in meta and binary",
        "memcached forgets that an item is stale when it counts while the old number is sent; of \
         values in several chunks it says other than of others that they are no numbers",
    ),
    ("not sent: touch, gat and their kin with a value", "memcached reads it as the next frame"),
    (
        "what stands before half a command",
        "memcached may keep the answers back and forget them when the client ends",
    ),
    (
        "a header that lies, and a value that ends too late",
        "sessiond says so at once, memcached when as many bytes have come as the header or the \
         line speaks of",
    ),
    ("the words of other CLIENT_ERROR lines of meta commands", "1.6.45 changed them"),
];

/// Whether two answers are the same but for what is known.
///
/// While memcached waits for bytes that do not come, it keeps what it would have answered to the
/// requests before, and forgets it at the client's end: `half` says that a command was cut short.
pub(super) fn same(protocol: Protocol, ours: &[u8], theirs: &[u8], half: bool) -> bool {
    if protocol == Protocol::Binary {
        let (ours, theirs) = (frames(ours), frames(theirs));
        // Closed over a header: memcached waits for the bytes that the header speaks of.
        let before = ours.split_last().filter(|(last, _)| is_refusal(last)).map(|(_, rest)| rest);
        let before = if half { Some(&ours[..]) } else { before };
        return ours == theirs || before.is_some_and(|before| before.starts_with(&theirs));
    }
    let (ours, theirs) = (lines(ours), lines(theirs));
    if ours == theirs || half && ours.starts_with(&theirs) {
        return true;
    }
    // Closed after an error.
    let Some((last, before)) = ours.split_last() else { return false };
    let closed = last == ERROR || last.ends_with(b"data chunk");
    closed && (theirs.starts_with(&ours) || before.starts_with(&theirs))
}

const ERROR: &[u8] = b"<error>";

/// What memcached says in other words by now.
const META_ERRORS: [&[u8]; 4] = [
    b"CLIENT_ERROR invalid",
    b"CLIENT_ERROR duplicate",
    b"CLIENT_ERROR bad token",
    b"CLIENT_ERROR error decoding",
];

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
    let is_meta_error =
        META_ERRORS.iter().any(|words| line.starts_with(words) && !line.ends_with(b"argument"));
    match words.as_slice() {
        [b"ERROR"] => ERROR.to_vec(),
        _ if is_bad_format || is_meta_error => ERROR.to_vec(),
        [b"VALUE", key, flags, len, _] => [b"VALUE", *key, *flags, *len].join(&b' '),
        [b"HD" | b"VA" | b"EN" | b"NS" | b"NF" | b"EX", ..] => {
            let won = |word: &&&[u8]| !matches!(**word, b"W" | b"X" | b"Z");
            let known = words.iter().filter(won).map(|word| match word {
                [b't', _, ..] => b"t#",
                [b'c', b'0'..=b'9', ..] => b"c#",
                _ => *word,
            });
            known.collect::<Vec<_>>().join(&b' ')
        }
        [b"ME", key, ..] => [b"ME", *key].join(&b' '),
        _ => line.to_vec(),
    }
}

/// Whether a frame says that a header cannot be true.
fn is_refusal(frame: &[u8]) -> bool {
    matches!(frame.get(6..8), Some([0, 0x03 | 0x04 | 0x81]))
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
        let text = |ours: &[u8], theirs: &[u8]| same(Protocol::Text, ours, theirs, false);
        assert!(text(b"VALUE k 0 1 5\r\nx\r\nEND\r\n", b"VALUE k 0 1 9\r\nx\r\nEND\r\n"));
        assert!(!text(b"VALUE k 0 1 5\r\nx\r\nEND\r\n", b"VALUE k 0 1 5\r\ny\r\nEND\r\n"));
        assert!(text(b"CLIENT_ERROR bad command line format\r\n", b"ERROR\r\nERROR\r\n"));
        assert!(text(b"CLIENT_ERROR bad data chunk\r\n", b"CLIENT_ERROR bad data chunk\r\nOK\r\n"));
        assert!(!text(b"STORED\r\n", b"STORED\r\nSTORED\r\n"));
        assert!(!text(b"STORED\r\nSTORED\r\n", b"STORED\r\n"));
        assert!(same(Protocol::Meta, b"HD t99\r\n", b"HD t100\r\n", false));
        assert!(!same(Protocol::Meta, b"HD s1\r\n", b"HD s2\r\n", false));
    }
}

//! What may differ between two servers, and why. Everything else is a difference.
#![forbid(unsafe_code)]

use super::Protocol;

/// A difference that is none.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What differs, or is not sent because it would.
    pub what: &'static str,
    /// Why.
    pub why: &'static str,
    /// A stream whose answers differ for this reason alone; none where it is left to chance.
    pub witness: Option<&'static [u8]>,
}

/// Every difference that is none.
pub const KNOWN: &[Known] = &[
    Known {
        what: "cas uniques",
        why: "each server counts versions its own way",
        witness: Some(b"set w1 0 0 1\r\na\r\ngets w1\r\n"),
    },
    Known {
        what: "remaining seconds",
        why: "the second may change between the two",
        witness: None,
    },
    Known {
        what: "ERROR, and CLIENT_ERROR bad command line format",
        why: "memcached since 1.6.40 answers malformed commands by the second, as sessiond does",
        witness: Some(b"get\r\n"),
    },
    Known {
        what: "errors in a row",
        why: "memcached runs the value of a rejected storage line as a command; sessiond passes \
              it over",
        witness: Some(b"set w2 -1 0 7\r\nfoo bar\r\n"),
    },
    Known {
        what: "what follows a value that does not end where its line said, or a length that \
               cannot be read",
        why: "sessiond closes: a value must never be run as a command",
        witness: Some(b"set w3 0 0 1\r\nabversion\r\nget w3\r\n"),
    },
    Known {
        what: "not sent: numbers whose digits become fewer",
        why: "memcached pads them only while nobody reads the old number; sessiond always does",
        witness: Some(b"set w4 0 0 2\r\n10\r\nmg w4 v\r\nma w4 MD D5\r\nmg w4 v\r\n"),
    },
    Known {
        what: "not sent: `s` of ms, `q` of ma",
        why: "1.6.18 does not know the first and forgets the second",
        witness: Some(b"ms w5 1 s\r\na\r\n"),
    },
    Known {
        what: "not sent: `h` of mg",
        why: "memcached forgets that an item was fetched when it counts while the old number is \
              sent",
        witness: Some(b"set w6 0 0 1\r\n1\r\nmg w6 v\r\nma w6\r\nmg w6 h\r\n"),
    },
    Known {
        what: "what `me` tells of an item beside its key",
        why: "classes, sizes and versions are each server's own",
        witness: Some(b"set w7 0 0 1\r\na\r\nme w7\r\n"),
    },
    Known {
        what: "not sent: a key list with a key over 250 bytes behind other commands; a browser's \
               request",
        why: "memcached 1.6.18 forgets what it had not sent yet",
        witness: Some(b"set w8 0 0 1\r\na\r\nGET / HTTP/1.1\r\n"),
    },
    Known {
        what: "not sent: a line over 2 KiB but key lists",
        why: "memcached serves it if it came in one piece",
        witness: Some(&LONG_LINE),
    },
    Known {
        what: "not sent: `T` of ma",
        why: "memcached gives the time to an item that it replaces at that moment",
        witness: Some(b"set w9 0 0 1\r\n9\r\nma w9 T100\r\nmg w9 t\r\n"),
    },
    Known {
        what: "not compared: W, X and Z",
        why: "memcached forgets who won an item when it counts while the old number is sent",
        witness: Some(b"set w10 0 30 1\r\n8\r\nmg w10 R99 v\r\nma w10\r\nmg w10 v\r\n"),
    },
    Known {
        what: "not sent: `I` of md",
        why: "memcached forgets that an item is stale when it counts while the old number is sent",
        witness: Some(b"set w11 0 0 1\r\n9\r\nmd w11 I T30\r\nincr w11 1\r\nmg w11 v\r\n"),
    },
    Known {
        what: "not sent: values over half a megabyte in meta and binary",
        why: "of values in several chunks memcached says other than of others that they are no \
              numbers",
        witness: None,
    },
    Known {
        what: "not sent: touch, gat and their kin with a value",
        why: "memcached reads it as the next frame",
        witness: Some(
            b"\x80\x1c\0\x04\x04\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x64nonev\
              \x80\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
    },
    Known {
        what: "what stands before half a command",
        why: "memcached may keep the answers back and forget them when the client ends",
        witness: None,
    },
    Known {
        what: "a header that lies, and a value that ends too late",
        why: "sessiond says so at once, memcached when as many bytes have come as the header or \
              the line speaks of",
        witness: Some(b"\x80\0\0\xff\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0k"),
    },
    Known {
        what: "the status of a binary body over 1 GiB",
        why: "memcached since 1.6.45 says that its length cannot be, as sessiond does",
        witness: Some(
            b"\x80\x01\0\x01\x08\0\0\0\x7f\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0\
              \0\0\0\0\0\0\0\0k",
        ),
    },
    Known {
        what: "not sent: `mn` that ends in a line feed alone",
        why: "memcached 1.6.45 knows none, 1.6.18 and protocol.txt do",
        witness: None,
    },
    Known {
        what: "the words of other CLIENT_ERROR lines of meta commands",
        why: "1.6.45 changed them",
        witness: Some(b"mg w12 !\r\n"),
    },
];

/// `incr` of a key by a number of two thousand digits.
const LONG_LINE: [u8; 2100] = {
    let mut line = [b'0'; 2100];
    line.split_at_mut(9).0.copy_from_slice(b"incr w13 ");
    line.split_at_mut(2100 - 3).1.copy_from_slice(b"1\r\n");
    line
};

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
        return ours == theirs
            || before.is_some_and(|before| before.starts_with(&theirs))
            || is_same_but_for_a_body(&ours, &theirs);
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

/// Whether all that differs is the status of a body that is larger than any item may be.
fn is_same_but_for_a_body(ours: &[Vec<u8>], theirs: &[Vec<u8>]) -> bool {
    let (Some((last, before)), Some((their_last, their_before))) =
        (ours.split_last(), theirs.split_last())
    else {
        return false;
    };
    before == their_before
        && (last.get(1), last.get(12..16)) == (their_last.get(1), their_last.get(12..16))
        && last.get(6..8) == Some(&[0, 0x04])
        && their_last.get(6..8) == Some(&[0, 0x03])
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

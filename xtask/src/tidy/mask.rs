//! Rust source with comments and the contents of literals blanked, so that a rule about code
//! does not fire on prose. Lines stay where they are.
#![forbid(unsafe_code)]

/// The code of a Rust file; same length in lines.
pub(super) fn code(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = token_end(&chars, at);
        if end == at {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

/// The lines of masked code before its unit tests, with their numbers from 1.
pub(super) fn lines_before_tests(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = code.lines().enumerate().map(|(index, line)| (index + 1, line));
    numbered.take_while(|(_, line)| line.trim_end() != "#[cfg(test)]")
}

/// End of the comment or literal that begins at `at`; `at` itself when none does.
fn token_end(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    match rest {
        ['/', '/', ..] => at + position(rest, 2, |tail| tail[0] == '\n'),
        ['/', '*', ..] => block_comment_end(chars, at),
        ['"', ..] => string_end(chars, at),
        ['r', '"' | '#', ..] if !continues_word(chars, at) => raw_string_end(chars, at),
        ['\'', '\\', ..] => at + position(rest, 3, |tail| tail[0] == '\'') + 1,
        ['\'', _, '\'', ..] => at + 3,
        _ => at,
    }
}

/// Distance to the first place from `from` on where `found` holds, or to the end.
fn position(rest: &[char], from: usize, found: impl Fn(&[char]) -> bool) -> usize {
    (from..rest.len()).find(|&at| found(&rest[at..])).unwrap_or(rest.len())
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < chars.len() {
        match &chars[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string_end(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn raw_string_end(chars: &[char], start: usize) -> usize {
    let hashes = chars[start + 1..].iter().take_while(|&&c| c == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return start;
    }
    let closes = |tail: &[char]| {
        tail[0] == '"' && tail[1..].iter().take_while(|&&c| c == '#').count() >= hashes
    };
    (open + position(&chars[open..], 1, closes) + 1 + hashes).min(chars.len())
}

fn continues_word(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_') && chars[at - 1] != 'b'
}

#[cfg(test)]
mod tests {
    use super::{code, lines_before_tests};

    #[test]
    fn prose_and_literals_are_blanked_and_lines_stay() {
        let source = "let a = \"tokio \\\" //\"; // aya\nlet b = r#\"libc\"\n\"#; /* x /* y */ z */ c('\\'', '\"');";
        let masked = code(source);
        assert_eq!(masked.lines().count(), source.lines().count());
        for word in ["tokio", "aya", "libc", "x", "y", "z"] {
            assert!(!masked.contains(word), "{word} in {masked}");
        }
        assert!(masked.contains("let b =") && masked.contains("c("));
    }

    #[test]
    fn lifetimes_are_code() {
        assert_eq!(code("fn f<'a>(x: &'a str) {}"), "fn f<'a>(x: &'a str) {}");
    }

    #[test]
    fn unit_tests_are_left_out() {
        let lines: Vec<_> = lines_before_tests("a\n#[cfg(test)]\nmod tests {}\n").collect();
        assert_eq!(lines, [(1, "a")]);
    }
}

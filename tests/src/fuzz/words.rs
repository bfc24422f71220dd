//! Lines of the text and meta protocols, well-formed and not.
#![forbid(unsafe_code)]

use super::generate::{Protocol, Random, key, value};

const NUMBERS: &[&str] = &["0", "1", "2", "7"];
const ODD: &[&str] = &["-1", "x", "1x", "18446744073709551616", "99999999999999999999999"];
const NOREPLY: &[&str] = &["", "", "", " noreply"];
const ENDS: &[&str] = &["\r\n", "\r\n", "\r\n", "\n"];

fn number<'a>(random: &mut Random) -> &'a str {
    if random.one_in(8) { random.of(ODD) } else { random.of(NUMBERS) }
}

/// A key, or now and then one that is as long as may be, or longer.
fn any_key(random: &mut Random) -> String {
    let key = key(random);
    if !random.one_in(40) {
        return key;
    }
    let len = random.of(&[249, 250, 251, 300]);
    format!("{key}{}", "k".repeat(len - key.len()))
}

/// A classic command.
pub(super) fn text(random: &mut Random) -> Vec<u8> {
    let (key, noreply) = (any_key(random), random.of(NOREPLY));
    let line = match random.below(13) {
        0..=3 => return storage(&key, noreply, random),
        4 | 5 => {
            let keys = (0..=random.below(3)).map(|_| format!(" {}", self::key(random)));
            let keys: String = keys.collect();
            format!("{}{keys}", random.of(&["get", "gets"]))
        }
        6 => {
            let time = random.of(&["0", "100", "-1", "x", "1x"]);
            format!("{} {time} {}", random.of(&["gat", "gats"]), self::key(random))
        }
        7 => format!("{} {key} {}{noreply}", random.of(&["incr", "decr"]), number(random)),
        8 => format!("touch {key} {}{noreply}", random.of(&["0", "100", "-1", "x"])),
        9 => format!("delete {key}{}{noreply}", random.of(&["", "", " 0"])),
        10 => random.of(ADMINISTRATION).to_owned(),
        11 => format!("{} {key} noreply", random.of(&["incr", "decr", "touch"])),
        _ => random.of(SENSELESS).to_owned(),
    };
    // memcached 1.6.45 knows no `mn` that ends in a line feed alone.
    let end = if line == "mn" { "\r\n" } else { random.of(ENDS) };
    format!("{line}{end}").into_bytes()
}

/// A classic command among meta commands: see `KNOWN` on large values.
pub(super) fn text_beside_meta(random: &mut Random) -> Vec<u8> {
    loop {
        let command = text(random);
        if command.len() < 500_000 {
            return command;
        }
    }
}

const ADMINISTRATION: &[&str] = &[
    "mn",
    "verbosity 0",
    "verbosity x",
    "cache_memlimit x",
    "cache_memlimit 1",
    "lru x",
    "lru mode x",
    "slabs x",
    "slabs reassign 1 1",
    "slabs automove 9",
    "lru_crawler sleep x",
    "lru_crawler sleep 9999999",
    "lru_crawler crawl 0",
    "flush_all x",
    "stats nonesuch",
    "stats detail x",
    "debugtime 5",
];

const SENSELESS: &[&str] = &[
    "",
    " ",
    "  ",
    "get",
    "get ",
    "gets",
    "incr",
    "incr a",
    "decr",
    "touch",
    "touch a",
    "foo",
    "foo bar",
    "delete",
    "gat",
    "verbosity",
    "GET a",
    "getx a",
    "\0",
    "a\0b",
    "\r",
    "get\0 a",
];

fn storage(key: &str, noreply: &str, random: &mut Random) -> Vec<u8> {
    let verb = random.of(&["set", "add", "replace", "append", "prepend", "cas"]);
    let (flags, value) = (random.of(&["0", "5", "4294967295"]), value(random));
    let exptime = random.of(&["0", "0", "100", "-1"]);
    let cas = if verb == "cas" { random.of(&[" 99999999999", " 0"]) } else { "" };
    // What a server says to a line that it refuses is not comparable where it says nothing.
    let is_refused = key.len() > 250;
    let noreply = if is_refused { "" } else { noreply };
    let value = match random.below(60) {
        // What memcached runs as a command is then no longer than a line.
        _ if is_refused => "v".repeat(value.len().min(9)),
        // As large as an item may be, and larger.
        0 => "v".repeat(random.of(&[1_048_500, 1_100_000])),
        _ => value,
    };
    let len = value.len();
    format!("{verb} {key} {flags} {exptime} {len}{cas}{noreply}\r\n{value}\r\n").into_bytes()
}

/// A meta command.
pub(super) fn meta(random: &mut Random) -> Vec<u8> {
    let flags = |random: &mut Random, known: &[&str]| -> String {
        (0..random.below(5)).map(|_| format!(" {}", random.of(known))).collect()
    };
    let key = any_key(random);
    let line = match random.below(9) {
        0..=2 => {
            let value = match value(random) {
                value if key.len() > 250 => "v".repeat(value.len().min(9)),
                value => value,
            };
            let known = [
                "F5",
                "T0",
                "T100",
                "T-1",
                "q",
                "k",
                "Oab",
                "MS",
                "ME",
                "MA",
                "MR",
                "MP",
                "I",
                "c",
                "C18446744073709551615",
            ];
            let flags = flags(random, &known);
            return format!("ms {key} {}{flags}\r\n{value}\r\n", value.len()).into_bytes();
        }
        3..=5 => {
            let known = [
                "v", "f", "k", "s", "q", "Oab", "T0", "T100", "N0", "N100", "R30", "R200", "t",
                "u", "c", "l",
            ];
            format!("mg {key}{}", flags(random, &known))
        }
        6 => format!("md {key}{}", flags(random, &["q", "k", "Oab", "C18446744073709551615"])),
        7 => format!("me {key}"),
        _ => {
            let known = [
                "v",
                "N0 J500",
                "N100",
                "D3",
                "D0",
                "MI",
                "MD",
                "M+",
                "M-",
                "k",
                "t",
                "Oab",
                "c",
                "C18446744073709551615",
            ];
            format!("ma {key}{}", flags(random, &known))
        }
    };
    format!("{line}\r\n").into_bytes()
}

/// A command that a server may close over.
pub(super) fn malformed(protocol: Protocol, random: &mut Random) -> Vec<u8> {
    let key = key(random);
    let value = "v".repeat(random.below(20) as usize);
    let (len, odd) = (value.len(), random.of(ODD));
    let verb = random.of(&["set", "add", "append", "cas"]);
    let line = match (protocol, random.below(12)) {
        (_, 0) => format!("{verb} {key} 0 0 {} 1\r\n{value}\r\n", len + 1),
        (_, 1) => format!("{verb} {key} 0 0 {len} 1\r\n{value}x\r\n"),
        (_, 2) => format!("{verb} {key} 0 0 {odd} 1\r\n{value}\r\n"),
        (_, 3) => format!("{verb} {key} {} 0 {len} 1\r\n{value}\r\n", random.of(&["x", "-1"])),
        (_, 4) => format!("{verb} {key} 0 x {len} 1\r\n{value}\r\n"),
        (_, 5) => format!("get {}\r\n", " ".repeat(90)),
        (_, 6) => format!("get {key} {}\r\n", "none ".repeat(2000)),
        (_, 7) => "quit\r\nget a\r\n".to_owned(),
        (Protocol::Meta, 8) => format!("ms {key} {len}\r\n{value}x\r\n"),
        (Protocol::Meta, 9) => format!("ms {key} {odd}\r\n{value}\r\n"),
        (Protocol::Meta, 10) => {
            let flag = random.of(&["!", "Tx", "MX", "b", "Nx", "z"]);
            format!("{} {key} {flag}\r\n", random.of(&["mg", "md", "ma"]))
        }
        // A key in base64 does not tell its round, so it is only asked for.
        (Protocol::Meta, _) => {
            let key = random.of(&["Zm9v", "Z", "Zm9vYg=="]);
            format!("{} {key} b k\r\n", random.of(&["mg", "md", "ma"]))
        }
        _ => format!("{verb} {key} 0 0\r\n"),
    };
    line.into_bytes()
}

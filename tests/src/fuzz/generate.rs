//! Random streams: commands with keys that are filled in later, well-formed and not.
#![forbid(unsafe_code)]

use crate::frame;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The classic text protocol.
    Text,
    /// The meta commands.
    Meta,
    /// The binary protocol.
    Binary,
}

impl std::str::FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "meta" => Ok(Self::Meta),
            "binary" => Ok(Self::Binary),
            _ => Err("write text, meta or binary".to_owned()),
        }
    }
}

/// SplitMix64.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `below`.
    pub(super) fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Stands for the round's number in keys; as long as what replaces it.
const MARK: &[u8; 8] = b"@@@@@@@@";

/// Commands in order.
#[derive(Clone, Debug)]
pub(super) struct Stream(Vec<Vec<u8>>);

impl Stream {
    /// So many commands.
    pub(super) fn random(protocol: Protocol, len: u64, random: &mut Random) -> Self {
        let command = |random: &mut Random| match protocol {
            Protocol::Text => text(random),
            Protocol::Meta if random.below(4) == 0 => text(random),
            Protocol::Meta => meta(random),
            Protocol::Binary => binary(random),
        };
        Self((0..len).map(|_| command(random)).collect())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn without(&self, at: usize, count: usize) -> Self {
        let kept = |idx: &usize| !(at..at + count).contains(idx);
        Self((0..self.0.len()).filter(kept).map(|idx| self.0[idx].clone()).collect())
    }

    /// The bytes, with the keys of a round.
    pub(super) fn bytes(&self, round: u64) -> Vec<u8> {
        let mut bytes = self.0.concat();
        let number = format!("{round:08}");
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(MARK.len()).position(|part| part == MARK) {
            at += found;
            bytes[at..at + MARK.len()].copy_from_slice(number.as_bytes());
        }
        bytes
    }
}

fn key(random: &mut Random) -> String {
    format!("@@@@@@@@k{}", random.below(4))
}

fn value(random: &mut Random) -> String {
    match random.below(6) {
        // Three digits, whatever is added or taken: see `KNOWN` on padded numbers.
        0 | 2 => (400 + random.below(30)).to_string(),
        1 => String::new(),
        3 => "v".repeat(random.below(3000) as usize),
        _ => "v".repeat(random.below(20) as usize),
    }
}

const NUMBERS: &[&str] = &["0", "1", "2", "7"];
const ODD: &[&str] = &["-1", "x", "1x", "18446744073709551616", "99999999999999999999999"];
const NOREPLY: &[&str] = &["", "", "", " noreply"];

fn number<'a>(random: &mut Random) -> &'a str {
    if random.below(8) == 0 { random.of(ODD) } else { random.of(NUMBERS) }
}

fn text(random: &mut Random) -> Vec<u8> {
    let (key, noreply) = (key(random), random.of(NOREPLY));
    let line = match random.below(12) {
        0..=3 => {
            let verb = random.of(&["set", "add", "replace", "append", "prepend", "cas"]);
            let (flags, value) = (random.of(&["0", "5", "4294967295"]), value(random));
            let exptime = random.of(&["0", "0", "100", "-1"]);
            let cas = if verb == "cas" { " 99999999999" } else { "" };
            let len = value.len();
            return format!("{verb} {key} {flags} {exptime} {len}{cas}{noreply}\r\n{value}\r\n")
                .into_bytes();
        }
        4 | 5 => {
            let others = (0..random.below(3)).map(|_| format!(" {}", self::key(random)));
            let others: String = others.collect();
            format!("{} {key}{others}", random.of(&["get", "gets"]))
        }
        6 => format!("{} {} {key}", random.of(&["gat", "gats"]), random.of(&["0", "100", "x"])),
        7 => format!("{} {key} {}{noreply}", random.of(&["incr", "decr"]), number(random)),
        8 => format!("touch {key} {}{noreply}", random.of(&["0", "100", "x"])),
        9 => format!("delete {key}{}{noreply}", random.of(&["", "", " 0"])),
        10 => random.of(&["mn", "verbosity 0", "cache_memlimit x", "lru x", "slabs x"]).to_owned(),
        _ => random.of(&["", " ", "get", "set", "incr", "foo", "delete"]).to_owned(),
    };
    let end = random.of(&["\r\n", "\r\n", "\r\n", "\n"]);
    format!("{line}{end}").into_bytes()
}

fn meta(random: &mut Random) -> Vec<u8> {
    let key = key(random);
    let flags = |random: &mut Random, known: &[&str]| -> String {
        (0..random.below(4)).map(|_| format!(" {}", random.of(known))).collect()
    };
    let line = match random.below(8) {
        0..=2 => {
            let value = value(random);
            let known = ["F5", "T0", "T100", "q", "k", "Oab", "MS", "ME", "MA", "MR"];
            let flags = flags(random, &known);
            return format!("ms {key} {}{flags}\r\n{value}\r\n", value.len()).into_bytes();
        }
        3..=5 => {
            let known = ["v", "f", "k", "s", "q", "Oab", "T0", "N0", "t", "u"];
            format!("mg {key}{}", flags(random, &known))
        }
        6 => format!("md {key}{}", flags(random, &["q", "k", "Oab"])),
        _ => format!("ma {key}{}", flags(random, &["v", "N0 J500", "D3", "MI", "MD", "k"])),
    };
    format!("{line}\r\n").into_bytes()
}

/// Opcodes with: key, extras' length, value.
const OPCODES: &[(u8, bool, usize, bool)] = &[
    (0x00, true, 0, false),
    (0x01, true, 8, true),
    (0x02, true, 8, true),
    (0x03, true, 8, true),
    (0x04, true, 0, false),
    (0x05, true, 20, false),
    (0x06, true, 20, false),
    (0x09, true, 0, false),
    (0x0a, false, 0, false),
    (0x0c, true, 0, false),
    (0x0d, true, 0, false),
    (0x0e, true, 0, true),
    (0x0f, true, 0, true),
    (0x11, true, 8, true),
    (0x14, true, 0, false),
    (0x15, true, 20, false),
    (0x19, true, 0, true),
    (0x1c, true, 4, false),
    (0x1d, true, 4, false),
    (0x23, true, 4, false),
    (0x1b, false, 0, false),
    (0x40, false, 0, false),
];

fn binary(random: &mut Random) -> Vec<u8> {
    let (opcode, with_key, extras_len, with_value) =
        OPCODES[random.below(OPCODES.len() as u64) as usize];
    let key = if with_key { key(random) } else { String::new() };
    let value = if with_value { value(random) } else { String::new() };
    let mut extras = vec![0; extras_len];
    if extras_len == 20 {
        extras[7] = random.below(9) as u8;
        extras[14] = 2;
        extras[15] = random.below(9) as u8;
    }
    frame::plain(opcode, &extras, key.as_bytes(), value.as_bytes(), random.below(1 << 32) as u32)
}

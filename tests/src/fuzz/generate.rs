//! Random streams: commands with keys that are filled in later. It owns keys, values and how a
//! stream ends; what commands there are is the business of `words` and `frames`.
#![forbid(unsafe_code)]

use super::{frames, words};

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

    pub(super) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// True once in so many times.
    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// One of the keys of a round.
pub(super) fn key(random: &mut Random) -> String {
    format!("@@@@@@@@k{}", random.below(4))
}

/// A value, most often a short one.
pub(super) fn value(random: &mut Random) -> String {
    match random.below(60) {
        // Three digits, whatever is added or taken: see `KNOWN` on padded numbers.
        0..20 => (400 + random.below(30)).to_string(),
        20..30 => String::new(),
        30..40 => "v".repeat(random.below(3000) as usize),
        // Larger than what waits in the input.
        40 => "v".repeat(random.of(&[4_096, 4_097, 70_000])),
        _ => "v".repeat(random.below(20) as usize),
    }
}

/// Stands for the round's number in keys; as long as what replaces it.
const MARK: &[u8; 8] = b"@@@@@@@@";

/// Commands in order.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    commands: Vec<Vec<u8>>,
    /// The last of them is not all there.
    half: bool,
}

impl Stream {
    /// So many commands. What a server may close over, and half a command, stand at the end.
    pub(super) fn random(protocol: Protocol, len: u64, random: &mut Random) -> Self {
        let command = |random: &mut Random| match protocol {
            Protocol::Text => words::text(random),
            Protocol::Meta if random.one_in(4) => words::text_beside_meta(random),
            Protocol::Meta => words::meta(random),
            Protocol::Binary => frames::request(random),
        };
        let mut half = false;
        let mut commands: Vec<Vec<u8>> = (0..len).map(|_| command(random)).collect();
        if random.one_in(3) {
            let last = match protocol {
                Protocol::Text | Protocol::Meta => words::malformed(protocol, random),
                Protocol::Binary => {
                    let (frame, open) = frames::malformed(random);
                    half = open;
                    frame
                }
            };
            commands.push(last);
        } else if random.one_in(6)
            && let Some(last) = commands.last_mut()
        {
            last.truncate(random.below(last.len() as u64) as usize);
            half = true;
        }
        Self { commands, half }
    }

    /// Whether the last command may be half a command.
    pub(super) fn is_half(&self) -> bool {
        self.half
    }

    pub(super) fn len(&self) -> usize {
        self.commands.len()
    }

    pub(super) fn without(&self, at: usize, count: usize) -> Self {
        let kept = |idx: &usize| !(at..at + count).contains(idx);
        let commands = (0..self.commands.len()).filter(kept);
        let commands = commands.map(|idx| self.commands[idx].clone()).collect();
        Self { commands, half: self.half }
    }

    /// The bytes, with the keys of a round.
    pub(super) fn bytes(&self, round: u64) -> Vec<u8> {
        let mut bytes = self.commands.concat();
        let number = format!("{round:08}");
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(MARK.len()).position(|part| part == MARK) {
            at += found;
            bytes[at..at + MARK.len()].copy_from_slice(number.as_bytes());
        }
        bytes
    }
}

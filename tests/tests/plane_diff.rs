//! The plane against a plain model: frames are made of requests that it answers and then damaged, cut
//! and changed, and each goes through the real programs, alone and behind the guard. The model reads
//! the frame by itself and says which bytes go back, if any; all else goes up unchanged.
//!
//! It shares no code with the program: neither the parser, nor the encoder, nor the checksums.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use session_common::guard::ListWord;
use session_daemon::clock::Now;
use session_daemon::store::types::StoreConfig;
use session_tests::conversation::Conversation;
use session_tests::guard_program::{GuardProgram, Hook};
use session_tests::packet::{UDP, checksum};
use session_tests::plane_program::{CLIENT4, CLIENT6, HOST4, HOST6, PORT, Path, PlaneProgram};
use session_tests::{kernel, require_root, skip};

const FRAMES: u64 = 2_000;
const FRAMES_ALL: u64 = 100_000;
const LIST: ListWord = ListWord::new(0, 1);
/// Where the sequence begins, but for the long run, which takes another each time.
const SEED: u64 = 0x5e55_1017;
/// Seconds that the items which end have: more than any run takes.
const LIFETIME_S: u64 = 90_000;

/// `XDP_DROP`, `XDP_PASS`, `XDP_TX`.
const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

/// A small generator of random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 20) % below as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<'a, T>(&mut self, some: &'a [T]) -> &'a T {
        &some[self.below(some.len())]
    }

    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

/// An item that is answered with.
struct Item {
    value: Vec<u8>,
    flags: u32,
    version: u64,
    /// Second of the boot clock at which it ends, if it does.
    until_s: Option<u64>,
}

/// What a store has.
#[derive(Default)]
struct Model {
    items: HashMap<Vec<u8>, Item>,
    /// Keys of items that the plane leaves to the daemon.
    left: Vec<Vec<u8>>,
}

/// Keys that nothing is known of, beside those that are made up.
const ABSENT: [&[u8]; 4] = [b"gone", b"a2V5", b"none", b"x"];

fn second() -> u64 {
    Now::sample().boottime_ns / 1_000_000_000
}

/// Has the daemon do something, and returns its words.
fn told(daemon: &mut Conversation, text: &[u8]) -> Result<Vec<u8>> {
    let (reply, closed) = daemon.feed(&[text]);
    ensure!(!closed && !reply.windows(5).any(|part| part == b"ERROR"), "{}", text.escape_ascii());
    Ok(reply)
}

/// Fills the store with items of many lengths, and with some that are not answered with.
fn fill(daemon: &mut Conversation, random: &mut Random) -> Result<Model> {
    let mut model = Model::default();
    let lens = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 200, 248, 249, 250];
    for (number, len) in lens.into_iter().enumerate() {
        for value_len in [0, 1, 7, 8, 9, 63, 100, 500, 1000, 1380] {
            let mut key = format!("{number:x}{value_len:x}").into_bytes();
            key.resize(len.max(key.len()), b'!' + random.below(94) as u8);
            let value: Vec<u8> = (0..value_len).map(|_| random.byte()).collect();
            let flags = *random.of(&[0, 0, 1, 65_535, u32::MAX]);
            let ends = random.one_in(3);
            let exptime = if ends { LIFETIME_S } else { 0 };
            let head = [b"ms ", key.as_slice()].concat();
            let rest = format!(" {value_len} F{flags} T{exptime}\r\n");
            let made_s = loop {
                let begun_s = second();
                told(daemon, &[&head, rest.as_bytes(), &value, b"\r\n"].concat())?;
                if second() == begun_s {
                    break begun_s;
                }
            };
            let until_s = ends.then_some(made_s + LIFETIME_S);
            let reply = told(daemon, &[b"mg ", key.as_slice(), b" c\r\n"].concat())?;
            let text = std::str::from_utf8(&reply)?.trim_end();
            let version = text.strip_prefix("HD c").context("a version")?.parse()?;
            model.items.insert(key, Item { value, flags, version, until_s });
        }
    }
    told(daemon, b"ms stale 1\r\na\r\nmd stale I T30\r\nms won 1 T10\r\na\r\nmg won R30\r\n")?;
    told(
        daemon,
        b"ms a2V5 1 b\r\na\r\nset over 0 -1 1\r\na\r\nset gone 0 0 1\r\na\r\ndelete gone\r\n",
    )?;
    let large = [b"set large 0 0 20000\r\n".as_slice(), &vec![b'x'; 20_000], b"\r\n"].concat();
    told(daemon, &large)?;
    model.left =
        ["stale", "won", "key", "over", "large"].map(|key| key.as_bytes().to_vec()).to_vec();
    Ok(model)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// A request as a frame carries it.
struct Request<'a> {
    /// Link header, with its tags.
    link: &'a [u8],
    is_v6: bool,
    source: &'a [u8],
    destination: &'a [u8],
    client_port: u16,
    id: [u8; 2],
    /// Bytes of the datagram's payload.
    payload_len: usize,
    text: &'a [u8],
}

/// Reads a frame; nothing if it is no request to this host.
fn request(frame: &[u8]) -> Option<Request<'_>> {
    let is_tag = |at| be16(frame, at).is_some_and(|kind| kind == 0x8100 || kind == 0x88a8);
    let tags = if !is_tag(12) {
        0
    } else if !is_tag(16) {
        1
    } else {
        2
    };
    let (link, packet) = frame.split_at_checked(14 + 4 * tags)?;
    if link[0] & 1 == 1 || !(55..=440).contains(&frame.len()) {
        return None;
    }
    let is_v6 = match be16(link, link.len() - 2)? {
        0x0800 => false,
        0x86dd => true,
        _ => return None,
    };
    let (source, destination, datagram) = if is_v6 {
        let is_plain = packet.first()? >> 4 == 6 && *packet.get(6)? == UDP;
        let len = usize::from(be16(packet, 4)?);
        let datagram = packet.get(40..40 + len)?;
        (is_plain && packet[24..40] == HOST6.octets()).then_some((
            &packet[8..24],
            &packet[24..40],
            datagram,
        ))?
    } else {
        let is_plain =
            *packet.first()? == 0x45 && be16(packet, 6)? & 0x3fff == 0 && *packet.get(9)? == UDP;
        let len = usize::from(be16(packet, 2)?);
        let datagram = packet.get(20..len)?;
        (is_plain && packet[16..20] == HOST4.octets()).then_some((
            &packet[12..16],
            &packet[16..20],
            datagram,
        ))?
    };
    let (client_port, port) = (be16(datagram, 0)?, be16(datagram, 2)?);
    let is_ours = port == PORT && client_port != 0 && client_port != PORT;
    let is_whole = usize::from(be16(datagram, 4)?) == datagram.len();
    let payload = datagram.get(8..)?;
    let (header, text) = payload.split_at_checked(8)?;
    let is_single = header[2..6] == [0, 0, 0, 1];
    (is_ours && is_whole && is_single).then_some(Request {
        link,
        is_v6,
        source,
        destination,
        client_port,
        id: [header[0], header[1]],
        payload_len: payload.len(),
        text,
    })
}

/// The words that answer a request, at a second of the boot clock.
fn answer(model: &Model, text: &[u8], at_s: u64) -> Option<Vec<u8>> {
    let line = text.strip_suffix(b"\r\n")?;
    let blank = line.iter().position(|byte| *byte == b' ')?;
    let (verb, rest) = (&line[..blank], &line[blank + 1..]);
    let key_len = rest.iter().position(|byte| *byte <= b' ').unwrap_or(rest.len());
    let (key, flags) = rest.split_at(key_len);
    if key.is_empty() || key.len() > 250 || model.left.iter().any(|left| left == key) {
        return None;
    }
    let item = model.items.get(key);
    let number = |number: &dyn ToString| number.to_string().into_bytes();
    match verb {
        b"get" | b"gets" if flags.is_empty() => {
            let Some(item) = item else { return Some(b"END\r\n".to_vec()) };
            let len = item.value.len();
            let version =
                if verb == b"gets" { format!(" {}", item.version) } else { String::new() };
            let head = format!(" {} {len}{version}\r\n", item.flags);
            Some([b"VALUE ", key, head.as_bytes(), &item.value, b"\r\nEND\r\n"].concat())
        }
        b"mg" => {
            let mut letters = Vec::new();
            for pair in flags.chunks(2) {
                let &[b' ', letter] = pair else { return None };
                if !b"vfckst".contains(&letter) || letters.contains(&letter) {
                    return None;
                }
                letters.push(letter);
            }
            let Some(item) = item else {
                let with_key = if letters.contains(&b'k') { b" k" } else { b"".as_slice() };
                let key = if with_key.is_empty() { b"" } else { key };
                return Some([b"EN", with_key, key, b"\r\n"].concat());
            };
            let len = item.value.len();
            let with_value = letters.contains(&b'v');
            let mut reply =
                if with_value { format!("VA {len}").into_bytes() } else { b"HD".to_vec() };
            for letter in letters.into_iter().filter(|letter| *letter != b'v') {
                reply.extend([b' ', letter]);
                reply.extend(match letter {
                    b'f' => number(&item.flags),
                    b'c' => number(&item.version),
                    b'k' => key.to_vec(),
                    b's' => number(&len),
                    _ => item.until_s.map_or(b"-1".to_vec(), |until_s| number(&(until_s - at_s))),
                });
            }
            reply.extend(b"\r\n");
            if with_value {
                reply.extend_from_slice(&item.value);
                reply.extend(b"\r\n");
            }
            Some(reply)
        }
        _ => None,
    }
}

/// The frame that goes back.
fn reply(model: &Model, frame: &[u8], at_s: u64) -> Option<Vec<u8>> {
    let asked = request(frame)?;
    let text = answer(model, asked.text, at_s)?;
    let payload = [&asked.id, [0, 0, 0, 1, 0, 0].as_slice(), &text].concat();
    if payload.len() > 1400 || payload.len() > 32 * asked.payload_len {
        return None;
    }
    let len = u16::try_from(8 + payload.len()).ok()?;
    let ports = [PORT, asked.client_port, len, 0].map(u16::to_be_bytes);
    let mut datagram = [ports.as_flattened(), &payload].concat();
    let network = if asked.is_v6 {
        let mut pseudo = [asked.destination, asked.source].concat();
        pseudo.extend([0, 0]);
        pseudo.extend(len.to_be_bytes());
        pseudo.extend([0, 0, 0, UDP]);
        let sum = checksum(&[&pseudo, datagram.as_slice()].concat());
        let sum = if sum == 0 { 0xffff } else { sum };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(len.to_be_bytes());
        header.extend([UDP, 64]);
        [header.as_slice(), asked.destination, asked.source].concat()
    } else {
        let mut header = vec![0x45, 0];
        header.extend((20 + len).to_be_bytes());
        header.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
        header.extend_from_slice(asked.destination);
        header.extend_from_slice(asked.source);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    };
    let link = [&asked.link[6..12], &asked.link[..6], &asked.link[12..]].concat();
    Some([link, network, datagram].concat())
}

/// A request's text, most of them such as are answered.
fn text(model: &Model, keys: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let key = |random: &mut Random| match random.below(40) {
        0 if random.one_in(2) => random.of(&ABSENT).to_vec(),
        0 => random.of(&model.left).clone(),
        1 => vec![b'k'; 245 + random.below(12)],
        2 => (0..1 + random.below(30)).map(|_| random.byte()).collect(),
        _ => random.of(keys).clone(),
    };
    let is_other = random.one_in(20);
    let verbs = if is_other { ["GET", "gat", "md", "me"] } else { ["get", "gets", "mg", "mg"] };
    let verb = *random.of(&verbs);
    let mut text = [verb.as_bytes(), b" ", &key(random)].concat();
    if verb == "mg" {
        for _ in 0..random.below(4) + random.below(4) {
            let known = *random.of(b"vfckst");
            let letter = if random.one_in(40) { *random.of(b"bqOhlTNRE0\xff") } else { known };
            text.extend([b' ', letter]);
            if random.one_in(60) {
                text.extend(b"42");
            }
        }
    }
    if random.one_in(30) {
        text.push(b' ');
        text.extend(key(random));
    }
    if random.one_in(30) {
        let at = random.below(text.len());
        text.insert(at, *random.of(b" \t\r\n\0\x7f"));
    }
    text.extend_from_slice(match random.below(80) {
        0 => b"\n",
        1 => b"",
        2 => b"\r",
        3 => b"\r\n\r\n",
        4 => b"\r\nget x\r\n",
        _ => b"\r\n",
    });
    text
}

/// A frame: a request, and what was done to it.
fn frame(model: &Model, keys: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut path = if random.one_in(2) { Path::v4() } else { Path::v6() };
    for _ in 0..*random.of(&[0, 0, 0, 0, 1, 1, 2, 2, 3]) {
        path.tags.push((
            *random.of(&[0x8100, 0x8100, 0x88a8, 0x88a8, 0x9100]),
            random.below(4095) as u16,
        ));
    }
    if random.one_in(20) {
        path.source_port = *random.of(&[0, PORT, 1, 65_535]);
    }
    if random.one_in(20) && path.source.is_ipv4() {
        let last = random.byte();
        path.source = IpAddr::V4(Ipv4Addr::new(198, 18, 0, last));
    }
    let text = text(model, keys, random);
    let mut payload = vec![random.byte(), random.byte(), 0, 0, 0, 1, 0, 0];
    match random.below(60) {
        0 => payload[5] = *random.of(&[0, 2, 255]),
        1 => payload[3] = 1,
        2 => payload[4] = 1,
        3 => payload[6] = random.byte(),
        _ => {}
    }
    payload.extend(text);
    let mut frame = path.frame_of(&payload);
    let link_len = 14 + 4 * path.tags.len();
    match random.below(24) {
        // Checksums of requests are not looked at.
        0 => frame[link_len + 10] ^= random.byte(),
        1 => {
            let udp = link_len + if path.source.is_ipv4() { 20 } else { 40 };
            frame[udp + 6] = random.byte();
            frame[udp + 7] = random.byte();
        }
        // Options, flags, fragments.
        2 => frame[link_len] = *random.of(&[0x46, 0x4f, 0x55, 0x60, 0x45, 0x6f]),
        3 => frame[link_len + 6] = *random.of(&[0x20, 0x40, 0x80, 0x01, 17, 0]),
        // Lengths.
        4 => {
            let at = (link_len + *random.of(&[2, 3, 4, 5, 24, 25, 44, 45])).min(frame.len() - 1);
            frame[at] = frame[at].wrapping_add(*random.of(&[1, 255, 8, 2]));
        }
        5 => frame[0] = *random.of(&[0x03, 0xff, 0x01, 0x02]),
        6 => {
            for _ in 0..1 + random.below(3) {
                let at = random.below(frame.len());
                frame[at] = random.byte();
            }
        }
        7 => frame.truncate(14 + random.below(frame.len() - 13)),
        8 => {
            let padding = random.below(60);
            frame.extend((0..padding).map(|_| random.byte()));
        }
        9 if random.one_in(4) => frame.iter_mut().skip(12).for_each(|byte| *byte = random.byte()),
        _ => {}
    }
    frame
}

/// Whether a frame is to be told that there is no item.
fn says_absence(model: &Model, frame: &[u8]) -> bool {
    let text = request(frame).and_then(|asked| answer(model, asked.text, 0));
    text.is_some_and(|text| text.starts_with(b"EN"))
}

/// A guard that allows the usual clients.
fn guard() -> Result<GuardProgram> {
    GuardProgram::letting_in(LIST, (CLIENT4, CLIENT6), (HOST4, HOST6), PORT)
}

/// Keys that are answered: two whose tags collide in a bucket are left to the daemon, rightly.
fn answered(model: &Model, plane: &PlaneProgram) -> Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    for key in model.items.keys() {
        let text = [b"mg ", key.as_slice(), b" s\r\n"].concat();
        if plane.run(&Path::v4().frame(1, &text))?.is_some() {
            keys.push(key.clone());
        }
    }
    ensure!(keys.len() + 3 > model.items.len(), "{} of {}", keys.len(), model.items.len());
    keys.sort();
    Ok(keys)
}

#[test]
fn every_frame_is_answered_with_exactly_these_bytes_or_goes_up_unchanged() -> Result<()> {
    require_root!();
    if kernel::is_before(5, 18) {
        skip!("the plane needs Linux 5.18");
    }
    let (seed, count) =
        if skip::all() { (Now::sample().realtime_ns | 1, FRAMES_ALL) } else { (SEED, FRAMES) };
    eprintln!("seed {seed:#x}");
    let mut random = Random(seed);
    let config = StoreConfig { memory_limit: 8 << 20, workers: 2, ..StoreConfig::default() };
    let plane = PlaneProgram::load(&config, Now::sample())?;
    let mut daemon = Conversation::over(&plane.store)?;
    let mut model = fill(&mut daemon, &mut random)?;
    let keys = answered(&model, &plane)?;
    for (key, _) in model.items.extract_if(|key, _| !keys.contains(key)) {
        model.left.push(key);
    }
    let (without, mut with) = (guard()?, guard()?);
    with.plane(0, plane.programs()?)?;
    let (mut replies, mut dropped, mut absences, mut behind_tags) = (0, 0, 0, 0);
    for number in 0..count {
        let frame = frame(&model, &keys, &mut random);
        let shown = || format!("frame {number} of seed {seed:#x}: {}", frame.escape_ascii());
        for (hook, program) in [(Hook::Native, "plane"), (Hook::NativeFrags, "plane_frags")] {
            // A second may end meanwhile, which shows in what is left of a lifetime.
            let first_s = second();
            let outcome = plane.run_by(program, &frame).with_context(shown)?;
            let alone = with.become_of(hook, &frame)?;
            let last_s = second();
            let mut expected = [first_s, last_s].map(|at_s| reply(&model, &frame, at_s));
            let is_absence = says_absence(&model, &frame);
            absences += u64::from(is_absence);
            if is_absence && outcome.is_none() {
                // An item of another key has its tag.
                behind_tags += 1;
                expected = [None, None];
            }
            ensure!(
                expected.contains(&outcome),
                "{program}: {}\n{outcome:?}\n{expected:?}",
                shown()
            );
            replies += u64::from(outcome.is_some());
            let (verdict, _) = without.become_of(hook, &frame)?;
            match (verdict, outcome) {
                (PASS, None) => ensure!(alone == (PASS, frame.clone()), "{}", shown()),
                (PASS, Some(_)) => {
                    let is_right = alone.0 == TX && expected.contains(&Some(alone.1));
                    ensure!(is_right, "behind the guard: {}", shown());
                }
                // Whom the guard refuses nobody answers.
                (DROP, _) => {
                    ensure!(alone.0 == DROP, "{}", shown());
                    dropped += 1;
                }
                (other, _) => anyhow::bail!("verdict {other}: {}", shown()),
            }
        }
    }
    eprintln!(
        "{count} frames by two programs: {replies} answered, {absences} of them with no item, \
         {dropped} refused by the guard"
    );
    ensure!(replies > count / 3 && absences > count / 50, "only {replies} ({absences}) answered");
    // One key in some hundred thousand.
    ensure!(behind_tags <= 4, "{behind_tags} absent keys were left to the daemon");
    ensure!(dropped > count / 100, "only {dropped} refused");
    Ok(())
}

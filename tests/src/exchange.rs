//! A client by datagram that costs the server's side nothing: a program in the kernel sends requests
//! as live frames into a veth pair, a second one takes the answers at the same end and looks at each
//! of them to its last byte. Several hundred thousand requests a second on one CPU.
//!
//! Keys are `session:` and eight digits; a value follows from its key. The far end of the pair must
//! have an XDP program or GRO switched on, or it drops what is redirected. Linux 5.18.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::Array;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use session_common::exchange::{
    DIGITS, DRAWS, Exchange as Order, ROOM, Tally, Template, VALUE_LEN, WRITE,
};

use crate::attach::{Attachment, Mode, attach};
use crate::flood::object_path;
use crate::netns::Namespace;
use crate::packet::{IPV4, UDP, ethernet, ipv4};
use crate::wait;

/// Frames that one test run hands on at once.
const BATCH: u32 = 64;

/// Times that the generator looks whether it may send in one call, which is some milliseconds.
const LOOKS: u32 = 32_768;

/// How long answers that are still missing are waited for.
const LATENESS: Duration = Duration::from_millis(500);

/// Port of the first of the clients.
const CLIENT_PORT: u16 = 20_000;

/// The wire, from the client's end.
#[derive(Clone, Copy, Debug)]
pub struct Wire<'a> {
    /// The client's interface.
    pub interface: &'a str,
    /// Hardware addresses of both ends, the client's first.
    pub stations: [[u8; 6]; 2],
    /// The client, and the server.
    pub addresses: [Ipv4Addr; 2],
    /// The server's port.
    pub port: u16,
}

/// What reads ask for. All keys that are written are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reads {
    /// A key that is there.
    Hits,
    /// A key that is not.
    Misses,
    /// A key that is there, with a blank behind it: the kernel plane leaves such a line to the daemon.
    Spaced,
}

/// A key that is never there, of another shape than all others.
pub const ABSENT: &str = "none";

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// The key's number.
    pub key: u32,
    /// Whether the key is written.
    pub is_write: bool,
}

/// Largest number of a key that is there; those of [`Reads::Misses`] are above it.
pub const KEY_MAX: u32 = 49_999_999;

/// The loaded client.
#[derive(Debug)]
pub struct Exchange {
    stations: [[u8; 6]; 2],
    addresses: [Ipv4Addr; 2],
    port: u16,
    ebpf: Ebpf,
    order: Order,
    draws: Vec<Draw>,
    _hearing: Attachment,
}

/// What came of some requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Reads and writes that were sent.
    pub reads: u64,
    /// See `reads`.
    pub writes: u64,
    /// Requests without an answer.
    pub lost: u64,
    /// Answers that were not what they had to be.
    pub wrong: u64,
    /// Answers to no request, or much too late.
    pub strange: u64,
}

/// A key by its number.
#[must_use]
pub fn key(number: u32) -> String {
    format!("session:{}", digits(number).escape_ascii())
}

/// The value that belongs to a key.
#[must_use]
pub fn value(number: u32) -> Vec<u8> {
    let digits = digits(number);
    let mut value: Vec<u8> = digits.into_iter().cycle().take(VALUE_LEN).collect();
    value[VALUE_LEN - DIGITS..].copy_from_slice(&digits);
    value
}

fn digits(number: u32) -> [u8; DIGITS] {
    let text = format!("{number:08}");
    text.into_bytes().try_into().expect("numbers of keys have eight digits")
}

impl Exchange {
    /// Loads a client at the end of a wire in a namespace, and has it hear there.
    ///
    /// # Errors
    /// Without root, or before Linux 5.18.
    pub fn new(namespace: &Namespace, wire: &Wire<'_>) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load_file(object_path())?;
        let ask: &mut Xdp = ebpf.program_mut("ask").context("no program asks")?.try_into()?;
        ask.load()?;
        let hearing = namespace
            .run(|| attach(&mut ebpf, "hear", wire.interface, Mode::Native))
            .context("hearing")?;
        let empty = Template { len: 0, bytes: [0; ROOM] };
        let order = Order {
            ifindex: namespace.ifindex(wire.interface)?,
            port: wire.port.into(),
            window: 0,
            forgiven: 0,
            asks: [empty; 2],
            answers: [empty; 2],
        };
        let Wire { stations, addresses, port, .. } = *wire;
        Ok(Self { stations, addresses, port, ebpf, order, draws: Vec::new(), _hearing: hearing })
    }

    /// What is asked from now on, of which at most `window` requests are without an answer: `next`
    /// draws them, until they begin anew after [`DRAWS`].
    ///
    /// # Errors
    /// When the maps cannot be written.
    pub fn prepare(
        &mut self,
        reads: Reads,
        window: u64,
        mut next: impl FnMut() -> Draw,
    ) -> Result<()> {
        ensure!((1..=256).contains(&window), "a veth pair holds 256 frames");
        let ask = |text: String, value: &[u8]| self.frame(text.as_bytes(), value);
        let name = key(0);
        let read = match reads {
            Reads::Hits | Reads::Misses => format!("get {name}\r\n"),
            Reads::Spaced => format!("get {name} \r\n"),
        };
        let item = [format!("VALUE {name} 0 {VALUE_LEN}\r\n").as_bytes(), &value(0)].concat();
        let answer = match reads {
            Reads::Misses => b"END\r\n".to_vec(),
            Reads::Hits | Reads::Spaced => [&item, b"\r\nEND\r\n".as_slice()].concat(),
        };
        let write = format!("set {name} 0 0 {VALUE_LEN}\r\n");
        let asks = [ask(read, b"")?, ask(write, &[&value(0), b"\r\n".as_slice()].concat())?];
        self.order.asks = asks;
        self.order.answers = [template(&answer)?, template(b"STORED\r\n")?];
        self.order.window = window;
        self.order.forgiven = 0;
        self.draws = (0..DRAWS).map(|_| next()).collect();
        let draws_map = self.ebpf.map_mut("DRAWS").context("no draws")?;
        let mut draws = Array::<_, [u8; DIGITS]>::try_from(draws_map)?;
        for (place, draw) in self.draws.iter().enumerate() {
            let absent = if reads == Reads::Misses && !draw.is_write { KEY_MAX + 1 } else { 0 };
            let mut digits = digits(draw.key + absent);
            digits[0] |= if draw.is_write { WRITE } else { 0 };
            draws.set(u32::try_from(place)?, digits, 0)?;
        }
        let tally = self.ebpf.map_mut("TALLY").context("no tally")?;
        Array::<_, Tally>::try_from(tally)?.set(0, Tally::default(), 0)?;
        self.say()
    }

    fn say(&mut self) -> Result<()> {
        let order = self.ebpf.map_mut("EXCHANGE").context("no order")?;
        Ok(Array::<_, Order>::try_from(order)?.set(0, self.order, 0)?)
    }

    /// A frame with memcached's header of a single datagram, without a checksum of UDP.
    fn frame(&self, text: &[u8], value: &[u8]) -> Result<Template> {
        let ([client, server], [source, destination]) = (self.stations, self.addresses);
        let payload = [&[0, 0, 0, 0, 0, 1, 0, 0], text, value].concat();
        let len = u16::try_from(8 + payload.len())?;
        let ports = [CLIENT_PORT, self.port, len, 0].map(u16::to_be_bytes);
        let datagram = [ports.as_flattened(), &payload].concat();
        let packet = ipv4(source, destination, UDP, &[], 0, &datagram);
        let mut frame = ethernet(&[], IPV4, &packet);
        frame[..6].copy_from_slice(&server);
        frame[6..12].copy_from_slice(&client);
        template(&frame)
    }

    /// How far it is.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn tally(&self) -> Result<Tally> {
        Ok(Array::<_, Tally>::try_from(self.ebpf.map("TALLY").context("no tally")?)?.get(&0, 0)?)
    }

    /// Asks until `enough`, waits for the last answers, and says what came of it. The calling thread
    /// must be in the client's namespace and stay on one CPU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run_here(&mut self, mut enough: impl FnMut(&Tally) -> bool) -> Result<Outcome> {
        let first = self.tally()?;
        let mut last = first;
        while !enough(&last) {
            self.look()?;
            let tally = self.tally()?;
            if tally == last {
                self.forgive()?;
            }
            last = self.tally()?;
        }
        self.await_answers()?;
        Ok(self.outcome(first, self.tally()?))
    }

    fn outcome(&self, first: Tally, last: Tally) -> Outcome {
        let is_write = |number: &u64| self.draws[*number as usize % DRAWS].is_write;
        let writes = (first.sent..last.sent).filter(is_write).count() as u64;
        Outcome {
            reads: last.sent - first.sent - writes,
            writes,
            lost: (last.sent - first.sent).saturating_sub(last.heard - first.heard),
            wrong: last.wrong - first.wrong,
            strange: last.strange - first.strange,
        }
    }

    /// Waits until there is an answer to everything, or none comes any more.
    fn await_answers(&self) -> Result<Tally> {
        let mut tally = self.tally()?;
        let mut since = Instant::now();
        while tally.sent - self.order.forgiven > tally.heard && since.elapsed() < LATENESS {
            wait::pause(Duration::from_millis(1));
            let next = self.tally()?;
            if next != tally {
                (tally, since) = (next, Instant::now());
            }
        }
        Ok(tally)
    }

    /// Goes on without the answers that do not come.
    fn forgive(&mut self) -> Result<()> {
        let tally = self.await_answers()?;
        self.order.forgiven = tally.sent.saturating_sub(tally.heard);
        self.say()
    }

    /// Sends as often as the answers allow, for some milliseconds.
    fn look(&self) -> Result<()> {
        // The shortest frame; the program makes it as long as the request.
        let frame = [0; 64];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&u32::try_from(frame.len())?.to_ne_bytes());
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.ctx_in = Some(&context);
        options.repeat = LOOKS;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let ask: &Xdp = self.ebpf.program("ask").context("no program asks")?.try_into()?;
        ask.test_run(options)?;
        Ok(())
    }
}

fn template(bytes: &[u8]) -> Result<Template> {
    let mut template = Template { len: bytes.len() as u64, bytes: [0; ROOM] };
    let room = template.bytes.get_mut(..bytes.len()).context("no room for it")?;
    room.copy_from_slice(bytes);
    Ok(template)
}

#[cfg(test)]
mod tests {
    use session_common::exchange::{
        ANSWERED_KEY_AT, ANSWERED_VALUE_AT, ASKED_KEY_AT, HEADERS_LEN, WRITTEN_VALUE_AT,
    };

    use super::{VALUE_LEN, key, value};

    #[test]
    fn digits_stand_where_the_program_writes_them() {
        let (name, value) = (key(1_234_567), value(1_234_567));
        assert_eq!(value.len(), VALUE_LEN);
        assert!(value.starts_with(b"0123456701234567") && value.ends_with(b"01234567"));
        let at = |text: &str, part: &str| text.find(part).unwrap();
        let read = format!("get {name}\r\n");
        assert_eq!(HEADERS_LEN + at(&read, "01234567"), ASKED_KEY_AT);
        let write = format!("set {name} 0 0 {VALUE_LEN}\r\n");
        assert_eq!(HEADERS_LEN + at(&write, "01234567"), ASKED_KEY_AT);
        assert_eq!(HEADERS_LEN + write.len(), WRITTEN_VALUE_AT);
        let answer = format!("VALUE {name} 0 {VALUE_LEN}\r\n");
        assert_eq!(at(&answer, "01234567"), ANSWERED_KEY_AT);
        assert_eq!(answer.len(), ANSWERED_VALUE_AT);
    }
}

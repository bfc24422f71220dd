//! What would happen to a packet: asked of the real program over the real lists, by a test run.
//!
//! The program is loaded a second time, with counters and samples of its own: a question leaves no
//! trace, and live traffic does not blur the answer.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use aya::maps::{Map, PerCpuArray};
use aya::programs::{Program, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use serde::Serialize;
use session_common::answer::Answer;
use session_common::guard::{Counter, Reason};

use crate::guard::error::GuardError;
use crate::guard::lists::Protocol;
use crate::guard::maps::{self, SPECS};
use crate::guard::object::{self, program_name};
use crate::guard::pins::MAPS;
use crate::guard::{Guard, Mode};

/// Maps that decide; all others are the probe's own.
const SHARED: [&str; 11] = [
    "META",
    "ENDPOINTS",
    "LISTS",
    "HOSTS4",
    "HOSTS6",
    "LARGE4",
    "LARGE6",
    "PREFIXES4",
    "PREFIXES6",
    "LOCAL4",
    "LOCAL6",
];

/// What the program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// Over what.
    pub protocol: Protocol,
    /// To which port.
    pub port: u16,
    /// Whether it went on to the network stack.
    pub passes: bool,
    /// Why, as [`Reason::name`] has it.
    pub reason: String,
    /// What its source is told, as [`Answer::name`] has it; none for nothing.
    pub answer: Option<String>,
}

impl Guard {
    /// What becomes of a connection's first packet, and of a datagram, from `source` to a port of
    /// this host: each guarded one if none is named.
    ///
    /// # Errors
    /// The kernel refuses the program, or the pins are not those of this guard at the moment.
    pub fn test(&self, source: IpAddr, port: Option<u16>) -> Result<Vec<Judged>, GuardError> {
        let mode = self.links.values().next().map_or(Mode::Native, |link| link.mode);
        let destination = self.own_address(source);
        let endpoints = match port {
            None => self.config.endpoints.clone(),
            Some(port) => vec![(Protocol::Tcp, port), (Protocol::Udp, port)],
        };
        let mut judged = Vec::with_capacity(endpoints.len());
        for (protocol, port) in endpoints {
            // Anew for each, so that what grew tells of this packet alone.
            let mut probe = self.probe(mode)?;
            let frame = frame(source, destination, protocol, port);
            let passes = run(&mut probe, program_name(mode), &frame)?;
            let reason = grown(&probe, "COUNTERS", Reason::ALL.len())?;
            let answer = grown(&probe, "ANSWERS", Answer::ALL.len())?;
            let answer = answer.map(|index| Answer::ALL[index]);
            judged.push(Judged {
                protocol,
                port,
                passes,
                reason: reason.map_or("unknown", |index| Reason::ALL[index].name()).to_owned(),
                answer: answer
                    .filter(|answer| matches!(answer, Answer::Reset | Answer::Icmp))
                    .map(|answer| answer.name().to_owned()),
            });
        }
        Ok(judged)
    }

    /// Whether the address is one of this host's.
    #[must_use]
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// An address of this host in the family of `source`, else all of the host's neighbours.
    fn own_address(&self, source: IpAddr) -> IpAddr {
        let mut own = self.addresses.iter().filter(|own| own.is_ipv4() == source.is_ipv4());
        let everybody = if source.is_ipv4() {
            IpAddr::from([224, 0, 0, 1])
        } else {
            IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 1])
        };
        own.find(|own| !own.is_loopback()).copied().unwrap_or(everybody)
    }

    /// The object once more, over the maps that decide, with the mode's program in the kernel.
    fn probe(&self, mode: Mode) -> Result<Ebpf, GuardError> {
        let mut loader = EbpfLoader::new();
        for name in SHARED {
            let path = self.pins.path(MAPS, name);
            // A pin that is gone would be made, with an empty map.
            if !path.exists() {
                return Err(fault(name, "its pin is missing; it comes back within a second"));
            }
            loader.map_pin_path(name, path);
        }
        let mut probe = loader.load(object::OBJECT).map_err(|error| fault("maps", error))?;
        for (spec, id) in SPECS.iter().zip(self.maps.ids()) {
            let map = probe.map(spec.name).and_then(maps::data_of);
            let info = map.map(|data| data.info()).transpose();
            let info = info.map_err(|error| fault(spec.name, error))?;
            if SHARED.contains(&spec.name) && info.map(|info| info.id()) != Some(id) {
                return Err(fault(spec.name, "its pin is another map's"));
            }
        }
        object::load(&mut probe, program_name(mode))
            .map_err(|refusal| fault(program_name(mode), refusal.text))?;
        Ok(probe)
    }
}

fn fault(what: &str, error: impl ToString) -> GuardError {
    GuardError::Load {
        what: format!("the program for a test run ({what})"),
        error: error.to_string(),
    }
}

/// Runs the frame; whether it passes.
fn run(probe: &mut Ebpf, name: &str, frame: &[u8]) -> Result<bool, GuardError> {
    /// `XDP_PASS`
    const XDP_PASS: u32 = 2;
    /// `TCX_NEXT`
    const TCX_NEXT: u32 = u32::MAX;
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    let program = probe.program(name).ok_or_else(|| fault(name, "not in the object"))?;
    let result = match program {
        Program::Xdp(program) => program.test_run(options).map(|run| run.return_value == XDP_PASS),
        Program::SchedClassifier(program) => {
            program.test_run(options).map(|run| run.return_value == TCX_NEXT)
        }
        _ => return Err(fault(name, "of another type in the object")),
    };
    result.map_err(|error| fault("running it", error))
}

/// The one counter of a fresh map that is not 0.
fn grown(probe: &Ebpf, name: &'static str, count: usize) -> Result<Option<usize>, GuardError> {
    let map: &Map = probe.map(name).ok_or_else(|| fault(name, "not in the object"))?;
    let counters = PerCpuArray::<_, Counter>::try_from(map).map_err(|error| fault(name, error))?;
    for index in 0..count {
        let values = u32::try_from(index).ok().map(|key| counters.get(&key, 0)).transpose();
        let values = values.map_err(|error| fault(name, error))?;
        if values.is_some_and(|values| maps::sum(&values).packets > 0) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// A SYN with the options that it commonly has, or a datagram with a text command in it.
fn frame(source: IpAddr, destination: IpAddr, protocol: Protocol, port: u16) -> Vec<u8> {
    /// Of the ephemeral range.
    const FROM: u16 = 40_000;
    let mut segment = FROM.to_be_bytes().to_vec();
    segment.extend(port.to_be_bytes());
    match protocol {
        Protocol::Tcp => {
            segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 10 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
            segment.extend([2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]);
        }
        Protocol::Udp => {
            segment.extend([0, 8 + 8 + 9, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]);
            segment.extend(b"version\r\n");
        }
    }
    let segment_len = u8::try_from(segment.len()).expect("40 bytes at most");
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 20 + segment_len, 0, 1, 0x40, 0, 64]);
            frame.extend([protocol.number(), 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, segment_len, protocol.number(), 64]);
            for address in [source, destination] {
                match address {
                    IpAddr::V4(address) => frame.extend(address.to_ipv6_mapped().octets()),
                    IpAddr::V6(address) => frame.extend(address.octets()),
                }
            }
        }
    }
    frame.extend(segment);
    frame
}

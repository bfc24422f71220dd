//! The kernel plane's program over a store of this process, run packet by packet through
//! `BPF_PROG_TEST_RUN`.
//!
//! It is loaded but never attached, so no interface sees it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use session_common::plane::{ELEMENT_LEN, Orders, RING_LEN, Report, Verdict, orders};
use session_daemon::clock::Now;
use session_daemon::store::types::StoreConfig;
use session_daemon::store::{MapFacts, MemoryFile, Start, Store};

use crate::attach::{Attachment, Mode, attach};
use crate::guard_program;
use crate::packet::{IPV4, IPV6, UDP, ethernet, ipv4, ipv6};

/// The port that the plane answers at.
pub const PORT: u16 = 11_211;
/// The host's addresses.
pub const HOST4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// See [`HOST4`].
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// A client's addresses.
pub const CLIENT4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 11);
/// See [`CLIENT4`].
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11);

/// `XDP_PASS` and `XDP_TX`.
const PASS: u32 = 2;
const TX: u32 = 3;

/// The object under test: `SESSION_PLANE_OBJECT`, else the kept one.
#[must_use]
pub fn object_path() -> PathBuf {
    match std::env::var_os("SESSION_PLANE_OBJECT") {
        Some(path) => path.into(),
        None => PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../session-ebpf/object/plane.bpf.o"
        )),
    }
}

/// The loaded program, and a store in its map.
#[derive(Debug)]
pub struct PlaneProgram {
    ebpf: Ebpf,
    orders: Orders,
    /// The store.
    pub store: Arc<Store>,
}

impl PlaneProgram {
    /// Loads the program and makes a store in its map.
    ///
    /// # Errors
    /// Without the capabilities, or when the kernel refuses the program.
    pub fn load(config: &StoreConfig, now: Now) -> Result<Self> {
        Self::load_trial(config, 0, now)
    }

    /// [`PlaneProgram::load`] with bits of [`session_common::plane::trial`].
    ///
    /// # Errors
    /// As [`PlaneProgram::load`].
    pub fn load_trial(config: &StoreConfig, trial: u32, now: Now) -> Result<Self> {
        let path = object_path();
        let elements = Store::map_len(config)?.div_ceil(ELEMENT_LEN);
        let cpus = aya::util::nr_cpus()
            .map_err(|(file, error)| anyhow::Error::from(error).context(file))?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("REGION", u32::try_from(elements)?);
        loader.map_max_entries("REPORTS", u32::try_from(cpus)?);
        loader.override_global("TRIAL", &trial, true);
        let mut ebpf = loader.load_file(&path).with_context(|| path.display().to_string())?;
        for name in ["plane", "plane_frags"] {
            let program = ebpf.program_mut(name).context("not in the object")?;
            <&mut Xdp>::try_from(program)?.load().with_context(|| name.to_owned())?;
        }
        let (store, start) = Store::open(config, region(&ebpf, true)?, now)?;
        ensure!(matches!(start, Start::Cold(_)), "a new map has no items");
        let mut local4: HashMap<_, [u8; 4], u32> =
            HashMap::try_from(ebpf.map_mut("LOCAL4").context("no LOCAL4")?)?;
        local4.insert(HOST4.octets(), 0, 0)?;
        let mut local6: HashMap<_, [u8; 16], u32> =
            HashMap::try_from(ebpf.map_mut("LOCAL6").context("no LOCAL6")?)?;
        local6.insert(HOST6.octets(), 0, 0)?;
        let mut said = store.orders();
        said.until_ns = u64::MAX;
        said.port = PORT.into();
        said.settings |= orders::ANY_V4 | orders::ANY_V6;
        let mut plane = Self { ebpf, orders: said, store };
        plane.order(|_| {})?;
        Ok(plane)
    }

    /// Changes what the program is told.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn order(&mut self, change: impl FnOnce(&mut Orders)) -> Result<()> {
        change(&mut self.orders);
        let map = self.ebpf.map_mut("ORDERS").context("no ORDERS")?;
        Array::<_, Orders>::try_from(map)?.set(0, self.orders, 0)?;
        Ok(())
    }

    /// The programs for packets in one piece and in several, for a guard that goes on to them.
    ///
    /// # Errors
    /// When the object has no such programs.
    pub fn programs(&self) -> Result<[&ProgramFd; 2]> {
        let program = |name| -> Result<&ProgramFd> {
            let program = self.ebpf.program(name).context("not in the object")?;
            Ok(<&Xdp>::try_from(program)?.fd()?)
        };
        Ok([program("plane")?, program("plane_frags")?])
    }

    /// Puts the program on an interface, in the driver. The calling thread must be in the
    /// interface's namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, interface: &str) -> Result<Attachment> {
        attach(&mut self.ebpf, "plane", interface, Mode::Native)
    }

    /// The map's file and facts, to open a store in it.
    ///
    /// # Errors
    /// When the kernel does not tell of the map.
    pub fn memory(&self) -> Result<MemoryFile> {
        region(&self.ebpf, false)
    }

    /// Runs a frame: the frame that goes back, if one does. The packet goes up unchanged
    /// otherwise, which is checked.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn run(&self, frame: &[u8]) -> Result<Option<Vec<u8>>> {
        self.run_by("plane", frame)
    }

    /// [`PlaneProgram::run`] by a program of the object.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn run_by(&self, program: &str, frame: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut out = vec![0; 2048];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let program = self.ebpf.program(program).context("not in the object")?;
        let result = <&Xdp>::try_from(program)?.test_run(options)?;
        out.truncate(result.data_size_out as usize);
        match result.return_value {
            TX => Ok(Some(out)),
            PASS => {
                ensure!(out == frame, "a packet that went up was changed");
                Ok(None)
            }
            other => anyhow::bail!("verdict {other}"),
        }
    }

    /// How long a program of the object takes for one frame.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn time(&self, program: &str, frame: &[u8]) -> Result<Duration> {
        let program = self.ebpf.program(program).context("not in the object")?;
        guard_program::time(program.try_into()?, frame)
    }

    /// What all CPUs have counted.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counted(&self, verdict: Verdict) -> Result<u64> {
        Ok(self.reports()?.iter().map(|report| report.counters[verdict as usize]).sum())
    }

    /// What each CPU has reported.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn reports(&self) -> Result<Vec<Report>> {
        let map = self.ebpf.map("REPORTS").context("no REPORTS")?;
        let reports = Array::<_, Report>::try_from(map)?;
        (0..reports.len()).map(|cpu| Ok(reports.get(&cpu, 0)?)).collect()
    }

    /// Accesses that are still in the rings.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn accesses(&self) -> Result<Vec<(u64, u64)>> {
        Ok(self
            .reports()?
            .iter()
            .flat_map(|report| {
                let first = report.accesses.saturating_sub(RING_LEN as u64);
                let place = |number: u64| report.ring[number as usize % RING_LEN];
                (first..report.accesses).map(place).collect::<Vec<_>>()
            })
            .map(|accessed| (accessed.item, accessed.cas))
            .collect())
    }
}

fn region(ebpf: &Ebpf, is_new: bool) -> Result<MemoryFile> {
    let Map::Array(map) = ebpf.map("REGION").context("no REGION")? else {
        anyhow::bail!("REGION is not an array");
    };
    let map: &MapData = map;
    let info = map.info()?;
    let len = u64::from(info.max_entries()) * u64::from(info.value_size());
    let file = File::from(map.fd().as_fd().try_clone_to_owned()?);
    let facts = MapFacts { id: info.id(), len, is_new };
    Ok(MemoryFile { file, boot_id: 7, nameless: false, map: Some(facts) })
}

/// A client and what it sends by.
#[derive(Clone, Debug)]
pub struct Path {
    /// Tags of the frame.
    pub tags: Vec<(u16, u16)>,
    /// From here to there.
    pub source: IpAddr,
    /// The host's address.
    pub destination: IpAddr,
    /// The client's port.
    pub source_port: u16,
}

impl Path {
    /// The usual client of IPv4.
    #[must_use]
    pub fn v4() -> Self {
        Self {
            tags: vec![],
            source: CLIENT4.into(),
            destination: HOST4.into(),
            source_port: 40_000,
        }
    }

    /// The usual client of IPv6.
    #[must_use]
    pub fn v6() -> Self {
        Self { source: CLIENT6.into(), destination: HOST6.into(), ..Self::v4() }
    }

    /// The same with tags.
    #[must_use]
    pub fn tagged(self, tags: &[(u16, u16)]) -> Self {
        Self { tags: tags.to_vec(), ..self }
    }

    /// A frame with a memcached datagram of one part.
    #[must_use]
    pub fn frame(&self, id: u16, text: &[u8]) -> Vec<u8> {
        let [high, low] = id.to_be_bytes();
        let mut payload = vec![high, low, 0, 0, 0, 1, 0, 0];
        payload.extend_from_slice(text);
        self.frame_of(&payload)
    }

    /// A frame with any UDP payload.
    #[must_use]
    pub fn frame_of(&self, payload: &[u8]) -> Vec<u8> {
        let mut datagram = self.source_port.to_be_bytes().to_vec();
        datagram.extend(PORT.to_be_bytes());
        datagram.extend(((payload.len() + 8) as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend_from_slice(payload);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                ethernet(&self.tags, IPV4, &ipv4(source, destination, UDP, &[], 0, &datagram))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                ethernet(&self.tags, IPV6, &ipv6(source, destination, UDP, &datagram))
            }
            _ => unreachable!("both addresses are of one family"),
        }
    }

    /// The text of a reply to this client, whose headers and checksums are looked at by another
    /// parser.
    ///
    /// # Errors
    /// When anything of the frame is not as it must be.
    pub fn text(&self, id: u16, reply: &[u8]) -> Result<Vec<u8>> {
        let sliced = etherparse::SlicedPacket::from_ethernet(reply)?;
        let request = self.frame(id, b"x");
        ensure!(reply[..6] == request[6..12] && reply[6..12] == request[..6], "stations");
        let link_len = 14 + 4 * self.tags.len();
        ensure!(reply[12..link_len] == request[12..link_len], "tags");
        let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else {
            anyhow::bail!("no UDP");
        };
        let payload = udp.payload();
        match sliced.net.context("no IP")? {
            etherparse::NetSlice::Ipv4(slice) => {
                let header = slice.header();
                ensure!(header.header_checksum() == header.to_header().calc_header_checksum());
                ensure!(IpAddr::from(header.source_addr()) == self.destination, "source");
                ensure!(IpAddr::from(header.destination_addr()) == self.source, "destination");
                ensure!(usize::from(header.total_len()) == reply.len() - link_len, "length");
                ensure!(header.ttl() == 64 && udp.checksum() == 0);
            }
            etherparse::NetSlice::Ipv6(slice) => {
                let header = slice.header();
                ensure!(IpAddr::from(header.source_addr()) == self.destination, "source");
                ensure!(IpAddr::from(header.destination_addr()) == self.source, "destination");
                ensure!(header.hop_limit() == 64);
                ensure!(usize::from(header.payload_length()) == reply.len() - link_len - 40);
                let expected = udp.to_header().calc_checksum_ipv6(&header.to_header(), payload)?;
                ensure!(udp.checksum() == expected, "{:04x} {expected:04x}", udp.checksum());
            }
            etherparse::NetSlice::Arp(_) => anyhow::bail!("ARP"),
        }
        ensure!((udp.source_port(), udp.destination_port()) == (PORT, self.source_port), "ports");
        let [high, low] = id.to_be_bytes();
        ensure!(payload[..8] == [high, low, 0, 0, 0, 1, 0, 0], "{:?}", &payload[..8]);
        Ok(payload[8..].to_vec())
    }
}

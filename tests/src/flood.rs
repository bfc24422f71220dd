//! Floods of forbidden (or allowed) packets, made in the kernel by live frames.
//!
//! A generator program runs in one namespace and redirects its frames into a veth pair: several
//! million packets a second on one CPU. The far end of the pair must have an XDP program or GRO
//! switched on, or it drops redirected frames. Linux 5.18.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::Array;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use session_common::flood::{FRAME_LEN, Flood as Order};

use crate::netns::Namespace;
use crate::packet::{IPV4, UDP, checksum, ethernet, ipv4, transport};

/// Frames that one test run hands on at once.
const BATCH: u32 = 64;

/// What every packet of a flood has in common.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Hardware address of the far end.
    pub hardware: [u8; 6],
    /// The first source. As many of its low bits as `sources_log2` says must be zero.
    pub source: Ipv4Addr,
    /// Sources to cycle through, as a power of two; at most 16.
    pub sources_log2: u32,
    /// Destination.
    pub destination: Ipv4Addr,
    /// 6 for TCP SYNs, 17 for UDP datagrams of 18 bytes.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

/// A loaded generator.
#[derive(Debug)]
pub struct Flood {
    ebpf: Ebpf,
}

/// Where the generator's object stands.
#[must_use]
pub fn object_path() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../session-ebpf/object/bench.bpf.o").into()
}

impl Flood {
    /// Loads a generator that sends `packet` by interface `ifindex` of the namespace that
    /// [`Flood::send`] will be told.
    ///
    /// # Errors
    /// Without root, or before Linux 5.18.
    pub fn new(ifindex: u32, packet: &Packet) -> Result<Self> {
        ensure!(packet.sources_log2 <= 16, "at most 65536 sources");
        let sources_mask = (1 << packet.sources_log2) - 1;
        ensure!(packet.source.to_bits() & sources_mask == 0, "the source's low bits count");
        let mut ebpf = EbpfLoader::new().load_file(object_path())?;
        let generate: &mut Xdp =
            ebpf.program_mut("generate").context("no generator")?.try_into()?;
        generate.load()?;
        let mut order = Array::try_from(ebpf.map_mut("FLOOD").context("no order")?)?;
        order.set(0, Order { ifindex, sources_mask, frame: frame(packet) }, 0)?;
        Ok(Self { ebpf })
    }

    /// Sends packets and returns the mean time that one took, with what its receiver did on the
    /// same CPU. Takes some milliseconds beyond that, which are not counted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send(&self, from: &Namespace, packets: u32) -> Result<Duration> {
        from.run(|| self.send_here(packets))
    }

    /// [`Flood::send`] on a thread that is already in the namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send_here(&self, packets: u32) -> Result<Duration> {
        let frame = [0; FRAME_LEN];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&u32::try_from(FRAME_LEN)?.to_ne_bytes());
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.ctx_in = Some(&context);
        options.repeat = packets;
        options.attrs = TestRunAttrs::new().xdp_live_frames(BATCH);
        let generate: &Xdp = self.ebpf.program("generate").context("no generator")?.try_into()?;
        Ok(generate.test_run(options)?.duration)
    }
}

/// Keeps the calling thread on one CPU: sources are counted through on each CPU by itself.
///
/// # Errors
/// When the kernel refuses.
pub fn stay_on_this_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// The first frame, with valid checksums.
fn frame(packet: &Packet) -> [u8; FRAME_LEN] {
    let mut segment = transport(packet.protocol, packet.port);
    if packet.protocol == UDP {
        segment.resize(26, 0);
        segment[4..6].copy_from_slice(&26_u16.to_be_bytes());
    }
    let mut pseudo = packet.source.octets().to_vec();
    pseudo.extend(packet.destination.octets());
    pseudo.extend([0, packet.protocol, 0, u8::try_from(segment.len()).expect("at most 26")]);
    pseudo.extend(&segment);
    let at = if packet.protocol == UDP { 6 } else { 16 };
    let sum = checksum(&pseudo);
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let network = ipv4(packet.source, packet.destination, packet.protocol, &[], 0, &segment);
    let mut bytes = ethernet(&[], IPV4, &network);
    bytes[..6].copy_from_slice(&packet.hardware);
    bytes.resize(FRAME_LEN, 0);
    bytes.try_into().expect("resized")
}

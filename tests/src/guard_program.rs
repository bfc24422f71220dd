//! The real guard program, run packet by packet through `BPF_PROG_TEST_RUN`.
//!
//! It is loaded but never attached, so no interface sees it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{
    Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues, ProgramArray,
};
use aya::programs::{
    ProgramError, ProgramFd, SchedClassifier, SocketFilter, TestRun as _, TestRunOptions, Xdp,
};
use aya::{Ebpf, EbpfLoader, Pod};
use session_common::answer::{Answer, SAMPLES_MAX, Sample};
use session_common::guard::{
    ACTION_ALLOW, Counter, EndpointKey, EndpointValue, HostKey4, HostKey6, LPM_LIST_BITS, ListWord,
    MAGIC, Meta, PrefixKey6, Reason, Rule, SCHEMA,
};

use crate::attach::{self, Attachment, Mode};
use crate::kernel;
use crate::packet::{IPV4, IPV6, TCP, UDP};

/// Where a packet meets the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP in the driver, packets in one piece.
    Native,
    /// XDP in the driver, packets in several pieces.
    NativeFrags,
    /// tcx ingress.
    Tcx,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 3] = [Self::Native, Self::NativeFrags, Self::Tcx];

    /// The program of this hook in the object.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Native => "guard",
            Self::NativeFrags => "guard_frags",
            Self::Tcx => "guard_tcx",
        }
    }
}

/// The shortest cut of a frame that test runs take: they refuse frames without an Ethernet
/// header, and at tcx also those with a part of an IP header that follows it at once.
#[must_use]
pub fn shortest(hook: Hook, frame: &[u8]) -> usize {
    match (hook, u16::from_be_bytes([frame[12], frame[13]])) {
        (Hook::Native | Hook::NativeFrags, _) => 14,
        (Hook::Tcx, IPV4) => 34,
        (Hook::Tcx, IPV6) => 54,
        (Hook::Tcx, _) => 15,
    }
}

/// What the guard did with one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether the packet went on to the stack.
    pub passes: bool,
    /// The one counter that grew by one packet.
    pub reason: Reason,
    /// By how many bytes it grew.
    pub bytes: u64,
}

/// What was done about a packet beside its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The frame that goes back.
    pub reply: Option<Vec<u8>>,
    /// The counter of answers that grew.
    pub counted: Option<Answer>,
}

/// The loaded object, with maps small enough for a test.
#[derive(Debug)]
pub struct GuardProgram {
    ebpf: Ebpf,
    counted: Vec<Counter>,
    hooks: Vec<Hook>,
    /// Tables of large lists, by their place, and for how many hosts they are made.
    large: BTreeMap<u32, Large>,
    entries: u32,
}

/// Hosts of a large list.
#[derive(Debug)]
struct Large {
    v4: HashMap<MapData, HostKey4, Rule>,
    v6: HashMap<MapData, HostKey6, Rule>,
}

/// Where the object under test stands: `SESSION_GUARD_OBJECT`, else the kept one.
#[must_use]
pub fn object_path() -> PathBuf {
    match std::env::var_os("SESSION_GUARD_OBJECT") {
        Some(path) => path.into(),
        None => PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../session-ebpf/object/guard.bpf.o"
        )),
    }
}

/// How long a program takes for one frame, by the kernel's own count: a cold one, behind a system
/// call, and with the reading of the clock.
///
/// # Errors
/// When the kernel does not run it.
pub fn time(program: &Xdp, frame: &[u8]) -> Result<Duration> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    Ok(program.test_run(options)?.duration)
}

impl GuardProgram {
    /// Loads the object and all of its programs, and marks the maps as a daemon would.
    ///
    /// # Errors
    /// Without CAP_BPF and CAP_NET_ADMIN, or when the kernel refuses a program.
    pub fn load() -> Result<Self> {
        Self::load_for(4096)
    }

    /// The same with room for so many entries in each of the lists' maps.
    ///
    /// # Errors
    /// As for [`GuardProgram::load`].
    pub fn load_for(entries: u32) -> Result<Self> {
        let path = object_path();
        let mut loader = EbpfLoader::new();
        for map in ["HOSTS4", "HOSTS6", "PREFIXES4", "PREFIXES6", "LOCAL4", "LOCAL6"] {
            loader.map_max_entries(map, entries);
        }
        let mut ebpf = loader.load_file(&path).with_context(|| path.display().to_string())?;
        let has_frags = !kernel::is_before(5, 18);
        let hooks = Hook::ALL.into_iter().filter(|hook| *hook != Hook::NativeFrags || has_frags);
        let hooks: Vec<Hook> = hooks.collect();
        for hook in &hooks {
            let program = ebpf.program_mut(hook.program()).context("not in the object")?;
            match hook {
                Hook::Native | Hook::NativeFrags => <&mut Xdp>::try_from(program)?.load()?,
                Hook::Tcx => <&mut SchedClassifier>::try_from(program)?.load()?,
            }
        }
        let program = ebpf.program_mut("guard_socket").context("not in the object")?;
        <&mut SocketFilter>::try_from(program)?.load()?;
        let counted = vec![Counter::default(); Reason::ALL.len()];
        let mut guard = Self { ebpf, counted, hooks, large: BTreeMap::new(), entries };
        guard.settings(0)?;
        Ok(guard)
    }

    /// The object before TCP and UDP of a port on two own addresses, by a list that allows a host of
    /// each family.
    ///
    /// # Errors
    /// As for [`GuardProgram::load`].
    pub fn letting_in(
        list: ListWord,
        allowed: (Ipv4Addr, Ipv6Addr),
        own: (Ipv4Addr, Ipv6Addr),
        port: u16,
    ) -> Result<Self> {
        let mut guard = Self::load()?;
        let allow = Rule { deadline_ns: 0, counter: 1, action: ACTION_ALLOW };
        guard.host(list, allowed.0, allow)?;
        guard.host(list, allowed.1, allow)?;
        guard.own(own.0)?;
        guard.own(own.1)?;
        guard.list(list)?;
        guard.endpoint(TCP, port, 0)?;
        guard.endpoint(UDP, port, 0)?;
        Ok(guard)
    }

    /// Hooks whose programs this kernel loads.
    #[must_use]
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    /// Writes bits of `session_common::guard::settings`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn settings(&mut self, settings: u32) -> Result<()> {
        let meta = Meta { magic: MAGIC, schema: SCHEMA, settings, reserved: 0 };
        Ok(Array::try_from(self.map("META")?)?.set(0, meta, 0)?)
    }

    /// Guards a port by a list.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn endpoint(&mut self, protocol: u8, port: u16, list: u32) -> Result<()> {
        let key = EndpointKey { port, protocol, reserved: 0 };
        self.insert("ENDPOINTS", key, EndpointValue { list })
    }

    /// Stores the word of a list, which switches what its packets meet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn list(&mut self, word: ListWord) -> Result<()> {
        Ok(Array::try_from(self.map("LISTS")?)?.set(word.list(), word, 0)?)
    }

    /// Unregisters a list.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn no_list(&mut self, list: u32) -> Result<()> {
        Ok(Array::try_from(self.map("LISTS")?)?.set(list, ListWord::NONE, 0)?)
    }

    /// Writes a host entry.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn host(&mut self, list: ListWord, source: impl Into<IpAddr>, rule: Rule) -> Result<()> {
        if list.is_large() {
            return self.large_host(list, source.into(), rule);
        }
        match source.into() {
            IpAddr::V4(source) => {
                self.insert("HOSTS4", HostKey4 { list, address: source.octets() }, rule)
            }
            IpAddr::V6(source) => {
                self.insert("HOSTS6", HostKey6 { list, address: source.octets() }, rule)
            }
        }
    }

    /// Writes it where the list has tables of its own, which are made with the first host.
    fn large_host(&mut self, list: ListWord, source: IpAddr, rule: Rule) -> Result<()> {
        let place = list.large_place();
        if !self.large.contains_key(&place) {
            const NO_PREALLOC: u32 = 1;
            let tables = Large {
                v4: HashMap::create(self.entries, NO_PREALLOC)?,
                v6: HashMap::create(self.entries, NO_PREALLOC)?,
            };
            ArrayOfMaps::<_, HashMap<MapData, HostKey4, Rule>>::try_from(self.map("LARGE4")?)?
                .set(place, &tables.v4, 0)?;
            ArrayOfMaps::<_, HashMap<MapData, HostKey6, Rule>>::try_from(self.map("LARGE6")?)?
                .set(place, &tables.v6, 0)?;
            self.large.insert(place, tables);
        }
        let tables = self.large.get_mut(&place).context("it was made")?;
        match source {
            IpAddr::V4(source) => {
                tables.v4.insert(HostKey4 { list, address: source.octets() }, rule, 0)?;
            }
            IpAddr::V6(source) => {
                tables.v6.insert(HostKey6 { list, address: source.octets() }, rule, 0)?;
            }
        }
        Ok(())
    }

    /// Writes a prefix entry.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn prefix(
        &mut self,
        list: ListWord,
        network: impl Into<IpAddr>,
        len: u32,
        rule: Rule,
    ) -> Result<()> {
        match network.into() {
            IpAddr::V4(network) => {
                let data = HostKey4 { list, address: network.octets() };
                let mut trie = LpmTrie::try_from(self.map("PREFIXES4")?)?;
                trie.insert(&Key::new(LPM_LIST_BITS + len, data), rule, 0)?;
            }
            IpAddr::V6(network) => {
                let data = PrefixKey6 { list, address: network.octets(), reserved: 0 };
                let mut trie = LpmTrie::try_from(self.map("PREFIXES6")?)?;
                trie.insert(&Key::new(LPM_LIST_BITS + len, data), rule, 0)?;
            }
        }
        Ok(())
    }

    /// Names an address as the host's own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn own(&mut self, address: impl Into<IpAddr>) -> Result<()> {
        match address.into() {
            IpAddr::V4(address) => self.insert("LOCAL4", address.octets(), 1_u32),
            IpAddr::V6(address) => self.insert("LOCAL6", address.octets(), 1_u32),
        }
    }

    /// Packets and bytes that an entry decided, over all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rule(&self, counter: u32) -> Result<Counter> {
        read(&self.ebpf, "RULES", counter)
    }

    /// Has allowed datagrams of a list go on to a plane: its programs for packets in one piece and in
    /// several.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn plane(&mut self, list: u32, [whole, frags]: [&ProgramFd; 2]) -> Result<()> {
        ProgramArray::try_from(self.map("PLANES")?)?.set(list, whole, 0)?;
        Ok(ProgramArray::try_from(self.map("PLANES_FRAGS")?)?.set(list, frags, 0)?)
    }

    /// How long a program in the driver takes for a packet; see [`time`].
    ///
    /// # Errors
    /// When the kernel refuses the packet.
    pub fn time(&self, hook: Hook, frame: &[u8]) -> Result<Duration> {
        let program = self.ebpf.program(hook.program()).context("not in the object")?;
        time(program.try_into()?, frame)
    }

    /// What a program in the driver returns for a packet, and leaves of it.
    ///
    /// # Errors
    /// When the kernel refuses the packet.
    pub fn become_of(&self, hook: Hook, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut left = vec![0; 2048];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut left);
        let program = self.ebpf.program(hook.program()).context("not in the object")?;
        let result = <&Xdp>::try_from(program)?.test_run(options)?;
        left.truncate(result.data_size_out as usize);
        Ok((result.return_value, left))
    }

    /// Runs one packet. It must not be shorter than an Ethernet header.
    ///
    /// # Errors
    /// When the kernel refuses the packet, or when other than one counter grew by one.
    pub fn run(&mut self, hook: Hook, frame: &[u8]) -> Result<Outcome> {
        self.run_with_context(hook, frame, None)
    }

    /// Runs one packet of which only the first `linear_len` bytes are in one piece. XDP with
    /// fragments only; Linux 6.18.
    ///
    /// # Errors
    /// As for [`GuardProgram::run`], and on kernels that do not know such test runs.
    pub fn run_scattered(&mut self, frame: &[u8], linear_len: u32) -> Result<Outcome> {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress.
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&linear_len.to_ne_bytes());
        self.run_with_context(Hook::NativeFrags, frame, Some(&context))
    }

    fn run_with_context(
        &mut self,
        hook: Hook,
        frame: &[u8],
        context: Option<&[u8]>,
    ) -> Result<Outcome> {
        let action = run(&self.ebpf, hook, frame, context)?;
        let passes = match (hook, action) {
            // XDP_DROP, TC_ACT_SHOT
            (Hook::Native | Hook::NativeFrags, 1) | (Hook::Tcx, 2) => false,
            // XDP_TX, TCX_REDIRECT
            (Hook::Native | Hook::NativeFrags, 3) | (Hook::Tcx, 7) => false,
            // XDP_PASS, TCX_NEXT
            (Hook::Native | Hook::NativeFrags, 2) | (Hook::Tcx, u32::MAX) => true,
            (_, other) => bail!("{hook:?} returned {other}"),
        };
        let before = std::mem::take(&mut self.counted);
        self.counted = Reason::ALL
            .iter()
            .map(|reason| read(&self.ebpf, "COUNTERS", *reason as u32))
            .collect::<Result<_>>()?;
        let mut grown = Reason::ALL.iter().filter_map(|reason| {
            let (old, new) = (before[*reason as usize], self.counted[*reason as usize]);
            (old != new).then(|| (*reason, new.packets - old.packets, new.bytes - old.bytes))
        });
        match (grown.next(), grown.next()) {
            (Some((reason, 1, bytes)), None) => Ok(Outcome { passes, reason, bytes }),
            other => bail!("{hook:?} counted {other:?}"),
        }
    }

    /// Runs one packet and returns what is sent back, if anything is, and what was counted of it.
    ///
    /// # Errors
    /// As for [`GuardProgram::run`].
    pub fn answer(&mut self, hook: Hook, frame: &[u8]) -> Result<Answered> {
        let before = self.answers()?;
        let mut reply = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut reply);
        let program = self.ebpf.program(hook.program()).context("not in the object")?;
        let result = match hook {
            Hook::Native | Hook::NativeFrags => <&Xdp>::try_from(program)?.test_run(options)?,
            Hook::Tcx => <&SchedClassifier>::try_from(program)?.test_run(options)?,
        };
        reply.truncate(result.data_size_out as usize);
        let is_sent = match (hook, result.return_value) {
            (Hook::Native | Hook::NativeFrags, 3) | (Hook::Tcx, 7) => true,
            (Hook::Native | Hook::NativeFrags, 1 | 2) | (Hook::Tcx, 2 | u32::MAX) => false,
            (_, other) => bail!("{hook:?} returned {other}"),
        };
        let after = self.answers()?;
        let grown = Answer::ALL.iter().zip(before).zip(after);
        let mut grown = grown.filter(|((_, before), after)| before != after);
        let counted = match (grown.next(), grown.next()) {
            (None, None) => None,
            (Some(((answer, before), after)), None) if after == before + 1 => Some(*answer),
            other => bail!("{hook:?} counted {other:?}"),
        };
        self.counted = Reason::ALL
            .iter()
            .map(|reason| read(&self.ebpf, "COUNTERS", *reason as u32))
            .collect::<Result<_>>()?;
        Ok(Answered { reply: is_sent.then_some(reply), counted })
    }

    /// Counters of answers.
    fn answers(&self) -> Result<Vec<u64>> {
        let count = |answer: &Answer| Ok(read(&self.ebpf, "ANSWERS", *answer as u32)?.packets);
        Answer::ALL.iter().map(count).collect()
    }

    /// Fills all buckets: what was answered before does not count any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn refill(&mut self) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let zeros = PerCpuValues::try_from(vec![0_u64; cpus])?;
        PerCpuArray::<_, u64>::try_from(self.map("CPU_BUCKET")?)?.set(0, zeros, 0)?;
        let mut sources = HashMap::<_, u64, u64>::try_from(self.map("SOURCES")?)?;
        for key in sources.keys().collect::<Result<Vec<_>, _>>()? {
            sources.remove(&key)?;
        }
        Ok(())
    }

    /// All samples of all CPUs, oldest first on each.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn samples(&self) -> Result<Vec<Sample>> {
        let map = self.ebpf.map("SAMPLES").context("no map SAMPLES")?;
        let map = PerCpuArray::<_, Sample>::try_from(map)?;
        let mut samples = Vec::new();
        for place in 0..SAMPLES_MAX {
            samples.extend(map.get(&place, 0)?.iter().filter(|sample| sample.number > 0));
        }
        samples.sort_by_key(|sample: &Sample| sample.at_ns);
        Ok(samples)
    }

    /// Attaches the program of a hook, as [`attach::attach`] does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, hook: Hook, interface: &str, mode: Mode) -> Result<Attachment> {
        attach::attach(&mut self.ebpf, hook.program(), interface, mode)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn insert<K: Pod, V: Pod>(&mut self, name: &str, key: K, value: V) -> Result<()> {
        let mut map = HashMap::try_from(self.map(name)?)?;
        Ok(map.insert(key, value, 0)?)
    }
}

fn run(ebpf: &Ebpf, hook: Hook, frame: &[u8], context: Option<&[u8]>) -> Result<u32, ProgramError> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.ctx_in = context;
    let program = ebpf.program(hook.program()).ok_or(ProgramError::NotLoaded)?;
    let result = match hook {
        Hook::Native | Hook::NativeFrags => <&Xdp>::try_from(program)?.test_run(options)?,
        Hook::Tcx => <&SchedClassifier>::try_from(program)?.test_run(options)?,
    };
    Ok(result.return_value)
}

fn read(ebpf: &Ebpf, name: &str, index: u32) -> Result<Counter> {
    let map = ebpf.map(name).with_context(|| format!("no map {name}"))?;
    let slots = PerCpuArray::<_, Counter>::try_from(map)?.get(&index, 0)?;
    Ok(slots.iter().fold(Counter::default(), |sum, slot| Counter {
        packets: sum.packets + slot.packets,
        bytes: sum.bytes + slot.bytes,
    }))
}

//! The guard's maps, and the judgement's questions put to them.
//!
//! It owns the map definitions (their layouts stand in `session_common::guard`) and the routing
//! lookup. It never writes but to the counters.

use core::{arch::asm, ffi::c_void, mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_fib_lookup as FibLookup},
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, lpm_trie::Key,
    },
    helpers::generated::{bpf_fib_lookup, bpf_ktime_get_boot_ns},
    macros::btf_map,
};
use session_common::answer::{
    ANSWERS as ANSWERS_COUNT, Bucket, SAMPLES_MAX, SOURCES_MAX, Sample, Sampling, SourceKey,
};
use session_common::guard::{
    Counter, ENDPOINTS_MAX, EndpointKey, EndpointValue, HOSTS_MAX, HostKey4, HostKey6,
    LARGE_PLACES, LISTS_MAX, LOCAL_MAX, LPM_LIST_BITS, ListWord, Meta, PREFIXES_MAX, PrefixKey6,
    REASONS, RULES_MAX, Rule,
};
use session_ebpf::{Lookup, Pair, Tables};

use super::{Refusal, answers::ReplyBuffer};

/// Memory is taken as entries are written, not for the largest list there may be.
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
static META: Array<Meta, 1> = Array::new();
#[btf_map]
static ENDPOINTS: HashMap<EndpointKey, EndpointValue, { ENDPOINTS_MAX as usize }> = HashMap::new();
#[btf_map]
static LISTS: Array<ListWord, { LISTS_MAX as usize }> = Array::new();
#[btf_map]
static HOSTS4: HashMap<HostKey4, Rule, { HOSTS_MAX as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static HOSTS6: HashMap<HostKey6, Rule, { HOSTS_MAX as usize }, NO_PREALLOC> = HashMap::new();
/// Hosts of large lists, each in a table as large as it has to be. How many entries the inner map
/// named here has is of no meaning.
#[btf_map]
static LARGE4: ArrayOfMaps<HashMap<HostKey4, Rule, 1, NO_PREALLOC>, { LARGE_PLACES as usize }> =
    ArrayOfMaps::new();
#[btf_map]
static LARGE6: ArrayOfMaps<HashMap<HostKey6, Rule, 1, NO_PREALLOC>, { LARGE_PLACES as usize }> =
    ArrayOfMaps::new();
#[btf_map]
static PREFIXES4: LpmTrie<HostKey4, Rule, { PREFIXES_MAX as usize }> = LpmTrie::new();
#[btf_map]
static PREFIXES6: LpmTrie<PrefixKey6, Rule, { PREFIXES_MAX as usize }> = LpmTrie::new();
#[btf_map]
static LOCAL4: HashMap<[u8; 4], u32, { LOCAL_MAX as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static LOCAL6: HashMap<[u8; 16], u32, { LOCAL_MAX as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub(super) static COUNTERS: PerCpuArray<Counter, REASONS> = PerCpuArray::new();
#[btf_map]
pub(super) static RULES: PerCpuArray<Counter, { RULES_MAX as usize }> = PerCpuArray::new();

/// What became of packets that should be answered.
#[btf_map]
pub(super) static ANSWERS: PerCpuArray<Counter, ANSWERS_COUNT> = PerCpuArray::new();
/// Tokens for answers: of each CPU, of each source.
#[btf_map]
pub(super) static CPU_BUCKET: PerCpuArray<Bucket, 1> = PerCpuArray::new();
#[btf_map]
pub(super) static SOURCES: LruHashMap<SourceKey, Bucket, { SOURCES_MAX as usize }> =
    LruHashMap::new();
/// Samples of dropped packets: a ring for each CPU that any number of daemons read.
#[btf_map]
pub(super) static SAMPLING: PerCpuArray<Sampling, 1> = PerCpuArray::new();
#[btf_map]
pub(super) static SAMPLES: PerCpuArray<Sample, { SAMPLES_MAX as usize }> = PerCpuArray::new();
/// What is known of the packet that a CPU is refusing.
#[btf_map]
pub(super) static REFUSAL: PerCpuArray<Refusal, 1> = PerCpuArray::new();
/// Scratch space for one answer a CPU.
#[btf_map]
pub(super) static REPLY: PerCpuArray<ReplyBuffer, 1> = PerCpuArray::new();

/// What allowed datagrams go on to, by list: the plane of the daemon that has the list. Empty
/// places lead to the stack. The kernel empties an array that no process and no pin has.
#[btf_map]
pub(super) static PLANES: ProgramArray<{ LISTS_MAX as usize }> = ProgramArray::new();
/// The same for programs that take packets in several pieces: an array holds one kind.
#[btf_map]
pub(super) static PLANES_FRAGS: ProgramArray<{ LISTS_MAX as usize }> = ProgramArray::new();

/// Bytes of a packet that `guard` copies; a multiple of eight.
pub(super) const HEAD_LEN: usize = 512;

/// The first bytes of a packet.
#[repr(C)]
pub(super) struct Head {
    bytes: [u8; HEAD_LEN],
    /// A number on its way past the verifier.
    pub(super) number: usize,
    /// Bytes of the packet that are here.
    pub(super) len: usize,
}

/// Scratch space for one packet a CPU: programs of one hook do not interrupt each other.
#[btf_map]
pub(super) static HEAD: PerCpuArray<Head, 1> = PerCpuArray::new();

/// Adds one packet of `len` bytes to a counter of this CPU.
#[inline(always)]
pub(super) fn add<const N: usize>(counters: &PerCpuArray<Counter, N>, index: u32, len: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: this CPU's slot of a per-CPU map; a program is not interrupted by itself on
        // one CPU, and user space only reads.
        let counter = unsafe { &mut *counter };
        counter.packets += 1;
        counter.bytes += u64::from(len);
    }
}

/// Zero, which the compiler must not see: for many of them it calls memset, whose pointer
/// arithmetic needs CAP_PERFMON.
#[inline(always)]
pub(super) fn zero() -> u64 {
    let zero: u64;
    // SAFETY: sets a register.
    unsafe { asm!("{zero} = 0", zero = out(reg) zero) };
    zero
}

/// What a lookup found, or null. The compiler must not make one call of this lookup and another
/// map's: the kernel puts a lookup in line only where the map is the same for every packet.
#[inline(always)]
fn apart<T>(found: Option<*const T>) -> *const T {
    let mut found = found.unwrap_or(ptr::null());
    // SAFETY: a register stays as it is.
    unsafe { asm!("{found} = {found}", found = inout(reg) found) };
    found
}

/// The routing lookup's question and answer.
#[repr(C, align(8))]
struct Route(FibLookup);

/// The maps, and the packet's context for the routing lookup. Without `ROUTES` there is none, and
/// every packet is the host's own: the stack has delivered it to a socket already.
pub(super) struct Maps<const ROUTES: bool> {
    context: *mut c_void,
    ifindex: u32,
}

impl<const ROUTES: bool> Maps<ROUTES> {
    #[inline(always)]
    pub(super) fn new(context: *mut c_void, ifindex: u32) -> Self {
        Self { context, ifindex }
    }

    /// The device that received the packet.
    #[inline(always)]
    pub(super) fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// `bpf_fib_lookup` with everything zero but the family and the device.
    #[inline(always)]
    fn route(&self, family: u8) -> Route {
        let zero = zero();
        let mut route = MaybeUninit::<Route>::uninit();
        for word in 0..size_of::<Route>() / size_of::<u64>() {
            // SAFETY: inside the structure, which is aligned to eight and a multiple of it.
            unsafe { route.as_mut_ptr().cast::<u64>().add(word).write(zero) };
        }
        // SAFETY: a structure of integers, all bytes of which are written.
        let mut route = unsafe { route.assume_init() };
        route.0.family = family;
        route.0.ifindex = self.ifindex;
        route
    }

    #[inline(always)]
    fn is_forwarded(&self, route: &mut Route) -> bool {
        // SAFETY: `context` is the program's own; `route` is as long as said.
        let answer = unsafe {
            bpf_fib_lookup(self.context, &raw mut route.0, size_of::<FibLookup>() as i32, 0)
        };
        is_route_elsewhere(answer)
    }
}

/// What `bpf_fib_lookup` answers for a packet that the host itself does not receive:
/// forwarded (success, no neighbour yet, tunnel, too long) or refused by a route (blackhole,
/// unreachable, prohibit). Everything else, forwarding switched off and errors included, says
/// that the packet is the host's own or that the helper cannot tell.
#[inline(always)]
fn is_route_elsewhere(answer: i64) -> bool {
    use aya_ebpf::bindings::{
        BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
        BPF_FIB_LKUP_RET_UNSUPP_LWT,
    };
    [
        BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LKUP_RET_BLACKHOLE,
        BPF_FIB_LKUP_RET_UNREACHABLE,
        BPF_FIB_LKUP_RET_PROHIBIT,
        BPF_FIB_LKUP_RET_UNSUPP_LWT,
        BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_FRAG_NEEDED,
    ]
    .contains(&(answer as u32))
}

impl<const ROUTES: bool> Tables for Maps<ROUTES> {
    #[inline(always)]
    fn endpoint(&self, key: EndpointKey) -> Option<u32> {
        // SAFETY: read at once, not kept beyond an update.
        unsafe { ENDPOINTS.get(key) }.map(|value| value.list)
    }

    #[inline(always)]
    fn list_word(&self, list: u32) -> ListWord {
        match LISTS.get_ptr(list) {
            // SAFETY: a valid map value. Volatile: read once a packet and list, as the whole
            // lookup must see one generation.
            Some(word) => unsafe { ptr::read_volatile(word) },
            None => ListWord::NONE,
        }
    }

    #[inline(always)]
    fn settings(&self) -> u32 {
        META.get(0).map_or(0, |meta| meta.settings)
    }

    #[inline(always)]
    fn boottime_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_boot_ns() }
    }
}

impl<const ROUTES: bool> Lookup<[u8; 4]> for Maps<ROUTES> {
    #[inline(always)]
    fn host(&self, list: ListWord, address: [u8; 4]) -> Option<Rule> {
        let key = HostKey4 { list, address };
        let rule = if list.is_large() {
            apart(LARGE4.get(list.large_place())?.get_ptr(key))
        } else {
            HOSTS4.get_ptr(key).unwrap_or(ptr::null())
        };
        if rule.is_null() {
            return None;
        }
        // SAFETY: copied at once from memory that stays mapped while the program runs. Since Linux
        // 6.1 an entry that is removed meanwhile may be given to another key at once; the copy is
        // made of integers, any value of which is valid, and whole lists are removed only after
        // a wait for readers.
        Some(unsafe { *rule })
    }

    #[inline(always)]
    fn prefix(&self, list: ListWord, address: [u8; 4]) -> Option<Rule> {
        let key = Key::new(LPM_LIST_BITS + 32, HostKey4 { list, address });
        PREFIXES4.get(&key).copied()
    }

    #[inline(always)]
    fn is_own(&self, address: [u8; 4]) -> bool {
        // SAFETY: only whether there is an entry.
        unsafe { LOCAL4.get(address) }.is_some()
    }

    #[inline(always)]
    fn is_forwarded(&self, pair: &Pair<[u8; 4]>) -> bool {
        const AF_INET: u8 = 2;
        if !ROUTES {
            return false;
        }
        let mut route = self.route(AF_INET);
        route.0.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(pair.source);
        route.0.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(pair.destination);
        self.is_forwarded(&mut route)
    }
}

impl<const ROUTES: bool> Lookup<[u8; 16]> for Maps<ROUTES> {
    #[inline(always)]
    fn host(&self, list: ListWord, address: [u8; 16]) -> Option<Rule> {
        let key = HostKey6 { list, address };
        let rule = if list.is_large() {
            apart(LARGE6.get(list.large_place())?.get_ptr(key))
        } else {
            HOSTS6.get_ptr(key).unwrap_or(ptr::null())
        };
        if rule.is_null() {
            return None;
        }
        // SAFETY: as for IPv4.
        Some(unsafe { *rule })
    }

    #[inline(always)]
    fn prefix(&self, list: ListWord, address: [u8; 16]) -> Option<Rule> {
        let key = Key::new(LPM_LIST_BITS + 128, PrefixKey6 { list, address, reserved: 0 });
        PREFIXES6.get(&key).copied()
    }

    #[inline(always)]
    fn is_own(&self, address: [u8; 16]) -> bool {
        // SAFETY: only whether there is an entry.
        unsafe { LOCAL6.get(address) }.is_some()
    }

    #[inline(always)]
    fn is_forwarded(&self, pair: &Pair<[u8; 16]>) -> bool {
        const AF_INET6: u8 = 10;
        if !ROUTES {
            return false;
        }
        let mut route = self.route(AF_INET6);
        route.0.__bindgen_anon_3.ipv6_src = words(pair.source);
        route.0.__bindgen_anon_4.ipv6_dst = words(pair.destination);
        self.is_forwarded(&mut route)
    }
}

/// An IPv6 address as the kernel's four words in network byte order.
#[inline(always)]
fn words(address: [u8; 16]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

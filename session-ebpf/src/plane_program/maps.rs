//! The plane's maps: the store's region, what the daemon says, what it is told, and scratch space.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::generated::bpf_probe_read_kernel,
    macros::btf_map,
};
use session_common::guard::LOCAL_MAX;
use session_common::plane::{ELEMENT_LEN, Orders, Report};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Words of an element of the region.
pub(super) const ELEMENT_WORDS: usize = ELEMENT_LEN / 8;

/// One element of the region.
pub(super) type Element = [u64; ELEMENT_WORDS];

/// The store. The loader says how many elements it has.
#[btf_map]
static REGION: Array<Element, 1, MMAPABLE> = Array::new();
#[btf_map]
static ORDERS: Array<Orders, 1, MMAPABLE> = Array::new();
/// One element a CPU that there can be; the loader says how many.
#[btf_map]
static REPORTS: Array<Report, 1, MMAPABLE> = Array::new();
/// The guard's own tables of the host's addresses.
#[btf_map]
static LOCAL4: HashMap<[u8; 4], u32, { LOCAL_MAX as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static LOCAL6: HashMap<[u8; 16], u32, { LOCAL_MAX as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Bytes of [`Scratch::frame`]: room for headers and for the longest reply, and what a write at a
/// masked place may reach beyond it.
pub(super) const FRAME_LEN: usize = 2048;

/// Masks for the longest of what is copied in the frame, and for where.
pub(super) const COPIED_MASK: u64 = 2047;
/// See [`COPIED_MASK`].
pub(super) const COPIED_AT_MASK: u64 = 1023;

/// Bytes behind all that is used.
const REACH_LEN: usize = 1024;

/// Words of [`Scratch::key`]: a key and the flags behind it.
pub(super) const KEY_WORDS: usize = 40;

/// Copies of which a pause consists.
const PAUSE_ROUNDS: u32 = 2000;

/// Space for one packet a CPU.
#[repr(C)]
pub(super) struct Scratch {
    /// The request and then the reply, from its Ethernet header on, so that the UDP header stands
    /// at a fixed place.
    pub(super) frame: [u8; FRAME_LEN],
    /// What follows the verb; then the key alone, with zeros behind it.
    pub(super) key: [u64; KEY_WORDS],
    /// The flags of a meta command.
    pub(super) flags: [u8; 64],
    /// Digits of a number, from the last one backwards.
    pub(super) digits: [u8; 32],
    /// Where the digits begin.
    pub(super) first: u64,
    /// A number on its way past the verifier.
    number: u64,
    /// What masked places and lengths could reach. Nothing does.
    reach: [u8; REACH_LEN],
}

impl Scratch {
    /// This CPU's scratch space.
    #[inline(always)]
    pub(super) fn get() -> Option<*mut Self> {
        SCRATCH.get_ptr_mut(0)
    }
}

/// The same number, of which the verifier knows nothing any more, so that it walks what follows
/// once and not for every value.
#[inline(always)]
pub(super) fn forget(scratch: *mut Scratch, number: u64) -> u64 {
    // SAFETY: a valid map value that this program run has for itself.
    unsafe { ptr::write_volatile(&raw mut (*scratch).number, number) };
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const (*scratch).number) }
}

/// The same length, of which the verifier knows that it is at least 1 and at most one more than a
/// mask. To be taken right before a helper is called with it: what a comparison has said of a number,
/// verifiers before Linux 6.6 forget when the compiler puts the number aside.
#[inline(always)]
pub(super) fn length<const MASK: u64>(scratch: *mut Scratch, len: u64) -> u32 {
    ((forget(scratch, len).wrapping_sub(1) & MASK) + 1) as u32
}

/// Bits of [`session_common::plane::trial`], which a loader may set before the kernel sees the
/// program: what they do not ask for is not even looked at by the verifier.
#[unsafe(no_mangle)]
static TRIAL: u32 = 0;

#[inline(always)]
pub(super) fn is_tried(bit: u32) -> bool {
    // SAFETY: a word that nothing writes. Volatile, because the loader may have replaced it.
    unsafe { ptr::read_volatile(&raw const TRIAL) & bit != 0 }
}

/// Takes a fraction of a millisecond: many times as long as the program does.
#[inline(always)]
pub(super) fn pause(scratch: *mut Scratch) {
    let mut left = PAUSE_ROUNDS;
    while left > 0 {
        // SAFETY: half of the frame, onto itself.
        unsafe {
            let frame = (&raw mut (*scratch).frame).cast::<u8>();
            let half = frame.add(FRAME_LEN / 2);
            bpf_probe_read_kernel(half.cast(), FRAME_LEN as u32 / 2, half.cast());
        }
        left -= 1;
    }
}

/// What the daemon says.
#[inline(always)]
pub(super) fn orders() -> Option<*const Orders> {
    ORDERS.get_ptr(0)
}

/// This CPU's report.
#[inline(always)]
pub(super) fn report(cpu: u32) -> Option<*mut Report> {
    REPORTS.get_ptr_mut(cpu)
}

/// The element that an offset of the region lies in.
#[inline(always)]
pub(super) fn element(offset: u64) -> Option<*const Element> {
    REGION.get_ptr((offset / ELEMENT_LEN as u64) as u32)
}

#[inline(always)]
pub(super) fn is_own4(address: [u8; 4]) -> bool {
    // SAFETY: only whether there is an entry.
    unsafe { LOCAL4.get(address) }.is_some()
}

#[inline(always)]
pub(super) fn is_own6(address: [u8; 16]) -> bool {
    // SAFETY: only whether there is an entry.
    unsafe { LOCAL6.get(address) }.is_some()
}

const _: () = {
    // From the frame on, and from the key on.
    let reach = size_of::<Scratch>();
    assert!(COPIED_AT_MASK as usize + COPIED_MASK as usize + 1 <= reach);
    assert!(FRAME_LEN + 512 <= reach);
};

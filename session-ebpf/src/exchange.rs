//! A client by datagram in the kernel: `ask` sends the next request as long as few enough are
//! without an answer, `hear` takes the answers and looks at each of them to its last byte.
//!
//! Both run on one CPU, one at a time. A frame comes back with whatever the program under test
//! left in it, so every byte of it is written.

use core::ptr;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray},
    helpers::generated::{
        bpf_redirect, bpf_xdp_adjust_tail, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
    },
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use session_common::exchange::{
    ANSWERED_KEY_AT, ANSWERED_VALUE_AT, ASKED_KEY_AT, CLIENTS, DIGITS, DRAWS as DRAWS_COUNT,
    Exchange, HEADERS_LEN, ROOM, Tally, Template, VALUE_LEN, WRITE, WRITTEN_VALUE_AT,
};

/// Where the client's port and the request's number stand in a frame, and the type, the length and
/// the protocol of IPv4.
const ETHERTYPE: usize = 12;
const IP: usize = 14;
const PORT: usize = 34;
const NUMBER: usize = 42;

const UDP_PROTOCOL: u8 = 17;
/// Words of [`ROOM`].
const WORDS: usize = ROOM / 8;

#[btf_map]
static EXCHANGE: Array<Exchange, 1> = Array::new();
#[btf_map]
static TALLY: Array<Tally, 1> = Array::new();
/// Which key each request asks for: eight digits and [`WRITE`].
#[btf_map]
static DRAWS: Array<[u8; DIGITS], DRAWS_COUNT> = Array::new();
#[btf_map]
static TEXTS: PerCpuArray<Texts, 1> = PerCpuArray::new();

/// Space for one packet a CPU.
#[repr(C)]
struct Texts {
    /// What is to be sent, or should have been.
    wanted: Text,
    /// What was.
    found: Text,
    /// A number on its way past compiler and verifier.
    number: u64,
}

/// Bytes in whole words.
#[repr(C, align(8))]
struct Text([u8; ROOM]);

impl Text {
    /// Takes on a template's bytes.
    #[inline(always)]
    fn copy(&mut self, template: &Template) {
        let words = template.bytes.as_ptr().cast::<u64>();
        // SAFETY: one of the template's words, which stand at multiples of eight.
        self.fill(|idx| unsafe { ptr::read_volatile(words.add(idx)) });
    }

    #[inline(always)]
    fn clear(&mut self) {
        self.fill(|_| 0);
    }

    /// Writes every word by its index, which is below [`WORDS`].
    #[inline(always)]
    fn fill(&mut self, word: impl Fn(usize) -> u64) {
        let words = self.0.as_mut_ptr().cast::<u64>();
        let mut idx = 0;
        while idx < WORDS {
            // SAFETY: a word of the text. Volatile, or the compiler would call a function for it.
            unsafe { ptr::write_volatile(words.add(idx), word(idx)) };
            idx += 1;
        }
    }

    /// Writes digits at a place that is a constant of the program.
    #[inline(always)]
    fn write(&mut self, at: usize, digits: [u8; DIGITS]) {
        let mut idx = 0;
        while idx < DIGITS {
            self.0[at + idx] = digits[idx];
            idx += 1;
        }
    }

    /// Writes a value: the digits again and again, and once more where it ends.
    #[inline(always)]
    fn write_value(&mut self, at: usize, digits: [u8; DIGITS]) {
        let mut word = 0;
        while word < VALUE_LEN / DIGITS {
            self.write(at + word * DIGITS, digits);
            word += 1;
        }
        self.write(at + VALUE_LEN - DIGITS, digits);
    }

    /// Whether both are the same.
    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        let (one, other) = (self.0.as_ptr().cast::<u64>(), other.0.as_ptr().cast::<u64>());
        let (mut differ, mut idx) = (0, 0);
        while idx < WORDS {
            // SAFETY: words of two arrays of that many, aligned as their type is.
            differ |= unsafe { ptr::read(one.add(idx)) ^ ptr::read(other.add(idx)) };
            idx += 1;
        }
        differ == 0
    }
}

/// Digits of the key that a request asks for, and whether it writes.
#[inline(always)]
fn drawn(number: u64) -> Option<([u8; DIGITS], bool)> {
    let mut digits = *DRAWS.get(number as u32 & (DRAWS_COUNT as u32 - 1))?;
    let is_write = digits[0] & WRITE != 0;
    digits[0] &= !WRITE;
    Some((digits, is_write))
}

/// Sends the next request, or nothing.
#[xdp]
pub(super) fn ask(context: XdpContext) -> u32 {
    send(&context).unwrap_or(xdp_action::XDP_DROP)
}

#[inline(always)]
fn send(context: &XdpContext) -> Option<u32> {
    let (exchange, tally) = (EXCHANGE.get(0)?, TALLY.get_ptr_mut(0)?);
    // SAFETY: a valid map value; `sent` is this program's alone, and `heard` is `hear`'s.
    let (number, heard) = unsafe {
        (
            ptr::read_volatile(&raw const (*tally).sent),
            ptr::read_volatile(&raw const (*tally).heard),
        )
    };
    let open = number.wrapping_sub(heard).wrapping_sub(exchange.forgiven) as i64;
    if open >= exchange.window as i64 {
        return None;
    }
    let (digits, is_write) = drawn(number)?;
    let text = &mut texts()?.wanted;
    let template = &exchange.asks[usize::from(is_write)];
    text.copy(template);
    text.write(ASKED_KEY_AT, digits);
    if is_write {
        text.write_value(WRITTEN_VALUE_AT, digits);
    }
    let port = u16::from_be_bytes([text.0[PORT], text.0[PORT + 1]]);
    let port = port.wrapping_add(number as u16 & (CLIENTS - 1)).to_be_bytes();
    (text.0[PORT], text.0[PORT + 1]) = (port[0], port[1]);
    let id = (number as u16).to_be_bytes();
    (text.0[NUMBER], text.0[NUMBER + 1]) = (id[0], id[1]);
    // SAFETY: a valid map value. Volatile, so that the bounds below are those of one number.
    let len = unsafe { ptr::read_volatile(&raw const template.len) } & (ROOM as u64 - 1);
    if len < HEADERS_LEN as u64 {
        return None;
    }
    let grown = len as i64 - (context.data_end() - context.data()) as i64;
    // SAFETY: the program's own context; nothing of the packet is held.
    if grown != 0 && unsafe { bpf_xdp_adjust_tail(context.ctx, grown as i32) } != 0 {
        return None;
    }
    // SAFETY: fewer bytes than a text has.
    let status =
        unsafe { bpf_xdp_store_bytes(context.ctx, 0, text.0.as_mut_ptr().cast(), len as u32) };
    if status != 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { ptr::write_volatile(&raw mut (*tally).sent, number + 1) };
    // SAFETY: a helper that takes two numbers.
    Some(unsafe { bpf_redirect(exchange.ifindex, 0) } as u32)
}

/// Takes the answers; all else goes on.
#[xdp]
pub(super) fn hear(context: XdpContext) -> u32 {
    take(&context).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn take(context: &XdpContext) -> Option<u32> {
    let (exchange, tally) = (EXCHANGE.get(0)?, TALLY.get_ptr_mut(0)?);
    // SAFETY: a valid map value, whose words but `sent` are this program's alone.
    let tally = unsafe { &mut *tally };
    let (id, text_len) = answer(context, exchange.port)?;
    // SAFETY: a valid map value. Volatile, because `ask` writes it.
    let last = unsafe { ptr::read_volatile(&raw const tally.sent) }.wrapping_sub(1);
    let back = u64::from((last as u16).wrapping_sub(id));
    // An answer may be overtaken by many; a number further back has been used again.
    if back > u64::from(u16::MAX / 2) || back > last {
        tally.strange += 1;
        return Some(xdp_action::XDP_DROP);
    }
    let (digits, is_write) = drawn(last - back)?;
    let Texts { wanted, found, number } = texts()?;
    let template = &exchange.answers[usize::from(is_write)];
    wanted.copy(template);
    if template.len > ANSWERED_VALUE_AT as u64 {
        wanted.write(ANSWERED_KEY_AT, digits);
        wanted.write_value(ANSWERED_VALUE_AT, digits);
    }
    found.clear();
    // SAFETY: a number of this CPU's scratch space.
    unsafe { ptr::write_volatile(number, text_len) };
    // SAFETY: as above.
    let len = unsafe { ptr::read_volatile(number) } & (ROOM as u64 - 1);
    // Not compared with 0, of which verifiers before Linux 6.8 learn nothing.
    if len < 2 {
        return None;
    }
    // SAFETY: fewer bytes than a text has.
    let status = unsafe {
        let into = found.0.as_mut_ptr().cast();
        bpf_xdp_load_bytes(context.ctx, HEADERS_LEN as u32, into, len as u32)
    };
    let is_right = status == 0 && len == template.len && found.is(wanted);
    tally.heard += 1;
    if !is_right {
        tally.wrong += 1;
    }
    Some(xdp_action::XDP_DROP)
}

/// The number of the request that a datagram answers, and the length of its text.
#[inline(always)]
fn answer(context: &XdpContext, port: u32) -> Option<(u16, u64)> {
    let start = context.data();
    if start + HEADERS_LEN > context.data_end() {
        return None;
    }
    // SAFETY: inside the packet by the check above.
    let head = unsafe { &*(start as *const [u8; HEADERS_LEN]) };
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let is_answer = word(ETHERTYPE) == 0x0800
        && head[IP] == 0x45
        && head[IP + 9] == UDP_PROTOCOL
        && u32::from(word(PORT)) == port
        && word(NUMBER + 2) == 0
        && word(NUMBER + 4) == 1;
    let text_len = u64::from(word(IP + 2)).wrapping_sub((HEADERS_LEN - IP) as u64);
    (is_answer && text_len < ROOM as u64).then(|| (word(NUMBER), text_len))
}

#[inline(always)]
fn texts() -> Option<&'static mut Texts> {
    // SAFETY: this CPU's slot; the programs do not interrupt each other.
    TEXTS.get_ptr_mut(0).map(|texts| unsafe { &mut *texts })
}

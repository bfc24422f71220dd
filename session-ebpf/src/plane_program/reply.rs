//! Writing the reply: the words of the daemon's encoders, then the packet around them.

use core::ptr;

use aya_ebpf::{
    helpers::generated::{
        bpf_csum_diff, bpf_probe_read_kernel, bpf_xdp_adjust_head, bpf_xdp_adjust_tail,
        bpf_xdp_store_bytes,
    },
    programs::XdpContext,
};
use session_common::plane::{REPLY_LEN_MAX, Verdict};

use super::maps::{COPIED_AT_MASK, COPIED_MASK, FRAME_LEN, KEY_WORDS, Scratch, forget, length};
use super::request::{
    FLAGS_MAX, HEADER, IPV4, IPV6, Request, TEXT, UDP, Verb, WITH_KEY, WITH_VALUE, flag,
};

/// An item as a reply tells of it.
pub(super) struct Item {
    /// Start of the element, and the value's place in it.
    pub(super) value: *const u8,
    pub(super) value_at: u64,
    pub(super) value_len: u64,
    pub(super) flags: u64,
    pub(super) version: u64,
    /// Seconds left; all bits set for what never ends.
    pub(super) ttl: u64,
}

/// The end of what was written: an offset of the frame. Bytes that a mask keeps inside are
/// counted all the same, so that what was too long shows.
struct Writer {
    scratch: *mut Scratch,
    at: u64,
}

impl Writer {
    #[inline(always)]
    fn byte(&mut self, byte: u8) {
        let at = self.at as usize & (FRAME_LEN - 1);
        // SAFETY: inside the frame by the mask.
        unsafe { ptr::write_volatile((&raw mut (*self.scratch).frame).cast::<u8>().add(at), byte) };
        self.at += 1;
    }

    #[inline(always)]
    fn bytes<const N: usize>(&mut self, bytes: &[u8; N]) {
        for byte in bytes {
            self.byte(*byte);
        }
    }

    /// So that the verifier walks what follows once.
    #[inline(always)]
    fn settle(&mut self) {
        self.at = forget(self.scratch, self.at);
    }

    /// Copies kernel memory.
    #[inline(always)]
    fn copy(&mut self, from: *const u8, len: u64) -> Result<(), Verdict> {
        self.settle();
        let len = forget(self.scratch, len);
        if len == 0 {
            return Ok(());
        }
        if self.at > 560 || len > REPLY_LEN_MAX as u64 {
            return Err(Verdict::Long);
        }
        let at = forget(self.scratch, self.at) & COPIED_AT_MASK;
        // SAFETY: at most 560 + 1400 bytes of the frame.
        let status = unsafe {
            let into = (&raw mut (*self.scratch).frame).cast::<u8>().add(at as usize);
            let len = length::<COPIED_MASK>(self.scratch, len);
            bpf_probe_read_kernel(into.cast(), len, from.cast())
        };
        self.at += len;
        if status == 0 { Ok(()) } else { Err(Verdict::Raced) }
    }

    #[inline(always)]
    fn key(&mut self, key_len: u64) -> Result<(), Verdict> {
        // SAFETY: the address of the scratch space's key.
        let key = unsafe { (&raw const (*self.scratch).key).cast::<u8>() };
        self.copy(key, key_len)
    }
}

/// Writes a number in decimal.
///
/// The loop hands its place over in memory: of what is in registers the verifier would follow each
/// way out of the loop for itself.
#[inline(always)]
fn decimal(scratch: *mut Scratch, at: u64, number: u64) -> u64 {
    let mut left = number;
    let mut idx = 31_usize;
    while idx > 11 {
        // SAFETY: inside the digits.
        unsafe {
            ptr::write_volatile(&raw mut (*scratch).digits[idx & 31], b'0' + (left % 10) as u8);
            ptr::write_volatile(&raw mut (*scratch).first, idx as u64);
        }
        left /= 10;
        if left == 0 {
            break;
        }
        idx -= 1;
    }
    // SAFETY: this run has the scratch space for itself.
    let first = unsafe { ptr::read_volatile(&raw const (*scratch).first) } & 31;
    let len = 32 - first;
    let at = at & (FRAME_LEN as u64 / 2 - 1);
    // SAFETY: at most 32 bytes, from the digits and into the first half of the frame. It does not
    // fail: both are maps.
    unsafe {
        let from = (&raw const (*scratch).digits).cast::<u8>().add(first as usize);
        let into = (&raw mut (*scratch).frame).cast::<u8>().add(at as usize);
        bpf_probe_read_kernel(into.cast(), len as u32, from.cast());
    }
    at + len
}

impl Writer {
    #[inline(always)]
    fn number(&mut self, value: u64) {
        // A function of the kernel's kind takes no pointer to a map, so it asks for its own.
        self.at = write_number(self.at, value);
        self.settle();
    }
}

#[inline(never)]
fn write_number(at: u64, value: u64) -> u64 {
    match Scratch::get() {
        Some(scratch) => decimal(scratch, at, value),
        None => at,
    }
}

/// Writes the reply behind the memcached header, which it makes that of a reply. Returns the bytes
/// from there on.
#[inline(always)]
pub(super) fn compose(
    scratch: *mut Scratch,
    request: &Request,
    item: &Item,
) -> Result<u64, Verdict> {
    let mut writer = Writer { scratch, at: TEXT as u64 };
    let with_value = if request.verb == Verb::Meta {
        meta_line(&mut writer, request, item)?
    } else {
        writer.bytes(b"VALUE ");
        writer.key(request.key_len)?;
        writer.settle();
        writer.byte(b' ');
        writer.number(item.flags);
        writer.byte(b' ');
        writer.number(item.value_len);
        if request.verb == Verb::Gets {
            writer.byte(b' ');
            writer.number(item.version);
        }
        true
    };
    writer.bytes(b"\r\n");
    if with_value {
        // SAFETY: an address that nothing is read at but by a helper that may fail.
        let value = item.value.wrapping_add(item.value_at as usize);
        writer.copy(value, item.value_len)?;
        writer.settle();
        writer.bytes(b"\r\n");
    }
    if request.verb != Verb::Meta {
        writer.bytes(b"END\r\n");
    }
    Ok(forget(scratch, writer.at) - HEADER as u64)
}

/// Writes the reply for a key without an item, where [`compose`] writes that of an item. Returns the
/// bytes from the memcached header on.
#[inline(always)]
pub(super) fn compose_miss(scratch: *mut Scratch, request: &Request) -> Result<u64, Verdict> {
    let mut writer = Writer { scratch, at: TEXT as u64 };
    if request.verb == Verb::Meta {
        writer.bytes(b"EN");
        // Of what was asked for, the key is known.
        if request.flags & WITH_KEY != 0 {
            writer.bytes(b" k");
            writer.key(request.key_len)?;
        }
    } else {
        writer.bytes(b"END");
    }
    writer.settle();
    writer.bytes(b"\r\n");
    Ok(forget(scratch, writer.at) - HEADER as u64)
}

/// The first line of the reply to `mg`, without its end; whether the value follows.
#[inline(always)]
fn meta_line(writer: &mut Writer, request: &Request, item: &Item) -> Result<bool, Verdict> {
    let with_value = request.flags & WITH_VALUE != 0;
    if with_value {
        writer.bytes(b"VA ");
        writer.number(item.value_len);
    } else {
        writer.bytes(b"HD");
    }
    let mut at = 0;
    while at < FLAGS_MAX {
        if at * 2 >= request.flags_len {
            break;
        }
        writer.settle();
        let letter = flag(writer.scratch, at * 2 + 1);
        if letter != b'v' {
            writer.byte(b' ');
            writer.byte(letter);
            flag_value(writer, request, item, letter)?;
        }
        at += 1;
    }
    writer.settle();
    Ok(with_value)
}

/// What stands behind a letter.
#[inline(always)]
fn flag_value(
    writer: &mut Writer,
    request: &Request,
    item: &Item,
    letter: u8,
) -> Result<(), Verdict> {
    if letter == b'k' {
        return writer.key(request.key_len);
    }
    if letter == b't' && item.ttl == u64::MAX {
        writer.bytes(b"-1");
        return Ok(());
    }
    let value = match letter {
        b't' => item.ttl,
        b'f' => item.flags,
        b'c' => item.version,
        _ => item.value_len,
    };
    writer.number(forget(writer.scratch, value));
    Ok(())
}

/// Turns the packet round, and puts a reply of so many bytes into it.
#[inline(always)]
pub(super) fn send(
    context: &XdpContext,
    scratch: *mut Scratch,
    request: &Request,
    reply_len: u64,
) -> Result<(), Verdict> {
    let ip_len = if request.is_v6 { 40 } else { 20 };
    let udp_len = forget(scratch, reply_len + 8) & 2047;
    let packet_len = request.link_len + ip_len + udp_len;
    make_room(context, request.packet_len, packet_len)?;
    headers(scratch, request, udp_len);
    let ip = if request.is_v6 { IPV6 as u64 } else { IPV4 as u64 };
    let base = forget(scratch, ip - request.link_len) & 31;
    turn_link(scratch, base);
    // SAFETY: as many bytes as the longest reply's packet has, which the frame holds.
    let status = unsafe {
        let from = (&raw mut (*scratch).frame).cast::<u8>().add(base as usize);
        let len = length::<COPIED_MASK>(scratch, packet_len);
        bpf_xdp_store_bytes(context.ctx, 0, from.cast(), len)
    };
    // The packet has the room, so this does not happen; the packet is spoilt if it does.
    if status == 0 { Ok(()) } else { Err(Verdict::NoRoom) }
}

/// Gives the packet its length: at the tail, or at the head where the driver has no room there.
#[inline(always)]
fn make_room(context: &XdpContext, from: u64, to: u64) -> Result<(), Verdict> {
    let delta = to as i32 - from as i32;
    if delta == 0 {
        return Ok(());
    }
    // SAFETY: the program's own context; no pointer into the packet is used again.
    if unsafe { bpf_xdp_adjust_tail(context.ctx, delta) } == 0 {
        return Ok(());
    }
    // SAFETY: as above.
    if delta > 0 && unsafe { bpf_xdp_adjust_head(context.ctx, -delta) } == 0 {
        return Ok(());
    }
    Err(Verdict::NoRoom)
}

/// Swaps the stations.
#[inline(always)]
fn turn_link(scratch: *mut Scratch, base: u64) {
    // SAFETY: `base` is below 32, by the caller's mask.
    let frame = unsafe { (&raw mut (*scratch).frame).cast::<u8>().add(base as usize) };
    let mut idx = 0;
    while idx < 6 {
        // SAFETY: the first 12 bytes behind `base`.
        unsafe {
            let (to, from) = (frame.add(idx), frame.add(idx + 6));
            let byte = ptr::read_volatile(to);
            ptr::write_volatile(to, ptr::read_volatile(from));
            ptr::write_volatile(from, byte);
        }
        idx += 1;
    }
}

/// Makes IP and UDP headers those of the reply.
#[inline(always)]
fn headers(scratch: *mut Scratch, request: &Request, udp_len: u64) {
    // SAFETY: this run has the scratch space for itself.
    let frame = unsafe { &mut (*scratch).frame };
    swap(frame, UDP, UDP + 2, 2);
    put16(frame, UDP + 4, udp_len as u16);
    put16(frame, UDP + 6, 0);
    put16(frame, HEADER + 6, 0);
    if request.is_v6 {
        frame[IPV6] = 0x60;
        frame[IPV6 + 1] = 0;
        put16(frame, IPV6 + 2, 0);
        put16(frame, IPV6 + 4, udp_len as u16);
        frame[IPV6 + 7] = 64;
        swap(frame, IPV6 + 8, IPV6 + 24, 16);
        let sum = checksum6(scratch, udp_len);
        // SAFETY: as above.
        put16(unsafe { &mut (*scratch).frame }, UDP + 6, sum);
    } else {
        frame[IPV4 + 1] = 0;
        put16(frame, IPV4 + 2, udp_len as u16 + 20);
        put16(frame, IPV4 + 4, 0);
        put16(frame, IPV4 + 6, 0x4000);
        frame[IPV4 + 8] = 64;
        put16(frame, IPV4 + 10, 0);
        swap(frame, IPV4 + 12, IPV4 + 16, 4);
        let mut sum = 0;
        for at in 0..10 {
            sum += u64::from(u16::from_be_bytes([frame[IPV4 + at * 2], frame[IPV4 + at * 2 + 1]]));
        }
        put16(frame, IPV4 + 10, folded(sum));
    }
}

/// The checksum of a UDP datagram over IPv6: addresses, length, protocol, header and text.
#[inline(always)]
fn checksum6(scratch: *mut Scratch, udp_len: u64) -> u16 {
    /// Bytes that older kernels sum up at a time, and times that make up the longest reply.
    const PART: u64 = 512;
    const PARTS: usize = 3;
    /// A mask of whole words, up to more than a part; for why, see [`length`].
    const WORDS: u64 = 2 * PART - 4;
    const _: () = {
        assert!(32 + 8 + REPLY_LEN_MAX + 3 <= PARTS * PART as usize);
        assert!(
            IPV6 + 8 + (PARTS - 1) * PART as usize + WORDS as usize <= FRAME_LEN + KEY_WORDS * 8
        );
    };
    // Zeros behind the end, where the last word is not full.
    let mut writer = Writer { scratch, at: UDP as u64 + udp_len };
    writer.bytes(&[0, 0, 0, 0]);
    let mut left = forget(scratch, udp_len + 32 + 3) & 2044;
    let mut sum = 0_u32;
    let mut idx = 0;
    while idx < PARTS {
        let part = forget(scratch, if left > PART { PART } else { left }) & WORDS;
        if part == 0 {
            break;
        }
        // SAFETY: inside the frame, where its last part begins as well.
        let result = unsafe {
            let from = (&raw mut (*scratch).frame).cast::<u8>();
            let from = from.add(IPV6 + 8 + idx * PART as usize);
            bpf_csum_diff(ptr::null_mut(), 0, from.cast(), part as u32, sum)
        };
        sum = result as u32;
        left = left.wrapping_sub(part);
        idx += 1;
    }
    // The sum is of words as they stand in memory; so are these made to be.
    let sum = u64::from(sum) + u64::from((udp_len as u16).to_be()) + u64::from(17_u16.to_be());
    match folded(sum).to_be() {
        0 => 0xffff,
        sum => sum,
    }
}

/// The complement of the folded sum.
#[inline(always)]
fn folded(sum: u64) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[inline(always)]
fn swap(frame: &mut [u8; FRAME_LEN], one: usize, other: usize, len: usize) {
    for idx in 0..len {
        let byte = frame[one + idx];
        frame[one + idx] = frame[other + idx];
        frame[other + idx] = byte;
    }
}

#[inline(always)]
fn put16(frame: &mut [u8; FRAME_LEN], at: usize, number: u16) {
    let [high, low] = number.to_be_bytes();
    frame[at] = high;
    frame[at + 1] = low;
}

const _: () = assert!(KEY_WORDS * 8 >= 256 + 64);

//! Finding an item in the store, and making the reply of it. It takes no part in reclamation and
//! holds nothing, so what it reads may be reused under its hands: it believes nothing before it
//! has seen, after the copy, that all words which led to the item are what they were. The same
//! rule, and why it is right: `session-daemon/src/store/outside.rs` and docs/store.md. That there is
//! no item it says by the rule of lookups: the bucket's header is after the search what it was before.
//!
//! The words of index and items are drawn in `session-daemon/src/store/{words,item}.rs`.

use core::ptr;

use session_common::plane::{
    AMPLIFICATION_MAX, ELEMENT_LEN, Orders, REPLY_LEN_MAX, Verdict, orders, trial,
};
use session_common::region::{
    BODY, CAS, CAS_WORKER_BITS, DEPTH_MASK, DEPTH_SHIFT, FLAGS_LEN, LINE_LEN, LINK_MASK,
    OFFSET_MASK, PENDING, SLOTS, STAMP_NS_SHIFT, TAG_SHIFT, TIMES, VERSION_LEN, state, times,
};

use super::maps::{Element, Scratch, element, forget, is_tried, pause};
use super::reply::{Item, compose};
use super::request::Request;

/// Splits that a lookup follows.
const HOPS_MAX: u32 = 4;

/// Bytes of an item up to the end of its longest key and the flags behind it, with a word to
/// spare: the item is passed up if the element ends before that.
const HEAD_LEN: u64 = 32 + 256 + 32;

/// An item whose reply stands in the scratch space.
#[derive(Clone, Copy, Default)]
pub(super) struct Found {
    /// Offset of the item.
    pub(super) item: u64,
    /// Its cas word.
    pub(super) cas: u64,
    pub(super) class: u64,
    /// Bytes of the reply, memcached's header included.
    pub(super) reply_len: u64,
}

/// Words that led to an item, and what they were. An offset of 0 is the superblock's first word,
/// which does not change.
struct Path {
    bucket: u64,
    header: u64,
    /// Two overflow lines; few buckets have more.
    line: [u64; 2],
    link: [u64; 2],
    slot: u64,
    slot_word: u64,
}

impl Path {
    /// The same, which the verifier follows as one state however it came about.
    #[inline(always)]
    fn settled(self, scratch: *mut Scratch) -> Self {
        let forget = |number| forget(scratch, number);
        Self {
            bucket: forget(self.bucket),
            header: forget(self.header),
            line: [forget(self.line[0]), forget(self.line[1])],
            link: [forget(self.link[0]), forget(self.link[1])],
            slot: forget(self.slot),
            slot_word: forget(self.slot_word),
        }
    }
}

/// The word at an offset of the region, whatever was read there.
#[inline(always)]
fn word(offset: u64) -> Result<u64, Verdict> {
    let element: *const Element = element(offset).ok_or(Verdict::Raced)?;
    let at = (offset as usize & (ELEMENT_LEN - 1)) / 8;
    // SAFETY: inside the element by the mask. Volatile, because the daemon writes it.
    Ok(unsafe { ptr::read_volatile(element.cast::<u64>().add(at)) })
}

/// One attempt to find the key's item and to make the reply. [`Verdict::Miss`] says that the key had
/// no item when its bucket was looked at first.
#[inline(always)]
pub(super) fn find(
    scratch: *mut Scratch,
    orders: &Orders,
    request: &Request,
    now_s: u64,
) -> Result<Found, Verdict> {
    let path = look_up(scratch, orders, request.hash)?;
    let item = (path.slot_word & OFFSET_MASK) * 8;
    let (state, times, cas) = (word(item)?, word(item + TIMES)?, word(item + CAS)?);
    if state & (state::LINKED | state::PIECE) != state::LINKED
        || times & times::ENDED == times::ENDED
    {
        return Err(Verdict::Raced);
    }
    let key_len = state >> state::KEY_LEN_SHIFT & 0xff;
    let value_len = state >> state::VALUE_LEN_SHIFT & state::VALUE_LEN_MASK;
    if state & (state::EXTENT | state::STALE | state::KEY_IS_BINARY) != 0 || times & times::WON != 0
    {
        return Err(Verdict::Item);
    }
    let version_len = if state & state::HAS_VERSION != 0 { VERSION_LEN } else { 0 };
    let key_at = forget(scratch, BODY + version_len);
    let flags_len = forget(scratch, if state & state::HAS_FLAGS != 0 { FLAGS_LEN } else { 0 });
    let in_element = item & (ELEMENT_LEN as u64 - 1);
    if in_element > ELEMENT_LEN as u64 - HEAD_LEN {
        return Err(Verdict::Item);
    }
    // Another key with the same tag, or no key of the item any more.
    if key_len != request.key_len || !has_key(scratch, item, key_at, key_len)? {
        return Err(Verdict::Item);
    }
    // Each of these is forgotten before the next is looked at: the verifier would follow all their
    // combinations.
    let ttl = forget(scratch, ttl(times & times::EXPTIME_MASK, now_s)?);
    let least = forget(scratch, stamp_least(orders, now_s)?);
    if cas >> CAS_WORKER_BITS < least {
        return Err(Verdict::Item);
    }
    let flags_at = forget(scratch, key_at + key_len);
    let flags = if flags_len != 0 { half(item + flags_at)? } else { 0 };
    let flags = forget(scratch, flags.into());
    let version = if version_len != 0 { word(item + BODY)? } else { cas };
    let version = forget(scratch, version);
    let version = forget(scratch, if orders.settings & orders::CAS != 0 { version } else { 0 });
    let value_len = forget(scratch, value_len);
    let value = element(item).ok_or(Verdict::Raced)?.cast::<u8>();
    // The mask is for the verifier; a multiple of what an element and the head of an item have.
    let value_at =
        forget(scratch, in_element + flags_at + flags_len) & (2 * ELEMENT_LEN as u64 - 1);
    // The copy below is not bounded by an element: the region is one run of bytes, which it has to
    // end in, whatever the daemon says of its length.
    let value_end = forget(scratch, item + flags_at + flags_len + value_len);
    element(value_end - 1).ok_or(Verdict::Raced)?;
    if is_tried(trial::SLOW) {
        pause(scratch);
    }
    let item_seen = Item { value, value_at, value_len, flags, version, ttl };
    let reply_len = compose(scratch, request, &item_seen)?;
    let limit = AMPLIFICATION_MAX as u64 * (request.udp_len - 8);
    if reply_len > REPLY_LEN_MAX as u64 || reply_len > limit {
        return Err(Verdict::Long);
    }
    if !is_tried(trial::BELIEVING) {
        verify(&path, item, state, cas)?;
    }
    Ok(Found { item, cas, class: state >> state::CLASS_SHIFT, reply_len })
}

/// Seconds left to an item, all bits set for one that never ends. One that has expired is the
/// daemon's, which takes it out of the index.
#[inline(always)]
fn ttl(exptime: u64, now_s: u64) -> Result<u64, Verdict> {
    match exptime {
        0 => Ok(u64::MAX),
        times::EXPTIME_PAST => Err(Verdict::Item),
        _ if exptime <= now_s => Err(Verdict::Item),
        _ => Ok(exptime - now_s),
    }
}

/// Whether nothing that led to the item has changed since it was looked up, nor the item. The
/// loads of a reader on x86-64 are not reordered, and the compiler does not reorder volatile ones
/// and calls of helpers.
#[inline(always)]
fn verify(path: &Path, item: u64, state: u64, cas: u64) -> Result<(), Verdict> {
    let mut changed = word(path.bucket)? ^ path.header;
    changed |= word(path.line[0])? ^ path.link[0];
    changed |= word(path.line[1])? ^ path.link[1];
    changed |= word(path.slot)? ^ path.slot_word;
    changed |= (word(item)? ^ state) & !state::ACCESSES;
    changed |= word(item + CAS)? ^ cas;
    if changed == 0 { Ok(()) } else { Err(Verdict::Raced) }
}

/// The slot of the hash. Not a loop over the lines: the compiler may put a loop's end before its
/// beginning, which verifiers before Linux 6.3 refuse.
#[inline(always)]
fn look_up(scratch: *mut Scratch, orders: &Orders, hash: u64) -> Result<Path, Verdict> {
    let (bucket, header) = bucket(scratch, orders, hash)?;
    let magic = word(0)?;
    let mut path = Path { bucket, header, line: [0; 2], link: [magic; 2], slot: 0, slot_word: 0 };
    path.slot = slot_in(scratch, bucket, hash)?;
    if path.slot == 0 {
        path.line[0] = behind(&path, header)?;
        path.link[0] = word(path.line[0])?;
        path.slot = slot_in(scratch, path.line[0], hash)?;
    }
    if path.slot == 0 {
        path.line[1] = behind(&path, path.link[0])?;
        path.link[1] = word(path.line[1])?;
        path.slot = slot_in(scratch, path.line[1], hash)?;
    }
    if path.slot == 0 {
        behind(&path, path.link[1])?;
        return Err(Verdict::Item);
    }
    path.slot_word = word(path.slot)?;
    // What is pending counts only if the header names it, and the daemon knows.
    let is_of_hash = path.slot_word >> TAG_SHIFT == hash >> TAG_SHIFT && path.slot_word != 0;
    if path.slot_word & PENDING != 0 || !is_of_hash {
        return Err(Verdict::Raced);
    }
    Ok(path.settled(scratch))
}

/// The line that a header or a line's link leads to. If there is none, all slots have been seen.
#[inline(always)]
fn behind(path: &Path, link: u64) -> Result<u64, Verdict> {
    match (link & LINK_MASK) * LINE_LEN {
        0 => Err(absence(path.bucket, path.header)),
        line => Ok(line),
    }
}

/// What it says that no slot of a bucket has a hash's tag. Nothing comes into a bucket, moves within
/// it or leaves it for another one, and no line is unlinked, without a new header: if that is what it
/// was, there was no item when it was loaded first.
#[inline(always)]
fn absence(bucket: u64, header: u64) -> Verdict {
    match word(bucket) {
        Ok(after) if after == header || is_tried(trial::BELIEVING) => Verdict::Miss,
        _ => Verdict::Raced,
    }
}

/// Offset of the first slot of a line that has the tag of a hash; 0 for none.
#[inline(always)]
fn slot_in(scratch: *mut Scratch, line: u64, hash: u64) -> Result<u64, Verdict> {
    if is_tried(trial::SLOW_SEARCH) {
        pause(scratch);
    }
    let element = element(line).ok_or(Verdict::Raced)?;
    let at = (line as usize & (ELEMENT_LEN - 64)) / 8;
    // SAFETY: a whole line inside the element, by the mask.
    let words = unsafe { element.cast::<u64>().add(at) };
    let mut found = 0;
    let mut idx = SLOTS as usize;
    while idx > 0 {
        // SAFETY: as above. Volatile, because the daemon writes it.
        let slot = unsafe { ptr::read_volatile(words.add(idx)) };
        if slot >> TAG_SHIFT == hash >> TAG_SHIFT && slot != 0 {
            found = line + idx as u64 * 8;
        }
        idx -= 1;
    }
    Ok(forget(scratch, found))
}

/// Offset and header of the bucket of a hash.
#[inline(always)]
fn bucket(scratch: *mut Scratch, orders: &Orders, hash: u64) -> Result<(u64, u64), Verdict> {
    let buckets = word(orders.buckets)?;
    if buckets == 0 {
        return Err(Verdict::Raced);
    }
    let level = 63 - u64::from(buckets.leading_zeros());
    let high = hash & ((2_u64.wrapping_shl(level as u32)).wrapping_sub(1));
    let mut bucket =
        if high < buckets { high } else { hash & ((1_u64.wrapping_shl(level as u32)) - 1) };
    let shift = orders.page_shift.wrapping_sub(LINE_LEN.trailing_zeros());
    let mut hops = 0;
    while hops < HOPS_MAX {
        bucket = forget(scratch, bucket);
        let entry = half(orders.directory + bucket.wrapping_shr(shift) * 4)?;
        let page = u64::from(entry).wrapping_sub(1);
        if page >= u64::from(orders.pages) {
            return Err(Verdict::Raced);
        }
        let in_page = bucket & (1_u64.wrapping_shl(shift) - 1);
        let offset = orders.first_page + page.wrapping_shl(orders.page_shift) + in_page * LINE_LEN;
        let offset = forget(scratch, offset);
        let header = forget(scratch, word(offset)?);
        let depth = header >> DEPTH_SHIFT & DEPTH_MASK;
        let strange = (hash ^ bucket) & (1_u64.wrapping_shl(depth as u32) - 1);
        if strange == 0 {
            return Ok((offset, header));
        }
        bucket |= strange & strange.wrapping_neg();
        hops += 1;
    }
    Err(Verdict::Raced)
}

/// The half word at any offset, as the bytes stand there.
#[inline(always)]
fn half(offset: u64) -> Result<u32, Verdict> {
    let low = word(offset)?;
    let shift = offset % 8 * 8;
    if shift <= 32 {
        return Ok((low >> shift) as u32);
    }
    let high = word(offset + 8)?;
    Ok((low >> shift | high << (64 - shift)) as u32)
}

/// Whether an item has the key in the scratch space.
#[inline(always)]
fn has_key(scratch: *mut Scratch, item: u64, key_at: u64, key_len: u64) -> Result<bool, Verdict> {
    Ok(forget(scratch, differs(item, key_at, key_len)) == 0)
}

/// Not 0 if an item does not have the key in the scratch space. A function of its own, of which
/// the verifier keeps nothing but the number when it has returned.
#[inline(never)]
fn differs(item: u64, key_at: u64, key_len: u64) -> u64 {
    let (Some(scratch), Some(element)) = (Scratch::get(), element(item)) else { return 1 };
    let at = item & (ELEMENT_LEN as u64 - 8);
    if at > ELEMENT_LEN as u64 - HEAD_LEN {
        return 1;
    }
    // SAFETY: `at + HEAD_LEN` lies inside the element, and `key_at` is below 64.
    let words = unsafe { element.cast::<u8>().add(at as usize).add((key_at & 63) as usize) };
    let words = words.cast::<u64>();
    let mut differ = 0;
    let mut idx = 0;
    while idx < 32 {
        let end = idx as u64 * 8 + 8;
        if end > key_len {
            break;
        }
        // SAFETY: the longest key ends inside the element. Volatile, because the daemon writes.
        let word = unsafe { ptr::read_volatile(words.add(idx)) };
        // SAFETY: inside the key's words.
        differ |= word ^ unsafe { ptr::read_volatile(&raw const (*scratch).key[idx]) };
        idx += 1;
    }
    // What of the last word is the key's; its other bytes in the scratch space are zeros.
    let last = (forget(scratch, key_len) / 8) as usize & 31;
    // SAFETY: as above.
    let word = unsafe { ptr::read_volatile(words.add(last)) };
    let word = word & ((1 << (key_len % 8 * 8)) - 1);
    // SAFETY: as above.
    differ | word ^ unsafe { ptr::read_volatile(&raw const (*scratch).key[last]) }
}

/// Items with a lower stamp are flushed.
#[inline(always)]
fn stamp_least(orders: &Orders, now_s: u64) -> Result<u64, Verdict> {
    let flush_at_s = word(orders.flush_at_s)?;
    let flushed = word(orders.flushed_stamp)? + 1;
    if flush_at_s != 0 && now_s >= flush_at_s {
        let stamp = flush_at_s * 1_000_000_000 >> STAMP_NS_SHIFT;
        return Ok(if stamp > flushed { stamp } else { flushed });
    }
    Ok(flushed)
}

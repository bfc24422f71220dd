//! The words of the index: headers of buckets, slots. It owns their bits, and decides nothing.
//!
//! ```text
//! bucket  | header | slot | slot | slot | slot | slot | slot | slot |     64 bytes
//! line    | next   | slot | slot | slot | slot | slot | slot | slot |     64 bytes
//!
//! header   63      46 45  42 41   36 35              0
//!         | version  |  NEW | depth  | overflow line   |    line: offset / 64, 0 for none
//! slot     63   48   47   46  40 39                  0
//!         | tag    | PEND |   0  | offset of the item / 8  |    0: empty
//! ```
//! Bucket `i` of depth `d` holds the keys whose hash has `i` in its low `d` bits. A slot with PEND
//! counts only if NEW names its place: 1 to 7 in the bucket, 8 to 14 in its first overflow line.
//! NEW is 15 while slots are copied. All other changes of a header but of NEW to 0 give it a new
//! version.
#![forbid(unsafe_code)]

use session_common::region;

/// Slots of a bucket and of an overflow line; few where a model checker has to try all orders.
pub(super) const SLOTS: u64 = if cfg!(session_model) { 2 } else { 7 };
/// Bytes of a bucket and of an overflow line.
pub(super) const LINE_LEN: u64 = 64;

pub(super) const LINK_MASK: u64 = (1 << 36) - 1;
pub(super) const DEPTH_SHIFT: u32 = 36;
pub(super) const DEPTH_MASK: u64 = 0x3f;
pub(super) const NEW_SHIFT: u32 = 42;
pub(super) const NEW_MASK: u64 = 0xf << NEW_SHIFT;
/// In place of NEW: slots are being copied. Who takes an item out of the index meanwhile makes that
/// come to nothing, because the copy might have the item.
pub(super) const COPYING: u64 = NEW_MASK;
pub(super) const VERSION_SHIFT: u32 = 46;
pub(super) const TAG_SHIFT: u32 = 48;
pub(super) const PENDING: u64 = 1 << 47;
pub(super) const OFFSET_MASK: u64 = (1 << 40) - 1;

// The kernel plane reads the same words.
const _: () = {
    assert!(LINE_LEN == region::LINE_LEN && (cfg!(session_model) || SLOTS == region::SLOTS));
    assert!(LINK_MASK == region::LINK_MASK && OFFSET_MASK == region::OFFSET_MASK);
    assert!(DEPTH_SHIFT == region::DEPTH_SHIFT && DEPTH_MASK == region::DEPTH_MASK);
    assert!(TAG_SHIFT == region::TAG_SHIFT && PENDING == region::PENDING);
};

pub(super) fn depth(header: u64) -> u64 {
    header >> DEPTH_SHIFT & DEPTH_MASK
}

/// The header of an empty bucket.
pub(super) fn header_of(depth: u64) -> u64 {
    depth << DEPTH_SHIFT
}

pub(super) fn link(header: u64) -> u64 {
    (header & LINK_MASK) * LINE_LEN
}

/// The place that was filled last, if that may still show; 0 for none.
pub(super) fn new_place(header: u64) -> u64 {
    if is_copying(header) { 0 } else { (header & NEW_MASK) >> NEW_SHIFT }
}

pub(super) fn is_copying(header: u64) -> bool {
    header & NEW_MASK == COPYING
}

/// The header without what is being done.
pub(super) fn settled(header: u64) -> u64 {
    header & !NEW_MASK
}

/// The header after a change, with nothing being done.
pub(super) fn changed(header: u64) -> u64 {
    settled(header).wrapping_add(1 << VERSION_SHIFT)
}

/// Whether nothing was inserted, moved, linked or unlinked between two loads of a header.
pub(super) fn is_unchanged(before: u64, after: u64) -> bool {
    settled(before) == settled(after)
}

/// The bucket to look at instead of `bucket`, one split level on.
pub(super) fn redirect(header: u64, bucket: u64, hash: u64) -> Option<u64> {
    let strange = (hash ^ bucket) & ((1 << depth(header)) - 1);
    (strange != 0).then(|| bucket | strange & strange.wrapping_neg())
}

pub(super) fn slot_word(hash: u64, item: u64) -> u64 {
    (hash >> TAG_SHIFT << TAG_SHIFT) | (item / 8)
}

pub(super) fn slot_item(slot: u64) -> u64 {
    (slot & OFFSET_MASK) * 8
}

/// The slot of another item of the same key.
pub(super) fn slot_of_other(slot: u64, item: u64) -> u64 {
    (slot >> TAG_SHIFT << TAG_SHIFT) | (item / 8)
}

pub(super) fn is_pending(slot: u64) -> bool {
    slot & PENDING != 0
}

pub(super) fn tag(slot: u64) -> u64 {
    slot >> TAG_SHIFT
}

/// Whether a slot may hold an item of this hash.
pub(super) fn has_tag(slot: u64, hash: u64) -> bool {
    slot != 0 && tag(slot) == hash >> TAG_SHIFT
}

/// Offset of a place that a header can name.
pub(super) fn place_offset(bucket: u64, header: u64, place: u64) -> u64 {
    if place <= SLOTS { bucket + place * 8 } else { link(header) + (place - SLOTS) * 8 }
}

/// The place of a slot, by a header; 0 if the header cannot name it.
pub(super) fn place_of(bucket: u64, header: u64, slot: u64) -> u64 {
    let line = slot / LINE_LEN * LINE_LEN;
    let idx = slot % LINE_LEN / 8;
    match line {
        _ if line == bucket => idx,
        _ if line == link(header) => idx + SLOTS,
        _ => 0,
    }
}

pub(super) fn slots_of(line: u64) -> impl Iterator<Item = u64> {
    // Not `1..=SLOTS`, which takes twice as many instructions, and lookups are made of this.
    (1..SLOTS + 1).map(move |idx| line + idx * 8)
}

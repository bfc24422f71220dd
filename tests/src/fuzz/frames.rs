//! Requests of the binary protocol, and headers that lie.
#![forbid(unsafe_code)]

use super::generate::{Random, key, value};
use crate::frame;

/// Opcodes with: key, extras' length, value.
const OPCODES: &[(u8, bool, usize, bool)] = &[
    (0x00, true, 0, false),
    (0x01, true, 8, true),
    (0x02, true, 8, true),
    (0x03, true, 8, true),
    (0x04, true, 0, false),
    (0x05, true, 20, false),
    (0x06, true, 20, false),
    (0x09, true, 0, false),
    (0x0a, false, 0, false),
    (0x0c, true, 0, false),
    (0x0d, true, 0, false),
    (0x0e, true, 0, true),
    (0x0f, true, 0, true),
    (0x11, true, 8, true),
    (0x12, true, 8, true),
    (0x13, true, 8, true),
    (0x14, true, 0, false),
    (0x15, true, 20, false),
    (0x16, true, 20, false),
    (0x19, true, 0, true),
    (0x1a, true, 0, true),
    (0x1c, true, 4, false),
    (0x1d, true, 4, false),
    (0x1e, true, 4, false),
    (0x23, true, 4, false),
    (0x24, true, 4, false),
    (0x1b, false, 0, false),
    (0x40, false, 0, false),
    (0x20, false, 0, false),
];

/// A request whose header is true.
pub(super) fn request(random: &mut Random) -> Vec<u8> {
    let (opcode, with_key, extras_len, with_value) = random.of(OPCODES);
    let key = if with_key { key(random) } else { String::new() };
    let value = if with_value { value(random) } else { String::new() };
    let mut extras = vec![0; extras_len];
    match extras_len {
        20 => {
            extras[7] = random.below(9) as u8;
            extras[14] = 2;
            extras[15] = random.below(9) as u8;
            if random.one_in(3) {
                extras[16..].fill(0xff);
            }
        }
        8 => {
            extras[3] = random.below(9) as u8;
            extras[7] = random.of(&[0, 0, 100]);
        }
        4 => extras[3] = random.of(&[0, 100]),
        _ => {}
    }
    let opaque = random.below(1 << 32) as u32;
    let mut frame = frame::plain(opcode, &extras, key.as_bytes(), value.as_bytes(), opaque);
    if random.one_in(12) {
        // Another version than there can be: of what the frame asks about, or of nothing.
        frame[frame::CAS].fill(0x7f);
    }
    frame
}

/// A frame that a server may close over, or that asks nothing that is served; whether it is no
/// frame at all, or half of one.
pub(super) fn malformed(random: &mut Random) -> (Vec<u8>, bool) {
    let mut frame = request(random);
    while matches!(frame[1], 0x1c..=0x1e | 0x23 | 0x24) {
        // Of these memcached takes a value for the next frame.
        frame = request(random);
    }
    let place = |frame: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let kind = random.below(9);
    match kind {
        // Magic.
        0 => frame[0] = random.of(&[0x81, 0x00, 0x7f, b'g', 0xff]),
        // A key longer than the body, and longer than keys are.
        1 => place(&mut frame, 2, &random.of(&[[0xff, 0xff], [0, 251], [1, 0], [0, 200]])),
        2 => frame[4] = random.of(&[1, 4, 7, 9, 21, 255]),
        // A body that never ends, and one that has an impossible length.
        3 => {
            let lens = [[0, 0, 0x20, 0], [0, 0x20, 0, 0], [0x7f, 0xff, 0xff, 0xff]];
            place(&mut frame, 8, &random.of(&lens));
        }
        // A body that ends too early: what follows is the next frame.
        4 => place(&mut frame, 8, &[0, 0, 0, 3]),
        // Opcodes that nobody serves, with whatever follows them.
        5 => frame[1] = random.of(&[0x1f, 0x25, 0x30, 0x3c, 0x3d, 0x7f, 0xff]),
        // Data type and vbucket mean nothing.
        6 => place(&mut frame, 5, &[1, 0, 1]),
        7 => {
            let topic = random.of(&[&b"nonesuch"[..], b"detail x", b"reset"]);
            frame = frame::plain(0x10, &[], topic, &[], 7);
        }
        _ => frame = frame::plain(random.of(&[0x07, 0x17]), &[], &[], &[], 7),
    }
    (frame, matches!(kind, 0 | 3))
}

//! The streams: which requests in which order, and their bytes. They never change with the machine.
#![forbid(unsafe_code)]

/// Items with values of [`VALUE_LEN`].
pub(crate) const KEYS: usize = 4096;
pub(crate) const VALUE_LEN: usize = 100;
pub(crate) const LARGE_VALUE_LEN: usize = 100 << 10;
pub(crate) const LARGE_KEYS: usize = 16;

/// A fixed sequence of reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) name: &'static str,
    /// Requests of one read.
    pub(crate) depth: usize,
    pub(crate) reads: usize,
    /// Bytes of the answer to one request. An error has another length.
    pub(crate) answer_len: usize,
    /// Spells the request for a key.
    pub(crate) spell: fn(&mut Vec<u8>, usize),
}

const fn stream(
    name: &'static str,
    (depth, reads): (usize, usize),
    answer_len: usize,
    spell: fn(&mut Vec<u8>, usize),
) -> Stream {
    Stream { name, depth, reads, answer_len, spell }
}

const SINGLE: (usize, usize) = (1, 512);
const PIPELINED: (usize, usize) = (32, 32);

/// All streams.
pub(crate) const STREAMS: &[Stream] = &[
    stream("text-get", SINGLE, 145, text_get),
    stream("text-get-pipeline-32", PIPELINED, 145, text_get),
    stream("text-multiget-100", (1, 32), 14_005, text_multiget),
    stream("text-set", SINGLE, 8, text_set),
    stream("text-set-pipeline-32", PIPELINED, 8, text_set),
    stream("text-get-100k", (1, 64), 102_448, text_get_large),
    stream("meta-get", SINGLE, 110, meta_get),
    stream("meta-get-pipeline-32", PIPELINED, 110, meta_get),
    stream("meta-set-pipeline-32", PIPELINED, 4, meta_set),
    stream("binary-get", SINGLE, 128, binary_get),
    stream("binary-get-pipeline-32", PIPELINED, 128, binary_get),
    stream("binary-set-pipeline-32", PIPELINED, 24, binary_set),
];

/// Keys in an order in which no two neighbours lie side by side.
pub(crate) fn scattered(number: usize) -> usize {
    number * 2_654_435_761 % KEYS
}

pub(crate) fn key(number: usize) -> String {
    format!("{number:08}----------------")
}

pub(crate) fn large_key(number: usize) -> String {
    format!("{number:08}-large----------")
}

fn text_get(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(format!("get {}\r\n", key(number)).as_bytes());
}

fn text_multiget(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(b"get");
    for at in 0..100 {
        out.extend_from_slice(format!(" {}", key(scattered(number + at))).as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn text_get_large(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(format!("get {}\r\n", large_key(number % LARGE_KEYS)).as_bytes());
}

fn text_set(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(format!("set {} 0 0 {VALUE_LEN}\r\n", key(number)).as_bytes());
    out.extend_from_slice(&[b'w'; VALUE_LEN]);
    out.extend_from_slice(b"\r\n");
}

fn meta_get(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(format!("mg {} v\r\n", key(number)).as_bytes());
}

fn meta_set(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(format!("ms {} {VALUE_LEN}\r\n", key(number)).as_bytes());
    out.extend_from_slice(&[b'w'; VALUE_LEN]);
    out.extend_from_slice(b"\r\n");
}

fn binary_get(out: &mut Vec<u8>, number: usize) {
    binary(out, 0x00, &[], &key(number), &[]);
}

fn binary_set(out: &mut Vec<u8>, number: usize) {
    binary(out, 0x01, &[0; 8], &key(number), &[b'w'; VALUE_LEN]);
}

fn binary(out: &mut Vec<u8>, opcode: u8, extras: &[u8], key: &str, value: &[u8]) {
    let body_len = extras.len() + key.len() + value.len();
    out.extend_from_slice(&[0x80, opcode, 0, key.len() as u8, extras.len() as u8, 0, 0, 0]);
    out.extend_from_slice(&(body_len as u32).to_be_bytes());
    out.extend_from_slice(&[0; 12]);
    out.extend_from_slice(extras);
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(value);
}

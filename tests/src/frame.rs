//! Frames of the binary protocol in byte scripts: `0c key=k` for a request, `0c 00 key=k` for a
//! reply. It owns the notation; tests/scripts/README.md describes it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};

/// Stands in a request for the version that a reply told last.
pub const CAS_MARK: [u8; 8] = *b"<<{cas}>";

/// What `opaque=` is when it is not given.
const OPAQUE: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];

/// Bytes of a header.
pub const HEADER_LEN: usize = 24;

/// Where the version stands in a header.
pub const CAS: std::ops::Range<usize> = 16..24;

/// The bytes of a request: opcode, then `name=` for what is not empty or lies.
///
/// # Errors
/// For what is not of the notation.
pub fn request(words: &str, text: impl Fn(&str) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    Ok(frame(0x80, words, text)?.0)
}

/// The bytes of a reply (opcode, status, `name=`), and whether it tells a version.
///
/// # Errors
/// For what is not of the notation.
pub fn reply(words: &str, text: impl Fn(&str) -> Result<Vec<u8>>) -> Result<(Vec<u8>, bool)> {
    frame(0x81, words, text)
}

fn frame(
    magic: u8,
    words: &str,
    text: impl Fn(&str) -> Result<Vec<u8>>,
) -> Result<(Vec<u8>, bool)> {
    let mut words = words.split_whitespace();
    let opcode = byte(words.next().context("an opcode")?)?;
    let status = if magic == 0x81 { byte(words.next().context("a status")?)? } else { 0 };
    let (mut extras, mut key, mut value) = (Vec::new(), Vec::new(), Vec::new());
    let (mut opaque, mut cas, mut versioned) = (OPAQUE, [0; 8], false);
    let (mut magic, mut extras_len, mut key_len, mut body_len) = (magic, None, None, None);
    for word in words {
        let (name, given) = word.split_once('=').with_context(|| format!("no `=`: {word}"))?;
        match name {
            "extras" => extras = hex(given)?,
            "key" => key = text(given)?,
            "value" => value = text(given)?,
            "opaque" => opaque = hex(given)?.try_into().ok().context("four bytes")?,
            "cas" if given == "*" => versioned = true,
            "cas" if given == "{cas}" => cas = CAS_MARK,
            "cas" => cas = given.parse::<u64>()?.to_be_bytes(),
            "magic" => magic = byte(given)?,
            "extras_len" => extras_len = Some(given.parse()?),
            "key_len" => key_len = Some(given.parse()?),
            "body_len" => body_len = Some(given.parse()?),
            _ => bail!("no field {name}"),
        }
    }
    let key_len = key_len.unwrap_or(u16::try_from(key.len())?);
    let extras_len = extras_len.unwrap_or(u8::try_from(extras.len())?);
    let body = [extras, key, value].concat();
    let body_len: u32 = body_len.unwrap_or(u32::try_from(body.len())?);
    let mut bytes = vec![magic, opcode];
    bytes.extend(key_len.to_be_bytes());
    bytes.extend([extras_len, 0, 0, status]);
    bytes.extend(body_len.to_be_bytes());
    bytes.extend(opaque);
    bytes.extend(cas);
    bytes.extend(body);
    Ok((bytes, versioned))
}

/// A request whose lengths are true.
///
/// # Panics
/// When a field is longer than its length can say.
#[must_use]
pub fn plain(opcode: u8, extras: &[u8], key: &[u8], value: &[u8], opaque: u32) -> Vec<u8> {
    let key_len = u16::try_from(key.len()).expect("a short key");
    let extras_len = u8::try_from(extras.len()).expect("short extras");
    let body = [extras, key, value].concat();
    let mut bytes = vec![0x80, opcode];
    bytes.extend(key_len.to_be_bytes());
    bytes.extend([extras_len, 0, 0, 0]);
    bytes.extend(u32::try_from(body.len()).expect("a short value").to_be_bytes());
    bytes.extend(opaque.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn byte(word: &str) -> Result<u8> {
    u8::from_str_radix(word, 16).with_context(|| format!("not a byte: {word}"))
}

fn hex(word: &str) -> Result<Vec<u8>> {
    (0..word.len())
        .step_by(2)
        .map(|at| byte(word.get(at..at + 2).context("an even number of digits")?))
        .collect()
}

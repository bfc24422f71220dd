//! The overlay as text: a head with a checksum, and the changes as JSON.
//!
//! It owns the format. Files are the other module's affair.
#![forbid(unsafe_code)]

use std::io::{BufWriter, Seek, Write};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};

use crate::allowlist::Entry;
use crate::clock::Now;
use crate::control::overlay::{Change, Changes, Overlay, Pending};

/// First word of the file, with the version of its format.
const HEAD: &str = "session-overlay-1";

/// One change as the file has it. Deadlines are on the boot clock, which ends with the boot: the
/// wall clock time stands beside it for the first start after a boot.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    prefix: IpNet,
    entry: Option<Entry>,
    deadline_realtime_ns: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    boot_id: String,
    records: Vec<Record>,
    #[serde(default)]
    pending: Option<PendingBody>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PendingBody {
    command: String,
    deadline_ns: u64,
    deadline_realtime_ns: u64,
    before: Vec<Record>,
    after: Vec<Record>,
}

/// [`Body`], [`PendingBody`] and [`Record`] of an overlay that stays where it is.
#[derive(Serialize)]
struct BodyOf<'a> {
    boot_id: &'a str,
    records: RecordsOf<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<PendingOf<'a>>,
}

#[derive(Serialize)]
struct PendingOf<'a> {
    command: &'a str,
    deadline_ns: u64,
    deadline_realtime_ns: u64,
    before: RecordsOf<'a>,
    after: RecordsOf<'a>,
}

struct RecordsOf<'a>(&'a Changes, Now);

#[derive(Serialize)]
struct RecordOf<'a> {
    prefix: &'a IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<&'a Entry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_realtime_ns: Option<u64>,
}

impl<'a> RecordOf<'a> {
    fn new(prefix: &'a IpNet, change: &'a Change, now: Now) -> Self {
        let entry = match change {
            Change::Put(entry) => Some(entry),
            Change::Out => None,
        };
        let deadline = entry.and_then(|entry| entry.deadline_ns);
        Self { prefix, entry, deadline_realtime_ns: deadline.map(|at| realtime(at, now)) }
    }
}

impl Serialize for RecordsOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = |(prefix, change)| RecordOf::new(prefix, change, self.1);
        serializer.collect_seq(self.0.iter().map(record))
    }
}

/// Writes the overlay as the file has it: as it goes, since its text is larger than the list.
pub(super) fn write(
    overlay: &Overlay,
    boot_id: &str,
    now: Now,
    file: &mut (impl Write + Seek),
) -> Result<()> {
    let pending = overlay.pending.as_deref().map(|pending| PendingOf {
        command: &pending.command,
        deadline_ns: pending.deadline_ns,
        deadline_realtime_ns: realtime(pending.deadline_ns, now),
        before: RecordsOf(&pending.before, now),
        after: RecordsOf(&pending.after, now),
    });
    let body = BodyOf { boot_id, records: RecordsOf(&overlay.changes, now), pending };
    // The sum is known when everything is written: until then the place has another.
    writeln!(file, "{HEAD} {:016x}", 0)?;
    let sum = {
        let mut summing = Summing { file: BufWriter::new(&mut *file), sum: CHECKSUM_OF_NOTHING };
        serde_json::to_writer(&mut summing, &body).context("encoding the overlay")?;
        summing.file.write_all(b"\n")?;
        summing.file.flush()?;
        summing.sum
    };
    file.rewind()?;
    writeln!(file, "{HEAD} {sum:016x}")?;
    Ok(())
}

/// Adds up what is written through it.
struct Summing<W> {
    file: W,
    sum: u64,
}

impl<W: Write> Write for Summing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let len = self.file.write(bytes)?;
        self.sum = checksum(self.sum, &bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The wall clock's time at a deadline.
fn realtime(deadline_ns: u64, now: Now) -> u64 {
    now.realtime_ns + deadline_ns.saturating_sub(now.boottime_ns)
}

pub(super) fn decode(bytes: &[u8], boot_id: &str, now: Now) -> Result<Overlay> {
    let text = std::str::from_utf8(bytes).context("it is not UTF-8 text")?;
    let (head, rest) = text.split_once('\n').context("it has no second line")?;
    let sum = head
        .strip_prefix(HEAD)
        .and_then(|rest| rest.strip_prefix(' '))
        .with_context(|| format!("it does not begin with `{HEAD}`"))?;
    let json = rest.strip_suffix('\n').context("its end is missing")?;
    ensure!(
        sum == format!("{:016x}", checksum(CHECKSUM_OF_NOTHING, json.as_bytes())),
        "its checksum is wrong"
    );
    let body: Body = serde_json::from_str(json)?;
    let same_boot = body.boot_id == boot_id;
    let pending = body.pending.map(|pending| -> Result<Box<Pending>> {
        let moved = moved_deadline(pending.deadline_realtime_ns, now);
        Ok(Box::new(Pending {
            command: pending.command,
            deadline_ns: if same_boot { pending.deadline_ns } else { moved },
            before: changes(pending.before, same_boot, now)?,
            after: changes(pending.after, same_boot, now)?,
        }))
    });
    let changes = changes(body.records, same_boot, now)?;
    Ok(Overlay { changes, pending: pending.transpose()? })
}

/// A deadline of another boot on this boot's clock. One that passed while the machine was down is
/// over at once.
fn moved_deadline(realtime_ns: u64, now: Now) -> u64 {
    match realtime_ns.saturating_sub(now.realtime_ns) {
        0 => 1,
        left => now.boottime_ns + left,
    }
}

fn changes(records: Vec<Record>, same_boot: bool, now: Now) -> Result<Changes> {
    let mut changes = Changes::new();
    for record in records {
        let Some(mut entry) = record.entry else {
            changes.insert(record.prefix, Change::Out);
            continue;
        };
        ensure!(entry.prefix == record.prefix, "an entry of {} is {}", record.prefix, entry.prefix);
        if entry.deadline_ns.is_some() && !same_boot {
            let deadline = record.deadline_realtime_ns.context("a deadline has no wall clock")?;
            entry.deadline_ns = Some(moved_deadline(deadline, now));
        }
        changes.insert(entry.prefix, Change::Put(entry));
    }
    Ok(changes)
}

/// Where [`checksum`] begins.
const CHECKSUM_OF_NOTHING: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bits, of `bytes` behind others with the sum `sum`: against torn and flipped bytes,
/// not against people; the file is root's.
fn checksum(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

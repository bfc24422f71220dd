//! The administration commands: `slabs`, `lru`, `lru_crawler`, `cache_memlimit`, `watch`,
//! `refresh_certs`, `debugtime`, and `stats` with more than a topic. It owns their grammar and
//! the words that refuse them; it never does what they ask. Words may be cut short where
//! memcached compares by as many letters as the client sent.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

use super::number::{signed, unsigned_32};
use super::parse::{After, Line, LineError};
use super::words::Words;
use crate::command::admin::{Admin, AdminOutcome, ClassSet, DebugTime, DumpKind, watch};

const UNKNOWN: LineError = LineError::Unknown;
const BAD_FORMAT: LineError = LineError::BadFormat;

/// Ids from here on are refused, whether or not the store has as many classes.
const CLASSES_MAX: u32 = 255;

type Parsed<'a> = Result<Line<'a>, LineError>;

/// Reads the line of an administration verb; none for any other verb.
pub(super) fn line<'a>(verb: &[u8], words: Words<'a>) -> Option<Line<'a>> {
    let parse = match verb {
        b"slabs" => slabs,
        b"lru" => lru,
        b"lru_crawler" => lru_crawler,
        b"cache_memlimit" => cache_memlimit,
        b"watch" => watch,
        b"refresh_certs" => return Some(admin(Admin::RefreshCerts)),
        b"debugtime" => debug_time,
        _ => return None,
    };
    let noreply = words.noreply();
    Some(match parse(words) {
        Ok(Line::Admin { admin, .. }) => Line::Admin { admin, noreply },
        Ok(line) => line,
        Err(error) => rejected(error),
    })
}

fn admin(admin: Admin<'_>) -> Line<'_> {
    Line::Admin { admin, noreply: false }
}

fn rejected<'a>(error: LineError) -> Line<'a> {
    Line::Rejected { error, after: After::NextLine, noreply: false }
}

/// Whether a word is `full` or the beginning of it.
fn is(word: &[u8], full: &[u8]) -> bool {
    full.starts_with(word)
}

/// `slabs reassign <from> <to>`, `slabs automove ...`.
fn slabs(mut words: Words<'_>) -> Parsed<'_> {
    let count = words.count();
    let Some(what) = words.next() else { return Err(UNKNOWN) };
    if count == 3 && is(what, b"reassign") {
        let mut class = || words.next().and_then(signed).and_then(|class| class.try_into().ok());
        let (from, to) = (class(), class());
        let (Some(from), Some(to)) = (from, to) else { return Err(BAD_FORMAT) };
        return Ok(admin(Admin::SlabsReassign { from, to }));
    }
    if count >= 2 && is(what, b"automove") { automove(words) } else { Err(UNKNOWN) }
}

fn automove(mut words: Words<'_>) -> Parsed<'_> {
    let word = words.next().unwrap_or_default();
    let setting = match word {
        word if is(word, b"ratio") => Admin::AutomoveRatio(decimal(&mut words)?),
        word if is(word, b"freeratio") => Admin::AutomoveFreeRatio(decimal(&mut words)?),
        word if is(word, b"window") => {
            let window = words.next().and_then(unsigned_32).ok_or(BAD_FORMAT)?;
            Admin::AutomoveWindow(window)
        }
        word => Admin::Automove(unsigned_32(word).ok_or(BAD_FORMAT)?),
    };
    Ok(admin(setting))
}

/// A word that may be a number with a point; what it is worth is decided where it is used.
fn decimal<'a>(words: &mut Words<'a>) -> Result<&'a str, LineError> {
    words.next().and_then(|word| std::str::from_utf8(word).ok()).ok_or(UNKNOWN)
}

/// `lru tune <hot %> <warm %> <hot factor> <warm factor>`, `lru mode <mode>`, `lru temp_ttl <s>`.
fn lru(mut words: Words<'_>) -> Parsed<'_> {
    let count = words.count();
    let Some(what) = words.next() else { return Err(UNKNOWN) };
    if is(what, b"tune") && count >= 5 {
        let mut pct = || words.next().and_then(unsigned_32).ok_or(UNKNOWN);
        let (hot_pct, warm_pct) = (pct()?, pct()?);
        let (hot_factor, warm_factor) = (decimal(&mut words)?, decimal(&mut words)?);
        return Ok(admin(Admin::LruTune { hot_pct, warm_pct, hot_factor, warm_factor }));
    }
    match words.next() {
        Some(b"flat") if is(what, b"mode") => Ok(admin(Admin::LruSegmented(false))),
        Some(b"segmented") if is(what, b"mode") => Ok(admin(Admin::LruSegmented(true))),
        Some(word) if is(what, b"temp_ttl") => {
            let ttl_s: i32 = signed(word).and_then(|s| s.try_into().ok()).ok_or(UNKNOWN)?;
            Ok(admin(Admin::TemporaryTtl(ttl_s.try_into().ok())))
        }
        _ => Err(UNKNOWN),
    }
}

/// `lru_crawler <what> [<argument>]`.
fn lru_crawler(mut words: Words<'_>) -> Parsed<'_> {
    let count = words.count();
    let Some(what) = words.next() else { return Err(UNKNOWN) };
    let argument = words.next();
    let number = || argument.and_then(unsigned_32).ok_or(BAD_FORMAT);
    match (count, argument) {
        (2, Some(ids)) if is(what, b"crawl") => Ok(admin(Admin::Crawl(classes(ids)?))),
        (2, Some(ids)) if is(what, b"metadump") => {
            Ok(Line::Dump(DumpKind::Metadump(classes(ids)?)))
        }
        (2, Some(ids)) if is(what, b"mgdump") => Ok(Line::Dump(DumpKind::Mgdump(classes(ids)?))),
        (2, _) if is(what, b"tocrawl") => Ok(admin(Admin::CrawlerToCrawl(number()?))),
        (2, _) if is(what, b"sleep") => Ok(admin(Admin::CrawlerSleep(number()?))),
        (1, _) if is(what, b"enable") => Ok(admin(Admin::Crawler(true))),
        (1, _) if is(what, b"disable") => Ok(admin(Admin::Crawler(false))),
        _ => Err(UNKNOWN),
    }
}

/// `all`, `hash`, which walks the same way here, or ids joined by commas.
fn classes(ids: &[u8]) -> Result<ClassSet, LineError> {
    if matches!(ids, b"all" | b"hash") {
        return Ok(ClassSet::ALL);
    }
    let mut set = ClassSet::default();
    for id in ids.split(|byte| *byte == b',').filter(|id| !id.is_empty()) {
        let id = unsigned_32(id).filter(|id| (1..CLASSES_MAX).contains(id));
        let id = id.and_then(|id| u8::try_from(id).ok()).ok_or(LineError::BadClass)?;
        set.insert(id);
    }
    Ok(set)
}

/// `cache_memlimit <megabytes> [noreply]`.
fn cache_memlimit(mut words: Words<'_>) -> Parsed<'_> {
    let megabytes = words.next().and_then(unsigned_32).ok_or(UNKNOWN)?;
    Ok(admin(Admin::CacheMemlimit(megabytes)))
}

/// The words of `watch`. The events of a proxy never come.
const EVENTS: [(&[u8], u32); 10] = [
    (b"rawcmds", watch::RAWCMDS),
    (b"evictions", watch::EVICTIONS),
    (b"fetchers", watch::FETCHERS),
    (b"mutations", watch::MUTATIONS),
    (b"sysevents", watch::SYSEVENTS),
    (b"connevents", watch::CONNEVENTS),
    (b"proxyreqs", 0),
    (b"proxyevents", 0),
    (b"proxyuser", 0),
    (b"deletions", watch::DELETIONS),
];

/// `watch [<kind>...]`.
fn watch(words: Words<'_>) -> Parsed<'_> {
    let mut kinds = None;
    for word in words {
        let (_, kind) = EVENTS.iter().find(|(name, _)| is(word, name)).ok_or(UNKNOWN)?;
        kinds = Some(kinds.unwrap_or(0) | kind);
    }
    Ok(Line::Watch(kinds.unwrap_or(watch::FETCHERS)))
}

/// `debugtime p|r|<seconds>`.
fn debug_time(mut words: Words<'_>) -> Parsed<'_> {
    let time = match words.next().ok_or(UNKNOWN)? {
        b"p" => DebugTime::Pause,
        b"r" => DebugTime::Resume,
        word => {
            let seconds = signed(word.strip_prefix(b"+").unwrap_or(word)).ok_or(UNKNOWN)?;
            DebugTime::Move(seconds)
        }
    };
    Ok(admin(Admin::DebugTime(time)))
}

/// `stats` with a topic that is more than a list of numbers; none for any other topic.
pub(super) fn stats<'a>(topic: &[u8], words: Words<'a>) -> Option<Line<'a>> {
    let parse = match topic {
        topic if is(topic, b"reset") => return None,
        topic if is(topic, b"detail") => detail,
        topic if is(topic, b"settings") => return None,
        topic if is(topic, b"cachedump") => cachedump,
        b"sizes" => return Some(Line::Dump(DumpKind::Sizes)),
        b"sizes_enable" => return Some(admin(Admin::TrackSizes(true))),
        b"sizes_disable" => return Some(admin(Admin::TrackSizes(false))),
        _ => return None,
    };
    Some(parse(words).unwrap_or_else(rejected))
}

fn detail(mut words: Words<'_>) -> Parsed<'_> {
    match words.next().ok_or(LineError::DetailUsage)? {
        word if is(word, b"on") => Ok(admin(Admin::Detail(true))),
        word if is(word, b"off") => Ok(admin(Admin::Detail(false))),
        word if is(word, b"dump") => Ok(Line::Dump(DumpKind::Prefixes)),
        _ => Err(LineError::DetailUsage),
    }
}

fn cachedump(mut words: Words<'_>) -> Parsed<'_> {
    let (Some(class), Some(limit)) = (words.next(), words.next()) else {
        return Err(LineError::BadLine);
    };
    let (class, limit) = (unsigned_32(class).ok_or(BAD_FORMAT)?, unsigned_32(limit));
    let limit = limit.ok_or(BAD_FORMAT)?;
    if class >= CLASSES_MAX {
        return Err(LineError::IllegalClass);
    }
    Ok(Line::Dump(DumpKind::Cachedump { class, limit }))
}

/// The line that answers an administration command, with its end.
#[must_use]
pub fn words(outcome: AdminOutcome) -> &'static [u8] {
    match outcome {
        AdminOutcome::Ok => b"OK\r\n",
        AdminOutcome::Error => b"ERROR\r\n",
        AdminOutcome::Confined => {
            b"CLIENT_ERROR administration is confined to the control socket\r\n"
        }
        AdminOutcome::SizesEnabled => b"STAT sizes_status enabled\r\nEND\r\n",
        AdminOutcome::SizesDisabled => b"STAT sizes_status disabled\r\nEND\r\n",
        AdminOutcome::ReassignDisabled => b"CLIENT_ERROR slab reassignment disabled\r\n",
        AdminOutcome::ReassignRunning => b"BUSY currently processing reassign request\r\n",
        AdminOutcome::ReassignBadClass => b"BADCLASS invalid src or dst class id\r\n",
        AdminOutcome::ReassignNoSpare => b"NOSPARE source class has no spare pages\r\n",
        AdminOutcome::ReassignSame => b"SAME src and dst class are identical\r\n",
        AdminOutcome::WindowOutOfBounds => b"CLIENT_ERROR automove window too low or too high\r\n",
        AdminOutcome::PctsTooHigh => b"ERROR hot and warm pcts must not exceed 80\r\n",
        AdminOutcome::FactorsTooLow => b"ERROR hot/warm age factors must be greater than 0\r\n",
        AdminOutcome::CrawlerRuns => b"ERROR failed to start lru crawler thread\r\n",
        AdminOutcome::CrawlerDisabled => b"CLIENT_ERROR lru crawler disabled\r\n",
        AdminOutcome::SleepTooLong => b"CLIENT_ERROR sleep must be one second or less\r\n",
        AdminOutcome::LimitTooSmall => {
            b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n"
        }
        AdminOutcome::LimitInBytes => {
            b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n"
        }
        AdminOutcome::LimitOutOfBounds => {
            b"MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\r\n"
        }
        AdminOutcome::NoTls => b"Error TLS not enabled\r\n",
        AdminOutcome::MetadumpPipelined => {
            b"ERROR cannot pipeline other commands before metadump\r\n"
        }
        AdminOutcome::MgdumpPipelined => b"ERROR cannot pipeline other commands before mgdump\r\n",
        AdminOutcome::MetadumpNotAllowed => b"ERROR metadump not allowed\r\n",
        AdminOutcome::MgdumpNotAllowed => b"ERROR key dump not allowed\r\n",
        AdminOutcome::CachedumpNotAllowed => b"CLIENT_ERROR stats cachedump not allowed\r\n",
        AdminOutcome::DetailNotAllowed => b"CLIENT_ERROR stats detail not allowed\r\n",
        AdminOutcome::WatchNotAllowed => b"CLIENT_ERROR watch commands not allowed\r\n",
        AdminOutcome::TooManyWatchers => b"WATCHER_TOO_MANY log watcher limit reached\r\n",
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::{Line, LineError, line};
    use crate::command::admin::{Admin, ClassSet, DumpKind, watch};

    fn read(text: &str) -> Line<'_> {
        line(text.as_bytes())
    }

    fn asked(text: &str) -> (Admin<'_>, bool) {
        match read(text) {
            Line::Admin { admin, noreply } => (admin, noreply),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn refused(text: &str) -> LineError {
        match read(text) {
            Line::Rejected { error, .. } => error,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn commands_are_read_as_memcached_reads_them() {
        assert_eq!(asked("slabs reassign -1 5").0, Admin::SlabsReassign { from: -1, to: 5 });
        assert_eq!(asked("slabs automove 2 noreply"), (Admin::Automove(2), true));
        assert_eq!(asked("slabs automove window 9").0, Admin::AutomoveWindow(9));
        assert_eq!(asked("slabs automove ratio 0.5").0, Admin::AutomoveRatio("0.5"));
        assert_eq!(asked("slabs automove freeratio 0.5").0, Admin::AutomoveFreeRatio("0.5"));
        let tune =
            Admin::LruTune { hot_pct: 10, warm_pct: 20, hot_factor: "0.1", warm_factor: "2" };
        assert_eq!(asked("lru tune 10 20 0.1 2").0, tune);
        assert_eq!(asked("lru mode flat").0, Admin::LruSegmented(false));
        assert_eq!(asked("lru temp_ttl -1").0, Admin::TemporaryTtl(None));
        assert_eq!(asked("lru temp_ttl 9").0, Admin::TemporaryTtl(Some(9)));
        assert_eq!(asked("lru_crawler enable").0, Admin::Crawler(true));
        assert_eq!(asked("lru_crawler sleep 7").0, Admin::CrawlerSleep(7));
        assert_eq!(asked("cache_memlimit 8").0, Admin::CacheMemlimit(8));
        assert_eq!(asked("stats detail on").0, Admin::Detail(true));
        let Admin::Crawl(classes) = asked("lru_crawler crawl 1,5").0 else { panic!("a crawl") };
        assert!(classes.contains(5) && !classes.contains(2));
    }

    #[test]
    fn dumps_and_watchers() {
        let all = Line::Dump(DumpKind::Metadump(ClassSet::ALL));
        assert_eq!((read("lru_crawler metadump hash"), read("lru_crawler meta all")), (all, all));
        assert!(matches!(read("lru_crawler mgdump 3"), Line::Dump(DumpKind::Mgdump(_))));
        let cachedump = DumpKind::Cachedump { class: 3, limit: 10 };
        assert_eq!(read("stats cachedump 3 10"), Line::Dump(cachedump));
        assert_eq!(read("stats detail dump"), Line::Dump(DumpKind::Prefixes));
        assert_eq!(read("watch"), Line::Watch(watch::FETCHERS));
        assert_eq!(read("watch evic muta"), Line::Watch(watch::EVICTIONS | watch::MUTATIONS));
        assert_eq!(read("watch proxyreqs"), Line::Watch(0));
    }

    #[test]
    fn what_is_wrong_is_told_in_memcached_s_words() {
        for (text, error) in [
            ("slabs", LineError::Unknown),
            ("slabs reassign 1", LineError::Unknown),
            ("slabs reassign 1 x", LineError::BadFormat),
            ("slabs automove", LineError::Unknown),
            ("slabs automove x", LineError::BadFormat),
            ("slabs automove window", LineError::BadFormat),
            ("slabs automove ratio", LineError::Unknown),
            ("lru", LineError::Unknown),
            ("lru mode x", LineError::Unknown),
            ("lru tune 1 2 3", LineError::Unknown),
            ("lru_crawler", LineError::Unknown),
            ("lru_crawler crawl 0", LineError::BadClass),
            ("lru_crawler crawl 1,x", LineError::BadClass),
            ("lru_crawler metadump 255", LineError::BadClass),
            ("lru_crawler sleep x", LineError::BadFormat),
            ("cache_memlimit", LineError::Unknown),
            ("cache_memlimit x", LineError::Unknown),
            ("watch x", LineError::Unknown),
            ("stats detail", LineError::DetailUsage),
            ("stats detail x", LineError::DetailUsage),
            ("stats cachedump 1", LineError::BadLine),
            ("stats cachedump 1 x", LineError::BadFormat),
            ("stats cachedump 255 1", LineError::IllegalClass),
        ] {
            assert_eq!(refused(text), error, "{text}");
        }
    }
}

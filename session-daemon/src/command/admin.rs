//! What an administrator asks: commands that steer the server, dumps of its contents, watching.
//! It owns their meaning; how they look on the wire is the business of `protocol`.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used)]

/// A set of slab classes, 0 to 255.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassSet([u64; 4]);

impl ClassSet {
    /// Every class.
    pub const ALL: Self = Self([u64::MAX; 4]);

    /// Adds a class.
    pub fn insert(&mut self, class: u8) {
        if let Some(word) = self.0.get_mut(usize::from(class / 64)) {
            *word |= 1_u64.wrapping_shl(class.into());
        }
    }

    /// Whether a class is in the set.
    #[must_use]
    pub fn contains(&self, class: u8) -> bool {
        self.0
            .get(usize::from(class / 64))
            .is_some_and(|word| word.wrapping_shr(class.into()) & 1 == 1)
    }
}

/// A command that changes the server, or asks it to do something beside the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admin<'a> {
    /// Takes a page from a class.
    SlabsReassign {
        /// The class that loses it; -1 for any.
        from: i32,
        /// The class that is to have it; 0 for the pool of free pages.
        to: i32,
    },
    /// Sets how pages move by themselves.
    Automove(u32),
    /// Sets a ratio of automove.
    AutomoveRatio(&'a str),
    /// Sets the free ratio of automove.
    AutomoveFreeRatio(&'a str),
    /// Sets the window of automove.
    AutomoveWindow(u32),
    /// Sets the shares of the lists and the ages at which items leave them.
    LruTune {
        /// Share of the hot list, per cent.
        hot_pct: u32,
        /// Share of the warm list, per cent.
        warm_pct: u32,
        /// Age factor of the hot list.
        hot_factor: &'a str,
        /// Age factor of the warm list.
        warm_factor: &'a str,
    },
    /// Whether the items of a class are in several lists.
    LruSegmented(bool),
    /// Lifetime below which items go to a list of their own; none for no such list.
    TemporaryTtl(Option<u32>),
    /// Starts or stops the crawler.
    Crawler(bool),
    /// Sets the crawler's pause, microseconds.
    CrawlerSleep(u32),
    /// Sets how many items the crawler looks at.
    CrawlerToCrawl(u32),
    /// Looks for expired items now.
    Crawl(ClassSet),
    /// Sets `-m`, megabytes.
    CacheMemlimit(u32),
    /// Reads the certificates again.
    RefreshCerts,
    /// Switches `stats detail`.
    Detail(bool),
    /// Switches `stats sizes`.
    TrackSizes(bool),
    /// Moves the store's clock.
    DebugTime(DebugTime),
}

/// How `debugtime` moves the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugTime {
    /// By so many seconds.
    Move(i64),
    /// It stands still.
    Pause,
    /// It goes on.
    Resume,
}

/// What became of an administration command that is answered by one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminOutcome {
    /// Done, or accepted because it steers nothing here.
    Ok,
    /// The words ask nothing that can be done.
    Error,
    /// Only `sessionctl` may ask that.
    Confined,
    /// `stats sizes` counts from now on.
    SizesEnabled,
    /// `stats sizes` does not count.
    SizesDisabled,
    /// Pages are not moved on command.
    ReassignDisabled,
    /// A page is being moved.
    ReassignRunning,
    /// No such class.
    ReassignBadClass,
    /// The class has no page to spare.
    ReassignNoSpare,
    /// The page would stay where it is.
    ReassignSame,
    /// A window that memcached would not take.
    WindowOutOfBounds,
    /// Hot and warm would be more than there is.
    PctsTooHigh,
    /// An age factor of 0.
    FactorsTooLow,
    /// The crawler was started before.
    CrawlerRuns,
    /// The crawler is stopped.
    CrawlerDisabled,
    /// Longer than a second.
    SleepTooLong,
    /// Below memcached's least limit.
    LimitTooSmall,
    /// Too many megabytes to be meant.
    LimitInBytes,
    /// More than was reserved at start, or less than the store works with.
    LimitOutOfBounds,
    /// There are no certificates.
    NoTls,
    /// Answers to other commands stand before the list.
    MetadumpPipelined,
    /// Answers to other commands stand before the list.
    MgdumpPipelined,
    /// `-X`.
    MetadumpNotAllowed,
    /// `-X`.
    MgdumpNotAllowed,
    /// `-X`.
    CachedumpNotAllowed,
    /// `-X`.
    DetailNotAllowed,
    /// `-W`.
    WatchNotAllowed,
    /// As many watch already as may.
    TooManyWatchers,
}

/// What is to be listed, piece by piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DumpKind {
    /// `lru_crawler metadump`: what is known of every item of these classes.
    Metadump(ClassSet),
    /// `lru_crawler mgdump`: a command for every key of these classes.
    Mgdump(ClassSet),
    /// `stats cachedump`: keys of one class.
    Cachedump {
        /// Of which class.
        class: u32,
        /// At most so many; 0 for all.
        limit: u32,
    },
    /// `stats sizes`: how many items there are of each size.
    Sizes,
    /// `stats detail dump`: commands by prefix.
    Prefixes,
}

impl DumpKind {
    /// What is answered when answers to other commands stand before the list, if it may not
    /// follow them: memcached's crawler writes to the socket alone.
    #[must_use]
    pub fn behind_others(self) -> Option<AdminOutcome> {
        match self {
            Self::Metadump(_) => Some(AdminOutcome::MetadumpPipelined),
            Self::Mgdump(_) => Some(AdminOutcome::MgdumpPipelined),
            Self::Cachedump { .. } | Self::Sizes | Self::Prefixes => None,
        }
    }
}

/// Kinds of events that a watcher asks for, a bit each.
pub mod watch {
    /// Commands as they came.
    pub const RAWCMDS: u32 = 1;
    /// Items evicted.
    pub const EVICTIONS: u32 = 1 << 1;
    /// Keys looked up.
    pub const FETCHERS: u32 = 1 << 2;
    /// Items stored, or not.
    pub const MUTATIONS: u32 = 1 << 3;
    /// What the server does by itself.
    pub const SYSEVENTS: u32 = 1 << 4;
    /// Connections opened and closed.
    pub const CONNEVENTS: u32 = 1 << 5;
    /// Items deleted.
    pub const DELETIONS: u32 = 1 << 6;
}

#[cfg(test)]
mod tests {
    use super::ClassSet;

    #[test]
    fn classes_are_in_the_set_that_they_were_put_into() {
        let mut set = ClassSet::default();
        for class in [0, 63, 64, 200, 255] {
            set.insert(class);
        }
        let held: Vec<u8> = (0..=255).filter(|class| set.contains(*class)).collect();
        assert_eq!(held, [0, 63, 64, 200, 255]);
        assert!((0..=255).all(|class| ClassSet::ALL.contains(class)));
    }
}

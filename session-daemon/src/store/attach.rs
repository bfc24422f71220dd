//! A store in a file: whether what the file holds can be kept, and the start either way.
//! It owns that judgement; taking the items over is `recover`'s.
#![forbid(unsafe_code)]

use crate::clock::Now;
use crate::store::Store;
use crate::store::backing::{Identity, MemoryFile, UNIT_LEAST};
use crate::store::classes::Classes;
use crate::store::hash::{HashSecret, SECRET_WORDS};
use crate::store::layout::{
    HEAD_LEN, LAYOUT_VERSION, Layout, MAGIC, PageState, Superblock, checksum, chunk_lens,
};
use crate::store::reader::second;
use crate::store::recover::{Kept, Progress};
use crate::store::region::{Access, Region};
use crate::store::sync::Ordering;
use crate::store::types::{StoreConfig, StoreError};
use crate::store::validate::{Census, Violation};
use std::fs::File;
use std::io;
use std::sync::Arc;
use thiserror::Error;

/// How a store in a file began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Empty, and why.
    Cold(Cold),
    /// With the items that the file held.
    Kept(Kept),
}

/// Why nothing of a memory file is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Cold {
    /// It was empty.
    #[error("it is new")]
    New,
    /// It was never finished.
    #[error("its first start did not come to an end")]
    Unfinished,
    /// It was written by another version.
    #[error("its layout has version {0}, and this sessiond's has version {LAYOUT_VERSION}")]
    Version(u32),
    /// The machine was started again since: its clock is another.
    #[error("it is from before the last boot")]
    Boot,
    /// The boot-time clock is behind what the store has seen.
    #[error("the boot-time clock is behind the one that it was used with")]
    Clock,
    /// `-f` or `-n` give other chunks, or `-m` is beyond the room of the tables.
    #[error("it was made with other chunk sizes (-f, -n) or with a far smaller -m")]
    Geometry,
    /// It is shorter than it says.
    #[error("it was cut short")]
    Truncated,
    /// What it says of itself does not fit together.
    #[error("it is damaged")]
    Damaged,
}

/// What the check of a memory file found.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// What a start would keep.
    pub kept: Kept,
    /// Whether all invariants hold then.
    pub validated: Result<Census, Violation>,
}

/// Why a file is not gone on with.
enum Unfit {
    Cold(Cold),
    Failed(StoreError),
}

impl From<Cold> for Unfit {
    fn from(cold: Cold) -> Self {
        Self::Cold(cold)
    }
}

impl From<StoreError> for Unfit {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// A file's region as it says it is, checked.
struct Found {
    layout: Layout,
    classes: Classes,
    secret: HashSecret,
    /// Pages that it was used with last.
    pages: u32,
    /// The limit that was set while serving, for who goes on with it.
    limit_set: Option<usize>,
    /// The file as it was before this start.
    file: Identity,
}

fn unreadable(source: io::Error) -> StoreError {
    StoreError::File { what: "reading", source }
}

impl Found {
    /// What `memory` holds, if this boot can go on with it: under `config`, or under the one that
    /// it was used with last.
    fn look(
        memory: &MemoryFile,
        config: Option<&StoreConfig>,
        now: Now,
    ) -> Result<(Self, StoreConfig), Unfit> {
        let file = memory.identity().map_err(unreadable)?;
        let len = memory.len().map_err(unreadable)?;
        if len == 0 {
            return Err(Cold::New.into());
        }
        if len < HEAD_LEN as u64 {
            return Err(StoreError::NotOurs.into());
        }
        let head = memory.map(HEAD_LEN, Access::ReadOnly).map_err(unreadable)?;
        let superblock: &Superblock = head.shared(0);
        // Relaxed throughout: the file is locked, so nobody writes to it.
        let relaxed = Ordering::Relaxed;
        let sizes = fixed_words(&head)?;
        if superblock.boot_id() != memory.boot_id {
            return Err(Cold::Boot.into());
        }
        if superblock.seen_s.load(relaxed) > u64::from(second(now)) {
            return Err(Cold::Clock.into());
        }
        let page_len = 1_usize.checked_shl(superblock.page_shift.load(relaxed)).unwrap_or(0);
        let pages_max = superblock.pages_max.load(relaxed);
        let pages = superblock.pages.load(relaxed);
        let before = Layout::found(pages, pages_max, sizes.len() as u32, page_len);
        let before = before.ok_or(Cold::Damaged)?;
        // Cut by a start under a smaller limit that was itself interrupted, or by somebody: what
        // is left is kept.
        let before = before.within_file(len).ok_or(Cold::Truncated)?;
        let pages = before.pages;
        let used = StoreConfig {
            memory_limit: superblock.memory_limit.load(relaxed) as usize,
            item_size_max: superblock.item_size_max.load(relaxed) as usize,
            workers: 1,
            ..StoreConfig::default()
        };
        let classes = match config {
            Some(config) => Classes::new(page_len, config.growth_factor, config.chunk_min)?,
            None => Classes::of_sizes(sizes.clone()).ok_or(Cold::Damaged)?,
        };
        // What is too large or too small for the tables is no limit that was set.
        let limit_set = superblock.limit_set.load(relaxed) as usize;
        let limit_set = (limit_set != 0).then_some(limit_set);
        let limit_set = limit_set
            .filter(|_| config.is_some_and(|config| config.succeeding))
            .filter(|limit| matches!(Layout::again(*limit, before), Ok(Some(_))));
        let layout = match config {
            // Who goes on with a limit that was set has all pages that there are: what is beyond
            // the limit goes when it is set again.
            Some(config) => {
                let again = Layout::again(config.memory_limit, before)?;
                let larger = |again: &Layout| limit_set.is_none() || again.pages > before.pages;
                again.filter(larger).or_else(|| limit_set.map(|_| before))
            }
            // Not by the limit that it names: that word may be damaged.
            None => Some(before),
        };
        let layout = layout.filter(|_| classes.sizes() == sizes).ok_or(Cold::Geometry)?;
        let config = *config.unwrap_or(&used);
        let words =
            std::array::from_fn::<u64, SECRET_WORDS, _>(|idx| superblock.secret[idx].load(relaxed));
        let secret = HashSecret::of_words(words);
        Ok((Self { layout, classes, secret, pages, limit_set, file }, config))
    }

    /// An empty file's region to be. What has memory for its tables when they are touched gets
    /// tables with room.
    fn fresh(config: &StoreConfig, with_room: bool) -> Result<Self, StoreError> {
        let page_len = Layout::page_len_for(config.memory_limit);
        let classes = Classes::new(page_len, config.growth_factor, config.chunk_min)?;
        let layout = if with_room { Layout::new } else { Layout::tight };
        let layout = layout(config.memory_limit, classes.count())?;
        let (secret, pages) = (HashSecret::random(), layout.pages);
        let file = Identity::default();
        Ok(Self { layout, classes, secret, pages, limit_set: None, file })
    }
}

/// Checks the words that never change; returns the sizes of chunks.
fn fixed_words(head: &Region) -> Result<Vec<u32>, Unfit> {
    let superblock: &Superblock = head.shared(0);
    // Acquire: pairs with the Release in `format`, though another process did that.
    match superblock.magic.load(Ordering::Acquire) {
        MAGIC => {}
        0 => return Err(Cold::Unfinished.into()),
        _ => return Err(StoreError::NotOurs.into()),
    }
    let version = superblock.layout_version.load(Ordering::Relaxed);
    if version != LAYOUT_VERSION {
        return Err(Cold::Version(version).into());
    }
    let sizes = chunk_lens(head).ok_or(Cold::Damaged)?;
    if checksum(head) != superblock.checksum.load(Ordering::Relaxed) {
        return Err(Cold::Damaged.into());
    }
    Ok(sizes)
}

impl Store {
    /// A store in a file, with the items that are there if they can be kept.
    ///
    /// # Errors
    /// When a limit is out of range, or the file cannot be mapped or cannot have the memory.
    pub fn open(
        config: &StoreConfig,
        memory: MemoryFile,
        now: Now,
    ) -> Result<(Arc<Self>, Start), StoreError> {
        Self::open_telling(config, memory, now, &|_, _| {})
    }

    /// [`Store::open`] that tells how far it is while the index is built anew: pages that were
    /// looked at, and all of them. Several threads do, a few times in a thousandth of a second.
    ///
    /// # Errors
    /// As for [`Store::open`].
    pub fn open_telling(
        config: &StoreConfig,
        memory: MemoryFile,
        now: Now,
        progress: Progress<'_>,
    ) -> Result<(Arc<Self>, Start), StoreError> {
        Self::check(config)?;
        let cold = match Found::look(&memory, Some(config), now) {
            Ok((found, _)) => {
                let mut store = Self::around(config, &memory, &found, Access::Shared)?;
                match store.keep(&found, now, progress) {
                    Some(kept) => {
                        let started = store.started(memory, Start::Kept(kept), now)?;
                        if let Some(limit) = found.limit_set {
                            started.0.set_memory_limit(limit).map_err(StoreError::Limit)?;
                        }
                        return Ok(started);
                    }
                    None => Cold::Damaged,
                }
            }
            // A map has its length from the first moment.
            Err(Unfit::Cold(Cold::Unfinished)) if memory.is_new_map() => Cold::New,
            Err(Unfit::Cold(cold)) => cold,
            Err(Unfit::Failed(error)) => return Err(error),
        };
        let found = Found::fresh(config, memory.map.is_none())?;
        if !memory.is_new_map() {
            memory.clear().map_err(|source| StoreError::File { what: "clearing", source })?;
        }
        let store = Self::around(config, &memory, &found, Access::Shared)?;
        store.superblock().set_boot_id(memory.boot_id);
        store.format();
        store.started(memory, Start::Cold(cold), now)
    }

    /// Goes on with what a region holds: as it stands if that can be relied on, and otherwise with
    /// what a look at all of it finds.
    fn keep(&mut self, found: &Found, now: Now, progress: Progress<'_>) -> Option<Kept> {
        // Relaxed: nobody else has the store.
        self.incarnation = self.superblock().incarnation.load(Ordering::Relaxed) as u16;
        let resumed = self.resume(found.pages, found.file, now);
        if let Some(kept) = resumed.or_else(|| self.adopt(found.pages, found.file, now)) {
            return Some(kept);
        }
        self.distrust();
        self.note_incarnation();
        self.recover(found.pages, now, progress)
    }

    fn started(
        mut self,
        memory: MemoryFile,
        start: Start,
        now: Now,
    ) -> Result<(Arc<Self>, Start), StoreError> {
        self.note_time(now);
        self.note_counts();
        self.trust(memory.identity().map_err(unreadable)?);
        self.memory = Some(memory);
        self.start = Some(start);
        Ok((Arc::new(self), start))
    }

    /// Leaves a store in anonymous memory, which nobody else may have any more, in a nameless
    /// file, for another process to open. Page for page, so that both together need no more
    /// memory than the store does.
    ///
    /// # Errors
    /// When somebody has the store, or the file cannot have the memory: then it is lost.
    pub fn leave(self: Arc<Self>, file: File, boot_id: u128) -> io::Result<File> {
        self.check_now().map_err(io::Error::other)?;
        let mut store = self.at_rest().ok_or_else(|| io::Error::other("it is in use"))?;
        let layout = store.layout.with_pages(store.page_count());
        let len = layout.region_len() as u64;
        file.set_len(len.next_multiple_of(UNIT_LEAST))?;
        let superblock = store.superblock();
        superblock.set_boot_id(boot_id);
        // Relaxed: nobody else has the store.
        superblock.checksum.store(checksum(&store.region), Ordering::Relaxed);
        store.trust(Identity::default());
        store.note_counts();
        store.leave_note(Identity::default());
        let used = (0..layout.pages).filter(|page| store.page_state(*page) != PageState::Free);
        for page in used.collect::<Vec<_>>() {
            store.region.move_to(&file, layout.page(page), layout.page_len())?;
        }
        for part in layout.extents().into_iter().take(2) {
            store.region.move_to(&file, part.start, (part.end - part.start) as usize)?;
        }
        Ok(file)
    }

    /// How a store in a file began, as far as that is known by now; `None` for one in anonymous
    /// memory.
    #[must_use]
    pub fn start(&self) -> Option<Start> {
        match (self.start?, self.checked()) {
            (Start::Kept(kept), Some(checked)) => {
                let (items, bytes) = checked.items.unwrap_or((kept.items, kept.bytes));
                Some(Start::Kept(Kept { items, bytes, lost: checked.lost, ..kept }))
            }
            (start, _) => Some(start),
        }
    }

    /// Takes a memory file over in memory of this process alone, as a start would, and checks
    /// every invariant. The file stays as it is.
    ///
    /// # Errors
    /// When the file cannot be read or mapped.
    pub fn inspect(memory: &MemoryFile, now: Now) -> Result<Result<Inspected, Cold>, StoreError> {
        let (found, config) = match Found::look(memory, None, now) {
            Ok(found) => found,
            Err(Unfit::Cold(cold)) => return Ok(Err(cold)),
            Err(Unfit::Failed(error)) => return Err(error),
        };
        let mut store = Self::around(&config, memory, &found, Access::Private)?;
        // Relaxed: nobody else has this copy of the store.
        store.incarnation = store.superblock().incarnation.load(Ordering::Relaxed) as u16;
        let Some(kept) = store.recover(found.pages, now, &|_, _| {}) else {
            return Ok(Err(Cold::Damaged));
        };
        Ok(Ok(Inspected { kept, validated: store.validate() }))
    }

    /// A mapping of a memory file that another process may be serving from. Nothing of it may be
    /// written, and nothing that is read be believed.
    pub(super) fn for_reading(
        memory: &MemoryFile,
        now: Now,
    ) -> Result<Result<Self, Cold>, StoreError> {
        match Found::look(memory, None, now) {
            Ok((found, config)) => Self::around(&config, memory, &found, Access::ReadOnly).map(Ok),
            Err(Unfit::Cold(cold)) => Ok(Err(cold)),
            Err(Unfit::Failed(error)) => Err(error),
        }
    }

    fn around(
        config: &StoreConfig,
        memory: &MemoryFile,
        found: &Found,
        access: Access,
    ) -> Result<Self, StoreError> {
        let Found { layout, classes, secret, .. } = found;
        let len = layout.region_len();
        if access == Access::Shared {
            let failed = |source| StoreError::Room { len: config.memory_limit, source };
            memory.make_room(layout).map_err(failed)?;
        }
        let can_grow = memory.can_grow().is_ok_and(|can_grow| can_grow);
        let can_grow = can_grow && config.growing && access == Access::Shared;
        let region = if can_grow {
            Region::map_file_in(layout.room_len(), &memory.file, len)
        } else {
            memory.map(len, access)
        };
        let region = region.map_err(|source| StoreError::Map { len, source })?;
        Self::assemble(config, region, *layout, classes.clone(), secret.clone())
    }
}

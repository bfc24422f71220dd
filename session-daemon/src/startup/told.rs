//! What the log says of a store that was opened. It decides nothing.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::store::{Cold, Start};

/// Says how the store in the memory file began.
pub(super) fn tell(place: &str, start: Start, is_checked: bool, taken: Duration) {
    let kept = match start {
        Start::Cold(cold @ Cold::New) => {
            log::info!("{place}: {cold}");
            return;
        }
        Start::Cold(cold) => {
            log::warn!("{place}: {cold}: starting empty");
            return;
        }
        Start::Kept(kept) => kept,
    };
    let (items, bytes, taken_s) = (kept.items, kept.bytes, taken.as_secs_f64());
    if kept.in_place {
        let (about, then) = if is_checked {
            ("about ", "; what the last process held back is looked for while serving")
        } else {
            ("", "")
        };
        log::info!(
            "{place}: {about}{items} items of {bytes} bytes kept in place in {taken_s:.3} s{then}"
        );
        return;
    }
    log::info!(
        "{place}: {items} items of {bytes} bytes kept in {taken_s:.3} s, their index built \
         anew; {} had ended meanwhile",
        kept.dead,
    );
    if kept.lost > 0 {
        log::warn!("{place}: {} items were damaged or beyond -m, and are lost", kept.lost);
    }
}

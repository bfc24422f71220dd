//! The sizes of chunks. It owns the table of slab classes and finds the class of a length.
#![forbid(unsafe_code)]

use crate::store::types::StoreError;

/// Number of the class whose chunks are overflow lines of the index.
pub(super) const LINE_CLASS: u32 = 0;
/// Bytes of an overflow line.
const LINE_SIZE: u32 = 64;
/// First class of items.
pub(super) const ITEM_CLASS_FIRST: u32 = 1;
/// Bytes of an item's header.
pub(super) const HEADER_LEN: usize = 24;

/// Most classes: their number has 8 bits in the item's state word.
const CLASSES_MAX: usize = 255;
/// Classes are 8 bytes apart up to this size.
const FINE_STEP_MAX: usize = 256;
/// Above it the larger of two neighbouring classes has at least this part more, as a divisor:
/// wider steps lose memory in chunks; narrower ones lose it in classes of few items, and keep
/// apart what should be compared when an item has to go.
const STEP_SHARE: usize = 63;
/// Largest chunk; longer items are made of several.
const CHUNK_MAX: usize = 8192;

/// The classes of a store.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    sizes: Vec<u32>,
    /// Class of each length in steps of 8 bytes.
    by_step: Vec<u8>,
}

impl Classes {
    /// The classes for pages of `page_len` bytes.
    pub(super) fn new(
        page_len: usize,
        growth_factor: Option<f64>,
        chunk_min: Option<usize>,
    ) -> Result<Self, StoreError> {
        let chunk_max = CHUNK_MAX.min(page_len / 4);
        let first = HEADER_LEN + chunk_min.unwrap_or(8).next_multiple_of(8);
        if chunk_min == Some(0) || first > chunk_max / 2 {
            return Err(StoreError::Classes("the least chunk must be from 1 to 1000 bytes"));
        }
        if growth_factor.is_some_and(|factor| !factor.is_finite() || factor <= 1.0) {
            return Err(StoreError::Classes("the growth factor must be greater than 1"));
        }
        let mut sizes = vec![LINE_SIZE, first as u32];
        let mut size = first;
        while size < chunk_max {
            let least = match growth_factor {
                Some(factor) => (size as f64 * factor) as usize,
                None if size < FINE_STEP_MAX => size + 8,
                None => size + size / STEP_SHARE,
            };
            // Bounded first: a large factor passes any page, even any number.
            let least = least.clamp(size + 8, chunk_max).next_multiple_of(8);
            size = fitted(least, page_len).min(chunk_max);
            sizes.push(size as u32);
        }
        if sizes.len() > CLASSES_MAX {
            return Err(StoreError::Classes("the growth factor gives more than 254 classes"));
        }
        Ok(Self::with_steps(sizes))
    }

    /// The classes of these sizes, as a region has them; `None` if no store can have such.
    pub(super) fn of_sizes(sizes: Vec<u32>) -> Option<Self> {
        let fits = |size: &u32| (HEADER_LEN as u32..=CHUNK_MAX as u32).contains(size);
        let is_possible = sizes.len() > 1
            && sizes.len() <= CLASSES_MAX
            && sizes[0] == LINE_SIZE
            && sizes.iter().all(|size| fits(size) && size.is_multiple_of(8))
            && sizes[1..].is_sorted_by(|a, b| a < b);
        is_possible.then(|| Self::with_steps(sizes))
    }

    fn with_steps(sizes: Vec<u32>) -> Self {
        let chunk_max = sizes[sizes.len() - 1] as usize;
        let by_step = (0..=chunk_max / 8)
            .map(|step| sizes[1..].partition_point(|&size| (size as usize) < step * 8) as u8 + 1)
            .collect();
        Self { sizes, by_step }
    }

    /// Bytes of the chunks of each class.
    pub(super) fn sizes(&self) -> &[u32] {
        &self.sizes
    }

    /// Number of classes, with that of index lines.
    pub(super) fn count(&self) -> u32 {
        self.sizes.len() as u32
    }

    /// Bytes of a chunk.
    pub(super) fn size(&self, class: u32) -> usize {
        self.sizes[class as usize] as usize
    }

    /// The class with the largest chunks.
    pub(super) fn last(&self) -> u32 {
        self.count() - 1
    }

    /// Bytes of the largest chunk.
    pub(super) fn chunk_max(&self) -> usize {
        self.size(self.last())
    }

    /// The class whose chunks fit `len` bytes best, which is at most [`Classes::chunk_max`].
    pub(super) fn of(&self, len: usize) -> u32 {
        u32::from(self.by_step[len.div_ceil(8)])
    }
}

/// The largest size of which as many fit into a page as of `size`.
fn fitted(size: usize, page_len: usize) -> usize {
    page_len / (page_len / size) / 8 * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_has_the_smallest_class_that_fits() {
        for page_len in [16 << 10, 64 << 10] {
            let factors = [(None, None), (Some(1.25), Some(48)), (Some(2.0), Some(8))];
            for (factor, least) in
                factors.into_iter().chain([(Some(99.0), None), (Some(f64::MAX), None)])
            {
                let classes = Classes::new(page_len, factor, least).unwrap();
                for len in 1..=classes.chunk_max() {
                    let class = classes.of(len);
                    assert!(class >= ITEM_CLASS_FIRST && classes.size(class) >= len);
                    assert!(class == ITEM_CLASS_FIRST || classes.size(class - 1) < len);
                }
            }
        }
    }

    #[test]
    fn little_is_lost_to_rounding() {
        let classes = Classes::new(64 << 10, None, None).unwrap();
        for len in 64..=classes.chunk_max() {
            let size = classes.size(classes.of(len));
            assert!((size as f64) < len as f64 * 1.14 + 8.0);
            let step = if len < 1024 { 1.02 } else { 1.04 };
            assert!(len > 2048 || (size as f64) < len as f64 * step + 8.0, "{len} {size}");
            let used = 65_536 / size * size;
            assert!(used > 65_536 * 98 / 100, "{len} {size}");
        }
    }

    #[test]
    fn unusable_factors_are_refused() {
        assert!(Classes::new(65_536, Some(1.0), None).is_err());
        assert!(Classes::new(65_536, Some(f64::NAN), None).is_err());
        assert!(Classes::new(65_536, None, Some(0)).is_err());
    }
}

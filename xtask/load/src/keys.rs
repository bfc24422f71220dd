//! Random numbers, and which key a request asks for.
#![forbid(unsafe_code)]

/// A small fast generator of random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `count`, which must not be 0.
    pub(crate) fn below(&mut self, count: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(count)) >> 64) as u32
    }

    /// A number in the open interval from 0 to 1.
    pub fn open_unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }
}

/// Which keys are asked for, and how often.
#[derive(Debug)]
pub enum Popularity {
    /// Each of so many keys as often as the others.
    Uniform(u32),
    /// Walker's alias table: one look-up a draw, for any distribution.
    Zipf(Vec<Alias>),
}

/// A column of the alias table: its own rank below `threshold`, else the other one.
#[derive(Clone, Copy, Debug)]
pub struct Alias {
    threshold: f32,
    other: u32,
}

impl Popularity {
    /// Keys 0 to `count`, the key of rank r with probability proportional to r^-`alpha`.
    ///
    /// Ranks are key numbers: the numbers are scattered over the keys' bytes by `Items`.
    #[must_use]
    pub fn new(count: u32, alpha: f64) -> Self {
        if alpha == 0.0 {
            return Self::Uniform(count);
        }
        let weights: Vec<f64> = (1..=count).map(|rank| f64::from(rank).powf(-alpha)).collect();
        Self::Zipf(alias_table(&weights))
    }

    /// The number of a key.
    pub fn draw(&self, random: &mut Random) -> u32 {
        match self {
            Self::Uniform(count) => random.below(*count),
            Self::Zipf(table) => {
                let column = random.below(table.len() as u32);
                let alias = table[column as usize];
                if (random.open_unit() as f32) < alias.threshold { column } else { alias.other }
            }
        }
    }
}

/// Vose's construction: columns below the average are filled up from columns above it.
fn alias_table(weights: &[f64]) -> Vec<Alias> {
    let average = weights.iter().sum::<f64>() / weights.len() as f64;
    let mut heights: Vec<f64> = weights.iter().map(|weight| weight / average).collect();
    let mut table: Vec<Alias> =
        (0..weights.len() as u32).map(|rank| Alias { threshold: 1.0, other: rank }).collect();
    let (mut low, mut high): (Vec<usize>, Vec<usize>) =
        (0..heights.len()).partition(|&rank| heights[rank] < 1.0);
    while let (Some(&below), Some(&above)) = (low.last(), high.last()) {
        low.pop();
        table[below] = Alias { threshold: heights[below] as f32, other: above as u32 };
        heights[above] -= 1.0 - heights[below];
        if heights[above] < 1.0 {
            high.pop();
            low.push(above);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{Popularity, Random};

    #[test]
    fn zipf_draws_follow_the_weights() {
        let popularity = Popularity::new(1000, 0.99);
        let total: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-0.99)).sum();
        let mut random = Random::new(3);
        let mut counts = [0_u32; 1000];
        const DRAWS: u32 = 1_000_000;
        for _ in 0..DRAWS {
            counts[popularity.draw(&mut random) as usize] += 1;
        }
        for rank in [1_u32, 2, 10, 100] {
            let expected = f64::from(rank).powf(-0.99) / total;
            let got = f64::from(counts[rank as usize - 1]) / f64::from(DRAWS);
            assert!((got / expected - 1.0).abs() < 0.1, "rank {rank}: {got}, not {expected}");
        }
    }

    #[test]
    fn uniform_draws_reach_every_key() {
        let popularity = Popularity::new(64, 0.0);
        let mut random = Random::new(5);
        let mut seen = [false; 64];
        (0..4096).for_each(|_| seen[popularity.draw(&mut random) as usize] = true);
        assert!(seen.iter().all(|&seen| seen));
    }
}

//! Lengths of keys and values, fixed or as published for production caches.
#![forbid(unsafe_code)]

use crate::keys::Random;
use crate::options::{Mix, Options};

/// What a load asks for: lengths, the share of gets, the popularity of keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) key: KeyLen,
    pub(crate) value: ValueLen,
    pub(crate) gets: f64,
    pub(crate) zipf: f64,
}

/// How long keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyLen {
    Fixed(u32),
    Etc,
}

/// How long values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ValueLen {
    Fixed(u32),
    Etc,
}

/// Shortest key: the eight digits that tell keys apart.
const KEY_LEN_MIN: u32 = 8;
/// Longest key of the protocol.
const KEY_LEN_MAX: u32 = 250;
/// Longest value drawn, so that the item fits memcached's default `-I` of 1 MiB.
const VALUE_LEN_MAX: u32 = 1_000_000;

/// Generalized extreme value distribution of ETC's key lengths: location, scale, shape.
const ETC_KEY: (f64, f64, f64) = (30.7984, 8.20449, 0.078688);
/// Probabilities of ETC's value lengths 0 to 14 bytes.
const ETC_VALUE_SMALL: [f64; 15] = [
    0.00536, 0.00047, 0.17820, 0.09239, 0.00018, 0.02740, 0.00065, 0.00606, 0.00023, 0.00837,
    0.00837, 0.08989, 0.00092, 0.00326, 0.01980,
];
/// Generalized Pareto distribution of ETC's longer values: location, scale, shape.
const ETC_VALUE: (f64, f64, f64) = (0.0, 214.476, 0.348238);
/// ETC's GETs for each SET.
const ETC_GETS_PER_SET: f64 = 30.0;
/// The ETC paper gives no exponent; this is the usual one (YCSB, Cooper et al., SoCC 2010).
const ETC_ZIPF: f64 = 0.99;

impl Shape {
    /// The shape that the options ask for.
    ///
    /// ETC: Atikoglu, Xu, Frachtenberg, Jiang, Paleczny, "Workload Analysis of a Large-Scale
    /// Key-Value Store", SIGMETRICS 2012, sections 3 and 5. Twitter: Yang, Yue, Rashmi, "A large
    /// scale analysis of hundreds of in-memory cache clusters at Twitter", OSDI 2020, with the
    /// means of each cluster as published in github.com/twitter/cache-trace, stat/2020Mar.md.
    pub(crate) fn of(options: &Options) -> Self {
        let fixed = |key, value, gets, zipf| Self {
            key: KeyLen::Fixed(key),
            value: ValueLen::Fixed(value),
            gets,
            zipf,
        };
        match options.mix {
            None => fixed(options.key_size, options.value_size, options.gets, options.zipf),
            Some(Mix::Etc) => Self {
                key: KeyLen::Etc,
                value: ValueLen::Etc,
                gets: ETC_GETS_PER_SET / (ETC_GETS_PER_SET + 1.0),
                zipf: ETC_ZIPF,
            },
            Some(Mix::Twitter4) => fixed(67, 2439, 0.93, 1.1004),
            Some(Mix::Twitter11) => fixed(24, 170, 0.97, 1.4891),
            Some(Mix::Twitter29) => fixed(36, 799, 0.87, 1.2323),
        }
    }
}

impl KeyLen {
    pub(crate) fn draw(self, random: &mut Random) -> u32 {
        match self {
            Self::Fixed(len) => len,
            Self::Etc => {
                let (location, scale, shape) = ETC_KEY;
                let minus_log = -random.open_unit().ln();
                let len = location + scale / shape * (minus_log.powf(-shape) - 1.0);
                (len.round() as u32).clamp(KEY_LEN_MIN, KEY_LEN_MAX)
            }
        }
    }
}

impl ValueLen {
    pub(crate) fn draw(self, random: &mut Random) -> u32 {
        match self {
            Self::Fixed(len) => len,
            Self::Etc => etc_value(random),
        }
    }
}

fn etc_value(random: &mut Random) -> u32 {
    let mut rest = random.open_unit();
    for (len, probability) in (0..).zip(ETC_VALUE_SMALL) {
        if rest < probability {
            return len;
        }
        rest -= probability;
    }
    let (location, scale, shape) = ETC_VALUE;
    let len = location + scale / shape * (random.open_unit().powf(-shape) - 1.0);
    // The paper gives the distribution for lengths beyond the table.
    (len.round() as u32).clamp(ETC_VALUE_SMALL.len() as u32, VALUE_LEN_MAX)
}

#[cfg(test)]
mod tests {
    use super::{KeyLen, ValueLen};
    use crate::keys::Random;

    const DRAWS: usize = 200_000;

    fn mean(mut draw: impl FnMut(&mut Random) -> u32) -> f64 {
        let mut random = Random::new(7);
        (0..DRAWS).map(|_| f64::from(draw(&mut random))).sum::<f64>() / DRAWS as f64
    }

    #[test]
    fn etc_keys_have_the_papers_mean() {
        // location + scale * (gamma(1 - shape) - 1) / shape
        let got = mean(|random| KeyLen::Etc.draw(random));
        assert!((got - 36.2).abs() < 0.5, "{got}");
    }

    #[test]
    fn etc_values_have_the_papers_mean_and_small_share() {
        let got = mean(|random| ValueLen::Etc.draw(random));
        // 0.558 * 214.476 / (1 - 0.348238) and what the small values and the clamp add.
        assert!((180.0..200.0).contains(&got), "{got}");
        let two = mean(|random| u32::from(ValueLen::Etc.draw(random) == 2));
        assert!((two - 0.1782).abs() < 0.005, "{two}");
    }
}

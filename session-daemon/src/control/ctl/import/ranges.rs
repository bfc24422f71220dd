//! Sets of addresses of one family, as ranges. Pure arithmetic.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// The largest address as a number.
    fn max(self) -> u128 {
        match self {
            Self::V4 => u128::from(u32::MAX),
            Self::V6 => u128::MAX,
        }
    }

    /// Bits of an address.
    pub(super) fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The family of an address.
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// An address as a number.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Addresses as sorted ranges, both ends included, that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    /// Every address of a family.
    pub(super) fn all(family: Family) -> Self {
        Self(vec![(0, family.max())])
    }

    /// From one address to another; empty if the first is the larger one.
    pub(super) fn between(first: u128, last: u128) -> Self {
        Self(if first <= last { vec![(first, last)] } else { Vec::new() })
    }

    /// The addresses of a network.
    pub(super) fn of(net: IpNet) -> Self {
        Self::between(number(net.network()), number(net.broadcast()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether most addresses of the family are in the set.
    pub(super) fn is_most(&self, family: Family) -> bool {
        let count =
            self.0.iter().fold(0_u128, |all, (first, last)| all.saturating_add(last - first));
        count > family.max() / 2
    }

    /// Addresses of either.
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut ranges: Vec<_> = self.0.iter().chain(&other.0).copied().collect();
        ranges.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match joined.last_mut() {
                Some(end) if first <= end.1.saturating_add(1) => end.1 = end.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }

    /// Addresses of both.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        let (mut common, mut left, mut right) = (Vec::new(), 0, 0);
        while let (Some(a), Some(b)) = (self.0.get(left), other.0.get(right)) {
            let (first, last) = (a.0.max(b.0), a.1.min(b.1));
            if first <= last {
                common.push((first, last));
            }
            if a.1 < b.1 { left += 1 } else { right += 1 }
        }
        Self(common)
    }

    /// Addresses of this set that the other has not.
    pub(super) fn without(&self, other: &Self, family: Family) -> Self {
        self.intersection(&other.complement(family))
    }

    /// Addresses of the family that are not in the set.
    pub(super) fn complement(&self, family: Family) -> Self {
        let (mut rest, mut next) = (Vec::new(), Some(0));
        for (first, last) in &self.0 {
            if let Some(next) = next.filter(|next| next < first) {
                rest.push((next, first - 1));
            }
            next = last.checked_add(1).filter(|next| *next <= family.max());
        }
        rest.extend(next.map(|next| (next, family.max())));
        Self(rest)
    }

    /// The fewest networks that make up the set, in order.
    pub(super) fn networks(&self, family: Family) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for (first, last) in &self.0 {
            let mut next = *first;
            loop {
                let length = largest(next, *last, family);
                networks.push(network(next, length, family));
                let size_less_one = family.max().checked_shr(length.into()).unwrap_or(0);
                let Some(after) =
                    next.checked_add(size_less_one).and_then(|end| end.checked_add(1))
                else {
                    break;
                };
                if after > *last {
                    break;
                }
                next = after;
            }
        }
        networks
    }
}

/// Length of the largest network that begins at `first` and ends at or before `last`.
fn largest(first: u128, last: u128, family: Family) -> u8 {
    let fits = |length: &u8| {
        let rest = family.max().checked_shr((*length).into()).unwrap_or(0);
        first & rest == 0 && first.checked_add(rest).is_some_and(|end| end <= last)
    };
    (0..family.bits()).find(fits).unwrap_or(family.bits())
}

fn network(first: u128, length: u8, family: Family) -> IpNet {
    match family {
        Family::V4 => {
            let address = u32::try_from(first).expect("IPv4 ranges end at the largest address");
            IpNet::V4(Ipv4Net::new_assert(address.into(), length))
        }
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(first.into(), length)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(text: &str) -> Ranges {
        text.split_whitespace()
            .map(|net| Ranges::of(net.parse().unwrap()))
            .fold(Ranges::default(), |all, one| all.union(&one))
    }

    #[test]
    fn sets_come_out_as_the_fewest_networks() {
        let text = |ranges: &Ranges, family| {
            let networks = ranges.networks(family);
            networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let joined = nets("198.18.0.0/25 198.18.0.128/25 198.18.2.0/24");
        assert_eq!(text(&joined, Family::V4), "198.18.0.0/24 198.18.2.0/24");
        let hole = nets("198.18.0.0/30").without(&nets("198.18.0.1/32"), Family::V4);
        assert_eq!(text(&hole, Family::V4), "198.18.0.0/32 198.18.0.2/31");
        assert_eq!(text(&Ranges::all(Family::V4), Family::V4), "0.0.0.0/0");
        assert_eq!(text(&Ranges::all(Family::V6), Family::V6), "::/0");
        assert_eq!(text(&Ranges::all(Family::V6).complement(Family::V6), Family::V6), "");
        let top = Ranges::between(u128::MAX - 1, u128::MAX);
        assert_eq!(text(&top, Family::V6), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127");
    }

    fn set() -> impl Strategy<Value = Ranges> {
        let range = (0_u128..200, 0_u128..30).prop_map(|(first, len)| (first, first + len));
        prop::collection::vec(range, 0..6).prop_map(|ranges| {
            ranges.into_iter().fold(Ranges::default(), |all, (first, last)| {
                all.union(&Ranges::between(first, last))
            })
        })
    }

    fn has(set: &Ranges, address: u128) -> bool {
        set.0.iter().any(|(first, last)| (*first..=*last).contains(&address))
    }

    proptest! {
        #[test]
        fn sets_do_what_sets_do(a in set(), b in set()) {
            let (union, both) = (a.union(&b), a.intersection(&b));
            let (rest, less) = (a.complement(Family::V4), a.without(&b, Family::V4));
            for address in (0..240).chain([u128::from(u32::MAX)]) {
                let (in_a, in_b) = (has(&a, address), has(&b, address));
                prop_assert_eq!(has(&union, address), in_a || in_b);
                prop_assert_eq!(has(&both, address), in_a && in_b);
                prop_assert_eq!(has(&rest, address), !in_a);
                prop_assert_eq!(has(&less, address), in_a && !in_b);
            }
            let again = a.networks(Family::V4).into_iter().map(Ranges::of);
            prop_assert_eq!(again.fold(Ranges::default(), |all, one| all.union(&one)), a);
        }
    }
}

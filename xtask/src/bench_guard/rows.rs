//! The ways to refuse packets, and to let them through, that are compared.
#![forbid(unsafe_code)]

use std::fmt;

use session_tests::skip::has_program;

/// Where a program of ours stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Native,
    /// In the driver, by the program that kernels before 5.18 take.
    NativePlain,
    Generic,
    Tcx,
}

/// What `iptables` writes rules for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    /// The program, which has one with `-restore` beside it.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
        }
    }
}

/// One way; numbers are hosts on its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Filter {
    /// Nothing at all.
    None,
    /// A program that only drops.
    Bare(Place),
    Guard(Place, u32),
    NftSet(u32),
    /// Accepts, then a drop.
    Chain(Backend, u32),
    /// Accepts, then an ICMP answer.
    ChainRejects(Backend, u32),
    Ipset(u32),
}

/// What the flood is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Traffic {
    /// SYNs of strangers.
    Refused,
    /// Datagrams of allowed sources to a socket that nobody reads.
    Allowed,
}

/// A filter under some traffic.
pub(super) type Row = (Traffic, Filter);

/// All rows, in the order of the tables.
pub(super) fn all() -> Vec<Row> {
    use Backend::{Legacy, Nft};
    use Filter::{Bare, Chain, ChainRejects, Guard, Ipset, NftSet};
    let refused = [
        Bare(Place::Native),
        Guard(Place::Native, 10),
        Guard(Place::Native, 10_000),
        Guard(Place::Native, 1_000_000),
        Guard(Place::NativePlain, 10),
        Bare(Place::Tcx),
        Guard(Place::Tcx, 10),
        Guard(Place::Tcx, 1_000_000),
        Bare(Place::Generic),
        Guard(Place::Generic, 10),
        NftSet(10),
        NftSet(10_000),
        Ipset(10_000),
        Chain(Legacy, 10),
        ChainRejects(Legacy, 10),
        Chain(Legacy, 10_000),
        Chain(Nft, 10),
        ChainRejects(Nft, 10),
        Chain(Nft, 10_000),
    ];
    let allowed = [
        Filter::None,
        Guard(Place::Native, 10),
        Guard(Place::Native, 1_000_000),
        Guard(Place::Tcx, 10),
        Guard(Place::Generic, 10),
        NftSet(10),
        Ipset(10_000),
        Chain(Legacy, 10),
        Chain(Nft, 10),
    ];
    let refused = refused.map(|filter| (Traffic::Refused, filter));
    refused.into_iter().chain(allowed.map(|filter| (Traffic::Allowed, filter))).collect()
}

impl Filter {
    /// The program that the row cannot do without.
    pub(super) fn needs(self) -> Option<&'static str> {
        match self {
            Self::Bare(Place::Native) | Self::Guard(Place::Native | Place::NativePlain, _) => None,
            Self::NftSet(_) => Some("nft"),
            Self::Chain(backend, _) | Self::ChainRejects(backend, _) => Some(backend.program()),
            Self::Ipset(_) => Some("ipset"),
            // Their end of the veth pair receives redirected frames only with GRO.
            _ => Some("ethtool"),
        }
    }

    pub(super) fn is_possible(self) -> bool {
        self.needs().is_none_or(has_program)
    }

    /// The row that does nothing but drop at the same place.
    pub(super) const fn bare(self) -> Option<Self> {
        match self {
            Self::Guard(Place::Native | Place::NativePlain, _) => Some(Self::Bare(Place::Native)),
            Self::Guard(place, _) => Some(Self::Bare(place)),
            _ => None,
        }
    }

    /// Whether it is what this project is about.
    pub(super) const fn is_ours(self) -> bool {
        matches!(self, Self::Guard(..))
    }

    /// How many times fewer packets it is given: a chain is walked rule by rule.
    pub(super) const fn slowness(self) -> u32 {
        match self {
            Self::Chain(_, hosts) | Self::ChainRejects(_, hosts) if hosts >= 1000 => 20,
            _ => 1,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |place: Place| match place {
            Place::Native => "native",
            Place::NativePlain => "native, without frags",
            Place::Generic => "generic",
            Place::Tcx => "tcx",
        };
        match self {
            Self::None => write!(formatter, "no filter"),
            Self::Bare(at) => write!(formatter, "bare drop, {}", place(*at)),
            Self::Guard(at, hosts) => write!(formatter, "guard, {}, {}", place(*at), count(*hosts)),
            Self::NftSet(hosts) => write!(formatter, "nft input, set of {}", count(*hosts)),
            Self::Ipset(hosts) => {
                write!(formatter, "iptables-legacy, ipset of {}", count(*hosts))
            }
            Self::Chain(backend, hosts) => {
                write!(formatter, "{}, chain of {}", backend.program(), count(*hosts))
            }
            Self::ChainRejects(backend, hosts) => {
                write!(formatter, "{}, chain of {}, REJECT", backend.program(), count(*hosts))
            }
        }
    }
}

/// `10,000 hosts`.
fn count(hosts: u32) -> String {
    let digits = hosts.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("{text} hosts")
}

#[cfg(test)]
mod tests {
    use super::{Filter, Place, all};

    #[test]
    fn rows_have_names_of_their_own() {
        let mut names: Vec<String> =
            all().iter().map(|(traffic, filter)| format!("{traffic:?} {filter}")).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        let name = Filter::Guard(Place::Native, 1_000_000).to_string();
        assert_eq!(name, "guard, native, 1,000,000 hosts");
    }
}

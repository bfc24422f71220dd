//! Samples of dropped packets: read from the kernel's rings, and who is refused most by them.
//!
//! It owns how far each ring has been read. The rings are read and never emptied, so that several
//! daemons over one guard each see all.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use aya::maps::PerCpuValues;
use serde::{Deserialize, Serialize};
use session_common::answer::{Answer, SAMPLES_MAX, Sample};
use session_common::guard::Reason;

use crate::guard::Guard;

/// Sources that are counted; the least refused make room.
const SOURCES_MAX: usize = 512;

/// How often all counts are halved: what is shown is of the last minutes.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// Sources that `status` names.
const TOP_MAX: usize = 10;

/// Pairs of interface and reason that are counted: interfaces come and go.
const PLACES_MAX: usize = 1024;

/// A dropped packet of many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drop {
    /// Its source, if that could be read.
    pub source: Option<IpAddr>,
    /// Destination port, if that could be found.
    pub port: Option<u16>,
    /// `tcp` or `udp`, likewise.
    pub protocol: Option<String>,
    /// As [`Reason::name`] has it.
    pub reason: String,
    /// Name of the device; none for the listening sockets' own filter.
    pub interface: Option<String>,
    /// As [`Answer::name`] has it, if an answer was asked for.
    pub answer: Option<String>,
    /// Packets that it stands for: those dropped on its CPU since the sample before.
    pub packets: u32,
}

/// A source that is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopSource {
    /// Its address.
    pub source: IpAddr,
    /// About how many of its packets were dropped lately.
    pub packets: u64,
}

/// What was dropped on an interface for a reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceDrops {
    /// Name of the device; none for the listening sockets' own filter.
    pub interface: Option<String>,
    /// As [`Reason::name`] has it.
    pub reason: String,
    /// About how many packets were dropped since the daemon started.
    pub packets: u64,
}

/// How far the rings were read, and what they told.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// Number of the last sample that was read, by CPU; none before the first reading, which
    /// skips what is there.
    read: Option<Vec<u64>>,
    sources: HashMap<IpAddr, u64>,
    halved_at: Option<Instant>,
    /// Packets by interface and reason.
    places: BTreeMap<(Option<String>, String), u64>,
}

impl Samples {
    /// Adds to a source's count. A new source takes the place of the least refused one, with its
    /// count, so that no source is ever counted too low.
    fn add(&mut self, source: IpAddr, packets: u64) {
        let mut before = 0;
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            let least = self.sources.iter().min_by_key(|(_, count)| **count);
            if let Some((least, count)) = least.map(|(least, count)| (*least, *count)) {
                self.sources.remove(&least);
                before = count;
            }
        }
        *self.sources.entry(source).or_insert(before) += packets;
    }

    /// Adds to the count of an interface and reason.
    fn add_to_place(&mut self, drop: &Drop) {
        let place = (drop.interface.clone(), drop.reason.clone());
        if self.places.len() < PLACES_MAX || self.places.contains_key(&place) {
            *self.places.entry(place).or_default() += u64::from(drop.packets);
        }
    }

    /// What was dropped where, and why.
    pub(super) fn by_place(&self) -> Vec<PlaceDrops> {
        let places = self.places.iter().map(|((interface, reason), packets)| PlaceDrops {
            interface: interface.clone(),
            reason: reason.clone(),
            packets: *packets,
        });
        places.collect()
    }

    fn halve(&mut self) {
        let halved_at = self.halved_at.get_or_insert_with(Instant::now);
        if halved_at.elapsed() >= HALF_LIFE {
            *halved_at = Instant::now();
            self.sources.values_mut().for_each(|count| *count /= 2);
            self.sources.retain(|_, count| *count > 0);
        }
    }

    /// The sources that are refused most, the first first.
    pub(super) fn top(&self) -> Vec<TopSource> {
        let mut top: Vec<TopSource> = self
            .sources
            .iter()
            .map(|(source, packets)| TopSource { source: *source, packets: *packets })
            .collect();
        top.sort_by_key(|one| (std::cmp::Reverse(one.packets), one.source));
        top.truncate(TOP_MAX);
        top
    }
}

impl Guard {
    /// Samples of packets dropped since the last call, oldest first. To be called four times a
    /// second: at least the last 64 of each CPU are there.
    pub fn drops(&mut self) -> Vec<Drop> {
        self.samples.halve();
        let Ok(states) = self.maps.sampling.get(&0, 0) else { return Vec::new() };
        let last: Vec<u64> = states.iter().map(|state| state.number).collect();
        let before = self.samples.read.replace(last.clone());
        let Some(before) = before else { return Vec::new() };
        let mut samples: Vec<Sample> = Vec::new();
        // A question to the kernel is about one place of all CPUs' rings, so each is asked once.
        let mut places: HashMap<u32, Option<PerCpuValues<Sample>>> = HashMap::new();
        for (cpu, (last, before)) in last.iter().zip(&before).enumerate() {
            let first = (before + 1).max((last + 1).saturating_sub(SAMPLES_MAX.into()));
            for number in first..=*last {
                let place = (number % u64::from(SAMPLES_MAX)) as u32;
                let values =
                    places.entry(place).or_insert_with(|| self.maps.samples.get(&place, 0).ok());
                let sample = values.as_ref().and_then(|values| values.get(cpu));
                // One that has another number has been written over.
                samples.extend(sample.filter(|sample| sample.number == number));
            }
        }
        samples.sort_by_key(|sample| sample.at_ns);
        let drops: Vec<Drop> = samples.iter().map(|sample| self.describe(sample)).collect();
        for drop in &drops {
            self.samples.add_to_place(drop);
            if let Some(source) = drop.source {
                self.samples.add(source, drop.packets.into());
            }
        }
        drops
    }

    fn describe(&self, sample: &Sample) -> Drop {
        let mut source = [0; 16];
        source[..8].copy_from_slice(&sample.source[0].to_ne_bytes());
        source[8..].copy_from_slice(&sample.source[1].to_ne_bytes());
        let source = Ipv6Addr::from(source);
        let reason = Reason::ALL.iter().find(|reason| **reason as u8 == sample.reason);
        let answer = Answer::ALL.iter().find(|answer| **answer as u8 + 1 == sample.answer);
        let interface = self.interfaces.iter().find(|one| one.ifindex == sample.ifindex);
        Drop {
            source: (source != Ipv6Addr::UNSPECIFIED).then(|| source.to_canonical()),
            port: Some(sample.port).filter(|_| sample.protocol != 0),
            protocol: match sample.protocol {
                6 => Some("tcp".to_owned()),
                17 => Some("udp".to_owned()),
                _ => None,
            },
            reason: reason.map_or("unknown", |reason| reason.name()).to_owned(),
            interface: (sample.ifindex != 0).then(|| {
                interface.map_or_else(|| sample.ifindex.to_string(), |one| one.name.clone())
            }),
            answer: answer.map(|answer| answer.name().to_owned()),
            packets: sample.weight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from((0xc612_0000 | number).to_be_bytes())
    }

    #[test]
    fn the_most_refused_sources_are_named_though_others_come_and_go() {
        let mut samples = Samples::default();
        for number in 0..10_000_u32 {
            samples.add(address(1_000 + number), 1);
            if number % 10 < 3 {
                samples.add(address(number % 10), 7);
            }
        }
        let top = samples.top();
        assert_eq!(samples.sources.len(), SOURCES_MAX);
        assert_eq!(top.len(), TOP_MAX);
        for number in 0..3 {
            let place = top.iter().position(|one| one.source == address(number));
            assert!(place.is_some_and(|place| place < 3), "{top:?}");
            assert!(top[place.unwrap()].packets >= 7_000, "{top:?}");
        }
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! Which flows to show.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::client::Flow;
use crate::client::Side;
use crate::mark::Mark;
use crate::wire::FlowState;
use crate::wire::Transform;

/// Addresses with a common beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// One of the addresses.
    pub address: IpAddr,
    /// How many bits count.
    pub length: u8,
}

impl Prefix {
    fn contains(self, address: IpAddr) -> bool {
        let differs = |a: u128, b: u128, width: u32| {
            // A shift by the whole width, for a length of 0, leaves nothing.
            (a ^ b).checked_shr(width - u32::from(self.length)).unwrap_or(0) != 0
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => !differs(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => !differs(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        self.address.fmt(f)?;
        if self.length == width { Ok(()) } else { write!(f, "/{}", self.length) }
    }
}

/// The name of a device, or the beginning of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(pub String);

impl Pattern {
    fn matches(&self, name: Option<&str>) -> bool {
        match (self.0.strip_suffix('*'), name) {
            (Some(start), Some(name)) => name.starts_with(start),
            (None, Some(name)) => self.0 == name,
            (_, None) => false,
        }
    }
}

/// What IPsec does to packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipsec {
    /// Something.
    Exists,
    /// Nothing.
    Missing,
    /// This, and perhaps more.
    Is(Transform),
}

impl Ipsec {
    /// The words for it.
    pub const WORDS: &[&str] = &["exists", "missing", "decrypted", "encrypted"];

    /// What the word stands for.
    pub fn from_word(word: &str) -> Option<Self> {
        match word {
            "exists" => Some(Self::Exists),
            "missing" => Some(Self::Missing),
            name => Transform::from_name(name).map(Self::Is),
        }
    }

    /// Whether it is true of a flow with these bits: see [`Flow::ipsec`].
    fn matches(self, bits: u32) -> bool {
        match self {
            Self::Exists => bits != 0,
            Self::Missing => bits == 0,
            Self::Is(Transform(position)) => (bits >> position) & 1 != 0,
        }
    }
}

impl fmt::Display for Ipsec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists => f.write_str("exists"),
            Self::Missing => f.write_str("missing"),
            Self::Is(transform) => transform.fmt(f),
        }
    }
}

/// One condition. Addresses, and ports match as received or as sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `tcp`, `udp`, `protocol N`
    Protocol(u8),
    /// `ip`, `ip6`
    Version6(bool),
    /// `original`, `reply`
    Reply(bool),
    /// `saddr`
    Source(Prefix),
    /// `daddr`
    Destination(Prefix),
    /// `sport`
    SourcePort(RangeInclusive<u16>),
    /// `dport`
    DestinationPort(RangeInclusive<u16>),
    /// `iifname`
    InName(Pattern),
    /// `oifname`
    OutName(Pattern),
    /// `iif`
    InIndex(u32),
    /// `oif`
    OutIndex(u32),
    /// `state`
    State(FlowState),
    /// `mark`
    Mark(Mark),
    /// `ipsec`
    Ipsec(Ipsec),
    /// `id`
    Id(u64),
}

/// Conditions that all have to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// The conditions, at most one of each kind.
    pub conditions: Vec<Condition>,
}

impl Filter {
    /// True if the flow is to be shown. The names are those of its devices.
    pub fn matches(&self, flow: &Flow, input: Option<&str>, output: Option<&str>) -> bool {
        self.conditions.iter().all(|condition| condition.matches(flow, input, output))
    }

    /// True if names of devices matter.
    pub fn needs_names(&self) -> bool {
        self.conditions
            .iter()
            .any(|condition| matches!(condition, Condition::InName(_) | Condition::OutName(_)))
    }
}

impl Condition {
    fn matches(&self, flow: &Flow, input: Option<&str>, output: Option<&str>) -> bool {
        let either = |test: &dyn Fn(&Side) -> Option<bool>| {
            test(&flow.received) == Some(true) || test(&flow.sent) == Some(true)
        };
        match self {
            Self::Protocol(protocol) => flow.protocol == Some(*protocol),
            Self::Version6(v6) => either(&|side| Some(side.source?.is_ipv6() == *v6)),
            Self::Reply(reply) => flow.reply == Some(*reply),
            Self::Source(prefix) => either(&|side| Some(prefix.contains(side.source?))),
            Self::Destination(prefix) => either(&|side| Some(prefix.contains(side.destination?))),
            Self::SourcePort(range) => either(&|side| Some(range.contains(&side.source_port?))),
            Self::DestinationPort(range) => {
                either(&|side| Some(range.contains(&side.destination_port?)))
            }
            Self::InName(pattern) => pattern.matches(input),
            Self::OutName(pattern) => pattern.matches(output),
            Self::InIndex(index) => flow.in_ifindex == Some(*index),
            Self::OutIndex(index) => flow.out_ifindex == Some(*index),
            Self::State(state) => flow.state == Some(*state),
            Self::Mark(mark) => {
                flow.conntrack_mark.is_some_and(|found| found & mark.mask == mark.value)
            }
            Self::Ipsec(ipsec) => ipsec.matches(flow.ipsec),
            Self::Id(id) => flow.id == *id,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
            (start, end) if start == end => start.to_string(),
            (start, end) => format!("{start}-{end}"),
        };
        match self {
            Self::Protocol(6) => f.write_str("tcp"),
            Self::Protocol(17) => f.write_str("udp"),
            Self::Protocol(number) => write!(f, "protocol {number}"),
            Self::Version6(v6) => f.write_str(if *v6 { "ip6" } else { "ip" }),
            Self::Reply(reply) => f.write_str(if *reply { "reply" } else { "original" }),
            Self::Source(prefix) => write!(f, "saddr {prefix}"),
            Self::Destination(prefix) => write!(f, "daddr {prefix}"),
            Self::SourcePort(range) => write!(f, "sport {}", ports(range)),
            Self::DestinationPort(range) => write!(f, "dport {}", ports(range)),
            Self::InName(pattern) => write!(f, "iifname \"{}\"", pattern.0),
            Self::OutName(pattern) => write!(f, "oifname \"{}\"", pattern.0),
            Self::InIndex(index) => write!(f, "iif {index}"),
            Self::OutIndex(index) => write!(f, "oif {index}"),
            Self::State(state) => write!(f, "state {state}"),
            Self::Mark(mark) if mark.mask == u32::MAX => write!(f, "mark {:#010x}", mark.value),
            Self::Mark(mark) => write!(f, "mark {mark}"),
            Self::Ipsec(ipsec) => write!(f, "ipsec {ipsec}"),
            Self::Id(id) => write!(f, "id {id}"),
        }
    }
}

impl fmt::Display for Filter {
    /// With a blank in front of each condition.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.conditions.iter().try_for_each(|condition| write!(f, " {condition}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(address: &str, length: u8) -> Prefix {
        Prefix { address: address.parse().unwrap(), length }
    }

    #[test]
    fn prefixes_contain_what_they_should() {
        let contains = |prefix: Prefix, address: &str| prefix.contains(address.parse().unwrap());
        assert!(contains(prefix("10.1.2.3", 8), "10.255.0.1"));
        assert!(!contains(prefix("10.1.2.3", 32), "10.1.2.4"));
        assert!(contains(prefix("0.0.0.0", 0), "203.0.113.1"));
        assert!(contains(prefix("::", 0), "2001:db8::1"));
        assert!(!contains(prefix("0.0.0.0", 0), "::1"));
        assert!(contains(prefix("2001:db8::", 32), "2001:db8:ffff::1"));
        assert!(!contains(prefix("2001:db8::", 128), "2001:db8::1"));
    }

    #[test]
    fn addresses_match_on_either_side() {
        let flow = Flow {
            received: Side { source: "10.0.0.2".parse().ok(), ..Side::default() },
            sent: Side { source: "192.0.2.1".parse().ok(), ..Side::default() },
            ..Flow::default()
        };
        let filter = |address| Filter { conditions: vec![Condition::Source(prefix(address, 32))] };
        assert!(filter("10.0.0.2").matches(&flow, None, None));
        assert!(filter("192.0.2.1").matches(&flow, None, None));
        assert!(!filter("10.0.0.3").matches(&flow, None, None));
    }

    #[test]
    fn names_may_end_in_a_star() {
        assert!(Pattern("ppp*".to_owned()).matches(Some("ppp17")));
        assert!(!Pattern("ppp*".to_owned()).matches(Some("eth0")));
        assert!(!Pattern("ppp".to_owned()).matches(Some("ppp17")));
        assert!(!Pattern("*".to_owned()).matches(None));
    }

    #[test]
    fn ipsec_may_do_several_things() {
        for (bits, words) in [
            (0, &["missing"][..]),
            (1, &["exists", "decrypted"]),
            (2, &["exists", "encrypted"]),
            (3, &["exists", "decrypted", "encrypted"]),
            (4, &["exists"]),
        ] {
            for word in Ipsec::WORDS {
                let ipsec = Ipsec::from_word(word).unwrap();
                assert_eq!(ipsec.to_string(), *word);
                assert_eq!(ipsec.matches(bits), words.contains(word), "{word} {bits}");
            }
        }
        for transform in Transform::ALL {
            assert!(Ipsec::WORDS.contains(&transform.name));
        }
    }

    #[test]
    fn what_a_flow_does_not_say_does_not_match() {
        for condition in [
            Condition::Protocol(0),
            Condition::Version6(false),
            Condition::SourcePort(0..=65535),
            Condition::Mark(Mark { value: 0, mask: 0 }),
            Condition::InIndex(0),
        ] {
            assert!(!condition.matches(&Flow::default(), None, None), "{condition}");
        }
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! The generic netlink family `fasttrack`, as numbers and names.
//!
//! This file is the tool's copy of `fasttrack.yaml` at the top of the project. A test reads that
//! specification and compares every number, name and explanation in here with it, so that the two
//! cannot drift apart. Nothing else in the tool knows a number of the family.

use std::fmt;

/// Name of the generic netlink family.
pub const FAMILY: &str = "fasttrack";
/// Version that requests carry. The specification names none, which means 1.
pub const VERSION: u8 = 1;
/// Name of the multicast group of the notifications.
pub const EVENTS: &str = "events";

/// The attributes of one message type or nest: numbers with their names.
#[derive(Debug, Clone, Copy)]
pub struct AttributeSet {
    /// Name in the specification.
    pub name: &'static str,
    /// Number and name of every attribute, in order.
    pub attributes: &'static [(u16, &'static str)],
}

impl AttributeSet {
    /// The name of an attribute, or its number if this tool does not know it.
    pub fn name_of(&self, number: u16) -> String {
        self.attributes
            .iter()
            .find(|(known, _)| *known == number)
            .map_or_else(|| format!("attribute {number}"), |(_, name)| (*name).to_owned())
    }
}

macro_rules! attributes {
    ($(#[$doc:meta])* $module:ident $set:literal { $($(#[$attr_doc:meta])* $name:ident = $number:literal $text:literal,)* }) => {
        $(#[$doc])*
        pub mod $module {
            $($(#[$attr_doc])* #[doc = concat!("Attribute `", $text, "`.")] pub const $name: u16 = $number;)*
            /// The whole set.
            pub const SET: super::AttributeSet = super::AttributeSet {
                name: $set,
                attributes: &[$(($number, $text),)*],
            };
        }
    };
}

attributes! {
    /// Configuration of the fast path in a network namespace.
    config "config" {
        ENABLED = 1 "enabled",
        MARK_VALUE = 2 "mark-value",
        MARK_MASK = 3 "mark-mask",
        TCP_TIMEOUT = 4 "tcp-timeout",
        UDP_TIMEOUT = 5 "udp-timeout",
        SAMPLE_INTERVAL = 6 "sample-interval",
        TABLE_SIZE = 7 "table-size",
        IPSEC = 8 "ipsec",
        LEARN_AFTER = 9 "learn-after",
    }
}

attributes! {
    /// A flow: one direction of one connection.
    flow "flow" {
        ID = 1 "id",
        STATE = 2 "state",
        FAMILY = 3 "family",
        PROTOCOL = 4 "protocol",
        REPLY = 5 "reply",
        SOURCE = 6 "source",
        DESTINATION = 7 "destination",
        SOURCE_PORT = 8 "source-port",
        DESTINATION_PORT = 9 "destination-port",
        NAT_SOURCE = 10 "nat-source",
        NAT_DESTINATION = 11 "nat-destination",
        NAT_SOURCE_PORT = 12 "nat-source-port",
        NAT_DESTINATION_PORT = 13 "nat-destination-port",
        IN_IFINDEX = 14 "in-ifindex",
        OUT_IFINDEX = 15 "out-ifindex",
        PACKETS = 16 "packets",
        BYTES = 17 "bytes",
        AGE = 18 "age",
        IDLE = 19 "idle",
        CONNTRACK_ID = 20 "conntrack-id",
        CONNTRACK_MARK = 21 "conntrack-mark",
        PACKET_MARK = 22 "packet-mark",
        PRIORITY = 23 "priority",
        DSCP_IN = 24 "dscp-in",
        DSCP_OUT = 25 "dscp-out",
        MTU = 26 "mtu",
        GONE_REASON = 27 "gone-reason",
        IPSEC = 28 "ipsec",
    }
}

attributes! {
    /// One reason for slow packets, with its count; nested in [`stats`].
    slow_count "slow-count" {
        REASON = 1 "reason",
        PACKETS = 2 "packets",
    }
}

attributes! {
    /// One reason for dropped flows, with its count; nested in [`stats`].
    gone_count "gone-count" {
        REASON = 1 "reason",
        FLOWS = 2 "flows",
    }
}

attributes! {
    /// Counters of a network namespace.
    stats "stats" {
        FLOWS = 1 "flows",
        TABLE_SIZE = 2 "table-size",
        FLOW_BYTES = 3 "flow-bytes",
        INDEX_BYTES = 4 "index-bytes",
        PACKETS_ORIGINAL = 5 "packets-original",
        BYTES_ORIGINAL = 6 "bytes-original",
        PACKETS_REPLY = 7 "packets-reply",
        BYTES_REPLY = 8 "bytes-reply",
        LEARNED = 9 "learned",
        DEVICES = 10 "devices",
        SLOW = 11 "slow",
        GONE = 12 "gone",
    }
}

/// Commands and notifications.
pub mod command {
    /// Read the configuration.
    pub const CONFIG_GET: u8 = 1;
    /// Change the configuration.
    pub const CONFIG_SET: u8 = 2;
    /// The configuration changed.
    pub const CONFIG_NTF: u8 = 3;
    /// Dump the flows.
    pub const FLOW_GET: u8 = 4;
    /// A flow was learned.
    pub const FLOW_NEW_NTF: u8 = 5;
    /// A flow was dropped.
    pub const FLOW_GONE_NTF: u8 = 6;
    /// Drop every flow, or one.
    pub const FLOW_FLUSH: u8 = 7;
    /// Read the counters.
    pub const STATS_GET: u8 = 8;

    /// Number and name of every operation, in order.
    pub const ALL: &[(u8, &str)] = &[
        (CONFIG_GET, "config-get"),
        (CONFIG_SET, "config-set"),
        (CONFIG_NTF, "config-ntf"),
        (FLOW_GET, "flow-get"),
        (FLOW_NEW_NTF, "flow-new-ntf"),
        (FLOW_GONE_NTF, "flow-gone-ntf"),
        (FLOW_FLUSH, "flow-flush"),
        (STATS_GET, "stats-get"),
    ];
}

/// One value of an enumeration.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Value on the wire.
    pub value: u32,
    /// Name in the specification, which is what the tool prints.
    pub name: &'static str,
    /// Explanation in the specification.
    pub doc: &'static str,
}

/// A value that a newer module may have extended: every number is representable, and one that this
/// tool does not know prints as the number.
macro_rules! enumeration {
    ($(#[$doc:meta])* $type:ident $spec:literal { $($konst:ident = $value:literal $name:literal $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(pub u32);

        impl $type {
            $(#[doc = $text] pub const $konst: Self = Self($value);)*

            /// Name of the enumeration in the specification.
            pub const SPEC: &'static str = $spec;

            /// Every value that this tool knows, in order.
            pub const ALL: &'static [Entry] = &[$(Entry { value: $value, name: $name, doc: $text },)*];

            /// What is known about this value.
            pub fn entry(self) -> Option<&'static Entry> {
                Self::ALL.iter().find(|entry| entry.value == self.0)
            }

            /// The value with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().find(|entry| entry.name == name).map(|entry| Self(entry.value))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.entry() {
                    Some(entry) => f.pad(entry.name),
                    None => f.pad(&self.0.to_string()),
                }
            }
        }
    };
}

enumeration! {
    /// How far the memo of a flow has come.
    FlowState "flow-state" {
        LEARNING = 0 "learning" "Made, and waiting for a first packet that confirms it.",
        FAST = 1 "fast" "Packets take the fast path.",
        SAMPLING = 2 "sampling" "Waiting for a packet to come out of the slow path again.",
    }
}

enumeration! {
    /// What becomes of connections that IPsec encrypts or has decrypted.
    IpsecMode "ipsec-mode" {
        EXCLUDE = 0 "exclude" "They stay slow.",
        ACCELERATE = 1 "accelerate" "They become fast like others, through the states and under the policies that the slow path finds for them.",
    }
}

enumeration! {
    /// What IPsec does to the packets of a flow: positions of bits.
    Transform "transform" {
        DECRYPTED = 0 "decrypted" "They have been decrypted when they arrive.",
        ENCRYPTED = 1 "encrypted" "They are encrypted before they leave, or by the device that they leave by.",
    }
}

enumeration! {
    /// Why a packet that could have been fast took the slow path.
    SlowReason "slow-reason" {
        LEARNING = 0 "learning" "The flow is not known yet, or not confirmed yet.",
        SAMPLED = 1 "sampled" "The periodic return to the slow path, which confirms the memo.",
        REVALIDATING = 2 "revalidating" "An nf_tables rule, an IPsec policy or state, a group of next hops, a device, or the configuration changed since the flow was confirmed.",
        NOT_ESTABLISHED = 3 "not-established" "Conntrack has not seen both directions of the connection.",
        UNTRACKED = 4 "untracked" "The packet has no conntrack entry.",
        HELPER = 5 "helper" "The connection has a conntrack helper.",
        SEQUENCE_ADJUSTED = 6 "sequence-adjusted" "Conntrack rewrites TCP sequence numbers of this connection.",
        TCP_STATE = 7 "tcp-state" "The TCP connection is not in its established state.",
        TCP_FLAGS = 8 "tcp-flags" "A SYN, FIN or RST, or a segment outside of the window, which conntrack has to see.",
        MARKED = 9 "marked" "The connection carries the excluded conntrack mark.",
        IPSEC = 10 "ipsec" "The route has an IPsec transform, the packet was decrypted, or an xfrm or vti device has it; and IPsec is excluded, or this kind of it can't be fast.",
        SECPATH_MISMATCH = 11 "secpath-mismatch" "The packet was decrypted and the flow was learned in clear, or the other way round; or it was decrypted by other IPsec states.",
        FRAGMENT = 12 "fragment" "An IP fragment.",
        IP_OPTIONS = 13 "ip-options" "The IP header has options, or extension headers behind it.",
        TTL = 14 "ttl" "The time to live ends at this router.",
        MTU = 15 "mtu" "The packet is larger than the route's MTU.",
        NO_NEIGHBOUR = 16 "no-neighbour" "The next hop's link-layer address is not known.",
        STALE_ROUTE = 17 "stale-route" "The route changed since the flow was confirmed.",
        ROUTE_TYPE = 18 "route-type" "The route is not a plain unicast one (multicast, broadcast, lightweight tunnel).",
        MANGLED = 19 "mangled" "The packet is rewritten in a way that the fast path can't repeat.",
        DSCP = 20 "dscp" "The packet's DSCP is not the one that the flow was confirmed with.",
        PACKET_MARK = 21 "packet-mark" "The packet had a mark before it reached the fast path.",
        CONNTRACK_GONE = 22 "conntrack-gone" "The conntrack entry is being deleted.",
        TABLE_FULL = 23 "table-full" "No room for another flow.",
        NO_MEMORY = 24 "no-memory" "An allocation failed.",
        BAD_HEADER = 25 "bad-header" "Version, header length, total length or header checksum are wrong; the slow path drops such a packet.",
        OTHER_HOST = 26 "other-host" "The frame is addressed to another host's link-layer address.",
        UNSUPPORTED = 27 "unsupported" "The packet is in a state that the fast path leaves alone, or came past its hook, as by way of an ifb.",
        SCTP_CONTROL = 28 "sctp-control" "An SCTP packet with more than data and acknowledgements, or not of the association.",
        ZONES = 29 "zones" "Connections of more than one conntrack zone arrive on the device, so that packets with the same addresses may be of different ones.",
        SENDER = 30 "sender" "The packet's Ethernet header names another source than the one that the flow was confirmed with.",
    }
}

enumeration! {
    /// Why a flow was dropped.
    GoneReason "gone-reason" {
        IDLE = 0 "idle" "No packet for the idle timeout.",
        CLOSED = 1 "closed" "The TCP connection left its established state.",
        CONNTRACK = 2 "conntrack" "The conntrack entry was deleted or has expired.",
        MARKED = 3 "marked" "The connection got the excluded conntrack mark.",
        IPSEC = 4 "ipsec" "The flow now needs, or came through, an IPsec transform, or its own is gone.",
        REPLACED = 5 "replaced" "Route, neighbour or conntrack entry changed; a new memo was made.",
        SAMPLE_LOST = 6 "sample-lost" "Packets went into the slow path and did not come out.",
        DEVICE = 7 "device" "A device of the flow went down or away.",
        FLUSHED = 8 "flushed" "On request, or because the configuration changed.",
        DISABLED = 9 "disabled" "fasttrack was switched off, or its namespace is going.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yaml_rust2::Yaml;
    use yaml_rust2::YamlLoader;

    fn specification() -> Yaml {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../fasttrack.yaml");
        let text = std::fs::read_to_string(path).expect("the specification is beside the tool");
        YamlLoader::load_from_str(&text).expect("it is YAML").remove(0)
    }

    fn list(yaml: &Yaml) -> &[Yaml] {
        yaml.as_vec().expect("a list")
    }

    fn text<'a>(yaml: &'a Yaml, key: &str) -> &'a str {
        yaml[key].as_str().unwrap_or_else(|| panic!("{key} in {yaml:?}"))
    }

    fn words(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_family_is_the_specified_one() {
        let specification = specification();
        assert_eq!(text(&specification, "name"), FAMILY);
        assert_eq!(text(&specification, "protocol"), "genetlink");
        assert!(specification["version"].is_badvalue(), "no version means {VERSION}");
        let groups: Vec<_> =
            list(&specification["mcast-groups"]["list"]).iter().map(|g| text(g, "name")).collect();
        assert_eq!(groups, [EVENTS]);
    }

    #[test]
    fn the_attributes_are_the_specified_ones() {
        let specification = specification();
        let sets = [config::SET, flow::SET, slow_count::SET, gone_count::SET, stats::SET];
        let specified = list(&specification["attribute-sets"]);
        assert_eq!(specified.len(), sets.len());
        for (specified, set) in specified.iter().zip(sets) {
            assert_eq!(text(specified, "name"), set.name);
            // Without an explicit value they count from 1.
            let attributes = list(&specified["attributes"]);
            for attribute in attributes {
                assert!(attribute["value"].is_badvalue(), "{attribute:?}");
            }
            let attributes: Vec<_> =
                (1..).zip(attributes.iter().map(|a| text(a, "name"))).collect();
            assert_eq!(attributes, set.attributes, "{}", set.name);
        }
    }

    /// What `client` reads and writes, by name, so that a changed type is noticed too.
    #[test]
    #[expect(clippy::match_same_arms, reason = "one arm a kind of attribute")]
    fn the_types_are_the_ones_that_are_read() {
        let specification = specification();
        for set in list(&specification["attribute-sets"]) {
            for attribute in list(&set["attributes"]) {
                let name = text(attribute, "name");
                let order = attribute["byte-order"].as_str().unwrap_or("host");
                let expected = match (text(set, "name"), name) {
                    ("config", "enabled" | "ipsec") => ("u8", "host"),
                    ("config", _) => ("u32", "host"),
                    ("flow", "id" | "packets" | "bytes" | "age" | "idle") => ("u64", "host"),
                    ("flow", "family" | "protocol" | "reply" | "dscp-in" | "dscp-out") => {
                        ("u8", "host")
                    }
                    ("flow", "source" | "destination" | "nat-source" | "nat-destination") => {
                        ("binary", "host")
                    }
                    ("flow", "conntrack-id") => ("u32", "big-endian"),
                    ("flow", name) if name.ends_with("-port") => ("u16", "big-endian"),
                    ("flow", _) => ("u32", "host"),
                    ("slow-count" | "gone-count", "reason") => ("u32", "host"),
                    ("slow-count" | "gone-count", _) => ("u64", "host"),
                    ("stats", "flows" | "table-size" | "flow-bytes" | "devices") => ("u32", "host"),
                    ("stats", "slow" | "gone") => ("nest", "host"),
                    ("stats", _) => ("u64", "host"),
                    other => panic!("{other:?}"),
                };
                assert_eq!((text(attribute, "type"), order), expected, "{name}");
            }
        }
    }

    #[test]
    fn the_commands_are_the_specified_ones() {
        let specification = specification();
        let operations = list(&specification["operations"]["list"]);
        // Requests and notifications share one numbering, from 1.
        let specified: Vec<_> = (1..).zip(operations.iter().map(|o| text(o, "name"))).collect();
        assert_eq!(specified, command::ALL);
    }

    #[test]
    fn the_values_are_the_specified_ones() {
        let specification = specification();
        let enumerations = [
            (FlowState::SPEC, FlowState::ALL),
            (IpsecMode::SPEC, IpsecMode::ALL),
            (Transform::SPEC, Transform::ALL),
            (SlowReason::SPEC, SlowReason::ALL),
            (GoneReason::SPEC, GoneReason::ALL),
        ];
        let definitions = list(&specification["definitions"]);
        assert_eq!(definitions.len(), enumerations.len());
        for (definition, (name, entries)) in definitions.iter().zip(enumerations) {
            let kind = if name == Transform::SPEC { "flags" } else { "enum" };
            assert_eq!((text(definition, "name"), text(definition, "type")), (name, kind));
            let specified = list(&definition["entries"]);
            assert_eq!(specified.len(), entries.len(), "{name}");
            for ((value, specified), entry) in (0..).zip(specified).zip(entries) {
                assert_eq!((text(specified, "name"), value), (entry.name, entry.value));
                // The tool prints the explanations.
                assert_eq!(words(text(specified, "doc")), entry.doc, "{}", entry.name);
            }
        }
    }

    #[test]
    fn what_is_not_known_is_a_number() {
        assert_eq!(FlowState::FAST.to_string(), "fast");
        assert_eq!(FlowState(9).to_string(), "9");
        assert_eq!(GoneReason::from_name("idle"), Some(GoneReason::IDLE));
        assert_eq!(SlowReason::from_name("nonsense"), None);
        assert_eq!(config::SET.name_of(2), "mark-value");
        assert_eq!(config::SET.name_of(99), "attribute 99");
    }
}

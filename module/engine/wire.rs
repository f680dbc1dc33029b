// SPDX-License-Identifier: GPL-2.0

//! The numbers of the generic netlink family, as `fasttrack.yaml` gives them; a test compares the two.

/// Name of the family.
pub const FAMILY: &str = "fasttrack";
/// Version of the family.
pub const VERSION: u32 = 1;
/// Name of the multicast group.
pub const EVENTS: &str = "events";

/// Declares constants that count from one, with their names in the specification.
macro_rules! numbered {
    ($(#[$meta:meta])* $module:ident: $type:ty { $($name:ident = $text:literal,)* }) => {
        $(#[$meta])*
        pub mod $module {
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, dead_code)]
            enum Position { NONE, $($name,)* }

            $(
                #[doc = concat!("`", $text, "`")]
                pub const $name: $type = Position::$name as $type;
            )*

            /// The names, in order.
            pub const NAMES: &[&str] = &[$($text,)*];
        }
    };
}

numbered! {
    /// Commands and notifications.
    command: u8 {
        CONFIG_GET = "config-get",
        CONFIG_SET = "config-set",
        CONFIG_NTF = "config-ntf",
        FLOW_GET = "flow-get",
        FLOW_NEW_NTF = "flow-new-ntf",
        FLOW_GONE_NTF = "flow-gone-ntf",
        FLOW_FLUSH = "flow-flush",
        STATS_GET = "stats-get",
    }
}

numbered! {
    /// Attributes of the configuration.
    config: u16 {
        ENABLED = "enabled",
        MARK_VALUE = "mark-value",
        MARK_MASK = "mark-mask",
        TCP_TIMEOUT = "tcp-timeout",
        UDP_TIMEOUT = "udp-timeout",
        SAMPLE_INTERVAL = "sample-interval",
        TABLE_SIZE = "table-size",
        IPSEC = "ipsec",
        LEARN_AFTER = "learn-after",
    }
}

numbered! {
    /// Attributes of a flow.
    flow: u16 {
        ID = "id",
        STATE = "state",
        FAMILY = "family",
        PROTOCOL = "protocol",
        REPLY = "reply",
        SOURCE = "source",
        DESTINATION = "destination",
        SOURCE_PORT = "source-port",
        DESTINATION_PORT = "destination-port",
        NAT_SOURCE = "nat-source",
        NAT_DESTINATION = "nat-destination",
        NAT_SOURCE_PORT = "nat-source-port",
        NAT_DESTINATION_PORT = "nat-destination-port",
        IN_IFINDEX = "in-ifindex",
        OUT_IFINDEX = "out-ifindex",
        PACKETS = "packets",
        BYTES = "bytes",
        AGE = "age",
        IDLE = "idle",
        CONNTRACK_ID = "conntrack-id",
        CONNTRACK_MARK = "conntrack-mark",
        PACKET_MARK = "packet-mark",
        PRIORITY = "priority",
        DSCP_IN = "dscp-in",
        DSCP_OUT = "dscp-out",
        MTU = "mtu",
        GONE_REASON = "gone-reason",
        IPSEC = "ipsec",
    }
}

numbered! {
    /// Attributes of a count of slow packets.
    slow_count: u16 {
        REASON = "reason",
        PACKETS = "packets",
    }
}

numbered! {
    /// Attributes of a count of flows that were dropped.
    gone_count: u16 {
        REASON = "reason",
        FLOWS = "flows",
    }
}

numbered! {
    /// Attributes of the statistics.
    stats: u16 {
        FLOWS = "flows",
        TABLE_SIZE = "table-size",
        FLOW_BYTES = "flow-bytes",
        INDEX_BYTES = "index-bytes",
        PACKETS_ORIGINAL = "packets-original",
        BYTES_ORIGINAL = "bytes-original",
        PACKETS_REPLY = "packets-reply",
        BYTES_REPLY = "bytes-reply",
        LEARNED = "learned",
        DEVICES = "devices",
        SLOW = "slow",
        GONE = "gone",
    }
}

/// States of a flow, from zero.
pub mod flow_state {
    /// `learning`
    pub const LEARNING: u32 = 0;
    /// `fast`
    pub const FAST: u32 = 1;
    /// `sampling`
    pub const SAMPLING: u32 = 2;

    /// The names, in order.
    pub const NAMES: &[&str] = &["learning", "fast", "sampling"];
}

/// What becomes of IPsec, from zero.
pub mod ipsec_mode {
    /// `exclude`
    pub const EXCLUDE: u8 = 0;
    /// `accelerate`
    pub const ACCELERATE: u8 = 1;

    /// The names, in order.
    pub const NAMES: &[&str] = &["exclude", "accelerate"];
}

/// What IPsec does to the packets of a flow, as bits.
pub mod transform {
    /// `decrypted`
    pub const DECRYPTED: u32 = 1;
    /// `encrypted`
    pub const ENCRYPTED: u32 = 2;

    /// The names, from the lowest bit.
    pub const NAMES: &[&str] = &["decrypted", "encrypted"];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names listed under `name: SECTION` in the specification, read without a YAML parser: its
    /// entries are the only names at that indentation.
    pub fn listed(section: &str, indent: &str) -> Vec<String> {
        let text = include_str!("../../fasttrack.yaml");
        let at = text
            .find(section)
            .unwrap_or_else(|| panic!("{section:?} in the specification"));
        let body = &text[at + section.len()..];
        let prefix = format!("{indent}name: ");
        let mut names = Vec::new();
        for line in body.lines().skip(1) {
            let ended = !line.is_empty() && !line.starts_with(&indent[..indent.len() - 4]);
            if ended || line == format!("{}-", &indent[..indent.len() - 6]) {
                break;
            }
            if let Some(name) = line.strip_prefix(&prefix) {
                names.push(name.to_owned());
            }
        }
        names
    }

    #[test]
    fn numbers_are_those_of_the_specification() {
        let attributes =
            |set: &str| listed(&format!("    name: {set}\n    attributes:"), "        ");
        assert_eq!(attributes("config"), config::NAMES);
        assert_eq!(attributes("flow"), flow::NAMES);
        assert_eq!(attributes("slow-count"), slow_count::NAMES);
        assert_eq!(attributes("gone-count"), gone_count::NAMES);
        assert_eq!(attributes("stats"), stats::NAMES);
        assert_eq!(listed("operations:\n  list:", "      "), command::NAMES);
        assert_eq!(
            listed("    name: flow-state\n", "        "),
            flow_state::NAMES
        );
        assert_eq!(
            listed("    name: ipsec-mode\n", "        "),
            ipsec_mode::NAMES
        );
        assert_eq!(
            listed("    name: transform\n", "        "),
            transform::NAMES
        );
        assert_eq!(command::STATS_GET, 8);
        assert_eq!(config::ENABLED, 1);
        assert_eq!(flow::GONE_REASON, 27);
    }
}

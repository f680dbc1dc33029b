// SPDX-License-Identifier: GPL-2.0

//! Every way out of the fast path has a name.
//!
//! The numbers are part of the interface to user space and are listed in `fasttrack.yaml`; a test
//! compares the two.

/// Declares an enumeration whose values count from zero, with its names for user space.
macro_rules! named {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every value, in numerical order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name that `fasttrack.yaml` gives it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// Why a packet that could have been fast took the slow path.
    SlowReason {
        /// The flow is not known yet, or not confirmed yet.
        Learning = "learning",
        /// The periodic return to the slow path.
        Sampled = "sampled",
        /// A rule, a policy, a group of next hops, a device or the configuration changed since the flow was
        /// confirmed.
        Revalidating = "revalidating",
        /// Conntrack has not seen both directions of the connection.
        NotEstablished = "not-established",
        /// The packet has no conntrack entry.
        Untracked = "untracked",
        /// The connection has a conntrack helper.
        Helper = "helper",
        /// Conntrack rewrites sequence numbers of this connection.
        SequenceAdjusted = "sequence-adjusted",
        /// The TCP connection is not in its established state.
        TcpState = "tcp-state",
        /// A SYN, FIN or RST, or a segment outside of the window.
        TcpFlags = "tcp-flags",
        /// The connection carries the excluded mark.
        Marked = "marked",
        /// The route has a transform, the packet was decrypted, or a device of IPsec has it.
        Ipsec = "ipsec",
        /// Decrypted packet for a flow learned in clear, or the other way round.
        SecpathMismatch = "secpath-mismatch",
        /// An IP fragment.
        Fragment = "fragment",
        /// The IP header has options, or extension headers behind it.
        IpOptions = "ip-options",
        /// The time to live ends here.
        Ttl = "ttl",
        /// Larger than the route's MTU.
        Mtu = "mtu",
        /// The next hop's link-layer address is not known.
        NoNeighbour = "no-neighbour",
        /// The route changed since the flow was confirmed.
        StaleRoute = "stale-route",
        /// Not a plain unicast route.
        RouteType = "route-type",
        /// The packet is rewritten in a way that the fast path can't repeat.
        Mangled = "mangled",
        /// Another DSCP than the flow was confirmed with.
        Dscp = "dscp",
        /// The packet had a mark before it reached the fast path.
        PacketMark = "packet-mark",
        /// The conntrack entry is being deleted.
        ConntrackGone = "conntrack-gone",
        /// No room for another flow.
        TableFull = "table-full",
        /// An allocation failed.
        NoMemory = "no-memory",
        /// Version, lengths or checksum of the header are wrong.
        BadHeader = "bad-header",
        /// The frame is addressed to another host.
        OtherHost = "other-host",
        /// The socket buffer is in a state that the fast path leaves alone, or has come past the hook at ingress.
        Unsupported = "unsupported",
        /// An SCTP packet with more than data and acknowledgements, or not of the association.
        SctpControl = "sctp-control",
        /// Connections of more than one conntrack zone arrive on the device.
        Zones = "zones",
        /// Its Ethernet header names another source than those of its flow.
        Sender = "sender",
    }
}

named! {
    /// Why a flow was dropped.
    GoneReason {
        /// No packet for the idle timeout.
        Idle = "idle",
        /// The TCP connection left its established state.
        Closed = "closed",
        /// The conntrack entry was deleted or has expired.
        Conntrack = "conntrack",
        /// The connection got the excluded mark.
        Marked = "marked",
        /// The flow needs, or came through, an IPsec transform.
        Ipsec = "ipsec",
        /// Something that the memo rested on changed; a new one was made.
        Replaced = "replaced",
        /// Packets went into the slow path and did not come out.
        SampleLost = "sample-lost",
        /// A device of the flow went down or away.
        Device = "device",
        /// On request, or because the configuration changed.
        Flushed = "flushed",
        /// fasttrack was switched off, or its namespace is going.
        Disabled = "disabled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that follow `name: ENUM` in the specification, read without a YAML parser: entries
    /// of an enumeration are the only items at that indentation.
    fn specified(of: &str) -> Vec<String> {
        let text = include_str!("../../fasttrack.yaml");
        let start = text
            .find(&format!("    name: {of}\n"))
            .expect("enumeration in the specification");
        let mut names = Vec::new();
        for line in text[start..].lines().skip(1) {
            if line.trim() == "-" && line.starts_with("  -")
                || !line.starts_with(' ') && !line.is_empty()
            {
                break;
            }
            if let Some(name) = line.strip_prefix("        name: ") {
                names.push(name.to_owned());
            }
        }
        names
    }

    #[test]
    fn reasons_are_those_of_the_specification() {
        let names: Vec<_> = SlowReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names, specified("slow-reason"));
        let names: Vec<_> = GoneReason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names, specified("gone-reason"));
    }

    #[test]
    fn numbers_are_positions() {
        for (position, reason) in SlowReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position);
        }
        for (position, reason) in GoneReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, position);
        }
    }
}

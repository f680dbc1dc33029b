// SPDX-License-Identifier: GPL-2.0

//! Whether a packet that has come through the whole slow path may become a flow.

use super::config::Exclusion;
use super::reason::GoneReason;
use super::reason::SlowReason;

/// What is seen of a forwarded packet in POSTROUTING at first sight.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// The route has a transform or queues for one, the packet has a secpath, or one of its devices is one of IPsec; and
    /// such packets stay slow.
    pub ipsec: bool,
    /// It was reassembled from fragments.
    pub reassembled: bool,
    /// Its IP header has options.
    pub options: bool,
    /// Conntrack's view of the connection; `None` if the packet is not tracked.
    pub connection: Option<Connection>,
}

/// What conntrack's entry of a connection shows at first sight.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Both directions have been seen, and the entry is in the table.
    pub established: bool,
    /// It is being deleted.
    pub dying: bool,
    /// Its mark.
    pub mark: u32,
}

/// What takes a closer look.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent facts")]
pub struct Details {
    /// A helper reads the connection's packets.
    pub helper: bool,
    /// Sequence numbers or SYN cookies are translated.
    pub sequence_adjusted: bool,
    /// For TCP: established, and the windows of both sides are known. True for other protocols.
    pub tcp_established: bool,
    /// The route is a plain unicast one that leads out of this host, or to a transform.
    pub usable_route: bool,
    /// The packet's addresses and ports are those that conntrack's entry says it leaves with.
    pub as_translated: bool,
}

impl Sight {
    /// Whether the packet may become a flow, at first sight.
    ///
    /// # Errors
    ///
    /// The first reason against it; the ones that matter most to an administrator come first.
    #[inline(always)]
    pub fn judge(&self, exclusion: Exclusion) -> Result<(), SlowReason> {
        if self.ipsec {
            return Err(SlowReason::Ipsec);
        }
        if self.reassembled {
            return Err(SlowReason::Fragment);
        }
        if self.options {
            return Err(SlowReason::IpOptions);
        }
        let Some(connection) = self.connection else {
            return Err(SlowReason::Untracked);
        };
        if exclusion.covers(connection.mark) {
            return Err(SlowReason::Marked);
        }
        if connection.dying {
            return Err(SlowReason::ConntrackGone);
        }
        if !connection.established {
            return Err(SlowReason::NotEstablished);
        }
        Ok(())
    }
}

impl Details {
    /// Whether the packet may become a flow, given that it may at first sight.
    ///
    /// # Errors
    ///
    /// As for [`Sight::judge`].
    pub fn judge(&self) -> Result<(), SlowReason> {
        if self.helper {
            return Err(SlowReason::Helper);
        }
        if self.sequence_adjusted {
            return Err(SlowReason::SequenceAdjusted);
        }
        if !self.tcp_established {
            return Err(SlowReason::TcpState);
        }
        if !self.usable_route {
            return Err(SlowReason::RouteType);
        }
        if !self.as_translated {
            return Err(SlowReason::Mangled);
        }
        Ok(())
    }
}

/// What becomes of the flow that a packet belongs to, if the packet itself may not be one: the reason
/// to drop the flow, or `None` if only this packet is special.
pub const fn consequence(reason: SlowReason) -> Option<GoneReason> {
    match reason {
        SlowReason::Ipsec => Some(GoneReason::Ipsec),
        SlowReason::Marked => Some(GoneReason::Marked),
        SlowReason::ConntrackGone | SlowReason::Untracked => Some(GoneReason::Conntrack),
        SlowReason::TcpState => Some(GoneReason::Closed),
        SlowReason::RouteType
        | SlowReason::Mangled
        | SlowReason::Helper
        | SlowReason::SequenceAdjusted
        | SlowReason::Zones
        | SlowReason::NotEstablished => Some(GoneReason::Replaced),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sight = Sight {
        ipsec: false,
        reassembled: false,
        options: false,
        connection: Some(ESTABLISHED),
    };

    const ESTABLISHED: Connection = Connection {
        established: true,
        dying: false,
        mark: 0,
    };

    const SIMPLE: Details = Details {
        helper: false,
        sequence_adjusted: false,
        tcp_established: true,
        usable_route: true,
        as_translated: true,
    };

    fn with(change: fn(&mut Connection)) -> Sight {
        let mut connection = ESTABLISHED;
        change(&mut connection);
        Sight {
            connection: Some(connection),
            ..PLAIN
        }
    }

    #[test]
    fn an_ordinary_established_connection_is_learned() {
        assert_eq!(PLAIN.judge(Exclusion::DEFAULT), Ok(()));
        assert_eq!(SIMPLE.judge(), Ok(()));
    }

    #[test]
    fn each_fact_alone_keeps_it_slow() {
        let ipsec = Sight {
            ipsec: true,
            ..PLAIN
        };
        let reassembled = Sight {
            reassembled: true,
            ..PLAIN
        };
        let options = Sight {
            options: true,
            ..PLAIN
        };
        let untracked = Sight {
            connection: None,
            ..PLAIN
        };
        let cases = [
            (ipsec, SlowReason::Ipsec),
            (reassembled, SlowReason::Fragment),
            (options, SlowReason::IpOptions),
            (untracked, SlowReason::Untracked),
            (with(|c| c.mark = 0x0800_0001), SlowReason::Marked),
            (with(|c| c.dying = true), SlowReason::ConntrackGone),
            (with(|c| c.established = false), SlowReason::NotEstablished),
        ];
        for (sight, reason) in cases {
            assert_eq!(sight.judge(Exclusion::DEFAULT), Err(reason));
        }

        let cases: [(fn(&mut Details), _); 5] = [
            (|d| d.helper = true, SlowReason::Helper),
            (|d| d.sequence_adjusted = true, SlowReason::SequenceAdjusted),
            (|d| d.tcp_established = false, SlowReason::TcpState),
            (|d| d.usable_route = false, SlowReason::RouteType),
            (|d| d.as_translated = false, SlowReason::Mangled),
        ];
        for (change, reason) in cases {
            let mut details = SIMPLE;
            change(&mut details);
            assert_eq!(details.judge(), Err(reason));
        }
    }

    #[test]
    fn ipsec_is_excluded_without_any_mark_and_named_first() {
        let ipsec = |sight| Sight {
            ipsec: true,
            ..sight
        };
        let marked_too = ipsec(with(|c| c.mark = 0x0800_0000));
        assert_eq!(marked_too.judge(Exclusion::DEFAULT), Err(SlowReason::Ipsec));
        let no_exclusion = Exclusion::new(0, 0).unwrap();
        assert_eq!(ipsec(PLAIN).judge(no_exclusion), Err(SlowReason::Ipsec));
        let untracked = Sight {
            connection: None,
            ..PLAIN
        };
        assert_eq!(ipsec(untracked).judge(no_exclusion), Err(SlowReason::Ipsec));
    }

    #[test]
    fn what_is_about_one_packet_does_not_end_the_flow() {
        for reason in [
            SlowReason::Fragment,
            SlowReason::IpOptions,
            SlowReason::TableFull,
        ] {
            assert_eq!(consequence(reason), None);
        }
        assert_eq!(consequence(SlowReason::Ipsec), Some(GoneReason::Ipsec));
        assert_eq!(consequence(SlowReason::Marked), Some(GoneReason::Marked));
    }
}

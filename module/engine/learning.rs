// SPDX-License-Identifier: GPL-2.0

//! Whether a packet that has come through the whole slow path may become a flow.

use super::config::Exclusion;
use super::reason::GoneReason;
use super::reason::SlowReason;

/// What is known of a forwarded packet in POSTROUTING, after everything that could change it.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent facts")]
pub struct Candidate {
    /// The route has a transform or queues for one, or the packet has a secpath; and such packets stay
    /// slow.
    pub ipsec: bool,
    /// It was reassembled from fragments.
    pub reassembled: bool,
    /// Its IP header has options.
    pub options: bool,
    /// Conntrack's view of the connection; `None` if the packet is not tracked.
    pub connection: Option<Connection>,
    /// The route is a plain unicast one that leads out of this host, or to a transform.
    pub usable_route: bool,
    /// Its addresses and ports are those that conntrack's entry says it leaves with.
    pub as_translated: bool,
}

/// What conntrack knows of a connection.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent facts")]
pub struct Connection {
    /// Both directions have been seen, and the entry is in the table.
    pub established: bool,
    /// It is being deleted.
    pub dying: bool,
    /// Its mark.
    pub mark: u32,
    /// A helper reads its packets.
    pub helper: bool,
    /// Sequence numbers or SYN cookies are translated.
    pub sequence_adjusted: bool,
    /// For TCP: established, and the windows of both sides are known. True for other protocols.
    pub tcp_established: bool,
}

impl Candidate {
    /// Whether the packet may become a flow.
    ///
    /// # Errors
    ///
    /// The first reason against it; the ones that matter most to an administrator come first.
    pub fn judge(&self, exclusion: Exclusion) -> Result<(), SlowReason> {
        let reasons = [
            (self.ipsec, SlowReason::Ipsec),
            (self.reassembled, SlowReason::Fragment),
            (self.options, SlowReason::IpOptions),
        ];
        first(&reasons)?;
        let Some(connection) = self.connection else {
            return Err(SlowReason::Untracked);
        };
        let reasons = [
            (exclusion.covers(connection.mark), SlowReason::Marked),
            (connection.dying, SlowReason::ConntrackGone),
            (!connection.established, SlowReason::NotEstablished),
            (connection.helper, SlowReason::Helper),
            (connection.sequence_adjusted, SlowReason::SequenceAdjusted),
            (!connection.tcp_established, SlowReason::TcpState),
            (!self.usable_route, SlowReason::RouteType),
            (!self.as_translated, SlowReason::Mangled),
        ];
        first(&reasons)
    }
}

/// The first reason that applies.
fn first(reasons: &[(bool, SlowReason)]) -> Result<(), SlowReason> {
    match reasons.iter().find(|(applies, _)| *applies) {
        Some(&(_, reason)) => Err(reason),
        None => Ok(()),
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
        | SlowReason::NotEstablished => Some(GoneReason::Replaced),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Candidate = Candidate {
        ipsec: false,
        reassembled: false,
        options: false,
        connection: Some(ESTABLISHED),
        usable_route: true,
        as_translated: true,
    };

    const ESTABLISHED: Connection = Connection {
        established: true,
        dying: false,
        mark: 0,
        helper: false,
        sequence_adjusted: false,
        tcp_established: true,
    };

    fn judge(candidate: Candidate) -> Result<(), SlowReason> {
        candidate.judge(Exclusion::DEFAULT)
    }

    fn with(change: fn(&mut Connection)) -> Candidate {
        let mut connection = ESTABLISHED;
        change(&mut connection);
        Candidate {
            connection: Some(connection),
            ..PLAIN
        }
    }

    #[test]
    fn an_ordinary_established_connection_is_learned() {
        assert_eq!(judge(PLAIN), Ok(()));
    }

    #[test]
    fn each_fact_alone_keeps_it_slow() {
        let cases = [
            (
                Candidate {
                    ipsec: true,
                    ..PLAIN
                },
                SlowReason::Ipsec,
            ),
            (
                Candidate {
                    reassembled: true,
                    ..PLAIN
                },
                SlowReason::Fragment,
            ),
            (
                Candidate {
                    options: true,
                    ..PLAIN
                },
                SlowReason::IpOptions,
            ),
            (
                Candidate {
                    connection: None,
                    ..PLAIN
                },
                SlowReason::Untracked,
            ),
            (
                Candidate {
                    usable_route: false,
                    ..PLAIN
                },
                SlowReason::RouteType,
            ),
            (
                Candidate {
                    as_translated: false,
                    ..PLAIN
                },
                SlowReason::Mangled,
            ),
            (with(|c| c.mark = 0x0800_0001), SlowReason::Marked),
            (with(|c| c.dying = true), SlowReason::ConntrackGone),
            (with(|c| c.established = false), SlowReason::NotEstablished),
            (with(|c| c.helper = true), SlowReason::Helper),
            (
                with(|c| c.sequence_adjusted = true),
                SlowReason::SequenceAdjusted,
            ),
            (with(|c| c.tcp_established = false), SlowReason::TcpState),
        ];
        for (candidate, reason) in cases {
            assert_eq!(judge(candidate), Err(reason));
        }
    }

    #[test]
    fn ipsec_is_excluded_without_any_mark_and_named_first() {
        let marked_too = Candidate {
            ipsec: true,
            ..with(|c| c.mark = 0x0800_0000)
        };
        assert_eq!(judge(marked_too), Err(SlowReason::Ipsec));
        let no_exclusion = Exclusion::new(0, 0).unwrap();
        assert_eq!(
            Candidate {
                ipsec: true,
                ..PLAIN
            }
            .judge(no_exclusion),
            Err(SlowReason::Ipsec)
        );
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

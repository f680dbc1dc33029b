// SPDX-License-Identifier: GPL-2.0

//! How long a flow is kept, and how its conntrack entry is kept from expiring under it.

use super::reason::GoneReason;
use super::tick::Tick;

/// What the periodic look at a flow sees.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent facts")]
pub struct Flow {
    /// When its last packet came, fast or slow, to within a second.
    pub seen: Tick,
    /// When its confirmation ends or ended; for one never confirmed, when it was made.
    pub until: Tick,
    /// Whether a packet has gone into the slow path since, and not come out.
    pub probed: bool,
    /// The conntrack entry is being deleted, or has expired.
    pub conntrack_gone: bool,
    /// It carries the excluded mark.
    pub marked: bool,
    /// For TCP: the connection has left its established state.
    pub closed: bool,
    /// An IPsec state or policy that it was learned with is no longer in use.
    pub transform_gone: bool,
}

/// Durations, in ticks.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Without a packet, a flow is dropped after this.
    pub idle: u32,
    /// Without a packet, a flow that holds what is no longer in use is dropped after this.
    pub quiet: u32,
    /// A flow whose packets go into the slow path and do not come out is dropped after this.
    pub sample: u32,
}

impl Flow {
    /// The reason to drop the flow, if there is one.
    pub fn verdict(&self, now: Tick, limits: Limits) -> Option<GoneReason> {
        if self.conntrack_gone {
            return Some(GoneReason::Conntrack);
        }
        if self.marked {
            return Some(GoneReason::Marked);
        }
        if self.closed {
            return Some(GoneReason::Closed);
        }
        // Of a busy flow the next packet brings the new one.
        if self.transform_gone && now.since(self.seen) >= limits.quiet {
            return Some(GoneReason::Ipsec);
        }
        if now.since(self.seen) >= limits.idle {
            return Some(GoneReason::Idle);
        }
        // Packets kept coming for a whole period after the confirmation ended.
        if self.probed && self.seen.since(self.until) >= limits.sample {
            return Some(GoneReason::SampleLost);
        }
        None
    }
}

/// The conntrack timeout that a flow's entry should have: `fresh` ticks from the flow's last packet,
/// where `fresh` is what the slow path gave the entry for its last packet. `None` if it has that long
/// or longer. `left` is what it has left.
pub fn extension(left: i32, seen: Tick, fresh: u32, now: Tick) -> Option<u32> {
    let wanted = fresh.checked_sub(now.since(seen))?;
    if wanted == 0 || wanted > i32::MAX as u32 || wanted as i32 <= left {
        return None;
    }
    Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        idle: 3000,
        sample: 300,
        quiet: 200,
    };
    const NOW: Tick = Tick(1_000_000);
    const ALIVE: Flow = Flow {
        seen: NOW,
        until: Tick(NOW.0 + 100),
        probed: false,
        conntrack_gone: false,
        marked: false,
        closed: false,
        transform_gone: false,
    };

    #[test]
    fn a_flow_whose_transform_is_gone_is_dropped_when_no_packet_comes() {
        let gone = |seen| Flow {
            seen,
            transform_gone: true,
            ..ALIVE
        };
        assert_eq!(gone(Tick(NOW.0 - 199)).verdict(NOW, LIMITS), None);
        let quiet = gone(Tick(NOW.0 - 200));
        assert_eq!(quiet.verdict(NOW, LIMITS), Some(GoneReason::Ipsec));
    }

    #[test]
    fn a_busy_flow_is_kept() {
        assert_eq!(ALIVE.verdict(NOW, LIMITS), None);
    }

    #[test]
    fn each_end_has_its_reason() {
        let cases = [
            (
                Flow {
                    conntrack_gone: true,
                    ..ALIVE
                },
                GoneReason::Conntrack,
            ),
            (
                Flow {
                    marked: true,
                    ..ALIVE
                },
                GoneReason::Marked,
            ),
            (
                Flow {
                    closed: true,
                    ..ALIVE
                },
                GoneReason::Closed,
            ),
            (
                Flow {
                    seen: Tick(NOW.0 - 3000),
                    ..ALIVE
                },
                GoneReason::Idle,
            ),
            (
                Flow {
                    probed: true,
                    until: Tick(NOW.0 - 300),
                    ..ALIVE
                },
                GoneReason::SampleLost,
            ),
        ];
        for (flow, reason) in cases {
            assert_eq!(flow.verdict(NOW, LIMITS), Some(reason));
        }
    }

    #[test]
    fn a_sample_gets_its_time_and_an_idle_flow_is_no_lost_sample() {
        let waiting = Flow {
            probed: true,
            until: Tick(NOW.0 - 299),
            ..ALIVE
        };
        assert_eq!(waiting.verdict(NOW, LIMITS), None);
        // One packet as the confirmation ended, dropped by the peer's own choice of silence.
        let quiet = Flow {
            probed: true,
            until: Tick(NOW.0 - 2000),
            seen: Tick(NOW.0 - 1999),
            ..ALIVE
        };
        assert_eq!(quiet.verdict(NOW, LIMITS), None);
    }

    #[test]
    fn conntrack_lives_as_long_as_after_a_slow_packet() {
        // Last packet 10 ticks ago; the slow path gives 1000; 500 left from the last sample.
        assert_eq!(extension(500, Tick(NOW.0 - 10), 1000, NOW), Some(990));
        assert_eq!(extension(990, Tick(NOW.0 - 10), 1000, NOW), None);
        assert_eq!(extension(995, Tick(NOW.0 - 10), 1000, NOW), None);
        assert_eq!(extension(-5, Tick(NOW.0 - 2000), 1000, NOW), None);
        assert_eq!(extension(1, NOW, u32::MAX, NOW), None);
    }
}

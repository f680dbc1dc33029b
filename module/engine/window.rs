// SPDX-License-Identifier: GPL-2.0

//! Follows TCP's sequence space in place of conntrack.
//!
//! Conntrack remembers, for each direction, how far data went and how far the other side allows it to
//! go, and calls what lies outside invalid (`tcp_in_window` in
//! net/netfilter/nf_conntrack_proto_tcp.c). It does not see fast packets. So the fast path keeps the
//! highest values that it saw, and hands them over before a packet of the connection returns to the
//! slow path, which then judges it as if it had seen all the others: a reset outside the window is
//! still recognised as such, and an idle connection gets the timeout that it should have.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use super::transport::Segment;

/// The highest values seen in one direction. All grow only, modulo 2^32.
///
/// Updates are plain stores. If two CPUs forward packets of the same direction at once, one of two
/// neighbouring values can win over the other until the next packet.
#[derive(Debug, Default)]
pub struct Window {
    /// Sequence number after the last byte sent.
    end: AtomicU32,
    /// Highest acknowledgement sent.
    ack: AtomicU32,
    /// Highest sequence number that the sender of this direction allows the other side to reach.
    edge: AtomicU32,
    /// Largest window advertised, scaled.
    size: AtomicU32,
    /// Largest window that the other side has advertised, as far as conntrack knows; [`LIBERAL`] if conntrack
    /// accepts what lies outside.
    room: AtomicU32,
}

/// What conntrack knows of a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// How far it went.
    pub progress: Progress,
    /// `td_maxwin` of the receiver, which is not zero.
    pub room: u32,
    /// Conntrack accepts whatever the sender sends: it has not seen the connection begin, and so does not know by
    /// how much windows are scaled; or it has been told to.
    pub liberal: bool,
    /// The sender's window scale.
    pub scale: u8,
}

/// What conntrack should know about one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// `td_end` of the sender.
    pub end: u32,
    /// `td_maxack` of the sender.
    pub ack: u32,
    /// `td_maxend` of the receiver.
    pub edge: u32,
    /// `td_maxwin` of the sender.
    pub size: u32,
}

/// Whether `a` lies after `b` in sequence space.
#[inline]
pub const fn is_after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

impl Window {
    /// Starts from what conntrack knows.
    pub const fn new(known: Known) -> Self {
        let progress = known.progress;
        Self {
            end: AtomicU32::new(progress.end),
            ack: AtomicU32::new(progress.ack),
            edge: AtomicU32::new(progress.edge),
            size: AtomicU32::new(progress.size),
            room: AtomicU32::new(known.room()),
        }
    }

    /// Whether a segment may be forwarded.
    #[inline(always)]
    pub fn admits(&self, segment: Segment) -> bool {
        self.holds(segment) || self.is_liberal()
    }

    #[inline(always)]
    fn is_liberal(&self) -> bool {
        self.room.load(Relaxed) == LIBERAL
    }

    /// Whether a segment can be one of the connection's: it ends no further ahead of what was sent before
    /// than the other side's window is wide, and no further behind, and it acknowledges nothing that the
    /// other side was not allowed to send. What somebody sends who knows the connection's addresses and
    /// ports but not its sequence numbers is not; taken in, it would have conntrack expect all that follows
    /// where it never comes.
    ///
    /// This is a little less than what conntrack asks for, who knows where the windows are just now.
    #[inline(always)]
    fn holds(&self, segment: Segment) -> bool {
        let room = self.room.load(Relaxed).clamp(LEAST_ROOM, MAX_WINDOW);
        let ahead = segment.end.wrapping_sub(self.end.load(Relaxed));
        ahead.wrapping_add(room) <= room.wrapping_mul(2)
            && !is_after(segment.ack, self.edge.load(Relaxed))
    }

    /// Takes in a segment that is being forwarded; `scale` is the sender's window scale option, at
    /// most 14 (RFC 7323). One that was only admitted because everything is, is not: conntrack learns nothing from
    /// it, either.
    #[inline(always)]
    pub fn advance(&self, segment: Segment, scale: u8) {
        if self.is_liberal() && !self.holds(segment) {
            return;
        }
        let size = u32::from(segment.window) << (scale & 0xf);
        raise(&self.end, segment.end);
        raise(&self.ack, segment.ack);
        // Conntrack lets one byte into a closed window: a window probe.
        raise(
            &self.edge,
            segment.ack.wrapping_add(if size == 0 { 1 } else { size }),
        );
        if size > self.size.load(Relaxed) {
            self.size.store(size, Relaxed);
        }
    }

    /// The highest values so far.
    pub fn progress(&self) -> Progress {
        Progress {
            end: self.end.load(Relaxed),
            ack: self.ack.load(Relaxed),
            edge: self.edge.load(Relaxed),
            size: self.size.load(Relaxed),
        }
    }

    /// Takes in what conntrack knows meanwhile from packets that went through the slow path.
    pub fn catch_up(&self, known: Known) {
        let progress = known.progress;
        raise(&self.end, progress.end);
        raise(&self.ack, progress.ack);
        raise(&self.edge, progress.edge);
        if progress.size > self.size.load(Relaxed) {
            self.size.store(progress.size, Relaxed);
        }
        self.room.store(known.room(), Relaxed);
    }
}

impl Known {
    const fn room(&self) -> u32 {
        if self.liberal {
            LIBERAL
        } else {
            self.room
        }
    }
}

/// No window's width.
const LIBERAL: u32 = 0;

/// As much is admitted in any case: two of the largest segments that a device merges. What conntrack knows
/// of the other side's window is up to a sampling interval old, and in the beginning windows grow fast.
const LEAST_ROOM: u32 = 1 << 17;

/// The largest window that there can be (RFC 7323).
const MAX_WINDOW: u32 = 1 << 30;

/// Sets `to` to `value` if that lies after it.
#[inline(always)]
fn raise(to: &AtomicU32, value: u32) {
    if is_after(value, to.load(Relaxed)) {
        to.store(value, Relaxed);
    }
}

impl Progress {
    /// Brings `known`, which is what conntrack knows of a direction, up to what was seen.
    pub const fn over(self, known: Self) -> Self {
        Self {
            end: later(self.end, known.end),
            ack: later(self.ack, known.ack),
            edge: later(self.edge, known.edge),
            size: if self.size > known.size {
                self.size
            } else {
                known.size
            },
        }
    }
}

const fn later(a: u32, b: u32) -> u32 {
    if is_after(a, b) {
        a
    } else {
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Progress = Progress {
        end: 1000,
        ack: 500,
        edge: 600,
        size: 100,
    };

    const KNOWN: Known = Known {
        progress: START,
        room: 200_000,
        liberal: false,
        scale: 0,
    };

    fn segment(seq: u32, len: u32, ack: u32, window: u16) -> Segment {
        Segment {
            seq,
            end: seq.wrapping_add(len),
            ack,
            window,
        }
    }

    #[test]
    fn grows_with_the_connection() {
        let window = Window::new(KNOWN);
        window.advance(segment(1000, 100, 550, 10), 3);
        assert_eq!(
            window.progress(),
            Progress {
                end: 1100,
                ack: 550,
                edge: 630,
                size: 100
            }
        );
        window.advance(segment(1100, 0, 550, 100), 3);
        assert_eq!(
            window.progress(),
            Progress {
                end: 1100,
                ack: 550,
                edge: 1350,
                size: 800
            }
        );
    }

    #[test]
    fn never_goes_back() {
        let window = Window::new(KNOWN);
        window.advance(segment(100, 10, 20, 1), 0);
        assert_eq!(window.progress(), START);
        window.catch_up(Known {
            progress: Progress {
                end: 0,
                ack: 0,
                edge: 0,
                size: 0,
            },
            ..KNOWN
        });
        assert_eq!(window.progress(), START);
    }

    #[test]
    fn goes_on_across_the_wrap() {
        let window = Window::new(Known {
            progress: Progress {
                end: u32::MAX - 10,
                ack: u32::MAX,
                edge: u32::MAX,
                size: 1,
            },
            ..KNOWN
        });
        window.advance(segment(u32::MAX - 10, 20, 5, 4), 0);
        assert_eq!(
            window.progress(),
            Progress {
                end: 9,
                ack: 5,
                edge: 9,
                size: 4
            }
        );
    }

    #[test]
    fn what_lies_outside_of_the_window_is_not_of_the_connection() {
        let window = Window::new(KNOWN);
        // What follows, a keepalive, what is sent again, and the far ends of the window.
        let (first, last) = (1000u32.wrapping_sub(200_000), 201_000);
        for end in [1000, 1001, 1100, 999, first, last] {
            assert!(window.admits(segment(end, 0, 500, 10)), "{end}");
        }
        for end in [
            first.wrapping_sub(1),
            last + 1,
            0x4000_0000,
            0x8000_0000,
            0xc000_0000,
        ] {
            assert!(!window.admits(segment(end, 0, 500, 10)), "{end}");
        }
        // Acknowledged may be what the other side may have sent, or less.
        for (ack, admitted) in [(600, true), (1, true), (601, false), (0x4000_0000, false)] {
            assert_eq!(window.admits(segment(1000, 0, ack, 10)), admitted, "{ack}");
        }
        // A wider window makes more room, and a narrow one does not take all of it.
        window.catch_up(Known { room: 1, ..KNOWN });
        assert!(window.admits(segment(1000 + LEAST_ROOM, 0, 500, 10)));
        assert!(!window.admits(segment(1001 + LEAST_ROOM, 0, 500, 10)));
        window.catch_up(Known {
            room: u32::MAX,
            ..KNOWN
        });
        assert!(window.admits(segment(1000 + MAX_WINDOW, 0, 500, 10)));
        assert!(!window.admits(segment(1001 + MAX_WINDOW, 0, 500, 10)));
    }

    #[test]
    fn where_conntrack_is_liberal_all_is_admitted_and_only_what_fits_is_followed() {
        let window = Window::new(Known {
            liberal: true,
            ..KNOWN
        });
        // Acknowledges what the other side was allowed to send by a window that was not scaled.
        let far = segment(1000, 0, 5_000_000, 100);
        // Somebody else's, or after a loss.
        let wild = segment(1 << 30, 100, 550, 100);
        for segment in [far, wild] {
            assert!(window.admits(segment));
            assert!(!Window::new(KNOWN).admits(segment));
            window.advance(segment, 0);
            assert_eq!(window.progress(), START);
        }
        window.advance(segment(1000, 100, 550, 10), 0);
        assert_eq!(window.progress().end, 1100);
        // No longer, when somebody has told conntrack so.
        window.catch_up(KNOWN);
        assert!(!window.admits(far));
    }

    #[test]
    fn a_window_is_followed_across_the_wrap() {
        let window = Window::new(Known {
            progress: Progress {
                end: 5,
                ack: u32::MAX,
                edge: 9,
                size: 1,
            },
            ..KNOWN
        });
        assert!(window.admits(segment(u32::MAX - 100, 10, u32::MAX, 1)));
        assert!(window.admits(segment(5, 100, 9, 1)));
        assert!(!window.admits(segment(u32::MAX - 200_100, 10, u32::MAX, 1)));
    }

    #[test]
    fn a_closed_window_admits_a_probe() {
        let window = Window::new(KNOWN);
        window.advance(segment(1000, 0, 700, 0), 7);
        assert_eq!(window.progress().edge, 701);
    }

    #[test]
    fn an_absurd_scale_does_no_harm() {
        let window = Window::new(KNOWN);
        window.advance(segment(1000, 0, 700, u16::MAX), u8::MAX);
        assert_eq!(window.progress().size, u32::from(u16::MAX) << 15);
    }

    #[test]
    fn handing_over_takes_the_later_of_both() {
        let seen = Progress {
            end: 2000,
            ack: 400,
            edge: 900,
            size: 50,
        };
        assert_eq!(
            seen.over(START),
            Progress {
                end: 2000,
                ack: 500,
                edge: 900,
                size: 100
            }
        );
    }
}

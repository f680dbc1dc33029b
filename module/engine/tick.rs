// SPDX-License-Identifier: GPL-2.0

//! Time as the fast path sees it: a 32-bit count of timer ticks that wraps.

/// A moment, in timer ticks since an arbitrary start. In the kernel: the low half of `jiffies`.
///
/// Two moments can be compared while they are less than 2^31 ticks apart, which at 1000 Hz is 24
/// days. No timeout in [`super::config`] can be set to more than a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tick(pub u32);

impl Tick {
    /// The moment `ticks` later.
    #[inline]
    pub const fn plus(self, ticks: u32) -> Self {
        Self(self.0.wrapping_add(ticks))
    }

    /// Whether this moment lies before `other`. Not true of equal moments.
    #[inline]
    pub const fn is_before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Ticks from `earlier` until this moment; 0 if `earlier` is the later of the two, as it can be
    /// when another CPU has just read a clock that ticked in between.
    #[inline]
    pub const fn since(self, earlier: Self) -> u32 {
        let ticks = self.0.wrapping_sub(earlier.0);
        if (ticks as i32) < 0 {
            0
        } else {
            ticks
        }
    }
}

/// Milliseconds as ticks of a clock of `hz` ticks a second, rounded up: a timeout is never shorter
/// than was asked for.
#[inline]
pub const fn from_millis(millis: u32, hz: u32) -> u32 {
    let ticks = (millis as u64 * hz as u64).div_ceil(1000);
    if ticks > u32::MAX as u64 {
        u32::MAX
    } else {
        ticks as u32
    }
}

/// Ticks of a clock of `hz` ticks a second as milliseconds.
#[inline]
pub const fn to_millis(ticks: u32, hz: u32) -> u64 {
    match (ticks as u64 * 1000).checked_div(hz as u64) {
        Some(millis) => millis,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let before = Tick(u32::MAX - 1);
        let after = before.plus(5);
        assert_eq!(after, Tick(3));
        assert!(before.is_before(after));
        assert!(!after.is_before(before));
        assert!(!before.is_before(before));
        assert_eq!(after.since(before), 5);
        assert_eq!(before.since(after), 0);
    }

    #[test]
    fn a_timeout_is_never_shorter_than_asked() {
        assert_eq!(from_millis(1, 250), 1);
        assert_eq!(from_millis(4, 250), 1);
        assert_eq!(from_millis(5, 250), 2);
        assert_eq!(from_millis(1000, 1000), 1000);
        assert_eq!(from_millis(u32::MAX, 1000), u32::MAX);
        assert_eq!(from_millis(u32::MAX, 10_000), u32::MAX);
        assert_eq!(to_millis(250, 250), 1000);
        assert_eq!(to_millis(1, 0), 0);
    }
}

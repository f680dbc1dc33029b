// SPDX-License-Identifier: GPL-2.0

//! The clock of the fast path.

use core::ptr::addr_of;

use crate::bindings;
use crate::engine::tick;
use crate::engine::tick::Tick;

/// Ticks in a second.
pub const SECOND: u32 = bindings::FT_HZ;

/// The current tick.
#[inline]
pub fn now() -> Tick {
    Tick(jiffies() as u32)
}

/// The same as the kernel counts it.
#[inline]
pub(super) fn jiffies() -> usize {
    // SAFETY: `jiffies` is a word that is always mapped and written whole by the timer interrupt; the
    // kernel reads it the same way.
    unsafe { addr_of!(bindings::jiffies).read_volatile() }
}

/// Milliseconds as ticks, rounded up.
pub fn ticks(millis: u32) -> u32 {
    tick::from_millis(millis, SECOND)
}

/// Ticks as milliseconds.
pub fn millis(ticks: u32) -> u64 {
    tick::to_millis(ticks, SECOND)
}

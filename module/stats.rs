// SPDX-License-Identifier: GPL-2.0

//! What is counted for a namespace.

use kernel::prelude::*;

use crate::engine::reason::GoneReason;
use crate::engine::reason::SlowReason;
use crate::flow::Count;
use crate::net::conntrack::Direction;
use crate::net::percpu::Counters;

/// Where each counter is. Packets and bytes of the fast path come first, by direction.
const LEARNED: usize = 4;
const GONE: usize = LEARNED + 1;
const SLOW: usize = GONE + GoneReason::COUNT;
const ALL: usize = SLOW + SlowReason::COUNT;

/// The counters of a namespace. They only grow.
pub struct Stats(Counters<ALL>);

impl Stats {
    /// All zero.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        Counters::new().map(Self)
    }

    /// A packet took the fast path.
    #[inline(always)]
    pub fn fast(&self, direction: Direction, bytes: u32) {
        self.0.add_one_and(direction as usize * 2, u64::from(bytes));
    }

    /// A packet that could have taken it did not.
    pub fn slow(&self, reason: SlowReason) {
        self.0.add(SLOW.wrapping_add(reason as usize), 1);
    }

    /// A flow was learned.
    pub fn learned(&self) {
        self.0.add(LEARNED, 1);
    }

    /// A flow was dropped.
    pub fn gone(&self, reason: GoneReason) {
        self.0.add(GONE.wrapping_add(reason as usize), 1);
    }

    /// Packets and bytes that took the fast path.
    pub fn sum_fast(&self, direction: Direction) -> Count {
        let at = direction as usize * 2;
        Count {
            packets: self.0.sum(at),
            bytes: self.0.sum(at.wrapping_add(1)),
        }
    }

    /// Packets that did not, for `reason`.
    pub fn sum_slow(&self, reason: SlowReason) -> u64 {
        self.0.sum(SLOW.wrapping_add(reason as usize))
    }

    /// Flows learned.
    pub fn sum_learned(&self) -> u64 {
        self.0.sum(LEARNED)
    }

    /// Flows dropped for `reason`.
    pub fn sum_gone(&self, reason: GoneReason) -> u64 {
        self.0.sum(GONE.wrapping_add(reason as usize))
    }
}

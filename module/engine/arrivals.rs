// SPDX-License-Identifier: GPL-2.0

//! Who was let in last, and when: so that the packet that a flow is made of confirms it, too.
//!
//! A memo is confirmed by a packet that has been seen at ingress and in POSTROUTING, with nothing changed in
//! between (see [`super::validity`]), and by the last one of its direction that is under way, so that none is
//! overtaken. There is no flow to note that down in when the packet arrives that one will be made of. It is noted
//! here, in a small array, in which directions overwrite each other; who is overwritten is confirmed by the next
//! packet instead.

use core::num::NonZeroU16;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;

use super::key::Hash;
use super::validity::Moment;

/// Notes the packets that are let in.
///
/// All CPUs share it: the packets of a direction may come on any.
pub struct Arrivals {
    /// Of the last packet whose hash leads here: its [`Turn`] in the lowest 16 bits, 10 bits of its hash, the six of
    /// its DSCP, and its moment. At first zero. Public, so that it can be made where it is to stay.
    pub places: [AtomicU64; PLACES],
}

/// So that they take 8 KiB. Few packets are let in that have no flow yet, and most of them are out again before the
/// next one arrives.
pub const PLACES: usize = 1024;

const TAG_SHIFT: u32 = 16;
const DSCP_SHIFT: u32 = 26;
const MOMENT_SHIFT: u32 = 32;

/// Tells the packets that were let in at one place apart: the number of a packet, which comes again after 65 535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(pub NonZeroU16);

impl Arrivals {
    fn place(&self, Hash(hash): Hash) -> Option<&AtomicU64> {
        self.places.get((hash >> 32) as usize % PLACES)
    }

    /// Notes a packet that arrives. None if another CPU does so at the same time.
    pub fn note(&self, hash: Hash, dscp: u8, moment: Moment) -> Option<Turn> {
        let place = self.place(hash)?;
        let last = place.load(Relaxed);
        let turn = NonZeroU16::new((last as u16).wrapping_add(1)).unwrap_or(NonZeroU16::MIN);
        let new = word(Turn(turn), hash, dscp, moment);
        let noted = place.compare_exchange(last, new, Release, Relaxed);
        noted.is_ok().then_some(Turn(turn))
    }

    /// Whether the packet that had this turn is the last one that arrived, of all with its hash, and it is still the
    /// same moment. Gives the DSCP that it arrived with.
    pub fn is_last(&self, turn: Turn, hash: Hash, moment: Moment) -> Option<u8> {
        let noted = self.place(hash)?.load(Acquire);
        let dscp = (noted >> DSCP_SHIFT << 2) as u8;
        (noted == word(turn, hash, dscp, moment)).then_some(dscp)
    }
}

/// What is noted of a packet.
const fn word(Turn(turn): Turn, Hash(hash): Hash, dscp: u8, Moment(moment): Moment) -> u64 {
    let tag = hash & ((1 << (DSCP_SHIFT - TAG_SHIFT)) - 1);
    turn.get() as u64
        | tag << TAG_SHIFT
        | ((dscp >> 2) as u64) << DSCP_SHIFT
        | (moment as u64) << MOMENT_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const HASH: Hash = Hash(0x1234_5678_9abc_def0);
    const MOMENT: Moment = Moment(u32::MAX);

    impl Arrivals {
        fn new() -> Self {
            Self {
                places: core::array::from_fn(|_| AtomicU64::new(0)),
            }
        }
    }

    #[test]
    fn the_last_one_is_known() {
        let arrivals = Arrivals::new();
        let first = arrivals.note(HASH, 0xb8, MOMENT).unwrap();
        assert_eq!(arrivals.is_last(first, HASH, MOMENT), Some(0xb8));
        assert_eq!(
            arrivals.is_last(first, HASH, MOMENT),
            Some(0xb8),
            "as often as it is asked"
        );
        let second = arrivals.note(HASH, 0, MOMENT).unwrap();
        assert_eq!(
            arrivals.is_last(first, HASH, MOMENT),
            None,
            "another one is behind it"
        );
        assert_eq!(arrivals.is_last(second, HASH, MOMENT), Some(0));
    }

    #[test]
    fn a_change_while_it_is_under_way_is_noticed() {
        let arrivals = Arrivals::new();
        let turn = arrivals.note(HASH, 0, MOMENT).unwrap();
        assert_eq!(arrivals.is_last(turn, HASH, Moment(0)), None);
    }

    #[test]
    fn nobody_passes_for_another() {
        let arrivals = Arrivals::new();
        let turn = arrivals.note(HASH, 0, MOMENT).unwrap();
        let tag = Hash(HASH.0 ^ 1);
        assert_eq!(
            arrivals.is_last(turn, tag, MOMENT),
            None,
            "of the same place"
        );
        let place = Hash(HASH.0 ^ 1 << 32);
        assert_eq!(
            arrivals.is_last(turn, place, MOMENT),
            None,
            "of another place"
        );
    }

    #[test]
    fn all_others_have_another_turn_before_it_is_this_ones_again() {
        let arrivals = Arrivals::new();
        let first = arrivals.note(HASH, 0, MOMENT).unwrap();
        let others = (1..u16::MAX).filter(|_| arrivals.note(HASH, 0, MOMENT) != Some(first));
        assert_eq!(others.count(), usize::from(u16::MAX) - 1);
        assert_eq!(arrivals.note(HASH, 0, MOMENT), Some(first));
    }

    proptest! {
        #[test]
        fn what_is_noted_is_found(hash: u64, dscp in 0u8..64, moment: u32, before: u16) {
            let arrivals = Arrivals::new();
            for _ in 0..before % 8 {
                arrivals.note(Hash(hash), 0, Moment(moment));
            }
            let turn = arrivals.note(Hash(hash), dscp << 2, Moment(moment)).unwrap();
            prop_assert_eq!(arrivals.is_last(turn, Hash(hash), Moment(moment)), Some(dscp << 2));
        }
    }
}

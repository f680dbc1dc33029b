// SPDX-License-Identifier: GPL-2.0

//! Who is let in: not a connection that is over after a few packets, for which it costs more to make flows than
//! they save.
//!
//! Most connections of a router are short, a question and an answer. Nothing is kept of them but a count in a
//! small array, in which they overwrite each other: there is nothing to be found, freed or filled up. Who is
//! overwritten is counted from the start, which is no loss: the packets of a connection that matters come close
//! together. Where so many take turns that nobody's do, a few are let in all the same, so that in the end all are.
//! That is also all that somebody can do who makes packets up in order to keep others out.

use core::array;
use core::sync::atomic::AtomicU16;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use super::key::Hash;

/// Counts the first packets of directions of connections, one CPU's.
///
/// Shared by whoever runs on that CPU: if two count at once, a packet more or less is counted.
#[repr(C)]
pub struct Doorkeeper {
    /// What is known of the last direction whose hash leads here: [`BITS`] bits of how many packets it had, none if
    /// there was no direction, and bits of its hash.
    places: [AtomicU16; PLACES],
    /// How many packets were turned away.
    turned_away: AtomicU32,
}

/// So that they take 16 KiB. A connection is not let in before its packets come twice in a row to its place, among
/// those of the others that are new at the time.
const PLACES: usize = 8192;

/// Bits of a place that count.
const BITS: u32 = 4;

/// The largest number of packets that can be asked for.
pub const MOST: u32 = (1 << BITS) - 1;

/// Of so many packets that would be turned away one is let in. What that costs if all connections are short, is so
/// much less than learning them all.
const EXCEPTION: u32 = 64;

impl Doorkeeper {
    /// One that has seen nobody.
    pub fn new() -> Self {
        Self {
            places: array::from_fn(|_| AtomicU16::new(0)),
            turned_away: AtomicU32::new(0),
        }
    }

    /// Counts a packet of the direction with the given hash. Whether the direction is let in, which it is with
    /// packet number `after`, 1 to [`MOST`].
    pub fn lets_in(&self, Hash(hash): Hash, after: u32) -> bool {
        if after <= 1 {
            return true;
        }
        // The upper half of the hash, so that this has nothing to do with where a flow is in the table.
        let Some(place) = self.places.get((hash >> 48) as usize & (PLACES - 1)) else {
            return true;
        };
        let known = u32::from(place.load(Relaxed));
        let tag = u32::from(hash as u16) & !MOST;
        let before = if known & !MOST == tag {
            known & MOST
        } else {
            0
        };
        let count = before.saturating_add(1).min(MOST);
        place.store((tag | count) as u16, Relaxed);
        count >= after || self.makes_an_exception()
    }

    /// Whether a packet is let in that would be turned away.
    fn makes_an_exception(&self) -> bool {
        let number = self.turned_away.load(Relaxed).wrapping_add(1);
        self.turned_away.store(number, Relaxed);
        number % EXCEPTION == 0
    }
}

impl Default for Doorkeeper {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    /// A hash that leads to a place, with the given tag.
    fn hash(place: u64, tag: u64) -> Hash {
        Hash(place << 48 | tag << BITS)
    }

    #[test]
    fn it_takes_so_many_packets_and_no_more() {
        for after in 1..=MOST {
            let doorkeeper = Doorkeeper::new();
            for packet in 1..=2 * MOST {
                assert_eq!(doorkeeper.lets_in(hash(7, 1), after), packet >= after);
            }
        }
    }

    #[test]
    fn every_place_counts_for_itself() {
        let doorkeeper = Doorkeeper::new();
        let mut let_in = 0;
        for _ in 0..2 {
            for place in 0..PLACES as u64 {
                let_in += u32::from(doorkeeper.lets_in(hash(place, 1), 3));
            }
        }
        assert_eq!(let_in, 2 * PLACES as u32 / EXCEPTION);
        for place in 0..PLACES as u64 {
            assert!(doorkeeper.lets_in(hash(place, 1), 3));
        }
    }

    #[test]
    fn who_takes_a_place_begins_at_one() {
        let doorkeeper = Doorkeeper::new();
        for tag in 0..10 {
            assert!(!doorkeeper.lets_in(hash(3, tag), 3));
            assert!(!doorkeeper.lets_in(hash(3, tag), 3));
        }
        assert!(doorkeeper.lets_in(hash(3, 9), 3));
        assert!(!doorkeeper.lets_in(hash(3, 1), 3));
    }

    #[test]
    fn a_tag_of_zeros_is_told_from_an_empty_place() {
        let doorkeeper = Doorkeeper::new();
        let seen = [(); 3].map(|()| doorkeeper.lets_in(hash(0, 0), 3));
        assert_eq!(seen, [false, false, true]);
    }

    /// Numbers without an order.
    fn scattered(mut state: u64) -> impl FnMut() -> u64 {
        move || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state ^ state >> 31).wrapping_mul(0xd6e8_feb8_6659_fd93)
        }
    }

    #[test]
    fn few_are_let_in_who_come_twice() {
        let doorkeeper = Doorkeeper::new();
        let mut next = scattered(1);
        let mut let_in = 0;
        for _ in 0..100_000 {
            let hash = Hash(next());
            let_in += [(); 2]
                .map(|()| doorkeeper.lets_in(hash, 3))
                .iter()
                .filter(|in_| **in_)
                .count();
        }
        assert!(let_in <= 200_000 / EXCEPTION as usize + 100, "{let_in}");
    }

    #[test]
    fn few_are_kept_out_who_take_turns() {
        let doorkeeper = Doorkeeper::new();
        let mut next = scattered(3);
        let hashes: Vec<u64> = (0..1280).map(|_| next()).collect();
        for packet in 1..=3 {
            let admitted = |hash: &&u64| doorkeeper.lets_in(Hash(**hash), 3);
            let many = hashes.iter().filter(admitted).count();
            assert_eq!(many > 1000, packet == 3, "packet {packet}: {many}");
        }
    }

    #[test]
    fn nobody_is_kept_out_for_ever() {
        // Far more than there are places, one after the other and over again.
        let doorkeeper = Doorkeeper::new();
        let mut next = scattered(2);
        let mut waiting: Vec<u64> = (0..100_000).map(|_| next()).collect();
        for _ in 0..8 * EXCEPTION {
            waiting.retain(|hash| !doorkeeper.lets_in(Hash(*hash), 3));
        }
        assert!(waiting.is_empty(), "{} of them wait", waiting.len());
    }

    proptest! {
        #[test]
        fn three_in_a_row_are_enough(others in proptest::collection::vec(any::<u64>(), 0..200), own: u64) {
            let doorkeeper = Doorkeeper::new();
            for other in others {
                doorkeeper.lets_in(Hash(other), 3);
            }
            doorkeeper.lets_in(Hash(own), 3);
            doorkeeper.lets_in(Hash(own), 3);
            prop_assert!(doorkeeper.lets_in(Hash(own), 3));
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! From a key's hash to a flow: a table of buckets, each one cache line.
//!
//! A bucket has eight slots; a slot is one word: a tag of 13 bits of the hash, and a [`Reference`] of
//! 51 bits to the flow. A flow can be in one of two buckets. If both are full, a resident that can go
//! to its own other bucket makes room; if none can, the flow stays slow. So the work of any lookup is
//! bounded by sixteen slots and of any insertion by a few dozen, whatever an attacker does.
//!
//! Readers take no lock: a slot is read and written as one word. While a resident moves it is in both
//! of its buckets, and a reader may still miss it if it looked at the new one before and at the old
//! one after; a miss only means one slow packet. Writers exclude each other by the [`Writer`] that
//! they hold.

use core::num::NonZeroU64;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;

use super::key::Hash;

/// Slots of a bucket.
pub const WAYS: usize = 8;

/// Bits of a [`Reference`].
pub const REFERENCE_BITS: u32 = 51;

const TAG_BITS: u32 = u64::BITS - REFERENCE_BITS;

/// Stands for a flow in the index; whoever made it knows how to get from it to the flow.
///
/// It is kept in the upper bits of the word: of a slot's word, that is what remains when the tag is shifted out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference(NonZeroU64);

impl Reference {
    /// A reference with the given value, which has to be neither zero nor wider than
    /// [`REFERENCE_BITS`].
    #[inline(always)]
    pub const fn new(value: u64) -> Option<Self> {
        if value >> REFERENCE_BITS != 0 {
            return None;
        }
        Self::in_slot(value)
    }

    /// The one in a slot with this word. `None` if the slot is empty.
    #[inline(always)]
    const fn in_slot(word: u64) -> Option<Self> {
        match NonZeroU64::new(word << TAG_BITS) {
            Some(shifted) => Some(Self(shifted)),
            None => None,
        }
    }

    /// The value that it was made of.
    #[inline(always)]
    pub const fn value(self) -> u64 {
        self.0.get() >> TAG_BITS
    }
}

/// A bucket: as many slots as fit in a cache line.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bucket {
    slots: [AtomicU64; WAYS],
}

/// The right to change an index. There is one per index, kept in the lock that writers take.
#[derive(Debug)]
pub struct Writer {
    used: u32,
}

impl Writer {
    /// The writer of an empty index.
    pub const fn new() -> Self {
        Self { used: 0 }
    }

    /// Slots in use.
    pub const fn used(&self) -> u32 {
        self.used
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

/// No slot is free for a flow with this hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The buckets of an index. Their number does not change.
pub trait Memory {
    /// How many there are.
    fn count(&self) -> usize;

    /// The bucket with a number, which is taken modulo [`Memory::count`] if that is a power of two.
    fn bucket(&self, number: usize) -> &Bucket;
}

/// The index; `B` owns the buckets' memory.
#[derive(Debug)]
pub struct Index<B> {
    buckets: B,
}

/// Buckets for an index of `flows` flows: a power of two, so that the slots are at most half used.
pub const fn buckets_for(flows: u32) -> usize {
    let buckets = (flows as usize).div_ceil(WAYS / 2);
    if buckets <= 2 {
        return 2;
    }
    buckets.next_power_of_two()
}

impl<B: Memory> Index<B> {
    /// An index over `buckets`, all of which are empty. `None` unless their number is a power of two
    /// and at least two.
    pub fn new(buckets: B) -> Option<Self> {
        let len = buckets.count();
        if len < 2 || !len.is_power_of_two() {
            return None;
        }
        Some(Self { buckets })
    }

    /// Number of buckets.
    pub fn len(&self) -> usize {
        self.buckets.count()
    }

    /// Never: an index has at least two buckets. (Not: "holds no flow".)
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Calls `matches` with the flows that may have the hash, until it gives something.
    #[inline(always)]
    pub fn find<R>(
        &self,
        hash: Hash,
        mut matches: impl FnMut(Reference) -> Option<R>,
    ) -> Option<R> {
        let home = first(hash);
        let found = self.find_in(home, hash, &mut matches);
        if found.is_some() {
            return found;
        }
        self.find_in(other(home, hash), hash, &mut matches)
    }

    /// Adds `reference` under `hash`. `hash_of` gives the hash that a resident was added under.
    ///
    /// # Errors
    ///
    /// [`Full`] if there is no slot; nothing has changed then.
    pub fn insert(
        &self,
        writer: &mut Writer,
        hash: Hash,
        reference: Reference,
        mut hash_of: impl FnMut(Reference) -> Hash,
    ) -> Result<(), Full> {
        let word = word(hash, reference);
        let home = first(hash);
        let second = other(home, hash);
        let slot = self
            .empty_slot(home)
            .or_else(|| self.empty_slot(second))
            .or_else(|| self.make_room(home, &mut hash_of))
            .or_else(|| self.make_room(second, &mut hash_of))
            .ok_or(Full)?;
        // Release: whoever finds the reference also sees the flow as it was when it was added.
        slot.store(word, Release);
        writer.used = writer.used.saturating_add(1);
        Ok(())
    }

    /// Takes out `reference`, which was added under `hash`. Gives whether it was there.
    pub fn remove(&self, writer: &mut Writer, hash: Hash, reference: Reference) -> bool {
        let word = word(hash, reference);
        let home = first(hash);
        for at in [home, other(home, hash)] {
            for slot in self.slots(at) {
                if slot.load(Relaxed) == word {
                    slot.store(0, Release);
                    writer.used = writer.used.saturating_sub(1);
                    return true;
                }
            }
        }
        false
    }

    /// Calls `visit` with every flow in the bucket with number `at`, if there is such a bucket.
    pub fn visit_bucket(&self, at: usize, mut visit: impl FnMut(Reference)) {
        if at >= self.len() {
            return;
        }
        for slot in self.slots(at) {
            if let Some(reference) = Reference::in_slot(slot.load(Acquire)) {
                visit(reference);
            }
        }
    }

    #[inline(always)]
    fn find_in<R>(
        &self,
        at: usize,
        hash: Hash,
        matches: &mut impl FnMut(Reference) -> Option<R>,
    ) -> Option<R> {
        let tag = tag(hash);
        for slot in self.slots(at) {
            let word = slot.load(Acquire);
            if word >> REFERENCE_BITS == tag {
                if let Some(reference) = Reference::in_slot(word) {
                    let found = matches(reference);
                    if found.is_some() {
                        return found;
                    }
                }
            }
        }
        None
    }

    #[inline(always)]
    fn slots(&self, at: usize) -> &[AtomicU64; WAYS] {
        &self.buckets.bucket(at).slots
    }

    fn empty_slot(&self, at: usize) -> Option<&AtomicU64> {
        self.slots(at).iter().find(|slot| slot.load(Relaxed) == 0)
    }

    /// Moves one resident of bucket `at` to its other bucket, and gives the slot that it had.
    fn make_room(
        &self,
        at: usize,
        hash_of: &mut impl FnMut(Reference) -> Hash,
    ) -> Option<&AtomicU64> {
        for slot in self.slots(at) {
            let word = slot.load(Relaxed);
            let resident = Reference::in_slot(word)?;
            if let Some(refuge) = self.empty_slot(other(at, hash_of(resident))) {
                refuge.store(word, Release);
                return Some(slot);
            }
        }
        None
    }
}

/// The bucket that a flow is looked for in first; as all numbers of buckets here, modulo how many there are.
#[inline(always)]
const fn first(hash: Hash) -> usize {
    hash.0 as usize
}

/// The other bucket of a flow with this hash that can be in bucket `at`. Never `at` itself, since
/// the step is odd; and from there it leads back.
#[inline(always)]
const fn other(at: usize, hash: Hash) -> usize {
    at ^ ((hash.0 >> 26) as usize | 1)
}

#[inline(always)]
const fn tag(hash: Hash) -> u64 {
    hash.0 >> REFERENCE_BITS
}

#[inline(always)]
const fn word(hash: Hash, reference: Reference) -> u64 {
    tag(hash) << REFERENCE_BITS | reference.value()
}

#[cfg(test)]
mod tests {
    use super::super::ip::{Pair, V4, V6};
    use super::super::key::{Device, Hasher, Key, SECRETS};
    use super::super::transport::Protocol;
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::vec::Vec;

    impl Memory for Vec<Bucket> {
        fn count(&self) -> usize {
            self.len()
        }

        fn bucket(&self, number: usize) -> &Bucket {
            &self[number & (self.len() - 1)]
        }
    }

    fn index(buckets: usize) -> Index<Vec<Bucket>> {
        Index::new((0..buckets).map(|_| Bucket::default()).collect::<Vec<_>>()).unwrap()
    }

    fn reference(n: u64) -> Reference {
        Reference::new(n + 1).unwrap()
    }

    /// Spreads small numbers over 64 bits.
    fn hash(n: u64) -> Hash {
        let n = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let n = (n ^ n >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        Hash(n ^ n >> 32)
    }

    fn found(index: &Index<Vec<Bucket>>, hash: Hash, wanted: Reference) -> bool {
        index.find(hash, |r| (r == wanted).then_some(())).is_some()
    }

    #[test]
    fn sizes() {
        assert_eq!(size_of::<Bucket>(), 64);
        assert_eq!(buckets_for(0), 2);
        assert_eq!(buckets_for(8), 2);
        assert_eq!(buckets_for(9), 4);
        assert_eq!(buckets_for(65_536), 16_384);
        assert!(Index::new(Vec::new()).is_none());
        assert!(Index::new(std::vec![Bucket::default()]).is_none());
        assert!(Index::new((0..3).map(|_| Bucket::default()).collect::<Vec<_>>()).is_none());
    }

    #[test]
    fn references_have_their_limits() {
        const WIDEST: u64 = (1 << REFERENCE_BITS) - 1;
        assert!(Reference::new(0).is_none());
        assert!(Reference::new(1 << 51).is_none());
        assert_eq!(Reference::new(WIDEST).unwrap().value(), WIDEST);
    }

    #[test]
    fn a_table_sized_for_its_flows_takes_them_all() {
        for flows in [8, 100, 4096, 65_536] {
            let index = index(buckets_for(flows));
            let mut writer = Writer::new();
            for n in 0..u64::from(flows) {
                let hash_of = |r: Reference| hash(r.value() - 1);
                assert_eq!(
                    index.insert(&mut writer, hash(n), reference(n), hash_of),
                    Ok(()),
                    "{n} of {flows}"
                );
            }
            assert_eq!(writer.used(), flows);
            for n in 0..u64::from(flows) {
                assert!(found(&index, hash(n), reference(n)));
            }
        }
    }

    #[test]
    fn colliding_hashes_fill_two_buckets_and_no_more() {
        let index = index(1024);
        let mut writer = Writer::new();
        let mut stored = 0;
        for n in 0..100 {
            // Residents that are looked at, each of which is memory of its own, to find one that can move.
            let mut asked = 0;
            let hash_of = |_| {
                asked += 1;
                Hash(42)
            };
            if index
                .insert(&mut writer, Hash(42), reference(n), hash_of)
                .is_ok()
            {
                stored += 1;
            }
            assert!(asked <= 2 * WAYS, "{asked} residents asked for flow {n}");
        }
        assert_eq!(stored, 2 * WAYS);
        // Others still find room.
        assert!(index
            .insert(&mut writer, hash(7), reference(1000), |_| Hash(42))
            .is_ok());
        // And what an attacker can make a lookup do is bounded.
        let mut seen = 0;
        index.find(Hash(42), |_| -> Option<()> {
            seen += 1;
            None
        });
        assert_eq!(seen, 2 * WAYS);
    }

    fn hasher(seed: u64) -> Hasher {
        let mut n = seed;
        Hasher::new([(); SECRETS].map(|()| {
            n += 1;
            hash(n).0
        }))
    }

    /// Keys of flows that differ as little as an attacker can make them: in their ports, and then in one
    /// address.
    fn alike(hasher: &Hasher, n: u64) -> [Hash; 2] {
        let (ports, address) = ((n as u16).to_be() as u32, (n >> 16).to_be() >> 32);
        let v4 = Key::new::<V4>(hasher, address | 0x0a, ports, Protocol::Udp, Device(0));
        let addresses = Pair([0xfd, 0, 0xfd, address]);
        let v6 = Key::new::<V6>(hasher, addresses, ports, Protocol::Udp, Device(0));
        [hasher.hash(v4), hasher.hash(v6)]
    }

    #[test]
    fn a_million_flows_that_are_alike_fit() {
        let flows = if cfg!(miri) { 1000 } else { 1_000_000 };
        let len = buckets_for(flows);
        // Beside the flows themselves.
        assert!(cfg!(miri) || len * size_of::<Bucket>() == 16 << 20);
        let hasher = hasher(1);
        for version in 0..2 {
            let hash_for = |n: u64| alike(&hasher, n)[version];
            let index = index(len);
            let mut writer = Writer::new();
            for n in 0..u64::from(flows) {
                let hash_of = |r: Reference| hash_for(r.value() - 1);
                index
                    .insert(&mut writer, hash_for(n), reference(n), hash_of)
                    .unwrap();
            }
            assert_eq!(writer.used(), flows);
            for n in (0..u64::from(flows)).step_by(997) {
                assert!(found(&index, hash_for(n), reference(n)));
            }
        }
    }

    #[test]
    fn keys_chosen_to_collide_do_not_without_the_secret() {
        let (guessed, real) = (hasher(1), hasher(2));
        let stored = |hasher: &Hasher, keys: &[u64], version: usize| {
            let hash_for = |n: u64| alike(hasher, n)[version];
            let index = index(64);
            let mut writer = Writer::new();
            let insert = |n: &&u64| {
                let hash_of = |r: Reference| hash_for(r.value() - 1);
                index
                    .insert(&mut writer, hash_for(**n), reference(**n), hash_of)
                    .is_ok()
            };
            keys.iter().filter(insert).count()
        };
        let wanted = if cfg!(miri) { 20 } else { 64 };
        for version in 0..2 {
            let count = index(64).len();
            let place = |n: u64| {
                let hash = alike(&guessed, n)[version];
                let at = first(hash);
                (at % count, other(at, hash) % count)
            };
            let keys: Vec<u64> = (0..).filter(|n| place(*n) == (5, 8)).take(wanted).collect();
            assert_eq!(stored(&guessed, &keys, version), 2 * WAYS);
            assert_eq!(stored(&real, &keys, version), wanted);
        }
    }

    #[test]
    fn a_resident_moves_to_make_room() {
        let index = index(64);
        let mut writer = Writer::new();
        let mut hashes = HashMap::new();
        // Eight residents whose other buckets differ, in one bucket, then more of one kind.
        for n in 0..WAYS as u64 {
            let h = Hash(5 | n << 27);
            hashes.insert(reference(n), h);
            index
                .insert(&mut writer, h, reference(n), |r| hashes[&r])
                .unwrap();
        }
        for n in 100..100 + 2 * WAYS as u64 {
            let h = Hash(5 | 20 << 27);
            hashes.insert(reference(n), h);
            index
                .insert(&mut writer, h, reference(n), |r| hashes[&r])
                .unwrap();
        }
        for (reference, hash) in &hashes {
            assert!(found(&index, *hash, *reference));
        }
    }

    impl std::hash::Hash for Reference {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.value().hash(state);
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_map(
            operations in proptest::collection::vec((any::<bool>(), 0u64..60), 1..400),
            narrow in any::<bool>(),
        ) {
            // Narrow: few hashes, so that buckets overflow and residents move.
            let hash_for = |n: u64| if narrow { Hash(((n % 7) << 27) | (n % 3)) } else { hash(n) };
            let index = index(8);
            let mut writer = Writer::new();
            let mut model: Vec<u64> = Vec::new();
            for (add, n) in operations {
                if add && !model.contains(&n) {
                    let hash_of = |r: Reference| hash_for(r.value() - 1);
                    if index.insert(&mut writer, hash_for(n), reference(n), hash_of).is_ok() {
                        model.push(n);
                    } else {
                        prop_assert!(model.len() >= WAYS);
                    }
                } else if !add {
                    let was = model.iter().position(|m| *m == n).map(|at| model.swap_remove(at)).is_some();
                    prop_assert_eq!(index.remove(&mut writer, hash_for(n), reference(n)), was);
                }
                prop_assert_eq!(writer.used() as usize, model.len());
            }
            for n in 0..60 {
                prop_assert_eq!(found(&index, hash_for(n), reference(n)), model.contains(&n));
            }
            let mut visited = Vec::new();
            for at in 0..=index.len() {
                index.visit_bucket(at, |r| visited.push(r.value() - 1));
            }
            visited.sort_unstable();
            model.sort_unstable();
            prop_assert_eq!(visited, model);
        }
    }

    #[test]
    fn readers_do_not_wait_for_writers() {
        // Residents that never leave are always found, while others come and go beside them. (They
        // may be missed while they move; the hashes here leave room enough that none has to.)
        let index = index(256);
        let mut writer = Writer::new();
        for n in 0..64 {
            index
                .insert(&mut writer, hash(n), reference(n), |r| hash(r.value() - 1))
                .unwrap();
        }
        let rounds = if cfg!(miri) { 20 } else { 2000 };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for round in 0..rounds {
                        let n = round % 64;
                        assert!(found(&index, hash(n), reference(n)));
                    }
                });
            }
            for round in 0..rounds {
                let n = 1000 + round % 50;
                index
                    .insert(&mut writer, hash(n), reference(n), |r| hash(r.value() - 1))
                    .unwrap();
                assert!(index.remove(&mut writer, hash(n), reference(n)));
            }
        });
    }
}

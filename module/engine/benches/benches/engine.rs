// SPDX-License-Identifier: GPL-2.0

//! How long the engine takes for each of the things that it does for a packet: read its headers, hash its
//! key, find its flow among few and many, and rewrite it.
//!
//! On this machine, with whatever else runs on it: to compare one version with the next, and to see what a
//! larger table costs when it no longer fits into the processor's caches, which counting instructions can't
//! show.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use fasttrack_engine::index::{buckets_for, Bucket, Index, Memory, Reference, Writer};
use fasttrack_engine::ip::{Ip, Pair, V4, V6};
use fasttrack_engine::key::{Device, Hash, Hasher, Key, SECRETS};
use fasttrack_engine::packet::Packet;
use fasttrack_engine::rewrite::{Checksum, Translation};
use fasttrack_engine_benches::{ipv4, ipv6};

const DEVICE: Device = Device(1);

/// Flows of the tables that are looked into.
const FLOWS: [u32; 5] = [1, 1_000, 10_000, 100_000, 1_000_000];

fn hasher() -> Hasher {
    Hasher::new(std::array::from_fn::<_, SECRETS, _>(|n| {
        (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }))
}

fn read<I: Ip>(packet: &[u8]) -> Packet<I> {
    Packet::read(packet).expect("a packet that can be carried")
}

fn key<I: Ip>(hasher: &Hasher, packet: &Packet<I>) -> Key {
    Key::new::<I>(
        hasher,
        packet.addresses,
        packet.ports,
        packet.protocol,
        DEVICE,
    )
}

/// Reading the headers, and checking what finding the flow does not need.
fn parse(criterion: &mut Criterion) {
    let (four, six) = (ipv4(7), ipv6(7));
    let mut group = criterion.benchmark_group("parse");
    group.bench_function("ipv4", |bencher| {
        bencher.iter(|| parsed::<V4>(black_box(&four)));
    });
    group.bench_function("ipv6", |bencher| {
        bencher.iter(|| parsed::<V6>(black_box(&six)));
    });
    group.finish();
}

fn parsed<I: Ip>(bytes: &[u8]) -> Packet<I> {
    let packet = read::<I>(bytes);
    assert_eq!(packet.is_padded(bytes.len() as u32), Ok(false));
    packet.check(bytes).expect("a packet that is in order");
    packet
}

/// Making a key and its hash.
fn hash(criterion: &mut Criterion) {
    let hasher = hasher();
    let (four, six) = (read::<V4>(&ipv4(7)), read::<V6>(&ipv6(7)));
    let mut group = criterion.benchmark_group("hash");
    group.bench_function("ipv4", |bencher| {
        bencher.iter(|| hasher.hash(key(&hasher, black_box(&four))));
    });
    group.bench_function("ipv6", |bencher| {
        bencher.iter(|| hasher.hash(key(&hasher, black_box(&six))));
    });
    group.finish();
}

/// A flow, as far as a lookup goes: what it is compared with, in a cache line of its own.
#[repr(align(64))]
struct Flow(Key);

/// The memory of an index, a power of two of buckets.
struct Buckets(Vec<Bucket>);

impl Memory for Buckets {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn bucket(&self, number: usize) -> &Bucket {
        &self.0[number & (self.0.len() - 1)]
    }
}

/// As many flows as were asked for, and as many keys that are not among them.
struct Flows {
    index: Index<Buckets>,
    residents: Vec<Flow>,
    strangers: Vec<Key>,
    hasher: Hasher,
}

impl Flows {
    fn new(count: u32) -> Self {
        let hasher = hasher();
        let key_of = |flow| key(&hasher, &read::<V4>(&ipv4(flow)));
        let buckets = (0..buckets_for(count)).map(|_| Bucket::default()).collect();
        let index = Index::new(Buckets(buckets)).expect("a power of two");
        let flows: Vec<_> = (0..count).map(|flow| Flow(key_of(flow))).collect();
        let mut writer = Writer::new();
        for (at, flow) in flows.iter().enumerate() {
            let hash_of = |resident: Reference| hasher.hash(flows[resident.value() as usize - 1].0);
            index
                .insert(&mut writer, hasher.hash(flow.0), reference(at), hash_of)
                .expect("room for all");
        }
        let strangers = (count..2 * count).map(key_of).collect();
        Self {
            index,
            residents: flows,
            strangers,
            hasher,
        }
    }

    fn find(&self, key: Key) -> Option<usize> {
        let hash: Hash = self.hasher.hash(key);
        self.index.find(hash, |candidate| {
            let at = candidate.value() as usize - 1;
            (self.residents[at].0 == key).then_some(at)
        })
    }
}

fn reference(at: usize) -> Reference {
    Reference::new(at as u64 + 1).expect("a small number")
}

/// Hashing a key and looking for its flow. Flows take turns in an order that no prefetcher foresees.
fn lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    for count in FLOWS {
        let flows = Flows::new(count);
        let hits: Vec<_> = flows.residents.iter().map(|flow| flow.0).collect();
        for (name, keys, found) in [("hit", &hits, true), ("miss", &flows.strangers, false)] {
            let mut at = 0_usize;
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| {
                    // A step that has no factor in common with any power of ten.
                    at = (at + 618_033_989) % keys.len();
                    assert_eq!(flows.find(black_box(keys[at])).is_some(), found);
                });
            });
        }
    }
    group.finish();
}

/// Rewriting addresses, ports, hops and checksums.
fn rewrite(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rewrite");
    let mut four = ipv4(7);
    let packet = read::<V4>(&four);
    let to = (
        u64::from_ne_bytes([192, 0, 2, 1, 198, 51, 100, 10]),
        0x3500_2928,
    );
    let translation = Translation::new::<V4>((packet.addresses, packet.ports), to);
    let amendment = translation.amendment::<V4>(0, 0);
    group.bench_function("ipv4", |bencher| {
        bencher.iter(|| {
            let linear = black_box(&mut four[..]);
            translation.apply(&packet, Some(to.0), amendment, Checksum::Present, linear)
        });
    });
    let mut six = ipv6(7);
    let packet = read::<V6>(&six);
    let to = (Pair([1, 2, 3, 4]), 0x3500_2928);
    let translation = Translation::new::<V6>((packet.addresses, packet.ports), to);
    let amendment = translation.amendment::<V6>(0, 0);
    group.bench_function("ipv6", |bencher| {
        bencher.iter(|| {
            let linear = black_box(&mut six[..]);
            translation.apply(&packet, Some(to.0), amendment, Checksum::Present, linear)
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for measure in [parse, hash, lookup, rewrite] {
        measure(&mut criterion);
    }
    criterion.final_summary();
}

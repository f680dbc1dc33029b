// SPDX-License-Identifier: GPL-2.0

//! What a flow is found by.

use super::ip::Family;
use super::ip::Ip;
use super::transport::Protocol;

/// The addresses, ports, protocol and device that the packets of one flow arrive with, in two words.
/// Bytes stay in network order within their fields; a key is only ever compared and hashed.
///
/// For IPv4 equal keys mean equal flows. For IPv6 the addresses have to be compared, too: see
/// [`Ip::identity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The addresses of IPv4, or what stands for those of IPv6.
    identity: u64,
    /// The four bytes of the ports as they lie in the header, the protocol in the next byte, then one that
    /// is not zero for IPv6, and the [`Device`] in the upper 16 bits.
    rest: u64,
}

/// The module's own number of a device that it is attached to.
///
/// Interface indexes are 32 bits wide and may be used again; a number here is given to one
/// attachment and not to another one while a flow still carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(pub u16);

const PROTOCOL_SHIFT: u32 = 32;
const FAMILY_SHIFT: u32 = 40;
/// Bits of [`Key::rest`] that say where the packet arrived, rather than what it is.
const DEVICE_SHIFT: u32 = 48;

impl Key {
    /// Builds a key from header fields in their order in memory.
    #[inline(always)]
    pub fn new<I: Ip>(
        hasher: &Hasher,
        addresses: I::Addresses,
        ports: u32,
        protocol: Protocol,
        device: Device,
    ) -> Self {
        let family = match I::FAMILY {
            Family::V4 => 0,
            Family::V6 => 1 << FAMILY_SHIFT,
        };
        Self {
            identity: I::identity(hasher, addresses),
            rest: u64::from(ports)
                | u64::from(protocol.number()) << PROTOCOL_SHIFT
                | family
                | u64::from(device.0) << DEVICE_SHIFT,
        }
    }

    /// The ports as they lie in the header.
    #[inline]
    pub const fn ports(self) -> u32 {
        self.rest as u32
    }

    /// The protocol's number.
    #[inline]
    pub const fn protocol_number(self) -> u8 {
        (self.rest >> PROTOCOL_SHIFT) as u8
    }

    /// Which version of IP.
    #[inline]
    pub const fn family(self) -> Family {
        match (self.rest >> FAMILY_SHIFT) as u8 {
            0 => Family::V4,
            _ => Family::V6,
        }
    }

    /// The device that the packets arrive on.
    #[inline]
    pub const fn device(self) -> Device {
        Device((self.rest >> DEVICE_SHIFT) as u16)
    }
}

/// A hash of a [`Key`], the same for every device, so that a connection's flows can be found from
/// its conntrack entry alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(pub u64);

/// Hashes keys with a secret, so that nobody outside can choose keys that collide.
///
/// Two rounds of a folded 64 x 64 multiplication. Each factor is combined with 64 secret bits; the
/// upper bits of the second factor's secret are never all zero while the key's own bits there are, so
/// that no choice of ports makes the product vanish.
#[derive(Clone, Copy)]
pub struct Hasher {
    secret: [u64; SECRETS],
}

/// Random words that a [`Hasher`] is made of.
pub const SECRETS: usize = 7;

impl Hasher {
    /// A hasher with the given secret, which should be random.
    pub const fn new(secret: [u64; SECRETS]) -> Self {
        let [a, b, c, d, e, f, g] = secret;
        Self {
            secret: [a, b | 1 << 63, c | 1, d, e, f, g],
        }
    }

    /// A digest of four words: the sum of two products of 128 bits, whose halves are combined. Whoever does not know
    /// the secret can choose no two quadruples of words for which that sum is the same more easily than by a guess of
    /// 64 bits (NH: Black et al., "UMAC: Fast and Secure Message Authentication", 1999). That halves are combined is no
    /// part of that proof; a flow is never taken for another one if it fails, since addresses are compared, too.
    #[inline(always)]
    pub const fn digest(&self, words: [u64; 4]) -> u64 {
        let [_, _, _, d, e, f, g] = self.secret;
        let [p, q, r, s] = words;
        let once = product(p.wrapping_add(d), q.wrapping_add(e));
        let again = product(r.wrapping_add(f), s.wrapping_add(g));
        halves(once.wrapping_add(again))
    }

    /// The hash of `key`.
    #[inline(always)]
    pub const fn hash(&self, key: Key) -> Hash {
        let [a, b, c, ..] = self.secret;
        let tuple = key.rest & ((1 << DEVICE_SHIFT) - 1);
        let once = fold(key.identity ^ a, tuple ^ b);
        Hash(fold(once ^ c, b))
    }
}

/// The two halves of the 128-bit product, combined.
#[inline(always)]
const fn fold(a: u64, b: u64) -> u64 {
    halves(product(a, b))
}

/// All of the product.
#[inline(always)]
const fn product(a: u64, b: u64) -> u128 {
    (a as u128).wrapping_mul(b as u128)
}

/// Both halves, combined.
#[inline(always)]
const fn halves(word: u128) -> u64 {
    word as u64 ^ (word >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::super::ip::Pair;
    use super::super::ip::V4;
    use super::super::ip::V6;
    use super::*;

    const HASHER: Hasher = Hasher::new([
        0x243f_6a88_85a3_08d3,
        0x1319_8a2e_0370_7344,
        0xa409_3822_299f_31d0,
        0x082e_fa98_ec4e_6c89,
        0x4528_21e6_38d0_1377,
        0xbe54_66cf_34e9_0c6c,
        0xc0ac_29b7_c97c_50dd,
    ]);

    fn key(addresses: u64, ports: u32, device: u16) -> Key {
        Key::new::<V4>(&HASHER, addresses, ports, Protocol::Udp, Device(device))
    }

    fn key_v6(addresses: [u64; 4], ports: u32) -> Key {
        Key::new::<V6>(&HASHER, Pair(addresses), ports, Protocol::Udp, Device(0))
    }

    #[test]
    fn fields_come_back() {
        let key = Key::new::<V4>(
            &HASHER,
            0x0102_0304_0506_0708,
            0x1122_3344,
            Protocol::Tcp,
            Device(0xabcd),
        );
        assert_eq!(key.ports(), 0x1122_3344);
        assert_eq!(key.protocol_number(), 6);
        assert_eq!(key.device(), Device(0xabcd));
        assert_eq!(key.family(), Family::V4);
        let key = Key::new::<V6>(
            &HASHER,
            Pair([1, 2, 3, 4]),
            0xffff_ffff,
            Protocol::Esp,
            Device(0xffff),
        );
        assert_eq!(key.ports(), 0xffff_ffff);
        assert_eq!(key.protocol_number(), 50);
        assert_eq!(key.device(), Device(0xffff));
        assert_eq!(key.family(), Family::V6);
    }

    #[test]
    fn the_device_does_not_change_the_hash_but_the_key() {
        assert_ne!(key(1, 2, 3), key(1, 2, 4));
        assert_eq!(HASHER.hash(key(1, 2, 3)), HASHER.hash(key(1, 2, 4)));
    }

    #[test]
    fn protocol_and_every_bit_of_the_tuple_change_the_hash() {
        let base = HASHER.hash(key(7, 9, 0));
        for bit in 0..64 {
            let other = HASHER.hash(key(7 ^ 1 << bit, 9, 0));
            assert_ne!(base, other, "address bit {bit}");
        }
        for bit in 0..32 {
            assert_ne!(base, HASHER.hash(key(7, 9 ^ 1 << bit, 0)), "port bit {bit}");
        }
        let tcp = Key::new::<V4>(&HASHER, 7, 9, Protocol::Tcp, Device(0));
        assert_ne!(base, HASHER.hash(tcp));
    }

    #[test]
    fn the_version_and_every_bit_of_an_ipv6_address_change_the_hash() {
        let addresses = [5, 6, 7, 8];
        let base = HASHER.hash(key_v6(addresses, 9));
        assert_ne!(base, HASHER.hash(key(key_v6(addresses, 9).identity, 9, 0)));
        for word in 0..4 {
            for bit in 0..64 {
                let mut other = addresses;
                other[word] ^= 1 << bit;
                assert_ne!(base, HASHER.hash(key_v6(other, 9)), "word {word} bit {bit}");
            }
        }
        // There and back are not the same.
        assert_ne!(base, HASHER.hash(key_v6([7, 8, 5, 6], 9)));
    }

    #[test]
    fn neighbouring_ports_and_addresses_spread_evenly() {
        // What a network scan or one busy client looks like. 65 536 keys over 4 096 buckets: the
        // fullest of evenly filled ones holds fewer than 45 with overwhelming probability.
        const BUCKETS: usize = 4096;
        type Make = fn(u32) -> Key;
        let ways: [(&str, Make); 5] = [
            ("port", |n| key(0x0a00_0001_c0a8_0001, n, 0)),
            ("address", |n| {
                key(0x0a00_0000_c0a8_0001 | u64::from(n) << 32, 0x1234_5678, 0)
            }),
            ("IPv6 port", |n| key_v6([1, 2, 3, 4], n)),
            ("IPv6 host", |n| key_v6([1, u64::from(n) << 48, 3, 4], 5)),
            ("IPv6 network", |n| key_v6([1, 2, u64::from(n), 4], 5)),
        ];
        for (way, make) in ways {
            for low_bits in [true, false] {
                let mut load = [0u32; BUCKETS];
                for n in 0..65_536u32 {
                    let hash = HASHER.hash(make(n)).0;
                    let bits = if low_bits { hash } else { hash >> 52 };
                    load[bits as usize % BUCKETS] += 1;
                }
                assert!(
                    load.iter().max() < Some(&45),
                    "{way}: {:?}",
                    load.iter().max()
                );
            }
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! What a flow is found by.

use super::packet::Protocol;

/// The addresses, ports, protocol and device that the packets of one IPv4 flow arrive with, in two
/// words. Bytes stay in network order within their fields; a key is only ever compared and hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Source address in the half that comes first in memory, destination address in the other: the
    /// eight bytes as they lie in the header.
    pub addresses: u64,
    /// The four bytes of the ports as they lie in the header, the protocol in the next byte, a zero
    /// byte, and the [`Device`] in the upper 16 bits.
    rest: u64,
}

/// The module's own number of a device that it is attached to.
///
/// Interface indexes are 32 bits wide and may be used again; a number here is given to one
/// attachment and not to another one while a flow still carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(pub u16);

/// Bits of [`Key::rest`] that say where the packet arrived, rather than what it is.
const DEVICE_SHIFT: u32 = 48;

impl Key {
    /// Builds a key from header fields in their order in memory.
    #[inline]
    pub const fn new(addresses: u64, ports: u32, protocol: Protocol, device: Device) -> Self {
        Self {
            addresses,
            rest: ports as u64
                | (protocol.number() as u64) << 32
                | (device.0 as u64) << DEVICE_SHIFT,
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
        (self.rest >> 32) as u8
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
    secret: [u64; 3],
}

impl Hasher {
    /// A hasher with the given secret, which should be random.
    pub const fn new(secret: [u64; 3]) -> Self {
        let [a, b, c] = secret;
        Self {
            secret: [a, b | 1 << 63, c | 1],
        }
    }

    /// The hash of `key`.
    #[inline]
    pub const fn hash(&self, key: Key) -> Hash {
        let [a, b, c] = self.secret;
        let tuple = key.rest & ((1 << DEVICE_SHIFT) - 1);
        let once = fold(key.addresses ^ a, tuple ^ b);
        Hash(fold(once ^ c, b))
    }
}

/// The two halves of the 128-bit product, combined.
#[inline]
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASHER: Hasher = Hasher::new([
        0x243f_6a88_85a3_08d3,
        0x1319_8a2e_0370_7344,
        0xa409_3822_299f_31d0,
    ]);

    fn key(addresses: u64, ports: u32, device: u16) -> Key {
        Key::new(addresses, ports, Protocol::Udp, Device(device))
    }

    #[test]
    fn fields_come_back() {
        let key = Key::new(
            0x0102_0304_0506_0708,
            0x1122_3344,
            Protocol::Tcp,
            Device(0xabcd),
        );
        assert_eq!(key.ports(), 0x1122_3344);
        assert_eq!(key.protocol_number(), 6);
        assert_eq!(key.device(), Device(0xabcd));
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
            assert_ne!(
                base,
                HASHER.hash(key(7 ^ 1 << bit, 9, 0)),
                "address bit {bit}"
            );
        }
        for bit in 0..32 {
            assert_ne!(base, HASHER.hash(key(7, 9 ^ 1 << bit, 0)), "port bit {bit}");
        }
        assert_ne!(base, HASHER.hash(Key::new(7, 9, Protocol::Tcp, Device(0))));
    }

    #[test]
    fn neighbouring_ports_and_addresses_spread_evenly() {
        // What a network scan or one busy client looks like. 65 536 keys over 4 096 buckets: the
        // fullest of evenly filled ones holds fewer than 45 with overwhelming probability.
        const BUCKETS: usize = 4096;
        for low_bits in [true, false] {
            for by_port in [true, false] {
                let mut load = [0u32; BUCKETS];
                for n in 0..65_536u32 {
                    let key = if by_port {
                        key(0x0a00_0001_c0a8_0001, n, 0)
                    } else {
                        key(0x0a00_0000_c0a8_0001 | u64::from(n) << 32, 0x1234_5678, 0)
                    };
                    let hash = HASHER.hash(key).0;
                    let bits = if low_bits { hash } else { hash >> 52 };
                    load[bits as usize % BUCKETS] += 1;
                }
                assert!(load.iter().max() < Some(&45), "{:?}", load.iter().max());
            }
        }
    }
}

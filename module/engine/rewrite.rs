// SPDX-License-Identifier: GPL-2.0

//! Changing a packet as the slow path would: NAT, time to live, DSCP, and the checksums over them.

use super::checksum::Sum;
use super::packet::Packet;
use super::packet::Protocol;
use super::packet::DSCP_MASK;
use super::packet::IPV4_LEN;
use super::packet::UDP_LEN;

/// What the packets of a flow leave with in place of what they arrived with, and what that does to
/// their checksums: one precomputed difference for all fields together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Source and destination address, as they lie in the header.
    pub addresses: u64,
    /// Source and destination port, as they lie in the header.
    pub ports: u32,
    /// Difference that the addresses make: to the IP header's checksum, and to the sum over the
    /// pseudo header.
    address_delta: Sum,
    /// Difference that addresses and ports make to the transport checksum.
    full_delta: Sum,
}

/// Who is going to compute the transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The packet holds it, right or wrong. A difference leaves it as right or wrong as it was.
    Present,
    /// The device that sends the packet; the field holds the sum over the pseudo header
    /// (`CHECKSUM_PARTIAL`).
    LeftToDevice,
}

impl Translation {
    /// From the addresses and ports that packets arrive with to those that they leave with.
    pub const fn new(from: (u64, u32), to: (u64, u32)) -> Self {
        let address_delta = Sum::of_u64(from.0).delta_to(Sum::of_u64(to.0));
        let port_delta = Sum::of_u32(from.1).delta_to(Sum::of_u32(to.1));
        Self {
            addresses: to.0,
            ports: to.1,
            address_delta,
            full_delta: address_delta.plus(port_delta),
        }
    }

    /// Rewrites the headers of `packet`, which begins with `linear`: addresses, ports, one hop less
    /// to live, `dscp` (in its place in the type of service), and the checksums.
    ///
    /// Gives `false`, and changes nothing, if the headers are not all there; [`Packet::read`] has made
    /// sure that they are.
    #[inline]
    pub fn apply(&self, packet: &Packet, dscp: u8, checksum: Checksum, linear: &mut [u8]) -> bool {
        match packet.protocol {
            Protocol::Udp => {
                let Some(bytes) = linear.first_chunk_mut::<{ IPV4_LEN + UDP_LEN }>() else {
                    return false;
                };
                self.rewrite_addresses(packet, dscp, bytes);
                let [.., c0, c1] = bytes;
                let old = u16::from_ne_bytes([*c0, *c1]);
                let new = match checksum {
                    Checksum::Present => self.full_delta.amend_udp(old),
                    Checksum::LeftToDevice => self.address_delta.amend_partial(old),
                };
                [*c0, *c1] = new.to_ne_bytes();
            }
            Protocol::Tcp => {
                let Some(bytes) = linear.first_chunk_mut::<{ IPV4_LEN + 18 }>() else {
                    return false;
                };
                let [.., c0, c1] = bytes;
                let old = u16::from_ne_bytes([*c0, *c1]);
                let new = match checksum {
                    Checksum::Present => self.full_delta.amend(old),
                    Checksum::LeftToDevice => self.address_delta.amend_partial(old),
                };
                [*c0, *c1] = new.to_ne_bytes();
                self.rewrite_addresses(packet, dscp, bytes);
            }
        }
        true
    }

    /// The IP header, and the ports behind it.
    #[inline]
    fn rewrite_addresses<const LEN: usize>(
        &self,
        packet: &Packet,
        dscp: u8,
        bytes: &mut [u8; LEN],
    ) {
        let Some(header) = bytes.first_chunk_mut::<{ IPV4_LEN + 4 }>() else {
            return;
        };
        let tos = packet.tos & !DSCP_MASK | dscp;
        // One hop less takes 0x0100 off the word that holds the time to live, so its complement is
        // what has to be added (RFC 1141).
        let hop = Sum(u16::from_ne_bytes([0xfe, 0xff]));
        let mut delta = self.address_delta.plus(hop);
        if tos != packet.tos {
            let old = Sum(u16::from_ne_bytes([0x45, packet.tos]));
            let new = Sum(u16::from_ne_bytes([0x45, tos]));
            delta = delta.plus(old.delta_to(new));
        }
        let [_, tos_field, _, _, _, _, _, _, ttl, _, c0, c1, rest @ ..] = header;
        *tos_field = tos;
        *ttl = packet.ttl.wrapping_sub(1);
        [*c0, *c1] = delta.amend(u16::from_ne_bytes([*c0, *c1])).to_ne_bytes();
        let [a, b, c, d, e, f, g, h, p, q, r, s] = rest;
        [*a, *b, *c, *d, *e, *f, *g, *h] = self.addresses.to_ne_bytes();
        [*p, *q, *r, *s] = self.ports.to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::{seal, tcp, udp};
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The transport checksum of a whole packet, computed from nothing.
    fn transport_checksum(bytes: &[u8]) -> u16 {
        let mut data: Vec<u8> = bytes[12..20].to_vec();
        let len = (bytes.len() - IPV4_LEN) as u16;
        data.extend([0, bytes[9]]);
        data.extend(len.to_be_bytes());
        let mut transport = bytes[IPV4_LEN..].to_vec();
        let at = if bytes[9] == 17 { 6 } else { 16 };
        transport[at..at + 2].fill(0);
        data.extend(transport);
        if data.len() % 2 == 1 {
            data.push(0);
        }
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn pseudo_header_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes[12..20].chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        sum += u32::from(bytes[9]) + (bytes.len() - IPV4_LEN) as u32;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn checksum_at(bytes: &[u8]) -> usize {
        IPV4_LEN + if bytes[9] == 17 { 6 } else { 16 }
    }

    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    prop_compose! {
        fn packets()(
            is_tcp in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
            addresses in any::<[u8; 8]>(),
            ports in any::<[u8; 4]>(),
            tos in any::<u8>(),
            ttl in 2u8..,
        ) -> Vec<u8> {
            let mut bytes = if is_tcp { tcp(payload.len()) } else { udp(payload.len()) };
            let at = bytes.len() - payload.len();
            bytes[at..].copy_from_slice(&payload);
            bytes[1] = tos;
            bytes[8] = ttl;
            bytes[12..20].copy_from_slice(&addresses);
            bytes[20..24].copy_from_slice(&ports);
            seal(&mut bytes);
            bytes
        }
    }

    proptest! {
        #[test]
        fn the_result_is_what_computing_anew_gives(
            original in packets(),
            addresses in any::<u64>(),
            ports in any::<u32>(),
            dscp in any::<u8>(),
            left_to_device in any::<bool>(),
        ) {
            let mut bytes = original.clone();
            let at = checksum_at(&bytes);
            let field = if left_to_device {
                pseudo_header_sum(&bytes)
            } else {
                match transport_checksum(&bytes) { 0 => 0xffff, c => c }
            };
            bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
            let packet = Packet::read(&bytes).unwrap();
            let dscp = dscp & DSCP_MASK;
            let translation = Translation::new((packet.addresses, packet.ports), (addresses, ports));
            let kind = if left_to_device { Checksum::LeftToDevice } else { Checksum::Present };
            prop_assert!(translation.apply(&packet, dscp, kind, &mut bytes));

            let mut expected = original.clone();
            expected[1] = original[1] & 3 | dscp;
            expected[8] -= 1;
            expected[12..20].copy_from_slice(&addresses.to_ne_bytes());
            expected[20..24].copy_from_slice(&ports.to_ne_bytes());
            seal(&mut expected);
            let expected_field = if left_to_device { pseudo_header_sum(&expected) } else { transport_checksum(&expected) };
            let read = |b: &[u8], at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
            prop_assert!(same(read(&bytes, at), expected_field));
            prop_assert!(same(read(&bytes, 10), read(&expected, 10)));
            if !left_to_device && bytes[9] == 17 {
                prop_assert_ne!(read(&bytes, at), 0, "UDP never loses its checksum");
            }
            for b in [&mut bytes, &mut expected] {
                b[at..at + 2].fill(0);
                b[10..12].fill(0);
            }
            prop_assert_eq!(bytes, expected);
        }

        #[test]
        fn udp_without_checksum_stays_without(original in packets(), addresses in any::<u64>()) {
            let mut bytes = original;
            prop_assume!(bytes[9] == 17);
            bytes[26..28].fill(0);
            let packet = Packet::read(&bytes).unwrap();
            let translation = Translation::new((packet.addresses, packet.ports), (addresses, packet.ports));
            translation.apply(&packet, 0, Checksum::Present, &mut bytes);
            prop_assert_eq!(&bytes[26..28], &[0, 0]);
        }

        #[test]
        fn too_short_is_left_alone(original in packets(), len in 0usize..28) {
            let packet = Packet::read(&original).unwrap();
            let mut bytes = original[..len].to_vec();
            let translation = Translation::new((packet.addresses, packet.ports), (0, 0));
            prop_assert!(!translation.apply(&packet, 0, Checksum::Present, &mut bytes));
            prop_assert_eq!(&bytes[..], &original[..len]);
        }
    }
}

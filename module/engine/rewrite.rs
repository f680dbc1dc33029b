// SPDX-License-Identifier: GPL-2.0

//! Changing a packet as the slow path would: NAT, hops left, DSCP, and the checksums over them.

use super::checksum::Sum;
use super::ip::field;
use super::ip::put;
use super::ip::Ip;
use super::ip::DSCP_MASK;
use super::packet::Packet;
use super::transport::Protocol;
use super::transport::TCP_LEN;
use super::transport::UDP_LEN;

/// What the ports of a flow's packets become, and what the whole change does to their checksums: one
/// precomputed difference for all fields together. The addresses are kept elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Source and destination port, as they lie in the header.
    pub ports: u32,
    /// Difference that the addresses make to the sum over the pseudo header.
    address_delta: Sum,
    /// Difference that addresses and ports make to the transport checksum.
    full_delta: Sum,
}

/// What becomes of the IP header of a flow's packets, but for the addresses: one hop less, and another DSCP if
/// the slow path gives one. It holds for packets that arrive with a certain DSCP, so what it does to the header's
/// checksum is always the same.
///
/// In four bytes, which can be changed at once: of IPv4 the DSCP that packets have to arrive with, the bits of the type
/// of service that change, and the difference that all changes to the header, those of its addresses as well, make to
/// the sum over it; of IPv6 that DSCP, and the bits that change, in their place in the first two bytes of a header. See
/// [`Ip::amendment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amendment(pub(super) [u8; 4]);

impl Amendment {
    /// As a word.
    pub const fn pack(self) -> u32 {
        u32::from_ne_bytes(self.0)
    }

    /// From what [`Amendment::pack`] gave.
    #[inline(always)]
    pub const fn unpack(word: u32) -> Self {
        Self(word.to_ne_bytes())
    }
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
    pub fn new<I: Ip>(from: (I::Addresses, u32), to: (I::Addresses, u32)) -> Self {
        let address_delta = I::sum(from.0).delta_to(I::sum(to.0));
        let port_delta = Sum::of_u32(from.1).delta_to(Sum::of_u32(to.1));
        Self {
            ports: to.1,
            address_delta,
            full_delta: address_delta.plus(port_delta),
        }
    }

    /// What becomes of the rest of the IP header of packets that arrive with one DSCP and leave with another one.
    /// Both are in their place in the type of service.
    pub fn amendment<I: Ip>(&self, dscp_in: u8, dscp_out: u8) -> Amendment {
        I::amendment(
            self.address_delta,
            dscp_in & DSCP_MASK,
            dscp_out & DSCP_MASK,
        )
    }

    /// Rewrites the headers of `packet`, which begins with `linear`, and arrived with the DSCP that `amendment` is
    /// for: `addresses` if they are others, ports, one hop less, DSCP, and the checksums.
    ///
    /// Gives `false`, and changes nothing, if the headers are not all there; [`Packet::read`] has made
    /// sure that they are.
    #[inline(always)]
    pub fn apply<I: Ip>(
        &self,
        packet: &Packet<I>,
        addresses: Option<I::Addresses>,
        amendment: Amendment,
        checksum: Checksum,
        linear: &mut [u8],
    ) -> bool {
        // One look at the length, before anything is changed.
        if linear.len() < I::HEADER + packet.protocol.header_len() {
            return false;
        }
        let Some(behind) = I::rewrite(linear, amendment, addresses) else {
            return false;
        };
        match packet.protocol {
            Protocol::Udp => {
                let Some(header) = behind.first_chunk_mut::<UDP_LEN>() else {
                    return false;
                };
                put(header, 0, self.ports.to_ne_bytes());
                let old = u16::from_ne_bytes(field(header, UDP_CHECKSUM));
                let new = match checksum {
                    Checksum::Present => self.full_delta.amend_udp(old),
                    Checksum::LeftToDevice => self.address_delta.amend_partial(old),
                };
                put(header, UDP_CHECKSUM, new.to_ne_bytes());
            }
            Protocol::Tcp => {
                let Some(header) = behind.first_chunk_mut::<TCP_LEN>() else {
                    return false;
                };
                put(header, 0, self.ports.to_ne_bytes());
                let old = u16::from_ne_bytes(field(header, TCP_CHECKSUM));
                let new = match checksum {
                    Checksum::Present => self.full_delta.amend(old),
                    Checksum::LeftToDevice => self.address_delta.amend_partial(old),
                };
                put(header, TCP_CHECKSUM, new.to_ne_bytes());
            }
            // Ports stay, and no checksum is over the addresses that conntrack would amend.
            _ => {}
        }
        true
    }
}

/// Where the checksums are in the headers of UDP and TCP.
const UDP_CHECKSUM: usize = 6;
const TCP_CHECKSUM: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::ip::{Family, Ip, Pair, V4, V6};
    use super::super::samples::{header_len, packet, sctp, seal, sum, tcp, udp};
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Where the addresses are.
    fn addresses_at(family: Family) -> core::ops::Range<usize> {
        match family {
            Family::V4 => 12..20,
            Family::V6 => 8..40,
        }
    }

    fn protocol_of(bytes: &[u8]) -> u8 {
        bytes[if bytes[0] >> 4 == 4 { 9 } else { 6 }]
    }

    fn family_of(bytes: &[u8]) -> Family {
        if bytes[0] >> 4 == 4 {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// The sum over the pseudo header.
    fn pseudo_header_sum(bytes: &[u8]) -> u16 {
        let family = family_of(bytes);
        let mut data = bytes[addresses_at(family)].to_vec();
        data.extend([0, protocol_of(bytes)]);
        data.extend(((bytes.len() - header_len(family)) as u16).to_be_bytes());
        sum(&data)
    }

    fn checksum_at(bytes: &[u8]) -> usize {
        header_len(family_of(bytes)) + if protocol_of(bytes) == 17 { 6 } else { 16 }
    }

    /// The transport checksum of a whole packet, computed from nothing.
    fn transport_checksum(bytes: &[u8]) -> u16 {
        let at = checksum_at(bytes);
        let mut data = bytes.to_vec();
        data[at..at + 2].fill(0);
        let mut whole = pseudo_header_sum(bytes).to_be_bytes().to_vec();
        whole.extend(&data[header_len(family_of(bytes))..]);
        !sum(&whole)
    }

    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    /// Rewrites a packet. Gives whether that was done.
    fn rewrite<I: Ip>(
        bytes: &mut [u8],
        original: &[u8],
        to: (I::Addresses, u32),
        dscp: u8,
        checksum: Checksum,
    ) -> bool {
        let packet = Packet::<I>::read(original).unwrap();
        let translation = Translation::new::<I>((packet.addresses, packet.ports), to);
        let amendment = translation.amendment::<I>(packet.dscp(), dscp);
        assert_eq!(I::dscps(amendment), [packet.dscp(), dscp]);
        assert!(I::suits(&packet, amendment));
        let addresses = (to.0 != packet.addresses).then_some(to.0);
        translation.apply(&packet, addresses, amendment, checksum, bytes)
    }

    /// The same, with new addresses as bytes, of which IPv4 takes the first eight.
    fn rewrite_either(
        bytes: &mut [u8],
        original: &[u8],
        addresses: [u64; 4],
        ports: u32,
        dscp: u8,
        checksum: Checksum,
    ) -> bool {
        match family_of(original) {
            Family::V4 => rewrite::<V4>(bytes, original, (addresses[0], ports), dscp, checksum),
            Family::V6 => rewrite::<V6>(bytes, original, (Pair(addresses), ports), dscp, checksum),
        }
    }

    /// What a rewritten packet has to look like, but for its transport checksum.
    fn expected(original: &[u8], addresses: [u64; 4], ports: Option<u32>, dscp: u8) -> Vec<u8> {
        let mut bytes = original.to_vec();
        let family = family_of(original);
        let header = header_len(family);
        let new: Vec<u8> = addresses
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let at = addresses_at(family);
        bytes[at.clone()].copy_from_slice(&new[..at.len()]);
        if let Some(ports) = ports {
            bytes[header..header + 4].copy_from_slice(&ports.to_ne_bytes());
        }
        match family {
            Family::V4 => {
                bytes[1] = original[1] & 3 | dscp;
                bytes[8] -= 1;
            }
            Family::V6 => {
                let class = (original[0] << 4 | original[1] >> 4) & 3 | dscp;
                bytes[0] = 0x60 | class >> 4;
                bytes[1] = class << 4 | original[1] & 0xf;
                bytes[7] -= 1;
            }
        }
        seal(&mut bytes);
        bytes
    }

    prop_compose! {
        fn packets()(
            is_v4 in any::<bool>(),
            is_tcp in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
            addresses in any::<[u8; 32]>(),
            ports in any::<[u8; 4]>(),
            tos in any::<u8>(),
            hops in 2u8..,
        ) -> Vec<u8> {
            let family = if is_v4 { Family::V4 } else { Family::V6 };
            let mut bytes = if is_tcp { tcp(family, payload.len()) } else { udp(family, payload.len()) };
            let at = bytes.len() - payload.len();
            bytes[at..].copy_from_slice(&payload);
            if is_v4 {
                bytes[1] = tos;
                bytes[8] = hops;
            } else {
                bytes[0] = 0x60 | tos >> 4;
                bytes[1] = tos << 4 | 0xa;
                bytes[7] = hops;
            }
            let at = addresses_at(family);
            bytes[at.clone()].copy_from_slice(&addresses[..at.len()]);
            let header = header_len(family);
            bytes[header..header + 4].copy_from_slice(&ports);
            seal(&mut bytes);
            bytes
        }
    }

    proptest! {
        #[test]
        fn the_result_is_what_computing_anew_gives(
            original in packets(),
            addresses in any::<[u64; 4]>(),
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
            let original = bytes.clone();
            let dscp = dscp & DSCP_MASK;
            let kind = if left_to_device { Checksum::LeftToDevice } else { Checksum::Present };
            prop_assert!(rewrite_either(&mut bytes, &original, addresses, ports, dscp, kind));

            let mut wanted = expected(&original, addresses, Some(ports), dscp);
            let wanted_field = if left_to_device { pseudo_header_sum(&wanted) } else { transport_checksum(&wanted) };
            let read = |b: &[u8], at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
            prop_assert!(same(read(&bytes, at), wanted_field));
            if !left_to_device && protocol_of(&bytes) == 17 {
                prop_assert_ne!(read(&bytes, at), 0, "UDP never loses its checksum");
            }
            if family_of(&bytes) == Family::V4 {
                prop_assert!(same(read(&bytes, 10), read(&wanted, 10)));
            }
            for b in [&mut bytes, &mut wanted] {
                b[at..at + 2].fill(0);
                seal(b);
            }
            prop_assert_eq!(bytes, wanted);
        }

        #[test]
        fn udp_without_checksum_stays_without(original in packets(), addresses in any::<[u64; 4]>()) {
            let mut bytes = original;
            prop_assume!(protocol_of(&bytes) == 17);
            let at = checksum_at(&bytes);
            bytes[at..at + 2].fill(0);
            let original = bytes.clone();
            prop_assert!(rewrite_either(&mut bytes, &original, addresses, 7, 0, Checksum::Present));
            prop_assert_eq!(&bytes[at..at + 2], &[0, 0]);
        }

        #[test]
        fn too_short_is_left_alone(original in packets(), cut in 1usize..28) {
            let header = header_len(family_of(&original)) + if protocol_of(&original) == 17 { 8 } else { 20 };
            let len = header.saturating_sub(cut);
            let mut bytes = original[..len].to_vec();
            prop_assert!(!rewrite_either(&mut bytes, &original, [0; 4], 0, 0, Checksum::Present));
            prop_assert_eq!(&bytes[..], &original[..len]);
        }
    }

    #[test]
    fn of_other_protocols_only_the_addresses_change() {
        for family in [Family::V4, Family::V6] {
            for original in [packet(family, 50, &[0x5a; 40]), sctp(family, &[(0, 30)])] {
                let mut bytes = original.clone();
                let ports = Packet::<V4>::read(&original).map_or(0, |packet| packet.ports);
                let to = [1, 2, 3, 4];
                assert!(rewrite_either(
                    &mut bytes,
                    &original,
                    to,
                    ports,
                    0x88,
                    Checksum::Present
                ));
                assert_eq!(bytes, expected(&original, to, None, 0x88));
            }
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! A received packet, as far as the fast path has to know it.
//!
//! Reading is in two steps. [`Packet::read`] takes what finding the flow needs, and only that: most
//! packets that are no flow's go on to the IP layer, which checks them anyway. [`Packet::check`] does the
//! rest, for a packet that would otherwise be forwarded.

use super::ip::Ip;
use super::ip::DSCP_MASK;
use super::reason::SlowReason;
use super::transport::Protocol;

/// Why [`Packet::read`] did not read a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Nothing that a flow could be made of: another protocol, a fragment, options or extension headers.
    /// If it is forwarded, the learning side sees why it can't be fast.
    NotCarried,
    /// The headers are there but not in one piece yet: [`Ip::READ`] bytes have to be.
    InPieces,
    /// No IP header that the IP layer would accept.
    BadHeader,
}

/// What came of reading a packet: as a `Result`, but laid out so that the packet shares no memory with what
/// takes its place, and stays in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading<I: Ip> {
    /// The packet.
    Packet(Packet<I>),
    /// See [`Unread::NotCarried`].
    NotCarried,
    /// See [`Unread::InPieces`].
    InPieces,
    /// See [`Unread::BadHeader`].
    BadHeader,
}

impl<I: Ip> From<Unread> for Reading<I> {
    #[inline(always)]
    fn from(why: Unread) -> Self {
        match why {
            Unread::NotCarried => Self::NotCarried,
            Unread::InPieces => Self::InPieces,
            Unread::BadHeader => Self::BadHeader,
        }
    }
}

/// The headers of a packet that may belong to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<I: Ip> {
    /// Source and destination address, as they lie in the header.
    pub addresses: I::Addresses,
    /// Source and destination port: four bytes as they lie in the header. Zero for a protocol without.
    pub ports: u32,
    /// The four bytes behind the first four behind the header: of UDP, length and checksum.
    pub second: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The first two bytes of the header, as they lie: see [`Ip::tos`].
    pub start: u16,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// The length that the header claims, in bytes, header included.
    pub total_len: u32,
}

impl<I: Ip> Packet<I> {
    /// Reads the packet that begins with `linear`, the part of it that is in one piece.
    ///
    /// # Errors
    ///
    /// See [`Unread`].
    #[inline(always)]
    pub fn read(linear: &[u8]) -> Result<Self, Unread> {
        match I::read(linear) {
            Reading::Packet(packet) => Ok(packet),
            Reading::NotCarried => Err(Unread::NotCarried),
            Reading::InPieces => Err(Unread::InPieces),
            Reading::BadHeader => Err(Unread::BadHeader),
        }
    }

    /// DSCP: the upper six bits of the type of service, in their place.
    #[inline]
    pub fn dscp(&self) -> u8 {
        I::tos(self.start) & DSCP_MASK
    }

    /// Whether anything is behind the packet in its frame, of which `frame_len` bytes are left from the IP header on:
    /// link-layer padding. The packet has to be one that [`Ip::read`] has read from there.
    ///
    /// # Errors
    ///
    /// [`SlowReason::BadHeader`] if it is longer than the frame, or shorter than its headers.
    #[inline(always)]
    pub fn is_padded(&self, frame_len: u32) -> Result<bool, SlowReason> {
        // Then what has been read is all there.
        if self.total_len == frame_len {
            return Ok(false);
        }
        let least = I::HEADER as u32 + self.protocol.header_len() as u32;
        if (least..frame_len).contains(&self.total_len) {
            Ok(true)
        } else {
            Err(SlowReason::BadHeader)
        }
    }

    /// Checks what finding the flow did not need, of a packet that begins with `linear`.
    ///
    /// # Errors
    ///
    /// The reason for which the packet takes the slow path.
    #[inline(always)]
    pub fn check(&self, linear: &[u8]) -> Result<(), SlowReason> {
        if !I::is_intact(linear) {
            return Err(SlowReason::BadHeader);
        }
        if self.hops <= 1 {
            return Err(SlowReason::Ttl);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ip::{Family, Ip, V4, V6};
    use super::super::samples::{packet, sctp, seal, tcp, udp};
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn read_and_check<I: Ip>(bytes: &[u8]) -> Result<(), SlowReason> {
        let packet = Packet::<I>::read(bytes).expect("readable");
        fits_and_is_right(&packet, bytes, bytes.len() as u32)
    }

    /// What the fast path asks of a packet at the beginning of a frame.
    fn fits_and_is_right<I: Ip>(
        packet: &Packet<I>,
        linear: &[u8],
        frame_len: u32,
    ) -> Result<(), SlowReason> {
        packet.is_padded(frame_len)?;
        packet.check(linear)
    }

    #[test]
    fn fields_of_ipv4_are_read() {
        let bytes = udp(Family::V4, 10);
        let packet = Packet::<V4>::read(&bytes).unwrap();
        assert_eq!(packet.addresses.to_ne_bytes(), [10, 0, 0, 2, 192, 0, 2, 9]);
        assert_eq!(packet.ports.to_ne_bytes(), [0x30, 0x39, 0, 53]);
        assert_eq!(
            (packet.protocol, packet.hops, packet.total_len),
            (Protocol::Udp, 64, 38)
        );
        assert_eq!(fits_and_is_right(&packet, &bytes, 38), Ok(()));
    }

    #[test]
    fn fields_of_ipv6_are_read() {
        let mut bytes = udp(Family::V6, 10);
        bytes[0] = 0x6b;
        bytes[1] = 0x9a;
        let packet = Packet::<V6>::read(&bytes).unwrap();
        let addresses: Vec<u8> = packet
            .addresses
            .0
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(addresses, &bytes[8..40]);
        assert_eq!(packet.ports.to_ne_bytes(), [0x30, 0x39, 0, 53]);
        assert_eq!(
            (
                packet.protocol,
                packet.hops,
                packet.total_len,
                V6::tos(packet.start),
                packet.dscp()
            ),
            (Protocol::Udp, 64, 58, 0xb9, 0xb8)
        );
        assert_eq!(fits_and_is_right(&packet, &bytes, 58), Ok(()));
    }

    #[test]
    fn what_is_no_flows_is_left_alone() {
        let mut options = udp(Family::V4, 20);
        options[0] = 0x46;
        assert_eq!(Packet::<V4>::read(&options), Err(Unread::NotCarried));
        for (field, name) in [(0x2000u16, "first"), (0x2001, "middle"), (0x00ff, "last")] {
            let mut fragment = udp(Family::V4, 10);
            fragment[6..8].copy_from_slice(&field.to_be_bytes());
            assert_eq!(
                Packet::<V4>::read(&fragment),
                Err(Unread::NotCarried),
                "{name} fragment"
            );
        }
        let mut df = udp(Family::V4, 10);
        df[6] = 0x40;
        assert!(Packet::<V4>::read(&df).is_ok());
        // ICMP, IGMP, OSPF; and, of IPv6, the extension headers and ICMPv6.
        for protocol in [1, 2, 89] {
            let bytes = packet(Family::V4, protocol, &[0; 20]);
            assert_eq!(Packet::<V4>::read(&bytes), Err(Unread::NotCarried));
        }
        for protocol in [0, 43, 44, 51, 58, 59, 60, 135, 139, 140] {
            let bytes = packet(Family::V6, protocol, &[0; 20]);
            assert_eq!(
                Packet::<V6>::read(&bytes),
                Err(Unread::NotCarried),
                "{protocol}"
            );
        }
    }

    fn uncarried_tcp<I: Ip>(bytes: &[u8]) -> Option<(I::Addresses, u32)> {
        I::read_uncarried_tcp(|offset| bytes.get(offset..)?.first_chunk().copied())
    }

    #[test]
    fn the_ports_of_tcp_are_read_where_no_flow_carries_it() {
        let plain = tcp(Family::V4, 10);
        let carried = Packet::<V4>::read(&plain).unwrap();
        let wanted = Some((carried.addresses, carried.ports));
        let mut first = plain.clone();
        first[6] = 0x20;
        assert_eq!(uncarried_tcp::<V4>(&first), wanted);
        let mut second = plain.clone();
        second[7] = 1;
        assert_eq!(uncarried_tcp::<V4>(&second), None);
        let mut options = plain.clone();
        options[0] = 0x46;
        options.splice(20..20, [1; 4]);
        assert_eq!(uncarried_tcp::<V4>(&options), wanted);
        assert_eq!(uncarried_tcp::<V4>(&options[..26]), None);
        assert_eq!(uncarried_tcp::<V4>(&udp(Family::V4, 10)), None);
    }

    #[test]
    fn and_behind_the_extension_headers_of_ipv6() {
        let plain = tcp(Family::V6, 10);
        let carried = Packet::<V6>::read(&plain).unwrap();
        let wanted = Some((carried.addresses, carried.ports));
        assert_eq!(uncarried_tcp::<V6>(&plain), wanted);
        let mut first = plain.clone();
        first[6] = 44;
        first.splice(40..40, [6, 0, 0, 1, 0, 0, 0, 9]);
        assert_eq!(uncarried_tcp::<V6>(&first), wanted);
        assert_eq!(uncarried_tcp::<V6>(&first[..55]), None);
        let mut second = first.clone();
        second[43] = 8;
        assert_eq!(uncarried_tcp::<V6>(&second), None);
        // One behind the other: for every hop, routing, for the destination, authentication.
        let mut all = first.clone();
        for (number, units, len) in [(51, 4, 24), (60, 0, 8), (43, 2, 24), (0, 1, 16)] {
            let mut header = std::vec![0; len];
            (header[0], header[1]) = (all[6], units);
            all[6] = number;
            all.splice(40..40, header);
            assert_eq!(uncarried_tcp::<V6>(&all), wanted, "{number}");
            assert_eq!(uncarried_tcp::<V6>(&all[..40 + len]), None, "{number}");
        }
        // Something else, and nothing.
        for number in [17, 58, 59, 135] {
            first[40] = number;
            assert_eq!(uncarried_tcp::<V6>(&first), None, "{number}");
        }
    }

    #[test]
    fn protocols_without_ports_are_told_apart_by_their_number() {
        for protocol in [4, 41, 47, 50, 97, 115, 136] {
            let wanted = (Protocol::from_number(protocol).unwrap(), 0);
            let bytes = packet(Family::V4, protocol, &[0x70; 8]);
            let read = Packet::<V4>::read(&bytes).unwrap();
            assert_eq!((read.protocol, read.ports), wanted);
            assert_eq!(fits_and_is_right(&read, &bytes, bytes.len() as u32), Ok(()));
            let bytes = packet(Family::V6, protocol, &[0x70; 8]);
            let read = Packet::<V6>::read(&bytes).unwrap();
            assert_eq!((read.protocol, read.ports), wanted);
        }
        let ah = packet(Family::V4, 51, &[0; 8]);
        assert_eq!(Packet::<V4>::read(&ah).unwrap().protocol, Protocol::Ah);
    }

    #[test]
    fn the_gre_of_pptp_is_left_to_conntrack() {
        let bytes = packet(Family::V4, 47, &[0x20, 1, 0x88, 0x0b, 0, 0, 0, 9]);
        assert_eq!(Packet::<V4>::read(&bytes), Err(Unread::NotCarried));
    }

    #[test]
    fn wrong_version_or_header_length_is_a_bad_header() {
        for start in (0x00..=0x44).chain(0x50..=0xff) {
            let mut bytes = udp(Family::V4, 10);
            bytes[0] = start;
            for len in [12, bytes.len()] {
                let read = Packet::<V4>::read(&bytes[..len]);
                assert_eq!(read, Err(Unread::BadHeader), "{start:#x}");
            }
        }
        for start in (0x00..=0x5f).chain(0x70..=0xff) {
            let mut bytes = udp(Family::V6, 10);
            bytes[0] = start;
            for len in [12, bytes.len()] {
                let read = Packet::<V6>::read(&bytes[..len]);
                assert_eq!(read, Err(Unread::BadHeader), "{start:#x}");
            }
        }
    }

    fn reading_again_gives_the_same<I: Ip>() {
        for bytes in [
            tcp(I::FAMILY, 9),
            udp(I::FAMILY, 0),
            sctp(I::FAMILY, &[(0, 4)]),
        ] {
            let packet = Packet::<I>::read(&bytes).unwrap();
            let again = I::reread(&bytes, packet.protocol).unwrap();
            assert_eq!(Packet { ports: 0, ..packet }, again);
        }
        assert_eq!(I::reread(&[0; 27], Protocol::Udp), None);
        assert_eq!(I::reread(&[], Protocol::Udp), None);
    }

    #[test]
    fn reading_again_gives_the_same_with_either() {
        reading_again_gives_the_same::<V4>();
        reading_again_gives_the_same::<V6>();
    }

    fn headers_in_pieces_are_asked_for<I: Ip>() {
        for bytes in [
            tcp(I::FAMILY, 0),
            udp(I::FAMILY, 0),
            sctp(I::FAMILY, &[(0, 4)]),
        ] {
            for len in 0..bytes.len() {
                let read = Packet::<I>::read(&bytes[..len]);
                assert_eq!(read, Err(Unread::InPieces), "{len} bytes");
            }
            assert!(Packet::<I>::read(&bytes).is_ok());
            assert!(bytes.len() <= I::READ);
        }
    }

    #[test]
    fn headers_in_pieces_are_asked_for_with_either() {
        headers_in_pieces_are_asked_for::<V4>();
        headers_in_pieces_are_asked_for::<V6>();
    }

    fn what_the_ip_layer_refuses_is_refused<I: Ip>() {
        let bytes = udp(I::FAMILY, 10);
        let len = bytes.len() as u32;
        let read = Packet::<I>::read(&bytes).unwrap();
        assert_eq!(
            fits_and_is_right(&read, &bytes, len - 1),
            Err(SlowReason::BadHeader),
            "longer than the frame"
        );
        assert_eq!(fits_and_is_right(&read, &bytes, len + 8), Ok(()), "padded");
        assert_eq!(
            (read.is_padded(len), read.is_padded(len + 8)),
            (Ok(false), Ok(true))
        );
        for bytes in [
            udp(I::FAMILY, 10),
            tcp(I::FAMILY, 10),
            sctp(I::FAMILY, &[(0, 16)]),
        ] {
            let mut short = bytes;
            let least = Packet::<I>::read(&short).unwrap().protocol.header_len();
            set_len(&mut short, I::HEADER + least - 1);
            assert_eq!(
                read_and_check::<I>(&short),
                Err(SlowReason::BadHeader),
                "no room"
            );
            set_len(&mut short, I::HEADER + least);
            assert_eq!(read_and_check::<I>(&short), Ok(()));
        }
        for hops in [0, 1] {
            let mut bytes = udp(I::FAMILY, 10);
            bytes[if I::FAMILY == Family::V4 { 8 } else { 7 }] = hops;
            seal(&mut bytes);
            assert_eq!(read_and_check::<I>(&bytes), Err(SlowReason::Ttl));
        }
    }

    /// Makes the header claim a total length.
    fn set_len(bytes: &mut [u8], total: usize) {
        if bytes[0] >> 4 == 4 {
            bytes[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        } else {
            bytes[4..6].copy_from_slice(&(total as u16 - 40).to_be_bytes());
        }
        seal(bytes);
    }

    #[test]
    fn what_the_ip_layer_refuses_is_refused_with_either() {
        what_the_ip_layer_refuses_is_refused::<V4>();
        what_the_ip_layer_refuses_is_refused::<V6>();
        let mut bytes = udp(Family::V4, 10);
        bytes[10] ^= 1;
        assert_eq!(
            read_and_check::<V4>(&bytes),
            Err(SlowReason::BadHeader),
            "checksum"
        );
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), len in any::<u32>()) {
            if let Ok(packet) = Packet::<V4>::read(&bytes) {
                let _ = fits_and_is_right(&packet, &bytes, len);
            }
            if let Ok(packet) = Packet::<V6>::read(&bytes) {
                let _ = fits_and_is_right(&packet, &bytes, len);
            }
            let _ = uncarried_tcp::<V4>(&bytes);
            let _ = uncarried_tcp::<V6>(&bytes);
        }

        #[test]
        fn only_correct_headers_pass(mut bytes in proptest::collection::vec(any::<u8>(), 40..120)) {
            // Push random bytes towards readable ones, or nothing would ever pass.
            bytes[0] = 0x45;
            bytes[6] &= 0x40;
            bytes[7] = 0;
            bytes[9] = if bytes[9] & 1 == 0 { 6 } else { 17 };
            let sealed = bytes[1] & 1 == 0;
            if sealed { seal(&mut bytes); }
            let packet = Packet::<V4>::read(&bytes).unwrap();
            if fits_and_is_right(&packet, &bytes, bytes.len() as u32).is_ok() {
                prop_assert!(packet.hops > 1);
                prop_assert!(packet.total_len as usize <= bytes.len());
                let mut again = bytes.clone();
                seal(&mut again);
                let same = again[10..12] == bytes[10..12];
                let both_zero = [&again[10..12], &bytes[10..12]].iter().all(|c| **c == [0, 0] || **c == [0xff, 0xff]);
                prop_assert!(same || both_zero);
            }
        }
    }
}

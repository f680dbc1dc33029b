// SPDX-License-Identifier: GPL-2.0

//! Reading the headers of a received IPv4 packet.
//!
//! The fast path runs before `ip_rcv`, so what `ip_rcv_core` (net/ipv4/ip_input.c) refuses has to be
//! refused here too; and it runs in place of conntrack, so what `tcp_error` and `udp_error`
//! (net/netfilter/nf_conntrack_proto_*.c) call invalid is left to conntrack.
//!
//! Reading is in two steps. [`Packet::read`] takes what finding the flow needs, and only that: most
//! packets that are no flow's go on to `ip_rcv`, which checks them anyway. [`Packet::check`] does the
//! rest, for a packet that would otherwise be forwarded.

use super::checksum;
use super::key::Device;
use super::key::Key;
use super::reason::SlowReason;

/// Length of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;

/// Length of a UDP header.
pub const UDP_LEN: usize = 8;

/// Length of a TCP header without options.
pub const TCP_LEN: usize = 20;

/// Bytes that have to be in one piece before [`Packet::read`] is sure to be able to read a packet.
pub const READ_LEN: usize = IPV4_LEN + TCP_LEN;

/// A transport protocol that flows are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// IP protocol number of TCP.
    pub const TCP: u8 = 6;
    /// IP protocol number of UDP.
    pub const UDP: u8 = 17;

    /// The protocol with the given IP protocol number.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            Self::TCP => Some(Self::Tcp),
            Self::UDP => Some(Self::Udp),
            _ => None,
        }
    }

    /// The IP protocol number.
    #[inline]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => Self::TCP,
            Self::Udp => Self::UDP,
        }
    }
}

/// Why [`Packet::read`] did not read a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// Nothing that a flow could be made of: another protocol, a fragment, IP options. If it is
    /// forwarded, the learning side sees why it can't be fast.
    NotCarried,
    /// The headers are there but not in one piece yet: [`READ_LEN`] bytes have to be.
    InPieces,
    /// No IP header that the IP layer would accept.
    BadHeader,
}

/// The headers of a packet that may belong to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source and destination address: eight bytes as they lie in the header.
    pub addresses: u64,
    /// Source and destination port: four bytes as they lie in the header.
    pub ports: u32,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Type of service: DSCP in the upper six bits, ECN in the lower two.
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// The length that the header claims, in bytes, header included.
    pub total_len: u16,
}

impl Packet {
    /// Reads the packet that begins with `linear`, the part of it that is in one piece.
    ///
    /// # Errors
    ///
    /// See [`Unread`].
    #[inline]
    pub fn read(linear: &[u8]) -> Result<Self, Unread> {
        let Some(bytes) = linear.first_chunk::<{ IPV4_LEN + UDP_LEN }>() else {
            return Err(Self::read_short(linear));
        };
        let [version_ihl, tos, len_0, len_1, _, _, frag_0, frag_1, ttl, number, _, _, rest @ ..] =
            *bytes;
        if version_ihl != 0x45 {
            return Err(Self::other_start(version_ihl));
        }
        // More fragments, or an offset. "Don't fragment" and the reserved bit are no concern here.
        if u16::from_be_bytes([frag_0, frag_1]) & 0x3fff != 0 {
            return Err(Unread::NotCarried);
        }
        let Some(protocol) = Protocol::from_number(number) else {
            return Err(Unread::NotCarried);
        };
        if matches!(protocol, Protocol::Tcp) && linear.len() < READ_LEN {
            return Err(Unread::InPieces);
        }
        let [a, b, c, d, e, f, g, h, p, q, r, s, ..] = rest;
        Ok(Self {
            addresses: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            ports: u32::from_ne_bytes([p, q, r, s]),
            protocol,
            tos,
            ttl,
            total_len: u16::from_be_bytes([len_0, len_1]),
        })
    }

    /// What to do with a packet of which fewer than 28 bytes are in one piece.
    #[cold]
    fn read_short(linear: &[u8]) -> Unread {
        match linear.first() {
            Some(&start) if start != 0x45 => Self::other_start(start),
            _ => Unread::InPieces,
        }
    }

    /// What to do with a packet that does not begin as IPv4 without options does.
    #[cold]
    fn other_start(version_ihl: u8) -> Unread {
        if version_ihl > 0x45 && version_ihl <= 0x4f {
            Unread::NotCarried
        } else {
            Unread::BadHeader
        }
    }

    /// The key of the flow that the packet belongs to, if it arrived on `device`.
    #[inline]
    pub const fn key(&self, device: Device) -> Key {
        Key::new(self.addresses, self.ports, self.protocol, device)
    }

    /// DSCP: the upper six bits of the type of service, in their place.
    #[inline]
    pub const fn dscp(&self) -> u8 {
        self.tos & DSCP_MASK
    }

    /// Checks what finding the flow did not need, for a packet of `frame_len` bytes from the IP
    /// header on.
    ///
    /// # Errors
    ///
    /// The reason for which the packet takes the slow path.
    #[inline]
    pub fn check(&self, linear: &[u8], frame_len: u32) -> Result<(), SlowReason> {
        let Some(header) = linear.first_chunk::<IPV4_LEN>() else {
            return Err(SlowReason::BadHeader);
        };
        if !checksum::ipv4_header_is_valid(header) {
            return Err(SlowReason::BadHeader);
        }
        let least = match self.protocol {
            Protocol::Tcp => IPV4_LEN + TCP_LEN,
            Protocol::Udp => IPV4_LEN + UDP_LEN,
        };
        let total_len = u32::from(self.total_len);
        if total_len > frame_len || total_len < least as u32 {
            return Err(SlowReason::BadHeader);
        }
        if self.ttl <= 1 {
            return Err(SlowReason::Ttl);
        }
        Ok(())
    }
}

/// The bits of the type of service that are the DSCP (RFC 2474).
pub const DSCP_MASK: u8 = 0xfc;

/// The fields of a TCP header that window tracking needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Sequence number after the last byte.
    pub end: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window, not scaled.
    pub window: u16,
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

impl Segment {
    /// Reads the TCP header of `packet`, which begins with `linear`.
    ///
    /// # Errors
    ///
    /// [`SlowReason::TcpFlags`] for a segment that opens, closes or resets a connection, or has no
    /// acknowledgement: conntrack has to see those. [`SlowReason::BadHeader`] for a data offset that
    /// conntrack calls invalid.
    #[inline]
    pub fn read(packet: &Packet, linear: &[u8]) -> Result<Self, SlowReason> {
        let Some(bytes) = linear.first_chunk::<READ_LEN>() else {
            return Err(SlowReason::BadHeader);
        };
        let [.., s0, s1, s2, s3, a0, a1, a2, a3, offset, flags, w0, w1, _, _, _, _] = *bytes;
        if flags & (FIN | SYN | RST | ACK) != ACK {
            return Err(SlowReason::TcpFlags);
        }
        let header_len = u16::from(offset >> 4) * 4;
        let Some(payload) = packet.total_len.checked_sub(IPV4_LEN as u16 + header_len) else {
            return Err(SlowReason::BadHeader);
        };
        if header_len < TCP_LEN as u16 {
            return Err(SlowReason::BadHeader);
        }
        let seq = u32::from_be_bytes([s0, s1, s2, s3]);
        Ok(Self {
            seq,
            end: seq.wrapping_add(u32::from(payload)),
            ack: u32::from_be_bytes([a0, a1, a2, a3]),
            window: u16::from_be_bytes([w0, w1]),
        })
    }
}

/// Checks the length field of a UDP header against the room that the IP packet leaves.
///
/// # Errors
///
/// [`SlowReason::BadHeader`]: conntrack calls such a datagram invalid.
#[inline]
pub fn check_udp(packet: &Packet, linear: &[u8]) -> Result<(), SlowReason> {
    let Some(bytes) = linear.first_chunk::<{ IPV4_LEN + UDP_LEN }>() else {
        return Err(SlowReason::BadHeader);
    };
    let [.., l0, l1, _, _] = *bytes;
    let len = u16::from_be_bytes([l0, l1]);
    if len < UDP_LEN as u16 || len > packet.total_len.wrapping_sub(IPV4_LEN as u16) {
        return Err(SlowReason::BadHeader);
    }
    Ok(())
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// A correct UDP packet with the given payload length.
    pub fn udp(payload: usize) -> Vec<u8> {
        let mut bytes = std::vec![0u8; IPV4_LEN + UDP_LEN + payload];
        let total = bytes.len() as u16;
        bytes[..10].copy_from_slice(&[
            0x45,
            0,
            (total >> 8) as u8,
            total as u8,
            0,
            1,
            0x40,
            0,
            64,
            17,
        ]);
        bytes[12..20].copy_from_slice(&[10, 0, 0, 2, 192, 0, 2, 9]);
        bytes[20..24].copy_from_slice(&[0x30, 0x39, 0, 53]);
        let len = (UDP_LEN + payload) as u16;
        bytes[24..26].copy_from_slice(&len.to_be_bytes());
        seal(&mut bytes);
        bytes
    }

    /// A correct TCP segment with the ACK flag and the given payload length.
    pub fn tcp(payload: usize) -> Vec<u8> {
        let mut bytes = std::vec![0u8; READ_LEN + payload];
        let total = bytes.len() as u16;
        bytes[..10].copy_from_slice(&[
            0x45,
            0,
            (total >> 8) as u8,
            total as u8,
            0,
            1,
            0x40,
            0,
            64,
            6,
        ]);
        bytes[12..20].copy_from_slice(&[10, 0, 0, 2, 192, 0, 2, 9]);
        bytes[20..24].copy_from_slice(&[0x30, 0x39, 0, 80]);
        bytes[24..28].copy_from_slice(&1000u32.to_be_bytes());
        bytes[28..32].copy_from_slice(&5000u32.to_be_bytes());
        bytes[32] = 0x50;
        bytes[33] = ACK;
        bytes[34..36].copy_from_slice(&512u16.to_be_bytes());
        seal(&mut bytes);
        bytes
    }

    /// Writes the header checksum.
    pub fn seal(bytes: &mut [u8]) {
        bytes[10..12].fill(0);
        let mut sum = 0u32;
        for pair in bytes[..IPV4_LEN].chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        bytes[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    }

    fn read_and_check(bytes: &[u8]) -> Result<(), SlowReason> {
        Packet::read(bytes)
            .expect("readable")
            .check(bytes, bytes.len() as u32)
    }

    #[test]
    fn fields_are_read() {
        let bytes = udp(10);
        let packet = Packet::read(&bytes).unwrap();
        assert_eq!(packet.addresses.to_ne_bytes(), [10, 0, 0, 2, 192, 0, 2, 9]);
        assert_eq!(packet.ports.to_ne_bytes(), [0x30, 0x39, 0, 53]);
        assert_eq!(
            (packet.protocol, packet.ttl, packet.total_len),
            (Protocol::Udp, 64, 38)
        );
        assert_eq!(packet.check(&bytes, 38), Ok(()));
        assert_eq!(check_udp(&packet, &bytes), Ok(()));
    }

    #[test]
    fn what_is_no_flows_is_left_alone() {
        let mut icmp = udp(10);
        icmp[9] = 1;
        assert_eq!(Packet::read(&icmp), Err(Unread::NotCarried));
        let mut options = udp(20);
        options[0] = 0x46;
        assert_eq!(Packet::read(&options), Err(Unread::NotCarried));
        for (field, name) in [(0x2000u16, "first"), (0x2001, "middle"), (0x00ff, "last")] {
            let mut fragment = udp(10);
            fragment[6..8].copy_from_slice(&field.to_be_bytes());
            assert_eq!(
                Packet::read(&fragment),
                Err(Unread::NotCarried),
                "{name} fragment"
            );
        }
        let mut df = udp(10);
        df[6] = 0x40;
        assert!(Packet::read(&df).is_ok());
    }

    #[test]
    fn wrong_version_or_header_length_is_a_bad_header() {
        for start in (0x00..=0x44).chain(0x50..=0xff) {
            let mut bytes = udp(10);
            bytes[0] = start;
            assert_eq!(Packet::read(&bytes), Err(Unread::BadHeader), "{start:#x}");
            assert_eq!(
                Packet::read(&bytes[..12]),
                Err(Unread::BadHeader),
                "{start:#x}, short"
            );
        }
    }

    #[test]
    fn headers_in_pieces_are_asked_for() {
        let bytes = tcp(0);
        for len in 0..READ_LEN {
            assert_eq!(
                Packet::read(&bytes[..len]),
                Err(Unread::InPieces),
                "{len} bytes"
            );
        }
        let bytes = udp(0);
        for len in 0..bytes.len() {
            assert_eq!(
                Packet::read(&bytes[..len]),
                Err(Unread::InPieces),
                "{len} bytes"
            );
        }
        assert!(Packet::read(&bytes).is_ok());
    }

    #[test]
    fn what_the_ip_layer_refuses_is_refused() {
        let mut bytes = udp(10);
        bytes[10] ^= 1;
        assert_eq!(
            read_and_check(&bytes),
            Err(SlowReason::BadHeader),
            "checksum"
        );
        let bytes = udp(10);
        let packet = Packet::read(&bytes).unwrap();
        assert_eq!(
            packet.check(&bytes, 37),
            Err(SlowReason::BadHeader),
            "longer than the frame"
        );
        assert_eq!(packet.check(&bytes, 46), Ok(()), "padded");
        let mut short = udp(10);
        short[2..4].copy_from_slice(&27u16.to_be_bytes());
        seal(&mut short);
        assert_eq!(
            read_and_check(&short),
            Err(SlowReason::BadHeader),
            "no room for UDP"
        );
        let mut short = tcp(10);
        short[2..4].copy_from_slice(&39u16.to_be_bytes());
        seal(&mut short);
        assert_eq!(
            read_and_check(&short),
            Err(SlowReason::BadHeader),
            "no room for TCP"
        );
        for ttl in [0, 1] {
            let mut bytes = udp(10);
            bytes[8] = ttl;
            seal(&mut bytes);
            assert_eq!(read_and_check(&bytes), Err(SlowReason::Ttl));
        }
    }

    #[test]
    fn udp_length_has_to_fit() {
        for (len, fits) in [
            (0u16, false),
            (7, false),
            (8, true),
            (18, true),
            (19, false),
            (0xffff, false),
        ] {
            let mut bytes = udp(10);
            bytes[24..26].copy_from_slice(&len.to_be_bytes());
            let packet = Packet::read(&bytes).unwrap();
            assert_eq!(check_udp(&packet, &bytes).is_ok(), fits, "{len}");
        }
    }

    #[test]
    fn segments_are_read() {
        let bytes = tcp(100);
        let packet = Packet::read(&bytes).unwrap();
        let segment = Segment::read(&packet, &bytes).unwrap();
        assert_eq!(
            segment,
            Segment {
                seq: 1000,
                end: 1100,
                ack: 5000,
                window: 512
            }
        );
    }

    #[test]
    fn conntrack_sees_what_opens_and_closes() {
        for flags in 0..=u8::MAX {
            let mut bytes = tcp(0);
            bytes[33] = flags;
            let packet = Packet::read(&bytes).unwrap();
            let ordinary = flags & ACK != 0 && flags & (FIN | SYN | RST) == 0;
            let result = Segment::read(&packet, &bytes).map(|_| ());
            assert_eq!(
                result,
                if ordinary {
                    Ok(())
                } else {
                    Err(SlowReason::TcpFlags)
                },
                "{flags:#x}"
            );
        }
    }

    #[test]
    fn data_offset_has_to_fit() {
        for offset in 0..16u8 {
            let mut bytes = tcp(8);
            bytes[32] = offset << 4;
            let packet = Packet::read(&bytes).unwrap();
            let fits = (5..=7).contains(&offset);
            assert_eq!(Segment::read(&packet, &bytes).is_ok(), fits, "{offset}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), len in any::<u32>()) {
            if let Ok(packet) = Packet::read(&bytes) {
                let _ = packet.check(&bytes, len);
                let _ = Segment::read(&packet, &bytes);
                let _ = check_udp(&packet, &bytes);
            }
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
            let packet = Packet::read(&bytes).unwrap();
            if packet.check(&bytes, bytes.len() as u32).is_ok() {
                prop_assert!(packet.ttl > 1);
                prop_assert!(usize::from(packet.total_len) <= bytes.len());
                let mut again = bytes.clone();
                seal(&mut again);
                let same = again[10..12] == bytes[10..12];
                let both_zero = [&again[10..12], &bytes[10..12]].iter().all(|c| **c == [0, 0] || **c == [0xff, 0xff]);
                prop_assert!(same || both_zero);
            }
        }
    }
}

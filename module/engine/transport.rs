// SPDX-License-Identifier: GPL-2.0

//! What is behind the IP header, as far as it decides whether a packet may be fast.
//!
//! The fast path runs in place of conntrack, so what `tcp_error`, `udp_error` and `do_basic_checks` of
//! SCTP (net/netfilter/nf_conntrack_proto_*.c) call invalid is left to conntrack, and so is what changes
//! a connection's state.

use super::ip::Ip;
use super::packet::Packet;
use super::packet::Unread;
use super::reason::SlowReason;

/// Length of a UDP header.
pub const UDP_LEN: usize = 8;

/// Length of a TCP header without options.
pub const TCP_LEN: usize = 20;

/// Length of the header that is common to the packets of SCTP, and of that of a chunk.
const SCTP_LEN: usize = 12;
const CHUNK_LEN: usize = 4;

/// A protocol that flows are made of, by its IP protocol number.
///
/// Of those besides TCP, UDP and SCTP conntrack knows no ports, so that a connection is what passes between
/// two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Protocol {
    /// IPv4 in IP (RFC 2003).
    Ipip = 4,
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// IPv6 in IP (RFC 4213).
    Sit = 41,
    /// GRE (RFC 2784), but for that of PPTP.
    Gre = 47,
    /// ESP (RFC 4303) of others, that passes through.
    Esp = 50,
    /// AH (RFC 4302), likewise. To IPv6 it is an extension header.
    Ah = 51,
    /// Ethernet in IP (RFC 3378).
    Etherip = 97,
    /// L2TPv3 (RFC 3931).
    L2tp = 115,
    /// SCTP. Its checksum is over the ports, too, and not one that can be amended; so they must stay.
    Sctp = 132,
    /// UDP-Lite (RFC 3828).
    UdpLite = 136,
}

impl Protocol {
    /// The protocol with the given IP protocol number. `None` for those that are not carried: unknown ones,
    /// and those that the router itself is a party to.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => Self::rare(number),
        }
    }

    #[cold]
    const fn rare(number: u8) -> Option<Self> {
        Some(match number {
            4 => Self::Ipip,
            41 => Self::Sit,
            47 => Self::Gre,
            50 => Self::Esp,
            51 => Self::Ah,
            97 => Self::Etherip,
            115 => Self::L2tp,
            132 => Self::Sctp,
            136 => Self::UdpLite,
            _ => return None,
        })
    }

    /// The IP protocol number.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Length of the header that its packets have at least.
    #[inline(always)]
    pub const fn header_len(self) -> usize {
        match self {
            Self::Udp => UDP_LEN,
            Self::Tcp => TCP_LEN,
            Self::Sctp => SCTP_LEN + CHUNK_LEN,
            // Fewer bytes than have to be there for any packet are nothing that is worth being fast.
            _ => super::ip::BEHIND,
        }
    }

    /// Whether its packets have ports.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }

    /// Whether NAT can change its ports in the fast path.
    pub const fn has_rewritable_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

/// The ports as they lie in the header, or zero for a protocol without; `first` is the first word behind
/// the IP header, of which `len` are in one piece.
///
/// # Errors
///
/// See [`Unread`].
#[inline(always)]
pub fn ports(protocol: Protocol, first: u32, len: usize) -> Result<u32, Unread> {
    match protocol {
        Protocol::Udp => Ok(first),
        Protocol::Tcp if len >= TCP_LEN => Ok(first),
        _ => rare_ports(protocol, first, len),
    }
}

#[cold]
fn rare_ports(protocol: Protocol, first: u32, len: usize) -> Result<u32, Unread> {
    if protocol.has_ports() {
        if len < protocol.header_len() {
            return Err(Unread::InPieces);
        }
        return Ok(first);
    }
    let [_, version, ..] = first.to_ne_bytes();
    // Of the enhanced GRE of PPTP (RFC 2637) conntrack tells calls apart.
    if matches!(protocol, Protocol::Gre) && version & 7 != 0 {
        return Err(Unread::NotCarried);
    }
    Ok(0)
}

/// The fields of a TCP header that window tracking needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    #[inline(always)]
    pub fn read<I: Ip>(packet: &Packet<I>, linear: &[u8]) -> Result<Self, SlowReason> {
        let Some(bytes) = behind::<I, TCP_LEN>(linear) else {
            return Err(SlowReason::BadHeader);
        };
        let [_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, offset, flags, w0, w1, ..] = *bytes;
        if flags & (FIN | SYN | RST | ACK) != ACK {
            return Err(SlowReason::TcpFlags);
        }
        let header_len = u32::from(offset >> 4) * 4;
        let Some(payload) = packet.total_len.checked_sub(I::HEADER as u32 + header_len) else {
            return Err(SlowReason::BadHeader);
        };
        if header_len < TCP_LEN as u32 {
            return Err(SlowReason::BadHeader);
        }
        let seq = u32::from_be_bytes([s0, s1, s2, s3]);
        Ok(Self {
            seq,
            end: seq.wrapping_add(payload),
            ack: u32::from_be_bytes([a0, a1, a2, a3]),
            window: u16::from_be_bytes([w0, w1]),
        })
    }
}

/// Checks the length field of a UDP header against the room that the IP packet leaves, which is known to be
/// enough for one.
///
/// # Errors
///
/// [`SlowReason::BadHeader`]: conntrack calls such a datagram invalid.
#[inline(always)]
pub fn check_udp<I: Ip>(packet: &Packet<I>) -> Result<(), SlowReason> {
    let [l0, l1, _, _] = packet.second.to_ne_bytes();
    let len = u32::from(u16::from_be_bytes([l0, l1]));
    let room = packet.total_len.wrapping_sub(I::HEADER as u32);
    // It nearly always fills it, which is enough for a header.
    if len == room || (UDP_LEN as u32..room).contains(&len) {
        return Ok(());
    }
    Err(SlowReason::BadHeader)
}

/// Chunks of SCTP that change no association: data and acknowledgements (RFC 9260, section 3.2), and data
/// that may be interleaved (RFC 8260).
const DATA: u8 = 0;
const SACK: u8 = 3;
const I_DATA: u8 = 64;

/// Chunks that are looked at in one packet, and bytes of it. What has more is rare.
const MOST_CHUNKS: usize = 16;

/// Checks that an SCTP packet of `total_len` bytes, from the IP header on, carries nothing but data and acknowledgements. Gives its verification tag, as
/// it lies in the header.
///
/// # Errors
///
/// [`SlowReason::SctpControl`]: conntrack has to see it.
#[inline(never)]
pub fn check_sctp<I: Ip>(total_len: u32, linear: &[u8]) -> Result<u32, SlowReason> {
    let Some(bytes) = behind::<I, SCTP_LEN>(linear) else {
        return Err(SlowReason::BadHeader);
    };
    let [_, _, _, _, t0, t1, t2, t3, ..] = *bytes;
    let end = total_len as usize;
    let mut at = I::HEADER + SCTP_LEN;
    for _ in 0..MOST_CHUNKS {
        let chunk = linear.get(at..).and_then(<[u8]>::first_chunk::<CHUNK_LEN>);
        let Some([kind, _, l0, l1]) = chunk else {
            // More of it than is in one piece: conntrack can look there.
            return Err(SlowReason::SctpControl);
        };
        if !matches!(*kind, DATA | SACK | I_DATA) {
            return Err(SlowReason::SctpControl);
        }
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        if len < CHUNK_LEN {
            return Err(SlowReason::SctpControl);
        }
        // Chunks are padded to whole words; of the last one the padding may be missing.
        at = at.saturating_add(len.next_multiple_of(CHUNK_LEN));
        match at.checked_sub(end) {
            None => {}
            Some(0..CHUNK_LEN) => return Ok(u32::from_ne_bytes([t0, t1, t2, t3])),
            Some(_) => return Err(SlowReason::SctpControl),
        }
    }
    Err(SlowReason::SctpControl)
}

/// The first bytes behind the IP header.
#[inline(always)]
fn behind<I: Ip, const LEN: usize>(linear: &[u8]) -> Option<&[u8; LEN]> {
    linear.get(I::HEADER..)?.first_chunk::<LEN>()
}

#[cfg(test)]
mod tests {
    use super::super::ip::{V4, V6};
    use super::super::samples::{for_both, sctp, seal, tcp, udp};
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    for_both! {
        fn udp_length_has_to_fit<I>() {
            for (len, fits) in [
                (0u16, false),
                (7, false),
                (8, true),
                (18, true),
                (19, false),
                (0xffff, false),
            ] {
                let mut bytes = udp(I::FAMILY, 10);
                bytes[I::HEADER + 4..I::HEADER + 6].copy_from_slice(&len.to_be_bytes());
                let packet = Packet::<I>::read(&bytes).unwrap();
                assert_eq!(check_udp(&packet).is_ok(), fits, "{len}");
            }
        }

        fn segments_are_read<I>() {
            let bytes = tcp(I::FAMILY, 100);
            let packet = Packet::<I>::read(&bytes).unwrap();
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

        fn conntrack_sees_what_opens_and_closes<I>() {
            for flags in 0..=u8::MAX {
                let mut bytes = tcp(I::FAMILY, 0);
                bytes[I::HEADER + 13] = flags;
                let packet = Packet::<I>::read(&bytes).unwrap();
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

        fn data_offset_has_to_fit<I>() {
            for offset in 0..16u8 {
                let mut bytes = tcp(I::FAMILY, 8);
                bytes[I::HEADER + 12] = offset << 4;
                let packet = Packet::<I>::read(&bytes).unwrap();
                let fits = (5..=7).contains(&offset);
                assert_eq!(Segment::read(&packet, &bytes).is_ok(), fits, "{offset}");
            }
        }

        fn only_data_and_acknowledgements_of_sctp_pass<I>() {
            let pass = |chunks: &[(u8, usize)]| {
                let bytes = sctp(I::FAMILY, chunks);
                let packet = Packet::<I>::read(&bytes).unwrap();
                check_sctp::<I>(packet.total_len, &bytes)
            };
            let tag = Ok(u32::from_ne_bytes([1, 2, 3, 4]));
            assert_eq!(pass(&[(0, 20)]), tag);
            assert_eq!(pass(&[(3, 16), (0, 21)]), tag, "padded");
            assert_eq!(pass(&[(64, 40), (0, 16)]), tag);
            for control in [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 14, 128, 192, 255] {
                assert_eq!(pass(&[(control, 8)]), Err(SlowReason::SctpControl));
                assert_eq!(pass(&[(0, 20), (control, 8)]), Err(SlowReason::SctpControl));
            }
            assert_eq!(pass(&[(0, 4); 17]), Err(SlowReason::SctpControl), "too many");
        }

        fn chunks_of_wrong_length_are_conntracks<I>() {
            for len in [0u16, 3, 25, 0xffff] {
                let mut bytes = sctp(I::FAMILY, &[(0, 20)]);
                bytes[I::HEADER + 14..I::HEADER + 16].copy_from_slice(&len.to_be_bytes());
                let packet = Packet::<I>::read(&bytes).unwrap();
                assert_eq!(check_sctp::<I>(packet.total_len, &bytes), Err(SlowReason::SctpControl), "{len}");
            }
        }
    }

    #[test]
    fn numbers_lead_to_protocols_and_back() {
        let known: Vec<u8> = (0..=255)
            .filter(|n| Protocol::from_number(*n).is_some())
            .collect();
        assert_eq!(known, [4, 6, 17, 41, 47, 50, 51, 97, 115, 132, 136]);
        for number in known {
            assert_eq!(Protocol::from_number(number).unwrap().number(), number);
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let [start, .., _] = &mut bytes[..] { *start = 0x45; }
            if let Ok(packet) = Packet::<V4>::read(&bytes) {
                let _ = Segment::read(&packet, &bytes);
                let _ = check_udp(&packet);
                let _ = check_sctp::<V4>(packet.total_len, &bytes);
            }
            if let [start, .., _] = &mut bytes[..] { *start = 0x60; }
            if let Ok(packet) = Packet::<V6>::read(&bytes) {
                let _ = Segment::read(&packet, &bytes);
                let _ = check_udp(&packet);
                let _ = check_sctp::<V6>(packet.total_len, &bytes);
            }
            if bytes.len() >= 20 { seal(&mut bytes); }
        }
    }
}

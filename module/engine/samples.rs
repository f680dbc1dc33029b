// SPDX-License-Identifier: GPL-2.0

//! Packets for the tests.

use super::ip::Family;
use super::ip::Ip;
use std::vec::Vec;

/// Length of an IP header.
pub fn header_len(family: Family) -> usize {
    match family {
        Family::V4 => super::ip::V4::HEADER,
        Family::V6 => super::ip::V6::HEADER,
    }
}

/// A correct packet with the given protocol, and what is behind its IP header.
pub fn packet(family: Family, protocol: u8, behind: &[u8]) -> Vec<u8> {
    let mut bytes = std::vec![0u8; header_len(family)];
    match family {
        Family::V4 => {
            let total = (bytes.len() + behind.len()) as u16;
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
                protocol,
            ]);
            bytes[12..20].copy_from_slice(&[10, 0, 0, 2, 192, 0, 2, 9]);
        }
        Family::V6 => {
            let payload = behind.len() as u16;
            bytes[..8].copy_from_slice(&[
                0x60,
                0x0a,
                0xbc,
                0xde,
                (payload >> 8) as u8,
                payload as u8,
                protocol,
                64,
            ]);
            bytes[8..40].copy_from_slice(&[
                0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x20, 1, 0xd, 0xb8, 0, 2,
                0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
            ]);
        }
    }
    bytes.extend_from_slice(behind);
    seal(&mut bytes);
    bytes
}

/// A correct UDP packet with the given payload length.
pub fn udp(family: Family, payload: usize) -> Vec<u8> {
    let len = (8 + payload) as u16;
    let mut behind = std::vec![0x30, 0x39, 0, 53, (len >> 8) as u8, len as u8, 0, 0];
    behind.resize(8 + payload, 0);
    packet(family, 17, &behind)
}

/// A correct TCP segment with the ACK flag and the given payload length.
pub fn tcp(family: Family, payload: usize) -> Vec<u8> {
    let mut behind = std::vec![0x30, 0x39, 0, 80];
    behind.extend(1000u32.to_be_bytes());
    behind.extend(5000u32.to_be_bytes());
    behind.extend([0x50, 0x10]);
    behind.extend(512u16.to_be_bytes());
    behind.resize(20 + payload, 0);
    packet(family, 6, &behind)
}

/// An SCTP packet with chunks of the given kinds and lengths, headers included.
pub fn sctp(family: Family, chunks: &[(u8, usize)]) -> Vec<u8> {
    let mut behind = std::vec![0x30, 0x39, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0];
    for &(kind, len) in chunks {
        let start = behind.len();
        behind.extend([kind, 0, (len >> 8) as u8, len as u8]);
        behind.resize(start + len.next_multiple_of(4), 0);
    }
    packet(family, 132, &behind)
}

/// Writes the header checksum, if there is one.
pub fn seal(bytes: &mut [u8]) {
    if bytes[0] >> 4 != 4 {
        return;
    }
    bytes[10..12].fill(0);
    let sum = !sum(&bytes[..20]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum's sum of some bytes, computed as RFC 1071 says.
pub fn sum(data: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in data.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Declares tests that are run for each version of IP, which they are told as a type.
macro_rules! for_both {
    ($($(#[$meta:meta])* fn $name:ident<$I:ident>() $body:block)*) => {
        $(
            fn $name<$I: $crate::ip::Ip>() $body
        )*
        #[test]
        fn with_ipv4() { $( $name::<$crate::ip::V4>(); )* }
        #[test]
        fn with_ipv6() { $( $name::<$crate::ip::V6>(); )* }
    };
}
pub(crate) use for_both;

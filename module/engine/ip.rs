// SPDX-License-Identifier: GPL-2.0

//! The two versions of the Internet protocol: what is read of their headers, and written to them.
//!
//! The fast path runs before `ip_rcv` and `ipv6_rcv`, so what `ip_rcv_core` (net/ipv4/ip_input.c) and
//! `ip6_rcv_core` (net/ipv6/ip6_input.c) refuse has to be refused here too. Of addresses that no packet
//! may come from or go to nothing is said: no flow is learned with one.

use core::fmt::Debug;

use super::checksum;
use super::checksum::Sum;
use super::key::Hasher;
use super::packet::Packet;
use super::packet::Reading;
use super::packet::Unread;
use super::rewrite::Amendment;
use super::transport;
use super::transport::Protocol;

/// A version of the Internet protocol, for code that handles either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A version of the Internet protocol, for code that is compiled for each.
pub trait Ip: Copy + Debug + Eq + 'static {
    /// Which one.
    const FAMILY: Family;

    /// Length of its header, without options or extension headers.
    const HEADER: usize;

    /// Bytes that have to be in one piece before [`Packet::read`] is sure to be able to read a packet:
    /// the header, and a TCP header.
    const READ: usize = Self::HEADER + transport::TCP_LEN;

    /// Source and destination address, as they lie in the header.
    type Addresses: Copy + Debug + Eq;

    /// The number of the protocol that a header at the beginning of `linear` names. `None` if there is less in one
    /// piece than [`Ip::read`] needs.
    fn number(linear: &[u8]) -> Option<u8>;

    /// Reads the packet that begins with `linear`, the part of it that is in one piece.
    fn read(linear: &[u8]) -> Reading<Self>;

    /// Reads once more a packet that [`Ip::read`] has read, of `protocol`; with zero for the ports. Who looks at other
    /// memory in between need not keep what it read before. `None` if there is less in one piece than it needs.
    fn reread(linear: &[u8], protocol: Protocol) -> Option<Packet<Self>>;

    /// The addresses and ports of a TCP segment that is not carried all the same: because of IP options or
    /// extension headers, or because this is its first fragment. `None` if it is none. `at` gives the eight
    /// bytes from an offset on, wherever they lie; `None` if they are not all there.
    fn read_uncarried_tcp(at: impl Fn(usize) -> Option<[u8; 8]>) -> Option<(Self::Addresses, u32)>;

    /// Whether the header at the beginning of `linear` is as it was sent, as far as it says.
    fn is_intact(linear: &[u8]) -> bool;

    /// Type of service or traffic class, from the two bytes that a header begins with: DSCP in the upper six bits, ECN
    /// in the lower two.
    fn tos(start: u16) -> u8;

    /// What becomes of the header of packets that arrive with one DSCP and leave with another one, both in their place
    /// in the type of service, if `addresses` is the difference that their addresses make.
    fn amendment(addresses: Sum, arriving: u8, leaving: u8) -> Amendment;

    /// The DSCP that an [`Ip::amendment`] is for, and the one that comes of it.
    fn dscps(amendment: Amendment) -> [u8; 2];

    /// Whether it is for the DSCP that `packet` has.
    fn suits(packet: &Packet<Self>, amendment: Amendment) -> bool;

    /// What stands for addresses in a [`Key`](super::key::Key).
    fn identity(hasher: &Hasher, addresses: Self::Addresses) -> u64;

    /// Sum over addresses, as part of a pseudo header or of a header.
    fn sum(addresses: Self::Addresses) -> Sum;

    /// Rewrites the header at the beginning of `linear` as `amendment` says; addresses, too, if they are others.
    /// Gives what is behind the header, or `None`, having changed nothing, if it is not all there.
    fn rewrite(
        linear: &mut [u8],
        amendment: Amendment,
        addresses: Option<Self::Addresses>,
    ) -> Option<&mut [u8]>;
}

/// The bits of the type of service, or traffic class, that are the DSCP (RFC 2474).
pub const DSCP_MASK: u8 = 0xfc;

/// What is behind the header that has to be there for any protocol: ports, or what is in their place,
/// and as much again.
pub const BEHIND: usize = 8;

/// The bytes from `at` on, which have to be there: read at once, not one by one.
#[inline(always)]
pub(super) fn field<const N: usize, const LEN: usize>(bytes: &[u8; LEN], at: usize) -> [u8; N] {
    match bytes.get(at..).and_then(<[u8]>::first_chunk) {
        Some(field) => *field,
        None => [0; N],
    }
}

/// Writes the bytes from `at` on, which have to be there: at once, not one by one.
#[inline(always)]
pub(super) fn put<const N: usize, const LEN: usize>(
    bytes: &mut [u8; LEN],
    at: usize,
    value: [u8; N],
) {
    if let Some(field) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *field = value;
    }
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

/// Length of an IPv4 header without options.
const V4_LEN: usize = 20;

impl Ip for V4 {
    const FAMILY: Family = Family::V4;
    const HEADER: usize = V4_LEN;
    type Addresses = u64;

    #[inline(always)]
    fn number(linear: &[u8]) -> Option<u8> {
        let bytes = linear.first_chunk::<{ V4_LEN + BEHIND }>()?;
        let [number] = field(bytes, 9);
        Some(number)
    }

    #[inline(always)]
    fn read(linear: &[u8]) -> Reading<Self> {
        let Some(bytes) = linear.first_chunk::<{ V4_LEN + BEHIND }>() else {
            return v4_short(linear).into();
        };
        let [version_ihl] = field(bytes, 0);
        let [number] = field(bytes, 9);
        if version_ihl != 0x45 {
            return v4_other_start(version_ihl).into();
        }
        // More fragments, or an offset. "Don't fragment" and the reserved bit are no concern here.
        if u16::from_ne_bytes(field(bytes, 6)) & 0x3fff_u16.to_be() != 0 {
            return Reading::NotCarried;
        }
        let Some(protocol) = Protocol::from_number(number) else {
            return Reading::NotCarried;
        };
        let ports = match transport::ports(
            protocol,
            u32::from_ne_bytes(field(bytes, V4_LEN)),
            linear.len() - V4_LEN,
        ) {
            Ok(ports) => ports,
            Err(why) => return why.into(),
        };
        Reading::Packet(Packet {
            ports,
            ..v4_fields(bytes, protocol)
        })
    }

    #[inline(always)]
    fn reread(linear: &[u8], protocol: Protocol) -> Option<Packet<Self>> {
        Some(v4_fields(linear.first_chunk()?, protocol))
    }

    fn read_uncarried_tcp(at: impl Fn(usize) -> Option<[u8; 8]>) -> Option<(u64, u32)> {
        let [start, _, _, _, _, _, o0, o1] = at(0)?;
        let [_, number, ..] = at(8)?;
        let offset = u16::from_be_bytes([o0, o1]) & 0x1fff;
        if number != Protocol::Tcp.number() || offset != 0 {
            return None;
        }
        let addresses = u64::from_ne_bytes(at(12)?);
        let ports = at(usize::from(start & 0xf) * 4)?;
        Some((addresses, u32::from_ne_bytes(field(&ports, 0))))
    }

    #[inline(always)]
    fn is_intact(linear: &[u8]) -> bool {
        match linear.first_chunk::<V4_LEN>() {
            Some(header) => checksum::ipv4_header_is_valid(header),
            None => false,
        }
    }

    #[inline(always)]
    fn tos(start: u16) -> u8 {
        let [_, tos] = start.to_ne_bytes();
        tos
    }

    fn amendment(addresses: Sum, arriving: u8, leaving: u8) -> Amendment {
        // One hop less takes 0x0100 off the word that holds the time to live, so its complement is
        // what has to be added (RFC 1141).
        let hop = Sum(u16::from_ne_bytes([0xfe, 0xff]));
        let old = Sum(u16::from_ne_bytes([0, arriving]));
        let dscp = old.delta_to(Sum(u16::from_ne_bytes([0, leaving])));
        let [lower, upper] = addresses.plus(hop).plus(dscp).0.to_ne_bytes();
        Amendment([arriving, arriving ^ leaving, lower, upper])
    }

    fn dscps(Amendment([arriving, flip, ..]): Amendment) -> [u8; 2] {
        [arriving, arriving ^ flip]
    }

    #[inline(always)]
    fn suits(packet: &Packet<Self>, Amendment([arriving, ..]): Amendment) -> bool {
        packet.dscp() == arriving
    }

    /// The addresses themselves.
    #[inline(always)]
    fn identity(_hasher: &Hasher, addresses: u64) -> u64 {
        addresses
    }

    #[inline(always)]
    fn sum(addresses: u64) -> Sum {
        Sum::of_u64(addresses)
    }

    #[inline(always)]
    fn rewrite(
        linear: &mut [u8],
        amendment: Amendment,
        addresses: Option<u64>,
    ) -> Option<&mut [u8]> {
        let (header, behind) = linear.split_first_chunk_mut::<V4_LEN>()?;
        let [tos] = field(header, 1);
        let [hops] = field(header, 8);
        let check = u16::from_ne_bytes(field(header, 10));
        let Amendment([_, flip, lower, upper]) = amendment;
        let delta = Sum(u16::from_ne_bytes([lower, upper]));
        put(header, 1, [tos ^ flip]);
        put(header, 8, [hops.wrapping_sub(1)]);
        put(header, 10, delta.amend(check).to_ne_bytes());
        if let Some(addresses) = addresses {
            put(header, 12, addresses.to_ne_bytes());
        }
        Some(behind)
    }
}

/// The fields of a header, without the ports.
#[inline(always)]
fn v4_fields(bytes: &[u8; V4_LEN + BEHIND], protocol: Protocol) -> Packet<V4> {
    let [hops] = field(bytes, 8);
    Packet {
        addresses: u64::from_ne_bytes(field(bytes, 12)),
        ports: 0,
        second: u32::from_ne_bytes(field(bytes, V4_LEN + 4)),
        protocol,
        start: u16::from_ne_bytes(field(bytes, 0)),
        hops,
        total_len: u32::from(u16::from_be_bytes(field(bytes, 2))),
    }
}

/// What to do with a packet of which fewer than 28 bytes are in one piece.
#[cold]
fn v4_short(linear: &[u8]) -> Unread {
    match linear.first() {
        Some(&start) if start != 0x45 => v4_other_start(start),
        _ => Unread::InPieces,
    }
}

/// What to do with a packet that does not begin as IPv4 without options does.
#[cold]
fn v4_other_start(version_ihl: u8) -> Unread {
    if version_ihl > 0x45 && version_ihl <= 0x4f {
        Unread::NotCarried
    } else {
        Unread::BadHeader
    }
}

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;

/// Two IPv6 addresses, as they lie one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Pair(pub [u64; 4]);

impl PartialEq for Pair {
    /// Without the call that comparing arrays is.
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let [a, b, c, d] = self.0;
        let [e, f, g, h] = other.0;
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}

impl Eq for Pair {}

/// Length of an IPv6 header without extension headers.
const V6_LEN: usize = 40;

impl Ip for V6 {
    const FAMILY: Family = Family::V6;
    const HEADER: usize = V6_LEN;
    type Addresses = Pair;

    #[inline(always)]
    fn number(linear: &[u8]) -> Option<u8> {
        let bytes = linear.first_chunk::<{ V6_LEN + BEHIND }>()?;
        let [number] = field(bytes, 6);
        Some(number)
    }

    #[inline(always)]
    fn read(linear: &[u8]) -> Reading<Self> {
        let Some(bytes) = linear.first_chunk::<{ V6_LEN + BEHIND }>() else {
            return v6_short(linear).into();
        };
        let [start] = field(bytes, 0);
        let [number] = field(bytes, 6);
        if start >> 4 != 6 {
            return Reading::BadHeader;
        }
        let Some(protocol) = Protocol::from_number(number) else {
            return Reading::NotCarried;
        };
        // To IPv6 that is an extension header, which conntrack looks behind.
        if matches!(protocol, Protocol::Ah) {
            return Reading::NotCarried;
        }
        let first = u32::from_ne_bytes(field(bytes, V6_LEN));
        let ports = match transport::ports(protocol, first, linear.len() - V6_LEN) {
            Ok(ports) => ports,
            Err(why) => return why.into(),
        };
        Reading::Packet(Packet {
            ports,
            ..v6_fields(bytes, protocol)
        })
    }

    #[inline(always)]
    fn reread(linear: &[u8], protocol: Protocol) -> Option<Packet<Self>> {
        Some(v6_fields(linear.first_chunk()?, protocol))
    }

    /// Passes over the extension headers that conntrack does (`ipv6_skip_exthdr`).
    fn read_uncarried_tcp(at: impl Fn(usize) -> Option<[u8; 8]>) -> Option<(Pair, u32)> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        const DESTINATION: u8 = 60;

        let [_, _, _, _, _, _, mut number, _] = at(0)?;
        let mut from = V6_LEN;
        // Each header takes some bytes: where there are none any more `at` ends it.
        while number != Protocol::Tcp.number() {
            let [next, len, o0, o1, ..] = at(from)?;
            let len = usize::from(len);
            let len = match number {
                HOP_BY_HOP | ROUTING | DESTINATION => (len + 1) * 8,
                AUTHENTICATION => (len + 2) * 4,
                FRAGMENT if u16::from_be_bytes([o0, o1]) & 0xfff8 == 0 => 8,
                _ => return None,
            };
            from = from.saturating_add(len);
            number = next;
        }
        let word = |from| at(from).map(u64::from_ne_bytes);
        let addresses = Pair([word(8)?, word(16)?, word(24)?, word(32)?]);
        Some((addresses, u32::from_ne_bytes(field(&at(from)?, 0))))
    }

    /// There is no checksum.
    #[inline(always)]
    fn is_intact(_linear: &[u8]) -> bool {
        true
    }

    #[inline(always)]
    fn tos(start: u16) -> u8 {
        // Behind the four bits of the version.
        (u16::from_be(start) >> 4) as u8
    }

    /// There is no checksum.
    fn amendment(_addresses: Sum, arriving: u8, leaving: u8) -> Amendment {
        let [a, b] = v6_start(arriving);
        let [c, d] = v6_start(arriving ^ leaving);
        Amendment([a, b, c, d])
    }

    fn dscps(Amendment([a, b, c, d]): Amendment) -> [u8; 2] {
        let arriving = Self::tos(u16::from_ne_bytes([a, b]));
        [arriving, arriving ^ Self::tos(u16::from_ne_bytes([c, d]))]
    }

    #[inline(always)]
    fn suits(packet: &Packet<Self>, Amendment([a, b, ..]): Amendment) -> bool {
        let mask = u16::from_ne_bytes(v6_start(DSCP_MASK));
        packet.start & mask == u16::from_ne_bytes([a, b])
    }

    /// A keyed digest. Two pairs of addresses can have the same one, so whoever finds a flow by it has to
    /// compare the addresses as well.
    #[inline(always)]
    fn identity(hasher: &Hasher, addresses: Pair) -> u64 {
        hasher.digest(addresses.0)
    }

    #[inline(always)]
    fn sum(addresses: Pair) -> Sum {
        let [a, b, c, d] = addresses.0;
        let source = Sum::of_u64(a).plus(Sum::of_u64(b));
        source.plus(Sum::of_u64(c)).plus(Sum::of_u64(d))
    }

    #[inline(always)]
    fn rewrite(
        linear: &mut [u8],
        amendment: Amendment,
        addresses: Option<Pair>,
    ) -> Option<&mut [u8]> {
        let (header, behind) = linear.split_first_chunk_mut::<V6_LEN>()?;
        let Amendment([.., c, d]) = amendment;
        let flip = u16::from_ne_bytes([c, d]);
        let start = u16::from_ne_bytes(field(header, 0));
        let [hops] = field(header, 7);
        put(header, 0, (start ^ flip).to_ne_bytes());
        put(header, 7, [hops.wrapping_sub(1)]);
        if let Some(Pair([a, b, c, d])) = addresses {
            put(header, 8, a.to_ne_bytes());
            put(header, 16, b.to_ne_bytes());
            put(header, 24, c.to_ne_bytes());
            put(header, 32, d.to_ne_bytes());
        }
        Some(behind)
    }
}

/// The fields of a header, without the ports.
#[inline(always)]
fn v6_fields(bytes: &[u8; V6_LEN + BEHIND], protocol: Protocol) -> Packet<V6> {
    let [hops] = field(bytes, 7);
    let payload_len = u32::from(u16::from_be_bytes(field(bytes, 4)));
    let word = |at| u64::from_ne_bytes(field(bytes, at));
    Packet {
        addresses: Pair([word(8), word(16), word(24), word(32)]),
        ports: 0,
        second: u32::from_ne_bytes(field(bytes, V6_LEN + 4)),
        protocol,
        start: u16::from_ne_bytes(field(bytes, 0)),
        hops,
        total_len: payload_len + V6_LEN as u32,
    }
}

/// The two bytes that a header begins with, without version and flow label.
#[inline(always)]
const fn v6_start(class: u8) -> [u8; 2] {
    [class >> 4, class << 4]
}

/// What to do with a packet of which fewer than 48 bytes are in one piece.
#[cold]
fn v6_short(linear: &[u8]) -> Unread {
    match linear.first() {
        Some(&start) if start >> 4 != 6 => Unread::BadHeader,
        _ => Unread::InPieces,
    }
}

impl Pair {
    /// The bytes of both, one behind the other.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (word, chunk) in self.0.iter().zip(bytes.chunks_exact_mut(8)) {
            if let Some(chunk) = chunk.first_chunk_mut() {
                *chunk = word.to_ne_bytes();
            }
        }
        bytes
    }
}

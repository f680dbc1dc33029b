// SPDX-License-Identifier: GPL-2.0-only

//! Netlink messages: reading a datagram, building a request.

use super::attribute;
use super::attribute::Attributes;
use super::attribute::Malformed;
use super::attribute::align;

/// Size of a netlink message's header.
pub const HEADER: usize = 16;

/// `NLMSG_NOOP`.
pub const NOOP: u16 = 1;
/// `NLMSG_ERROR`: an error, or an acknowledgement if its number is 0.
pub const ERROR: u16 = 2;
/// `NLMSG_DONE`: end of a dump.
pub const DONE: u16 = 3;
/// `NLMSG_OVERRUN`.
pub const OVERRUN: u16 = 4;

/// `NLM_F_REQUEST`.
pub const F_REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub const F_ACK: u16 = 0x4;
/// `NLM_F_DUMP_INTR`: what is dumped changed meanwhile.
pub const F_DUMP_INTR: u16 = 0x10;
/// `NLM_F_DUMP`.
pub const F_DUMP: u16 = 0x300;
/// `NLM_F_CAPPED`: the failed request's payload is not repeated.
pub const F_CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: extended acknowledgement attributes follow.
pub const F_ACK_TLVS: u16 = 0x200;

/// One message of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Message type.
    pub kind: u16,
    /// `NLM_F_…`.
    pub flags: u16,
    /// Number of the request that it answers; 0 for a notification.
    pub sequence: u32,
    /// Port of the socket that asked.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Splits off the family's own header of `N` bytes; attributes follow it.
    pub fn split<const N: usize>(&self) -> Result<(&'a [u8; N], Attributes<'a>), Malformed> {
        let (header, _) = self.payload.split_first_chunk::<N>().ok_or(Malformed::Truncated {
            what: "a message's family header",
            wanted: N,
            found: self.payload.len(),
        })?;
        let attributes = self.payload.get(align(N)..).unwrap_or_default();
        Ok((header, Attributes::new(attributes)))
    }
}

/// Iterates over the messages of a datagram.
///
/// This and not [`mnl::NlMessages`], which panics on a last message whose length is no multiple of
/// four and whose padding is missing.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// The messages in a datagram, or in consecutive ones.
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.rest);
        let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else {
            return Some(Err(Malformed::Truncated {
                what: "a message header",
                wanted: HEADER,
                found: bytes.len(),
            }));
        };
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        if length < HEADER || length > bytes.len() {
            return Some(Err(Malformed::Truncated {
                what: "a message",
                wanted: length.max(HEADER),
                found: bytes.len(),
            }));
        }
        self.rest = &bytes[align(length).min(bytes.len())..];
        Some(Ok(Message {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            port: word(12),
            payload: &bytes[HEADER..length],
        }))
    }
}

/// A message under construction.
///
/// Also used to nest: see [`Request::nest`].
#[derive(Debug, Clone)]
pub struct Request {
    bytes: Vec<u8>,
    attributes: usize,
}

impl Request {
    /// A message of this type, with `NLM_F_REQUEST` and the given flags, and the family's header.
    pub fn new(kind: u16, flags: u16, family_header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(family_header);
        bytes.resize(align(bytes.len()), 0);
        let attributes = bytes.len();
        Self { bytes, attributes }
    }

    /// Adds an attribute with this content, and its padding.
    #[must_use]
    pub fn bytes(mut self, kind: u16, payload: &[u8]) -> Self {
        let length = u16::try_from(attribute::HEADER + payload.len())
            .expect("no attribute of ours is near 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a number in host byte order.
    #[must_use]
    pub fn u16(self, kind: u16, value: u16) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a number in host byte order.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a number in host byte order.
    #[must_use]
    pub fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds text, ended by a NUL byte.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that contains the attributes which `build` adds.
    #[must_use]
    pub fn nest(self, kind: u16, build: impl FnOnce(Self) -> Self) -> Self {
        const NLA_F_NESTED: u16 = 0x8000;
        let inner = build(Self { bytes: Vec::new(), attributes: 0 });
        self.bytes(kind | NLA_F_NESTED, &inner.bytes)
    }

    /// Adds `flags` to the header's.
    #[must_use]
    pub fn flags(mut self, flags: u16) -> Self {
        let all = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&all.to_ne_bytes());
        self
    }

    /// The finished message.
    pub fn finish(&mut self, sequence: u32, port: u32) -> &[u8] {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes[12..16].copy_from_slice(&port.to_ne_bytes());
        &self.bytes
    }

    /// The outermost attribute that covers this offset from the start of the message, which is how
    /// the kernel points at the attribute that it refused.
    pub fn attribute_at(&self, offset: usize) -> Option<u16> {
        let mut start = self.attributes;
        for attribute in Attributes::new(self.bytes.get(start..)?) {
            let attribute = attribute.ok()?;
            let end = start + align(attribute::HEADER + attribute.payload.len());
            if (start..end).contains(&offset) {
                return Some(attribute.kind);
            }
            start = end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_reads_back() {
        let mut request = Request::new(30, F_ACK, &[1, 2, 3, 4])
            .u8(1, 1)
            .text(2, "lan0")
            .nest(3, |nest| nest.u32(1, 9).u64(2, 10));
        let bytes = request.finish(7, 8).to_vec();
        // Every attribute is padded, the last one too: an unpadded tail is what trips other readers.
        assert_eq!(bytes.len() % 4, 0);
        let messages: Vec<_> = Messages::new(&bytes).map(Result::unwrap).collect();
        let [message] = messages[..] else { panic!("{messages:?}") };
        assert_eq!(
            (message.kind, message.flags, message.sequence, message.port),
            (30, F_REQUEST | F_ACK, 7, 8)
        );
        let (header, attributes) = message.split::<4>().unwrap();
        assert_eq!(header, &[1, 2, 3, 4]);
        let attributes: Vec<_> = attributes.map(Result::unwrap).collect();
        assert_eq!(attributes[0].u8(), Ok(1));
        assert_eq!(attributes[1].text(), Ok("lan0"));
        let nested: Vec<_> = attributes[2].nested().map(Result::unwrap).collect();
        assert_eq!((nested[0].u32(), nested[1].u64()), (Ok(9), Ok(10)));
    }

    #[test]
    fn an_offset_leads_to_its_attribute() {
        let request = Request::new(30, 0, &[0; 4]).u8(5, 1).u32(6, 2);
        assert_eq!(request.attribute_at(20), Some(5));
        assert_eq!(request.attribute_at(28), Some(6));
        assert_eq!(request.attribute_at(32), Some(6));
        assert_eq!(request.attribute_at(4), None);
        assert_eq!(request.attribute_at(400), None);
    }

    #[test]
    fn an_unpadded_tail_is_read() {
        // mnl::NlMessages panics on this datagram.
        let mut bytes = Request::new(30, 0, &[]).finish(1, 1).to_vec();
        bytes.extend_from_slice(&[0xff; 5]);
        bytes[0..4].copy_from_slice(&21u32.to_ne_bytes());
        let messages: Vec<_> = Messages::new(&bytes).collect();
        assert_eq!(messages[0].as_ref().unwrap().payload, [0xff; 5]);
        assert_eq!(messages.len(), 1);
    }

    #[test]
    fn lengths_are_checked_against_the_datagram() {
        // Among them the length that libmnl up to 1.0.5 takes for valid, since it is negative as
        // an int (RUSTSEC-2025-0142).
        for length in [0u32, 15, 17, 0x8000_0010, u32::MAX] {
            let mut bytes = Request::new(30, 0, &[]).finish(1, 1).to_vec();
            bytes[0..4].copy_from_slice(&length.to_ne_bytes());
            let messages: Vec<_> = Messages::new(&bytes).collect();
            assert!(matches!(messages[..], [Err(Malformed::Truncated { .. })]), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_loop(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Messages::new(&bytes).count() <= bytes.len().div_ceil(HEADER));
        }
    }
}

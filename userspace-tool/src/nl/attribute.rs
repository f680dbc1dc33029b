// SPDX-License-Identifier: GPL-2.0-only

//! Netlink attributes, read without copying.

use std::fmt;

/// Size of an attribute's header.
pub const HEADER: usize = 4;

/// The bits of an attribute's type that are the type; the others are `NLA_F_NESTED` and
/// `NLA_F_NET_BYTEORDER`, which the kernel sets as it likes.
const TYPE_MASK: u16 = 0x3fff;

/// Attributes start at multiples of this.
pub(super) const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A message that does not follow the protocol.
///
/// The kernel does not send such messages; a module that is being developed, or of another version
/// than the tool, might.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// A header or what it announces reaches beyond the end.
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes announced or needed.
        wanted: usize,
        /// Bytes there are.
        found: usize,
    },
    /// An attribute has another size than its type.
    Size {
        /// The attribute.
        attribute: u16,
        /// Size of its type, in bytes.
        wanted: usize,
        /// Its size.
        found: usize,
    },
    /// An attribute's content makes no sense.
    Content {
        /// The attribute.
        attribute: u16,
        /// What is wrong.
        problem: &'static str,
    },
    /// An attribute without which the message means nothing is not there.
    Missing {
        /// The attribute.
        attribute: u16,
    },
}

impl Malformed {
    /// The description, with attributes called by what `name` says.
    pub fn describe(&self, name: impl Fn(u16) -> String) -> String {
        match *self {
            Self::Truncated { what, wanted, found } => {
                format!("{what} is cut short ({found} of {wanted} bytes)")
            }
            Self::Size { attribute, wanted, found } => {
                format!("{} has {found} bytes instead of {wanted}", name(attribute))
            }
            Self::Content { attribute, problem } => format!("{} {problem}", name(attribute)),
            Self::Missing { attribute } => format!("{} is missing", name(attribute)),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe(|number| format!("attribute {number}")))
    }
}

impl std::error::Error for Malformed {}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type, without the flag bits.
    pub kind: u16,
    /// Its content, without padding.
    pub payload: &'a [u8],
}

macro_rules! integer {
    ($(#[$doc:meta])* $method:ident $type:ident $from:ident) => {
        $(#[$doc])*
        pub fn $method(&self) -> Result<$type, Malformed> {
            Ok($type::$from(self.array()?))
        }
    };
}

impl<'a> Attribute<'a> {
    fn array<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        // Copied, not cast: attributes are aligned to four bytes only, so that a u64 may sit at
        // any multiple of four.
        self.payload.try_into().map_err(|_| Malformed::Size {
            attribute: self.kind,
            wanted: N,
            found: self.payload.len(),
        })
    }

    integer!(/// The content as a number.
        u8 u8 from_ne_bytes);
    integer!(/// The content as a number in host byte order.
        u16 u16 from_ne_bytes);
    integer!(/// The content as a number in network byte order.
        be16 u16 from_be_bytes);
    integer!(/// The content as a number in host byte order.
        u32 u32 from_ne_bytes);
    integer!(/// The content as a number in network byte order.
        be32 u32 from_be_bytes);
    integer!(/// The content as a signed number in network byte order.
        be32_signed i32 from_be_bytes);
    integer!(/// The content as a number in host byte order.
        u64 u64 from_ne_bytes);
    integer!(/// The content as a signed number in host byte order.
        i64 i64 from_ne_bytes);
    integer!(/// The content as a number in network byte order.
        be64 u64 from_be_bytes);

    /// The content as text, up to the first NUL byte.
    pub fn text(&self) -> Result<&'a str, Malformed> {
        let end = self.payload.iter().position(|byte| *byte == 0);
        let bytes = &self.payload[..end.unwrap_or(self.payload.len())];
        std::str::from_utf8(bytes)
            .map_err(|_| Malformed::Content { attribute: self.kind, problem: "is not UTF-8 text" })
    }

    /// The attributes nested in this one.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.payload)
    }
}

/// Iterates over attributes that follow each other.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in `bytes`, which starts with an attribute header.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.rest);
        let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else {
            return Some(Err(Malformed::Truncated {
                what: "an attribute header",
                wanted: HEADER,
                found: bytes.len(),
            }));
        };
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        if length < HEADER || length > bytes.len() {
            return Some(Err(Malformed::Truncated {
                what: "an attribute",
                wanted: length.max(HEADER),
                found: bytes.len(),
            }));
        }
        // The last attribute may come without its padding.
        self.rest = &bytes[align(length).min(bytes.len())..];
        Some(Ok(Attribute { kind, payload: &bytes[HEADER..length] }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&((HEADER + payload.len()) as u16).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn reads_attributes_in_order_and_skips_padding() {
        let mut bytes = attribute(1, &[7]);
        bytes.extend_from_slice(&[0; 3]);
        bytes.extend_from_slice(&attribute(0x8000 | 2, &9u64.to_ne_bytes()));
        let read: Vec<_> = Attributes::new(&bytes).map(Result::unwrap).collect();
        assert_eq!(read[0].u8(), Ok(7));
        assert_eq!((read[1].kind, read[1].u64()), (2, Ok(9)));
        assert_eq!(read.len(), 2);
    }

    #[test]
    fn the_last_attribute_may_lack_its_padding() {
        let bytes = attribute(1, &[7]);
        assert_eq!(bytes.len() % 4, 1);
        assert_eq!(Attributes::new(&bytes).count(), 1);
    }

    #[test]
    fn a_wrong_size_is_named() {
        let bytes = attribute(8, &[1]);
        let attribute = Attributes::new(&bytes).next().unwrap().unwrap();
        assert_eq!(
            attribute.be16().unwrap_err().to_string(),
            "attribute 8 has 1 bytes instead of 2"
        );
    }

    #[test]
    fn what_is_cut_short_ends_the_iteration_with_an_error() {
        for bytes in [&[4u8, 0, 1][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 5, 5, 5, 5]] {
            let read: Vec<_> = Attributes::new(bytes).collect();
            assert!(matches!(read[..], [Err(Malformed::Truncated { .. })]), "{bytes:?}: {read:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_loop(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Attributes::new(&bytes).count() <= bytes.len().div_ceil(HEADER));
        }
    }
}

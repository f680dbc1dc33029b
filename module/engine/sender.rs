// SPDX-License-Identifier: GPL-2.0

//! Who sent a packet, on the link that it arrived by.
//!
//! Nothing else in a packet tells customers apart who have the same addresses, on one device. Conntrack can be told to, by
//! giving each a zone (`ether saddr … ct zone set …`); so of what is in a zone a flow is only what comes from where the
//! packets came that it was learned of.

/// Whoever sent a packet: the last four bytes of the address that its Ethernet header names as the source. The first
/// two say who made a device, or that nobody did. The same for all where there are no such headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sender(pub u32);

/// How senders are told apart on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Senders {
    mask: u32,
}

impl Senders {
    /// How many bytes before the network header the four lie that a [`Sender`] is made of, where there is an
    /// Ethernet header right before it.
    pub const BEFORE: usize = 6;

    /// By their Ethernet headers, if the packets of a device have such.
    pub const fn new(is_ethernet: bool) -> Self {
        Self {
            mask: if is_ethernet { u32::MAX } else { 0 },
        }
    }

    /// Who sent a packet that has these bytes [there](Self::BEFORE).
    #[inline(always)]
    pub const fn sender(self, bytes: u32) -> Sender {
        Sender(bytes & self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_by_ethernet_headers_only() {
        let frame = *b"\x02\0\0\0\0\x01\x52\x54\0\x12\x34\x56\x08\0\x45";
        let network = 14;
        let bytes = u32::from_ne_bytes([8, 9, 10, 11].map(|at: usize| frame[at]));
        assert_eq!(network - Senders::BEFORE, 8);
        assert_eq!(Senders::new(true).sender(bytes), Sender(bytes));
        assert_ne!(
            Senders::new(true).sender(bytes),
            Senders::new(true).sender(!bytes)
        );
        assert_eq!(
            Senders::new(false).sender(bytes),
            Senders::new(false).sender(!bytes)
        );
    }
}

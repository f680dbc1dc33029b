// SPDX-License-Identifier: GPL-2.0

//! By what it is known that a bridge would let a packet in.
//!
//! That depends on the port, on who sent the packet, and on much that the bridge alone knows. So it is not decided but
//! remembered: a flow keeps by which port and from whom the bridge has let its last packet in, and that nothing has
//! changed about the bridge before. All of it is in one number that is compared.

use core::num::NonZeroU32;

use super::sender::Sender;

/// A number that a port of a bridge has until something about the bridge changes. There is no telling what comes next,
/// nor what others have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(NonZeroU32);

impl Token {
    /// One that is made of a random number.
    pub const fn new(random: u64) -> Self {
        match NonZeroU32::new(random as u32) {
            Some(number) => Self(number),
            None => Self(NonZeroU32::MIN),
        }
    }

    /// The token that is this number; 0 stands for none.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// How a packet of `sender` comes in by a port with this token, with this tag.
    #[inline(always)]
    pub const fn crossing(self, sender: Sender, tag: Tag) -> Crossing {
        // Never that of a flow of which nothing is known.
        Crossing((self.0.get() ^ sender.0 ^ tag.0.rotate_left(8)) | 1)
    }
}

/// The VLAN that a tag names, and the tag's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u32);

impl Tag {
    /// There is no tag.
    pub const NONE: Self = Self(0);

    /// That with the given protocol, as it is in a packet, and control information, of which the priority does not count.
    #[inline(always)]
    pub const fn new(protocol: u16, control: u16) -> Self {
        const VLAN: u16 = 0x0fff;
        Self((protocol as u32) << 16 | (control & VLAN) as u32)
    }
}

/// By which port of a bridge packets come in, and from whom; and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing(pub u32);

impl Crossing {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self(0);
}

/// What a port of a bridge goes by: its token, and where what arrives without a tag comes out above the bridge, if that is
/// known. Both in one word, so that they change together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// Its token.
    pub token: Token,
    /// The place of a device among those above the bridge.
    pub leads_to: Option<u16>,
}

impl Entrance {
    /// One of which nothing is known.
    pub const fn new(token: Token) -> Self {
        Self {
            token,
            leads_to: None,
        }
    }

    /// The word; none is 0.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        let place = match self.leads_to {
            Some(place) => place as u64 + 1,
            None => 0,
        };
        (self.token.number() as u64) << 32 | place
    }

    /// What the word says; 0 says that the port is closed.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Option<Self> {
        let Some(token) = Token::from_number((word >> 32) as u32) else {
            return None;
        };
        let leads_to = match word as u32 {
            0 => None,
            place => Some(place.wrapping_sub(1) as u16),
        };
        Some(Self { token, leads_to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token::new(0x1234_5678_9abc_def0);
    const SENDER: Sender = Sender(0x5634_1200);

    #[test]
    fn another_sender_or_token_is_another_crossing() {
        let crossing = TOKEN.crossing(SENDER, Tag::NONE);
        assert_eq!(crossing, TOKEN.crossing(SENDER, Tag::NONE));
        assert_ne!(
            crossing,
            TOKEN.crossing(Sender(SENDER.0 ^ 0x100), Tag::NONE)
        );
        assert_ne!(
            crossing,
            Token::new(0x9abc_def4).crossing(SENDER, Tag::NONE)
        );
    }

    #[test]
    fn another_vlan_is_another_crossing_but_not_another_priority() {
        let tagged = |control| TOKEN.crossing(SENDER, Tag::new(0x8100, control));
        assert_ne!(tagged(7), TOKEN.crossing(SENDER, Tag::NONE));
        assert_ne!(tagged(7), tagged(9));
        assert_eq!(tagged(7), tagged(7 | 5 << 13));
        assert_ne!(tagged(7), TOKEN.crossing(SENDER, Tag::new(0x88a8, 7)));
    }

    #[test]
    fn none_is_unknown() {
        let alike = Sender(TOKEN.number());
        assert_ne!(TOKEN.crossing(alike, Tag::NONE), Crossing::UNKNOWN);
    }

    #[test]
    fn an_entrance_comes_back() {
        for leads_to in [None, Some(0), Some(1), Some(u16::MAX)] {
            let entrance = Entrance {
                token: TOKEN,
                leads_to,
            };
            assert_eq!(Entrance::unpack(entrance.pack()), Some(entrance));
        }
        assert_eq!(Entrance::new(TOKEN).leads_to, None);
        assert_eq!(Entrance::unpack(0), None);
    }

    #[test]
    fn none_is_closed() {
        assert_eq!(Token::from_number(0), None);
        for random in [0, 1, u64::MAX, 1 << 32] {
            let token = Token::new(random);
            assert_eq!(Token::from_number(token.number()), Some(token));
        }
    }
}

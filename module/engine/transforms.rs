// SPDX-License-Identifier: GPL-2.0

//! What IPsec does to the packets of a flow, and where.

use super::wire::transform;

/// What IPsec does to the packets of a flow: before they arrive and after they leave, seen in the packets themselves or
/// known from the devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transforms(u8);

/// How far what is known from the devices lies from what packets show.
const BY_DEVICES: u32 = 2;
/// What packets show.
const SHOWN: u8 = (1 << BY_DEVICES) - 1;

/// Both directions in a byte.
const fn both(decrypted: bool, encrypted: bool) -> u8 {
    let decrypted = if decrypted { transform::DECRYPTED } else { 0 };
    let encrypted = if encrypted { transform::ENCRYPTED } else { 0 };
    (decrypted | encrypted) as u8
}

impl Transforms {
    /// What packets show: a secpath when they arrive, a route with transforms when they leave.
    pub const fn shown(decrypted: bool, encrypted: bool) -> Self {
        Self(both(decrypted, encrypted))
    }

    /// What the devices do that packets arrive on and leave by. The packets need not show any of it.
    pub const fn by_devices(decrypted: bool, encrypted: bool) -> Self {
        Self(both(decrypted, encrypted) << BY_DEVICES)
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether packets show any: whether the fast path has to look for it, or to see to it.
    #[inline(always)]
    pub const fn are_shown(self) -> bool {
        self.0 & SHOWN != 0
    }

    /// Whether there are any.
    pub const fn are_any(self) -> bool {
        self.0 != 0
    }

    /// What user space is told.
    pub const fn listed(self) -> u32 {
        (self.0 & SHOWN | self.0 >> BY_DEVICES) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_of_ipsec_and_only_what_packets_show_concerns_the_fast_path() {
        for bits in 0..16u8 {
            let [a, b, c, d] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
            let transforms = Transforms::shown(a, b).and(Transforms::by_devices(c, d));
            assert_eq!(transforms.are_shown(), a || b);
            assert_eq!(transforms.are_any(), a || b || c || d);
            let listed = |bit| transforms.listed() & bit != 0;
            assert_eq!(listed(transform::DECRYPTED), a || c);
            assert_eq!(listed(transform::ENCRYPTED), b || d);
            assert_eq!(transforms.listed() & !3, 0);
        }
        assert_eq!(Transforms::default(), Transforms::shown(false, false));
    }
}

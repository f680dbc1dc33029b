// SPDX-License-Identifier: GPL-2.0

//! The Internet checksum: ones' complement sums of 16-bit words (RFC 1071), and how to change one
//! without reading the data again (RFC 1624).
//!
//! Words are taken in the machine's byte order. RFC 1071, section 2 (B): the sum comes out right in
//! any byte order as long as it is stored back in the same one.

/// A ones' complement sum, folded to 16 bits.
///
/// 0x0000 and 0xffff both stand for zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(pub u16);

impl Sum {
    /// Sums the 16-bit words of `value`.
    #[inline]
    pub const fn of_u32(value: u32) -> Self {
        Self(fold((value & 0xffff) as u64 + (value >> 16) as u64))
    }

    /// Sums the 16-bit words of `value`.
    #[inline]
    pub const fn of_u64(value: u64) -> Self {
        // 2^32 is congruent to 1 modulo 2^16 - 1, so 32-bit halves may be added before folding.
        Self(fold((value & 0xffff_ffff) + (value >> 32)))
    }

    /// The sum of both.
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }

    /// What has to be added to get from `self` to `new`.
    #[inline]
    pub const fn delta_to(self, new: Self) -> Self {
        Self(new.0).plus(Self(!self.0))
    }

    /// The checksum field `check` of data that changes by `self`: RFC 1624, equation 3,
    /// HC' = ~(~HC + ~m + m'). The complement of a sum is the same as a difference: with d = ~m + m',
    /// ~(~HC + d) = HC - d, where a borrow is taken off once more as a carry would have been added.
    ///
    /// Never turns a field that was not zero into zero unless the new sum is 0xffff, which UDP has
    /// to write as 0xffff: see [`Sum::amend_udp`].
    #[inline(always)]
    pub const fn amend(self, check: u16) -> u16 {
        let (difference, borrow) = check.overflowing_sub(self.0);
        // With a borrow the rest is at least 1.
        difference.wrapping_sub(borrow as u16)
    }

    /// As [`Sum::amend`], for UDP over IPv4: a field of zero means "no checksum" and stays zero; a
    /// computed zero is sent as 0xffff (RFC 768).
    #[inline(always)]
    pub const fn amend_udp(self, check: u16) -> u16 {
        if check == 0 {
            return 0;
        }
        match self.amend(check) {
            0 => 0xffff,
            amended => amended,
        }
    }

    /// The field of a packet whose checksum the device will complete: it holds the pseudo header's
    /// sum itself, not its complement.
    #[inline(always)]
    pub const fn amend_partial(self, field: u16) -> u16 {
        add(field, self.0)
    }
}

/// Whether the 20 bytes of an IPv4 header without options sum up to a correct header checksum.
#[inline(always)]
pub fn ipv4_header_is_valid(header: &[u8; 20]) -> bool {
    let [a @ .., b0, b1, b2, b3, b4, b5, b6, b7, c0, c1, c2, c3] = *header;
    let a = u64::from_ne_bytes(a);
    let b = u64::from_ne_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
    let c = u32::from_ne_bytes([c0, c1, c2, c3]);
    // In the largest words that there are; the carry goes back in at the lower end. It can't overflow once
    // more: what an overflow leaves is less than either of both.
    let (sum, carry) = a.overflowing_add(b);
    let (sum, again) = sum.overflowing_add(u64::from(c).wrapping_add(u64::from(carry)));
    let sum = sum.wrapping_add(u64::from(again));
    // Folded to 16 bits it would be its remainder modulo 0xffff, but with 0xffff for zero, and that is what a correct
    // checksum makes of it: 2^16, and so 2^64, leaves a remainder of one. Only where all is zero the sum is, too. So
    // it has to be a multiple of 0xffff, but not zero. The product with the inverse is how many times it is for
    // those, and more than it can be for all others.
    sum.wrapping_mul(INVERSE).wrapping_sub(1) < u64::MAX / 0xffff
}

/// What 0xffff has to be multiplied with to give one, modulo 2^64.
const INVERSE: u64 = (u64::MAX / 0xffff).wrapping_neg();

/// The ones' complement sum of two words.
#[inline(always)]
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    // With a carry the rest is at most 0xfffe.
    sum.wrapping_add(carry as u16)
}

/// Folds a sum of up to 2^32 words into 16 bits.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The checksum of RFC 1071, read off the text: sum the words, add the carries, complement.
    fn reference(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_ne_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn header_from_rfc_1071_style_example() {
        // A header as sent by a Linux host; the checksum was verified by another stack.
        let mut header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert!(ipv4_header_is_valid(&header));
        header[8] -= 1;
        assert!(!ipv4_header_is_valid(&header));
    }

    #[test]
    fn a_header_of_zeros_is_not_valid() {
        assert_eq!(INVERSE.wrapping_mul(0xffff), 1);
        assert!(!ipv4_header_is_valid(&[0; 20]));
        assert!(ipv4_header_is_valid(&[0xff; 20]));
    }

    proptest! {
        #[test]
        fn headers_are_valid_whose_sum_is_zero(mut header in any::<[u8; 20]>(), seal in any::<bool>()) {
            if seal {
                header[10..12].fill(0);
                let sum = reference(&header);
                header[10..12].copy_from_slice(&sum.to_ne_bytes());
            }
            prop_assert_eq!(ipv4_header_is_valid(&header), reference(&header) == 0);
        }

        #[test]
        fn amending_equals_computing_anew(
            mut data in proptest::collection::vec(any::<u8>(), 12..80),
            at in 0usize..4,
            new in any::<u64>(),
        ) {
            let at = at & !1;
            let old = u64::from_ne_bytes(data[at..at + 8].try_into().unwrap());
            let before = reference(&data);
            data[at..at + 8].copy_from_slice(&new.to_ne_bytes());
            let after = reference(&data);
            let amended = Sum::of_u64(old).delta_to(Sum::of_u64(new)).amend(before);
            // Zero has two representations; a receiver sums either to the same.
            let same = |a: u16, b: u16| a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0);
            prop_assert!(same(amended, after), "{amended:#x} {after:#x}");
        }

        #[test]
        fn sums_agree_with_the_reference(value in any::<u64>()) {
            let wide = Sum::of_u64(value).0;
            let halves = Sum::of_u32(value as u32).plus(Sum::of_u32((value >> 32) as u32)).0;
            let expected = !reference(&value.to_ne_bytes());
            let norm = |s: u16| if s == 0xffff { 0 } else { s };
            prop_assert_eq!(norm(wide), norm(expected));
            prop_assert_eq!(norm(halves), norm(expected));
        }

        #[test]
        fn amending_is_what_the_rfc_says(delta in any::<u16>(), check in any::<u16>()) {
            prop_assert_eq!(Sum(delta).amend(check), !Sum(!check).plus(Sum(delta)).0);
        }

        #[test]
        fn udp_without_checksum_stays_without(delta in any::<u16>()) {
            prop_assert_eq!(Sum(delta).amend_udp(0), 0);
        }

        #[test]
        fn udp_with_checksum_never_loses_it(delta in any::<u16>(), check in 1u16..) {
            prop_assert_ne!(Sum(delta).amend_udp(check), 0);
        }
    }
}

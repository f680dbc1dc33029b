// SPDX-License-Identifier: GPL-2.0-only

//! Conntrack marks with a mask.

use std::fmt;
use std::str::FromStr;

/// Some bits of the conntrack mark, and the value that they are compared with or set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The value; no bit outside the mask.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

impl Mark {
    /// What `enable` uses if nothing else is said: one bit, far from the low ones that rule sets
    /// tend to number their marks with.
    pub const DEFAULT: Self = Self { value: 0x0800_0000, mask: 0x0800_0000 };

    /// True if `mark` has the value in the masked bits. A mask of 0 matches nothing.
    pub const fn matches(self, mark: u32) -> bool {
        self.mask != 0 && mark & self.mask == self.value
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}/{:#010x}", self.value, self.mask)
    }
}

/// What is wrong with the text of a mark, and where in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseMarkError {
    /// Start and end of the wrong part, in bytes.
    pub range: std::ops::Range<usize>,
    /// What is wrong with it.
    pub message: String,
}

/// Reads a number as `0x…` or decimal.
pub fn parse_u32(text: &str) -> Option<u32> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // `from_str_radix` would take a sign.
        Some(digits) if digits.starts_with(['+', '-']) => return None,
        Some(digits) => u32::from_str_radix(digits, 16),
        None if text.starts_with('+') => return None,
        None => text.parse(),
    };
    parsed.ok()
}

impl FromStr for Mark {
    type Err = ParseMarkError;

    fn from_str(text: &str) -> Result<Self, ParseMarkError> {
        let error = |range, message: String| Err(ParseMarkError { range, message });
        let Some(slash) = text.find('/') else {
            let hint = if parse_u32(text).is_some() {
                format!("the mask is missing; to use only these bits write {text}/{text}")
            } else {
                "expecting VALUE/MASK, each decimal or 0x and hexadecimal".to_owned()
            };
            return error(0..text.len(), hint);
        };
        let number = |range: std::ops::Range<usize>| match parse_u32(&text[range.clone()]) {
            Some(number) => Ok(number),
            None => Err(ParseMarkError {
                // An empty part is shown at the slash.
                range: if range.is_empty() { slash..slash + 1 } else { range },
                message: "expecting a number of 32 bits, decimal or 0x and hexadecimal".to_owned(),
            }),
        };
        let value = number(0..slash)?;
        let mask = number(slash + 1..text.len())?;
        let outside = value & !mask;
        if outside != 0 {
            return error(
                0..slash,
                format!("bits {outside:#010x} of the value lie outside the mask"),
            );
        }
        Ok(Self { value, mask })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_hexadecimal_and_decimal() {
        assert_eq!("0x10/0xf0".parse(), Ok(Mark { value: 16, mask: 240 }));
        assert_eq!("16/240".parse(), Ok(Mark { value: 16, mask: 240 }));
        assert_eq!("0/0xffffffff".parse(), Ok(Mark { value: 0, mask: u32::MAX }));
        assert_eq!("0/0".parse(), Ok(Mark { value: 0, mask: 0 }));
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let wrong = |text: &str| text.parse::<Mark>().unwrap_err();
        assert_eq!(wrong("0x11/0xf0").range, 0..4);
        assert!(wrong("0x11/0xf0").message.contains("0x00000001"));
        assert_eq!(wrong("1/0").range, 0..1);
        assert!(wrong("0x8").message.ends_with("write 0x8/0x8"));
        assert_eq!(wrong("x").range, 0..1);
        assert_eq!(wrong("1/0x1_0").range, 2..7);
        assert_eq!(wrong("1/").range, 1..2);
        assert_eq!(wrong("/").range, 0..1);
        assert_eq!(wrong("0x100000000/0xffffffff").range, 0..11);
        assert_eq!(wrong("+1/1").range, 0..2);
        assert_eq!(wrong("0x+1/1").range, 0..4);
    }

    #[test]
    fn an_empty_mask_matches_nothing() {
        assert!(!Mark { value: 0, mask: 0 }.matches(0));
        assert!(Mark { value: 0, mask: 1 }.matches(2));
        assert!(Mark::DEFAULT.matches(0x0800_0001));
    }

    proptest! {
        #[test]
        fn prints_what_it_reads(bits: u32, mask: u32) {
            let mark = Mark { value: bits & mask, mask };
            prop_assert_eq!(mark.to_string().parse(), Ok(mark));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9a-fx/+_ -]{0,12}|.{0,8}") {
            if let Err(error) = text.parse::<Mark>() {
                prop_assert!(text.get(error.range).is_some());
            }
        }
    }
}

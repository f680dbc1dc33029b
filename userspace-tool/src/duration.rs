// SPDX-License-Identifier: GPL-2.0-only

//! Durations as nft writes them: `500ms`, `30s`, `1h30m`.

use std::fmt::Write;

/// The units with their milliseconds, largest first.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A number of milliseconds in nft's notation.
pub fn format(milliseconds: u64) -> String {
    let mut rest = milliseconds;
    let mut text = String::new();
    for (unit, size) in UNITS {
        if rest >= size {
            let _ = write!(text, "{}{unit}", rest / size);
            rest %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Reads a duration, as milliseconds. The error says what is wrong.
pub fn parse(text: &str) -> Result<u64, String> {
    let expecting = || "expecting a duration like 30s, 500ms or 1h30m".to_owned();
    let mut rest = text;
    let mut total: u64 = 0;
    // Each unit once and in order, as in nft: `30s1h` is a slip of the pen.
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        if number.is_empty() {
            return Err(expecting());
        }
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        if unit.is_empty() {
            return Err(format!("the unit is missing: {text}s or {text}ms?"));
        }
        let Some((_, size)) = units.find(|(name, _)| *name == unit) else {
            return Err(expecting());
        };
        total = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*size))
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| "the duration is too long".to_owned())?;
        rest = tail;
    }
    if text.is_empty() { Err(expecting()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn is_written_like_nft_does() {
        let pairs = [
            (0, "0s"),
            (500, "500ms"),
            (1000, "1s"),
            (2340, "2s340ms"),
            (5_400_000, "1h30m"),
            (86_400_000, "1d"),
        ];
        for (milliseconds, text) in pairs {
            assert_eq!(format(milliseconds), text);
            assert_eq!(parse(text), Ok(milliseconds));
        }
        assert_eq!(parse("90s"), Ok(90_000));
        assert_eq!(parse("1500ms"), Ok(1500));
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(parse("30").unwrap_err(), "the unit is missing: 30s or 30ms?");
        for text in ["", "s", "1x", "1s1h", "1s1s", "-1s", "1.5s", "1 s", "30sec"] {
            assert!(parse(text).unwrap_err().starts_with("expecting"), "{text}");
        }
        assert!(parse("999999999999999999d").unwrap_err().contains("too long"));
        assert!(parse("99999999999999999999s").unwrap_err().contains("too long"));
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(milliseconds: u64) {
            prop_assert_eq!(parse(&format(milliseconds)), Ok(milliseconds));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9dhms]{0,20}|.{0,10}") {
            let _ = parse(&text);
        }
    }
}

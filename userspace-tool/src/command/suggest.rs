// SPDX-License-Identifier: GPL-2.0-only

//! What somebody may have meant.

/// The word that `typed` is most likely a slip of, if any is likely.
pub(super) fn closest<'a>(typed: &str, words: &[&'a str]) -> Option<&'a str> {
    // A third of the letters may be wrong, but not all of a short word.
    let limit = (typed.chars().count() / 3).clamp(1, 3);
    words
        .iter()
        .map(|word| (distance(typed, word), *word))
        .filter(|(distance, word)| *distance <= limit && *distance < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Letters to insert, leave out, change or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(32).collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised() {
        let words = ["flows", "config", "stats", "ruleset"];
        assert_eq!(closest("flow", &words), Some("flows"));
        assert_eq!(closest("folws", &words), Some("flows"));
        assert_eq!(closest("rulesets", &words), Some("ruleset"));
        assert_eq!(closest("conifg", &words), Some("config"));
    }

    #[test]
    fn other_words_are_not() {
        let words = ["flows", "config", "stats", "ruleset"];
        for typed in ["tables", "x", "", "routes", "configuration"] {
            assert_eq!(closest(typed, &words), None, "{typed}");
        }
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! Words.

use super::Span;
use super::diagnostic::Diagnostic;

/// What a word is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    /// A word; no word is reserved, its place decides what it means.
    Word(&'a str),
    /// Text in double quotes, without them. Never a keyword.
    Text(&'a str),
    /// The end of a command: `;` or the end of a line.
    End,
}

/// Splits text into words. Text that is not closed is an error and ends with its line.
pub fn split(text: &str) -> (Vec<(Token<'_>, Span)>, Vec<Diagnostic>) {
    let mut tokens = Vec::new();
    let mut errors = Vec::new();
    let mut rest = 0;
    while let Some(first) = text[rest..].chars().next() {
        let start = rest;
        let tail = &text[start..];
        let find = |end: &dyn Fn(char) -> bool| start + tail.find(end).unwrap_or(tail.len());
        match first {
            '\n' | ';' => {
                rest += 1;
                tokens.push((Token::End, start..rest));
            }
            '#' => rest = find(&|c| c == '\n'),
            '"' => {
                let body = &tail[1..];
                let length = body.find(['"', '\n']).unwrap_or(body.len());
                let end = start + 1 + length;
                if body[length..].starts_with('"') {
                    tokens.push((Token::Text(&body[..length]), start..end + 1));
                    rest = end + 1;
                } else {
                    errors.push(Diagnostic::error("the closing quote is missing", start..end));
                    // Stands for what was meant, so that it is not missed as well.
                    tokens.push((Token::Text(&body[..length]), start..end));
                    rest = end;
                }
            }
            c if c.is_whitespace() => rest += c.len_utf8(),
            _ => {
                rest = find(&|c| c.is_whitespace() || c == ';' || c == '"');
                tokens.push((Token::Word(&text[start..rest]), start..rest));
            }
        }
    }
    (tokens, errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        split(text).0.into_iter().map(|(token, _)| token).collect()
    }

    #[test]
    fn words_text_and_ends() {
        use Token::End;
        use Token::Text;
        use Token::Word;
        assert_eq!(
            tokens("list flows; iifname \"lan 0\" # enable\n\tset"),
            [Word("list"), Word("flows"), End, Word("iifname"), Text("lan 0"), End, Word("set")]
        );
        assert_eq!(tokens("a#b;;"), [Word("a#b"), End, End]);
        assert_eq!(tokens(" \t # only a comment"), []);
    }

    #[test]
    fn an_open_quote_ends_with_its_line() {
        let (tokens, errors) = split("iifname \"lan0\nenable");
        assert_eq!(tokens.last().unwrap().0, Token::Word("enable"));
        assert_eq!(errors[0].span, Some(8..13));
    }

    proptest! {
        #[test]
        fn every_span_is_its_word(text in "[ a-z;#\"\n\u{e4}\u{2003}]{0,30}|.{0,30}") {
            for (token, span) in split(&text).0 {
                if let Token::Word(word) = token {
                    prop_assert_eq!(&text[span], word);
                }
            }
        }
    }
}

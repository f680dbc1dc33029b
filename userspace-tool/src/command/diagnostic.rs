// SPDX-License-Identifier: GPL-2.0-only

//! Errors, shown as nft shows them:
//!
//! ```text
//! flows.ft:2:6-10: Error: syntax error, unexpected ‘flwos’, expecting flows, config, stats or ruleset; did you mean ‘flows’?
//! list flwos
//!      ^^^^^
//! ```

use std::fmt::Write;

use super::Span;

/// Where text came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Name of the file. None: the command line, whose errors have no position in front.
    pub name: Option<String>,
    /// The text.
    pub text: String,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Not done.
    Error,
    /// Done, but.
    Warning,
}

/// Something to tell, and the text that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What to tell.
    pub message: String,
    /// What it is about.
    pub span: Option<Span>,
}

impl Diagnostic {
    /// An error about a part of the text.
    pub fn error(message: impl Into<String>, span: Span) -> Self {
        Self { severity: Severity::Error, message: message.into(), span: Some(span) }
    }

    /// Adds what may have been meant.
    #[must_use]
    pub fn did_you_mean(mut self, meant: Option<&str>) -> Self {
        if let Some(meant) = meant {
            let _ = write!(self.message, "; did you mean ‘{meant}’?");
        }
        self
    }

    /// The lines to print, with their ends.
    pub fn render(&self, source: &Source, colour: bool) -> String {
        let (red, bold, plain) =
            if colour { ("\x1b[1;31m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
        let word = match self.severity {
            Severity::Error => "Error",
            Severity::Warning => "Warning",
        };
        let place = self.span.as_ref().map(|span| Place::find(&source.text, span));
        let mut out = String::new();
        if let (Some(place), Some(name)) = (&place, &source.name) {
            let _ =
                write!(out, "{bold}{name}:{}:{}-{}:{plain} ", place.line, place.first, place.last);
        }
        let _ = writeln!(out, "{red}{word}:{plain} {}", self.message);
        if let Some(place) = place {
            let carets = "^".repeat(place.last - place.first + 1);
            let _ = writeln!(out, "{}\n{}{red}{carets}{plain}", place.text, place.indent);
        }
        out
    }
}

/// The line that a part of the text is on. Columns count characters, from 1.
struct Place {
    line: usize,
    first: usize,
    last: usize,
    text: String,
    indent: String,
}

impl Place {
    fn find(text: &str, span: &Span) -> Self {
        let start = span.start.min(text.len());
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        // What goes on over the end of the line is shown up to there.
        let end = span.end.clamp(start, line_end);
        let before = &text[line_start..start];
        let first = before.chars().count() + 1;
        Self {
            line: text[..line_start].matches('\n').count() + 1,
            first,
            last: first + text[start..end].chars().count().max(1) - 1,
            // What a terminal would obey is not repeated to it.
            text: text[line_start..line_end]
                .chars()
                .map(|c| if c.is_control() && c != '\t' { '?' } else { c })
                .collect(),
            // Tabs stay, so that the carets stand below what they mean.
            indent: before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(text: &str) -> Source {
        Source { name: Some("x.ft".to_owned()), text: text.to_owned() }
    }

    #[test]
    fn a_file_has_positions() {
        let source = file("enable\n\tlist flwos\n");
        let shown = Diagnostic::error("no", 13..18).render(&source, false);
        assert_eq!(shown, "x.ft:2:7-11: Error: no\n\tlist flwos\n\t     ^^^^^\n");
    }

    #[test]
    fn a_command_line_has_none() {
        let source = Source { name: None, text: "list x".to_owned() };
        let shown = Diagnostic::error("no", 5..6).render(&source, false);
        assert_eq!(shown, "Error: no\nlist x\n     ^\n");
    }

    #[test]
    fn the_end_of_the_text_can_be_meant() {
        let source = Source { name: None, text: "list".to_owned() };
        let shown = Diagnostic::error("more", 4..4).render(&source, false);
        assert_eq!(shown, "Error: more\nlist\n    ^\n");
    }

    #[test]
    fn terminals_are_not_commanded() {
        let source = Source { name: None, text: "\x1b[2Jx".to_owned() };
        assert!(!Diagnostic::error("no", 0..2).render(&source, false).contains('\x1b'));
    }

    #[test]
    fn colour_is_put_around_words_only() {
        let source = Source { name: None, text: "list x".to_owned() };
        let shown = Diagnostic::error("no", 5..6).render(&source, true);
        assert_eq!(shown, "\x1b[1;31mError:\x1b[0m no\nlist x\n     \x1b[1;31m^\x1b[0m\n");
    }

    proptest! {
        #[test]
        fn any_span_can_be_shown(text in "(?s).{0,40}", from: usize, to: usize) {
            let bounds: Vec<usize> =
                text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let (a, b) = (bounds[from % bounds.len()], bounds[to % bounds.len()]);
            let shown = Diagnostic::error("x", a.min(b)..a.max(b)).render(&file(&text), false);
            prop_assert!(shown.contains('^'));
        }
    }
}

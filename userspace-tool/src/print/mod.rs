// SPDX-License-Identifier: GPL-2.0-only

//! How things are shown: as text for people, in nft's words, and as JSON for programs.
//!
//! One file a kind of thing, with both forms side by side.

mod config;
mod event;
mod flow;
pub mod json;
mod ruleset;
mod stats;

pub use config::config_json;
pub use config::config_text;
pub use event::event_json;
pub use event::event_text;
pub use flow::flow_json;
pub use flow::flow_text;
pub use ruleset::ruleset_json;
pub use ruleset::ruleset_text;
pub use stats::stats_json;
pub use stats::stats_text;

use json::Json;

/// Version of the JSON schema: it grows when something that was there goes or changes its meaning,
/// not when something is added.
pub const JSON_SCHEMA_VERSION: u32 = 1;

/// How much to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Numbers of things, and what is 0.
    pub all: bool,
    /// No names.
    pub numeric: bool,
}

/// The first element of every JSON document.
pub fn metainfo() -> Json {
    let info = Json::object([
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("json_schema_version", JSON_SCHEMA_VERSION.into()),
    ]);
    Json::object([("metainfo", info)])
}

/// A name in quotes. The kernel lets device names and comments contain nearly anything; what a
/// terminal would obey, or what would end the quotes, is shown as an escape.
fn quoted(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    out.push('"');
    for c in name.chars() {
        if c.is_control() || c == '"' {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold() {
        assert_eq!(quoted("wan0"), "\"wan0\"");
        assert_eq!(quoted("a\x1b[2J\""), "\"a\\u{1b}[2J\\u{22}\"");
    }
}

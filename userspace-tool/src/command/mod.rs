// SPDX-License-Identifier: GPL-2.0-only

//! The tool's language: nft's, as far as it goes.
//!
//! [`lexer`] makes words of text, [`grammar`] commands of words. [`diagnostic`] shows what is wrong
//! with either, the way nft does.

pub mod diagnostic;
pub mod filter;
pub mod grammar;
pub mod lexer;
mod suggest;

use std::fmt;
use std::ops::Range;

use crate::client::Change;
use crate::duration;
use crate::mark::Mark;
use crate::wire;
use filter::Filter;

/// Part of the text, in bytes.
pub type Span = Range<usize>;

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its words.
    pub span: Span,
}

/// A command and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What to do.
    pub action: Action,
    /// All its words.
    pub span: Span,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Install the rules and switch the fast path on.
    Enable {
        /// Mark of the connections to exclude.
        mark: Option<Spanned<Mark>>,
    },
    /// Switch the fast path off and remove the rules.
    Disable,
    /// Change the configuration.
    Set(Settings),
    /// Show flows.
    ListFlows(Filter),
    /// Show the configuration.
    ListConfig,
    /// Show the counters.
    ListStats,
    /// Show the table in nf_tables.
    ListRuleset,
    /// Drop every flow.
    FlushFlows,
    /// Drop a flow.
    DeleteFlow {
        /// Its number.
        id: Spanned<u64>,
    },
    /// Show events as they happen.
    Monitor(Subject),
}

/// Which events to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// All.
    Everything,
    /// Those of flows that the filter lets pass.
    Flows(Filter),
    /// Changes of the configuration.
    Config,
}

/// What `set` sets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// The values.
    pub change: Change,
    /// Where the value of an attribute was written.
    pub places: Vec<(u16, Span)>,
}

impl Settings {
    /// Where the value of an attribute was written. `mark` is one word and two attributes.
    pub fn place(&self, attribute: u16) -> Option<Span> {
        let attribute = match attribute {
            wire::config::MARK_MASK => wire::config::MARK_VALUE,
            other => other,
        };
        let place = self.places.iter().rev().find(|(known, _)| *known == attribute);
        place.map(|(_, span)| span.clone())
    }

    /// Adds what a later command sets.
    pub fn extend(&mut self, later: Self) {
        let Change {
            enabled,
            mark,
            tcp_timeout,
            udp_timeout,
            sample_interval,
            table_size,
            ipsec,
            learn_after,
        } = later.change;
        let change = &mut self.change;
        change.enabled = enabled.or(change.enabled);
        change.mark = mark.or(change.mark);
        change.tcp_timeout = tcp_timeout.or(change.tcp_timeout);
        change.udp_timeout = udp_timeout.or(change.udp_timeout);
        change.sample_interval = sample_interval.or(change.sample_interval);
        change.table_size = table_size.or(change.table_size);
        change.ipsec = ipsec.or(change.ipsec);
        change.learn_after = learn_after.or(change.learn_after);
        self.places.extend(later.places);
    }
}

/// Writes the pairs of key and value that lead to a change, the switch excepted.
pub fn pairs(change: &Change) -> Vec<(&'static str, String)> {
    let time = |milliseconds: u32| duration::format(milliseconds.into());
    [
        ("mark", change.mark.map(|mark| mark.to_string())),
        ("tcp-timeout", change.tcp_timeout.map(time)),
        ("udp-timeout", change.udp_timeout.map(time)),
        ("sample-interval", change.sample_interval.map(time)),
        ("table-size", change.table_size.map(|size| size.to_string())),
        ("learn-after", change.learn_after.map(|packets| packets.to_string())),
        ("ipsec", change.ipsec.map(|mode| mode.to_string())),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect()
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enable { mark: None } => f.write_str("enable"),
            Self::Enable { mark: Some(mark) } => write!(f, "enable --mark {}", mark.value),
            Self::Disable => f.write_str("disable"),
            Self::Set(settings) => {
                f.write_str("set")?;
                for (key, value) in pairs(&settings.change) {
                    write!(f, " {key} {value}")?;
                }
                Ok(())
            }
            Self::ListFlows(filter) => write!(f, "list flows{filter}"),
            Self::ListConfig => f.write_str("list config"),
            Self::ListStats => f.write_str("list stats"),
            Self::ListRuleset => f.write_str("list ruleset"),
            Self::FlushFlows => f.write_str("flush flows"),
            Self::DeleteFlow { id } => write!(f, "delete flow id {}", id.value),
            Self::Monitor(Subject::Everything) => f.write_str("monitor"),
            Self::Monitor(Subject::Flows(filter)) => write!(f, "monitor flows{filter}"),
            Self::Monitor(Subject::Config) => f.write_str("monitor config"),
        }
    }
}

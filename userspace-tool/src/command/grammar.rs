// SPDX-License-Identifier: GPL-2.0-only

//! From words to commands.
//!
//! ```text
//! commands  = [ command ] { ( ";" | newline ) [ command ] }
//! command   = "enable" [ "--mark" MARK ]
//!           | "disable"
//!           | "set" KEY VALUE { KEY VALUE }
//!           | "list" ( "flows" filter | "config" | "stats" | "ruleset" )
//!           | "flush" "flows"
//!           | "delete" "flow" "id" NUMBER
//!           | "monitor" [ "flows" filter | "config" ]
//! filter    = { condition }
//! ```
//!
//! A command that is not understood is skipped up to its end, so that all errors are found at once.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::Action;
use super::Command;
use super::Settings;
use super::Span;
use super::Spanned;
use super::Subject;
use super::diagnostic::Diagnostic;
use super::filter::Condition;
use super::filter::Filter;
use super::filter::Ipsec;
use super::filter::Pattern;
use super::filter::Prefix;
use super::lexer;
use super::lexer::Token;
use super::suggest;
use crate::duration;
use crate::mark::Mark;
use crate::mark::parse_u32;
use crate::wire::Entry;
use crate::wire::FlowState;
use crate::wire::IpsecMode;
use crate::wire::config;

/// The words that commands start with.
pub const VERBS: &[&str] = &["enable", "disable", "set", "list", "flush", "delete", "monitor"];
/// What can be listed.
pub const LISTS: &[&str] = &["flows", "config", "stats", "ruleset"];
/// What can be set.
pub const KEYS: &[&str] = &[
    "mark",
    "tcp-timeout",
    "udp-timeout",
    "sample-interval",
    "table-size",
    "learn-after",
    "ipsec",
];
/// The words that conditions start with.
pub const CONDITIONS: &[&str] = &[
    "tcp", "udp", "protocol", "ip", "ip6", "original", "reply", "saddr", "daddr", "sport", "dport",
    "iifname", "oifname", "iif", "oif", "state", "mark", "ipsec", "id",
];

/// `IFNAMSIZ` without the NUL byte.
const LONGEST_DEVICE_NAME: usize = 15;

type Result<T> = std::result::Result<T, Diagnostic>;

/// Reads commands. Either all of the text is understood, or all that is wrong with it is returned.
pub fn parse(text: &str) -> std::result::Result<Vec<Command>, Vec<Diagnostic>> {
    let (tokens, mut errors) = lexer::split(text);
    let mut parser = Parser { tokens: &tokens, at: 0 };
    let mut commands = Vec::new();
    while parser.at < tokens.len() {
        if parser.is_at_end() {
            parser.at += 1;
            continue;
        }
        match parser.command() {
            Ok(command) => commands.push(command),
            Err(error) => {
                errors.push(error);
                while !parser.is_at_end() {
                    parser.at += 1;
                }
            }
        }
    }
    if errors.is_empty() {
        return Ok(commands);
    }
    errors.sort_by_key(|error| error.span.as_ref().map(|span| span.start));
    Err(errors)
}

/// A description of alternatives: `a, b or c`.
fn alternatives(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

fn parse_address(text: &str) -> std::result::Result<Prefix, &'static str> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr =
        address.parse().map_err(|_| "expecting an IPv4 or IPv6 address, or ADDRESS/LENGTH")?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => Some(width),
        Some(digits) if digits.starts_with('+') => None,
        Some(digits) => digits.parse().ok().filter(|length| *length <= width),
    };
    length.map(|length| Prefix { address, length }).ok_or(match width {
        32 => "the length of an IPv4 prefix is 0 to 32",
        _ => "the length of an IPv6 prefix is 0 to 128",
    })
}

fn parse_ports(text: &str) -> std::result::Result<RangeInclusive<u16>, &'static str> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |digits: &str| {
        let digits = Some(digits).filter(|digits| !digits.starts_with('+'))?;
        digits.parse::<u16>().ok()
    };
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        (Some(_), Some(_)) => Err("the range ends before it starts"),
        _ => Err("expecting a port, 0 to 65535, or FIRST-LAST"),
    }
}

struct Parser<'a> {
    tokens: &'a [(Token<'a>, Span)],
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|(token, _)| *token)
    }

    fn is_at_end(&self) -> bool {
        matches!(self.peek(), None | Some(Token::End))
    }

    /// The place of the next word, or the one behind the last word.
    fn place(&self) -> Span {
        if let Some((Token::Word(_) | Token::Text(_), span)) = self.tokens.get(self.at) {
            return span.clone();
        }
        let end = self.at.checked_sub(1).map_or(0, |last| self.tokens[last].1.end);
        end..end
    }

    fn unexpected(&self, expecting: &str) -> Diagnostic {
        let found = match self.peek() {
            Some(Token::Word(word)) => format!("‘{}’", word.escape_debug()),
            Some(Token::Text(text)) => format!("\"{}\"", text.escape_debug()),
            Some(Token::End) | None => "end of command".to_owned(),
        };
        let message = format!("syntax error, unexpected {found}, expecting {expecting}");
        Diagnostic::error(message, self.place())
    }

    /// One of several words. `end` is added to what is expected where the command may also end.
    fn keyword(&mut self, words: &'static [&'static str], end: bool) -> Result<&'static str> {
        let mut meant = None;
        if let Some(Token::Word(word)) = self.peek() {
            if let Some(known) = words.iter().find(|known| **known == word) {
                self.at += 1;
                return Ok(known);
            }
            meant = suggest::closest(word, words);
            if meant.is_none() && word.starts_with('-') && word != "-" {
                let message = "syntax error, options must be specified before commands";
                return Err(Diagnostic::error(message, self.place()));
            }
        }
        let mut expecting = words.to_vec();
        if end {
            expecting.push("end of command");
        }
        Err(self.unexpected(&alternatives(&expecting)).did_you_mean(meant))
    }

    /// Any word.
    fn word(&mut self, expecting: &str) -> Result<(&'a str, Span)> {
        let Some(Token::Word(word)) = self.peek() else { return Err(self.unexpected(expecting)) };
        let span = self.place();
        self.at += 1;
        Ok((word, span))
    }

    /// A word that `read` understands. It says what is wrong with one that it does not.
    fn value<T, E: Into<String>>(
        &mut self,
        expecting: &str,
        read: impl FnOnce(&str) -> std::result::Result<T, E>,
    ) -> Result<Spanned<T>> {
        let (word, span) = self.word(expecting)?;
        match read(word) {
            Ok(value) => Ok(Spanned { value, span }),
            Err(message) => Err(Diagnostic::error(message, span)),
        }
    }

    /// How many of something.
    fn count(&mut self, expecting: &str) -> Result<Spanned<u32>> {
        self.value(expecting, |word| {
            parse_u32(word).ok_or_else(|| format!("expecting {expecting}"))
        })
    }

    fn command(&mut self) -> Result<Command> {
        let start = self.place().start;
        let action = match self.keyword(VERBS, false)? {
            "enable" => self.enable()?,
            "disable" => Action::Disable,
            "set" => Action::Set(self.settings()?),
            "list" => match self.keyword(LISTS, false)? {
                "flows" => Action::ListFlows(self.filter()?),
                "config" => Action::ListConfig,
                "stats" => Action::ListStats,
                _ => Action::ListRuleset,
            },
            "flush" => {
                self.keyword(&["flows"], false)?;
                Action::FlushFlows
            }
            "delete" => {
                self.keyword(&["flow"], false)?;
                self.keyword(&["id"], false)?;
                Action::DeleteFlow { id: self.id()? }
            }
            _ => Action::Monitor(self.subject()?),
        };
        if !self.is_at_end() {
            return Err(self.keyword(&[], true).expect_err("no word is expected"));
        }
        Ok(Command { action, span: start..self.place().end })
    }

    fn enable(&mut self) -> Result<Action> {
        if self.is_at_end() {
            return Ok(Action::Enable { mark: None });
        }
        if let Some(Token::Word(word)) = self.peek() {
            if let Some(value) = word.strip_prefix("--mark=") {
                let start = self.place().end - value.len();
                self.at += 1;
                return Ok(Action::Enable { mark: Some(read_mark(value, start)?) });
            }
        }
        self.keyword(&["--mark", "mark"], true)?;
        Ok(Action::Enable { mark: Some(self.mark()?) })
    }

    fn mark(&mut self) -> Result<Spanned<Mark>> {
        let (word, span) = self.word("VALUE/MASK")?;
        read_mark(word, span.start)
    }

    fn settings(&mut self) -> Result<Settings> {
        let mut settings = Settings::default();
        let mut seen = Vec::new();
        while seen.is_empty() || !self.is_at_end() {
            let place = self.place();
            let key = self.keyword(KEYS, !seen.is_empty())?;
            if seen.contains(&key) {
                return Err(Diagnostic::error(format!("{key} is set twice"), place));
            }
            seen.push(key);
            let (change, places) = (&mut settings.change, &mut settings.places);
            let (attribute, target) = match key {
                "mark" => {
                    let mark = self.mark()?;
                    change.mark = Some(mark.value);
                    places.push((config::MARK_VALUE, mark.span));
                    continue;
                }
                "table-size" => {
                    let size = self.count("a number of flows")?;
                    change.table_size = Some(size.value);
                    places.push((config::TABLE_SIZE, size.span));
                    continue;
                }
                "learn-after" => {
                    let packets = self.count("a number of packets")?;
                    change.learn_after = Some(packets.value);
                    places.push((config::LEARN_AFTER, packets.span));
                    continue;
                }
                "ipsec" => {
                    let place = self.place();
                    change.ipsec = Some(self.ipsec()?);
                    places.push((config::IPSEC, place));
                    continue;
                }
                "tcp-timeout" => (config::TCP_TIMEOUT, &mut change.tcp_timeout),
                "udp-timeout" => (config::UDP_TIMEOUT, &mut change.udp_timeout),
                _ => (config::SAMPLE_INTERVAL, &mut change.sample_interval),
            };
            let time = self.value("a duration like 30s or 500ms", |word| {
                let milliseconds = duration::parse(word)?;
                u32::try_from(milliseconds).map_err(|_| "the duration is too long".to_owned())
            })?;
            *target = Some(time.value);
            places.push((attribute, time.span));
        }
        Ok(settings)
    }

    fn id(&mut self) -> Result<Spanned<u64>> {
        self.value("the number of a flow", |word| {
            let digits = Some(word).filter(|word| !word.starts_with('+'));
            digits
                .and_then(|digits| digits.parse().ok())
                .ok_or("expecting the number of a flow, as ‘-a list flows’ shows it")
        })
    }

    fn subject(&mut self) -> Result<Subject> {
        if self.is_at_end() {
            return Ok(Subject::Everything);
        }
        Ok(match self.keyword(&["flows", "config"], true)? {
            "flows" => Subject::Flows(self.filter()?),
            _ => Subject::Config,
        })
    }

    fn filter(&mut self) -> Result<Filter> {
        let mut conditions: Vec<Condition> = Vec::new();
        while !self.is_at_end() {
            let start = self.place().start;
            let condition = self.condition()?;
            let kind = std::mem::discriminant(&condition);
            if conditions.iter().any(|known| std::mem::discriminant(known) == kind) {
                let end = self.tokens[self.at - 1].1.end;
                let message = format!("‘{condition}’ is a second condition of its kind");
                return Err(Diagnostic::error(message, start..end));
            }
            conditions.push(condition);
        }
        Ok(Filter { conditions })
    }

    fn condition(&mut self) -> Result<Condition> {
        let number = |word: &str| parse_u32(word).ok_or("expecting a number of 32 bits");
        let index = |word: &str| {
            parse_u32(word)
                .ok_or("expecting an interface index; for a name there are iifname and oifname")
        };
        Ok(match self.keyword(CONDITIONS, true)? {
            "tcp" => Condition::Protocol(6),
            "udp" => Condition::Protocol(17),
            "protocol" => Condition::Protocol(
                self.value("an IP protocol number", |word| {
                    parse_u32(word)
                        .and_then(|number| u8::try_from(number).ok())
                        .ok_or("expecting an IP protocol number, 0 to 255")
                })?
                .value,
            ),
            "ip" => Condition::Version6(false),
            "ip6" => Condition::Version6(true),
            "original" => Condition::Reply(false),
            "reply" => Condition::Reply(true),
            "saddr" => Condition::Source(self.value("an address", parse_address)?.value),
            "daddr" => Condition::Destination(self.value("an address", parse_address)?.value),
            "sport" => Condition::SourcePort(self.value("a port", parse_ports)?.value),
            "dport" => Condition::DestinationPort(self.value("a port", parse_ports)?.value),
            "iifname" => Condition::InName(self.device()?),
            "oifname" => Condition::OutName(self.device()?),
            "iif" => Condition::InIndex(self.value("an interface index", index)?.value),
            "oif" => Condition::OutIndex(self.value("an interface index", index)?.value),
            "state" => Condition::State(self.state()?),
            "mark" => {
                let (word, span) = self.word("VALUE or VALUE/MASK")?;
                if word.contains('/') {
                    Condition::Mark(read_mark(word, span.start)?.value)
                } else {
                    let value = number(word).map_err(|message| Diagnostic::error(message, span))?;
                    Condition::Mark(Mark { value, mask: u32::MAX })
                }
            }
            "ipsec" => {
                let word = self.keyword(Ipsec::WORDS, false)?;
                Condition::Ipsec(Ipsec::from_word(word).expect("a word of its own"))
            }
            _ => Condition::Id(self.id()?.value),
        })
    }

    fn state(&mut self) -> Result<FlowState> {
        self.value_of(FlowState::ALL, FlowState::from_name)
    }

    fn ipsec(&mut self) -> Result<IpsecMode> {
        self.value_of(IpsecMode::ALL, IpsecMode::from_name)
    }

    /// A value of an enumeration, by its name.
    fn value_of<T>(&mut self, all: &[Entry], from_name: fn(&str) -> Option<T>) -> Result<T> {
        let names: Vec<&str> = all.iter().map(|entry| entry.name).collect();
        let expecting = alternatives(&names);
        let Some(Token::Word(word)) = self.peek() else { return Err(self.unexpected(&expecting)) };
        let Some(value) = from_name(word) else {
            return Err(self.unexpected(&expecting).did_you_mean(suggest::closest(word, &names)));
        };
        self.at += 1;
        Ok(value)
    }

    fn device(&mut self) -> Result<Pattern> {
        let (Some(Token::Word(name) | Token::Text(name)), span) = (self.peek(), self.place())
        else {
            return Err(self.unexpected("the name of a device"));
        };
        self.at += 1;
        match name.len() {
            1..=LONGEST_DEVICE_NAME => Ok(Pattern(name.to_owned())),
            _ => Err(Diagnostic::error("the name of a device has 1 to 15 characters", span)),
        }
    }
}

/// Reads a mark; its errors may mean a part of the word.
fn read_mark(word: &str, start: usize) -> Result<Spanned<Mark>> {
    match word.parse() {
        Ok(value) => Ok(Spanned { value, span: start..start + word.len() }),
        Err(error) => {
            let span = start + error.range.start..start + error.range.end;
            Err(Diagnostic::error(error.message, span))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn actions(text: &str) -> Vec<String> {
        let commands = parse(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
        commands.into_iter().map(|command| command.action.to_string()).collect()
    }

    fn errors(text: &str) -> Vec<(String, &str)> {
        let errors = parse(text).expect_err(text);
        errors.into_iter().map(|error| (error.message, &text[error.span.unwrap()])).collect()
    }

    #[test]
    fn commands_are_understood() {
        for text in [
            "enable",
            "enable --mark 0x00000001/0x00000003",
            "disable",
            "set ipsec accelerate",
            "set tcp-timeout 1s ipsec exclude",
            "set mark 0x00000001/0x00000003 tcp-timeout 30s udp-timeout 500ms table-size 10",
            "list flows",
            "list flows tcp saddr 10.0.0.0/8 sport 1-2 iifname \"lan 0\" state fast mark 0x00000001",
            "list flows udp original daddr 2001:db8::/32 dport 53 oifname \"ppp*\"",
            "list flows protocol 47 ip reply iif 3 oif 4 mark 0x00000001/0x000000ff id 12",
            "list flows ipsec exists",
            "list flows ipsec missing tcp",
            "monitor flows ipsec decrypted",
            "list flows ipsec encrypted",
            "list config",
            "list stats",
            "list ruleset",
            "flush flows",
            "delete flow id 18446744073709551615",
            "monitor",
            "monitor flows udp",
            "monitor config",
        ] {
            assert_eq!(actions(text), [text]);
        }
    }

    #[test]
    fn there_are_other_ways_to_write_it() {
        assert_eq!(actions("enable --mark=1/3"), ["enable --mark 0x00000001/0x00000003"]);
        assert_eq!(actions("enable mark 1/3"), ["enable --mark 0x00000001/0x00000003"]);
        assert_eq!(actions(" ;; list stats\n\n# no\nenable;"), ["list stats", "enable"]);
        assert_eq!(actions("list flows iifname lan0"), ["list flows iifname \"lan0\""]);
        assert_eq!(actions("list flows sport 53-53"), ["list flows sport 53"]);
    }

    #[test]
    fn nothing_is_no_command() {
        assert_eq!(parse(""), Ok(vec![]));
        assert_eq!(parse(" # nothing\n;"), Ok(vec![]));
    }

    #[test]
    fn all_errors_are_found_in_order() {
        let found = errors("lsit flows\nlist stats; set mark 1\nenable now");
        let marked: Vec<_> = found.iter().map(|(_, marked)| *marked).collect();
        assert_eq!(marked, ["lsit", "1", "now"]);
        assert!(found[0].0.ends_with("did you mean ‘list’?"), "{found:?}");
    }

    #[test]
    fn the_word_that_is_wrong_is_marked() {
        for (text, marked) in [
            ("list", ""),
            ("list flows sport", ""),
            ("list flows sport 70000", "70000"),
            ("list flows sport 2-1", "2-1"),
            ("list flows saddr 10.0.0.0/33", "10.0.0.0/33"),
            ("list flows saddr example", "example"),
            ("list flows state fats", "fats"),
            ("list flows ipsec", ""),
            ("list flows ipsec encyrpted", "encyrpted"),
            ("list flows ipsec exists ipsec missing", "ipsec missing"),
            ("list flows iifname 0123456789abcdef", "0123456789abcdef"),
            ("list flows iifname \"\"", "\"\""),
            ("list flows iif lan0", "lan0"),
            ("list flows sport 1 tcp sport 2", "sport 2"),
            ("list flows -j", "-j"),
            ("list config more", "more"),
            ("set", ""),
            ("set tcp-timeout 30", "30"),
            ("set tcp-timeout 50d", "50d"),
            ("set table-size many", "many"),
            ("set ipsec", ""),
            ("set ipsec acelerate", "acelerate"),
            ("set table-size 1 table-size 2", "table-size"),
            ("set mark 3/1", "3"),
            ("enable --mark=0x3/0x1", "0x3"),
            ("enable --mrak 1/1", "--mrak"),
            ("delete flow id -1", "-1"),
            ("delete flow 1", "1"),
            ("monitor stats", "stats"),
            ("\"list\" flows", "\"list\""),
        ] {
            assert_eq!(errors(text).last().unwrap().1, marked, "{text}: {:?}", errors(text));
        }
    }

    /// Words that commands are made of, in any order, and some that they are not.
    fn words() -> impl Strategy<Value = String> {
        let known: Vec<String> = [VERBS, LISTS, KEYS, CONDITIONS]
            .concat()
            .into_iter()
            .chain([
                "flow",
                "fast",
                "learning",
                "exists",
                "encrypted",
                "--mark",
                "--mark=1/1",
                "1/1",
                "0x10/0xf0",
                "30s",
                "7",
                "10.0.0.1",
                "2001:db8::/64",
                "\"a b\"",
                "\"",
                ";",
                "\n",
                "#",
                "-j",
                "1-2",
                "-",
                "/",
            ])
            .map(str::to_owned)
            .collect();
        let word = prop_oneof![9 => prop::sample::select(known), 1 => "\\PC{0,6}"];
        prop::collection::vec(word, 0..14).prop_map(|words| words.join(" "))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_words_are_understood_or_refused(text in words()) {
            match parse(&text) {
                Ok(commands) => for command in commands {
                    // What is understood is written so that it is understood as the same.
                    let written = command.action.to_string();
                    let again = parse(&written).expect("a command that was written reads back");
                    prop_assert_eq!(&again[0].action.to_string(), &written);
                    prop_assert!(text.get(command.span).is_some());
                },
                Err(errors) => {
                    prop_assert!(!errors.is_empty());
                    for error in errors {
                        prop_assert!(text.get(error.span.expect("errors have a place")).is_some());
                    }
                }
            }
        }

        #[test]
        fn any_text_is_understood_or_refused(text in "(?s).{0,60}") {
            let _ = parse(&text);
        }
    }
}

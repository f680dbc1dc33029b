// SPDX-License-Identifier: GPL-2.0-only

//! The configuration, as the commands that lead to it.

use super::flow::line;
use super::json::Json;
use crate::client::Change;
use crate::client::Config;
use crate::command;

/// The switch as a command.
pub(super) fn switch(config: &Config) -> &'static str {
    if config.enabled { "enable" } else { "disable" }
}

/// The configuration as commands, one a line; `fasttrack -f` restores it from them.
pub fn config_text(config: &Config) -> String {
    let mut out = String::new();
    for (key, value) in command::pairs(&Change::from(*config)) {
        line(&mut out, &format!("set {key} {value}"));
    }
    // Last, so that what is switched on is configured.
    line(&mut out, switch(config));
    out
}

/// The configuration as an object.
pub fn config_json(config: &Config) -> Json {
    let mark =
        Json::object([("value", config.mark.value.into()), ("mask", config.mark.mask.into())]);
    let fields = Json::object([
        ("enabled", config.enabled.into()),
        ("mark", mark),
        ("tcp_timeout_ms", config.tcp_timeout.into()),
        ("udp_timeout_ms", config.udp_timeout.into()),
        ("sample_interval_ms", config.sample_interval.into()),
        ("table_size", config.table_size.into()),
        ("learn_after", config.learn_after.into()),
        ("ipsec", config.ipsec.to_string().into()),
    ]);
    Json::object([("config", fields)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Action;
    use crate::command::Settings;
    use crate::mark::Mark;
    use crate::wire::IpsecMode;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_listing_is_the_configuration(
            enabled: bool, bits: u32, mask: u32, tcp_timeout: u32, udp_timeout: u32,
            sample_interval: u32, table_size: u32, learn_after: u32, accelerate: bool,
        ) {
            let mark = Mark { value: bits & mask, mask };
            let ipsec = IpsecMode(accelerate.into());
            let config = Config {
                enabled, mark, tcp_timeout, udp_timeout, sample_interval, table_size, ipsec,
                learn_after,
            };
            let mut read = Settings::default();
            let mut switched = None;
            for command in command::grammar::parse(&config_text(&config)).unwrap() {
                match command.action {
                    Action::Set(settings) => read.extend(settings),
                    Action::Enable { mark: None } => switched = Some(true),
                    Action::Disable => switched = Some(false),
                    other => panic!("{other}"),
                }
            }
            read.change.enabled = switched;
            prop_assert_eq!(read.change, Change::from(config));
        }
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! Events, one a line.

use super::Style;
use super::config;
use super::config_json;
use super::flow_json;
use super::flow_text;
use super::json::Json;
use crate::client::Change;
use crate::client::Event;
use crate::command;

/// An event on one line, without the line's end. The names are those of a flow's devices.
pub fn event_text(
    event: &Event,
    input: Option<&str>,
    output: Option<&str>,
    style: Style,
) -> String {
    match event {
        Event::New(flow) => format!("new flow {}", flow_text(flow, input, output, style)),
        Event::Gone(flow) => format!("gone flow {}", flow_text(flow, input, output, style)),
        // Commands again, as in nft's monitor.
        Event::Config(new) => {
            let pairs = command::pairs(&Change::from(*new));
            let pairs = pairs.into_iter().map(|(key, value)| format!(" {key} {value}"));
            format!("set{}; {}", pairs.collect::<String>(), config::switch(new))
        }
        Event::Lost => "# events lost".to_owned(),
    }
}

/// An event as an object.
pub fn event_json(event: &Event, input: Option<&str>, output: Option<&str>) -> Json {
    match event {
        Event::New(flow) => Json::object([("new", flow_json(flow, input, output))]),
        Event::Gone(flow) => Json::object([("gone", flow_json(flow, input, output))]),
        Event::Config(config) => config_json(config),
        Event::Lost => Json::object([("lost", true.into())]),
    }
}

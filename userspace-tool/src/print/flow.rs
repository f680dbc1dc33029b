// SPDX-License-Identifier: GPL-2.0-only

//! Flows.
//!
//! ```text
//! tcp original saddr 10.0.0.2 sport 40000 daddr 198.51.100.7 dport 443 iifname "lan0" -> saddr 203.0.113.5 sport 40000 oifname "wan0" packets 10 bytes 9340 state fast idle 2s mark 0x00000000
//! ```
//!
//! In front of the arrow stands what is received, in words that `list flows` takes as a filter, and
//! behind it what of it is sent differently.

use std::fmt::Write;
use std::net::IpAddr;

use super::Style;
use super::json::Json;
use super::quoted;
use crate::client::Flow;
use crate::client::Side;
use crate::duration;
use crate::wire::Entry;
use crate::wire::Transform;

fn protocol_name(protocol: u8) -> Option<&'static str> {
    match protocol {
        6 => Some("tcp"),
        17 => Some("udp"),
        _ => None,
    }
}

fn direction(reply: bool) -> &'static str {
    if reply { "reply" } else { "original" }
}

/// A flow on one line, without the line's end. The names are those of its devices.
pub fn flow_text(flow: &Flow, input: Option<&str>, output: Option<&str>, style: Style) -> String {
    let mut words: Vec<String> = Vec::new();
    if let Some(protocol) = flow.protocol {
        words.push(protocol_name(protocol).map_or(format!("protocol {protocol}"), str::to_owned));
    }
    if let Some(reply) = flow.reply {
        words.push(direction(reply).to_owned());
    }
    let Side { source, destination, source_port, destination_port } = flow.received;
    push_end(&mut words, ["saddr", "sport"], source, source_port);
    push_end(&mut words, ["daddr", "dport"], destination, destination_port);
    push_device(&mut words, ["iifname", "iif"], flow.in_ifindex, input);
    words.push("->".to_owned());
    let sent = flow.sent;
    if style.all || is_changed((source, source_port), (sent.source, sent.source_port)) {
        push_end(&mut words, ["saddr", "sport"], sent.source, sent.source_port);
    }
    let received = (destination, destination_port);
    if style.all || is_changed(received, (sent.destination, sent.destination_port)) {
        push_end(&mut words, ["daddr", "dport"], sent.destination, sent.destination_port);
    }
    push_device(&mut words, ["oifname", "oif"], flow.out_ifindex, output);
    let time = duration::format;
    let mark = |mark: u32| format!("{mark:#010x}");
    for (name, value) in [
        ("packets", flow.packets.map(|n| n.to_string())),
        ("bytes", flow.bytes.map(|n| n.to_string())),
        ("state", flow.state.map(|state| state.to_string())),
        ("idle", flow.idle.map(time)),
        ("mark", flow.conntrack_mark.map(mark)),
        ("ipsec", Some(transforms(flow).join(",")).filter(|names| !names.is_empty())),
        ("reason", flow.gone_reason.map(|reason| reason.to_string())),
    ] {
        words.extend(value.map(|value| format!("{name} {value}")));
    }
    if style.all {
        words.push(format!("# id {}", flow.id));
        let dscp = flow.dscp_in.zip(flow.dscp_out);
        for (name, value) in [
            ("age", flow.age.map(time)),
            ("ct-id", flow.conntrack_id.map(|n| n.to_string())),
            ("mtu", flow.mtu.map(|n| n.to_string())),
            ("dscp", dscp.map(|(received, sent)| format!("{received} -> {sent}"))),
            ("packet-mark", flow.packet_mark.map(mark)),
            ("priority", flow.priority.map(mark)),
        ] {
            words.extend(value.map(|value| format!("{name} {value}")));
        }
    }
    words.join(" ")
}

/// What IPsec does to a flow's packets, by name.
fn transforms(flow: &Flow) -> Vec<&'static str> {
    Transform::ALL
        .iter()
        .filter(|entry| (flow.ipsec >> entry.value) & 1 != 0)
        .map(|entry| entry.name)
        .collect()
}

type End = (Option<IpAddr>, Option<u16>);

fn is_changed(received: End, sent: End) -> bool {
    (sent.0.is_some() && sent.0 != received.0) || (sent.1.is_some() && sent.1 != received.1)
}

fn push_end(words: &mut Vec<String>, names: [&str; 2], address: Option<IpAddr>, port: Option<u16>) {
    words.extend(address.map(|address| format!("{} {address}", names[0])));
    words.extend(port.map(|port| format!("{} {port}", names[1])));
}

fn push_device(words: &mut Vec<String>, names: [&str; 2], index: Option<u32>, name: Option<&str>) {
    match (index, name) {
        (_, Some(name)) => words.push(format!("{} {}", names[0], quoted(name))),
        (Some(index), None) => words.push(format!("{} {index}", names[1])),
        (None, None) => {}
    }
}

/// A flow as an object.
pub fn flow_json(flow: &Flow, input: Option<&str>, output: Option<&str>) -> Json {
    let family = |flow: &Flow| {
        let family = flow.family?;
        Some(match i32::from(family) {
            libc::AF_INET => "ip".into(),
            libc::AF_INET6 => "ip6".into(),
            _ => family.into(),
        })
    };
    let protocol =
        flow.protocol.map(|number| protocol_name(number).map_or(number.into(), Json::from));
    let ipsec = Some(transforms(flow))
        .filter(|names| !names.is_empty())
        .map(|names| Json::Array(names.into_iter().map(Json::from).collect()));
    let mut fields = vec![
        ("id", Some(flow.id.into())),
        ("state", flow.state.map(|state| known_name(state.entry(), state.0))),
        ("family", family(flow)),
        ("protocol", protocol),
        ("direction", flow.reply.map(|reply| direction(reply).into())),
    ];
    fields.extend(side(&flow.received));
    fields.extend([
        ("iif", flow.in_ifindex.map(Json::from)),
        ("iifname", input.map(Json::from)),
        ("sent", Some(Json::sparse(side(&flow.sent)))),
        ("oif", flow.out_ifindex.map(Json::from)),
        ("oifname", output.map(Json::from)),
        ("packets", flow.packets.map(Json::from)),
        ("bytes", flow.bytes.map(Json::from)),
        ("age_ms", flow.age.map(Json::from)),
        ("idle_ms", flow.idle.map(Json::from)),
        ("conntrack_id", flow.conntrack_id.map(Json::from)),
        ("conntrack_mark", flow.conntrack_mark.map(Json::from)),
        ("packet_mark", flow.packet_mark.map(Json::from)),
        ("priority", flow.priority.map(Json::from)),
        ("dscp_in", flow.dscp_in.map(Json::from)),
        ("dscp_out", flow.dscp_out.map(Json::from)),
        ("mtu", flow.mtu.map(Json::from)),
        ("ipsec", ipsec),
        ("gone_reason", flow.gone_reason.map(|reason| known_name(reason.entry(), reason.0))),
    ]);
    Json::object([("flow", Json::sparse(fields))])
}

/// A value's name, or its number if it has none that we know.
fn known_name(entry: Option<&Entry>, value: u32) -> Json {
    entry.map_or(value.into(), |entry| entry.name.into())
}

fn side(side: &Side) -> [(&'static str, Option<Json>); 4] {
    let address = |address: Option<IpAddr>| Some(address?.to_string().into());
    [
        ("saddr", address(side.source)),
        ("sport", side.source_port.map(Json::from)),
        ("daddr", address(side.destination)),
        ("dport", side.destination_port.map(Json::from)),
    ]
}

/// Appends a line to `out`.
pub(super) fn line(out: &mut String, text: &str) {
    let _ = writeln!(out, "{text}");
}

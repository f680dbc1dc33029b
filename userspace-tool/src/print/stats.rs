// SPDX-License-Identifier: GPL-2.0-only

//! Counters.

use super::Style;
use super::flow::line;
use super::json::Json;
use crate::client::Stats;
use crate::wire::Entry;

/// The counters, one kind a line, with what the reasons mean.
pub fn stats_text(stats: &Stats, style: Style) -> String {
    let mut out = String::new();
    line(
        &mut out,
        &format!(
            "flows {} of {} learned {} devices {}",
            stats.flows, stats.table_size, stats.learned, stats.devices
        ),
    );
    line(
        &mut out,
        &format!(
            "memory bytes {} per-flow {} index {}",
            stats.memory(),
            stats.flow_bytes,
            stats.index_bytes
        ),
    );
    for (direction, packets, bytes) in [
        ("original", stats.packets_original, stats.bytes_original),
        ("reply", stats.packets_reply, stats.bytes_reply),
    ] {
        line(&mut out, &format!("fast {direction} packets {packets} bytes {bytes}"));
    }
    let mut rows = Vec::new();
    for (reason, packets) in &stats.slow {
        rows.push((format!("slow {reason} packets {packets}"), *packets, reason.entry()));
    }
    for (reason, flows) in &stats.gone {
        rows.push((format!("gone {reason} flows {flows}"), *flows, reason.entry()));
    }
    rows.retain(|(_, count, _)| style.all || *count != 0);
    let width = rows.iter().map(|(text, _, _)| text.len()).max().unwrap_or(0);
    for (text, _, entry) in rows {
        line(&mut out, &explained(&text, width, entry));
    }
    out
}

fn explained(text: &str, width: usize, entry: Option<&Entry>) -> String {
    match entry {
        Some(entry) => format!("{text:width$}  # {}", entry.doc),
        None => text.to_owned(),
    }
}

/// The counters as an object.
pub fn stats_json(stats: &Stats) -> Json {
    let fast = |packets: u64, bytes: u64| {
        Json::object([("packets", packets.into()), ("bytes", bytes.into())])
    };
    let fields = Json::object([
        ("flows", stats.flows.into()),
        ("table_size", stats.table_size.into()),
        ("learned", stats.learned.into()),
        ("devices", stats.devices.into()),
        ("flow_bytes", stats.flow_bytes.into()),
        ("index_bytes", stats.index_bytes.into()),
        ("memory_bytes", stats.memory().into()),
        (
            "fast",
            Json::object([
                ("original", fast(stats.packets_original, stats.bytes_original)),
                ("reply", fast(stats.packets_reply, stats.bytes_reply)),
            ]),
        ),
        ("slow", Json::object(stats.slow.iter().map(|(why, n)| (why.to_string(), (*n).into())))),
        ("gone", Json::object(stats.gone.iter().map(|(why, n)| (why.to_string(), (*n).into())))),
    ]);
    Json::object([("stats", fields)])
}

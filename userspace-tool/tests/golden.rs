// SPDX-License-Identifier: GPL-2.0-only

//! What the tool prints, byte for byte, in `tests/golden/*.golden`.
//!
//! A file is a session with a simulated kernel:
//!
//! ```text
//! @ flows                      a fresh kernel of this kind
//! $ list flows tcp             arguments, in quotes where a shell would want them
//! < enable                     a line of standard input
//! > ...                        standard output
//! ! Error: ...                 standard error
//! = 1                          exit status, if not 0
//! | nft install                what the command changed, in order
//! % 0x1/0x3                    the nf_tables transaction for this mark, attribute by attribute
//! ```
//!
//! `UPDATE_GOLDEN=1 cargo test --test golden` writes what comes out; read the difference.

#![allow(clippy::pedantic, reason = "tests may be blunt")]

mod support;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use fasttrack_tool::nft::table;
use fasttrack_tool::nl::Messages;
use fasttrack_tool::wire;
use fasttrack_tool::wire::IpsecMode;
use fasttrack_tool::wire::command;
use support::Simulation;
use support::World;
use support::finish;
use support::flows;
use support::genl;
use support::tool;

const ENABLED: support::Config = [1, 0x0800_0000, 0x0800_0000, 30_000, 10_000, 1000, 65536, 0, 3];

fn world(name: &str) -> World {
    let default = World::default();
    match name {
        "fresh" => default,
        "enabled" => World { config: ENABLED, ..default },
        "flows" => World { config: ENABLED, flows: flows(), ..default },
        "not-loaded" => World { loaded: false, ..default },
        "no-netlink" => World { has_netlink: false, ..default },
        "no-nf-tables" => World { has_nf_tables: false, ..default },
        "unprivileged" => World { privileged: false, flows: flows(), ..default },
        "refusing-module" => World { refuse_config: 1, ..default },
        "refusing-nf-tables" => World { refuse_batch: 1, ..default },
        "changing-once" => World { flows: flows(), interruptions: 2, ..default },
        "changing-always" => World { flows: flows(), interruptions: usize::MAX, ..default },
        "events" => {
            let flows = flows();
            let gone = |reason| {
                let message = flows[0].encode(genl(command::FLOW_GONE_NTF));
                finish(message.u32(wire::flow::GONE_REASON, reason), 0)
            };
            let mut config = genl(command::CONFIG_NTF).u8(wire::config::ENABLED, 0);
            for (attribute, value) in (2..).zip([1, 3, 30_000, 500, 1000, 64]) {
                config = config.u32(attribute, value);
            }
            let new = finish(flows[0].encode(genl(command::FLOW_NEW_NTF)), 0);
            let other = finish(flows[2].encode(genl(command::FLOW_NEW_NTF)), 0);
            let unknown = finish(genl(77).u32(1, 1), 0);
            World {
                events: vec![
                    Ok([new, other].concat()),
                    Err(libc::ENOBUFS),
                    Ok(unknown),
                    Ok(gone(0)),
                    Ok(gone(55)),
                    Ok(finish(config, 0)),
                ],
                ..default
            }
        }
        other => panic!("no world {other}"),
    }
}

/// Splits like a shell, as far as single quotes.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn play(script: &str) -> String {
    let mut out = String::new();
    let mut simulation = Simulation::new(World::default());
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with('#') || line.is_empty() {
            let _ = writeln!(out, "{line}");
        } else if let Some(name) = line.strip_prefix("@ ") {
            let _ = writeln!(out, "{line}");
            simulation = Simulation::new(world(name));
        } else if let Some(mark) = line.strip_prefix("% ") {
            let _ = writeln!(out, "{line}");
            let (mark, ipsec) = match mark.strip_suffix(" accelerate") {
                Some(mark) => (mark, IpsecMode::ACCELERATE),
                None => (mark, IpsecMode::EXCLUDE),
            };
            let batch = table::replacement(mark.parse().unwrap(), ipsec).unwrap();
            let bytes: Vec<u8> = batch.iter().collect::<Vec<_>>().concat();
            let mut text = String::new();
            dump(&mut text, &bytes);
            for line in text.lines() {
                let _ = writeln!(out, "> {line}");
            }
        } else if let Some(arguments) = line.strip_prefix('$') {
            let _ = writeln!(out, "{line}");
            let mut stdin = String::new();
            while let Some(line) = lines.peek().filter(|line| line.starts_with('<')) {
                let input = line.get(2..).unwrap_or_default();
                let _ = writeln!(out, "{line}");
                let _ = writeln!(stdin, "{input}");
                lines.next();
            }
            let arguments = split(arguments);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let result = tool(&simulation, &arguments, &stdin);
            assert!(result.stdout.is_empty() || result.stdout.ends_with('\n'));
            for line in result.stdout.lines() {
                let _ = writeln!(out, "> {line}");
            }
            for line in result.stderr.lines() {
                let _ = writeln!(out, "! {line}");
            }
            if result.status != 0 {
                let _ = writeln!(out, "= {}", result.status);
            }
            for change in simulation.world.borrow_mut().log.drain(..) {
                let _ = writeln!(out, "| {change}");
            }
        }
    }
    out
}

/// Messages as they are on the wire, read by their attribute numbers alone.
fn dump(out: &mut String, bytes: &[u8]) {
    for message in Messages::new(bytes) {
        let message = message.unwrap();
        if message.kind < 0xa00 {
            // The first and the last: their flags depend on the version of the kernel.
            continue;
        }
        let (header, attributes) = message.split::<4>().unwrap();
        let _ = writeln!(
            out,
            "type {:#05x} flags {:#05x} family {}",
            message.kind, message.flags, header[0]
        );
        let is_rule = message.kind == 0xa06;
        for attribute in attributes.map(Result::unwrap) {
            if is_rule && attribute.kind == 4 {
                for element in attribute.nested().map(Result::unwrap) {
                    let mut parts = element.nested().map(Result::unwrap);
                    let _ = write!(out, "  expression {}", parts.next().unwrap().text().unwrap());
                    for field in parts.next().iter().flat_map(|data| data.nested()) {
                        let field = field.unwrap();
                        // A constant is nested once more, and libnftnl leaves its padding as it
                        // finds it.
                        let payload = match field.nested().next() {
                            Some(Ok(data)) if field.payload.len() > 4 => data.payload,
                            _ => field.payload,
                        };
                        let _ = write!(out, " {}:{}", field.kind, hex(payload));
                    }
                    out.push('\n');
                }
            } else {
                let text = attribute.payload.strip_suffix(&[0]).unwrap_or_default();
                let shown = match std::str::from_utf8(text) {
                    Ok(text) if text.len() > 2 && text.bytes().all(|b| b.is_ascii_graphic()) => {
                        format!("{text:?}")
                    }
                    _ => hex(attribute.payload),
                };
                let _ = writeln!(out, "  attribute {}:{shown}", attribute.kind);
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[test]
fn the_output_is_what_the_files_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "golden") {
            continue;
        }
        count += 1;
        let wanted = fs::read_to_string(&path).unwrap();
        let found = play(&wanted);
        if update {
            fs::write(&path, &found).unwrap();
        } else if found != wanted {
            let at = found.lines().zip(wanted.lines()).position(|(a, b)| a != b);
            let at = at.unwrap_or_else(|| found.lines().count().min(wanted.lines().count()));
            wrong.push(format!(
                "{}:{}:\n  wanted {:?}\n  found  {:?}",
                path.display(),
                at + 1,
                wanted.lines().nth(at),
                found.lines().nth(at)
            ));
        }
    }
    assert!(count >= 10, "only {count} files in {}", directory.display());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_json_document_is_json() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap() {
        for line in fs::read_to_string(entry.unwrap().path()).unwrap().lines() {
            if let Some(line) = line.strip_prefix("> {").map(|rest| format!("{{{rest}")) {
                let value: serde_json::Value = serde_json::from_str(&line).expect(&line);
                assert!(value.is_object());
                count += 1;
            }
        }
    }
    assert!(count >= 10, "only {count} documents");
}

// SPDX-License-Identifier: GPL-2.0-only

//! The manual page and the completion know what the program knows.

#![allow(clippy::pedantic, reason = "tests may be blunt")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use fasttrack_tool::command::filter::Ipsec;
use fasttrack_tool::command::grammar;
use fasttrack_tool::options::HELP;
use fasttrack_tool::wire::FlowState;
use fasttrack_tool::wire::GoneReason;
use fasttrack_tool::wire::SlowReason;
use support::netns::program;
use support::netns::skip;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_manual_explains_every_word() {
    let manual = read("fasttrack.8");
    let flat = manual.split_whitespace().collect::<Vec<_>>().join(" ");
    let words = [grammar::VERBS, grammar::LISTS, grammar::KEYS, grammar::CONDITIONS].concat();
    for word in words {
        let shown = [format!("Cm {word}"), format!("| {word}"), format!("list {word}")];
        assert!(shown.iter().any(|shown| flat.contains(shown)), "{word} is not in the manual");
    }
    for entry in [FlowState::ALL, SlowReason::ALL, GoneReason::ALL].concat() {
        let item = format!(".It Cm {} {}", entry.name, entry.doc);
        assert!(flat.contains(&item), "not in the manual: {item}");
    }
    // No reasons but these.
    let items = manual.lines().filter(|line| line.starts_with(".It Cm ")).count();
    let known = SlowReason::ALL.len() + GoneReason::ALL.len() + FlowState::ALL.len();
    assert!(items >= known);
}

#[test]
fn the_manual_and_the_summary_have_the_same_options() {
    let manual = read("fasttrack.8");
    let summary = HELP.split("Options:\n").nth(1).unwrap();
    let mut count = 0;
    for line in summary.lines() {
        let (short, rest) = line.trim().split_once(", --").unwrap();
        let long = rest.split(' ').next().unwrap();
        let item = format!(".It Fl {} , Fl Fl {long}", &short[1..]);
        assert!(manual.contains(&item), "not in the manual: {item}");
        count += 1;
    }
    assert_eq!(count, 8);
}

#[test]
fn the_manual_has_no_errors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fasttrack.8");
    match Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(path).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && said.is_empty(), "{said}");
        }
        Err(reason) => skip("the_manual_has_no_errors", &format!("no mandoc: {reason}")),
    }
}

/// What bash offers behind this line; the last word is the one that is being typed.
fn complete(line: &[&str]) -> Vec<String> {
    let script = format!(
        "source {}/completions/fasttrack.bash; COMP_WORDS=(fasttrack \"$@\"); COMP_CWORD=$#; \
         _fasttrack 2>/dev/null; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = program("bash", &[&["-c", &script, "bash"], line].concat()).unwrap();
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_completion_offers_every_word() {
    if let Err(reason) = program("bash", &["--version"]) {
        return skip("the_completion_offers_every_word", &reason);
    }
    let sorted = |mut words: Vec<String>| {
        words.sort();
        words
    };
    let known = |words: &[&str]| sorted(words.iter().map(|word| (*word).to_owned()).collect());
    assert_eq!(sorted(complete(&[""])), known(grammar::VERBS));
    assert_eq!(sorted(complete(&["list", ""])), known(grammar::LISTS));
    assert_eq!(sorted(complete(&["set", ""])), known(grammar::KEYS));
    assert_eq!(sorted(complete(&["list", "flows", ""])), known(grammar::CONDITIONS));
    assert_eq!(sorted(complete(&["monitor", "flows", "tcp", ""])), known(grammar::CONDITIONS));
    let states: Vec<_> = FlowState::ALL.iter().map(|entry| entry.name).collect();
    assert_eq!(sorted(complete(&["list", "flows", "state", ""])), known(&states));
    assert_eq!(sorted(complete(&["list", "flows", "ipsec", ""])), known(Ipsec::WORDS));

    let options = complete(&["-"]);
    for word in HELP.split("Options:\n").nth(1).unwrap().split_whitespace() {
        if word.starts_with('-') && word.len() > 1 {
            let word = word.trim_end_matches(',').to_owned();
            assert!(options.contains(&word), "{word}");
        }
    }
    if Path::new("/sys/class/net/lo").exists() {
        let devices = complete(&["list", "flows", "iifname", "l"]);
        assert!(devices.contains(&"lo".to_owned()), "{devices:?}");
    }
    for (line, offered) in [
        (&["li"][..], &["list"][..]),
        (&["-j", "list", "s"], &["stats"]),
        (&["-N", "blue", "li"], &["list"]),
        (&["--netns", "=", "blue", "li"], &["list"]),
        (&["enable", ""], &["--mark"]),
        (&["enable", "--mark", ""], &[]),
        (&["set", "tcp-timeout", ""], &[]),
        (&["set", "tcp-timeout", "30s", "u"], &["udp-timeout"]),
        (&["list", "flows", "saddr", ""], &[]),
        (&["delete", ""], &["flow"]),
        (&["delete", "flow", ""], &["id"]),
        (&["flush", ""], &["flows"]),
        (&["disable", ""], &[]),
        (&["disable", ";", "en"], &["enable"]),
        (&["list", "flows", "\\;", "monitor", "c"], &["config"]),
    ] {
        assert_eq!(complete(line), offered, "{line:?}");
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! Switching on and off, with everything that can fail failing in turn.

#![allow(clippy::pedantic, reason = "tests may be blunt")]

mod support;

use fasttrack_tool::mark::Mark;
use support::Simulation;
use support::World;
use support::tool;

const MARK: Mark = Mark::DEFAULT;
const OTHER: Mark = Mark { value: 1, mask: 3 };

fn config(enabled: bool, mark: Mark) -> support::Config {
    [enabled.into(), mark.value, mark.mask, 30_000, 10_000, 1000, 65536, 0, 3]
}

/// A world that was brought to a state by the tool itself.
fn prepared(name: &str) -> World {
    let simulation = Simulation::new(World::default());
    let run = |arguments: &[&str]| assert_eq!(tool(&simulation, arguments, "").status, 0);
    match name {
        "off" => {}
        "on" => run(&["enable"]),
        "on, accelerating" => run(&["set", "ipsec", "accelerate", ";", "enable"]),
        "off with a mark" => run(&["set", "mark", "0x1/0x3"]),
        "on, rules flushed" => {
            run(&["enable"]);
            simulation.world.borrow_mut().table = None;
        }
        "off, rules left over" => {
            run(&["enable"]);
            simulation.world.borrow_mut().config[0] = 0;
        }
        other => panic!("{other}"),
    }
    let mut world = std::mem::take(&mut *simulation.world.borrow_mut());
    world.log.clear();
    world.history.clear();
    world
}

const STATES: [&str; 5] =
    ["off", "on", "off with a mark", "on, rules flushed", "off, rules left over"];
const COMMANDS: [&[&str]; 6] = [
    &["enable"],
    &["enable", "--mark", "0x1/0x3"],
    &["enable", "--mark", "0/0"],
    &["set", "mark", "0x1/0x3"],
    &["set", "mark", "0x1/0x3", "tcp-timeout", "1s"],
    &["disable"],
];

#[test]
fn the_fast_path_is_never_on_without_its_rules_and_failures_leave_no_trace() {
    let mut failures = 0;
    for state in STATES {
        for command in COMMANDS {
            for refuse_config in 0..4 {
                for refuse_batch in 0..3 {
                    let mut world = prepared(state);
                    let before = world.state();
                    (world.refuse_config, world.refuse_batch) = (refuse_config, refuse_batch);
                    let simulation = Simulation::new(world);
                    let outcome = tool(&simulation, command, "");
                    let world = simulation.world.borrow();
                    let after = world.state();
                    let what = format!(
                        "{state}; {command:?} with refusals {refuse_config} {refuse_batch}: \
                         {before:?} {:?} {after:?} {outcome:?}",
                        world.log
                    );

                    // The invariant, unless it did not hold before and nothing happened yet.
                    for (on, rules, mark) in &world.history {
                        let was_broken = before.0 && before.1 != Some(before.2);
                        let unchanged = (*on, *rules, *mark) == before;
                        assert!(
                            !on || *rules == Some(*mark) || (was_broken && unchanged),
                            "{what}"
                        );
                    }
                    let going_back_failed = outcome.stderr.contains("going back");
                    match (outcome.status, command[0]) {
                        (0, "disable") => assert_eq!((after.0, after.1), (false, None), "{what}"),
                        (0, "enable") => {
                            assert!(after.0 && after.1 == Some(after.2), "{what}");
                        }
                        (0, _) => assert_eq!((after.0, after.2), (before.0, OTHER), "{what}"),
                        // Stopped halfway back: off, which is safe, and told.
                        (1, _) if going_back_failed => assert!(!after.0, "{what}"),
                        // The module is off, and removing the rules failed.
                        (1, "disable") => assert!(!after.0 || after == before, "{what}"),
                        (1, _) => {
                            failures += 1;
                            assert_eq!((after.0, after.2), (before.0, before.2), "{what}");
                            // As it was; or put right.
                            let put_right = after.1 == after.0.then_some(after.2);
                            assert!(after.1 == before.1 || put_right, "{what}");
                        }
                        other => panic!("{other:?}: {what}"),
                    }
                }
            }
        }
    }
    assert!(failures > 30, "only {failures} failures were tried");
}

#[test]
fn what_becomes_of_ipsec_and_its_rules_change_together_or_not_at_all() {
    let mut failures = 0;
    let settings = ["", "mark 0x1/0x3", "tcp-timeout 1s", "sample-interval 0ms", "table-size 1"];
    for state in ["on", "on, accelerating"] {
        for mode in ["exclude", "accelerate"] {
            for setting in settings {
                for (refuse_config, refuse_batch) in [(0, 0), (1, 0), (2, 0), (0, 1)] {
                    let mut world = prepared(state);
                    let before = (world.config, world.rules_accelerate(), world.state().1);
                    (world.refuse_config, world.refuse_batch) = (refuse_config, refuse_batch);
                    let simulation = Simulation::new(world);
                    let command = format!("set ipsec {mode} {setting}");
                    let words: Vec<&str> = command.split_whitespace().collect();
                    let outcome = tool(&simulation, &words, "");
                    let world = simulation.world.borrow();
                    let after = (world.config, world.rules_accelerate(), world.state().1);
                    let what = format!(
                        "{state}; {command} with refusals {refuse_config} {refuse_batch}: {:?} {outcome:?}",
                        world.log
                    );
                    // A value that is refused, and then the way back as well.
                    let is_refused = setting.ends_with("0ms") || setting.ends_with("size 1");
                    if is_refused && refuse_config == 2 && outcome.stderr.contains("going back") {
                        continue;
                    }
                    if outcome.status == 0 {
                        assert_eq!(world.config[7], u32::from(mode == "accelerate"), "{what}");
                    } else {
                        failures += 1;
                        assert!(!outcome.stderr.contains("going back"), "{what}");
                        assert_eq!(after, before, "{what}");
                    }
                    assert_eq!(world.rules_accelerate(), Some(world.config[7] == 1), "{what}");
                }
            }
        }
    }
    assert!(failures > 30, "only {failures} failures were tried");
}

#[test]
fn what_is_enabled_is_enabled_again_with_its_mark() {
    let simulation = Simulation::new(prepared("off with a mark"));
    assert_eq!(tool(&simulation, &["enable"], "").status, 0);
    assert_eq!(simulation.world.borrow().state(), (true, Some(OTHER), OTHER));
    let first = tool(&simulation, &["list", "ruleset"], "").stdout;
    assert_eq!(tool(&simulation, &["enable"], "").status, 0);
    assert_eq!(tool(&simulation, &["list", "ruleset"], "").stdout, first);
    assert_eq!(simulation.world.borrow().config, config(true, OTHER));
}

#[test]
fn lost_answers_are_no_failure() {
    // The transaction was applied, and its acknowledgements did not fit.
    let simulation = Simulation::new(World { lose_acks: true, ..World::default() });
    assert_eq!(tool(&simulation, &["enable"], "").stderr, "");
    assert_eq!(simulation.world.borrow().state(), (true, Some(MARK), MARK));
    assert_eq!(tool(&simulation, &["disable"], "").stderr, "");
    assert_eq!(simulation.world.borrow().state().1, None);
}

#[test]
fn the_listing_restores_the_configuration() {
    let simulation = Simulation::new(prepared("off with a mark"));
    for command in ["enable", "disable"] {
        assert_eq!(tool(&simulation, &[command, ";", "set", "tcp-timeout", "1m"], "").status, 0);
        let listing = tool(&simulation, &["list", "config"], "").stdout;
        let fresh = Simulation::new(World::default());
        let outcome = tool(&fresh, &["-f", "-"], &listing);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
        assert_eq!(fresh.world.borrow().config, simulation.world.borrow().config);
        assert_eq!(tool(&fresh, &["list", "config"], "").stdout, listing);
    }
}

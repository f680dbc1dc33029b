// SPDX-License-Identifier: GPL-2.0-only

//! Tests that need a network namespace to themselves.

use std::io::Write;
use std::process::Command;

const INSIDE: &str = "FASTTRACK_TEST_IN_NETNS";

/// Runs `body` in a private network namespace, by starting this test again inside one. Without the
/// right to make one it says so and passes.
pub fn in_private_netns(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    // Root needs no user namespace, and a container may allow the one but not the other.
    for options in ["-n", "-Urn"] {
        let possible = Command::new("unshare").args([options, "true"]).output();
        if !possible.is_ok_and(|output| output.status.success()) {
            continue;
        }
        let output = Command::new("unshare")
            .arg(options)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success(), "inside the network namespace:\n{text}");
        assert!(text.contains("1 passed"), "test {test} does not exist:\n{text}");
        if let Some(reason) = text.lines().find(|line| line.starts_with("SKIPPED")) {
            say(reason);
        }
        return;
    }
    skip(test, "unshare cannot make a network namespace here");
}

/// Past the test harness, which shows what tests print only if they fail.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Says loudly that a test did not run.
pub fn skip(test: &str, reason: &str) {
    say(&format!("SKIPPED {test}: {reason}"));
}

/// Runs a program to its end; its output if it succeeded, what it said if not.
pub fn program(name: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(name).args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(format!("{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! The program itself: statuses, rights, pipes, terminals, network namespaces.
//!
//! There is no fasttrack module where this runs; should there be one, the tests about its absence
//! say so and pass.

#![allow(clippy::pedantic, reason = "tests may be blunt")]

mod support;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use support::netns::in_private_netns;
use support::netns::program;
use support::netns::skip;

const NOBODY: u32 = 65534;

fn fasttrack() -> Command {
    Command::new(env!("CARGO_BIN_EXE_fasttrack"))
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    finished(&fasttrack().args(arguments).output().unwrap())
}

fn finished(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn module_is_loaded() -> bool {
    std::path::Path::new("/sys/module/fasttrack").exists()
}

#[test]
fn the_statuses_are_those_of_the_manual() {
    assert_eq!(run(&["-V"]).0, Some(0));
    assert_eq!(run(&["-c", "enable"]), (Some(0), String::new(), String::new()));
    assert_eq!(run(&[]).0, Some(2));
    assert_eq!(run(&["list", "nonsense"]).0, Some(2));
    assert_eq!(run(&["-f", "/nonexistent"]).0, Some(1));
}

#[test]
fn a_module_that_is_not_loaded_is_said_plainly() {
    const TEST: &str = "a_module_that_is_not_loaded_is_said_plainly";
    if module_is_loaded() {
        return skip(TEST, "the module is loaded here");
    }
    let wanted = "Error: the fasttrack module is not loaded: try modprobe fasttrack\n";
    for arguments in [
        &["list", "flows"][..],
        &["-j", "list", "flows"],
        &["list", "config"],
        &["list", "stats"],
        &["set", "tcp-timeout", "1s"],
        &["flush", "flows"],
        &["delete", "flow", "id", "1"],
        &["monitor"],
        &["enable"],
    ] {
        assert_eq!(run(arguments), (Some(3), String::new(), wanted.to_owned()), "{arguments:?}");
    }
}

/// The program where a user without rights can read it.
fn copy_for_everybody() -> PathBuf {
    let path = std::env::temp_dir().join(format!("fasttrack-test-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_fasttrack"), &path).unwrap();
    path
}

#[test]
fn without_rights_it_says_so() {
    const TEST: &str = "without_rights_it_says_so";
    in_private_netns(TEST, || {
        let path = copy_for_everybody();
        let mut command = Command::new(&path);
        // In a user namespace of one user there is nobody else to become; dropping all
        // capabilities comes to the same.
        let become_nobody = Command::new("true").uid(NOBODY).gid(NOBODY).status();
        let output = if become_nobody.is_ok_and(|status| status.success()) {
            command.arg("disable").uid(NOBODY).gid(NOBODY).output()
        } else {
            Command::new("setpriv")
                .args(["--bounding-set=-all", "--inh-caps=-all"])
                .arg(&path)
                .arg("disable")
                .output()
        };
        std::fs::remove_file(&path).unwrap();
        let Ok(output) = output else { return skip(TEST, "cannot give up rights here") };
        let (status, stdout, stderr) = finished(&output);
        assert_eq!((status, stdout.as_str()), (Some(3), ""), "{stderr}");
        assert!(stderr.starts_with("Error: Operation not permitted"), "{stderr}");
    });
}

#[test]
fn without_the_module_only_the_table_goes() {
    const TEST: &str = "without_the_module_only_the_table_goes";
    in_private_netns(TEST, || {
        let table = "add table inet fasttrack; add table inet other";
        if let Err(reason) = program("nft", &[table]) {
            return skip(TEST, &reason);
        }
        for _ in 0..2 {
            assert_eq!(run(&["disable"]), (Some(0), String::new(), String::new()));
            assert_eq!(program("nft", &["list", "ruleset"]).unwrap(), "table inet other {\n}\n");
        }
    });
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    // One without a reader from the start, so that the first write fails.
    let (reader, writer) = UnixStream::pair().unwrap();
    drop(reader);
    let output = fasttrack().arg("-h").stdout(OwnedFd::from(writer)).output().unwrap();
    assert_eq!(finished(&output), (Some(0), String::new(), String::new()));
}

#[test]
fn a_full_disk_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = fasttrack().arg("-h").stdout(full).output().unwrap();
    let (status, _, stderr) = finished(&output);
    assert_eq!(status, Some(1));
    assert_eq!(stderr, "Error: cannot write the output: No space left on device\n");
}

#[test]
fn commands_come_from_standard_input_too() {
    let mut child = fasttrack()
        .args(["-c", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"list flows\nlist folws\n").unwrap();
    let (status, stdout, stderr) = finished(&child.wait_with_output().unwrap());
    assert_eq!((status, stdout.as_str()), (Some(2), ""));
    assert!(stderr.starts_with("/dev/stdin:2:6-10: Error: "), "{stderr}");
}

#[test]
fn what_is_not_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let word = std::ffi::OsStr::from_bytes(b"list \xff");
    let (status, _, stderr) = finished(&fasttrack().arg(word).output().unwrap());
    assert_eq!(status, Some(2));
    assert!(stderr.contains("not UTF-8"), "{stderr}");

    let path = std::env::temp_dir().join(format!("fasttrack-test-{}.ft", std::process::id()));
    std::fs::write(&path, b"list \xff").unwrap();
    let (status, _, stderr) = run(&["-f", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(status, Some(1));
    assert!(stderr.contains("not UTF-8"), "{stderr}");
}

#[test]
fn colour_is_for_terminals_that_want_it() {
    const TEST: &str = "colour_is_for_terminals_that_want_it";
    // `script` provides a terminal.
    let on_terminal = |environment: &str| {
        let command = format!("{environment} {} list x", env!("CARGO_BIN_EXE_fasttrack"));
        program("script", &["-qc", &command, "/dev/null"])
    };
    match on_terminal("env -u NO_COLOR") {
        Ok(text) => assert!(text.contains("\x1b[1;31mError:\x1b[0m"), "{text:?}"),
        Err(reason) => return skip(TEST, &reason),
    }
    assert!(!on_terminal("NO_COLOR=1").unwrap().contains('\x1b'));
    assert!(!run(&["list", "x"]).2.contains('\x1b'));
}

#[test]
fn it_works_in_a_named_network_namespace() {
    const TEST: &str = "it_works_in_a_named_network_namespace";
    let name = format!("fasttrack-test-{}", std::process::id());
    if let Err(reason) = program("ip", &["netns", "add", &name]) {
        return skip(TEST, &reason);
    }
    let inside =
        |arguments: &[&str]| program("ip", &[&["netns", "exec", &name, "nft"], arguments].concat());
    let result = inside(&["add table inet fasttrack"]).map(|_| {
        let status = run(&["-N", &name, "disable"]);
        (status, inside(&["list", "ruleset"]))
    });
    program("ip", &["netns", "delete", &name]).unwrap();
    match result {
        Ok((status, ruleset)) => {
            assert_eq!(status, (Some(0), String::new(), String::new()));
            assert_eq!(ruleset, Ok(String::new()));
        }
        Err(reason) => return skip(TEST, &reason),
    }
    let gone = run(&["-N", &name, "disable"]);
    assert_eq!(gone.0, Some(1));
    assert_eq!(gone.2, format!("Error: there is no network namespace ‘{name}’\n"));
}

#[test]
fn without_rights_no_namespace_is_entered() {
    const TEST: &str = "without_rights_no_namespace_is_entered";
    let name = format!("fasttrack-test-r-{}", std::process::id());
    if let Err(reason) = program("ip", &["netns", "add", &name]) {
        return skip(TEST, &reason);
    }
    let path = std::env::temp_dir().join(format!("fasttrack-test-r-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_fasttrack"), &path).unwrap();
    let output =
        Command::new(&path).args(["-N", &name, "disable"]).uid(NOBODY).gid(NOBODY).output();
    std::fs::remove_file(&path).unwrap();
    program("ip", &["netns", "delete", &name]).unwrap();
    let (status, _, stderr) = finished(&output.unwrap());
    assert_eq!(status, Some(3), "{stderr}");
    assert!(stderr.contains("Operation not permitted"), "{stderr}");
}

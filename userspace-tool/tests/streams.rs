// SPDX-License-Identifier: GPL-2.0-only

//! When output is written, and what becomes of output that cannot be.

#![allow(clippy::pedantic, reason = "tests may be blunt")]

mod support;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::io::Write;
use std::rc::Rc;

use fasttrack_tool::run::Streams;
use fasttrack_tool::run::run;
use fasttrack_tool::wire::command;
use support::Simulation;
use support::World;
use support::finish;
use support::flows;
use support::genl;

/// Keeps what was written between flushes apart, and fails when it is told to.
#[derive(Default)]
struct Output {
    flushed: Rc<RefCell<Vec<String>>>,
    pending: Vec<u8>,
    fail_after: Option<usize>,
    error: i32,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(left) = &mut self.fail_after {
            if *left == 0 {
                return Err(io::Error::from_raw_os_error(self.error));
            }
            *left -= 1;
        }
        self.pending.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            let text = String::from_utf8(std::mem::take(&mut self.pending)).unwrap();
            self.flushed.borrow_mut().push(text);
        }
        Ok(())
    }
}

fn tool(world: World, arguments: &[&str], mut stdout: Output) -> (u8, Vec<String>, String) {
    let flushed = stdout.flushed.clone();
    let mut stderr = Vec::new();
    let mut streams = Streams {
        stdin: &mut io::empty(),
        stdout: &mut stdout,
        stderr: &mut stderr,
        colour: false,
    };
    let system = Simulation::new(world);
    let status = run(arguments.iter().map(OsString::from), &system, &mut streams);
    let flushed = flushed.borrow().clone();
    (status, flushed, String::from_utf8(stderr).unwrap())
}

fn events() -> World {
    let event = |flow: &support::Flow| Ok(finish(flow.encode(genl(command::FLOW_NEW_NTF)), 0));
    World { events: flows().iter().map(event).collect(), ..World::default() }
}

#[test]
fn every_event_is_flushed() {
    for arguments in [&["monitor"][..], &["-j", "monitor"]] {
        let (_, flushed, _) = tool(events(), arguments, Output::default());
        assert_eq!(flushed.len(), flows().len());
        assert!(flushed.iter().all(|text| text.matches('\n').count() == 1), "{flushed:?}");
    }
}

#[test]
fn a_monitor_ends_quietly_when_its_reader_leaves() {
    let output = Output { fail_after: Some(1), error: libc::EPIPE, ..Output::default() };
    let (status, flushed, stderr) = tool(events(), &["-j", "monitor"], output);
    assert_eq!((status, stderr.as_str()), (0, ""));
    assert!(flushed.len() <= 1);
}

#[test]
fn a_listing_ends_quietly_when_its_reader_leaves() {
    for arguments in [&["list", "flows"][..], &["-j", "list", "flows"]] {
        let world = World { flows: flows(), ..World::default() };
        let output = Output { fail_after: Some(1), error: libc::EPIPE, ..Output::default() };
        let (status, _, stderr) = tool(world, arguments, output);
        assert_eq!((status, stderr.as_str()), (0, ""));
    }
}

#[test]
fn a_full_disk_is_told() {
    let world = World { flows: flows(), ..World::default() };
    let output = Output { fail_after: Some(2), error: libc::ENOSPC, ..Output::default() };
    let (status, _, stderr) = tool(world, &["list", "flows"], output);
    assert_eq!(status, 1);
    assert_eq!(stderr, "Error: cannot write the output: No space left on device\n");
}

#[test]
fn what_came_before_an_error_is_shown_before_it() {
    let (status, flushed, stderr) =
        tool(World::default(), &["list", "stats;", "delete", "flow", "id", "1"], Output::default());
    assert_eq!(status, 1);
    assert!(flushed[0].starts_with("flows 0 of"), "{flushed:?}");
    assert!(stderr.starts_with("Error: there is no flow"), "{stderr}");
}

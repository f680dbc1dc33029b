// SPDX-License-Identifier: GPL-2.0-only

//! The `fasttrack` command; see fasttrack(8) and the library crate.

use std::io;
use std::io::IsTerminal;

use fasttrack_tool::run::Streams;
use fasttrack_tool::run::run;
use fasttrack_tool::session::Host;

fn main() {
    let stderr = io::stderr();
    let colour =
        stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // Buffered: a line at a time would be a system call a flow.
    let mut stdout = io::BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    let mut streams = Streams {
        stdin: &mut io::stdin().lock(),
        stdout: &mut stdout,
        stderr: &mut stderr.lock(),
        colour,
    };
    let status = run(std::env::args_os().skip(1), &Host, &mut streams);
    // `run` has flushed what there was. Dropping the writer would write again what could not be
    // written; ending here does not.
    std::process::exit(status.into())
}

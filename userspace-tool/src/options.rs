// SPDX-License-Identifier: GPL-2.0-only

//! Options of the command line, in front of the command.

use std::ffi::OsString;

use lexopt::Arg;

use crate::netns;
use crate::print::Style;

/// What `-h` prints.
pub const HELP: &str = "\
Usage: fasttrack [OPTIONS] COMMAND [; COMMAND ...]
       fasttrack [OPTIONS] -f FILE

Commands:
  enable [--mark VALUE/MASK]     install the rules and switch the fast path on
  disable                        switch the fast path off and remove the rules
  set KEY VALUE ...              change mark, tcp-timeout, udp-timeout,
                                 sample-interval, table-size,
                                 learn-after or ipsec
  list flows [FILTER]            flows on the fast path
  list config | stats | ruleset  configuration, counters, rules in nf_tables
  flush flows                    forget every flow
  delete flow id NUMBER          forget one flow
  monitor [flows [FILTER] | config]
                                 show events as they happen

Filter: [tcp | udp] [original | reply] [saddr ADDRESS[/LENGTH]] [sport PORT[-PORT]]
        [daddr ADDRESS[/LENGTH]] [dport PORT[-PORT]] [iifname NAME] [oifname NAME]
        [state learning | fast | sampling] [mark VALUE[/MASK]]
        [ipsec exists | missing | decrypted | encrypted] ...

Options:
  -a, --handle        show numbers of flows and rules, and what is 0
  -c, --check         check the commands and do nothing
  -f, --file FILE     read commands from a file, - is standard input
  -j, --json          print JSON
  -n, --numeric       print numbers, no names of devices and priorities
  -N, --netns NAME    work in a network namespace of `ip netns`
  -h, --help          print this
  -V, --version       print the version
";

/// What no arguments at all print.
pub const USAGE: &str = "\
Usage: fasttrack [OPTIONS] COMMAND [; COMMAND ...]
       fasttrack [OPTIONS] -f FILE
Try 'fasttrack --help' or 'man fasttrack'.
";

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Print the help.
    Help,
    /// Print the version.
    Version,
    /// Carry out commands.
    Run(Options),
}

/// Where the commands are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// On the command line: the words with blanks between them.
    Words(String),
    /// In a file; `-` is standard input.
    File(OsString),
}

/// The options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Print JSON.
    pub json: bool,
    /// How much to print.
    pub style: Style,
    /// Do nothing.
    pub check: bool,
    /// Network namespace.
    pub netns: Option<String>,
    /// The commands.
    pub script: Script,
}

/// Reads the arguments behind the program's name. None: there are no arguments.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Request>, String> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if arguments.is_empty() {
        return Ok(None);
    }
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut file = None;
    let mut netns = None;
    let mut words: Vec<String> = Vec::new();
    let mut style = Style::default();
    let (mut json, mut check) = (false, false);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Arg::Short('a') | Arg::Long("handle") => style.all = true,
            Arg::Short('c') | Arg::Long("check") => check = true,
            Arg::Short('j') | Arg::Long("json") => json = true,
            Arg::Short('n') | Arg::Long("numeric") => style.numeric = true,
            Arg::Short('f') | Arg::Long("file") => {
                let value = parser.value().map_err(|error| error.to_string())?;
                if file.replace(value).is_some() {
                    return Err("only one file can be given".to_owned());
                }
            }
            Arg::Short('N') | Arg::Long("netns") => {
                let value = parser.value().map_err(|error| error.to_string())?;
                netns = Some(namespace(value)?);
            }
            Arg::Short('h') | Arg::Long("help") => return Ok(Some(Request::Help)),
            Arg::Short('V') | Arg::Long("version") => return Ok(Some(Request::Version)),
            // From the first word on all is the command, as in nft.
            Arg::Value(word) => {
                let rest = parser.raw_args().map_err(|error| error.to_string())?;
                for word in std::iter::once(word).chain(rest) {
                    let word = word.into_string().map_err(|word| {
                        format!("the command is not UTF-8 text: {}", word.to_string_lossy())
                    })?;
                    words.push(word);
                }
                break;
            }
            _ => return Err(argument.unexpected().to_string()),
        }
    }
    let script = match (file, words.is_empty()) {
        (Some(file), true) => Script::File(file),
        (Some(_), false) => {
            return Err("either a file or a command can be given, not both".to_owned());
        }
        (None, true) => return Err("no command specified".to_owned()),
        (None, false) => Script::Words(words.join(" ")),
    };
    Ok(Some(Request::Run(Options { json, style, check, netns, script })))
}

fn namespace(name: OsString) -> Result<String, String> {
    name.into_string()
        .ok()
        .filter(|name| netns::is_valid_name(name))
        .ok_or_else(|| "the name of a network namespace is one word without a slash".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Options {
        match parse(arguments.iter().map(OsString::from)) {
            Ok(Some(Request::Run(options))) => options,
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    fn error(arguments: &[&str]) -> String {
        parse(arguments.iter().map(OsString::from)).unwrap_err()
    }

    #[test]
    fn options_stand_in_front() {
        let options = run(&["-jan", "-Nblue", "list", "flows"]);
        assert!(
            options.json && options.style == (Style { all: true, numeric: true }) && !options.check
        );
        assert_eq!(options.netns.as_deref(), Some("blue"));
        assert_eq!(options.script, Script::Words("list flows".to_owned()));
        // Behind the command they belong to it, for its grammar to judge.
        let options = run(&["list", "flows", "-j"]);
        assert!(!options.json);
        assert_eq!(options.script, Script::Words("list flows -j".to_owned()));
        assert_eq!(
            run(&["enable", "--mark", "1/1"]).script,
            Script::Words("enable --mark 1/1".to_owned())
        );
    }

    #[test]
    fn long_options_do_as_well() {
        let options = run(&["--json", "--netns=blue", "--check", "--file", "-"]);
        assert!(options.json && options.check);
        assert_eq!(options.script, Script::File("-".into()));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(error(&["-x", "list"]), "invalid option '-x'");
        assert_eq!(error(&["-j"]), "no command specified");
        assert!(error(&["-f", "x", "enable"]).contains("not both"));
        assert!(error(&["-f"]).contains("argument"));
        assert!(error(&["-N", "../1", "enable"]).contains("slash"));
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(parse([]), Ok(None));
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! From arguments to an exit status.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Read;
use std::io::Write;
use std::rc::Rc;

use crate::client;
use crate::client::Change;
use crate::client::Event;
use crate::client::Flow;
use crate::command::Action;
use crate::command::Command;
use crate::command::Settings;
use crate::command::Span;
use crate::command::Subject;
use crate::command::diagnostic::Diagnostic;
use crate::command::diagnostic::Severity;
use crate::command::diagnostic::Source;
use crate::command::filter::Filter;
use crate::command::grammar;
use crate::device::Devices;
use crate::enable;
use crate::nft;
use crate::nl;
use crate::nl::KernelError;
use crate::options;
use crate::options::Options;
use crate::options::Request;
use crate::options::Script;
use crate::print;
use crate::print::Style;
use crate::print::json::Json;
use crate::session::Session;
use crate::session::System;
use crate::wire::config;
use crate::wire::flow;

/// All went well.
pub const OK: u8 = 0;
/// Something could not be done.
pub const ERROR: u8 = 1;
/// The command line or a file was not understood; nothing was done.
pub const USAGE: u8 = 2;
/// The kernel part could not be reached: no module, no netlink, no rights.
pub const UNREACHABLE: u8 = 3;

/// Where the tool reads and writes.
pub struct Streams<'a> {
    /// Commands of `-f -`.
    pub stdin: &'a mut dyn Read,
    /// What was asked for. It is flushed where somebody may be waiting for it.
    pub stdout: &'a mut dyn Write,
    /// What went wrong.
    pub stderr: &'a mut dyn Write,
    /// Mark what went wrong with colour.
    pub colour: bool,
}

/// Runs the tool and returns its exit status.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    system: &dyn System,
    streams: &mut Streams<'_>,
) -> u8 {
    match options::parse(arguments) {
        Ok(None) => {
            let _ = streams.stderr.write_all(options::USAGE.as_bytes());
            USAGE
        }
        Ok(Some(Request::Help)) => print_and_exit(streams, options::HELP),
        Ok(Some(Request::Version)) => {
            print_and_exit(streams, &format!("fasttrack {}\n", env!("CARGO_PKG_VERSION")))
        }
        Ok(Some(Request::Run(options))) => run_script(&options, system, streams),
        Err(message) => {
            report(streams, &Source { name: None, text: String::new() }, &error(message));
            let _ = streams.stderr.write_all(options::USAGE.as_bytes());
            USAGE
        }
    }
}

fn print_and_exit(streams: &mut Streams<'_>, text: &str) -> u8 {
    let written = streams.stdout.write_all(text.as_bytes()).and_then(|()| streams.stdout.flush());
    match written {
        Ok(()) => OK,
        Err(error) => output_failed(streams, &error),
    }
}

fn run_script(options: &Options, system: &dyn System, streams: &mut Streams<'_>) -> u8 {
    let source = match read_script(&options.script, streams.stdin) {
        Ok(source) => source,
        Err(message) => {
            report(streams, &Source { name: None, text: String::new() }, &error(message));
            return ERROR;
        }
    };
    let commands = match grammar::parse(&source.text) {
        Ok(commands) => commands,
        Err(errors) => {
            for error in errors {
                report(streams, &source, &error);
            }
            return USAGE;
        }
    };
    if options.check {
        return OK;
    }
    // The namespace comes before any socket.
    if let Some(name) = &options.netns {
        if let Err(cause) = system.enter_netns(name) {
            let (status, message) = match cause.kind() {
                io::ErrorKind::NotFound => {
                    (ERROR, format!("there is no network namespace ‘{name}’"))
                }
                io::ErrorKind::PermissionDenied => (UNREACHABLE, NO_RIGHTS.to_owned()),
                _ => (ERROR, format!("cannot enter the network namespace ‘{name}’: {cause}")),
            };
            report(streams, &source, &error(message));
            return status;
        }
    }
    let mut runner = Runner {
        session: Session::new(system),
        style: options.style,
        json: options.json,
        source: &source,
        streams,
    };
    let result = runner
        .run_all(join_settings(commands))
        .and_then(|()| runner.streams.stdout.flush().map_err(Stop::Output));
    match result {
        Ok(()) => OK,
        Err(Stop::Output(error)) => output_failed(streams, &error),
        Err(Stop::Failure(failure)) => {
            // What came before the error is shown before it.
            let _ = streams.stdout.flush();
            let Failure { status, message, span } = failure;
            report(streams, &source, &Diagnostic { severity: Severity::Error, message, span });
            status
        }
    }
}

fn read_script(script: &Script, stdin: &mut dyn Read) -> Result<Source, String> {
    let (name, bytes) = match script {
        Script::Words(words) => return Ok(Source { name: None, text: words.clone() }),
        Script::File(path) if path == "-" => {
            let mut bytes = Vec::new();
            ("/dev/stdin".to_owned(), stdin.read_to_end(&mut bytes).map(|_| bytes))
        }
        Script::File(path) => (path.to_string_lossy().into_owned(), fs::read(path)),
    };
    let bytes = bytes.map_err(|error| {
        let reason = error.raw_os_error().map_or(error.to_string(), nl::describe_errno);
        format!("Could not open file \"{name}\": {reason}")
    })?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { name: Some(name), text }),
        Err(_) => Err(format!("\"{name}\" is not UTF-8 text")),
    }
}

/// Makes one command of `set` commands that follow each other: what is set together takes effect
/// together, or not at all.
fn join_settings(commands: Vec<Command>) -> Vec<Command> {
    let mut joined: Vec<Command> = Vec::new();
    for command in commands {
        if let (Action::Set(later), Some(Command { action: Action::Set(earlier), span })) =
            (&command.action, joined.last_mut())
        {
            earlier.extend(later.clone());
            span.end = command.span.end;
        } else {
            joined.push(command);
        }
    }
    joined
}

fn error(message: impl Into<String>) -> Diagnostic {
    Diagnostic { severity: Severity::Error, message: message.into(), span: None }
}

fn report(streams: &mut Streams<'_>, source: &Source, diagnostic: &Diagnostic) {
    let text = diagnostic.render(source, streams.colour);
    // There is nobody left to tell about an error that cannot be told.
    let _ = streams.stderr.write_all(text.as_bytes());
}

fn output_failed(streams: &mut Streams<'_>, cause: &io::Error) -> u8 {
    // The reader has seen enough, as in `fasttrack list flows | head`.
    if cause.kind() == io::ErrorKind::BrokenPipe {
        return OK;
    }
    let reason = cause.raw_os_error().map_or(cause.to_string(), nl::describe_errno);
    let source = Source { name: None, text: String::new() };
    report(streams, &source, &error(format!("cannot write the output: {reason}")));
    ERROR
}

/// Why running ended early.
enum Stop {
    /// Nobody reads, or there is no room.
    Output(io::Error),
    /// A command failed.
    Failure(Failure),
}

/// A command's failure.
struct Failure {
    status: u8,
    message: String,
    span: Option<Span>,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

const NO_RIGHTS: &str = "Operation not permitted (you must be root, or have CAP_NET_ADMIN in the \
                         user namespace of the network namespace)";

/// Translates a failure. `span` is the whole command, `place` finds the word for an attribute.
fn failure(
    status: u8,
    message: String,
    refusal: Option<&KernelError>,
    span: Span,
    place: &dyn Fn(u16) -> Option<Span>,
) -> Failure {
    let Some(refusal) = refusal else { return Failure { status, message, span: None } };
    if matches!(refusal.errno, libc::EPERM | libc::EACCES) {
        // The kernel's own words are kept, if it has any.
        let message = refusal.message.as_ref().map_or(NO_RIGHTS.to_owned(), |_| message);
        return Failure { status: UNREACHABLE, message, span: None };
    }
    let place = refusal.attribute.and_then(place);
    Failure { status: ERROR, message, span: Some(place.unwrap_or(span)) }
}

fn netlink_status(error: &nl::Error) -> u8 {
    match error {
        nl::Error::Open(_) => UNREACHABLE,
        _ => ERROR,
    }
}

fn module_failure(
    error: &client::Error,
    span: Span,
    place: &dyn Fn(u16) -> Option<Span>,
) -> Failure {
    let status = match error {
        client::Error::NotLoaded => UNREACHABLE,
        client::Error::NoEvents => ERROR,
        client::Error::Netlink(error) => netlink_status(error),
    };
    failure(status, error.to_string(), error.refusal(), span, place)
}

fn rules_failure(error: &nft::Error, span: Span) -> Failure {
    let (status, refusal) = match error {
        nft::Error::Netlink(nl::Error::Kernel(refusal))
        | nft::Error::Refused { error: refusal, .. } => (ERROR, Some(refusal)),
        nft::Error::Netlink(error) => (netlink_status(error), None),
        nft::Error::Unavailable => (UNREACHABLE, None),
        nft::Error::Expression(_) | nft::Error::NotApplied => (ERROR, None),
    };
    failure(status, error.to_string(), refusal.map(|error| &**error), span, &|_| None)
}

fn enable_failure(
    error: &enable::Error,
    span: Span,
    place: &dyn Fn(u16) -> Option<Span>,
) -> Failure {
    match error {
        enable::Error::Module(error) => module_failure(error, span, place),
        enable::Error::Rules(error) => rules_failure(error, span),
        enable::Error::Torn { cause, rollback } => {
            let mut failure = enable_failure(cause, span.clone(), place);
            let rollback = enable_failure(rollback, span, &|_| None);
            failure.message = format!(
                "{}; going back to what was before failed too: {}",
                failure.message, rollback.message
            );
            failure
        }
    }
}

fn nowhere(_: u16) -> Option<Span> {
    None
}

struct Runner<'a, 'b> {
    session: Session<'a>,
    style: Style,
    json: bool,
    source: &'a Source,
    streams: &'a mut Streams<'b>,
}

impl Runner<'_, '_> {
    fn run_all(&mut self, commands: Vec<Command>) -> Result<(), Stop> {
        commands.into_iter().try_for_each(|command| self.run(command))
    }

    fn run(&mut self, Command { action, span }: Command) -> Result<(), Stop> {
        match action {
            Action::Enable { mark } => {
                let change = Change { mark: mark.as_ref().map(|m| m.value), ..Change::default() };
                let place = |attribute| match attribute {
                    config::MARK_VALUE | config::MARK_MASK => mark.as_ref().map(|m| m.span.clone()),
                    _ => None,
                };
                enable::enable(&mut self.session, change)
                    .map_err(|error| Stop::Failure(enable_failure(&error, span, &place)))
            }
            Action::Disable => enable::disable(&mut self.session)
                .map_err(|error| Stop::Failure(enable_failure(&error, span, &nowhere))),
            Action::Set(settings) => self.set(&settings, span),
            Action::ListFlows(filter) => self.list_flows(&filter, span),
            Action::ListConfig => {
                let config = self.ask(span, client::Client::config)?;
                self.print(|| print::config_text(&config), || vec![print::config_json(&config)])
            }
            Action::ListStats => {
                let stats = self.ask(span, client::Client::stats)?;
                let style = self.style;
                self.print(|| print::stats_text(&stats, style), || vec![print::stats_json(&stats)])
            }
            Action::ListRuleset => self.list_ruleset(span),
            Action::FlushFlows => self.ask(span, |client| client.flush(None)),
            Action::DeleteFlow { id } => {
                let place = |attribute| (attribute == flow::ID).then_some(id.span.clone());
                let result = self.session.client().and_then(|client| client.flush(Some(id.value)));
                result.map_err(|error| {
                    let missing = error.refusal().is_some_and(|refusal| {
                        refusal.errno == libc::ENOENT && refusal.message.is_none()
                    });
                    let mut failure = module_failure(&error, id.span.clone(), &place);
                    if missing {
                        "there is no flow with this number".clone_into(&mut failure.message);
                    }
                    Stop::Failure(failure)
                })
            }
            Action::Monitor(subject) => self.monitor(&subject, span),
        }
    }

    fn ask<T>(
        &mut self,
        span: Span,
        ask: impl FnOnce(&mut client::Client) -> Result<T, client::Error>,
    ) -> Result<T, Stop> {
        self.session
            .client()
            .and_then(ask)
            .map_err(|error| Stop::Failure(module_failure(&error, span, &nowhere)))
    }

    fn set(&mut self, settings: &Settings, span: Span) -> Result<(), Stop> {
        enable::set(&mut self.session, settings.change).map_err(|error| {
            let place = |attribute| settings.place(attribute);
            Stop::Failure(enable_failure(&error, span, &place))
        })
    }

    /// Prints text, or the objects as one JSON document.
    fn print(
        &mut self,
        text: impl FnOnce() -> String,
        objects: impl FnOnce() -> Vec<Json>,
    ) -> Result<(), Stop> {
        let mut listing = Listing::start(self.streams.stdout, self.json)?;
        listing.add(text, objects)?;
        Ok(listing.finish()?)
    }

    fn list_flows(&mut self, filter: &Filter, span: Span) -> Result<(), Stop> {
        // A filter asks for names, even where none are printed.
        let mut devices = self.session.devices(self.style.numeric && !filter.needs_names());
        let style = self.style;
        let fail =
            |error: &client::Error| Stop::Failure(module_failure(error, span.clone(), &nowhere));
        let client = self.session.client().map_err(|error| fail(&error))?;
        let mut listing = Listing::start(self.streams.stdout, self.json)?;
        let mut is_partial = false;
        for flow in client.flows() {
            let flow = match flow {
                Ok(flow) => flow,
                Err(client::Error::Netlink(nl::Error::Interrupted)) => {
                    is_partial = true;
                    break;
                }
                Err(error) => return Err(fail(&error)),
            };
            let names = Names::of(&flow, &mut devices);
            if !filter.matches(&flow, names.input(), names.output()) {
                continue;
            }
            let names = if style.numeric { Names::default() } else { names };
            let (input, output) = (names.input(), names.output());
            listing.add(
                || print::flow_text(&flow, input, output, style) + "\n",
                || vec![print::flow_json(&flow, input, output)],
            )?;
        }
        listing.finish()?;
        if is_partial {
            self.streams.stdout.flush()?;
            let warning = Diagnostic {
                severity: Severity::Warning,
                message: "the flows changed while they were listed; some may be missing".to_owned(),
                span: None,
            };
            report(self.streams, self.source, &warning);
        }
        Ok(())
    }

    fn list_ruleset(&mut self, span: Span) -> Result<(), Stop> {
        let rules_failed = |error: &nft::Error| Stop::Failure(rules_failure(error, span.clone()));
        let mut nft =
            self.session.nft().map_err(|error| rules_failed(&nft::Error::Netlink(error)))?;
        if let Some(table) = nft.read().map_err(|error| rules_failed(&error))? {
            let style = self.style;
            return self
                .print(|| print::ruleset_text(&table, style), || print::ruleset_json(&table));
        }
        let is_enabled = match self.session.loaded_client() {
            Ok(Some(client)) => client.config().map(|config| config.enabled),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        }
        .map_err(|error| Stop::Failure(module_failure(&error, span, &nowhere)))?;
        if is_enabled {
            // Whoever flushed the rule set, Debian's nftables.service for one, took our table too.
            return Err(Stop::Failure(Failure {
                status: ERROR,
                message: "the fast path is on, but its table inet fasttrack is gone: IPsec \
                          connections get no mark, and source NAT is not kept away from them; \
                          'fasttrack enable' puts the table back"
                    .to_owned(),
                span: None,
            }));
        }
        self.print(String::new, Vec::new)
    }

    fn monitor(&mut self, subject: &Subject, span: Span) -> Result<(), Stop> {
        let fail =
            |error: client::Error| Stop::Failure(module_failure(&error, span.clone(), &nowhere));
        let mut events = self.session.events().map_err(fail)?;
        let everything = Filter::default();
        let (filter, wants_flows, wants_config) = match subject {
            Subject::Everything => (&everything, true, true),
            Subject::Flows(filter) => (filter, true, false),
            Subject::Config => (&everything, false, true),
        };
        let mut devices = self.session.devices(self.style.numeric && !filter.needs_names());
        loop {
            let event = events.next_event().map_err(fail)?;
            let mut names = Names::default();
            match &event {
                Event::New(flow) | Event::Gone(flow) => {
                    names = Names::of(flow, &mut devices);
                    if !wants_flows || !filter.matches(flow, names.input(), names.output()) {
                        continue;
                    }
                    if self.style.numeric {
                        names = Names::default();
                    }
                }
                Event::Config(_) if !wants_config => continue,
                Event::Config(_) | Event::Lost => {}
            }
            let stdout = &mut self.streams.stdout;
            if self.json {
                writeln!(stdout, "{}", print::event_json(&event, names.input(), names.output()))?;
            } else {
                let text = print::event_text(&event, names.input(), names.output(), self.style);
                writeln!(stdout, "{text}")?;
            }
            // Each event by itself: whoever reads this waits for it.
            stdout.flush()?;
        }
    }
}

/// The names of a flow's devices.
#[derive(Default)]
struct Names {
    input: Option<Rc<str>>,
    output: Option<Rc<str>>,
}

impl Names {
    fn of(flow: &Flow, devices: &mut Devices) -> Self {
        let mut name = |index: Option<u32>| index.and_then(|index| devices.name(index));
        Self { input: name(flow.in_ifindex), output: name(flow.out_ifindex) }
    }

    fn input(&self) -> Option<&str> {
        self.input.as_deref()
    }

    fn output(&self) -> Option<&str> {
        self.output.as_deref()
    }
}

/// What is printed entry by entry, while the entries arrive: text, or one JSON document.
struct Listing<'a> {
    out: &'a mut dyn Write,
    json: bool,
}

impl<'a> Listing<'a> {
    fn start(out: &'a mut dyn Write, json: bool) -> io::Result<Self> {
        if json {
            write!(out, "{{\"fasttrack\": [{}", print::metainfo())?;
        }
        Ok(Self { out, json })
    }

    fn add(
        &mut self,
        text: impl FnOnce() -> String,
        objects: impl FnOnce() -> Vec<Json>,
    ) -> io::Result<()> {
        if self.json {
            objects().iter().try_for_each(|object| write!(self.out, ", {object}"))
        } else {
            self.out.write_all(text().as_bytes())
        }
    }

    fn finish(self) -> io::Result<()> {
        if self.json { self.out.write_all(b"]}\n") } else { Ok(()) }
    }
}

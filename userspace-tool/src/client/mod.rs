// SPDX-License-Identifier: GPL-2.0-only

//! The fasttrack module, typed.
//!
//! Attributes that this tool does not know are skipped, and values of enumerations that it does not
//! know stay numbers, so that a newer module can be talked to. What does not follow the
//! specification is an error that names the attribute.

mod config;
mod events;
mod flow;
mod stats;

pub use config::Change;
pub use config::Config;
pub use events::Event;
pub use events::Events;
pub use flow::Flow;
pub use flow::Flows;
pub use flow::Side;
pub use stats::Stats;

use std::fmt;

use crate::genl;
use crate::genl::Family;
use crate::nl;
use crate::nl::Attributes;
use crate::nl::Connection;
use crate::nl::KernelError;
use crate::nl::Malformed;
use crate::nl::Message;
use crate::nl::Request;
use crate::nl::Transport;
use crate::wire;
use crate::wire::AttributeSet;

/// Why the module could not be asked.
#[derive(Debug)]
pub enum Error {
    /// The generic netlink family is not there.
    NotLoaded,
    /// The family lacks the multicast group of the events.
    NoEvents,
    /// The conversation failed.
    Netlink(nl::Error),
}

impl Error {
    /// The kernel's refusal, if that is what it is.
    pub fn refusal(&self) -> Option<&KernelError> {
        match self {
            Self::Netlink(nl::Error::Kernel(error)) => Some(error),
            _ => None,
        }
    }
}

impl From<nl::Error> for Error {
    fn from(error: nl::Error) -> Self {
        Self::Netlink(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLoaded => {
                f.write_str("the fasttrack module is not loaded: try modprobe fasttrack")
            }
            Self::NoEvents => f.write_str("the fasttrack module offers no events"),
            Self::Netlink(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

/// The module in the network namespace of a socket.
pub struct Client {
    connection: Connection,
    family: Family,
}

impl Client {
    /// Finds the module.
    pub fn new(transport: Box<dyn Transport>) -> Result<Self, Error> {
        let mut connection = Connection::new(transport);
        let family = Family::resolve(&mut connection, wire::FAMILY)?.ok_or(Error::NotLoaded)?;
        Ok(Self { connection, family })
    }

    fn message(&self, command: u8) -> Request {
        Request::new(self.family.id, 0, &genl::header(command, wire::VERSION))
    }

    /// The configuration.
    pub fn config(&mut self) -> Result<Config, Error> {
        let request = self.message(wire::command::CONFIG_GET);
        self.ask(request, wire::config::SET, Config::read)
    }

    /// Changes the configuration: all that `change` says, or none of it.
    pub fn set_config(&mut self, change: &Change) -> Result<(), Error> {
        let request = change.write(self.message(wire::command::CONFIG_SET));
        Ok(self.connection.request(request, |_| Ok(()))?)
    }

    /// The counters.
    pub fn stats(&mut self) -> Result<Stats, Error> {
        let request = self.message(wire::command::STATS_GET);
        self.ask(request, wire::stats::SET, Stats::read)
    }

    /// The flows, one after the other as they arrive.
    pub fn flows(&mut self) -> Flows<'_> {
        let request = self.message(wire::command::FLOW_GET);
        Flows::new(&mut self.connection, request)
    }

    /// Drops every flow, or the one with this number.
    pub fn flush(&mut self, id: Option<u64>) -> Result<(), Error> {
        let mut request = self.message(wire::command::FLOW_FLUSH);
        if let Some(id) = id {
            request = request.u64(wire::flow::ID, id);
        }
        Ok(self.connection.request(request, |_| Ok(()))?)
    }

    /// Subscribes to the events, on a transport of their own: they share a socket's queue with
    /// answers, and a burst of them would push answers out.
    pub fn events(&self, mut transport: Box<dyn Transport>) -> Result<Events, Error> {
        let group = self.family.group(wire::EVENTS).ok_or(Error::NoEvents)?;
        transport.join(group).map_err(|error| match error.raw_os_error() {
            Some(errno) => nl::Error::Kernel(Box::new(KernelError::from_errno(errno))),
            None => nl::Error::Io(error),
        })?;
        Ok(Events::new(transport, self.family.id))
    }

    fn ask<T>(
        &mut self,
        request: Request,
        set: AttributeSet,
        read: impl Fn(Attributes<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let mut answer = None;
        self.connection.request(request, |message| {
            answer = Some(decode(&message, set, &read)?);
            Ok(())
        })?;
        answer.ok_or_else(|| nl::Error::Malformed(format!("the answer has no {}", set.name)).into())
    }
}

/// Reads a message of the family. An error names the attribute.
fn decode<T>(
    message: &Message<'_>,
    set: AttributeSet,
    read: impl Fn(Attributes<'_>) -> Result<T, Malformed>,
) -> Result<T, nl::Error> {
    message.split::<{ genl::HEADER }>().and_then(|(_, attributes)| read(attributes)).map_err(
        |malformed| {
            let what = malformed.describe(|number| set.name_of(number));
            nl::Error::Malformed(format!("{}: {what}", set.name))
        },
    )
}

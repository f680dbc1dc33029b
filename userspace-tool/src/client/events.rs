// SPDX-License-Identifier: GPL-2.0-only

//! Notifications.

use std::collections::VecDeque;
use std::io;

use super::Config;
use super::Error;
use super::Flow;
use super::decode;
use crate::genl;
use crate::nl;
use crate::nl::Message;
use crate::nl::Messages;
use crate::nl::Transport;
use crate::nl::Wait;
use crate::wire;
use crate::wire::command;

/// Receive buffer for events. A burst of some ten thousand flows fits; the memory is used only while
/// events wait.
const BUFFER: usize = 32 * 1024 * 1024;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A flow was learned.
    New(Flow),
    /// A flow was dropped.
    Gone(Flow),
    /// The configuration changed; this is the new one.
    Config(Config),
    /// Events came faster than they were read, and some were lost.
    Lost,
}

/// Waits for events, without an end.
pub struct Events {
    transport: Box<dyn Transport>,
    family: u16,
    arrived: VecDeque<Event>,
}

impl Events {
    pub(super) fn new(mut transport: Box<dyn Transport>, family: u16) -> Self {
        // Not NETLINK_NO_ENOBUFS: a gap is to be seen.
        transport.reserve(BUFFER);
        Self { transport, family, arrived: VecDeque::new() }
    }

    /// Waits for the next event.
    pub fn next_event(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.arrived.pop_front() {
                return Ok(event);
            }
            self.receive()?;
        }
    }

    fn receive(&mut self) -> Result<(), nl::Error> {
        let datagram = match self.transport.receive(Wait::Forever) {
            Ok(datagram) => datagram,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.arrived.push_back(Event::Lost);
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(nl::Error::Io(error)),
        };
        for message in Messages::new(datagram) {
            let message = message?;
            if message.kind == self.family {
                self.arrived.extend(read(&message)?);
            }
        }
        Ok(())
    }
}

/// None: a kind of event that this tool does not know.
fn read(message: &Message<'_>) -> Result<Option<Event>, nl::Error> {
    let (header, _) = message.split::<{ genl::HEADER }>()?;
    let flow = || decode(message, wire::flow::SET, Flow::read);
    Ok(match header[0] {
        command::FLOW_NEW_NTF => Some(Event::New(flow()?)),
        command::FLOW_GONE_NTF => Some(Event::Gone(flow()?)),
        command::CONFIG_NTF => {
            Some(Event::Config(decode(message, wire::config::SET, Config::read)?))
        }
        _ => None,
    })
}

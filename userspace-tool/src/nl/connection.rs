// SPDX-License-Identifier: GPL-2.0-only

//! Requests and their answers.

use std::io;
use std::time::Duration;

use super::error::Error;
use super::error::KernelError;
use super::message;
use super::message::Message;
use super::message::Messages;
use super::message::Request;
use super::transport::Transport;
use super::transport::Wait;

/// The kernel answers before the system call that sent the request returns. If it does not, the
/// fault is in the kernel part, and saying so is better than to hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one step of a dump brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpStep {
    /// There is more to come.
    More,
    /// That was all.
    Done {
        /// What is dumped changed meanwhile: entries may be missing or doubled.
        interrupted: bool,
    },
}

/// A conversation with the kernel over one socket: one request after the other.
///
/// Never the socket of a multicast group: notifications would push answers out of its queue. And not
/// with `mnl::cb_run`, which makes one error number of everything that the kernel has to say.
pub struct Connection {
    transport: Box<dyn Transport>,
    sequence: u32,
    interrupted: bool,
}

impl Connection {
    /// A conversation over this transport.
    pub fn new(transport: Box<dyn Transport>) -> Self {
        Self { transport, sequence: 0, interrupted: false }
    }

    /// The transport, for what is not a request: batches.
    pub fn transport(&mut self) -> &mut dyn Transport {
        self.transport.as_mut()
    }

    fn send(&mut self, request: &mut Request) -> Result<u32, Error> {
        // 0 is for notifications.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let port = self.transport.port();
        self.transport.send(&[request.finish(self.sequence, port)]).map_err(Error::Io)?;
        Ok(self.sequence)
    }

    /// Sends a request and calls `answer` with each message that answers it.
    pub fn request(
        &mut self,
        request: Request,
        mut answer: impl FnMut(Message<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut request = request.flags(message::F_ACK);
        let sequence = self.send(&mut request)?;
        loop {
            for message in Messages::new(receive(self.transport.as_mut())?) {
                let message = message?;
                if message.sequence != sequence {
                    // The tail of an answer that somebody stopped reading.
                    continue;
                }
                match message.kind {
                    message::NOOP => {}
                    message::ERROR => {
                        return match KernelError::from_error_message(&message)? {
                            None => Ok(()),
                            Some(error) => Err(Error::Kernel(Box::new(locate(error, &request)))),
                        };
                    }
                    message::DONE => return Ok(()),
                    message::OVERRUN => return Err(Error::Io(overrun())),
                    _ => answer(message)?,
                }
            }
        }
    }

    /// Starts a dump; [`Self::dump_step`] reads it.
    pub fn start_dump(&mut self, request: Request) -> Result<(), Error> {
        self.interrupted = false;
        self.send(&mut request.flags(message::F_DUMP))?;
        Ok(())
    }

    /// Reads the next datagram of a dump and calls `entry` with each of its entries.
    pub fn dump_step(
        &mut self,
        mut entry: impl FnMut(Message<'_>) -> Result<(), Error>,
    ) -> Result<DumpStep, Error> {
        for message in Messages::new(receive(self.transport.as_mut())?) {
            let message = message?;
            if message.sequence != self.sequence {
                continue;
            }
            // The flag is on the first message after the change, wherever that is.
            self.interrupted |= message.flags & message::F_DUMP_INTR != 0;
            let error = match message.kind {
                message::NOOP => continue,
                message::ERROR => KernelError::from_error_message(&message)?,
                message::DONE => KernelError::from_done_message(&message)?,
                message::OVERRUN => return Err(Error::Io(overrun())),
                _ => {
                    entry(message)?;
                    continue;
                }
            };
            return match error {
                None => Ok(DumpStep::Done { interrupted: self.interrupted }),
                Some(error) if error.errno == libc::EINTR => {
                    Ok(DumpStep::Done { interrupted: true })
                }
                Some(error) => Err(Error::Kernel(Box::new(error))),
            };
        }
        Ok(DumpStep::More)
    }
}

fn receive(transport: &mut dyn Transport) -> Result<&[u8], Error> {
    transport.receive(Wait::UpTo(PATIENCE)).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Error::Silent,
        _ => Error::Io(error),
    })
}

fn overrun() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOBUFS)
}

/// Finds the attribute that a refusal means.
fn locate(mut error: KernelError, request: &Request) -> KernelError {
    error.attribute = match (error.offset, error.missing) {
        (Some(offset), _) => request.attribute_at(offset as usize),
        (None, Some(missing)) => u16::try_from(missing).ok(),
        (None, None) => None,
    };
    error
}

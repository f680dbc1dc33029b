// SPDX-License-Identifier: GPL-2.0-only

//! Sending an nf_tables transaction.

use std::io;

use super::MSG_DELTABLE;
use super::MSG_NEWCHAIN;
use super::MSG_NEWRULE;
use super::MSG_NEWTABLE;
use super::NFGENMSG;
use super::message_type;
use super::ruleset;
use crate::nl::Error;
use crate::nl::KernelError;
use crate::nl::Message;
use crate::nl::Messages;
use crate::nl::Transport;
use crate::nl::Wait;
use crate::nl::message;

/// Receive buffer per message: every message is acknowledged, and an acknowledgement occupies a
/// whole socket buffer. With the default of 208 KiB about 200 fit.
const ANSWER: usize = 1024;

/// The kernel's verdict on one message of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Number of the message.
    pub sequence: u32,
    /// What is wrong with it.
    pub error: KernelError,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of it took effect.
    Applied,
    /// None of it did. The kernel checks every message before it gives up, so there may be several
    /// reasons.
    Refused(Vec<Refusal>),
    /// The kernel's answers did not fit into the receive buffer (`ENOBUFS`). That says nothing about
    /// the transaction: usually it was applied.
    Unknown,
}

/// Sends all pages of a transaction in one datagram, and reads what the kernel says to it.
pub fn send(transport: &mut dyn Transport, pages: &[&[u8]]) -> Result<Outcome, Error> {
    let messages = pages.iter().map(|page| Messages::new(page).count()).sum::<usize>();
    transport.reserve(64 * 1024 + messages * ANSWER);
    transport.send(pages).map_err(Error::Io)?;

    // The kernel has answered before the system call returned, so whatever is there is all there
    // will be. Counting the acknowledgements instead would wait for ever: a transaction that is
    // aborted never gets one for its last message, and kernels before 6.10 give none for the first
    // and the last.
    let mut acknowledged = false;
    let mut lost = false;
    let mut refusals = Vec::new();
    loop {
        let datagram = match transport.receive(Wait::No) {
            Ok(datagram) => datagram,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                lost = true;
                continue;
            }
            Err(error) => return Err(Error::Io(error)),
        };
        for message in Messages::new(datagram) {
            let message = message?;
            if message.kind != message::ERROR {
                continue;
            }
            match KernelError::from_error_message(&message)? {
                None => acknowledged = true,
                Some(error) => refusals.push(Refusal { sequence: message.sequence, error }),
            }
        }
    }
    Ok(match (refusals.is_empty(), acknowledged && !lost) {
        (false, _) => Outcome::Refused(refusals),
        (true, true) => Outcome::Applied,
        (true, false) => Outcome::Unknown,
    })
}

/// What a message of a transaction is about, for people.
pub(super) fn describe(message: &Message<'_>) -> Option<String> {
    const NEWTABLE: u16 = message_type(MSG_NEWTABLE);
    const DELTABLE: u16 = message_type(MSG_DELTABLE);
    const NEWCHAIN: u16 = message_type(MSG_NEWCHAIN);
    const NEWRULE: u16 = message_type(MSG_NEWRULE);
    let (_, attributes) = message.split::<NFGENMSG>().ok()?;
    let text = |wanted: u16| {
        attributes.clone().flatten().find(|attribute| attribute.kind == wanted)?.text().ok()
    };
    match message.kind {
        NEWTABLE | DELTABLE => Some(format!("table inet {}", text(ruleset::TABLE_NAME)?)),
        NEWCHAIN => Some(format!("chain {}", text(ruleset::CHAIN_NAME)?)),
        NEWRULE => Some(format!("rule in chain {}", text(ruleset::RULE_CHAIN)?)),
        _ => None,
    }
}

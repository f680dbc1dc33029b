// SPDX-License-Identifier: GPL-2.0-only

//! What moves datagrams to the kernel and back.

use std::io;
use std::time::Duration;

/// The netlink protocols that the tool speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// `NETLINK_GENERIC`: the fasttrack module.
    Generic,
    /// `NETLINK_NETFILTER`: nf_tables.
    Netfilter,
    /// `NETLINK_ROUTE`: names of network devices.
    Route,
}

/// How long to wait for a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: take what is there.
    No,
    /// This long.
    UpTo(Duration),
    /// For ever, as a monitor does.
    Forever,
}

/// Moves datagrams. The real one is [`super::Socket`]; tests put a simulated kernel behind it.
pub trait Transport {
    /// The port number that answers are addressed to.
    fn port(&self) -> u32;

    /// Sends the parts as one datagram.
    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()>;

    /// The next datagram. Fails with [`io::ErrorKind::WouldBlock`] if none comes in time.
    fn receive(&mut self, wait: Wait) -> io::Result<&[u8]>;

    /// Subscribes to a multicast group.
    fn join(&mut self, group: u32) -> io::Result<()>;

    /// Asks for room for this many bytes of datagrams that wait to be received. Best effort: what
    /// follows is correct without, but may end in `ENOBUFS`.
    fn reserve(&mut self, bytes: usize);
}

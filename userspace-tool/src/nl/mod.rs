// SPDX-License-Identifier: GPL-2.0-only

//! Netlink, whatever the family: sockets, messages, attributes, requests and dumps.
//!
//! From the bottom up:
//!
//! * [`sys`] – the system calls that neither the standard library nor `mnl` offers,
//! * [`Transport`] – moves datagrams; a [`Socket`] in the tool, a simulated kernel in the tests,
//! * [`attribute`] and [`message`] – reading what arrived and building what is sent,
//! * [`Connection`] – one request and its answer, or one dump.
//!
//! nf_tables, generic netlink and rtnetlink all go through here.

pub mod attribute;
mod connection;
mod error;
pub mod message;
mod socket;
pub mod sys;
mod transport;

pub use attribute::Attribute;
pub use attribute::Attributes;
pub use attribute::Malformed;
pub use connection::Connection;
pub use connection::DumpStep;
pub use error::Error;
pub use error::KernelError;
pub use error::describe_errno;
pub use message::Message;
pub use message::Messages;
pub use message::Request;
pub use socket::Socket;
pub use transport::Bus;
pub use transport::Transport;
pub use transport::Wait;

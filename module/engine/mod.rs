// SPDX-License-Identifier: GPL-2.0

//! The engine decides.
//!
//! Plain Rust over `core`: no kernel type, no `unsafe`, no allocation, no clock. It is compiled into
//! the module, and as a crate of its own on the host, where it is tested. What it needs from outside
//! (memory, time, randomness, reclamation) is passed in.
//!
//! The files, in the order in which a packet meets them:
//!
//! * [`packet`] reads the headers of a received packet, with [`ip`] and [`transport`], or says why it
//!   can't be fast;
//! * [`key`] and [`index`] find the flow that it belongs to;
//! * [`sender`] says who sent it, where that matters, and [`crossing`] whether a bridge would let it in;
//! * [`validity`] says whether what was learned about the flow still holds;
//! * [`window`] follows TCP's sequence space, for conntrack;
//! * [`rewrite`] changes the packet as the slow path would have, with [`checksum`];
//! * [`learning`] decides whether a packet that left the slow path may become a flow, [`doorkeeper`] whether it
//!   is worth while, and [`arrivals`] tells whether that packet confirms it at once;
//! * [`transforms`] says what IPsec does to its packets;
//! * [`ageing`] decides how long a flow is kept;
//! * [`reason`] names every way out of the fast path, [`config`] what an administrator can set,
//!   [`wire`] both and all else for user space.

pub mod ageing;
pub mod arrivals;
pub mod checksum;
pub mod config;
pub mod crossing;
pub mod doorkeeper;
pub mod index;
pub mod ip;
pub mod key;
pub mod learning;
pub mod packet;
pub mod reason;
pub mod rewrite;
#[cfg(test)]
pub mod samples;
pub mod sender;
pub mod tick;
pub mod transforms;
pub mod transport;
pub mod validity;
pub mod window;
pub mod wire;

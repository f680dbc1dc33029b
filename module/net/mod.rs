// SPDX-License-Identifier: GPL-2.0

//! Wraps the parts of the kernel's networking that the `kernel` crate has no safe interface to.
//!
//! All `unsafe` code of the module is here. A type stands for a kernel object together with what
//! makes it safe to use: a reference that is held, a lock that is taken, an RCU read side that one is
//! in. None of them knows what the module is for.

pub mod bridge;
pub mod conntrack;
pub mod device;
pub mod genl;
pub mod hook;
pub mod lock;
pub mod namespace;
pub mod neighbour;
pub mod nexthop;
pub mod ordinary;
pub mod percpu;
pub mod rcu;
pub mod route;
pub mod rtnetlink;
pub mod secpath;
pub mod skb;
pub mod slab;
pub mod table;
pub mod time;
pub mod work;
pub mod xfrm;

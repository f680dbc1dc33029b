// SPDX-License-Identifier: GPL-2.0

//! fasttrack: established connections past the firewall, connection tracking and routing.
//!
//! # The idea
//!
//! The fast path is a memo of what the slow path did. A packet that has gone through the whole stack
//! (firewall, connection tracking, NAT, routing, IPsec policy) teaches the module what happens to
//! packets like it; later ones get the same treatment straight from the device's ingress hook, for as
//! long as nothing has changed that the decision rested on. What is in doubt takes the slow path,
//! which is always right.
//!
//! # The life of a packet
//!
//! 1. A packet arrives on a device that the fast path is [attached](port) to, and meets
//!    [`Port::arrives`](fast) at the device's ingress hook, behind the hooks that an administrator has
//!    there. If a bridge is between that device and the port that the packet came in by, it meets
//!    [`BridgePort::arrives`](bridge) at the port before, and the bridge only if that can't forward it.
//! 2. Its headers are [read](engine::packet), its flow is [looked up](net::table). No flow: it goes on
//!    into the stack as if nothing were there.
//! 3. [`fast::admit`](fast) checks the packet as the IP layer would, looks at the connection, and asks
//!    whether the memo [still holds](engine::validity). If not, it is counted under a
//!    [reason](engine::reason) and goes on into the stack; conntrack is [told](track) what it missed.
//! 4. Otherwise it is [rewritten](engine::rewrite), counted, and [sent](net::skb), or given to the IPsec
//!    transforms of its route.
//! 5. A packet that went through the stack meets [`Learner::leaves`](learn) at the end of POSTROUTING.
//!    Its flow is made, confirmed, or dropped there.
//! 6. Meanwhile every flow is [looked at](age) once a second, and what happens to policies and devices
//!    is [listened to](forget). New rules, routes and neighbours are noticed by the next packet itself.
//!
//! # Locking
//!
//! Both hooks run under RCU. A flow is found under RCU and freed a grace period after it was taken out
//! of the table; it holds references to its connection, its route, its neighbour and the IPsec states that its
//! packets come through, so these are there whenever the flow is. The table's spinlock is taken to add a flow or to take one out, in any context.
//! The rest is in [`instance::Instance`].

use kernel::prelude::*;
use kernel::sync::Arc;

pub mod age;
pub mod attached;
#[path = "bindings/mod.rs"]
mod bindings;
pub mod bridge;
pub mod bridges;
pub mod control;
#[path = "engine/mod.rs"]
pub mod engine;
pub mod fast;
pub mod flow;
pub mod forget;
pub mod instance;
pub mod learn;
#[path = "net/mod.rs"]
pub mod net;
pub mod notify;
pub mod port;
pub mod stats;
pub mod track;

use core::pin::Pin;

use forget::Watcher;
use instance::Common;
use instance::Instance;
use net::namespace::Id;
use net::namespace::Net;
use net::namespace::PerNamespace;
use net::namespace::Registration;

module! {
    type: Fasttrack,
    name: "fasttrack",
    authors: ["The fasttrack developers"],
    description: "Takes established connections past the firewall",
    license: "GPL",
    // What the kernel loads when someone asks for the netlink family.
    alias: ["net-pf-16-proto-16-family-fasttrack"],
}

/// What is there while the module is loaded. Dropped in this order: first nobody can reach the
/// namespaces' instances from outside any more, then the instances go, then their memory.
struct Fasttrack {
    _family: net::genl::Registered,
    _devices: net::device::Watch<Watcher>,
    _ipsec: net::xfrm::Watch<Watcher>,
    _namespaces: Registration<Kept>,
}

impl kernel::Module for Fasttrack {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let common = Common::new()?;
        // SAFETY: The module is initialised once.
        let namespaces = unsafe { Registration::new(common) }?;
        let ipsec = net::xfrm::Watch::new()?;
        let devices = net::device::Watch::new()?;
        // SAFETY: As above.
        let family = unsafe { control::FAMILY.register(module) }?;
        Ok(Self {
            _family: family,
            _devices: devices,
            _ipsec: ipsec,
            _namespaces: namespaces,
        })
    }
}

impl Drop for Fasttrack {
    fn drop(&mut self) {
        // What is attached is detached when the module stops listening to devices, which is the next to go.
        port::stop_attaching();
    }
}

/// What is kept for a network namespace.
pub struct Kept(Arc<Instance>);

impl Kept {
    /// The namespace's instance.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.0
    }
}

impl PerNamespace for Kept {
    type Context = Common;

    fn id() -> &'static Id<Self::Context> {
        static ID: Id<Common> = Id::unregistered();
        &ID
    }

    fn enter(net: Net<'static>, common: &Self::Context) -> Result<Pin<KBox<Self>>> {
        let instance = Instance::new(net, common)?;
        Ok(KBox::pin(Self(instance), GFP_KERNEL)?)
    }

    fn leave(self: Pin<&Self>) {
        self.0.leave();
    }
}

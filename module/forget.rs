// SPDX-License-Identifier: GPL-2.0

//! Forgetting: what the kernel tells us that makes flows invalid. (What can be seen from a packet, or
//! from the route and neighbour that a flow holds, the fast path sees for itself.)

use crate::engine::reason::GoneReason;
use crate::net::device;
use crate::net::device::Device;
use crate::net::device::Event;
use crate::net::device::Rtnl;
use crate::net::namespace;
use crate::net::namespace::Net;
use crate::net::nexthop;
use crate::net::rcu::Read;
use crate::net::rtnetlink;
use crate::net::xfrm;
use crate::Kept;

/// Listens for all.
pub enum Watcher {}

impl xfrm::Watcher for Watcher {
    fn ipsec_changed(read: Read<'_>, net: Net<'_>) {
        if let Some(kept) = namespace::find::<Kept>(read, net) {
            // Every flow's next packet goes through the slow path, which knows the new policies.
            kept.instance().settings.begin_epoch();
        }
    }
}

impl nexthop::Watcher for Watcher {
    fn hops_changed(read: Read<'_>, net: Net<'_>) {
        if let Some(kept) = namespace::find::<Kept>(read, net) {
            // Every flow's next packet is routed anew: which hop a flow has is known, but not of which group.
            kept.instance().settings.begin_epoch();
        }
    }
}

impl rtnetlink::Watcher for Watcher {
    fn bridge_changed(read: Read<'_>, net: Net<'_>, index: u32) {
        if let Some(kept) = namespace::find::<Kept>(read, net) {
            kept.instance().bridges.changed(read, index);
        }
    }

    fn bridges_changed(read: Read<'_>, net: Net<'_>) {
        if let Some(kept) = namespace::find::<Kept>(read, net) {
            kept.instance().bridges.all_changed(read);
        }
    }
}

impl device::Watcher for Watcher {
    fn device_event(rtnl: &Rtnl, device: &Device, event: Event) {
        let Some(kept) = namespace::of_device::<Kept>(rtnl, device) else {
            return;
        };
        let instance = kept.instance();
        if event == Event::Configured {
            instance.bridges.reconsider(rtnl, device);
            return;
        }
        if event == Event::Changed {
            instance.bridges.follow(rtnl, instance, device);
            // The kernel has just looked anew which devices routing rules name, and nf_tables compares names for each
            // packet: neither begins a new generation. What arrives at a port may belong to a bridge now.
            instance.settings.begin_epoch();
            return;
        }
        let index = device.index();
        let arriving = instance.ports.number(index);
        if event == Event::Leaves {
            instance.bridges.leave(rtnl, instance, index);
            instance.ports.detach(rtnl, index);
        }
        instance.drop_flows(|flow| {
            // What states and bundles hold is not looked into: they may be bound to any device.
            let leaves_by_it = flow
                .neighbour
                .as_ref()
                .is_none_or(|neighbour| neighbour.next_hop().device().index() == index);
            let arrives_by_it = arriving == Some(flow.key.device());
            let may_hold_it = flow.secpath.is_some();
            (leaves_by_it || arrives_by_it || may_hold_it).then_some(GoneReason::Device)
        });
    }
}

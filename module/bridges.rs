// SPDX-License-Identifier: GPL-2.0

//! The bridges among the attached devices, and their ports: which these are, and what changes about them.

use kernel::sync::Arc;

use crate::attached::value;
use crate::attached::Attached;
use crate::bridge::BridgePort;
use crate::bridge::Crossed;
use crate::bridge::HOOKS;
use crate::instance::Instance;
use crate::net::bridge::Bridge;
use crate::net::bridge::Upper;
use crate::net::device::Device;
use crate::net::device::Rtnl;
use crate::net::hook;
use crate::net::rcu::Read;
use crate::port;

/// Before the bridge's own, which decides what becomes of a packet.
const BEFORE_PORT: i32 = hook::LAST - 1;

/// Behind whatever is at ingress of the port, also what has been there since before it became one.
const BEHIND_PORT: i32 = hook::LAST + 1;

/// All bridges of a namespace that are attached, and their ports. Changed under the routing netlink lock.
pub struct Bridges {
    ports: Attached<BridgePort>,
    crossed: Attached<Crossed>,
}

impl Bridges {
    /// None.
    pub const fn none() -> Self {
        Self {
            ports: Attached::none(),
            crossed: Attached::none(),
        }
    }

    /// All ports.
    pub fn ports<'rcu>(&'rcu self, read: Read<'rcu>) -> impl Iterator<Item = &'rcu BridgePort> {
        self.ports.iter(read)
    }

    /// An attached device may be one above the ports of a bridge: attaches these, too. Where that is not possible the
    /// bridge meets all packets.
    pub fn attach(&self, rtnl: &Rtnl, instance: &Arc<Instance>, device: &Device) {
        let index = device.index();
        // SAFETY: Before the device goes, or a bridge below it, `leave` is called for it.
        let Some(upper) = (unsafe { Upper::new(rtnl, device) }) else {
            return;
        };
        let Some(port) = instance
            .ports
            .hook(index)
            .filter(|_| !self.is_attached(index))
        else {
            return;
        };
        let bridge = upper.bridge_index;
        // SAFETY: The namespace is there until the instance has been switched off, which detaches. The device is detached
        // when it goes.
        let attached = unsafe {
            self.crossed.attach(
                rtnl,
                instance.net,
                device,
                Crossed::new(upper, port),
                BEFORE_PORT,
            )
        };
        if attached.is_ok() {
            self.attach_ports(rtnl, instance, bridge);
        }
    }

    fn is_attached(&self, index: u32) -> bool {
        self.crossed
            .find(|crossed| crossed.upper.index == index)
            .is_some()
    }

    /// Attaches the ports of the bridge with this index to what is above it now. Sleeps.
    fn attach_ports(&self, rtnl: &Rtnl, instance: &Arc<Instance>, bridge: u32) {
        self.ports.detach(rtnl, |port| port.bridge == bridge);
        if let Some(bridge) = rtnl.device(instance.net, bridge) {
            rtnl.for_each_below(bridge, |port| self.follow(rtnl, instance, port));
        }
    }

    /// A device has become, or has ceased to be, a port of a bridge, or may have.
    pub fn follow(&self, rtnl: &Rtnl, instance: &Arc<Instance>, device: &Device) {
        let index = device.index();
        let bridge = rtnl.bridge_of(device);
        let bridge_index = bridge.map(Device::index);
        self.ports.detach(rtnl, |port| {
            port.index == index && Some(port.bridge) != bridge_index
        });
        let (Some(bridge), Some(bridge_index)) = (bridge, bridge_index) else {
            return;
        };
        if self.ports.find(|port| port.index == index).is_some() || port::is_closing(rtnl) {
            return;
        }
        let uppers = self
            .crossed
            .all(rtnl, |crossed| crossed.upper.bridge_index == bridge_index);
        let Some(uppers) = uppers.ok().filter(|uppers| !uppers.is_empty()) else {
            return;
        };
        let below = match self.is_attached(bridge_index) {
            true => HOOKS,
            false => 0,
        };
        let port = BridgePort::new(index, bridge_index, uppers, below);
        port.open(!counts_by_vlan(rtnl, bridge));
        // SAFETY: As in `attach`; and a port that is removed is no port any more.
        let attached = unsafe {
            self.ports
                .attach(rtnl, instance.net, device, port, BEHIND_PORT)
        };
        // Without memory the bridge meets its packets.
        let _ = attached;
    }

    /// A device has been configured otherwise, or may have been.
    pub fn reconsider(&self, rtnl: &Rtnl, device: &Device) {
        if !device.is_bridge() {
            return;
        }
        let index = device.index();
        self.ports.for_each(rtnl, |port| {
            if port.bridge == index {
                port.open(!counts_by_vlan(rtnl, device));
            }
        });
    }

    /// A device goes. When this returns, no packet of it, or for it, is on the short way. Sleeps.
    pub fn leave(&self, rtnl: &Rtnl, instance: &Arc<Instance>, index: u32) {
        let is_it =
            |crossed: &Crossed| crossed.upper.index == index || crossed.upper.bridge_index == index;
        let bridge = self
            .crossed
            .find(is_it)
            .map(|crossed| value(&crossed).upper.bridge_index);
        self.ports.detach(rtnl, |port| {
            port.index == index || Some(port.bridge) == bridge
        });
        self.crossed.detach(rtnl, is_it);
        if let Some(bridge) = bridge.filter(|bridge| *bridge != index) {
            self.attach_ports(rtnl, instance, bridge);
        }
    }

    /// Something has changed about the device with this index: the bridge has to meet the next packet of each flow, if
    /// it is a bridge, a port of one, or a VLAN on one.
    pub fn changed(&self, read: Read<'_>, index: u32) {
        let mut ports = self.ports.iter(read);
        let bridge = ports
            .find(|port| port.index == index)
            .map(|port| port.bridge);
        let mut is_known = false;
        for port in self.ports.iter(read) {
            if port.is_below(index) || Some(port.bridge) == bridge {
                is_known = true;
                port.renew();
            }
        }
        // Perhaps one that could not be attached.
        if !is_known {
            self.all_changed(read);
        }
    }

    /// The same for all.
    pub fn all_changed(&self, read: Read<'_>) {
        for port in self.ports.iter(read) {
            port.renew();
        }
    }

    /// Detaches all. Nobody may be attaching any. Sleeps.
    pub fn detach_all(&self, rtnl: &Rtnl) {
        self.ports.detach_all(rtnl);
        self.crossed.detach_all(rtnl);
    }
}

/// Whether a bridge counts packets in a way that the fast path can't.
fn counts_by_vlan(rtnl: &Rtnl, bridge: &Device) -> bool {
    Bridge::new(bridge).is_none_or(|bridge| bridge.counts_by_vlan(rtnl))
}

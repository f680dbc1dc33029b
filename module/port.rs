// SPDX-License-Identifier: GPL-2.0

//! The devices that the fast path is attached to. Nobody lists them: a device is attached when the
//! first flow that arrives on it is about to be learned.

use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::AcqRel;
use core::sync::atomic::Ordering::Relaxed;

use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;

use crate::attached::Attached;
use crate::engine::key;
use crate::engine::sender::Senders;
use crate::instance::Instance;
use crate::net::device::Device;
use crate::net::device::Rtnl;
use crate::net::hook::Hook;
use crate::net::rcu::Read;
use crate::net::work::Job;

/// An attached device, as the fast path sees it.
pub struct Port {
    /// Its number in the keys of flows.
    pub device: key::Device,
    /// Its number in the namespace.
    pub index: u32,
    /// The namespace's instance.
    pub instance: Arc<Instance>,
    /// How those who send packets to it are told apart.
    pub senders: Senders,
    /// The conntrack zone of all connections that were seen to arrive on it; or [`NONE`], or [`SEVERAL`].
    zone: AtomicU32,
}

/// No connection was seen yet; no zone has this number.
const NONE: u32 = 1 << 16;
/// There were connections of more than one zone.
const SEVERAL: u32 = 1 << 17;

impl Port {
    /// Whether all connections that were seen to arrive on the device are of `zone`, as one is that has been seen
    /// now. The fast path does not know packets of one zone from those of another one that have the same addresses,
    /// unless they arrive on another device or from another [sender](Senders).
    pub fn is_all_of(&self, zone: u16) -> bool {
        self.zone.load(Relaxed) == u32::from(zone) || self.meet(zone)
    }

    #[cold]
    fn meet(&self, zone: u16) -> bool {
        let zone = u32::from(zone);
        match self.zone.compare_exchange(NONE, zone, Relaxed, Relaxed) {
            Ok(_) => true,
            Err(known) if known == zone => true,
            Err(_) => {
                if self.zone.swap(SEVERAL, Relaxed) != SEVERAL {
                    // No packet is fast any more before it has been looked at in the slow path: what has become
                    // of its flow is found out there.
                    self.instance.settings.begin_epoch();
                }
                false
            }
        }
    }
}

/// All attached devices of a namespace. Changed under the routing netlink lock.
pub struct Ports {
    attached: Attached<Port>,
    /// Indexes of devices that ought to be attached; 0 stands for none.
    wanted: [AtomicU32; WANTED],
}

/// Devices that can be waiting to be attached. One that finds no place asks again with its next packet.
const WANTED: usize = 8;

/// Where the fast path sits among the hooks of a device: behind what an administrator has there, so
/// that a filter or a rewriting at ingress counts for fast packets, too.
const PRIORITY: i32 = crate::net::hook::LAST;

impl Ports {
    /// None.
    pub const fn none() -> Self {
        Self {
            attached: Attached::none(),
            wanted: [const { AtomicU32::new(0) }; WANTED],
        }
    }

    /// The device with this index, if it is attached.
    pub fn port<'rcu>(&'rcu self, read: Read<'rcu>, index: u32) -> Option<&'rcu Port> {
        self.attached.iter(read).find(|port| port.index == index)
    }

    /// The same, to be kept.
    pub fn hook(&self, index: u32) -> Option<Arc<Hook<Port>>> {
        self.attached.find(|port| port.index == index)
    }

    /// The number that the device with this index has in keys, if it is attached.
    pub fn device(&self, read: Read<'_>, index: u32) -> Option<key::Device> {
        self.port(read, index).map(|port| port.device)
    }

    /// Looks anew for the zones of connections that arrive on each device.
    pub fn forget_zones(&self, read: Read<'_>) {
        for port in self.attached.iter(read) {
            port.zone.store(NONE, Relaxed);
        }
    }

    /// As [`Ports::device`], from a context that is in no read side.
    pub fn number(&self, index: u32) -> Option<key::Device> {
        let guard = rcu::read_lock();
        self.device(Read::of(&guard), index)
    }

    /// The index of the device with this number in keys.
    pub fn index(&self, read: Read<'_>, device: key::Device) -> Option<u32> {
        let mut all = self.attached.iter(read);
        all.find(|port| port.device == device)
            .map(|port| port.index)
    }

    /// How many there are.
    pub fn len(&self, read: Read<'_>) -> usize {
        self.attached.iter(read).count()
    }

    /// Asks for a device to be attached, without sleeping.
    pub fn want(instance: &Arc<Instance>, index: u32) {
        let wanted = &instance.ports.wanted;
        if wanted.iter().any(|place| place.load(Relaxed) == index) {
            return;
        }
        for place in wanted {
            if place.compare_exchange(0, index, AcqRel, Relaxed).is_ok() {
                instance.attaching.schedule(instance, 0);
                return;
            }
        }
    }

    /// Attaches a device.
    fn attach(&self, rtnl: &Rtnl, instance: &Arc<Instance>, device: &Device) -> Result {
        let guard = rcu::read_lock();
        let read = Read::of(&guard);
        if !device.is_registered()
            || device.is_loopback()
            || self.device(read, device.index()).is_some()
        {
            return Ok(());
        }
        let number = (0..=u16::MAX)
            .map(key::Device)
            .find(|number| self.index(read, *number).is_none())
            .ok_or(ENOSPC)?;
        drop(guard);
        let port = Port {
            device: number,
            index: device.index(),
            instance: instance.clone(),
            senders: Senders::new(device.is_ethernet()),
            zone: AtomicU32::new(NONE),
        };
        // SAFETY: The namespace is there until the instance has been switched off, which detaches. The device is detached
        // when it goes.
        unsafe {
            self.attached
                .attach(rtnl, instance.net, device, port, PRIORITY)
        }
    }

    /// Detaches a device, if it is attached: when this returns, none of its packets is in the fast path
    /// any more. Gives whether it was. Sleeps.
    pub fn detach(&self, rtnl: &Rtnl, index: u32) -> bool {
        self.attached.detach(rtnl, |port| port.index == index)
    }

    /// Detaches all devices. Nobody may be attaching any. Sleeps.
    pub fn detach_all(&self, rtnl: &Rtnl) {
        self.attached.detach_all(rtnl);
        for place in &self.wanted {
            place.store(0, Relaxed);
        }
    }
}

/// No more devices are attached: the module is about to stop listening to what happens to them. Set under
/// the routing netlink lock.
static CLOSING: AtomicBool = AtomicBool::new(false);

/// Whether that is so.
pub fn is_closing(_rtnl: &Rtnl) -> bool {
    CLOSING.load(Relaxed)
}

/// From when this returns on, no more devices are attached. Sleeps.
pub fn stop_attaching() {
    let _rtnl = Rtnl::lock();
    CLOSING.store(true, Relaxed);
}

/// Attaches the devices that are wanted.
pub enum Attaching {}

impl Job for Attaching {
    type Owner = Instance;

    fn run(instance: ArcBorrow<'_, Instance>) {
        let instance: Arc<Instance> = instance.into();
        let rtnl = Rtnl::lock();
        for place in &instance.ports.wanted {
            let index = place.swap(0, AcqRel);
            if index == 0 || !instance.settings.is_on() || is_closing(&rtnl) {
                continue;
            }
            if let Some(device) = rtnl.device(instance.net, index) {
                // If it can't be attached its flows stay slow, and ask again.
                let _ = instance.ports.attach(&rtnl, &instance, device);
                instance.bridges.attach(&rtnl, &instance, device);
            }
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Network devices, and what happens to them.

use core::ffi::c_void;
use core::pin::Pin;
use core::ptr::addr_of;
use core::ptr::NonNull;

use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::NotThreadSafe;
use kernel::types::Opaque;

use super::namespace::Net;
use crate::bindings;
use crate::engine::crossing::Tag;

/// A `struct net_device`, seen while it can't go away.
#[repr(transparent)]
pub struct Device(Opaque<bindings::net_device>);

type EthHeader = unsafe extern "C" fn(
    *mut bindings::sk_buff,
    *mut bindings::net_device,
    core::ffi::c_ushort,
    *const c_void,
    *const c_void,
    core::ffi::c_uint,
) -> core::ffi::c_int;

impl Device {
    /// # Safety
    ///
    /// `device` has to be valid for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(device: *const bindings::net_device) -> Option<&'a Self> {
        // SAFETY: As required of the caller; the type is transparent.
        unsafe { device.cast::<Self>().as_ref() }
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::net_device {
        self.0.get()
    }

    /// Its number in its namespace.
    #[inline]
    pub fn index(&self) -> u32 {
        // SAFETY: The device is valid.
        let index = unsafe { addr_of!((*self.0.get()).ifindex).read_volatile() };
        index as u32
    }

    /// Whether it is registered and not about to go.
    pub fn is_registered(&self) -> bool {
        // SAFETY: The device is valid. `reg_state` is one of its plain fields.
        let state = unsafe { addr_of!((*self.0.get()).reg_state).read_volatile() };
        u32::from(state) == bindings::netdev_reg_state_NETREG_REGISTERED
    }

    /// Whether it is a loopback device.
    pub fn is_loopback(&self) -> bool {
        // SAFETY: The device is valid.
        let flags = unsafe { addr_of!((*self.0.get()).flags).read_volatile() };
        flags & bindings::net_device_flags_IFF_LOOPBACK != 0
    }

    /// Whether its packets have headers as Ethernet has them.
    pub fn is_ethernet(&self) -> bool {
        self.link_type() == bindings::ARPHRD_ETHER
    }

    /// Largest packet that it takes, in bytes from the network header on.
    #[inline]
    pub fn mtu(&self) -> u32 {
        // SAFETY: The device is valid.
        unsafe { addr_of!((*self.0.get()).mtu).read_volatile() }
    }

    /// Whether it is a bridge.
    pub fn is_bridge(&self) -> bool {
        self.private_flags() & bindings::netdev_priv_flags_IFF_EBRIDGE != 0
    }

    /// Whether it is of a kind that does no more with a packet than to hand it on to a device below, at
    /// once: a VLAN or a bridge.
    #[inline(always)]
    pub(super) fn hands_on(&self) -> bool {
        let kinds =
            bindings::netdev_priv_flags_IFF_802_1Q_VLAN | bindings::netdev_priv_flags_IFF_EBRIDGE;
        self.private_flags() & kinds != 0
    }

    /// Whether it is one of PPP that hands packets on to the device below at once, as PPPoE and PPTP have
    /// them, not one that has a queue for them.
    #[inline(always)]
    pub fn is_direct_ppp(&self) -> bool {
        self.link_type() == bindings::ARPHRD_PPP
            && self.private_flags() & bindings::netdev_priv_flags_IFF_NO_QUEUE != 0
    }

    /// Whether IPsec encrypts what it is given to send, and has decrypted what it receives: whether it is an xfrm
    /// interface or a VTI, or the fallback device of the latter. Behind other devices packets may meet IPsec further on,
    /// but then it is about other packets, which have theirs inside.
    pub(super) fn is_of_ipsec(&self) -> bool {
        // None of them has such headers; most others have.
        if self.is_ethernet() {
            return false;
        }
        // SAFETY: The device is valid, and what kind it is of is said before it is registered, with a name. It goes
        // with the kind's module, which has its devices removed before, and waits until nobody has one any more
        // (`rtnl_link_unregister`).
        let kind = unsafe {
            let operations = addr_of!((*self.0.get()).rtnl_link_ops).read_volatile();
            if operations.is_null() {
                return false;
            }
            CStr::from_char_ptr((*operations).kind)
        };
        // net/xfrm/xfrm_interface_core.c, net/ipv4/ip_vti.c, net/ipv6/ip6_vti.c.
        matches!(kind.to_bytes(), b"xfrm" | b"vti" | b"vti6")
    }

    /// What its link layer is (`ARPHRD_*`).
    #[inline(always)]
    fn link_type(&self) -> u32 {
        // SAFETY: The device is valid.
        let kind = unsafe { addr_of!((*self.0.get()).type_).read_volatile() };
        kind.into()
    }

    /// Whether it wants nothing of a packet's route.
    #[inline(always)]
    pub(super) fn wants_no_route(&self) -> bool {
        self.private_flags() & bindings::netdev_priv_flags_IFF_XMIT_DST_RELEASE != 0
    }

    /// Whether it sends without a lock, as devices do that are made of nothing but software.
    #[inline(always)]
    fn is_lockless(&self) -> bool {
        // SAFETY: The device is valid.
        unsafe { (*self.0.get()).__bindgen_anon_1.__bindgen_anon_1.lltx() != 0 }
    }

    /// The address that packets are sent from, if it is a VLAN that puts tags beside packets, on a device
    /// with headers as Ethernet has them: so that the packets to be sent by it have such headers, too.
    #[cfg(CONFIG_VLAN_8021Q)]
    pub(super) fn vlan_address(&self) -> Option<[u8; 6]> {
        let this = self.0.get();
        if self.private_flags() & bindings::netdev_priv_flags_IFF_802_1Q_VLAN == 0 {
            return None;
        }
        // SAFETY: The device is a valid one, and a VLAN, which holds the device below. None of this is read
        // with a lock by those who add headers.
        unsafe {
            let vlan = addr_of!((*this).priv_).cast::<bindings::vlan_dev_priv>();
            let below = (*vlan).real_dev;
            let methods = addr_of!((*below).header_ops).read_volatile();
            let is_ethernet = !methods.is_null()
                && (*methods).create.is_some_and(|create| {
                    create as usize == bindings::eth_header as EthHeader as usize
                });
            let flags = addr_of!((*vlan).flags).read_volatile();
            let has_tags_beside =
                u32::from(flags) & bindings::vlan_flags_VLAN_FLAG_REORDER_HDR != 0;
            (is_ethernet && has_tags_beside).then(|| (*this).dev_addr.cast::<[u8; 6]>().read())
        }
    }

    /// There are no VLANs.
    #[cfg(not(CONFIG_VLAN_8021Q))]
    pub(super) const fn vlan_address(&self) -> Option<[u8; 6]> {
        None
    }

    #[inline(always)]
    fn private_flags(&self) -> u32 {
        // SAFETY: The device is valid. The flags are the first 32 bits of a group of bit fields, which are
        // the first ones in memory, too. What bindgen has for them gets them bit by bit.
        unsafe {
            addr_of!((*self.0.get()).__bindgen_anon_1)
                .cast::<u32>()
                .read_volatile()
        }
    }

    /// Its queue of packets to be sent, if that is none: if it sends without a lock, as devices do that are made of
    /// nothing but software, and nobody has put a queueing discipline there. The caller is in a read side, with bottom
    /// halves off.
    #[inline(always)]
    pub(super) fn undisciplined_queue(&self) -> Option<*mut bindings::netdev_queue> {
        if !self.is_lockless() {
            return None;
        }
        // SAFETY: The device is valid, and its queues live as long as it does. `__dev_queue_xmit` reads the discipline
        // without a lock, too; it is freed a grace period after it was replaced.
        unsafe {
            let queue = (*self.0.get())._tx;
            let discipline = addr_of!((*queue).qdisc).read_volatile();
            let is_none = addr_of!((*discipline).enqueue).read_volatile().is_none();
            is_none.then_some(queue)
        }
    }

    /// Whether there is nothing else on the way to its own method of sending than [`Device::undisciplined_queue`]: no
    /// hook, no classifier, no choice of a queue, no capture. The caller is in a read side.
    #[inline(always)]
    pub(super) fn sends_by_nothing_but(&self, queue: *mut bindings::netdev_queue) -> bool {
        let this = self.0.get();
        // SAFETY: The device is valid, and the queue is its own. `__dev_queue_xmit` reads these without a lock, too.
        unsafe {
            addr_of!((*this).flags).read_volatile() & bindings::net_device_flags_IFF_UP != 0
                && addr_of!((*this).real_num_tx_queues).read_volatile() == 1
                && !self.has_egress_hooks()
                && addr_of!((*queue).state).read_volatile()
                    & bindings::FT_QUEUE_STATE_ANY_XOFF as usize
                    == 0
                && !bindings::dev_nit_active_rcu(this)
        }
    }

    /// Whether packets meet netfilter's hooks or classifiers before they are queued.
    #[inline(always)]
    fn has_egress_hooks(&self) -> bool {
        #[cfg(CONFIG_NETFILTER_EGRESS)]
        // SAFETY: The device is valid.
        if !unsafe { addr_of!((*self.0.get()).nf_hooks_egress).read_volatile() }.is_null() {
            return true;
        }
        #[cfg(CONFIG_NET_XGRESS)]
        // SAFETY: The device is valid.
        if !unsafe { addr_of!((*self.0.get()).tcx_egress).read_volatile() }.is_null() {
            return true;
        }
        false
    }

    /// The namespace that it is in.
    pub fn net(&self) -> Net<'_> {
        // SAFETY: The device is valid, so its namespace's memory is, too.
        unsafe { Net::from_raw(bindings::ft_dev_net(self.0.get())) }
    }
}

/// Shows that the routing netlink lock is held: no device comes, goes, or changes its state.
pub struct Rtnl(NotThreadSafe);

impl Rtnl {
    /// The bridge that a device is a port of.
    pub fn bridge_of<'a>(&'a self, device: &'a Device) -> Option<&'a Device> {
        if device.private_flags() & bindings::netdev_priv_flags_IFF_BRIDGE_PORT == 0 {
            return None;
        }
        // SAFETY: The device is valid, and the lock is held, so one above it stays.
        let above =
            unsafe { Device::from_raw(bindings::netdev_master_upper_dev_get(device.as_ptr())) };
        above.filter(|above| above.is_bridge())
    }

    /// The device right below a VLAN that puts tags beside packets, if it is in the same namespace, and the tag.
    #[cfg(all(CONFIG_VLAN_8021Q, CONFIG_64BIT))]
    pub(super) fn below_vlan<'a>(&'a self, device: &'a Device) -> Option<(&'a Device, Tag)> {
        if device.private_flags() & bindings::netdev_priv_flags_IFF_802_1Q_VLAN == 0 {
            return None;
        }
        // SAFETY: The device is a valid VLAN, which holds the device below.
        let (below, flags, tag) = unsafe {
            let vlan = addr_of!((*device.as_ptr()).priv_).cast::<bindings::vlan_dev_priv>();
            let tag = Tag::new((*vlan).vlan_proto, (*vlan).vlan_id);
            (Device::from_raw((*vlan).real_dev)?, (*vlan).flags, tag)
        };
        // Otherwise packets have their tag in front, above as well.
        let has_tags_beside = u32::from(flags) & bindings::vlan_flags_VLAN_FLAG_REORDER_HDR != 0;
        let is_near = below.net().as_ptr() == device.net().as_ptr();
        (has_tags_beside && is_near).then_some((below, tag))
    }

    /// There are no VLANs whose packets are counted in words.
    #[cfg(not(all(CONFIG_VLAN_8021Q, CONFIG_64BIT)))]
    pub(super) const fn below_vlan<'a>(&'a self, _device: &'a Device) -> Option<(&'a Device, Tag)> {
        None
    }

    /// Has each device looked at that is right below another one.
    pub fn for_each_below(&self, device: &Device, mut look: impl FnMut(&Device)) {
        // SAFETY: The device is valid. The lock is held, so that its list stays as it is, and so do the devices.
        let mut at = unsafe { addr_of!((*device.as_ptr()).adj_list.lower.next).read() };
        // SAFETY: As above; the place is one of that list (`netdev_for_each_lower_dev`).
        while let Some(below) = unsafe {
            let below = bindings::netdev_lower_get_next(device.as_ptr(), &mut at);
            Device::from_raw(below.cast::<bindings::net_device>())
        } {
            look(below);
        }
    }

    /// Takes the lock. Sleeps.
    pub fn lock() -> RtnlGuard {
        // SAFETY: May be called from any context that can sleep.
        unsafe { bindings::rtnl_lock() };
        RtnlGuard(Rtnl(NotThreadSafe))
    }

    /// The device with number `index` in namespace `net`.
    pub fn device<'a>(&'a self, net: Net<'a>, index: u32) -> Option<&'a Device> {
        // SAFETY: The lock is held, so a device that is found stays.
        unsafe { Device::from_raw(bindings::__dev_get_by_index(net.as_ptr(), index as i32)) }
    }
}

/// The routing netlink lock, taken; gives it back when dropped.
pub struct RtnlGuard(Rtnl);

impl core::ops::Deref for RtnlGuard {
    type Target = Rtnl;

    fn deref(&self) -> &Rtnl {
        &self.0
    }
}

impl Drop for RtnlGuard {
    fn drop(&mut self) {
        // SAFETY: The guard's existence shows that this thread took the lock.
        unsafe { bindings::rtnl_unlock() };
    }
}

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was switched off.
    Down,
    /// It has got another name, or has become, or ceased to be, a port of another device.
    Changed,
    /// It was switched on, or has been configured otherwise, or may have been.
    Configured,
    /// It leaves its namespace: it is being removed, or moved to another one.
    Leaves,
}

/// Is told about devices.
pub trait Watcher {
    /// `device` has just met with `event`.
    fn device_event(rtnl: &Rtnl, device: &Device, event: Event);
}

/// Keeps a [`Watcher`] told until it is dropped.
pub struct Watch<W> {
    block: Pin<KBox<Opaque<bindings::notifier_block>>>,
    _watcher: core::marker::PhantomData<fn(W)>,
}

// SAFETY: The notifier's functions may be called from any thread.
unsafe impl<W> Send for Watch<W> {}
// SAFETY: There is nothing to be done with a shared one.
unsafe impl<W> Sync for Watch<W> {}

impl<W: Watcher> Watch<W> {
    /// Begins.
    ///
    /// # Errors
    ///
    /// What `register_netdevice_notifier` gives, or `ENOMEM`.
    pub fn new() -> Result<Self> {
        let block = KBox::pin(
            Opaque::new(bindings::notifier_block {
                notifier_call: Some(Self::call),
                ..Default::default()
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The block is pinned, and unregistered before it is dropped.
        to_result(unsafe { bindings::register_netdevice_notifier(block.get()) })?;
        Ok(Self {
            block,
            _watcher: core::marker::PhantomData,
        })
    }

    /// What the kernel calls for every device and event.
    ///
    /// # Safety
    ///
    /// `info` has to be null or a valid `netdev_notifier_info`.
    unsafe extern "C" fn call(
        _block: *mut bindings::notifier_block,
        event: usize,
        info: *mut core::ffi::c_void,
    ) -> i32 {
        let event = match event as u32 {
            bindings::netdev_cmd_NETDEV_DOWN => Event::Down,
            bindings::netdev_cmd_NETDEV_CHANGENAME | bindings::netdev_cmd_NETDEV_CHANGEUPPER => {
                Event::Changed
            }
            bindings::netdev_cmd_NETDEV_UP | bindings::netdev_cmd_NETDEV_CHANGE => {
                Event::Configured
            }
            bindings::netdev_cmd_NETDEV_UNREGISTER => Event::Leaves,
            _ => return NOTIFY_DONE,
        };
        if let Some(info) = NonNull::new(info) {
            // SAFETY: The kernel passes a `netdev_notifier_info` of a valid device.
            let device = unsafe { Device::from_raw(bindings::ft_notifier_dev(info.as_ptr())) };
            if let Some(device) = device {
                // Device notifiers are called with the lock held.
                W::device_event(&Rtnl(NotThreadSafe), device, event);
            }
        }
        NOTIFY_DONE
    }
}

const NOTIFY_DONE: i32 = 0;

impl<W> Drop for Watch<W> {
    fn drop(&mut self) {
        // SAFETY: It was registered in `new`.
        unsafe { bindings::unregister_netdevice_notifier(self.block.get()) };
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Network devices, and what happens to them.

use core::pin::Pin;
use core::ptr::addr_of;
use core::ptr::NonNull;

use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::NotThreadSafe;
use kernel::types::Opaque;

use super::namespace::Net;
use crate::bindings;

/// A `struct net_device`, seen while it can't go away.
#[repr(transparent)]
pub struct Device(Opaque<bindings::net_device>);

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

    /// Largest packet that it takes, in bytes from the network header on.
    #[inline]
    pub fn mtu(&self) -> u32 {
        // SAFETY: The device is valid.
        unsafe { addr_of!((*self.0.get()).mtu).read_volatile() }
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

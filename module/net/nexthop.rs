// SPDX-License-Identifier: GPL-2.0

//! Groups of next-hop objects: being told when they change.

use core::ffi::c_void;
use core::marker::PhantomData;
use core::pin::Pin;
use core::ptr;

use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::types::Opaque;

use super::namespace::Net;
use super::rcu::Read;
use crate::bindings;

/// Is told about groups of next-hop objects.
pub trait Watcher {
    /// A group of `net` is new, or is not what it was. One of which a hop is deleted does without it by then.
    fn hops_changed(read: Read<'_>, net: Net<'_>);
}

/// Keeps a [`Watcher`] told about a namespace until it is dropped.
///
/// A hop or a group that is replaced begins a new generation of routes, if there are any of it. When a hop is deleted,
/// its groups go on without it, and no route has changed (`remove_nexthop_from_groups` in net/ipv4/nexthop.c). What was
/// looked up by way of the hop is given up a grace period later, and not before.
pub struct Watch<W> {
    block: Pin<KBox<Opaque<bindings::notifier_block>>>,
    net: Net<'static>,
    _watcher: PhantomData<fn(W)>,
}

// SAFETY: The notifier's functions may be called from any thread.
unsafe impl<W> Send for Watch<W> {}
// SAFETY: There is nothing to be done with a shared one.
unsafe impl<W> Sync for Watch<W> {}

impl<W: Watcher> Watch<W> {
    /// Begins. Sleeps; takes the routing netlink lock.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `net` has to be there until this is dropped.
    pub unsafe fn new(net: Net<'static>) -> Result<Self> {
        let block = KBox::pin(
            Opaque::new(bindings::notifier_block {
                notifier_call: Some(Self::call),
                ..Default::default()
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The namespace is there, as required of the caller. The block is pinned, and unregistered before it is
        // dropped.
        to_result(unsafe {
            bindings::register_nexthop_notifier(net.as_ptr(), block.get(), ptr::null_mut())
        })?;
        Ok(Self {
            block,
            net,
            _watcher: PhantomData,
        })
    }

    /// What the kernel calls for every event.
    ///
    /// # Safety
    ///
    /// `info` has to be a valid `nh_notifier_info`.
    unsafe extern "C" fn call(
        _block: *mut bindings::notifier_block,
        _event: usize,
        info: *mut c_void,
    ) -> i32 {
        // SAFETY: As required of the caller.
        let info = unsafe { &*info.cast::<bindings::nh_notifier_info>() };
        // Others are about a single hop, or ask for statistics.
        let of_group = [
            bindings::nh_notifier_info_type_NH_NOTIFIER_INFO_TYPE_GRP,
            bindings::nh_notifier_info_type_NH_NOTIFIER_INFO_TYPE_RES_BUCKET,
        ];
        if of_group.contains(&info.type_) {
            let guard = rcu::read_lock();
            // SAFETY: The kernel names the namespace that the event is of.
            W::hops_changed(Read::of(&guard), unsafe { Net::from_raw(info.net) });
        }
        NOTIFY_DONE
    }
}

const NOTIFY_DONE: i32 = 0;

impl<W> Drop for Watch<W> {
    fn drop(&mut self) {
        // SAFETY: It was registered in `new`. Waits until nobody calls it any more.
        unsafe { bindings::unregister_nexthop_notifier(self.net.as_ptr(), self.block.get()) };
    }
}

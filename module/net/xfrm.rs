// SPDX-License-Identifier: GPL-2.0

//! IPsec: being told when policies and states change.

use core::marker::PhantomData;
use core::pin::Pin;

use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::types::Opaque;

use super::namespace::Net;
use super::rcu::Read;
use crate::bindings;

/// Is told about IPsec policies and states.
pub trait Watcher {
    /// A policy or a state of `net` was added, changed, has expired or was deleted. Called with the
    /// change in effect, before it is acknowledged to whoever made it; possibly from a timer.
    fn ipsec_changed(read: Read<'_>, net: Net<'_>);
}

/// Keeps a [`Watcher`] told until it is dropped.
///
/// It is a key manager for the kernel, one that never negotiates anything. That is the one way to hear
/// about the deletion of a policy: an insertion also makes cached routes invalid, a deletion does not
/// (`xfrm_policy_insert` and `xfrm_policy_kill` in net/xfrm/xfrm_policy.c).
pub struct Watch<W> {
    manager: Pin<KBox<Opaque<bindings::xfrm_mgr>>>,
    _watcher: PhantomData<fn(W)>,
}

// SAFETY: The manager's functions may be called from any thread.
unsafe impl<W> Send for Watch<W> {}
// SAFETY: There is nothing to be done with a shared one.
unsafe impl<W> Sync for Watch<W> {}

impl<W: Watcher> Watch<W> {
    /// Begins.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        let manager = KBox::pin(
            Opaque::new(bindings::xfrm_mgr {
                notify: Some(Self::state),
                // The kernel calls this one without asking whether it is there.
                acquire: Some(Self::acquire),
                // Nor this one, for a policy that a socket sets for itself.
                compile_policy: Some(Self::compile_policy),
                notify_policy: Some(Self::policy),
                migrate: Some(Self::migrate),
                ..Default::default()
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The manager is pinned, and unregistered before it is dropped.
        unsafe { bindings::xfrm_register_km(manager.get()) };
        Ok(Self {
            manager,
            _watcher: PhantomData,
        })
    }

    /// What the kernel calls when a policy changes.
    ///
    /// # Safety
    ///
    /// `policy` has to be null or valid, `event` valid.
    unsafe extern "C" fn policy(
        policy: *mut bindings::xfrm_policy,
        _direction: i32,
        event: *const bindings::km_event,
    ) -> i32 {
        // `km_policy_expired` leaves the event's namespace unset, and a flush has no policy: so the
        // policy first, if there is one.
        let net = if policy.is_null() {
            // SAFETY: The event is valid, and names its namespace when it names no policy.
            unsafe { (*event).net }
        } else {
            // SAFETY: The policy is valid.
            unsafe { bindings::ft_xp_net(policy) }
        };
        // SAFETY: A namespace that the kernel reports an event of.
        unsafe { Self::tell(net) }
    }

    /// What the kernel calls when a state changes.
    ///
    /// # Safety
    ///
    /// `state` has to be null or valid, `event` valid.
    unsafe extern "C" fn state(
        state: *mut bindings::xfrm_state,
        event: *const bindings::km_event,
    ) -> i32 {
        // How far a state has got, with every other packet as long as somebody wants to know, such as
        // `ip xfrm monitor`. It decides nothing about packets.
        // SAFETY: The event is valid.
        if unsafe { (*event).event } == bindings::FT_XFRM_MSG_NEWAE {
            return 0;
        }
        // As for policies: an expiry does not set the event's namespace.
        let net = if state.is_null() {
            // SAFETY: The event is valid, and names its namespace when it names no state.
            unsafe { (*event).net }
        } else {
            // SAFETY: The state is valid.
            unsafe { bindings::ft_xs_net(state) }
        };
        // SAFETY: A namespace that the kernel reports an event of.
        unsafe { Self::tell(net) }
    }

    /// What the kernel calls to have a state negotiated, which this manager does not do.
    ///
    /// # Safety
    ///
    /// None.
    unsafe extern "C" fn acquire(
        _state: *mut bindings::xfrm_state,
        _template: *mut bindings::xfrm_tmpl,
        _policy: *mut bindings::xfrm_policy,
    ) -> i32 {
        EINVAL.to_errno()
    }

    /// What the kernel calls to have a policy for a socket read, which this manager does not do.
    ///
    /// # Safety
    ///
    /// `error` has to be valid for a write.
    unsafe extern "C" fn compile_policy(
        _socket: *mut bindings::sock,
        _option: i32,
        _data: *mut u8,
        _len: i32,
        error: *mut i32,
    ) -> *mut bindings::xfrm_policy {
        // SAFETY: The kernel passes where the direction, or an error, is to go. With an error it asks
        // the next manager.
        unsafe { *error = EINVAL.to_errno() };
        core::ptr::null_mut()
    }

    /// What the kernel calls when the end of a tunnel has moved to another address, and to have others told.
    ///
    /// # Safety
    ///
    /// `net` has to be valid.
    unsafe extern "C" fn migrate(
        _selector: *const bindings::xfrm_selector,
        _direction: u8,
        _kind: u8,
        _migrations: *const bindings::xfrm_migrate,
        _count: i32,
        _address: *const bindings::xfrm_kmaddress,
        net: *mut bindings::net,
        _encapsulation: *const bindings::xfrm_encap_tmpl,
    ) -> i32 {
        // SAFETY: As required of the caller.
        unsafe { Self::tell(net) };
        // Nobody has been told.
        EINVAL.to_errno()
    }

    /// # Safety
    ///
    /// `net` has to be null or valid.
    unsafe fn tell(net: *mut bindings::net) -> i32 {
        if !net.is_null() {
            let guard = rcu::read_lock();
            // SAFETY: As required of the caller.
            W::ipsec_changed(Read::of(&guard), unsafe { Net::from_raw(net) });
        }
        0
    }
}

impl<W> Drop for Watch<W> {
    fn drop(&mut self) {
        // SAFETY: It was registered in `new`. Waits until nobody calls it any more.
        unsafe { bindings::xfrm_unregister_km(self.manager.get()) };
    }
}

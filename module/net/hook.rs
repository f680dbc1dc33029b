// SPDX-License-Identifier: GPL-2.0

//! Netfilter hooks.

use core::ffi::c_void;
use core::pin::Pin;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering;

use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::Opaque;

use super::device::Device;
use super::namespace::Net;
use super::rcu::Read;
use super::skb::Forwarded;
use super::skb::Sent;
use super::skb::Skb;
use crate::bindings;
use crate::engine::ip::Family;

/// Is shown every packet that arrives on a device, before any protocol sees it.
pub trait Ingress: Send + Sync {
    /// Takes the packet, or gives it back for the stack to go on with.
    fn arrives(&self, read: Read<'_>, packet: Skb) -> Verdict;
}

/// What netfilter is told about a packet: made of the packet, or of what shows that it was sent.
#[must_use]
pub struct Verdict(u32);

impl From<Sent> for Verdict {
    #[inline(always)]
    fn from(_: Sent) -> Self {
        Self(bindings::NF_STOLEN)
    }
}

impl From<Skb> for Verdict {
    #[inline(always)]
    fn from(packet: Skb) -> Self {
        packet.into_raw();
        Self(bindings::NF_ACCEPT)
    }
}

/// Is shown every IP packet that leaves, after routing, the firewall and NAT.
pub trait PostRouting: Send + Sync {
    /// Looks at a packet that was forwarded.
    fn leaves(&self, read: Read<'_>, packet: Forwarded<'_>);
}

/// A hook and the value that is shown its packets.
///
/// # Invariants
///
/// `operations` is registered in `net` while `registered` is set; its private pointer is to `value`.
#[pin_data(PinnedDrop)]
pub struct Hook<T> {
    #[pin]
    operations: Opaque<bindings::nf_hook_ops>,
    registered: AtomicBool,
    net: Net<'static>,
    #[pin]
    value: T,
}

// SAFETY: The operations are only touched by netfilter's own functions, which any thread may call.
unsafe impl<T: Send + Sync> Send for Hook<T> {}
// SAFETY: As above; of the rest, only `&T` is given out.
unsafe impl<T: Send + Sync> Sync for Hook<T> {}

impl<T> Hook<T> {
    /// A hook that is not registered yet.
    ///
    /// # Safety
    ///
    /// `net` has to be there until the hook is dropped.
    pub unsafe fn new<E>(net: Net<'_>, value: impl PinInit<T, E>) -> impl PinInit<Self, E> {
        // SAFETY: As required of the caller.
        let net = unsafe { net.extend() };
        pin_init!(Self {
            operations: Opaque::new(bindings::nf_hook_ops::default()),
            registered: AtomicBool::new(false),
            net,
            value <- value,
        }? E)
    }

    /// The value.
    #[inline]
    pub fn value(self: Pin<&Self>) -> Pin<&T> {
        // SAFETY: `value` is structurally pinned.
        unsafe { self.map_unchecked(|hook| &hook.value) }
    }

    fn register(self: Pin<&Self>, mut operations: bindings::nf_hook_ops) -> Result {
        operations.priv_ = core::ptr::from_ref(&self.value).cast_mut().cast();
        // SAFETY: The hook is not registered, so nobody else looks at the operations.
        unsafe { self.operations.get().write(operations) };
        // SAFETY: Operations and namespace stay until the hook is unregistered, which `drop` does.
        to_result(unsafe {
            bindings::nf_register_net_hook(self.net.as_ptr(), self.operations.get())
        })?;
        self.registered.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes the hook off. Packets that are in it just now may stay in it until a grace period has
    /// passed. Sleeps.
    pub fn unregister(&self) {
        if self.registered.swap(false, Ordering::AcqRel) {
            // SAFETY: By the invariant it is registered.
            unsafe { bindings::nf_unregister_net_hook(self.net.as_ptr(), self.operations.get()) };
        }
    }
}

impl<T: Ingress> Hook<T> {
    /// Attaches the hook to a device, which must not go while the hook is registered.
    ///
    /// # Errors
    ///
    /// What `nf_register_net_hook` gives.
    pub fn attach(self: Pin<&Self>, device: &Device, priority: i32) -> Result {
        self.register(bindings::nf_hook_ops {
            hook: Some(Self::arrives),
            pf: bindings::NFPROTO_NETDEV as u8,
            hooknum: bindings::nf_dev_hooks_NF_NETDEV_INGRESS,
            priority,
            dev: device.as_ptr(),
            ..Default::default()
        })
    }

    /// What netfilter calls.
    ///
    /// # Safety
    ///
    /// In a read side, with the private pointer of the operations and a valid packet.
    unsafe extern "C" fn arrives(
        value: *mut c_void,
        skb: *mut bindings::sk_buff,
        _state: *const bindings::nf_hook_state,
    ) -> u32 {
        // SAFETY: By the invariant, and because it is dropped only a grace period after the hook was
        // taken off: netfilter calls hooks in a read side.
        let value = unsafe { &*value.cast::<T>() };
        // SAFETY: As above.
        let read = unsafe { Read::assume() };
        // SAFETY: Netfilter passes a valid packet, which is ours until we return a verdict; at ingress
        // its data begins at the network header.
        let packet = unsafe { Skb::from_raw(NonNull::new_unchecked(skb)) };
        value.arrives(read, packet).0
    }
}

impl<T: PostRouting> Hook<T> {
    /// Registers the hook for forwarded packets of a version of IP.
    ///
    /// # Errors
    ///
    /// What `nf_register_net_hook` gives.
    pub fn begin(self: Pin<&Self>, family: Family, priority: i32) -> Result {
        self.register(bindings::nf_hook_ops {
            hook: Some(Self::leaves),
            pf: match family {
                Family::V4 => bindings::NFPROTO_IPV4 as u8,
                Family::V6 => bindings::NFPROTO_IPV6 as u8,
            },
            // The same number for both.
            hooknum: bindings::nf_inet_hooks_NF_INET_POST_ROUTING,
            priority,
            ..Default::default()
        })
    }

    /// What netfilter calls.
    ///
    /// # Safety
    ///
    /// In a read side, with the private pointer of the operations, a valid packet and a valid state.
    unsafe extern "C" fn leaves(
        value: *mut c_void,
        skb: *mut bindings::sk_buff,
        state: *const bindings::nf_hook_state,
    ) -> u32 {
        // SAFETY: As in `arrives`.
        let value = unsafe { &*value.cast::<T>() };
        // SAFETY: As in `arrives`.
        let read = unsafe { Read::assume() };
        // SAFETY: Netfilter passes a valid packet and a valid state.
        if let Some(packet) = unsafe { Forwarded::new(skb, state) } {
            value.leaves(read, packet);
        }
        bindings::NF_ACCEPT
    }
}

#[pinned_drop]
impl<T> PinnedDrop for Hook<T> {
    fn drop(self: Pin<&mut Self>) {
        if self.registered.load(Ordering::Acquire) {
            self.unregister();
            super::rcu::synchronize();
        }
    }
}

/// Runs last among the hooks of its place, but for conntrack's own confirmation.
pub const LAST: i32 = i32::MAX - 1;

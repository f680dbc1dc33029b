// SPDX-License-Identifier: GPL-2.0

//! Network namespaces, and what a module keeps for each.

use core::ffi::c_uint;
use core::marker::PhantomData;
#[cfg(CONFIG_NF_TABLES)]
use core::mem::offset_of;
use core::pin::Pin;
use core::ptr;
use core::ptr::addr_of;
use core::ptr::NonNull;
#[cfg(CONFIG_NF_TABLES)]
use core::sync::atomic::fence;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;

use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::Opaque;

use super::device::Device;
use super::device::Rtnl;
use super::rcu::Read;
use crate::bindings;
use crate::engine::validity::Routes;

/// A `struct net` whose memory is there for `'a`. It may be on its way out.
#[derive(Clone, Copy)]
pub struct Net<'a>(NonNull<bindings::net>, PhantomData<&'a ()>);

// SAFETY: A namespace is used by any thread.
unsafe impl Send for Net<'_> {}
// SAFETY: As above.
unsafe impl Sync for Net<'_> {}

impl<'a> Net<'a> {
    /// # Safety
    ///
    /// `net` has to be valid for `'a`, and not null.
    #[inline]
    pub(super) unsafe fn from_raw(net: *mut bindings::net) -> Self {
        // SAFETY: As required of the caller.
        Self(unsafe { NonNull::new_unchecked(net) }, PhantomData)
    }

    pub(super) fn as_ptr(self) -> *mut bindings::net {
        self.0.as_ptr()
    }

    /// The same, for as long as the caller vouches for.
    ///
    /// # Safety
    ///
    /// The namespace's memory has to be there for `'b`.
    pub(super) unsafe fn extend<'b>(self) -> Net<'b> {
        Net(self.0, PhantomData)
    }

    /// The generation of IPv4 routes, which every change of tables, rules or next hops begins anew
    /// (`rt_cache_flush`).
    #[inline(always)]
    pub fn ipv4_routes(self) -> Routes {
        // SAFETY: The namespace is valid; the generation is an atomic integer.
        let number = unsafe { addr_of!((*self.0.as_ptr()).ipv4.rt_genid.counter).read_volatile() };
        Routes(number as u32)
    }

    /// That of IPv6 routes. The kernel counts routes and rules that are added, and whatever else changes, in
    /// one place (`fib6_new_sernum`, net/ipv6/ip6_fib.c), and routes that are deleted in another
    /// (`fib6_del_route`). Its own caches of routes ask for less: for changes of their part of their table,
    /// which have the same numbers, and whether the route is still there. That misses what happens in a
    /// table that a rule had led past.
    #[inline(always)]
    pub fn ipv6_routes(self) -> Routes {
        // SAFETY: The namespace is valid. The number is an atomic integer, and the count is read without a lock
        // elsewhere, too; it is where the namespace keeps it for as long as it is there, or nowhere if IPv6 was
        // switched off for good when the host started.
        let (number, deleted) = unsafe {
            let ipv6 = addr_of!((*self.0.as_ptr()).ipv6);
            let statistics = addr_of!((*ipv6).rt6_stats).read_volatile();
            (
                addr_of!((*ipv6).fib6_sernum.counter).read_volatile(),
                match statistics.is_null() {
                    true => 0,
                    false => addr_of!((*statistics).fib_discarded_routes).read_volatile(),
                },
            )
        };
        Routes(number as u32).and(Routes(deleted))
    }

    /// Whether IPv6 packets are forwarded, whatever device they arrive on.
    #[inline(always)]
    pub fn forwards_ipv6(self) -> bool {
        // SAFETY: The namespace is valid, and keeps what is configured for all devices.
        unsafe { addr_of!((*(*self.0.as_ptr()).ipv6.devconf_all).forwarding).read_volatile() != 0 }
    }

    /// Whether they are for the device with this index, if not for all. Called in a read side.
    #[cold]
    pub fn forwards_ipv6_of(self, index: u32) -> bool {
        // SAFETY: The namespace is valid.
        unsafe { bindings::ft_forwards_ipv6_of(self.0.as_ptr(), index) }
    }

    /// A number that changes with every change of the nf_tables rules, sets and chains: when one takes
    /// effect, and for a moment before that.
    #[cfg(CONFIG_NF_TABLES)]
    #[inline(always)]
    pub fn rules_generation(self) -> u64 {
        // Whether they are an aligned word together with padding, which nobody writes.
        const ONE_WORD: bool = offset_of!(bindings::net, nft) % align_of::<u64>() == 0
            && size_of::<bindings::netns_nftables>() == size_of::<u64>()
            && offset_of!(bindings::netns_nftables, base_seq) == 0;
        // SAFETY: The namespace is valid. `nf_tables_commit` writes the number before the rules are switched
        // over, and the cursor that they are switched with after that.
        let generation = unsafe {
            let rules = addr_of!((*self.0.as_ptr()).nft);
            if ONE_WORD {
                rules.cast::<u64>().read_volatile()
            } else {
                let cursor = u64::from(addr_of!((*rules).gencursor).read_volatile());
                fence(Ordering::Acquire);
                cursor << 32 | u64::from(addr_of!((*rules).base_seq).read_volatile())
            }
        };
        // What a packet meets after this is no older than that.
        fence(Ordering::Acquire);
        generation
    }

    /// There are no such rules.
    #[cfg(not(CONFIG_NF_TABLES))]
    #[inline(always)]
    pub const fn rules_generation(self) -> u64 {
        0
    }

    /// Whether it is still in use. It is not torn down while the code is in a read side that began
    /// before.
    fn is_alive(self) -> bool {
        // SAFETY: The namespace's memory is there; the count is an atomic integer.
        unsafe { bindings::ft_net_is_alive(self.0.as_ptr()) }
    }
}

/// What a module keeps for a namespace.
pub trait PerNamespace: Send + Sync + 'static {
    /// What it needs to be made.
    type Context: Send + Sync;

    /// Where the kernel's number for it is kept. The same for every call.
    fn id() -> &'static Id<Self::Context>;

    /// Made for a namespace that is new, or that is there when the module is loaded.
    ///
    /// # Errors
    ///
    /// If it fails, so does making the namespace or loading the module.
    fn enter(net: Net<'static>, context: &Self::Context) -> Result<Pin<KBox<Self>>>;

    /// The namespace is going, or the module is. After this, and a grace period, it is dropped. May
    /// sleep.
    fn leave(self: Pin<&Self>);
}

/// The kernel's number for what a module keeps in every namespace, and what is needed to make it.
///
/// # Invariants
///
/// `context` is valid while the operations are registered.
pub struct Id<C> {
    number: Opaque<c_uint>,
    context: AtomicPtr<C>,
}

// SAFETY: The number is written by the kernel when the operations are registered, and only read from
// then on. Of the context only `&C` is given out.
unsafe impl<C: Send + Sync> Sync for Id<C> {}

impl<C> Id<C> {
    /// Not registered.
    pub const fn unregistered() -> Self {
        Self {
            number: Opaque::new(0),
            context: AtomicPtr::new(ptr::null_mut()),
        }
    }
}

/// Keeps a `T` in every namespace until it is dropped.
pub struct Registration<T: PerNamespace> {
    operations: Pin<KBox<Opaque<bindings::pernet_operations>>>,
    _context: KBox<T::Context>,
}

// SAFETY: The operations may be unregistered by any thread.
unsafe impl<T: PerNamespace> Send for Registration<T> {}
// SAFETY: There is nothing to be done with a shared one.
unsafe impl<T: PerNamespace> Sync for Registration<T> {}

/// What the kernel keeps for us: a pointer to the `T`, null before [`PerNamespace::enter`] and after
/// the `T` was dropped.
type Slot<T> = AtomicPtr<T>;

impl<T: PerNamespace> Registration<T> {
    /// Begins, with the namespaces that are there.
    ///
    /// # Errors
    ///
    /// Those of [`PerNamespace::enter`], or `ENOMEM`.
    ///
    /// # Safety
    ///
    /// Once at a time for a `T`.
    pub unsafe fn new(context: T::Context) -> Result<Self> {
        let mut context = KBox::new(context, GFP_KERNEL)?;
        // INVARIANT: It is in a box that is dropped after the operations have been unregistered.
        T::id().context.store(&mut *context, Ordering::Release);
        let operations = KBox::pin(
            Opaque::new(bindings::pernet_operations {
                init: Some(Self::init),
                pre_exit: Some(Self::pre_exit),
                exit: Some(Self::exit),
                id: T::id().number.get(),
                size: size_of::<Slot<T>>(),
                ..Default::default()
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The operations are pinned, and unregistered before they are dropped.
        to_result(unsafe { bindings::register_pernet_subsys(operations.get()) })?;
        Ok(Self {
            operations,
            _context: context,
        })
    }

    /// What the kernel calls for a namespace that is new to the module.
    ///
    /// # Safety
    ///
    /// `net` has to be valid, and what the kernel keeps for the module there.
    unsafe extern "C" fn init(net: *mut bindings::net) -> i32 {
        // SAFETY: By the invariant; the operations are registered, or are just being.
        let Some(context) = (unsafe { T::id().context.load(Ordering::Acquire).as_ref() }) else {
            return EINVAL.to_errno();
        };
        // SAFETY: The namespace outlives what is kept for it: `exit` drops that.
        let kept = match T::enter(unsafe { Net::from_raw(net) }, context) {
            Ok(kept) => kept,
            Err(error) => return error.to_errno(),
        };
        // SAFETY: It stays pinned: it is only handed out as a shared reference until it is dropped.
        let kept = KBox::into_raw(unsafe { Pin::into_inner_unchecked(kept) });
        // SAFETY: The kernel has just made the slot.
        if let Some(slot) = unsafe { slot::<T>(net) } {
            slot.store(kept, Ordering::Release);
        }
        0
    }

    /// What the kernel calls when a namespace, or the module, is going.
    ///
    /// # Safety
    ///
    /// As for `init`.
    unsafe extern "C" fn pre_exit(net: *mut bindings::net) {
        // SAFETY: The slot is there until `exit` has returned; what it points to, too.
        if let Some(kept) = unsafe { kept::<T>(net) } {
            // SAFETY: It was pinned when it was made and has not moved.
            unsafe { Pin::new_unchecked(kept) }.leave();
        }
    }

    /// What the kernel calls a grace period after that.
    ///
    /// # Safety
    ///
    /// As for `init`.
    unsafe extern "C" fn exit(net: *mut bindings::net) {
        // SAFETY: The slot is there until this has returned.
        let Some(slot) = (unsafe { slot::<T>(net) }) else {
            return;
        };
        let kept = slot.swap(ptr::null_mut(), Ordering::AcqRel);
        if !kept.is_null() {
            // SAFETY: It came from `into_raw` in `init`; readers that found it have ended, since the
            // kernel waits for a grace period between `pre_exit` and this.
            drop(unsafe { KBox::from_raw(kept) });
        }
    }
}

impl<T: PerNamespace> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: They were registered in `new`.
        unsafe { bindings::unregister_pernet_subsys(self.operations.get()) };
    }
}

/// What is kept for `net`, found by an event's handler in a read side.
pub fn find<'rcu, T: PerNamespace>(_read: Read<'rcu>, net: Net<'_>) -> Option<Pin<&'rcu T>> {
    // A namespace that was alive in this read side is not torn down before it ends.
    if !net.is_alive() {
        return None;
    }
    // SAFETY: So its slot is there, and what that points to, for `'rcu`.
    let kept = unsafe { kept::<T>(net.as_ptr()) }?;
    // SAFETY: It was pinned when it was made and has not moved.
    Some(unsafe { Pin::new_unchecked(kept) })
}

/// What is kept for the namespace of a device, found under the routing netlink lock. It is found as long
/// as there are devices in the namespace, even if that is on its way out: the devices go one after the
/// other, and wait for whoever holds on to them.
pub fn of_device<'a, T: PerNamespace>(_rtnl: &'a Rtnl, device: &'a Device) -> Option<Pin<&'a T>> {
    // SAFETY: What is kept goes after the namespace's devices: those are a "pernet device" of the kernel,
    // which are torn down before any "pernet subsys", under this lock. And a module stops listening to
    // devices before it stops keeping anything.
    let kept = unsafe { kept::<T>(device.net().as_ptr()) }?;
    // SAFETY: It was pinned when it was made and has not moved.
    Some(unsafe { Pin::new_unchecked(kept) })
}

/// What is kept for `net`, which the caller keeps alive.
///
/// # Safety
///
/// The namespace must not be torn down, nor the registration dropped, during `'a`.
pub(super) unsafe fn of<'a, T: PerNamespace>(net: Net<'a>) -> Option<Pin<&'a T>> {
    // SAFETY: As required of the caller.
    let kept = unsafe { kept::<T>(net.extend::<'a>().as_ptr()) }?;
    // SAFETY: It was pinned when it was made and has not moved.
    Some(unsafe { Pin::new_unchecked(kept) })
}

/// # Safety
///
/// The kernel's slot for `T` in `net` has to be there for `'a`.
unsafe fn slot<'a, T: PerNamespace>(net: *mut bindings::net) -> Option<&'a Slot<T>> {
    // SAFETY: Written once, before any slot was made.
    let id = unsafe { T::id().number.get().read() };
    // SAFETY: As required of the caller. The slot is zeroed memory of the right size at first, which is
    // a null pointer.
    unsafe { bindings::ft_net_generic(net, id).cast::<Slot<T>>().as_ref() }
}

/// # Safety
///
/// As for [`slot`]; and what it points to must not be dropped during `'a`.
unsafe fn kept<'a, T: PerNamespace>(net: *mut bindings::net) -> Option<&'a T> {
    // SAFETY: As required of the caller.
    unsafe { slot::<T>(net)?.load(Ordering::Acquire).as_ref() }
}

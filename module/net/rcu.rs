// SPDX-License-Identifier: GPL-2.0

//! Read-copy-update.

use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;

use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::types::NotThreadSafe;

use crate::bindings;

/// Proof that the code runs in an RCU read-side critical section, which lasts for `'rcu`.
///
/// Unlike [`rcu::Guard`] it costs nothing: it is for callbacks that the kernel calls in one. It stays on
/// the CPU, and in the task, that is in the section.
#[derive(Clone, Copy)]
pub struct Read<'rcu>(PhantomData<(&'rcu (), NotThreadSafe)>);

impl<'rcu> Read<'rcu> {
    /// Of a critical section that the guard keeps open.
    pub fn of(_guard: &'rcu rcu::Guard) -> Self {
        Self(PhantomData)
    }

    /// Of the critical section that the caller is in.
    ///
    /// # Safety
    ///
    /// It has to last for all of `'rcu`.
    #[inline(always)]
    pub unsafe fn assume() -> Self {
        Self(PhantomData)
    }
}

/// Waits until every read-side critical section that is open now has ended. Sleeps.
pub fn synchronize() {
    // SAFETY: May be called from any context that can sleep; a context that can't is reported by the
    // kernel and waits all the same.
    unsafe { bindings::synchronize_net() }
}

/// A box that readers look into without a lock while a writer replaces it.
///
/// # Invariants
///
/// The pointer is null or came from [`KBox::into_raw`], and what it points to is dropped only after
/// it has been replaced and a grace period has passed.
pub struct RcuBox<T>(AtomicPtr<T>, PhantomData<KBox<T>>);

// SAFETY: It gives out `&T` to any thread and drops the `T` on any thread.
unsafe impl<T: Send + Sync> Sync for RcuBox<T> {}
// SAFETY: As above.
unsafe impl<T: Send + Sync> Send for RcuBox<T> {}

impl<T> RcuBox<T> {
    /// With nothing in it.
    pub const fn empty() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()), PhantomData)
    }

    /// What is in it now.
    #[inline(always)]
    pub fn read<'rcu>(&'rcu self, _read: Read<'rcu>) -> Option<&'rcu T> {
        // SAFETY: By the type's invariant it is null or valid until a grace period after it has been
        // replaced, and `_read` shows that none ends before `'rcu` does.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Puts something else in it. What was there can be dropped after a grace period, for which the
    /// result waits when it is dropped.
    pub fn replace(&self, new: Option<KBox<T>>) -> Option<Replaced<T>> {
        let new = new.map_or(ptr::null_mut(), KBox::into_raw);
        let old = self.0.swap(new, Ordering::AcqRel);
        if old.is_null() {
            return None;
        }
        // SAFETY: By the type's invariant it came from `into_raw`, and nobody else can have taken it
        // out of the pointer.
        Some(Replaced(Some(unsafe { KBox::from_raw(old) })))
    }
}

impl<T> Drop for RcuBox<T> {
    fn drop(&mut self) {
        drop(self.replace(None));
    }
}

/// What was in an [`RcuBox`]; readers may still look at it. Dropping it sleeps.
pub struct Replaced<T>(Option<KBox<T>>);

impl<T> Replaced<T> {
    /// The old contents.
    pub fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }
}

impl<T> Drop for Replaced<T> {
    fn drop(&mut self) {
        synchronize();
        self.0 = None;
    }
}

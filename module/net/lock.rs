// SPDX-License-Identifier: GPL-2.0

//! A spinlock for data that softirqs and processes share.

use core::cell::UnsafeCell;
use core::ops::Deref;
use core::ops::DerefMut;
use core::pin::Pin;

use kernel::prelude::*;
use kernel::types::NotThreadSafe;
use kernel::types::Opaque;

use crate::bindings;

/// A spinlock that is taken with bottom halves switched off (`spin_lock_bh`), which the `kernel`
/// crate's lock is not.
#[pin_data]
pub struct BhLock<T> {
    #[pin]
    raw: Opaque<bindings::spinlock_t>,
    data: UnsafeCell<T>,
}

// SAFETY: The lock gives `&mut T` to one thread at a time.
unsafe impl<T: Send> Sync for BhLock<T> {}
// SAFETY: As above; the raw lock is not bound to a thread.
unsafe impl<T: Send> Send for BhLock<T> {}

impl<T> BhLock<T> {
    /// An unlocked lock around `data`.
    pub fn new(data: T) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `ft_spin_lock_init` initialises the lock that it is given.
            raw <- Opaque::ffi_init(|lock| unsafe { bindings::ft_spin_lock_init(lock) }),
            data: UnsafeCell::new(data),
        })
    }

    /// Takes the lock.
    pub fn lock(&self) -> BhGuard<'_, T> {
        // SAFETY: The lock was initialised in `new` and does not move, being pinned.
        unsafe { bindings::ft_spin_lock_bh(self.raw.get()) };
        BhGuard(self, NotThreadSafe)
    }

    /// The data, when nobody else can hold the lock.
    pub fn get_mut(self: Pin<&mut Self>) -> &mut T {
        // SAFETY: `data` is not structurally pinned.
        unsafe { self.get_unchecked_mut() }.data.get_mut()
    }
}

/// A taken [`BhLock`]; gives it back when dropped.
pub struct BhGuard<'a, T>(&'a BhLock<T>, NotThreadSafe);

impl<T> Deref for BhGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: The lock is held, so nobody else has a reference to the data.
        unsafe { &*self.0.data.get() }
    }
}

impl<T> DerefMut for BhGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The lock is held, so nobody else has a reference to the data.
        unsafe { &mut *self.0.data.get() }
    }
}

impl<T> Drop for BhGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: The guard's existence shows that this thread took the lock.
        unsafe { bindings::ft_spin_unlock_bh(self.0.raw.get()) };
    }
}

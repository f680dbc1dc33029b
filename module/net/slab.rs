// SPDX-License-Identifier: GPL-2.0

//! A cache of equally sized objects.

use core::marker::PhantomData;
use core::ptr::NonNull;

use kernel::prelude::*;

use crate::bindings;

/// A `kmem_cache` for objects of type `T`, under a name of its own in `/proc/slabinfo`: what is left
/// in it when it is destroyed is reported by the kernel.
///
/// # Invariants
///
/// The pointer is to a live cache for objects of `T`'s size and alignment.
pub struct Slab<T>(NonNull<bindings::kmem_cache>, PhantomData<T>);

// SAFETY: A `kmem_cache` is used by any thread.
unsafe impl<T: Send> Send for Slab<T> {}
// SAFETY: As above.
unsafe impl<T: Send> Sync for Slab<T> {}

impl<T> Slab<T> {
    /// A cache with the given name.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(name: &'static CStr) -> Result<Self> {
        // SAFETY: The name lives for ever; size and alignment are those of a Rust type.
        let cache = unsafe {
            bindings::ft_cache_create(
                name.as_char_ptr(),
                size_of::<T>() as u32,
                align_of::<T>() as u32,
            )
        };
        NonNull::new(cache)
            .map(|cache| Self(cache, PhantomData))
            .ok_or(ENOMEM)
    }

    /// Moves `value` into the cache, without sleeping. Gives `value` up if there is no memory.
    pub(super) fn put(&self, value: T) -> Option<NonNull<T>> {
        // SAFETY: The cache is live.
        let memory = unsafe { bindings::ft_cache_alloc_atomic(self.0.as_ptr()) };
        let place = NonNull::new(memory.cast::<T>())?;
        // SAFETY: The memory is fresh, and large and aligned enough for a `T`.
        unsafe { place.as_ptr().write(value) };
        Some(place)
    }

    /// Drops an object and frees its memory.
    ///
    /// # Safety
    ///
    /// `object` came from [`Slab::put`] of this cache and nobody uses it any more.
    pub(super) unsafe fn free(&self, object: NonNull<T>) {
        // SAFETY: As required of the caller: a valid value, dropped once.
        unsafe { object.as_ptr().drop_in_place() };
        // SAFETY: As required of the caller.
        unsafe { bindings::kmem_cache_free(self.0.as_ptr(), object.as_ptr().cast()) };
    }
}

impl<T> Drop for Slab<T> {
    fn drop(&mut self) {
        // SAFETY: The cache is live and ours.
        unsafe { bindings::kmem_cache_destroy(self.0.as_ptr()) };
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Work that is done later, in a context that can sleep.

use core::marker::PhantomData;
use core::pin::Pin;
use core::ptr::NonNull;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;

use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;
use kernel::types::Opaque;

use crate::bindings;

/// What an `Arc` holds, pinned: the `kernel` crate never moves it.
pub fn pinned<T>(arc: &Arc<T>) -> Pin<&T> {
    // SAFETY: There is no way to get a `T` out of an `Arc` but through a pinned pointer.
    unsafe { Pin::new_unchecked(&**arc) }
}

/// What a piece of [`Work`] does, and for whom.
pub trait Job {
    /// Whom it is done for: the type that the [`Work`] is a field of.
    type Owner: Sync;

    /// Does it.
    fn run(owner: ArcBorrow<'_, Self::Owner>);
}

/// A piece of work that its owner, of which it is a field, can have done later.
///
/// # Invariants
///
/// `owner` is null or points to the value that this is a field of, which an `Arc` holds.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub struct Work<J: Job> {
    #[pin]
    raw: Opaque<bindings::delayed_work>,
    owner: AtomicPtr<J::Owner>,
    _job: PhantomData<fn(J)>,
}

// SAFETY: The kernel's functions for work may be called from any thread.
unsafe impl<J: Job> Sync for Work<J> {}
// SAFETY: As above; it is bound to no thread.
unsafe impl<J: Job> Send for Work<J> {}

impl<J: Job> Work<J> {
    /// Work that is not scheduled.
    ///
    /// # Safety
    ///
    /// It has to become a field of a `J::Owner`, and once it has been scheduled it has to be cancelled
    /// before the last `Arc` of that is dropped.
    pub unsafe fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: Initialises the work that it is given.
            raw <- Opaque::ffi_init(|work| unsafe {
                bindings::ft_delayed_work_init(work, Some(Self::run));
            }),
            owner: AtomicPtr::new(core::ptr::null_mut()),
            _job: PhantomData,
        })
    }

    /// Has it done after `delay` ticks, unless it is scheduled already; then that stays.
    pub fn schedule(&self, owner: &Arc<J::Owner>, delay: u32) {
        self.own(owner);
        // SAFETY: The work was initialised by `new`.
        unsafe {
            bindings::queue_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as i32,
                bindings::system_dfl_wq,
                self.raw.get(),
                delay as usize,
            );
        }
    }

    /// Has it done as soon as possible.
    pub fn hurry(&self, owner: &Arc<J::Owner>) {
        self.own(owner);
        // SAFETY: The work was initialised by `new`.
        unsafe {
            bindings::mod_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as i32,
                bindings::system_dfl_wq,
                self.raw.get(),
                0,
            );
        }
    }

    /// Takes it off the schedule, and waits until it is not being done any more. Sleeps.
    pub fn cancel(&self) {
        // SAFETY: The work was initialised by `new`.
        unsafe { bindings::cancel_delayed_work_sync(self.raw.get()) };
    }

    fn own(&self, owner: &Arc<J::Owner>) {
        // INVARIANT: By the requirement on `new`.
        let owner = core::ptr::from_ref(&**owner).cast_mut();
        self.owner.store(owner, Ordering::Release);
    }

    /// What the kernel calls when the time has come.
    ///
    /// # Safety
    ///
    /// `work` has to be the first member of a [`Work`] that was scheduled.
    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        // SAFETY: The work struct is the first member of `delayed_work`, and that of `Self`; both are
        // `repr(C)`. The kernel calls this with the work that `new` initialised.
        let this = unsafe { &*work.cast::<Self>() };
        if let Some(owner) = NonNull::new(this.owner.load(Ordering::Acquire)) {
            // SAFETY: By the invariant it is what an `Arc` holds; and it is there, since the work is
            // cancelled before the last of them is dropped.
            let owner = unsafe { ArcBorrow::from_raw(owner.as_ptr()) };
            J::run(owner);
        }
    }
}

#[pinned_drop]
impl<J: Job> PinnedDrop for Work<J> {
    fn drop(self: Pin<&mut Self>) {
        self.cancel();
    }
}

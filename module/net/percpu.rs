// SPDX-License-Identifier: GPL-2.0

//! Counters and the like that every CPU has its own copy of.

use core::ptr::NonNull;

use kernel::prelude::*;

use crate::bindings;
use crate::engine::doorkeeper::Doorkeeper;

/// `N` counters, each counted on every CPU separately and summed up when read. Counting touches no
/// memory that another CPU writes, and is not lost to whatever interrupts it.
///
/// # Invariants
///
/// The pointer is to a per-CPU allocation of `N` words, owned by this.
pub struct Counters<const N: usize>(NonNull<u64>);

// SAFETY: The allocation is not bound to a thread; counting and reading go by single words.
unsafe impl<const N: usize> Send for Counters<N> {}
// SAFETY: As above.
unsafe impl<const N: usize> Sync for Counters<N> {}

impl<const N: usize> Counters<N> {
    /// Counters that stand at zero.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        // SAFETY: Allocates zeroed memory; size and alignment are within a page.
        let memory = unsafe { bindings::ft_alloc_percpu(size_of::<[u64; N]>(), align_of::<u64>()) };
        NonNull::new(memory.cast::<u64>()).map(Self).ok_or(ENOMEM)
    }

    /// Counts `value` more on counter `at`, if there is such a counter.
    #[inline(always)]
    pub fn add(&self, at: usize, value: u64) {
        if at >= N {
            return;
        }
        // SAFETY: The counter is a word of a per-CPU allocation that `self` keeps.
        unsafe { this_cpu_add::<0>(self.0.as_ptr(), at.wrapping_mul(WORD), value) };
    }

    /// Counts one more on counter `at`, and `value` more on the one behind it, if there are such counters.
    ///
    /// Bottom halves have to be off, and all that counts on these two has to have them off: where a word in memory is
    /// not added to by a single instruction, something could be lost otherwise.
    #[inline(always)]
    pub fn add_one_and(&self, at: usize, value: u64) {
        if at.saturating_add(1) >= N {
            return;
        }
        let offset = at.wrapping_mul(WORD);
        // SAFETY: The counters are words of a per-CPU allocation that `self` keeps.
        unsafe {
            this_cpu_add_one_and(self.0.as_ptr(), offset, value);
        }
    }

    /// The sum of counter `at` over all CPUs; 0 if there is no such counter.
    pub fn sum(&self, at: usize) -> u64 {
        if at >= N {
            return 0;
        }
        // SAFETY: As in `add`.
        unsafe { bindings::ft_per_cpu_sum(self.0.as_ptr().add(at)) }
    }
}

impl<const N: usize> Drop for Counters<N> {
    fn drop(&mut self) {
        // SAFETY: By the invariant this is ours to free, and nobody counts any more.
        unsafe { bindings::free_percpu(self.0.as_ptr().cast()) };
    }
}

/// A value that is valid if all its bytes are zero.
///
/// # Safety
///
/// It has to be.
pub unsafe trait Zeroed: Send + Sync {}

// SAFETY: It consists of integers.
unsafe impl Zeroed for Doorkeeper {}

/// A `T` for every CPU, all zero at first.
///
/// # Invariants
///
/// The pointer is to a per-CPU allocation of `T`s, owned by this.
pub struct PerCpu<T: Zeroed>(NonNull<T>);

// SAFETY: The allocation is not bound to a thread, and what is in it is shared.
unsafe impl<T: Zeroed> Send for PerCpu<T> {}
// SAFETY: As above.
unsafe impl<T: Zeroed> Sync for PerCpu<T> {}

impl<T: Zeroed> PerCpu<T> {
    /// Allocates them.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        // No more than can be had (`PCPU_MIN_UNIT_SIZE` in include/linux/percpu.h), nor otherwise aligned.
        const { assert!(size_of::<T>() <= 32 << 10 && align_of::<T>() <= 4096) };
        // SAFETY: Allocates zeroed memory.
        let memory = unsafe { bindings::ft_alloc_percpu(size_of::<T>(), align_of::<T>()) };
        NonNull::new(memory.cast::<T>()).map(Self).ok_or(ENOMEM)
    }

    /// That of the CPU that the code runs on; of one on which it has just run if it is moved meanwhile.
    pub fn this_cpu(&self) -> &T {
        // SAFETY: By the invariant there is one for every CPU, which lives as long as `self`, and is valid since
        // zero is.
        unsafe { &*bindings::ft_this_cpu_ptr(self.0.as_ptr().cast()).cast::<T>() }
    }
}

impl<T: Zeroed> Drop for PerCpu<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant this is ours to free. There is nothing in it to be dropped, or zero would not
        // be valid.
        unsafe { bindings::free_percpu(self.0.as_ptr().cast()) };
    }
}

/// Bytes from one counter to the next.
const WORD: usize = size_of::<u64>();

/// Adds to a word of a per-CPU allocation, `offset` and `MORE` bytes behind `counters`.
///
/// # Safety
///
/// That has to be in a live per-CPU allocation. The pointer is an offset into every CPU's area, not an address: it
/// must not be read through.
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
#[inline(always)]
unsafe fn this_cpu_add<const MORE: usize>(counters: *mut u64, offset: usize, value: u64) {
    // SAFETY: On x86-64 a per-CPU pointer is an offset from the base in GS, and one instruction can't
    // be split by an interrupt; this is what `this_cpu_add` of arch/x86/include/asm/percpu.h does.
    unsafe {
        core::arch::asm!(
            "add qword ptr gs:[{counters} + {offset} + {more}], {value}",
            counters = in(reg) counters,
            offset = in(reg) offset,
            more = const MORE,
            value = in(reg) value,
            options(nostack),
        );
    }
}

/// Adds to a word of a per-CPU allocation, `offset` and `MORE` bytes behind `counters`.
///
/// # Safety
///
/// As above.
#[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
#[inline(always)]
unsafe fn this_cpu_add<const MORE: usize>(counters: *mut u64, offset: usize, value: u64) {
    // SAFETY: As required of the caller.
    unsafe { bindings::ft_this_cpu_add(counters.byte_add(offset).byte_add(MORE), value) };
}

/// Adds one to a word of a per-CPU allocation, `offset` bytes behind `counters`, and `value` to the one behind it.
///
/// # Safety
///
/// As for [`this_cpu_add`], of both.
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
#[inline(always)]
pub(super) unsafe fn this_cpu_add_one_and(counters: *mut u64, offset: usize, value: u64) {
    // SAFETY: As in `this_cpu_add`.
    unsafe {
        core::arch::asm!(
            "inc qword ptr gs:[{counters} + {offset}]",
            counters = in(reg) counters,
            offset = in(reg) offset,
            options(nostack),
        );
        this_cpu_add::<WORD>(counters, offset, value);
    }
}

/// Adds one to a word of a per-CPU allocation, `offset` bytes behind `counters`, and `value` to the one behind it.
///
/// # Safety
///
/// As for [`this_cpu_add`], of both.
#[cfg(not(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML))))]
#[inline(always)]
pub(super) unsafe fn this_cpu_add_one_and(counters: *mut u64, offset: usize, value: u64) {
    // SAFETY: As required of the caller.
    unsafe { bindings::ft_this_cpu_add_one_and(counters.byte_add(offset), value) };
}

/// The number of the CPU that the code runs on. Only a hint unless migration is switched off.
#[cfg(all(CONFIG_X86_64, CONFIG_SMP, not(CONFIG_UML)))]
#[inline(always)]
pub fn this_cpu() -> u32 {
    let cpu: u32;
    // SAFETY: Reads the CPU's own number from its per-CPU area, as `raw_smp_processor_id` of
    // arch/x86/include/asm/smp.h does.
    unsafe {
        core::arch::asm!(
            "mov {cpu:e}, dword ptr gs:[rip + cpu_number]",
            cpu = out(reg) cpu,
            options(nostack, preserves_flags, readonly),
        );
    }
    cpu
}

/// The number of the CPU that the code runs on: the only one.
#[cfg(not(CONFIG_SMP))]
#[inline(always)]
pub fn this_cpu() -> u32 {
    0
}

/// The number of the CPU that the code runs on. Only a hint unless migration is switched off.
#[cfg(all(CONFIG_SMP, any(not(CONFIG_X86_64), CONFIG_UML)))]
#[inline(always)]
pub fn this_cpu() -> u32 {
    // SAFETY: Reads the CPU's own number.
    unsafe { bindings::ft_this_cpu() }
}

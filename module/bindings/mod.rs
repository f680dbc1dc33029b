// SPDX-License-Identifier: GPL-2.0

//! What bindgen makes of `bindings.h`. Used by `net` alone.

#![allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    improper_ctypes,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]

use kernel::ffi;
use pin_init::MaybeZeroable;

// bindgen takes these for C types, which have other widths than Rust's on some architectures; the
// kernel's own bindings do the same.
type __kernel_size_t = usize;
type __kernel_ssize_t = isize;
type __kernel_ptrdiff_t = isize;

include!(env!("FASTTRACK_BINDINGS"));

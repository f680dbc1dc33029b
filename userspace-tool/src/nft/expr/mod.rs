// SPDX-License-Identifier: GPL-2.0-only

//! The nf_tables expressions that nftnl lacks, one a file.
//!
//! Each is an [`nftnl::expr::Expression`], as nftnl's own are, and is used with them.

#![expect(unsafe_code, reason = "glue to libnftnl, as in nftnl's own expressions")]

mod kind;
mod rt;
mod secpath;

pub use kind::DeviceKind;
pub(crate) use kind::NFT_META_OIFKIND;
pub(crate) use rt::NFT_RT_XFRM;
pub use rt::RouteIpsec;
pub(crate) use secpath::NFT_META_SECPATH;
pub use secpath::Secpath;

use std::ffi::CStr;
use std::ptr::NonNull;

use nftnl::nftnl_sys as sys;

use super::Error;

/// Succeeds if the installed libnftnl knows an expression. `nftnl_expr_alloc` returns NULL for one
/// that it does not know, and `to_expr` has no way to report that.
fn require(name: &'static CStr) -> Result<(), Error> {
    // SAFETY: `name` is a C string. The allocated expression belongs to nobody yet, so that it is
    // ours to free.
    unsafe {
        let expr = sys::nftnl_expr_alloc(name.as_ptr());
        if expr.is_null() {
            return Err(Error::Expression(name.to_str().unwrap_or_default()));
        }
        sys::nftnl_expr_free(expr);
    }
    Ok(())
}

/// Allocates an expression that [`require`] has found, and sets attributes of 32 bits.
///
/// The caller hands it to a rule, which frees it.
fn allocate(name: &'static CStr, attributes: &[(u32, u32)]) -> NonNull<sys::nftnl_expr> {
    // SAFETY: `name` is a C string.
    let expr = unsafe { sys::nftnl_expr_alloc(name.as_ptr()) };
    let Some(expr) = NonNull::new(expr) else {
        // Known, so what lacks is memory: do what the standard library does.
        std::alloc::handle_alloc_error(std::alloc::Layout::new::<u32>());
    };
    for (attribute, value) in attributes {
        // SAFETY: `expr` was just allocated, and the attribute is one of its 32-bit attributes.
        unsafe { sys::nftnl_expr_set_u32(expr.as_ptr(), *attribute as u16, *value) };
    }
    expr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_expression_is_reported() {
        assert!(require(c"counter").is_ok());
        let error = require(c"teleport").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the installed libnftnl does not know the expression ‘teleport’"
        );
    }
}

// SPDX-License-Identifier: GPL-2.0-only

use std::ptr::NonNull;

use nftnl::Rule;
use nftnl::expr::Expression;
use nftnl::expr::Register;
use nftnl::nftnl_sys as sys;

use super::Error;

/// `NFT_META_SECPATH`, absent from the libc crate, and from nftnl's `Meta`, which is closed.
pub(crate) const NFT_META_SECPATH: u32 = 25;

/// Loads 1 into register 1 if the packet was decrypted by IPsec, and 0 if not.
///
/// ```text
/// meta ipsec exists        (`meta secpath exists` in older versions of nft)
///   [ meta load secpath => reg 1 ]
///   [ cmp eq reg 1 0x00000001 ]
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Secpath(());

impl Secpath {
    /// Fails if the installed libnftnl does not know `meta`.
    pub fn new() -> Result<Self, Error> {
        super::require(c"meta").map(|()| Self(()))
    }
}

impl Expression for Secpath {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        super::allocate(
            c"meta",
            &[
                (sys::NFTNL_EXPR_META_KEY, NFT_META_SECPATH),
                (sys::NFTNL_EXPR_META_DREG, Register::Reg1.to_raw()),
            ],
        )
    }
}

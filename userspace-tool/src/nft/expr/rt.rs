// SPDX-License-Identifier: GPL-2.0-only

use std::ptr::NonNull;

use nftnl::Rule;
use nftnl::expr::Expression;
use nftnl::expr::Register;
use nftnl::nftnl_sys as sys;

use super::Error;

/// `NFT_RT_XFRM`, absent from the libc crate.
pub(crate) const NFT_RT_XFRM: u32 = 4;

/// Loads 1 into register 1 if the packet's route leads through an IPsec transform, and 0 if not.
///
/// ```text
/// rt ipsec exists
///   [ rt load ipsec => reg 1 ]
///   [ cmp eq reg 1 0x00000001 ]
/// ```
///
/// It means something from routing on: in a prerouting chain the kernel accepts it and it never
/// matches.
#[derive(Debug, Clone, Copy)]
pub struct RouteIpsec(());

impl RouteIpsec {
    /// Fails if the installed libnftnl does not know `rt`.
    pub fn new() -> Result<Self, Error> {
        super::require(c"rt").map(|()| Self(()))
    }
}

impl Expression for RouteIpsec {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        super::allocate(
            c"rt",
            &[
                (sys::NFTNL_EXPR_RT_KEY, NFT_RT_XFRM),
                (sys::NFTNL_EXPR_RT_DREG, Register::Reg1.to_raw()),
            ],
        )
    }
}

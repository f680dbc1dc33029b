// SPDX-License-Identifier: GPL-2.0-only

use std::ptr::NonNull;

use nftnl::Rule;
use nftnl::expr::Expression;
use nftnl::expr::Register;
use nftnl::nftnl_sys as sys;

use super::Error;

/// Absent from nftnl's `Meta`, which is closed.
pub(crate) const NFT_META_OIFKIND: u32 = 27;

/// Loads what kind of device the packet leaves by into register 1: what `ip link add
/// … type` has made it, padded with zeros to 16 bytes.
///
/// ```text
/// meta oifkind "vti*"
///   [ meta load oifkind => reg 1 ]
///   [ cmp eq reg 1 0x00697476 ]
/// ```
///
/// The rule does not apply where there is no such device, or where it is of no kind, as network
/// cards are.
#[derive(Debug, Clone, Copy)]
pub struct DeviceKind(());

impl DeviceKind {
    /// Of the device that the packet leaves by. Fails if the installed libnftnl does not know `meta`.
    pub fn outgoing() -> Result<Self, Error> {
        super::require(c"meta").map(|()| Self(()))
    }
}

impl Expression for DeviceKind {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        super::allocate(
            c"meta",
            &[
                (sys::NFTNL_EXPR_META_KEY, NFT_META_OIFKIND),
                (sys::NFTNL_EXPR_META_DREG, Register::Reg1.to_raw()),
            ],
        )
    }
}

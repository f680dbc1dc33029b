// SPDX-License-Identifier: GPL-2.0

//! The record of the IPsec states that have decrypted a packet.

use core::ptr::addr_of;
use core::ptr::NonNull;

use super::skb::Forwarded;
use super::skb::Skb;
use crate::bindings;

/// The states that have decrypted a packet, held with the packet's own record of them.
///
/// As long as this is there no other state can come to lie where one of them does, so to find the same
/// pointers in another packet's record means that it was decrypted by the same states.
///
/// # Invariants
///
/// The pointer is to a valid block of packet extensions with a `struct sec_path`, of which this holds a
/// reference. While more than one reference is held nobody changes which states are in it
/// (`skb_ext_maybe_cow`).
pub struct Secpath(NonNull<bindings::skb_ext>);

// SAFETY: A block of extensions is used and released by any thread.
unsafe impl Send for Secpath {}
// SAFETY: As above.
unsafe impl Sync for Secpath {}

/// A packet's extensions, if a record of states is among them.
///
/// # Safety
///
/// `skb` has to be valid.
#[inline(always)]
unsafe fn extensions(skb: *const bindings::sk_buff) -> Option<NonNull<bindings::skb_ext>> {
    const SECPATH: u8 = 1 << bindings::skb_ext_id_SKB_EXT_SEC_PATH;
    // SAFETY: As required of the caller; a packet with an active extension has a block of them.
    unsafe {
        if (*skb).active_extensions & SECPATH == 0 {
            return None;
        }
        NonNull::new((*skb).extensions)
    }
}

/// The states in a block of extensions, the outermost first.
///
/// # Safety
///
/// The block has to be valid for `'a`, and to have a record of states that nobody changes.
#[inline(always)]
unsafe fn states<'a>(block: NonNull<bindings::skb_ext>) -> &'a [*mut bindings::xfrm_state] {
    const SECPATH: usize = bindings::skb_ext_id_SKB_EXT_SEC_PATH as usize;
    const CHUNK: usize = 8;
    // SAFETY: As required of the caller. An extension lies where its offset says, in chunks.
    let record = unsafe {
        let offsets = &(*block.as_ptr()).offset;
        let chunks = offsets.get(SECPATH).copied().unwrap_or(0);
        &*block
            .as_ptr()
            .byte_add(usize::from(chunks) * CHUNK)
            .cast::<bindings::sec_path>()
    };
    record.xvec.get(..record.len.into()).unwrap_or(&[])
}

impl Secpath {
    /// That of a packet. `None` if it has not been decrypted.
    pub fn of(packet: &Forwarded<'_>) -> Option<Self> {
        // SAFETY: The packet is valid.
        let block = unsafe { extensions(packet.as_ptr()) }?;
        // SAFETY: The packet holds its extensions.
        unsafe { bindings::ft_skb_ext_get(block.as_ptr()) };
        // INVARIANT: The reference has just been taken.
        Some(Self(block))
    }

    #[inline(always)]
    fn states(&self) -> &[*mut bindings::xfrm_state] {
        // SAFETY: By the invariant. If this is the last reference nobody changes it either.
        unsafe { states(self.0) }
    }

    /// Whether a packet was decrypted by the same states in the same order.
    #[inline(always)]
    pub fn is_of(&self, skb: &Skb) -> bool {
        // SAFETY: The packet is valid.
        let block = unsafe { extensions(skb.as_ptr()) };
        // SAFETY: The packet holds its extensions, and is nobody else's.
        block.is_some_and(|block| self.states() == unsafe { states(block) })
    }

    /// Whether a packet in POSTROUTING was decrypted by the same states in the same order.
    pub fn is_that_of(&self, packet: &Forwarded<'_>) -> bool {
        // SAFETY: The packet is valid.
        let block = unsafe { extensions(packet.as_ptr()) };
        // SAFETY: The packet holds its extensions.
        block.is_some_and(|block| self.states() == unsafe { states(block) })
    }

    /// Whether packets come out of the last of the states as packets of their own, which a device receives:
    /// so it is with tunnels. Others go on in the IP layer, where the transform met them.
    pub fn ends_in_tunnel(&self) -> bool {
        self.states().last().is_some_and(|&state| {
            // SAFETY: The record holds its states; the mode of one does not change.
            let flags = unsafe { (*state).outer_mode.flags };
            u32::from(flags) & bindings::FT_XFRM_MODE_FLAG_TUNNEL != 0
        })
    }

    /// Whether each of the states can still be used.
    pub fn is_alive(&self) -> bool {
        self.states().iter().all(|&state| {
            // SAFETY: The record holds its states. The kernel reads this without a lock, too.
            let state = unsafe { addr_of!((*state).km.state).read_volatile() };
            u32::from(state) == bindings::FT_XFRM_STATE_VALID
        })
    }
}

impl Drop for Secpath {
    fn drop(&mut self) {
        // SAFETY: By the invariant there is a reference to give back.
        unsafe { bindings::__skb_ext_put(self.0.as_ptr()) };
    }
}

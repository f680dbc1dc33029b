// SPDX-License-Identifier: GPL-2.0

//! Neighbours: the link-layer addresses of next hops.

use core::ptr::addr_of;
use core::ptr::NonNull;
use core::sync::atomic::fence;
use core::sync::atomic::Ordering;

use super::device::Device;
use crate::bindings;
use crate::engine::ip::Family;
use crate::engine::ip::Ip;

/// A held reference to a neighbour.
///
/// # Invariants
///
/// The pointer is to a valid neighbour, of which this holds a reference.
pub struct Neighbour(NonNull<bindings::neighbour>);

// SAFETY: A neighbour is used and released by any thread.
unsafe impl Send for Neighbour {}
// SAFETY: As above.
unsafe impl Sync for Neighbour {}

/// Bytes of a cached link-layer header that the fast path can copy in one go: what the kernel calls
/// `HH_DATA_MOD`.
pub const CACHED_HEADER: usize = 16;

/// Length of the header that is cached for Ethernet and what looks like it. Other ones, which hardly any device
/// has, are left to the neighbour's own method.
pub const HEADER: usize = 14;

/// A link-layer header, at the end of [`CACHED_HEADER`] bytes of which the first ones are padding: as words, which
/// can be read and written whole.
pub type Header = [u64; CACHED_HEADER / 8];

/// A [`Neighbour`] as a packet sees it, together with the device that leads to it.
///
/// # Invariants
///
/// The pointer is to a valid neighbour, which someone holds during `'a`.
#[derive(Clone, Copy)]
pub struct NextHop<'a> {
    neighbour: NonNull<bindings::neighbour>,
    device: &'a Device,
}

impl Neighbour {
    /// # Safety
    ///
    /// The caller has to own a reference to `neighbour`, and gives it up.
    pub(super) unsafe fn from_raw(neighbour: NonNull<bindings::neighbour>) -> Self {
        Self(neighbour)
    }

    /// For a packet.
    #[inline(always)]
    pub fn next_hop(&self) -> NextHop<'_> {
        // INVARIANT: This holds it, and is borrowed.
        NextHop {
            neighbour: self.0,
            // SAFETY: By the invariant; a neighbour holds a reference to its device all its life.
            device: unsafe { &*(*self.0.as_ptr()).dev.cast::<Device>() },
        }
    }

    /// Whether it has been taken out of its table, so that it will never change again.
    pub fn is_dead(&self) -> bool {
        // SAFETY: By the invariant.
        unsafe { addr_of!((*self.0.as_ptr()).dead).read_volatile() != 0 }
    }

    /// Whether both are the same neighbour.
    pub fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<'a> NextHop<'a> {
    #[inline(always)]
    pub(super) fn as_ptr(self) -> *mut bindings::neighbour {
        self.neighbour.as_ptr()
    }

    /// The device that leads to it.
    #[inline(always)]
    pub fn device(self) -> &'a Device {
        self.device
    }

    /// Whether it is a neighbour by a version of IP: IPv4 can have gateways that are neighbours by IPv6. It never
    /// changes.
    #[inline(always)]
    pub fn is_of<I: Ip>(self) -> bool {
        // SAFETY: By the invariant; a neighbour belongs to its table all its life.
        let protocol = unsafe { (*(*self.as_ptr()).tbl).protocol };
        protocol == ethertype::<I>().to_be()
    }

    /// Whether packets may be sent to the address that is known. That is so in all states but those in
    /// which there is none; a stale one is probed by the packets that take the slow path.
    #[inline(always)]
    pub fn is_valid(self) -> bool {
        // SAFETY: By the invariant. The kernel reads the state without a lock, too.
        let state = unsafe { addr_of!((*self.as_ptr()).nud_state).read_volatile() };
        u32::from(state) & bindings::NUD_VALID != 0
    }

    /// The link-layer header for packets to it, as the kernel caches it: for those of the version of IP that it is a
    /// [neighbour](NextHop::is_of) by. `None` if the device has no such header, if it is not that of Ethernet, not known
    /// yet, or just changing.
    #[inline(always)]
    pub fn header(self) -> Option<Header> {
        // SAFETY: By the invariant; pointers to fields, not dereferenced here.
        let (sequence, len, data) = unsafe {
            let cache = addr_of!((*self.as_ptr()).hh);
            (
                addr_of!((*cache).hh_lock.seqcount.seqcount.sequence),
                addr_of!((*cache).hh_len),
                addr_of!((*cache).hh_data).cast::<u64>(),
            )
        };
        // SAFETY: A field of a valid neighbour, written whole.
        let before = unsafe { sequence.read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: As above; the header is in an array of words. A torn read is found out by the sequence and
        // not used.
        let (len, words) = unsafe {
            (
                len.read_volatile(),
                [data.read_volatile(), data.add(1).read_volatile()],
            )
        };
        fence(Ordering::Acquire);
        // SAFETY: As above.
        let after = unsafe { sequence.read_volatile() };
        // Whoever finds it just being written, when the sequence is odd, has the neighbour make the header, under
        // its lock.
        let is_whole = before & !1 == after;
        (len as usize == HEADER && is_whole).then_some(words)
    }

    /// The same on a VLAN, for which the kernel caches none: what `neigh_connected_output` (net/core/neighbour.c)
    /// has the device make.
    pub fn header_on_vlan<I: Ip>(self) -> Option<Header> {
        let source = self.device().vlan_address()?;
        // SAFETY: By the invariant; pointers to fields, not dereferenced here.
        let (sequence, address) = unsafe {
            (
                addr_of!((*self.as_ptr()).ha_lock.seqcount.seqcount.sequence),
                addr_of!((*self.as_ptr()).ha).cast::<u64>(),
            )
        };
        // SAFETY: A field of a valid neighbour, written whole.
        let before = unsafe { sequence.read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: As above; the address is at the beginning of an array that is aligned for words. A torn read
        // is found out by the sequence and not used.
        let destination = unsafe { address.read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: As above.
        let after = unsafe { sequence.read_volatile() };
        let [d0, d1, d2, d3, d4, d5, ..] = destination.to_ne_bytes();
        let [s0, s1, s2, s3, s4, s5] = source;
        let [e0, e1] = ethertype::<I>().to_be_bytes();
        let words = [
            u64::from_ne_bytes([0, 0, d0, d1, d2, d3, d4, d5]),
            u64::from_ne_bytes([s0, s1, s2, s3, s4, s5, e0, e1]),
        ];
        let is_whole = before & 1 == 0 && before == after;
        is_whole.then_some(words)
    }
}

/// What says in a link-layer header that a packet is one of a version of IP.
fn ethertype<I: Ip>() -> u16 {
    match I::FAMILY {
        Family::V4 => 0x0800,
        Family::V6 => 0x86dd,
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // SAFETY: By the invariant there is a reference to give back.
        unsafe { bindings::ft_neigh_release(self.0.as_ptr()) };
    }
}

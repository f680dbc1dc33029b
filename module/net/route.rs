// SPDX-License-Identifier: GPL-2.0

//! Routes: what the IP layer decided about where a packet goes.

use core::ptr::addr_of;
use core::ptr::NonNull;

use super::namespace::Net;
use super::neighbour::Neighbour;
use super::skb::Forwarded;
use crate::bindings;

/// A held reference to an IPv4 route (`struct rtable`).
///
/// # Invariants
///
/// The pointer is to a valid `dst_entry` that is the first member of an IPv4 `rtable`, and of which
/// this holds a reference.
pub struct Route(NonNull<bindings::dst_entry>);

// SAFETY: A route is used and released by any thread.
unsafe impl Send for Route {}
// SAFETY: As above.
unsafe impl Sync for Route {}

impl Route {
    pub(super) fn as_ptr(&self) -> *mut bindings::dst_entry {
        self.0.as_ptr()
    }

    /// Whether the IP layer would still take it: what `ipv4_dst_check` (net/ipv4/route.c) says.
    #[inline]
    pub fn is_current(&self, net: Net<'_>) -> bool {
        // SAFETY: By the invariant. The IP layer reads both without a lock, too.
        let (obsolete, generation) = unsafe {
            (
                addr_of!((*self.0.as_ptr()).obsolete).read_volatile(),
                (*self.0.as_ptr().cast::<bindings::rtable>()).rt_genid,
            )
        };
        obsolete == OBSOLETE_FORCE_CHECK && generation == net.route_generation()
    }
}

/// `DST_OBSOLETE_FORCE_CHK`: a route that has not been given up.
const OBSOLETE_FORCE_CHECK: i16 = -1;

impl Drop for Route {
    fn drop(&mut self) {
        // SAFETY: By the invariant there is a reference to give back.
        unsafe { bindings::dst_release(self.0.as_ptr()) };
    }
}

/// The route of a packet that is being forwarded, seen while the packet holds it.
#[derive(Clone, Copy)]
pub struct PacketRoute<'a> {
    dst: NonNull<bindings::dst_entry>,
    packet: Forwarded<'a>,
}

impl<'a> PacketRoute<'a> {
    /// # Safety
    ///
    /// `dst` has to be the route of `packet`, an IPv4 one.
    pub(super) unsafe fn new(dst: NonNull<bindings::dst_entry>, packet: Forwarded<'a>) -> Self {
        Self { dst, packet }
    }

    /// Whether the packet is going to be transformed by IPsec, or queued until it can be: the latter is
    /// a route without a state but with a flag (`xfrm_create_dummy_bundle`).
    pub fn is_transformed(self) -> bool {
        // SAFETY: The packet holds its route.
        let (state, flags) = unsafe { ((*self.dst.as_ptr()).xfrm, (*self.dst.as_ptr()).flags) };
        !state.is_null() || u32::from(flags) & bindings::DST_XFRM_QUEUE != 0
    }

    /// Whether it is a plain unicast route through a device: sent by `ip_output`, and by nothing that
    /// adds headers of its own on the way.
    pub fn is_plain(self) -> bool {
        let dst = self.dst.as_ptr();
        // SAFETY: The packet holds its route, an IPv4 one.
        let (output, tunnel, kind) = unsafe {
            (
                (*dst).output,
                (*dst).lwtstate,
                (*dst.cast::<bindings::rtable>()).rt_type,
            )
        };
        let ip_output: unsafe extern "C" fn(_, _, _) -> _ = bindings::ip_output;
        tunnel.is_null()
            && u32::from(kind) == bindings::RTN_UNICAST
            && output.is_some_and(|output| output as usize == ip_output as usize)
    }

    /// Whether it is the route that is held as `route`.
    pub fn is(self, route: &Route) -> bool {
        self.dst == route.0
    }

    /// A reference of one's own. `None` if the route is being given up.
    pub fn hold(self) -> Option<Route> {
        // SAFETY: The packet holds its route. A route that a packet only borrows may be on its way out.
        let held = unsafe { bindings::ft_dst_hold_safe(self.dst.as_ptr()) };
        // INVARIANT: The reference has just been taken.
        held.then_some(Route(self.dst))
    }

    /// The largest packet that the slow path would forward, in bytes.
    pub fn mtu(self) -> u32 {
        // SAFETY: The packet holds its route, an IPv4 one.
        unsafe { bindings::ft_ip_forward_mtu(self.dst.as_ptr()) }
    }

    /// The next hop of the packet, which is made known to the kernel if it was not. `None` if there is
    /// no memory, or if its header is one for another protocol (an IPv6 gateway for IPv4).
    pub fn neighbour(self) -> Option<Neighbour> {
        let mut is_v6 = false;
        // SAFETY: The packet holds its route, an IPv4 one; packets are forwarded in a read side.
        let neighbour = unsafe {
            bindings::ft_neigh_for_route(self.dst.as_ptr().cast(), self.packet.as_ptr(), &mut is_v6)
        };
        // SAFETY: The shim gives a reference, or null.
        let neighbour = unsafe { Neighbour::from_raw(NonNull::new(neighbour)?) };
        (!is_v6).then_some(neighbour)
    }
}

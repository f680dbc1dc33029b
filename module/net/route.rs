// SPDX-License-Identifier: GPL-2.0

//! Routes: what the IP layer decided about where a packet goes.

use core::ptr::addr_of;
use core::ptr::NonNull;

use super::namespace::Net;
use super::neighbour::Neighbour;
use super::skb::Forwarded;
use crate::bindings;
use crate::engine::ip::Family;
use crate::engine::ip::Ip;
use crate::engine::ip::V4;
use crate::engine::ip::V6;

/// A held reference to a route: a `struct rtable` of IPv4 or a `struct rt6_info` of IPv6.
///
/// # Invariants
///
/// The pointer is to a valid `dst_entry` that is the first member of one of these, and of which this
/// holds a reference.
pub struct Route {
    dst: NonNull<bindings::dst_entry>,
    /// For IPv6: the number of the part of the routing table that it came from, when it was looked up.
    cookie: u32,
}

// SAFETY: A route is used and released by any thread.
unsafe impl Send for Route {}
// SAFETY: As above.
unsafe impl Sync for Route {}

impl Route {
    pub(super) fn as_ptr(&self) -> *mut bindings::dst_entry {
        self.dst.as_ptr()
    }

    /// Whether it has not been given up.
    #[inline(always)]
    fn is_in_use(&self) -> bool {
        // SAFETY: By the invariant. The IP layer reads it without a lock, too.
        let obsolete = unsafe { addr_of!((*self.dst.as_ptr()).obsolete).read_volatile() };
        obsolete == OBSOLETE_FORCE_CHECK
    }
}

/// A version of IP that packets are routed of.
pub trait Routed: Ip {
    /// Whether the IP layer would still take the route, which has to be one of this version.
    fn is_current(route: &Route, net: Net<'_>) -> bool;

    /// Whether what arrives on the device with index `from` is forwarded at all, as far as the validity of
    /// routes does not say so.
    fn is_forwarded(net: Net<'_>, from: u32) -> bool;
}

impl Routed for V4 {
    /// What `ipv4_dst_check` (net/ipv4/route.c) says.
    #[inline(always)]
    fn is_current(route: &Route, net: Net<'_>) -> bool {
        // SAFETY: By the invariant; the generation of a route does not change.
        let generation = unsafe { (*route.as_ptr().cast::<bindings::rtable>()).rt_genid };
        route.is_in_use() && generation == net.route_generation()
    }

    /// When forwarding is switched off, routes become invalid.
    #[inline(always)]
    fn is_forwarded(_net: Net<'_>, _from: u32) -> bool {
        true
    }
}

impl Routed for V6 {
    /// What `ip6_dst_check` (net/ipv6/route.c) says.
    #[inline(always)]
    fn is_current(route: &Route, net: Net<'_>) -> bool {
        let this = route.as_ptr().cast::<bindings::rt6_info>();
        // SAFETY: By the invariant. The IP layer reads these without a lock, too.
        let (number, flags, from) = unsafe {
            (
                (*this).sernum,
                (*this).rt6i_flags,
                addr_of!((*this).from).read_volatile(),
            )
        };
        if !route.is_in_use() {
            return false;
        }
        // A route by way of a next-hop object is numbered with the whole table.
        if number != 0 {
            return number == net.ipv6_route_generation();
        }
        if flags & bindings::RTF_EXPIRES != 0 || from.is_null() {
            return route.is_current_by_kernel();
        }
        // SAFETY: What a route came from is freed a grace period after the route has let go of it, and
        // so is a node of the table; packets are forwarded in a read side.
        unsafe {
            if (*from).fib6_flags & bindings::RTF_EXPIRES != 0 {
                return route.is_current_by_kernel();
            }
            let node = addr_of!((*from).fib6_node).read_volatile();
            !node.is_null() && addr_of!((*node).fn_sernum).read_volatile() as u32 == route.cookie
        }
    }

    /// What `ip6_forward` asks.
    #[inline(always)]
    fn is_forwarded(net: Net<'_>, from: u32) -> bool {
        net.forwards_ipv6() || net.forwards_ipv6_of(from)
    }
}

impl Route {
    /// Asks the kernel whether it would still take the route: one that expires.
    #[cold]
    fn is_current_by_kernel(&self) -> bool {
        // SAFETY: By the invariant; packets are forwarded in a read side.
        unsafe { bindings::ft_dst_is_current(self.as_ptr(), self.cookie) }
    }
}

/// `DST_OBSOLETE_FORCE_CHK`: a route that has not been given up.
const OBSOLETE_FORCE_CHECK: i16 = -1;

impl Drop for Route {
    fn drop(&mut self) {
        // SAFETY: By the invariant there is a reference to give back.
        unsafe { bindings::dst_release(self.dst.as_ptr()) };
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
    /// `dst` has to be the route of `packet`, of its version of IP.
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
        type Output = unsafe extern "C" fn(
            *mut bindings::net,
            *mut bindings::sock,
            *mut bindings::sk_buff,
        ) -> core::ffi::c_int;

        let dst = self.dst.as_ptr();
        // SAFETY: The packet holds its route.
        let (output, tunnel) = unsafe { ((*dst).output, (*dst).lwtstate) };
        let (is_unicast, usual): (bool, Output) = match self.packet.family() {
            Family::V4 => {
                // SAFETY: The packet holds its route, an IPv4 one.
                let kind = unsafe { (*dst.cast::<bindings::rtable>()).rt_type };
                (
                    u32::from(kind) == bindings::RTN_UNICAST,
                    bindings::ip_output,
                )
            }
            Family::V6 => {
                // SAFETY: The packet holds its route, an IPv6 one.
                let flags = unsafe { (*dst.cast::<bindings::rt6_info>()).rt6i_flags };
                let special = bindings::RTF_REJECT | bindings::RTF_LOCAL | bindings::RTF_ANYCAST;
                (flags & special == 0, bindings::ip6_output)
            }
        };
        tunnel.is_null()
            && is_unicast
            && output.is_some_and(|output| output as usize == usual as usize)
    }

    /// Whether it is the route that is held as `route`.
    pub fn is(self, route: &Route) -> bool {
        self.dst == route.dst
    }

    /// A reference of one's own. `None` if the route is being given up.
    pub fn hold(self) -> Option<Route> {
        // SAFETY: The packet holds its route. A route that a packet only borrows may be on its way out.
        let held = unsafe { bindings::ft_dst_hold_safe(self.dst.as_ptr()) };
        let cookie = match self.packet.family() {
            Family::V4 => 0,
            // SAFETY: The packet holds its route, an IPv6 one.
            Family::V6 => unsafe { bindings::ft_ip6_route_cookie(self.dst.as_ptr().cast()) },
        };
        // INVARIANT: The reference has just been taken.
        held.then_some(Route {
            dst: self.dst,
            cookie,
        })
    }

    /// The largest packet that the slow path would forward, in bytes.
    pub fn mtu(self) -> u32 {
        match self.packet.family() {
            // SAFETY: The packet holds its route, an IPv4 one.
            Family::V4 => unsafe { bindings::ft_ip_forward_mtu(self.dst.as_ptr()) },
            // SAFETY: The packet holds its route, an IPv6 one.
            Family::V6 => unsafe { bindings::ft_ip6_forward_mtu(self.dst.as_ptr()) }
                .max(bindings::IPV6_MIN_MTU),
        }
    }

    /// The next hop of the packet, which is made known to the kernel if it was not. It may be one of the
    /// other version of IP (an IPv6 gateway for IPv4). `None` if there is no memory.
    pub fn neighbour(self) -> Option<Neighbour> {
        let (dst, packet) = (self.dst.as_ptr(), self.packet.as_ptr());
        let neighbour = match self.packet.family() {
            // SAFETY: The packet holds its route, an IPv4 one; packets are forwarded in a read side.
            Family::V4 => unsafe { bindings::ft_neigh_for_route(dst.cast(), packet) },
            // SAFETY: The packet holds its route, an IPv6 one; packets are forwarded in a read side.
            Family::V6 => unsafe { bindings::ft_neigh_for_ip6_route(dst.cast(), packet) },
        };
        // SAFETY: The shim gives a reference, or null.
        Some(unsafe { Neighbour::from_raw(NonNull::new(neighbour)?) })
    }
}

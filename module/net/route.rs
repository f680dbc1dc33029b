// SPDX-License-Identifier: GPL-2.0

//! Routes: what the IP layer decided about where a packet goes.

use core::ptr::addr_of;
use core::ptr::NonNull;

use super::device::Device;
use super::namespace::Net;
use super::neighbour::Neighbour;
use super::skb::Forwarded;
use super::time;
use crate::bindings;
use crate::engine::ip::Family;
use crate::engine::ip::Ip;
use crate::engine::ip::V4;
use crate::engine::ip::V6;
use crate::engine::validity::Routes;

/// A held reference to a route: a `struct rtable` of IPv4 or a `struct rt6_info` of IPv6, or a bundle, a
/// `struct xfrm_dst` that has IPsec transforms in front of the route of what comes out of them.
///
/// # Invariants
///
/// The pointer is to a valid `dst_entry` that is the first member of one of these, and of which this
/// holds a reference.
#[repr(transparent)]
pub struct Route(NonNull<bindings::dst_entry>);

// SAFETY: A route is used and released by any thread.
unsafe impl Send for Route {}
// SAFETY: As above.
unsafe impl Sync for Route {}

/// A version of IP that packets are routed of.
pub trait Routed: Ip {
    /// The generation of its routes. A route that was looked up in it, and has not been [given
    /// up](Route::is_in_use) or expired, is what would be found now.
    fn routes(net: Net<'_>) -> Routes;

    /// Whether everything is forwarded, wherever it arrives, as far as the generation of routes does not say so.
    fn all_is_forwarded(net: Net<'_>) -> bool;

    /// Whether what arrives on the device with index `from` is, if not everything is.
    fn is_forwarded(net: Net<'_>, from: u32) -> bool;
}

impl Routed for V4 {
    #[inline(always)]
    fn routes(net: Net<'_>) -> Routes {
        net.ipv4_routes()
    }

    /// When forwarding is switched off, a new generation begins.
    #[inline(always)]
    fn all_is_forwarded(_net: Net<'_>) -> bool {
        true
    }

    #[inline(always)]
    fn is_forwarded(_net: Net<'_>, _from: u32) -> bool {
        true
    }
}

impl Routed for V6 {
    #[inline(always)]
    fn routes(net: Net<'_>) -> Routes {
        net.ipv6_routes()
    }

    /// What `ip6_forward` asks.
    #[inline(always)]
    fn all_is_forwarded(net: Net<'_>) -> bool {
        net.forwards_ipv6()
    }

    #[inline(always)]
    fn is_forwarded(net: Net<'_>, from: u32) -> bool {
        net.forwards_ipv6_of(from)
    }
}

/// The generation of what a bundle is made of, which may be routes of either version of IP: the kernel asks
/// each of them, but an IPv6 one knows only of its own part of its own table (`fib6_check`).
pub fn routes_of_bundles(net: Net<'_>) -> Routes {
    net.ipv4_routes().and(net.ipv6_routes())
}

impl Route {
    #[inline(always)]
    pub(super) fn as_ptr(&self) -> *mut bindings::dst_entry {
        self.0.as_ptr()
    }

    /// Whether it has not been given up.
    #[inline(always)]
    pub fn is_in_use(&self) -> bool {
        // SAFETY: By the invariant. The IP layer reads it without a lock, too.
        let obsolete = unsafe { addr_of!((*self.as_ptr()).obsolete).read_volatile() };
        obsolete == OBSOLETE_FORCE_CHECK
    }

    /// Whether the kernel would still send through a bundle: it asks for its states, policies and routes
    /// (`xfrm_bundle_ok`), and corrects its MTU.
    pub fn is_usable(&self) -> bool {
        // SAFETY: By the invariant; in a read side, as everybody who has a flow is.
        unsafe { bindings::ft_bundle_is_current(self.as_ptr()) }
    }

    /// The largest packet that the slow path would forward by the route, which has to be one of `family`, in
    /// bytes.
    pub fn mtu(&self, family: Family) -> u32 {
        // SAFETY: By the invariant.
        unsafe { mtu(self.as_ptr(), family) }
    }

    /// The device that packets leave by, after all transforms.
    pub fn device_index(&self) -> u32 {
        // SAFETY: By the invariant. A route that is given up gets another device, but keeps a valid one.
        unsafe {
            let device = addr_of!((*self.as_ptr()).__bindgen_anon_1.dev).read_volatile();
            (*device.cast::<Device>()).index()
        }
    }
}

/// The largest packet that the slow path would forward by a route, in bytes.
///
/// # Safety
///
/// The route has to be a valid one of `family`.
unsafe fn mtu(dst: *const bindings::dst_entry, family: Family) -> u32 {
    match family {
        // SAFETY: As required of the caller.
        Family::V4 => unsafe { bindings::ft_ip_forward_mtu(dst) },
        // SAFETY: As required of the caller.
        Family::V6 => unsafe { bindings::ft_ip6_forward_mtu(dst) }.max(bindings::IPV6_MIN_MTU),
    }
}

/// Whether two routes lead to the same place, by way of the same IPsec states if by any. For every packet
/// that it transforms, the slow path makes another bundle (`xfrm_resolve_and_create_bundle`).
///
/// # Safety
///
/// Both have to be valid.
unsafe fn are_alike(a: *const bindings::dst_entry, b: *const bindings::dst_entry) -> bool {
    let (mut a, mut b) = (a, b);
    for _ in 0..=bindings::FT_XFRM_MAX_DEPTH {
        if core::ptr::eq(a, b) {
            return true;
        }
        // SAFETY: As required of the caller, and so are those that bundles are made of: a route with a state
        // is one.
        unsafe {
            if (*a).xfrm.is_null() || (*a).xfrm != (*b).xfrm {
                return false;
            }
            a = (*a.cast::<bindings::xfrm_dst>()).child;
            b = (*b.cast::<bindings::xfrm_dst>()).child;
        }
    }
    false
}

/// Whether two IPv6 routes are copies of the same one, to the same next hop: each processor has its own
/// (`rt6_get_pcpu_route` in net/ipv6/route.c).
///
/// # Safety
///
/// Both have to be valid, and no bundles.
unsafe fn are_copies(a: *const bindings::rt6_info, b: *const bindings::rt6_info) -> bool {
    // SAFETY: As required of the caller. What a route came from is only compared, and changes to null when it
    // is deleted; the rest does not change but for the device, when the route is given up.
    unsafe {
        let origin = addr_of!((*a).from).read_volatile();
        let other_origin = addr_of!((*b).from).read_volatile();
        let device =
            |dst: *const bindings::dst_entry| addr_of!((*dst).__bindgen_anon_1.dev).read_volatile();
        !origin.is_null()
            && origin == other_origin
            && device(a.cast()) == device(b.cast())
            && (*a).rt6i_gateway.in6_u.u6_addr8 == (*b).rt6i_gateway.in6_u.u6_addr8
            && (*a).rt6i_flags == (*b).rt6i_flags
    }
}

/// `DST_OBSOLETE_FORCE_CHK`: a route that has not been given up.
const OBSOLETE_FORCE_CHECK: i16 = -1;

impl Drop for Route {
    fn drop(&mut self) {
        // SAFETY: By the invariant there is a reference to give back.
        unsafe { bindings::dst_release(self.as_ptr()) };
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

    /// Whether it is a bundle that packets can be sent through at once, by this host's own means: not one
    /// that only queues, nor one whose packets a device encrypts.
    pub fn is_bundle(self) -> bool {
        let mut dst = self.dst.as_ptr().cast_const();
        for depth in 0..=bindings::FT_XFRM_MAX_DEPTH {
            // SAFETY: The packet holds its route, and a bundle what it is made of; a route with a state is a
            // bundle.
            unsafe {
                let state = (*dst).xfrm;
                if state.is_null() {
                    return depth > 0;
                }
                let by_device = bindings::FT_XFRM_DEV_OFFLOAD_PACKET;
                if u32::from((*state).xso.type_()) == by_device {
                    return false;
                }
                dst = (*dst.cast::<bindings::xfrm_dst>()).child;
            }
        }
        false
    }

    /// Whether it leads where the route does that is held as `route`, which has to be usable if it has
    /// transforms, and in use if it is another one.
    pub fn is(self, route: &Route) -> bool {
        let (this, other) = (self.dst.as_ptr(), route.as_ptr());
        if core::ptr::eq(this, other) {
            return true;
        }
        if self.is_transformed() {
            // SAFETY: The packet holds its route; the other one is held, too.
            return unsafe { are_alike(this, other) } && route.is_usable();
        }
        if self.packet.family() == Family::V4 || !route.is_in_use() {
            return false;
        }
        // SAFETY: As above. Both are of the connection's version of IP, and neither is a bundle.
        unsafe { (*other).xfrm.is_null() && are_copies(this.cast(), other.cast()) }
    }

    /// A reference of one's own. `None` if the route is being given up.
    pub fn hold(self) -> Option<Route> {
        // SAFETY: The packet holds its route. A route that a packet only borrows may be on its way out.
        let held = unsafe { bindings::ft_dst_hold_safe(self.dst.as_ptr()) };
        // INVARIANT: The reference has just been taken.
        held.then_some(Route(self.dst))
    }

    /// How many ticks there are until it expires by itself, without a new generation: at most `most`.
    ///
    /// That is asked for when a flow is confirmed, not for each packet. A router's advertisement may give a
    /// route that has none a lifetime, which then is a second at least.
    pub fn lifetime(self, most: u32) -> u32 {
        if self.packet.family() == Family::V4 || self.is_transformed() {
            return most;
        }
        let this = self.dst.as_ptr().cast::<bindings::rt6_info>();
        // SAFETY: The packet holds its route, a plain one of IPv6. What it came from is freed a grace period
        // after the route has let go of it, and packets are forwarded in a read side. The IP layer reads
        // these without a lock, too (`rt6_check_expired`).
        let expires = unsafe {
            let from = addr_of!((*this).from).read_volatile();
            if (*this).rt6i_flags & bindings::RTF_EXPIRES != 0 {
                addr_of!((*this).dst.expires).read_volatile()
            } else if !from.is_null() && (*from).fib6_flags & bindings::RTF_EXPIRES != 0 {
                addr_of!((*from).expires).read_volatile()
            } else {
                return most;
            }
        };
        // Earlier than now, or up to half of all ticks ahead.
        let left = expires.wrapping_sub(time::jiffies());
        match left as isize {
            ..=0 => 0,
            _ => left.min(most as usize) as u32,
        }
    }

    /// The largest packet that the slow path would forward, in bytes.
    pub fn mtu(self) -> u32 {
        // SAFETY: The packet holds its route, one of its version of IP.
        unsafe { mtu(self.dst.as_ptr(), self.packet.family()) }
    }

    /// The same, if it changes only with the device's, or else with the route. What a host on the path said
    /// may be written into the route as it is (`update_or_create_fnhe` in net/ipv4/route.c); of IPv4 it
    /// counts where the administrator wants that, or the path is a very narrow one.
    pub fn lasting_mtu(self) -> Option<u32> {
        let varies = match self.packet.family() {
            // SAFETY: The packet holds its route, an IPv4 one.
            Family::V4 => unsafe { bindings::ft_ip_forward_mtu_varies(self.dst.as_ptr()) },
            Family::V6 => false,
        };
        (!varies).then(|| self.mtu())
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

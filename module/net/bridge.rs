// SPDX-License-Identifier: GPL-2.0

//! Bridges, as a packet sees them that arrives on one of their ports.

#[cfg(CONFIG_NETFILTER_FAMILY_BRIDGE)]
use core::ffi::c_void;
#[cfg(all(CONFIG_VLAN_8021Q, CONFIG_64BIT))]
use core::mem::offset_of;
use core::ptr::addr_of;
use core::ptr::NonNull;

use super::device::Device;
use super::device::Rtnl;
use super::namespace::Net;
#[cfg(all(CONFIG_VLAN_8021Q, CONFIG_64BIT))]
use super::percpu;
use super::skb::Skb;
use crate::bindings;
use crate::engine::crossing::Tag;
use crate::engine::crossing::Token;
use crate::engine::sender::Sender;

/// A device above the ports of a bridge, for which some of what arrives on them is: the bridge itself, or a VLAN on it.
///
/// # Invariants
///
/// Both devices are there as long as a packet can meet this at a hook; the first one is the second one, or a VLAN right on
/// it, and the second one is a bridge.
pub struct Upper {
    device: NonNull<bindings::net_device>,
    bridge: NonNull<bindings::net_device>,
    /// Its index.
    pub index: u32,
    /// That of the bridge.
    pub bridge_index: u32,
    /// The tag of its packets below, if it is a VLAN.
    pub tag: Tag,
}

// SAFETY: Devices are used by any thread.
unsafe impl Send for Upper {}
// SAFETY: As above.
unsafe impl Sync for Upper {}

/// How an Ethernet header begins: who it is for, and who it is from.
const ADDRESSES: usize = 12;
/// How long it is.
const ETHERNET: usize = 14;

impl Upper {
    /// The device, if it is such a one.
    ///
    /// # Safety
    ///
    /// It, and what is below it, have to be there until no packet meets this any more.
    pub unsafe fn new(rtnl: &Rtnl, device: &Device) -> Option<Self> {
        let (bridge, tag) = match device.is_bridge() {
            true => (device, Tag::NONE),
            false => rtnl
                .below_vlan(device)
                .filter(|(below, _)| below.is_bridge())?,
        };
        // INVARIANT: As has been looked at, and is required of the caller.
        Some(Self {
            device: NonNull::new(device.as_ptr())?,
            bridge: NonNull::new(bridge.as_ptr())?,
            index: device.index(),
            bridge_index: bridge.index(),
            tag,
        })
    }

    /// Whether it is a VLAN.
    #[inline(always)]
    fn is_vlan(&self) -> bool {
        self.device != self.bridge
    }

    /// Who sent a packet that is at the ingress hook of a port, if it is for the bridge's own address, as what is for a VLAN
    /// on it usually is, too: what is for another address of the router's is flooded by the bridge as well.
    #[inline(always)]
    pub fn sender(&self, packet: &Skb) -> Option<Sender> {
        let skb = packet.raw();
        let offset = (skb.data as usize).wrapping_sub(skb.head as usize);
        if usize::from(packet.mac_header()).wrapping_add(ETHERNET) != offset {
            return None;
        }
        // SAFETY: Between the beginning of the packet's memory and its data there is room for an Ethernet header, as has
        // been looked at. The bridge's address is one of Ethernet, and is read without a lock elsewhere, too.
        let (addresses, own) = unsafe {
            (
                skb.data
                    .sub(ETHERNET)
                    .cast::<[u8; ADDRESSES]>()
                    .read_unaligned(),
                addr_of!((*self.bridge.as_ptr()).dev_addr)
                    .read_volatile()
                    .cast::<[u8; 6]>()
                    .read_unaligned(),
            )
        };
        let [a, b, c, d, e, f, first, _, source @ ..] = addresses;
        // No bridge takes packets that a group has sent.
        let is_one = first & 1 == 0;
        (is_one && [a, b, c, d, e, f] == own).then_some(Sender(u32::from_ne_bytes(source)))
    }

    /// Whether there is nothing on the way from a port to the `hooks` ingress hooks of this but the bridge and the VLAN: no
    /// other hook of netfilter's than the `below` that the bridge itself has, no classifier, no program, no capture, and no
    /// choice of a processor. The caller is in a read side.
    #[inline(always)]
    pub fn receives_by_nothing_but(&self, net: Net<'_>, hooks: u16, below: u16) -> bool {
        // SAFETY: By the invariant.
        unsafe {
            has_ingress_hooks(self.device.as_ptr(), hooks)
                && receives_at_once(self.device.as_ptr())
                && !has_hooks(net)
                && (!self.is_vlan()
                    || (has_ingress_hooks(self.bridge.as_ptr(), below)
                        && receives_at_once(self.bridge.as_ptr())))
        }
    }

    /// Counts a packet, as long as it was on arrival, as one that this has received (`br_pass_frame_up` in
    /// net/bridge/br_input.c, `vlan_do_receive` in net/8021q/vlan_core.c). Bottom halves are off.
    #[inline(always)]
    pub fn count(&self, length: u32) {
        // SAFETY: By the invariant. A bridge has such counters (`br_dev_setup`).
        unsafe { bindings::ft_dev_sw_netstats_rx_add(self.bridge.as_ptr(), length) };
        if self.is_vlan() {
            // SAFETY: By the invariant.
            unsafe { count_for_vlan(self.device.as_ptr(), length) };
        }
    }
}

/// A bridge that can be asked how it is configured.
pub struct Bridge<'a>(&'a Device);

impl<'a> Bridge<'a> {
    /// The device, if it is a bridge.
    pub fn new(device: &'a Device) -> Option<Self> {
        device.is_bridge().then_some(Self(device))
    }

    /// Whether it counts packets by their VLANs, which it alone can do.
    pub fn counts_by_vlan(&self, _rtnl: &Rtnl) -> bool {
        let [filters, counts] = self.options([
            bindings::IFLA_BR_VLAN_FILTERING,
            bindings::IFLA_BR_VLAN_STATS_ENABLED,
        ]);
        // What can't be found out is so.
        filters != Some(0) && counts != Some(0)
    }

    /// Options of one byte, as the bridge names them to user space; none that it does not name.
    fn options<const N: usize>(&self, wanted: [u32; N]) -> [Option<u8>; N] {
        let mut options = [None; N];
        // SAFETY: Makes a message that nobody else has, and frees it; no bridge needs more room. The device is valid, and
        // the routing netlink lock is held, with which user space is told the same.
        unsafe {
            let message = bindings::ft_genlmsg_new(false);
            if message.is_null() {
                return options;
            }
            let operations = addr_of!((*self.0.as_ptr()).rtnl_link_ops).read_volatile();
            let is_filled = !operations.is_null()
                && (*operations)
                    .fill_info
                    .is_some_and(|fill| fill(message, self.0.as_ptr()) == 0);
            if is_filled {
                let bytes = core::slice::from_raw_parts((*message).data, (*message).len as usize);
                for (kind, value) in Attributes(bytes) {
                    for (option, wanted) in options.iter_mut().zip(wanted) {
                        if let (true, [value]) = (u32::from(kind) == wanted, value) {
                            *option = Some(*value);
                        }
                    }
                }
            }
            bindings::ft_kfree_skb(message);
        }
        options
    }
}

/// Netlink attributes, one behind the other.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const HEADER: usize = 4;
        let [low, high, kind_low, kind_high, ..] = *self.0 else {
            return None;
        };
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let value = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([kind_low, kind_high]), value))
    }
}

/// Whether a device has so many ingress hooks.
///
/// # Safety
///
/// The device has to be valid, and the caller in a read side.
#[inline(always)]
unsafe fn has_ingress_hooks(device: *mut bindings::net_device, count: u16) -> bool {
    // SAFETY: As required of the caller. They are read without a lock elsewhere, too.
    unsafe {
        let hooks = addr_of!((*device).nf_hooks_ingress).read_volatile();
        match hooks.is_null() {
            true => count == 0,
            false => (*hooks).num_hook_entries == count,
        }
    }
}

/// Whether nothing but ingress hooks is there to see the packets that a device receives.
///
/// # Safety
///
/// As above.
#[inline(always)]
unsafe fn receives_at_once(device: *mut bindings::net_device) -> bool {
    // SAFETY: As required of the caller. All of this is read without a lock by those who receive packets, too.
    unsafe {
        addr_of!((*device).xdp_prog).read_volatile().is_null()
            && !has_classifiers(device)
            && !chooses_processors(device)
            && !bindings::dev_nit_active_rcu(device)
    }
}

/// Counts a packet that a VLAN has received.
///
/// # Safety
///
/// The device has to be a valid VLAN, and bottom halves off.
#[cfg(all(CONFIG_VLAN_8021Q, CONFIG_64BIT))]
#[inline(always)]
unsafe fn count_for_vlan(device: *mut bindings::net_device, length: u32) {
    const BYTES: usize = offset_of!(bindings::vlan_pcpu_stats, rx_bytes);
    const { assert!(offset_of!(bindings::vlan_pcpu_stats, rx_packets) + size_of::<u64>() == BYTES) };
    // SAFETY: As required of the caller: it has such counters, words of 64 bits, which are counted on with bottom halves
    // off (`vlan_do_receive`).
    unsafe {
        let vlan = addr_of!((*device).priv_).cast::<bindings::vlan_dev_priv>();
        let counters = (*vlan).vlan_pcpu_stats.cast::<u64>();
        percpu::this_cpu_add_one_and(
            counters,
            offset_of!(bindings::vlan_pcpu_stats, rx_packets),
            u64::from(length),
        );
    }
}

/// There are no VLANs.
///
/// # Safety
///
/// As above.
#[cfg(not(all(CONFIG_VLAN_8021Q, CONFIG_64BIT)))]
#[inline(always)]
const unsafe fn count_for_vlan(_device: *mut bindings::net_device, _length: u32) {}

/// Whether the bridge family of netfilter has hooks where packets for a bridge come by (`nf_hook_bridge_pre` and
/// `br_pass_frame_up`).
#[inline(always)]
fn has_hooks(_net: Net<'_>) -> bool {
    #[cfg(CONFIG_NETFILTER_FAMILY_BRIDGE)]
    // SAFETY: The namespace is valid, and has such pointers for each place.
    unsafe {
        let hooks = addr_of!((*_net.as_ptr()).nf.hooks_bridge);
        let [before, own] = [
            bindings::NF_BR_PRE_ROUTING as usize,
            bindings::NF_BR_LOCAL_IN as usize,
        ]
        .map(|place| hooks.cast::<*const c_void>().add(place).read_volatile());
        !before.is_null() || !own.is_null()
    }
    #[cfg(not(CONFIG_NETFILTER_FAMILY_BRIDGE))]
    false
}

/// Whether a device has classifiers for what arrives.
///
/// # Safety
///
/// As above.
#[inline(always)]
unsafe fn has_classifiers(_device: *mut bindings::net_device) -> bool {
    #[cfg(CONFIG_NET_XGRESS)]
    // SAFETY: The device is valid.
    return unsafe { !addr_of!((*_device).tcx_ingress).read_volatile().is_null() };
    #[cfg(not(CONFIG_NET_XGRESS))]
    false
}

/// Whether packets that arrive on a device may be given to another processor.
///
/// # Safety
///
/// As above.
#[inline(always)]
unsafe fn chooses_processors(_device: *mut bindings::net_device) -> bool {
    #[cfg(CONFIG_RPS)]
    // SAFETY: The device is valid, and its queues live as long as it does.
    return unsafe {
        let queue = (*_device)._rx;
        !addr_of!((*queue).rps_map).read_volatile().is_null()
    };
    #[cfg(not(CONFIG_RPS))]
    false
}

impl Token {
    /// One that nobody has.
    pub fn random() -> Self {
        // SAFETY: Gives a number, in any context.
        Self::new(unsafe { bindings::ft_random() })
    }
}

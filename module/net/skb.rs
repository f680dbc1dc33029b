// SPDX-License-Identifier: GPL-2.0

//! Socket buffers: packets.

use core::marker::PhantomData;
use core::mem::offset_of;
use core::mem::ManuallyDrop;
use core::num::NonZeroU16;
use core::ops::Deref;
use core::ptr::addr_of;
use core::ptr::addr_of_mut;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use super::conntrack::Connection;
use super::conntrack::Direction;
use super::device::Device;
use super::namespace::Net;
use super::neighbour::Header;
use super::neighbour::NextHop;
use super::neighbour::CACHED_HEADER;
use super::neighbour::HEADER;
use super::route::PacketRoute;
use super::route::Route;
use crate::bindings;
use crate::engine::arrivals::Turn;
use crate::engine::crossing::Crossing;
use crate::engine::crossing::Tag;
use crate::engine::ip::Family;
use crate::engine::ip::Ip;
use crate::engine::rewrite::Checksum;
use crate::engine::sender::Senders;
use crate::engine::validity::PacketId;

/// A packet at the ingress hook of a device, owned. Its data begins at the network header.
///
/// # Invariants
///
/// The pointer is to a valid `sk_buff` that nobody else frees, with at least `len - data_len` bytes
/// from `data` on.
pub struct Skb(NonNull<bindings::sk_buff>);

/// A borrowed [`Skb`].
///
/// # Invariants
///
/// The packet is there for `'a`.
pub struct Look<'a>(ManuallyDrop<Skb>, PhantomData<&'a Skb>);

impl Deref for Look<'_> {
    type Target = Skb;

    #[inline(always)]
    fn deref(&self) -> &Skb {
        &self.0
    }
}

/// Shows that a packet was handed on to be sent.
#[must_use]
pub struct Sent(());

/// What became of a packet on the way to being writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// How a packet's identity is kept in the last eight bytes of its control block: a number, below bits that
/// nothing else has there. The IP layer needs only the beginning of the control block, and leaves the rest
/// as it is until the packet is given to a device or a transform; it is copied when a packet is cloned.
const NUMBER: u64 = u64::MAX >> (u64::BITS - PacketId::BITS);
const IDENTITY: u64 = 0xfa57_7ac4_0000_0000 & !NUMBER;

/// The same of a packet that was turned away: the index of the device where that was, below other bits. With the
/// device, because what a tunnel makes of a packet may keep its control block.
const TURNED_AWAY: u64 = 0x7e4f_a3b1_0000_0000 & !NUMBER;

/// The same of a packet without a flow that was not turned away: the index of the device, and above that its turn, or 0.
const LET_IN: u64 = 0x19c6_0000_0000_0000;
const TURN_SHIFT: u32 = 32;

/// The same of a packet at a port of a bridge: how it comes to the bridge, below other bits. The bridge has its own at
/// the beginning of the control block, too (`br_input_skb_cb` in net/bridge/br_private.h).
const CROSSING: u64 = 0xb41d_9e35_0000_0000;
const _: () = assert!(size_of::<bindings::inet_skb_parm>() <= 40);
const _: () = assert!(size_of::<bindings::inet6_skb_parm>() <= 40);

pub(super) type Headers = bindings::sk_buff__bindgen_ty_4__bindgen_ty_1;

impl Skb {
    /// # Safety
    ///
    /// As the type's invariant says.
    #[inline(always)]
    pub(super) unsafe fn from_raw(skb: NonNull<bindings::sk_buff>) -> Self {
        Self(skb)
    }

    #[inline(always)]
    pub(super) fn into_raw(self) -> *mut bindings::sk_buff {
        ManuallyDrop::new(self).0.as_ptr()
    }

    #[inline(always)]
    pub(super) fn as_ptr(&self) -> *const bindings::sk_buff {
        self.0.as_ptr()
    }

    #[inline(always)]
    pub(super) fn raw(&self) -> &bindings::sk_buff {
        // SAFETY: By the invariant.
        unsafe { self.0.as_ref() }
    }

    #[inline(always)]
    pub(super) fn raw_mut(&mut self) -> &mut bindings::sk_buff {
        // SAFETY: By the invariant.
        unsafe { self.0.as_mut() }
    }

    /// The fields that are copied when a packet is.
    #[inline(always)]
    fn headers(&self) -> &Headers {
        // SAFETY: A union of a group of fields with itself.
        unsafe { self.raw().__bindgen_anon_4.__bindgen_anon_1.as_ref() }
    }

    #[inline(always)]
    fn headers_mut(&mut self) -> &mut Headers {
        // SAFETY: As above.
        unsafe { self.raw_mut().__bindgen_anon_4.__bindgen_anon_1.as_mut() }
    }

    /// Gives it an identity, which [`Forwarded::id`] finds.
    ///
    /// Its address would not do: if a packet socket for IP has it, too, `ip_rcv` goes on with a clone.
    pub fn identify(&mut self) -> PacketId {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Relaxed) & NUMBER;
        self.note(IDENTITY | number);
        PacketId(number)
    }

    /// Has [`Forwarded::was_turned_away`] say that it was, where it arrived on the device with this index.
    pub fn turn_away(&mut self, device: u32) {
        self.note(TURNED_AWAY | u64::from(device));
    }

    /// Has [`Forwarded::has_met_the_hook`] say that it has, where it arrived on the device with this index, and
    /// [`Forwarded::turn`] what it got there.
    pub fn let_in(&mut self, device: u32, turn: Option<Turn>) {
        let turn = turn.map_or(0, |Turn(number)| u64::from(number.get()));
        self.note(LET_IN | turn << TURN_SHIFT | u64::from(device));
    }

    /// Has [`Skb::crossing`] say how it has come to a bridge.
    #[inline(always)]
    pub fn note_crossing(&mut self, crossing: Crossing) {
        self.note(CROSSING | u64::from(crossing.0));
    }

    /// How it has come to the bridge, at whose ingress hook it is now, or at that of a VLAN on it, if that was noted.
    #[inline(always)]
    pub fn crossing(&self) -> Option<Crossing> {
        let noted = u64::from_ne_bytes(*self.raw().cb.last_chunk()?);
        (noted & !u64::from(u32::MAX) == CROSSING).then_some(Crossing(noted as u32))
    }

    /// Has [`Skb::crossing`] say nothing any more.
    pub fn forget_crossing(&mut self) {
        self.note(0);
    }

    fn note(&mut self, what: u64) {
        if let Some(end) = self.raw_mut().cb.last_chunk_mut() {
            *end = what.to_ne_bytes();
        }
    }

    /// A reference to it that is its pointer, for code that is not inlined: so the packet itself can stay in a
    /// register.
    #[inline(always)]
    pub fn look(&self) -> Look<'_> {
        // INVARIANT: It is not freed, because it is not given away while it is borrowed.
        Look(ManuallyDrop::new(Self(self.0)), PhantomData)
    }

    /// Its version of IP, if it is an IP packet without a VLAN tag beside it.
    #[inline(always)]
    pub fn family(&self) -> Option<Family> {
        let headers = self.headers();
        // SAFETY: A union of a word with its halves.
        let vlan = unsafe { headers.__bindgen_anon_2.vlan_all };
        if vlan != 0 {
            return None;
        }
        family_of(headers)
    }

    /// Its version of IP and the tag beside it, if it is an IP packet with one.
    pub fn tagged(&self) -> Option<(Family, Tag)> {
        let headers = self.headers();
        // SAFETY: A union of a word with its halves.
        let tag = unsafe { headers.__bindgen_anon_2.__bindgen_anon_1 };
        if tag.vlan_proto == 0 {
            return None;
        }
        Some((family_of(headers)?, Tag::new(tag.vlan_proto, tag.vlan_tci)))
    }

    /// Takes off a VLAN tag that says nothing but a priority, as the stack does behind the hook, unless there is a device
    /// for such. Gives whether there was one.
    #[cold]
    pub fn drop_priority_tag(&mut self) -> bool {
        // SAFETY: By the invariant; hooks run in a read side.
        unsafe { bindings::ft_skb_drop_priority_tag(self.0.as_ptr()) }
    }

    /// Whether the frame was addressed to this host.
    #[inline(always)]
    pub fn is_for_us(&self) -> bool {
        self.headers().pkt_type() == PACKET_HOST
    }

    /// A frame that seemed to be addressed to another host was addressed to this one, as it turned out.
    #[inline(always)]
    pub fn set_for_us(&mut self) {
        // Others who have it see the same.
        let is_ours_alone = self.raw().users.refs.counter == 1;
        let headers = self.headers_mut();
        if is_ours_alone && headers.pkt_type() == PACKET_OTHERHOST {
            headers.set_pkt_type(PACKET_HOST);
        }
    }

    /// Whether it has a route, which on arrival is one that says what tunnel it has come through.
    pub fn has_route(&self) -> bool {
        // SAFETY: A union whose other members are for other layers.
        unsafe { self.raw().__bindgen_anon_3.__bindgen_anon_1._skb_refdst != 0 }
    }

    /// Where its link-layer header is, counted from where its memory begins.
    #[inline(always)]
    pub(super) fn mac_header(&self) -> u16 {
        self.headers().mac_header
    }

    /// Whether it came out of an IPsec transform.
    #[inline(always)]
    pub fn has_secpath(&self) -> bool {
        self.raw().active_extensions & 1 << bindings::skb_ext_id_SKB_EXT_SEC_PATH != 0
    }

    /// The four bytes that lie [where](Senders::BEFORE) an Ethernet header has the end of its source address, or 0 if
    /// there is no room for any.
    pub fn before(&self) -> u32 {
        // SAFETY: By the invariant.
        unsafe { before(self.raw()) }
    }

    /// Whether it has been given a mark.
    #[inline(always)]
    pub fn has_mark(&self) -> bool {
        self.mark() != 0
    }

    #[inline(always)]
    pub(super) fn mark(&self) -> u32 {
        // SAFETY: A union of words.
        unsafe { self.headers().__bindgen_anon_4.mark }
    }

    /// Whether it is in a state that forwarding can't, or need not, deal with: someone else has it too,
    /// it is tracked already, it was sent here by a packet classifier, hardware has forwarded it, or it is
    /// a large receive that must not be forwarded.
    #[inline(always)]
    pub fn is_peculiar(&self) -> bool {
        self.flags() & Self::flags_of(Self::set_peculiar) != 0 || self.is_peculiar_otherwise()
    }

    #[inline(always)]
    fn is_peculiar_otherwise(&self) -> bool {
        self.held_or_tracked() != 0 || (self.raw().data_len != 0 && self.is_lro())
    }

    /// Not zero if someone else has it too, or it is tracked already.
    #[inline(always)]
    pub(super) fn held_or_tracked(&self) -> u64 {
        let skb = self.raw();
        u64::from(skb.users.refs.counter as u32 ^ 1) | skb._nfct as u64
    }

    /// Sets the flags of which each makes a packet peculiar: that a packet classifier has sent it here, or that a
    /// switch has forwarded it already and shows it to the host as well; the IP layer forwards no such packet again.
    #[inline(always)]
    pub(super) fn set_peculiar(flags: &mut Headers) {
        flags.set_redirected(1);
        #[cfg(CONFIG_NET_SWITCHDEV)]
        flags.set_offload_l3_fwd_mark(1);
    }

    /// The word that begins with the flags: the two groups of bit fields at the beginning of [`Headers`].
    #[inline(always)]
    pub(super) fn flags(&self) -> u64 {
        // SAFETY: The fields are longer than a word, and plain data.
        unsafe {
            core::ptr::from_ref(self.headers())
                .cast::<u64>()
                .read_unaligned()
        }
    }

    /// The bits of [`Skb::flags`] that `set` sets, which the compiler computes.
    #[inline(always)]
    pub(super) fn flags_of(set: impl FnOnce(&mut Headers)) -> u64 {
        let mut headers = Headers::default();
        set(&mut headers);
        // SAFETY: As for `flags`; it is all zero but for what has been set.
        unsafe { addr_of!(headers).cast::<u64>().read_unaligned() }
    }

    /// Whether a device has merged segments without saying how to split them again
    /// (`skb_warn_if_lro`).
    fn is_lro(&self) -> bool {
        let info = self.shared_info();
        // SAFETY: Every packet has its shared info behind its linear data.
        unsafe { (*info).gso_size != 0 && (*info).gso_type == 0 }
    }

    fn shared_info(&self) -> *const bindings::skb_shared_info {
        let skb = self.raw();
        skb.head.wrapping_add(skb.end as usize).cast()
    }

    /// Length from the network header on.
    #[inline(always)]
    pub fn size(&self) -> u32 {
        self.raw().len
    }

    /// The part of it that is in one piece, from the network header on.
    #[inline(always)]
    pub fn linear(&self) -> &[u8] {
        let skb = self.raw();
        let len = skb.len.wrapping_sub(skb.data_len) as usize;
        // SAFETY: By the invariant; whoever shares the data does not write it either.
        unsafe {
            core::hint::assert_unchecked(!skb.data.is_null());
            core::slice::from_raw_parts(skb.data, len)
        }
    }

    /// The bytes from `offset` on, counted from the network header, wherever they lie. `None` if they are not
    /// all there.
    #[cold]
    pub fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let offset = i32::try_from(offset).ok()?;
        // SAFETY: By the invariant; there is room for as many bytes as are asked for.
        let error = unsafe {
            bindings::skb_copy_bits(self.0.as_ptr(), offset, bytes.as_mut_ptr().cast(), N as i32)
        };
        (error == 0).then_some(bytes)
    }

    /// Has `len` bytes from the network header on brought into one piece. `false` if it is not that long
    /// or there is no memory, or if it is a list of packets: what was brought here from the second one would
    /// be missed when they are split again, as those of SCTP, of which the first has nothing but headers.
    #[cold]
    pub fn pull(&mut self, len: u32) -> bool {
        // SAFETY: Every packet has its shared info behind its linear data.
        let is_list = unsafe { !(*self.shared_info()).frag_list.is_null() };
        // SAFETY: By the invariant.
        !is_list && unsafe { bindings::ft_pskb_may_pull(self.0.as_ptr(), len) }
    }

    /// Whether it is too large for `mtu`, segment by segment if it is made of several.
    #[inline(always)]
    pub fn exceeds<I: Ip>(&mut self, mtu: u32) -> bool {
        // SAFETY: By the invariant, and not shared with anybody just now.
        self.size() > mtu && unsafe { Self::exceeds_by_segment::<I>(self.0, mtu) }
    }

    /// By its pointer, so that the packet can stay in a register otherwise.
    ///
    /// # Safety
    ///
    /// The packet has to be ours.
    #[cold]
    #[inline(never)]
    unsafe fn exceeds_by_segment<I: Ip>(skb: NonNull<bindings::sk_buff>, mtu: u32) -> bool {
        // SAFETY: As required of the caller, which keeps it.
        let mut this = ManuallyDrop::new(unsafe { Self::from_raw(skb) });
        // SAFETY: Every packet has its shared info behind its linear data.
        if unsafe { (*this.shared_info()).gso_size } == 0 {
            return true;
        }
        this.set_transport_header::<I>();
        // SAFETY: By the invariant; the headers have been looked at, so they are in one piece.
        !unsafe { bindings::skb_gso_validate_network_len(skb.as_ptr(), mtu) }
    }

    /// Notes where the transport header is: behind an IP header without options.
    #[inline(always)]
    fn set_transport_header<I: Ip>(&mut self) {
        let headers = self.headers_mut();
        headers.transport_header = headers.network_header.wrapping_add(I::HEADER as u16);
    }

    /// Whether this is what is known of its checksums.
    #[inline(always)]
    fn is_summed(&self, state: u32) -> bool {
        let mask = Self::flags_of(|flags| flags.set_ip_summed(3));
        let wanted = Self::flags_of(|flags| flags.set_ip_summed(state as u8));
        self.flags() & mask == wanted
    }

    /// Whether there is a sum over its data, of the whole packet or of a part that a device is to go on with: what is in
    /// other states has nothing that changes with the packet.
    #[inline(always)]
    pub(super) fn has_sum(&self) -> bool {
        const EITHER: u32 = bindings::CHECKSUM_COMPLETE & bindings::CHECKSUM_PARTIAL;
        const { assert!(EITHER & (bindings::CHECKSUM_NONE | bindings::CHECKSUM_UNNECESSARY) == 0) };
        self.flags() & Self::flags_of(|flags| flags.set_ip_summed(EITHER as u8)) != 0
    }

    /// Who computes the transport checksum.
    #[inline(always)]
    pub fn checksum(&self) -> Checksum {
        if self.is_summed(bindings::CHECKSUM_PARTIAL) {
            Checksum::LeftToDevice
        } else {
            Checksum::Present
        }
    }

    /// Cuts off what is behind `len` bytes: padding. The packet is at least that long.
    ///
    /// # Errors
    ///
    /// If there is no memory. The packet is as it was.
    #[inline(always)]
    pub fn trim(&mut self, len: u32) -> Result<(), NoMemory> {
        if self.size() == len {
            return Ok(());
        }
        // SAFETY: By the invariant.
        match unsafe { bindings::ft_pskb_trim_rcsum(self.0.as_ptr(), len) } {
            0 => Ok(()),
            _ => Err(NoMemory),
        }
    }

    /// Bytes before the data that a header can be put into.
    #[inline(always)]
    pub(super) fn headroom(&self) -> usize {
        let skb = self.raw();
        (skb.data as usize).wrapping_sub(skb.head as usize)
    }

    /// Makes sure that nobody else has its first `len` bytes, and that there is room for a link-layer header before
    /// them.
    ///
    /// # Errors
    ///
    /// The packet as it was, if it has not that many bytes in one piece, or there is no memory for a copy.
    #[inline(always)]
    pub fn writable(self, len: u32) -> Result<Writable, Self> {
        // No more than is in one piece: see `pull`.
        let skb = self.raw();
        if skb.len.wrapping_sub(skb.data_len) < len {
            return Err(self);
        }
        if skb.cloned() != 0 || self.headroom() < CACHED_HEADER {
            // SAFETY: By the invariant.
            let copied =
                unsafe { bindings::ft_skb_cow_head_and_data(self.0.as_ptr(), LINK_HEADROOM, len) };
            if copied != 0 {
                return Err(self);
            }
        }
        // INVARIANT: If it is a clone it has been copied, and so has one without room.
        Ok(Writable { skb: self, len })
    }

    /// Sends it through the IPsec transforms of a bundle, and what comes out of them to where the bundle
    /// leads, as the IP layer does behind POSTROUTING; `from` is the device that it arrived on. It has to be
    /// one of the bundle's version of IP.
    #[inline(never)]
    fn transform<I: Ip>(mut self, net: Net<'_>, stamp: Stamp, bundle: &Route, from: u32) -> Sent {
        self.become_outgoing::<I, false>(stamp, bundle);
        let skb = self.raw_mut();
        skb.cb = [0; 48];
        let control = addr_of_mut!(skb.cb);
        // Behind POSTROUTING, so that `xfrm4_output` and `xfrm6_output` do not go there again.
        match I::FAMILY {
            // SAFETY: The control block is the IP layer's now; it is aligned for any of its users.
            Family::V4 => unsafe {
                let control = control.cast::<bindings::inet_skb_parm>();
                (*control).iif = from as i32;
                (*control).flags =
                    (bindings::FT_IPSKB_FORWARDED | bindings::FT_IPSKB_REROUTED) as u16;
            },
            // SAFETY: As above.
            Family::V6 => unsafe {
                let control = control.cast::<bindings::inet6_skb_parm>();
                (*control).iif = from as i32;
                (*control).flags =
                    (bindings::FT_IP6SKB_FORWARDED | bindings::FT_IP6SKB_REROUTED) as u16;
            },
        }
        // SAFETY: A packet with its route, which the caller keeps in this read side.
        unsafe { bindings::ft_dst_output(net.as_ptr(), self.into_raw()) };
        Sent(())
    }

    /// Leaves behind what it was on the way in, as `ip_rcv`, `ip_forward` and `ip_output`, or those of
    /// IPv6, have it.
    #[inline(always)]
    fn become_outgoing<I: Ip, const BARE: bool>(&mut self, stamp: Stamp, route: &Route) {
        self.set_transport_header::<I>();
        if self.is_summed(bindings::CHECKSUM_COMPLETE) {
            // The sum over the whole packet is that of the packet as it arrived.
            self.headers_mut()
                .set_ip_summed(bindings::CHECKSUM_NONE as u8);
        }
        let headers = self.headers_mut();
        // A time of arrival is no time of departure; one that a sender asked for is kept.
        let has_delivery_time = headers.tstamp_type() != 0;
        headers.__bindgen_anon_4.mark = stamp.mark;
        headers.priority = stamp.priority;
        let skb = self.raw_mut();
        if !has_delivery_time {
            skb.__bindgen_anon_2.tstamp = 0;
        }
        if !BARE && !self.is_bare() {
            // SAFETY: By the invariant.
            unsafe {
                bindings::ft_skb_orphan(self.0.as_ptr());
                bindings::ft_skb_dst_drop(self.0.as_ptr());
            }
        }
        // The route is held by the flow, which is not dropped before the read side has ended; who keeps
        // the packet for longer takes a reference of its own (`skb_dst_force`).
        let borrowed = route.as_ptr() as usize | bindings::SKB_DST_NOREF as usize;
        self.raw_mut().__bindgen_anon_3.__bindgen_anon_1._skb_refdst = borrowed;
    }

    /// Whether it has come without a socket and without a metadata route.
    #[inline(always)]
    fn is_bare(&self) -> bool {
        self.owned_or_routed() == 0
    }

    /// Not zero if it has come with a socket, or with a metadata route.
    #[inline(always)]
    pub(super) fn owned_or_routed(&self) -> u64 {
        // SAFETY: A union whose other members are for other layers.
        let fields = unsafe { &self.raw().__bindgen_anon_3.__bindgen_anon_1 };
        fields._skb_refdst as u64
            | fields
                .destructor
                .map_or(0, |destructor| destructor as usize as u64)
    }

    /// Not zero if someone else has its data, too, or it came out of an IPsec transform. Both are asked at once, since
    /// one lies behind the other.
    #[inline(always)]
    pub(super) fn cloned_or_decrypted(&self) -> u64 {
        const FLAGS: usize = offset_of!(bindings::sk_buff, __cloned_offset);
        const { assert!(offset_of!(bindings::sk_buff, active_extensions) == FLAGS + 1) };
        const MASK: [u8; 2] = [
            bindings::FT_CLONED_MASK as u8,
            1 << bindings::skb_ext_id_SKB_EXT_SEC_PATH,
        ];
        // SAFETY: Both bytes are the packet's, and plain data.
        let found = unsafe { self.as_ptr().byte_add(FLAGS).cast::<[u8; 2]>().read() };
        u64::from(u16::from_ne_bytes(found) & u16::from_ne_bytes(MASK))
    }

    #[inline(always)]
    fn send_with(mut self, header: Header, device: &Device) -> Sent {
        let skb = self.raw_mut();
        // SAFETY: The caller has made sure of the room.
        unsafe {
            let room = skb.data.sub(CACHED_HEADER).cast::<Header>();
            room.write_unaligned(header);
            skb.data = skb.data.sub(HEADER);
        }
        skb.len = skb.len.wrapping_add(HEADER as u32);
        self.send_by(device)
    }

    /// Has a device send it, which it has a link-layer header for if that has one.
    #[inline(always)]
    fn send_by(mut self, device: &Device) -> Sent {
        self.raw_mut()
            .__bindgen_anon_1
            .__bindgen_anon_1
            .__bindgen_anon_1
            .dev = device.as_ptr();
        match device.undisciplined_queue() {
            Some(queue) => self.send_past_queue(device, queue),
            None => self.send_by_queue(),
        }
    }

    #[inline(always)]
    fn send_by_queue(self) -> Sent {
        // SAFETY: A packet with its device, see `send_by`, which the neighbour holds.
        unsafe { bindings::__dev_queue_xmit(self.into_raw(), core::ptr::null_mut()) };
        Sent(())
    }

    /// Has a device whose queue is none send it, without what the stack does for devices that have queues, if there is
    /// nothing that it would meet there. The stack's tracepoints on the way are all that is left out.
    ///
    /// What the device itself does is left to it: tags and their priority, where a host is, counters.
    #[inline(never)]
    fn send_past_queue(mut self, device: &Device, queue: *mut bindings::netdev_queue) -> Sent {
        // One that keeps a packet with its route would need a reference to that.
        let wants = device.wants_no_route() || device.hands_on() || device.is_direct_ppp();
        if !wants || !self.suits_any_device() || !device.sends_by_nothing_but(queue) {
            return self.send_by_queue();
        }
        let mac_header = self.headroom() as u16;
        let skb = self.raw_mut();
        // There is no other queue.
        skb.queue_mapping = 0;
        if device.wants_no_route() {
            // It is borrowed, so there is nothing to be given back.
            skb.__bindgen_anon_3.__bindgen_anon_1._skb_refdst = 0;
        }
        self.headers_mut().mac_header = mac_header;
        let skb = self.into_raw();
        // SAFETY: A packet with its link-layer header, on a device that is up and the neighbour holds, and a
        // queue of that device that nobody has stopped. Packets arrive in a read side and with bottom halves
        // off. The device has no lock to be taken for it.
        let is_taken = unsafe { bindings::ft_xmit_past_queue(skb, device.as_ptr(), queue) };
        if !is_taken {
            // SAFETY: So it is still ours.
            unsafe { bindings::ft_kfree_skb(skb) };
        }
        Sent(())
    }

    /// Whether no device needs it to be changed before it is sent: it is neither to be split, nor in
    /// pieces, nor without its checksum. And nobody waits to be told when it is sent, and it has met no classifier
    /// that it remembers.
    #[inline(always)]
    fn suits_any_device(&self) -> bool {
        let set_by_classifiers = |_flags: &mut Headers| {
            #[cfg(CONFIG_NET_XGRESS)]
            _flags.set_tc_at_ingress(1);
        };
        // SAFETY: Every packet has its shared info behind its linear data.
        let (segment, told) = unsafe {
            let info = self.shared_info();
            ((*info).gso_size, (*info).tx_flags)
        };
        self.raw().data_len == 0
            && matches!(self.checksum(), Checksum::Present)
            && self.flags() & Self::flags_of(set_by_classifiers) == 0
            && segment == 0
            && told == 0
    }

    /// Has the header made, if the device has one. There has to be room for a cached one.
    #[cold]
    #[inline(never)]
    fn send_without_cache<I: Ip>(self, neighbour: NextHop<'_>) -> Sent {
        match neighbour.header_on_vlan::<I>() {
            Some(header) => self.send_with(header, neighbour.device()),
            None => self.send_without_header(neighbour),
        }
    }

    /// Lets the neighbour's own method add the header.
    fn send_without_header(mut self, neighbour: NextHop<'_>) -> Sent {
        let device = neighbour.device();
        // It has neither headers nor neighbours.
        if device.is_direct_ppp() {
            return self.send_by(device);
        }
        let skb = self.raw_mut();
        skb.__bindgen_anon_1.__bindgen_anon_1.__bindgen_anon_1.dev = device.as_ptr();
        // Tunnels look for the IP layer's own fields there.
        skb.cb = [0; 48];
        let skb = self.into_raw();
        // SAFETY: The neighbour is valid, and the packet too: its data begins at the network header.
        unsafe { bindings::ft_neigh_output(neighbour.as_ptr(), skb) };
        Sent(())
    }
}

/// A packet that may be rewritten and sent.
///
/// # Invariants
///
/// Its first `len` bytes are in one piece, and nobody else's; before its data there is room for
/// [`CACHED_HEADER`] bytes. If it is `BARE`, it has come without a socket and without a metadata route.
pub struct Writable<const BARE: bool = false> {
    pub(super) skb: Skb,
    pub(super) len: u32,
}

impl<const BARE: bool> Writable<BARE> {
    /// Who computes the transport checksum.
    #[inline(always)]
    pub fn checksum(&self) -> Checksum {
        self.skb.checksum()
    }

    /// Its first bytes.
    #[inline(always)]
    pub fn head(&mut self) -> &mut [u8] {
        let data = self.skb.raw_mut().data;
        // SAFETY: By the invariant.
        unsafe {
            core::hint::assert_unchecked(!data.is_null());
            core::slice::from_raw_parts_mut(data, self.len as usize)
        }
    }

    /// Has it be one that has arrived on the device with this index, as that of a device above does.
    #[inline(always)]
    pub fn arrive_on(&mut self, index: u32) {
        let headers = self.skb.headers_mut();
        headers.skb_iif = index as i32;
        // Whose tag it had.
        headers.__bindgen_anon_2.vlan_all = 0;
        // What a switch has done with it for the bridge is over (`br_switchdev_frame_unmark`).
        #[cfg(CONFIG_NET_SWITCHDEV)]
        headers.set_offload_fwd_mark(0);
    }

    /// Sends it to `neighbour`, with the mark and priority that the slow path gives, and the route for
    /// devices that ask for it. If it is `BARE`, it has to be a neighbour [by](NextHop::is_of) the packet's version of IP.
    #[inline(always)]
    pub fn send<I: Ip>(self, stamp: Stamp, route: &Route, neighbour: NextHop<'_>) -> Sent {
        let mut skb = self.skb;
        skb.become_outgoing::<I, BARE>(stamp, route);
        // Of packets that are not bare it is asked each time, as they are not spared much else either.
        let header = match BARE || neighbour.is_of::<I>() {
            true => neighbour.header(),
            false => None,
        };
        match header {
            Some(header) => skb.send_with(header, neighbour.device()),
            None => skb.send_without_cache::<I>(neighbour),
        }
    }

    /// See [`Skb::transform`].
    pub fn transform<I: Ip>(self, net: Net<'_>, stamp: Stamp, bundle: &Route, from: u32) -> Sent {
        self.skb.transform::<I>(net, stamp, bundle, from)
    }
}

impl<const BARE: bool> From<Writable<BARE>> for Skb {
    #[inline(always)]
    fn from(writable: Writable<BARE>) -> Self {
        writable.skb
    }
}

impl Drop for Skb {
    fn drop(&mut self) {
        // SAFETY: By the invariant it is ours to free.
        unsafe { bindings::ft_kfree_skb(self.0.as_ptr()) };
    }
}

/// The version of IP that a packet is said to be of.
#[inline(always)]
const fn family_of(headers: &Headers) -> Option<Family> {
    // As it lies in memory.
    match headers.protocol {
        ETH_P_IP => Some(Family::V4),
        ETH_P_IPV6 => Some(Family::V6),
        _ => None,
    }
}

/// See [`Skb::before`]. What the bytes are, if there is no such header, is nobody's concern.
///
/// # Safety
///
/// The data of the packet has to begin at its network header.
unsafe fn before(skb: &bindings::sk_buff) -> u32 {
    if (skb.data as usize).wrapping_sub(skb.head as usize) < Senders::BEFORE {
        return 0;
    }
    // SAFETY: They lie between the beginning of the packet's memory and its data.
    unsafe { skb.data.sub(Senders::BEFORE).cast::<u32>().read_unaligned() }
}

/// What the slow path writes on a packet for those that queue and classify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// `skb->mark`.
    pub mark: u32,
    /// `skb->priority`.
    pub priority: u32,
}

const ETH_P_IP: u16 = 0x0800_u16.to_be();
const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();
pub(super) const PACKET_HOST: u8 = 0;
const PACKET_OTHERHOST: u8 = 3;

/// Room that a copy is made with in front: an Ethernet header with two VLAN tags, and some.
const LINK_HEADROOM: u32 = 32;

/// An IP packet in POSTROUTING that was forwarded and has neither been encapsulated nor transformed.
/// It can only be looked at.
#[derive(Clone, Copy)]
pub struct Forwarded<'a> {
    skb: &'a bindings::sk_buff,
    state: &'a bindings::nf_hook_state,
    family: Family,
}

impl<'a> Forwarded<'a> {
    /// `None` for a packet that this host sends itself.
    ///
    /// # Safety
    ///
    /// Both have to be valid for `'a`, and to come from a hook of IPv4 or IPv6.
    #[inline(always)]
    pub(super) unsafe fn new(
        skb: *mut bindings::sk_buff,
        state: *const bindings::nf_hook_state,
    ) -> Option<Self> {
        // SAFETY: As required of the caller.
        let (skb, state) = unsafe { (&*skb, &*state) };
        if state.in_.is_null() {
            return None;
        }
        let family = match u32::from(state.pf) {
            bindings::NFPROTO_IPV4 => Family::V4,
            bindings::NFPROTO_IPV6 => Family::V6,
            _ => return None,
        };
        let this = Self { skb, state, family };
        let is_forwarded = match family {
            Family::V4 => {
                let flags = u32::from(this.ipv4_control().flags);
                let otherwise = bindings::FT_IPSKB_XFRM_TRANSFORMED | bindings::FT_IPSKB_REROUTED;
                flags & bindings::FT_IPSKB_FORWARDED != 0 && flags & otherwise == 0
            }
            Family::V6 => {
                // Of unicast packets the flag is not kept here. But only what was received has an input
                // device: what is sent by this host, or encapsulated by it, has none any more.
                let control = this.ipv6_control();
                let otherwise = bindings::FT_IP6SKB_XFRM_TRANSFORMED
                    | bindings::FT_IP6SKB_REROUTED
                    | bindings::FT_IP6SKB_FORWARDED;
                control.iif != 0 && skb.sk.is_null() && u32::from(control.flags) & otherwise == 0
            }
        };
        is_forwarded.then_some(this)
    }

    /// Its version of IP.
    pub fn family(&self) -> Family {
        self.family
    }

    pub(super) fn as_ptr(self) -> *mut bindings::sk_buff {
        core::ptr::from_ref(self.skb).cast_mut()
    }

    fn headers(&self) -> &Headers {
        // SAFETY: A union of a group of fields with itself.
        unsafe { self.skb.__bindgen_anon_4.__bindgen_anon_1.as_ref() }
    }

    /// What the IP layer keeps in the packet's control block, if it is IPv4.
    fn ipv4_control(&self) -> &bindings::inet_skb_parm {
        // SAFETY: Between `ip_rcv` and the device's queue the control block is the IP layer's; it is
        // aligned for any of its users.
        unsafe { &*addr_of!(self.skb.cb).cast() }
    }

    /// The same for IPv6.
    fn ipv6_control(&self) -> &bindings::inet6_skb_parm {
        // SAFETY: As for IPv4.
        unsafe { &*addr_of!(self.skb.cb).cast() }
    }

    /// The identity that it was given at ingress, if it was. Others of the connection, from before or
    /// behind it, do not have it.
    pub fn id(&self) -> Option<PacketId> {
        let noted = self.noted();
        (noted & !NUMBER == IDENTITY).then_some(PacketId(noted & NUMBER))
    }

    /// Whether [`Skb::turn_away`] was called for it on the device that it arrived on.
    pub fn was_turned_away(&self) -> bool {
        self.noted() == TURNED_AWAY | u64::from(self.from())
    }

    /// Whether [`Skb::let_in`] was called for it on the device that it arrived on, or it was given an identity. What
    /// an `ifb` has had in between has not: it goes on where it arrived, but past the hooks.
    pub fn has_met_the_hook(&self) -> bool {
        self.was_let_in() || self.id().is_some()
    }

    fn was_let_in(&self) -> bool {
        const TURN: u64 = (u16::MAX as u64) << TURN_SHIFT;
        self.noted() & !TURN == LET_IN | u64::from(self.from())
    }

    /// What [`Skb::let_in`] was given for it.
    pub fn turn(&self) -> Option<Turn> {
        let number = NonZeroU16::new((self.noted() >> TURN_SHIFT) as u16).map(Turn);
        number.filter(|_| self.was_let_in())
    }

    fn noted(&self) -> u64 {
        let end = self.skb.cb.last_chunk();
        u64::from_ne_bytes(end.copied().unwrap_or_default())
    }

    /// The index of the device that it arrived on: that at whose ingress hook it was. On a VRF it is no
    /// longer the device that the hooks of the IP layer are told, that is the VRF's own.
    pub fn from(&self) -> u32 {
        let index = match self.family {
            Family::V4 => self.ipv4_control().iif,
            Family::V6 => self.ipv6_control().iif,
        };
        index as u32
    }

    /// Whether the device that it arrived on is one whose packets IPsec has decrypted.
    pub fn comes_from_ipsec_device(&self) -> bool {
        let from = self.from();
        // SAFETY: Netfilter passes valid devices, or null.
        let device = unsafe { Device::from_raw(self.state.in_) };
        let device = match device {
            Some(device) if device.index() == from => Some(device),
            // On a VRF: see `from`.
            // SAFETY: Hooks run in a read side, in which a device that is found stays; the namespace is the hook's.
            _ => unsafe {
                Device::from_raw(bindings::dev_get_by_index_rcu(self.state.net, from as i32))
            },
        };
        device.is_some_and(Device::is_of_ipsec)
    }

    /// Whether the device that it leaves by is one whose packets IPsec encrypts.
    pub fn goes_to_ipsec_device(&self) -> bool {
        // SAFETY: Netfilter passes valid devices, or null.
        unsafe { Device::from_raw(self.state.out) }.is_some_and(Device::is_of_ipsec)
    }

    /// Whether it is put together from fragments.
    pub fn is_reassembled(&self) -> bool {
        let largest = match self.family {
            Family::V4 => self.ipv4_control().frag_max_size,
            Family::V6 => self.ipv6_control().frag_max_size,
        };
        largest != 0
    }

    /// Whether it came out of an IPsec transform.
    pub fn has_secpath(&self) -> bool {
        self.skb.active_extensions & 1 << bindings::skb_ext_id_SKB_EXT_SEC_PATH != 0
    }

    /// The IP header, and what is behind it in one piece.
    pub fn linear(&self) -> &'a [u8] {
        let len = self.skb.len.wrapping_sub(self.skb.data_len) as usize;
        // SAFETY: The packet is valid, and in POSTROUTING its data begins at the network header.
        unsafe { core::slice::from_raw_parts(self.skb.data, len) }
    }

    /// See [`Skb::before`]: what lies before the network header stays there until a device adds its own.
    pub fn before(&self) -> u32 {
        // SAFETY: In POSTROUTING its data begins at the network header.
        unsafe { before(self.skb) }
    }

    /// Mark and priority.
    pub fn stamp(&self) -> Stamp {
        let headers = self.headers();
        Stamp {
            // SAFETY: A union of words.
            mark: unsafe { headers.__bindgen_anon_4.mark },
            priority: headers.priority,
        }
    }

    /// Its connection and direction, and whether conntrack calls the connection established.
    pub fn connection(&self) -> Option<(&'a Connection, Direction, bool)> {
        let word = self.skb._nfct;
        let info = (word & NFCT_INFO) as u32;
        // SAFETY: The packet holds its connection, a valid one or none.
        let connection = unsafe { Connection::from_raw((word & !NFCT_INFO) as *const _) }?;
        let direction = if info >= bindings::ip_conntrack_info_IP_CT_IS_REPLY {
            Direction::Reply
        } else {
            Direction::Original
        };
        let established = info == bindings::ip_conntrack_info_IP_CT_ESTABLISHED
            || info == bindings::ip_conntrack_info_IP_CT_ESTABLISHED_REPLY;
        Some((connection, direction, established))
    }

    /// Its route.
    pub fn route(&self) -> Option<PacketRoute<'a>> {
        // SAFETY: A union whose other members are for other layers.
        let word = unsafe { self.skb.__bindgen_anon_3.__bindgen_anon_1._skb_refdst };
        let dst = NonNull::new((word & !(bindings::SKB_DST_NOREF as usize)) as *mut _)?;
        // SAFETY: A packet in a hook has a route of that version, and holds it or has it borrowed.
        Some(unsafe { PacketRoute::new(dst, *self) })
    }

    /// Whether it is on its way to a device, rather than to this host.
    pub fn has_destination(&self) -> bool {
        !self.state.out.is_null()
    }
}

/// Bits of the conntrack word that are not the entry's address (`NFCT_INFOMASK`).
const NFCT_INFO: usize = 7;

// SPDX-License-Identifier: GPL-2.0

//! The short way past a bridge: what happens to a packet that arrives on one of its ports, and is for the router.
//!
//! Its flow is one of the bridge's own device, or of a VLAN on that, whatever port its packets come in by. At the port it is known whether the
//! bridge would let a packet in: it has let in [one of the same flow and sender](crate::engine::crossing) by the same port,
//! and has announced no change since. A packet of which that is known, and which can be forwarded, does not meet the
//! bridge. The bridge meets all others, so one of each flow whenever it has changed or learned something, and with each
//! sample: so it goes on to know where everybody is.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::AcqRel;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;

use kernel::prelude::*;
use kernel::sync::Arc;

use crate::attached::value;
use crate::engine::crossing::Crossing;
use crate::engine::crossing::Entrance;
use crate::engine::crossing::Tag;
use crate::engine::crossing::Token;
use crate::engine::ip::Family;
use crate::engine::ip::V4;
use crate::engine::ip::V6;
use crate::engine::packet::Packet;
use crate::engine::packet::Reading;
use crate::engine::sender::Sender;
use crate::engine::transport::Segment;
use crate::fast;
use crate::fast::Fit;
use crate::flow::Carried;
use crate::flow::Flow;
use crate::net::bridge::Upper;
use crate::net::conntrack::Tuple;
use crate::net::hook::Hook;
use crate::net::hook::Ingress;
use crate::net::hook::Verdict;
use crate::net::neighbour::NextHop;
use crate::net::ordinary::Arrived;
use crate::net::ordinary::Ordinary;
use crate::net::ordinary::Untrimmed;
use crate::net::rcu::Read;
use crate::net::skb::Skb;
use crate::net::skb::Writable;
use crate::port::Port;

/// Ingress hooks that a device above a bridge's ports has: that of [`Crossed`], and that of its [`Port`].
pub const HOOKS: u16 = 2;

/// A port of a bridge that the fast path is attached to.
pub struct BridgePort {
    /// Its number in the namespace.
    pub index: u32,
    /// That of the bridge.
    pub bridge: u32,
    /// The attached devices above: the bridge itself, and VLANs on it.
    uppers: KVec<Arc<Hook<Crossed>>>,
    /// Ingress hooks that the bridge itself has.
    below: u16,
    /// An [`Entrance`]; 0 while the bridge is to meet all packets.
    entrance: AtomicU64,
}

impl BridgePort {
    /// The port with this index of the bridge with that one, which has as many ingress hooks as `below` says; closed at
    /// first.
    pub const fn new(
        index: u32,
        bridge: u32,
        uppers: KVec<Arc<Hook<Crossed>>>,
        below: u16,
    ) -> Self {
        Self {
            index,
            bridge,
            uppers,
            below,
            entrance: AtomicU64::new(0),
        }
    }

    /// Whether it has to do with the device that has this index: is it, or is below it.
    pub fn is_below(&self, index: u32) -> bool {
        let mut uppers = self.uppers.iter().map(value);
        self.index == index
            || self.bridge == index
            || uppers.any(|crossed| crossed.upper.index == index)
    }

    /// Has the bridge meet each flow's next packet.
    pub fn renew(&self) {
        let old = self.entrance.load(Acquire);
        if old == 0 {
            return;
        }
        let new = Entrance::new(Token::random());
        // If it has another token by now, somebody has just done the same, or has closed it; what it leads to may have been
        // found out meanwhile.
        let _ = self.entrance.fetch_update(AcqRel, Acquire, |now| {
            (now >> 32 == old >> 32).then_some(new.pack())
        });
    }

    /// Whether any packet may go past the bridge.
    pub fn open(&self, open: bool) {
        let entrance = match open {
            true => Entrance::new(Token::random()).pack(),
            false => 0,
        };
        self.entrance.store(entrance, Release);
    }

    /// How the packet comes in, and where to, if it is for a device above: the VLAN that its tag names, or the device to
    /// which others without one came.
    #[inline(always)]
    fn crossing(&self, skb: &mut Skb, tag: Tag) -> Option<(Crossing, &Crossed)> {
        // Before the bridge meets it: see `renew`.
        let entrance = Entrance::unpack(self.entrance.load(Acquire))?;
        let crossed = match tag {
            Tag::NONE => {
                let Some(place) = entrance.leads_to else {
                    self.try_out(entrance.token, skb);
                    return None;
                };
                value(self.uppers.get(usize::from(place))?)
            }
            tag => {
                let mut uppers = self.uppers.iter().map(value);
                uppers.find(|crossed| crossed.upper.tag == tag)?
            }
        };
        let sender = crossed.upper.sender(skb)?;
        Some((entrance.token.crossing(sender, tag), crossed))
    }

    /// Has a packet tell where it comes out.
    #[cold]
    fn try_out(&self, token: Token, skb: &mut Skb) {
        let mut uppers = self.uppers.iter().map(value);
        if let Some(sender) = uppers.find_map(|crossed| crossed.upper.sender(skb)) {
            skb.note_crossing(token.crossing(sender, Tag::NONE));
        }
    }

    /// What comes in like this comes out at the device above with this index, if it is by this port that it does.
    fn leads_to(&self, upper: u32, crossing: Crossing, sender: Sender) {
        let word = self.entrance.load(Acquire);
        let Some(entrance) = Entrance::unpack(word) else {
            return;
        };
        let mut uppers = self.uppers.iter().map(value);
        let place = uppers.position(|crossed| crossed.upper.index == upper);
        let leads_to = place.and_then(|place| u16::try_from(place).ok());
        if entrance.leads_to.is_some() || entrance.token.crossing(sender, Tag::NONE) != crossing {
            return;
        }
        let known = Entrance {
            leads_to,
            ..entrance
        };
        let _ = self
            .entrance
            .compare_exchange(word, known.pack(), AcqRel, Relaxed);
    }

    /// Forwards a packet past the bridge, if that is possible.
    ///
    /// # Errors
    ///
    /// The packet as it arrived, if it is not.
    #[inline(always)]
    fn forward<I: Carried, A: Passing<I>>(
        &self,
        read: Read<'_>,
        mut skb: A,
        (crossing, crossed): (Crossing, &Crossed),
    ) -> Result<Verdict, Skb> {
        let port = crossed.port();
        let Some((flow, packet)) = find::<I>(port, read, skb.linear()) else {
            return Err(skb.into());
        };
        if flow.transforms.are_shown() {
            return Err(skb.into());
        }
        if flow.crossing() != crossing {
            let mut skb: Skb = skb.into();
            if !flow.is_of_sender() {
                skb.note_crossing(crossing);
            }
            return Err(skb);
        }
        let net = port.instance.net;
        if !crossed
            .upper
            .receives_by_nothing_but(net, HOOKS, self.below)
        {
            return Err(skb.into());
        }
        match fast::admit::<I, A>(port, flow, &packet, &mut skb) {
            Ok(Fit {
                segment,
                next_hop: Some(next_hop),
            }) => {
                let length = skb.size();
                skb.go_on(crossed, flow, &packet, (segment, next_hop), length)
            }
            _ => Err(skb.into()),
        }
    }
}

/// A packet that may go past a bridge.
trait Passing<I: Carried>: Arrived<I> {
    /// Sends it on, as one that was `length` bytes long on arrival.
    ///
    /// # Errors
    ///
    /// The packet, if that is not possible.
    fn go_on(
        self,
        crossed: &Crossed,
        flow: &Flow,
        packet: &Packet<I>,
        way: (Segment, NextHop<'_>),
        length: u32,
    ) -> Result<Verdict, Skb>;
}

/// Bytes of a packet that are written to.
#[inline(always)]
const fn headers<I: Carried>(packet: &Packet<I>) -> u32 {
    (I::HEADER + packet.protocol.header_len()) as u32
}

impl<I: Carried> Passing<I> for Untrimmed<Ordinary<I>> {
    #[inline(always)]
    fn go_on(
        self,
        crossed: &Crossed,
        flow: &Flow,
        packet: &Packet<I>,
        way: (Segment, NextHop<'_>),
        length: u32,
    ) -> Result<Verdict, Skb> {
        let skb = self.writable(headers(packet), packet.total_len)?;
        crossed.send(flow, packet, way, skb, length)
    }
}

impl<I: Carried> Passing<I> for Untrimmed<Skb> {
    #[inline(always)]
    fn go_on(
        self,
        crossed: &Crossed,
        flow: &Flow,
        packet: &Packet<I>,
        way: (Segment, NextHop<'_>),
        length: u32,
    ) -> Result<Verdict, Skb> {
        let skb = self.writable(headers(packet), packet.total_len)?;
        crossed.send(flow, packet, way, skb, length)
    }
}

impl Ingress for BridgePort {
    #[inline(always)]
    fn arrives(&self, read: Read<'_>, skb: Skb) -> Verdict {
        match skb.family() {
            Some(Family::V4) => pass::<V4>(self, read, skb, Tag::NONE),
            Some(Family::V6) => pass::<V6>(self, read, skb, Tag::NONE),
            None => pass_tagged(self, read, skb),
        }
    }
}

/// What happens to a packet that is none of IP, or has a tag beside it.
#[inline(never)]
fn pass_tagged(port: &BridgePort, read: Read<'_>, skb: Skb) -> Verdict {
    match skb.tagged() {
        Some((Family::V4, tag)) => pass::<V4>(port, read, skb, tag),
        Some((Family::V6, tag)) => pass::<V6>(port, read, skb, tag),
        None => skb.into(),
    }
}

/// What happens to a packet of either version of IP. As with those of other devices it is compiled twice, for usual
/// packets and for all.
#[inline(never)]
fn pass<I: Carried>(port: &BridgePort, read: Read<'_>, mut skb: Skb, tag: Tag) -> Verdict {
    let Some(crossing) = port.crossing(&mut skb, tag) else {
        return skb.into();
    };
    // As the bridge or the VLAN would, since it is its address.
    skb.set_for_us();
    let passed = match Ordinary::<I>::new(skb) {
        Ok(skb) => port.forward::<I, _>(read, Untrimmed(skb), crossing),
        Err(skb) => return pass_any::<I>(port, read, skb, crossing),
    };
    passed.unwrap_or_else(Verdict::from)
}

/// What happens to a packet, usual or not.
#[inline(never)]
fn pass_any<I: Carried>(
    port: &BridgePort,
    read: Read<'_>,
    skb: Skb,
    crossing: (Crossing, &Crossed),
) -> Verdict {
    // What has come through a tunnel may have its VLAN from there.
    if skb.has_route() {
        return skb.into();
    }
    port.forward::<I, _>(read, Untrimmed(skb), crossing)
        .unwrap_or_else(Verdict::from)
}

/// The flow of a packet, and what has been read of that.
#[inline(always)]
fn find<'rcu, I: Carried>(
    port: &'rcu Port,
    read: Read<'rcu>,
    linear: &[u8],
) -> Option<(&'rcu Flow, Packet<I>)> {
    let Reading::Packet(packet) = I::read(linear) else {
        return None;
    };
    let tuple = Tuple {
        addresses: packet.addresses,
        ports: packet.ports,
    };
    let found = port
        .instance
        .find_by_key::<I>(read, tuple, packet.protocol, port.device);
    let flow = found.ok()?;
    // Read once more, rather than kept meanwhile.
    let packet = I::reread(linear, packet.protocol)?;
    I::arrives(flow, packet.addresses).then_some((flow, packet))
}

/// A device above the ports of a bridge, where it is given what the bridge has let in.
pub struct Crossed {
    /// The device.
    pub upper: Upper,
    /// The same, as the fast path sees it.
    port: Arc<Hook<Port>>,
}

impl Ingress for Crossed {
    #[inline(always)]
    fn arrives(&self, read: Read<'_>, mut skb: Skb) -> Verdict {
        if let Some(crossing) = skb.crossing() {
            self.remember(read, &mut skb, crossing);
        }
        skb.into()
    }
}

impl Crossed {
    /// The device, attached as `port`.
    pub const fn new(upper: Upper, port: Arc<Hook<Port>>) -> Self {
        Self { upper, port }
    }

    #[inline(always)]
    fn port(&self) -> &Port {
        value(&self.port)
    }

    /// Notes how a packet has come in.
    #[cold]
    #[inline(never)]
    fn remember(&self, read: Read<'_>, skb: &mut Skb, crossing: Crossing) {
        let port = self.port();
        let flow = match skb.family() {
            Some(Family::V4) => find::<V4>(port, read, skb.linear()).map(|(flow, _)| flow),
            Some(Family::V6) => find::<V6>(port, read, skb.linear()).map(|(flow, _)| flow),
            // It is for a VLAN on this.
            None => return,
        };
        if let Some(flow) = flow {
            flow.set_crossing(crossing);
        }
        let sender = port.senders.sender(skb.before());
        for entrance in port.instance.bridges.ports(read) {
            entrance.leads_to(port.index, crossing, sender);
        }
        skb.forget_crossing();
    }

    /// Sends a packet on that has not met the bridge.
    #[inline(always)]
    fn send<I: Carried, const BARE: bool>(
        &self,
        flow: &Flow,
        packet: &Packet<I>,
        (segment, next_hop): (Segment, NextHop<'_>),
        skb: Writable<BARE>,
        length: u32,
    ) -> Result<Verdict, Skb> {
        let port = self.port();
        let mut skb = fast::rewrite(port, flow, packet, segment, skb)?;
        self.upper.count(length);
        skb.arrive_on(port.index);
        let sent = skb.send::<I>(flow.stamp(), &flow.route, next_hop);
        Ok(sent.into())
    }
}

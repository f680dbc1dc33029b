// SPDX-License-Identifier: GPL-2.0

//! The fast path: what happens to a packet between the device that it arrives on and the one that it
//! leaves by.

use crate::engine::ip::Family;
use crate::engine::ip::V4;
use crate::engine::ip::V6;
use crate::engine::key;
use crate::engine::packet::Packet;
use crate::engine::packet::Reading;
use crate::engine::reason::SlowReason;
use crate::engine::transport;
use crate::engine::transport::Protocol;
use crate::engine::transport::Segment;
use crate::engine::validity::Check;
use crate::flow::Carried;
use crate::flow::Flow;
use crate::instance::Instance;
use crate::net::conntrack::Tuple;
use crate::net::hook::Ingress;
use crate::net::hook::Verdict;
use crate::net::neighbour::Neighbour;
use crate::net::neighbour::NextHop;
use crate::net::ordinary::Arrived;
use crate::net::ordinary::Ordinary;
use crate::net::percpu;
use crate::net::rcu::Read;
use crate::net::skb::Look;
use crate::net::skb::NoMemory;
use crate::net::skb::Skb;
use crate::net::skb::Writable;
use crate::net::time;
use crate::port::Port;
use crate::track;

impl Ingress for Port {
    #[inline(always)]
    fn arrives(&self, read: Read<'_>, skb: Skb) -> Verdict {
        match skb.family() {
            Some(Family::V4) => take::<V4>(self, read, skb),
            Some(Family::V6) => take::<V6>(self, read, skb),
            None => take_tagged(self, read, skb),
        }
    }
}

/// What happens to a packet that is none of IP, or has a tag beside it: if that is only about its priority, as some
/// providers have it with every packet, the same as without.
#[cold]
#[inline(never)]
fn take_tagged(port: &Port, read: Read<'_>, mut skb: Skb) -> Verdict {
    if !skb.drop_priority_tag() {
        return skb.into();
    }
    match skb.family() {
        Some(Family::V4) => take_any::<V4>(port, read, skb),
        Some(Family::V6) => take_any::<V6>(port, read, skb),
        None => skb.into(),
    }
}

/// What happens to a packet of either version of IP.
///
/// It is the same for all, but compiled three times. Twice for usual packets, as nearly all are, of each of the two
/// protocols that most are of: nothing has to be called for them but to send them. What turns out to be otherwise goes
/// to the third.
#[inline(never)]
fn take<I: Carried>(port: &Port, read: Read<'_>, skb: Skb) -> Verdict {
    const UDP: Option<u8> = Some(Protocol::Udp.number());
    const TCP: Option<u8> = Some(Protocol::Tcp.number());
    let skb = match Ordinary::<I>::new(skb) {
        Ok(skb) => skb,
        Err(skb) => return take_any::<I>(port, read, skb),
    };
    match I::number(skb.linear()) {
        UDP => read_and_go::<I, _>(port, read, skb),
        TCP => read_and_go::<I, _>(port, read, skb),
        _ => take_any::<I>(port, read, skb.into()),
    }
}

/// What happens to a packet, usual or not.
#[inline(never)]
fn take_any<I: Carried>(port: &Port, read: Read<'_>, skb: Skb) -> Verdict {
    read_and_go::<I, _>(port, read, skb)
}

/// What happens to a packet, when its headers have been read.
#[inline(always)]
fn read_and_go<I: Carried, A: Taken<I>>(port: &Port, read: Read<'_>, skb: A) -> Verdict {
    match I::read(skb.linear()) {
        Reading::Packet(packet) => go::<I, A>(port, read, packet, skb),
        Reading::NotCarried => not_carried::<I>(port, read, skb.into()),
        Reading::InPieces => take_in_pieces::<I>(port, read, skb.into()),
        Reading::BadHeader => bad_header(port, skb.into()),
    }
}

/// Counts a packet without a header that the IP layer would accept.
#[cold]
#[inline(never)]
fn bad_header(port: &Port, skb: Skb) -> Verdict {
    port.instance.stats.slow(SlowReason::BadHeader);
    skb.into()
}

/// What happens to a packet that is left to the IP layer without a look for its flow: if it is a TCP segment
/// all the same, the first fragment of one or one with IP options, conntrack has to be told before it sees
/// it.
#[cold]
#[inline(never)]
fn not_carried<I: Carried>(port: &Port, read: Read<'_>, skb: Skb) -> Verdict {
    let instance = &port.instance;
    let segment = match skb.is_for_us() {
        true => I::read_uncarried_tcp(|offset| skb.bytes(offset)),
        false => None,
    };
    if let Some((addresses, ports)) = segment {
        let tuple = Tuple { addresses, ports };
        if let Some(flow) = instance.find::<I>(read, tuple, Protocol::Tcp, port.device) {
            track::catch_up(instance, read, flow);
        }
    }
    skb.into()
}

/// What happens to a packet whose headers are not in one piece: they are brought into one.
#[cold]
#[inline(never)]
fn take_in_pieces<I: Carried>(port: &Port, read: Read<'_>, mut skb: Skb) -> Verdict {
    // Whatever is shorter is no TCP segment.
    let len = skb.size().min(I::READ as u32);
    if !skb.is_peculiar() && skb.pull(len) {
        if let Reading::Packet(_) = I::read(skb.linear()) {
            return take_any::<I>(port, read, skb);
        }
    }
    not_carried::<I>(port, read, skb)
}

/// What is known of a packet that may take the fast path.
pub struct Fit<'a> {
    /// Means something if it is TCP.
    pub segment: Segment,
    /// Where it goes; none if IPsec transforms are on its way.
    pub next_hop: Option<NextHop<'a>>,
}

/// Why a packet is not forwarded, by code that is compiled for usual ones or for all.
pub enum Refusal {
    /// The slow path has it.
    Slow(SlowReason),
    /// It, or its flow, is not as usual. Nothing has been decided.
    Unusual,
}

impl From<SlowReason> for Refusal {
    #[inline(always)]
    fn from(reason: SlowReason) -> Self {
        Self::Slow(reason)
    }
}

/// What happens to a packet that may belong to a flow.
#[inline(always)]
fn go<I: Carried, A: Taken<I>>(port: &Port, read: Read<'_>, packet: Packet<I>, skb: A) -> Verdict {
    let instance = &port.instance;
    let tuple = Tuple {
        addresses: packet.addresses,
        ports: packet.ports,
    };
    let flow = match instance.find_by_key::<I>(read, tuple, packet.protocol, port.device) {
        Ok(flow) => flow,
        Err(hash) => return of_no_flow(port, hash, packet.dscp(), skb.into()),
    };
    if A::IS_ORDINARY && flow.transforms.are_shown() {
        return go_through_ipsec::<I>(port, read, flow, packet.protocol, skb.into());
    }
    go_with::<I, A>(port, read, flow, packet.protocol, skb)
}

/// The same, of a flow whose packets IPsec transforms: they are not usual, but their flow has been found.
#[inline(never)]
fn go_through_ipsec<I: Carried>(
    port: &Port,
    read: Read<'_>,
    flow: &Flow,
    protocol: Protocol,
    skb: Skb,
) -> Verdict {
    go_with::<I, Skb>(port, read, flow, protocol, skb)
}

/// What happens to a packet without a flow: if it is among the first of its direction, the learning side need not look
/// at it; of any other one it has to know that it was here, and when.
#[inline(never)]
fn of_no_flow(port: &Port, hash: Option<key::Hash>, dscp: u8, mut skb: Skb) -> Verdict {
    let instance = &port.instance;
    match hash {
        Some(hash) if !instance.lets_in(hash) => skb.turn_away(port.index),
        Some(hash) => skb.let_in(port.index, instance.note(hash, dscp)),
        None => skb.let_in(port.index, None),
    }
    skb.into()
}

/// What happens to a packet with the key of a flow.
#[inline(always)]
fn go_with<I: Carried, A: Taken<I>>(
    port: &Port,
    read: Read<'_>,
    flow: &Flow,
    protocol: Protocol,
    mut skb: A,
) -> Verdict {
    let instance = &port.instance;
    // Read once more, rather than kept meanwhile.
    let Some(packet) = I::reread(skb.linear(), protocol) else {
        return accept(skb);
    };
    // Of two flows with the same key, should that ever happen, only one is fast.
    if !I::arrives(flow, packet.addresses) {
        return accept(skb);
    }
    match admit::<I, A>(port, flow, &packet, &mut skb) {
        Ok(fit) => skb.forward(port, read, flow, &packet, fit),
        Err(Refusal::Slow(reason)) => {
            stay_slow::<I>(instance, read, flow, packet.dscp(), skb.into(), reason)
        }
        Err(Refusal::Unusual) => take_any::<I>(port, read, skb.into()),
    }
}

/// Sends a packet on to the slow path.
#[inline(always)]
fn accept(skb: impl Into<Skb>) -> Verdict {
    let skb: Skb = skb.into();
    skb.into()
}

/// Whether the packet may take the fast path: it is one that the IP layer would accept, its connection
/// is still what it was, and the memo holds.
#[inline(always)]
pub fn admit<'a, I: Carried, A: Arrived<I>>(
    port: &Port,
    flow: &'a Flow,
    packet: &Packet<I>,
    skb: &mut A,
) -> Result<Fit<'a>, Refusal> {
    let instance = &port.instance;
    // The flow of an ordinary one has no transforms.
    if !A::IS_ORDINARY {
        look_closer(port, flow, skb.skb().look())?;
    }
    // Link-layer padding is no part of the packet, and the IP layer would cut it off as well.
    if packet.is_padded(skb.size())? {
        skb.trim(packet.total_len)
            .map_err(|NoMemory| refuse::<I, A>(SlowReason::NoMemory))?;
    }
    packet.check(skb.linear())?;

    let connection = &flow.connection;
    if connection.is_dying() {
        return Err(SlowReason::ConntrackGone.into());
    }
    if instance.settings.exclusion().covers(connection.mark()) {
        return Err(SlowReason::Marked.into());
    }
    let linear = skb.linear();
    let segment = match packet.protocol {
        Protocol::Tcp => {
            let segment = Segment::read(packet, linear)?;
            if !connection.tcp_is_established() {
                return Err(SlowReason::TcpState.into());
            }
            segment
        }
        Protocol::Udp => {
            transport::check_udp(packet)?;
            Segment::default()
        }
        Protocol::Sctp => {
            let tag = transport::check_sctp::<I>(packet.total_len, linear)?;
            if !connection.sctp_is_established(flow.direction, tag) {
                return Err(SlowReason::SctpControl.into());
            }
            Segment::default()
        }
        _ => Segment::default(),
    };

    let now = time::now();
    let epoch = match instance.unchanged_epoch() {
        Some(epoch) => epoch,
        None if A::IS_ORDINARY => return Err(Refusal::Unusual),
        None => instance.epoch(now),
    };
    match flow.validity.check(epoch, now) {
        Check::Confirmed => {}
        Check::Due => return Err(SlowReason::Sampled.into()),
        Check::Outdated => return Err(SlowReason::Revalidating.into()),
        Check::Unconfirmed => return Err(SlowReason::Learning.into()),
    }
    // Only now: a memo that does not hold knows less than conntrack of how far the connection got.
    if matches!(packet.protocol, Protocol::Tcp) && !flow.window.admits(segment) {
        return Err(SlowReason::TcpFlags.into());
    }
    if !I::suits(packet, flow.amendment()) {
        return Err(SlowReason::Dscp.into());
    }
    if !I::all_is_forwarded(instance.net)
        && (A::IS_ORDINARY || !I::is_forwarded(instance.net, port.index))
    {
        return Err(refuse::<I, A>(SlowReason::StaleRoute));
    }
    let next_hop = flow.neighbour.as_ref().map(Neighbour::next_hop);
    match next_hop {
        Some(next_hop) => {
            check_route::<I>(instance, flow, next_hop)?;
            let mtu = match flow.lasting_mtu() {
                0 if !A::IS_ORDINARY => flow.route.mtu(I::FAMILY),
                // Of 0, nothing fits; nor is the next hop known to be one of the packet's version of IP.
                mtu => mtu,
            };
            if skb.exceeds([mtu, next_hop.device().mtu()]) {
                return Err(refuse::<I, A>(SlowReason::Mtu));
            }
        }
        None if A::IS_ORDINARY => return Err(Refusal::Unusual),
        None => match bundle_mtu::<I>(instance, flow) {
            0 => return Err(SlowReason::StaleRoute.into()),
            mtu if skb.exceeds([mtu, mtu]) => return Err(SlowReason::Mtu.into()),
            _ => {}
        },
    }
    Ok(Fit { segment, next_hop })
}

/// What it is about a packet that is not ordinary, or belongs to a flow whose packets are not, and whether it may be
/// forwarded all the same.
#[cold]
#[inline(never)]
fn look_closer(port: &Port, flow: &Flow, skb: Look<'_>) -> Result<(), SlowReason> {
    if !skb.is_for_us() {
        return Err(SlowReason::OtherHost);
    }
    // A packet in clear never passes for a decrypted one, nor one that other states have decrypted. That
    // these states may decrypt it was decided in the slow path, under policies that a new epoch would begin
    // with if they changed.
    let arrives_as_learned = match &flow.secpath {
        None => !skb.has_secpath(),
        Some(secpath) => secpath.is_of(&skb),
    };
    if !arrives_as_learned {
        return Err(SlowReason::SecpathMismatch);
    }
    // What was decrypted has left the link behind, and its states say more. No flow of a sender has a lasting MTU, which is
    // sooner asked.
    if flow.lasting_mtu() == 0
        && flow.secpath.is_none()
        && flow.is_of_sender()
        && port.senders.sender(skb.before()) != flow.sender()
    {
        return Err(SlowReason::Sender);
    }
    if skb.has_mark() {
        return Err(SlowReason::PacketMark);
    }
    if skb.is_peculiar() {
        return Err(SlowReason::Unsupported);
    }
    Ok(())
}

/// Whether a flow's next hop is still to be reached as before.
#[inline(always)]
fn check_route<I: Carried>(
    instance: &Instance,
    flow: &Flow,
    next_hop: NextHop<'_>,
) -> Result<(), SlowReason> {
    if !flow.route.is_in_use() || !flow.is_routed_in(I::routes(instance.net)) {
        return Err(SlowReason::StaleRoute);
    }
    if !next_hop.is_valid() {
        return Err(SlowReason::NoNeighbour);
    }
    Ok(())
}

/// The largest packet that a flow's IPsec transforms take; 0 if they are not what they were any more. It changes
/// with the route of what they make of it, so it is asked for every time.
#[inline(never)]
fn bundle_mtu<I: Carried>(instance: &Instance, flow: &Flow) -> u32 {
    match flow.is_routed_in(flow.routes::<I>(instance.net)) && flow.route.is_usable() {
        true => flow.route.mtu(I::FAMILY),
        false => 0,
    }
}

/// A packet that can be forwarded: see [`take`].
trait Taken<I: Carried>: Arrived<I> {
    /// Does with it what the slow path does with the packets of its flow.
    fn forward(
        self,
        port: &Port,
        read: Read<'_>,
        flow: &Flow,
        packet: &Packet<I>,
        fit: Fit<'_>,
    ) -> Verdict;
}

/// What it means that a packet can't be forwarded for a reason which may hold only for packets that are ordinary.
#[inline(always)]
fn refuse<I: Carried, A: Arrived<I>>(reason: SlowReason) -> Refusal {
    match A::IS_ORDINARY {
        true => Refusal::Unusual,
        false => Refusal::Slow(reason),
    }
}

impl<I: Carried> Taken<I> for Ordinary<I> {
    #[inline(always)]
    fn forward(
        self,
        port: &Port,
        read: Read<'_>,
        flow: &Flow,
        packet: &Packet<I>,
        fit: Fit<'_>,
    ) -> Verdict {
        let headers = I::HEADER + packet.protocol.header_len();
        match (self.writable(headers as u32), fit.next_hop) {
            (Ok(skb), Some(next_hop)) => match rewrite(port, flow, packet, fit.segment, skb) {
                Ok(skb) => skb.send::<I>(flow.stamp(), &flow.route, next_hop).into(),
                Err(skb) => no_memory(&port.instance, skb),
            },
            (Ok(skb), None) => take_any::<I>(port, read, skb.into()),
            (Err(skb), _) => take_any::<I>(port, read, skb.into()),
        }
    }
}

impl<I: Carried> Taken<I> for Skb {
    #[inline(always)]
    fn forward(
        self,
        port: &Port,
        _read: Read<'_>,
        flow: &Flow,
        packet: &Packet<I>,
        fit: Fit<'_>,
    ) -> Verdict {
        let instance = &port.instance;
        let headers = I::HEADER + packet.protocol.header_len();
        let rewritten = self
            .writable(headers as u32)
            .and_then(|skb| rewrite(port, flow, packet, fit.segment, skb));
        match (rewritten, fit.next_hop) {
            (Ok(skb), Some(next_hop)) => skb.send::<I>(flow.stamp(), &flow.route, next_hop).into(),
            (Ok(skb), None) => {
                let sent = skb.transform::<I>(instance.net, flow.stamp(), &flow.route, port.index);
                sent.into()
            }
            (Err(skb), _) => no_memory(instance, skb),
        }
    }
}

/// Rewrites a packet, and counts it. Gives it back as it was if that can't be done.
#[inline(always)]
pub fn rewrite<I: Carried, const BARE: bool>(
    port: &Port,
    flow: &Flow,
    packet: &Packet<I>,
    segment: Segment,
    mut skb: Writable<BARE>,
) -> Result<Writable<BARE>, Skb> {
    let checksum = skb.checksum();
    let (addresses, amendment) = (I::leaving(flow), flow.amendment());
    let translation = &flow.translation;
    if !translation.apply(packet, addresses, amendment, checksum, skb.head()) {
        return Err(skb.into());
    }
    if matches!(packet.protocol, Protocol::Tcp) {
        flow.window.advance(segment, flow.scale);
    }
    let bytes = packet.total_len;
    flow.count(percpu::this_cpu(), bytes);
    if flow.is_counted {
        flow.connection.count(flow.direction, bytes);
    }
    port.instance.stats.fast(flow.direction, bytes);
    Ok(skb)
}

/// Sends a packet on to the slow path that there is no memory for to rewrite.
#[cold]
#[inline(never)]
fn no_memory(instance: &Instance, mut skb: Skb) -> Verdict {
    instance.stats.slow(SlowReason::NoMemory);
    skb.identify();
    skb.into()
}

/// Sends a packet of a flow on to the slow path: counted, and so that conntrack understands it and the
/// learning side recognises it.
#[cold]
#[inline(never)]
fn stay_slow<I: Carried>(
    instance: &Instance,
    read: Read<'_>,
    flow: &Flow,
    dscp: u8,
    mut skb: Skb,
    reason: SlowReason,
) -> Verdict {
    instance.stats.slow(reason);
    flow.see(time::now());
    // So the learning side knows that it has been counted, too.
    let id = skb.identify();
    match reason {
        SlowReason::Learning
        | SlowReason::Sampled
        | SlowReason::Revalidating
        | SlowReason::Dscp
        | SlowReason::Sender
        | SlowReason::StaleRoute
        | SlowReason::NoNeighbour => {
            let (epoch, routes) = (instance.settings.epoch(), flow.routes::<I>(instance.net));
            flow.validity.send_probe(id, dscp, epoch, routes);
        }
        _ => {}
    }
    if reason != SlowReason::OtherHost {
        track::catch_up(instance, read, flow);
    }
    skb.into()
}

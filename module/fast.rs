// SPDX-License-Identifier: GPL-2.0

//! The fast path: what happens to a packet between the device that it arrives on and the one that it
//! leaves by.

use crate::engine::ip::Family;
use crate::engine::ip::V4;
use crate::engine::ip::V6;
use crate::engine::packet::Packet;
use crate::engine::packet::Reading;
use crate::engine::reason::SlowReason;
use crate::engine::tick::Tick;
use crate::engine::transport;
use crate::engine::transport::Protocol;
use crate::engine::transport::Segment;
use crate::engine::validity::Check;
use crate::flow::Carried;
use crate::flow::Flow;
use crate::instance::Instance;
use crate::net::conntrack::Tuple;
use crate::net::hook::Ingress;
use crate::net::neighbour::Neighbour;
use crate::net::percpu;
use crate::net::rcu::Read;
use crate::net::skb::Sent;
use crate::net::skb::Skb;
use crate::net::time;
use crate::port::Port;
use crate::track;

use core::sync::atomic::Ordering::Relaxed;

impl Ingress for Port {
    #[inline]
    fn arrives(&self, read: Read<'_>, skb: Skb) -> Result<Sent, Skb> {
        match skb.family() {
            Some(Family::V4) => take::<V4>(self, read, skb),
            Some(Family::V6) => take::<V6>(self, read, skb),
            None => Err(skb),
        }
    }
}

/// What happens to a packet of either version of IP.
#[inline(never)]
fn take<I: Carried>(port: &Port, read: Read<'_>, skb: Skb) -> Result<Sent, Skb> {
    match I::read(skb.linear()) {
        Reading::Packet(packet) => go(port, read, &packet, skb),
        Reading::NotCarried => {
            not_carried::<I>(port, read, &skb);
            Err(skb)
        }
        Reading::InPieces => take_in_pieces::<I>(port, read, skb),
        Reading::BadHeader => {
            port.instance.stats.slow(SlowReason::BadHeader);
            Err(skb)
        }
    }
}

/// What happens to a packet that is left to the IP layer without a look for its flow: if it is a TCP segment
/// all the same, the first fragment of one or one with IP options, conntrack has to be told before it sees
/// it.
#[cold]
#[inline(never)]
fn not_carried<I: Carried>(port: &Port, read: Read<'_>, skb: &Skb) {
    if !skb.is_for_us() {
        return;
    }
    let Some((addresses, ports)) = I::read_uncarried_tcp(|offset| skb.bytes(offset)) else {
        return;
    };
    let tuple = Tuple { addresses, ports };
    let instance = &port.instance;
    if let Some(flow) = instance.find::<I>(read, tuple, Protocol::Tcp, port.device) {
        track::catch_up(instance, read, flow);
    }
}

/// What happens to a packet whose headers are not in one piece: they are brought into one.
#[cold]
#[inline(never)]
fn take_in_pieces<I: Carried>(port: &Port, read: Read<'_>, mut skb: Skb) -> Result<Sent, Skb> {
    // Whatever is shorter is no TCP segment.
    let len = skb.size().min(I::READ as u32);
    if !skb.is_peculiar() && skb.pull(len) {
        if let Reading::Packet(packet) = I::read(skb.linear()) {
            return go(port, read, &packet, skb);
        }
    }
    not_carried::<I>(port, read, &skb);
    Err(skb)
}

/// What happens to a packet that may belong to a flow.
#[inline(always)]
fn go<I: Carried>(
    port: &Port,
    read: Read<'_>,
    packet: &Packet<I>,
    mut skb: Skb,
) -> Result<Sent, Skb> {
    let instance = &port.instance;
    let tuple = Tuple {
        addresses: packet.addresses,
        ports: packet.ports,
    };
    let Some(flow) = instance.find::<I>(read, tuple, packet.protocol, port.device) else {
        return Err(skb);
    };
    let now = time::now();
    flow.see(now);
    match admit(port, flow, packet, &mut skb, now) {
        Ok(segment) => forward(port, flow, packet, segment, skb),
        Err(reason) => Err(stay_slow(instance, read, flow, packet, skb, reason)),
    }
}

/// Whether the packet may take the fast path: it is one that the IP layer would accept, its connection
/// is still what it was, and the memo holds. Gives its segment, which means something if it is TCP.
#[inline(always)]
fn admit<I: Carried>(
    port: &Port,
    flow: &Flow,
    packet: &Packet<I>,
    skb: &mut Skb,
    now: Tick,
) -> Result<Segment, SlowReason> {
    let instance = &port.instance;
    if !skb.is_for_us() {
        return Err(SlowReason::OtherHost);
    }
    // A packet in clear never passes for a decrypted one, nor one that other states have decrypted. That
    // these states may decrypt it was decided in the slow path, under policies that a new epoch would begin
    // with if they changed.
    let arrives_as_learned = match &flow.secpath {
        None => !skb.has_secpath(),
        Some(secpath) => secpath.is_of(skb),
    };
    if !arrives_as_learned {
        return Err(SlowReason::SecpathMismatch);
    }
    if skb.has_mark() {
        return Err(SlowReason::PacketMark);
    }
    if skb.is_peculiar() {
        return Err(SlowReason::Unsupported);
    }
    packet.check(skb.linear(), skb.size())?;

    let connection = &flow.connection;
    if connection.is_dying() {
        return Err(SlowReason::ConntrackGone);
    }
    if instance.settings.exclusion().covers(connection.mark()) {
        return Err(SlowReason::Marked);
    }
    let segment = match packet.protocol {
        Protocol::Tcp => {
            let segment = Segment::read(packet, skb.linear())?;
            if !connection.tcp_is_established() {
                return Err(SlowReason::TcpState);
            }
            segment
        }
        Protocol::Udp => {
            transport::check_udp(packet, skb.linear())?;
            Segment::default()
        }
        Protocol::Sctp => {
            let tag = transport::check_sctp(packet, skb.linear())?;
            if !connection.sctp_is_established(flow.direction, tag) {
                return Err(SlowReason::SctpControl);
            }
            Segment::default()
        }
        _ => Segment::default(),
    };

    match flow.validity.check(instance.epoch(now), now) {
        Check::Confirmed => {}
        Check::Due => return Err(SlowReason::Sampled),
        Check::Outdated => return Err(SlowReason::Revalidating),
        Check::Unconfirmed => return Err(SlowReason::Learning),
    }
    // Only now: a memo that does not hold knows less than conntrack of how far the connection got.
    if matches!(packet.protocol, Protocol::Tcp) && !flow.window.admits(segment) {
        return Err(SlowReason::TcpFlags);
    }
    if packet.dscp() != flow.dscp_in.load(Relaxed) {
        return Err(SlowReason::Dscp);
    }
    let mtu = match &flow.neighbour {
        Some(neighbour) => plain_mtu::<I>(instance, flow, neighbour)?,
        None => bundle_mtu::<I>(instance, flow)?,
    };
    if !I::is_forwarded(instance.net, port.index) {
        return Err(SlowReason::StaleRoute);
    }
    // Link-layer padding is no part of the packet.
    if skb.trim(packet.total_len).is_err() {
        return Err(SlowReason::NoMemory);
    }
    if skb.exceeds::<I>(mtu) {
        return Err(SlowReason::Mtu);
    }
    Ok(segment)
}

/// The largest packet that a flow's next hop takes, if it is still to be reached as before.
#[inline(always)]
fn plain_mtu<I: Carried>(
    instance: &Instance,
    flow: &Flow,
    neighbour: &Neighbour,
) -> Result<u32, SlowReason> {
    if !flow.route.is_in_use() || !flow.is_routed_in(I::routes(instance.net)) {
        return Err(SlowReason::StaleRoute);
    }
    if !neighbour.is_valid() {
        return Err(SlowReason::NoNeighbour);
    }
    Ok(flow.mtu.load(Relaxed).min(neighbour.device().mtu()))
}

/// The largest packet that a flow's IPsec transforms take, if they are still what they were. It changes
/// with the route of what they make of it, so it is asked for every time.
#[inline(never)]
fn bundle_mtu<I: Carried>(instance: &Instance, flow: &Flow) -> Result<u32, SlowReason> {
    match flow.is_routed_in(flow.routes::<I>(instance.net)) && flow.route.is_usable() {
        true => Ok(flow.route.mtu(I::FAMILY)),
        false => Err(SlowReason::StaleRoute),
    }
}

/// Does with the packet what the slow path does with the packets of its flow.
#[inline(always)]
fn forward<I: Carried>(
    port: &Port,
    flow: &Flow,
    packet: &Packet<I>,
    segment: Segment,
    mut skb: Skb,
) -> Result<Sent, Skb> {
    let instance = &port.instance;
    let checksum = skb.checksum();
    let bytes = skb.size();
    let dscp = flow.dscp_out.load(Relaxed);
    let addresses = I::leaving(flow, packet.addresses);
    let rewritten = match skb.writable(I::READ as u32) {
        Ok(linear) => flow
            .translation
            .apply(packet, addresses, dscp, checksum, linear),
        Err(_) => false,
    };
    if !rewritten {
        // Nothing has been changed, so the slow path can have it.
        instance.stats.slow(SlowReason::NoMemory);
        return Err(skb);
    }
    if matches!(packet.protocol, Protocol::Tcp) {
        flow.window.advance(segment, flow.scale);
    }
    flow.count(percpu::this_cpu(), bytes);
    if flow.is_counted {
        flow.connection.count(flow.direction, bytes);
    }
    instance.stats.fast(flow.direction, bytes);
    Ok(match &flow.neighbour {
        Some(neighbour) => skb.send::<I>(flow.stamp(), &flow.route, neighbour),
        None => skb.transform::<I>(instance.net, flow.stamp(), &flow.route, port.index),
    })
}

/// Sends a packet of a flow on to the slow path: counted, and so that conntrack understands it and the
/// learning side recognises it.
#[cold]
fn stay_slow<I: Carried>(
    instance: &Instance,
    read: Read<'_>,
    flow: &Flow,
    packet: &Packet<I>,
    mut skb: Skb,
    reason: SlowReason,
) -> Skb {
    instance.stats.slow(reason);
    match reason {
        SlowReason::Learning
        | SlowReason::Sampled
        | SlowReason::Revalidating
        | SlowReason::Dscp
        | SlowReason::StaleRoute
        | SlowReason::NoNeighbour => {
            let (epoch, routes) = (instance.settings.epoch(), flow.routes::<I>(instance.net));
            flow.validity
                .send_probe(skb.identify(), packet.dscp(), epoch, routes);
        }
        _ => {}
    }
    if reason != SlowReason::OtherHost {
        track::catch_up(instance, read, flow);
    }
    skb
}

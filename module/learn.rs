// SPDX-License-Identifier: GPL-2.0

//! Learning: looking at the packets that come out of the slow path.
//!
//! The hook sits at the very end of POSTROUTING. There, and only there, everything is known that was
//! decided about a packet: its addresses after NAT, its route and whether that leads through IPsec
//! after a second policy lookup that source NAT may have made necessary, its mark and priority.

use core::marker::PhantomData;
use core::sync::atomic::Ordering::Relaxed;

use kernel::prelude::*;
use kernel::sync::Arc;

use crate::engine::ip::Family;
use crate::engine::ip::Ip;
use crate::engine::ip::DSCP_MASK;
use crate::engine::ip::V4;
use crate::engine::ip::V6;
use crate::engine::key;
use crate::engine::key::Hash;
use crate::engine::key::Key;
use crate::engine::learning;
use crate::engine::learning::Details;
use crate::engine::learning::Sight;
use crate::engine::packet::Packet;
use crate::engine::reason::GoneReason;
use crate::engine::reason::SlowReason;
use crate::engine::transforms::Transforms;
use crate::engine::transport::Protocol;
use crate::engine::validity::Validity;
use crate::engine::window::Known;
use crate::engine::window::Window;
use crate::flow::Carried;
use crate::flow::Flow;
use crate::flow::Seed;
use crate::instance::Instance;
use crate::net::conntrack::Connection;
use crate::net::conntrack::Direction;
use crate::net::conntrack::Tuple;
use crate::net::hook::PostRouting;
use crate::net::neighbour::Neighbour;
use crate::net::percpu;
use crate::net::rcu::Read;
use crate::net::route::PacketRoute;
use crate::net::secpath::Secpath;
use crate::net::skb::Forwarded;
use crate::net::table::NotAdded;
use crate::net::time;
use crate::notify;
use crate::port::Ports;
use crate::track;

/// The hook's value.
pub struct Learner {
    instance: Arc<Instance>,
}

impl Learner {
    /// For an instance.
    pub fn new(instance: Arc<Instance>) -> Self {
        Self { instance }
    }
}

impl PostRouting for Learner {
    fn leaves(&self, read: Read<'_>, packet: Forwarded<'_>) {
        if !self.instance.settings.is_on() {
            return;
        }
        if packet.was_turned_away() {
            self.instance.stats.slow(SlowReason::Learning);
            return;
        }
        let result = match packet.family() {
            Family::V4 => look::<V4>(&self.instance, read, packet),
            Family::V6 => look::<V6>(&self.instance, read, packet),
        };
        if let Err(reason) = result {
            self.instance.stats.slow(reason);
        }
    }
}

/// Looks at a packet that leaves. Gives the reason for which it was slow, if it has not been counted.
fn look<I: Carried>(
    instance: &Arc<Instance>,
    read: Read<'_>,
    packet: Forwarded<'_>,
) -> Result<(), SlowReason> {
    let Some((connection, direction, established)) = packet.connection() else {
        return match Header::of::<I>(packet.linear(), None) {
            Some(header) => glance(instance, &packet, &header, None),
            None => Ok(()),
        };
    };
    let protocol = connection
        .protocol()
        .filter(|_| connection.family() == Some(I::FAMILY));
    let Some(header) = Header::of::<I>(packet.linear(), protocol) else {
        return Ok(());
    };
    let seen = Seen::<I> {
        packet,
        header,
        connection,
        direction,
        version: PhantomData,
    };
    seen.learn(instance, read, established)
}

/// What is read of a packet's header.
struct Header {
    protocol: Protocol,
    has_options: bool,
    dscp: u8,
}

impl Header {
    /// The header of a packet whose connection is of the given protocol, if it is one that the fast path
    /// knows. `None` for a packet of a protocol that no flow is made of.
    fn of<I: Ip>(linear: &[u8], protocol: Option<Protocol>) -> Option<Self> {
        let bytes = linear.get(..I::HEADER)?;
        let (number, tos, has_options) = match (I::FAMILY, bytes) {
            (Family::V4, [start, tos, _, _, _, _, _, _, _, number, ..]) => {
                (*number, *tos, *start != 0x45)
            }
            (Family::V6, [start, class, _, _, _, _, number, ..]) => {
                let tos = start << 4 | class >> 4;
                // What conntrack found behind extension headers, if it is something else than what the header
                // names.
                match protocol {
                    Some(protocol) => (protocol.number(), tos, protocol.number() != *number),
                    None => (*number, tos, false),
                }
            }
            _ => return None,
        };
        Some(Self {
            protocol: Protocol::from_number(number)?,
            has_options,
            dscp: tos & DSCP_MASK,
        })
    }
}

/// Whether a packet may become a flow, at first sight.
#[inline(always)]
fn glance(
    instance: &Instance,
    packet: &Forwarded<'_>,
    header: &Header,
    connection: Option<learning::Connection>,
) -> Result<(), SlowReason> {
    let route = packet.route();
    let is_transformed = route.is_some_and(PacketRoute::is_transformed);
    let can_be_repeated = || {
        let usable = route.is_some_and(PacketRoute::is_bundle) || !is_transformed;
        usable && Secpath::of(packet).is_none_or(|secpath| secpath.ends_in_tunnel())
    };
    let shows_ipsec = packet.has_secpath() || is_transformed;
    let sight = Sight {
        ipsec: match instance.settings.accelerates_ipsec() {
            true => shows_ipsec && !can_be_repeated(),
            // What a device encrypts does not show it yet, and what a VTI has decrypted does not show it any more.
            false => {
                shows_ipsec || packet.comes_from_ipsec_device() || packet.goes_to_ipsec_device()
            }
        },
        reassembled: packet.is_reassembled(),
        options: header.has_options,
        connection,
    };
    sight.judge(instance.settings.exclusion())
}

/// A tracked packet that has come out of the slow path.
struct Seen<'a, I> {
    packet: Forwarded<'a>,
    header: Header,
    connection: &'a Connection,
    direction: Direction,
    version: PhantomData<I>,
}

impl<I: Carried> Seen<'_, I> {
    /// Learns the flow, confirms it, or drops it. Gives the reason for which this packet was slow, if it
    /// has not been counted at ingress.
    fn learn(
        &self,
        instance: &Arc<Instance>,
        read: Read<'_>,
        established: bool,
    ) -> Result<(), SlowReason> {
        let port = instance.ports.port(read, self.packet.from());
        let device = port.map(|port| port.device);
        let tuple = self.connection.tuple::<I>(self.direction);
        let protocol = self.header.protocol;
        let found = device.and_then(|device| instance.find::<I>(read, tuple, protocol, device));
        let glance = glance(
            instance,
            &self.packet,
            &self.header,
            Some(self.state(established)),
        );
        let zone = self.connection.zone(self.direction);
        let glance = match port.is_none_or(|port| port.is_all_of(zone)) {
            true => glance,
            false => glance.and(Err(SlowReason::Zones)),
        };
        match found {
            Some(flow) => self.follow(instance, read, flow, glance.and_then(|()| self.examine())),
            None => {
                glance?;
                let route = self.examine()?;
                match device {
                    Some(device) if self.packet.has_met_the_hook() => {
                        self.create(instance, read, device, route, None)?;
                    }
                    // Those behind it will not meet it either. A flow of them would be worse than none: the other
                    // direction's could be fast then, and of TCP conntrack would not be told in time how far that
                    // went.
                    Some(_) => return Err(SlowReason::Unsupported),
                    None => Ports::want(instance, self.packet.from()),
                }
                Err(SlowReason::Learning)
            }
        }
    }

    /// What becomes of the packet's flow. Gives the reason for which this packet was slow, if it has not been
    /// counted at ingress.
    #[inline(never)]
    fn follow(
        &self,
        instance: &Arc<Instance>,
        read: Read<'_>,
        flow: &Flow,
        judged: Result<PacketRoute<'_>, SlowReason>,
    ) -> Result<(), SlowReason> {
        let reason = match judged {
            // As in `learn`: from now on they come past the hook.
            Ok(_) if !self.packet.has_met_the_hook() => {
                instance.drop_flow(read, flow, GoneReason::Replaced);
                SlowReason::Unsupported
            }
            Ok(route) if self.still_describes(flow, route) => {
                self.confirm(instance, read, flow, route, None);
                SlowReason::Learning
            }
            Ok(route) => {
                let made = self.create(instance, read, flow.key.device(), route, Some(flow));
                made.err().unwrap_or(SlowReason::Learning)
            }
            Err(reason) => {
                if let Some(gone) = learning::consequence(reason) {
                    instance.drop_flow(read, flow, gone);
                }
                reason
            }
        };
        // It found the flow at ingress, unless it was there before the flow, or is a fragment or the like.
        match self.packet.id() {
            Some(_) => Ok(()),
            None => Err(reason),
        }
    }

    /// What the connection shows at first sight.
    fn state(&self, established: bool) -> learning::Connection {
        let connection = self.connection;
        learning::Connection {
            established: established && connection.is_confirmed_both_ways(),
            dying: connection.is_dying(),
            mark: connection.mark(),
        }
    }

    /// Whether the packet may become a flow, at a closer look. Gives its route.
    #[inline(never)]
    fn examine(&self) -> Result<PacketRoute<'_>, SlowReason> {
        let connection = self.connection;
        let route = self.packet.route();
        let usable = |route: PacketRoute<'_>| route.is_transformed() || route.is_plain();
        let details = Details {
            helper: connection.has_helper(),
            sequence_adjusted: connection.adjusts_sequence(),
            tcp_established: match self.header.protocol {
                Protocol::Tcp => connection.tcp_is_established(),
                _ => true,
            },
            usable_route: route.is_some_and(usable) && self.packet.has_destination(),
            as_translated: self.is_as_translated(),
        };
        details.judge()?;
        route.ok_or(SlowReason::RouteType)
    }

    /// Whether the packet has the addresses and ports that conntrack's entry says it leaves with, so that
    /// nothing else has rewritten them; and the fast path is able to do the same.
    fn is_as_translated(&self) -> bool {
        let arrived = self.connection.tuple::<I>(self.direction);
        let translated = self.connection.translated::<I>(self.direction);
        let protocol = self.header.protocol;
        let can_be_repeated = protocol.has_rewritable_ports() || arrived.ports == translated.ports;
        self.connection.protocol() == Some(protocol)
            && can_be_repeated
            && Packet::<I>::read(self.packet.linear()).is_ok_and(|packet| {
                packet.addresses == translated.addresses && packet.ports == translated.ports
            })
    }

    /// Whether the flow is still about this connection, this route, a neighbour that is in use, and the same
    /// IPsec states.
    fn still_describes(&self, flow: &Flow, route: PacketRoute<'_>) -> bool {
        let secpath = match &flow.secpath {
            Some(secpath) => secpath.is_that_of(&self.packet),
            None => !self.packet.has_secpath(),
        };
        let is_in_use = |neighbour: &Neighbour| !neighbour.is_dead();
        flow.connection.is(self.connection)
            && route.is(&flow.route)
            && flow.neighbour.as_ref().is_none_or(is_in_use)
            && secpath
    }

    /// Confirms the flow, if the packet is the one that was sent to do that; or, if the flow has just been made of it
    /// and has the given hash, the last one that has arrived.
    fn confirm(
        &self,
        instance: &Instance,
        read: Read<'_>,
        flow: &Flow,
        route: PacketRoute<'_>,
        made: Option<Hash>,
    ) {
        let epoch = instance.settings.epoch();
        let routes = flow.routes::<I>(instance.net);
        let returned = |id| flow.validity.returned(id, epoch, routes);
        let seen = match made {
            None => self.packet.id().and_then(returned),
            Some(hash) => self
                .packet
                .turn()
                .and_then(|turn| instance.noted(hash, turn, epoch)),
        };
        let Some(dscp) = seen else {
            return;
        };
        if flow.is_tcp() && track::opposite(instance, read, flow).is_none() {
            return;
        }
        let Some(port) = instance.ports.port(read, self.packet.from()) else {
            return;
        };
        flow.set_sender(port.senders.sender(self.packet.before()));
        flow.set_dscp::<I>(dscp, self.header.dscp);
        flow.set_mtu::<I>(route.lasting_mtu());
        flow.set_stamp(self.packet.stamp());
        let left = self.connection.left();
        flow.fresh
            .store(if left > 0 { left as u32 } else { 0 }, Relaxed);
        if let Some(known) = self.progress() {
            flow.window.catch_up(known);
        }
        flow.set_routes(routes);
        let interval = route.lifetime(instance.settings.interval());
        flow.validity.confirm(epoch, time::now().plus(interval));
    }

    /// What conntrack knows of the direction's sequence space, if it is TCP.
    fn progress(&self) -> Option<Known> {
        match self.header.protocol {
            Protocol::Tcp => self.connection.tcp_progress(self.direction),
            _ => None,
        }
    }

    /// Makes a flow of the packet's direction, in place of `old` if there is one.
    #[inline(never)]
    fn create(
        &self,
        instance: &Arc<Instance>,
        read: Read<'_>,
        device: key::Device,
        route: PacketRoute<'_>,
        old: Option<&Flow>,
    ) -> Result<(), SlowReason> {
        let window = match (self.header.protocol, self.progress()) {
            (Protocol::Tcp, Some(known)) => (Window::new(known), known.scale),
            (Protocol::Tcp, None) => return Err(SlowReason::TcpState),
            _ => (Window::default(), 0),
        };
        let neighbour = match route.is_transformed() {
            true => None,
            false => Some(route.neighbour().ok_or(SlowReason::NoNeighbour)?),
        };
        let held = route.hold().ok_or(SlowReason::StaleRoute)?;
        let now = time::now();
        let Tuple { addresses, ports } = self.connection.tuple::<I>(self.direction);
        let protocol = self.header.protocol;
        let key = instance.table.key(read, |hasher| {
            Key::new::<I>(hasher, addresses, ports, protocol, device)
        });
        // Without a table there is nothing to be learned.
        let Some((key, hash)) = key else {
            return Ok(());
        };
        let new = Flow::new::<I>(Seed {
            id: instance.new_id(),
            key,
            connection: self.connection.hold(),
            direction: self.direction,
            route: held,
            neighbour,
            secpath: Secpath::of(&self.packet),
            by_devices: Transforms::by_devices(
                self.packet.comes_from_ipsec_device(),
                self.packet.goes_to_ipsec_device(),
            ),
            window,
            validity: old.map_or(Validity::new(now), |old| old.validity.succeeding(now)),
            cpu: percpu::this_cpu(),
            now,
        });
        let same = |flow: &Flow| flow.is::<I>(key, addresses);
        let added = match old {
            Some(old) => {
                if old.connection.is(self.connection) {
                    new.count_from(old.counted());
                }
                let added = instance.table.replace(read, old, new, same);
                match added {
                    Ok(_) => instance.account_gone(old, GoneReason::Replaced),
                    // Whether or not it is still there: takes the other direction with it.
                    Err(_) => instance.drop_flow(read, old, GoneReason::Replaced),
                }
                added
            }
            None => instance.table.add(read, new, same),
        };
        match added {
            Ok(flow) => {
                instance.stats.learned();
                notify::flow_new(instance, flow);
                // The packet that brought the news confirms the new memo, if there was another one.
                let made = old.is_none().then_some(hash);
                self.confirm(instance, read, flow, route, made);
                Ok(())
            }
            Err(NotAdded::Full) => Err(SlowReason::TableFull),
            Err(NotAdded::NoMemory) => Err(SlowReason::NoMemory),
            Err(NotAdded::Exists | NotAdded::Closed) => Ok(()),
        }
    }
}

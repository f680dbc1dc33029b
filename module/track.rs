// SPDX-License-Identifier: GPL-2.0

//! Keeps conntrack informed of what it does not see.
//!
//! For TCP that is how far each side got in its sequence space. Conntrack has to be told before it sees
//! the connection's next packet, in whichever direction: an acknowledgement of data that it did not see
//! is invalid to it, and then not even translated. The fast path tells it for every packet that it sends
//! on to the slow path. But that packet has to have met the fast path: so a flow of a TCP connection is
//! fast only while there is a flow of the other direction, too.

use crate::engine::ageing;
use crate::engine::ip::Family;
use crate::engine::ip::V4;
use crate::engine::ip::V6;
use crate::engine::key::Key;
use crate::engine::tick::Tick;
use crate::engine::transport::Protocol;
use crate::flow::Carried;
use crate::flow::Flow;
use crate::instance::Instance;
use crate::net::conntrack::Direction;
use crate::net::conntrack::Tuple;
use crate::net::rcu::Read;
use crate::net::time;

use core::sync::atomic::Ordering::Relaxed;

/// Brings conntrack's view of a connection up to what both of its flows saw, before a packet of it returns
/// to the slow path. Only of TCP does conntrack know more than when the last packet came.
pub fn catch_up(instance: &Instance, read: Read<'_>, flow: &Flow) {
    if !flow.is_tcp() {
        return;
    }
    let other = opposite(instance, read, flow);
    let now = time::now();
    if let Some(other) = other {
        other.take_news(now);
    }
    flow.take_news(now);
    let own = Some(flow.window.progress());
    let others = other.map(|other| other.window.progress());
    match flow.direction {
        Direction::Original => flow.connection.tcp_catch_up(own, others),
        Direction::Reply => flow.connection.tcp_catch_up(others, own),
    };
}

/// The flow of the connection's other direction.
pub fn opposite<'rcu>(
    instance: &'rcu Instance,
    read: Read<'rcu>,
    flow: &Flow,
) -> Option<&'rcu Flow> {
    match flow.key.family() {
        Family::V4 => opposite_of::<V4>(instance, read, flow),
        Family::V6 => opposite_of::<V6>(instance, read, flow),
    }
}

fn opposite_of<'rcu, I: Carried>(
    instance: &'rcu Instance,
    read: Read<'rcu>,
    flow: &Flow,
) -> Option<&'rcu Flow> {
    let Tuple { addresses, ports } = flow.connection.tuple::<I>(flow.direction.other());
    let protocol = Protocol::from_number(flow.key.protocol_number())?;
    // The hash does not depend on the device, which may be any.
    let device = flow.key.device();
    instance.table.find(
        read,
        |hasher| Key::new::<I>(hasher, addresses, ports, protocol, device),
        |other, _| other.connection.is(&flow.connection) && other.direction != flow.direction,
    )
}

/// Tells conntrack about the packets that it did not see since the last time, so that the connection
/// lives as long as it would have otherwise.
pub fn report(instance: &Instance, read: Read<'_>, flow: &Flow, now: Tick) {
    if !flow.take_news(now) {
        return;
    }
    let fresh = if flow.is_tcp() {
        let own = Some(flow.window.progress());
        let others = opposite(instance, read, flow).map(|other| other.window.progress());
        match flow.direction {
            Direction::Original => flow.connection.tcp_catch_up(own, others),
            Direction::Reply => flow.connection.tcp_catch_up(others, own),
        }
    } else {
        flow.fresh.load(Relaxed)
    };
    let left = flow.connection.left();
    if let Some(ticks) = ageing::extension(left, flow.seen(), fresh, now) {
        flow.connection.set_left(ticks);
    }
}

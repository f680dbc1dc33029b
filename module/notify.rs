// SPDX-License-Identifier: GPL-2.0

//! Telling user space: a flow as a message, and the events that are sent to those who listen.

use kernel::sync::rcu;

use crate::control::write_config;
use crate::control::FAMILY;
use crate::engine::config::Config;
use crate::engine::ip::Family;
use crate::engine::ip::V4;
use crate::engine::ip::V6;
use crate::engine::reason::GoneReason;
use crate::engine::validity::Check;
use crate::engine::wire::command;
use crate::engine::wire::flow as attribute;
use crate::engine::wire::flow_state;
use crate::flow::Flow;
use crate::instance::Instance;
use crate::net::conntrack::Direction;
use crate::net::genl::Message;
use crate::net::genl::More;
use crate::net::rcu::Read;
use crate::net::time;

/// Position of the group in the family.
const EVENTS: u32 = 0;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A flow was learned.
pub fn flow_new(instance: &Instance, flow: &Flow) {
    if FAMILY.has_listeners(instance.net, EVENTS) {
        FAMILY.notify(instance.net, EVENTS, command::FLOW_NEW_NTF, |message| {
            write_flow(message, instance, flow)
        });
    }
}

/// A flow was dropped.
pub fn flow_gone(instance: &Instance, flow: &Flow, reason: GoneReason) {
    if FAMILY.has_listeners(instance.net, EVENTS) {
        FAMILY.notify(instance.net, EVENTS, command::FLOW_GONE_NTF, |message| {
            write_flow(message, instance, flow)?;
            message.u32(attribute::GONE_REASON, reason as u32)
        });
    }
}

/// The configuration changed.
pub fn config_changed(instance: &Instance, config: &Config) {
    if FAMILY.has_listeners(instance.net, EVENTS) {
        FAMILY.notify(instance.net, EVENTS, command::CONFIG_NTF, |message| {
            write_config(message, config)
        });
    }
}

/// Writes what there is to know about a flow.
///
/// # Errors
///
/// [`More`] if it does not fit.
pub fn write_flow(message: &mut Message<'_>, instance: &Instance, flow: &Flow) -> Result<(), More> {
    let now = time::now();
    let state = match flow.validity.check(instance.settings.epoch(), now) {
        Check::Confirmed => flow_state::FAST,
        Check::Due | Check::Outdated => flow_state::SAMPLING,
        Check::Unconfirmed => flow_state::LEARNING,
    };
    let [s0, s1, d0, d1] = flow.key.ports().to_ne_bytes();
    let [t0, t1, u0, u1] = flow.translation.ports.to_ne_bytes();
    let family = match flow.key.family() {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    };
    let count = flow.counted();
    let stamp = flow.stamp();
    let in_index = {
        let guard = rcu::read_lock();
        instance.ports.index(Read::of(&guard), flow.key.device())
    };

    message.u64(attribute::ID, flow.id)?;
    message.u32(attribute::STATE, state)?;
    message.u8(attribute::FAMILY, family)?;
    message.u8(attribute::PROTOCOL, flow.key.protocol_number())?;
    message.u8(
        attribute::REPLY,
        u8::from(flow.direction == Direction::Reply),
    )?;
    write_addresses(message, flow)?;
    message.bytes(attribute::SOURCE_PORT, &[s0, s1])?;
    message.bytes(attribute::DESTINATION_PORT, &[d0, d1])?;
    message.bytes(attribute::NAT_SOURCE_PORT, &[t0, t1])?;
    message.bytes(attribute::NAT_DESTINATION_PORT, &[u0, u1])?;
    if let Some(index) = in_index {
        message.u32(attribute::IN_IFINDEX, index)?;
    }
    let out_index = match &flow.neighbour {
        Some(neighbour) => neighbour.next_hop().device().index(),
        None => flow.route.device_index(),
    };
    message.u32(attribute::OUT_IFINDEX, out_index)?;
    message.u64(attribute::PACKETS, count.packets)?;
    message.u64(attribute::BYTES, count.bytes)?;
    message.u64(attribute::AGE, time::millis(now.since(flow.born)))?;
    message.u64(attribute::IDLE, time::millis(now.since(flow.seen())))?;
    message.u32(attribute::CONNTRACK_ID, flow.connection.id())?;
    message.u32(attribute::CONNTRACK_MARK, flow.connection.mark())?;
    message.u32(attribute::PACKET_MARK, stamp.mark)?;
    message.u32(attribute::PRIORITY, stamp.priority)?;
    let [dscp_in, dscp_out] = flow.dscps();
    message.u8(attribute::DSCP_IN, dscp_in >> 2)?;
    message.u8(attribute::DSCP_OUT, dscp_out >> 2)?;
    let mtu = match flow.lasting_mtu() {
        0 => flow.route.mtu(flow.key.family()),
        mtu => mtu,
    };
    message.u32(attribute::MTU, mtu)?;
    if flow.transforms.are_any() {
        message.u32(attribute::IPSEC, flow.transforms.listed())?;
    }
    Ok(())
}

/// Writes the addresses that packets arrive with, and those that they leave with.
fn write_addresses(message: &mut Message<'_>, flow: &Flow) -> Result<(), More> {
    const ATTRIBUTES: [(u16, u16); 2] = [
        (attribute::SOURCE, attribute::DESTINATION),
        (attribute::NAT_SOURCE, attribute::NAT_DESTINATION),
    ];
    let (connection, direction) = (&flow.connection, flow.direction);
    match flow.key.family() {
        Family::V4 => {
            let pairs = [
                connection.tuple::<V4>(direction).addresses,
                connection.translated::<V4>(direction).addresses,
            ];
            for ((source, destination), pair) in ATTRIBUTES.into_iter().zip(pairs) {
                let [a, b, c, d, e, f, g, h] = pair.to_ne_bytes();
                message.bytes(source, &[a, b, c, d])?;
                message.bytes(destination, &[e, f, g, h])?;
            }
        }
        Family::V6 => {
            let pairs = [
                connection.tuple::<V6>(direction).addresses,
                connection.translated::<V6>(direction).addresses,
            ];
            for ((source, destination), pair) in ATTRIBUTES.into_iter().zip(pairs) {
                let bytes = pair.to_bytes();
                let (first, second) = bytes.split_at(bytes.len() / 2);
                message.bytes(source, first)?;
                message.bytes(destination, second)?;
            }
        }
    }
    Ok(())
}

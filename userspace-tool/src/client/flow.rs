// SPDX-License-Identifier: GPL-2.0-only

//! Flows: reading one, and reading all.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::net::IpAddr;

use super::Error;
use super::decode;
use crate::nl;
use crate::nl::Attribute;
use crate::nl::Attributes;
use crate::nl::Connection;
use crate::nl::DumpStep;
use crate::nl::Malformed;
use crate::nl::Request;
use crate::wire::FlowState;
use crate::wire::GoneReason;
use crate::wire::flow as attr;

/// Addresses and ports of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Side {
    /// Source address.
    pub source: Option<IpAddr>,
    /// Destination address.
    pub destination: Option<IpAddr>,
    /// Source port.
    pub source_port: Option<u16>,
    /// Destination port.
    pub destination_port: Option<u16>,
}

/// One direction of one connection. What a module does not say is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flow {
    /// Number of the flow within its network namespace.
    pub id: u64,
    /// How far it has come.
    pub state: Option<FlowState>,
    /// `AF_INET` or `AF_INET6`.
    pub family: Option<u8>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// It is the reply direction.
    pub reply: Option<bool>,
    /// As packets are received.
    pub received: Side,
    /// As packets are sent.
    pub sent: Side,
    /// Device that packets are received on.
    pub in_ifindex: Option<u32>,
    /// Device that packets are sent on.
    pub out_ifindex: Option<u32>,
    /// Packets that took the fast path.
    pub packets: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// Milliseconds since it was learned.
    pub age: Option<u64>,
    /// Milliseconds since its last packet.
    pub idle: Option<u64>,
    /// As `conntrack -o id` prints it.
    pub conntrack_id: Option<u32>,
    /// Mark of the connection.
    pub conntrack_mark: Option<u32>,
    /// Mark that packets get.
    pub packet_mark: Option<u32>,
    /// Priority that packets get.
    pub priority: Option<u32>,
    /// DSCP that packets must have.
    pub dscp_in: Option<u8>,
    /// DSCP that packets get.
    pub dscp_out: Option<u8>,
    /// Largest packet.
    pub mtu: Option<u32>,
    /// What IPsec does to its packets: bits whose positions are [`Transform`](crate::wire::Transform)s.
    pub ipsec: u32,
    /// Why it was dropped.
    pub gone_reason: Option<GoneReason>,
}

fn address(attribute: &Attribute<'_>) -> Result<IpAddr, Malformed> {
    if let Ok(octets) = <[u8; 4]>::try_from(attribute.payload) {
        return Ok(octets.into());
    }
    <[u8; 16]>::try_from(attribute.payload).map(IpAddr::from).map_err(|_| Malformed::Content {
        attribute: attribute.kind,
        problem: "is neither an IPv4 nor an IPv6 address",
    })
}

impl Flow {
    pub(super) fn read(attributes: Attributes<'_>) -> Result<Self, Malformed> {
        let mut flow = Self::default();
        let mut id = None;
        for attribute in attributes {
            let a = attribute?;
            match a.kind {
                attr::ID => id = Some(a.u64()?),
                attr::STATE => flow.state = Some(FlowState(a.u32()?)),
                attr::FAMILY => flow.family = Some(a.u8()?),
                attr::PROTOCOL => flow.protocol = Some(a.u8()?),
                attr::REPLY => flow.reply = Some(a.u8()? != 0),
                attr::SOURCE => flow.received.source = Some(address(&a)?),
                attr::DESTINATION => flow.received.destination = Some(address(&a)?),
                attr::SOURCE_PORT => flow.received.source_port = Some(a.be16()?),
                attr::DESTINATION_PORT => flow.received.destination_port = Some(a.be16()?),
                attr::NAT_SOURCE => flow.sent.source = Some(address(&a)?),
                attr::NAT_DESTINATION => flow.sent.destination = Some(address(&a)?),
                attr::NAT_SOURCE_PORT => flow.sent.source_port = Some(a.be16()?),
                attr::NAT_DESTINATION_PORT => flow.sent.destination_port = Some(a.be16()?),
                attr::IN_IFINDEX => flow.in_ifindex = Some(a.u32()?),
                attr::OUT_IFINDEX => flow.out_ifindex = Some(a.u32()?),
                attr::PACKETS => flow.packets = Some(a.u64()?),
                attr::BYTES => flow.bytes = Some(a.u64()?),
                attr::AGE => flow.age = Some(a.u64()?),
                attr::IDLE => flow.idle = Some(a.u64()?),
                attr::CONNTRACK_ID => flow.conntrack_id = Some(a.be32()?),
                attr::CONNTRACK_MARK => flow.conntrack_mark = Some(a.u32()?),
                attr::PACKET_MARK => flow.packet_mark = Some(a.u32()?),
                attr::PRIORITY => flow.priority = Some(a.u32()?),
                attr::DSCP_IN => flow.dscp_in = Some(a.u8()?),
                attr::DSCP_OUT => flow.dscp_out = Some(a.u8()?),
                attr::MTU => flow.mtu = Some(a.u32()?),
                attr::IPSEC => flow.ipsec = a.u32()?,
                attr::GONE_REASON => flow.gone_reason = Some(GoneReason(a.u32()?)),
                _ => {}
            }
        }
        flow.id = id.ok_or(Malformed::Missing { attribute: attr::ID })?;
        Ok(flow)
    }
}

/// How often to start again when the table changes while it is dumped.
const ATTEMPTS: usize = 5;

/// Iterates over the flows of a namespace.
///
/// They are handed out as they arrive; at most one datagram of them is kept. If the kernel says
/// that the table changed in a way that may have hidden flows from the dump, the dump is repeated and
/// only the flows that were not handed out before are handed out. After the last try with the same
/// fate the iterator ends with [`nl::Error::Interrupted`]: what it gave is right, but maybe not all.
pub struct Flows<'a> {
    connection: &'a mut Connection,
    request: Request,
    arrived: VecDeque<Flow>,
    /// Numbers of the flows handed out: eight bytes a flow, so that a dump can be repeated.
    seen: Vec<u64>,
    /// The same, while a dump is being repeated.
    skip: HashSet<u64>,
    attempts: usize,
    state: State,
}

enum State {
    Start,
    Reading,
    /// It ended; with this error, which is still to be told.
    Ended(Option<nl::Error>),
}

impl<'a> Flows<'a> {
    pub(super) fn new(connection: &'a mut Connection, request: Request) -> Self {
        Self {
            connection,
            request,
            arrived: VecDeque::new(),
            seen: Vec::new(),
            skip: HashSet::new(),
            attempts: 0,
            state: State::Start,
        }
    }

    /// Reads the next datagram.
    fn advance(&mut self) -> Result<(), nl::Error> {
        if matches!(self.state, State::Start) {
            self.attempts += 1;
            self.skip.extend(self.seen.iter().copied());
            self.connection.start_dump(self.request.clone())?;
            self.state = State::Reading;
        }
        let (arrived, seen, skip) = (&mut self.arrived, &mut self.seen, &self.skip);
        let step = self.connection.dump_step(|message| {
            let flow = decode(&message, attr::SET, Flow::read)?;
            if !skip.contains(&flow.id) {
                seen.push(flow.id);
                arrived.push_back(flow);
            }
            Ok(())
        })?;
        match step {
            DumpStep::More => {}
            DumpStep::Done { interrupted: false } => self.state = State::Ended(None),
            DumpStep::Done { interrupted: true } if self.attempts < ATTEMPTS => {
                self.state = State::Start;
            }
            DumpStep::Done { interrupted: true } => return Err(nl::Error::Interrupted),
        }
        Ok(())
    }
}

impl Iterator for Flows<'_> {
    type Item = Result<Flow, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(flow) = self.arrived.pop_front() {
                return Some(Ok(flow));
            }
            if let State::Ended(error) = &mut self.state {
                return error.take().map(|error| Err(error.into()));
            }
            // An error waits until what arrived in front of it was handed out.
            if let Err(error) = self.advance() {
                self.state = State::Ended(Some(error));
            }
        }
    }
}

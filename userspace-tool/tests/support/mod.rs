// SPDX-License-Identifier: GPL-2.0-only

//! A simulated kernel: the fasttrack module, nf_tables as far as our table goes, and device names.
//!
//! It answers byte for byte as a kernel does, so that everything above the socket is what runs in
//! production. Where the real nf_tables is at hand, `kernel.rs` uses that instead.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod netns;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use fasttrack_tool::mark::Mark;
use fasttrack_tool::nft::expression::Statement;
use fasttrack_tool::nft::expression::Value;
use fasttrack_tool::nft::ruleset::Table;
use fasttrack_tool::nl::Attributes;
use fasttrack_tool::nl::Bus;
use fasttrack_tool::nl::Message;
use fasttrack_tool::nl::Messages;
use fasttrack_tool::nl::Request;
use fasttrack_tool::nl::Socket;
use fasttrack_tool::nl::Transport;
use fasttrack_tool::nl::Wait;
use fasttrack_tool::nl::message;
use fasttrack_tool::run::Streams;
use fasttrack_tool::run::run;
use fasttrack_tool::session::System;
use fasttrack_tool::wire;

pub const PORT: u32 = 4711;
pub const FAMILY: u16 = 0x21;
pub const GROUP: u32 = 9;

/// What a socket returns: a datagram, or an error number.
pub type Answer = Result<Vec<u8>, i32>;

/// A socket whose answers a function makes.
pub struct Fake<F> {
    answer: F,
    queue: VecDeque<Answer>,
    current: Vec<u8>,
}

impl<F: FnMut(&[u8]) -> Vec<Answer>> Fake<F> {
    pub fn new(answer: F) -> Self {
        Self { answer, queue: VecDeque::new(), current: Vec::new() }
    }

    /// With these datagrams already there.
    pub fn with_queue(answer: F, queue: impl IntoIterator<Item = Answer>) -> Self {
        Self { answer, queue: queue.into_iter().collect(), current: Vec::new() }
    }
}

impl<F: FnMut(&[u8]) -> Vec<Answer>> Transport for Fake<F> {
    fn port(&self) -> u32 {
        PORT
    }

    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.queue.extend((self.answer)(&parts.concat()));
        Ok(())
    }

    fn receive(&mut self, wait: Wait) -> io::Result<&[u8]> {
        match self.queue.pop_front() {
            Some(Ok(datagram)) => {
                self.current = datagram;
                Ok(&self.current)
            }
            Some(Err(errno)) => Err(io::Error::from_raw_os_error(errno)),
            // A monitor would wait for ever; here its world ends.
            None if wait == Wait::Forever => Err(io::Error::from_raw_os_error(libc::ENODEV)),
            None => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        }
    }

    fn join(&mut self, group: u32) -> io::Result<()> {
        if group == GROUP { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
    }

    fn reserve(&mut self, _bytes: usize) {}
}

/// A message of the family.
pub fn genl(command: u8) -> Request {
    Request::new(FAMILY, 0, &[command, 1, 0, 0])
}

pub fn finish(mut request: Request, sequence: u32) -> Vec<u8> {
    request.finish(sequence, PORT).to_vec()
}

/// `NLMSG_ERROR`; 0 acknowledges. The attributes are those of an extended acknowledgement.
pub fn error(
    request: &Message<'_>,
    errno: i32,
    extended: impl FnOnce(Request) -> Request,
) -> Vec<u8> {
    let mut payload = (-errno).to_ne_bytes().to_vec();
    payload.extend_from_slice(&36u32.to_ne_bytes());
    payload.extend_from_slice(&request.kind.to_ne_bytes());
    payload.extend_from_slice(&request.flags.to_ne_bytes());
    payload.extend_from_slice(&request.sequence.to_ne_bytes());
    payload.extend_from_slice(&PORT.to_ne_bytes());
    let flags = message::F_CAPPED | message::F_ACK_TLVS;
    finish(extended(Request::new(message::ERROR, flags, &payload)), request.sequence)
}

pub fn ack(request: &Message<'_>) -> Vec<u8> {
    error(request, 0, |request| request)
}

pub fn done(sequence: u32, flags: u16) -> Vec<u8> {
    finish(Request::new(message::DONE, flags, &0i32.to_ne_bytes()), sequence)
}

/// A flow for tests. What is `None` is not sent.
#[derive(Debug, Clone)]
pub struct Flow {
    pub id: u64,
    pub state: u32,
    pub protocol: u8,
    pub reply: bool,
    pub received: (IpAddr, u16, IpAddr, u16),
    pub sent: (IpAddr, u16, IpAddr, u16),
    pub devices: (u32, u32),
    pub packets: u64,
    pub bytes: u64,
    pub age: u64,
    pub idle: u64,
    pub mark: u32,
    pub ipsec: u32,
}

impl Flow {
    pub fn encode(&self, request: Request) -> Request {
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let family = if self.received.0.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let (saddr, sport, daddr, dport) = self.received;
        let (nat_saddr, nat_sport, nat_daddr, nat_dport) = self.sent;
        use wire::flow as a;
        let request = match self.ipsec {
            0 => request,
            bits => request.u32(a::IPSEC, bits),
        };
        request
            .u64(a::ID, self.id)
            .u32(a::STATE, self.state)
            .u8(a::FAMILY, family as u8)
            .u8(a::PROTOCOL, self.protocol)
            .u8(a::REPLY, self.reply.into())
            .bytes(a::SOURCE, &address(saddr))
            .bytes(a::DESTINATION, &address(daddr))
            .bytes(a::SOURCE_PORT, &sport.to_be_bytes())
            .bytes(a::DESTINATION_PORT, &dport.to_be_bytes())
            .bytes(a::NAT_SOURCE, &address(nat_saddr))
            .bytes(a::NAT_DESTINATION, &address(nat_daddr))
            .bytes(a::NAT_SOURCE_PORT, &nat_sport.to_be_bytes())
            .bytes(a::NAT_DESTINATION_PORT, &nat_dport.to_be_bytes())
            .u32(a::IN_IFINDEX, self.devices.0)
            .u32(a::OUT_IFINDEX, self.devices.1)
            .u64(a::PACKETS, self.packets)
            .u64(a::BYTES, self.bytes)
            .u64(a::AGE, self.age)
            .u64(a::IDLE, self.idle)
            .bytes(a::CONNTRACK_ID, &0x1234_5678u32.to_be_bytes())
            .u32(a::CONNTRACK_MARK, self.mark)
            .u32(a::PACKET_MARK, 0)
            .u32(a::PRIORITY, 0)
            .u8(a::DSCP_IN, 0)
            .u8(a::DSCP_OUT, 10)
            .u32(a::MTU, 1500)
            // What a newer module may add is skipped.
            .u32(99, 99)
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Both directions of a masqueraded TCP connection, an IPv6 flow and an odd one.
pub fn flows() -> Vec<Flow> {
    let (lan, wan, server) = (address("10.0.0.2"), address("203.0.113.5"), address("198.51.100.7"));
    let original = Flow {
        id: 1,
        state: 1,
        protocol: 6,
        reply: false,
        received: (lan, 40000, server, 443),
        sent: (wan, 40001, server, 443),
        devices: (2, 3),
        packets: 120,
        bytes: 93412,
        age: 65_000,
        idle: 2000,
        mark: 0,
        ipsec: 0,
    };
    let reply = Flow {
        id: 2,
        reply: true,
        received: (server, 443, wan, 40001),
        sent: (server, 443, lan, 40000),
        devices: (3, 2),
        packets: 240,
        bytes: 301_234,
        state: 2,
        ..original.clone()
    };
    let (a, b) = (address("2001:db8::2"), address("2001:db8:1::7"));
    let v6 = Flow {
        id: 3,
        protocol: 17,
        received: (a, 5000, b, 53),
        sent: (a, 5000, b, 53),
        state: 0,
        packets: 0,
        bytes: 0,
        idle: 340,
        mark: 0x10,
        ..original.clone()
    };
    // From a newer module: a state that we do not know, on a device that has gone; and of the three things
    // that IPsec does, one is not known.
    let odd =
        Flow { id: u64::MAX, protocol: 47, state: 7, devices: (2, 77), ipsec: 7, ..v6.clone() };
    vec![original, reply, v6, odd]
}

/// The configuration, as numbers by attribute.
pub type Config = [u32; 9];

/// What the simulated kernel holds.
pub struct World {
    pub loaded: bool,
    /// The caller has CAP_NET_ADMIN.
    pub privileged: bool,
    pub has_nf_tables: bool,
    pub has_netlink: bool,
    /// In the order of the attributes: enabled, value, mask, tcp, udp, sample, size, ipsec.
    pub config: Config,
    pub flows: Vec<Flow>,
    /// This many dumps in a row find that the table changed.
    pub interruptions: usize,
    /// Messages of chains and rules, as they came, with the kernel's handle added. None: no table.
    pub table: Option<Vec<Vec<u8>>>,
    pub handle: u64,
    /// What was changed, in order, for people.
    pub log: Vec<String>,
    /// Refuse the n-th change of the configuration from now (1 is the next).
    pub refuse_config: usize,
    /// Refuse the n-th transaction from now.
    pub refuse_batch: usize,
    /// Lose the answers to transactions.
    pub lose_acks: bool,
    /// What a monitor will find in its socket.
    pub events: Vec<Answer>,
    pub netns: Option<String>,
    /// States of (on, mark of the rules if there are any, mark) after each change.
    pub history: Vec<(bool, Option<Mark>, Mark)>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            loaded: true,
            privileged: true,
            has_nf_tables: true,
            has_netlink: true,
            config: [0, 0, 0, 30_000, 10_000, 1000, 65536, 0, 3],
            flows: Vec::new(),
            interruptions: 0,
            table: None,
            handle: 1,
            log: Vec::new(),
            refuse_config: 0,
            refuse_batch: 0,
            lose_acks: false,
            events: Vec::new(),
            netns: None,
            history: Vec::new(),
        }
    }
}

/// The mark that a table's rules set.
fn mark_of(table: &Table) -> Mark {
    let statements =
        table.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| rule.statements.iter());
    for statement in statements {
        if let Statement::Match { left, right, .. } = statement {
            let word = || u32::from_ne_bytes(right[..].try_into().unwrap());
            match left {
                Value::CtMark => return Mark { value: word(), mask: u32::MAX },
                Value::Bitwise { mask, .. } => return Mark { value: word(), mask: *mask },
                _ => {}
            }
        }
    }
    Mark { value: 0, mask: 0 }
}

/// True if a countdown has come to its end now.
fn strikes(countdown: &mut usize) -> bool {
    let strikes = *countdown == 1;
    *countdown = countdown.saturating_sub(1);
    strikes
}

impl World {
    /// What decides whether the fast path is safe.
    pub fn state(&self) -> (bool, Option<Mark>, Mark) {
        let rules = self.table.as_ref().map(|messages| {
            let table = Table::from_batch(&messages.concat()).unwrap();
            mark_of(&table)
        });
        (self.config[0] == 1, rules, Mark { value: self.config[1], mask: self.config[2] })
    }

    /// Whether the rules, if there are any, only recognise what IPsec handles.
    pub fn rules_accelerate(&self) -> Option<bool> {
        self.table.as_ref().map(|messages| {
            let table = Table::from_batch(&messages.concat()).unwrap();
            table.chains.iter().any(|chain| chain.name == "seen_forward")
        })
    }

    fn note(&mut self, change: String) {
        self.log.push(change);
        self.history.push(self.state());
    }

    fn encode_config(&self, request: Request) -> Request {
        let request = request.u8(wire::config::ENABLED, self.config[0] as u8);
        let request = (2..=7).fold(request, |request, attribute| {
            request.u32(attribute, self.config[usize::from(attribute) - 1])
        });
        request
            .u8(wire::config::IPSEC, self.config[7] as u8)
            .u32(wire::config::LEARN_AFTER, self.config[8])
    }

    fn generic(&mut self, bytes: &[u8]) -> Vec<Answer> {
        let request = Messages::new(bytes).next().unwrap().unwrap();
        let (header, attributes) = request.split::<4>().unwrap();
        if request.kind == 0x10 {
            return self.controller(&request);
        }
        assert_eq!(request.kind, FAMILY);
        let writes = matches!(header[0], wire::command::CONFIG_SET | wire::command::FLOW_FLUSH);
        if writes && !self.privileged {
            return vec![Ok(error(&request, libc::EPERM, |e| e))];
        }
        match header[0] {
            wire::command::CONFIG_GET => {
                let reply = finish(self.encode_config(genl(header[0])), request.sequence);
                vec![Ok(reply), Ok(ack(&request))]
            }
            wire::command::CONFIG_SET => vec![Ok(self.config_set(&request, attributes))],
            wire::command::FLOW_GET => self.flow_get(&request),
            wire::command::FLOW_FLUSH => vec![Ok(self.flow_flush(&request, attributes))],
            wire::command::STATS_GET => {
                let reply = finish(stats(genl(header[0]), self.flows.len()), request.sequence);
                vec![Ok(reply), Ok(ack(&request))]
            }
            other => panic!("command {other}"),
        }
    }

    fn controller(&self, request: &Message<'_>) -> Vec<Answer> {
        if !self.loaded {
            return vec![Ok(error(request, libc::ENOENT, |e| e))];
        }
        let reply = Request::new(0x10, 0, &[1, 2, 0, 0])
            .text(2, wire::FAMILY)
            .u16(1, FAMILY)
            .u32(3, 1)
            .nest(7, |groups| groups.nest(1, |group| group.u32(2, GROUP).text(1, wire::EVENTS)));
        vec![Ok(finish(reply, request.sequence)), Ok(ack(request))]
    }

    fn config_set(&mut self, request: &Message<'_>, attributes: Attributes<'_>) -> Vec<u8> {
        if strikes(&mut self.refuse_config) {
            return error(request, libc::ENOMEM, |e| e.text(1, "no memory for the table"));
        }
        let mut new = self.config;
        let mut offset = 20;
        let mut log = Vec::new();
        for attribute in attributes {
            let attribute = attribute.unwrap();
            let value = match attribute.kind {
                wire::config::ENABLED | wire::config::IPSEC => u32::from(attribute.u8().unwrap()),
                _ => attribute.u32().unwrap(),
            };
            if attribute.kind == wire::config::TABLE_SIZE && !(64..=1 << 24).contains(&value) {
                return error(request, libc::ERANGE, |e| {
                    e.text(1, "integer out of range")
                        .u32(2, offset)
                        .nest(4, |policy| policy.u32(1, 4).u64(4, 64).u64(5, 1 << 24))
                });
            }
            // A whim of this module, to have it refuse the second half of a word.
            if attribute.kind == wire::config::MARK_MASK && value == 1 << 31 {
                return error(request, libc::EINVAL, |e| {
                    e.text(1, "bit 31 is taken").u32(2, offset)
                });
            }
            if attribute.kind == wire::config::SAMPLE_INTERVAL && value == 0 {
                return error(request, libc::EINVAL, |e| {
                    e.text(1, "sample-interval must not be 0").u32(2, offset)
                });
            }
            new[usize::from(attribute.kind) - 1] = value;
            log.push(format!("{}={value:#x}", wire::config::SET.name_of(attribute.kind)));
            offset += (4 + attribute.payload.len() as u32).next_multiple_of(4);
        }
        self.config = new;
        self.note(format!("module {}", log.join(" ")));
        ack(request)
    }

    fn flow_get(&mut self, request: &Message<'_>) -> Vec<Answer> {
        let flags = if self.interruptions > 0 { message::F_DUMP_INTR } else { 0 };
        self.interruptions = self.interruptions.saturating_sub(1);
        // Two flows a datagram; an interrupted dump lacks some.
        let skip = usize::from(flags != 0 && !self.flows.is_empty());
        let mut answers: Vec<Answer> = self.flows[skip..]
            .chunks(2)
            .map(|flows| {
                let message = |flow: &Flow| {
                    finish(flow.encode(genl(wire::command::FLOW_GET)), request.sequence)
                };
                Ok(flows.iter().map(message).collect::<Vec<_>>().concat())
            })
            .collect();
        answers.push(Ok(done(request.sequence, flags)));
        answers
    }

    fn flow_flush(&mut self, request: &Message<'_>, mut attributes: Attributes<'_>) -> Vec<u8> {
        let Some(id) = attributes.next() else {
            self.flows.clear();
            self.log.push("module flush".to_owned());
            return ack(request);
        };
        let id = id.unwrap().u64().unwrap();
        let before = self.flows.len();
        self.flows.retain(|flow| flow.id != id);
        if self.flows.len() == before {
            return error(request, libc::ENOENT, |e| e.u32(2, 20));
        }
        self.log.push(format!("module delete {id}"));
        ack(request)
    }

    fn netfilter(&mut self, bytes: &[u8]) -> Vec<Answer> {
        let first = Messages::new(bytes).next().unwrap().unwrap();
        if !self.privileged {
            return vec![Ok(error(&first, libc::EPERM, |e| e))];
        }
        if !self.has_nf_tables {
            let errno = if first.kind == 0x10 { libc::EOPNOTSUPP } else { libc::EINVAL };
            return vec![Ok(error(&first, errno, |e| e))];
        }
        match first.kind {
            0x10 => self.transaction(bytes),
            0xa10 => {
                let reply = Request::new(0xa0f, 0, &[0, 0, 0, 7]).bytes(1, &7u32.to_be_bytes());
                vec![Ok(finish(reply, first.sequence)), Ok(ack(&first))]
            }
            0xa01 => match &self.table {
                None => vec![Ok(error(&first, libc::ENOENT, |e| e.u32(2, 20)))],
                Some(_) => {
                    let table = Request::new(0xa00, 0, &[1, 0, 0, 7])
                        .text(1, "fasttrack")
                        .bytes(4, &self.handle.to_be_bytes());
                    vec![Ok(finish(table, first.sequence)), Ok(ack(&first))]
                }
            },
            0xa04 | 0xa07 => {
                let kind = first.kind - 1;
                let mut answers: Vec<Answer> = Vec::new();
                for message in self.table.as_ref().unwrap() {
                    let message = Messages::new(message).next().unwrap().unwrap();
                    if message.kind == kind {
                        // The generation that the family header carries.
                        let reply = [&[1, 0, 0, 7], &message.payload[4..]].concat();
                        answers.push(Ok(finish(Request::new(kind, 0, &reply), first.sequence)));
                    }
                }
                answers.push(Ok(done(first.sequence, 0)));
                answers
            }
            other => panic!("message {other:#x}"),
        }
    }

    fn transaction(&mut self, bytes: &[u8]) -> Vec<Answer> {
        let messages: Vec<_> = Messages::new(bytes).map(Result::unwrap).collect();
        assert_eq!(messages.first().unwrap().kind, 0x10, "NFNL_MSG_BATCH_BEGIN");
        assert_eq!(messages.last().unwrap().kind, 0x11, "NFNL_MSG_BATCH_END");
        if strikes(&mut self.refuse_batch) {
            // The rule that it cannot process.
            let rule = messages.iter().find(|message| message.kind == 0xa06);
            return vec![Ok(error(rule.unwrap_or(&messages[1]), libc::ENOENT, |e| e))];
        }
        let mut answers = Vec::new();
        for message in &messages {
            match message.kind {
                0xa00 => drop(self.table.get_or_insert_default()),
                0xa02 => self.table = None,
                0xa03 | 0xa06 => {
                    self.handle += 1;
                    let kept = Request::new(message.kind, 0, message.payload);
                    let attribute = if message.kind == 0xa03 { 2 } else { 3 };
                    let kept = kept.bytes(attribute, &self.handle.to_be_bytes());
                    self.table.as_mut().unwrap().push(finish(kept, 0));
                }
                _ => {}
            }
            // As kernels before 6.10 do: none for the first and the last.
            if message.kind >= 0xa00 {
                answers.push(Ok(ack(message)));
            }
        }
        let change = if self.table.is_some() { "nft install" } else { "nft remove" };
        self.note(change.to_owned());
        if self.lose_acks {
            answers.truncate(1);
            answers.push(Err(libc::ENOBUFS));
        }
        answers
    }

    fn route(&self, bytes: &[u8]) -> Vec<Answer> {
        let request = Messages::new(bytes).next().unwrap().unwrap();
        let (header, _) = request.split::<16>().unwrap();
        let name = match u32::from_ne_bytes([header[4], header[5], header[6], header[7]]) {
            1 => "lo",
            2 => "lan0",
            3 => "wan0",
            _ => return vec![Ok(error(&request, libc::ENODEV, |e| e))],
        };
        let reply = finish(Request::new(16, 0, header).text(3, name), request.sequence);
        vec![Ok(reply), Ok(ack(&request))]
    }
}

/// Counters, most of them 0.
pub fn stats(request: Request, flows: usize) -> Request {
    use wire::stats as a;
    let mut request = request
        .u32(a::FLOWS, flows as u32)
        .u32(a::TABLE_SIZE, 65536)
        .u32(a::FLOW_BYTES, 192)
        .u64(a::INDEX_BYTES, 524_288)
        .u64(a::PACKETS_ORIGINAL, 1200)
        .u64(a::BYTES_ORIGINAL, 934_120)
        .u64(a::PACKETS_REPLY, 2400)
        .u64(a::BYTES_REPLY, 3_012_340)
        .u64(a::LEARNED, 40)
        .u32(a::DEVICES, 3);
    let unknown = wire::SlowReason::ALL.len() as u32;
    for reason in 0..=unknown {
        let count = match reason {
            0 => 80,
            1 => 12,
            10 => 340,
            _ if reason == unknown => 5,
            _ => 0,
        };
        request = request.nest(a::SLOW, |nest| nest.u32(1, reason).u64(2, count));
    }
    for reason in 0..10u32 {
        let count = if reason == 0 { 30 } else { 0 };
        request = request.nest(a::GONE, |nest| nest.u32(1, reason).u64(2, count));
    }
    request
}

/// The simulated kernel. `nf_tables` can be the real one.
#[derive(Clone)]
pub struct Simulation {
    pub world: Rc<RefCell<World>>,
    pub real_nf_tables: bool,
}

impl Simulation {
    pub fn new(world: World) -> Self {
        Self { world: Rc::new(RefCell::new(world)), real_nf_tables: false }
    }
}

impl System for Simulation {
    fn open(&self, bus: Bus) -> io::Result<Box<dyn Transport>> {
        if !self.world.borrow().has_netlink {
            return Err(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT));
        }
        let world = self.world.clone();
        Ok(match bus {
            Bus::Netfilter if self.real_nf_tables => Box::new(Socket::open(bus)?),
            Bus::Netfilter => Box::new(Fake::new(move |b: &[u8]| world.borrow_mut().netfilter(b))),
            Bus::Route => Box::new(Fake::new(move |b: &[u8]| world.borrow().route(b))),
            Bus::Generic => {
                // Only a monitor reads without having asked.
                let events = std::mem::take(&mut self.world.borrow_mut().events);
                if events.is_empty() {
                    Box::new(Fake::new(move |b: &[u8]| world.borrow_mut().generic(b)))
                } else {
                    Box::new(Fake::with_queue(|_: &[u8]| vec![], events))
                }
            }
        })
    }

    fn enter_netns(&self, name: &str) -> io::Result<()> {
        if name != "blue" {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        self.world.borrow_mut().netns = Some(name.to_owned());
        Ok(())
    }
}

/// What a run of the tool gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub status: u8,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the tool in this process.
pub fn tool(system: &dyn System, arguments: &[&str], stdin: &str) -> Outcome {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = run(
        arguments.iter().map(OsString::from),
        system,
        &mut Streams {
            stdin: &mut stdin.as_bytes(),
            stdout: &mut stdout,
            stderr: &mut stderr,
            colour: false,
        },
    );
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { status, stdout: text(stdout), stderr: text(stderr) }
}

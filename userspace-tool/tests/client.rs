// SPDX-License-Identifier: GPL-2.0-only

//! The typed client against answers of all kinds: right, refused, interrupted, silent and broken.

#![allow(clippy::pedantic, reason = "tests may be blunt")]

mod support;

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use fasttrack_tool::client::Change;
use fasttrack_tool::client::Client;
use fasttrack_tool::client::Error;
use fasttrack_tool::client::Event;
use fasttrack_tool::nl;
use fasttrack_tool::nl::Bus;
use fasttrack_tool::nl::Message;
use fasttrack_tool::nl::Messages;
use fasttrack_tool::nl::Transport;
use fasttrack_tool::nl::Wait;
use fasttrack_tool::nl::message;
use fasttrack_tool::session::System;
use fasttrack_tool::wire;
use proptest::prelude::*;
use support::Answer;
use support::Fake;
use support::Simulation;
use support::World;
use support::ack;
use support::done;
use support::error;
use support::finish;
use support::flows;
use support::genl;

/// A client of the simulated kernel.
fn client(world: World) -> (Client, Simulation) {
    let simulation = Simulation::new(world);
    (Client::new(simulation.open(Bus::Generic).unwrap()).unwrap(), simulation)
}

/// A client whose requests, after the first that finds the family, are answered by a function.
fn answered(mut answer: impl FnMut(&Message<'_>) -> Vec<Answer> + 'static) -> Client {
    let kernel = Simulation::new(World::default());
    let mut controller = kernel.open(Bus::Generic).unwrap();
    let transport = Fake::new(move |bytes: &[u8]| {
        let request = Messages::new(bytes).next().unwrap().unwrap();
        if request.kind == support::FAMILY {
            return answer(&request);
        }
        controller.send(&[bytes]).unwrap();
        let mut answers = Vec::new();
        while let Ok(datagram) = controller.receive(Wait::No) {
            answers.push(Ok(datagram.to_vec()));
        }
        answers
    });
    Client::new(Box::new(transport)).unwrap()
}

#[test]
fn the_configuration_is_read_and_changed() {
    let (mut client, simulation) = client(World::default());
    let config = client.config().unwrap();
    assert!(!config.enabled);
    assert_eq!((config.tcp_timeout, config.table_size), (30_000, 65536));
    client.set_config(&Change { udp_timeout: Some(7), ..Change::default() }).unwrap();
    assert_eq!(client.config().unwrap().udp_timeout, 7);
    // What is not named is not sent.
    assert_eq!(simulation.world.borrow().log, ["module udp-timeout=0x7"]);
}

/// Bytes written by hand, so that encoder and decoder cannot be wrong together.
#[test]
fn a_flow_is_read_from_bytes() {
    let mut client = answered(|request| {
        #[rustfmt::skip]
        let mut bytes = vec![
            0, 0, 0, 0,  0x21, 0, 2, 0,  0, 0, 0, 0,  0, 0, 0, 0, // nlmsghdr
            4, 1, 0, 0, // genlmsghdr
            12, 0, 1, 0,  7, 0, 0, 0, 0, 0, 0, 0, // id
            8, 0, 2, 0,  1, 0, 0, 0, // state
            5, 0, 4, 0,  17, 0, 0, 0, // protocol
            8, 0, 6, 0,  10, 0, 0, 2, // source
            6, 0, 8, 0,  0x9c, 0x40, 0, 0, // source-port
            6, 0, 13, 0,  0x00, 0x35, 0, 0, // nat-destination-port
            8, 0, 20, 0,  0, 0, 1, 2, // conntrack-id
            4, 0, 0, 0, // padding for a u64, as nla_put_64bit leaves it
            12, 0, 16, 0,  0, 1, 0, 0, 0, 0, 0, 0, // packets
        ];
        if cfg!(target_endian = "big") {
            return vec![Ok(done(request.sequence, 0))];
        }
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&request.sequence.to_ne_bytes());
        vec![Ok(bytes), Ok(done(request.sequence, 0))]
    });
    let flows: Vec<_> = client.flows().map(Result::unwrap).collect();
    if cfg!(target_endian = "little") {
        let [flow] = &flows[..] else { panic!("{flows:?}") };
        assert_eq!(flow.id, 7);
        assert_eq!(flow.state, Some(wire::FlowState::FAST));
        assert_eq!(flow.protocol, Some(17));
        assert_eq!(flow.received.source, "10.0.0.2".parse().ok());
        assert_eq!(flow.received.source_port, Some(40000));
        assert_eq!(flow.sent.destination_port, Some(53));
        assert_eq!(flow.conntrack_id, Some(0x102));
        assert_eq!(flow.packets, Some(256));
        assert_eq!(flow.received.destination, None);
    }
}

#[test]
fn a_missing_module_is_told_apart() {
    let simulation = Simulation::new(World { loaded: false, ..World::default() });
    let result = Client::new(simulation.open(Bus::Generic).unwrap());
    assert!(matches!(result, Err(Error::NotLoaded)));
}

#[test]
fn a_refusal_names_the_attribute() {
    let (mut client, _) = client(World::default());
    let change = Change { tcp_timeout: Some(1), table_size: Some(1), ..Change::default() };
    let error = client.set_config(&change).unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!(refusal.attribute, Some(wire::config::TABLE_SIZE));
    assert_eq!(refusal.bounds, Some((64, 1 << 24)));
    assert_eq!(refusal.errno, libc::ERANGE);
    // The conversation goes on.
    assert_eq!(client.config().unwrap().table_size, 65536);
}

#[test]
fn a_missing_attribute_is_named() {
    let mut client = answered(|request| {
        vec![Ok(error(request, libc::EINVAL, |e| {
            e.text(1, "mark-mask is missing").u32(5, u32::from(wire::config::MARK_MASK))
        }))]
    });
    let error = client.set_config(&Change::switch(true)).unwrap_err();
    assert_eq!(error.refusal().unwrap().attribute, Some(wire::config::MARK_MASK));
    assert_eq!(error.to_string(), "mark-mask is missing (Invalid argument)");
}

#[test]
fn a_silent_kernel_is_an_error() {
    let mut client = answered(|_| vec![]);
    assert_eq!(client.config().unwrap_err().to_string(), "no answer from the kernel");
    let mut client = answered(|request| vec![Ok(ack(request))]);
    assert_eq!(
        client.config().unwrap_err().to_string(),
        "malformed message from the kernel: the answer has no config"
    );
}

#[test]
fn answers_to_somebody_else_are_skipped() {
    let mut client = answered(|request| {
        let stale = |sequence| {
            let mut other = *request;
            other.sequence = sequence;
            Ok(error(&other, libc::EPERM, |e| e))
        };
        vec![stale(0), stale(request.sequence.wrapping_sub(1)), Ok(ack(request))]
    });
    client.set_config(&Change::switch(true)).unwrap();
}

#[test]
fn a_lost_answer_is_an_error_and_not_a_hang() {
    let mut client = answered(|_| vec![Err(libc::ENOBUFS)]);
    assert_eq!(client.config().unwrap_err().to_string(), "netlink: No buffer space available");
}

#[test]
fn a_dump_may_be_refused_at_its_start_and_at_its_end() {
    let mut client = answered(|request| vec![Ok(error(request, libc::EBUSY, |e| e))]);
    let results: Vec<_> = client.flows().collect();
    assert!(matches!(&results[..], [Err(e)] if e.to_string() == "Device or resource busy"));

    let mut client = answered(|request| {
        // As netlink_dump_done does: the error in NLMSG_DONE, behind what there was.
        let flow = finish(flows()[0].encode(genl(wire::command::FLOW_GET)), request.sequence);
        let payload = (-libc::ENOMEM).to_ne_bytes();
        let last = nl::Request::new(message::DONE, message::F_ACK_TLVS, &payload)
            .text(1, "no memory for the dump");
        vec![Ok([flow, finish(last, request.sequence)].concat())]
    });
    let results: Vec<_> = client.flows().collect();
    let [Ok(flow), Err(error)] = &results[..] else { panic!("{results:?}") };
    assert_eq!(flow.id, 1);
    assert_eq!(error.to_string(), "no memory for the dump (Cannot allocate memory)");
}

#[test]
fn an_interrupted_dump_is_repeated_without_repeating_flows() {
    let (mut client, simulation) =
        client(World { flows: flows(), interruptions: 2, ..World::default() });
    let ids: Vec<_> = client.flows().map(|flow| flow.unwrap().id).collect();
    assert_eq!(ids, [2, 3, u64::MAX, 1]);
    assert_eq!(simulation.world.borrow().interruptions, 0);
}

#[test]
fn a_dump_that_is_always_interrupted_ends() {
    let (mut client, simulation) =
        client(World { flows: flows(), interruptions: 1000, ..World::default() });
    let results: Vec<_> = client.flows().collect();
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
    assert!(matches!(results.last(), Some(Err(Error::Netlink(nl::Error::Interrupted)))));
    assert!(simulation.world.borrow().interruptions > 900, "the tries are bounded");
}

#[test]
fn eintr_at_the_end_means_interrupted_as_well() {
    let mut rounds = 0;
    let mut client = answered(move |request| {
        rounds += 1;
        let errno = if rounds == 1 { -libc::EINTR } else { 0 };
        let last = nl::Request::new(message::DONE, 0, &errno.to_ne_bytes());
        let flow = finish(flows()[0].encode(genl(wire::command::FLOW_GET)), request.sequence);
        vec![Ok(flow), Ok(finish(last, request.sequence))]
    });
    assert_eq!(client.flows().map(Result::unwrap).count(), 1);
}

/// A dump of many flows that are made when they are asked for.
struct Endless {
    left: u64,
    sequence: u32,
    datagram: Vec<u8>,
    asked: Rc<Cell<usize>>,
    controller: Box<dyn Transport>,
}

const PER_DATAGRAM: u64 = 100;

impl Transport for Endless {
    fn port(&self) -> u32 {
        support::PORT
    }

    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let bytes = parts.concat();
        let request = Messages::new(&bytes).next().unwrap().unwrap();
        if request.kind == support::FAMILY {
            self.sequence = request.sequence;
            return Ok(());
        }
        self.controller.send(parts)
    }

    fn receive(&mut self, wait: Wait) -> io::Result<&[u8]> {
        if self.sequence == 0 {
            return self.controller.receive(wait);
        }
        self.asked.set(self.asked.get() + 1);
        self.datagram.clear();
        let count = self.left.min(PER_DATAGRAM);
        for index in 0..count {
            let mut flow = flows()[0].clone();
            flow.id = self.left - index;
            self.datagram.extend(finish(flow.encode(genl(4)), self.sequence));
        }
        self.left -= count;
        if count == 0 {
            self.datagram = done(self.sequence, 0);
        }
        Ok(&self.datagram)
    }

    fn join(&mut self, _group: u32) -> io::Result<()> {
        Ok(())
    }

    fn reserve(&mut self, _bytes: usize) {}
}

#[test]
fn a_hundred_thousand_flows_stream() {
    const FLOWS: u64 = 100_000;
    let asked = Rc::new(Cell::new(0));
    let controller = Simulation::new(World::default()).open(Bus::Generic).unwrap();
    let mut client = Client::new(Box::new(Endless {
        left: FLOWS,
        sequence: 0,
        datagram: Vec::new(),
        asked: asked.clone(),
        controller,
    }))
    .unwrap();
    let mut count = 0;
    for flow in client.flows() {
        assert_eq!(flow.unwrap().id, FLOWS - count);
        count += 1;
        // No more is read than what was handed out asks for.
        assert_eq!(asked.get() as u64, count.div_ceil(PER_DATAGRAM));
    }
    assert_eq!(count, FLOWS);
}

#[test]
fn events_arrive_and_gaps_are_told() {
    let new = finish(flows()[0].encode(genl(wire::command::FLOW_NEW_NTF)), 0);
    let gone = flows()[1].encode(genl(wire::command::FLOW_GONE_NTF));
    let gone = finish(gone.u32(wire::flow::GONE_REASON, 6), 0);
    // Of the controller, which shares no group with us but might; and of a command to come.
    let foreign = finish(nl::Request::new(0x10, 0, &[1, 2, 0, 0]), 0);
    let unknown = finish(genl(200), 0);
    let (client, simulation) = client(World::default());
    simulation.world.borrow_mut().events =
        vec![Ok(foreign), Ok(unknown), Ok(new), Err(libc::ENOBUFS), Ok(gone)];
    let mut events = client.events(simulation.open(Bus::Generic).unwrap()).unwrap();
    assert!(matches!(events.next_event().unwrap(), Event::New(flow) if flow.id == 1));
    assert_eq!(events.next_event().unwrap(), Event::Lost);
    let Event::Gone(flow) = events.next_event().unwrap() else { panic!("not gone") };
    assert_eq!(flow.gone_reason, Some(wire::GoneReason::SAMPLE_LOST));
    assert!(events.next_event().is_err());
}

#[test]
fn broken_messages_say_what_is_broken() {
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (finish(genl(4).u64(1, 1).u8(8, 1), 0), "flow: source-port has 1 bytes instead of 2"),
        (
            finish(genl(4).u64(1, 1).bytes(6, &[1, 2, 3]), 0),
            "flow: source is neither an IPv4 nor an IPv6 address",
        ),
        (finish(genl(4).u32(2, 1), 0), "flow: id is missing"),
        (
            finish(nl::Request::new(support::FAMILY, 0, &[]), 0),
            "flow: a message's family header is cut short (0 of 4 bytes)",
        ),
    ];
    for (bytes, expected) in cases {
        let mut client = answered(move |request| {
            let mut bytes = bytes.clone();
            bytes[8..12].copy_from_slice(&request.sequence.to_ne_bytes());
            vec![Ok(bytes)]
        });
        let error = client.flows().next().unwrap().unwrap_err();
        assert_eq!(error.to_string(), format!("malformed message from the kernel: {expected}"));
    }
}

#[test]
fn broken_nests_and_missing_counters_are_named() {
    let stats = |request: nl::Request| {
        let mut client = answered(move |message| {
            vec![Ok(finish(request.clone(), message.sequence)), Ok(ack(message))]
        });
        client.stats().unwrap_err().to_string()
    };
    let full = support::stats(genl(8), 0);
    let prefix = "malformed message from the kernel: stats: ";
    assert_eq!(
        stats(full.clone().nest(11, |nest| nest.u32(1, 1))),
        format!("{prefix}slow lacks its reason or its count")
    );
    assert_eq!(
        stats(full.clone().nest(12, |nest| nest.u32(1, 1).u8(2, 1))),
        format!("{prefix}gone has a count that is no number")
    );
    assert_eq!(stats(full.bytes(11, &[1])), format!("{prefix}slow contains a broken attribute"));
    assert_eq!(stats(genl(8).u32(1, 1)), format!("{prefix}table-size is missing"));
}

/// A good answer to each request.
fn good(sequence: u32) -> Vec<Vec<u8>> {
    let config = (2..=7).fold(genl(1).u8(1, 1), |request, kind| request.u32(kind, 9));
    let gone = flows()[0].encode(genl(6)).u32(wire::flow::GONE_REASON, 1);
    vec![
        finish(config, sequence),
        finish(flows()[0].encode(genl(4)), sequence),
        finish(flows()[2].encode(genl(4)), sequence),
        finish(gone, sequence),
        finish(support::stats(genl(8), 1), sequence),
        done(sequence, 0),
    ]
}

/// Calls everything with the same answer; whatever comes of it, it comes.
fn exercise(answer: &[u8]) -> Result<(), TestCaseError> {
    let of = |answer: &[u8]| {
        let answer = answer.to_vec();
        answered(move |request| {
            let mut bytes = answer.clone();
            if let Some(place) = bytes.get_mut(8..12) {
                place.copy_from_slice(&request.sequence.to_ne_bytes());
            }
            vec![Ok(bytes), Ok(ack(request))]
        })
    };
    let mut errors = Vec::new();
    errors.extend(of(answer).config().err());
    errors.extend(of(answer).stats().err());
    errors.extend(of(answer).set_config(&Change::switch(true)).err());
    errors.extend(of(answer).flush(Some(1)).err());
    errors.extend(of(answer).flows().filter_map(Result::err));
    let events = Fake::with_queue(|_: &[u8]| vec![], [Ok(answer.to_vec())]);
    let mut events = of(answer).events(Box::new(events)).unwrap();
    for _ in 0..100 {
        match events.next_event() {
            Ok(_) => {}
            Err(error) => {
                errors.push(error);
                break;
            }
        }
    }
    for error in errors {
        prop_assert!(!error.to_string().is_empty());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        exercise(&bytes)?;
    }

    #[test]
    fn damaged_answers_are_survived(
        which in 0usize..6,
        cut: Option<prop::sample::Index>,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        keep_length: bool,
    ) {
        let mut bytes = good(1).swap_remove(which);
        for (index, value) in changes {
            // The message header is left alone, or hardly anything gets further than that.
            let at = 16 + index.index(bytes.len() - 16);
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(16 + cut.index(bytes.len() - 16));
            if !keep_length {
                let length = bytes.len() as u32;
                bytes[0..4].copy_from_slice(&length.to_ne_bytes());
            }
        }
        exercise(&bytes)?;
    }
}

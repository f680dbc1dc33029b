// SPDX-License-Identifier: GPL-2.0

//! Control from user space: the generic netlink family that `fasttrack.yaml` describes.

use core::pin::Pin;

use kernel::c_str;
use kernel::prelude::*;
use kernel::sync::rcu;

use crate::engine::config::Config;
use crate::engine::config::Exclusion;
use crate::engine::config::Invalid;
use crate::engine::config::Ipsec;
use crate::engine::reason::GoneReason;
use crate::engine::reason::SlowReason;
use crate::engine::wire;
use crate::engine::wire::command;
use crate::engine::wire::config as config_attribute;
use crate::engine::wire::flow as flow_attribute;
use crate::engine::wire::gone_count;
use crate::engine::wire::ipsec_mode;
use crate::engine::wire::slow_count;
use crate::engine::wire::stats as stats_attribute;
use crate::flow::Flow;
use crate::instance::Instance;
use crate::net::conntrack::Direction;
use crate::net::genl::Action;
use crate::net::genl::Command;
use crate::net::genl::Dump;
use crate::net::genl::Family;
use crate::net::genl::Group;
use crate::net::genl::Listing;
use crate::net::genl::Message;
use crate::net::genl::More;
use crate::net::genl::Policy;
use crate::net::genl::Request;
use crate::net::rcu::synchronize;
use crate::net::rcu::Read;
use crate::notify;
use crate::Kept;

/// The family.
pub static FAMILY: Family = Family::new(wire::FAMILY, wire::VERSION, &COMMANDS, &GROUPS);

static GROUPS: [Group; 1] = [Group::new(wire::EVENTS)];

static COMMANDS: [Command; 5] = [
    Command::action::<ConfigGet>(),
    Command::action::<ConfigSet>(),
    Command::listing::<FlowGet>(),
    Command::action::<FlowFlush>(),
    Command::action::<StatsGet>(),
];

/// The instance of the namespace that a request came from.
fn kept<'a>(request: &Request<'a>) -> Result<Pin<&'a Kept>> {
    request.namespace::<Kept>().ok_or(ENODEV)
}

struct ConfigGet;

impl Action for ConfigGet {
    const COMMAND: u8 = command::CONFIG_GET;
    const PRIVILEGED: bool = false;
    const POLICY: &'static [Policy] = &[Policy::REJECT];

    fn run(request: &Request<'_>) -> Result {
        let config = kept(request)?.get_ref().instance().config();
        request.reply(command::CONFIG_GET, |message| {
            write_config(message, &config)
        })
    }
}

/// Writes a configuration.
///
/// # Errors
///
/// [`More`] if it does not fit.
pub fn write_config(message: &mut Message<'_>, config: &Config) -> Result<(), More> {
    message.u8(config_attribute::ENABLED, u8::from(config.enabled))?;
    message.u32(config_attribute::MARK_VALUE, config.exclusion.value())?;
    message.u32(config_attribute::MARK_MASK, config.exclusion.mask())?;
    message.u32(config_attribute::TCP_TIMEOUT, config.tcp_timeout)?;
    message.u32(config_attribute::UDP_TIMEOUT, config.udp_timeout)?;
    message.u32(config_attribute::SAMPLE_INTERVAL, config.sample_interval)?;
    message.u32(config_attribute::TABLE_SIZE, config.table_size)?;
    let ipsec = match config.ipsec {
        Ipsec::Exclude => ipsec_mode::EXCLUDE,
        Ipsec::Accelerate => ipsec_mode::ACCELERATE,
    };
    message.u8(config_attribute::IPSEC, ipsec)?;
    message.u32(config_attribute::LEARN_AFTER, config.learn_after)
}

struct ConfigSet;

impl Action for ConfigSet {
    const COMMAND: u8 = command::CONFIG_SET;
    const PRIVILEGED: bool = true;
    const POLICY: &'static [Policy] = &[
        Policy::REJECT,
        Policy::U8,
        Policy::U32,
        Policy::U32,
        Policy::U32,
        Policy::U32,
        Policy::U32,
        Policy::U32,
        Policy::U8,
        Policy::U32,
    ];

    fn run(request: &Request<'_>) -> Result {
        let kept = kept(request)?;
        let instance = kept.get_ref().instance();
        let mut new = None;
        instance.configure(|config| {
            apply(request, config)?;
            new = Some(*config);
            Ok(())
        })?;
        if let Some(config) = new {
            notify::config_changed(instance, &config);
        }
        Ok(())
    }
}

/// Applies the attributes of a request to a configuration, and checks the result.
fn apply(request: &Request<'_>, config: &mut Config) -> Result {
    let number = |attribute| {
        request
            .attribute(attribute)
            .map(|attribute| attribute.u32())
    };
    if let Some(attribute) = request.attribute(config_attribute::ENABLED) {
        config.enabled = match attribute.u8() {
            0 => false,
            1 => true,
            _ => {
                let why = c_str!("enabled has to be 0 or 1");
                return Err(request.refuse(EINVAL, why, Some(attribute)));
            }
        };
    }
    if let Some(attribute) = request.attribute(config_attribute::IPSEC) {
        config.ipsec = match attribute.u8() {
            ipsec_mode::EXCLUDE => Ipsec::Exclude,
            ipsec_mode::ACCELERATE => Ipsec::Accelerate,
            _ => {
                let why = c_str!("ipsec has to be 0 (exclude) or 1 (accelerate)");
                return Err(request.refuse(EINVAL, why, Some(attribute)));
            }
        };
    }
    let value = number(config_attribute::MARK_VALUE).unwrap_or(config.exclusion.value());
    let mask = number(config_attribute::MARK_MASK).unwrap_or(config.exclusion.mask());
    let replace = |field: &mut u32, attribute| {
        if let Some(value) = number(attribute) {
            *field = value;
        }
    };
    replace(&mut config.tcp_timeout, config_attribute::TCP_TIMEOUT);
    replace(&mut config.udp_timeout, config_attribute::UDP_TIMEOUT);
    replace(
        &mut config.sample_interval,
        config_attribute::SAMPLE_INTERVAL,
    );
    replace(&mut config.table_size, config_attribute::TABLE_SIZE);
    replace(&mut config.learn_after, config_attribute::LEARN_AFTER);

    let checked = Exclusion::new(value, mask).and_then(|exclusion| {
        config.exclusion = exclusion;
        config.check()
    });
    checked.map_err(|invalid| {
        let (why, attribute) = match invalid {
            Invalid::MarkOutsideMask => (
                c_str!("mark-value has bits outside of mark-mask"),
                config_attribute::MARK_VALUE,
            ),
            Invalid::TcpTimeout => (
                c_str!("tcp-timeout has to be between 1 s and 1 day"),
                config_attribute::TCP_TIMEOUT,
            ),
            Invalid::UdpTimeout => (
                c_str!("udp-timeout has to be between 1 s and 1 day"),
                config_attribute::UDP_TIMEOUT,
            ),
            Invalid::SampleInterval => (
                c_str!("sample-interval has to be between 100 ms and 1 min"),
                config_attribute::SAMPLE_INTERVAL,
            ),
            Invalid::TableSize => (
                c_str!("table-size has to be between 16 and 4194304"),
                config_attribute::TABLE_SIZE,
            ),
            Invalid::LearnAfter => (
                c_str!("learn-after has to be between 1 and 15 packets"),
                config_attribute::LEARN_AFTER,
            ),
        };
        request.refuse(ERANGE, why, request.attribute(attribute))
    })
}

struct FlowGet;

impl Listing for FlowGet {
    const COMMAND: u8 = command::FLOW_GET;
    // Who talks to whom is nobody's business else; conntrack says so, too.
    const PRIVILEGED: bool = true;

    fn list(dump: &mut Dump<'_>) -> Result<(), More> {
        let Some(kept) = dump.namespace::<Kept>() else {
            return Ok(());
        };
        let instance = kept.get_ref().instance();
        dump.set_generation(instance.table.generation());
        // The bucket, and how many of its flows have been written already.
        let [mut bucket, mut done] = *dump.place();
        loop {
            let guard = rcu::read_lock();
            let read = Read::of(&guard);
            let mut at = 0usize;
            let mut full = false;
            let next = instance.table.visit(read, bucket, 1, |flow| {
                if at >= done && !full {
                    full = dump
                        .add(&FAMILY, command::FLOW_GET, |message| {
                            notify::write_flow(message, instance, flow)
                        })
                        .is_err();
                }
                if !full {
                    at = at.saturating_add(1);
                }
            });
            drop(guard);
            if full {
                *dump.place() = [bucket, at.max(done)];
                return Err(More);
            }
            match next {
                Some(next) => (bucket, done) = (next, 0),
                None => {
                    *dump.place() = [usize::MAX, 0];
                    return Ok(());
                }
            }
        }
    }
}

struct FlowFlush;

impl Action for FlowFlush {
    const COMMAND: u8 = command::FLOW_FLUSH;
    const PRIVILEGED: bool = true;
    const POLICY: &'static [Policy] = &[Policy::REJECT, Policy::U64];

    fn run(request: &Request<'_>) -> Result {
        let kept = kept(request)?;
        let instance = kept.get_ref().instance();
        let attribute = request.attribute(flow_attribute::ID);
        let wanted = attribute.map(|attribute| attribute.u64());
        let mut found = false;
        if wanted.is_none() {
            let guard = rcu::read_lock();
            instance.ports.forget_zones(Read::of(&guard));
        }
        instance.drop_flows(|flow| {
            let meant = wanted.is_none_or(|id| id == flow.id);
            found |= meant;
            meant.then_some(GoneReason::Flushed)
        });
        // Packets that had found their flow before it was taken out are done when this returns.
        synchronize();
        if wanted.is_some() && !found {
            return Err(request.refuse(ENOENT, c_str!("no flow has this id"), attribute));
        }
        Ok(())
    }
}

struct StatsGet;

impl Action for StatsGet {
    const COMMAND: u8 = command::STATS_GET;
    const PRIVILEGED: bool = false;
    const POLICY: &'static [Policy] = &[Policy::REJECT];

    fn run(request: &Request<'_>) -> Result {
        let kept = kept(request)?;
        let instance = kept.get_ref().instance();
        let table_size = instance.config().table_size;
        request.reply(command::STATS_GET, |message| {
            write_stats(message, instance, table_size)
        })
    }
}

fn write_stats(
    message: &mut Message<'_>,
    instance: &Instance,
    table_size: u32,
) -> Result<(), More> {
    let (index_bytes, devices) = {
        let guard = rcu::read_lock();
        let read = Read::of(&guard);
        (instance.table.index_bytes(read), instance.ports.len(read))
    };
    let stats = &instance.stats;
    let original = stats.sum_fast(Direction::Original);
    let reply = stats.sum_fast(Direction::Reply);
    message.u32(stats_attribute::FLOWS, instance.table.count())?;
    message.u32(stats_attribute::TABLE_SIZE, table_size)?;
    message.u32(stats_attribute::FLOW_BYTES, size_of::<Flow>() as u32)?;
    message.u64(stats_attribute::INDEX_BYTES, index_bytes as u64)?;
    message.u64(stats_attribute::PACKETS_ORIGINAL, original.packets)?;
    message.u64(stats_attribute::BYTES_ORIGINAL, original.bytes)?;
    message.u64(stats_attribute::PACKETS_REPLY, reply.packets)?;
    message.u64(stats_attribute::BYTES_REPLY, reply.bytes)?;
    message.u64(stats_attribute::LEARNED, stats.sum_learned())?;
    message.u32(stats_attribute::DEVICES, devices as u32)?;
    for reason in SlowReason::ALL {
        message.nest(stats_attribute::SLOW, |nest| {
            nest.u32(slow_count::REASON, *reason as u32)?;
            nest.u64(slow_count::PACKETS, stats.sum_slow(*reason))
        })?;
    }
    for reason in GoneReason::ALL {
        message.nest(stats_attribute::GONE, |nest| {
            nest.u32(gone_count::REASON, *reason as u32)?;
            nest.u64(gone_count::FLOWS, stats.sum_gone(*reason))
        })?;
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0

//! Ageing: the periodic look at every flow.

use core::sync::atomic::Ordering::Relaxed;

use kernel::sync::rcu;
use kernel::sync::Arc;
use kernel::sync::ArcBorrow;

use crate::engine::ageing;
use crate::engine::tick::Tick;
use crate::flow::Flow;
use crate::instance::Instance;
use crate::net::rcu::Read;
use crate::net::time;
use crate::net::work::Job;
use crate::track;

/// Drops the flows that are over, keeps conntrack from forgetting the others, and frees what was
/// dropped. Every flow is looked at once a second, a quarter of them at a time.
pub enum Ageing {}

impl Ageing {
    /// Ticks from one look to the next.
    pub const PERIOD: u32 = time::SECOND / Self::PARTS;

    const PARTS: u32 = 4;

    /// Buckets that are looked at in one read side.
    const AT_ONCE: usize = 64;
}

impl Job for Ageing {
    type Owner = Instance;

    fn run(instance: ArcBorrow<'_, Instance>) {
        let instance: Arc<Instance> = instance.into();
        look(&instance);
        instance.table.reclaim();
        if instance.settings.is_on() {
            instance.ageing.schedule(&instance, Ageing::PERIOD);
        }
    }
}

/// Looks at the next quarter of the table.
fn look(instance: &Instance) {
    let mut from = instance.hand.load(Relaxed);
    let mut left = {
        let guard = rcu::read_lock();
        instance
            .table
            .buckets(Read::of(&guard))
            .div_ceil(Ageing::PARTS as usize)
    };
    while left > 0 {
        let count = left.min(Ageing::AT_ONCE);
        let guard = rcu::read_lock();
        let read = Read::of(&guard);
        let now = time::now();
        let next = instance.table.visit(read, from, count, |flow| {
            look_at(instance, read, flow, now);
        });
        drop(guard);
        left = left.saturating_sub(count);
        from = next.unwrap_or(0);
        if next.is_none() {
            break;
        }
    }
    instance.hand.store(from, Relaxed);
}

fn look_at(instance: &Instance, read: Read<'_>, flow: &Flow, now: Tick) {
    track::report(instance, read, flow, now);
    let connection = &flow.connection;
    let is_tcp = flow.is_tcp();
    let view = ageing::Flow {
        seen: flow.seen(),
        until: flow.validity.until(),
        probed: flow.validity.has_probe(),
        conntrack_gone: connection.is_dying() || connection.left() <= 0,
        marked: instance.settings.exclusion().covers(connection.mark()),
        closed: is_tcp && !connection.tcp_is_established(),
        transform_gone: flow.neighbour.is_none() && !flow.route.is_usable()
            || flow
                .secpath
                .as_ref()
                .is_some_and(|secpath| !secpath.is_alive()),
    };
    let limits = ageing::Limits {
        // A second more than was asked for, and two for a sample: `seen` is up to one behind.
        idle: instance
            .settings
            .idle_timeout(is_tcp)
            .saturating_add(time::SECOND),
        sample: time::SECOND * 2,
        quiet: time::SECOND * 2,
    };
    if let Some(reason) = view.verdict(now, limits) {
        instance.drop_flow(read, flow, reason);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Everything that fasttrack keeps for a network namespace.

use core::pin::Pin;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::AcqRel;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;

use kernel::c_str;
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;
use kernel::sync::Mutex;
use pin_init::init_array_from_fn;

use crate::age::Ageing;
use crate::bridges::Bridges;
use crate::engine::arrivals::Arrivals;
use crate::engine::arrivals::Turn;
use crate::engine::config::Config;
use crate::engine::config::Exclusion;
use crate::engine::config::Ipsec;
use crate::engine::doorkeeper::Doorkeeper;
use crate::engine::ip::Family;
use crate::engine::key;
use crate::engine::key::Key;
use crate::engine::reason::GoneReason;
use crate::engine::tick::Tick;
use crate::engine::transport::Protocol;
use crate::engine::validity::Epoch;
use crate::engine::validity::Moment;
use crate::flow::Carried;
use crate::flow::Flow;
use crate::forget::Watcher;
use crate::learn::Learner;
use crate::net::conntrack::Tracking;
use crate::net::conntrack::Tuple;
use crate::net::device::Rtnl;
use crate::net::hook;
use crate::net::hook::Hook;
use crate::net::namespace::Net;
use crate::net::nexthop;
use crate::net::percpu::PerCpu;
use crate::net::rcu::synchronize;
use crate::net::rcu::Read;
use crate::net::route::routes_of_bundles;
use crate::net::rtnetlink;
use crate::net::slab::Slab;
use crate::net::table::Prepared;
use crate::net::table::Table;
use crate::net::time;
use crate::net::work::Work;
use crate::notify;
use crate::port::Attaching;
use crate::port::Ports;
use crate::stats::Stats;
use crate::track;

/// What the instances of all namespaces have in common.
pub struct Common {
    /// Where flows are kept.
    slab: Arc<Slab<Flow>>,
    doorkeeper: Arc<PerCpu<Doorkeeper>>,
    arrivals: Arc<Arrivals>,
}

impl Common {
    /// What they need when they come into being.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self {
            slab: Arc::new(Slab::new(c_str!("fasttrack_flow"))?, GFP_KERNEL)?,
            doorkeeper: Arc::new(PerCpu::new()?, GFP_KERNEL)?,
            arrivals: Arc::init(
                init!(Arrivals {
                    places <- init_array_from_fn(|_| AtomicU64::new(0)),
                }),
                GFP_KERNEL,
            )?,
        })
    }
}

/// What fasttrack keeps for a network namespace.
///
/// # Locking
///
/// The hooks take no lock but the table's, and that only to add a flow or to take one out. `control` is
/// for whoever changes the configuration; under it the routing netlink lock is taken, and under that
/// devices are attached and detached. Nothing that runs under the latter takes the former.
#[pin_data]
pub struct Instance {
    #[pin]
    pub(crate) ageing: Work<Ageing>,
    #[pin]
    pub(crate) attaching: Work<Attaching>,
    pub(crate) net: Net<'static>,
    pub(crate) settings: Settings,
    pub(crate) stats: Stats,
    #[pin]
    pub(crate) table: Table<Flow>,
    pub(crate) ports: Ports,
    pub(crate) bridges: Bridges,
    doorkeeper: Arc<PerCpu<Doorkeeper>>,
    arrivals: Arc<Arrivals>,
    /// Where the next look at the table begins.
    pub(crate) hand: AtomicUsize,
    next_id: AtomicU64,
    #[pin]
    control: Mutex<Control>,
}

/// What is read for every packet.
#[repr(C, align(64))]
pub struct Settings {
    /// The generation of the nf_tables rules that the epoch began with, or a later one.
    rules: AtomicU64,
    epoch: AtomicU32,
    /// When rules last began an epoch.
    ruled: AtomicU32,
    interval: AtomicU32,
    exclusion: AtomicU64,
    tcp_timeout: AtomicU32,
    udp_timeout: AtomicU32,
    learn_after: AtomicU32,
    on: AtomicBool,
    accelerates_ipsec: AtomicBool,
}

impl Settings {
    fn new(config: &Config) -> Self {
        let settings = Self {
            rules: AtomicU64::new(0),
            epoch: AtomicU32::new(Epoch::FIRST.number()),
            ruled: AtomicU32::new(0),
            interval: AtomicU32::new(0),
            exclusion: AtomicU64::new(0),
            tcp_timeout: AtomicU32::new(0),
            udp_timeout: AtomicU32::new(0),
            learn_after: AtomicU32::new(0),
            on: AtomicBool::new(false),
            accelerates_ipsec: AtomicBool::new(false),
        };
        settings.set(config);
        settings
    }

    fn set(&self, config: &Config) {
        self.interval
            .store(time::ticks(config.sample_interval), Relaxed);
        self.exclusion.store(config.exclusion.pack(), Relaxed);
        self.tcp_timeout
            .store(time::ticks(config.tcp_timeout), Relaxed);
        self.udp_timeout
            .store(time::ticks(config.udp_timeout), Relaxed);
        self.learn_after.store(config.learn_after, Relaxed);
        self.accelerates_ipsec
            .store(config.ipsec == Ipsec::Accelerate, Relaxed);
    }

    /// The epoch now.
    #[inline(always)]
    pub fn epoch(&self) -> Epoch {
        Epoch::from_number(self.epoch.load(Acquire))
    }

    /// Begins a new epoch: every flow's next packet takes the slow path.
    pub fn begin_epoch(&self) {
        // Never back to one that there was, even if two begin one at once. The number 0, which is no epoch,
        // is passed over; whoever sees it in between finds no memo valid.
        if self.epoch.fetch_add(1, AcqRel) == u32::MAX {
            self.epoch.fetch_add(1, AcqRel);
        }
    }

    /// Begins a new epoch because of new nf_tables rules; if that was just done, only when a packet asks
    /// again after a while, until when the old epoch goes on. Some rule sets change many times a second,
    /// such as those with a set that is filled with every name that is resolved: there it must not be
    /// every packet that meets new rules.
    #[cold]
    fn rules_changed(&self, rules: u64, now: Tick) {
        // Not `since`: the last time may be longer ago than ticks can be compared.
        if now.0.wrapping_sub(self.ruled.load(Relaxed)) < Self::RULES_PAUSE {
            return;
        }
        self.ruled.store(now.0, Relaxed);
        // In this order: whoever finds the new generation noted is in the new epoch. If two do this at
        // once, there is one epoch too many.
        self.begin_epoch();
        self.rules.store(rules, Release);
    }

    /// Ticks from one epoch that new rules begin to the next.
    const RULES_PAUSE: u32 = time::SECOND / 10;

    /// The connections that stay slow.
    #[inline(always)]
    pub fn exclusion(&self) -> Exclusion {
        Exclusion::unpack(self.exclusion.load(Relaxed))
    }

    /// How long a confirmation is good, in ticks.
    pub fn interval(&self) -> u32 {
        self.interval.load(Relaxed)
    }

    /// How long a flow is kept without a packet, in ticks.
    pub fn idle_timeout(&self, is_tcp: bool) -> u32 {
        let timeout = if is_tcp {
            &self.tcp_timeout
        } else {
            &self.udp_timeout
        };
        timeout.load(Relaxed)
    }

    /// The packet of a direction with which it is learned.
    #[inline(always)]
    pub fn learn_after(&self) -> u32 {
        self.learn_after.load(Relaxed)
    }

    /// Whether connections that IPsec encrypts or has decrypted become fast, too.
    pub fn accelerates_ipsec(&self) -> bool {
        self.accelerates_ipsec.load(Relaxed)
    }

    /// Whether fasttrack is on, and flows are learned.
    pub fn is_on(&self) -> bool {
        self.on.load(Acquire)
    }
}

/// What whoever changes the configuration holds.
struct Control {
    config: Config,
    running: Option<Running>,
    /// The namespace is going: there is nothing to be switched on any more.
    over: bool,
}

/// What is there while fasttrack is on.
struct Running {
    learning: [Pin<KBox<Hook<Learner>>>; 2],
    _tracking: Tracking<'static>,
    _hops: nexthop::Watch<Watcher>,
    _bridges: rtnetlink::Watch<Watcher>,
}

impl Instance {
    /// That of a namespace which has just come into being: switched off.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(net: Net<'static>, common: &Common) -> Result<Arc<Self>> {
        let config = Config::DEFAULT;
        let stats = Stats::new()?;
        Arc::pin_init(
            pin_init!(Self {
                // SAFETY: Cancelled in `switch_off`, which `leave` calls before the last `Arc` goes.
                ageing <- unsafe { Work::new() },
                // SAFETY: As above.
                attaching <- unsafe { Work::new() },
                net,
                settings: Settings::new(&config),
                stats,
                table <- Table::new(common.slab.clone()),
                ports: Ports::none(),
                bridges: Bridges::none(),
                doorkeeper: common.doorkeeper.clone(),
                arrivals: common.arrivals.clone(),
                hand: AtomicUsize::new(0),
                next_id: AtomicU64::new(1),
                control <- new_mutex!(Control { config, running: None, over: false }),
            }),
            GFP_KERNEL,
        )
    }

    /// The flow whose packets arrive on `device` with the given addresses and ports.
    #[inline(always)]
    pub fn find<'rcu, I: Carried>(
        &'rcu self,
        read: Read<'rcu>,
        tuple: Tuple<I>,
        protocol: Protocol,
        device: key::Device,
    ) -> Option<&'rcu Flow> {
        self.table.find(
            read,
            |hasher| Key::new::<I>(hasher, tuple.addresses, tuple.ports, protocol, device),
            |flow, key| flow.is::<I>(key, tuple.addresses),
        )
    }

    /// The first flow with the key of packets that arrive on `device` with the given addresses and ports, or the hash
    /// that it would have. That it is theirs is for the caller to find out: see [`Carried::arrives`].
    #[inline(always)]
    pub fn find_by_key<'rcu, I: Carried>(
        &'rcu self,
        read: Read<'rcu>,
        tuple: Tuple<I>,
        protocol: Protocol,
        device: key::Device,
    ) -> Result<&'rcu Flow, Option<key::Hash>> {
        self.table.find_or_hash(
            read,
            |hasher| Key::new::<I>(hasher, tuple.addresses, tuple.ports, protocol, device),
            |flow, key| flow.key == key,
        )
    }

    /// Counts a packet that has no flow, but would have one with this hash. Whether it may be learned from: it is not
    /// one of the first of its direction.
    #[inline(always)]
    pub fn lets_in(&self, hash: key::Hash) -> bool {
        let after = self.settings.learn_after();
        self.doorkeeper.this_cpu().lets_in(hash, after)
    }

    /// Notes a packet that has no flow, but would have one with this hash, and may be learned from.
    pub fn note(&self, hash: key::Hash, dscp: u8) -> Option<Turn> {
        let moment = Moment::new(self.epoch(time::now()), routes_of_bundles(self.net));
        self.arrivals.note(hash, dscp, moment)
    }

    /// The DSCP that the packet with this turn arrived with, if a flow that is made of it now holds from the start:
    /// nothing has changed since it arrived, and nothing is behind it.
    pub fn noted(&self, hash: key::Hash, turn: Turn, epoch: Epoch) -> Option<u8> {
        let moment = Moment::new(epoch, routes_of_bundles(self.net));
        self.arrivals.is_last(turn, hash, moment)
    }

    /// A number that no other flow had or will have.
    pub fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Relaxed)
    }

    /// The epoch for a packet that arrives now, which begins with it if the nf_tables rules have changed.
    #[inline(always)]
    pub fn epoch(&self, now: Tick) -> Epoch {
        let rules = self.net.rules_generation();
        if rules != self.settings.rules.load(Acquire) {
            self.settings.rules_changed(rules, now);
        }
        self.settings.epoch()
    }

    /// The same, if the rules have not changed.
    #[inline(always)]
    pub fn unchanged_epoch(&self) -> Option<Epoch> {
        let is_unchanged = self.net.rules_generation() == self.settings.rules.load(Acquire);
        is_unchanged.then(|| self.settings.epoch())
    }

    /// Takes a flow out of the table, if nobody else does. With one direction of a TCP connection goes
    /// the other: see [`track`].
    pub fn drop_flow(&self, read: Read<'_>, flow: &Flow, reason: GoneReason) {
        let other = flow
            .is_tcp()
            .then(|| track::opposite(self, read, flow))
            .flatten();
        // Their next packets meet conntrack, which has to know by then how far the others got.
        let now = time::now();
        for flow in [Some(flow), other].into_iter().flatten() {
            flow.validity.revoke(now);
        }
        track::catch_up(self, read, flow);
        for flow in [Some(flow), other].into_iter().flatten() {
            if self.table.remove(read, flow) {
                self.account_gone(flow, reason);
            }
        }
    }

    /// Counts and reports a flow that has been taken out of the table.
    pub fn account_gone(&self, flow: &Flow, reason: GoneReason) {
        self.stats.gone(reason);
        notify::flow_gone(self, flow, reason);
    }

    /// Takes out the flows for which `which` gives a reason. When this returns, no packet is forwarded
    /// by them any more. Sleeps.
    pub fn drop_flows(&self, mut which: impl FnMut(&Flow) -> Option<GoneReason>) {
        const AT_ONCE: usize = 64;
        // A flow that is being moved in the index while it is looked at may be missed. It is not lost sight
        // of: its next packet takes the slow path, like that of every other one.
        self.settings.begin_epoch();
        let mut next = Some(0);
        while let Some(from) = next {
            let guard = rcu::read_lock();
            let read = Read::of(&guard);
            next = self.table.visit(read, from, AT_ONCE, |flow| {
                if let Some(reason) = which(flow) {
                    self.drop_flow(read, flow, reason);
                }
            });
        }
        self.table.reclaim();
        synchronize();
    }

    /// The configuration.
    pub fn config(&self) -> Config {
        self.control.lock().config
    }

    /// Changes the configuration. When this returns, no packet is forwarded by a decision that was made
    /// under the old one. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM` and what registering hooks gives. Everything is as it was then.
    pub fn configure(self: &Arc<Self>, change: impl FnOnce(&mut Config) -> Result) -> Result {
        let mut control = self.control.lock();
        let mut config = control.config;
        change(&mut config)?;
        if config == control.config {
            return Ok(());
        }
        if control.over && config.enabled {
            return Err(ENODEV);
        }
        let resized = config.table_size != control.config.table_size;
        let excludes = config.ipsec == Ipsec::Exclude;
        let prepared = if config.enabled && (resized || control.running.is_none()) {
            Some(Table::<Flow>::prepare(config.table_size)?)
        } else {
            None
        };
        if config.enabled && control.running.is_none() {
            control.running = Some(self.begin()?);
        }
        // Nothing that follows fails.
        if !config.enabled {
            self.switch_off(&mut control);
        } else if prepared.is_some() {
            self.forget_all(GoneReason::Flushed);
        }
        self.settings.set(&config);
        self.settings.begin_epoch();
        if let Some(prepared) = prepared {
            self.switch_on(prepared);
        } else if excludes && control.config.ipsec != config.ipsec {
            self.drop_flows(|flow| flow.transforms.are_any().then_some(GoneReason::Ipsec));
        } else {
            synchronize();
        }
        control.config = config;
        Ok(())
    }

    /// What it takes to be switched on.
    fn begin(self: &Arc<Self>) -> Result<Running> {
        Ok(Running {
            _tracking: Tracking::new(self.net)?,
            // SAFETY: The namespace is there until it has been switched off, which drops this.
            _hops: unsafe { nexthop::Watch::new(self.net) }?,
            // SAFETY: As above.
            _bridges: unsafe { rtnetlink::Watch::new(self.net) }?,
            learning: [self.learn(Family::V4)?, self.learn(Family::V6)?],
        })
    }

    /// Begins to learn flows, with a table that has none.
    fn switch_on(self: &Arc<Self>, prepared: Prepared) {
        self.table.open(prepared);
        self.settings.on.store(true, Release);
        self.ageing.schedule(self, Ageing::PERIOD);
    }

    /// Begins to look at what leaves.
    fn learn(self: &Arc<Self>, family: Family) -> Result<Pin<KBox<Hook<Learner>>>> {
        // SAFETY: The namespace is there until it has been switched off, which drops the hook.
        let hook = unsafe { Hook::new(self.net, Learner::new(self.clone())) };
        let hook = KBox::pin_init(hook, GFP_KERNEL)?;
        hook.as_ref().begin(family, hook::LAST)?;
        Ok(hook)
    }

    /// Learns no more flows, and drops those that there are.
    fn forget_all(&self, reason: GoneReason) {
        self.settings.on.store(false, Release);
        // First no packet is forwarded any more, and no flow learned or device attached. Then conntrack is
        // told how far each flow got, while packets that come in between tell it themselves. Then they go.
        self.settings.begin_epoch();
        synchronize();
        self.attaching.cancel();
        self.drop_flows(|_| Some(reason));
    }

    fn switch_off(self: &Arc<Self>, control: &mut Control) {
        let Some(running) = control.running.take() else {
            return;
        };
        self.forget_all(GoneReason::Disabled);
        for hook in &running.learning {
            hook.unregister();
        }
        synchronize();
        let rtnl = Rtnl::lock();
        self.bridges.detach_all(&rtnl);
        self.ports.detach_all(&rtnl);
        drop(rtnl);
        self.table.close();
        self.table.reclaim();
        self.ageing.cancel();
    }

    /// The namespace, or the module, is going. Sleeps.
    pub fn leave(self: &Arc<Self>) {
        let mut control = self.control.lock();
        control.over = true;
        control.config.enabled = false;
        self.switch_off(&mut control);
    }
}

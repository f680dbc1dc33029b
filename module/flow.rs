// SPDX-License-Identifier: GPL-2.0

//! A flow: one direction of a connection, and the memo of what the slow path does with its packets.

use core::sync::atomic::AtomicU16;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;

use crate::engine::crossing::Crossing;
use crate::engine::ip::Family;
use crate::engine::ip::Ip;
use crate::engine::ip::Pair;
use crate::engine::ip::V4;
use crate::engine::ip::V6;
use crate::engine::key::Hash;
use crate::engine::key::Hasher;
use crate::engine::key::Key;
use crate::engine::rewrite::Amendment;
use crate::engine::rewrite::Translation;
use crate::engine::sender::Sender;
use crate::engine::tick::Tick;
use crate::engine::transforms::Transforms;
use crate::engine::transport::Protocol;
use crate::engine::validity::Routes;
use crate::engine::validity::Validity;
use crate::engine::window::Window;
use crate::net::conntrack;
use crate::net::conntrack::Direction;
use crate::net::conntrack::Tracked;
use crate::net::namespace::Net;
use crate::net::neighbour::Neighbour;
#[cfg(doc)]
use crate::net::neighbour::NextHop;
use crate::net::route::routes_of_bundles;
use crate::net::route::Route;
use crate::net::route::Routed;
use crate::net::secpath::Secpath;
use crate::net::skb::Stamp;
use crate::net::table::Entry;
use crate::net::table::Link;

/// A flow.
///
/// Found under RCU; dropped, with the references that it holds, a grace period after it was taken out
/// of the table. Three cache lines: the first is only read for a packet, the second is also written,
/// the third is for TCP and for when something goes another way than usual.
#[repr(C, align(64))]
pub struct Flow {
    /// What its packets arrive with.
    pub key: Key,
    /// What their ports become, and what that and the new addresses do to their checksums.
    pub translation: Translation,
    /// For IPv4, the addresses that they leave with. For IPv6, zero if these are those that they arrive
    /// with; else they are looked up in the connection, as those to compare with are.
    addresses: u64,
    /// Its connection.
    pub connection: conntrack::Held,
    /// The route that the slow path takes.
    pub route: Route,
    /// The generation of the routes that it was last looked up in: see [`Flow::routes`].
    looked_up: AtomicU32,
    /// Who sends them, if it is one [of a sender](Flow::is_of_sender); if not, how they come in by a bridge.
    origin: AtomicU32,
    /// The next hop on it. None if the route leads to a transform: what comes out of that has its own.
    pub neighbour: Option<Neighbour>,

    /// Mark and priority, in one word so that they change together.
    stamp: AtomicU64,
    /// Whether the memo holds.
    pub validity: Validity,
    /// The DSCP that packets must arrive with, and what becomes of the rest of their IP header.
    amendment: AtomicU32,
    /// Which direction of the connection it is.
    pub direction: Direction,
    /// For TCP: the window scale of the sender.
    pub scale: u8,
    /// Whether conntrack counts its packets and bytes.
    pub is_counted: bool,
    /// What IPsec does to its packets.
    pub transforms: Transforms,
    /// When the last packet came, to within a second.
    seen: AtomicU32,
    /// The CPU that counts in `packets` and `bytes`; others count in `elsewhere`. A number of 16 bits.
    owner: u16,
    /// Largest packet that the route takes; 0 if more has to be asked than that: see [`Flow::lasting_mtu`].
    mtu: AtomicU16,
    packets: AtomicU64,
    bytes: AtomicU64,
    /// The IPsec states that have decrypted its packets; none if they arrive in clear.
    pub secpath: Option<Secpath>,

    /// For TCP: how far the sender went.
    pub window: Window,
    /// The timeout that conntrack gave the connection for the flow's last packet in the slow path, in
    /// ticks.
    pub fresh: AtomicU32,
    elsewhere: [AtomicU64; 2],
    /// Its number, which no other flow of the namespace had or will have.
    pub id: u64,
    link: Link<Self>,
    /// When it was learned.
    pub born: Tick,
    /// The lower half of the packet count when conntrack was last told about them.
    told: AtomicU32,
}

/// Three cache lines, and no more.
const _: () = assert!(size_of::<Flow>() == 192);

/// What a new flow begins with.
pub struct Seed {
    /// See [`Flow`], as for the others.
    pub id: u64,
    #[allow(missing_docs)]
    pub key: Key,
    #[allow(missing_docs)]
    pub connection: conntrack::Held,
    #[allow(missing_docs)]
    pub direction: Direction,
    #[allow(missing_docs)]
    pub route: Route,
    #[allow(missing_docs)]
    pub neighbour: Option<Neighbour>,
    #[allow(missing_docs)]
    pub secpath: Option<Secpath>,
    /// What the devices that its packets arrive on and leave by do of that.
    pub by_devices: Transforms,
    /// What is known about the connection's sequence space, and the sender's window scale.
    pub window: (Window, u8),
    /// Validity to begin with.
    pub validity: Validity,
    /// The CPU that its packets are expected on.
    pub cpu: u32,
    #[allow(missing_docs)]
    pub now: Tick,
}

/// A version of IP that flows are made of: where a flow keeps its addresses.
pub trait Carried: Ip + Tracked + Routed {
    /// What a flow keeps of them.
    fn remembered(from: Self::Addresses, to: Self::Addresses) -> u64;

    /// Whether packets of the flow arrive with `addresses`, which is to be asked only if the key is right.
    fn arrives(flow: &Flow, addresses: Self::Addresses) -> bool;

    /// The addresses that packets of the flow leave with, if they are others than they arrive with.
    fn leaving(flow: &Flow) -> Option<Self::Addresses>;
}

impl Carried for V4 {
    fn remembered(_from: u64, to: u64) -> u64 {
        to
    }

    /// The key says it all.
    #[inline(always)]
    fn arrives(_flow: &Flow, _addresses: u64) -> bool {
        true
    }

    /// To write them down once more is cheaper than to ask.
    #[inline(always)]
    fn leaving(flow: &Flow) -> Option<u64> {
        Some(flow.addresses)
    }
}

impl Carried for V6 {
    fn remembered(from: Pair, to: Pair) -> u64 {
        u64::from(from != to)
    }

    #[inline(always)]
    fn arrives(flow: &Flow, addresses: Pair) -> bool {
        flow.connection.tuple::<Self>(flow.direction).addresses == addresses
    }

    #[inline(always)]
    fn leaving(flow: &Flow) -> Option<Pair> {
        if flow.addresses == 0 {
            return None;
        }
        Some(flow.connection.translated::<Self>(flow.direction).addresses)
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the IP header on.
    pub bytes: u64,
}

impl Flow {
    /// A flow that has not been confirmed.
    pub fn new<I: Carried>(seed: Seed) -> Self {
        let is_counted = seed.connection.is_counted();
        let from = seed.connection.tuple::<I>(seed.direction);
        let to = seed.connection.translated::<I>(seed.direction);
        let (window, scale) = seed.window;
        let translation =
            Translation::new::<I>((from.addresses, from.ports), (to.addresses, to.ports));
        Self {
            key: seed.key,
            translation,
            addresses: I::remembered(from.addresses, to.addresses),
            connection: seed.connection,
            route: seed.route,
            looked_up: AtomicU32::new(0),
            origin: AtomicU32::new(Crossing::UNKNOWN.0),
            transforms: Transforms::shown(seed.secpath.is_some(), seed.neighbour.is_none())
                .and(seed.by_devices),
            neighbour: seed.neighbour,
            stamp: AtomicU64::new(0),
            validity: seed.validity,
            amendment: AtomicU32::new(translation.amendment::<I>(0, 0).pack()),
            direction: seed.direction,
            scale,
            seen: AtomicU32::new(seed.now.0),
            owner: seed.cpu as u16,
            mtu: AtomicU16::new(0),
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            secpath: seed.secpath,
            is_counted,
            born: seed.now,
            told: AtomicU32::new(0),
            window,
            elsewhere: [AtomicU64::new(0), AtomicU64::new(0)],
            id: seed.id,
            link: Link::unlinked(),
            fresh: AtomicU32::new(0),
        }
    }

    /// Whether it is one of TCP.
    pub fn is_tcp(&self) -> bool {
        self.key.protocol_number() == Protocol::Tcp.number()
    }

    /// The generation now of the routes that its own was looked up in.
    pub fn routes<I: Carried>(&self, net: Net<'_>) -> Routes {
        match self.neighbour {
            Some(_) => I::routes(net),
            None => routes_of_bundles(net),
        }
    }

    /// Whether nothing about the routes has changed since its own was looked up, given their generation.
    #[inline(always)]
    pub fn is_routed_in(&self, routes: Routes) -> bool {
        // Acquire: who finds a new generation also sees what was written down in it.
        self.looked_up.load(Acquire) == routes.0
    }

    /// Notes the generation that its route was looked up in. What depends on the route has been written
    /// down before.
    pub fn set_routes(&self, routes: Routes) {
        self.looked_up.store(routes.0, Release);
    }

    /// Whether its packets arrive with `addresses`, given that their key is `key`.
    #[inline(always)]
    pub fn is<I: Carried>(&self, key: Key, addresses: I::Addresses) -> bool {
        self.key == key && I::arrives(self, addresses)
    }

    /// Mark and priority that its packets leave with.
    #[inline(always)]
    pub fn stamp(&self) -> Stamp {
        let word = self.stamp.load(Relaxed);
        Stamp {
            mark: (word >> 32) as u32,
            priority: word as u32,
        }
    }

    /// Changes mark and priority.
    pub fn set_stamp(&self, stamp: Stamp) {
        let word = u64::from(stamp.mark) << 32 | u64::from(stamp.priority);
        self.stamp.store(word, Relaxed);
    }

    /// Largest packet that the route takes, in bytes. 0 if the route has to be [asked](Route::mtu) each time, if it
    /// leads to a transform, if the next hop is no neighbour [by](NextHop::is_of) the packets' version of IP, or if the flow is
    /// one [of a sender](Self::is_of_sender): such a flow's packets are not ordinary.
    #[inline(always)]
    pub fn lasting_mtu(&self) -> u32 {
        self.mtu.load(Relaxed).into()
    }

    /// Changes it, to what is to be had of the route.
    pub fn set_mtu<I: Ip>(&self, mtu: Option<u32>) {
        let is_plain = |neighbour: &Neighbour| neighbour.next_hop().is_of::<I>();
        let mtu = mtu
            .filter(|_| self.neighbour.as_ref().is_some_and(is_plain))
            .filter(|_| !self.is_of_sender());
        // No packet is larger than can be written down.
        let mtu = mtu.map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
        self.mtu.store(mtu, Relaxed);
    }

    /// What becomes of the IP header of its packets, besides the addresses.
    #[inline(always)]
    pub fn amendment(&self) -> Amendment {
        Amendment::unpack(self.amendment.load(Relaxed))
    }

    /// The DSCP that its packets have to arrive with, and the one that they leave with, in their place in the type of
    /// service.
    pub fn dscps(&self) -> [u8; 2] {
        match self.key.family() {
            Family::V4 => V4::dscps(self.amendment()),
            Family::V6 => V6::dscps(self.amendment()),
        }
    }

    /// Changes the DSCP that packets have to arrive with, and the one that they leave with.
    pub fn set_dscp<I: Ip>(&self, arriving: u8, leaving: u8) {
        let amendment = self.translation.amendment::<I>(arriving, leaving);
        self.amendment.store(amendment.pack(), Relaxed);
    }

    /// Whether a packet is one of its own only if it comes from the same [sender](Self::sender): whether its connection is
    /// in a zone of conntrack, of which there may be one for each sender. Such a flow's packets are not ordinary.
    pub fn is_of_sender(&self) -> bool {
        self.connection.zone(self.direction) != conntrack::DEFAULT_ZONE
    }

    /// Who sends its packets, if it is one [of a sender](Self::is_of_sender).
    pub fn sender(&self) -> Sender {
        Sender(self.origin.load(Relaxed))
    }

    /// Changes that.
    pub fn set_sender(&self, sender: Sender) {
        if self.is_of_sender() {
            self.origin.store(sender.0, Relaxed);
        }
    }

    /// How a bridge has let its last packet in that came to it. Means nothing if the flow is one [of a
    /// sender](Self::is_of_sender), whose packets are not ordinary.
    #[inline(always)]
    pub fn crossing(&self) -> Crossing {
        Crossing(self.origin.load(Relaxed))
    }

    /// Changes that.
    pub fn set_crossing(&self, crossing: Crossing) {
        if !self.is_of_sender() {
            self.origin.store(crossing.0, Relaxed);
        }
    }

    /// Notes that a packet came.
    pub fn see(&self, now: Tick) {
        self.seen.store(now.0, Relaxed);
    }

    /// When the last packet came, to within a second.
    pub fn seen(&self) -> Tick {
        Tick(self.seen.load(Relaxed))
    }

    /// Counts a packet that takes the fast path on CPU `cpu`.
    ///
    /// Packets of a flow come on one CPU as long as nobody moves its queue. Only that one counts here,
    /// with bottom halves off, so it need not lock the memory.
    #[inline(always)]
    pub fn count(&self, cpu: u32, bytes: u32) {
        let bytes = u64::from(bytes);
        if cpu == u32::from(self.owner) {
            let packets = self.packets.load(Relaxed).wrapping_add(1);
            self.packets.store(packets, Relaxed);
            let total = self.bytes.load(Relaxed).wrapping_add(bytes);
            self.bytes.store(total, Relaxed);
        } else {
            self.count_elsewhere(bytes);
        }
    }

    #[cold]
    fn count_elsewhere(&self, bytes: u64) {
        let [packets, total] = &self.elsewhere;
        packets.fetch_add(1, Relaxed);
        total.fetch_add(bytes, Relaxed);
    }

    /// What took the fast path so far.
    pub fn counted(&self) -> Count {
        let [packets, bytes] = &self.elsewhere;
        Count {
            packets: self
                .packets
                .load(Relaxed)
                .wrapping_add(packets.load(Relaxed)),
            bytes: self.bytes.load(Relaxed).wrapping_add(bytes.load(Relaxed)),
        }
    }

    /// Goes on counting from where another flow stopped.
    pub fn count_from(&self, count: Count) {
        let [packets, bytes] = &self.elsewhere;
        packets.store(count.packets, Relaxed);
        bytes.store(count.bytes, Relaxed);
        self.told.store(count.packets as u32, Relaxed);
    }

    /// Whether packets took the fast path that conntrack has not been told about; from now on it has. Asked once a
    /// second, and noted as the time of the last packet: that spares each of them to look at the time it has there.
    pub fn take_news(&self, now: Tick) -> bool {
        let packets = self.counted().packets as u32;
        let any = self.told.swap(packets, Relaxed) != packets;
        if any {
            self.see(now);
        }
        any
    }
}

impl Entry for Flow {
    #[inline(always)]
    fn hash(&self, hasher: &Hasher) -> Hash {
        hasher.hash(self.key)
    }

    fn link(&self) -> &Link<Self> {
        &self.link
    }
}

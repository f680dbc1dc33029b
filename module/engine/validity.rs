// SPDX-License-Identifier: GPL-2.0

//! Whether what was learned about a flow still holds.
//!
//! A flow's memo is *confirmed* when a packet of the flow has been seen twice: at ingress, where it
//! hit the flow and was sent on to the slow path, and in POSTROUTING, where it came out as the memo
//! says. (Of the packet that the flow is made of [`super::arrivals`] knows that it was at ingress.)
//! Everything that the slow path decides is decided between the two. So the confirmation
//! carries the epoch that was current at *ingress*, and the generation of the routes: if a policy or a route
//! changes while the packet is under way the confirmation is already void when it is made.
//!
//! A confirmation is good for one sampling interval. After that the next packet is sent through the
//! slow path again, and so are all behind it until one has come out: they stay in order, and if a new
//! rule drops them nothing of the flow is forwarded any more.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;

use super::tick::Tick;

/// Counts the changes that void what was learned: IPsec policies and states, nf_tables rules, groups of next
/// hops, devices, configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u32);

impl Epoch {
    /// The epoch that a namespace starts in.
    pub const FIRST: Self = Self(1);

    /// No namespace is ever in this epoch; a flow that was never confirmed is.
    const NEVER: Self = Self(0);

    /// The epoch after this one.
    #[inline]
    pub const fn next(self) -> Self {
        match self.0.wrapping_add(1) {
            0 => Self::FIRST,
            next => Self(next),
        }
    }

    /// The number that stands for it.
    #[inline]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The epoch that [`Epoch::number`] gave the number of.
    #[inline]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }
}

/// Counts the changes of the routing tables that a flow's way was looked up in. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routes(pub u32);

impl Routes {
    /// Counts the changes of both.
    #[inline]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0.wrapping_add(others.0))
    }
}

/// The sum of an epoch and a generation of the routes. As neither goes back, it is another one after any change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub u32);

impl Moment {
    /// The moment in this epoch, with these routes.
    #[inline]
    pub const fn new(Epoch(epoch): Epoch, Routes(routes): Routes) -> Self {
        Self(epoch.wrapping_add(routes))
    }
}

/// Identifies a packet between ingress and POSTROUTING: a number of [`PacketId::BITS`] bits that is given
/// anew to each packet that is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketId(pub u64);

impl PacketId {
    /// How many bits of the number count.
    pub const BITS: u32 = PROBE_MOMENT_SHIFT;
}

/// What [`Validity::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The memo holds.
    Confirmed,
    /// It did until its sampling interval was over.
    Due,
    /// Something changed since it was confirmed.
    Outdated,
    /// It was never confirmed.
    Unconfirmed,
}

/// The validity of one flow's memo.
///
/// Both words are written whole. Two CPUs that work on packets of the same flow at once can overwrite
/// each other's probe; then neither packet confirms anything and the next one does.
#[derive(Debug)]
pub struct Validity {
    /// Epoch of the confirmation in the upper half, the tick until which it is good in the lower.
    confirmed: AtomicU64,
    /// The last packet that was sent on to the slow path: see [`probe`]. 0 if there is none.
    probe: AtomicU64,
}

/// A packet that was sent on to the slow path: its identity, the low half of the moment when it was, the DSCP that it
/// arrived with, and a bit that is always set.
#[inline]
const fn probe(packet: PacketId, dscp: u8, epoch: Epoch, routes: Routes) -> u64 {
    let identity = packet.0 & ((1 << PacketId::BITS) - 1);
    let moment = (Moment::new(epoch, routes).0 as u16 as u64) << PROBE_MOMENT_SHIFT;
    let dscp = ((dscp >> 2) as u64) << PROBE_DSCP_SHIFT;
    identity | moment | dscp | 1 << 63
}

const PROBE_MOMENT_SHIFT: u32 = 41;
const PROBE_DSCP_SHIFT: u32 = 57;

impl Validity {
    /// That of a new flow: unconfirmed, without a probe.
    pub const fn new(now: Tick) -> Self {
        Self {
            confirmed: AtomicU64::new(Self::confirmation(Epoch::NEVER, now)),
            probe: AtomicU64::new(0),
        }
    }

    /// That of a flow which takes the place of another one: unconfirmed, with the other's probe, so
    /// that the packet that brought the news about the change confirms the new memo at once.
    pub fn succeeding(&self, now: Tick) -> Self {
        Self {
            confirmed: AtomicU64::new(Self::confirmation(Epoch::NEVER, now)),
            probe: AtomicU64::new(self.probe.load(Acquire)),
        }
    }

    /// Whether the memo holds.
    #[inline(always)]
    pub fn check(&self, epoch: Epoch, now: Tick) -> Check {
        let confirmed = self.confirmed.load(Acquire);
        let confirmed_in = Epoch((confirmed >> 32) as u32);
        if confirmed_in == epoch {
            if now.is_before(Tick(confirmed as u32)) {
                Check::Confirmed
            } else {
                Check::Due
            }
        } else if confirmed_in == Epoch::NEVER {
            Check::Unconfirmed
        } else {
            Check::Outdated
        }
    }

    /// Notes that `packet`, which arrived with `dscp`, is being sent on to the slow path.
    #[inline]
    pub fn send_probe(&self, packet: PacketId, dscp: u8, epoch: Epoch, routes: Routes) {
        self.probe
            .store(probe(packet, dscp, epoch, routes), Release);
    }

    /// Whether a packet of the flow has been noted at ingress since the memo was last confirmed.
    #[inline]
    pub fn has_probe(&self) -> bool {
        self.probe.load(Relaxed) != 0
    }

    /// Whether `packet`, which has just come out of the slow path as the memo says, is the one that
    /// [`Validity::send_probe`] noted, and nothing changed in between. Gives the DSCP that it arrived
    /// with. The caller then writes down what it learned, and calls [`Validity::confirm`].
    pub fn returned(&self, packet: PacketId, epoch: Epoch, routes: Routes) -> Option<u8> {
        let sent = self.probe.load(Acquire);
        let dscp = (sent >> PROBE_DSCP_SHIFT & 0x3f) as u8;
        (sent != 0 && sent == probe(packet, dscp << 2, epoch, routes)).then_some(dscp << 2)
    }

    /// Confirms the memo until `until`, as far as `epoch` goes.
    pub fn confirm(&self, epoch: Epoch, until: Tick) {
        self.probe.store(0, Relaxed);
        // Release: who finds the memo confirmed also sees what was written down before.
        self.confirmed
            .store(Self::confirmation(epoch, until), Release);
    }

    /// Voids the confirmation: the flow's next packet takes the slow path.
    pub fn revoke(&self, now: Tick) {
        self.confirmed
            .store(Self::confirmation(Epoch::NEVER, now), Relaxed);
    }

    /// When the confirmation ends or ended; for a flow that was never confirmed, when it was made.
    pub fn until(&self) -> Tick {
        Tick(self.confirmed.load(Relaxed) as u32)
    }

    #[inline]
    const fn confirmation(epoch: Epoch, until: Tick) -> u64 {
        (epoch.0 as u64) << 32 | until.0 as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch::FIRST;
    const ROUTES: Routes = Routes(u32::MAX);
    const PACKET: PacketId = PacketId(0x1ff_8123_4567);

    /// Both steps.
    fn confirm(validity: &Validity, packet: PacketId, epoch: Epoch, until: Tick) -> Option<u8> {
        let dscp = validity.returned(packet, epoch, ROUTES)?;
        validity.confirm(epoch, until);
        Some(dscp)
    }

    fn confirmed(now: Tick) -> Validity {
        let validity = Validity::new(now);
        validity.send_probe(PACKET, 0, EPOCH, ROUTES);
        assert_eq!(confirm(&validity, PACKET, EPOCH, now.plus(100)), Some(0));
        validity
    }

    #[test]
    fn a_new_flow_waits_for_a_packet_seen_twice() {
        let now = Tick(u32::MAX - 50);
        let validity = Validity::new(now);
        assert_eq!(validity.check(EPOCH, now), Check::Unconfirmed);
        assert_eq!(
            confirm(&validity, PACKET, EPOCH, now.plus(100)),
            None,
            "never seen at ingress"
        );
        validity.send_probe(PACKET, 0x28, EPOCH, ROUTES);
        assert!(validity.has_probe());
        let other = PacketId(PACKET.0 - 1);
        assert_eq!(
            confirm(&validity, other, EPOCH, now.plus(100)),
            None,
            "another packet"
        );
        assert_eq!(confirm(&validity, PACKET, EPOCH, now.plus(100)), Some(0x28));
        assert!(!validity.has_probe());
        assert_eq!(validity.check(EPOCH, now), Check::Confirmed);
        assert_eq!(validity.check(EPOCH, now.plus(99)), Check::Confirmed);
        assert_eq!(validity.check(EPOCH, now.plus(100)), Check::Due);
    }

    #[test]
    fn a_probe_confirms_once() {
        let validity = confirmed(Tick(0));
        assert_eq!(confirm(&validity, PACKET, EPOCH, Tick(1000)), None);
    }

    #[test]
    fn a_change_voids_it_at_once() {
        let validity = confirmed(Tick(0));
        assert_eq!(validity.check(EPOCH.next(), Tick(0)), Check::Outdated);
        validity.revoke(Tick(0));
        assert_eq!(validity.check(EPOCH, Tick(0)), Check::Unconfirmed);
    }

    #[test]
    fn a_change_while_the_packet_is_under_way_voids_the_confirmation() {
        let validity = Validity::new(Tick(0));
        validity.send_probe(PACKET, 0, EPOCH, ROUTES);
        assert_eq!(confirm(&validity, PACKET, EPOCH.next(), Tick(100)), None);
        assert_eq!(validity.check(EPOCH.next(), Tick(0)), Check::Unconfirmed);
    }

    #[test]
    fn so_does_a_change_of_routes() {
        let validity = Validity::new(Tick(0));
        validity.send_probe(PACKET, 0, EPOCH, ROUTES);
        let changed = ROUTES.and(Routes(1));
        assert_eq!(validity.returned(PACKET, EPOCH, changed), None);
        assert_eq!(validity.returned(PACKET, EPOCH.next(), changed), None);
        assert_eq!(validity.returned(PACKET, EPOCH, ROUTES), Some(0));
    }

    #[test]
    fn while_a_sample_is_out_the_flow_stays_slow() {
        let validity = confirmed(Tick(0));
        let now = Tick(100);
        assert_eq!(validity.check(EPOCH, now), Check::Due);
        validity.send_probe(PACKET, 0, EPOCH, ROUTES);
        assert_eq!(validity.check(EPOCH, now), Check::Due);
        assert_eq!(confirm(&validity, PACKET, EPOCH, now.plus(100)), Some(0));
        assert_eq!(validity.check(EPOCH, now), Check::Confirmed);
    }

    #[test]
    fn a_successor_inherits_the_probe_but_not_the_confirmation() {
        let old = confirmed(Tick(0));
        old.send_probe(PACKET, 0xb8, EPOCH, ROUTES);
        let new = old.succeeding(Tick(0));
        assert_eq!(new.check(EPOCH, Tick(0)), Check::Unconfirmed);
        assert_eq!(confirm(&new, PACKET, EPOCH, Tick(100)), Some(0xb8));
    }

    #[test]
    fn every_dscp_comes_back() {
        for dscp in (0..=0xfc).step_by(4) {
            let validity = Validity::new(Tick(0));
            validity.send_probe(PACKET, dscp, EPOCH, ROUTES);
            assert_eq!(confirm(&validity, PACKET, EPOCH, Tick(1)), Some(dscp));
        }
    }

    #[test]
    fn epochs_never_come_to_never() {
        assert_eq!(Epoch::from_number(u32::MAX).next(), Epoch::FIRST);
        assert_ne!(Epoch::FIRST, Epoch::NEVER);
    }
}

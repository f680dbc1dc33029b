// SPDX-License-Identifier: GPL-2.0

//! Packets as nearly all are: what there is to be asked about others is answered for these beforehand.

use core::marker::PhantomData;

use super::neighbour::CACHED_HEADER;
use super::skb::Headers;
use super::skb::NoMemory;
use super::skb::Skb;
use super::skb::Writable;
use super::skb::PACKET_HOST;
use crate::engine::ip::Ip;
use crate::engine::ip::BEHIND;

/// A packet at the ingress hook, for code that is compiled for [`Ordinary`] ones and for any.
pub trait Arrived<I: Ip>: Into<Skb> {
    /// Whether it is an ordinary one.
    const IS_ORDINARY: bool;

    /// The packet.
    fn skb(&self) -> &Skb;

    /// See [`Skb::linear`].
    fn linear(&self) -> &[u8];

    /// See [`Skb::size`].
    fn size(&self) -> u32;

    /// See [`Skb::trim`]. An ordinary packet is cut off by nothing but a new length.
    ///
    /// # Errors
    ///
    /// If that is not possible, or there is no memory. The packet is as it was.
    fn trim(&mut self, len: u32) -> Result<(), NoMemory>;

    /// Whether it is too large for one of `mtus`.
    fn exceeds(&mut self, mtus: [u32; 2]) -> bool;
}

impl<I: Ip> Arrived<I> for Skb {
    const IS_ORDINARY: bool = false;

    #[inline(always)]
    fn skb(&self) -> &Skb {
        self
    }

    #[inline(always)]
    fn linear(&self) -> &[u8] {
        self.linear()
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        self.size()
    }

    #[inline(always)]
    fn trim(&mut self, len: u32) -> Result<(), NoMemory> {
        self.trim(len)
    }

    #[inline(always)]
    fn exceeds(&mut self, [a, b]: [u32; 2]) -> bool {
        self.exceeds::<I>(a.min(b))
    }
}

/// A packet of which there is nothing that speaks against forwarding it as it is, as it is with most: it is for us,
/// nobody else has its data, it is neither decrypted nor marked nor [peculiar](Skb::is_peculiar), and comes without a
/// socket or route.
///
/// # Invariants
///
/// It is in one piece, of at least [`Ordinary::LEAST`] bytes, which nobody else has, and has neither a socket nor a
/// route.
pub struct Ordinary<I: Ip>(Skb, PhantomData<I>);

impl<I: Ip> Ordinary<I> {
    /// A header, and what is behind it of the least protocol.
    const LEAST: u32 = (I::HEADER + BEHIND) as u32;

    /// The packet, if it is such a one.
    ///
    /// # Errors
    ///
    /// The packet, if it is not.
    #[inline(always)]
    pub fn new(packet: Skb) -> Result<Self, Skb> {
        let any_for_others = |flags: &mut Headers| {
            flags.set_pkt_type(!PACKET_HOST & 7);
            Skb::set_peculiar(flags);
        };
        let skb = packet.raw();
        // All at once, since nearly no packet has any of it.
        let against = packet.flags() & Skb::flags_of(any_for_others)
            | u64::from(packet.mark())
            | u64::from(skb.data_len)
            | packet.held_or_tracked()
            | packet.owned_or_routed()
            | packet.cloned_or_decrypted();
        match against == 0 && skb.len >= Self::LEAST {
            // INVARIANT: As has been looked at.
            true => Ok(Self(packet, PhantomData)),
            false => Err(packet),
        }
    }

    /// As [`Skb::writable`], without a call.
    ///
    /// # Errors
    ///
    /// The packet as it was, if it takes a copy.
    #[inline(always)]
    pub fn writable(self, len: u32) -> Result<Writable<true>, Self> {
        if self.0.headroom() < CACHED_HEADER || Arrived::size(&self) < len {
            return Err(self);
        }
        // INVARIANT: As has been looked at, and by its own invariant.
        Ok(Writable { skb: self.0, len })
    }
}

/// A packet from which nothing is cut off before it is writable: so it is as it arrived if nothing comes of it.
pub struct Untrimmed<A>(pub A);

impl<I: Ip> Untrimmed<Ordinary<I>> {
    /// See [`Ordinary::writable`]. What is behind `total` bytes is cut off.
    ///
    /// # Errors
    ///
    /// The packet as it arrived, if that takes more than a new length, or it takes a copy.
    #[inline(always)]
    pub fn writable(self, len: u32, total: u32) -> Result<Writable<true>, Skb> {
        let mut skb = self.0;
        let is_possible = skb.0.headroom() >= CACHED_HEADER && len <= total;
        if !is_possible || (Arrived::size(&skb) != total && Arrived::trim(&mut skb, total).is_err())
        {
            return Err(skb.into());
        }
        skb.writable(len).map_err(Skb::from)
    }
}

impl Untrimmed<Skb> {
    /// See [`Skb::writable`]. What is behind `total` bytes is cut off.
    ///
    /// # Errors
    ///
    /// The packet, if there is no memory.
    #[inline(always)]
    pub fn writable(self, len: u32, total: u32) -> Result<Writable, Skb> {
        let mut skb = self.0;
        match skb.trim(total) {
            Ok(()) => skb.writable(len),
            Err(NoMemory) => Err(skb),
        }
    }
}

impl<A: Into<Skb>> From<Untrimmed<A>> for Skb {
    #[inline(always)]
    fn from(untrimmed: Untrimmed<A>) -> Self {
        untrimmed.0.into()
    }
}

impl<I: Ip, A: Arrived<I>> Arrived<I> for Untrimmed<A> {
    const IS_ORDINARY: bool = A::IS_ORDINARY;

    #[inline(always)]
    fn skb(&self) -> &Skb {
        self.0.skb()
    }

    #[inline(always)]
    fn linear(&self) -> &[u8] {
        self.0.linear()
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        self.0.size()
    }

    #[inline(always)]
    fn trim(&mut self, _len: u32) -> Result<(), NoMemory> {
        Ok(())
    }

    #[inline(always)]
    fn exceeds(&mut self, mtus: [u32; 2]) -> bool {
        self.0.exceeds(mtus)
    }
}

impl<I: Ip> From<Ordinary<I>> for Skb {
    #[inline(always)]
    fn from(ordinary: Ordinary<I>) -> Self {
        ordinary.0
    }
}

impl<I: Ip> Arrived<I> for Ordinary<I> {
    const IS_ORDINARY: bool = true;

    #[inline(always)]
    fn skb(&self) -> &Skb {
        &self.0
    }

    #[inline(always)]
    fn linear(&self) -> &[u8] {
        let (data, len) = (self.0.raw().data, self.size() as usize);
        // SAFETY: By the invariants: all of it is in one piece.
        unsafe {
            core::hint::assert_unchecked(!data.is_null());
            core::slice::from_raw_parts(data, len)
        }
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        let len = self.0.raw().len;
        // SAFETY: By the invariant.
        unsafe { core::hint::assert_unchecked(len >= Self::LEAST) };
        len
    }

    #[inline(always)]
    fn trim(&mut self, len: u32) -> Result<(), NoMemory> {
        let size = self.size();
        // With such a one there is more to be done, or to be asked for (`pskb_trim_rcsum_slow`).
        let has_sum = self.0.has_sum();
        let skb = self.0.raw_mut();
        if size < len || len < Self::LEAST || has_sum {
            return Err(NoMemory);
        }
        // As `__skb_set_length` does.
        skb.tail = skb.tail.wrapping_sub(size.wrapping_sub(len));
        skb.len = len;
        Ok(())
    }

    #[inline(always)]
    fn exceeds(&mut self, [a, b]: [u32; 2]) -> bool {
        let size = self.size();
        size > a || size > b
    }
}

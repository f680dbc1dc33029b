// SPDX-License-Identifier: GPL-2.0

//! What an administrator can set, and within which limits.

use super::doorkeeper;

/// Which connections stay slow: those whose conntrack mark, masked, equals the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exclusion {
    /// If the mask is zero, so that nothing is excluded, a bit outside of it: no mark equals that.
    value: u32,
    mask: u32,
}

impl Exclusion {
    /// The bit that stands for IPsec unless another one is chosen. Policy routing (mwan3, pbr),
    /// Kubernetes and Tailscale use lower ones.
    pub const DEFAULT: Self = Self {
        value: 0x0800_0000,
        mask: 0x0800_0000,
    };

    /// Excludes the marks that equal `value` in the bits of `mask`. With a mask of zero nothing is
    /// excluded.
    ///
    /// # Errors
    ///
    /// [`Invalid::MarkOutsideMask`] if that could never match.
    pub const fn new(value: u32, mask: u32) -> Result<Self, Invalid> {
        if value & !mask != 0 {
            return Err(Invalid::MarkOutsideMask);
        }
        let value = if mask == 0 { 1 } else { value };
        Ok(Self { value, mask })
    }

    /// Whether a connection with this conntrack mark stays slow.
    #[inline]
    pub const fn covers(self, mark: u32) -> bool {
        mark & self.mask == self.value
    }

    /// Both in one word, so that they can be changed together.
    pub const fn pack(self) -> u64 {
        (self.value as u64) << 32 | self.mask as u64
    }

    /// From what [`Exclusion::pack`] gave.
    #[inline]
    pub const fn unpack(word: u64) -> Self {
        Self {
            value: (word >> 32) as u32,
            mask: word as u32,
        }
    }

    /// The value.
    pub const fn value(self) -> u32 {
        self.value & self.mask
    }

    /// The mask.
    pub const fn mask(self) -> u32 {
        self.mask
    }
}

/// What becomes of connections that IPsec encrypts or has decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipsec {
    /// They stay slow.
    Exclude,
    /// They become fast like others, through the transforms that the slow path sends them through.
    Accelerate,
}

/// The configuration of a namespace. Times are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether flows are learned and forwarded.
    pub enabled: bool,
    /// Connections that stay slow.
    pub exclusion: Exclusion,
    /// How long a TCP flow is kept without a packet.
    pub tcp_timeout: u32,
    /// How long a UDP flow is kept without a packet.
    pub udp_timeout: u32,
    /// How long a confirmation is good.
    pub sample_interval: u32,
    /// Largest number of flows.
    pub table_size: u32,
    /// What becomes of IPsec.
    pub ipsec: Ipsec,
    /// The packet of a direction with which it is learned, if that one could be fast.
    pub learn_after: u32,
}

/// Why a configuration can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The mark's value has bits outside of its mask.
    MarkOutsideMask,
    /// The TCP timeout is out of range.
    TcpTimeout,
    /// The UDP timeout is out of range.
    UdpTimeout,
    /// The sampling interval is out of range.
    SampleInterval,
    /// The size of the table is out of range.
    TableSize,
    /// The number of packets before a flow is learned is out of range.
    LearnAfter,
}

impl Config {
    /// A second to a day.
    pub const TIMEOUT: core::ops::RangeInclusive<u32> = 1_000..=86_400_000;
    /// A tenth of a second to a minute. Conntrack's own timers are refreshed by samples; its shortest
    /// default for a connection that has seen a reply is 120 s.
    pub const SAMPLE_INTERVAL: core::ops::RangeInclusive<u32> = 100..=60_000;
    /// Up to 4 194 304 flows: two million connections.
    pub const TABLE_SIZE: core::ops::RangeInclusive<u32> = 16..=4_194_304;

    /// From the first one on, to as many as are counted.
    pub const LEARN_AFTER: core::ops::RangeInclusive<u32> = 1..=doorkeeper::MOST;

    /// What a namespace starts with. A connection of which either side sends two packets is not learned.
    pub const DEFAULT: Self = Self {
        enabled: false,
        exclusion: Exclusion::DEFAULT,
        tcp_timeout: 30_000,
        udp_timeout: 30_000,
        sample_interval: 1_000,
        table_size: 131_072,
        ipsec: Ipsec::Exclude,
        learn_after: 3,
    };

    /// Checks that every value lies within its limits.
    ///
    /// # Errors
    ///
    /// The first one that does not.
    pub fn check(&self) -> Result<(), Invalid> {
        if !Self::TIMEOUT.contains(&self.tcp_timeout) {
            return Err(Invalid::TcpTimeout);
        }
        if !Self::TIMEOUT.contains(&self.udp_timeout) {
            return Err(Invalid::UdpTimeout);
        }
        if !Self::SAMPLE_INTERVAL.contains(&self.sample_interval) {
            return Err(Invalid::SampleInterval);
        }
        if !Self::TABLE_SIZE.contains(&self.table_size) {
            return Err(Invalid::TableSize);
        }
        if !Self::LEARN_AFTER.contains(&self.learn_after) {
            return Err(Invalid::LearnAfter);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_compared_under_the_mask() {
        let exclusion = Exclusion::new(0x10, 0xf0).unwrap();
        assert!(exclusion.covers(0x10));
        assert!(exclusion.covers(0xffff_ff1f));
        assert!(!exclusion.covers(0x30));
        assert!(!exclusion.covers(0));
    }

    #[test]
    fn a_value_of_zero_excludes_unmarked_connections() {
        let exclusion = Exclusion::new(0, 0xf0).unwrap();
        assert!(exclusion.covers(0x0f));
        assert!(!exclusion.covers(0x10));
    }

    #[test]
    fn an_empty_mask_excludes_nothing() {
        let exclusion = Exclusion::new(0, 0).unwrap();
        for mark in [0, 1, u32::MAX] {
            assert!(!exclusion.covers(mark));
            assert!(!Exclusion::unpack(exclusion.pack()).covers(mark));
        }
        assert_eq!((exclusion.value(), exclusion.mask()), (0, 0));
    }

    #[test]
    fn a_value_outside_the_mask_is_refused() {
        assert_eq!(Exclusion::new(3, 1), Err(Invalid::MarkOutsideMask));
        assert_eq!(Exclusion::new(1, 0), Err(Invalid::MarkOutsideMask));
    }

    #[test]
    fn limits_hold_and_the_default_is_within() {
        assert_eq!(Config::DEFAULT.check(), Ok(()));
        let with = |change: fn(&mut Config)| {
            let mut config = Config::DEFAULT;
            change(&mut config);
            config.check()
        };
        assert_eq!(with(|c| c.tcp_timeout = 999), Err(Invalid::TcpTimeout));
        assert_eq!(
            with(|c| c.udp_timeout = 86_400_001),
            Err(Invalid::UdpTimeout)
        );
        assert_eq!(
            with(|c| c.sample_interval = 0),
            Err(Invalid::SampleInterval)
        );
        assert_eq!(
            with(|c| c.sample_interval = 60_001),
            Err(Invalid::SampleInterval)
        );
        assert_eq!(with(|c| c.table_size = 15), Err(Invalid::TableSize));
        assert_eq!(with(|c| c.table_size = u32::MAX), Err(Invalid::TableSize));
        assert_eq!(with(|c| c.learn_after = 0), Err(Invalid::LearnAfter));
        assert_eq!(with(|c| c.learn_after = 16), Err(Invalid::LearnAfter));
    }
}

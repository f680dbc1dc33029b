// SPDX-License-Identifier: GPL-2.0-only

//! Reading and changing the configuration.

use crate::mark::Mark;
use crate::nl::Attributes;
use crate::nl::Malformed;
use crate::nl::Request;
use crate::wire::IpsecMode;
use crate::wire::config::ENABLED;
use crate::wire::config::IPSEC;
use crate::wire::config::LEARN_AFTER;
use crate::wire::config::MARK_MASK;
use crate::wire::config::MARK_VALUE;
use crate::wire::config::SAMPLE_INTERVAL;
use crate::wire::config::TABLE_SIZE;
use crate::wire::config::TCP_TIMEOUT;
use crate::wire::config::UDP_TIMEOUT;

/// The configuration of a network namespace. Times are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Flows are learned and forwarded.
    pub enabled: bool,
    /// Connections with this mark stay slow.
    pub mark: Mark,
    /// A TCP flow is dropped after this time without a packet.
    pub tcp_timeout: u32,
    /// A UDP flow is dropped after this time without a packet.
    pub udp_timeout: u32,
    /// After this time a packet takes the slow path again.
    pub sample_interval: u32,
    /// Largest number of flows.
    pub table_size: u32,
    /// What becomes of connections that IPsec encrypts or has decrypted.
    pub ipsec: IpsecMode,
    /// The packet of a direction with which it is learned.
    pub learn_after: u32,
}

/// What is to change; the rest stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// See [`Config::enabled`].
    pub enabled: Option<bool>,
    /// See [`Config::mark`].
    pub mark: Option<Mark>,
    /// See [`Config::tcp_timeout`].
    pub tcp_timeout: Option<u32>,
    /// See [`Config::udp_timeout`].
    pub udp_timeout: Option<u32>,
    /// See [`Config::sample_interval`].
    pub sample_interval: Option<u32>,
    /// See [`Config::table_size`].
    pub table_size: Option<u32>,
    /// See [`Config::ipsec`].
    pub ipsec: Option<IpsecMode>,
    /// See [`Config::learn_after`].
    pub learn_after: Option<u32>,
}

impl Config {
    pub(super) fn read(attributes: Attributes<'_>) -> Result<Self, Malformed> {
        let (mut enabled, mut value, mut mask) = (None, None, None);
        // A module that does not know the word excludes.
        let mut ipsec = IpsecMode::EXCLUDE;
        // And one that does not know this one learns with the first.
        let mut learn_after = 1;
        let (mut tcp, mut udp, mut sample, mut size) = (None, None, None, None);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                ENABLED => enabled = Some(attribute.u8()? != 0),
                MARK_VALUE => value = Some(attribute.u32()?),
                MARK_MASK => mask = Some(attribute.u32()?),
                TCP_TIMEOUT => tcp = Some(attribute.u32()?),
                UDP_TIMEOUT => udp = Some(attribute.u32()?),
                SAMPLE_INTERVAL => sample = Some(attribute.u32()?),
                TABLE_SIZE => size = Some(attribute.u32()?),
                IPSEC => ipsec = IpsecMode(attribute.u8()?.into()),
                LEARN_AFTER => learn_after = attribute.u32()?,
                _ => {}
            }
        }
        let missing = |attribute| move || Malformed::Missing { attribute };
        Ok(Self {
            enabled: enabled.ok_or_else(missing(ENABLED))?,
            mark: Mark {
                value: value.ok_or_else(missing(MARK_VALUE))?,
                mask: mask.ok_or_else(missing(MARK_MASK))?,
            },
            tcp_timeout: tcp.ok_or_else(missing(TCP_TIMEOUT))?,
            udp_timeout: udp.ok_or_else(missing(UDP_TIMEOUT))?,
            sample_interval: sample.ok_or_else(missing(SAMPLE_INTERVAL))?,
            table_size: size.ok_or_else(missing(TABLE_SIZE))?,
            ipsec,
            learn_after,
        })
    }
}

impl Change {
    /// A change of the switch alone.
    pub fn switch(enabled: bool) -> Self {
        Self { enabled: Some(enabled), ..Self::default() }
    }

    pub(super) fn write(&self, mut request: Request) -> Request {
        if let Some(enabled) = self.enabled {
            request = request.u8(ENABLED, enabled.into());
        }
        if let Some(mark) = self.mark {
            // Always both: one alone may contradict the other's old value.
            request = request.u32(MARK_VALUE, mark.value).u32(MARK_MASK, mark.mask);
        }
        for (attribute, value) in [
            (TCP_TIMEOUT, self.tcp_timeout),
            (UDP_TIMEOUT, self.udp_timeout),
            (SAMPLE_INTERVAL, self.sample_interval),
            (TABLE_SIZE, self.table_size),
            (LEARN_AFTER, self.learn_after),
        ] {
            if let Some(value) = value {
                request = request.u32(attribute, value);
            }
        }
        if let Some(IpsecMode(mode)) = self.ipsec {
            request = request.u8(IPSEC, mode.try_into().unwrap_or(u8::MAX));
        }
        request
    }
}

impl From<Config> for Change {
    /// The change that leads to this configuration.
    fn from(config: Config) -> Self {
        Self {
            enabled: Some(config.enabled),
            mark: Some(config.mark),
            tcp_timeout: Some(config.tcp_timeout),
            udp_timeout: Some(config.udp_timeout),
            sample_interval: Some(config.sample_interval),
            table_size: Some(config.table_size),
            ipsec: Some(config.ipsec),
            learn_after: Some(config.learn_after),
        }
    }
}

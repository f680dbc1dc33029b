// SPDX-License-Identifier: GPL-2.0-only

//! Counters.

use crate::nl::Attribute;
use crate::nl::Attributes;
use crate::nl::Malformed;
use crate::wire::GoneReason;
use crate::wire::SlowReason;
use crate::wire::gone_count;
use crate::wire::slow_count;
use crate::wire::stats as attr;

/// Counters of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Flows in the table.
    pub flows: u64,
    /// Most flows that there can be.
    pub table_size: u64,
    /// Bytes of one flow.
    pub flow_bytes: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Fast packets, original direction.
    pub packets_original: u64,
    /// Their bytes.
    pub bytes_original: u64,
    /// Fast packets, reply direction.
    pub packets_reply: u64,
    /// Their bytes.
    pub bytes_reply: u64,
    /// Flows learned so far.
    pub learned: u64,
    /// Devices that the fast path is attached to.
    pub devices: u64,
    /// Slow packets by reason.
    pub slow: Vec<(SlowReason, u64)>,
    /// Dropped flows by reason.
    pub gone: Vec<(GoneReason, u64)>,
}

impl Stats {
    pub(super) fn read(attributes: Attributes<'_>) -> Result<Self, Malformed> {
        let mut numbers = [None; attr::DEVICES as usize + 1];
        let (mut slow, mut gone) = (Vec::new(), Vec::new());
        for attribute in attributes {
            let a = attribute?;
            match a.kind {
                attr::FLOWS | attr::TABLE_SIZE | attr::FLOW_BYTES | attr::DEVICES => {
                    numbers[usize::from(a.kind)] = Some(u64::from(a.u32()?));
                }
                attr::INDEX_BYTES..=attr::LEARNED => numbers[usize::from(a.kind)] = Some(a.u64()?),
                attr::SLOW => {
                    let (reason, count) = count(&a, slow_count::REASON, slow_count::PACKETS)?;
                    slow.push((SlowReason(reason), count));
                }
                attr::GONE => {
                    let (reason, count) = count(&a, gone_count::REASON, gone_count::FLOWS)?;
                    gone.push((GoneReason(reason), count));
                }
                _ => {}
            }
        }
        let number = |attribute: u16| {
            numbers[usize::from(attribute)].ok_or(Malformed::Missing { attribute })
        };
        Ok(Self {
            flows: number(attr::FLOWS)?,
            table_size: number(attr::TABLE_SIZE)?,
            flow_bytes: number(attr::FLOW_BYTES)?,
            index_bytes: number(attr::INDEX_BYTES)?,
            packets_original: number(attr::PACKETS_ORIGINAL)?,
            bytes_original: number(attr::BYTES_ORIGINAL)?,
            packets_reply: number(attr::PACKETS_REPLY)?,
            bytes_reply: number(attr::BYTES_REPLY)?,
            learned: number(attr::LEARNED)?,
            devices: number(attr::DEVICES)?,
            slow,
            gone,
        })
    }

    /// Bytes that the flows and their index occupy.
    pub fn memory(&self) -> u64 {
        self.flows.saturating_mul(self.flow_bytes).saturating_add(self.index_bytes)
    }
}

/// Reads a nest of a reason and a count.
fn count(nest: &Attribute<'_>, reason: u16, count: u16) -> Result<(u32, u64), Malformed> {
    // Errors name the nest: the numbers inside it mean something else outside.
    let problem = |problem| Malformed::Content { attribute: nest.kind, problem };
    let (mut key, mut value) = (None, None);
    for attribute in nest.nested() {
        let attribute = attribute.map_err(|_| problem("contains a broken attribute"))?;
        if attribute.kind == reason {
            key = Some(attribute.u32().map_err(|_| problem("has a reason that is no number"))?);
        } else if attribute.kind == count {
            value = Some(attribute.u64().map_err(|_| problem("has a count that is no number"))?);
        }
    }
    key.zip(value).ok_or_else(|| problem("lacks its reason or its count"))
}

// SPDX-License-Identifier: GPL-2.0-only

//! The table `inet fasttrack` in nf_tables.
//!
//! * [`table`] – what is in it and why, built with nftnl,
//! * [`expr`] – the expressions that nftnl lacks, one a file,
//! * [`batch`] – sending a transaction,
//! * [`ruleset`], [`expression`], [`readback`] – the table as the kernel has it.
//!
//! The table has no owner flag. With `NFT_TABLE_F_OWNER` it would survive an `nft flush ruleset`, but
//! vanish when this process ends; with `NFT_TABLE_F_PERSIST` in addition it needs a kernel and an nft
//! that know the flag, or the listing cannot be loaded again. So a flush removes our table like any
//! other, and `list ruleset` says so when it finds the module without its rules.

pub mod batch;
mod error;
pub mod expr;
pub mod expression;
pub mod readback;
pub mod ruleset;
pub mod table;

pub use error::Error;

use crate::mark::Mark;
use crate::nl;
use crate::nl::Connection;
use crate::wire::IpsecMode;
use batch::Outcome;
use ruleset::Table;

/// Name of the table. Not a word of nft's grammar, and neither are the names of its chains: the
/// kernel would take `mark`, but nft could then neither load nor address what it lists.
pub const TABLE: &str = "fasttrack";

// <linux/netfilter/nf_tables.h>; `libc` has most of the numbers, but as `c_int`.
pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(crate) const NFPROTO_INET: u8 = 1;
pub(crate) const MSG_NEWTABLE: u16 = 0;
pub(crate) const MSG_GETTABLE: u16 = 1;
pub(crate) const MSG_DELTABLE: u16 = 2;
pub(crate) const MSG_NEWCHAIN: u16 = 3;
pub(crate) const MSG_GETCHAIN: u16 = 4;
pub(crate) const MSG_NEWRULE: u16 = 6;
pub(crate) const MSG_GETRULE: u16 = 7;
pub(crate) const MSG_GETGEN: u16 = 16;
/// Size of `struct nfgenmsg`.
pub(crate) const NFGENMSG: usize = 4;

/// Message type of an nf_tables message.
pub(crate) const fn message_type(message: u16) -> u16 {
    (NFNL_SUBSYS_NFTABLES << 8) | message
}

/// nf_tables in the network namespace of a socket.
pub struct Nft {
    connection: Connection,
}

impl Nft {
    /// nf_tables behind this connection.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// The table as it is, or none.
    pub fn read(&mut self) -> Result<Option<Table>, Error> {
        match readback::read(&mut self.connection) {
            // No nf_tables, no table. This is what nfnetlink says to a subsystem that it lacks.
            Err(nl::Error::Kernel(error)) if error.errno == libc::EINVAL => Ok(None),
            result => result.map_err(Error::Netlink),
        }
    }

    /// Puts the table in place, instead of one that is there, in one transaction.
    pub fn install(&mut self, mark: Mark, ipsec: IpsecMode) -> Result<(), Error> {
        let batch = table::replacement(mark, ipsec)?;
        let wanted = Table::from_batch(&batch.iter().collect::<Vec<_>>().concat())?;
        self.commit(&batch, |found| found.is_some_and(|found| found.same_rules(&wanted)))
    }

    /// Removes the table, if it is there, and nothing else.
    pub fn remove(&mut self) -> Result<(), Error> {
        match self.commit(&table::removal(), |found| found.is_none()) {
            // No nf_tables, no table.
            Err(Error::Unavailable) => Ok(()),
            other => other,
        }
    }

    fn commit(
        &mut self,
        batch: &nftnl::FinalizedBatch,
        is_done: impl FnOnce(Option<&Table>) -> bool,
    ) -> Result<(), Error> {
        let pages: Vec<&[u8]> = batch.iter().collect();
        match batch::send(self.connection.transport(), &pages).map_err(Error::Netlink)? {
            Outcome::Applied => Ok(()),
            Outcome::Refused(refusals) => Err(Error::refused(&refusals, &pages)),
            // The answers got lost, not the transaction: only looking tells.
            Outcome::Unknown => {
                if is_done(self.read()?.as_ref()) {
                    Ok(())
                } else {
                    Err(Error::NotApplied)
                }
            }
        }
    }
}

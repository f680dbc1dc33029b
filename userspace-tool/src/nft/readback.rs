// SPDX-License-Identifier: GPL-2.0-only

//! Reading the table from the kernel.
//!
//! nftnl reads no more than the names of tables, and its request for them is 69 KB of zeros behind 20
//! bytes of message.

use super::MSG_GETCHAIN;
use super::MSG_GETGEN;
use super::MSG_GETRULE;
use super::MSG_GETTABLE;
use super::NFGENMSG;
use super::NFPROTO_INET;
use super::TABLE;
use super::message_type;
use super::ruleset::TABLE_NAME;
use super::ruleset::Table;
use crate::nl::Connection;
use crate::nl::DumpStep;
use crate::nl::Error;
use crate::nl::Request;

/// How often to start again when the rule set changes while it is read.
const ATTEMPTS: usize = 10;

/// `NFTA_GEN_ID`
const NFTA_GEN_ID: u16 = 1;

/// `struct nfgenmsg` for the family inet.
const HEADER: [u8; NFGENMSG] = [NFPROTO_INET, 0, 0, 0];

/// The table as it is, or none. All of it is from one generation of the rule set.
pub fn read(connection: &mut Connection) -> Result<Option<Table>, Error> {
    for _ in 0..ATTEMPTS {
        let before = generation(connection)?;
        let mut table = Table::default();
        if !read_table(connection, &mut table)? {
            return Ok(None);
        }
        let chains = dump(connection, MSG_GETCHAIN, &mut table)?;
        // All rules, and `Table` picks ours. The kernel could do that, but with a table's name in
        // the request it stops at the first table of that name, and while one table takes
        // another's place that is the old one, whose rules have gone already.
        let rules = dump(connection, MSG_GETRULE, &mut table)?;
        // Each answer is from some generation; an empty one does not say from which. And all from
        // one may still be wrong: while the kernel takes a table away, its objects, hidden already,
        // count when a dump is resumed at a position, and others come out twice.
        if chains && rules && generation(connection)? == before && table.is_whole() {
            return Ok(Some(table));
        }
    }
    Err(Error::Interrupted)
}

/// The number that every change of the rule set increments.
fn generation(connection: &mut Connection) -> Result<Option<u32>, Error> {
    let mut generation = None;
    // A request and no dump: as a dump it would end without NLMSG_DONE.
    let request = Request::new(message_type(MSG_GETGEN), 0, &HEADER);
    connection.request(request, |message| {
        let (_, attributes) = message.split::<NFGENMSG>()?;
        for attribute in attributes {
            let attribute = attribute?;
            if attribute.kind == NFTA_GEN_ID {
                generation = Some(attribute.be32()?);
            }
        }
        Ok(())
    })?;
    Ok(generation)
}

/// False: there is no table.
fn read_table(connection: &mut Connection, table: &mut Table) -> Result<bool, Error> {
    let request = Request::new(message_type(MSG_GETTABLE), 0, &HEADER).text(TABLE_NAME, TABLE);
    match connection.request(request, |message| Ok(table.add(&message)?)) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// False: the rule set changed meanwhile.
fn dump(connection: &mut Connection, kind: u16, table: &mut Table) -> Result<bool, Error> {
    connection.start_dump(Request::new(message_type(kind), 0, &HEADER))?;
    loop {
        let step = connection.dump_step(|message| Ok(table.add(&message)?))?;
        if let DumpStep::Done { interrupted } = step {
            return Ok(!interrupted);
        }
    }
}

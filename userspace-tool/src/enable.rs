// SPDX-License-Identifier: GPL-2.0-only

//! Switching on and off: the two operations that change both parts of the kernel.
//!
//! The rules mark what has to stay off the fast path. So at any moment, and whatever fails, the fast
//! path is on only while the rules for its mark are there:
//!
//! * to switch on, first the rules, then the module;
//! * to switch off, first the module, then the rules;
//! * to change the mark while on, off, rules, on: for a moment everything takes the slow path.
//!
//! Of IPsec the module decides itself, whatever is marked: to accelerate it, first the rules stop
//! marking, to exclude it, first the module gives up its flows.

use std::fmt;

use crate::client;
use crate::client::Change;
use crate::client::Config;
use crate::mark::Mark;
use crate::nft;
use crate::nl;
use crate::session::Session;
use crate::wire::IpsecMode;

/// Which part failed, and whether all is as it was.
#[derive(Debug)]
pub enum Error {
    /// The module.
    Module(client::Error),
    /// nf_tables.
    Rules(nft::Error),
    /// Something failed, and going back failed as well.
    Torn {
        /// What failed first.
        cause: Box<Error>,
        /// What failed on the way back.
        rollback: Box<Error>,
    },
}

impl From<client::Error> for Error {
    fn from(error: client::Error) -> Self {
        Self::Module(error)
    }
}

impl From<nft::Error> for Error {
    fn from(error: nft::Error) -> Self {
        Self::Rules(error)
    }
}

impl From<nl::Error> for Error {
    fn from(error: nl::Error) -> Self {
        Self::Rules(nft::Error::Netlink(error))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Module(error) => error.fmt(f),
            Self::Rules(error) => error.fmt(f),
            Self::Torn { cause, rollback } => {
                write!(f, "{cause}; going back to what was before failed too: {rollback}")
            }
        }
    }
}

impl std::error::Error for Error {}

/// Installs the rules, applies `change` and switches the fast path on.
///
/// Without a mark in `change` the configured one is kept, if there is one.
pub fn enable(session: &mut Session<'_>, change: Change) -> Result<(), Error> {
    // First of all find out whether it can work at all, and change nothing if not.
    let before = session.client()?.config()?;
    let mark = change.mark.unwrap_or_else(|| mark_to_keep(&before));
    let ipsec = change.ipsec.unwrap_or(before.ipsec);

    let pause = before.enabled && before.mark != mark;
    let evict = before.enabled && before.ipsec != ipsec && ipsec == IpsecMode::EXCLUDE;
    // What the module has to do ahead of the rules.
    let ahead = Change {
        enabled: pause.then_some(false),
        ipsec: evict.then_some(ipsec),
        ..Change::default()
    };
    let is_ahead = pause || evict;
    if is_ahead {
        session.client()?.set_config(&ahead)?;
    }
    // A transaction that fails has changed nothing: there is something to take back only if the
    // module is ahead.
    if let Err(error) = install(session, mark, ipsec) {
        return Err(if is_ahead { take_back(session, &before, error) } else { error });
    }
    let change = Change { enabled: Some(true), mark: Some(mark), ..change };
    if let Err(error) = session.client()?.set_config(&change) {
        // If it was on with this mark and these rules, it still is, and now has its rules for sure.
        let still_on = before.enabled && !pause && before.ipsec == ipsec;
        let error = error.into();
        return Err(if still_on { error } else { take_back(session, &before, error) });
    }
    Ok(())
}

fn install(session: &mut Session<'_>, mark: Mark, ipsec: IpsecMode) -> Result<(), Error> {
    Ok(session.nft()?.install(mark, ipsec)?)
}

fn mark_to_keep(config: &Config) -> Mark {
    // An empty mask says "exclude by no mark" where somebody chose it, and "not configured" where
    // nobody ever switched on.
    if config.enabled || config.mark.mask != 0 { config.mark } else { Mark::DEFAULT }
}

/// Goes back to what was before. What was off has no rules, what was on has those for its mark.
fn take_back(session: &mut Session<'_>, before: &Config, cause: Error) -> Error {
    let result = if before.enabled {
        install(session, before.mark, before.ipsec).and_then(|()| {
            let change = Change {
                mark: Some(before.mark),
                ipsec: Some(before.ipsec),
                ..Change::switch(true)
            };
            Ok(session.client()?.set_config(&change)?)
        })
    } else {
        session.nft().map_err(Error::from).and_then(|mut nft| Ok(nft.remove()?))
    };
    match result {
        Ok(()) => cause,
        Err(rollback) => Error::Torn { cause: Box::new(cause), rollback: Box::new(rollback) },
    }
}

/// Switches the fast path off, if the module is there, and removes the rules, if they are.
pub fn disable(session: &mut Session<'_>) -> Result<(), Error> {
    if let Some(client) = session.loaded_client()? {
        client.set_config(&Change::switch(false))?;
    }
    Ok(session.nft()?.remove()?)
}

/// Applies a change of the configuration. A new mark, and another choice about IPsec, bring their rules
/// with them while the fast path is on.
pub fn set(session: &mut Session<'_>, change: Change) -> Result<(), Error> {
    let client = session.client()?;
    if (change.mark.is_some() || change.ipsec.is_some()) && client.config()?.enabled {
        return enable(session, change);
    }
    Ok(client.set_config(&change)?)
}

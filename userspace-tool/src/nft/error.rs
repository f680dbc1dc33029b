// SPDX-License-Identifier: GPL-2.0-only

//! What can go wrong with nf_tables.

use std::fmt;

use super::batch::Refusal;
use super::batch::describe;
use crate::nl;
use crate::nl::KernelError;
use crate::nl::Malformed;
use crate::nl::Messages;

/// Why the table could not be read or changed.
#[derive(Debug)]
pub enum Error {
    /// The conversation failed.
    Netlink(nl::Error),
    /// The kernel has no nf_tables.
    Unavailable,
    /// The installed libnftnl does not know an expression.
    Expression(&'static str),
    /// The kernel refused the transaction. Nothing changed.
    Refused {
        /// What it refused, if it said so.
        object: Option<String>,
        /// Why.
        error: Box<KernelError>,
    },
    /// The answers got lost and the table is not what it should be.
    NotApplied,
}

impl Error {
    /// Picks the refusal that explains most.
    pub(super) fn refused(refusals: &[Refusal], pages: &[&[u8]]) -> Self {
        let Some(first) = refusals.first() else { return Self::NotApplied };
        // The first and the last message have the number 0 on kernels before 6.10, where nftnl
        // does not number them; an error about them is about the transaction.
        let object = pages
            .iter()
            .flat_map(|page| Messages::new(page).flatten())
            .find(|message| message.sequence == first.sequence && first.sequence != 0)
            .and_then(|message| describe(&message));
        // Without nf_tables nfnetlink refuses the batch as a whole, not an object in it.
        if object.is_none() && first.error.errno == libc::EOPNOTSUPP {
            return Self::Unavailable;
        }
        Self::Refused { object, error: Box::new(first.error.clone()) }
    }

    /// The kernel's error number, if it was the kernel who refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink(error) => error.errno(),
            Self::Refused { error, .. } => Some(error.errno),
            _ => None,
        }
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Netlink(malformed.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netlink(error) => error.fmt(f),
            Self::Unavailable => f.write_str("the kernel has no nf_tables: try modprobe nf_tables"),
            Self::Expression(name) => {
                write!(f, "the installed libnftnl does not know the expression ‘{name}’")
            }
            Self::Refused { object: None, error } => {
                write!(f, "Could not process the rule set: {error}")
            }
            Self::Refused { object: Some(object), error } => {
                write!(f, "Could not process {object}: {error}")?;
                // The kernel says this when it cannot find the code for an expression or a type
                // of chain, which is a matter of its configuration.
                if matches!(error.errno, libc::ENOENT | libc::EOPNOTSUPP) {
                    f.write_str(" (is nf_tables built with inet, ct, rt, meta and nat support?)")?;
                }
                Ok(())
            }
            Self::NotApplied => f.write_str("the rule set was not changed, for an unknown reason"),
        }
    }
}

impl std::error::Error for Error {}

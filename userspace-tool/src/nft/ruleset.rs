// SPDX-License-Identifier: GPL-2.0-only

//! A table with its chains and rules, read from nf_tables messages: those of the kernel, or those
//! that we are about to send.

use super::NFGENMSG;
use super::TABLE;
use super::expression;
use super::expression::Statement;
use super::message_type;
use crate::nl::Attribute;
use crate::nl::Malformed;
use crate::nl::Message;
use crate::nl::Messages;

// NFTA_TABLE_…
pub(super) const TABLE_NAME: u16 = 1;
const TABLE_HANDLE: u16 = 4;
// NFTA_CHAIN_…
const CHAIN_TABLE: u16 = 1;
const CHAIN_HANDLE: u16 = 2;
pub(super) const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_USE: u16 = 6;
const CHAIN_TYPE: u16 = 7;
// NFTA_HOOK_…
const HOOK_HOOKNUM: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
// NFTA_RULE_…
const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
/// `NFTNL_UDATA_RULE_COMMENT`
const USERDATA_COMMENT: u8 = 0;

/// The table `inet fasttrack`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// The kernel's number for it.
    pub handle: u64,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// The kernel's number for it.
    pub handle: u64,
    /// Its name.
    pub name: String,
    /// Where it is hooked in. None: a chain to be jumped to.
    pub base: Option<Base>,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// How many rules it has, and of how many it is the target, as the kernel counts.
    pub uses: Option<u32>,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// `NF_INET_…`
    pub hook: u32,
    /// Order among the chains of a hook.
    pub priority: i32,
    /// The verdict for packets that get to the end: 0 drop, 1 accept.
    pub policy: u32,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The kernel's number for it.
    pub handle: u64,
    /// What it does.
    pub statements: Vec<Statement>,
    /// What somebody said about it.
    pub comment: Option<String>,
}

impl Table {
    /// The table that a transaction builds. Deletions start it anew.
    pub fn from_batch(batch: &[u8]) -> Result<Self, Malformed> {
        const DELTABLE: u16 = message_type(super::MSG_DELTABLE);
        let mut table = Self::default();
        for message in Messages::new(batch) {
            let message = message?;
            if message.kind == DELTABLE {
                table = Self::default();
            } else {
                table.add(&message)?;
            }
        }
        Ok(table)
    }

    /// Adds what a message says, if it is about this table.
    pub(super) fn add(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        const NEWTABLE: u16 = message_type(super::MSG_NEWTABLE);
        const NEWCHAIN: u16 = message_type(super::MSG_NEWCHAIN);
        const NEWRULE: u16 = message_type(super::MSG_NEWRULE);
        match message.kind {
            NEWTABLE => self.add_table(message),
            NEWCHAIN => self.add_chain(message),
            NEWRULE => self.add_rule(message),
            _ => Ok(()),
        }
    }

    fn add_table(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        let (_, attributes) = message.split::<NFGENMSG>()?;
        let (mut name, mut handle) = ("", 0);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                TABLE_NAME => name = attribute.text()?,
                TABLE_HANDLE => handle = attribute.be64()?,
                _ => {}
            }
        }
        if name == TABLE {
            self.handle = handle;
        }
        Ok(())
    }

    fn add_chain(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        let (_, attributes) = message.split::<NFGENMSG>()?;
        let mut table = "";
        let mut chain = Chain::default();
        let (mut kind, mut hook, mut policy) = (String::new(), None, 1);
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                CHAIN_TABLE => table = attribute.text()?,
                CHAIN_HANDLE => chain.handle = attribute.be64()?,
                CHAIN_NAME => attribute.text()?.clone_into(&mut chain.name),
                CHAIN_HOOK => hook = Some(read_hook(&attribute)?),
                CHAIN_POLICY => policy = attribute.be32()?,
                CHAIN_USE => chain.uses = Some(attribute.be32()?),
                CHAIN_TYPE => attribute.text()?.clone_into(&mut kind),
                _ => {}
            }
        }
        if table == TABLE {
            chain.base = hook.map(|(hook, priority)| Base { kind, hook, priority, policy });
            self.chains.push(chain);
        }
        Ok(())
    }

    fn add_rule(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        let (_, attributes) = message.split::<NFGENMSG>()?;
        let (mut table, mut chain) = ("", "");
        let mut rule = Rule::default();
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                RULE_TABLE => table = attribute.text()?,
                RULE_CHAIN => chain = attribute.text()?,
                RULE_HANDLE => rule.handle = attribute.be64()?,
                RULE_EXPRESSIONS => rule.statements = expression::read(attribute.nested())?,
                RULE_USERDATA => rule.comment = read_comment(attribute.payload),
                _ => {}
            }
        }
        if table == TABLE {
            if let Some(chain) = self.chains.iter_mut().find(|known| known.name == chain) {
                chain.rules.push(rule);
            }
        }
        Ok(())
    }

    /// True if both have the same chains with the same rules, whatever their handles are and
    /// whatever their counters say.
    pub fn same_rules(&self, other: &Self) -> bool {
        self.without_state() == other.without_state()
    }

    /// False if something was read twice or not at all.
    pub(super) fn is_whole(&self) -> bool {
        self.chains.iter().enumerate().all(|(index, chain)| {
            let is_first = self.chains[..index].iter().all(|other| other.name != chain.name);
            // Nothing jumps to a base chain, so what uses it are its rules.
            let uses = chain.uses.filter(|_| chain.base.is_some());
            is_first && uses.is_none_or(|uses| uses as usize == chain.rules.len())
        })
    }

    fn without_state(&self) -> Self {
        let mut table = Self { handle: 0, ..self.clone() };
        for chain in &mut table.chains {
            chain.handle = 0;
            chain.uses = None;
            for rule in &mut chain.rules {
                rule.handle = 0;
                for statement in &mut rule.statements {
                    if let Statement::Counter { packets, bytes } = statement {
                        (*packets, *bytes) = (0, 0);
                    }
                }
            }
        }
        table
    }
}

fn read_hook(attribute: &Attribute<'_>) -> Result<(u32, i32), Malformed> {
    let (mut number, mut priority) = (0, 0);
    for attribute in attribute.nested() {
        let attribute = attribute?;
        match attribute.kind {
            HOOK_HOOKNUM => number = attribute.be32()?,
            HOOK_PRIORITY => priority = attribute.be32_signed()?,
            _ => {}
        }
    }
    Ok((number, priority))
}

/// Finds the comment in a rule's user data: type, length, value, repeated, each of the first two one
/// byte. The kernel stores it unread, so that anything may be in there.
fn read_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == USERDATA_COMMENT {
            let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
            return Some(String::from_utf8_lossy(&value[..end]).into_owned());
        }
        data = &rest[value.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_comment_is_found_behind_other_user_data() {
        assert_eq!(read_comment(b"\x00\x02x\x00").as_deref(), Some("x"));
        assert_eq!(read_comment(b"\x01\x01?\x00\x03ab\x00").as_deref(), Some("ab"));
        assert_eq!(read_comment(b"\x01\x01?"), None);
        assert_eq!(read_comment(b"\x00\x09x"), None);
    }

    proptest! {
        #[test]
        fn no_user_data_makes_it_panic(data in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = read_comment(&data);
        }

        #[test]
        fn no_messages_make_it_panic(
            kind in 0xa00u16..0xa08,
            payload in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let message = Message { kind, flags: 0, sequence: 0, port: 0, payload: &payload };
            let _ = Table::default().add(&message);
        }
    }
}

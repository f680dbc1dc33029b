// SPDX-License-Identifier: GPL-2.0-only

//! The `fasttrack` command.
//!
//! Two parts of the kernel make up the fast path, and this tool speaks to both: nf_tables, where
//! its rules mark the connections that IPsec handles and keep NAT away from them, and the fasttrack
//! module, which forwards what is left.
//!
//! Reading order: [`command`] is the language, [`run`] carries out what was said, [`enable`] is the
//! one operation that touches both parts, [`client`] speaks to the module, [`nft`] to nf_tables,
//! both through [`nl`]; [`mod@print`] shows the answers.

pub mod client;
pub mod command;
pub mod device;
pub mod duration;
pub mod enable;
pub mod genl;
pub mod mark;
pub mod netns;
pub mod nft;
pub mod nl;
pub mod options;
pub mod print;
pub mod run;
pub mod session;
pub mod wire;

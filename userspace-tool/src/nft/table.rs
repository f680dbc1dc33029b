// SPDX-License-Identifier: GPL-2.0-only

//! What is in the table, and why.
//!
//! ```text
//! table inet fasttrack {
//!     chain mark_to_device {
//!         meta oifkind "vti*" counter ct mark & 0x08000000 != 0x08000000 ct mark set ct mark | 0x08000000
//!         meta oifkind "xfrm*" counter …
//!     }
//!     chain mark_decrypted {
//!         type filter hook prerouting priority mangle; policy accept;
//!         meta ipsec exists counter …
//!     }
//!     chain mark_forward {
//!         type filter hook forward priority mangle; policy accept;
//!         rt ipsec exists counter …
//!         meta oiftype != ether meta oiftype != ppp jump mark_to_device
//!     }
//!     chain mark_encrypted {
//!         type filter hook postrouting priority 150; policy accept;
//!         rt ipsec exists counter …
//!     }
//!     chain nat_bypass {
//!         type nat hook postrouting priority srcnat - 1; policy accept;
//!         rt ipsec exists meta nfproto ipv4 counter snat ip to ip saddr
//!         rt ipsec exists meta nfproto ipv6 counter snat ip6 to ip6 saddr
//!     }
//! }
//! ```
//!
//! **Inbound** packets show that they were decrypted by their secpath. It is looked at in
//! prerouting, since with packet offload it is gone by forward; at `mangle`, which is after
//! conntrack, so that there is a connection to mark.
//!
//! **Outbound** packets show that they will be encrypted by their route. In forward it is looked at
//! early, at `mangle`, so that the filter rules see the mark. But source NAT can move a connection
//! into an IPsec policy, and then only postrouting after source NAT (100) shows it; 150 is after it
//! and before the module learns.
//!
//! **The bypass** keeps source NAT away from what is to be encrypted. Without it a masquerade rule
//! rewrites the source, the policy matches no longer, and the packets leave in clear. An `accept`
//! would not do: it ends this chain only, and the next nat chain binds the connection. Source NAT to
//! the address that it has anyway takes the binding, and the later chains are skipped.
//!
//! **Tunnels by a device**, a VTI or an xfrm interface, encrypt behind the device, and what is given to
//! it shows no transform. When the device sends it on it passes output and postrouting again, encrypted,
//! and is counted there, but without its connection. What an xfrm interface has decrypted has a secpath
//! like any other, unless its states are in another namespace (`xfrmi_rcv_cb`), what a vti has decrypted
//! has none (`vti_rcv_cb` in `net/ipv4/ip_vti.c` scrubs it). So it is looked at the kind of the device
//! that packets leave by: each connection through such a device has some that do, and none is fast
//! before. A kind is compared by what it begins with: up to four bytes are compared at once, and `vti`
//! is `vti6` as well.
//!
//! **If IPsec is accelerated** connections are only recognised: `seen_forward` counts what all of these
//! look at, and marks nothing. What stays off the fast path is then the administrator's choice alone.
//! It is one chain where only packets come that are forwarded on the slow path. In prerouting and
//! postrouting each packet that arrives or leaves encrypted would pass a chain for nothing, also if what
//! is inside is fast.
//!
//! A rule costs a packet some 90 instructions when its first comparison fails, 170 when it has to
//! load a kind for that, and a chain as much again. So packets for Ethernet and PPP devices, which are
//! most, meet one short rule more for the sake of the others.
//!
//! The module keeps all of these off the fast path on its own account.

use std::ffi::CStr;

use nftnl::Batch;
use nftnl::Chain;
use nftnl::ChainType;
use nftnl::FinalizedBatch;
use nftnl::Hook;
use nftnl::MsgType;
use nftnl::Policy;
use nftnl::ProtoFamily;
use nftnl::Rule;
use nftnl::Table;
use nftnl::expr::Immediate;
use nftnl::expr::Meta;
use nftnl::expr::Nat;
use nftnl::expr::NatType;
use nftnl::expr::Register;
use nftnl::nft_expr;

use super::Error;
use super::expr::DeviceKind;
use super::expr::RouteIpsec;
use super::expr::Secpath;
use crate::mark::Mark;
use crate::wire::IpsecMode;

/// The table's name for libnftnl; the same as [`super::TABLE`].
pub const NAME: &CStr = c"fasttrack";

/// Priority `mangle`: after conntrack (-200), before filtering (0).
const MANGLE: i32 = -150;
/// After `srcnat` (100).
const AFTER_SOURCE_NAT: i32 = 150;
/// `srcnat - 1`: before everybody else's source NAT.
const BEFORE_SOURCE_NAT: i32 = 99;

fn table() -> Table {
    Table::new(NAME, ProtoFamily::Inet)
}

/// A transaction that leaves no table.
///
/// Deleting what is not there is an error that would undo the transaction, so the table is added
/// first. The newer `NFT_MSG_DESTROYTABLE` would do the same with one message, on newer kernels.
pub fn removal() -> FinalizedBatch {
    let mut batch = Batch::new();
    let table = table();
    batch.add(&table, MsgType::Add);
    batch.add(&table, MsgType::Del);
    batch.finalize()
}

/// What a rule looks at.
enum Sign {
    /// A secpath: it was decrypted.
    Secpath(Secpath),
    /// A transform of its route: it will be encrypted.
    Route(RouteIpsec),
    /// The kind of the device that it leaves by begins with this.
    Kind(DeviceKind, &'static [u8]),
    /// The type of that device may be that of such a kind. The chain with this name goes on with it.
    MayBeKind(&'static CStr),
}

/// A chain that marks, or only counts.
struct Recogniser {
    name: &'static CStr,
    /// None: it is jumped to.
    base: Option<(Hook, i32)>,
    /// With their comments.
    rules: Vec<(Sign, &'static CStr)>,
}

/// What the kinds of devices begin with behind which packets are encrypted: `vti`, `vti6` and `xfrm`.
const VTI: &[u8] = b"vti";
const XFRM: &[u8] = b"xfrm";

/// The chains that mark, or if IPsec is accelerated that only counts. What is jumped to comes first.
fn recognisers(accelerated: bool) -> Result<Vec<Recogniser>, Error> {
    let (secpath, route, kind) = (Secpath::new()?, RouteIpsec::new()?, DeviceKind::outgoing()?);
    let to_device = |name| Recogniser {
        name,
        base: None,
        rules: vec![
            (Sign::Kind(kind, VTI), c"encrypted behind a VTI"),
            (Sign::Kind(kind, XFRM), c"encrypted behind an xfrm interface"),
        ],
    };
    let may_be_device = |name| (Sign::MayBeKind(name), c"tunnels that are devices");
    if accelerated {
        return Ok(vec![
            to_device(c"seen_to_device"),
            Recogniser {
                name: c"seen_forward",
                base: Some((Hook::Forward, MANGLE)),
                rules: vec![
                    (Sign::Secpath(secpath), c"what IPsec has decrypted and is not fast"),
                    (Sign::Route(route), c"what IPsec will encrypt and is not fast"),
                    may_be_device(c"seen_to_device"),
                ],
            },
        ]);
    }
    Ok(vec![
        to_device(c"mark_to_device"),
        Recogniser {
            name: c"mark_decrypted",
            base: Some((Hook::PreRouting, MANGLE)),
            rules: vec![(
                Sign::Secpath(secpath),
                c"keep connections that IPsec decrypts off the fast path",
            )],
        },
        Recogniser {
            name: c"mark_forward",
            base: Some((Hook::Forward, MANGLE)),
            rules: vec![
                (Sign::Route(route), c"keep connections that IPsec will encrypt off the fast path"),
                may_be_device(c"mark_to_device"),
            ],
        },
        Recogniser {
            name: c"mark_encrypted",
            base: Some((Hook::PostRouting, AFTER_SOURCE_NAT)),
            rules: vec![(Sign::Route(route), c"likewise, where source NAT made IPsec apply")],
        },
    ])
}

/// A transaction that leaves the table as described above, whatever was there under its name.
///
/// An empty mask means that no mark excludes a connection: then only the bypass remains, unless
/// connections are only recognised.
// One function, since a rule borrows its chain and a chain its table. The batch holds copies.
pub fn replacement(mark: Mark, ipsec: IpsecMode) -> Result<FinalizedBatch, Error> {
    let accelerated = ipsec == IpsecMode::ACCELERATE;
    let mut batch = Batch::new();
    let table = table();
    // Kernel handles and counters start anew; the packets in between see one table or the other.
    batch.add(&table, MsgType::Add);
    batch.add(&table, MsgType::Del);
    batch.add(&table, MsgType::Add);

    if accelerated || mark.mask != 0 {
        for Recogniser { name, base, rules } in recognisers(accelerated)? {
            let chain = if let Some((hook, priority)) = base {
                add_chain(&mut batch, &table, name, ChainType::Filter, hook, priority)
            } else {
                let chain = Chain::new(name, &table);
                batch.add(&chain, MsgType::Add);
                chain
            };
            for (sign, comment) in rules {
                let mut rule = Rule::new(&chain);
                add_match(&mut rule, &sign);
                if let Sign::MayBeKind(chain) = sign {
                    rule.add_expr(&nft_expr!(verdict jump chain.to_owned()));
                } else {
                    rule.add_expr(&nft_expr!(counter));
                    if !accelerated {
                        add_marking(&mut rule, mark);
                    }
                }
                finish(&mut batch, rule, comment);
            }
        }
    }

    let route = RouteIpsec::new()?;
    let chain = add_chain(
        &mut batch,
        &table,
        c"nat_bypass",
        ChainType::Nat,
        Hook::PostRouting,
        BEFORE_SOURCE_NAT,
    );
    for (family, comment) in [
        (ProtoFamily::Ipv4, c"no source NAT for what IPsec will encrypt: it would leave in clear"),
        (ProtoFamily::Ipv6, c"likewise for IPv6"),
    ] {
        let mut rule = Rule::new(&chain);
        rule.add_expr(&route);
        rule.add_expr(&nft_expr!(cmp == 1u8));
        // In an inet table the kernel takes a NAT expression for one family only behind a match
        // on it.
        rule.add_expr(&nft_expr!(meta nfproto));
        rule.add_expr(&nft_expr!(cmp == family as u8));
        rule.add_expr(&nft_expr!(counter));
        match family {
            ProtoFamily::Ipv4 => rule.add_expr(&nft_expr!(payload ipv4 saddr)),
            _ => rule.add_expr(&nft_expr!(payload ipv6 saddr)),
        }
        rule.add_expr(&Nat {
            nat_type: NatType::SNat,
            family,
            ip_register: Register::Reg1,
            port_register: None,
        });
        finish(&mut batch, rule, comment);
    }
    Ok(batch.finalize())
}

fn add_chain<'a>(
    batch: &mut Batch,
    table: &'a Table,
    name: &CStr,
    kind: ChainType,
    hook: Hook,
    priority: i32,
) -> Chain<'a> {
    let mut chain = Chain::new(name, table);
    chain.set_type(kind);
    chain.set_hook(hook, priority);
    chain.set_policy(Policy::Accept);
    batch.add(&chain, MsgType::Add);
    chain
}

fn add_match(rule: &mut Rule<'_>, sign: &Sign) {
    match sign {
        Sign::Secpath(secpath) => {
            rule.add_expr(secpath);
            rule.add_expr(&nft_expr!(cmp == 1u8));
        }
        Sign::Route(route) => {
            rule.add_expr(route);
            rule.add_expr(&nft_expr!(cmp == 1u8));
        }
        Sign::Kind(kind, beginning) => {
            rule.add_expr(kind);
            rule.add_expr(&nft_expr!(cmp == *beginning));
        }
        Sign::MayBeKind(_) => {
            rule.add_expr(&Meta::OifType);
            for other in [libc::ARPHRD_ETHER, libc::ARPHRD_PPP] {
                rule.add_expr(&nft_expr!(cmp != other));
            }
        }
    }
}

/// `ct mark & MASK != VALUE ct mark set ct mark & ~MASK | VALUE`
///
/// A counter stands before the comparison: it counts the packets that IPsec handles, not the
/// connections that get marked. The comparison keeps a mark that is there already from being
/// written, and its conntrack event from being sent, once a packet.
fn add_marking(rule: &mut Rule<'_>, mark: Mark) {
    rule.add_expr(&nft_expr!(ct mark));
    if mark.mask != u32::MAX {
        rule.add_expr(&nft_expr!(bitwise mask mark.mask, xor 0u32));
    }
    rule.add_expr(&nft_expr!(cmp != mark.value));
    if mark.mask == u32::MAX {
        rule.add_expr(&Immediate::new(mark.value, Register::Reg1));
    } else {
        rule.add_expr(&nft_expr!(ct mark));
        // Exclusive or is or, for bits that the mask has just cleared.
        rule.add_expr(&nft_expr!(bitwise mask !mark.mask, xor mark.value));
    }
    rule.add_expr(&nft_expr!(ct mark set));
}

fn finish(batch: &mut Batch, mut rule: Rule<'_>, comment: &CStr) {
    rule.set_comment(comment).expect("comments of ours are shorter than 128 bytes");
    batch.add(&rule, MsgType::Add);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_agree() {
        assert_eq!(NAME.to_str(), Ok(crate::nft::TABLE));
    }

    #[test]
    fn one_page_holds_it() {
        // Not relied on, since all pages go out together; but it should stay this small.
        assert_eq!(replacement(Mark::DEFAULT, IpsecMode::EXCLUDE).unwrap().iter().count(), 1);
    }
}

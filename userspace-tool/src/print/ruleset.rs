// SPDX-License-Identifier: GPL-2.0-only

//! The table in nf_tables, as nft prints it.

use std::fmt::Write;

use super::Style;
use super::json::Json;
use super::quoted;
use crate::nft::TABLE;
use crate::nft::expression::Comparison;
use crate::nft::expression::Statement;
use crate::nft::expression::Value;
use crate::nft::ruleset::Base;
use crate::nft::ruleset::Chain;
use crate::nft::ruleset::Rule;
use crate::nft::ruleset::Table;

const PREROUTING: u32 = 0;
const POSTROUTING: u32 = 4;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;

fn hook_name(hook: u32) -> String {
    match hook {
        PREROUTING => "prerouting".to_owned(),
        1 => "input".to_owned(),
        2 => "forward".to_owned(),
        3 => "output".to_owned(),
        POSTROUTING => "postrouting".to_owned(),
        5 => "ingress".to_owned(),
        other => other.to_string(),
    }
}

/// A priority by name, with an offset if it is near one, as nft does.
fn priority_name(priority: i32, hook: u32) -> String {
    const REACH: i32 = 10;
    let named = [
        ("raw", -300, true),
        ("mangle", -150, true),
        ("dstnat", -100, hook == PREROUTING),
        ("filter", 0, true),
        ("security", 50, true),
        ("srcnat", 100, hook == POSTROUTING),
    ];
    let near = named.into_iter().filter(|(_, _, applies)| *applies).find_map(|(name, value, _)| {
        let offset = priority.checked_sub(value)?;
        (-REACH..=REACH).contains(&offset).then_some((name, offset))
    });
    match near {
        None => priority.to_string(),
        Some((name, 0)) => name.to_owned(),
        Some((name, offset)) => {
            format!("{name} {} {}", if offset < 0 { '-' } else { '+' }, offset.abs())
        }
    }
}

/// The table in nft's syntax: `nft -f` loads it.
pub fn ruleset_text(table: &Table, style: Style) -> String {
    let handle = |handle: u64| {
        if style.all { format!(" # handle {handle}") } else { String::new() }
    };
    let mut out = String::new();
    let _ = writeln!(out, "table inet {TABLE} {{{}", handle(table.handle));
    for (index, chain) in table.chains.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let _ = writeln!(out, "\tchain {} {{{}", chain.name, handle(chain.handle));
        if let Some(base) = &chain.base {
            let _ = writeln!(out, "\t\t{}", base_text(base, style));
        }
        for rule in &chain.rules {
            let _ = writeln!(out, "\t\t{}{}", rule_text(rule), handle(rule.handle));
        }
        let _ = writeln!(out, "\t}}");
    }
    let _ = writeln!(out, "}}");
    out
}

fn base_text(base: &Base, style: Style) -> String {
    let priority = if style.numeric {
        base.priority.to_string()
    } else {
        priority_name(base.priority, base.hook)
    };
    format!(
        "type {} hook {} priority {priority}; policy {};",
        base.kind,
        hook_name(base.hook),
        policy(base)
    )
}

fn policy(base: &Base) -> &'static str {
    if base.policy == 0 { "drop" } else { "accept" }
}

fn rule_text(rule: &Rule) -> String {
    let mut words = Vec::new();
    for statement in &rule.statements {
        match statement_text(statement) {
            Some(text) => words.push(text),
            // Somebody else's rule. A listing that leaves out a match would be a lie.
            None => {
                return format!(
                    "# a rule that only nft can show: nft list table inet {TABLE}{}",
                    rule.comment.as_ref().map(|c| format!(" # {}", quoted(c))).unwrap_or_default()
                );
            }
        }
    }
    words.extend(rule.comment.as_ref().map(|comment| format!("comment {}", quoted(comment))));
    words.join(" ")
}

fn word(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// None: nft has a notation for it that we do not know.
fn statement_text(statement: &Statement) -> Option<String> {
    Some(match statement {
        Statement::Match { left, comparison, right } => match_text(left, *comparison, right)?,
        Statement::Counter { packets, bytes } => format!("counter packets {packets} bytes {bytes}"),
        Statement::SetCtMark(value) => format!("ct mark set {}", mark_text(value)?),
        Statement::SourceNat { family, address } => match (*family, address) {
            (NFPROTO_IPV4, Value::Ipv4Source) => "snat ip to ip saddr".to_owned(),
            (NFPROTO_IPV6, Value::Ipv6Source) => "snat ip6 to ip6 saddr".to_owned(),
            _ => return None,
        },
        Statement::Verdict(verdict) => (*verdict).to_owned(),
        Statement::Jump(chain) => format!("jump {chain}"),
        Statement::Unknown { .. } => return None,
    })
}

fn match_text(left: &Value, comparison: Comparison, right: &[u8]) -> Option<String> {
    let flag = |name: &str| match (comparison, right) {
        (Comparison::Equal, [1]) => Some(format!("{name} exists")),
        (Comparison::Equal, [0]) => Some(format!("{name} missing")),
        _ => None,
    };
    let operator = |equal: &'static str| match comparison {
        Comparison::Equal => equal,
        Comparison::NotEqual => "!= ",
    };
    match left {
        Value::Secpath => flag("meta ipsec"),
        Value::RouteIpsec => flag("rt ipsec"),
        Value::OutType => Some(format!("meta oiftype {}{}", operator(""), type_name(right)?)),
        Value::OutKind => {
            Some(format!("meta oifkind {}{}", operator(""), quoted(&kind_name(right)?)))
        }
        Value::Nfproto => Some(format!("meta nfproto {}{}", operator(""), nfproto_name(right)?)),
        Value::CtMark => Some(format!("ct mark {}{:#010x}", operator(""), word(right)?)),
        Value::Bitwise { value, mask, xor: 0 } if **value == Value::CtMark => {
            Some(format!("ct mark & {mask:#010x} {}{:#010x}", operator("== "), word(right)?))
        }
        _ => None,
    }
}

/// `ARPHRD_…`, of which we have two.
fn type_name(right: &[u8]) -> Option<&'static str> {
    match u16::from_ne_bytes(right.try_into().ok()?) {
        libc::ARPHRD_ETHER => Some("ether"),
        libc::ARPHRD_PPP => Some("ppp"),
        _ => None,
    }
}

/// What a kind of device begins with, as nft writes it.
///
/// None: it is padded, and so a whole name, of which we have none.
fn kind_name(right: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(right).ok()?;
    name.bytes().all(|byte| byte.is_ascii_alphanumeric()).then(|| format!("{name}*"))
}

fn nfproto_name(right: &[u8]) -> Option<&'static str> {
    match right {
        [2] => Some("ipv4"),
        [10] => Some("ipv6"),
        _ => None,
    }
}

/// `(mark & mask) ^ xor` as and, or and exclusive or: what is cleared and then inverted is set.
struct Operations {
    and: Option<u32>,
    xor: Option<u32>,
    or: Option<u32>,
}

impl Operations {
    fn new(mask: u32, xor: u32) -> Self {
        let or = xor & !mask;
        let and = mask | or;
        Self {
            and: (and != u32::MAX).then_some(and),
            xor: Some(xor & mask).filter(|bits| *bits != 0),
            or: Some(or).filter(|bits| *bits != 0),
        }
    }
}

fn mark_text(value: &Value) -> Option<String> {
    match value {
        Value::CtMark => Some("ct mark".to_owned()),
        Value::Immediate(bytes) => Some(format!("{:#010x}", word(bytes)?)),
        Value::Bitwise { value, mask, xor } if **value == Value::CtMark => {
            let Operations { and, xor, or } = Operations::new(*mask, *xor);
            let mut text = "ct mark".to_owned();
            for (operator, operand) in [("&", and), ("^", xor), ("|", or)] {
                if let Some(operand) = operand {
                    let _ = write!(text, " {operator} {operand:#010x}");
                }
            }
            Some(text)
        }
        _ => None,
    }
}

/// The table as objects, in the schema of libnftables-json(5).
pub fn ruleset_json(table: &Table) -> Vec<Json> {
    let mut objects = vec![Json::object([(
        "table",
        Json::object([
            ("family", "inet".into()),
            ("name", TABLE.into()),
            ("handle", table.handle.into()),
        ]),
    )])];
    for chain in &table.chains {
        objects.push(Json::object([("chain", chain_json(chain))]));
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            let fields = Json::sparse([
                ("family", Some("inet".into())),
                ("table", Some(TABLE.into())),
                ("chain", Some(chain.name.as_str().into())),
                ("handle", Some(rule.handle.into())),
                ("comment", rule.comment.as_deref().map(Json::from)),
                ("expr", Some(Json::Array(rule.statements.iter().map(statement_json).collect()))),
            ]);
            objects.push(Json::object([("rule", fields)]));
        }
    }
    objects
}

fn chain_json(chain: &Chain) -> Json {
    let base = chain.base.as_ref();
    Json::sparse([
        ("family", Some("inet".into())),
        ("table", Some(TABLE.into())),
        ("name", Some(chain.name.as_str().into())),
        ("handle", Some(chain.handle.into())),
        ("type", base.map(|base| base.kind.as_str().into())),
        ("hook", base.map(|base| hook_name(base.hook).into())),
        ("prio", base.map(|base| base.priority.into())),
        ("policy", base.map(|base| policy(base).into())),
    ])
}

fn statement_json(statement: &Statement) -> Json {
    let known = match statement {
        Statement::Match { left, comparison, right } => match_json(left, *comparison, right),
        Statement::Counter { packets, bytes } => Some(Json::object([(
            "counter",
            Json::object([("packets", (*packets).into()), ("bytes", (*bytes).into())]),
        )])),
        Statement::SetCtMark(value) => mark_json(value).map(|value| {
            Json::object([("mangle", Json::object([("key", key("ct", "mark")), ("value", value)]))])
        }),
        Statement::SourceNat { family, address } => match (*family, address) {
            (NFPROTO_IPV4, Value::Ipv4Source) => Some(snat_json("ip")),
            (NFPROTO_IPV6, Value::Ipv6Source) => Some(snat_json("ip6")),
            _ => None,
        },
        // A verdict's value is null in nft's schema; an empty array is as near as we need.
        Statement::Verdict(verdict) => Some(Json::object([(*verdict, Json::Array(vec![]))])),
        Statement::Jump(chain) => {
            let target = Json::object([("target", chain.as_str().into())]);
            Some(Json::object([("jump", target)]))
        }
        Statement::Unknown { name, .. } => Some(Json::object([("unknown", name.as_str().into())])),
    };
    known.unwrap_or_else(|| Json::object([("unknown", "expression".into())]))
}

fn key(kind: &'static str, name: &'static str) -> Json {
    Json::object([(kind, Json::object([("key", name.into())]))])
}

fn snat_json(family: &'static str) -> Json {
    let address = Json::object([("protocol", family.into()), ("field", "saddr".into())]);
    let address = Json::object([("payload", address)]);
    Json::object([("snat", Json::object([("family", family.into()), ("addr", address)]))])
}

fn match_json(left: &Value, comparison: Comparison, right: &[u8]) -> Option<Json> {
    let flag = || match right {
        [1] => Some(true.into()),
        [0] => Some(false.into()),
        _ => None,
    };
    let (left, right) = match left {
        Value::Secpath => (key("meta", "ipsec"), flag()?),
        Value::RouteIpsec => (key("rt", "ipsec"), flag()?),
        Value::OutType => (key("meta", "oiftype"), type_name(right)?.into()),
        Value::OutKind => (key("meta", "oifkind"), kind_name(right)?.as_str().into()),
        Value::Nfproto => (key("meta", "nfproto"), nfproto_name(right)?.into()),
        Value::CtMark | Value::Bitwise { .. } => (mark_json(left)?, word(right)?.into()),
        _ => return None,
    };
    let operator = match comparison {
        Comparison::Equal => "==",
        Comparison::NotEqual => "!=",
    };
    let fields = Json::object([("op", operator.into()), ("left", left), ("right", right)]);
    Some(Json::object([("match", fields)]))
}

fn mark_json(value: &Value) -> Option<Json> {
    match value {
        Value::CtMark => Some(key("ct", "mark")),
        Value::Immediate(bytes) => Some(word(bytes)?.into()),
        Value::Bitwise { value, mask, xor } if **value == Value::CtMark => {
            let Operations { and, xor, or } = Operations::new(*mask, *xor);
            let mut json = key("ct", "mark");
            for (operator, operand) in [("&", and), ("^", xor), ("|", or)] {
                if let Some(operand) = operand {
                    json = Json::object([(operator, Json::Array(vec![json, operand.into()]))]);
                }
            }
            Some(json)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_have_the_names_that_nft_gives_them() {
        for (priority, hook, name) in [
            (-150, PREROUTING, "mangle"),
            (150, POSTROUTING, "150"),
            (99, POSTROUTING, "srcnat - 1"),
            (110, POSTROUTING, "srcnat + 10"),
            (111, POSTROUTING, "111"),
            (100, PREROUTING, "100"),
            (-100, PREROUTING, "dstnat"),
            (5, 2, "filter + 5"),
            (i32::MIN, 2, "-2147483648"),
            (i32::MAX, 2, "2147483647"),
        ] {
            assert_eq!(priority_name(priority, hook), name);
        }
    }

    #[test]
    fn operations_are_found() {
        let found = |mask, xor| {
            let Operations { and, xor, or } = Operations::new(mask, xor);
            (and, xor, or)
        };
        assert_eq!(found(!8, 8), (None, None, Some(8)));
        assert_eq!(found(!0xf0, 0x30), (Some(0xffff_ff3f), None, Some(0x30)));
        assert_eq!(found(!8, 0), (Some(!8), None, None));
        assert_eq!(found(u32::MAX, 8), (None, Some(8), None));
    }

    #[test]
    fn a_rule_of_somebody_else_is_not_misquoted() {
        let rule = Rule {
            handle: 9,
            statements: vec![
                Statement::Unknown { name: "lookup".to_owned(), data: vec![] },
                Statement::Verdict("drop"),
            ],
            comment: None,
        };
        assert_eq!(
            rule_text(&rule),
            "# a rule that only nft can show: nft list table inet fasttrack"
        );
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! From nf_tables expressions, which move values between registers, back to the statements that a
//! rule is written in.
//!
//! It understands what [`super::table`] builds and a little beyond; anything else stays an
//! [`Statement::Unknown`] with its name, which is enough to compare rules and to say what it is.

use super::expr;
use crate::nl::Attribute;
use crate::nl::Attributes;
use crate::nl::Malformed;

// NFTA_EXPR_…
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
// NFTA_DATA_…, NFTA_VERDICT_…
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

const META_OIFTYPE: u32 = 9;
const META_NFPROTO: u32 = 15;
const CT_MARK: u32 = 3;
const NETWORK_HEADER: u32 = 1;
const NAT_SNAT: u32 = 0;
const NF_NAT_RANGE_MAP_IPS: u32 = 1;

/// A value in a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `meta ipsec`: the packet was decrypted.
    Secpath,
    /// `rt ipsec`: the packet will be encrypted.
    RouteIpsec,
    /// `meta oiftype`: what the addresses of the device are like that the packet leaves by.
    OutType,
    /// `meta oifkind`: what kind of device that is.
    OutKind,
    /// `meta nfproto`
    Nfproto,
    /// `ct mark`
    CtMark,
    /// `ip saddr`
    Ipv4Source,
    /// `ip6 saddr`
    Ipv6Source,
    /// `(value & mask) ^ xor`
    Bitwise {
        /// What is changed.
        value: Box<Value>,
        /// Bits that stay.
        mask: u32,
        /// Bits that are inverted afterwards.
        xor: u32,
    },
    /// A constant.
    Immediate(Vec<u8>),
}

/// How values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

/// A part of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// Goes on if the comparison holds.
    Match {
        /// What is compared.
        left: Value,
        /// How.
        comparison: Comparison,
        /// With what; integers in host byte order.
        right: Vec<u8>,
    },
    /// Counts.
    Counter {
        /// Packets so far.
        packets: u64,
        /// Bytes so far.
        bytes: u64,
    },
    /// `ct mark set`
    SetCtMark(Value),
    /// `snat to`
    SourceNat {
        /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
        family: u32,
        /// The new source.
        address: Value,
    },
    /// `drop`, `accept`, `continue` or `return`
    Verdict(&'static str),
    /// `jump`
    Jump(String),
    /// Something else.
    Unknown {
        /// Name of the expression.
        name: String,
        /// Its attributes as they came.
        data: Vec<u8>,
    },
}

/// The values in the registers, while a rule is read.
#[derive(Default)]
struct Registers(Vec<(u32, Value)>);

impl Registers {
    fn load(&mut self, register: u32, value: Value) {
        self.0.retain(|(known, _)| *known != register);
        self.0.push((register, value));
    }

    fn get(&self, register: u32) -> Option<Value> {
        self.0.iter().find(|(known, _)| *known == register).map(|(_, value)| value.clone())
    }
}

/// Reads a rule's list of expressions.
pub fn read(list: Attributes<'_>) -> Result<Vec<Statement>, Malformed> {
    let mut registers = Registers::default();
    let mut statements = Vec::new();
    for element in list {
        let (mut name, mut data) = ("", None);
        for attribute in element?.nested() {
            let attribute = attribute?;
            match attribute.kind {
                EXPR_NAME => name = attribute.text()?,
                EXPR_DATA => data = Some(attribute),
                _ => {}
            }
        }
        let data = data.unwrap_or(Attribute { kind: EXPR_DATA, payload: &[] });
        let understood = step(name, &Fields::new(&data)?, &mut registers)?;
        match understood {
            Some(Step::Loaded) => {}
            Some(Step::Statement(statement)) => statements.push(statement),
            None => statements
                .push(Statement::Unknown { name: name.to_owned(), data: data.payload.to_vec() }),
        }
    }
    Ok(statements)
}

/// An expression's attributes by number.
struct Fields<'a>(Vec<Attribute<'a>>);

impl<'a> Fields<'a> {
    fn new(data: &Attribute<'a>) -> Result<Self, Malformed> {
        data.nested().collect::<Result<_, _>>().map(Self)
    }

    fn get(&self, kind: u16) -> Option<&Attribute<'a>> {
        self.0.iter().find(|attribute| attribute.kind == kind)
    }

    fn number(&self, kind: u16) -> Result<Option<u32>, Malformed> {
        self.get(kind).map(Attribute::be32).transpose()
    }

    fn data(&self, kind: u16) -> Result<Option<&'a [u8]>, Malformed> {
        let Some(attribute) = self.get(kind) else { return Ok(None) };
        for inner in attribute.nested() {
            let inner = inner?;
            if inner.kind == DATA_VALUE {
                return Ok(Some(inner.payload));
            }
        }
        Ok(None)
    }

    /// A verdict, and the chain that it names.
    fn verdict(&self, kind: u16) -> Result<Option<(i32, &'a str)>, Malformed> {
        let Some(attribute) = self.get(kind) else { return Ok(None) };
        for inner in attribute.nested() {
            let inner = inner?;
            if inner.kind == DATA_VERDICT {
                let (mut code, mut chain) = (None, "");
                for field in inner.nested() {
                    let field = field?;
                    match field.kind {
                        VERDICT_CODE => code = Some(field.be32_signed()?),
                        VERDICT_CHAIN => chain = field.text()?,
                        _ => {}
                    }
                }
                return Ok(code.map(|code| (code, chain)));
            }
        }
        Ok(None)
    }
}

enum Step {
    Loaded,
    Statement(Statement),
}

/// Follows one expression. None: it is beyond us.
fn step(
    name: &str,
    fields: &Fields<'_>,
    registers: &mut Registers,
) -> Result<Option<Step>, Malformed> {
    // What loads a value differs in the numbers of its attributes only.
    let loaded = match name {
        "meta" => load_meta(fields)?,
        "rt" => load_rt(fields)?,
        "ct" => load_ct(fields)?,
        "payload" => load_payload(fields)?,
        "bitwise" => load_bitwise(fields, registers)?,
        "immediate" => load_immediate(fields)?,
        _ => None,
    };
    if let Some((register, value)) = loaded {
        registers.load(register, value);
        return Ok(Some(Step::Loaded));
    }
    let statement = match name {
        "cmp" => compare(fields, registers)?,
        "counter" => Some(count(fields)?),
        "ct" => set_ct(fields, registers)?,
        "nat" => nat(fields, registers)?,
        "immediate" => verdict(fields)?,
        _ => None,
    };
    Ok(statement.map(Step::Statement))
}

type Loaded = Result<Option<(u32, Value)>, Malformed>;
type Read = Result<Option<Statement>, Malformed>;

/// `NFTA_META_DREG`, `NFTA_META_KEY`
fn load_meta(fields: &Fields<'_>) -> Loaded {
    let value = match fields.number(2)? {
        Some(expr::NFT_META_SECPATH) => Value::Secpath,
        Some(META_OIFTYPE) => Value::OutType,
        Some(expr::NFT_META_OIFKIND) => Value::OutKind,
        Some(META_NFPROTO) => Value::Nfproto,
        _ => return Ok(None),
    };
    Ok(fields.number(1)?.map(|register| (register, value)))
}

/// `NFTA_RT_DREG`, `NFTA_RT_KEY`
fn load_rt(fields: &Fields<'_>) -> Loaded {
    if fields.number(2)? != Some(expr::NFT_RT_XFRM) {
        return Ok(None);
    }
    Ok(fields.number(1)?.map(|register| (register, Value::RouteIpsec)))
}

/// `NFTA_CT_DREG`, `NFTA_CT_KEY`, `NFTA_CT_DIRECTION`
fn load_ct(fields: &Fields<'_>) -> Loaded {
    if fields.number(2)? != Some(CT_MARK) || fields.get(3).is_some() {
        return Ok(None);
    }
    Ok(fields.number(1)?.map(|register| (register, Value::CtMark)))
}

/// `NFTA_PAYLOAD_DREG`, `…_BASE`, `…_OFFSET`, `…_LEN`
fn load_payload(fields: &Fields<'_>) -> Loaded {
    let value = match (fields.number(2)?, fields.number(3)?, fields.number(4)?) {
        (Some(NETWORK_HEADER), Some(12), Some(4)) => Value::Ipv4Source,
        (Some(NETWORK_HEADER), Some(8), Some(16)) => Value::Ipv6Source,
        _ => return Ok(None),
    };
    Ok(fields.number(1)?.map(|register| (register, value)))
}

/// `NFTA_BITWISE_SREG`, `…_DREG`, `…_LEN`, `…_MASK`, `…_XOR`, `…_OP`
fn load_bitwise(fields: &Fields<'_>, registers: &Registers) -> Loaded {
    // Operation 0 is mask and xor; newer kernels say so, older ones know no other.
    if fields.number(6)?.unwrap_or(0) != 0 {
        return Ok(None);
    }
    let value = fields.number(1)?.and_then(|register| registers.get(register));
    let word = |data: Option<&[u8]>| Some(u32::from_ne_bytes(data?.try_into().ok()?));
    let (mask, xor) = (word(fields.data(4)?), word(fields.data(5)?));
    let (Some(value), Some(mask), Some(xor)) = (value, mask, xor) else { return Ok(None) };
    let value = Value::Bitwise { value: Box::new(value), mask, xor };
    Ok(fields.number(2)?.map(|register| (register, value)))
}

/// `NFTA_IMMEDIATE_DREG`, `…_DATA`
fn load_immediate(fields: &Fields<'_>) -> Loaded {
    let Some(data) = fields.data(2)? else { return Ok(None) };
    Ok(fields.number(1)?.map(|register| (register, Value::Immediate(data.to_vec()))))
}

/// `NFTA_CMP_SREG`, `…_OP`, `…_DATA`
fn compare(fields: &Fields<'_>, registers: &Registers) -> Read {
    let comparison = match fields.number(2)? {
        Some(0) => Comparison::Equal,
        Some(1) => Comparison::NotEqual,
        _ => return Ok(None),
    };
    let left = fields.number(1)?.and_then(|register| registers.get(register));
    let (Some(left), Some(right)) = (left, fields.data(3)?) else { return Ok(None) };
    Ok(Some(Statement::Match { left, comparison, right: right.to_vec() }))
}

/// `NFTA_COUNTER_BYTES`, `…_PACKETS`
fn count(fields: &Fields<'_>) -> Result<Statement, Malformed> {
    let number = |kind| fields.get(kind).map_or(Ok(0), Attribute::be64);
    Ok(Statement::Counter { packets: number(2)?, bytes: number(1)? })
}

/// `NFTA_CT_KEY`, `NFTA_CT_SREG`
fn set_ct(fields: &Fields<'_>, registers: &Registers) -> Read {
    if fields.number(2)? != Some(CT_MARK) {
        return Ok(None);
    }
    let value = fields.number(4)?.and_then(|register| registers.get(register));
    Ok(value.map(Statement::SetCtMark))
}

/// `NFTA_NAT_TYPE`, `…_FAMILY`, `…_REG_ADDR_MIN`, `…_REG_ADDR_MAX`, two for ports, `…_FLAGS`
fn nat(fields: &Fields<'_>, registers: &Registers) -> Read {
    let minimum = fields.number(3)?;
    // The kernel repeats the one address as the end of the range.
    let is_range = fields.number(4)?.is_some_and(|maximum| Some(maximum) != minimum);
    // It also adds the flag that says that there is an address, on its own.
    let flags = fields.number(7)?.unwrap_or(0) & !NF_NAT_RANGE_MAP_IPS;
    let has_ports = fields.get(5).or(fields.get(6)).is_some();
    if fields.number(1)? != Some(NAT_SNAT) || is_range || has_ports || flags != 0 {
        return Ok(None);
    }
    let address = minimum.and_then(|register| registers.get(register));
    let (Some(family), Some(address)) = (fields.number(2)?, address) else { return Ok(None) };
    Ok(Some(Statement::SourceNat { family, address }))
}

/// An immediate into the verdict register.
fn verdict(fields: &Fields<'_>) -> Read {
    Ok(match fields.verdict(2)? {
        Some((0, _)) => Some(Statement::Verdict("drop")),
        Some((1, _)) => Some(Statement::Verdict("accept")),
        Some((-1, _)) => Some(Statement::Verdict("continue")),
        Some((-3, chain)) => Some(Statement::Jump(chain.to_owned())),
        Some((-5, _)) => Some(Statement::Verdict("return")),
        _ => None,
    })
}

// SPDX-License-Identifier: GPL-2.0-only

//! A JSON writer: values whose objects keep their order.

use std::fmt;

/// A JSON value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Json {
    /// `true` or `false`
    Bool(bool),
    /// A whole number.
    Number(i128),
    /// Text.
    Text(String),
    /// `[…]`
    Array(Vec<Json>),
    /// `{…}`, in this order.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// An object.
    pub fn object<K: Into<String>>(fields: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Object(fields.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    /// An object without the fields that have no value.
    pub fn sparse<K: Into<String>>(fields: impl IntoIterator<Item = (K, Option<Self>)>) -> Self {
        Self::object(fields.into_iter().filter_map(|(key, value)| Some((key, value?))))
    }
}

macro_rules! from_number {
    ($($type:ty)*) => {
        $(impl From<$type> for Json {
            fn from(number: $type) -> Self {
                Self::Number(number.into())
            }
        })*
    };
}

from_number!(u8 u16 u32 u64 i32);

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write_text(f, text),
            Self::Array(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    value.fmt(f)?;
                }
                f.write_str("]")
            }
            Self::Object(fields) => {
                f.write_str("{")?;
                for (index, (key, value)) in fields.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { ", " })?;
                    write_text(f, key)?;
                    write!(f, ": {value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            // JSON forbids the first of these ranges; terminals obey the others.
            '\0'..='\x1f' | '\x7f'..='\u{9f}' => write!(f, "\\u{:04x}", u32::from(c))?,
            _ => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_order_is_kept() {
        let value = Json::object([("z", 1u8.into()), ("a", Json::Array(vec![true.into()]))]);
        assert_eq!(value.to_string(), r#"{"z": 1, "a": [true]}"#);
        let value = Json::sparse([("z", None), ("a", Some("x".into()))]);
        assert_eq!(value.to_string(), r#"{"a": "x"}"#);
    }

    proptest! {
        #[test]
        fn others_read_what_it_writes(key in "(?s).{0,8}", text in "(?s).{0,20}", number: u64) {
            let value = Json::object([
                (key.clone(), Json::from(text.clone())),
                (format!("{key}2"), number.into()),
            ]);
            let read: serde_json::Value = serde_json::from_str(&value.to_string()).unwrap();
            prop_assert_eq!(read[&key].as_str(), Some(&*text));
            prop_assert_eq!(read[format!("{key}2")].as_u64(), Some(number));
        }
    }
}

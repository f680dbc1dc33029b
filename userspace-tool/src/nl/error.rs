// SPDX-License-Identifier: GPL-2.0-only

//! What can go wrong between the tool and the kernel.

use std::fmt;
use std::io;

use super::attribute::Attributes;
use super::attribute::Malformed;
use super::message::F_ACK_TLVS;
use super::message::F_CAPPED;
use super::message::HEADER;
use super::message::Message;

// NLMSGERR_ATTR_…, absent from the libc crate.
const MSG: u16 = 1;
const OFFS: u16 = 2;
const POLICY: u16 = 4;
const MISS_TYPE: u16 = 5;
// NL_POLICY_TYPE_ATTR_…
const MIN_VALUE_S: u16 = 2;
const MAX_VALUE_S: u16 = 3;
const MIN_VALUE_U: u16 = 4;
const MAX_VALUE_U: u16 = 5;

/// A refusal by the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelError {
    /// `E…`.
    pub errno: i32,
    /// The kernel's own explanation, from the extended acknowledgement.
    pub message: Option<String>,
    /// Where in the request the refused attribute starts.
    pub offset: Option<u32>,
    /// The attribute that the request lacks.
    pub missing: Option<u32>,
    /// What the attribute may be.
    pub bounds: Option<(i128, i128)>,
    /// The refused or missing attribute. [`super::Connection`] fills it in, since it takes the
    /// request to translate the offset.
    pub attribute: Option<u16>,
}

impl KernelError {
    /// A refusal without further explanation.
    pub fn from_errno(errno: i32) -> Self {
        Self { errno, ..Self::default() }
    }

    /// Reads `NLMSG_ERROR`. None: it is an acknowledgement.
    pub fn from_error_message(message: &Message<'_>) -> Result<Option<Self>, Malformed> {
        let (code, _) = code(message)?;
        let mut skip = HEADER;
        if message.flags & F_CAPPED == 0 {
            // The whole request is repeated.
            let original = message.payload.get(4..8).unwrap_or_default();
            skip = original.try_into().map_or(HEADER, |bytes| u32::from_ne_bytes(bytes) as usize);
            skip = skip.max(HEADER).next_multiple_of(4);
        }
        let attributes = message.payload.get(4usize.saturating_add(skip)..).unwrap_or_default();
        Self::new(code, message, attributes)
    }

    /// Reads `NLMSG_DONE`. None: the dump was complete.
    pub fn from_done_message(message: &Message<'_>) -> Result<Option<Self>, Malformed> {
        let (code, attributes) = code(message)?;
        Self::new(code, message, attributes)
    }

    fn new(code: i32, message: &Message<'_>, attributes: &[u8]) -> Result<Option<Self>, Malformed> {
        if code >= 0 {
            return Ok(None);
        }
        let mut error = Self::from_errno(code.checked_neg().unwrap_or(libc::EIO));
        if message.flags & F_ACK_TLVS != 0 {
            for attribute in Attributes::new(attributes) {
                let attribute = attribute?;
                match attribute.kind {
                    MSG => error.message = Some(attribute.text()?.to_owned()),
                    OFFS => error.offset = Some(attribute.u32()?),
                    MISS_TYPE => error.missing = Some(attribute.u32()?),
                    POLICY => error.bounds = bounds(attribute.nested())?,
                    _ => {}
                }
            }
        }
        Ok(Some(error))
    }
}

fn code<'a>(message: &Message<'a>) -> Result<(i32, &'a [u8]), Malformed> {
    let (code, rest) = message.payload.split_first_chunk::<4>().ok_or(Malformed::Truncated {
        what: "an error number",
        wanted: 4,
        found: message.payload.len(),
    })?;
    Ok((i32::from_ne_bytes(*code), rest))
}

fn bounds(policy: Attributes<'_>) -> Result<Option<(i128, i128)>, Malformed> {
    let (mut low, mut high) = (None, None);
    for attribute in policy {
        let attribute = attribute?;
        match attribute.kind {
            MIN_VALUE_U => low = Some(i128::from(attribute.u64()?)),
            MAX_VALUE_U => high = Some(i128::from(attribute.u64()?)),
            MIN_VALUE_S => low = Some(i128::from(attribute.i64()?)),
            MAX_VALUE_S => high = Some(i128::from(attribute.i64()?)),
            _ => {}
        }
    }
    Ok(low.zip(high))
}

/// What the C library says about an error number, without Rust's addition of the number.
pub fn describe_errno(errno: i32) -> String {
    describe_io(&io::Error::from_raw_os_error(errno))
}

fn describe_io(error: &io::Error) -> String {
    let mut text = error.to_string();
    if let Some(at) = text.rfind(" (os error ") {
        text.truncate(at);
    }
    text
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            // What the kernel says may come from a module: no control characters on a terminal.
            Some(message) => {
                write!(f, "{}", message.escape_debug().to_string().replace("\\'", "'"))?;
            }
            None => write!(f, "{}", describe_errno(self.errno))?,
        }
        if let Some((low, high)) = self.bounds {
            write!(f, " (must be {low} to {high})")?;
        }
        if self.message.is_some() {
            write!(f, " ({})", describe_errno(self.errno))?;
        }
        Ok(())
    }
}

impl std::error::Error for KernelError {}

/// Anything that ends a netlink conversation.
#[derive(Debug)]
pub enum Error {
    /// No socket.
    Open(io::Error),
    /// Sending or receiving failed.
    Io(io::Error),
    /// The kernel refused.
    Kernel(Box<KernelError>),
    /// The kernel's answer makes no sense; the text says what of it.
    Malformed(String),
    /// No answer came.
    Silent,
    /// What was dumped changed so often that no dump was whole.
    Interrupted,
}

impl Error {
    /// The kernel's error number, if it was the kernel who refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel(error) => Some(error.errno),
            Self::Open(error) | Self::Io(error) => error.raw_os_error(),
            _ => None,
        }
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(error) => {
                write!(f, "Unable to open a netlink socket: {}", describe_io(error))
            }
            Self::Io(error) => write!(f, "netlink: {}", describe_io(error)),
            Self::Kernel(error) => error.fmt(f),
            Self::Malformed(what) => write!(f, "malformed message from the kernel: {what}"),
            Self::Silent => write!(f, "no answer from the kernel"),
            Self::Interrupted => write!(f, "what was read kept changing while it was read"),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nl::message::ERROR;

    fn error_message(flags: u16, payload: &[u8]) -> Message<'_> {
        Message { kind: ERROR, flags, sequence: 1, port: 1, payload }
    }

    /// ENOENT of a delete of a missing table, as a 6.18 kernel sent it.
    const ENOENT: [u8; 28] = [
        0xfe, 0xff, 0xff, 0xff, // -2
        0x28, 0, 0, 0, 2, 0x0a, 5, 0, 3, 0, 0, 0, 0, 0, 0, 0, // the request's header
        8, 0, 2, 0, 20, 0, 0, 0, // NLMSGERR_ATTR_OFFS
    ];

    #[test]
    fn a_captured_error_is_read() {
        let message = error_message(F_CAPPED | F_ACK_TLVS, &ENOENT);
        let error = KernelError::from_error_message(&message).unwrap().unwrap();
        assert_eq!((error.errno, error.offset), (libc::ENOENT, Some(20)));
        assert_eq!(error.to_string(), "No such file or directory");
    }

    #[test]
    fn a_repeated_request_is_skipped() {
        // Without NETLINK_CAP_ACK the whole request comes back.
        let mut payload = ENOENT[..20].to_vec();
        payload[4] = 24;
        payload.extend_from_slice(&[8, 0, 2, 0, 99, 0, 0, 0]); // an attribute of the request
        payload.extend_from_slice(&[8, 0, 2, 0, 20, 0, 0, 0]);
        let message = error_message(F_ACK_TLVS, &payload);
        let error = KernelError::from_error_message(&message).unwrap().unwrap();
        assert_eq!(error.offset, Some(20));
    }

    #[test]
    fn an_acknowledgement_is_none() {
        let message = error_message(F_CAPPED, &[0; 20]);
        assert_eq!(KernelError::from_error_message(&message), Ok(None));
    }

    #[test]
    fn lengths_that_lie_are_survived() {
        let mut payload = ENOENT;
        payload[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        let message = error_message(F_ACK_TLVS, &payload);
        let error = KernelError::from_error_message(&message).unwrap().unwrap();
        assert_eq!(error.errno, libc::ENOENT);
        assert!(KernelError::from_error_message(&error_message(0, &[1, 2])).is_err());
        let lowest = i32::MIN.to_ne_bytes();
        assert!(KernelError::from_error_message(&error_message(F_CAPPED, &lowest)).is_ok());
    }

    #[test]
    fn text_and_bounds_are_shown() {
        let error = KernelError {
            errno: libc::ERANGE,
            message: Some("integer out of\x1b range".to_owned()),
            bounds: Some((0, 1)),
            ..KernelError::default()
        };
        assert_eq!(
            error.to_string(),
            "integer out of\\u{1b} range (must be 0 to 1) (Numerical result out of range)"
        );
    }
}

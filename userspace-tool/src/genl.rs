// SPDX-License-Identifier: GPL-2.0-only

//! Generic netlink: finding a family by name.

use crate::nl::Attribute;
use crate::nl::Connection;
use crate::nl::Error;
use crate::nl::Malformed;
use crate::nl::Request;

// <linux/genetlink.h>
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

/// Size of `struct genlmsghdr`.
pub const HEADER: usize = 4;

/// `struct genlmsghdr`.
pub const fn header(command: u8, version: u8) -> [u8; HEADER] {
    [command, version, 0, 0]
}

/// A family, as the kernel numbered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Message type of its messages.
    pub id: u16,
    /// Names and numbers of its multicast groups.
    pub groups: Vec<(String, u32)>,
}

impl Family {
    /// Asks for a family by name. None: there is none of this name in the network namespace.
    ///
    /// The kernel tries to load a module that claims the name before it answers.
    pub fn resolve(connection: &mut Connection, name: &str) -> Result<Option<Self>, Error> {
        let request = Request::new(GENL_ID_CTRL, 0, &header(CTRL_CMD_GETFAMILY, 1))
            .text(CTRL_ATTR_FAMILY_NAME, name);
        let mut family = None;
        let result = connection.request(request, |message| {
            let (_, attributes) = message.split::<HEADER>()?;
            let (mut id, mut groups) = (None, Vec::new());
            for attribute in attributes {
                let attribute = attribute?;
                match attribute.kind {
                    CTRL_ATTR_FAMILY_ID => id = Some(attribute.u16()?),
                    CTRL_ATTR_MCAST_GROUPS => {
                        for entry in attribute.nested() {
                            groups.push(group(&entry?)?);
                        }
                    }
                    _ => {}
                }
            }
            let id = id.ok_or(Malformed::Missing { attribute: CTRL_ATTR_FAMILY_ID })?;
            family = Some(Self { id, groups });
            Ok(())
        });
        match result {
            Ok(()) => Ok(family),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number of a multicast group.
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
    }
}

fn group(entry: &Attribute<'_>) -> Result<(String, u32), Malformed> {
    let (mut name, mut id) = (None, None);
    for attribute in entry.nested() {
        let attribute = attribute?;
        match attribute.kind {
            CTRL_ATTR_MCAST_GRP_NAME => name = Some(attribute.text()?.to_owned()),
            CTRL_ATTR_MCAST_GRP_ID => id = Some(attribute.u32()?),
            _ => {}
        }
    }
    name.zip(id).ok_or(Malformed::Missing { attribute: CTRL_ATTR_MCAST_GRP_NAME })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nl::Bus;
    use crate::nl::Socket;

    fn kernel() -> Connection {
        Connection::new(Box::new(Socket::open(Bus::Generic).unwrap()))
    }

    #[test]
    fn the_controller_finds_itself_and_its_group() {
        let family = Family::resolve(&mut kernel(), "nlctrl").unwrap().unwrap();
        assert_eq!(family.id, GENL_ID_CTRL);
        assert!(family.group("notify").is_some(), "{family:?}");
        assert_eq!(family.group("nonsense"), None);
    }

    #[test]
    fn a_family_that_is_not_there_is_none() {
        let mut kernel = kernel();
        assert_eq!(Family::resolve(&mut kernel, "no-such-family").unwrap(), None);
        // The conversation goes on after an error.
        assert!(Family::resolve(&mut kernel, "nlctrl").unwrap().is_some());
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! Names of network devices.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use crate::nl::Connection;
use crate::nl::Request;

// <linux/rtnetlink.h>, <linux/if_link.h>
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// Size of `struct ifinfomsg`.
const IFINFOMSG: usize = 16;

/// How long a name is believed. A monitor runs for days, and devices are renamed meanwhile.
const FRESH: Duration = Duration::from_secs(5);

/// Translates interface indices into names.
///
/// It asks for each device when it first meets it. Asking for all at once would cost an access
/// concentrator thousands of names of which a listing needs a few.
pub struct Devices {
    connection: Option<Connection>,
    names: HashMap<u32, (Option<Rc<str>>, Instant)>,
}

impl Devices {
    /// Names from the kernel, over rtnetlink.
    pub fn new(connection: Connection) -> Self {
        Self { connection: Some(connection), names: HashMap::new() }
    }

    /// No names at all.
    pub fn unnamed() -> Self {
        Self { connection: None, names: HashMap::new() }
    }

    /// The name of a device. None: it has gone, or names are not wanted.
    pub fn name(&mut self, index: u32) -> Option<Rc<str>> {
        let connection = self.connection.as_mut()?;
        if let Some((name, since)) = self.names.get(&index) {
            if since.elapsed() < FRESH {
                return name.clone();
            }
        }
        let name = query(connection, index);
        self.names.insert(index, (name.clone(), Instant::now()));
        name
    }
}

fn query(connection: &mut Connection, index: u32) -> Option<Rc<str>> {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let request = Request::new(RTM_GETLINK, 0, &header).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    let mut name = None;
    let result = connection.request(request, |message| {
        let (_, attributes) = message.split::<IFINFOMSG>()?;
        for attribute in attributes {
            let attribute = attribute?;
            if attribute.kind == IFLA_IFNAME {
                name = Some(Rc::from(attribute.text()?));
            }
        }
        Ok(())
    });
    // Any failure has the same remedy: print the number.
    result.ok().and(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nl::Bus;
    use crate::nl::Socket;

    #[test]
    fn the_loopback_device_has_its_name() {
        let socket = Socket::open(Bus::Route).unwrap();
        let mut devices = Devices::new(Connection::new(Box::new(socket)));
        assert_eq!(devices.name(1).as_deref(), Some("lo"));
        assert_eq!(devices.name(0x7fff_ffff), None);
        assert_eq!(devices.name(1).as_deref(), Some("lo"));
    }

    #[test]
    fn without_names_there_are_none() {
        assert_eq!(Devices::unnamed().name(1), None);
    }
}

// SPDX-License-Identifier: GPL-2.0-only

//! Named network namespaces, as `ip netns` makes them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use crate::nl::sys;

/// Where `ip netns` keeps them.
pub const DIRECTORY: &str = "/var/run/netns";

/// True if a name can be one of a namespace: one component of a path.
pub fn is_valid_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Moves the calling thread into the namespace. Sockets belong to the namespace that they are
/// opened in, so this comes before them.
pub fn enter(name: &str) -> io::Result<()> {
    let file = File::open(format!("{DIRECTORY}/{name}"))?;
    sys::enter_network_namespace(file.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_elsewhere() {
        assert!(is_valid_name("blue"));
        for name in ["", ".", "..", "../../proc/1/ns/net", "a/b", "/etc"] {
            assert!(!is_valid_name(name), "{name}");
        }
    }

    #[test]
    fn a_namespace_that_is_not_there_is_an_error() {
        assert_eq!(enter("no-such-namespace-4711").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

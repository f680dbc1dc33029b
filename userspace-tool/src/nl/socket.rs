// SPDX-License-Identifier: GPL-2.0-only

//! The real transport: a netlink socket of libmnl.

use std::io;
use std::os::fd::AsRawFd;

use super::sys;
use super::transport::Bus;
use super::transport::Transport;
use super::transport::Wait;

/// Room for one datagram. Dumps come in datagrams of up to 32 KiB, but only if the buffer that one
/// receives into has room for them; a single nf_tables message can have a bit over 64 KiB. What does
/// not fit is lost.
const BUFFER: usize = 128 * 1024;

/// `struct nlmsghdr` wants this alignment, and mnl insists on it in debug builds.
const ALIGNMENT: usize = 4;

/// A netlink socket.
///
/// It belongs to the network namespace that the thread is in when it is opened, and `mnl::Socket`
/// keeps it to that thread: a raw pointer is neither `Send` nor `Sync`.
pub struct Socket {
    inner: mnl::Socket,
    buffer: Vec<u8>,
    start: usize,
}

impl Socket {
    /// Opens and binds a socket.
    pub fn open(bus: Bus) -> io::Result<Self> {
        let socket = mnl::Socket::new(match bus {
            Bus::Generic => mnl::Bus::Generic,
            Bus::Netfilter => mnl::Bus::Netfilter,
            Bus::Route => mnl::Bus::Route,
        })?;
        let fd = socket.as_raw_fd();
        // mnl opens it without SOCK_CLOEXEC. Non-blocking, since after a batch the answers are
        // drained rather than counted; where it may wait, `receive` polls.
        sys::set_nonblocking_cloexec(fd)?;
        // The kernel's own words and the attribute that it means, and not the request repeated.
        // Kernels before 4.12 know neither; then errors are only numbers.
        let _ = sys::set_option(fd, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        let _ = sys::set_option(fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        let buffer = vec![0; BUFFER + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Ok(Self { inner: socket, buffer, start })
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.inner.as_raw_fd()
    }
}

impl Transport for Socket {
    fn port(&self) -> u32 {
        self.inner.portid()
    }

    fn send(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let fd = self.as_raw_fd();
        // A datagram has to fit into the send buffer, 208 KiB by default.
        if total > 64 * 1024 {
            resize(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, total + 64 * 1024);
        }
        // All parts in one datagram, and so not mnl's `send_all`, which makes one of each part: an
        // nf_tables batch of several pages would arrive as several broken transactions.
        sys::send(fd, parts)
    }

    fn receive(&mut self, wait: Wait) -> io::Result<&[u8]> {
        let fd = self.inner.as_raw_fd();
        let buffer = &mut self.buffer[self.start..self.start + BUFFER];
        loop {
            match self.inner.recv_raw(buffer) {
                Ok(length) => return Ok(&self.buffer[self.start..self.start + length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && wait != Wait::No => {
                    if !sys::wait_readable(fd, wait)? {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn join(&mut self, group: u32) -> io::Result<()> {
        // `mnl::Socket::bind` takes a mask of the first 32 groups; generic netlink numbers its
        // groups beyond that.
        sys::set_option(
            self.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            i32::from_ne_bytes(group.to_ne_bytes()),
        )
    }

    fn reserve(&mut self, bytes: usize) {
        resize(self.as_raw_fd(), libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes);
    }
}

/// Sets a socket buffer's size, beyond the system's limit if the caller may.
fn resize(fd: i32, force: libc::c_int, plain: libc::c_int, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    if sys::set_option(fd, libc::SOL_SOCKET, force, bytes).is_err() {
        let _ = sys::set_option(fd, libc::SOL_SOCKET, plain, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_is_aligned_and_large_enough() {
        let socket = Socket::open(Bus::Route).unwrap();
        assert!((socket.buffer.as_ptr() as usize + socket.start) % ALIGNMENT == 0);
        assert!(BUFFER >= nftnl::nft_nlmsg_maxsize() as usize);
    }

    #[test]
    fn it_waits_no_longer_than_told() {
        let mut socket = Socket::open(Bus::Route).unwrap();
        for wait in [Wait::No, Wait::UpTo(std::time::Duration::from_millis(10))] {
            let error = socket.receive(wait).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn programs_that_are_started_do_not_inherit_it() {
        let socket = Socket::open(Bus::Generic).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", socket.as_raw_fd()));
        let info = info.unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert!(flags & libc::O_CLOEXEC != 0, "{info}");
        assert!(flags & libc::O_NONBLOCK != 0, "{info}");
    }
}

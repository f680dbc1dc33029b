// SPDX-License-Identifier: GPL-2.0-only

//! The system calls that neither the standard library nor `mnl` offers, as safe functions.

#![expect(unsafe_code, reason = "system calls; every block states why it is sound")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;

use super::transport::Wait;

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `setsockopt` with an `int` as value, which is what all of ours take.
pub fn set_option(
    fd: RawFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which lives until the call returns; the
    // kernel only reads it. A wrong `fd` is an error, not undefined behaviour.
    check(unsafe {
        libc::setsockopt(
            fd,
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    })
}

/// Makes a descriptor non-blocking, and closed in programs that this one might start.
pub fn set_nonblocking_cloexec(fd: RawFd) -> io::Result<()> {
    // SAFETY: these fcntl commands take and return plain integers.
    unsafe {
        check(libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC))?;
        let flags = libc::fcntl(fd, libc::F_GETFL);
        check(flags)?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))
    }
}

/// Waits until a descriptor has something to read, or an error to report. False: it has not.
pub fn wait_readable(fd: RawFd, wait: Wait) -> io::Result<bool> {
    let timeout = match wait {
        Wait::No => 0,
        Wait::UpTo(duration) => {
            libc::c_int::try_from(duration.as_millis()).unwrap_or(libc::c_int::MAX)
        }
        Wait::Forever => -1,
    };
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: the pointer describes exactly one pollfd, which lives until the call returns.
        let ready = unsafe { libc::poll(&raw mut poll, 1, timeout) };
        match check(ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|()| ready > 0),
        }
    }
}

/// Sends the parts to the kernel as one datagram.
pub fn send(fd: RawFd, parts: &[&[u8]]) -> io::Result<()> {
    let mut vectors: Vec<libc::iovec> = parts
        .iter()
        .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() })
        .collect();
    let total: usize = parts.iter().map(|part| part.len()).sum();
    // SAFETY: a msghdr of zeroes is valid: no address, no vectors, no control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len() as _;
    loop {
        // SAFETY: `header` describes `vectors`, and these describe `parts`; all live until the
        // call returns, and sendmsg only reads through them. Without an address a netlink socket
        // sends to the kernel.
        let sent = unsafe { libc::sendmsg(fd, &raw const header, 0) };
        if let Ok(sent) = usize::try_from(sent) {
            return if sent == total {
                Ok(())
            } else {
                Err(io::Error::other(format!("sent {sent} of {total} bytes")))
            };
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Moves the calling thread into a network namespace.
pub fn enter_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns takes plain integers; the borrow keeps the descriptor open.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

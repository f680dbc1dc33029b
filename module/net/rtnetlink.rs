// SPDX-License-Identifier: GPL-2.0

//! The routing netlink messages by which the kernel announces to whoever listens what has changed.

use core::ffi::c_int;
use core::marker::PhantomData;
use core::ptr;
use core::ptr::NonNull;

use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::rcu;

use super::namespace::Net;
use super::rcu::Read;
use crate::bindings;

/// Is told what is announced about bridges.
pub trait Watcher {
    /// Something has changed about the device of `net` with this index, which is a bridge or a port of one, or may be:
    /// what it learned, or how it is configured. In any context.
    fn bridge_changed(read: Read<'_>, net: Net<'_>, index: u32);

    /// The same may be true of any of them.
    fn bridges_changed(read: Read<'_>, net: Net<'_>);
}

/// Keeps a [`Watcher`] told about a namespace until it is dropped.
///
/// A bridge tells the rest of the kernel about itself only where there are switches that can be told to do as it does
/// (`CONFIG_NET_SWITCHDEV`). But it announces all that it learns, and all that is changed about it, right after that and
/// before the command returns: `bridge monitor` shows the same (`fdb_notify`, `br_ifinfo_notify` and `br_vlan_notify` in
/// net/bridge, `rtmsg_ifinfo` in net/core/rtnetlink.c). A socket that is in the groups is given the messages in the
/// context of whoever sends them.
///
/// # Invariants
///
/// It is an open netlink socket that has this module's methods.
pub struct Watch<W>(NonNull<bindings::socket>, PhantomData<fn(W)>);

// SAFETY: A socket may be released by any thread.
unsafe impl<W> Send for Watch<W> {}
// SAFETY: There is nothing to be done with a shared one.
unsafe impl<W> Sync for Watch<W> {}

/// Numbers that are tried, of which all could be somebody else's.
const ATTEMPTS: usize = 8;

impl<W: Watcher> Watch<W> {
    /// Begins. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or what `bind` gives.
    ///
    /// # Safety
    ///
    /// `net` has to be there until this is dropped.
    pub unsafe fn new(net: Net<'static>) -> Result<Self> {
        let mut socket = ptr::null_mut();
        // SAFETY: The namespace is there. What the kernel opens for itself does not hold it.
        to_result(unsafe {
            bindings::sock_create_kern(
                net.as_ptr(),
                bindings::AF_NETLINK as c_int,
                bindings::sock_type_SOCK_RAW as c_int,
                bindings::NETLINK_ROUTE as c_int,
                &mut socket,
            )
        })?;
        let socket = NonNull::new(socket).ok_or(ENOMEM)?;
        // INVARIANT: As has just been set; so it is released if anything of what follows fails.
        let watch = Self(socket, PhantomData);
        watch.bind()?;
        watch.connect()?;
        // SAFETY: The socket is open, in no group, and nobody else's; nor can anybody send to it but the kernel to groups.
        unsafe {
            let sock = (*socket.as_ptr()).sk;
            (*sock).sk_data_ready = Some(Self::announced);
            (*sock).sk_error_report = Some(Self::announced);
            // Nothing stays in the queue.
            (*sock).sk_rcvbuf = i32::MAX;
        }
        watch.join(bindings::rtnetlink_groups_RTNLGRP_LINK)?;
        watch.join(bindings::rtnetlink_groups_RTNLGRP_NEIGH)?;
        watch.join(bindings::rtnetlink_groups_RTNLGRP_BRVLAN)?;
        Ok(watch)
    }

    /// Gives it a number: what has none is taken for the sender of what the kernel sends.
    fn bind(&self) -> Result {
        let mut bound = Err(EADDRINUSE);
        for _ in 0..ATTEMPTS {
            // No process has such a number, and would like its socket to have the same.
            // SAFETY: Gives a number.
            let number = unsafe { bindings::ft_random() } as u32 | 1 << 31;
            let mut address = bindings::sockaddr_nl {
                nl_family: bindings::AF_NETLINK as u16,
                nl_pid: number,
                ..Default::default()
            };
            let size = size_of::<bindings::sockaddr_nl>() as c_int;
            // SAFETY: By the invariant the socket is open; the address is one of its family.
            bound = to_result(unsafe {
                bindings::kernel_bind(self.0.as_ptr(), ptr::from_mut(&mut address).cast(), size)
            });
            if bound != Err(EADDRINUSE) {
                break;
            }
        }
        bound
    }

    /// Has it take messages from the kernel alone: those who send to a single socket are not waited for when it is
    /// released, as those are who send to groups (`netlink_getsockbyportid`).
    fn connect(&self) -> Result {
        let mut kernel = bindings::sockaddr_nl {
            nl_family: bindings::AF_NETLINK as u16,
            ..Default::default()
        };
        let size = size_of::<bindings::sockaddr_nl>() as c_int;
        // SAFETY: By the invariant the socket is open; the address is one of its family.
        to_result(unsafe {
            bindings::kernel_connect(self.0.as_ptr(), ptr::from_mut(&mut kernel).cast(), size, 0)
        })
    }

    /// Has it given the messages of a group.
    fn join(&self, group: u32) -> Result {
        let mut group = group;
        let mut value = bindings::sockptr_t::default();
        value.set_is_kernel(true);
        value.__bindgen_anon_1.kernel = ptr::from_mut(&mut group).cast();
        // SAFETY: By the invariant the socket is open. Options of netlink are read before this returns.
        to_result(unsafe {
            let set = (*(*self.0.as_ptr()).ops).setsockopt.ok_or(EOPNOTSUPP)?;
            set(
                self.0.as_ptr(),
                bindings::SOL_NETLINK as c_int,
                bindings::NETLINK_ADD_MEMBERSHIP as c_int,
                value,
                size_of::<u32>() as u32,
            )
        })
    }

    /// What the kernel calls when a message has been put into the socket's queue, or one could not be.
    ///
    /// # Safety
    ///
    /// `sock` has to be the one of a [`Watch`].
    unsafe extern "C" fn announced(sock: *mut bindings::sock) {
        // SAFETY: The socket is there as long as it is in a group, and so is its namespace.
        let net = unsafe { Net::from_raw(bindings::ft_sock_net(sock)) };
        let lost = || {
            let guard = rcu::read_lock();
            W::bridges_changed(Read::of(&guard), net);
        };
        let mut was_lost = false;
        // As long as others go on to put some into it, they are called as well.
        for _ in 0..AT_ONCE {
            // SAFETY: As above.
            match unsafe { receive(sock) } {
                // Until the queue was empty others may have been lost, too.
                Received::Nothing if was_lost => return lost(),
                Received::Nothing => return,
                Received::Message(message) => {
                    if let Some(index) = device_of(message) {
                        let guard = rcu::read_lock();
                        W::bridge_changed(Read::of(&guard), net, index);
                    }
                }
                Received::Lost => {
                    was_lost = true;
                    lost();
                }
            }
        }
    }
}

impl<W> Drop for Watch<W> {
    fn drop(&mut self) {
        // SAFETY: By the invariant it is open. Waits until nobody sends to its groups just now
        // (`netlink_table_grab` in net/netlink/af_netlink.c).
        unsafe { bindings::sock_release(self.0.as_ptr()) };
    }
}

/// Messages that are taken out of the queue at most, when one has been put into it.
const AT_ONCE: usize = 256;

/// The beginning of a message: its header, and the family and the index of a device behind that.
type Message = [u8; 24];

enum Received {
    Message(Message),
    /// A message was too short to be one of those that are asked for, could not be put into the queue, or could not even
    /// be made.
    Lost,
    Nothing,
}

/// Takes a message out of the queue.
///
/// By the socket's own method, because it also sees to it that there is room for others again after some were lost.
///
/// # Safety
///
/// `sock` has to be a netlink socket that is not being released.
unsafe fn receive(sock: *mut bindings::sock) -> Received {
    let mut message = Message::default();
    let vector = bindings::kvec {
        iov_base: message.as_mut_ptr().cast(),
        iov_len: size_of::<Message>(),
    };
    let mut header = bindings::msghdr::default();
    // SAFETY: The message is written to before this returns. With the flag the method does not sleep.
    let length = unsafe {
        let socket = (*sock).sk_socket;
        if socket.is_null() {
            return Received::Nothing;
        }
        let Some(method) = (*(*socket).ops).recvmsg else {
            return Received::Nothing;
        };
        bindings::iov_iter_kvec(
            &mut header.msg_iter,
            bindings::ITER_DEST,
            &vector,
            1,
            size_of::<Message>(),
        );
        method(
            socket,
            &mut header,
            size_of::<Message>(),
            bindings::MSG_DONTWAIT as c_int,
        )
    };
    match usize::try_from(length) {
        Ok(length) if length == size_of::<Message>() => Received::Message(message),
        Ok(_) => Received::Lost,
        Err(_) if length == EAGAIN.to_errno() => Received::Nothing,
        Err(_) => Received::Lost,
    }
}

/// The index of the device that a message is about, if that may be a bridge or a port of one. (`ifinfomsg`, `ndmsg` and
/// `br_vlan_msg` all begin with the family, and have the index in the same place.)
fn device_of(message: Message) -> Option<u32> {
    let [_, _, _, _, kind_low, kind_high, ..] = message;
    let kind = u32::from(u16::from_ne_bytes([kind_low, kind_high]));
    let [.., family, _, _, _, a, b, c, d] = message;
    let is_wanted = match kind {
        bindings::RTM_NEWLINK | bindings::RTM_DELLINK => true,
        bindings::RTM_NEWNEIGH
        | bindings::RTM_DELNEIGH
        | bindings::RTM_NEWVLAN
        | bindings::RTM_DELVLAN => u32::from(family) == bindings::AF_BRIDGE,
        _ => false,
    };
    is_wanted.then_some(u32::from_ne_bytes([a, b, c, d]))
}

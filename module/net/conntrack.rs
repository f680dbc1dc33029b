// SPDX-License-Identifier: GPL-2.0

//! Connection tracking.

use core::marker::PhantomData;
use core::ptr::addr_of;
use core::ptr::addr_of_mut;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering;

use kernel::error::to_result;
use kernel::prelude::*;
use kernel::types::Opaque;

use super::namespace::Net;
use super::time;
use crate::bindings;
use crate::engine::ip::Family;
use crate::engine::ip::Ip;
use crate::engine::ip::Pair;
use crate::engine::ip::V4;
use crate::engine::ip::V6;
use crate::engine::transport::Protocol;
use crate::engine::window::is_after;
use crate::engine::window::Known;
use crate::engine::window::Progress;

/// A `struct nf_conn`, seen while someone holds it.
#[repr(transparent)]
pub struct Connection(Opaque<bindings::nf_conn>);

// SAFETY: A conntrack entry is used by any thread.
unsafe impl Sync for Connection {}

/// One of the two directions of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// That of the packet that began it.
    Original = 0,
    /// The other one.
    Reply = 1,
}

impl Direction {
    /// The other direction.
    #[inline]
    pub const fn other(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// Addresses and ports of a packet in one direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<I: Ip> {
    /// Source and destination address, as they lie in the header.
    pub addresses: I::Addresses,
    /// Source and destination port, as they lie in the header; zero for a protocol without.
    pub ports: u32,
}

/// A version of IP that connections are tracked of.
pub trait Tracked: Ip {
    /// The addresses of a packet between two.
    #[doc(hidden)]
    fn between(source: &Address, destination: &Address) -> Self::Addresses;
}

/// An address in a conntrack entry, of either version.
#[repr(transparent)]
pub struct Address(bindings::nf_inet_addr);

impl Address {
    /// Its first four bytes, as they lie in memory: all of an IPv4 address.
    #[inline(always)]
    fn word(&self) -> u32 {
        // SAFETY: All members of the union are plain data, and this one begins where it does.
        unsafe { self.0.ip }
    }

    /// All its bytes, in two words.
    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        // SAFETY: All members of the union are plain data, and the largest is as long as two of these words.
        unsafe { addr_of!(self.0).cast::<[u64; 2]>().read_unaligned() }
    }
}

impl Tracked for V4 {
    #[inline(always)]
    fn between(source: &Address, destination: &Address) -> u64 {
        join(source.word(), destination.word())
    }
}

impl Tracked for V6 {
    #[inline(always)]
    fn between(source: &Address, destination: &Address) -> Pair {
        let [a, b] = source.words();
        let [c, d] = destination.words();
        Pair([a, b, c, d])
    }
}

/// The zone of connections that nobody has given one (`NF_CT_DEFAULT_ZONE_ID`).
pub const DEFAULT_ZONE: u16 = 0;

/// Two words that lie one behind the other. Not by their bytes: the compiler would keep them apart.
#[inline(always)]
const fn join(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}

/// Two ports that lie one behind the other.
#[inline(always)]
const fn join_ports(source: u16, destination: u16) -> u32 {
    if cfg!(target_endian = "little") {
        source as u32 | (destination as u32) << 16
    } else {
        (source as u32) << 16 | destination as u32
    }
}

impl Connection {
    /// # Safety
    ///
    /// `connection` has to be null or valid for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw<'a>(connection: *const bindings::nf_conn) -> Option<&'a Self> {
        // SAFETY: As required of the caller; the type is transparent.
        unsafe { connection.cast::<Self>().as_ref() }
    }

    #[inline(always)]
    fn raw(&self) -> *mut bindings::nf_conn {
        self.0.get()
    }

    #[inline(always)]
    fn status(&self) -> u64 {
        // SAFETY: The entry is valid; its status is a word that is changed by atomic operations.
        unsafe { addr_of!((*self.raw()).status).read_volatile() as u64 }
    }

    /// Whether it is being deleted.
    #[inline(always)]
    pub fn is_dying(&self) -> bool {
        self.status() & u64::from(bindings::ip_conntrack_status_IPS_DYING) != 0
    }

    /// Whether it is in the table, and packets were seen in both directions.
    pub fn is_confirmed_both_ways(&self) -> bool {
        let wanted = u64::from(
            bindings::ip_conntrack_status_IPS_CONFIRMED
                | bindings::ip_conntrack_status_IPS_SEEN_REPLY,
        );
        self.status() & wanted == wanted
    }

    /// Its mark.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: The entry is valid; its mark is a plain word.
        unsafe { addr_of!((*self.raw()).mark).read_volatile() }
    }

    /// The zone that packets of `direction` are looked up in.
    pub fn zone(&self, direction: Direction) -> u16 {
        // SAFETY: The entry is valid; its zone does not change once it is in the table.
        unsafe { bindings::ft_ct_zone_id(self.raw(), direction as u32) }
    }

    /// Whether a helper reads its packets.
    pub fn has_helper(&self) -> bool {
        // SAFETY: The entry is valid.
        unsafe { bindings::ft_ct_has_helper(self.raw()) }
    }

    /// Whether sequence numbers of its packets are, or may come to be, rewritten.
    pub fn adjusts_sequence(&self) -> bool {
        // SAFETY: The entry is valid.
        let may = unsafe { bindings::ft_ct_adjusts_sequence(self.raw()) };
        may || self.status() & u64::from(bindings::ip_conntrack_status_IPS_SEQ_ADJUST) != 0
    }

    /// Its number, as user space is shown it, in network byte order.
    pub fn id(&self) -> u32 {
        // SAFETY: The entry is valid.
        unsafe { bindings::nf_ct_get_id(self.raw()) }
    }

    /// One of its two tuples.
    #[inline(always)]
    fn raw_tuple(&self, direction: Direction) -> &bindings::nf_conntrack_tuple {
        // SAFETY: The entry is valid; its tuples do not change once it is confirmed, and are changed before
        // that only by NAT, for the packet that is looked at.
        unsafe { &*addr_of!((*self.raw()).tuplehash[direction as usize].tuple) }
    }

    /// Its version of IP, if it is one.
    pub fn family(&self) -> Option<Family> {
        match u32::from(self.raw_tuple(Direction::Original).src.l3num) {
            bindings::NFPROTO_IPV4 => Some(Family::V4),
            bindings::NFPROTO_IPV6 => Some(Family::V6),
            _ => None,
        }
    }

    /// Its transport protocol, if it is one that the fast path knows.
    pub fn protocol(&self) -> Option<Protocol> {
        Protocol::from_number(self.raw_tuple(Direction::Original).dst.protonum)
    }

    /// Addresses and ports that packets of `direction` arrive with. `I` has to be its version of IP.
    #[inline(always)]
    pub fn tuple<I: Tracked>(&self, direction: Direction) -> Tuple<I> {
        let tuple = self.raw_tuple(direction);
        // SAFETY: All members of the union are 16 bits, this one of any protocol.
        let ports = unsafe { (tuple.src.u.all, tuple.dst.u.all) };
        Tuple {
            addresses: I::between(Self::address(&tuple.src.u3), Self::address(&tuple.dst.u3)),
            ports: join_ports(ports.0, ports.1),
        }
    }

    /// Addresses and ports that packets of `direction` leave with: those that the answers come back to,
    /// the other way round. `I` has to be its version of IP.
    #[inline(always)]
    pub fn translated<I: Tracked>(&self, direction: Direction) -> Tuple<I> {
        let answer = self.raw_tuple(direction.other());
        // SAFETY: As in `tuple`.
        let ports = unsafe { (answer.dst.u.all, answer.src.u.all) };
        Tuple {
            addresses: I::between(Self::address(&answer.dst.u3), Self::address(&answer.src.u3)),
            ports: join_ports(ports.0, ports.1),
        }
    }

    #[inline(always)]
    fn address(address: &bindings::nf_inet_addr) -> &Address {
        // SAFETY: The type is transparent.
        unsafe { &*core::ptr::from_ref(address).cast() }
    }

    /// Ticks until it expires; not above zero if it has.
    pub fn left(&self) -> i32 {
        // SAFETY: The entry is valid; its timeout is a plain word.
        let timeout = unsafe { addr_of!((*self.raw()).timeout).read_volatile() };
        timeout.wrapping_sub(time::now().0) as i32
    }

    /// Makes it expire in `ticks`, unless its timeout was fixed.
    pub fn set_left(&self, ticks: u32) {
        if self.status() & u64::from(bindings::ip_conntrack_status_IPS_FIXED_TIMEOUT) != 0 {
            return;
        }
        let timeout = time::now().plus(ticks).0;
        // SAFETY: The entry is valid; the kernel writes its timeout the same way.
        unsafe { addr_of_mut!((*self.raw()).timeout).write_volatile(timeout) };
    }

    /// Its extension with counters, if connections were being counted when it began.
    #[inline(always)]
    fn counters(&self) -> Option<&bindings::nf_conn_acct> {
        const ACCOUNTING: usize = bindings::nf_ct_ext_id_NF_CT_EXT_ACCT as usize;
        // SAFETY: The entry is valid, and confirmed, so that its extensions stay where they are as long as it
        // does. The extension lies where its offset says; zero says that it is not there.
        unsafe {
            let extensions = (*self.raw()).ext;
            if extensions.is_null() {
                return None;
            }
            match *(*extensions).offset.get(ACCOUNTING)? {
                0 => None,
                at => Some(&*extensions.byte_add(at.into()).cast()),
            }
        }
    }

    /// Whether its packets and bytes are counted.
    pub fn is_counted(&self) -> bool {
        self.counters().is_some()
    }

    /// Counts a packet of `bytes` bytes, if it [is counted](Self::is_counted), as `nf_ct_acct_add` does.
    #[inline(always)]
    pub fn count(&self, direction: Direction, bytes: u32) {
        let Some(counter) = self
            .counters()
            .and_then(|counters| counters.counter.get(direction as usize))
        else {
            return;
        };
        // SAFETY: Two 64-bit atomic integers, which are part of the entry.
        let (packets, total) = unsafe {
            (
                AtomicU64::from_ptr(addr_of!(counter.packets).cast_mut().cast()),
                AtomicU64::from_ptr(addr_of!(counter.bytes).cast_mut().cast()),
            )
        };
        packets.fetch_add(1, Ordering::Relaxed);
        total.fetch_add(u64::from(bytes), Ordering::Relaxed);
    }

    /// Of a TCP connection: whether it is established.
    #[inline(always)]
    pub fn tcp_is_established(&self) -> bool {
        // SAFETY: The entry is valid; its state is a byte.
        let state = unsafe { addr_of!((*self.tcp()).state).read_volatile() };
        u32::from(state) == bindings::tcp_conntrack_TCP_CONNTRACK_ESTABLISHED
    }

    /// Of an SCTP association: whether it is established, and `tag` is the verification tag (as it lies in
    /// the header) of packets of `direction`.
    #[inline]
    pub fn sctp_is_established(&self, direction: Direction, tag: u32) -> bool {
        // SAFETY: The entry is valid. The union's members all begin where it does.
        let sctp = unsafe { addr_of!((*self.raw()).proto).cast::<bindings::ip_ct_sctp>() };
        // SAFETY: As above; state and tags are plain words.
        let (state, expected) = unsafe {
            (
                addr_of!((*sctp).state).read_volatile(),
                addr_of!((*sctp).vtag[direction as usize]).read_volatile(),
            )
        };
        state == bindings::sctp_conntrack_SCTP_CONNTRACK_ESTABLISHED && tag == expected
    }

    /// Of a TCP connection: what is known about `direction`. `None` if nothing is.
    pub fn tcp_progress(&self, direction: Direction) -> Option<Known> {
        let locked = self.lock();
        // SAFETY: The entry is valid, and its lock is held.
        let seen = unsafe { (*locked.0.tcp()).seen };
        let [original, reply] = seen;
        let (sender, receiver) = match direction {
            Direction::Original => (original, reply),
            Direction::Reply => (reply, original),
        };
        if sender.td_maxwin == 0 || receiver.td_maxwin == 0 {
            return None;
        }
        // SAFETY: The entry is valid.
        let all_are_liberal = unsafe { bindings::ft_ct_tcp_be_liberal(self.raw()) };
        let is_liberal = u32::from(sender.flags) & bindings::IP_CT_TCP_FLAG_BE_LIBERAL != 0;
        let progress = Progress {
            end: sender.td_end,
            ack: sender.td_maxack,
            edge: receiver.td_maxend,
            size: sender.td_maxwin,
        };
        Some(Known {
            progress,
            room: receiver.td_maxwin,
            liberal: is_liberal || all_are_liberal,
            scale: sender.td_scale,
        })
    }

    /// Of a TCP connection: brings conntrack up to what the fast path saw in either direction, as
    /// `tcp_in_window` would have with the same packets. Gives the timeout that the connection should
    /// have, in ticks.
    pub fn tcp_catch_up(&self, original: Option<Progress>, reply: Option<Progress>) -> u32 {
        let locked = self.lock();
        // SAFETY: The entry is valid, and its lock is held.
        let tcp = unsafe { &mut *locked.0.tcp() };
        let [a, b] = &mut tcp.seen;
        // First how far each side may go, then how far it went.
        allow(original, b);
        allow(reply, a);
        advance(original, a, b);
        advance(reply, b, a);
        settle(a, b);
        settle(b, a);
        let unacknowledged =
            (a.flags | b.flags) & bindings::IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED as u8 != 0;
        drop(locked);
        // SAFETY: The entry is valid; timeout policies are read in a read side, which the caller is in.
        unsafe { bindings::ft_ct_tcp_timeout(self.raw(), unacknowledged) }
    }

    #[inline(always)]
    fn tcp(&self) -> *mut bindings::ip_ct_tcp {
        // SAFETY: Only computes an address. The union's members all begin where it does.
        unsafe { addr_of_mut!((*self.raw()).proto).cast() }
    }

    fn lock(&self) -> Locked<'_> {
        // SAFETY: The entry is valid.
        unsafe { bindings::ft_ct_lock(self.raw()) };
        Locked(self)
    }

    /// A reference of one's own.
    pub fn hold(&self) -> Held {
        // SAFETY: The entry is valid, and held by someone.
        unsafe { bindings::ft_ct_get(self.raw()) };
        // INVARIANT: The reference has just been taken.
        Held(NonNull::from(self))
    }
}

/// The sender of `seen` allows the other side, `receiver`, to go as far as the edge.
fn allow(seen: Option<Progress>, receiver: &mut bindings::ip_ct_tcp_state) {
    if let Some(seen) = seen {
        if is_after(seen.edge, receiver.td_maxend) {
            receiver.td_maxend = seen.edge;
        }
    }
}

/// The sender went as far as `seen` says.
fn advance(
    seen: Option<Progress>,
    sender: &mut bindings::ip_ct_tcp_state,
    receiver: &mut bindings::ip_ct_tcp_state,
) {
    let Some(seen) = seen else {
        return;
    };
    if seen.size > sender.td_maxwin {
        sender.td_maxwin = seen.size;
    }
    if is_after(seen.end, sender.td_maxend) && receiver.td_maxwin != 0 {
        let excess = seen.end.wrapping_sub(sender.td_maxend);
        receiver.td_maxwin = receiver.td_maxwin.saturating_add(excess);
    }
    if is_after(seen.end, sender.td_end) {
        sender.td_end = seen.end;
    }
    let flag = bindings::IP_CT_TCP_FLAG_MAXACK_SET as u8;
    if sender.flags & flag == 0 || is_after(seen.ack, sender.td_maxack) {
        sender.td_maxack = seen.ack;
        sender.flags |= flag;
    }
}

/// Whether `sender` has sent anything that `receiver` has not acknowledged.
fn settle(sender: &mut bindings::ip_ct_tcp_state, receiver: &bindings::ip_ct_tcp_state) {
    let flag = bindings::IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED as u8;
    if is_after(sender.td_end, receiver.td_maxack) {
        sender.flags |= flag;
    } else {
        sender.flags &= !flag;
    }
}

/// The entry's own lock, taken.
struct Locked<'a>(&'a Connection);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // SAFETY: It was taken when this was made.
        unsafe { bindings::ft_ct_unlock(self.0.raw()) };
    }
}

/// A held reference to a connection.
///
/// # Invariants
///
/// The pointer is to a valid conntrack entry, of which this holds a reference.
pub struct Held(NonNull<Connection>);

// SAFETY: A conntrack entry is used and released by any thread.
unsafe impl Send for Held {}
// SAFETY: As above.
unsafe impl Sync for Held {}

impl Held {
    /// Whether it is `connection` that is held.
    #[inline]
    pub fn is(&self, connection: &Connection) -> bool {
        core::ptr::eq(self.0.as_ptr(), connection)
    }
}

impl core::ops::Deref for Held {
    type Target = Connection;

    #[inline]
    fn deref(&self) -> &Connection {
        // SAFETY: By the invariant.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: By the invariant there is a reference to give back.
        unsafe { bindings::ft_ct_put(self.raw()) };
    }
}

/// Has connections tracked in a namespace, whether or not any rule asks for it, until it is dropped.
pub struct Tracking<'a> {
    net: Net<'a>,
    _family: PhantomData<()>,
}

impl<'a> Tracking<'a> {
    /// Begins, for both versions of IP.
    ///
    /// # Errors
    ///
    /// What `nf_ct_netns_get` gives.
    pub fn new(net: Net<'a>) -> Result<Self> {
        // SAFETY: The namespace is valid.
        to_result(unsafe {
            bindings::nf_ct_netns_get(net.as_ptr(), bindings::NFPROTO_INET as u8)
        })?;
        Ok(Self {
            net,
            _family: PhantomData,
        })
    }
}

impl Drop for Tracking<'_> {
    fn drop(&mut self) {
        // SAFETY: The namespace is valid, and tracking was asked for in `new`.
        unsafe { bindings::nf_ct_netns_put(self.net.as_ptr(), bindings::NFPROTO_INET as u8) };
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Generic netlink: a family, its commands, and messages.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::pin::Pin;
use core::ptr;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering;

use kernel::error::to_result;
use kernel::prelude::*;

use super::namespace;
use super::namespace::Net;
use super::namespace::PerNamespace;
use super::rcu;
use crate::bindings;

/// What an attribute of a request has to be.
#[repr(transparent)]
pub struct Policy(bindings::nla_policy);

// SAFETY: Policies are only read; none has a pointer in it.
unsafe impl Sync for Policy {}

impl Policy {
    /// Not accepted.
    pub const REJECT: Self = Self::of(bindings::NLA_REJECT);
    /// A byte.
    pub const U8: Self = Self::of(bindings::NLA_U8);
    /// Four bytes in host byte order.
    pub const U32: Self = Self::of(bindings::NLA_U32);
    /// Eight bytes in host byte order.
    pub const U64: Self = Self::of(bindings::NLA_U64);

    const fn of(kind: u32) -> Self {
        // SAFETY: All zeroes is a policy.
        let mut policy: bindings::nla_policy = unsafe { core::mem::zeroed() };
        policy.type_ = kind as u8;
        Self(policy)
    }
}

/// A command that is answered once.
pub trait Action {
    /// Its number.
    const COMMAND: u8;
    /// Whether it needs CAP_NET_ADMIN over the namespace.
    const PRIVILEGED: bool;
    /// What its attributes have to be, by their number; the first one is for number 0 and not used.
    const POLICY: &'static [Policy];

    /// Carries it out.
    ///
    /// # Errors
    ///
    /// What the caller is told, besides what [`Request::refuse`] has noted.
    fn run(request: &Request<'_>) -> Result;
}

/// A command that is answered with a list.
pub trait Listing {
    /// Its number.
    const COMMAND: u8;
    /// Whether it needs CAP_NET_ADMIN over the namespace.
    const PRIVILEGED: bool;

    /// Goes on where `dump` was left, with [`Dump::add`], until the list is at its end.
    ///
    /// # Errors
    ///
    /// [`More`] if the message is full and the list is not at its end.
    fn list(dump: &mut Dump<'_>) -> Result<(), More>;
}

/// A message of a list is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct More;

/// A command of a family.
#[repr(transparent)]
pub struct Command(bindings::genl_split_ops);

// SAFETY: Operations are only read; what they point to is static.
unsafe impl Sync for Command {}

impl Command {
    /// A command that is answered once.
    pub const fn action<A: Action>() -> Self {
        // SAFETY: All zeroes are operations that do nothing.
        let mut operations: bindings::genl_split_ops = unsafe { core::mem::zeroed() };
        operations.__bindgen_anon_1.__bindgen_anon_1 =
            bindings::genl_split_ops__bindgen_ty_1__bindgen_ty_1 {
                pre_doit: None,
                doit: Some(act::<A>),
                post_doit: None,
            };
        operations.policy = A::POLICY.as_ptr().cast();
        operations.maxattr = (A::POLICY.len() as u32).saturating_sub(1);
        operations.cmd = A::COMMAND;
        operations.flags = bindings::GENL_CMD_CAP_DO as u8;
        if A::PRIVILEGED {
            operations.flags |= bindings::GENL_UNS_ADMIN_PERM as u8;
        }
        Self(operations)
    }

    /// A command that is answered with a list. It takes no attributes.
    pub const fn listing<L: Listing>() -> Self {
        // SAFETY: All zeroes are operations that do nothing.
        let mut operations: bindings::genl_split_ops = unsafe { core::mem::zeroed() };
        operations.__bindgen_anon_1.__bindgen_anon_2 =
            bindings::genl_split_ops__bindgen_ty_1__bindgen_ty_2 {
                start: None,
                dumpit: Some(list::<L>),
                done: None,
            };
        operations.cmd = L::COMMAND;
        operations.flags = bindings::GENL_CMD_CAP_DUMP as u8;
        if L::PRIVILEGED {
            operations.flags |= bindings::GENL_UNS_ADMIN_PERM as u8;
        }
        Self(operations)
    }
}

/// What the kernel calls to have an action carried out.
///
/// # Safety
///
/// `info` has to be a valid request, checked against the action's policy.
unsafe extern "C" fn act<A: Action>(
    _skb: *mut bindings::sk_buff,
    info: *mut bindings::genl_info,
) -> i32 {
    // SAFETY: The kernel passes a valid request, whose attributes it has checked against the policy.
    let request = unsafe { Request::new(info, A::POLICY.len()) };
    match A::run(&request) {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// What the kernel calls to have a list continued.
///
/// # Safety
///
/// Both have to be valid.
unsafe extern "C" fn list<L: Listing>(
    skb: *mut bindings::sk_buff,
    callback: *mut bindings::netlink_callback,
) -> i32 {
    // SAFETY: The kernel passes a valid message to fill and a valid callback.
    let mut dump = unsafe { Dump::new(skb, callback) };
    match L::list(&mut dump) {
        Ok(()) => 0,
        // SAFETY: As above. A message that nothing fits in would never get anywhere.
        Err(More) => match unsafe { (*skb).len } {
            0 => EMSGSIZE.to_errno(),
            len => len as i32,
        },
    }
}

/// A multicast group of a family.
#[repr(transparent)]
pub struct Group(bindings::genl_multicast_group);

// SAFETY: Only read.
unsafe impl Sync for Group {}

impl Group {
    /// A group with the given name, of up to 15 bytes. Who joins it needs CAP_NET_ADMIN over the
    /// namespace.
    pub const fn new(name: &str) -> Self {
        // SAFETY: All zeroes is a group without a name.
        let mut group: bindings::genl_multicast_group = unsafe { core::mem::zeroed() };
        group.name = name_bytes(name);
        group.flags = bindings::FT_GENL_MCAST_CAP_NET_ADMIN as u8;
        Self(group)
    }
}

/// A name as the kernel keeps it: up to 15 bytes and a zero.
const fn name_bytes(name: &str) -> [kernel::ffi::c_char; 16] {
    let mut bytes = [0; 16];
    let name = name.as_bytes();
    assert!(
        name.len() < 16,
        "the name of a family or group has at most 15 bytes"
    );
    let mut at = 0;
    while at < name.len() {
        bytes[at] = name[at] as kernel::ffi::c_char;
        at += 1;
    }
    bytes
}

/// A generic netlink family. Lives for ever; is there for user space while it is registered.
pub struct Family {
    raw: UnsafeCell<bindings::genl_family>,
    name: [kernel::ffi::c_char; 16],
    version: u32,
    commands: &'static [Command],
    groups: &'static [Group],
    registered: AtomicBool,
}

// SAFETY: Written while it is being registered, which is done once, and by the kernel under its lock.
unsafe impl Sync for Family {}

impl Family {
    /// A family that is not registered, with a name of up to 15 bytes. Its commands have to be in
    /// ascending order.
    pub const fn new(
        name: &'static str,
        version: u32,
        commands: &'static [Command],
        groups: &'static [Group],
    ) -> Self {
        Self {
            // SAFETY: All zeroes is a family without anything.
            raw: UnsafeCell::new(unsafe { core::mem::zeroed() }),
            name: name_bytes(name),
            version,
            commands,
            groups,
            registered: AtomicBool::new(false),
        }
    }

    /// Registers it, until the result is dropped.
    ///
    /// # Errors
    ///
    /// What `genl_register_family` gives.
    ///
    /// # Safety
    ///
    /// Once at a time.
    pub unsafe fn register(&'static self, module: &'static ThisModule) -> Result<Registered> {
        let mut family = bindings::genl_family {
            name: self.name,
            version: self.version,
            split_ops: self.commands.as_ptr().cast(),
            n_split_ops: self.commands.len() as u8,
            mcgrps: self.groups.as_ptr().cast(),
            n_mcgrps: self.groups.len() as u8,
            module: module.as_ptr().cast(),
            ..Default::default()
        };
        family.set_netnsok(1);
        // Commands that have to exclude each other take a lock of their own.
        family.set_parallel_ops(1);
        // SAFETY: As required of the caller, nobody else has it.
        unsafe { *self.raw.get() = family };
        // SAFETY: The family is static, and so is all that it points to.
        to_result(unsafe { bindings::genl_register_family(self.raw.get()) })?;
        self.registered.store(true, Ordering::Release);
        Ok(Registered(self))
    }

    /// Whether anybody in `net` listens to a group, by its position.
    pub fn has_listeners(&'static self, net: Net<'_>, group: u32) -> bool {
        if !self.registered.load(Ordering::Acquire) {
            return false;
        }
        // SAFETY: The family is registered, and stays so during a read side or for as long as its user is
        // waited for; the namespace is valid.
        unsafe { bindings::ft_genl_has_listeners(self.raw.get(), net.as_ptr(), group) }
    }

    /// Sends what `fill` writes to those in `net` who listen to a group, without sleeping. What can't be
    /// sent is lost; listeners are told by their socket.
    pub fn notify(
        &'static self,
        net: Net<'_>,
        group: u32,
        command: u8,
        fill: impl FnOnce(&mut Message<'_>) -> Result<(), More>,
    ) {
        // SAFETY: Allocates a message.
        let Some(skb) = NonNull::new(unsafe { bindings::ft_genlmsg_new(true) }) else {
            return;
        };
        let skb = Buffer(skb);
        // SAFETY: The message is ours; the family is valid.
        if unsafe { write(skb.0, 0, 0, self.raw.get(), 0, command, fill) }.is_err() {
            return;
        }
        let skb = core::mem::ManuallyDrop::new(skb);
        // SAFETY: The message is given up. If there is nobody, it is freed.
        let _ = unsafe {
            bindings::ft_genlmsg_multicast(
                self.raw.get(),
                net.as_ptr(),
                skb.0.as_ptr(),
                group,
                true,
            )
        };
    }
}

/// Keeps a [`Family`] registered until it is dropped.
pub struct Registered(&'static Family);

impl Drop for Registered {
    fn drop(&mut self) {
        // Events are sent in a read side.
        self.0.registered.store(false, Ordering::Release);
        rcu::synchronize();
        // SAFETY: It was registered. Waits until no command is being carried out any more.
        let _ = unsafe { bindings::genl_unregister_family(self.0.raw.get()) };
    }
}

/// A message that is ours to free.
struct Buffer(NonNull<bindings::sk_buff>);

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: It is ours.
        unsafe { bindings::ft_kfree_skb(self.0.as_ptr()) };
    }
}

/// A request that is being answered.
pub struct Request<'a> {
    info: NonNull<bindings::genl_info>,
    attributes: usize,
    _lives: PhantomData<&'a ()>,
}

impl<'a> Request<'a> {
    /// # Safety
    ///
    /// `info` has to be valid for `'a`, with an array of `attributes` pointers.
    unsafe fn new(info: *mut bindings::genl_info, attributes: usize) -> Self {
        Self {
            // SAFETY: As required of the caller.
            info: unsafe { NonNull::new_unchecked(info) },
            attributes,
            _lives: PhantomData,
        }
    }

    /// Attribute `number`, if the request has it.
    pub fn attribute(&self, number: u16) -> Option<Attribute<'a>> {
        if usize::from(number) >= self.attributes {
            return None;
        }
        // SAFETY: The request is valid.
        let attributes = unsafe { (*self.info.as_ptr()).attrs };
        if attributes.is_null() {
            return None;
        }
        // SAFETY: The array has that many pointers, each null or to a valid attribute.
        let attribute = unsafe { *attributes.add(usize::from(number)) };
        NonNull::new(attribute).map(|attribute| Attribute(attribute, PhantomData))
    }

    /// Notes why the request is refused, and because of which attribute.
    pub fn refuse(
        &self,
        error: Error,
        why: &'static CStr,
        attribute: Option<Attribute<'_>>,
    ) -> Error {
        let attribute = attribute.map_or(ptr::null(), |a| a.0.as_ptr().cast_const());
        // SAFETY: The request is valid, and the text lives for ever.
        unsafe { bindings::ft_extack(self.info.as_ptr(), why.as_char_ptr(), attribute) };
        error
    }

    /// The namespace of the socket that the request came from.
    pub fn net(&self) -> Net<'a> {
        // SAFETY: The request names its namespace, which its socket keeps alive.
        unsafe { Net::from_raw((*self.info.as_ptr())._net.net) }
    }

    /// What is kept for that namespace.
    pub fn namespace<T: PerNamespace>(&self) -> Option<Pin<&'a T>> {
        // SAFETY: The socket keeps the namespace alive; and a family is unregistered, which waits for
        // its commands, before what is kept for namespaces.
        unsafe { namespace::of(self.net()) }
    }

    /// Answers with what `fill` writes.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EMSGSIZE`, or what sending gives.
    pub fn reply(
        &self,
        command: u8,
        fill: impl FnOnce(&mut Message<'_>) -> Result<(), More>,
    ) -> Result {
        // SAFETY: Allocates a message.
        let skb = Buffer(NonNull::new(unsafe { bindings::ft_genlmsg_new(false) }).ok_or(ENOMEM)?);
        let info = self.info.as_ptr();
        // SAFETY: The request is valid, and the message is ours.
        unsafe {
            write(
                skb.0,
                (*info).snd_portid,
                (*info).snd_seq,
                (*info).family,
                0,
                command,
                fill,
            )
        }
        .map_err(|_| EMSGSIZE)?;
        let skb = core::mem::ManuallyDrop::new(skb);
        // SAFETY: The message is given up.
        to_result(unsafe { bindings::ft_genlmsg_reply(skb.0.as_ptr(), info) })
    }
}

/// An attribute of a request, of the length that its policy asks for.
#[derive(Clone, Copy)]
pub struct Attribute<'a>(NonNull<bindings::nlattr>, PhantomData<&'a ()>);

impl Attribute<'_> {
    /// Its value, as `N` bytes; zeroes if it is shorter, which its policy excludes.
    fn bytes<const N: usize>(self) -> [u8; N] {
        // SAFETY: The attribute is valid: a header, and the bytes behind it that its length counts.
        unsafe {
            let header = self.0.as_ptr();
            if usize::from((*header).nla_len) < size_of::<bindings::nlattr>() + N {
                return [0; N];
            }
            header.add(1).cast::<[u8; N]>().read_unaligned()
        }
    }

    /// Its value, if it is a byte.
    pub fn u8(self) -> u8 {
        u8::from_ne_bytes(self.bytes())
    }

    /// Its value, if it is four bytes.
    pub fn u32(self) -> u32 {
        u32::from_ne_bytes(self.bytes())
    }

    /// Its value, if it is eight bytes.
    pub fn u64(self) -> u64 {
        u64::from_ne_bytes(self.bytes())
    }
}

/// A list that is being given, message by message.
pub struct Dump<'a> {
    skb: NonNull<bindings::sk_buff>,
    callback: NonNull<bindings::netlink_callback>,
    _lives: PhantomData<&'a ()>,
}

impl<'a> Dump<'a> {
    /// # Safety
    ///
    /// Both have to be valid for `'a`.
    unsafe fn new(skb: *mut bindings::sk_buff, callback: *mut bindings::netlink_callback) -> Self {
        // SAFETY: As required of the caller.
        unsafe {
            Self {
                skb: NonNull::new_unchecked(skb),
                callback: NonNull::new_unchecked(callback),
                _lives: PhantomData,
            }
        }
    }

    /// Where the list is at: two numbers that are kept from one message to the next, zero at first.
    pub fn place(&mut self) -> &mut [usize; 2] {
        // SAFETY: The callback is ours while it is being called; its context is for our use, and is
        // zeroed before the first call. It is larger, and aligned.
        unsafe { &mut *(&raw mut (*self.callback.as_ptr()).__bindgen_anon_1).cast() }
    }

    /// Says which state of the list the next message shows: if it is another one than that of the
    /// message before, the reader is told that the list is not consistent.
    pub fn set_generation(&mut self, generation: u32) {
        // SAFETY: The callback is ours while it is being called. 0 stands for "not said".
        unsafe { (*self.callback.as_ptr()).seq = generation.max(1) };
    }

    /// The namespace of the socket that the request came from.
    pub fn net(&self) -> Net<'a> {
        // SAFETY: The request's message belongs to its socket, which keeps its namespace alive.
        unsafe { Net::from_raw(bindings::ft_skb_sock_net((*self.callback.as_ptr()).skb)) }
    }

    /// What is kept for that namespace.
    pub fn namespace<T: PerNamespace>(&self) -> Option<Pin<&'a T>> {
        // SAFETY: As for a request.
        unsafe { namespace::of(self.net()) }
    }

    /// Adds what `fill` writes to the list.
    ///
    /// # Errors
    ///
    /// [`More`] if it does not fit.
    pub fn add(
        &mut self,
        family: &'static Family,
        command: u8,
        fill: impl FnOnce(&mut Message<'_>) -> Result<(), More>,
    ) -> Result<(), More> {
        let callback = self.callback.as_ptr();
        // SAFETY: The callback is valid; it belongs to a request.
        let (port, sequence, interrupted) = unsafe {
            let answered = (*callback).skb;
            let port = (*addr_of_control(answered)).portid;
            let seen = (*callback).prev_seq;
            let interrupted = seen != 0 && seen != (*callback).seq;
            (*callback).prev_seq = (*callback).seq;
            (port, (*(*callback).nlh).nlmsg_seq, interrupted)
        };
        let mut flags = bindings::NLM_F_MULTI;
        if interrupted {
            flags |= bindings::NLM_F_DUMP_INTR;
        }
        // SAFETY: The kernel lets us fill the message.
        unsafe {
            write(
                self.skb,
                port,
                sequence,
                family.raw.get(),
                flags,
                command,
                fill,
            )
        }
    }
}

/// Where netlink keeps who sent a message.
fn addr_of_control(skb: *mut bindings::sk_buff) -> *mut bindings::netlink_skb_parms {
    // SAFETY: Only computes an address.
    unsafe { (&raw mut (*skb).cb).cast() }
}

/// Writes a message to the end of `skb`; nothing if it does not fit.
///
/// # Safety
///
/// `skb` has to be a valid netlink message that nobody else looks at, `family` a valid family.
unsafe fn write(
    skb: NonNull<bindings::sk_buff>,
    port: u32,
    sequence: u32,
    family: *const bindings::genl_family,
    flags: u32,
    command: u8,
    fill: impl FnOnce(&mut Message<'_>) -> Result<(), More>,
) -> Result<(), More> {
    // SAFETY: As required of the caller.
    let header = unsafe {
        bindings::genlmsg_put(skb.as_ptr(), port, sequence, family, flags as i32, command)
    };
    if header.is_null() {
        return Err(More);
    }
    let mut message = Message {
        skb,
        _lives: PhantomData,
    };
    let result = fill(&mut message);
    // SAFETY: The header is that of this message.
    unsafe {
        match result {
            Ok(()) => bindings::ft_genlmsg_end(skb.as_ptr(), header),
            Err(More) => bindings::ft_genlmsg_cancel(skb.as_ptr(), header),
        }
    }
    result
}

/// A message that is being written.
pub struct Message<'a> {
    skb: NonNull<bindings::sk_buff>,
    _lives: PhantomData<&'a mut ()>,
}

impl Message<'_> {
    /// Adds an attribute with the given bytes.
    ///
    /// # Errors
    ///
    /// [`More`] if it does not fit. The same goes for the others.
    pub fn bytes(&mut self, number: u16, value: &[u8]) -> Result<(), More> {
        // SAFETY: The message is ours to write to; the value is that long, and short.
        let result = unsafe {
            bindings::nla_put(
                self.skb.as_ptr(),
                i32::from(number),
                value.len() as i32,
                value.as_ptr().cast(),
            )
        };
        to_result(result).map_err(|_| More)
    }

    /// Adds a byte.
    #[allow(clippy::missing_errors_doc)]
    pub fn u8(&mut self, number: u16, value: u8) -> Result<(), More> {
        self.bytes(number, &[value])
    }

    /// Adds four bytes in host byte order.
    #[allow(clippy::missing_errors_doc)]
    pub fn u32(&mut self, number: u16, value: u32) -> Result<(), More> {
        self.bytes(number, &value.to_ne_bytes())
    }

    /// Adds eight bytes in host byte order.
    #[allow(clippy::missing_errors_doc)]
    pub fn u64(&mut self, number: u16, value: u64) -> Result<(), More> {
        self.bytes(number, &value.to_ne_bytes())
    }

    /// Adds the attributes that `fill` writes, nested in one.
    #[allow(clippy::missing_errors_doc)]
    pub fn nest(
        &mut self,
        number: u16,
        fill: impl FnOnce(&mut Self) -> Result<(), More>,
    ) -> Result<(), More> {
        // SAFETY: The message is ours to write to.
        let nest = unsafe { bindings::ft_nla_nest_start(self.skb.as_ptr(), i32::from(number)) };
        if nest.is_null() {
            return Err(More);
        }
        // If this fails the whole message is taken back.
        fill(self)?;
        // SAFETY: The nest was begun in this message.
        unsafe { bindings::ft_nla_nest_end(self.skb.as_ptr(), nest) };
        Ok(())
    }
}

// SPDX-License-Identifier: GPL-2.0

//! A table that is read under RCU: the engine's index, and the objects that it leads to.

use core::marker::PhantomData;
use core::pin::Pin;
use core::ptr;
use core::ptr::NonNull;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::prelude::*;
use kernel::sync::Arc;

use super::lock::BhLock;
use super::rcu;
use super::rcu::Read;
use super::slab::Slab;
use crate::bindings;
use crate::engine::index;
use crate::engine::index::Bucket;
use crate::engine::index::Index;
use crate::engine::index::Memory;
use crate::engine::index::Reference;
use crate::engine::index::Writer;
use crate::engine::key::Hash;
use crate::engine::key::Hasher;
use crate::engine::key::Key;
use crate::engine::key::SECRETS;

/// What a [`Table`] holds.
pub trait Entry: Send + Sync {
    /// The hash that the entry is found by; the same during all its life.
    fn hash(&self, hasher: &Hasher) -> Hash;

    /// Its link in the list of entries that wait to be dropped.
    fn link(&self) -> &Link<Self>
    where
        Self: Sized;
}

/// A place in the list of entries that have been taken out and wait for readers to leave them.
pub struct Link<T>(AtomicPtr<T>);

impl<T> Link<T> {
    /// Not in the list.
    pub const fn unlinked() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }
}

/// Why an entry was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAdded {
    /// There is no room.
    Full,
    /// There is no memory.
    NoMemory,
    /// There is such an entry already.
    Exists,
    /// The table is closed.
    Closed,
}

/// A table of `T`s.
///
/// Readers take no lock: they hold a [`Read`] and get references that live as long as it does. Writers
/// take the lock inside. An entry that is taken out is dropped by [`Table::reclaim`], which waits for
/// the readers.
///
/// # Invariants
///
/// Every [`Reference`] in the index, and every pointer in the list of dead entries, is to an entry
/// that came from the slab and has not been dropped. An entry that was in the index is dropped only
/// after it has been taken out and a grace period has passed.
#[pin_data(PinnedDrop)]
pub struct Table<T: Entry> {
    active: rcu::RcuBox<Active>,
    #[pin]
    state: BhLock<State<T>>,
    slab: Arc<Slab<T>>,
}

/// An index together with what is needed to use it.
struct Active {
    index: Index<Buckets>,
    hasher: Hasher,
    capacity: u32,
}

/// What a table is opened with: memory for its index.
pub struct Prepared(KBox<Active>);

/// The memory of the buckets.
///
/// # Invariants
///
/// `first` is the first of the buckets, which neither move nor change in number; there is at least one, and if
/// their number is a power of two, `mask` is one less than that; else it is zero.
struct Buckets {
    first: NonNull<Bucket>,
    mask: usize,
    memory: KVVec<Bucket>,
}

// SAFETY: The pointer is to what is owned.
unsafe impl Send for Buckets {}
// SAFETY: As above.
unsafe impl Sync for Buckets {}

impl Buckets {
    /// `None` if there are none.
    fn new(memory: KVVec<Bucket>) -> Option<Self> {
        let first = NonNull::from(memory.first()?);
        let mask = match memory.len() {
            len if len.is_power_of_two() => len.wrapping_sub(1),
            _ => 0,
        };
        // INVARIANT: The vector's memory stays where it is when the vector is moved.
        Some(Self {
            first,
            mask,
            memory,
        })
    }
}

impl Memory for Buckets {
    fn count(&self) -> usize {
        self.memory.len()
    }

    #[inline(always)]
    fn bucket(&self, number: usize) -> &Bucket {
        // SAFETY: By the invariant the masked number is that of a bucket.
        unsafe { self.first.add(number & self.mask).as_ref() }
    }
}

/// What the lock protects.
struct State<T> {
    writer: Writer,
    /// Head of the list of dead entries.
    dead: *mut T,
    generation: u32,
    _owns: PhantomData<T>,
}

// SAFETY: The list owns its entries, which may be dropped by any thread.
unsafe impl<T: Send> Send for State<T> {}

impl<T: Entry> Table<T> {
    /// Entries are found by their address without its lowest bits.
    const ALIGNED: () = assert!(align_of::<T>() >= 1 << ADDRESS_SHIFT);

    /// A closed table, which holds nothing, for entries from `slab`.
    pub fn new(slab: Arc<Slab<T>>) -> impl PinInit<Self> {
        let () = Self::ALIGNED;
        pin_init!(Self {
            active: rcu::RcuBox::empty(),
            state <- BhLock::new(State {
                writer: Writer::new(),
                dead: ptr::null_mut(),
                generation: 1,
                _owns: PhantomData,
            }),
            slab,
        })
    }

    /// Allocates what is needed to open a table for up to `capacity` entries.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn prepare(capacity: u32) -> Result<Prepared> {
        let count = index::buckets_for(capacity);
        // Charged to whoever asks for it: that need not be the host's own administrator.
        let mut buckets = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            buckets.push(Bucket::default(), GFP_KERNEL_ACCOUNT)?;
        }
        let index = Buckets::new(buckets).and_then(Index::new).ok_or(EINVAL)?;
        // SAFETY: Gives random numbers.
        let random = || unsafe { bindings::ft_random() };
        let active = KBox::new(
            Active {
                index,
                hasher: Hasher::new([(); SECRETS].map(|()| random())),
                capacity,
            },
            GFP_KERNEL,
        )?;
        Ok(Prepared(active))
    }

    /// Opens the table. If it was open, it loses all its entries. Sleeps.
    pub fn open(&self, prepared: Prepared) {
        self.put(Some(prepared.0));
    }

    /// Takes out every entry, and closes the table.
    pub fn close(&self) {
        self.put(None);
    }

    /// Replaces the index, and drops all entries of the old one.
    fn put(&self, new: Option<KBox<Active>>) {
        let old = {
            let mut state = self.state.lock();
            state.generation = state.generation.wrapping_add(1);
            state.writer = Writer::new();
            self.active.replace(new)
        };
        // Nobody finds the old index any more, to take entries out or otherwise; who did is done with it
        // after a grace period.
        rcu::synchronize();
        let Some(active) = old.as_ref().and_then(rcu::Replaced::get) else {
            return;
        };
        for at in 0..active.index.len() {
            active.index.visit_bucket(at, |reference| {
                // SAFETY: By the invariant the reference leads to a live entry, which came from the slab.
                // It was in no other index, and in no list of dead entries, or it would not be in this.
                unsafe { self.slab.free(resolve::<T>(reference)) };
            });
        }
    }

    /// Finds the entry for which `is` holds among those with the hash of the key that `key` computes.
    #[inline(always)]
    pub fn find<'rcu>(
        &'rcu self,
        read: Read<'rcu>,
        key: impl FnOnce(&Hasher) -> Key,
        is: impl Fn(&T, Key) -> bool,
    ) -> Option<&'rcu T> {
        self.find_or_hash(read, key, is).ok()
    }

    /// The same; if there is none, the hash of the key, or `None` if the table is closed.
    #[inline(always)]
    pub fn find_or_hash<'rcu>(
        &'rcu self,
        read: Read<'rcu>,
        key: impl FnOnce(&Hasher) -> Key,
        is: impl Fn(&T, Key) -> bool,
    ) -> Result<&'rcu T, Option<Hash>> {
        let active = self.active.read(read).ok_or(None)?;
        let key = key(&active.hasher);
        let hash = active.hasher.hash(key);
        active.find(hash, |entry| is(entry, key)).ok_or(Some(hash))
    }

    /// The key that `key` computes, and its hash. `None` if the table is closed.
    pub fn key(&self, read: Read<'_>, key: impl FnOnce(&Hasher) -> Key) -> Option<(Key, Hash)> {
        let hasher = &self.active.read(read)?.hasher;
        let key = key(hasher);
        Some((key, hasher.hash(key)))
    }

    /// Adds an entry, unless there is one already for which `same` holds.
    ///
    /// # Errors
    ///
    /// See [`NotAdded`]. The entry has been dropped then.
    pub fn add<'rcu>(
        &'rcu self,
        read: Read<'rcu>,
        entry: T,
        same: impl Fn(&T) -> bool,
    ) -> Result<&'rcu T, NotAdded> {
        self.exchange(read, None, entry, same)
    }

    /// Takes `old` out and adds `entry` in its place.
    ///
    /// # Errors
    ///
    /// See [`NotAdded`]. The entry has been dropped then; `old` may have been taken out all the same.
    pub fn replace<'rcu>(
        &'rcu self,
        read: Read<'rcu>,
        old: &T,
        entry: T,
        same: impl Fn(&T) -> bool,
    ) -> Result<&'rcu T, NotAdded> {
        self.exchange(read, Some(old), entry, same)
    }

    fn exchange<'rcu>(
        &'rcu self,
        read: Read<'rcu>,
        old: Option<&T>,
        entry: T,
        same: impl Fn(&T) -> bool,
    ) -> Result<&'rcu T, NotAdded> {
        let new = self.slab.put(entry).ok_or(NotAdded::NoMemory)?;
        let added = self.link(read, old, new, same);
        if added.is_err() {
            // SAFETY: It came from the slab just now, and did not get into the index.
            unsafe { self.slab.free(new) };
        }
        added
    }

    /// Puts an entry from the slab into the index, under the lock.
    fn link<'rcu>(
        &'rcu self,
        read: Read<'rcu>,
        old: Option<&T>,
        new: NonNull<T>,
        same: impl Fn(&T) -> bool,
    ) -> Result<&'rcu T, NotAdded> {
        let mut state = self.state.lock();
        // Under the lock, so that no entry gets into an index that has been replaced.
        let active = self.active.read(read).ok_or(NotAdded::Closed)?;
        if let Some(old) = old {
            self.unlink(active, &mut state, old);
        }
        // SAFETY: It came from the slab just now. From here on it is only shared.
        let entry: &'rcu T = unsafe { new.as_ref() };
        let hash = entry.hash(&active.hasher);
        if active.find(hash, same).is_some() {
            return Err(NotAdded::Exists);
        }
        if state.writer.used() >= active.capacity {
            return Err(NotAdded::Full);
        }
        // An address that a reference can't stand for would be one in user space.
        let reference = reference(new).ok_or(NotAdded::NoMemory)?;
        active
            .index
            .insert(&mut state.writer, hash, reference, |resident| {
                // SAFETY: By the invariant it leads to a live entry, and the lock keeps it in.
                unsafe { resolve::<T>(resident).as_ref() }.hash(&active.hasher)
            })
            .map_err(|_| NotAdded::Full)?;
        Ok(entry)
    }

    /// Takes an entry out. Gives whether it was in.
    pub fn remove(&self, read: Read<'_>, entry: &T) -> bool {
        let mut state = self.state.lock();
        match self.active.read(read) {
            Some(active) => self.unlink(active, &mut state, entry),
            None => false,
        }
    }

    fn unlink(&self, active: &Active, state: &mut State<T>, entry: &T) -> bool {
        let hash = entry.hash(&active.hasher);
        let removed = match reference(NonNull::from(entry)) {
            Some(reference) => active.index.remove(&mut state.writer, hash, reference),
            None => false,
        };
        if removed {
            state.bury(entry);
        }
        removed
    }

    /// Calls `visit` with every entry of the buckets from `from` on, but no more than `count` buckets.
    /// Gives the bucket to go on with, or `None` if there are no more.
    pub fn visit<'rcu>(
        &'rcu self,
        read: Read<'rcu>,
        from: usize,
        count: usize,
        mut visit: impl FnMut(&'rcu T),
    ) -> Option<usize> {
        let active = self.active.read(read)?;
        let len = active.index.len();
        let to = from.saturating_add(count).min(len);
        for at in from..to {
            active.index.visit_bucket(at, |reference| {
                // SAFETY: By the invariant it leads to an entry that is not dropped before a grace
                // period has passed, and `read` shows that none ends before `'rcu` does.
                visit(unsafe { resolve::<T>(reference).as_ref() });
            });
        }
        (to < len).then_some(to)
    }

    /// Drops the entries that have been taken out, when no reader can be looking at them any more.
    /// Sleeps if there are any. Gives how many there were.
    pub fn reclaim(&self) -> usize {
        let head = {
            let mut state = self.state.lock();
            core::mem::replace(&mut state.dead, ptr::null_mut())
        };
        if head.is_null() {
            return 0;
        }
        rcu::synchronize();
        let mut count = 0usize;
        let mut next = NonNull::new(head);
        while let Some(entry) = next {
            // SAFETY: By the invariant the list's entries are live.
            let link = unsafe { entry.as_ref() }.link();
            next = NonNull::new(link.0.load(Ordering::Relaxed));
            // SAFETY: It came from the slab, was taken out of the index before the grace period, and
            // is in no list any more.
            unsafe { self.slab.free(entry) };
            count = count.saturating_add(1);
        }
        count
    }

    /// Counts how often the table was opened or closed.
    pub fn generation(&self) -> u32 {
        self.state.lock().generation
    }

    /// Buckets of the index; 0 if the table is closed.
    pub fn buckets(&self, read: Read<'_>) -> usize {
        self.active
            .read(read)
            .map_or(0, |active| active.index.len())
    }

    /// Entries in the table.
    pub fn count(&self) -> u32 {
        self.state.lock().writer.used()
    }

    /// Bytes that the index takes.
    pub fn index_bytes(&self, read: Read<'_>) -> usize {
        self.buckets(read).saturating_mul(size_of::<Bucket>())
    }
}

impl<T> State<T> {
    /// Puts an entry that has been taken out into the list of dead ones.
    fn bury(&mut self, entry: &T)
    where
        T: Entry,
    {
        entry.link().0.store(self.dead, Ordering::Relaxed);
        self.dead = ptr::from_ref(entry).cast_mut();
    }
}

#[pinned_drop]
impl<T: Entry> PinnedDrop for Table<T> {
    fn drop(self: Pin<&mut Self>) {
        self.close();
        self.reclaim();
    }
}

impl Active {
    #[inline(always)]
    fn find<'rcu, T: Entry>(&self, hash: Hash, is: impl Fn(&T) -> bool) -> Option<&'rcu T> {
        self.index.find(hash, |reference| {
            // SAFETY: By the table's invariant it leads to an entry that is not dropped before the
            // read side that `self` was found in has ended.
            let entry: &'rcu T = unsafe { resolve::<T>(reference).as_ref() };
            is(entry).then_some(entry)
        })
    }
}

/// Lowest bits of an entry's address, which are zero.
const ADDRESS_SHIFT: u32 = 6;

/// The reference that stands for an entry: its address without the bits that are the same for every
/// entry in kernel memory. `None` for an address of which that is not true.
#[inline]
fn reference<T>(entry: NonNull<T>) -> Option<Reference> {
    let value = entry.as_ptr() as u64 >> ADDRESS_SHIFT & ((1 << index::REFERENCE_BITS) - 1);
    let reference = Reference::new(value)?;
    (resolve::<T>(reference) == entry).then_some(reference)
}

/// The entry that a reference stands for. The upper bits of a kernel address are copies of the highest
/// bit that the reference holds.
#[inline(always)]
fn resolve<T>(reference: Reference) -> NonNull<T> {
    let high = reference.value() << (u64::BITS - index::REFERENCE_BITS);
    let address = high as i64 >> (u64::BITS - index::REFERENCE_BITS - ADDRESS_SHIFT);
    // A reference is never zero, so neither is the address.
    NonNull::new(address as usize as *mut T).unwrap_or(NonNull::dangling())
}

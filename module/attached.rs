// SPDX-License-Identifier: GPL-2.0

//! Hooks on devices: which there are of one kind.

use core::pin::Pin;

use kernel::prelude::*;
use kernel::sync::rcu;
use kernel::sync::Arc;

use crate::net::device::Device;
use crate::net::device::Rtnl;
use crate::net::hook::Hook;
use crate::net::hook::Ingress;
use crate::net::namespace::Net;
use crate::net::rcu::synchronize;
use crate::net::rcu::RcuBox;
use crate::net::rcu::Read;
use crate::net::work::pinned;

/// All hooks of a kind that are attached to devices of a namespace. Changed under the routing netlink lock.
pub struct Attached<T>(RcuBox<KVec<Arc<Hook<T>>>>);

/// What is behind a hook.
pub fn value<T>(hook: &Arc<Hook<T>>) -> &T {
    Pin::get_ref(pinned(hook).value())
}

impl<T: Ingress> Attached<T> {
    /// None.
    pub const fn none() -> Self {
        Self(RcuBox::empty())
    }

    /// What is behind each.
    pub fn iter<'rcu>(&'rcu self, read: Read<'rcu>) -> impl Iterator<Item = &'rcu T> {
        self.0.read(read).into_iter().flatten().map(value)
    }

    /// Has each looked at by whoever holds the lock, who may sleep.
    pub fn for_each(&self, _rtnl: &Rtnl, mut look: impl FnMut(&T)) {
        let mut place = 0_usize;
        while let Some(hook) = self.at(place) {
            place = place.saturating_add(1);
            look(value(&hook));
        }
    }

    /// A hook that can be kept, if there is one behind which `which` holds.
    pub fn find(&self, which: impl Fn(&T) -> bool) -> Option<Arc<Hook<T>>> {
        let guard = rcu::read_lock();
        let mut list = self.0.read(Read::of(&guard)).into_iter().flatten();
        list.find(|hook| which(value(hook))).cloned()
    }

    /// All hooks behind which `which` holds, which can be kept.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn all(&self, _rtnl: &Rtnl, which: impl Fn(&T) -> bool) -> Result<KVec<Arc<Hook<T>>>> {
        let (mut all, mut place) = (KVec::new(), 0_usize);
        while let Some(hook) = self.at(place) {
            place = place.saturating_add(1);
            if which(value(&hook)) {
                all.push(hook, GFP_KERNEL)?;
            }
        }
        Ok(all)
    }

    /// Attaches one to a device.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or what netfilter gives.
    ///
    /// # Safety
    ///
    /// `net` and the device have to be there until it is detached.
    pub unsafe fn attach(
        &self,
        _rtnl: &Rtnl,
        net: Net<'_>,
        device: &Device,
        behind: T,
        priority: i32,
    ) -> Result {
        // SAFETY: As required of the caller.
        let hook = Arc::pin_init(unsafe { Hook::new(net, behind) }, GFP_KERNEL)?;
        let mut list = KVec::new();
        // Copying may sleep, so they are cloned one by one.
        while let Some(other) = self.at(list.len()) {
            list.push(other, GFP_KERNEL)?;
        }
        list.push(hook.clone(), GFP_KERNEL)?;
        let list = KBox::new(list, GFP_KERNEL)?;
        pinned(&hook).attach(device, priority)?;
        drop(self.0.replace(Some(list)));
        Ok(())
    }

    /// The one in this place, which can be kept: whoever holds the lock sees all of them.
    fn at(&self, place: usize) -> Option<Arc<Hook<T>>> {
        let guard = rcu::read_lock();
        self.0.read(Read::of(&guard))?.get(place).cloned()
    }

    /// Detaches those behind which `which` holds: when this returns, none of them has a packet any more. Gives
    /// whether there was any. Sleeps.
    pub fn detach(&self, _rtnl: &Rtnl, which: impl Fn(&T) -> bool) -> bool {
        let (mut any, mut place) = (false, 0_usize);
        let mut rest = Ok(KVec::new());
        while let Some(hook) = self.at(place) {
            place = place.saturating_add(1);
            if which(value(&hook)) {
                hook.unregister();
                any = true;
            } else if let Ok(list) = &mut rest {
                if let Err(error) = list.push(hook, GFP_KERNEL) {
                    rest = Err(error);
                }
            }
        }
        if !any {
            return false;
        }
        match rest.and_then(|list| KBox::new(list, GFP_KERNEL)) {
            // Waits for the packets that are in the hooks.
            Ok(list) => drop(self.0.replace(Some(list))),
            // Without memory for a shorter list they stay in the old one, without any effect but that what they are
            // known by is not given to others.
            Err(_) => synchronize(),
        }
        true
    }

    /// Detaches all. Nobody may be attaching any. Sleeps.
    pub fn detach_all(&self, _rtnl: &Rtnl) {
        if let Some(old) = self.0.replace(None) {
            for hook in old.get().into_iter().flatten() {
                hook.unregister();
            }
        }
    }
}

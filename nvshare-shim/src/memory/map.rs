//! The address map: every allocation of the application, by address. Readers only share a lock for a look-up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// What the application asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// How much it asked for.
    pub bytes: u64,
    /// How much it takes: a whole span, or a piece of a slab.
    pub taken: u64,
    /// What it is a part of.
    pub of: Of,
    /// Its device: the index in `device::all`.
    pub device: usize,
    /// The context it belongs to.
    pub context: usize,
    /// See [`number`].
    pub number: u64,
    /// `SYNC_MEMOPS`, as the application believes it to be: on, until it says otherwise.
    pub sync: bool,
}

/// What an allocation is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Nothing: a span of its own.
    Span,
    /// A slab of small ones.
    Slab,
    /// The pool of stream-ordered memory with that number: it belongs to no context, and ends with none.
    Pool(u64),
}

/// A number for a new allocation: never given twice, and never given by the driver.
pub fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// All allocations of the process.
pub(crate) static ALLOCATIONS: AddressMap = AddressMap::new();

/// A sorted map of allocations that do not overlap.
#[derive(Debug, Default)]
pub struct AddressMap(RwLock<BTreeMap<u64, Allocation>>);

impl AddressMap {
    /// An empty map.
    pub const fn new() -> AddressMap {
        AddressMap(RwLock::new(BTreeMap::new()))
    }

    /// The allocation that `address` lies in, with its start.
    pub fn find(&self, address: u64) -> Option<(u64, Allocation)> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (start, allocation) = map.range(..=address).next_back()?;
        (address - start < allocation.bytes).then_some((*start, *allocation))
    }

    /// Adds an allocation.
    pub fn insert(&self, start: u64, allocation: Allocation) {
        let before = self.0.write().unwrap_or_else(PoisonError::into_inner).insert(start, allocation);
        debug_assert!(before.is_none(), "S5: an address is given out twice");
    }

    /// Sets `sync` of the allocation that starts at `start`.
    pub fn set_sync(&self, start: u64, sync: bool) {
        if let Some(allocation) = self.0.write().unwrap_or_else(PoisonError::into_inner).get_mut(&start) {
            allocation.sync = sync;
        }
    }

    /// Takes out the allocation that starts at `start`: of two threads that free it, one gets it.
    pub fn remove(&self, start: u64) -> Option<Allocation> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&start)
    }

    /// Takes out all allocations of a context.
    pub fn remove_context(&self, context: usize) -> Vec<(u64, Allocation)> {
        self.remove_where(|allocation| allocation.context == context)
    }

    /// Takes out all allocations on `device` whose context is gone and left them to none.
    pub fn remove_orphans(&self, device: usize) -> Vec<(u64, Allocation)> {
        self.remove_where(|allocation| {
            allocation.context == 0 && allocation.device == device && !matches!(allocation.of, Of::Pool(_))
        })
    }

    fn remove_where(&self, gone: impl Fn(&Allocation) -> bool) -> Vec<(u64, Allocation)> {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.extract_if(.., |_, allocation| gone(allocation)).collect()
    }

    /// The allocations of `context` are `heir`'s from now on (zero: nobody's): it goes, and they stay.
    pub fn inherit(&self, context: usize, heir: usize) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for allocation in map.values_mut().filter(|allocation| allocation.context == context) {
            allocation.context = heir;
        }
    }

    /// A context, none of `except`, that has allocations on `device`.
    pub fn another_context(&self, device: usize, except: &[usize]) -> Option<usize> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.values()
            .map(|allocation| (allocation.device, allocation.context))
            .find(|(on, context)| *on == device && !except.contains(context) && *context != 0)
            .map(|(_, context)| context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocation(bytes: u64, context: usize) -> Allocation {
        Allocation { bytes, taken: bytes, of: Of::Span, device: 0, context, number: 0, sync: true }
    }

    #[test]
    fn an_address_inside_finds_its_allocation_and_one_past_the_end_none() {
        let map = AddressMap::new();
        map.insert(1000, allocation(100, 1));
        map.insert(2000, allocation(1, 1));
        assert_eq!(map.find(1099).unwrap().0, 1000);
        assert!(map.find(1100).is_none() && map.find(999).is_none() && map.find(2001).is_none());
        assert!(map.remove(1000).is_some() && map.remove(1000).is_none());
    }

    #[test]
    fn the_end_of_a_context_takes_only_its_own() {
        let map = AddressMap::new();
        map.insert(0, allocation(10, 1));
        map.insert(10, allocation(10, 2));
        map.insert(20, allocation(10, 1));
        assert_eq!(map.another_context(0, &[1]), Some(2));
        assert_eq!(map.remove_context(1).len(), 2);
        assert!(map.find(15).is_some() && map.find(5).is_none());
        assert_eq!(map.another_context(0, &[2]), None);
    }
}

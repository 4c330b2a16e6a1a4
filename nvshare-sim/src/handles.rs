//! Handles: what the application holds is the address of an object that a registry keeps alive, so that a stale or made-up
//! handle is recognised and not followed.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

/// All live objects of one kind.
pub(crate) struct Registry<T> {
    objects: LazyLock<RwLock<HashMap<usize, Arc<T>>>>,
}

impl<T> Registry<T> {
    /// An empty registry.
    pub(crate) const fn new() -> Registry<T> {
        Registry { objects: LazyLock::new(RwLock::default) }
    }

    /// Keeps `object` and returns its handle.
    pub(crate) fn insert<H>(&self, object: Arc<T>) -> *mut H {
        let handle = handle_of(&object);
        self.objects.write().unwrap_or_else(PoisonError::into_inner).insert(handle as usize, object);
        handle
    }

    /// Keeps `object` under a handle that is not its own address.
    pub(crate) fn insert_as<H>(&self, handle: *mut H, object: Arc<T>) {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).insert(handle as usize, object);
    }

    /// The object that `handle` names.
    pub(crate) fn get<H>(&self, handle: *mut H) -> Option<Arc<T>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).get(&(handle as usize)).cloned()
    }

    /// Forgets the object; its handle is no longer valid.
    pub(crate) fn remove<H>(&self, handle: *mut H) -> Option<Arc<T>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).remove(&(handle as usize))
    }

    /// The first object found that `is` holds for.
    pub(crate) fn find(&self, is: impl FnMut(&&Arc<T>) -> bool) -> Option<Arc<T>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).values().find(is).cloned()
    }

    /// Shows every object to `see`.
    pub(crate) fn for_each(&self, mut see: impl FnMut(&Arc<T>)) {
        let objects: Vec<_> =
            self.objects.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for object in &objects {
            see(object);
        }
    }

    /// Forgets the objects that `keep` is false for.
    pub(crate) fn retain(&self, mut keep: impl FnMut(&Arc<T>) -> bool) {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).retain(|_, object| keep(object));
    }
}

/// The handle of an object: its address.
pub(crate) fn handle_of<T, H>(object: &Arc<T>) -> *mut H {
    Arc::as_ptr(object).cast_mut().cast()
}

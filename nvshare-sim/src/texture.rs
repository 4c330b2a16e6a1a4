//! Texture and surface objects: views of memory, which none of the simulator's kernels reads through. One belongs to the
//! context that it was made in, and keeps nothing of what it is a view of.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `CUDA_RESOURCE_DESC`, with plain numbers where it has enums, and room for the longest of its kinds.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Resource {
    /// `CUresourcetype`.
    pub(crate) kind: u32,
    /// An array's handle or an address.
    pub(crate) of: u64,
    /// Format and components of an element, where it is memory.
    pub(crate) element: [u32; 2],
    /// Bytes, or width, height and pitch, where it is memory.
    pub(crate) lengths: [u64; 3],
    rest: [u64; 11],
    /// None are known.
    pub(crate) flags: u32,
}

/// `CUDA_TEXTURE_DESC`: how it is read. Its first words are three address modes, the filter and flags.
pub(crate) type Reading = [u32; 26];

/// `CUDA_RESOURCE_VIEW_DESC`: which part of an array it is.
pub(crate) type Part = [u64; 14];

const _: () = {
    use cudarc::driver::sys::{CUDA_RESOURCE_DESC, CUDA_RESOURCE_VIEW_DESC, CUDA_TEXTURE_DESC};
    assert!(size_of::<Resource>() == size_of::<CUDA_RESOURCE_DESC>());
    assert!(size_of::<Reading>() == size_of::<CUDA_TEXTURE_DESC>());
    assert!(size_of::<Part>() == size_of::<CUDA_RESOURCE_VIEW_DESC>());
};

/// A view, as it was described.
#[derive(Clone, Copy)]
pub(crate) struct View {
    /// The number of its context.
    pub(crate) context: u64,
    /// What it is a view of.
    pub(crate) resource: Resource,
    /// How a texture is read; a surface is not.
    pub(crate) reading: Option<Reading>,
    /// Which part of it a texture is.
    pub(crate) part: Option<Part>,
}

/// Views by object, and the last object that was made.
struct Views(BTreeMap<u64, View>, u64);

fn views() -> MutexGuard<'static, Views> {
    static VIEWS: Mutex<Views> = Mutex::new(Views(BTreeMap::new(), 0));
    VIEWS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a view; its object.
pub(crate) fn add(view: &View) -> u64 {
    let mut views = views();
    views.1 += 1;
    let object = views.1;
    views.0.insert(object, *view);
    object
}

/// The view that an object is: of a texture or of a surface.
pub(crate) fn get(object: u64, texture: bool) -> Option<View> {
    views().0.get(&object).copied().filter(|view| view.reading.is_some() == texture)
}

/// Forgets it.
pub(crate) fn remove(object: u64) {
    views().0.remove(&object);
}

/// The context is gone.
pub(crate) fn context_destroyed(context: u64) {
    views().0.retain(|_, view| view.context != context);
}

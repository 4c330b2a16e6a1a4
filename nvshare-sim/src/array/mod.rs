//! Arrays: memory of a device that has a form, and no address that the application knows. One belongs to the context that
//! it was made in, and goes with it. How a real device lays its elements out nobody can see; here it is row after row, also where
//! the application maps the memory behind it.

mod form;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUarray, CUmipmappedArray, CUresult};

pub(crate) use form::{Form, SURFACE, component};

use crate::call::Outcome;
use crate::context::Context;
use crate::execution::work::Plane;
use crate::handles::{Registry, handle_of};
use crate::memory::space::Area;
use crate::memory::{plain, tiles};
use crate::strict;

/// All arrays, levels of others too.
static ARRAYS: Registry<Array> = Registry::new();
/// All arrays with levels.
static LEVELLED: Registry<Levelled> = Registry::new();
/// Handles that were those of contexts which are gone.
static GONE: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// An array, or a level of one.
pub(crate) struct Array {
    /// What it looks like.
    pub(crate) form: Form,
    /// The number of its context.
    context: u64,
    /// Its first byte.
    start: u64,
    /// Its memory; a level's is that of the whole.
    own: Option<Arc<Area>>,
}

/// An array with levels.
pub(crate) struct Levelled {
    context: u64,
    memory: Arc<Area>,
    levels: Vec<Arc<Array>>,
}

/// Each level begins at a multiple of this.
const ALIGNMENT: u64 = 512;

impl Array {
    /// Makes one in a context.
    pub(crate) fn create(context: &Context, form: Form) -> Outcome<CUarray> {
        form.check(false)?;
        let memory = memory_for(context, form, form.bytes(), form.tiled_bytes())?;
        let start = memory.start;
        let array = Array { form, context: context.id, start, own: Some(memory) };
        Ok(ARRAYS.insert(Arc::new(array)))
    }

    /// The array that a handle names.
    pub(crate) fn by_handle(handle: CUarray) -> Option<Arc<Array>> {
        ARRAYS.get(handle).or_else(|| unknown(handle as usize))
    }

    /// Destroys it when the work of its context is over. A level goes with the whole only; destroying it is no error.
    pub(crate) fn destroy(handle: CUarray) -> Outcome {
        let gone = CUresult::CUDA_ERROR_INVALID_HANDLE;
        let Some(memory) = ARRAYS.get(handle).ok_or(gone)?.own.clone() else { return Ok(()) };
        plain::wait_for_owner(&memory)?;
        ARRAYS.remove(handle).ok_or(gone)?;
        plain::remove(&memory, "cuArrayDestroy")
    }

    /// Where a box of bytes, rows and slices lies that begins at this byte, row and slice, within an element perhaps. An error
    /// if it leaves the array. Any context may copy it.
    pub(crate) fn plane(&self, at: [usize; 3], extents: [usize; 3]) -> Outcome<Plane> {
        let [row, rows, _] = self.form.lengths();
        let is_within = |((at, extent), all): ((usize, usize), u64)| {
            at.checked_add(extent).is_some_and(|end| end as u64 <= all)
        };
        let inside = at.into_iter().zip(extents).zip(self.form.lengths()).all(is_within);
        if !inside {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let [x, y, z] = at.map(|length| length as u64);
        Ok(Plane { address: self.start + (z * rows + y) * row + x, pitch: row, slice: row * rows })
    }

    /// Its memory, if the application maps that: a level's it maps with the whole.
    pub(crate) fn deferred(&self) -> Option<&Arc<Area>> {
        self.own.as_ref().filter(|_| self.form.is_deferred())
    }

    /// Whether a surface can be made of it.
    pub(crate) fn takes_surfaces(&self) -> bool {
        self.form.flags & SURFACE != 0
    }
}

impl Levelled {
    /// Makes one in a context, with as many levels as there can be, at most `levels`.
    pub(crate) fn create(context: &Context, form: Form, levels: u32) -> Outcome<CUmipmappedArray> {
        form.check(true)?;
        let forms = (0..levels.clamp(1, form.most_levels())).map(|level| form.level(level));
        let (mut bytes, mut tiled) = (0, 0);
        let places: Vec<(u64, Form)> = forms
            .map(|form| {
                let at = bytes;
                bytes += form.bytes().next_multiple_of(ALIGNMENT);
                tiled += form.tiled_bytes();
                (at, form)
            })
            .collect();
        let memory = memory_for(context, form, bytes, tiled)?;
        let level = |(at, form): (u64, Form)| {
            let start = memory.start + at;
            Arc::new(Array { form, context: context.id, start, own: None })
        };
        let levels: Vec<Arc<Array>> = places.into_iter().map(level).collect();
        for level in &levels {
            ARRAYS.insert::<()>(Arc::clone(level));
        }
        Ok(LEVELLED.insert(Arc::new(Levelled { context: context.id, memory, levels })))
    }

    /// The one that a handle names.
    pub(crate) fn by_handle(handle: CUmipmappedArray) -> Option<Arc<Levelled>> {
        LEVELLED.get(handle).or_else(|| unknown(handle as usize))
    }

    /// As [`Array::deferred`].
    pub(crate) fn deferred(&self) -> Option<&Arc<Area>> {
        self.levels.first().filter(|level| level.form.is_deferred()).map(|_| &self.memory)
    }

    /// A level, the same array each time.
    pub(crate) fn level(&self, level: u32) -> Option<CUarray> {
        self.levels.get(level as usize).map(handle_of)
    }

    /// Destroys it, with its levels, when the work of its context is over.
    pub(crate) fn destroy(handle: CUmipmappedArray) -> Outcome {
        let gone = CUresult::CUDA_ERROR_INVALID_HANDLE;
        let memory = Arc::clone(&LEVELLED.get(handle).ok_or(gone)?.memory);
        plain::wait_for_owner(&memory)?;
        let whole = LEVELLED.remove(handle).ok_or(gone)?;
        for level in &whole.levels {
            ARRAYS.remove(handle_of::<Array, ()>(level));
        }
        plain::remove(&memory, "cuMipmappedArrayDestroy")
    }
}

/// Memory for an array of this form: allocated, or only a place for it.
fn memory_for(context: &Context, form: Form, bytes: u64, tiled: u64) -> Outcome<Arc<Area>> {
    if form.is_deferred() { tiles::reserve(context, tiled) } else { plain::allocate_array(context, bytes) }
}

/// No array has that handle. A real driver follows one of a context that is gone.
fn unknown<T>(handle: usize) -> Option<Arc<T>> {
    let is_living =
        ARRAYS.get(handle as CUarray).is_some() || LEVELLED.get(handle as CUmipmappedArray).is_some();
    if !is_living && GONE.lock().unwrap_or_else(PoisonError::into_inner).contains(&handle) {
        strict::report(&format!("an array of a context that is gone is used: {handle:#x}"));
    }
    None
}

/// The context is gone, and the memory of its arrays with it.
pub(crate) fn context_destroyed(context: u64) {
    let mut gone = GONE.lock().unwrap_or_else(PoisonError::into_inner);
    ARRAYS.retain(|array| {
        let stays = array.context != context;
        (stays || gone.insert(handle_of::<Array, ()>(array) as usize), stays).1
    });
    LEVELLED.retain(|array| {
        let stays = array.context != context;
        (stays || gone.insert(handle_of::<Levelled, ()>(array) as usize), stays).1
    });
}

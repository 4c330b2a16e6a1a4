//! Green contexts: parts of a device in its primary context. Memory that is allocated under one is the primary context's and
//! outlives it (seen on an H200), so it is booked there, and there the engine has its home.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::current::Current;
use super::table::primary_of;
use crate::cuda::STREAM_LEGACY;
use crate::cuda::sys::CUcontext;

/// Whether the application ever had one as a context, which is the only way to make it current.
static ANY: AtomicBool = AtomicBool::new(false);
/// The primary context of each.
static GREENS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn greens() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    GREENS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The application has a green context as one, which is a part of `primary`.
pub(crate) fn green_met(green: CUcontext, primary: CUcontext) {
    greens().insert(green.addr(), primary.expose_provenance());
    ANY.store(true, Ordering::Release);
}

/// It is gone; its handle may be another context's next.
pub(crate) fn green_ended(green: CUcontext) {
    greens().remove(&green.addr());
}

/// The context that memory belongs to which is allocated with `context` current.
#[inline]
pub(crate) fn owner_under(context: CUcontext) -> usize {
    let of = if ANY.load(Ordering::Acquire) { greens().get(&context.addr()).copied() } else { None };
    of.unwrap_or_else(|| context.expose_provenance())
}

/// The primary context that a green one is a part of, by the driver.
pub(crate) fn primary_under(green: CUcontext) -> Option<CUcontext> {
    let _current = Current::push(green).ok()?;
    primary_of(STREAM_LEGACY).map(std::ptr::with_exposed_provenance_mut)
}

//! Pieces of pools that were freed: the driver knows them no more, and others may be where they are; the work that was submitted
//! before may still use them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;

use super::space::{self, Area};
use super::{plain, shared};
use crate::call::Outcome;
use crate::flight::{in_flight, submitted_so_far};

/// One of them, until it is dropped.
pub(crate) struct Leaving {
    area: Arc<Area>,
    /// Work with a smaller number was submitted before.
    submitted: u64,
}

impl Leaving {
    /// It is freed now; an error if somebody has done so already.
    pub(crate) fn begin(area: &Arc<Area>) -> Outcome<Leaving> {
        let mut space = space::write();
        let there = space.areas.get(&area.start).is_some_and(|there| Arc::ptr_eq(there, area));
        if !there {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        space.areas.remove(&area.start);
        space.leaving.insert(area.id, Arc::clone(area));
        Ok(Leaving { area: Arc::clone(area), submitted: submitted_so_far() })
    }

    /// It was not freed after all.
    pub(crate) fn stay(&self) {
        let mut space = space::write();
        if let Some(area) = space.leaving.remove(&self.area.id) {
            space.areas.insert(area.start, area);
        }
    }

    /// The turn of its free: a violation if work of other streams still uses it.
    pub(crate) fn turn(&self) {
        plain::check_unused(self.area.start, self.area.bytes, "cuMemFreeAsync", self.submitted);
        self.end();
    }

    fn end(&self) {
        let left = space::write().leaving.remove(&self.area.id);
        if left.is_some() {
            shared::end(&self.area);
        }
    }

    /// Whether work that was submitted before is not over.
    pub(super) fn is_used(&self) -> bool {
        in_flight(self.area.start, self.area.bytes, self.submitted).is_some()
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.end();
    }
}

/// What was freed by `cuMemFree` under work, which is waited for by nobody.
static UNDER_WORK: Mutex<Vec<Leaving>> = Mutex::new(Vec::new());

/// Keeps a piece until the work that was submitted before is over.
pub(super) fn keep(leaving: Leaving) {
    kept().push(leaving);
    let_go();
}

/// Forgets the pieces for which it is.
pub(super) fn let_go() {
    let over: Vec<Leaving> = kept().extract_if(.., |leaving| !leaving.is_used()).collect();
    drop(over);
}

fn kept() -> MutexGuard<'static, Vec<Leaving>> {
    UNDER_WORK.lock().unwrap_or_else(PoisonError::into_inner)
}

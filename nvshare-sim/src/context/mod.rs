//! Contexts: what one is, and which one a thread works in. It knows that there are queues with its work and when that is
//! over; what they are, and what memory and code belong to it, is for those above ([`crate::lifetime`]).

mod current;
pub(crate) mod green;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::sys::{CUcontext, CUresult};

pub(crate) use current::{Current, asked, current, current_green, current_handle, pop, push, set};

use crate::call::Outcome;
use crate::completion::Completion;
use crate::failure;
use crate::handles::{Registry, handle_of};
use crate::jam::Jam;

/// All contexts that were not destroyed.
pub(crate) static CONTEXTS: Registry<Context> = Registry::new();

/// What names a device's primary context, whichever it is at the time.
#[derive(Clone, Copy)]
pub(crate) struct Anchor(&'static u64);

impl Anchor {
    /// One more; they are never given back.
    pub(crate) fn new(device: usize) -> Anchor {
        Anchor(Box::leak(Box::new(device as u64)))
    }

    /// The handle.
    pub(crate) fn handle(self) -> CUcontext {
        std::ptr::from_ref(self.0).cast_mut().cast()
    }
}

/// A queue of work, as its context sees it.
pub(crate) trait Queue: Send + Sync {
    /// The end of what was submitted last, while it has not come.
    fn last(&self) -> Option<Arc<Completion>>;
}

/// A context of a device.
pub(crate) struct Context {
    /// The device's index.
    pub(crate) device: usize,
    /// A number for messages and `cuCtxGetId`.
    pub(crate) id: u64,
    /// What names it if it is the device's primary context.
    anchor: Option<Anchor>,
    /// Scheduling flags.
    pub(crate) flags: AtomicU32,
    limits: Mutex<HashMap<u32, usize>>,
    peers: Mutex<HashSet<u64>>,
    destroyed: AtomicBool,
    /// Threads that are blocked in submissions to its streams.
    pub(crate) jam: Jam,
    queues: Mutex<Vec<Weak<dyn Queue>>>,
}

impl Context {
    /// A context without anything in it, which is not known yet.
    pub(crate) fn new(device: usize, flags: u32, anchor: Option<Anchor>) -> Arc<Context> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        Arc::new(Context {
            device,
            id: NUMBERS.fetch_add(1, Ordering::Relaxed),
            anchor,
            flags: AtomicU32::new(flags),
            limits: Mutex::default(),
            peers: Mutex::default(),
            destroyed: AtomicBool::new(false),
            jam: Jam::default(),
            queues: Mutex::default(),
        })
    }

    /// From now on work of this queue is its work too.
    pub(crate) fn add(&self, queue: Weak<dyn Queue>) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(queue);
    }

    /// The ends of the work that is not over.
    pub(crate) fn unfinished(&self) -> Vec<Arc<Completion>> {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner).clone();
        queues.iter().filter_map(Weak::upgrade).filter_map(|queue| queue.last()).collect()
    }

    /// From now on it cannot be used, and what runs in it ends.
    pub(crate) fn destroy(&self) {
        self.destroyed.store(true, Ordering::Release);
    }

    /// The handle.
    pub(crate) fn handle(self: &Arc<Context>) -> CUcontext {
        self.anchor.map_or_else(|| handle_of(self), Anchor::handle)
    }

    /// Whether it is the device's primary context.
    pub(crate) fn is_primary(&self) -> bool {
        self.anchor.is_some()
    }

    /// What `cuCtxSetLimit` set, by limit.
    pub(crate) fn limits(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The contexts whose memory this one was given access to (`cuCtxEnablePeerAccess`), by number.
    pub(crate) fn peers(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was destroyed.
    pub(crate) fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::Acquire)
    }

    /// An error if it cannot be used.
    pub(crate) fn usable(&self) -> Outcome {
        if self.is_destroyed() {
            return Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
        failure::check()
    }
}

/// The context that `handle` names; null is an error.
pub(crate) fn by_handle(handle: CUcontext) -> Outcome<Arc<Context>> {
    CONTEXTS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Line(Option<Arc<Completion>>);

    impl Queue for Line {
        fn last(&self) -> Option<Arc<Completion>> {
            self.0.clone().filter(|last| last.finished().is_none())
        }
    }

    fn line(work: Option<&Arc<Completion>>) -> Arc<dyn Queue> {
        Arc::new(Line(work.cloned()))
    }

    #[test]
    fn a_context_knows_the_ends_of_what_runs_in_its_queues_as_long_as_these_exist() {
        let context = Context::new(0, 0, None);
        let work = [Arc::new(Completion::default()), Arc::new(Completion::default())];
        let queues = [line(Some(&work[0])), line(Some(&work[1])), line(None)];
        for queue in &queues {
            context.add(Arc::downgrade(queue));
        }
        assert_eq!(context.unfinished().len(), 2);
        work[0].finish(5);
        let unfinished = context.unfinished();
        assert!(unfinished.len() == 1 && Arc::ptr_eq(&unfinished[0], &work[1]));
        drop(queues);
        assert!(context.unfinished().is_empty());
    }

    #[test]
    fn a_destroyed_context_is_of_no_use_and_a_primary_one_is_named_by_its_anchor() {
        let anchor = Anchor::new(1);
        let (own, primary) = (Context::new(0, 0, None), Context::new(1, 0, Some(anchor)));
        assert_eq!(primary.handle(), anchor.handle());
        assert_ne!(own.handle(), primary.handle());
        assert_eq!((own.is_primary(), primary.is_primary()), (false, true));
        assert_eq!(own.usable(), Ok(()));
        own.destroy();
        assert_eq!(own.usable(), Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED));
        assert_eq!(primary.usable(), Ok(()));
    }
}

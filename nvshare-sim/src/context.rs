//! Contexts: what belongs to one, which one a thread works in, and the error that one never recovers from.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUcontext, CUresult};

use crate::completion::Completion;
use crate::export::{Call, Outcome};
use crate::green::{GREENS, Green};
use crate::handles::{Registry, handle_of};
use crate::jam::Jam;
use crate::primary::Anchor;
use crate::stream::{Kind, Stream};

/// How long a context that is destroyed waits for its work.
const PATIENCE: Duration = Duration::from_secs(2);

/// All contexts that were not destroyed.
pub(crate) static CONTEXTS: Registry<Context> = Registry::new();

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
    failure: AtomicU32,
    destroyed: AtomicBool,
    /// Threads that are blocked in submissions to its streams.
    pub(crate) jam: Jam,
    streams: Mutex<Streams>,
}

/// The streams of a context. Its lock orders all submissions, so that the legacy stream's implicit waits are exact.
pub(crate) struct Streams {
    /// The legacy default stream.
    pub(crate) legacy: Option<Arc<Stream>>,
    /// The default streams of threads.
    pub(crate) per_thread: HashMap<ThreadId, Arc<Stream>>,
    /// Streams that the application made.
    made: Vec<Weak<Stream>>,
}

impl Streams {
    /// Remembers a stream that the application made.
    pub(crate) fn keep(&mut self, stream: Weak<Stream>) {
        self.made.retain(|stream| stream.strong_count() > 0);
        self.made.push(stream);
    }

    /// All streams that still exist.
    pub(crate) fn all(&self) -> Vec<Arc<Stream>> {
        let made = self.made.iter().filter_map(Weak::upgrade);
        self.legacy.iter().cloned().chain(self.per_thread.values().cloned()).chain(made).collect()
    }
}

/// What a thread works in: a context, perhaps in a part of its device.
#[derive(Clone)]
pub(crate) struct Current {
    /// The context.
    pub(crate) context: Arc<Context>,
    /// The part.
    pub(crate) green: Option<Arc<Green>>,
}

impl Current {
    /// What the application made current.
    pub(crate) fn handle(&self) -> CUcontext {
        self.green.as_ref().map_or_else(|| self.context.handle(), Green::context_handle)
    }
}

thread_local! {
    static CURRENT: RefCell<Vec<Current>> = const { RefCell::new(Vec::new()) };
}

impl Context {
    /// Makes a context and gives it its place on the card.
    pub(crate) fn create(device: usize, flags: u32, anchor: Option<Anchor>) -> Outcome<Arc<Context>> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        crate::faults::at_call(crate::faults::Point::Context)?;
        crate::memory::context_opened(device)?;
        let context = Arc::new(Context {
            device,
            id: NUMBERS.fetch_add(1, Ordering::Relaxed),
            anchor,
            flags: AtomicU32::new(flags),
            limits: Mutex::default(),
            peers: Mutex::default(),
            failure: AtomicU32::new(0),
            destroyed: AtomicBool::new(false),
            jam: Jam::default(),
            streams: Mutex::new(Streams { legacy: None, per_thread: HashMap::new(), made: Vec::new() }),
        });
        let legacy = Stream::new(&context, Kind::Legacy, 0, 0);
        context.streams().legacy = Some(legacy);
        // An illegal address concerns those that are made later, too.
        CONTEXTS.for_each(|other| {
            if other.device == device && other.failure() == Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS) {
                context.fail(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            }
        });
        CONTEXTS.insert_as(context.handle(), Arc::clone(&context));
        Ok(context)
    }

    /// Ends the context: its work is abandoned or done, what belongs to it is gone.
    pub(crate) fn destroy(self: &Arc<Context>) {
        // The driver waits for what runs in the other contexts of the card too (1.55 s for an idle context, on an H200).
        CONTEXTS.for_each(|other| {
            if other.device == self.device && other.id != self.id {
                for completion in other.unfinished() {
                    completion.wait();
                }
            }
        });
        // What was submitted is finished first, as far as it can be; what never ends, ends with its context.
        let deadline = Instant::now() + PATIENCE;
        let pending = self.unfinished();
        let _ = pending.iter().all(|completion| completion.wait_until(deadline));
        self.destroyed.store(true, Ordering::Release);
        for completion in pending {
            completion.wait();
        }
        CONTEXTS.remove(self.handle());
        let streams = {
            let mut streams = self.streams();
            let all = streams.all();
            *streams = Streams { legacy: None, per_thread: HashMap::new(), made: Vec::new() };
            all
        };
        for stream in streams {
            crate::capture::forget(&stream);
            stream.close();
        }
        crate::stream::STREAMS.retain(|stream| !Arc::ptr_eq(&stream.context, self));
        // Their handles are somebody else's next, as they are with a real driver.
        crate::event::EVENTS.retain(|event| !Arc::ptr_eq(&event.context, self));
        crate::module::forget(self);
        crate::memory::context_destroyed(self);
    }

    /// The handle.
    pub(crate) fn handle(self: &Arc<Context>) -> CUcontext {
        self.anchor.map_or_else(|| handle_of(self), Anchor::handle)
    }

    /// Whether it is the device's primary context.
    pub(crate) fn is_primary(&self) -> bool {
        self.anchor.is_some()
    }

    /// The ends of the work that is not over.
    fn unfinished(&self) -> Vec<Arc<Completion>> {
        self.streams().all().iter().filter_map(|stream| stream.last()).collect()
    }

    /// What `cuCtxSetLimit` set, by limit.
    pub(crate) fn limits(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The contexts whose memory this one was given access to (`cuCtxEnablePeerAccess`), by number.
    pub(crate) fn peers(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The streams, and the right to submit.
    pub(crate) fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error that ended this context's use, if any.
    pub(crate) fn failure(&self) -> Option<CUresult> {
        match self.failure.load(Ordering::Acquire) {
            0 => None,
            700 => Some(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
            716 => Some(CUresult::CUDA_ERROR_MISALIGNED_ADDRESS),
            _ => Some(CUresult::CUDA_ERROR_LAUNCH_FAILED),
        }
    }

    /// From now on every call that uses this context answers `error`.
    pub(crate) fn fail(&self, error: CUresult) {
        let _ = self.failure.compare_exchange(0, error as u32, Ordering::AcqRel, Ordering::Relaxed);
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
        self.failure().map_or(Ok(()), Err)
    }

    /// Waits for all work that was submitted; the error is the context's.
    pub(crate) fn synchronize(&self) -> Outcome {
        for completion in self.unfinished() {
            completion.wait();
        }
        crate::memory::pool::synchronised(self.device);
        self.failure().map_or(Ok(()), Err)
    }
}

impl Call {
    /// The calling thread's context; an error where there is none or it cannot be used any more.
    #[expect(clippy::unused_self, reason = "what a call asks about its surroundings it asks of one thing")]
    pub(crate) fn context(&self) -> Outcome<Arc<Context>> {
        let context = current().ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        context.usable()?;
        Ok(context)
    }
}

/// The calling thread's context, usable or not.
pub(crate) fn current() -> Option<Arc<Context>> {
    let current = CURRENT.with_borrow(|stack| stack.last().cloned())?;
    // A primary context keeps its handle over a reset: who retains it again has brought it back for everybody.
    if current.context.is_primary() && current.context.is_destroyed() {
        return CONTEXTS.get(current.context.handle()).or(Some(current.context));
    }
    Some(current.context)
}

/// What the calling thread made current.
pub(crate) fn current_handle() -> CUcontext {
    CURRENT.with_borrow(|stack| stack.last().map_or(std::ptr::null_mut(), Current::handle))
}

/// Makes `current` the calling thread's, above the present one.
pub(crate) fn push(current: Current) {
    CURRENT.with_borrow_mut(|stack| stack.push(current));
}

/// Takes what is the calling thread's away and returns it.
pub(crate) fn pop() -> Option<Current> {
    CURRENT.with_borrow_mut(Vec::pop)
}

/// Replaces what is the calling thread's.
pub(crate) fn set(current: Option<Current>) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(current);
    });
}

/// The context that `handle` names; null is an error.
pub(crate) fn by_handle(handle: CUcontext) -> Outcome<Arc<Context>> {
    CONTEXTS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)
}

/// What can be made current: a context, or a green one.
pub(crate) fn to_work_in(handle: CUcontext) -> Outcome<Current> {
    if let Some(green) = GREENS.get(handle) {
        return Ok(Current { context: Arc::clone(&green.primary), green: Some(green) });
    }
    Ok(Current { context: by_handle(handle)?, green: None })
}

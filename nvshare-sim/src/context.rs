//! Contexts: what belongs to one, and which one a thread works in.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUcontext, CUresult};

use crate::call::{Call, Outcome};
use crate::completion::Completion;
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
        crate::failure::check()?;
        crate::faults::at_call(crate::faults::Point::Context)?;
        crate::memory::context_opened(device)?;
        let context = Arc::new(Context {
            device,
            id: NUMBERS.fetch_add(1, Ordering::Relaxed),
            anchor,
            flags: AtomicU32::new(flags),
            limits: Mutex::default(),
            peers: Mutex::default(),
            destroyed: AtomicBool::new(false),
            jam: Jam::default(),
            streams: Mutex::new(Streams { legacy: None, per_thread: HashMap::new(), made: Vec::new() }),
        });
        let legacy = Stream::new(&context, Kind::Legacy, 0, 0);
        context.streams().legacy = Some(legacy);
        CONTEXTS.insert_as(context.handle(), Arc::clone(&context));
        Ok(context)
    }

    /// Ends the context as `cuCtxDestroy` does: once nothing runs in any other context of the process, on other cards too (an
    /// idle one waited for the 2 s of a kernel on another card of an H200's host).
    pub(crate) fn destroy(self: &Arc<Context>) {
        self.end(|_| true);
    }

    /// Ends a primary context, which does not wait for other cards.
    pub(crate) fn destroy_primary(self: &Arc<Context>) {
        self.end(|other| other.device == self.device);
    }

    /// Its work is abandoned or done after that of the others that are `waited_for`, what belongs to it is gone.
    fn end(self: &Arc<Context>, waited_for: impl Fn(&Context) -> bool) {
        CONTEXTS.for_each(|other| {
            if other.id != self.id && waited_for(other) {
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

    /// Whether it was destroyed.
    pub(crate) fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::Acquire)
    }

    /// An error if it cannot be used.
    pub(crate) fn usable(&self) -> Outcome {
        if self.is_destroyed() {
            return Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
        crate::failure::check()
    }

    /// Waits for all work that was submitted; the answer is the error for good, if there was one.
    pub(crate) fn synchronize(&self) -> Outcome {
        for completion in self.unfinished() {
            completion.wait();
        }
        crate::memory::pool::synchronised(self.device);
        crate::failure::check()
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

/// The calling thread's context for a question about itself, which is answered also when it was reset or there was an error
/// for good.
pub(crate) fn asked() -> Outcome<Arc<Context>> {
    let context = current().ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
    if context.is_destroyed() && !context.is_primary() {
        return Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
    }
    Ok(context)
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

/// The part of a device that the calling thread works in.
pub(crate) fn current_green() -> Option<Arc<Green>> {
    CURRENT.with_borrow(|stack| stack.last().and_then(|current| current.green.clone()))
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

/// What can be made current: a context, a green one, or a primary one that was reset.
pub(crate) fn to_work_in(handle: CUcontext) -> Outcome<Current> {
    if let Some(green) = GREENS.get(handle) {
        return Ok(Current { context: Arc::clone(&green.primary), green: Some(green) });
    }
    let context = by_handle(handle).or_else(|error| crate::primary::ended(handle).ok_or(error))?;
    Ok(Current { context, green: None })
}

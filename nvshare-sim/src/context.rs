//! Contexts: what belongs to one, which one a thread works in, and the error that one never recovers from.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{CUcontext, CUresult};

use crate::export::{Call, Outcome};
use crate::handles::{Registry, handle_of};
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
    /// Whether it is the device's primary context.
    pub(crate) primary: bool,
    /// Scheduling flags.
    pub(crate) flags: AtomicU32,
    limits: Mutex<HashMap<u32, usize>>,
    peers: Mutex<HashSet<u64>>,
    failure: AtomicU32,
    destroyed: AtomicBool,
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

thread_local! {
    static CURRENT: RefCell<Vec<Arc<Context>>> = const { RefCell::new(Vec::new()) };
}

impl Context {
    /// Makes a context and gives it its place on the card.
    pub(crate) fn create(device: usize, flags: u32, primary: bool) -> Outcome<Arc<Context>> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        crate::faults::at_call(crate::faults::Point::Context)?;
        crate::memory::context_opened(device)?;
        let context = Arc::new(Context {
            device,
            id: NUMBERS.fetch_add(1, Ordering::Relaxed),
            primary,
            flags: AtomicU32::new(flags),
            limits: Mutex::default(),
            peers: Mutex::default(),
            failure: AtomicU32::new(0),
            destroyed: AtomicBool::new(false),
            streams: Mutex::new(Streams { legacy: None, per_thread: HashMap::new(), made: Vec::new() }),
        });
        let legacy = Stream::new(&context, Kind::Legacy, 0, 0);
        context.streams().legacy = Some(legacy);
        CONTEXTS.insert::<()>(Arc::clone(&context));
        Ok(context)
    }

    /// Ends the context: its work is abandoned or done, what belongs to it is gone.
    pub(crate) fn destroy(self: &Arc<Context>) {
        // What was submitted is finished first, as far as it can be; what never ends, ends with its context.
        let deadline = Instant::now() + PATIENCE;
        let pending: Vec<_> = self.streams().all().iter().filter_map(|stream| stream.last()).collect();
        let _ = pending.iter().all(|completion| completion.wait_until(deadline));
        self.destroyed.store(true, Ordering::Release);
        for completion in pending {
            completion.wait();
        }
        CONTEXTS.remove(handle_of::<_, ()>(self));
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
        crate::module::forget(self);
        crate::memory::context_destroyed(self);
    }

    /// The handle.
    pub(crate) fn handle(self: &Arc<Context>) -> CUcontext {
        handle_of(self)
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
        let pending: Vec<_> = self.streams().all().iter().filter_map(|stream| stream.last()).collect();
        for completion in pending {
            completion.wait();
        }
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
    CURRENT.with_borrow(|stack| stack.last().cloned())
}

/// Makes `context` the calling thread's, above the present one.
pub(crate) fn push(context: Arc<Context>) {
    CURRENT.with_borrow_mut(|stack| stack.push(context));
}

/// Takes the calling thread's context away and returns it.
pub(crate) fn pop() -> Option<Arc<Context>> {
    CURRENT.with_borrow_mut(Vec::pop)
}

/// Replaces the calling thread's context.
pub(crate) fn set(context: Option<Arc<Context>>) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(context);
    });
}

/// The context that `handle` names; null is an error.
pub(crate) fn by_handle(handle: CUcontext) -> Outcome<Arc<Context>> {
    CONTEXTS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)
}

//! The streams and contexts that the application made, which of them are being captured, and marks: sets of events that
//! are complete when all work submitted before them is.
//!
//! One event on the legacy stream of a context stands for all its blocking streams, the threads' own default streams
//! among them (they synchronise with it); every non-blocking stream gets one of its own. Nothing is ever recorded in a
//! stream that is being captured, nor in the legacy stream while a blocking stream of its context is: what such streams
//! hold from before their capture has an event recorded when the capture began.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::cuda::sys::{CUcontext, CUevent, CUstream};
use crate::cuda::{
    CAPTURE_MODE_RELAXED, CAPTURE_STATUS_NONE, CUresult, EVENT_DISABLE_TIMING, STREAM_LEGACY,
    STREAM_PER_THREAD,
};
use crate::driver::driver;

/// How many events from before captures and destructions are kept before the finished ones are looked for.
const LOOSE_BEFORE_SWEEP: usize = 64;

/// How long a thread waits for work that cannot be kept in sight.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

static KNOWN: Mutex<Known> = Mutex::new(Known::new());
/// Held for reading while handles of contexts are used, for writing while a context leaves the table: before it is
/// destroyed nobody uses it any more.
static IN_USE: RwLock<()> = RwLock::new(());
/// Held for reading between the question whether a stream is being captured and the record of an event in it, for
/// writing while a capture begins or spreads: an event of ours in a capture would invalidate it as soon as it is asked.
static CAPTURING: RwLock<()> = RwLock::new(());
/// Whether a default stream was used since the last mark that covered them was complete.
static DEFAULTS_USED: AtomicBool = AtomicBool::new(false);
/// How many captures are going on.
static CAPTURES: AtomicUsize = AtomicUsize::new(0);

struct Known {
    /// Streams by handle, each with its context.
    streams: BTreeMap<usize, usize>,
    /// Contexts, with how often each is held.
    contexts: BTreeMap<usize, usize>,
    /// Events for work in streams that were destroyed, or captured since.
    loose: Vec<Arc<Event>>,
    /// The streams that captures began in (per-thread default streams by an address of their thread).
    captures: BTreeSet<usize>,
}

impl Known {
    const fn new() -> Known {
        Known {
            streams: BTreeMap::new(),
            contexts: BTreeMap::new(),
            loose: Vec::new(),
            captures: BTreeSet::new(),
        }
    }
}

fn known() -> MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event of ours, recorded; destroyed with the value.
#[derive(Debug)]
struct Event {
    event: usize,
    context: usize,
}

impl Event {
    /// Records a new event in `stream`, in the current context.
    fn record(context: usize, stream: CUstream) -> Result<Event, CUresult> {
        let mut event: CUevent = std::ptr::null_mut();
        // SAFETY: `event` is where the driver stores the new handle.
        unsafe { driver().cuEventCreate(&raw mut event, EVENT_DISABLE_TIMING) }.result()?;
        let recorded = Event { event: event.expose_provenance(), context };
        // SAFETY: the event is new, and the stream exists: its destruction takes it out of the table first.
        unsafe { driver().cuEventRecord(event, stream) }.result()?;
        Ok(recorded)
    }

    fn handle(&self) -> CUevent {
        std::ptr::with_exposed_provenance_mut(self.event)
    }

    /// Whether the work before it is finished. An event that is gone together with its context has no work before it.
    fn done(&self) -> Result<bool, CUresult> {
        // SAFETY: the event lives until this value is dropped, and its context until it has left the table.
        match unsafe { driver().cuEventQuery(self.handle()) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            done if done.ok() || done.is_gone() => Ok(true),
            error => Err(error),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // While a context is leaving its events are left to go with it.
        let Ok(_in_use) = IN_USE.try_read() else { return };
        if is_known(self.context) {
            // SAFETY: the event is ours and this is the only place that destroys it; work it waits for is not touched.
            let _ = unsafe { driver().cuEventDestroy_v2(self.handle()) };
        }
    }
}

/// Whether the context has not left the table. Not with the table locked.
fn is_known(context: usize) -> bool {
    known().contexts.contains_key(&context)
}

fn in_use() -> std::sync::RwLockReadGuard<'static, ()> {
    IN_USE.read().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread's capture mode set to relaxed until the guard goes: calls that could disturb other threads'
/// captures are then allowed, and leave them alone.
pub struct Relaxed(u32);

impl Relaxed {
    /// Exchanges the mode.
    #[expect(clippy::new_without_default, reason = "it is an act, not a value")]
    pub fn new() -> Relaxed {
        let mut mode = CAPTURE_MODE_RELAXED;
        // SAFETY: the driver reads and writes one number.
        let done = unsafe { driver().cuThreadExchangeStreamCaptureMode(&raw mut mode) };
        Relaxed(if done.ok() { mode } else { CAPTURE_MODE_RELAXED })
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        if self.0 != CAPTURE_MODE_RELAXED {
            // SAFETY: as above.
            let _ = unsafe { driver().cuThreadExchangeStreamCaptureMode(&raw mut self.0) };
        }
    }
}

/// A context made current until the guard goes.
pub struct Current(());

impl Current {
    /// Pushes `context`.
    #[expect(
        clippy::not_unsafe_ptr_arg_deref,
        reason = "the driver checks the handle, we do not look behind it"
    )]
    pub fn push(context: CUcontext) -> Result<Current, CUresult> {
        // SAFETY: a stale handle is refused by the driver with an error.
        unsafe { driver().cuCtxPushCurrent_v2(context) }.result()?;
        Ok(Current(()))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: this thread pushed a context and hooks between leave the stack as they found it.
        let _ = unsafe { driver().cuCtxPopCurrent_v2(&raw mut popped) };
    }
}

/// Events after all work that was submitted before.
#[must_use]
#[derive(Debug, Default)]
pub struct Mark {
    events: Vec<Arc<Event>>,
    /// What stays unmarked because a blocking stream is captured: the default streams, which may hold work.
    behind_capture: bool,
    /// What could not be marked for another reason.
    unmarked: Option<String>,
    /// The device's error, where it had one.
    failed: Option<CUresult>,
}

impl Mark {
    /// Whether all work before the mark is known to be complete. Polls, never blocks. An error of the device is reported to
    /// the engine; nothing is complete then.
    pub fn done(&self) -> bool {
        if self.is_partial() {
            return false;
        }
        match self.unfinished() {
            Ok(unfinished) => unfinished == 0,
            Err(error) => {
                if crate::swap::is_final(error) {
                    crate::swap::on_device_error(error);
                }
                false
            }
        }
    }

    /// How many of its events are not complete.
    pub(crate) fn unfinished(&self) -> Result<usize, CUresult> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let _relaxed = Relaxed::new();
        let _in_use = in_use();
        count_unfinished(&self.events)
    }

    /// Whether there may be work that could not be marked; a later mark may say more.
    pub fn is_partial(&self) -> bool {
        self.behind_capture || self.unmarked.is_some()
    }

    /// Whether that is because a blocking stream is captured.
    pub(crate) fn is_behind_capture(&self) -> bool {
        self.behind_capture
    }

    /// What could not be marked for another reason, for people.
    pub(crate) fn unmarked(&self) -> Option<&str> {
        self.unmarked.as_deref()
    }

    fn miss(&mut self, what: &str, error: CUresult) {
        if error.is_sticky() {
            self.failed = Some(error);
        } else if !error.is_gone() {
            self.unmarked = Some(format!("{what}, where the driver answers {}", driver().error_name(error)));
        }
    }
}

fn count_unfinished(events: &[Arc<Event>]) -> Result<usize, CUresult> {
    let mut unfinished = 0;
    for event in events {
        // Without its context an event is complete: the context's end waits for its work.
        if !is_known(event.context) {
            continue;
        }
        match in_context(event.context, || event.done()) {
            Ok(true) => {}
            Ok(false) => unfinished += 1,
            Err(error) if error.is_gone() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(unfinished)
}

/// Runs `act` with `context` current.
fn in_context<T>(context: usize, act: impl FnOnce() -> Result<T, CUresult>) -> Result<T, CUresult> {
    let _current = Current::push(std::ptr::with_exposed_provenance_mut(context))?;
    act()
}

/// Marks all work submitted so far in every known stream of every context that is not being captured.
pub fn mark() -> Mark {
    let _relaxed = Relaxed::new();
    let _in_use = in_use();
    let (streams, contexts) = {
        let known = known();
        (known.streams.clone(), known.contexts.keys().copied().collect::<Vec<_>>())
    };
    let mut mark = Mark::default();
    for context in contexts {
        let _current = match Current::push(std::ptr::with_exposed_provenance_mut(context)) {
            Ok(current) => current,
            Err(error) => {
                mark.miss("a context", error);
                continue;
            }
        };
        mark_stream(&mut mark, context, STREAM_LEGACY);
        for (&stream, _) in streams.iter().filter(|(_, owner)| **owner == context) {
            mark_stream(&mut mark, context, std::ptr::with_exposed_provenance_mut(stream));
        }
    }
    mark.events.extend(sweep_loose());
    mark
}

/// Forgets the loose events that are complete; the others.
fn sweep_loose() -> Vec<Arc<Event>> {
    let all = known().loose.clone();
    if all.is_empty() {
        return all;
    }
    let (finished, unfinished): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|event| count_unfinished(std::slice::from_ref(event)) == Ok(0));
    known().loose.retain(|event| !finished.iter().any(|finished| Arc::ptr_eq(event, finished)));
    unfinished
}

fn mark_stream(mark: &mut Mark, context: usize, stream: CUstream) {
    match record_outside_captures(context, stream) {
        Ok(Some(event)) => mark.events.push(Arc::new(event)),
        // It is being captured: what it held before has an event of its own.
        Ok(None) => {}
        // Asked of the legacy stream while a blocking stream is captured.
        Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) => {
            mark.behind_capture |= DEFAULTS_USED.load(Ordering::Acquire);
        }
        Err(error) => mark.miss(&format!("stream {stream:p}"), error),
    }
}

/// Records an event in `stream`, in the current context; `None` where the stream is being captured.
fn record_outside_captures(context: usize, stream: CUstream) -> Result<Option<Event>, CUresult> {
    let _none_begins = CAPTURING.read().unwrap_or_else(PoisonError::into_inner);
    match capture_status(stream)? {
        CAPTURE_STATUS_NONE => Event::record(context, stream).map(Some),
        _ => Ok(None),
    }
}

/// Runs `begin`, by which a capture begins or reaches another stream, while no event of ours is being recorded.
pub(crate) fn while_nothing_is_marked<T>(begin: impl FnOnce() -> T) -> T {
    let _no_marks = CAPTURING.write().unwrap_or_else(PoisonError::into_inner);
    begin()
}

/// The default streams' work is known to be finished, and the gate has been shut since before it was marked.
pub(crate) fn defaults_are_idle() {
    DEFAULTS_USED.store(false, Ordering::Release);
}

/// Notes that work goes into `stream`.
#[inline]
pub(crate) fn note_use(stream: CUstream) {
    if (stream == STREAM_LEGACY || stream == STREAM_PER_THREAD) && !DEFAULTS_USED.load(Ordering::Relaxed) {
        DEFAULTS_USED.store(true, Ordering::Release);
    }
}

fn capture_status(stream: CUstream) -> Result<u32, CUresult> {
    let mut status = CAPTURE_STATUS_NONE;
    // SAFETY: `status` is where the driver stores the answer; asking invalidates no capture.
    unsafe { driver().cuStreamIsCapturing(stream, &raw mut status) }.result()?;
    Ok(status)
}

/// Whether a call into `stream` would execute nothing: the stream is being captured, or it is the legacy stream and a
/// blocking stream is.
pub(crate) fn is_capturing(stream: CUstream) -> bool {
    match capture_status(stream) {
        Ok(status) => status != CAPTURE_STATUS_NONE,
        Err(error) => error == CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT,
    }
}

/// Whether a capture that the application began is going on: the calling thread may then not synchronise.
pub fn capturing() -> bool {
    CAPTURES.load(Ordering::Acquire) != 0
}

pub(crate) fn created(stream: CUstream) {
    if let Some(context) = context_of(stream) {
        let mut known = known();
        known.contexts.entry(context).or_insert(0);
        known.streams.insert(stream.expose_provenance(), context);
    }
}

/// A stream is about to be destroyed: its work goes on, and is kept in sight.
pub(crate) fn destroying(stream: CUstream) {
    keep_in_sight(stream);
    // Whoever marks streams now is done with this one when it leaves the table.
    let _alone = IN_USE.write().unwrap_or_else(PoisonError::into_inner);
    let mut known = known();
    known.streams.remove(&stream.expose_provenance());
    if known.captures.remove(&stream.expose_provenance()) {
        CAPTURES.store(known.captures.len(), Ordering::Release);
    }
}

/// A capture is about to begin in `stream`, or to reach it.
pub(crate) fn keep_in_sight(stream: CUstream) {
    let _relaxed = Relaxed::new();
    if capture_status(stream) != Ok(CAPTURE_STATUS_NONE) {
        return;
    }
    let _in_use = in_use();
    let Some(context) = context_of(stream) else { return };
    let event = match in_context(context, || record_outside_captures(context, stream)) {
        Ok(Some(event)) => event,
        Ok(None) => return,
        Err(error) if error.is_gone() => return,
        Err(error) => return wait_for(stream, error),
    };
    let many = {
        let mut known = known();
        known.contexts.entry(context).or_insert(0);
        known.loose.push(Arc::new(event));
        known.loose.len().is_multiple_of(LOOSE_BEFORE_SWEEP)
    };
    if many {
        drop(sweep_loose());
    }
}

/// Waits for all work submitted so far, as long as is bearable.
pub(crate) fn wait_a_while() {
    let mark = mark();
    let limit = Instant::now() + LONGEST_WAIT;
    while matches!(mark.unfinished(), Ok(1..)) && Instant::now() < limit {
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// No event can be had for what is in `stream`, so nothing can wait for it later: waits here, for a while.
#[cold]
fn wait_for(stream: CUstream, error: CUresult) {
    crate::log::warning!("cannot mark stream {stream:p}: {}; waiting for it", driver().error_name(error));
    let limit = Instant::now() + LONGEST_WAIT;
    // SAFETY: the application's own stream, which it has not destroyed yet.
    while unsafe { driver().cuStreamQuery(stream) } == CUresult::CUDA_ERROR_NOT_READY
        && Instant::now() < limit
    {
        std::thread::sleep(Duration::from_micros(100));
    }
}

pub(crate) fn capture_began(stream: CUstream) {
    let mut known = known();
    known.captures.insert(capture_key(stream));
    CAPTURES.store(known.captures.len(), Ordering::Release);
}

pub(crate) fn capture_ended(stream: CUstream) {
    let mut known = known();
    known.captures.remove(&capture_key(stream));
    CAPTURES.store(known.captures.len(), Ordering::Release);
}

fn capture_key(stream: CUstream) -> usize {
    thread_local! {
        static HERE: u8 = const { 0 };
    }
    if stream == STREAM_PER_THREAD {
        HERE.with(|here| std::ptr::from_ref(here).addr())
    } else {
        stream.addr()
    }
}

fn context_of(stream: CUstream) -> Option<usize> {
    let mut context: CUcontext = std::ptr::null_mut();
    // SAFETY: `context` is where the driver stores the answer.
    let known = unsafe { driver().cuStreamGetCtx(stream, &raw mut context) };
    if !known.ok() || context.is_null() {
        context = current_context()?;
    }
    Some(context.expose_provenance())
}

/// The calling thread's current context.
pub fn current_context() -> Option<CUcontext> {
    let mut context: CUcontext = std::ptr::null_mut();
    // SAFETY: `context` is where the driver stores the answer.
    unsafe { driver().cuCtxGetCurrent(&raw mut context) }.result().ok()?;
    (!context.is_null()).then_some(context)
}

/// The application holds `context` once more.
pub(crate) fn context_held(context: CUcontext) {
    if !context.is_null() {
        *known().contexts.entry(context.expose_provenance()).or_insert(0) += 1;
    }
}

/// Whether giving `context` back once more destroys it.
pub(crate) fn held_once(context: CUcontext) -> bool {
    known().contexts.get(&context.addr()).is_some_and(|held| *held <= 1)
}

pub(crate) fn context_given_back(context: CUcontext) {
    if let Some(held) = known().contexts.get_mut(&context.addr()) {
        *held = held.saturating_sub(1);
    }
}

/// `context` was met in use, whoever made it.
pub(crate) fn context_seen(context: CUcontext) {
    known().contexts.entry(context.expose_provenance()).or_insert(0);
}

/// `context` may be destroyed by the next call, with everything in it. Afterwards nothing of the shim uses it until it is
/// said to stay. The caller is inside the gate: a drain in between would miss its work.
pub(crate) fn context_leaves(context: CUcontext) -> Absent {
    let _alone = IN_USE.write().unwrap_or_else(PoisonError::into_inner);
    let mut known = known();
    let context = context.expose_provenance();
    let held = known.contexts.remove(&context);
    let streams =
        known.streams.extract_if(.., |_, owner| *owner == context).map(|(stream, _)| stream).collect();
    let loose = known.loose.extract_if(.., |event| event.context == context).collect();
    Absent { context, held, streams, loose }
}

/// What the table had of a context that may be gone. Where nothing more is said, it is.
#[derive(Debug)]
#[must_use]
pub(crate) struct Absent {
    context: usize,
    held: Option<usize>,
    streams: Vec<usize>,
    loose: Vec<Arc<Event>>,
}

impl Absent {
    /// It lives: everything is as before.
    pub(crate) fn stays(self) {
        let mut known = known();
        if let Some(held) = self.held {
            *known.contexts.entry(self.context).or_insert(0) += held;
        }
        known.streams.extend(self.streams.into_iter().map(|stream| (stream, self.context)));
        known.loose.extend(self.loose);
    }

    /// It is gone, and so is what another thread may have met of it meanwhile.
    pub(crate) fn is_gone(self) {
        drop(context_leaves(std::ptr::with_exposed_provenance_mut(self.context)));
    }
}

/// The contexts that exist.
pub fn contexts() -> Vec<CUcontext> {
    known().contexts.keys().map(|context| std::ptr::with_exposed_provenance_mut(*context)).collect()
}

/// Marks the work in one stream; `None` where that is not possible, because it is being captured.
pub(crate) fn mark_one(stream: CUstream) -> Option<Mark> {
    let _relaxed = Relaxed::new();
    if capture_status(stream) != Ok(CAPTURE_STATUS_NONE) {
        return None;
    }
    let _in_use = in_use();
    let context = context_of(stream)?;
    let event = in_context(context, || record_outside_captures(context, stream)).ok()??;
    context_seen(std::ptr::with_exposed_provenance_mut(context));
    Some(Mark { events: vec![Arc::new(event)], ..Mark::default() })
}

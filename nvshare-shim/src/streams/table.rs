//! The contexts and streams that exist. Each is known by what this table made for it, never by its handle alone: the driver
//! gives handles out again (a primary context has the same one after a reset), and what was made in the one before must
//! not be asked, recorded or destroyed in the one after. So entries are compared by identity, and hold for one life.
//!
//! An entry stays until the call that ends it has succeeded; while that call is made, nobody asks about it.

#![expect(unsafe_code, reason = "the driver is called")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::asks::Asks;
use super::capture::Pending;
use super::current::{Current, Relaxed, current_context};
use crate::cuda::CUresult;
use crate::cuda::sys::{CUcontext, CUdevice, CUgreenCtx, CUstream};
use crate::driver::{Symbol, driver};

static KNOWN: Mutex<Known> = Mutex::new(Known {
    streams: BTreeMap::new(),
    contexts: BTreeMap::new(),
    pending: Vec::new(),
    captures: BTreeMap::new(),
    captured: BTreeSet::new(),
});

pub(super) struct Known {
    pub(super) streams: BTreeMap<usize, Arc<Stream>>,
    /// Contexts, with how often each is held.
    pub(super) contexts: BTreeMap<usize, (Arc<Context>, usize)>,
    /// Work that its stream cannot be asked about any more.
    pub(super) pending: Vec<Pending>,
    /// The streams that captures began in (per-thread default streams by an address of their thread), with their contexts.
    pub(super) captures: BTreeMap<usize, Arc<Context>>,
    /// Events recorded in captured streams since the first of the captures began: where they are waited for the capture
    /// spreads.
    pub(super) captured: BTreeSet<usize>,
}

/// Not held during any call of the driver.
pub(super) fn known() -> MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One life of a context.
#[derive(Debug)]
pub(crate) struct Context {
    pub(super) handle: usize,
    /// No other life of a context or stream has it.
    pub(super) number: u64,
    /// Its device, once somebody has asked.
    device: OnceLock<CUdevice>,
    /// Barred while a call is made that may end it.
    alive: Asks,
    /// About its default streams.
    pub(super) defaults: Asks,
    gone: AtomicBool,
    /// Events of ours that nobody uses now. They go with the context.
    pub(super) spare: Mutex<Vec<usize>>,
    /// Whether some of them are for its default streams.
    is_provided: AtomicBool,
    /// See `finish`: the stand-ins, how many waits began, and the last of those that are over.
    pub(super) stand_ins: Mutex<Vec<u64>>,
    pub(super) begun: AtomicU64,
    pub(super) finished: AtomicU64,
}

/// One life of a stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(super) handle: usize,
    /// See [`Context::number`].
    pub(super) number: u64,
    pub(super) context: Arc<Context>,
    /// Whose events are recorded in it: its context's, or where that is a green one the primary's, which outlives it.
    pub(super) events: Arc<Context>,
    /// Barred while a capture begins in it, and while it is destroyed.
    pub(super) asks: Asks,
    gone: AtomicBool,
}

/// Why nothing was asked in a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is gone, and its work with it.
    Gone,
    /// It may be gone in a moment, or not.
    Leaving,
    /// The driver's answer.
    Error(CUresult),
}

impl From<CUresult> for Refusal {
    fn from(error: CUresult) -> Refusal {
        Refusal::Error(error)
    }
}

/// How many marks of one stream there are at a time, besides those of who keeps its work in sight.
const MARKS: usize = 2;

/// The default streams of a context, too, can be marked by threads of ours from now on.
pub(crate) fn provide_marks(context: usize) {
    let entry = known().context(context);
    if !entry.is_provided.swap(true, Ordering::AcqRel) {
        for _ in 0..MARKS {
            super::event::provide(&entry);
        }
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Context {
    fn new(handle: usize) -> Arc<Context> {
        Arc::new(Context {
            handle,
            number: next_number(),
            device: OnceLock::new(),
            alive: Asks::new(),
            defaults: Asks::new(),
            gone: AtomicBool::new(false),
            spare: Mutex::new(Vec::new()),
            is_provided: AtomicBool::new(false),
            stand_ins: Mutex::new(Vec::new()),
            begun: AtomicU64::new(0),
            finished: AtomicU64::new(0),
        })
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// The device that it is on.
    pub(super) fn device(&self) -> Option<CUdevice> {
        if let Some(device) = self.device.get() {
            return Some(*device);
        }
        let device = self.within(|| {
            let mut device = 0;
            // SAFETY: the driver stores a number.
            unsafe { driver().cuCtxGetDevice(&raw mut device) }.result().map(|()| device)
        });
        device.ok().map(|device| *self.device.get_or_init(|| device))
    }

    /// Runs `act` with the context current, unless it is gone or going. It does not go before that is over.
    pub(super) fn within<T>(&self, act: impl FnOnce() -> Result<T, CUresult>) -> Result<T, Refusal> {
        if self.is_gone() {
            return Err(Refusal::Gone);
        }
        let asked = self.alive.ask(|| {
            if self.is_gone() {
                return Err(Refusal::Gone);
            }
            let _current = Current::push(std::ptr::with_exposed_provenance_mut(self.handle))?;
            act().map_err(Refusal::Error)
        });
        asked.unwrap_or(Err(Refusal::Leaving))
    }
}

impl Stream {
    pub(super) fn handle(&self) -> CUstream {
        std::ptr::with_exposed_provenance_mut(self.handle)
    }

    /// Whether it is gone; its work is then pending, or went with its context.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire) || self.context.is_gone()
    }
}

impl Known {
    /// The entry of a context, made where there is none.
    pub(super) fn context(&mut self, handle: usize) -> Arc<Context> {
        let (context, _) = self.contexts.entry(handle).or_insert_with(|| (Context::new(handle), 0));
        Arc::clone(context)
    }
}

/// The context of a stream, as its handle.
pub(super) fn context_of(stream: CUstream) -> Option<usize> {
    let mut context: CUcontext = std::ptr::null_mut();
    // SAFETY: `context` is where the driver stores the answer.
    let known = unsafe { driver().cuStreamGetCtx(stream, &raw mut context) };
    if !known.ok() || context.is_null() {
        context = current_context()?;
    }
    Some(context.expose_provenance())
}

/// The primary context of a green context's stream. (The other question answers with the green one: seen on an H200.)
pub(super) fn primary_of(stream: CUstream) -> Option<usize> {
    let (mut primary, mut green): (CUcontext, CUgreenCtx) = (std::ptr::null_mut(), std::ptr::null_mut());
    if !driver().has(Symbol::cuStreamGetCtx_v2) {
        return None;
    }
    // SAFETY: two places for the answers.
    let asked = unsafe { driver().cuStreamGetCtx_v2(stream, &raw mut primary, &raw mut green) };
    (asked.ok() && !primary.is_null()).then(|| primary.expose_provenance())
}

/// A stream was made; `green`: of a green context.
pub(crate) fn created(stream: CUstream, green: bool) {
    let Some(context) = context_of(stream) else { return };
    let events = if green { primary_of(stream) } else { None };
    let entry = {
        let mut known = known();
        let (context, events) = (known.context(context), known.context(events.unwrap_or(context)));
        let handle = stream.expose_provenance();
        let gone = AtomicBool::new(false);
        let number = next_number();
        let entry = Arc::new(Stream { handle, number, context, events, asks: Asks::new(), gone });
        known.streams.insert(handle, Arc::clone(&entry));
        entry
    };
    // Made now: when they are needed a thread may be stuck in a full stream, and no event can be made then.
    for _ in 0..=MARKS {
        super::event::provide(&entry.events);
    }
}

/// The table's entry of a stream that was made by a call.
pub(super) fn entry_of(stream: CUstream) -> Option<Arc<Stream>> {
    known().streams.get(&stream.addr()).cloned()
}

/// A stream is about to be destroyed: its work goes on, and is kept in sight. Nobody asks about the stream until it is said
/// what came of the call.
pub(crate) fn leaves(stream: CUstream) -> Leaving {
    super::capture::keep_in_sight(stream);
    let entry = entry_of(stream);
    if let Some(entry) = &entry {
        entry.asks.close();
    }
    Leaving { stream, entry }
}

/// See [`leaves`]. Where nothing is said, the stream stays.
#[derive(Debug)]
#[must_use]
pub(crate) struct Leaving {
    stream: CUstream,
    entry: Option<Arc<Stream>>,
}

impl Leaving {
    /// It was destroyed.
    pub(crate) fn ends(self) {
        let Some(entry) = &self.entry else { return };
        entry.gone.store(true, Ordering::Release);
        let mut known = known();
        // The handle may be another stream's already.
        if known.streams.get(&entry.handle).is_some_and(|there| Arc::ptr_eq(there, entry)) {
            known.streams.remove(&entry.handle);
        }
        drop(known);
        super::capture::capture_ended(self.stream);
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            entry.asks.lift();
        }
    }
}

/// The application holds `context` once more.
pub(crate) fn context_held(context: CUcontext) {
    if !context.is_null() {
        let mut known = known();
        known.context(context.expose_provenance());
        if let Some((_, held)) = known.contexts.get_mut(&context.addr()) {
            *held += 1;
        }
    }
}

/// Whether giving `context` back once more destroys it.
pub(crate) fn held_once(context: CUcontext) -> bool {
    known().contexts.get(&context.addr()).is_some_and(|(_, held)| *held <= 1)
}

pub(crate) fn context_given_back(context: CUcontext) {
    if let Some((_, held)) = known().contexts.get_mut(&context.addr()) {
        *held = held.saturating_sub(1);
    }
}

/// `context` was met in use, whoever made it.
pub(crate) fn context_seen(context: CUcontext) {
    known().context(context.expose_provenance());
}

/// The devices on which a context answers with an error for good; and whether there is one whose device cannot be told.
pub(crate) fn broken() -> (BTreeSet<CUdevice>, bool) {
    let _relaxed = Relaxed::new();
    let contexts: Vec<_> = known().contexts.values().map(|(context, _)| Arc::clone(context)).collect();
    let (mut devices, mut unknown) = (BTreeSet::new(), false);
    for context in contexts {
        let (mut free, mut total, mut device) = (0, 0, 0);
        let asked = context.within(|| {
            // SAFETY: places for the answers. Neither waits for work, nor disturbs a capture (seen on an H200).
            unsafe {
                let told = driver().cuCtxGetDevice(&raw mut device).ok();
                Ok((driver().cuMemGetInfo_v2(&raw mut free, &raw mut total), told))
            }
        });
        match asked {
            Ok((answer, true)) if answer.is_sticky() => drop(devices.insert(device)),
            Ok((answer, false)) if answer.is_sticky() => unknown = true,
            _ => {}
        }
    }
    (devices, unknown)
}

/// Whether a context of that handle lives, or is about to end.
pub(crate) fn is_known(context: usize) -> bool {
    known().contexts.contains_key(&context)
}

/// Whether there is any context.
pub(crate) fn has_context() -> bool {
    !known().contexts.is_empty()
}

/// `context` may be destroyed by the next call, with everything in it. Nothing of the shim uses it until it is said what came
/// of that; its entry stays meanwhile, so that no drain ends without its work.
pub(crate) fn context_leaves(context: CUcontext) -> Absent {
    let entry = known().contexts.get(&context.addr()).map(|(entry, _)| Arc::clone(entry));
    if let Some(entry) = &entry {
        entry.alive.close();
    }
    Absent { entry }
}

/// See [`context_leaves`]. Where nothing is said, the context stays.
#[derive(Debug)]
#[must_use]
pub(crate) struct Absent {
    entry: Option<Arc<Context>>,
}

impl Absent {
    /// It lives: everything is as before.
    pub(crate) fn stays(self) {
        drop(self);
    }

    /// It is gone, and with it its streams, and what was pending there: it ended with it, or was waited for. (What is pending
    /// for streams of a green context has events of the primary one.)
    pub(crate) fn ends(self) {
        let Some(gone) = &self.entry else { return };
        gone.gone.store(true, Ordering::Release);
        super::current::one_ended();
        let mut known = known();
        if known.contexts.get(&gone.handle).is_some_and(|(there, _)| Arc::ptr_eq(there, gone)) {
            known.contexts.remove(&gone.handle);
        }
        let of_it = |stream: &Stream| Arc::ptr_eq(&stream.context, gone) || Arc::ptr_eq(&stream.events, gone);
        known.streams.retain(|_, stream| !of_it(stream));
        super::capture::captures_ended(&mut known, |_, context| Arc::ptr_eq(context, gone));
        let pending =
            known.pending.extract_if(.., |pending| Arc::ptr_eq(pending.context(), gone)).collect::<Vec<_>>();
        drop(known);
        drop(pending);
    }
}

impl Drop for Absent {
    fn drop(&mut self) {
        if let Some(entry) = &self.entry {
            entry.alive.lift();
        }
    }
}

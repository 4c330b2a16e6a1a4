//! Captures. Nothing of ours is ever recorded in a stream that is being captured, nor is it asked: that would invalidate the
//! capture. What such a stream holds from before its capture is kept in sight by an event, if it is not finished; the same
//! goes for streams that are destroyed, whose work goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::current::{Current, Relaxed, current_context};
use super::event::Event;
use super::green::owner_under;
use super::look::{capture_status, defaults_used, look_at_defaults, query};
use super::table::{Context, Known, Refusal, context_of, entry_of, known, primary_of};
use crate::cuda::sys::{CUcontext, CUevent, CUstream};
use crate::cuda::{CAPTURE_STATUS_NONE, CUresult, STREAM_LEGACY, STREAM_PER_THREAD};
use crate::driver::driver;

/// How many pending events are kept before the finished ones are looked for.
const PENDING_BEFORE_SWEEP: usize = 64;

/// How long a thread waits for work that cannot be kept in sight.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How many captures are going on.
static CAPTURES: AtomicUsize = AtomicUsize::new(0);

/// Work in a stream that cannot be asked any more.
#[derive(Clone, Debug)]
pub(super) enum Pending {
    /// Finished when the event is.
    Event(Arc<Event>),
    /// No event could be had. Finished when the context has been (`finish`), or is gone.
    Unseen(Arc<Context>, CUresult),
}

impl Pending {
    pub(super) fn context(&self) -> &Arc<Context> {
        match self {
            Pending::Event(event) => event.context(),
            Pending::Unseen(context, _) => context,
        }
    }

    fn is(&self, other: &Pending) -> bool {
        match (self, other) {
            (Pending::Event(one), Pending::Event(other)) => Arc::ptr_eq(one, other),
            (Pending::Unseen(one, _), Pending::Unseen(other, _)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// Forgets the pending work that is finished.
pub(super) fn sweep_pending() {
    let all = known().pending.clone();
    let finished: Vec<_> = all
        .into_iter()
        .filter(|pending| matches!(pending, Pending::Event(event) if event.done() == Ok(true)))
        .collect();
    let mut known = known();
    let forgotten: Vec<_> =
        known.pending.extract_if(.., |there| finished.iter().any(|finished| finished.is(there))).collect();
    drop(known);
    drop(forgotten);
}

/// All work in `context` from before is finished.
pub(super) fn nothing_unseen_in(context: &Arc<Context>) {
    known()
        .pending
        .retain(|pending| !matches!(pending, Pending::Unseen(there, _) if Arc::ptr_eq(there, context)));
}

/// What is in `stream` now stays in sight, although the stream cannot be asked soon. Called by the thread that makes the
/// call which is the reason for that; a stream that is captured already is left alone.
pub(super) fn keep_in_sight(stream: CUstream) {
    let _relaxed = Relaxed::new();
    if capture_status(stream) != Ok(CAPTURE_STATUS_NONE) {
        return;
    }
    let busy = query(stream);
    if busy == Ok(false) {
        return;
    }
    let (events, here) = match entry_of(stream) {
        Some(entry) => (Arc::clone(&entry.events), None),
        None => match context_of(stream) {
            Some(context) => {
                let here: CUcontext = std::ptr::with_exposed_provenance_mut(context);
                (known().context(owner_under(here)), Some(here))
            }
            None => return,
        },
    };
    pend(stream, busy, events, here);
}

/// `busy`: what the driver answered about the stream, other than that it is idle; `here`: the context whose default stream it is.
fn pend(stream: CUstream, busy: Result<bool, CUresult>, events: Arc<Context>, here: Option<CUcontext>) {
    let pending = match busy.map_err(Refusal::Error).and_then(|_| Event::record_under(&events, stream, here))
    {
        Ok(event) => Pending::Event(Arc::new(event)),
        Err(Refusal::Gone | Refusal::Leaving) => return,
        // A handle that is no stream's: the call will say so.
        Err(Refusal::Error(error)) if error.is_gone() && entry_of(stream).is_none() => return,
        Err(Refusal::Error(error)) => match wait_for(stream, error) {
            Ok(()) => return,
            Err(error) => Pending::Unseen(events, error),
        },
    };
    let many = {
        let mut known = known();
        known.pending.push(pending);
        known.pending.len().is_multiple_of(PENDING_BEFORE_SWEEP)
    };
    if many {
        sweep_pending();
    }
}

/// No event can be had for what is in `stream`: waits here, for a while.
#[cold]
fn wait_for(stream: CUstream, error: CUresult) -> Result<(), CUresult> {
    crate::log::warning!("cannot mark stream {stream:p}: {}; waiting for it", driver().error_name(error));
    let limit = Instant::now() + LONGEST_WAIT;
    while query(stream)? {
        if Instant::now() > limit {
            return Err(error);
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// A green context is about to be destroyed, which does not wait for its work: that stays in sight.
pub(crate) fn keep_context_in_sight(context: CUcontext) {
    let (entry, streams) = {
        let mut known = known();
        let entry = known.context(context.expose_provenance());
        let streams: Vec<_> =
            known.streams.values().filter(|stream| Arc::ptr_eq(&stream.context, &entry)).cloned().collect();
        (entry, streams)
    };
    for stream in &streams {
        keep_in_sight(stream.handle());
    }
    if defaults_used() {
        // Nothing is submitted to this context any more, so that nothing waits for an event in its legacy stream.
        let _relaxed = Relaxed::new();
        let Ok(_current) = Current::push(context) else { return };
        let busy = query(STREAM_LEGACY);
        if busy != Ok(false) {
            let events = primary_of(STREAM_LEGACY).map_or(entry, |primary| known().context(primary));
            pend(STREAM_LEGACY, busy, events, Some(context));
        }
    }
}

/// Makes the call by which a capture begins in `stream`.
pub(crate) fn begin(stream: CUstream, call: impl FnOnce() -> CUresult) -> CUresult {
    {
        let _relaxed = Relaxed::new();
        look_at_defaults();
    }
    let result = spread(stream, call);
    if result.ok()
        && let Some(context) = context_in_table(stream)
    {
        let mut known = known();
        known.captures.insert(capture_key(stream), context);
        CAPTURES.store(known.captures.len(), Ordering::Release);
    }
    result
}

/// The context of a stream, as the table has it.
fn context_in_table(stream: CUstream) -> Option<Arc<Context>> {
    match entry_of(stream) {
        Some(entry) => Some(Arc::clone(&entry.context)),
        None => current_context().map(|context| known().context(context.expose_provenance())),
    }
}

/// Makes a call by which a capture may reach `stream`. While it is made nobody asks this stream, nor the default streams,
/// which cannot be asked while a blocking stream is captured.
pub(crate) fn spread(stream: CUstream, call: impl FnOnce() -> CUresult) -> CUresult {
    keep_in_sight(stream);
    let (entry, context) = (entry_of(stream), context_in_table(stream));
    let _stream = entry.as_ref().map(|entry| entry.asks.bar());
    let _defaults = context.as_ref().map(|context| context.defaults.bar());
    call()
}

/// The capture in `stream` is over.
pub(crate) fn capture_ended(stream: CUstream) {
    let over = capture_key(stream);
    captures_ended(&mut known(), |stream, _| stream == over);
}

/// So are those in such streams (the key of each, and its context): a context takes them with it, too.
pub(super) fn captures_ended(known: &mut Known, are_over: impl Fn(usize, &Arc<Context>) -> bool) {
    let before = known.captures.len();
    known.captures.retain(|stream, context| !are_over(*stream, context));
    if known.captures.len() != before {
        CAPTURES.store(known.captures.len(), Ordering::Release);
        if known.captures.is_empty() {
            known.captured.clear();
        }
    }
}

/// Whether a capture that the application began is going on.
#[inline]
pub(crate) fn capturing() -> bool {
    CAPTURES.load(Ordering::Acquire) != 0
}

/// While something is captured `event` is recorded in `stream` by `call`.
pub(crate) fn recorded(event: CUevent, stream: CUstream, call: impl FnOnce() -> CUresult) -> CUresult {
    let captured = is_capturing(stream);
    let result = call();
    let mut known = known();
    if captured {
        known.captured.insert(event.addr());
    } else {
        known.captured.remove(&event.addr());
    }
    result
}

/// Whether waiting for `event` takes a stream into a capture.
pub(crate) fn leads_into_capture(event: CUevent) -> bool {
    known().captured.contains(&event.addr())
}

/// Whether a call into `stream` would execute nothing, because the stream is being captured. Of the legacy stream that is
/// never said: calls into it are refused while a blocking stream is captured, but that may end in any other thread before
/// the call is made.
pub(crate) fn is_capturing(stream: CUstream) -> bool {
    stream != STREAM_LEGACY && matches!(capture_status(stream), Ok(status) if status != CAPTURE_STATUS_NONE)
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

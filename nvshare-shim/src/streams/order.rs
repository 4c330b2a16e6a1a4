//! Whose order of work a call belongs to. Memory that is freed in a stream can be had again there at once, and elsewhere when the
//! work before the free is known to be finished: [`Lane`] says which stream, by its life.
//!
//! A stream of another thread is asked by a thread of ours only: to ask one that somebody is stuck submitting to takes until he
//! goes on, and he may wait for the very thread that asks.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::current::{Relaxed, current_context};
use super::event::Event;
use super::green::owner_under;
use super::look::{capture_status, query};
use super::mark::Mark;
use super::table::{Context, Refusal, Stream, entry_of, known};
use crate::cuda::sys::{CUcontext, CUdevice, CUstream};
use crate::cuda::{CAPTURE_STATUS_NONE, STREAM_LEGACY, STREAM_PER_THREAD};
use crate::memory::pool::Lane;

/// Where a call into a stream belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    /// Its order.
    pub(crate) lane: Lane,
    /// The device that it works on.
    pub(crate) device: CUdevice,
    /// The context that owns what is allocated for it.
    pub(crate) context: usize,
}

/// Of a stream (already resolved: never null); `None` where nobody saw it made.
pub(crate) fn at(stream: CUstream) -> Option<At> {
    if stream != STREAM_LEGACY && stream != STREAM_PER_THREAD {
        let entry = entry_of(stream)?;
        return Some(At {
            lane: of_stream(&entry),
            device: entry.events.device()?,
            context: entry.events.handle,
        });
    }
    let current = current_context()?;
    let entry = known().context(current.expose_provenance());
    let thread = if stream == STREAM_PER_THREAD { this_thread() } else { 0 };
    let owner = owner_under(current);
    let lane = if owner == entry.handle {
        Lane { context: entry.number, stream: 0, thread }
    } else {
        // A green context's work goes on when that is gone: nothing is known of it but by who waits for this very stream.
        Lane { context: 0, stream: entry.number, thread }
    };
    Some(At { lane, device: entry.device()?, context: owner })
}

fn of_stream(stream: &Stream) -> Lane {
    // What a context's synchronisation is worth to the streams of its green contexts is not known.
    let context = if is_green(stream) { 0 } else { stream.context.number };
    Lane { context, stream: stream.number, thread: 0 }
}

/// Whether it is a green context's.
fn is_green(stream: &Stream) -> bool {
    !Arc::ptr_eq(&stream.context, &stream.events)
}

/// The lane of a stream, as [`at`].
pub(crate) fn lane(stream: CUstream) -> Option<Lane> {
    at(stream).map(|at| at.lane)
}

/// A number for the calling thread, which no other has, or had.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: Cell<u64> = const { Cell::new(0) };
    }
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        number.get()
    })
}

/// A context of a device that is no green one, where one is known.
pub(crate) fn context_on(device: CUdevice) -> Option<usize> {
    let contexts: Vec<_> = known().contexts.values().map(|(context, _)| Arc::clone(context)).collect();
    let is_there = |context: &&Arc<Context>| {
        owner_under(std::ptr::with_exposed_provenance_mut(context.handle)) == context.handle
            && context.device() == Some(device)
    };
    contexts.iter().find(is_there).map(|context| context.handle)
}

/// The number that lanes have for a context that lives; the current one where none is named.
pub(crate) fn context_number(context: Option<CUcontext>) -> Option<u64> {
    let context = context.or_else(current_context)?;
    known().contexts.get(&context.addr()).map(|(entry, _)| entry.number)
}

/// What is known of a lane's work.
#[derive(Debug)]
pub(crate) enum Work {
    /// All that was in it when it was asked is finished.
    Finished,
    /// It is finished when this is.
    Until(Mark),
    /// Nothing can be known now.
    Unknown,
}

/// Asks about a lane, on a thread of ours that nobody has to wait for. Where it has work, a mark is put behind it, into a default
/// stream only if `hard`: that orders all blocking streams behind one another.
pub(crate) fn ask(lane: Lane, hard: bool) -> Work {
    let _relaxed = Relaxed::new();
    let (context, stream) = {
        let known = known();
        let context =
            known.contexts.values().map(|(entry, _)| entry).find(|entry| entry.number == lane.context);
        let stream = known.streams.values().find(|entry| entry.number == lane.stream);
        (context.cloned(), stream.cloned())
    };
    match (context, stream) {
        // It ended, and its work with it.
        (None, _) if lane.context != 0 => Work::Finished,
        (_, Some(stream)) => ask_stream(&stream),
        (Some(context), None) if (lane.stream, lane.thread) == (0, 0) => ask_legacy(&context, hard),
        // Another thread's own stream, which marks what it frees; or one that was destroyed, whose work went on behind a mark.
        _ => Work::Unknown,
    }
}

fn ask_stream(stream: &Stream) -> Work {
    if stream.is_gone() {
        return Work::Unknown;
    }
    let asked = stream.asks.ask(|| {
        let is_plain =
            stream.context.within(|| Ok(capture_status(stream.handle())? == CAPTURE_STATUS_NONE))?;
        if !is_plain {
            return Ok(Work::Unknown);
        }
        if stream.context.within(|| query(stream.handle()))? {
            return Event::record(&stream.events, stream.handle()).map(|event| Work::Until(Mark(event)));
        }
        Ok(Work::Finished)
    });
    match known_or_not(asked) {
        // The work of a green context goes on without it.
        Work::Finished if stream.is_gone() && is_green(stream) => Work::Unknown,
        known => known,
    }
}

fn ask_legacy(context: &Arc<Context>, hard: bool) -> Work {
    let asked = context.defaults.ask(|| {
        let is_busy = context.within(|| match capture_status(STREAM_LEGACY)? {
            CAPTURE_STATUS_NONE => query(STREAM_LEGACY).map(Some),
            _ => Ok(None),
        })?;
        match is_busy {
            Some(false) => Ok(Work::Finished),
            Some(true) if hard => Event::record(context, STREAM_LEGACY).map(|event| Work::Until(Mark(event))),
            _ => Ok(Work::Unknown),
        }
    });
    known_or_not(asked)
}

fn known_or_not(asked: Option<Result<Work, Refusal>>) -> Work {
    match asked {
        Some(Ok(work)) => work,
        Some(Err(Refusal::Gone)) => Work::Finished,
        _ => Work::Unknown,
    }
}

//! Waiting as `cuMemFree` waits. Its rule is the driver's own (on an H200: for the work of the context that owns the memory,
//! green contexts' included, not for other contexts or cards; it disturbs no capture of others), and so is its price, which
//! does not grow with the streams: the driver frees a stand-in in that context. Neither its errors nor what it waits for are
//! ours to guess.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::capture::nothing_unseen_in;
use super::look::{Listener, Survey};
use super::table::{Context, Refusal, known};
use crate::cuda::CUresult;
use crate::driver::driver;

/// The size of a stand-in: the smallest piece that the driver hands out.
const STAND_IN: usize = 512;
/// So many of a context are kept ready for frees to come: half a MiB, and of a block that is there anyway.
const READY: usize = 1024;

/// Work in a context that could not be waited for.
#[derive(Debug)]
pub(crate) struct Unfinished {
    context: Arc<Context>,
    begun: u64,
}

impl Unfinished {
    /// Whether a later wait has covered it, or the context is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.context.finished.load(Ordering::Acquire) > self.begun || self.context.is_gone()
    }
}

/// Waits until what was submitted to the context with that handle is finished, as a free of memory there does. An error is
/// what the bare free would have answered; nothing is known then.
pub(crate) fn finish(context: usize) -> Result<(), (CUresult, Unfinished)> {
    let Some(context) = known().contexts.get(&context).map(|(entry, _)| Arc::clone(entry)) else {
        // It ended, and its end waited.
        return Ok(());
    };
    let begun = context.begun.fetch_add(1, Ordering::AcqRel) + 1;
    let error = loop {
        match free_stand_in(&context) {
            Ok(()) => break None,
            Err(Refusal::Gone) => return Ok(()),
            // Another thread ends it just now; that does not take longer than the end of its work.
            Err(Refusal::Leaving) => std::thread::sleep(Duration::from_micros(50)),
            // The card has no room even for a stand-in.
            Err(Refusal::Error(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => break poll(&context).err(),
            Err(Refusal::Error(error)) => break Some(error),
        }
    };
    if let Some(error) = error {
        let begun = context.begun.load(Ordering::Acquire);
        return Err((error, Unfinished { context, begun }));
    }
    context.finished.fetch_max(begun, Ordering::AcqRel);
    nothing_unseen_in(&context);
    Ok(())
}

/// An allocation is made in the context with that handle: where frees are made, too, it provides a stand-in for one, so that
/// each of the two makes one call of the driver.
pub(crate) fn provide(context: usize) {
    let Some(context) = known().contexts.get(&context).map(|(entry, _)| Arc::clone(entry)) else { return };
    let wanted = |ready: usize| ready > 0 && ready < READY;
    if wanted(stand_ins(&context).len())
        && let Ok(stand_in) = context.within(allocate)
    {
        stand_ins(&context).push(stand_in);
    }
}

fn stand_ins(context: &Context) -> MutexGuard<'_, Vec<u64>> {
    context.stand_ins.lock().unwrap_or_else(PoisonError::into_inner)
}

fn free_stand_in(context: &Arc<Context>) -> Result<(), Refusal> {
    // Small pieces share blocks. One that stays keeps its block, and with that the others cheap (3 us, not 80).
    if stand_ins(context).is_empty() {
        let stays = context.within(allocate)?;
        stand_ins(context).push(stays);
    }
    let provided = {
        let mut ready = stand_ins(context);
        if ready.len() > 1 { ready.pop() } else { None }
    };
    let freed = match provided {
        Some(stand_in) => context.within(|| release(stand_in)),
        None => context.within(|| release(allocate()?)),
    };
    if let (Some(stand_in), Err(Refusal::Leaving)) = (provided, &freed) {
        stand_ins(context).push(stand_in);
    }
    freed
}

fn allocate() -> Result<u64, CUresult> {
    let mut pointer = 0;
    // SAFETY: `pointer` is where the answer goes.
    unsafe { driver().cuMemAlloc_v2(&raw mut pointer, STAND_IN) }.result()?;
    Ok(pointer)
}

fn release(stand_in: u64) -> Result<(), CUresult> {
    // SAFETY: it was allocated here, and nobody else has seen it.
    unsafe { driver().cuMemFree_v2(stand_in) }.result()
}

/// The same by asking stream by stream. Default streams that others keep busy all the time make it wait for longer.
#[cold]
fn poll(context: &Arc<Context>) -> Result<(), CUresult> {
    struct Anything;
    impl Listener for Anything {
        fn asking(&self, _: &dyn Fn() -> String) -> bool {
            true
        }
        fn answered(&self) {}
    }
    let mut survey = Survey::of(context);
    let mut events = survey.mark_streams()?;
    let mut pause = Duration::from_micros(5);
    loop {
        let mut waiting = Vec::new();
        for event in events {
            if !event.done()? {
                waiting.push(event);
            }
        }
        events = waiting;
        let left = survey.look(&Anything).unwrap_or_default();
        if let Some(unknown) = left.unknown {
            return Err(unknown.error);
        }
        if events.is_empty() && left.busy == 0 {
            // What is behind a capture, which perhaps this very thread shall end, can be waited for by nobody.
            let captured = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
            return if left.behind_capture { Err(captured) } else { Ok(()) };
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}

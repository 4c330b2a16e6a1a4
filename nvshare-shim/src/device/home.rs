//! Where the engine of a device is at home: in a context of the application, which the application may destroy.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::tasks::Task;
use super::{Device, image};
use crate::memory::map::ALLOCATIONS;
use crate::streams::{self, order};

/// Contexts that may be destroyed by a call that is being made.
static LEAVING: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn leaving() -> MutexGuard<'static, Vec<usize>> {
    LEAVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An allocation is made in `context`, which is current: the engine's home, if it has none yet.
pub fn adopt(device: &Device, context: usize) {
    if device.state().home.is_some() {
        return;
    }
    image::make(device);
    let leaving = leaving();
    let mut state = device.state();
    if state.home.is_none() && !leaving.contains(&context) {
        state.home = Some(context);
        drop(state);
        device.wake();
    }
}

/// The engine of `device` has no home: one of the contexts with memory there, of which no call may be ending just now; or any of its
/// contexts, for what belongs to none.
pub(crate) fn elect(device: &Device) {
    if device.state().home.is_some() {
        return;
    }
    let owner = ALLOCATIONS.another_context(device.index, &leaving());
    let found = owner.or_else(|| order::context_on(device.kind.ordinal));
    let leaving = leaving();
    // Whoever ends a context names it first, and takes that back when it is out of the records: such a one lives, and its end
    // finds the engine there.
    let found = found.filter(|context| !leaving.contains(context) && streams::is_known(*context));
    let mut state = device.state();
    if state.home.is_none() && state.leaving.is_empty() {
        state.home = found;
    }
}

/// The engine of `device` has left `context`, and the call that it was left for has been made. Where what the engine has is,
/// there it is at home: whoever ends that context asks it to leave.
pub(crate) fn has_left(device: &Device, context: usize, gone: bool) {
    let leaving = leaving();
    let except: Vec<usize> = leaving.iter().copied().chain([context]).collect();
    let other = ALLOCATIONS.another_context(device.index, &except);
    let mut state = device.state();
    if let Some(at) = state.leaving.iter().position(|left| *left == context) {
        state.leaving.swap_remove(at);
    }
    state.home = if gone { state.home.or(other) } else { Some(context) };
}

/// These contexts may be destroyed by the next call; returns when no engine uses them any more. None does until it is told
/// what came of the call. All are named first: an engine that has left one, and waits for the call, cannot leave another.
pub fn leave_contexts<const N: usize>(contexts: [usize; N]) -> [Left; N] {
    leaving().extend(contexts);
    contexts.map(leave)
}

fn leave(context: usize) -> Left {
    let mut waiting = Vec::new();
    for device in super::all() {
        {
            // Also one that has left it for another call: it comes back where that did not end the context.
            let mut state = device.state();
            if state.home != Some(context) && !state.leaving.contains(&context) {
                continue;
            }
            state.leaving.push(context);
        }
        let ((left, told), (tell, gone)) = (channel(), channel());
        device.order(Task::Leave { context, left, gone });
        // As long as it takes: a copy in a context that is destroyed would corrupt the driver. What is under way ends
        // early, and a thread that ends drops the other end.
        let _ = told.recv();
        waiting.push(tell);
    }
    Left { context, waiting }
}

/// The engines that left a context. Dropped with nothing said, they take it to be gone. Until it is dropped no engine makes
/// the context its home: where it is gone, not before what it had is out of the records.
#[derive(Debug)]
#[must_use]
pub struct Left {
    context: usize,
    waiting: Vec<Sender<bool>>,
}

impl Left {
    /// What came of the call: whether the context is gone.
    pub fn told(&self, gone: bool) {
        for engine in &self.waiting {
            let _ = engine.send(gone);
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        let mut leaving = leaving();
        if let Some(at) = leaving.iter().position(|context| *context == self.context) {
            leaving.swap_remove(at);
        }
    }
}

//! Which context a thread works in.

use std::cell::RefCell;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUresult};

use super::green::Green;
use super::{CONTEXTS, Context};
use crate::call::{Call, Outcome};

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

//! The lives of contexts: made with their place on the card and their default stream, ended with all that belongs to them.
//!
//! - [`primary`]: those that each device has one of; [`green`]: parts of these

pub(crate) mod green;
pub(crate) mod primary;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUcontext;

use crate::call::Outcome;
use crate::context::green::GREENS;
use crate::context::{self, Anchor, CONTEXTS, Context, Current};
use crate::{array, execution, failure, faults, memory, module, texture};

/// How long a context that is destroyed waits for its work.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes a context and gives it its place on the card.
pub(crate) fn create(device: usize, flags: u32, anchor: Option<Anchor>) -> Outcome<Arc<Context>> {
    failure::check()?;
    faults::at_call(faults::Point::Context)?;
    memory::context_opened(device)?;
    let context = Context::new(device, flags, anchor);
    execution::context_opened(&context);
    CONTEXTS.insert_as(context.handle(), Arc::clone(&context));
    Ok(context)
}

/// Ends a context as `cuCtxDestroy` does: once nothing runs in any other context of the process, on other cards too (an
/// idle one waited for the 2 s of a kernel on another card of an H200's host).
pub(crate) fn destroy(context: &Arc<Context>) {
    end(context, |_| true);
}

/// Ends a primary context, which does not wait for other cards.
fn destroy_primary(context: &Arc<Context>) {
    end(context, |other| other.device == context.device);
}

/// Its work is abandoned or done after that of the others that are `waited_for`, what belongs to it is gone.
fn end(context: &Arc<Context>, waited_for: impl Fn(&Context) -> bool) {
    CONTEXTS.for_each(|other| {
        if other.id != context.id && waited_for(other) {
            for completion in other.unfinished() {
                completion.wait();
            }
        }
    });
    // What was submitted is finished first, as far as it can be; what never ends, ends with its context.
    let deadline = Instant::now() + PATIENCE;
    let pending = context.unfinished();
    let _ = pending.iter().all(|completion| completion.wait_until(deadline));
    context.destroy();
    for completion in pending {
        completion.wait();
    }
    CONTEXTS.remove(context.handle());
    execution::context_ended(context);
    module::forget(context);
    array::context_destroyed(context.id);
    texture::context_destroyed(context.id);
    memory::context_destroyed(context);
}

/// What can be made current: a context, a green one, or a primary one that was reset.
pub(crate) fn to_work_in(handle: CUcontext) -> Outcome<Current> {
    if let Some(green) = GREENS.get(handle) {
        return Ok(Current { context: Arc::clone(&green.primary), green: Some(green) });
    }
    let context = context::by_handle(handle).or_else(|error| primary::ended(handle).ok_or(error))?;
    Ok(Current { context, green: None })
}

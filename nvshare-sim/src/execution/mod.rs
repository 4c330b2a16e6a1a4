//! What the application has executed, and in which order.
//!
//! - [`stream`], [`streams`]: queues of work with their threads, and all those of a context; [`event`], `shared_event`: places in
//!   them, which processes may share
//! - [`work`]: everything that a stream executes; [`kernel`], [`builtin`]: code
//! - [`graph`], [`executable`]: work with an order, as it is described and as it is launched; [`capture`],
//!   [`capture_mode`]: streams whose work becomes a graph

pub(crate) mod builtin;
pub(crate) mod capture;
mod capture_mode;
pub(crate) mod event;
pub(crate) mod executable;
pub(crate) mod graph;
pub(crate) mod kernel;
mod shared_event;
pub(crate) mod stream;
pub(crate) mod streams;
pub(crate) mod work;

use std::sync::Arc;

use crate::context::Context;

/// A context was made: it gets its default stream.
pub(crate) fn context_opened(context: &Arc<Context>) {
    streams::open(context);
}

/// A context is gone: so are its streams, events and functions.
pub(crate) fn context_ended(context: &Arc<Context>) {
    streams::close(context);
    stream::STREAMS.retain(|stream| !Arc::ptr_eq(&stream.context, context));
    // Their handles are somebody else's next, as they are with a real driver.
    event::EVENTS.retain(|event| !Arc::ptr_eq(&event.context, context));
    kernel::FUNCTIONS.retain(|function| !Arc::ptr_eq(&function.context, context));
}

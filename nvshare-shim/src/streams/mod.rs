//! The streams and contexts that the application made, and whether their work is finished.
//!
//! - [`table`]: what exists, by life and not by handle; [`asks`]: asking about what another thread may take away.
//! - [`look`]: asking everything, for drains; [`mod@finish`]: waiting as a free does; [`mod@mark`], [`event`]: events of ours, for the
//!   thread's own stream.
//! - [`order`]: whose order of work a call belongs to, for memory that is freed and had again in it.
//! - [`capture`]: captures, and work whose stream cannot be asked; [`current`]: the thread's context and capture mode.
//!
//! No lock of ours is held over a call of the driver. Which calls wait in the driver, and for what, is in
//! docs/driver-assumptions.md.

mod asks;
mod capture;
mod current;
mod event;
mod finish;
mod green;
mod look;
mod mark;
pub(crate) mod order;
mod sync;
mod table;

pub(crate) use self::capture::{
    begin, capture_ended, capturing, is_capturing, keep_context_in_sight, leads_into_capture, recorded,
    spread,
};
pub use self::current::{Current, Relaxed, current_context};
pub(crate) use self::current::{check_current, current_device};
pub(crate) use self::finish::{Unfinished, finish, provide};
pub(crate) use self::green::{green_ended, green_met, owner_under, primary_under};
pub(crate) use self::look::{Left, Listener, Survey, defaults_are_idle, note_use};
pub use self::mark::Mark;
pub(crate) use self::mark::mark;
pub(crate) use self::table::{
    broken, context_given_back, context_held, context_leaves, context_seen, created, has_context, held_once,
    is_known, leaves, provide_marks,
};

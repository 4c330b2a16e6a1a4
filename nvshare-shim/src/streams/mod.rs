//! The streams and contexts that the application made, and whether their work is finished.
//!
//! - [`table`]: what exists, by life and not by handle; [`asks`]: asking about what another thread may take away.
//! - [`look`]: asking everything, for drains; [`mod@finish`]: waiting as a free does; [`mod@mark`], [`event`]: events of ours, for the
//!   thread's own stream.
//! - [`capture`]: captures, and work whose stream cannot be asked; [`current`]: the thread's context and capture mode.
//!
//! No lock of ours is held over a call of the driver. Which calls wait in the driver, and for what, is in
//! docs/driver-assumptions.md.

mod asks;
mod capture;
mod current;
mod event;
mod finish;
mod look;
mod mark;
mod sync;
mod table;

pub(crate) use self::capture::{
    begin, capture_ended, capturing, is_capturing, keep_context_in_sight, leads_into_capture, recorded,
    spread,
};
pub use self::current::{Current, Relaxed, current_context};
pub(crate) use self::finish::{Unfinished, finish};
pub(crate) use self::look::{Left, Listener, Survey, defaults_are_idle, note_use};
pub use self::mark::Mark;
pub(crate) use self::mark::mark;
pub(crate) use self::table::{
    context_given_back, context_held, context_leaves, context_seen, created, has_context, held_once, leaves,
};

/// Whether everything that was submitted is finished. Not where a thread may be inside a submission: a question about a stream
/// that is full could then wait as long as that.
pub(crate) fn nothing_runs() -> bool {
    /// Asks everything.
    struct Always;
    impl Listener for Always {
        fn asking(&self, _name: &dyn Fn() -> String) -> bool {
            true
        }
        fn answered(&self) {}
    }
    let _relaxed = Relaxed::new();
    Survey::new().look(&Always).is_some_and(|left| left.is_nothing())
}

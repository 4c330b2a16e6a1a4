//! The primitives that asking is built from. The model test puts loom's in their place.

pub(crate) use std::sync::atomic::{AtomicUsize, Ordering, fence};

/// Lets others go on for a moment.
pub(crate) fn pause() {
    std::thread::sleep(std::time::Duration::from_micros(20));
}

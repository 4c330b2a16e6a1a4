//! The primitives the gate is built from. The model test puts loom's in their place.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
pub(crate) use std::sync::{Condvar, Mutex};

/// The cheap half of the asymmetric fence: the compiler keeps the order, the closer's barrier does the rest.
#[inline]
pub(crate) fn light_fence() {
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
}

/// A constructor that is `const` here, and cannot be in the model.
macro_rules! const_fn {
    ($visibility:vis fn $($rest:tt)*) => { $visibility const fn $($rest)* };
}
pub(crate) use const_fn;

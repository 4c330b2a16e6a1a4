//! A call of the driver, as those see it who serve it: what may be asked about it, and how it ends.

use cudarc::driver::sys::CUresult;

/// Result of a driver function's body.
pub(crate) type Outcome<T = ()> = Result<T, CUresult>;

/// The call that is being served: what its body may ask about it.
pub(crate) struct Call {
    /// The symbol that was called.
    pub(crate) name: &'static str,
    /// Whether the null stream means the thread's own default stream (the `_ptsz`/`_ptds` twins).
    pub(crate) per_thread: bool,
}

//! What was freed and is not given back yet, because work that was submitted before may use it.

use crate::cuda::CUresult;
use crate::memory::map::Allocation;
use crate::streams::{Mark, Unfinished};

/// Freed by the application, perhaps still used by work that was submitted before.
#[derive(Debug)]
pub struct Quarantined {
    /// Its first byte.
    pub(crate) start: u64,
    /// What it was.
    pub(crate) allocation: Allocation,
    /// How long it stays.
    pub(crate) until: Until,
}

/// When nothing uses it any more.
#[derive(Debug)]
pub(crate) enum Until {
    /// The work before in the stream is complete.
    Marked(Mark),
    /// The work of its context is; waiting for it failed.
    Finished(Unfinished),
}

impl Until {
    /// Whether that is so, or the driver's error.
    pub(crate) fn is_over(&self) -> Result<bool, CUresult> {
        match self {
            Until::Marked(mark) => mark.answer(),
            Until::Finished(unfinished) => Ok(unfinished.is_over()),
        }
    }
}

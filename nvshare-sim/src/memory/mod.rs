//! Memory: placeholder until the real one lands.

use crate::context::Context;
use crate::export::Outcome;

/// Where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// Device memory.
    Device(usize),
    /// Pinned host memory.
    Pinned,
    /// Managed memory.
    Managed,
    /// Anything else.
    Pageable,
}

#[expect(clippy::unnecessary_wraps, reason = "placeholder")]
pub(crate) fn access(_address: u64, _bytes: u64, _write: bool, _device: usize) -> Result<(), String> {
    Ok(())
}

pub(crate) fn classify(_address: u64) -> Location {
    Location::Pinned
}

pub(crate) fn touch_managed(_device: usize, _address: u64, _bytes: u64, _write: bool, at: u64) -> u64 {
    at
}

pub(crate) fn context_opened(_device: usize) -> Outcome {
    Ok(())
}

pub(crate) fn context_destroyed(_context: &Context) {}

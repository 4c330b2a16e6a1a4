//! Calls that only wait for the device. They do not pass the gate; while a thread is in one its client is not idle.

use std::sync::atomic::Ordering;

use super::Bare;
use crate::counters;
use crate::cuda::CUresult;

pub(crate) unsafe fn wait<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    let waiting = &counters::page().waiting;
    waiting.fetch_add(1, Ordering::Relaxed);
    let result = bare.call();
    waiting.fetch_sub(1, Ordering::Relaxed);
    result
}

//! Calls that only wait for the device. They do not pass the gate; while a thread is in one its client is not idle.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

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

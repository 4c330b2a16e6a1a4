//! Calls that only wait for the device. They do not pass the gate; while a thread is in one its client is not idle. What they waited
//! for is finished, and pools hear of it.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::sync::atomic::Ordering;

use super::Bare;
use crate::allocation::stream_ordered::{self, After};
use crate::counters;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUcontext, CUstream};

pub(crate) unsafe fn stream<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    wait(bare, || After::Stream(bare.stream(stream)))
}

pub(crate) unsafe fn event<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    wait(bare, || After::Event)
}

pub(crate) unsafe fn current<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    wait(bare, || After::Context(None))
}

pub(crate) unsafe fn context<F: Fn() -> CUresult>(bare: &Bare<F>, context: CUcontext) -> CUresult {
    wait(bare, || After::Context((!context.is_null()).then_some(context)))
}

fn wait<F: Fn() -> CUresult>(bare: &Bare<F>, what: impl FnOnce() -> After) -> CUresult {
    let waiting = &counters::page().waiting;
    let before = stream_ordered::before();
    waiting.fetch_add(1, Ordering::Relaxed);
    let result = bare.call();
    waiting.fetch_sub(1, Ordering::Relaxed);
    if let Some(frees) = before.filter(|_| result.ok()) {
        stream_ordered::synchronised(what(), frees);
    }
    result
}

//! Calls that submit work to the device: copies, memsets, launches, graphs, stream memory operations. They pass the gate
//! before and are otherwise untouched.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::Bare;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUDA_LAUNCH_PARAMS, CUlaunchConfig, CUstream};
use crate::turn::{self, pace};
use crate::{life, streams};

/// Work in `stream`.
#[inline]
pub(crate) unsafe fn on<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    let stream = bare.stream(stream);
    let pass = turn::pass_into(stream);
    streams::note_use(&pass, stream);
    bare.call()
}

/// Work in `stream` whose addresses the driver looks at during the call, captured or not: a copy or memset of memory that is
/// not there is refused, or taken for one of host memory, which a graph launched later then crashes on. So even into a
/// stream that is being captured it waits at a shut gate. Nobody waits for that capture: a drain that does lets all calls
/// through.
#[inline]
pub(crate) unsafe fn at_addresses<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    let pass = turn::pass();
    streams::note_use(&pass, bare.stream(stream));
    bare.call()
}

/// A part of a graph that may be a copy: see [`at_addresses`].
#[inline]
pub(crate) unsafe fn described<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    let _pass = turn::pass();
    bare.call()
}

/// As [`described`], of a call that may take a little memory: see [`super::room::lazy`].
pub(crate) unsafe fn described_lazily<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    let attempt = || {
        let _pass = turn::pass();
        bare.call()
    };
    super::room::again(bare, attempt(), None, None, attempt)
}

/// A graph is made ready, with all its copies; the driver may need memory for it.
pub(crate) unsafe fn instantiate<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    super::room::retry_with(bare, None, None, || {
        let _pass = turn::pass();
        bare.call()
    })
}

/// Work in the default stream; most of these calls return when it is done.
#[inline]
pub(crate) unsafe fn blocking<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    // SAFETY: the null stream is what these functions use.
    unsafe { on(bare, std::ptr::null_mut()) }
}

/// Kernels in the default stream.
pub(crate) unsafe fn launch_blocking<F: Fn() -> CUresult>(bare: &Bare<F>) -> CUresult {
    // SAFETY: the null stream is what these functions use.
    unsafe { launch(bare, std::ptr::null_mut()) }
}

/// Kernels and graphs in `stream`: work that may be long, and queued up faster than it is done.
#[inline]
pub(crate) unsafe fn launch<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    let stream = bare.stream(stream);
    let (result, turn) = launch_once(bare, stream);
    if let Some(turn) = turn {
        turn.wait();
    }
    // Kernels that are loaded lazily are loaded here.
    super::room::again_in(bare, result, stream, || launch_once(bare, stream).0)
}

#[inline]
fn launch_once<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> (CUresult, Option<Box<pace::Turn>>) {
    let pass = turn::pass_into(stream);
    streams::note_use(&pass, stream);
    let result = bare.call();
    // Inside, for it may record an event, which waits for room in the stream as the launch does.
    (result, pace::after_launch(stream))
}

/// A graph in `stream`: it may bring memory of its own.
#[inline]
pub(crate) unsafe fn launch_graph<F: Fn() -> CUresult>(bare: &Bare<F>, stream: CUstream) -> CUresult {
    // SAFETY: the application's own stream.
    let result = unsafe { launch(bare, stream) };
    crate::allocation::pools::graph_launched();
    result
}

/// Kernels in a stream of each of several devices: none of these streams, which may be captured or not, decides alone
/// whether a shut gate is passed, and the default stream has nothing to do with it.
pub(crate) unsafe fn launch_list<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    list: *const CUDA_LAUNCH_PARAMS,
    count: u32,
) -> CUresult {
    let count = if list.is_null() { 0 } else { count as usize };
    // SAFETY: not null, so the driver would read so many too; only the stream's field is read.
    let stream = |index: usize| bare.stream(unsafe { (&raw const (*list.add(index)).hStream).read() });
    let launch = || {
        let pass = turn::pass();
        (0..count).for_each(|index| streams::note_use(&pass, stream(index)));
        bare.call()
    };
    let result = launch();
    let captured = || life::active() && (0..count).any(|index| streams::is_capturing(stream(index)));
    if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY && captured() {
        return result;
    }
    super::room::again(bare, result, None, None, launch)
}

/// A launch whose stream stands in `config`.
#[inline]
pub(crate) unsafe fn launch_ex<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    config: *const CUlaunchConfig,
) -> CUresult {
    if config.is_null() {
        return bare.call();
    }
    // SAFETY: not null, so the driver would read it too; only the stream's field is read.
    let stream = unsafe { (&raw const (*config).hStream).read() };
    // SAFETY: the application's own stream.
    unsafe { launch(bare, stream) }
}

//! Launches of kernels and of host functions.

use std::ffi::{c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{CUfunction, CUresult, CUstream};

use crate::call::{Call, Outcome};
use crate::execution::kernel::{FUNCTIONS, Function, Launch, Shape};
use crate::execution::work::{self, HostCall, Work};
use crate::export::export;
use crate::module::KERNELS;
use crate::parameters::{Arguments, Extra, In};

export! {
    fn cuLaunchKernel / cuLaunchKernel_ptsz(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: CUstream, parameters: Arguments, extra: Extra,
    ) |cx| {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared };
        launch(cx, function, shape, stream, (parameters, extra))
    }

    fn cuLaunchKernelEx / cuLaunchKernelEx_ptsz(
        config: In<Config>, function: CUfunction, parameters: Arguments, extra: Extra,
    ) |cx| {
        let config = config.get()?;
        let shape = Shape { grid: config.grid, block: config.block, shared: config.shared };
        launch(cx, function, shape, config.stream, (parameters, extra))
    }

    fn cuLaunchCooperativeKernel / cuLaunchCooperativeKernel_ptsz(
        function: CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: CUstream, parameters: Arguments,
    ) |cx| {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared };
        launch(cx, function, shape, stream, (parameters, Extra::NONE))
    }

    fn cuLaunchHostFunc / cuLaunchHostFunc_ptsz(
        stream: CUstream, function: Option<unsafe extern "C" fn(*mut c_void)>, argument: *mut c_void,
    ) |cx| {
        let stream = cx.stream(stream)?;
        let function = function.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let call = HostCall { function, argument: argument as usize };
        work::submit(&stream, Work::Host(call)).map(|_| ())
    }
}

/// `CUlaunchConfig`; attributes make no difference here.
#[repr(C)]
struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: CUstream,
    attributes: *const c_void,
    count: c_uint,
}

/// The function that a `CUfunction`, or a `CUkernel` in its place, names.
pub(crate) fn function_of(cx: &Call, handle: CUfunction) -> Outcome<Arc<Function>> {
    if let Some(function) = FUNCTIONS.get(handle) {
        return Ok(function);
    }
    let kernel = KERNELS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
    kernel.function(&cx.context()?)
}

/// A kernel that the simulator knows only by name cannot run.
pub(crate) fn known(function: &Function) -> Outcome {
    static SAID: AtomicBool = AtomicBool::new(false);
    if function.builtin.is_some() {
        return Ok(());
    }
    if !SAID.swap(true, Ordering::Relaxed) {
        eprintln!(
            "nvshare-sim: kernel `{}` is none of the built-in ones (nvshare_fill, nvshare_step, ...) and cannot run: \
             CUDA_ERROR_NOT_SUPPORTED",
            function.name
        );
    }
    Err(CUresult::CUDA_ERROR_NOT_SUPPORTED)
}

fn launch(
    cx: &Call,
    function: CUfunction,
    shape: Shape,
    stream: CUstream,
    (parameters, extra): (Arguments, Extra),
) -> Outcome {
    let stream = cx.stream(stream)?;
    let function = function_of(cx, function)?;
    if function.context.id != stream.context.id {
        return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    let launch = Launch::new(&function, shape, parameters, extra)?;
    known(&function)?;
    work::submit(&stream, Work::Kernel(Arc::new(launch))).map(|_| ())
}

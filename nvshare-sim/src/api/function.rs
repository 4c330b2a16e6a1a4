//! What can be asked of functions and kernels, and how many of their blocks fit a multiprocessor.

use std::ffi::{CString, c_char, c_int, c_uint};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cudarc::driver::sys::{CUdevice, CUfunction, CUkernel, CUresult};

use super::launch::function_of;
use crate::call::Outcome;
use crate::device::{MAX_SHARED, MULTIPROCESSORS};
use crate::execution::kernel::Function;
use crate::export::export;
use crate::parameters::{Maybe, Out};

/// Threads of a multiprocessor.
const THREADS: usize = 2048;
/// Blocks of a multiprocessor.
const BLOCKS: usize = 32;

export! {
    fn cuFuncGetAttribute(value: Out<c_int>, attribute: c_uint, handle: CUfunction) |cx| {
        value.set(attribute_of(&function_of(cx, handle)?, attribute)?)
    }

    fn cuFuncSetAttribute(handle: CUfunction, attribute: c_uint, value: c_int) |cx| {
        set_attribute(&function_of(cx, handle)?, attribute, value)
    }

    fn cuKernelGetAttribute(value: Out<c_int>, attribute: c_uint, handle: CUkernel, of: CUdevice) |cx| {
        value.set(attribute_of(&function_of(cx, handle.cast())?, attribute)?)
    }

    fn cuKernelSetAttribute(attribute: c_uint, value: c_int, handle: CUkernel, of: CUdevice) |cx| {
        set_attribute(&function_of(cx, handle.cast())?, attribute, value)
    }

    fn cuFuncSetCacheConfig(handle: CUfunction, config: c_uint) |cx| {
        function_of(cx, handle).map(|_| ())
    }

    fn cuFuncSetSharedMemConfig(handle: CUfunction, config: c_uint) |cx| {
        function_of(cx, handle).map(|_| ())
    }

    fn cuKernelSetCacheConfig(handle: CUkernel, config: c_uint, of: CUdevice) |cx| {
        function_of(cx, handle.cast()).map(|_| ())
    }

    fn cuFuncGetName(name: Out<*const c_char>, handle: CUfunction) |cx| {
        name.set(kept(&function_of(cx, handle)?.name))
    }

    fn cuKernelGetName(name: Out<*const c_char>, handle: CUkernel) |cx| {
        name.set(kept(&function_of(cx, handle.cast())?.name))
    }

    fn cuFuncGetParamInfo(handle: CUfunction, index: usize, offset: Out<usize>, size: Maybe<usize>) |cx| {
        parameter(&function_of(cx, handle)?, index, offset, &size)
    }

    fn cuKernelGetParamInfo(handle: CUkernel, index: usize, offset: Out<usize>, size: Maybe<usize>) |cx| {
        parameter(&function_of(cx, handle.cast())?, index, offset, &size)
    }

    fn cuFuncIsLoaded(state: Out<c_uint>, handle: CUfunction) |cx| {
        function_of(cx, handle)?;
        state.set(1)
    }

    fn cuFuncLoad(handle: CUfunction) |cx| {
        function_of(cx, handle).map(|_| ())
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: Out<c_int>, handle: CUfunction, block_size: c_int, shared: usize,
    ) |cx| {
        function_of(cx, handle)?;
        blocks.set(fitting(block_size, shared)?)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: Out<c_int>, handle: CUfunction, block_size: c_int, shared: usize, flags: c_uint,
    ) |cx| {
        function_of(cx, handle)?;
        blocks.set(fitting(block_size, shared)?)
    }

    fn cuOccupancyMaxPotentialBlockSize(
        grid_size: Out<c_int>, block_size: Out<c_int>, handle: CUfunction,
        shared_of: Option<unsafe extern "C" fn(c_int) -> usize>, shared: usize, limit: c_int,
    ) |cx| {
        function_of(cx, handle)?;
        best(grid_size, block_size, limit)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid_size: Out<c_int>, block_size: Out<c_int>, handle: CUfunction,
        shared_of: Option<unsafe extern "C" fn(c_int) -> usize>, shared: usize, limit: c_int, flags: c_uint,
    ) |cx| {
        function_of(cx, handle)?;
        best(grid_size, block_size, limit)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(
        bytes: Out<usize>, handle: CUfunction, blocks: c_int, block_size: c_int,
    ) |cx| {
        function_of(cx, handle)?;
        if blocks <= 0 || block_size <= 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        bytes.set(MAX_SHARED as usize / blocks as usize)
    }
}

fn attribute_of(function: &Arc<Function>, attribute: c_uint) -> Outcome<c_int> {
    Ok(match attribute {
        0 => 1024,   // threads of a block
        4 => 32,     // registers
        5 | 6 => 90, // versions
        8 => function.dynamic_shared.load(Ordering::Relaxed).max(48 << 10),
        9 => -1, // preferred shared memory
        // Shared, constant and local memory, cache mode, clusters.
        1..=3 | 7 | 10..=15 => 0,
        _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    })
}

fn set_attribute(function: &Arc<Function>, attribute: c_uint, value: c_int) -> Outcome {
    match attribute {
        8 if (0..=MAX_SHARED as c_int).contains(&value) => {
            function.dynamic_shared.store(value, Ordering::Relaxed);
            Ok(())
        }
        9..=15 => Ok(()),
        _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }
}

fn parameter(function: &Arc<Function>, index: usize, offset: Out<usize>, size: &Maybe<usize>) -> Outcome {
    let parameter = function.parameters.get(index).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    offset.set(parameter.offset)?;
    size.set(parameter.size);
    Ok(())
}

/// The name as a C string that lives as long as the process; there are few.
fn kept(name: &str) -> *const c_char {
    static NAMES: LazyLock<Mutex<Vec<CString>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = names.iter().find(|kept| kept.as_bytes() == name.as_bytes()) {
        return found.as_ptr();
    }
    // The text of a C string has no zero in it; PTX names come from one.
    let name = CString::new(name).unwrap_or_default();
    let pointer = name.as_ptr();
    names.push(name);
    pointer
}

fn fitting(block_size: c_int, shared: usize) -> Outcome<c_int> {
    if !(1..=1024).contains(&block_size) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let by_shared = (MAX_SHARED as usize).checked_div(shared).unwrap_or(BLOCKS);
    Ok((THREADS / block_size as usize).min(BLOCKS).min(by_shared) as c_int)
}

fn best(grid_size: Out<c_int>, block_size: Out<c_int>, limit: c_int) -> Outcome {
    let block = if limit > 0 { limit.min(1024) } else { 1024 };
    grid_size.set(MULTIPROCESSORS * (THREADS as c_int / block))?;
    block_size.set(block)
}

//! Contexts, ordinary and primary, and which one a thread works in.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::Ordering;

use cudarc::driver::sys::{CUcontext, CUdevice, CUresult};

use crate::context::{self, Context, Current};
use crate::export::{Outcome, export, put, put_if};
use crate::{capture, device, primary};

/// All flags that a context can have.
const FLAGS: c_uint = 0xff;

/// `CU_LIMIT_STACK_SIZE`.
const STACK: c_uint = 0;

/// What `cuCtxGetApiVersion` answers.
const API_VERSION: c_uint = 3020;

export! {
    fn cuCtxCreate_v2(made: *mut CUcontext, flags: c_uint, of: CUdevice) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { create(made, flags, of) }
    }

    fn cuCtxCreate_v3(
        made: *mut CUcontext, parameters: *const c_void, count: c_int, flags: c_uint, of: CUdevice,
    ) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { create(made, flags, of) }
    }

    fn cuCtxCreate_v4(made: *mut CUcontext, parameters: *const c_void, flags: c_uint, of: CUdevice) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { create(made, flags, of) }
    }

    fn cuCtxDestroy_v2(handle: CUcontext) |cx| {
        let context = context::by_handle(handle)?;
        if context.is_primary() {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        if context::current().is_some_and(|current| current.id == context.id) {
            context::pop();
        }
        context.destroy();
        Ok(())
    }

    fn cuCtxPushCurrent_v2(handle: CUcontext) |cx| {
        context::push(context::to_work_in(handle)?);
        Ok(())
    }

    fn cuCtxPopCurrent_v2(popped: *mut CUcontext) |cx| {
        let current = context::pop().ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        // SAFETY: an optional out-parameter of the driver API.
        unsafe { put_if(popped, current.handle()) };
        Ok(())
    }

    fn cuCtxSetCurrent(handle: CUcontext) |cx| {
        context::set(if handle.is_null() { None } else { Some(context::to_work_in(handle)?) });
        Ok(())
    }

    fn cuCtxGetCurrent(current: *mut CUcontext) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(current, context::current_handle()) }
    }

    fn cuCtxGetDevice(of: *mut CUdevice) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(of, context::asked()?.device as CUdevice) }
    }

    fn cuCtxGetId(handle: CUcontext, id: *mut u64) |cx| {
        let context = if handle.is_null() { cx.context()? } else { context::by_handle(handle)? };
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(id, context.id) }
    }

    fn cuCtxGetFlags(flags: *mut c_uint) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(flags, context::asked()?.flags.load(Ordering::Relaxed)) }
    }

    fn cuCtxSetFlags(flags: c_uint) |cx| {
        if flags & !FLAGS != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        cx.context()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetApiVersion(handle: CUcontext, version: *mut c_uint) |cx| {
        if handle.is_null() {
            cx.context()?;
        } else {
            context::by_handle(handle)?;
        }
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(version, API_VERSION) }
    }

    fn cuCtxSynchronize() |cx| {
        let context = cx.context()?;
        capture::forbid_waiting_for(&context)?;
        context.synchronize()
    }

    fn cuCtxGetLimit(value: *mut usize, limit: c_uint) |cx| {
        let context = cx.context()?;
        let default = match limit {
            STACK => 1024,
            1 => 1 << 20,                     // printf
            2 => 8 << 20,                     // malloc heap
            3 => 2,                           // depth of device synchronisation
            4 => 2048,                        // pending launches from the device
            5 => 128,                         // fetch granularity
            6 => 0,                           // persisting lines
            _ => return Err(CUresult::CUDA_ERROR_UNSUPPORTED_LIMIT),
        };
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(value, context.limits().get(&limit).copied().unwrap_or(default)) }
    }

    fn cuCtxSetLimit(limit: c_uint, value: usize) |cx| {
        let context = cx.context()?;
        if limit > 6 {
            return Err(CUresult::CUDA_ERROR_UNSUPPORTED_LIMIT);
        }
        // More stack is put in place when no kernel of the context runs; the other limits do not wait.
        if limit == STACK {
            context.synchronize()?;
        }
        context.limits().insert(limit, value);
        Ok(())
    }

    fn cuCtxResetPersistingL2Cache() |cx| {
        cx.context().map(|_| ())
    }

    fn cuCtxGetCacheConfig(config: *mut c_uint) |cx| {
        cx.context()?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(config, 0) }
    }

    fn cuCtxSetCacheConfig(config: c_uint) |cx| {
        cx.context().map(|_| ())
    }

    fn cuCtxGetSharedMemConfig(config: *mut c_uint) |cx| {
        cx.context()?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(config, 0) }
    }

    fn cuCtxSetSharedMemConfig(config: c_uint) |cx| {
        cx.context().map(|_| ())
    }

    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) |cx| {
        cx.context()?;
        // SAFETY: optional out-parameters of the driver API.
        unsafe {
            put_if(least, 0);
            put_if(greatest, crate::api::stream::GREATEST_PRIORITY);
        }
        Ok(())
    }

    fn cuCtxEnablePeerAccess(handle: CUcontext, flags: c_uint) |cx| {
        let (context, peer) = (cx.context()?, context::by_handle(handle)?);
        if flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if peer.device == context.device {
            return Err(CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
        }
        if !context.peers().insert(peer.id) {
            return Err(CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
        }
        Ok(())
    }

    fn cuCtxDisablePeerAccess(handle: CUcontext) |cx| {
        let (context, peer) = (cx.context()?, context::by_handle(handle)?);
        if !context.peers().remove(&peer.id) {
            return Err(CUresult::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxRetain(retained: *mut CUcontext, of: CUdevice) |cx| {
        let context = primary::retain(device::index(of)?)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(retained, context.handle()) }
    }

    fn cuDevicePrimaryCtxRelease_v2(of: CUdevice) |cx| {
        primary::release(device::index(of)?)
    }

    fn cuDevicePrimaryCtxReset_v2(of: CUdevice) |cx| {
        primary::reset(device::index(of)?);
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(of: CUdevice, flags: *mut c_uint, active: *mut c_int) |cx| {
        let (value, is_active) = primary::state(device::index(of)?);
        // SAFETY: out-parameters of the driver API.
        unsafe {
            put_if(flags, value);
            put_if(active, c_int::from(is_active));
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxSetFlags_v2(of: CUdevice, flags: c_uint) |cx| {
        if flags & !FLAGS != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        primary::set_flags(device::index(of)?, flags);
        Ok(())
    }
}

/// Makes a context and makes it current.
///
/// # Safety
/// `made` is null or writable.
unsafe fn create(made: *mut CUcontext, flags: c_uint, of: CUdevice) -> Outcome {
    if made.is_null() || flags & !FLAGS != 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let context = Context::create(device::index(of)?, flags, None)?;
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { made.write(context.handle()) };
    context::push(Current { context, green: None });
    Ok(())
}

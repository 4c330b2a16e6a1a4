//! Contexts, ordinary and primary, and which one a thread works in.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::atomic::Ordering;

use cudarc::driver::sys::{CUcontext, CUdevice, CUresult};

use crate::call::Outcome;
use crate::context::{self, Current};
use crate::execution::capture;
use crate::export::export;
use crate::lifetime::{self, primary};
use crate::parameters::{Maybe, Out};
use crate::{device, memory};

/// All flags that a context can have.
const FLAGS: c_uint = 0xff;

/// `CU_LIMIT_STACK_SIZE`.
const STACK: c_uint = 0;

/// What `cuCtxGetApiVersion` answers.
const API_VERSION: c_uint = 3020;

export! {
    fn cuCtxCreate_v2(made: Out<CUcontext>, flags: c_uint, of: CUdevice) |cx| {
        create(made, flags, of)
    }

    fn cuCtxCreate_v3(
        made: Out<CUcontext>, parameters: *const c_void, count: c_int, flags: c_uint, of: CUdevice,
    ) |cx| {
        create(made, flags, of)
    }

    fn cuCtxCreate_v4(made: Out<CUcontext>, parameters: *const c_void, flags: c_uint, of: CUdevice) |cx| {
        create(made, flags, of)
    }

    fn cuCtxDestroy_v2(handle: CUcontext) |cx| {
        let context = context::by_handle(handle)?;
        if context.is_primary() {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        if context::current().is_some_and(|current| current.id == context.id) {
            context::pop();
        }
        lifetime::destroy(&context);
        Ok(())
    }

    fn cuCtxPushCurrent_v2(handle: CUcontext) |cx| {
        context::push(lifetime::to_work_in(handle)?);
        Ok(())
    }

    fn cuCtxPopCurrent_v2(popped: Maybe<CUcontext>) |cx| {
        let current = context::pop().ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        popped.set(current.handle());
        Ok(())
    }

    fn cuCtxSetCurrent(handle: CUcontext) |cx| {
        context::set(if handle.is_null() { None } else { Some(lifetime::to_work_in(handle)?) });
        Ok(())
    }

    fn cuCtxGetCurrent(current: Out<CUcontext>) |cx| {
        current.set(context::current_handle())
    }

    fn cuCtxGetDevice(of: Out<CUdevice>) |cx| {
        of.set(context::asked()?.device as CUdevice)
    }

    fn cuCtxGetId(handle: CUcontext, id: Out<u64>) |cx| {
        let context = if handle.is_null() { cx.context()? } else { context::by_handle(handle)? };
        id.set(context.id)
    }

    fn cuCtxGetFlags(flags: Out<c_uint>) |cx| {
        flags.set(context::asked()?.flags.load(Ordering::Relaxed))
    }

    fn cuCtxSetFlags(flags: c_uint) |cx| {
        if flags & !FLAGS != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        cx.context()?.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    fn cuCtxGetApiVersion(handle: CUcontext, version: Out<c_uint>) |cx| {
        if handle.is_null() {
            cx.context()?;
        } else {
            context::by_handle(handle)?;
        }
        version.set(API_VERSION)
    }

    fn cuCtxSynchronize() |cx| {
        let context = cx.context()?;
        capture::forbid_waiting_for(&context)?;
        memory::synchronize(&context)
    }

    fn cuCtxGetLimit(value: Out<usize>, limit: c_uint) |cx| {
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
        value.set(context.limits().get(&limit).copied().unwrap_or(default))
    }

    fn cuCtxSetLimit(limit: c_uint, value: usize) |cx| {
        let context = cx.context()?;
        if limit > 6 {
            return Err(CUresult::CUDA_ERROR_UNSUPPORTED_LIMIT);
        }
        // More stack is put in place when no kernel of the context runs; the other limits do not wait.
        if limit == STACK {
            memory::wait_for(&context)?;
        }
        context.limits().insert(limit, value);
        Ok(())
    }

    fn cuCtxResetPersistingL2Cache() |cx| {
        cx.context().map(|_| ())
    }

    fn cuCtxGetCacheConfig(config: Out<c_uint>) |cx| {
        cx.context()?;
        config.set(0)
    }

    fn cuCtxSetCacheConfig(config: c_uint) |cx| {
        cx.context().map(|_| ())
    }

    fn cuCtxGetSharedMemConfig(config: Out<c_uint>) |cx| {
        cx.context()?;
        config.set(0)
    }

    fn cuCtxSetSharedMemConfig(config: c_uint) |cx| {
        cx.context().map(|_| ())
    }

    fn cuCtxGetStreamPriorityRange(least: Maybe<c_int>, greatest: Maybe<c_int>) |cx| {
        cx.context()?;
        least.set(0);
        greatest.set(crate::api::stream::GREATEST_PRIORITY);
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

    fn cuDevicePrimaryCtxRetain(retained: Out<CUcontext>, of: CUdevice) |cx| {
        let context = primary::retain(device::index(of)?)?;
        retained.set(context.handle())
    }

    fn cuDevicePrimaryCtxRelease_v2(of: CUdevice) |cx| {
        primary::release(device::index(of)?)
    }

    fn cuDevicePrimaryCtxReset_v2(of: CUdevice) |cx| {
        primary::reset(device::index(of)?);
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(of: CUdevice, flags: Maybe<c_uint>, active: Maybe<c_int>) |cx| {
        let (value, is_active) = primary::state(device::index(of)?);
        flags.set(value);
        active.set(c_int::from(is_active));
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
fn create(made: Out<CUcontext>, flags: c_uint, of: CUdevice) -> Outcome {
    if made.is_null() || flags & !FLAGS != 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let context = lifetime::create(device::index(of)?, flags, None)?;
    made.set(context.handle())?;
    context::push(Current { context, green: None });
    Ok(())
}

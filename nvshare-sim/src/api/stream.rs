//! Streams: made, destroyed, waited for, asked.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevice, CUevent, CUgreenCtx, CUresult, CUstream};

use crate::call::{Call, Outcome};
use crate::context;
use crate::context::green::Green;
use crate::execution::capture;
use crate::execution::event::Record;
use crate::execution::stream::{Kind, STREAMS, Stream};
use crate::execution::streams;
use crate::execution::work::{self, Callback, Work};
use crate::export::export;
use crate::failure;
use crate::parameters::{Maybe, Out};

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;

/// The numerically lowest priority that streams can have.
pub(crate) const GREATEST_PRIORITY: c_int = -5;

/// `CU_EVENT_WAIT_EXTERNAL`.
const WAIT_EXTERNAL: c_uint = 1;

export! {
    fn cuStreamCreate(made: Out<CUstream>, flags: c_uint) |cx| {
        create(cx, made, flags, 0)
    }

    fn cuStreamCreateWithPriority(made: Out<CUstream>, flags: c_uint, priority: c_int) |cx| {
        create(cx, made, flags, priority.clamp(GREATEST_PRIORITY, 0))
    }

    fn cuStreamDestroy_v2(handle: CUstream) |cx| {
        let stream = STREAMS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        stream.context.jam.pass();
        STREAMS.remove(handle);
        stream.close();
        failure::check()
    }

    fn cuStreamSynchronize / cuStreamSynchronize_ptsz(handle: CUstream) |cx| {
        let stream = cx.stream(handle)?;
        capture::forbid_waiting(&stream)?;
        stream.synchronize()
    }

    fn cuStreamQuery / cuStreamQuery_ptsz(handle: CUstream) |cx| {
        let stream = cx.stream(handle)?;
        capture::forbid_waiting(&stream)?;
        let pending = stream.pending();
        stream.usable()?;
        if pending.is_empty() { Ok(()) } else { Err(CUresult::CUDA_ERROR_NOT_READY) }
    }

    fn cuStreamWaitEvent / cuStreamWaitEvent_ptsz(handle: CUstream, event: CUevent, flags: c_uint) |cx| {
        let (stream, event) = (cx.stream(handle)?, cx.event(event)?);
        match event.record() {
            Record::None => Ok(()),
            Record::Captured(mark) => capture::wait_for(&stream, &mark),
            Record::Work(_) if flags & WAIT_EXTERNAL != 0 && capture::is_capturing(&stream) => {
                capture::take(&stream, &Work::Nothing).map(|_| ())
            }
            Record::Shared(_) if flags & WAIT_EXTERNAL != 0 && capture::is_capturing(&stream) => {
                capture::take(&stream, &Work::Nothing).map(|_| ())
            }
            Record::Shared(awaited) => {
                capture::forbid(&stream, CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION)?;
                capture::take(&stream, &Work::Nothing)?;
                let work = if awaited.is_over() { Work::Nothing } else { Work::Await(awaited) };
                stream.enqueue((work, None), &[], false);
                Ok(())
            }
            Record::Work(completion) => {
                // What is outside of the capture it cannot wait for.
                capture::forbid(&stream, CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION)?;
                // In the legacy stream this is work like any other.
                capture::take(&stream, &Work::Nothing)?;
                stream.enqueue((Work::Nothing, None), &[completion], false);
                Ok(())
            }
        }
    }

    fn cuStreamAddCallback / cuStreamAddCallback_ptsz(
        handle: CUstream,
        function: Option<unsafe extern "C" fn(CUstream, CUresult, *mut c_void)>,
        argument: *mut c_void,
        flags: c_uint,
    ) |cx| {
        let stream = cx.stream(handle)?;
        let function = function.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        if capture::is_capturing(&stream) {
            capture::forbid_waiting(&stream)?;
        }
        let call = Callback { function, stream: handle as usize, argument: argument as usize };
        work::submit(&stream, Work::Callback(call)).map(|_| ())
    }

    fn cuStreamGetCtx / cuStreamGetCtx_ptsz(handle: CUstream, context: Out<CUcontext>) |cx| {
        let (stream, green) = place_of(cx, handle)?;
        context.set(green.as_ref().map_or_else(|| stream.context.handle(), Green::context_handle))
    }

    fn cuStreamGetCtx_v2 / cuStreamGetCtx_v2_ptsz(
        handle: CUstream, context: Out<CUcontext>, green: Maybe<CUgreenCtx>,
    ) |cx| {
        let (stream, its) = place_of(cx, handle)?;
        green.set(its.as_ref().map_or(std::ptr::null_mut(), Green::handle));
        context.set(stream.context.handle())
    }

    fn cuStreamGetGreenCtx(handle: CUstream, green: Out<CUgreenCtx>) |cx| {
        green.set(place_of(cx, handle)?.1.as_ref().map_or(std::ptr::null_mut(), Green::handle))
    }

    fn cuStreamGetDevice / cuStreamGetDevice_ptsz(handle: CUstream, device: Out<CUdevice>) |cx| {
        device.set(cx.stream(handle)?.context.device as CUdevice)
    }

    fn cuStreamGetFlags / cuStreamGetFlags_ptsz(handle: CUstream, flags: Out<c_uint>) |cx| {
        flags.set(cx.stream(handle)?.flags)
    }

    fn cuStreamGetPriority / cuStreamGetPriority_ptsz(handle: CUstream, priority: Out<c_int>) |cx| {
        priority.set(cx.stream(handle)?.priority)
    }

    fn cuStreamGetId / cuStreamGetId_ptsz(handle: CUstream, id: Out<u64>) |cx| {
        id.set(cx.stream(handle)?.id)
    }
}

/// A stream, and the green context that it belongs to. Under a green context the legacy stream is that one's, and a thread's own
/// default stream is nothing to ask about (seen on an H200).
fn place_of(cx: &Call, handle: CUstream) -> Outcome<(Arc<Stream>, Option<Arc<Green>>)> {
    let stream = cx.stream(handle)?;
    let current = context::current_green().filter(|_| matches!(stream.kind, Kind::Legacy | Kind::PerThread));
    if current.is_some() && stream.kind == Kind::PerThread {
        return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    let green = current.or_else(|| stream.green.clone());
    Ok((stream, green))
}

fn create(cx: &Call, made: Out<CUstream>, flags: c_uint, priority: c_int) -> Outcome {
    if made.is_null() || flags & !NON_BLOCKING != 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let context = cx.context()?;
    let kind = if flags & NON_BLOCKING == 0 { Kind::Blocking } else { Kind::NonBlocking };
    context.jam.pass();
    // Under a green context a stream that blocks for no other is that one's; of the others nothing is known.
    let green = context::current_green().filter(|_| kind == Kind::NonBlocking);
    let stream = match green {
        Some(green) => Stream::of_green(&green, flags, priority),
        None => Stream::new(&context, kind, flags, priority),
    };
    streams::keep(&stream);
    made.set(STREAMS.insert(stream))
}

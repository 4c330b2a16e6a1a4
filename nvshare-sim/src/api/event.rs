//! Events.

use std::ffi::c_uint;

use cudarc::driver::sys::{CUevent, CUresult, CUstream};

use crate::call::{Call, Outcome};
use crate::execution::capture;
use crate::execution::event::{EVENTS, Event, Record};
use crate::execution::work::Work;
use crate::export::export;
use crate::failure;
use crate::memory::pool;
use crate::parameters::Out;

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: c_uint = 2;
/// `CU_EVENT_INTERPROCESS`.
const INTERPROCESS: c_uint = 4;
/// `CU_EVENT_RECORD_EXTERNAL`.
const RECORD_EXTERNAL: c_uint = 1;

export! {
    fn cuEventCreate(made: Out<CUevent>, flags: c_uint) |cx| {
        let context = cx.context()?;
        if flags & !7 != 0 || (flags & INTERPROCESS != 0 && flags & DISABLE_TIMING == 0) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        context.jam.pass();
        let event = match flags & INTERPROCESS {
            0 => Event::new(context, flags & DISABLE_TIMING != 0),
            _ => Event::interprocess(context)?,
        };
        made.set(event.handle())
    }

    fn cuEventDestroy_v2(handle: CUevent) |cx| {
        EVENTS.remove(handle).map(|_| ()).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    }

    fn cuEventRecord / cuEventRecord_ptsz(handle: CUevent, stream: CUstream) |cx| {
        record(cx, handle, stream, 0)
    }

    fn cuEventRecordWithFlags / cuEventRecordWithFlags_ptsz(handle: CUevent, stream: CUstream, flags: c_uint) |cx| {
        record(cx, handle, stream, flags)
    }

    fn cuEventQuery(handle: CUevent) |cx| {
        match cx.event(handle)?.record() {
            Record::None => capture::unsafe_call(),
            Record::Captured(mark) => Err(capture::forbid_event(&mark)),
            Record::Work(completion) => {
                capture::unsafe_call()?;
                completion.finished().map(|_| ()).ok_or(CUresult::CUDA_ERROR_NOT_READY)
            }
            Record::Shared(awaited) => {
                capture::unsafe_call()?;
                if awaited.is_over() { Ok(()) } else { Err(CUresult::CUDA_ERROR_NOT_READY) }
            }
        }
    }

    fn cuEventSynchronize(handle: CUevent) |cx| {
        let event = cx.event(handle)?;
        match event.record() {
            Record::None => capture::unsafe_call(),
            Record::Captured(mark) => Err(capture::forbid_event(&mark)),
            Record::Work(completion) => {
                capture::unsafe_call()?;
                completion.wait();
                pool::reached(event.context.device, &[completion.place]);
                failure::check()
            }
            Record::Shared(awaited) => {
                capture::unsafe_call()?;
                awaited.wait()?;
                pool::reached(event.context.device, &[]);
                failure::check()
            }
        }
    }

    fn cuEventElapsedTime(milliseconds: Out<f32>, from: CUevent, to: CUevent) |cx| {
        milliseconds.set(elapsed(cx, from, to)?)
    }

    fn cuEventElapsedTime_v2(milliseconds: Out<f32>, from: CUevent, to: CUevent) |cx| {
        milliseconds.set(elapsed(cx, from, to)?)
    }
}

fn record(cx: &Call, handle: CUevent, stream: CUstream, flags: c_uint) -> Outcome {
    let (event, stream) = (cx.event(handle)?, cx.stream(stream)?);
    if event.context.id != stream.context.id {
        return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    match capture::mark(&stream)? {
        // An external record is a node that records when the graph runs; nobody waits for those here.
        Some(_) if flags & RECORD_EXTERNAL != 0 => capture::take(&stream, &Work::Nothing).map(|_| ()),
        Some(mark) => {
            event.set(Record::Captured(mark));
            Ok(())
        }
        None => {
            event.set(Record::Work(stream.enqueue((event.to_record(), None), &[], false)));
            Ok(())
        }
    }
}

fn elapsed(cx: &Call, from: CUevent, to: CUevent) -> Outcome<f32> {
    let (from, to) = (cx.event(from)?, cx.event(to)?);
    if from.untimed || to.untimed {
        return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    let end = |event: &Event| match event.record() {
        Record::None | Record::Shared(_) => Err(CUresult::CUDA_ERROR_INVALID_HANDLE),
        Record::Captured(_) => Err(CUresult::CUDA_ERROR_CAPTURED_EVENT),
        Record::Work(completion) => completion.finished().ok_or(CUresult::CUDA_ERROR_NOT_READY),
    };
    let (from, to) = (end(&from)?, end(&to)?);
    Ok((to as i64 - from as i64) as f32 / 1e6)
}

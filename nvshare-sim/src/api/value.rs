//! Stream memory operations: a stream writes a word, or waits for one.

#![expect(unsafe_code, reason = "a word of the device's memory, found accessible")]

use std::ffi::c_uint;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use cudarc::driver::sys::{CUdeviceptr, CUresult, CUstream};
use nvshare_sim_card::now;

use crate::call::{Call, Outcome};
use crate::execution::work::{self, Custom, Work, device_end};
use crate::export::export;
use crate::flight::Touch;
use crate::memory;
use crate::strict;
use crate::timeline::Timeline;

/// How often a stream that waits looks at the word, in nanoseconds.
const POLL: u64 = 100_000;

export! {
    fn cuStreamWriteValue32 / cuStreamWriteValue32_ptsz(s: CUstream, at: CUdeviceptr, value: u32, flags: c_uint) |cx| {
        write(cx, s, (at, 4), u64::from(value))
    }

    fn cuStreamWriteValue32_v2 / cuStreamWriteValue32_v2_ptsz(
        s: CUstream, at: CUdeviceptr, value: u32, flags: c_uint,
    ) |cx| {
        write(cx, s, (at, 4), u64::from(value))
    }

    fn cuStreamWriteValue64 / cuStreamWriteValue64_ptsz(s: CUstream, at: CUdeviceptr, value: u64, flags: c_uint) |cx| {
        write(cx, s, (at, 8), value)
    }

    fn cuStreamWriteValue64_v2 / cuStreamWriteValue64_v2_ptsz(
        s: CUstream, at: CUdeviceptr, value: u64, flags: c_uint,
    ) |cx| {
        write(cx, s, (at, 8), value)
    }

    fn cuStreamWaitValue32 / cuStreamWaitValue32_ptsz(s: CUstream, at: CUdeviceptr, value: u32, flags: c_uint) |cx| {
        wait(cx, s, (at, 4), u64::from(value), flags)
    }

    fn cuStreamWaitValue32_v2 / cuStreamWaitValue32_v2_ptsz(
        s: CUstream, at: CUdeviceptr, value: u32, flags: c_uint,
    ) |cx| {
        wait(cx, s, (at, 4), u64::from(value), flags)
    }

    fn cuStreamWaitValue64 / cuStreamWaitValue64_ptsz(s: CUstream, at: CUdeviceptr, value: u64, flags: c_uint) |cx| {
        wait(cx, s, (at, 8), value, flags)
    }

    fn cuStreamWaitValue64_v2 / cuStreamWaitValue64_v2_ptsz(
        s: CUstream, at: CUdeviceptr, value: u64, flags: c_uint,
    ) |cx| {
        wait(cx, s, (at, 8), value, flags)
    }
}

/// The word at the address: read, and written if there is a value. The address was found accessible and aligned.
fn word((at, bytes): (u64, u64), value: Option<u64>) -> u64 {
    // SAFETY: `submit` checks address and alignment before it calls this; programs use such words atomically.
    unsafe {
        if bytes == 4 {
            let word = AtomicU32::from_ptr(at as *mut u32);
            value
                .map_or_else(
                    || word.load(Ordering::SeqCst),
                    |value| word.swap(value as u32, Ordering::SeqCst),
                )
                .into()
        } else {
            let word = AtomicU64::from_ptr(at as *mut u64);
            value.map_or_else(|| word.load(Ordering::SeqCst), |value| word.swap(value, Ordering::SeqCst))
        }
    }
}

fn write(cx: &Call, stream: CUstream, place: (u64, u64), value: u64) -> Outcome {
    submit(cx, stream, place, true, move |_| {
        word(place, Some(value));
        Ok(())
    })
}

fn wait(cx: &Call, stream: CUstream, place: (u64, u64), value: u64, flags: c_uint) -> Outcome {
    // The comparison is of differences: a counter may have wrapped.
    let reached: fn(u64, u64, u64) -> bool = match flags & 3 {
        0 => |found, value, bytes| match bytes {
            4 => (found as i32).wrapping_sub(value as i32) >= 0,
            _ => (found as i64).wrapping_sub(value as i64) >= 0,
        },
        1 => |found, value, _| found == value,
        2 => |found, value, _| found & value != 0,
        _ => |found, value, bytes| !(found | value) << (64 - 8 * bytes) != 0,
    };
    submit(cx, stream, place, false, move |timeline| {
        while !reached(word(place, None), value, place.1) {
            timeline.check()?;
            timeline.at = now() + POLL;
            timeline.sleep();
        }
        timeline.at = timeline.at.max(now());
        Ok(())
    })
}

fn submit(
    cx: &Call,
    stream: CUstream,
    (start, bytes): (u64, u64),
    write: bool,
    act: impl Fn(&mut Timeline<'_>) -> Outcome + Send + Sync + 'static,
) -> Outcome {
    let stream = cx.stream(stream)?;
    if start == 0 || !start.is_multiple_of(bytes) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    device_end(start)?;
    let run = move |timeline: &mut Timeline<'_>| {
        memory::access(start, bytes, write, timeline.context.device)
            .map_err(|why| strict::illegal(&format!("a stream memory operation: {why}")))?;
        act(timeline)
    };
    let custom = Custom {
        name: "a stream memory operation",
        touches: vec![Touch { start, bytes, write }],
        run: Box::new(run),
    };
    work::submit(&stream, Work::Custom(Arc::new(custom))).map(|_| ())
}

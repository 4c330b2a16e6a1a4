//! A piece is freed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{UNSETTLED, finish, pools};
use crate::cuda::sys::{CUdeviceptr, CUstream};
use crate::cuda::{CUresult, STREAM_LEGACY};
use crate::memory::map::{ALLOCATIONS, Of};
use crate::streams::{self, order};

/// Frees what starts at `pointer` in the order of `stream`. `None`: it is no piece of a pool of ours, or that stream is captured or
/// unknown.
pub fn freed(pointer: CUdeviceptr, stream: CUstream) -> Option<CUresult> {
    let (start, allocation) = ALLOCATIONS.find(pointer)?;
    let Of::Pool(_) = allocation.of else { return None };
    if start != pointer {
        return None;
    }
    if streams::capturing() {
        if streams::is_capturing(stream) {
            return None;
        }
        // Beside a blocking stream that is captured the driver refuses it, and nothing is freed.
        if stream == STREAM_LEGACY
            && let Err(error @ CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) = streams::mark(stream)
        {
            return Some(error);
        }
    }
    let lane = order::lane(stream)?;
    // That stream is this thread's alone: nobody else can ask about it later.
    let mark =
        if lane.thread == 0 || lane.context == 0 { None } else { streams::mark(stream).ok().flatten() };
    let removed = ALLOCATIONS.remove(pointer)?;
    let Of::Pool(number) = removed.of else { return None };
    let mut pools = pools();
    pools.frees += 1;
    let frees = pools.frees;
    if let Some(entry) = pools.entries.get_mut(&number) {
        entry.pool.give(start, removed.bytes, Some((lane, frees)));
        UNSETTLED.store(true, Ordering::Release);
        finish::last_piece(entry);
    }
    if let Some(mark) = mark {
        pools.mark(lane, frees, Arc::new(mark));
    }
    Some(CUresult::CUDA_SUCCESS)
}

/// Gives back a piece that nothing uses any more.
pub fn give(number: u64, start: CUdeviceptr, bytes: u64) {
    let mut pools = pools();
    if let Some(entry) = pools.entries.get_mut(&number) {
        entry.pool.give(start, bytes, None);
        finish::may_be_unsettled(entry);
        finish::last_piece(entry);
    }
}

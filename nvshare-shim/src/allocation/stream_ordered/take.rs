//! A piece is taken: of what is there, of what other streams freed when that is finished, of chunks more; and where these are refused,
//! of what another stream freed, behind whose work this one then waits on the device. That is the driver's order, too.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{ANY, Entry, UNSETTLED, chunk, finish, number_of, pools, release};
use crate::allocation::allocate::{fill, in_place};
use crate::allocation::{free, promise};
use crate::cuda::sys::{CUdeviceptr, CUmemoryPool, CUstream};
use crate::cuda::{CUresult, STREAM_LEGACY, STREAM_PER_THREAD};
use crate::device::{self, Device, home, vmm};
use crate::memory::map::{self, ALLOCATIONS, Allocation, Of};
use crate::memory::pool::{Lane, Place};
use crate::memory::space::Space;
use crate::streams::order::{self, At};
use crate::streams::{self, Relaxed};
use crate::turn::{self, dead};

/// How long a thread waits to hear what other streams have finished, before it takes more memory.
const PATIENCE: Duration = Duration::from_millis(1);
/// The same where there is no more.
const LONG: Duration = Duration::from_millis(50);

/// Whether any pool holds memory of the card: it outlives contexts.
pub fn holds() -> bool {
    ANY.load(Ordering::Relaxed) && pools().entries.values().any(|entry| entry.pool.has_chunks())
}

/// Allocates for work in `stream` (already resolved: never null, and not captured), from the pool that is named or else its device's.
/// `None`: that is the driver's affair. Never waits for memory.
pub fn take(
    named: Option<CUmemoryPool>,
    bytes: u64,
    stream: CUstream,
) -> Option<Result<CUdeviceptr, CUresult>> {
    // Which context is current matters to default streams only.
    if matches!(stream, STREAM_LEGACY | STREAM_PER_THREAD)
        && let Err(error) = streams::check_current()
    {
        return Some(Err(error));
    }
    let at = order::at(stream)?;
    let device = device::of_ordinal(at.device)?;
    if dead::has_failed(device) {
        return None;
    }
    let number = number_of(device, named)?;
    if bytes > device.total {
        return Some(Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
    }
    let start = pools().entries.get_mut(&number)?.pool.take(bytes, at.lane);
    let taken = if let Some(start) = start {
        Ok(start)
    } else {
        let _relaxed = Relaxed::new();
        adopt(device, &at);
        more(device, number, bytes, at.lane, stream)
    };
    Some(taken.inspect(|start| {
        let of = Of::Pool(number);
        let number = map::number();
        ALLOCATIONS.insert(
            *start,
            Allocation { bytes, taken: bytes, of, device: device.index, context: 0, number, sync: false },
        );
    }))
}

/// No part that is free holds so much.
#[cold]
fn more(
    device: &'static Device,
    number: u64,
    bytes: u64,
    lane: Lane,
    stream: CUstream,
) -> Result<u64, CUresult> {
    free::sweep(device);
    if let Some(start) = from_there(number, bytes, lane) {
        return Ok(start);
    }
    if with(number, |entry| entry.opportunistic && entry.pool.lanes().iter().any(|other| *other != lane)) {
        finish::look(false, PATIENCE);
        if let Some(start) = from_there(number, bytes, lane) {
            return Ok(start);
        }
    }
    let mut refused = match grow(device, number, bytes, lane) {
        Err(code) => code,
        grown => return grown,
    };
    if refused == CUresult::CUDA_ERROR_OUT_OF_MEMORY && release::spare(device) {
        refused = match grow(device, number, bytes, lane) {
            Err(code) => code,
            grown => return grown,
        };
    }
    if refused == CUresult::CUDA_ERROR_OUT_OF_MEMORY && with(number, |entry| entry.dependencies) {
        return follow(number, bytes, lane, stream).ok_or(refused);
    }
    Err(refused)
}

fn with<T: Default>(number: u64, look: impl FnOnce(&Entry) -> T) -> T {
    pools().entries.get(&number).map(look).unwrap_or_default()
}

/// Of what is free and lies together.
fn from_there(number: u64, bytes: u64, lane: Lane) -> Option<u64> {
    let mut pools = pools();
    let pool = &mut pools.entries.get_mut(&number)?.pool;
    if let Some(start) = pool.take(bytes, lane) {
        return Some(start);
    }
    let place = pool.find(bytes, lane).filter(|place| place.chunks.is_empty())?;
    pool.begin(&place);
    Some(place.start)
}

/// The engine may be at home in the stream's context.
fn adopt(device: &Device, at: &At) {
    streams::provide_marks(at.context);
    if device.state().home.is_some() {
        return;
    }
    let is_here = streams::current_context().is_some_and(|current| current.addr() == at.context);
    let context = std::ptr::with_exposed_provenance_mut(at.context);
    // Its tools are made for the device that is current; and the current context may be gone.
    let _there = if is_here { None } else { streams::Current::push(context).ok() };
    streams::context_seen(context);
    home::adopt(device, at.context);
}

/// Puts memory behind as many chunks as it takes, as far as the grant goes.
fn grow(device: &'static Device, number: u64, bytes: u64, lane: Lane) -> Result<u64, CUresult> {
    let place = begin(device, number, bytes, lane)?;
    let (mut came, size) = (0, chunk(device));
    let grown = if promise::may_grow(device, place.chunks.len() as u64 * size) {
        place.chunks.iter().try_for_each(|chunk| {
            let largest = device.extent_bytes.min(size);
            let add = |space: &mut Space| space.add_chunk(*chunk, size, largest);
            fill(device, *chunk, size, add, in_place, || ()).inspect(|()| came += 1)
        })
    } else {
        Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY)
    };
    if grown.is_ok() {
        let mut pools = pools();
        if let Some(entry) = pools.entries.get_mut(&number) {
            entry.pool.filled(&place);
            finish::may_be_unsettled(entry);
        }
        return Ok(place.start);
    }
    // What is taken apart by the engine is gone when it says so.
    let leaving: Vec<u64> = {
        let state = device.state();
        place.chunks.iter().copied().filter(|chunk| state.space.span(*chunk).is_some()).collect()
    };
    let mut pools = pools();
    pools.frees += 1;
    let after = Some((lane, pools.frees));
    if let Some(entry) = pools.entries.get_mut(&number) {
        entry.pool.abandoned(&place, after, came, |chunk| leaving.contains(&chunk));
        UNSETTLED.store(true, Ordering::Release);
    }
    drop(pools);
    // What came in vain is the card's again, as after the bare call: others may need it.
    release::shed(number, came as u64 * size);
    grown.map(|()| place.start)
}

/// Finds a place, in addresses that are reserved for it where there are none.
fn begin(device: &'static Device, number: u64, bytes: u64, lane: Lane) -> Result<Place, CUresult> {
    loop {
        {
            let mut pools = pools();
            let entry = pools.entries.get_mut(&number).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
            if let Some(place) = entry.pool.find(bytes, lane) {
                let more = place.chunks.len() as u64 * entry.pool.chunk;
                if entry.pool.reserved.now.saturating_add(more) > entry.limit {
                    return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
                }
                entry.pool.begin(&place);
                return Ok(place);
            }
        }
        // As much as it can ever need; of programs with a thousand pools the last ones have less.
        let size = chunk(device);
        let [most, least] = [device.total.max(bytes), bytes].map(|bytes| bytes.next_multiple_of(size));
        let (start, length) = match vmm::reserve(most, size) {
            Ok(start) => (start, most),
            Err(_) => (vmm::reserve(least, size)?, least),
        };
        if let Some(entry) = pools().entries.get_mut(&number) {
            entry.pool.add_region(start, length);
        }
    }
}

/// Takes what other streams freed: `stream` waits on the device until their work is done.
fn follow(number: u64, bytes: u64, lane: Lane, stream: CUstream) -> Option<u64> {
    finish::look(true, LONG);
    if let Some(start) = from_there(number, bytes, lane) {
        return Some(start);
    }
    let others = pools().marks_of_others(lane);
    for (other, frees, mark) in others {
        let would_help = with(number, |entry| entry.pool.lanes().contains(&other));
        let pass = turn::pass_into(stream);
        streams::note_use(&pass, stream);
        if !would_help || mark.holds_back(stream).is_err() {
            continue;
        }
        drop(pass);
        let mut pools = pools();
        pools.frees += 1;
        let to = (lane, pools.frees);
        if let Some(entry) = pools.entries.get_mut(&number) {
            entry.pool.followed(other, frees, to);
        }
        drop(pools);
        if let Some(start) = from_there(number, bytes, lane) {
            return Some(start);
        }
    }
    None
}

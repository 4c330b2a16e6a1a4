//! Chunks go back to the card: what is above a pool's threshold after a synchronisation, what a trim asks for, and what others need.
//!
//! A synchronisation itself gives nothing back: that would cost what the next allocation has to pay again. A thread of ours does, a
//! moment later, or whoever asks how much there is.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::atomic::Ordering;

use super::{ANY, UNSETTLED, pools};
use crate::allocation::back::bury;
use crate::cuda::sys::CUmemoryPool;
use crate::device::{Device, vmm};
use crate::streams::Relaxed;

/// Gives back what is due.
pub fn settle() {
    if ANY.load(Ordering::Relaxed) && UNSETTLED.load(Ordering::Acquire) {
        release(|_, entry| entry.due);
        end_destroyed();
    }
}

/// Gives back what a pool holds unused, down to `keep` bytes.
pub fn trim(pool: CUmemoryPool, keep: u64) {
    release(|_, entry| (entry.handle == pool.addr()).then_some(keep));
}

/// Gives back all that the pools of a device hold unused, because there is no room. Whether that was anything.
pub fn spare(device: &Device) -> bool {
    ANY.load(Ordering::Relaxed) && release(|_, entry| (entry.device.index == device.index).then_some(0))
}

/// Gives back so many bytes of what a pool holds unused.
pub(super) fn shed(number: u64, bytes: u64) {
    release(|other, entry| {
        (other == number && bytes > 0).then(|| entry.pool.reserved.now.saturating_sub(bytes))
    });
}

/// Chunks of those pools of which `keep` says how much they keep. Whether there were any.
fn release(keep: impl Fn(u64, &super::Entry) -> Option<u64>) -> bool {
    let mut released = Vec::new();
    {
        let mut pools = pools();
        for (number, entry) in &mut pools.entries {
            if let Some(keep) = keep(*number, entry) {
                // What was due before is so whatever else is asked for.
                let keep = keep.min(entry.due.take().unwrap_or(keep));
                released.extend(entry.pool.release(keep).into_iter().map(|chunk| (entry.device, chunk)));
            }
        }
    }
    let _relaxed = (!released.is_empty()).then(Relaxed::new);
    for (device, chunk) in &released {
        let (kept, remains) = {
            let mut state = device.state();
            (state.space.is_kept(*chunk), state.space.remove_span(*chunk))
        };
        bury(device, remains);
        if kept {
            super::super::unswappable::report_kept(device);
        }
    }
    !released.is_empty()
}

/// Nothing is mapped any more where a chunk was.
pub fn chunk_gone(start: u64) {
    let mut pools = pools();
    for entry in pools.entries.values_mut() {
        if entry.pool.gone(start) {
            break;
        }
    }
}

/// Pools that were destroyed, and hold nothing any more, end.
fn end_destroyed() {
    let ended: Vec<_> = {
        let mut pools = pools();
        let over =
            |entry: &super::Entry| entry.destroyed && entry.pool.pieces == 0 && !entry.pool.has_chunks();
        pools.entries.extract_if(.., |_, entry| over(entry)).map(|(_, entry)| entry.pool).collect()
    };
    for (start, bytes) in ended.into_iter().flat_map(crate::memory::pool::Pool::into_regions) {
        // SAFETY: no chunk is there any more, so nothing is mapped, and the pool is in no record.
        let _ = unsafe { vmm::unreserve(start, bytes) };
    }
}

//! Memory of arrays that the application maps (`CUDA_ARRAY3D_DEFERRED_MAPPING`): addresses that it does not know, and behind them
//! a part of a tile pool, or nothing.

#![expect(unsafe_code, reason = "mappings that are its own")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;

use super::physical::{self, HandleValue};
use super::space::{self, Area, Kind};
use super::{GRANULARITY, address, piece};
use crate::call::Outcome;
use crate::context::Context;
use crate::{flight, strict};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// An array takes a multiple of this, and begins in a tile pool at one.
pub(crate) const TILE_BYTES: u64 = 64 << 10;

/// What is behind an array.
pub(crate) struct Tiles(Mutex<Behind>);

enum Behind {
    Nothing,
    #[expect(dead_code, reason = "that it is held is what counts")]
    Pool(Part),
    /// The array was destroyed.
    Gone,
}

/// A part of a tile pool, which keeps the pool's memory until it is dropped.
pub(crate) struct Part {
    pool: HandleValue,
    /// Where it lies in the file of the card's memory.
    pieces: Vec<(u64, u64)>,
}

impl Drop for Part {
    fn drop(&mut self) {
        physical::unmapped(&mut space::write(), self.pool);
    }
}

/// Reserves a place for an array.
pub(crate) fn reserve(context: &Context, bytes: u64) -> Outcome<Arc<Area>> {
    let bytes = bytes.next_multiple_of(TILE_BYTES);
    let start = address::reserve(bytes, GRANULARITY).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
    let kind = Kind::Tiles(Tiles(Mutex::new(Behind::Nothing)));
    Ok(space::write().insert(Area::new(start, bytes, context.id, context.device, kind)))
}

/// The part of a tile pool, from `offset` on, that an array would take.
pub(crate) fn part(array: &Area, pool: HandleValue, offset: u64) -> Outcome<Part> {
    let mut space = space::write();
    let handle = physical::living(&mut space, pool)?;
    let end = offset.checked_add(array.bytes).filter(|end| *end <= handle.bytes).ok_or(INVALID)?;
    let is_pool = handle.properties & physical::TILE_POOL != 0 && handle.device == array.device;
    if !is_pool || !offset.is_multiple_of(TILE_BYTES) {
        return Err(INVALID);
    }
    handle.mappings += 1;
    Ok(Part { pool, pieces: cut(address::pieces(&handle.runs), offset, end) })
}

/// What of pieces, counted through, lies in a range.
fn cut(pieces: Vec<(u64, u64)>, from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut at = 0;
    let within = |(start, bytes): (u64, u64)| {
        let (first, end) = (from.max(at), to.min(at + bytes));
        let skipped = first.saturating_sub(at);
        at += bytes;
        (first < end).then(|| (start + skipped, end - first))
    };
    pieces.into_iter().filter_map(within).collect()
}

/// Puts a part of a tile pool behind an array, or nothing, in the place of what is there. Under work that was submitted before
/// `submitted` and may touch it: a violation.
pub(crate) fn put(array: &Area, part: Option<Part>, submitted: u64) -> Outcome {
    let Kind::Tiles(tiles) = &array.kind else { return Err(INVALID) };
    let (start, bytes) = (array.start, array.bytes);
    if let Some(work) = flight::in_flight(start, bytes, submitted) {
        let what = piece(start, bytes);
        return Err(strict::illegal(&format!("cuMemMapArrayAsync of {what}: {work} still uses it")));
    }
    let mut behind = tiles.lock();
    if matches!(*behind, Behind::Gone) {
        return Ok(());
    }
    // SAFETY: the array's own reservation, which is there as it is not gone; no work in flight touches it.
    unsafe { address::unback(start, bytes) };
    let mut now = Behind::Nothing;
    let mut outcome = Ok(());
    if let Some(part) = part {
        // SAFETY: as above.
        outcome = unsafe { address::back_pieces(start, array.device, &part.pieces) }.map_err(|error| {
            eprintln!("nvshare-sim: cannot map {}: {error}", piece(start, bytes));
            CUresult::CUDA_ERROR_LAUNCH_FAILED
        });
        now = Behind::Pool(part);
    }
    let before = std::mem::replace(&mut *behind, now);
    drop(behind);
    // Only now: it takes the lock of the space, under which others ask whether an array is bare.
    drop(before);
    outcome
}

/// Whether the address is an array's, behind which nothing is mapped.
pub(crate) fn is_bare(address: u64) -> bool {
    space::find(address).is_some_and(|area| matches!(&area.kind, Kind::Tiles(tiles) if tiles.is_bare()))
}

impl Tiles {
    pub(super) fn is_bare(&self) -> bool {
        !matches!(*self.lock(), Behind::Pool(_))
    }

    /// Gives back what is behind an array that is in the space no more.
    pub(super) fn dispose(&self, array: &Area) {
        let before = {
            let mut behind = self.lock();
            // SAFETY: the array's own reservation; nobody finds it any more, and who still has it sees that it is gone.
            unsafe { address::release(array.start, array.bytes) };
            std::mem::replace(&mut *behind, Behind::Gone)
        };
        drop(before);
    }

    fn lock(&self) -> MutexGuard<'_, Behind> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_out_of_pieces_wherever_it_begins_and_ends() {
        let of = |from, to| cut(vec![(100, 10), (300, 20)], from, to);
        assert_eq!(of(0, 30), [(100, 10), (300, 20)]);
        assert_eq!(of(4, 12), [(104, 6), (300, 2)]);
        assert_eq!((of(10, 11), of(9, 10)), (vec![(300, 1)], vec![(109, 1)]));
        assert_eq!(of(30, 40), []);
    }
}

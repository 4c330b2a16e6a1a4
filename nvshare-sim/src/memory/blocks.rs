//! What a pool has taken from the card: blocks of whole 32 MiB, cut into pieces. A block goes back as a whole only: one live
//! piece of 4 MiB keeps 32, one of 33 MiB keeps 64 (seen on an H200).

use std::collections::BTreeMap;

use super::GRANULARITY;
use super::plain::Chunk;
use crate::call::Outcome;
use crate::device::card;

/// Pieces start at multiples of this.
const ALIGNMENT: u64 = 512;
/// Blocks are multiples of this, unless the card is small.
const BLOCK: u64 = 32 << 20;

struct Block {
    chunk: Chunk,
    /// Free parts: first address and size. They do not touch.
    free: BTreeMap<u64, u64>,
}

/// The blocks of a pool.
#[derive(Default)]
pub(super) struct Blocks {
    by_start: BTreeMap<u64, Block>,
    /// Bytes of pieces, as they were asked for, now and at most.
    pub(super) used: (u64, u64),
    /// Bytes of blocks, now and at most.
    pub(super) reserved: (u64, u64),
}

fn raise((now, high): &mut (u64, u64), bytes: u64) {
    *now += bytes;
    *high = (*high).max(*now);
}

impl Blocks {
    /// A piece of what is there.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        let wanted = bytes.checked_next_multiple_of(ALIGNMENT)?;
        let start = self.by_start.values_mut().find_map(|block| block.take(wanted))?;
        raise(&mut self.used, bytes);
        Some(start)
    }

    /// Takes a block from the card in which a piece of this size fits.
    pub(super) fn grow(&mut self, device: usize, bytes: u64) -> Outcome {
        let full = cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let least = bytes.checked_next_multiple_of(GRANULARITY).ok_or(full)?;
        let usual = (card().config().card_bytes / 16 / GRANULARITY * GRANULARITY).clamp(GRANULARITY, BLOCK);
        let chunk = match Chunk::allocate(device, least.checked_next_multiple_of(usual).ok_or(full)?) {
            Ok(chunk) => chunk,
            Err(_) => Chunk::allocate(device, least)?,
        };
        raise(&mut self.reserved, chunk.bytes);
        let free = BTreeMap::from([(chunk.start, chunk.bytes)]);
        self.by_start.insert(chunk.start, Block { chunk, free });
        Ok(())
    }

    /// A piece is not in use any more; it comes back later.
    pub(super) fn leaves(&mut self, bytes: u64) {
        self.used.0 -= bytes;
    }

    /// A piece that was leaving is in use again.
    pub(super) fn stays(&mut self, bytes: u64) {
        raise(&mut self.used, bytes);
    }

    /// A piece comes back.
    pub(super) fn give_back(&mut self, start: u64, bytes: u64) {
        let wanted = bytes.next_multiple_of(ALIGNMENT);
        if let Some((_, block)) = self.by_start.range_mut(..=start).next_back() {
            block.give_back(start, wanted);
        }
    }

    /// What the block is that a piece is of.
    pub(super) fn chunk(&self, piece: u64) -> Option<&Chunk> {
        let (_, block) = self.by_start.range(..=piece).next_back()?;
        (piece < block.chunk.start + block.chunk.bytes).then_some(&block.chunk)
    }

    /// Gives blocks without pieces back to the card until no more than `keep` bytes are held.
    pub(super) fn trim(&mut self, keep: u64) {
        let empty: Vec<u64> =
            self.by_start.iter().filter(|(_, block)| block.is_empty()).map(|(start, _)| *start).collect();
        for start in empty {
            if self.reserved.0 <= keep {
                return;
            }
            if let Some(block) = self.by_start.remove(&start) {
                self.reserved.0 -= block.chunk.bytes;
                block.chunk.release();
            }
        }
    }
}

impl Block {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let (start, whole) =
            self.free.iter().find(|(_, free)| **free >= bytes).map(|(start, free)| (*start, *free))?;
        self.free.remove(&start);
        if whole > bytes {
            self.free.insert(start + bytes, whole - bytes);
        }
        Some(start)
    }

    fn give_back(&mut self, mut start: u64, mut bytes: u64) {
        if let Some((before, free)) =
            self.free.range(..start).next_back().map(|(before, free)| (*before, *free))
            && before + free == start
        {
            self.free.remove(&before);
            (start, bytes) = (before, free + bytes);
        }
        if let Some(free) = self.free.remove(&(start + bytes)) {
            bytes += free;
        }
        self.free.insert(start, bytes);
    }

    fn is_empty(&self) -> bool {
        self.free.get(&self.chunk.start) == Some(&self.chunk.bytes)
    }
}

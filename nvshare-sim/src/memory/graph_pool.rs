//! The physical memory that the graphs of this process use on each device: what is behind an allocation's address, and what is
//! kept for the next one until it is trimmed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::config::MAX_CARDS;
use nvshare_sim_card::{HandleId, Run};

use super::GRANULARITY;
use crate::device::card;
use crate::export::Outcome;

/// A piece of physical memory.
pub(super) struct Block {
    handle: HandleId,
    bytes: u64,
}

/// Bytes now, and the most there ever were.
#[derive(Clone, Copy, Default)]
pub(crate) struct Gauge {
    /// Now.
    pub(crate) now: u64,
    /// The most since it was reset.
    pub(crate) high: u64,
}

impl Gauge {
    const NONE: Gauge = Gauge { now: 0, high: 0 };

    fn rise(&mut self, bytes: u64) {
        self.now += bytes;
        self.high = self.high.max(self.now);
    }

    /// The most starts anew.
    pub(crate) fn reset(&mut self) {
        self.high = self.now;
    }
}

/// The pool of a device.
pub(crate) struct Pool {
    /// Behind addresses of allocations.
    pub(crate) used: Gauge,
    /// Taken from the card.
    pub(crate) reserved: Gauge,
    free: Vec<Block>,
}

static POOLS: [Mutex<Pool>; MAX_CARDS] =
    [const { Mutex::new(Pool { used: Gauge::NONE, reserved: Gauge::NONE, free: Vec::new() }) }; MAX_CARDS];

/// The pool of a device.
pub(crate) fn of_device(device: usize) -> MutexGuard<'static, Pool> {
    POOLS[device].lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// Memory for so many bytes: of what is kept, else of the card.
    pub(super) fn take(&mut self, device: usize, bytes: u64) -> Outcome<Block> {
        let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let bytes = bytes.checked_next_multiple_of(GRANULARITY).ok_or(full)?;
        let block = if let Some(kept) = self.free.iter().position(|block| block.bytes == bytes) {
            self.free.swap_remove(kept)
        } else {
            crate::faults::at_call(nvshare_sim_card::Point::Alloc)?;
            let made = card().create(device, bytes, 0).or_else(|_| {
                self.trim();
                card().create(device, bytes, 0)
            });
            let handle = made.map_err(|_| full)?;
            self.reserved.rise(bytes);
            Block { handle, bytes }
        };
        self.used.rise(bytes);
        Ok(block)
    }

    /// It is behind no address any more.
    pub(super) fn keep(&mut self, block: Block) {
        self.used.now -= block.bytes;
        self.free.push(block);
    }

    /// Gives back to the card what is kept.
    pub(super) fn trim(&mut self) {
        for block in self.free.drain(..) {
            self.reserved.now -= block.bytes;
            card().let_go(block.handle);
        }
    }
}

impl Block {
    /// Where it is on the card.
    pub(super) fn runs(&self) -> Outcome<Vec<Run>> {
        let known = card().allocation(self.handle).ok_or(CUresult::CUDA_ERROR_UNKNOWN)?;
        for run in &known.runs {
            card().prepare(known.card, *run);
        }
        Ok(known.runs)
    }
}

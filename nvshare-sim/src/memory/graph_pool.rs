//! The physical memory that the graphs of this process use on each device: what is behind an allocation's address, and what is
//! kept for the next one. All of it counts as used and as reserved until it is trimmed (as on an H200).

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::config::MAX_CARDS;
use nvshare_sim_card::{HandleId, Run};

use crate::call::Outcome;
use crate::device::card;

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
    /// Behind addresses of allocations, or was since the last trim.
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
    /// What is kept of that size.
    pub(super) fn kept(&mut self, bytes: u64) -> Option<Block> {
        let kept = self.free.iter().position(|block| block.bytes == bytes)?;
        Some(self.free.swap_remove(kept))
    }

    /// Takes as much of the card.
    pub(super) fn grow(&mut self, device: usize, bytes: u64) -> Outcome<Block> {
        let handle = card().create(device, bytes, 0).map_err(|_| CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        self.reserved.rise(bytes);
        self.used.rise(bytes);
        Ok(Block { handle, bytes })
    }

    /// It is behind no address any more.
    pub(super) fn keep(&mut self, block: Block) {
        self.free.push(block);
    }

    /// Gives back to the card what is kept.
    pub(super) fn trim(&mut self) {
        for block in self.free.drain(..) {
            self.reserved.now -= block.bytes;
            self.used.now -= block.bytes;
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

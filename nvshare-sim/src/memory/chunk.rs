//! Physical memory behind addresses that are the driver's own.

#![expect(unsafe_code, reason = "mappings that are its own")]

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::HandleId;

use super::{GRANULARITY, address};
use crate::call::Outcome;
use crate::device::card;

/// One physical allocation, and where it is.
pub(super) struct Chunk {
    pub(super) start: u64,
    pub(super) bytes: u64,
    handle: HandleId,
}

/// A stretch of reserved addresses, where chunks follow one another.
pub(super) struct Stretch {
    pub(super) start: u64,
    pub(super) bytes: u64,
}

/// Takes memory of a card and puts it behind reserved addresses.
fn back(device: usize, start: u64, bytes: u64) -> Outcome<Chunk> {
    let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    let handle = card().create(device, bytes, 0).map_err(|_| full)?;
    let chunk = Chunk { start, bytes, handle };
    let Some(known) = card().allocation(handle) else { return Err(full) };
    for run in &known.runs {
        card().prepare(device, *run);
    }
    // SAFETY: the caller's reservation, behind which nothing is.
    if unsafe { address::back(start, device, &known.runs) }.is_err() {
        chunk.take_away();
        return Err(full);
    }
    Ok(chunk)
}

impl Chunk {
    /// Memory with addresses of its own.
    pub(super) fn allocate(device: usize, bytes: u64) -> Outcome<Chunk> {
        let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let start = address::reserve(bytes, GRANULARITY).ok_or(full)?;
        back(device, start, bytes).inspect_err(|_| {
            // SAFETY: reserved just now; nobody else knows it.
            unsafe { address::release(start, bytes) };
        })
    }

    /// Gives back the memory and the addresses of [`Chunk::allocate`].
    pub(super) fn release(self) {
        // SAFETY: the last allocation in it was disposed of, which happens after all work that may touch it.
        unsafe { address::release(self.start, self.bytes) };
        card().let_go(self.handle);
    }

    /// Gives back the memory; the addresses stay reserved.
    pub(super) fn take_away(self) {
        // SAFETY: nothing that uses it is allocated in it, and no work in flight touches it: its pool looked.
        unsafe { address::unback(self.start, self.bytes) };
        card().let_go(self.handle);
    }

    /// The handle, and how far from its first byte an address is.
    pub(super) fn part(&self, address: u64) -> (HandleId, u64) {
        (self.handle, address - self.start)
    }

    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

impl Stretch {
    /// Reserves addresses.
    pub(super) fn reserve(bytes: u64, alignment: u64) -> Option<Stretch> {
        address::reserve(bytes, alignment).map(|start| Stretch { start, bytes })
    }

    /// Takes memory for a part of it, behind which nothing is.
    pub(super) fn back(&self, device: usize, start: u64, bytes: u64) -> Outcome<Chunk> {
        assert!(self.start <= start && start + bytes <= self.end(), "a chunk lies in its stretch");
        back(device, start, bytes)
    }

    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes
    }
}

impl Drop for Stretch {
    fn drop(&mut self) {
        // SAFETY: reserved by `reserve`; its owner has taken all chunks away.
        unsafe { address::release(self.start, self.bytes) };
    }
}

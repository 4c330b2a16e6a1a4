//! An arena: a file of host memory, mapped once and pinned piece by piece. Pinning a large range in one call stalls the
//! application's launches for as long (an H200: 30 ms for 1 GiB; with pauses between pieces of 64 MiB nothing is seen). A copy
//! must not cross from one piece into the next (the driver refuses it), so their blocks are numbered apart.

#![expect(unsafe_code, reason = "host memory is mapped")]

use std::os::fd::OwnedFd;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::ArenaId;
use rustix::fs::SealFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::config::BLOCK_BYTES;
use crate::cuda::CUresult;
use crate::descriptors::Own;
use crate::driver::driver;

/// How many blocks are pinned at once.
pub(super) const PIECE_BLOCKS: u64 = (64 << 20) / BLOCK_BYTES;
/// The numbers of neighbouring pieces are apart, so that no run of blocks crosses from one into the next.
const GAP: u64 = 1;
/// `CU_MEMHOSTREGISTER_PORTABLE`: every context may use it as pinned.
const PORTABLE: u32 = 1;

/// Whether a piece is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pin {
    /// Not yet, or not any more.
    Missing,
    /// An engine is at it.
    UnderWay,
    /// In this context.
    In(usize),
    /// It could not be. Copies are slower, and right.
    Refused,
}

/// What is pinned in one call.
#[derive(Debug)]
pub(super) struct Piece {
    /// The number of its first block.
    pub(super) first: u64,
    /// How many it has.
    pub(super) blocks: u64,
    /// Where it is mapped.
    pub(super) host: usize,
    /// Whether it is pinned.
    pub(super) pin: Pin,
}

impl Piece {
    /// The numbers of its blocks.
    pub(super) const fn slots(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.blocks
    }

    const fn bytes(&self) -> usize {
        (self.blocks * BLOCK_BYTES) as usize
    }

    const fn pointer(&self) -> *mut std::ffi::c_void {
        std::ptr::with_exposed_provenance_mut(self.host)
    }

    /// Unpins and unmaps it: none of its blocks is taken, so nothing copies.
    pub(super) fn give_up(self) -> Result<(), CUresult> {
        let unpinned = match self.pin {
            // SAFETY: it was registered, and nothing uses it any more.
            Pin::In(_) => unsafe { driver().cuMemHostUnregister(self.pointer()) }.result(),
            _ => Ok(()),
        };
        // SAFETY: the mapping is ours alone, and nothing uses it any more.
        let _ = unsafe { rustix::mm::munmap(self.pointer(), self.bytes()) };
        unpinned
    }
}

/// Pins `blocks` blocks of a piece that stays mapped meanwhile, in the current context.
pub(super) fn pin(host: usize, blocks: u64) -> Result<(), CUresult> {
    let pointer = std::ptr::with_exposed_provenance_mut(host);
    // SAFETY: the range is mapped and stays so while it is registered.
    unsafe { driver().cuMemHostRegister_v2(pointer, (blocks * BLOCK_BYTES) as usize, PORTABLE) }.result()
}

/// See the module.
#[derive(Debug)]
pub(super) struct Arena {
    /// None: it is our own.
    pub(super) id: Option<ArenaId>,
    /// The memory. `None`: it is our own.
    pub(super) file: Option<Own>,
    /// In order.
    pub(super) pieces: Vec<Piece>,
    /// Whether the agent was told that it is in use.
    pub(super) reported: bool,
}

impl Arena {
    /// Maps the file; its blocks are numbered from `next` on. With the number after its last one.
    pub(super) fn map(id: Option<ArenaId>, file: OwnedFd, next: u64) -> Result<(Arena, u64), String> {
        let cannot = |error| format!("cannot ask an arena's size: {error}");
        let own = Own::new(file).map_err(cannot)?;
        let file = own.get().map_err(cannot)?;
        let size = rustix::fs::fstat(file).map_err(cannot)?.st_size as u64;
        let bytes = size / BLOCK_BYTES * BLOCK_BYTES;
        if bytes == 0 {
            return Err(format!("an arena of {size} bytes is too small, expected at least {BLOCK_BYTES}"));
        }
        // SAFETY: a fresh mapping that the kernel places touches nothing that exists.
        let host = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }
        .map_err(|error| format!("cannot map an arena of {}: {error}", Bytes(bytes)))?;
        // Device memory is in no child and in no core dump either.
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: the range was mapped just now; the advice changes what a child of a fork and a core dump hold.
            let _ = unsafe { rustix::mm::madvise(host, bytes as usize, advice) };
        }
        // Through the mapping only from now on: the application may come to write to a descriptor that it takes for its own.
        let sealed = rustix::fs::fcntl_add_seals(file, SealFlags::FUTURE_WRITE);
        if let Err(error) = sealed {
            crate::log::debug!("an arena can be written to through its descriptor: {error}");
        }
        // The agent's is shown to the next one; nobody asks for our own.
        let file = id.is_some().then_some(own);
        let (pieces, after) = cut(host.expose_provenance(), bytes / BLOCK_BYTES, next);
        Ok((Arena { id, file, pieces, reported: false }, after))
    }

    /// How much it holds.
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.blocks * BLOCK_BYTES).sum()
    }

    /// Whether every piece is pinned, or never will be.
    pub(super) fn is_settled(&self) -> bool {
        self.pieces.iter().all(|piece| matches!(piece.pin, Pin::In(_) | Pin::Refused))
    }
}

/// Cuts `blocks` blocks at `host` into pieces; their numbers begin at `next`. With the number after the last one.
fn cut(host: usize, blocks: u64, mut next: u64) -> (Vec<Piece>, u64) {
    let mut pieces = Vec::new();
    for done in (0..blocks).step_by(PIECE_BLOCKS as usize) {
        let length = PIECE_BLOCKS.min(blocks - done);
        let host = host + (done * BLOCK_BYTES) as usize;
        pieces.push(Piece { first: next, blocks: length, host, pin: Pin::Missing });
        next += length + GAP;
    }
    (pieces, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_is_cut_into_pieces_whose_numbers_never_touch() {
        let (pieces, after) = cut(0x1000_0000, 2 * PIECE_BLOCKS + 3, 10);
        let lengths: Vec<u64> = pieces.iter().map(|piece| piece.blocks).collect();
        assert_eq!(lengths, [PIECE_BLOCKS, PIECE_BLOCKS, 3]);
        for pair in pieces.windows(2) {
            assert!(pair[0].slots().end < pair[1].first, "a run would cross from one piece into the next");
            assert_eq!(pair[0].host + pair[0].bytes(), pair[1].host, "no block of the file is left out");
        }
        assert_eq!((pieces[0].first, after), (10, pieces[2].slots().end + GAP));
    }
}

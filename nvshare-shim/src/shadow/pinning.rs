//! Pinning arenas piece by piece, each in the context of one engine, and unpinning what was given up.

use std::time::{Duration, Instant};

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::ToAgent;

use super::arena::{self, Arena, Piece, Pin};
use super::{Shadows, pins, shadows};
use crate::config::BLOCK_BYTES;
use crate::cuda::CUresult;
use crate::driver::driver;
use crate::turn::calm::Calm;
use crate::{device, line, log};

/// How often pinning is tried again where the driver has no memory for it: others give some back.
const REFUSALS: u32 = 8;
const REFUSAL_PAUSE: Duration = Duration::from_millis(100);

impl Shadows {
    /// Whether there is something to pin, now.
    fn is_to_be_pinned(&mut self) -> bool {
        self.not_before.is_none_or(|at| at <= Instant::now())
            && self.pieces().any(|piece| piece.pin == Pin::Missing)
    }

    /// A piece was refused: whether it is tried again, because the driver had no memory for that just now.
    fn tries_again(&mut self, code: CUresult) -> bool {
        if code != CUresult::CUDA_ERROR_OUT_OF_MEMORY || self.refusals >= REFUSALS {
            (self.refusals, self.not_before) = (0, None);
            return false;
        }
        self.refusals += 1;
        self.not_before = Some(Instant::now() + REFUSAL_PAUSE);
        true
    }
}

/// Pins one piece that is not pinned yet, in the calling thread's current context `context`. Says whether there was one.
pub fn pin_one(context: usize) -> bool {
    let (first, host, blocks) = {
        let mut shadows = shadows();
        if !shadows.is_to_be_pinned() {
            return false;
        }
        let Some(piece) = shadows.pieces().find(|piece| piece.pin == Pin::Missing) else { return false };
        piece.pin = Pin::UnderWay;
        (piece.first, piece.host, piece.blocks)
    };
    let pinned = arena::pin(host, blocks);
    let mut shadows = shadows();
    let of = |arena: &Arena| arena.pieces.iter().position(|piece| piece.first == first);
    let Some((index, at)) =
        shadows.arenas.iter().enumerate().find_map(|(index, arena)| Some((index, of(arena)?)))
    else {
        return true;
    };
    match pinned {
        Ok(()) => {
            shadows.refusals = 0;
            shadows.arenas[index].pieces[at].pin = Pin::In(context);
            if shadows.free.region(first).is_none() {
                shadows.free.add(first, blocks);
            }
        }
        Err(code) if shadows.tries_again(code) => {
            shadows.arenas[index].pieces[at].pin = Pin::Missing;
            return true;
        }
        Err(code) => {
            shadows.arenas[index].pieces[at].pin = Pin::Refused;
            let bytes = Bytes(shadows.arenas[index].bytes());
            // The driver ends with the process, which is no news.
            if code != CUresult::CUDA_ERROR_DEINITIALIZED {
                log::warning!(
                    "cannot pin {} of {bytes} of host memory for shadows: {} (is RLIMIT_MEMLOCK or the container's memory limit in the way?)",
                    Bytes(blocks * BLOCK_BYTES),
                    driver().error_name(code)
                );
            }
            if shadows.part_with(index) {
                // With nothing to unpin it need not wait for calm: its agent counts on it until it is back.
                let is_unpinned =
                    |arena: &mut Arena| !arena.pieces.iter().any(|piece| matches!(piece.pin, Pin::In(_)));
                let unpinned = shadows.parting.pop_if(is_unpinned);
                drop(shadows);
                if let Some(mut arena) = unpinned {
                    for piece in arena.pieces.drain(..) {
                        let _ = piece.give_up();
                    }
                    returned(arena);
                }
                return true;
            }
        }
    }
    let arena = &mut shadows.arenas[index];
    if arena.is_settled() && !std::mem::replace(&mut arena.reported, true) {
        let id = arena.id;
        drop(shadows);
        if let Some(arena) = id {
            line::send(&ToAgent::ArenaReady { arena });
        }
    }
    true
}

/// All of it is unmapped.
fn returned(arena: Arena) {
    drop(arena.file);
    if let Some(arena) = arena.id {
        line::send(&ToAgent::ArenaReturned { arena });
    }
}

/// Whether there is something to pin.
pub fn is_to_be_pinned() -> bool {
    shadows().is_to_be_pinned()
}

/// Whether there is something to unpin.
pub fn is_to_be_unpinned() -> bool {
    !shadows().parting.is_empty()
}

/// Unpins one piece of an arena that was given up, and with the last one gives the arena back. Says whether there was one.
/// It waits for the kernels that run in the context it is pinned in (seen on an H200).
pub fn unpin_one(_calm: &Calm) -> bool {
    let (piece, done) = {
        let mut shadows = shadows();
        let Some(arena) = shadows.parting.last_mut() else { return false };
        let piece = arena.pieces.pop();
        let done = if arena.pieces.is_empty() { shadows.parting.pop() } else { None };
        (piece, done)
    };
    if let Some(Err(code)) = piece.map(Piece::give_up) {
        log::warning!("cannot unpin a piece of an arena: {}", driver().error_name(code));
    }
    if let Some(arena) = done {
        returned(arena);
    }
    true
}

/// `context` may end while `may_end` runs, which says whether it did: then what was pinned in it is not any more, and must
/// be pinned elsewhere. Meanwhile no engine copies to or from what is. Called by the engine that leaves it, with no copy
/// of its own under way.
pub fn while_context_may_end(context: usize, may_end: impl FnOnce() -> bool) -> bool {
    if !shadows().pieces().any(|piece| piece.pin == Pin::In(context)) {
        return may_end();
    }
    let mut gone = true;
    pins::recalled(|| {
        gone = may_end();
        if gone {
            let mut shadows = shadows();
            let parting = shadows.parting.iter_mut().flat_map(|arena| arena.pieces.iter_mut());
            for piece in parting.filter(|piece| piece.pin == Pin::In(context)) {
                piece.pin = Pin::Refused;
            }
            for piece in shadows.pieces().filter(|piece| piece.pin == Pin::In(context)) {
                piece.pin = Pin::Missing;
            }
        }
    });
    for device in device::all() {
        device.wake();
    }
    gone
}

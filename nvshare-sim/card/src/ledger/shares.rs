//! Shares: allocations that their owner lets other processes open, each a part of a handle. Whoever has one open holds the
//! handle too, so that the bytes stay until the last one closes it, whatever becomes of the owner.

use super::{FREE, HandleId, LIVE, Ledger, MAX_PROCESSES, in_this_order};

/// The most shares at once, on all cards.
pub(crate) const MAX_SHARES: usize = 1 << 12;

/// Names a share, in every process. Never 0, and not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShareId(pub u64);

/// A part of a handle that may be opened.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Share {
    state: u32,
    /// The slot of the process that shares it.
    owner: u32,
    handle: u64,
    /// The first byte of the part, from that of the handle, and its size.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// What it was taken from, by a number of its owner's.
    pub(crate) pool: u64,
    generation: u32,
    openers: [u64; MAX_PROCESSES / 64],
}

/// Why a share cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// It was freed, or its owner is gone.
    #[error("the memory is no longer there")]
    Gone,
    /// It is this process's own.
    #[error("a process does not open its own memory")]
    Own,
}

impl Share {
    /// What it is a part of.
    pub(crate) fn handle(&self) -> HandleId {
        HandleId(self.handle)
    }

    /// The slot of the process that shares it.
    pub(crate) fn owner(&self) -> usize {
        self.owner as usize
    }
}

impl Ledger<'_> {
    /// Shares a part of a handle that `slot` holds: the same share again where there is one. `None` if there are too many.
    pub(crate) fn share(
        &mut self,
        slot: usize,
        handle: HandleId,
        (start, bytes): (u64, u64),
        pool: u64,
    ) -> Option<ShareId> {
        let known = |share: &Share| {
            (share.state, share.owner, share.handle, share.start) == (LIVE, slot as u32, handle.0, start)
        };
        if let Some(index) = self.shares.iter().position(known) {
            return Some(self.share_id(index));
        }
        let index = self.shares.iter().position(|share| share.state == FREE)?;
        let generation = self.next_generation();
        self.shares[index] = Share {
            state: FREE,
            owner: slot as u32,
            handle: handle.0,
            start,
            bytes,
            pool,
            generation,
            openers: [0; MAX_PROCESSES / 64],
        };
        in_this_order();
        self.shares[index].state = LIVE;
        Some(self.share_id(index))
    }

    /// The share, if it is there.
    pub(crate) fn shared(&self, id: ShareId) -> Option<(usize, &Share)> {
        let index =
            ((id.0 & 0xffff_ffff) as usize).checked_sub(1).filter(|index| *index < self.shares.len())?;
        let share = &self.shares[index];
        (share.state == LIVE && self.share_id(index) == id).then_some((index, share))
    }

    /// `slot` opens a share, and holds its handle from here on.
    pub(crate) fn open_share(&mut self, id: ShareId, slot: usize) -> Result<Share, ShareError> {
        let (index, share) = self.shared(id).ok_or(ShareError::Gone)?;
        if share.owner as usize == slot {
            return Err(ShareError::Own);
        }
        let share = *share;
        // In this order: what is open is held.
        if !self.hold(share.handle(), slot) {
            return Err(ShareError::Gone);
        }
        in_this_order();
        self.shares[index].openers[slot / 64] |= 1 << (slot % 64);
        Ok(share)
    }

    /// `slot` has it open no more, if it is still there.
    pub(crate) fn close_share(&mut self, id: ShareId, slot: usize) {
        if let Some((index, _)) = self.shared(id) {
            self.shares[index].openers[slot / 64] &= !(1 << (slot % 64));
        }
    }

    /// Nobody can open it any more; says how many processes still have it open.
    pub(crate) fn unshare(&mut self, id: ShareId) -> u32 {
        let Some((index, share)) = self.shared(id) else { return 0 };
        let open = share.openers.iter().map(|word| word.count_ones()).sum();
        self.shares[index].state = FREE;
        open
    }

    /// A process is gone: so are its shares, and it has none open.
    pub(super) fn forget_shares(&mut self, slot: usize) {
        for share in self.shares.iter_mut() {
            share.openers[slot / 64] &= !(1 << (slot % 64));
            if share.owner as usize == slot {
                share.state = FREE;
            }
        }
    }

    /// After a holder of the lock died: shares of nobody, or of no memory, are none.
    pub(super) fn repair_shares(&mut self) {
        for index in 0..self.shares.len() {
            let share = self.shares[index];
            let owned =
                self.processes.get(share.owner as usize).is_some_and(|process| process.identity.pid != 0);
            if !owned || self.handle(share.handle()).is_none() {
                self.shares[index].state = FREE;
            }
        }
    }

    fn share_id(&self, index: usize) -> ShareId {
        ShareId(u64::from(self.shares[index].generation) << 32 | (index as u64 + 1))
    }
}

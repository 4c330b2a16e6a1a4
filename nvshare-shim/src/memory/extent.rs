//! The extent: a piece of a span backed by one physical handle, and what is known about each of its blocks. Pure.

use crate::config::BLOCK_BYTES;

/// Names an extent within its device; reused after the extent is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtentId(pub u32);

/// A block of host memory in an arena: its number among all arenas of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// Where an extent's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nowhere: it was never backed and has no contents.
    Absent,
    /// On the way in: memory is being made for it, or a copy is in flight.
    Arriving,
    /// On the device.
    Resident,
    /// On the way out: a copy is in flight, or memory is being released.
    Leaving,
    /// In its shadow only.
    Swapped,
}

/// The host copy of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shadow {
    /// There is none.
    #[default]
    None,
    /// All zeros: nothing needs to be stored.
    Zero,
    /// In an arena.
    Slot(Slot),
}

/// A block of an extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Its host copy, up to date if the extent is swapped; otherwise as old as the last swap-out.
    pub shadow: Shadow,
    /// The hash of what the shadow holds. Erased before the first byte of the shadow is overwritten, set after the last
    /// one is (S3).
    pub print: Option<[u64; 2]>,
}

/// When to leave out fingerprints because they did not help: after a comparison in which (almost) every block had
/// changed, the next 2, 4, 8, ... 32 swap-outs of the extent take none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u8,
    skip: u8,
}

impl Backoff {
    /// Whether fingerprints should be taken in this swap-out, and counts it.
    pub fn take(&mut self) -> bool {
        if self.skip == 0 {
            return true;
        }
        self.skip -= 1;
        false
    }

    /// Says how many of `blocks` needed no copy; `compared` says whether there was anything to compare with.
    pub fn learn(&mut self, compared: bool, clean: usize, blocks: usize) {
        if clean * 16 >= blocks.max(1) {
            *self = Backoff::default();
        } else if compared {
            self.failures = (self.failures + 1).min(5);
            self.skip = 1 << self.failures;
        }
    }
}

/// A piece of a span: the unit of residency.
#[derive(Debug)]
pub struct Extent {
    /// Its first byte on the device.
    pub start: u64,
    /// A multiple of the block.
    pub bytes: u64,
    /// The start of its span.
    pub span: u64,
    /// Where its bytes are; changed by [`super::space::Space`] only, which keeps the accounts.
    pub(super) presence: Presence,
    /// The physical memory, while there is any.
    pub handle: u64,
    /// Whether it is mapped at `start`: always, but of what the application maps itself only where the engine needs it.
    pub at_home: bool,
    /// Its blocks, in order.
    pub blocks: Box<[Block]>,
    /// Whether it ever held something that could matter.
    pub contents: bool,
    /// How often the gate had opened when it arrived, if it was shut then: if it did not open since, nothing has changed.
    pub arrived: Option<u64>,
    /// Whether fingerprints are worth taking.
    pub backoff: Backoff,
    /// A number that no other of its device has, or had.
    pub(super) number: u64,
    /// Somebody else holds its physical memory, for good.
    pub(super) kept: bool,
    /// So many processes use it that will say when they do so no longer.
    pub(super) lent: u32,
    /// Whether its physical memory, while there is any, may be given to another process.
    pub exportable: bool,
}

impl Extent {
    pub(super) fn new(start: u64, bytes: u64, span: u64) -> Extent {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES));
        Extent {
            start,
            bytes,
            span,
            presence: Presence::Absent,
            handle: 0,
            at_home: false,
            blocks: vec![Block::default(); (bytes / BLOCK_BYTES) as usize].into_boxed_slice(),
            contents: false,
            arrived: None,
            backoff: Backoff::default(),
            number: 0,
            kept: false,
            lent: 0,
            exportable: false,
        }
    }

    /// Whether it is on the device and may leave it.
    pub const fn can_leave(&self) -> bool {
        matches!(self.presence, Presence::Resident) && !self.stays()
    }

    /// Whether it stays on the device because somebody else holds its physical memory.
    pub const fn stays(&self) -> bool {
        self.kept || self.lent > 0
    }

    /// Where its bytes are.
    pub const fn presence(&self) -> Presence {
        self.presence
    }

    /// Whether an operation of the engine is under way on it.
    pub const fn is_busy(&self) -> bool {
        matches!(self.presence, Presence::Arriving | Presence::Leaving)
    }

    /// Whether every block has a host copy (not necessarily up to date).
    pub fn has_whole_shadow(&self) -> bool {
        self.blocks.iter().all(|block| block.shadow != Shadow::None)
    }

    /// The arena blocks that its shadow takes.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.blocks.iter().filter_map(|block| match block.shadow {
            Shadow::Slot(slot) => Some(slot),
            Shadow::None | Shadow::Zero => None,
        })
    }
}

/// Cuts `bytes` (a multiple of the block) into extents of at most `largest`: offset and length of each.
pub fn cut(bytes: u64, largest: u64) -> impl Iterator<Item = (u64, u64)> {
    debug_assert!(
        largest >= BLOCK_BYTES && largest.is_multiple_of(BLOCK_BYTES) && bytes.is_multiple_of(BLOCK_BYTES)
    );
    (0..bytes.div_ceil(largest)).map(move |index| (index * largest, largest.min(bytes - index * largest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_cut_without_gaps_and_the_last_extent_is_what_is_left() {
        let pieces: Vec<_> = cut(5 * BLOCK_BYTES, 2 * BLOCK_BYTES).collect();
        assert_eq!(
            pieces,
            [(0, 2 * BLOCK_BYTES), (2 * BLOCK_BYTES, 2 * BLOCK_BYTES), (4 * BLOCK_BYTES, BLOCK_BYTES)]
        );
        assert_eq!(cut(0, BLOCK_BYTES).count(), 0);
    }

    #[test]
    fn fingerprints_that_do_not_help_are_taken_ever_more_rarely_and_again_once_they_do() {
        let mut backoff = Backoff::default();
        let mut taken = 0;
        for _ in 0..100 {
            if backoff.take() {
                taken += 1;
                backoff.learn(true, 0, 32);
            }
        }
        assert!((4..10).contains(&taken), "{taken} of 100");
        while !backoff.take() {}
        backoff.learn(true, 30, 32);
        assert!((0..10).all(|_| backoff.take()));
    }

    #[test]
    fn a_first_fingerprint_with_nothing_to_compare_is_no_failure() {
        let mut backoff = Backoff::default();
        assert!(backoff.take());
        backoff.learn(false, 0, 32);
        assert!(backoff.take());
    }
}

//! What was freed in a stream, as long as the host did not wait for it: who may have it again, and what comes after the free.

use std::sync::Arc;

use crate::completion::{Completion, Place};

/// A free that the host did not wait for.
#[derive(Clone)]
pub(super) struct Freed {
    /// The free's end.
    pub(super) done: Arc<Completion>,
    /// The number of the context of its stream.
    pub(super) context: u64,
    /// From where on a stream's work comes after the free: the free itself, then one place in each stream that waited for it.
    after: Vec<Place>,
}

/// What else than its own stream may have memory again (`CU_MEMPOOL_ATTR_REUSE_*`).
#[derive(Clone, Copy)]
pub(super) struct Reuse {
    /// Streams that have waited for an event after the free.
    pub(super) followers: bool,
    /// Every stream, once the free's turn has come.
    pub(super) finished: bool,
    /// Every stream, which then waits for the free, where there is no other memory.
    pub(super) waiting: bool,
}

impl Freed {
    pub(super) fn new(done: Arc<Completion>, context: u64) -> Freed {
        let after = vec![done.place];
        Freed { done, context, after }
    }

    /// Whether a stream may have the memory at once.
    pub(super) fn is_for(&self, stream: u64, reuse: Reuse) -> bool {
        let (own, followers) = self.after.split_at(1);
        own.iter().any(|place| place.stream == stream)
            || reuse.followers && followers.iter().any(|place| place.stream == stream)
            || reuse.finished && self.done.finished().is_some()
    }

    /// The work at `place`, and what follows in its stream, waits for the work at `awaited`.
    pub(super) fn follow(&mut self, place: Place, awaited: Place) {
        if self.is_before(awaited) && !self.after.iter().any(|known| known.stream == place.stream) {
            self.after.push(place);
        }
    }

    /// Whether the work at a place comes after the free.
    pub(super) fn is_before(&self, other: Place) -> bool {
        self.after.iter().any(|place| place.is_up_to(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Reuse = Reuse { followers: true, finished: true, waiting: true };
    const NONE: Reuse = Reuse { followers: false, finished: false, waiting: false };

    fn place(stream: u64, number: u64) -> Place {
        Place { stream, number }
    }

    /// Freed in stream 1.
    fn freed() -> Freed {
        Freed::new(Arc::new(Completion::of_next(1)), 7)
    }

    #[test]
    fn its_stream_has_it_at_once_and_others_when_the_free_is_over() {
        let freed = freed();
        assert!(freed.is_for(1, NONE) && !freed.is_for(2, ALL));
        freed.done.finish(5);
        assert!(freed.is_for(2, ALL) && !freed.is_for(2, NONE));
    }

    #[test]
    fn who_waited_for_what_came_after_the_free_has_it_too_also_through_others() {
        let mut freed = freed();
        let at = freed.done.place.number;
        freed.follow(place(2, at + 1), place(1, at - 1));
        assert!(!freed.is_for(2, ALL), "what it waited for was before the free");
        freed.follow(place(2, at + 2), place(1, at + 1));
        assert!(freed.is_for(2, ALL) && !freed.is_for(2, NONE));
        freed.follow(place(3, at + 4), place(2, at + 1));
        assert!(!freed.is_for(3, ALL), "the second stream had not waited there");
        freed.follow(place(3, at + 4), place(2, at + 3));
        assert!(freed.is_for(3, ALL));
        assert!(freed.is_before(place(3, at + 9)) && !freed.is_before(place(3, at + 3)));
    }
}

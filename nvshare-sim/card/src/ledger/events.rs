//! Events that processes share. Each has a count of its records, and says up to which one the work before them is over; who
//! waits for one looks without the lock. They are made, and end, under it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Ledger;

/// The most events at once.
pub(crate) const MAX_EVENTS: usize = 1 << 12;

/// Names a shared event, in every process. Never 0, and not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(pub u64);

/// A shared event; all zero is an empty place.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Event {
    /// Its number, 0 while there is none: stored last, and taken away first.
    id: AtomicU64,
    /// The slot of its owner.
    owner: AtomicU64,
    /// How often it was recorded.
    recorded: AtomicU64,
    /// The slot of who recorded it last.
    recorder: AtomicU64,
    /// The latest record that is reached.
    reached: AtomicU64,
}

impl EventId {
    /// Its place among all.
    pub(crate) fn index(self) -> Option<usize> {
        ((self.0 & 0xffff_ffff) as usize).checked_sub(1)
    }
}

impl Event {
    /// Whether it is this one.
    pub(crate) fn is(&self, id: EventId) -> bool {
        self.id.load(Ordering::Acquire) == id.0
    }

    /// `slot` records it: the number of the record.
    pub(crate) fn record(&self, slot: usize) -> u64 {
        self.recorder.store(slot as u64, Ordering::Release);
        self.recorded.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// How often it was recorded, in whatever process.
    pub(crate) fn recorded(&self) -> u64 {
        self.recorded.load(Ordering::Acquire)
    }

    /// The work before a record is over. What was recorded before that one nobody asks for any more.
    pub(crate) fn reach(&self, record: u64) {
        self.reached.fetch_max(record, Ordering::AcqRel);
    }

    /// Whether the work before a record is over.
    pub(crate) fn is_reached(&self, record: u64) -> bool {
        self.reached.load(Ordering::Acquire) >= record
    }
}

impl Ledger<'_> {
    /// Makes an event of `slot`; `None` if there are too many.
    pub(crate) fn make_event(&mut self, slot: usize) -> Option<EventId> {
        let index = self.events.iter().position(|event| event.id.load(Ordering::Relaxed) == 0)?;
        let id = EventId(u64::from(self.next_generation()) << 32 | (index as u64 + 1));
        let event = &self.events[index];
        event.owner.store(slot as u64, Ordering::Relaxed);
        event.recorded.store(0, Ordering::Relaxed);
        event.recorder.store(slot as u64, Ordering::Relaxed);
        event.reached.store(0, Ordering::Relaxed);
        event.id.store(id.0, Ordering::Release);
        Some(id)
    }

    /// The event, and the slot of its owner.
    pub(crate) fn event(&self, id: EventId) -> Option<(&Event, usize)> {
        let event = self.events.get(id.index()?).filter(|event| event.is(id))?;
        Some((event, event.owner.load(Ordering::Relaxed) as usize))
    }

    /// It is there no more.
    pub(crate) fn end_event(&mut self, id: EventId) {
        if let Some((event, _)) = self.event(id) {
            event.id.store(0, Ordering::Release);
        }
    }

    /// A process is gone: so are its events, and what it recorded into others' is as good as reached, as nothing else of it
    /// will come.
    pub(super) fn forget_events(&mut self, slot: usize) {
        for event in self.events.iter().filter(|event| event.id.load(Ordering::Relaxed) != 0) {
            if event.owner.load(Ordering::Relaxed) as usize == slot {
                event.id.store(0, Ordering::Release);
            } else if event.recorder.load(Ordering::Acquire) as usize == slot {
                event.reach(event.recorded());
            }
        }
    }

    /// After a holder of the lock died: events of nobody are none.
    pub(super) fn repair_events(&mut self) {
        for event in self.events {
            let owner = event.owner.load(Ordering::Relaxed) as usize;
            if self.processes.get(owner).is_none_or(|process| process.identity.pid == 0) {
                event.id.store(0, Ordering::Release);
            }
        }
    }
}

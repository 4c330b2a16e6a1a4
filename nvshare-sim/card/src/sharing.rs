//! What processes share by tickets: memory that its owner lets others open, events, and the pools that memory is a piece of.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::ledger::{EventId, HandleId, ShareError, ShareId};
use crate::member::Member;
use crate::process::{self, Identity};
use crate::ticket::{self, Kind, PoolName, Ticket};

/// Memory that this process opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// By which name.
    pub share: ShareId,
    /// The handle that it is a part of, which this process holds now.
    pub handle: HandleId,
    /// Its first byte in that.
    pub start: u64,
    /// Its size.
    pub bytes: u64,
    /// The number of the pool it is a piece of; 0 for none.
    pub pool: u64,
    /// Whose it is.
    pub owner: Identity,
    /// The card it is on.
    pub card: usize,
}

/// An event that processes share, as this one knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedEvent {
    id: EventId,
    owner: Identity,
}

/// A record of a shared event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    event: SharedEvent,
    number: u64,
}

/// How far the work before a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is not over.
    Pending,
    /// It is over.
    Over,
    /// Nobody can tell: the event was destroyed.
    Destroyed,
    /// Nobody can tell: the event's owner is gone.
    Orphaned,
}

impl Member {
    /// A number for a pool, different from all others on these cards.
    pub fn pool_number(&self) -> u64 {
        let mut locked = self.control.lock();
        u64::from(locked.ledger.next_generation()) << 32 | (self.slot as u64 + 1)
    }

    /// A descriptor that stands for a pool.
    pub fn export_pool(&self, pool: PoolName) -> std::io::Result<OwnedFd> {
        Ok(ticket::pool_descriptor(pool, self.uuid(0))?)
    }

    /// The pool that a descriptor stands for.
    pub fn import_pool(&self, descriptor: BorrowedFd<'_>) -> Option<PoolName> {
        ticket::pool_of(descriptor, self.uuid(0))
    }

    /// Lets others open a part (first byte, size) of a handle that this process holds: by which name, and what to hand them.
    /// The same each time. `None` if too much is shared.
    pub fn share(&self, handle: HandleId, part: (u64, u64), pool: u64) -> Option<(ShareId, Ticket)> {
        let id = self.control.lock().ledger.share(self.slot, handle, part, pool)?;
        let kind = if pool == 0 { Kind::Memory } else { Kind::Piece };
        Some((id, ticket::write(kind, id.0, self.uuid(0))))
    }

    /// Nobody can open it any more; says how many processes still have it open. They keep what is behind it.
    pub fn unshare(&self, share: ShareId) -> u32 {
        // Who was killed has nothing open.
        self.reclaim();
        self.control.lock().ledger.unshare(share)
    }

    /// The share that a ticket is for; `None` if it is no such ticket.
    pub fn share_of(&self, kind: Kind, ticket: &Ticket) -> Option<ShareId> {
        ticket::read(kind, ticket, self.uuid(0)).map(ShareId)
    }

    /// Whose it is, and which card it is on.
    pub fn origin(&self, share: ShareId) -> Result<(Identity, usize), ShareError> {
        // Of the dead nothing can be opened.
        self.reclaim();
        let locked = self.control.lock();
        let (_, found) = locked.ledger.shared(share).ok_or(ShareError::Gone)?;
        let (_, handle) = locked.ledger.handle(found.handle()).ok_or(ShareError::Gone)?;
        Ok((locked.ledger.processes[found.owner()].identity, handle.card as usize))
    }

    /// Opens a share: this process holds its handle from here on.
    pub fn open_share(&self, share: ShareId) -> Result<Opened, ShareError> {
        let (owner, card) = self.origin(share)?;
        let found = self.control.lock().ledger.open_share(share, self.slot)?;
        let (handle, pool) = (found.handle(), found.pool);
        Ok(Opened { share, handle, start: found.start, bytes: found.bytes, pool, owner, card })
    }

    /// This process has it open no more. It still holds the handle ([`Member::let_go`]).
    pub fn close_share(&self, share: ShareId) {
        self.control.lock().ledger.close_share(share, self.slot);
    }

    /// An event that others can open; `None` if there are too many.
    pub fn make_event(&self) -> Option<SharedEvent> {
        let id = self.control.lock().ledger.make_event(self.slot)?;
        Some(SharedEvent { id, owner: self.identity })
    }

    /// It is there no more.
    pub fn end_event(&self, event: SharedEvent) {
        self.control.lock().ledger.end_event(event.id);
    }

    /// What to hand those who are to open an event.
    pub fn event_ticket(&self, event: SharedEvent) -> Ticket {
        ticket::write(Kind::Event, event.id.0, self.uuid(0))
    }

    /// The event that a ticket is for; `None` if it is no such ticket.
    pub fn event_of(&self, ticket: &Ticket) -> Option<EventId> {
        ticket::read(Kind::Event, ticket, self.uuid(0)).map(EventId)
    }

    /// Opens an event of another process.
    pub fn open_event(&self, id: EventId) -> Result<SharedEvent, ShareError> {
        self.reclaim();
        let locked = self.control.lock();
        let (_, owner) = locked.ledger.event(id).ok_or(ShareError::Gone)?;
        if owner == self.slot {
            return Err(ShareError::Own);
        }
        Ok(SharedEvent { id, owner: locked.ledger.processes[owner].identity })
    }

    /// Records an event: what is before it now has its end with [`Member::reach`].
    pub fn record(&self, event: SharedEvent) -> Recorded {
        let number = self.event(event.id).map_or(0, |place| place.record(self.slot));
        Recorded { event, number }
    }

    /// The work before a record is over.
    pub fn reach(&self, record: Recorded) {
        if let Some(place) = self.event(record.event.id) {
            place.reach(record.number);
        }
    }

    /// The last record of an event, in whatever process; `None` if there is none so far.
    pub fn last_record(&self, event: SharedEvent) -> Option<Recorded> {
        let number = self.event(event.id).map_or(u64::MAX, crate::ledger::Event::recorded);
        (number > 0).then_some(Recorded { event, number })
    }

    /// How far the work before a record is. What a process recorded that is gone is over once that was noticed
    /// ([`crate::Cards::reclaim`]).
    pub fn progress(&self, record: Recorded) -> Progress {
        match self.event(record.event.id) {
            Some(place) if place.is_reached(record.number) => Progress::Over,
            Some(_) => Progress::Pending,
            None if process::is_alive(record.event.owner) => Progress::Destroyed,
            None => Progress::Orphaned,
        }
    }

    /// An event's place, if it is still its.
    fn event(&self, id: EventId) -> Option<&crate::ledger::Event> {
        id.index().and_then(|index| self.control.events().get(index)).filter(|place| place.is(id))
    }
}

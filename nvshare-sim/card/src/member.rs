//! A process that uses the cards: what it may do with the ledger, and what that costs in time.

use std::fs::File;
use std::ops::{Deref, Range};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::clock::{Lane, now, sleep_until};
use crate::config::BLOCK_BYTES;
use crate::control::OpenError;
use crate::export::{self, ImportError};
use crate::faults::{Effect, FaultPlan, Point};
use crate::ledger::{HandleId, Refused, Run};
use crate::managed::{ManagedRange, Moved};
use crate::memory::Memory;
use crate::uvm::{Descriptor, Window};
use crate::{Cards, process};

/// This process's use of the cards. It lasts as long as the process; [`Member::leave`] ends it earlier.
pub struct Member {
    cards: Cards,
    pub(crate) slot: usize,
    pub(crate) identity: process::Identity,
    /// This process as it knows itself, to recognise a forked child by.
    pid: u32,
    memory: Vec<Memory>,
    faults: FaultPlan,
    next_page: AtomicU32,
    /// Of its space, unless it could not be opened.
    space: Option<Descriptor>,
    /// It has had managed memory.
    managed: Once,
}

/// What is known about a handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The card that holds it.
    pub card: usize,
    /// Its size.
    pub bytes: u64,
    /// What its creator said ([`Member::create`]).
    pub properties: u32,
    /// Where its bytes are on the card, in order.
    pub runs: Vec<Run>,
}

/// Not enough memory on the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not enough memory on the card")]
pub struct Full;

impl Deref for Member {
    type Target = Cards;
    fn deref(&self) -> &Cards {
        &self.cards
    }
}

impl Cards {
    /// Joins the cards, with the faults asked for in this process.
    pub fn join(self, faults: FaultPlan) -> Result<Member, OpenError> {
        self.reclaim();
        let identity = process::this();
        let joined = self.control.lock().ledger.join(identity);
        let (slot, space) = joined.ok_or_else(|| OpenError::Processes(self.directory().to_owned()))?;
        let space = Descriptor::open(self.directory(), space);
        let space =
            space.inspect_err(|error| eprintln!("nvshare-sim: managed memory is not counted: {error}")).ok();
        let bytes = self.config().card_bytes;
        let memory: Result<_, _> = (0..self.config().cards as usize)
            .map(|card| Memory::open(self.directory(), card, bytes))
            .collect();
        Ok(Member {
            memory: memory?,
            cards: self,
            slot,
            identity,
            pid: std::process::id(),
            faults,
            next_page: AtomicU32::new(0),
            space,
            managed: Once::new(),
        })
    }
}

impl Member {
    /// Gives everything back. Does nothing in a forked child.
    pub fn leave(&self) {
        if self.pid == std::process::id() {
            let mut locked = self.control.lock();
            if locked.ledger.processes[self.slot].identity == self.identity {
                locked.ledger.remove_process(self.slot);
            }
        }
    }

    /// Counts that this process reached a point, and says what is to go wrong there.
    pub fn fault(&self, point: Point) -> Option<Effect> {
        self.faults.reach(point)
    }

    /// Counts that the function was called and says what is to happen, if anything.
    pub fn fault_of_call(&self, name: &str) -> Option<Effect> {
        self.faults.call(name)
    }

    /// Free bytes of a card, after reclaiming the dead.
    pub fn free_bytes(&self, card: usize) -> u64 {
        self.reclaim();
        u64::from(self.control.lock().ledger.totals.free[card]) * BLOCK_BYTES
    }

    /// Physical memory of `bytes` (a multiple of the block size), held by this process. Its contents are whatever its
    /// last owner left. `properties` is kept for [`Member::allocation`].
    pub fn create(&self, card: usize, bytes: u64, properties: u32) -> Result<HandleId, Full> {
        let blocks = u32::try_from(bytes / BLOCK_BYTES).map_err(|_| Full)?;
        let attempt = || self.control.lock().ledger.create(self.slot, card, blocks, properties);
        let (id, evicted) = attempt().or_else(|_| self.after_reclaim(attempt))?;
        sleep_until(self.pay(card, Moved { to_host: evicted, ..Moved::default() }, now()));
        Ok(id)
    }

    /// Occupies the memory of a context on the card.
    pub fn charge_context(&self, card: usize) -> Result<(), Full> {
        let blocks = self.config().context_bytes.div_ceil(BLOCK_BYTES) as u32;
        let attempt = || self.control.lock().ledger.charge_context(self.slot, card, blocks);
        let evicted = attempt().or_else(|_| self.after_reclaim(attempt))?;
        sleep_until(self.pay(card, Moved { to_host: evicted, ..Moved::default() }, now()));
        Ok(())
    }

    /// Frees what [`Member::charge_context`] took.
    pub fn release_context(&self, card: usize) {
        self.control.lock().ledger.release_context(self.slot, card);
    }

    /// What is known about a handle that exists.
    pub fn allocation(&self, id: HandleId) -> Option<Allocation> {
        let locked = self.control.lock();
        let (_, handle) = locked.ledger.handle(id)?;
        Some(Allocation {
            card: handle.card as usize,
            bytes: u64::from(handle.blocks) * BLOCK_BYTES,
            properties: handle.properties,
            runs: locked.ledger.runs(handle),
        })
    }

    /// This process no longer holds the handle.
    pub fn let_go(&self, id: HandleId) {
        self.control.lock().ledger.let_go(id, self.slot);
    }

    /// A descriptor by which other processes can hold the handle too.
    pub fn export(&self, id: HandleId) -> Result<OwnedFd, OpenError> {
        let mut locked = self.control.lock();
        let descriptor = export::descriptor(self.directory(), id, self.uuid(0))?;
        locked.ledger.set_exported(id);
        Ok(descriptor)
    }

    /// Holds the handle that a descriptor stands for.
    pub fn import(&self, descriptor: BorrowedFd<'_>) -> Result<HandleId, ImportError> {
        let id = export::read(descriptor, self.uuid(0))?;
        let held = self.control.lock().ledger.hold(id, self.slot);
        if held { Ok(id) } else { Err(ImportError::Gone) }
    }

    /// Faults the run's bytes in where no process did so before, so that mapping them is quick.
    pub fn prepare(&self, card: usize, run: Run) {
        self.memory[card].prepare(run, self.control.prepared(card));
    }

    /// The file that holds the card's bytes, for mapping pieces of it.
    pub fn memory_file(&self, card: usize) -> &File {
        self.memory[card].file()
    }

    /// A new range of managed memory, and what others see of it for as long as it is kept.
    pub fn managed_range(&self, pages: usize) -> (ManagedRange, Option<Window>) {
        let window = self.space.as_ref().and_then(|space| {
            self.managed.call_once(|| space.keep());
            space.window(pages as u64 * BLOCK_BYTES).ok()
        });
        (ManagedRange::new(self.next_page.fetch_add(pages as u32, Ordering::Relaxed), pages), window)
    }

    /// The host touched a page, it turns out, of which nothing existed before.
    pub fn managed_host_touched(&self, range: &mut ManagedRange, page: usize) {
        self.control.lock().ledger.host_touched(self.slot, range, page);
    }

    /// A kernel on `card` touches these pages at the time `at`: returns when the faults are served.
    pub fn managed_touch(&self, card: usize, range: &mut ManagedRange, pages: Range<usize>, at: u64) -> u64 {
        let mut moved = Moved::default();
        let mut locked = self.control.lock();
        for page in pages {
            moved += locked.ledger.touch(card, self.slot, range, page);
        }
        locked.unlock();
        self.pay(card, moved, at)
    }

    /// The driver's prefetch to a card, at `at`: without effect on untouched pages and on a full card. Returns its end.
    pub fn managed_prefetch(
        &self,
        card: usize,
        range: &mut ManagedRange,
        pages: Range<usize>,
        at: u64,
    ) -> u64 {
        let mut moved = Moved::default();
        let mut locked = self.control.lock();
        for page in pages {
            moved += locked.ledger.prefetch(card, self.slot, range, page);
        }
        locked.unlock();
        self.migrate(card, Lane::ToDevice, moved.to_device, 1, at)
    }

    /// Pages come back to the host: at the link's speed by prefetch, slower where the host faults on them.
    pub fn managed_to_host(
        &self,
        card: usize,
        range: &mut ManagedRange,
        pages: Range<usize>,
        slowdown: u64,
        at: u64,
    ) -> u64 {
        let mut moved = Moved::default();
        let mut locked = self.control.lock();
        for page in pages {
            moved += locked.ledger.fetch_to_host(self.slot, range, page);
        }
        locked.unlock();
        self.migrate(card, Lane::ToHost, moved.to_host, slowdown, at)
    }

    /// The range was freed.
    pub fn managed_forget(&self, range: &ManagedRange) {
        self.control.lock().ledger.forget(self.slot, range);
    }

    /// When faults and evictions that begin at `at` are over: an H200 moved 9.2 GB/s by faults where copies reached 55,
    /// and evictions are a little quicker than faults.
    fn pay(&self, card: usize, moved: Moved, at: u64) -> u64 {
        let slowdown = self.config().fault_slowdown;
        let room = self.migrate(card, Lane::ToHost, moved.to_host, slowdown.saturating_sub(1).max(1), at);
        // Of several pages the first comes in while the next one leaves.
        let first = if moved.to_host > 1 { at } else { room };
        self.migrate(card, Lane::ToDevice, moved.to_device, slowdown, first).max(room)
    }

    fn migrate(&self, card: usize, lane: Lane, pages: u32, slowdown: u64, at: u64) -> u64 {
        if pages == 0 {
            return at;
        }
        let bytes = u64::from(pages) * BLOCK_BYTES;
        let clocks = self.control.clocks(card);
        clocks.count(if lane == Lane::ToDevice { 2 } else { 3 }, bytes);
        clocks.pass(self.config(), lane, at, bytes, slowdown)
    }

    fn after_reclaim<T>(&self, attempt: impl FnOnce() -> Result<T, Refused>) -> Result<T, Full> {
        self.reclaim();
        attempt().map_err(|_| Full)
    }
}

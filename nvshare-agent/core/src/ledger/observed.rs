//! What the uprobes saw of one process, client or not: its calls, and the memory it holds by them.
//!
//! The books follow what the driver does, not what a program asks for: physical handles live as long as somebody holds or
//! maps them, whatever becomes of a context; other memory ends with its context, and a primary context with its last
//! reference. Where that cannot be told from what was seen, nothing is forgotten and the figures are marked.
//!
//! Nothing is decided by these books: what is free on a card, and what others hold there, is what NVML says. They can miss
//! records, and they miss what has no probe (graphs' own memory, pools, code, what a context costs). So they need no repair, and a
//! lost record harms nobody. They are read in one way only, [`Observed::for_people`], and tests/books.rs makes sure that the agent
//! does the same whatever stands in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
use nvshare_common::event::Loss;
use nvshare_common::ids::DeviceId;
use nvshare_common::probe::Call;

use super::readers::readers;
use crate::moment::Moment;
use crate::observation::{Activity, Context, Counts, Paged, What};

/// How many live allocations, handles, mappings and contexts of one process are remembered, of each.
const REMEMBERED: usize = 16_384;

/// What was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    bytes: Bytes,
    call: Call,
    device: Option<u32>,
}

/// A physical handle.
#[derive(Clone, Copy, Debug, Default)]
struct Handle {
    bytes: Bytes,
    device: u32,
    references: u32,
    mappings: u32,
}

/// A process as it was observed.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub(super) name: String,
    pub(super) counts: Counts,
    /// Its last call.
    pub(super) last_call: Moment,
    pub(super) last_launch: Moment,
    pub(super) lost: u64,
    allocated: Bytes,
    by_device: BTreeMap<Option<u32>, Bytes>,
    pooled: Bytes,
    managed: Bytes,
    /// Calls that asked for managed memory to be moved, and their bytes.
    pub(super) prefetched: Bytes,
    /// What the driver did to managed memory, by device where that is known.
    paged: BTreeMap<Option<DeviceId>, Paged>,
    /// Lost records that do not matter any more: all memory was gone since.
    settled: u64,
    /// It was observed from its beginning on, and in full.
    whole: bool,
    /// Too much to remember, or what it did can be understood in two ways.
    unsure: bool,
    /// How many entries its books may have now.
    room: usize,
    live: BTreeMap<u64, Piece>,
    handles: HashMap<u64, Handle>,
    mapped: BTreeMap<u64, (Bytes, u64)>,
    /// References to primary contexts, by device.
    primary: BTreeMap<u32, u64>,
    contexts: BTreeSet<u64>,
}

impl Observed {
    readers! {
        /// Its name.
        name: &str,
        /// All its calls.
        counts: &Counts,
        /// Its last launch.
        last_launch: Moment,
        /// Records about it that were lost.
        lost: u64,
    }
}

/// The memory of a process, to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Device memory it allocated and has not freed.
    pub allocated: Bytes,
    /// The same by device, by its own numbers for them; `None`: not known on which.
    pub by_device: BTreeMap<Option<u32>, Bytes>,
    /// Device memory that it freed in a stream's order: its pools may keep it. At most this much.
    pub pooled: Bytes,
    /// Managed memory it allocated and has not freed.
    pub managed: Bytes,
    /// Figures may be wrong.
    pub inexact: bool,
}

impl Observed {
    /// How many processes are remembered at a time.
    pub const PROCESSES: usize = 8192;

    /// What its books say, for people. `measured`: what NVML says that it holds, if it lists it. All that is allocated is in that,
    /// and what contexts cost: books that missed the end of something do not show more.
    pub fn for_people(&self, measured: Option<Bytes>) -> Books {
        let inexact = self.inexact();
        let most = measured.filter(|_| inexact).unwrap_or(Bytes(u64::MAX));
        Books {
            allocated: self.allocated.min(most),
            by_device: self.by_device.iter().map(|(device, bytes)| (*device, (*bytes).min(most))).collect(),
            pooled: self.pooled,
            managed: self.managed,
            inexact,
        }
    }

    /// Managed memory that it allocated and has not freed.
    pub(super) fn managed_now(&self) -> Bytes {
        self.managed
    }

    /// What the driver did to its managed memory on demand.
    pub fn paged(&self) -> Paged {
        self.paged.values().fold(Paged::default(), |mut sum, paged| {
            sum.add(*paged);
            sum
        })
    }

    /// The same of one device, where each is counted for itself.
    pub fn paged_on(&self, device: DeviceId) -> Paged {
        self.paged.get(&Some(device)).copied().unwrap_or_default()
    }

    /// Whether figures may be wrong.
    pub fn inexact(&self) -> bool {
        self.lost > self.settled || self.unsure || !self.whole
    }

    /// Whether that is because of what is remembered or understood, whatever was lost and however old it is.
    pub fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// How many entries its books have.
    pub(super) fn entries(&self) -> usize {
        let (live, mapped, contexts) = (self.live.len(), self.mapped.len(), self.contexts.len());
        live + self.handles.len() + mapped + contexts + self.primary.len() + self.by_device.len()
    }

    /// Books what was seen of it. Its books may have `room` for so many entries.
    pub(super) fn book(&mut self, what: &What, room: usize) {
        self.room = room;
        match *what {
            What::Activity(Activity { ref counts, last_call, last_launch, lost, whole, .. }) => {
                self.counts = **counts;
                self.last_call = last_call;
                self.last_launch = last_launch;
                self.lost = lost.iter().fold(0, |sum, lost| lost.saturating_add(sum));
                self.whole = whole;
                // No result of any call is known there.
                self.unsure |= lost[Loss::Unfollowed as usize] > 0;
            }
            What::Allocated(call, range) => self.allocated(call, range),
            What::Freed(address) => self.freed(address),
            What::Created { handle, bytes, device } => self.created(handle, bytes, device),
            What::Retained(handle) => self.with_handle(handle, |handle| handle.references += 1),
            What::Released(handle) => {
                self.with_handle(handle, |handle| handle.references = handle.references.saturating_sub(1));
            }
            What::Mapped(range, handle) => self.mapped(range, handle),
            What::Unmapped(range) => self.unmapped(range),
            What::Prefetched(range) => {
                self.prefetched.0 = self.prefetched.0.saturating_add(range.bytes.0);
            }
            What::Uvm(device, paged) => self.paged.entry(device).or_default().add(paged),
            What::ContextMade(context) => self.made(context),
            What::ContextEnded(Context::Primary(device)) => self.primary_released(device),
            What::ContextEnded(Context::Own(context)) => {
                self.contexts.remove(&context);
                self.gone(None);
            }
            What::ContextReset(device) => self.gone(Some(device)),
            What::Exec => self.forget_memory(),
            What::Launched { .. } | What::Advised(..) | What::Exited => {}
        }
    }

    fn made(&mut self, context: Context) {
        if !self.has_room(self.primary.len().max(self.contexts.len())) {
            return;
        }
        match context {
            Context::Primary(device) => *self.primary.entry(device).or_default() += 1,
            Context::Own(context) => {
                self.contexts.insert(context);
            }
        }
    }

    /// For one more, in a book that has so many.
    fn has_room(&mut self, entries: usize) -> bool {
        let there = entries < REMEMBERED && self.entries() < self.room;
        self.unsure |= !there;
        there
    }

    fn allocated(&mut self, call: Call, range: DeviceRange) {
        // The same address again: the free in between was lost.
        self.forget(range.start.0);
        if !self.has_room(self.live.len()) {
            return;
        }
        let piece = Piece { bytes: range.bytes, call, device: self.device() };
        self.live.insert(range.start.0, piece);
        if call == Call::AllocManaged {
            self.managed.0 = self.managed.0.saturating_add(range.bytes.0);
            return;
        }
        if call == Call::AllocAsync {
            self.pooled = self.pooled.saturating_sub(range.bytes);
        }
        self.add(piece.device, range.bytes);
    }

    fn freed(&mut self, address: DevicePtr) {
        if let Some(piece) = self.forget(address.0)
            && piece.call == Call::AllocAsync
        {
            self.pooled.0 = self.pooled.0.saturating_add(piece.bytes.0);
        }
    }

    fn forget(&mut self, address: u64) -> Option<Piece> {
        let piece = self.live.remove(&address)?;
        if piece.call == Call::AllocManaged {
            self.managed = self.managed.saturating_sub(piece.bytes);
        } else {
            self.take(piece.device, piece.bytes);
        }
        Some(piece)
    }

    fn created(&mut self, handle: u64, bytes: Bytes, device: u32) {
        if let Some(old) = self.handles.remove(&handle) {
            self.take(Some(old.device), old.bytes);
        }
        if self.has_room(self.handles.len()) {
            self.handles.insert(handle, Handle { bytes, device, references: 1, mappings: 0 });
            self.add(Some(device), bytes);
        }
    }

    /// Changes a handle that was seen to be created; it goes with its last reference and mapping.
    fn with_handle(&mut self, handle: u64, change: impl FnOnce(&mut Handle)) {
        let Some(known) = self.handles.get_mut(&handle) else { return };
        change(known);
        if known.references == 0 && known.mappings == 0 {
            let gone = *known;
            self.handles.remove(&handle);
            self.take(Some(gone.device), gone.bytes);
        }
    }

    fn mapped(&mut self, range: DeviceRange, handle: u64) {
        if !self.handles.contains_key(&handle) || !self.has_room(self.mapped.len()) {
            return;
        }
        if let Some((_, old)) = self.mapped.insert(range.start.0, (range.bytes, handle)) {
            self.unmap(old);
        }
        self.with_handle(handle, |handle| handle.mappings += 1);
    }

    fn unmapped(&mut self, range: DeviceRange) {
        let end = range.start.0.saturating_add(range.bytes.0);
        let gone: Vec<u64> = self.mapped.range(range.start.0..end).map(|(start, _)| *start).collect();
        for start in gone {
            if let Some((_, handle)) = self.mapped.remove(&start) {
                self.unmap(handle);
            }
        }
    }

    fn unmap(&mut self, handle: u64) {
        self.with_handle(handle, |handle| handle.mappings = handle.mappings.saturating_sub(1));
    }

    fn primary_released(&mut self, device: u32) {
        match self.primary.get_mut(&device) {
            Some(references) if *references > 1 => *references -= 1,
            Some(_) => {
                self.primary.remove(&device);
                self.gone(Some(device));
            }
            // It was retained before anybody looked: how often is not known.
            None => self.unsure = true,
        }
    }

    /// A context is gone, and the memory in it: of a device, if it was the primary one.
    fn gone(&mut self, device: Option<u32>) {
        if self.primary.is_empty() && self.contexts.is_empty() {
            self.forget_all_but_handles();
            if self.handles.is_empty() {
                // Whatever was not seen is gone as well: the books are exact again.
                self.settled = self.lost;
                self.unsure = false;
            }
            return;
        }
        // The memory of a context of its own is not told apart from that of others.
        let Some(device) = device.filter(|_| self.contexts.is_empty()) else {
            self.unsure |= !self.live.is_empty();
            return;
        };
        self.unsure |= self.live.values().any(|piece| piece.device.is_none());
        let gone: Vec<u64> = self
            .live
            .iter()
            .filter(|(_, piece)| piece.device == Some(device))
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            self.forget(address);
        }
    }

    /// The device on which memory is allocated now, if all contexts are on one.
    fn device(&self) -> Option<u32> {
        let mut devices = self.primary.keys();
        let only = devices.next().copied()?;
        (self.contexts.is_empty() && devices.next().is_none()).then_some(only)
    }

    fn forget_all_but_handles(&mut self) {
        self.live.clear();
        self.managed = Bytes::ZERO;
        self.pooled = Bytes::ZERO;
        self.allocated = Bytes::ZERO;
        self.by_device.clear();
        let held: Vec<Handle> = self.handles.values().copied().collect();
        for handle in held {
            self.add(Some(handle.device), handle.bytes);
        }
    }

    fn forget_memory(&mut self) {
        self.handles.clear();
        self.mapped.clear();
        self.primary.clear();
        self.contexts.clear();
        self.forget_all_but_handles();
        self.settled = 0;
        self.lost = 0;
        self.unsure = false;
    }

    fn add(&mut self, device: Option<u32>, bytes: Bytes) {
        self.allocated.0 = self.allocated.0.saturating_add(bytes.0);
        if self.by_device.len() < REMEMBERED || self.by_device.contains_key(&device) {
            let sum = self.by_device.entry(device).or_default();
            sum.0 = sum.0.saturating_add(bytes.0);
        }
    }

    fn take(&mut self, device: Option<u32>, bytes: Bytes) {
        self.allocated = self.allocated.saturating_sub(bytes);
        if let Some(sum) = self.by_device.get_mut(&device) {
            *sum = sum.saturating_sub(bytes);
            if *sum == Bytes::ZERO {
                self.by_device.remove(&device);
            }
        }
    }
}

#[cfg(test)]
mod tests;

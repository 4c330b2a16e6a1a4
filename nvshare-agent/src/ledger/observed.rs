//! What the uprobes saw of one process, client or not: its calls, and the memory it holds by them.
//!
//! The books follow what the driver does, not what a program asks for: physical handles live as long as somebody holds or
//! maps them, whatever becomes of a context; other memory ends with its context, and a primary context with its last
//! reference. Where that cannot be told from what was seen, nothing is forgotten and the figures are marked.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nvshare_common::event::Loss;
use nvshare_common::probe::Call;
use nvshare_common::units::{Bytes, DevicePtr, DeviceRange};

use crate::moment::Moment;
use crate::observation::{Context, Counts, Observation};

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
    /// Its name.
    pub name: String,
    /// All its calls.
    pub counts: Counts,
    /// Its last call.
    pub last_call: Moment,
    /// Its last launch.
    pub last_launch: Moment,
    /// Records about it that were lost.
    pub lost: u64,
    /// Device memory it allocated and has not freed.
    pub allocated: Bytes,
    /// The same by device, by its own numbers for them; `None`: not known on which.
    pub by_device: BTreeMap<Option<u32>, Bytes>,
    /// Device memory that it freed in a stream's order: its pools may keep it. At most this much.
    pub pooled: Bytes,
    /// Managed memory it allocated and has not freed.
    pub managed: Bytes,
    /// Calls that asked for managed memory to be moved, and their bytes.
    pub prefetched: Bytes,
    /// Faults of managed memory.
    pub uvm_faults: u64,
    /// Managed bytes that moved, both ways.
    pub uvm_bytes: Bytes,
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
    /// How many processes are remembered at a time.
    pub const PROCESSES: usize = 8192;

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

    /// Books one observation about it. Its books may have `room` for so many entries.
    pub(super) fn book(&mut self, observation: &Observation, room: usize) {
        use Observation as O;
        self.room = room;
        match *observation {
            O::Activity { ref counts, last_call, last_launch, lost, whole, .. } => {
                self.counts = **counts;
                self.last_call = last_call;
                self.last_launch = last_launch;
                self.lost = lost.iter().fold(0, |sum, lost| lost.saturating_add(sum));
                self.whole = whole;
                // No result of any call is known there.
                self.unsure |= lost[Loss::Unfollowed as usize] > 0;
            }
            O::Allocated { call, range, .. } => self.allocated(call, range),
            O::Freed { address, .. } => self.freed(address),
            O::Created { handle, bytes, device, .. } => self.created(handle, bytes, device),
            O::Retained { handle, .. } => self.with_handle(handle, |handle| handle.references += 1),
            O::Released { handle, .. } => {
                self.with_handle(handle, |handle| handle.references = handle.references.saturating_sub(1));
            }
            O::Mapped { range, handle, .. } => self.mapped(range, handle),
            O::Unmapped { range, .. } => self.unmapped(range),
            O::Prefetched { range, .. } => {
                self.prefetched.0 = self.prefetched.0.saturating_add(range.bytes.0);
            }
            O::Uvm { faults, to_device, to_host, .. } => {
                self.uvm_faults += faults;
                self.uvm_bytes.0 = self.uvm_bytes.0.saturating_add(to_device.0).saturating_add(to_host.0);
            }
            O::ContextMade { context, .. } => self.made(context),
            O::ContextEnded { context: Context::Primary(device), .. } => self.primary_released(device),
            O::ContextEnded { context: Context::Own(context), .. } => {
                self.contexts.remove(&context);
                self.gone(None);
            }
            O::ContextReset { device, .. } => self.gone(Some(device)),
            O::Exec { .. } => self.forget_memory(),
            _ => {}
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
mod tests {
    use super::*;
    use crate::observation::Process;

    const PROCESS: Process = Process { pid: 1, start: 1 };

    fn range(start: u64, bytes: u64) -> DeviceRange {
        DeviceRange { start: DevicePtr(start), bytes: Bytes(bytes) }
    }

    fn allocated(start: u64, call: Call) -> Observation {
        Observation::Allocated { process: PROCESS, call, range: range(start, 10) }
    }

    fn made(context: Context) -> Observation {
        Observation::ContextMade { process: PROCESS, context }
    }

    fn ended(context: Context) -> Observation {
        Observation::ContextEnded { process: PROCESS, context }
    }

    fn seen(whole: bool, lost: [u64; Loss::COUNT]) -> Observation {
        Observation::Activity {
            process: PROCESS,
            counts: Box::default(),
            first_call: Moment::default(),
            last_call: Moment::default(),
            last_launch: Moment::default(),
            lost,
            whole,
        }
    }

    fn booked(all: &[Observation]) -> Observed {
        let mut observed = Observed::default();
        observed.book(&seen(true, [0; Loss::COUNT]), usize::MAX);
        for observation in all {
            observed.book(observation, usize::MAX);
        }
        observed
    }

    #[test]
    fn memory_is_counted_until_it_is_freed() {
        let freed = |address| Observation::Freed { process: PROCESS, address: DevicePtr(address) };
        let mut observed = booked(&[allocated(100, Call::Alloc), allocated(200, Call::AllocManaged)]);
        assert_eq!((observed.allocated, observed.managed), (Bytes(10), Bytes(10)));
        // The same address again: the free in between was lost.
        observed.book(&allocated(100, Call::Alloc), usize::MAX);
        assert_eq!(observed.allocated, Bytes(10));
        observed.book(&freed(200), usize::MAX);
        observed.book(&freed(300), usize::MAX);
        assert_eq!((observed.allocated, observed.managed), (Bytes(10), Bytes::ZERO));
        assert!(!observed.inexact());
    }

    #[test]
    fn what_is_freed_in_a_streams_order_may_stay_in_the_pool() {
        let freed = Observation::Freed { process: PROCESS, address: DevicePtr(100) };
        let mut observed = booked(&[allocated(100, Call::AllocAsync), freed]);
        assert_eq!((observed.allocated, observed.pooled), (Bytes::ZERO, Bytes(10)));
        observed.book(&allocated(100, Call::AllocAsync), usize::MAX);
        assert_eq!((observed.allocated, observed.pooled), (Bytes(10), Bytes::ZERO));
    }

    #[test]
    fn memory_of_a_primary_context_stays_until_its_last_reference_goes() {
        let primary = Context::Primary(0);
        let mut observed = booked(&[made(primary), made(primary), allocated(100, Call::Alloc)]);
        observed.book(&ended(primary), usize::MAX);
        assert_eq!(observed.allocated, Bytes(10), "one reference is left");
        assert_eq!(observed.by_device, [(Some(0), Bytes(10))].into());
        observed.book(&ended(primary), usize::MAX);
        assert_eq!((observed.allocated, observed.inexact()), (Bytes::ZERO, false));
        // One that was retained before anybody looked.
        let mut late = booked(&[allocated(100, Call::Alloc), ended(primary)]);
        assert_eq!((late.allocated, late.inexact()), (Bytes(10), true));
        late.book(&Observation::Exec { process: PROCESS }, usize::MAX);
        assert_eq!((late.allocated, late.inexact()), (Bytes::ZERO, false));
    }

    #[test]
    fn the_end_of_a_context_takes_only_its_own_devices_memory() {
        let mut observed = booked(&[made(Context::Primary(0)), allocated(100, Call::Alloc)]);
        let create = Observation::Created { process: PROCESS, handle: 7, bytes: Bytes(5), device: 1 };
        observed.book(&made(Context::Primary(1)), usize::MAX);
        observed.book(&create, usize::MAX);
        observed.book(&ended(Context::Primary(1)), usize::MAX);
        assert_eq!(observed.by_device, [(Some(0), Bytes(10)), (Some(1), Bytes(5))].into());
        assert!(!observed.inexact());
        observed.book(&Observation::ContextReset { process: PROCESS, device: 0 }, usize::MAX);
        assert_eq!(observed.by_device, [(Some(1), Bytes(5))].into(), "handles outlive contexts");
        // With contexts of its own it is not known whose memory went.
        let mut own = booked(&[made(Context::Own(1)), made(Context::Own(2)), allocated(100, Call::Alloc)]);
        own.book(&ended(Context::Own(1)), usize::MAX);
        assert_eq!((own.allocated, own.inexact()), (Bytes(10), true));
        own.book(&ended(Context::Own(2)), usize::MAX);
        assert_eq!(own.allocated, Bytes::ZERO);
    }

    #[test]
    fn a_handle_lives_as_long_as_it_is_held_or_mapped() {
        let map = |start| Observation::Mapped { process: PROCESS, range: range(start, 20), handle: 7 };
        let released = Observation::Released { process: PROCESS, handle: 7 };
        let create = Observation::Created { process: PROCESS, handle: 7, bytes: Bytes(20), device: 0 };
        let mut observed = booked(&[create, map(1000), map(2000), released]);
        assert_eq!(observed.allocated, Bytes(20), "created, mapped twice, released");
        observed.book(&Observation::Unmapped { process: PROCESS, range: range(1000, 20) }, usize::MAX);
        assert_eq!(observed.allocated, Bytes(20));
        observed.book(&Observation::Unmapped { process: PROCESS, range: range(1000, 5000) }, usize::MAX);
        assert_eq!(observed.allocated, Bytes::ZERO);
    }

    #[test]
    fn who_lost_records_or_was_older_is_inexact() {
        let mut lost = [0; Loss::COUNT];
        let mut observed = booked(&[]);
        lost[Loss::Full as usize] = 1;
        observed.book(&seen(true, lost), usize::MAX);
        assert!(observed.inexact());
        observed.book(&Observation::Exec { process: PROCESS }, usize::MAX);
        assert!(!observed.inexact());
        observed.book(&seen(false, lost), usize::MAX);
        assert!(observed.inexact());
    }

    #[test]
    fn no_process_makes_the_books_grow_without_bound() {
        let mut observed = booked(&[]);
        for number in 0..2 * REMEMBERED as u64 {
            observed.book(&allocated(number * 4096, Call::Alloc), usize::MAX);
            let handle = number;
            observed.book(
                &Observation::Created { process: PROCESS, handle, bytes: Bytes(1), device: 0 },
                usize::MAX,
            );
            observed.book(
                &Observation::Mapped { process: PROCESS, range: range(number * 4096, 1), handle },
                usize::MAX,
            );
            observed.book(&made(Context::Own(number)), usize::MAX);
        }
        assert!(observed.inexact());
        let sizes =
            [observed.live.len(), observed.handles.len(), observed.mapped.len(), observed.contexts.len()];
        assert_eq!(sizes, [REMEMBERED; 4]);
    }
}

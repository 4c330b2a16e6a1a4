//! Memory that the application maps itself. The handles it gets are ours: each with its references and the places where it is
//! mapped, each mapping with its access; and the addresses that are reserved. What lies behind a handle is a span of its device's
//! [`Space`](super::space::Space). Pure.
//!
//! A mapping is in here only while the driver has it, or could have it: put in after the driver has mapped it, taken out before the
//! driver is asked to unmap it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::map;

/// What physical memory was asked for, besides its size and its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The types that it may be exported as.
    pub types: u32,
    /// Whether network cards may reach it.
    pub rdma: bool,
    /// Whether it is for an array: a tile pool, which is mapped at no address.
    pub tiles: bool,
}

impl Asked {
    /// Whether it may be exported.
    pub const fn is_exportable(self) -> bool {
        self.types != 0
    }

    /// Whether it is one piece, for whoever has it has all of it.
    pub const fn is_whole(self) -> bool {
        self.is_exportable() || self.tiles
    }
}

/// What a span of an application's handle is, or of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The handle, or the array.
    pub number: u64,
    /// With what properties.
    pub asked: Asked,
}

/// One handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// Its device: the index in `device::all`.
    pub device: usize,
    /// The start of its span there.
    pub span: u64,
    /// Its length.
    pub bytes: u64,
    /// With what properties.
    pub asked: Asked,
    /// What the application has not released.
    references: u32,
    /// Calls that are being made with it.
    holds: u32,
    /// Where it is mapped.
    places: Vec<u64>,
}

impl Handle {
    /// A new one, with one reference.
    pub const fn new(device: usize, span: u64, bytes: u64, asked: Asked) -> Handle {
        Handle { device, span, bytes, asked, references: 1, holds: 0, places: Vec::new() }
    }

    const fn is_over(&self) -> bool {
        self.references == 0 && self.holds == 0 && self.places.is_empty()
    }
}

/// What somebody may do with a mapping: `CUmemAccessDesc`, with numbers where that has enums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Access {
    /// The kind of the location.
    pub kind: u32,
    /// Its number.
    pub id: i32,
    /// `CUmemAccess_flags`.
    pub flags: u32,
}

/// One mapping of a handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its length.
    pub bytes: u64,
    /// What is mapped.
    pub handle: u64,
    /// A number that no other mapping has, or had.
    pub number: u64,
    /// Who may do what; who is not named may do nothing.
    pub access: Vec<Access>,
}

/// Where a handle can be reached, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its first byte there.
    pub start: u64,
    /// See [`Mapping::access`].
    pub access: Vec<Access>,
}

/// What is known of an address in a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where the mapping begins.
    pub start: u64,
    /// The mapping.
    pub mapping: Mapping,
    /// What is mapped.
    pub handle: Handle,
    /// The reservation around it: start and length.
    pub reserved: Option<(u64, u64)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Virtuals {
    handles: BTreeMap<u64, Handle>,
    mappings: BTreeMap<u64, Mapping>,
    /// Start and length.
    reserved: BTreeMap<u64, u64>,
}

impl Virtuals {
    /// Nothing.
    pub const fn new() -> Virtuals {
        Virtuals { handles: BTreeMap::new(), mappings: BTreeMap::new(), reserved: BTreeMap::new() }
    }

    /// The handle was given to the application.
    pub fn made(&mut self, number: u64, handle: Handle) {
        let before = self.handles.insert(number, handle);
        debug_assert!(before.is_none(), "a handle is given out twice");
    }

    /// The handle.
    pub fn handle(&self, number: u64) -> Option<&Handle> {
        self.handles.get(&number)
    }

    /// The handle, for a call with it: it does not end before it is let go. The driver takes one that was released for as long as
    /// it is mapped somewhere (seen on an H200).
    pub fn hold(&mut self, number: u64) -> Option<Handle> {
        let handle = self.handles.get_mut(&number)?;
        handle.holds += 1;
        Some(handle.clone())
    }

    /// Ends a hold. Returns the handle if that was its end.
    pub fn let_go(&mut self, number: u64) -> Option<Handle> {
        if let Some(handle) = self.handles.get_mut(&number) {
            handle.holds -= 1;
        }
        self.end(number)
    }

    /// A reference was given back: whether there was one, and the handle if that was its end.
    pub fn released(&mut self, number: u64) -> Option<Option<Handle>> {
        let handle = self.handles.get_mut(&number).filter(|handle| handle.references > 0)?;
        handle.references -= 1;
        Some(self.end(number))
    }

    /// One more reference to what is mapped at an address: its number.
    pub fn retained(&mut self, at: u64) -> Option<u64> {
        let number = self.around(at)?.1.handle;
        self.handles.get_mut(&number)?.references += 1;
        Some(number)
    }

    /// A handle that is held was mapped there.
    pub fn mapped(&mut self, start: u64, number: u64) {
        if let Some(handle) = self.handles.get_mut(&number) {
            handle.places.push(start);
            let mapping =
                Mapping { bytes: handle.bytes, handle: number, number: map::number(), access: Vec::new() };
            let before = self.mappings.insert(start, mapping);
            debug_assert!(before.is_none(), "the driver mapped something onto a mapping");
        }
    }

    /// Whether a mapping lies in the range in part only.
    pub fn is_cut(&self, start: u64, bytes: u64) -> bool {
        let end = start.saturating_add(bytes);
        let first = self.around(start).is_some_and(|(at, _)| at < start);
        let last = self.mappings.range(..end).next_back();
        first || last.is_some_and(|(at, mapping)| *at >= start && at + mapping.bytes > end)
    }

    /// The mappings that lie in the range, with their handles.
    pub fn within(&self, start: u64, bytes: u64) -> impl Iterator<Item = (u64, &Mapping, &Handle)> + '_ {
        let range = self.mappings.range(start..start.saturating_add(bytes));
        range.filter_map(|(at, mapping)| Some((*at, mapping, self.handles.get(&mapping.handle)?)))
    }

    /// Takes out the mappings in the range. What was mapped stays until [`Virtuals::unmapped`].
    pub fn take(&mut self, start: u64, bytes: u64) -> Vec<(u64, Mapping)> {
        self.mappings.extract_if(start..start.saturating_add(bytes), |_, _| true).collect()
    }

    /// They are still mapped.
    pub fn put_back(&mut self, taken: Vec<(u64, Mapping)>) {
        self.mappings.extend(taken);
    }

    /// They are mapped no more. Returns the handles whose end that is.
    pub fn unmapped(&mut self, taken: Vec<(u64, Mapping)>) -> Vec<Handle> {
        let mut ended = Vec::new();
        for (start, mapping) in taken {
            if let Some(handle) = self.handles.get_mut(&mapping.handle)
                && let Some(at) = handle.places.iter().position(|place| *place == start)
            {
                handle.places.swap_remove(at);
            }
            ended.extend(self.end(mapping.handle));
        }
        ended
    }

    /// Access to the mappings in the range was set.
    pub fn set_access(&mut self, start: u64, bytes: u64, granted: &[Access]) {
        for mapping in self.mappings.range_mut(start..start.saturating_add(bytes)).map(|(_, mapping)| mapping)
        {
            for new in granted {
                mapping.access.retain(|old| (old.kind, old.id) != (new.kind, new.id));
                if new.flags != 0 {
                    mapping.access.push(*new);
                }
            }
        }
    }

    /// Where that handle can be reached.
    pub fn views(&self, number: u64) -> Vec<View> {
        let Some(handle) = self.handles.get(&number) else { return Vec::new() };
        let view = |start: &u64| {
            let mapping = self.mappings.get(start).filter(|mapping| mapping.handle == number)?;
            Some(View { start: *start, access: mapping.access.clone() })
        };
        handle.places.iter().filter_map(view).collect()
    }

    /// What is mapped at an address.
    pub fn find(&self, at: u64) -> Option<Found> {
        let (start, mapping) = self.around(at)?;
        let handle = self.handles.get(&mapping.handle)?.clone();
        Some(Found { start, mapping: mapping.clone(), handle, reserved: self.reservation(at) })
    }

    /// Whether something of ours is mapped at an address.
    pub fn is_mapped(&self, at: u64) -> bool {
        self.around(at).is_some()
    }

    /// Addresses are reserved.
    pub fn reserved(&mut self, start: u64, bytes: u64) {
        self.reserved.insert(start, bytes);
    }

    /// Takes a reservation out: its length.
    pub fn unreserved(&mut self, start: u64) -> Option<u64> {
        self.reserved.remove(&start)
    }

    /// The reservation around an address: its start and length.
    pub fn reservation(&self, at: u64) -> Option<(u64, u64)> {
        let (start, bytes) = self.reserved.range(..=at).next_back()?;
        (at - start < *bytes).then_some((*start, *bytes))
    }

    fn around(&self, at: u64) -> Option<(u64, &Mapping)> {
        let (start, mapping) = self.mappings.range(..=at).next_back()?;
        (at - start < mapping.bytes).then_some((*start, mapping))
    }

    fn end(&mut self, number: u64) -> Option<Handle> {
        if self.handles.get(&number)?.is_over() { self.handles.remove(&number) } else { None }
    }
}

static VIRTUALS: RwLock<Virtuals> = RwLock::new(Virtuals::new());
/// How many handles there are: without one no look-up takes the lock.
static HANDLES: AtomicUsize = AtomicUsize::new(0);

/// All of the process, for a look.
pub(crate) fn look() -> RwLockReadGuard<'static, Virtuals> {
    VIRTUALS.read().unwrap_or_else(PoisonError::into_inner)
}

/// All of the process, for a change.
pub(crate) fn change<T>(what: impl FnOnce(&mut Virtuals) -> T) -> T {
    let mut virtuals: RwLockWriteGuard<'static, Virtuals> =
        VIRTUALS.write().unwrap_or_else(PoisonError::into_inner);
    let result = what(&mut virtuals);
    HANDLES.store(virtuals.handles.len(), Ordering::Release);
    result
}

/// Whether there is any handle of ours.
#[inline]
pub(crate) fn are_there() -> bool {
    HANDLES.load(Ordering::Acquire) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { types: 0, rdma: false, tiles: false };

    fn with_one(bytes: u64) -> Virtuals {
        let mut virtuals = Virtuals::new();
        virtuals.made(1, Handle::new(0, 0x100, bytes, ASKED));
        virtuals
    }

    fn map(virtuals: &mut Virtuals, start: u64) {
        assert!(virtuals.hold(1).is_some());
        virtuals.mapped(start, 1);
        assert_eq!(virtuals.let_go(1), None);
    }

    #[test]
    fn a_handle_lives_as_long_as_it_is_held_or_mapped() {
        let mut virtuals = with_one(4);
        map(&mut virtuals, 0x1000);
        map(&mut virtuals, 0x2000);
        assert_eq!(virtuals.released(1), Some(None));
        assert_eq!(virtuals.released(1), None, "there is no reference left");
        map(&mut virtuals, 0x3000);
        let taken = virtuals.take(0x3000, 4);
        assert_eq!(virtuals.unmapped(taken), []);
        let taken = virtuals.take(0x1000, 4);
        assert_eq!(virtuals.unmapped(taken), []);
        assert_eq!(virtuals.retained(0x2003), Some(1), "it can be had back from a mapping");
        let taken = virtuals.take(0x2000, 4);
        assert_eq!(virtuals.unmapped(taken), []);
        assert_eq!(virtuals.released(1).unwrap().map(|handle| handle.span), Some(0x100));
    }

    #[test]
    fn a_handle_that_a_call_uses_does_not_end_under_it() {
        let mut virtuals = with_one(4);
        virtuals.hold(1);
        assert_eq!(virtuals.released(1), Some(None));
        assert!(virtuals.let_go(1).is_some());
    }

    #[test]
    fn a_mapping_that_the_driver_did_not_unmap_is_put_back_with_its_access() {
        let mut virtuals = with_one(4);
        map(&mut virtuals, 0x1000);
        let grant = Access { kind: 1, id: 0, flags: 3 };
        virtuals.set_access(0x1000, 4, &[grant]);
        let taken = virtuals.take(0x1000, 4);
        assert!(!virtuals.is_mapped(0x1000));
        virtuals.put_back(taken);
        assert_eq!(virtuals.views(1), [View { start: 0x1000, access: vec![grant] }]);
    }

    #[test]
    fn a_range_cuts_a_mapping_at_either_end() {
        let mut virtuals = with_one(4);
        map(&mut virtuals, 0x1000);
        for (start, bytes, cut) in [
            (0x1000, 4, false),
            (0xfff, 6, false),
            (0xfff, 4, true),
            (0x1001, 3, true),
            (0x1004, 4, false),
            (0xff0, 16, false),
        ] {
            assert_eq!(virtuals.is_cut(start, bytes), cut, "{start:#x} {bytes}");
        }
        assert_eq!(virtuals.within(0xfff, 6).count(), 1);
    }

    #[test]
    fn access_is_set_for_each_place_apart_and_none_is_no_entry() {
        let mut virtuals = with_one(4);
        map(&mut virtuals, 0x1000);
        let grant = |id, flags| Access { kind: 1, id, flags };
        virtuals.set_access(0x1000, 4, &[grant(0, 3), grant(1, 1)]);
        virtuals.set_access(0x1000, 4, &[grant(1, 0), grant(0, 1)]);
        assert_eq!(virtuals.find(0x1002).unwrap().mapping.access, [grant(0, 1)]);
    }

    #[test]
    fn a_mapping_knows_the_reservation_around_it() {
        let mut virtuals = with_one(4);
        virtuals.reserved(0xff0, 0x100);
        map(&mut virtuals, 0x1000);
        assert_eq!(virtuals.find(0x1001).unwrap().reserved, Some((0xff0, 0x100)));
        assert!(virtuals.unreserved(0xff0).is_some() && virtuals.find(0x1001).unwrap().reserved.is_none());
    }
}

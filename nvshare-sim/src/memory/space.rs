//! Every address that the driver knows in this process, and what is behind it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::managed::Managed;
use super::physical::{HandleValue, Physical};
use super::shared::Opened;
use super::{address, mapping, piece, plain};
use crate::context::Context;
use crate::memory::host::Pinned;

static SPACE: RwLock<Space> =
    RwLock::new(Space { areas: BTreeMap::new(), leaving: BTreeMap::new(), handles: BTreeMap::new() });

/// All memory of the process.
pub(crate) struct Space {
    /// By first address; they do not overlap.
    pub(super) areas: BTreeMap<u64, Arc<Area>>,
    /// Pieces of pools that were freed, for the work that was submitted before: by their number. Others may be there already.
    pub(super) leaving: BTreeMap<u64, Arc<Area>>,
    /// Physical memory that this process holds.
    pub(super) handles: BTreeMap<HandleValue, Physical>,
}

/// A piece of the address space with one purpose.
pub(crate) struct Area {
    /// The first address.
    pub(crate) start: u64,
    /// Its size as it was asked for.
    pub(crate) bytes: u64,
    /// The number of the context it belongs to; 0 for reservations and pieces of pools, which belong to none.
    pub(crate) context: u64,
    /// The device.
    pub(crate) device: usize,
    /// Different for every allocation ever made.
    pub(crate) id: u64,
    /// `CU_POINTER_ATTRIBUTE_SYNC_MEMOPS`.
    pub(crate) sync_memops: AtomicBool,
    /// `cuMemFreeAsync` was called; it goes when the turn of that comes.
    pub(crate) leaving: AtomicBool,
    /// The name that other processes open it by; 0 while there is none.
    pub(super) share: AtomicU64,
    /// What it is.
    pub(crate) kind: Kind,
}

/// What is behind an area.
pub(crate) enum Kind {
    /// `cuMemAlloc` and its relatives; with the pool that it came from.
    Plain(Option<Arc<super::pool::Pool>>),
    /// What a node of a graph allocates.
    Graph(Arc<super::graph::Allocation>),
    /// An array's, of which the application knows no address.
    Array,
    /// An array's that the application maps.
    Tiles(super::tiles::Tiles),
    /// `cuMemAddressReserve`, with what is mapped there.
    Reserved(Mutex<BTreeMap<u64, mapping::Mapping>>),
    /// `cuMemAllocManaged`.
    Managed(Managed),
    /// Host memory that the device can reach.
    Pinned(Pinned),
    /// Memory of another process.
    Opened(Opened),
}

/// What an address is to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// Memory of this device.
    Device(usize),
    /// Host memory that is pinned.
    Pinned,
    /// Managed memory.
    Managed,
    /// Nothing the driver knows: the program's own memory, or nothing at all.
    Pageable,
}

pub(super) fn read() -> RwLockReadGuard<'static, Space> {
    SPACE.read().unwrap_or_else(PoisonError::into_inner)
}

/// For the end of the process, when a thread that holds the lock may be gone.
pub(super) fn try_read() -> Option<RwLockReadGuard<'static, Space>> {
    SPACE.try_read().ok()
}

pub(super) fn write() -> RwLockWriteGuard<'static, Space> {
    SPACE.write().unwrap_or_else(PoisonError::into_inner)
}

/// A number that no area and no mapping has, or had.
pub(super) fn number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

impl Area {
    pub(super) fn new(start: u64, bytes: u64, context: u64, device: usize, kind: Kind) -> Area {
        let id = number();
        // On without being asked for, as on an H200, but for pieces of pools.
        let sync_memops = AtomicBool::new(matches!(kind, Kind::Plain(None) | Kind::Opened(_)));
        let leaving = AtomicBool::new(false);
        Area { start, bytes, context, device, id, sync_memops, leaving, share: AtomicU64::new(0), kind }
    }

    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// Gives back what is behind an area that is in the space no more.
    pub(super) fn dispose(&self) {
        match &self.kind {
            Kind::Plain(None) | Kind::Array => plain::dispose(self),
            Kind::Managed(managed) => managed.dispose(self),
            Kind::Tiles(tiles) => tiles.dispose(self),
            Kind::Pinned(pinned) => pinned.dispose(self),
            Kind::Opened(opened) => opened.dispose(),
            // A piece's memory is its pool's all the time.
            Kind::Reserved(_) | Kind::Graph(_) | Kind::Plain(Some(_)) => {}
        }
    }
}

impl Space {
    /// The area that contains the address.
    pub(super) fn find(&self, address: u64) -> Option<&Arc<Area>> {
        self.areas.range(..=address).next_back().map(|(_, area)| area).filter(|area| address < area.end())
    }

    /// The piece that contains all of the range and leaves.
    fn find_leaving(&self, start: u64, bytes: u64) -> Option<&Arc<Area>> {
        let end = start.checked_add(bytes)?;
        self.leaving.values().find(|area| area.start <= start && end <= area.end())
    }

    pub(super) fn overlaps(&self, start: u64, bytes: u64) -> bool {
        self.areas
            .range(..start.saturating_add(bytes))
            .next_back()
            .is_some_and(|(_, area)| area.end() > start)
    }

    pub(super) fn insert(&mut self, area: Area) -> Arc<Area> {
        let area = Arc::new(area);
        self.areas.insert(area.start, Arc::clone(&area));
        area
    }

    /// Takes out what belongs to a context.
    pub(super) fn remove_context(&mut self, context: u64) -> Vec<(u64, Arc<Area>)> {
        self.areas.extract_if(.., |_, area| area.context == context && context != 0).collect()
    }
}

/// The area that contains the address.
pub(crate) fn find(address: u64) -> Option<Arc<Area>> {
    read().find(address).cloned()
}

/// What an address is to work, which may have come before the memory was freed in stream order.
pub(crate) fn classify(address: u64) -> Location {
    let space = read();
    location(space.find(address).or_else(|| space.find_leaving(address, 1)))
}

fn location(area: Option<&Arc<Area>>) -> Location {
    match area {
        None => Location::Pageable,
        Some(area) => match &area.kind {
            Kind::Plain(_)
            | Kind::Array
            | Kind::Tiles(_)
            | Kind::Graph(_)
            | Kind::Reserved(_)
            | Kind::Opened(_) => Location::Device(area.device),
            Kind::Managed(_) => Location::Managed,
            Kind::Pinned(_) => Location::Pinned,
        },
    }
}

/// What an address is to a call that copies: a reserved one with nothing behind it is taken for the program's own memory.
pub(crate) fn classify_for_copy(address: u64) -> Location {
    let is_empty = |area: &Arc<Area>| match &area.kind {
        Kind::Reserved(mappings) => !mapping::is_there(mappings, address),
        _ => false,
    };
    location(read().find(address).filter(|area| !is_empty(area)))
}

/// Whether work on `device` may touch all of the range; if not, why. Memory that the driver does not know is allowed.
pub(crate) fn access(start: u64, bytes: u64, write: bool, device: usize) -> Result<(), String> {
    if bytes == 0 {
        return Ok(());
    }
    let space = read();
    let leaves = || space.find_leaving(start, bytes).is_some();
    let Some(area) = space.find(start) else {
        // The program's own memory is for copies only, which is for the caller to know.
        if !address::is_ours(start) || leaves() {
            return Ok(());
        }
        return Err(format!("{} is not mapped", piece(start, bytes)));
    };
    let over = start.checked_add(bytes).is_none_or(|end| end > area.end());
    if over {
        if leaves() {
            return Ok(());
        }
        return Err(format!(
            "{} goes over the end of the memory at {}",
            piece(start, bytes),
            piece(area.start, area.bytes)
        ));
    }
    match &area.kind {
        Kind::Reserved(mappings) => {
            let mappings = mappings.lock().unwrap_or_else(PoisonError::into_inner);
            mapping::access(&mappings, start, bytes, write, device)
        }
        Kind::Tiles(tiles) if tiles.is_bare() => Err("nothing is mapped behind the array".to_owned()),
        Kind::Graph(allocation) if !allocation.is_valid() => {
            Err(format!("{} is a graph's, and not allocated at the time", piece(start, bytes)))
        }
        Kind::Plain(_)
        | Kind::Array
        | Kind::Tiles(_)
        | Kind::Graph(_)
        | Kind::Managed(_)
        | Kind::Pinned(_)
        | Kind::Opened(_) => Ok(()),
    }
}

/// Whether kernels and memsets of `context` must not touch the memory: `cuMemAlloc` memory of another device, without
/// `cuCtxEnablePeerAccess`. Pools are open to all devices here; mappings say themselves who may.
pub(crate) fn needs_peer_access(address: u64, context: &Context) -> bool {
    let space = read();
    space.find(address).is_some_and(|area| {
        matches!(area.kind, Kind::Plain(None))
            && area.device != context.device
            && !context.peers().contains(&area.context)
    })
}

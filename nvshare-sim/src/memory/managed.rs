//! `cuMemAllocManaged`: host memory at one address, whose pages claim blocks of the card as kernels touch them. Only the
//! time of the migrations is simulated (nvshare-sim-card's `managed`); the bytes stay where they are.

#![expect(unsafe_code, reason = "mappings that are its own")]

use std::ops::Range;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::managed::PAGE_BYTES;
use nvshare_sim_card::{ManagedRange, Window};

use super::address;
use super::space::{self, Area, Kind};
use crate::call::Outcome;
use crate::context::Context;
use crate::device::card;

/// `CU_DEVICE_CPU`: the host, where a device is named.
pub(crate) const HOST: i32 = -1;
/// `CU_DEVICE_INVALID`.
pub(crate) const NOWHERE: i32 = -2;

/// A managed allocation. Advice is kept for all of it and has no effect.
pub(crate) struct Managed {
    range: Mutex<ManagedRange>,
    /// The module's mapping of it, for those who look at the process.
    _window: Option<Window>,
    /// `CU_MEM_ADVISE_SET_READ_MOSTLY`.
    pub(crate) read_mostly: AtomicI32,
    /// `CU_MEM_ADVISE_SET_PREFERRED_LOCATION`.
    pub(crate) preferred: AtomicI32,
    /// The device last advised to be an accessor, and where it was last prefetched to.
    pub(crate) accessor: AtomicI32,
    pub(crate) prefetched: AtomicI32,
}

impl Managed {
    fn lock(&self) -> MutexGuard<'_, ManagedRange> {
        self.range.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn dispose(&self, area: &Area) {
        card().managed_forget(&self.lock());
        // SAFETY: allocated by `allocate`, and in the space no more.
        unsafe { address::release(area.start, area.bytes.next_multiple_of(PAGE_BYTES)) };
    }
}

/// Allocates managed memory; nothing of it exists before it is touched.
pub(crate) fn allocate(context: &Context, bytes: u64, flags: u32) -> Outcome<u64> {
    let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    if bytes == 0 || !matches!(flags, 1 | 2) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    crate::faults::at_call(nvshare_sim_card::Point::Alloc)?;
    let whole = bytes.checked_next_multiple_of(PAGE_BYTES).ok_or(full)?;
    let start = address::reserve(whole, PAGE_BYTES).ok_or(full)?;
    // SAFETY: reserved just now, for this.
    unsafe { address::open(start, whole) }.map_err(|_| full)?;
    let (range, window) = card().managed_range((whole / PAGE_BYTES) as usize);
    let managed = Managed {
        range: Mutex::new(range),
        _window: window,
        read_mostly: AtomicI32::new(0),
        preferred: AtomicI32::new(NOWHERE),
        accessor: AtomicI32::new(NOWHERE),
        prefetched: AtomicI32::new(NOWHERE),
    };
    space::write().insert(Area::new(start, bytes, context.id, context.device, Kind::Managed(managed)));
    Ok(start)
}

/// The managed allocation around a range.
pub(crate) fn around(start: u64, bytes: u64) -> Outcome<Arc<Area>> {
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let area = space::find(start).ok_or(invalid)?;
    let inside = bytes > 0 && start.checked_add(bytes).is_some_and(|end| end <= area.end());
    if inside && matches!(area.kind, Kind::Managed(_)) { Ok(area) } else { Err(invalid) }
}

fn managed(area: &Area) -> &Managed {
    let Kind::Managed(managed) = &area.kind else { unreachable!("`around` answers managed areas only") };
    managed
}

fn pages(area: &Area, start: u64, bytes: u64) -> Range<usize> {
    let offset = start - area.start;
    (offset / PAGE_BYTES) as usize..(offset + bytes).div_ceil(PAGE_BYTES) as usize
}

/// The program may have written to pages without the driver seeing it: they are on the host then.
fn notice_host_writes(area: &Area, range: &mut ManagedRange, pages: Range<usize>) {
    for page in pages.filter(|page| range.is_untouched(*page)).collect::<Vec<_>>() {
        let mut present = [0_u8; (PAGE_BYTES / 4096) as usize];
        let at = area.start + page as u64 * PAGE_BYTES;
        // SAFETY: mincore only reads page tables; the page lies within the area's mapping, which is whole pages.
        let known = unsafe { libc::mincore(at as *mut _, PAGE_BYTES as usize, present.as_mut_ptr()) == 0 };
        if known && present.iter().any(|byte| byte & 1 != 0) {
            card().managed_host_touched(range, page);
        }
    }
}

/// Work on `device` touches managed memory at the (virtual) time `at`: when its faults are served.
pub(crate) fn touch_managed(device: usize, start: u64, bytes: u64, _write: bool, at: u64) -> u64 {
    let Ok(area) = around(start, bytes) else { return at };
    let mut range = managed(&area).lock();
    let pages = pages(&area, start, bytes);
    notice_host_writes(&area, &mut range, pages.clone());
    card().managed_touch(device, &mut range, pages, at)
}

/// What `cuMemPrefetchAsync` does when its turn comes.
pub(crate) fn prefetch(area: &Area, start: u64, bytes: u64, to: i32, at: u64) -> u64 {
    let managed = managed(area);
    let mut range = managed.lock();
    let pages = pages(area, start, bytes);
    notice_host_writes(area, &mut range, pages.clone());
    managed.prefetched.store(to, Ordering::Relaxed);
    match usize::try_from(to) {
        Ok(device) => card().managed_prefetch(device, &mut range, pages, at),
        Err(_) => card().managed_to_host(area.device, &mut range, pages, 1, at),
    }
}

/// The advice given to an allocation.
pub(crate) fn advice(area: &Area) -> &Managed {
    managed(area)
}

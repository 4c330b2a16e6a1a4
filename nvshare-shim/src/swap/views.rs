//! Where an extent is mapped. Plain memory is mapped at its own address and nowhere else. What the application maps itself is mapped
//! where its records say, with the access that they say, and at the engine's own address (its home) while the engine has no better
//! way to reach it: it may be mapped nowhere, or be for reading only. What is behind an array is mapped at no address.
//!
//! All of this is done to extents that are busy with the engine: the application maps and unmaps only what is at rest.

#![expect(unsafe_code, reason = "the driver is called")]

use super::site::Site;
use crate::cuda::CUresult;
use crate::device::{Device, tiles, vmm};
use crate::driver::driver;
use crate::log;
use crate::memory::arrays::{self, Placed};
use crate::memory::extent::ExtentId;
use crate::memory::virtuals::{self, Access, View};

/// `CU_MEM_LOCATION_TYPE_DEVICE` and `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const DEVICE: u32 = 1;
const READ_WRITE: u32 = 3;

/// A busy extent, as it is mapped.
struct Mapped {
    start: u64,
    bytes: u64,
    handle: u64,
    at_home: bool,
    /// None: plain memory.
    views: Option<Vec<View>>,
    /// What it is behind, if that is an array.
    array: Option<Placed>,
}

impl Mapped {
    fn of(device: &Device, id: ExtentId) -> Mapped {
        let state = device.state();
        let extent = state.space.extent(id);
        debug_assert!(extent.is_busy() && extent.handle != 0);
        let (start, bytes, handle, at_home) = (extent.start, extent.bytes, extent.handle, extent.at_home);
        let behind = state.space.behind(id);
        drop(state);
        let of_array = behind.filter(|(behind, _)| behind.asked.tiles);
        let array = of_array.and_then(|(behind, _)| arrays::look().placed(behind.number).cloned());
        let views = behind.map(|(behind, offset)| {
            let mut views = virtuals::look().views(behind.number);
            for view in &mut views {
                view.start += offset;
            }
            views
        });
        Mapped { start, bytes, handle, at_home, views, array }
    }

    fn map(&self, view: &View) -> Result<(), CUresult> {
        // SAFETY: the application's addresses, which were mapped when this was taken from there; the handle has that size.
        unsafe { vmm::map_for(view.start, self.bytes, self.handle, &view.access) }
    }

    fn unmap(&self, view: &View) -> Result<(), CUresult> {
        // SAFETY: a whole mapping; nothing of the application runs.
        unsafe { vmm::unmap(view.start, self.bytes) }
    }
}

fn put_behind(device: &Device, array: &Placed, handle: Option<u64>) -> Result<(), CUresult> {
    // SAFETY: the extent is busy, so that its array lives; nothing of the application runs, or the memory is not there yet; the
    // handle was made for it.
    unsafe { tiles::put(array, device.kind.ordinal, handle) }
}

/// Maps an extent that has memory again wherever the application has it mapped.
pub(super) fn put_in_place(device: &Device, id: ExtentId) -> Result<(), CUresult> {
    let mapped = Mapped::of(device, id);
    if let Some(array) = &mapped.array {
        return put_behind(device, array, Some(mapped.handle));
    }
    for (done, view) in mapped.views.iter().flatten().enumerate() {
        if let Err(code) = mapped.map(view) {
            for view in mapped.views.iter().flatten().take(done) {
                if let Err(code) = mapped.unmap(view) {
                    log::warning!("cannot unmap {:#x} again: {}", view.start, driver().error_name(code));
                }
            }
            return Err(code);
        }
    }
    Ok(())
}

/// Where the engine can read and write an extent that is in place.
pub(super) fn reach(device: &Device, id: ExtentId) -> Result<Site, CUresult> {
    let mapped = Mapped::of(device, id);
    if let Some(array) = &mapped.array {
        return Ok(Site::Array(array.image.clone()));
    }
    let Some(views) = &mapped.views else { return Ok(Site::At(mapped.start)) };
    let own = Access { kind: DEVICE, id: device.kind.ordinal, flags: READ_WRITE };
    if let Some(view) = views.iter().find(|view| view.access.contains(&own)) {
        return Ok(Site::At(view.start));
    }
    if !mapped.at_home {
        // SAFETY: the engine's addresses, of this extent alone, with nothing behind them.
        unsafe { vmm::map_for(mapped.start, mapped.bytes, mapped.handle, &[own]) }?;
        device.state().space.extent_mut(id).at_home = true;
    }
    Ok(Site::At(mapped.start))
}

/// Unmaps an extent wherever it is mapped. Where that fails it is in place as before.
pub(super) fn take_away(device: &Device, id: ExtentId) -> Result<(), CUresult> {
    let mapped = Mapped::of(device, id);
    if let Some(array) = &mapped.array {
        return put_behind(device, array, None);
    }
    if mapped.at_home {
        // SAFETY: a whole mapping of the extent, which is the engine's.
        unsafe { vmm::unmap(mapped.start, mapped.bytes) }?;
        device.state().space.extent_mut(id).at_home = false;
    }
    for (done, view) in mapped.views.iter().flatten().enumerate() {
        if let Err(code) = mapped.unmap(view) {
            for view in mapped.views.iter().flatten().take(done) {
                if let Err(code) = mapped.map(view) {
                    log::error!("cannot map {:#x} again: {}", view.start, driver().error_name(code));
                }
            }
            return Err(code);
        }
    }
    Ok(())
}

//! Arrays: memory of a device that has a form and no address. Those whose bytes are understood and that are large enough move
//! ([`allocation::arrays`]); the others stay on the card, and are booked as long as they live.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::Bare;
use super::unswappable::{beyond_limit, noted};
use crate::allocation::{self, unswappable};
use crate::cuda::CUresult;
use crate::cuda::sys::{CUDA_ARRAY_DESCRIPTOR, CUDA_ARRAY3D_DESCRIPTOR, CUarray, CUmipmappedArray};
use crate::device::tiles::{DEFERRED, Form};
use crate::life;
use crate::memory::arrays::{self, Name};

const ARRAY: &str = "array";
const MIPMAPPED: &str = "mipmapped";

pub(crate) unsafe fn array<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: *mut CUarray,
    descriptor: *const CUDA_ARRAY_DESCRIPTOR,
) -> CUresult {
    if descriptor.is_null() {
        return bare.call();
    }
    // SAFETY: not null, so the driver reads it too; its format is read as a number.
    let form = unsafe {
        let format = (&raw const (*descriptor).Format).cast::<u32>().read();
        let extents = [(*descriptor).Width, (*descriptor).Height, 0];
        Form { extents, format, channels: (*descriptor).NumChannels, flags: 0 }
    };
    // SAFETY: the application's place for the handle.
    if let Some(result) = unsafe { moved(bare, array, form, None) } {
        return result;
    }
    let bytes = array_bytes([form.extents[0], form.extents[1], 1], form.format, form.channels);
    if beyond_limit(bytes) {
        return CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    }
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, ARRAY, array, |array| array.addr() as u64, bytes) }
}

pub(crate) unsafe fn array_3d<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: *mut CUarray,
    descriptor: *const CUDA_ARRAY3D_DESCRIPTOR,
) -> CUresult {
    // SAFETY: null, or the application's description, which has this layout.
    if let Some(form) = unsafe { descriptor.cast::<Form>().as_ref() }
        // SAFETY: the application's place for the handle.
        && let Some(result) = unsafe { moved(bare, array, *form, None) }
    {
        return result;
    }
    // SAFETY: the application's own arguments.
    let Some(bytes) = (unsafe { array_3d_bytes(descriptor, 1) }) else { return bare.call() };
    if beyond_limit(bytes) {
        return CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    }
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, ARRAY, array, |array| array.addr() as u64, bytes) }
}

pub(crate) unsafe fn mipmapped<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: *mut CUmipmappedArray,
    descriptor: *const CUDA_ARRAY3D_DESCRIPTOR,
    levels: u32,
) -> CUresult {
    // SAFETY: null, or the application's description, which has this layout.
    if let Some(form) = unsafe { descriptor.cast::<Form>().as_ref() }
        // SAFETY: the application's place for the handle.
        && let Some(result) = unsafe { moved(bare, array, *form, Some(levels)) }
    {
        return result;
    }
    // SAFETY: the application's own arguments.
    let Some(bytes) = (unsafe { array_3d_bytes(descriptor, levels) }) else { return bare.call() };
    if beyond_limit(bytes) {
        return CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    }
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, MIPMAPPED, array, |array| array.addr() as u64, bytes) }
}

/// An array that the engine moves, in place of the bare call; `None`: it is to be the driver's.
unsafe fn moved<F: Fn() -> CUresult, H>(
    bare: &Bare<F>,
    array: *mut *mut H,
    form: Form,
    levels: Option<u32>,
) -> Option<CUresult> {
    if !life::active() || array.is_null() {
        return None;
    }
    let made = allocation::arrays::create(form, levels)?;
    bare.keep_from_driver();
    Some(match made {
        Ok(Name::Array(number) | Name::Mipmapped(number)) => {
            // SAFETY: the caller's promise.
            unsafe { array.write(std::ptr::with_exposed_provenance_mut(number as usize)) };
            CUresult::CUDA_SUCCESS
        }
        Err(code) => code,
    })
}

pub(crate) unsafe fn array_destroy<F: Fn() -> CUresult>(bare: &Bare<F>, array: CUarray) -> CUresult {
    if life::active()
        && let Some(result) = allocation::arrays::destroy(allocation::arrays::name_of(array), || bare.call())
    {
        return result;
    }
    let result = bare.call();
    if result.ok() && life::active() {
        unswappable::gave_back(ARRAY, array.addr() as u64);
    }
    result
}

pub(crate) unsafe fn mipmapped_destroy<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: CUmipmappedArray,
) -> CUresult {
    if life::active()
        && let Some(result) =
            allocation::arrays::destroy(allocation::arrays::name_of_levels(array), || bare.call())
    {
        return result;
    }
    let result = bare.call();
    if result.ok() && life::active() {
        unswappable::gave_back(MIPMAPPED, array.addr() as u64);
    }
    result
}

/// A level is an array, which is asked about like one.
pub(crate) unsafe fn level<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    level: *mut CUarray,
    of: CUmipmappedArray,
) -> CUresult {
    let result = bare.call();
    if result.ok() && !level.is_null() && arrays::are_there() {
        // SAFETY: the driver has just stored the handle there.
        let level = unsafe { level.read() }.expose_provenance() as u64;
        arrays::change(|arrays| arrays.level(allocation::arrays::name_of_levels(of), level));
    }
    result
}

/// That its mapping is deferred is ours to know.
pub(crate) unsafe fn descriptor<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    descriptor: *mut CUDA_ARRAY3D_DESCRIPTOR,
    array: CUarray,
) -> CUresult {
    let result = bare.call();
    if result.ok() && !descriptor.is_null() && is_moved(allocation::arrays::name_of(array)) {
        // SAFETY: the driver has just filled it in.
        unsafe { (*descriptor).Flags &= !DEFERRED };
    }
    result
}

/// Asked of an array whose mapping is not deferred, the driver refuses it.
pub(crate) unsafe fn requirements<F: Fn() -> CUresult>(bare: &Bare<F>, array: CUarray) -> CUresult {
    refused(bare, allocation::arrays::name_of(array))
}

/// The same of a mipmapped one.
pub(crate) unsafe fn requirements_of_levels<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: CUmipmappedArray,
) -> CUresult {
    refused(bare, allocation::arrays::name_of_levels(array))
}

fn refused<F: Fn() -> CUresult>(bare: &Bare<F>, name: Name) -> CUresult {
    if is_moved(name) {
        bare.keep_from_driver();
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    bare.call()
}

fn is_moved(name: Name) -> bool {
    arrays::are_there() && arrays::look().has(name)
}

unsafe fn array_3d_bytes(descriptor: *const CUDA_ARRAY3D_DESCRIPTOR, levels: u32) -> Option<u64> {
    if descriptor.is_null() {
        return None;
    }
    // SAFETY: not null, so the driver reads it too; its format is read as a number.
    let (bytes, flags) = unsafe {
        let format = (&raw const (*descriptor).Format).cast::<u32>().read();
        let extents = [(*descriptor).Width, (*descriptor).Height, (*descriptor).Depth];
        let (channels, flags) = ((*descriptor).NumChannels, (*descriptor).Flags);
        let of_level = |extents| array_bytes(extents, format, channels);
        (level_extents(extents, flags, levels).map(of_level).fold(0, u64::saturating_add), flags)
    };
    // Nothing is behind it until the application maps what it made elsewhere, which is counted there.
    Some(if flags & (SPARSE | DEFERRED) == 0 { bytes } else { 0 })
}

/// `CUDA_ARRAY3D_LAYERED`, `_CUBEMAP`, `_SPARSE`.
const LAYERED: u32 = 0x01;
const CUBEMAP: u32 = 0x04;
const SPARSE: u32 = 0x40;

/// The extents of each level, each half of those before. There are no more levels than the longest extent can be halved.
fn level_extents(extents: [usize; 3], flags: u32, levels: u32) -> impl Iterator<Item = [usize; 3]> {
    let layers = flags & (LAYERED | CUBEMAP) != 0;
    let halved = if layers { &extents[..2] } else { &extents[..] };
    let most = halved.iter().max().and_then(|longest| longest.checked_ilog2()).map_or(1, |halves| 1 + halves);
    let [width, height, depth] = extents;
    (0..levels.clamp(1, most)).map(move |level| {
        let depth = if layers { depth } else { depth >> level };
        [width >> level, height >> level, depth]
    })
}

/// What an array takes at least: zero extents count as one; formats as `CUarray_format` numbers them.
fn array_bytes(extents: [usize; 3], format: u32, channels: u32) -> u64 {
    let element = match format {
        0x01 | 0x08 => 1,        // 8-bit integers
        0x03 | 0x0a | 0x20 => 4, // 32-bit integers, float
        _ => 2,                  // 16-bit integers, half, and a guess for packed and compressed formats
    };
    let factors =
        extents.iter().map(|extent| (*extent).max(1) as u64).chain([element, u64::from(channels.max(1))]);
    factors.fold(1, u64::saturating_mul)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_counts_all_its_elements_and_a_missing_extent_as_one() {
        assert_eq!(array_bytes([16, 0, 0], 0x20, 1), 64);
        assert_eq!(array_bytes([16, 16, 4], 0x01, 4), 16 * 16 * 4 * 4);
    }

    #[test]
    fn levels_count_each_and_layers_are_not_halved() {
        let all = |extents, flags, levels| level_extents(extents, flags, levels).collect::<Vec<_>>();
        assert_eq!(all([8, 2, 0], 0, 1), [[8, 2, 0]]);
        assert_eq!(all([8, 2, 0], 0, 99), [[8, 2, 0], [4, 1, 0], [2, 0, 0], [1, 0, 0]]);
        assert_eq!(all([4, 4, 64], LAYERED, 99), [[4, 4, 64], [2, 2, 64], [1, 1, 64]]);
        assert_eq!(all([2, 2, 8], 0, 3), [[2, 2, 8], [1, 1, 4], [0, 0, 2]]);
    }
}

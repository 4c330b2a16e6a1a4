//! Arrays: memory of a device that has a form and no address. It stays on the card, and is booked as long as it lives.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::Bare;
use super::unswappable::{beyond_limit, noted};
use crate::allocation::unswappable;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUDA_ARRAY_DESCRIPTOR, CUDA_ARRAY3D_DESCRIPTOR, CUarray, CUmipmappedArray};
use crate::life;

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
    let bytes = unsafe {
        let format = (&raw const (*descriptor).Format).cast::<u32>().read();
        array_bytes([(*descriptor).Width, (*descriptor).Height, 1], format, (*descriptor).NumChannels)
    };
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
    // SAFETY: the application's own arguments.
    let Some(bytes) = (unsafe { array_3d_bytes(descriptor, levels) }) else { return bare.call() };
    if beyond_limit(bytes) {
        return CUresult::CUDA_ERROR_OUT_OF_MEMORY;
    }
    // SAFETY: the application's own arguments.
    unsafe { noted(bare, MIPMAPPED, array, |array| array.addr() as u64, bytes) }
}

pub(crate) unsafe fn array_destroy<F: Fn() -> CUresult>(bare: &Bare<F>, array: CUarray) -> CUresult {
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
    let result = bare.call();
    if result.ok() && life::active() {
        unswappable::gave_back(MIPMAPPED, array.addr() as u64);
    }
    result
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
    Some(if flags & (SPARSE | DEFERRED_MAPPING) == 0 { bytes } else { 0 })
}

/// `CUDA_ARRAY3D_LAYERED`, `_CUBEMAP`, `_SPARSE`, `_DEFERRED_MAPPING`.
const LAYERED: u32 = 0x01;
const CUBEMAP: u32 = 0x04;
const SPARSE: u32 = 0x40;
const DEFERRED_MAPPING: u32 = 0x80;

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

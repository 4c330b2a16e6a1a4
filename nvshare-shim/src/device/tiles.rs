//! The driver calls that put memory behind arrays whose mapping is deferred (`cuda.h`: it is a tile pool of the card, and of it the
//! whole array). What an H200 answers is in docs/driver-assumptions.md.

#![expect(unsafe_code, reason = "the driver is called")]

use super::Device;
use crate::cuda::{CUresult, sys};
use crate::driver::{Symbol, driver};
use crate::memory::arrays::{Name, Part, Placed};

/// `CUDA_ARRAY3D_DEFERRED_MAPPING`.
pub const DEFERRED: u32 = 0x80;
/// `CU_DEVICE_ATTRIBUTE_DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED`.
const SUPPORTED: u32 = 121;

/// Whether the device has such arrays.
pub fn are_supported(device: &Device) -> bool {
    let mut value = 0;
    driver().has(Symbol::cuArrayGetMemoryRequirements)
        && driver().has(Symbol::cuMemMapArrayAsync)
        // SAFETY: `value` is where the answer goes.
        && unsafe { driver().cuDeviceGetAttribute(&raw mut value, SUPPORTED, device.kind.ordinal) }.ok()
        && value != 0
}

/// As the driver knows an array.
pub fn array(number: u64) -> sys::CUarray {
    std::ptr::with_exposed_provenance_mut(number as usize)
}

fn mipmapped(number: u64) -> sys::CUmipmappedArray {
    std::ptr::with_exposed_provenance_mut(number as usize)
}

/// `CUDA_ARRAY3D_DESCRIPTOR`, with a number where that has an enum: it may be newer than this build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Form {
    /// Width, height, depth, in elements; zero for those that it does not have.
    pub extents: [usize; 3],
    /// `CUarray_format`.
    pub format: u32,
    /// Of an element.
    pub channels: u32,
    /// `CUDA_ARRAY3D_*`.
    pub flags: u32,
}

impl Form {
    /// The bytes of all its elements, if bytes of this form can be told apart.
    pub fn bytes(&self) -> Option<u64> {
        let element = element_bytes(self.format, self.channels)?;
        self.extents.iter().try_fold(element, |bytes, extent| bytes.checked_mul((*extent).max(1) as u64))
    }
}

/// Makes an array, with so many levels if it is a mipmapped one, with nothing behind it.
pub fn make(form: Form, levels: Option<u32>) -> Result<Name, CUresult> {
    let form = Form { flags: form.flags | DEFERRED, ..form };
    let form = (&raw const form).cast::<sys::CUDA_ARRAY3D_DESCRIPTOR>();
    if let Some(levels) = levels {
        let mut made = std::ptr::null_mut();
        // SAFETY: a place for the handle, and a description that lives through the call.
        unsafe { driver().cuMipmappedArrayCreate(&raw mut made, form, levels) }.result()?;
        return Ok(Name::Mipmapped(made.expose_provenance() as u64));
    }
    let mut made = std::ptr::null_mut();
    // SAFETY: the same.
    unsafe { driver().cuArray3DCreate_v2(&raw mut made, form) }.result()?;
    Ok(Name::Array(made.expose_provenance() as u64))
}

/// How much memory it needs.
pub fn needs(name: Name, ordinal: sys::CUdevice) -> Result<u64, CUresult> {
    let mut needs = sys::CUDA_ARRAY_MEMORY_REQUIREMENTS { size: 0, alignment: 0, reserved: [0; 4] };
    // SAFETY: a place for the answer, and an array that lives.
    unsafe {
        match name {
            Name::Array(number) => {
                driver().cuArrayGetMemoryRequirements(&raw mut needs, array(number), ordinal)
            }
            Name::Mipmapped(number) => {
                driver().cuMipmappedArrayGetMemoryRequirements(&raw mut needs, mipmapped(number), ordinal)
            }
        }
    }
    .result()?;
    Ok(needs.size as u64)
}

/// Its levels, of at most so many; `None`: bytes of this form cannot be told apart.
pub fn parts(name: Name, levels: u32) -> Option<Vec<Part>> {
    let Name::Mipmapped(number) = name else {
        let Name::Array(number) = name else { return None };
        return Some(vec![part(number)?]);
    };
    let mut parts = Vec::new();
    for level in 0..levels {
        let mut made = std::ptr::null_mut();
        // SAFETY: a place for the handle.
        let got = unsafe { driver().cuMipmappedArrayGetLevel(&raw mut made, mipmapped(number), level) };
        if !got.ok() {
            break;
        }
        parts.push(part(made.expose_provenance() as u64)?);
    }
    (!parts.is_empty()).then_some(parts)
}

fn part(number: u64) -> Option<Part> {
    let mut form = Form::default();
    // SAFETY: a place for the answer, of its layout.
    unsafe { driver().cuArray3DGetDescriptor_v2((&raw mut form).cast(), array(number)) }.result().ok()?;
    let [width, rows, slices] = form.extents.map(|extent| extent.max(1) as u64);
    let row = width.checked_mul(element_bytes(form.format, form.channels)?)?;
    Some(Part { array: number, row, rows, slices })
}

/// Bytes of an element, of formats whose rows are copied as rows of elements: `CUarray_format`.
fn element_bytes(format: u32, channels: u32) -> Option<u64> {
    let channels = u64::from(channels);
    match format {
        0x01 | 0x08 => Some(channels),
        0x02 | 0x09 | 0x10 => Some(2 * channels),
        0x03 | 0x0a | 0x20 => Some(4 * channels),
        // Normalised integers have their number of channels in their names: 8 bits times 1, 2, 4, then 16 bits.
        0xc0..=0xcb => Some([1, 2, 4, 2, 4, 8][(format - 0xc0) as usize % 6]),
        _ => None,
    }
}

/// Puts the memory of a handle behind an array, or takes away what is behind it. Returns when it is so.
///
/// # Safety
/// The array and its stream live, and nothing uses it; the handle is one of a tile pool of its card, and large enough.
pub unsafe fn put(placed: &Placed, ordinal: sys::CUdevice, handle: Option<u64>) -> Result<(), CUresult> {
    let mut one = std::mem::MaybeUninit::<sys::CUarrayMapInfo>::zeroed();
    let info = one.as_mut_ptr();
    let stream = std::ptr::with_exposed_provenance_mut(placed.stream);
    // SAFETY: the description is zeroed, which is valid for each of its fields, and filled in; the rest is the caller's promise.
    unsafe {
        match placed.name {
            Name::Array(number) => {
                (*info).resourceType = sys::CUresourcetype::CU_RESOURCE_TYPE_ARRAY;
                (*info).resource.array = array(number);
            }
            Name::Mipmapped(number) => {
                (*info).resourceType = sys::CUresourcetype::CU_RESOURCE_TYPE_MIPMAPPED_ARRAY;
                (*info).resource.mipmap = mipmapped(number);
            }
        }
        (*info).memOperationType = match handle {
            Some(_) => sys::CUmemOperationType::CU_MEM_OPERATION_TYPE_MAP,
            None => sys::CUmemOperationType::CU_MEM_OPERATION_TYPE_UNMAP,
        };
        (*info).memHandle.memHandle = handle.unwrap_or(0);
        (*info).deviceBitMask = 1 << ordinal;
        driver().cuMemMapArrayAsync(info, 1, stream).result()?;
        driver().cuStreamSynchronize(stream).result()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_laid_out_as_the_driver_reads_it() {
        type Theirs = sys::CUDA_ARRAY3D_DESCRIPTOR;
        assert_eq!(size_of::<Form>(), size_of::<Theirs>());
        assert_eq!(std::mem::offset_of!(Form, format), std::mem::offset_of!(Theirs, Format));
        assert_eq!(std::mem::offset_of!(Form, flags), std::mem::offset_of!(Theirs, Flags));
    }

    #[test]
    fn elements_have_the_bytes_of_their_channels() {
        let bytes = |format, channels| element_bytes(format, channels);
        assert_eq!([bytes(0x01, 4), bytes(0x10, 2), bytes(0x20, 4)], [4, 4, 16].map(Some));
        assert_eq!([bytes(0xc2, 4), bytes(0xc5, 4), bytes(0xc6, 1)], [4, 8, 1].map(Some));
        assert_eq!(bytes(0xb0, 3), None, "planes");
    }
}

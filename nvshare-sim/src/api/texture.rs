//! Texture and surface objects: made, asked, destroyed.

use cudarc::driver::sys::{CUarray, CUmipmappedArray, CUresult};

use crate::array::{Array, Levelled, component};
use crate::call::Outcome;
use crate::device;
use crate::export::export;
use crate::parameters::{In, Out};
use crate::texture::{self, Part, Reading, Resource, View};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CU_RESOURCE_TYPE_ARRAY`, `_MIPMAPPED_ARRAY`, `_LINEAR`, `_PITCH2D`.
const ARRAY: u32 = 0;
const LEVELLED: u32 = 1;
const LINEAR: u32 = 2;
const PITCHED: u32 = 3;

/// Attributes: the alignment of textures and of their pitch, the most elements in a row, and the most columns, rows and bytes
/// from one row to the next.
const ALIGNMENT: u32 = 14;
const PITCH_ALIGNMENT: u32 = 51;
const MOST_LINEAR: u32 = 69;
const MOST_PITCHED: [u32; 3] = [70, 71, 72];

export! {
    fn cuTexObjectCreate(
        made: Out<u64>, resource: In<Resource>, reading: In<Reading>, part: In<Part>,
    ) |cx| {
        let (resource, reading, part) = (resource.get()?, reading.get()?, part.given());
        made.needed()?;
        let context = cx.context()?;
        check(resource)?;
        let reads_well = reading[..3].iter().all(|mode| *mode <= 3) && reading[3] <= 1;
        if !reads_well || (part.is_some() && resource.kind > LEVELLED) {
            return Err(INVALID);
        }
        let (reading, part) = (Some(*reading), part.copied());
        let object = texture::add(&View { context: context.id, resource: *resource, reading, part });
        made.set(object)
    }

    fn cuTexObjectDestroy(object: u64) |cx| {
        texture::get(object, true).ok_or(INVALID)?;
        texture::remove(object);
        Ok(())
    }

    fn cuTexObjectGetResourceDesc(resource: Out<Resource>, object: u64) |cx| {
        resource.set(texture::get(object, true).ok_or(INVALID)?.resource)
    }

    fn cuTexObjectGetTextureDesc(reading: Out<Reading>, object: u64) |cx| {
        let known = texture::get(object, true).and_then(|view| view.reading);
        reading.set(known.ok_or(INVALID)?)
    }

    fn cuTexObjectGetResourceViewDesc(part: Out<Part>, object: u64) |cx| {
        // One that was made without has none.
        let known = texture::get(object, true).and_then(|view| view.part);
        part.set(known.ok_or(INVALID)?)
    }

    fn cuSurfObjectCreate(made: Out<u64>, resource: In<Resource>) |cx| {
        let resource = resource.get()?;
        made.needed()?;
        let context = cx.context()?;
        check(resource)?;
        let array = (resource.kind == ARRAY).then(|| Array::by_handle(resource.of as CUarray)).flatten();
        if !array.is_some_and(|array| array.takes_surfaces()) {
            return Err(INVALID);
        }
        let object =
            texture::add(&View { context: context.id, resource: *resource, reading: None, part: None });
        made.set(object)
    }

    fn cuSurfObjectDestroy(object: u64) |cx| {
        texture::get(object, false).ok_or(INVALID)?;
        texture::remove(object);
        Ok(())
    }

    fn cuSurfObjectGetResourceDesc(resource: Out<Resource>, object: u64) |cx| {
        resource.set(texture::get(object, false).ok_or(INVALID)?.resource)
    }
}

/// Whether there can be a view of it. An address is taken as it is, whatever is there (seen on an H200).
fn check(resource: &Resource) -> Outcome {
    let most = |attribute: u32| device::attribute(0, attribute).unwrap_or(0) as u64;
    let of_memory = || -> Outcome<u64> {
        let [format, channels] = resource.element;
        let element = component(format)? * u64::from(channels);
        let aligned = resource.of != 0 && resource.of.is_multiple_of(most(ALIGNMENT));
        if aligned && matches!(channels, 1 | 2 | 4) { Ok(element) } else { Err(INVALID) }
    };
    let [width, height, pitch] = resource.lengths;
    let good = resource.flags == 0
        && match resource.kind {
            ARRAY => Array::by_handle(resource.of as CUarray).is_some(),
            LEVELLED => Levelled::by_handle(resource.of as CUmipmappedArray).is_some(),
            LINEAR => width > 0 && width / of_memory()? <= most(MOST_LINEAR),
            PITCHED => {
                let fits = of_memory()?.checked_mul(width).is_some_and(|row| row <= pitch);
                let within = [width, height, pitch].into_iter().zip(MOST_PITCHED);
                fits && width > 0
                    && height > 0
                    && pitch.is_multiple_of(most(PITCH_ALIGNMENT))
                    && within.into_iter().all(|(length, attribute)| length <= most(attribute))
            }
            _ => false,
        };
    if good { Ok(()) } else { Err(INVALID) }
}

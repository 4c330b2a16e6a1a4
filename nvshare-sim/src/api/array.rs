//! Arrays, with levels and without: made, asked, destroyed.

use std::ffi::c_uint;
use std::sync::Arc;

use cudarc::driver::sys::{CUarray, CUdevice, CUmipmappedArray, CUresult};

use crate::array::{Array, Form, Levelled};
use crate::call::{Call, Outcome};
use crate::device;
use crate::export::export;
use crate::memory::space::Area;
use crate::memory::tiles::TILE_BYTES;
use crate::parameters::{In, Out};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CUDA_ARRAY_DESCRIPTOR`, with a plain number where it has an enum.
#[repr(C)]
pub(super) struct Flat {
    width: usize,
    height: usize,
    format: u32,
    channels: u32,
}

/// `CUDA_ARRAY_MEMORY_REQUIREMENTS`.
#[repr(C)]
pub(super) struct Requirements {
    size: usize,
    alignment: usize,
    reserved: [u32; 4],
}

export! {
    fn cuArrayCreate_v2(made: Out<CUarray>, form: In<Flat>) |cx| {
        let Flat { width, height, format, channels } = *form.get()?;
        create(cx, made, Form { width, height, depth: 0, format, channels, flags: 0 })
    }

    fn cuArray3DCreate_v2(made: Out<CUarray>, form: In<Form>) |cx| {
        create(cx, made, *form.get()?)
    }

    fn cuArrayDestroy(array: CUarray) |cx| {
        cx.context()?;
        crate::execution::capture::unsafe_call()?;
        Array::destroy(array)
    }

    fn cuArrayGetDescriptor_v2(form: Out<Flat>, array: CUarray) |cx| {
        let Form { width, height, format, channels, .. } = asked(cx, array)?;
        form.set(Flat { width, height, format, channels })
    }

    fn cuArray3DGetDescriptor_v2(form: Out<Form>, array: CUarray) |cx| {
        let known = asked(cx, array)?;
        form.set(known)
    }

    fn cuArrayGetMemoryRequirements(requirements: Out<Requirements>, array: CUarray, of: CUdevice) |cx| {
        device::index(of)?;
        let array = Array::by_handle(array).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        requirements.set(required(array.deferred())?)
    }

    fn cuMipmappedArrayCreate(made: Out<CUmipmappedArray>, form: In<Form>, levels: c_uint) |cx| {
        let form = *form.get()?;
        made.needed()?;
        let context = cx.context()?;
        crate::execution::capture::unsafe_call()?;
        context.jam.pass();
        let array = Levelled::create(&context, form, levels)?;
        made.set(array)
    }

    fn cuMipmappedArrayGetLevel(level: Out<CUarray>, array: CUmipmappedArray, number: c_uint) |cx| {
        cx.context()?;
        let whole = Levelled::by_handle(array).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        level.set(whole.level(number).ok_or(INVALID)?)
    }

    fn cuMipmappedArrayDestroy(array: CUmipmappedArray) |cx| {
        cx.context()?;
        crate::execution::capture::unsafe_call()?;
        Levelled::destroy(array)
    }

    fn cuMipmappedArrayGetMemoryRequirements(
        requirements: Out<Requirements>, array: CUmipmappedArray, of: CUdevice,
    ) |cx| {
        device::index(of)?;
        let whole = Levelled::by_handle(array).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        requirements.set(required(whole.deferred())?)
    }
}

fn create(cx: &Call, made: Out<CUarray>, form: Form) -> Outcome {
    made.needed()?;
    let context = cx.context()?;
    crate::execution::capture::unsafe_call()?;
    context.jam.pass();
    let array = Array::create(&context, form)?;
    made.set(array)
}

fn asked(cx: &Call, array: CUarray) -> Outcome<Form> {
    cx.context()?;
    Ok(Array::by_handle(array).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?.form)
}

/// Only arrays with `CUDA_ARRAY3D_DEFERRED_MAPPING` have requirements.
fn required(memory: Option<&Arc<Area>>) -> Outcome<Requirements> {
    let size = memory.ok_or(INVALID)?.bytes as usize;
    Ok(Requirements { size, alignment: TILE_BYTES as usize, reserved: [0; 4] })
}

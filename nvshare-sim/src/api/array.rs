//! Arrays, with levels and without: made, asked, destroyed.

use std::ffi::c_uint;

use cudarc::driver::sys::{CUarray, CUdevice, CUmipmappedArray, CUresult};

use crate::array::{Array, Form, Levelled};
use crate::device;
use crate::export::{Call, Outcome, export, put};

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
    fn cuArrayCreate_v2(made: *mut CUarray, form: *const Flat) |cx| {
        // SAFETY: null, or a descriptor as the driver API demands it.
        let Some(form) = (unsafe { form.as_ref() }) else { return Err(INVALID) };
        let Flat { width, height, format, channels } = *form;
        create(cx, made, Form { width, height, depth: 0, format, channels, flags: 0 })
    }

    fn cuArray3DCreate_v2(made: *mut CUarray, form: *const Form) |cx| {
        // SAFETY: null, or a descriptor as the driver API demands it.
        let form = unsafe { form.as_ref() }.ok_or(INVALID)?;
        create(cx, made, *form)
    }

    fn cuArrayDestroy(array: CUarray) |cx| {
        cx.context()?;
        crate::capture::unsafe_call()?;
        Array::destroy(array)
    }

    fn cuArrayGetDescriptor_v2(form: *mut Flat, array: CUarray) |cx| {
        let Form { width, height, format, channels, .. } = asked(cx, array)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(form, Flat { width, height, format, channels }) }
    }

    fn cuArray3DGetDescriptor_v2(form: *mut Form, array: CUarray) |cx| {
        let known = asked(cx, array)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(form, known) }
    }

    fn cuArrayGetMemoryRequirements(requirements: *mut Requirements, array: CUarray, of: CUdevice) |cx| {
        device::index(of)?;
        Array::by_handle(array).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        not_deferred()
    }

    fn cuMipmappedArrayCreate(made: *mut CUmipmappedArray, form: *const Form, levels: c_uint) |cx| {
        // SAFETY: null, or a descriptor as the driver API demands it.
        let form = *unsafe { form.as_ref() }.ok_or(INVALID)?;
        if made.is_null() {
            return Err(INVALID);
        }
        let context = cx.context()?;
        crate::capture::unsafe_call()?;
        context.jam.pass();
        let array = Levelled::create(&context, form, levels)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(made, array) }
    }

    fn cuMipmappedArrayGetLevel(level: *mut CUarray, array: CUmipmappedArray, number: c_uint) |cx| {
        cx.context()?;
        let whole = Levelled::by_handle(array).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(level, whole.level(number).ok_or(INVALID)?) }
    }

    fn cuMipmappedArrayDestroy(array: CUmipmappedArray) |cx| {
        cx.context()?;
        crate::capture::unsafe_call()?;
        Levelled::destroy(array)
    }

    fn cuMipmappedArrayGetMemoryRequirements(
        requirements: *mut Requirements, array: CUmipmappedArray, of: CUdevice,
    ) |cx| {
        device::index(of)?;
        Levelled::by_handle(array).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        not_deferred()
    }
}

fn create(cx: &Call, made: *mut CUarray, form: Form) -> Outcome {
    if made.is_null() {
        return Err(INVALID);
    }
    let context = cx.context()?;
    crate::capture::unsafe_call()?;
    context.jam.pass();
    let array = Array::create(&context, form)?;
    // SAFETY: an out-parameter of the driver API.
    unsafe { put(made, array) }
}

fn asked(cx: &Call, array: CUarray) -> Outcome<Form> {
    cx.context()?;
    Ok(Array::by_handle(array).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?.form)
}

/// Only arrays with `CUDA_ARRAY3D_DEFERRED_MAPPING` have requirements, and this device takes none.
fn not_deferred() -> Outcome {
    Err(INVALID)
}

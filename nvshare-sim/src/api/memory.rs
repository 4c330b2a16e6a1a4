//! Plain device memory.

use std::ffi::c_uint;

use cudarc::driver::sys::{CUdeviceptr, CUresult};

use crate::call::Outcome;
use crate::device::card;
use crate::export::export;
use crate::memory::space::{self, Kind};
use crate::memory::{mapping, plain};
use crate::parameters::{Maybe, Out};

/// Rows of a pitched allocation start at multiples of this.
const PITCH: usize = 512;

/// First address and size of what contains an address: an allocation, or one mapping.
fn range_of(address: u64) -> Outcome<(u64, u64)> {
    let none = CUresult::CUDA_ERROR_NOT_FOUND;
    let area = space::find(address).ok_or(none)?;
    match area.kind {
        Kind::Reserved(_) => {
            mapping::look(address).map(|mapping| (mapping.start, mapping.bytes)).map_err(|_| none)
        }
        _ => Ok((area.start, area.bytes)),
    }
}

export! {
    fn cuMemAlloc_v2(pointer: Out<CUdeviceptr>, bytes: usize) |cx| {
        pointer.needed()?;
        let context = cx.context()?;
        crate::execution::capture::unsafe_call()?;
        context.jam.pass();
        let area = plain::allocate(&context, bytes as u64)?;
        pointer.set(area.start)
    }

    fn cuMemAllocPitch_v2(
        pointer: Out<CUdeviceptr>, pitch: Out<usize>, width: usize, height: usize, element: c_uint,
    ) |cx| {
        pointer.needed()?;
        pitch.needed()?;
        let context = cx.context()?;
        crate::execution::capture::unsafe_call()?;
        if width == 0 || height == 0 || !matches!(element, 4 | 8 | 16) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(PITCH).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        let bytes = row.checked_mul(height).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        context.jam.pass();
        let area = plain::allocate(&context, bytes as u64)?;
        pitch.set(row)?;
        pointer.set(area.start)
    }

    fn cuMemFree_v2(pointer: CUdeviceptr) |cx| {
        // Without a current context it works as well; one that failed answers with its error.
        if let Some(context) = crate::context::current() {
            context.usable()?;
        }
        if pointer == 0 {
            return Ok(());
        }
        crate::execution::capture::unsafe_call()?;
        plain::free(pointer)
    }

    fn cuMemGetAddressRange_v2(start: Maybe<CUdeviceptr>, bytes: Maybe<usize>, address: CUdeviceptr) |cx| {
        cx.context()?;
        let (first, size) = range_of(address)?;
        start.set(first);
        bytes.set(size as usize);
        Ok(())
    }

    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) |cx| {
        let context = cx.context()?;
        free.set(card().free_bytes(context.device) as usize)?;
        total.set(card().config().card_bytes as usize)
    }
}

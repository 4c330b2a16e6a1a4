//! Memory of the application's own handles that is bound to other things, which keep its physical pages: multicast objects, endpoints,
//! arrays. It stays on the device from then on.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::virtuals::{Given, INVALID, OURS, error_for_good, given, with_pieces};
use super::{Bare, work};
use crate::allocation::virtuals::Held;
use crate::cuda::CUresult;
use crate::cuda::sys::{CUarrayMapInfo, CUdevice, CUmemGenericAllocationHandle, CUstream};
use crate::driver::driver;
use crate::memory::arrays::{self, Name};
use crate::memory::virtuals;

/// Memory is bound to an object that keeps its physical pages: `bind` binds the part of a piece (its handle, how far into it, how
/// long) that belongs so far into the object.
fn bound<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: CUmemGenericAllocationHandle,
    offset: u64,
    bytes: u64,
    bind: impl Fn(u64, u64, u64, u64) -> CUresult,
) -> CUresult {
    match given(bare, handle) {
        Given::Foreign => bare.call(),
        Given::Nothing(code) => code,
        Given::Ours(held) => with_pieces(bare, &held, |pieces| {
            if let [piece] = pieces {
                let result = bind(piece.handle, offset, bytes, 0);
                if result.ok() {
                    held.stays();
                }
                return result;
            }
            let end = offset.saturating_add(bytes);
            if end > held.handle.bytes {
                return INVALID;
            }
            for piece in pieces {
                let (from, to) = (offset.max(piece.offset), end.min(piece.offset + piece.bytes));
                if from >= to {
                    continue;
                }
                let result = bind(piece.handle, from - piece.offset, to - from, from - offset);
                if !result.ok() {
                    return result;
                }
                // What is bound is bound, whatever comes of the rest.
                held.stays();
            }
            CUresult::CUDA_SUCCESS
        }),
    }
}

pub(crate) unsafe fn bind<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    object: CUmemGenericAllocationHandle,
    object_offset: usize,
    handle: CUmemGenericAllocationHandle,
    offset: usize,
    bytes: usize,
    flags: u64,
) -> CUresult {
    bound(bare, handle, offset as u64, bytes as u64, |handle, offset, bytes, done| {
        let at = object_offset + done as usize;
        // SAFETY: the application's own call, with the handle as the driver knows it.
        unsafe { driver().cuMulticastBindMem(object, at, handle, offset as usize, bytes as usize, flags) }
    })
}

#[expect(clippy::too_many_arguments, reason = "as many as the driver's function has")]
pub(crate) unsafe fn bind_on<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    object: CUmemGenericAllocationHandle,
    device: CUdevice,
    object_offset: usize,
    handle: CUmemGenericAllocationHandle,
    offset: usize,
    bytes: usize,
    flags: u64,
) -> CUresult {
    bound(bare, handle, offset as u64, bytes as u64, |handle, offset, bytes, done| {
        let (at, offset, bytes) = (object_offset + done as usize, offset as usize, bytes as usize);
        // SAFETY: the application's own call, with the handle as the driver knows it.
        unsafe { driver().cuMulticastBindMem_v2(object, device, at, handle, offset, bytes, flags) }
    })
}

#[expect(clippy::too_many_arguments, reason = "as many as the driver's function has")]
pub(crate) unsafe fn bind_to_endpoint<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    object: u32,
    device: CUdevice,
    object_offset: u64,
    handle: CUmemGenericAllocationHandle,
    offset: u64,
    bytes: u64,
    flags: u64,
) -> CUresult {
    bound(bare, handle, offset, bytes, |handle, offset, bytes, done| {
        // SAFETY: the application's own call, with the handle as the driver knows it.
        unsafe {
            driver().cuLogicalEndpointBindMem(
                object,
                device,
                object_offset + done,
                handle,
                offset,
                bytes,
                flags,
            )
        }
    })
}

/// Whether what an entry names is an array that the engine moves.
fn is_moved(entry: *const CUarrayMapInfo) -> bool {
    // SAFETY: the driver would read it too; a kind that is newer than this build is read as a number, and both names are pointers.
    let (kind, name) = unsafe {
        (
            (&raw const (*entry).resourceType).cast::<u32>().read(),
            (&raw const (*entry).resource).cast::<u64>().read(),
        )
    };
    arrays::look().has(if kind == 0 { Name::Array(name) } else { Name::Mipmapped(name) })
}

/// Memory is put behind arrays, in the order of a stream: it stays where it is.
pub(crate) unsafe fn map_arrays<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    list: *mut CUarrayMapInfo,
    count: u32,
    stream: CUstream,
) -> CUresult {
    if !list.is_null()
        && arrays::are_there()
        && (0..count as usize).any(|index| is_moved(list.wrapping_add(index)))
    {
        // Bare nothing is mapped to an array that has its memory.
        bare.keep_from_driver();
        return INVALID;
    }
    let count = if list.is_null() || !virtuals::are_there() { 0 } else { count as usize };
    let handle_of = |index: usize| {
        // SAFETY: not null, so the driver would read so many too; only the handle's place is read.
        unsafe { (&raw const (*list.add(index)).memHandle).cast::<CUmemGenericAllocationHandle>().read() }
    };
    if (0..count).all(|index| handle_of(index) & OURS == 0) {
        // SAFETY: the application's own arguments.
        return unsafe { work::at_addresses(bare, stream) };
    }
    bare.keep_from_driver();
    let held: Option<Vec<Option<Held>>> = (0..count)
        .map(|index| match given(bare, handle_of(index)) {
            Given::Foreign => Some(None),
            Given::Ours(held) => Some(Some(held)),
            Given::Nothing(_) => None,
        })
        .collect();
    let Some(held) = held else { return INVALID };
    let in_stream = bare.stream(stream);
    let attempt = || {
        let mut copies: Vec<std::mem::MaybeUninit<CUarrayMapInfo>> = Vec::with_capacity(count);
        for (index, held) in held.iter().enumerate() {
            let mut copy = std::mem::MaybeUninit::uninit();
            // SAFETY: as above; its bytes are copied whatever they mean.
            unsafe { std::ptr::copy_nonoverlapping(list.add(index), copy.as_mut_ptr(), 1) };
            if let Some(held) = held {
                let Some(pieces) = held.pieces() else { return error_for_good() };
                let info = copy.as_mut_ptr();
                // SAFETY: fields of the copy, both eight bytes.
                unsafe {
                    let offset = (&raw mut (*info).offset).cast::<u64>();
                    let Some(piece) = pieces.iter().rfind(|piece| piece.offset <= offset.read()) else {
                        return INVALID;
                    };
                    offset.write(offset.read() - piece.offset);
                    (&raw mut (*info).memHandle).cast::<u64>().write(piece.handle);
                }
                held.stays();
            }
            copies.push(copy);
        }
        // SAFETY: the application's own call, with the handles as the driver knows them.
        unsafe { driver().cuMemMapArrayAsync(copies.as_mut_ptr().cast(), count as u32, in_stream) }
    };
    // SAFETY: the application's own stream.
    unsafe { work::at_addresses(&bare.instead(attempt), stream) }
}

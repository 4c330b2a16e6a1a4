//! Memory that the application maps itself: what `cuMemCreate` answers is a handle of ours ([`allocation::virtuals`](crate::allocation::virtuals)), so every call
//! that is given one is made here, with what the driver knows it by. Such calls pass the gate: inside all memory is on the device
//! and stays where it is, so that the driver judges them, and what it agrees to is written down. Handles that are the driver's own
//! (imports, memory of other kinds or places) pass by: [`super::unswappable`].

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use std::ffi::c_void;

use super::{Bare, between, questions, room, unswappable};
use crate::allocation::virtuals::{self as memory, Held, Piece};
use crate::cuda::sys::{CUdeviceptr, CUmemAccessDesc, CUmemAllocationProp, CUmemGenericAllocationHandle};
use crate::cuda::{CEnum, CUresult};
use crate::driver::driver;
use crate::memory::virtuals::{self, Access, Asked};
use crate::{device, life, turn};

pub(super) const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;
/// `CU_MEM_ALLOCATION_TYPE_PINNED`, `CU_MEM_LOCATION_TYPE_DEVICE` and `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const PINNED: u32 = 1;
const DEVICE: u32 = 1;
const DESCRIPTOR: u32 = 1;
/// What sets handles of ours apart from the driver's, which are addresses on its heap.
pub(super) const OURS: u64 = 1 << 63;

/// `CUmemAllocationProp`, with plain numbers where it has enums.
#[repr(C)]
struct Properties {
    kind: u32,
    types: u32,
    place: u32,
    id: i32,
    security: *mut c_void,
    compression: u8,
    rdma: u8,
    usage: u16,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<Properties>() == size_of::<CUmemAllocationProp>());

impl Properties {
    /// What is asked for, if the engine can move memory like that.
    fn asked(&self) -> Option<Asked> {
        let is_plain = self.kind == PINNED
            && self.place == DEVICE
            && self.types & !DESCRIPTOR == 0
            && self.security.is_null()
            && (self.compression, self.usage, self.reserved) == (0, 0, [0; 4])
            && self.rdma <= 1;
        let asked = Asked { types: self.types, rdma: self.rdma == 1, tiles: false };
        let kind = device::of_ordinal(self.id).filter(|_| is_plain)?.kind;
        ((kind.rdma || !asked.rdma) && (kind.is_exportable() || !asked.is_exportable())).then_some(asked)
    }
}

pub(crate) unsafe fn create<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: *mut CUmemGenericAllocationHandle,
    bytes: usize,
    property: *const CUmemAllocationProp,
    flags: u64,
) -> CUresult {
    if life::active() && !property.is_null() && !handle.is_null() && flags == 0 {
        // SAFETY: the driver would read it too, and it has this layout.
        let properties = unsafe { &*property.cast::<Properties>() };
        if let Some(asked) = properties.asked()
            && let Some(created) = memory::create(properties.id, bytes as u64, asked)
        {
            return match created {
                Ok(number) => {
                    // SAFETY: the application's place for the handle.
                    unsafe { handle.write(number) };
                    CUresult::CUDA_SUCCESS
                }
                Err(code) => code,
            };
        }
    }
    // SAFETY: the application's own arguments.
    unsafe { unswappable::create(bare, handle, bytes, property) }
}

/// A handle that a call is made with.
pub(super) enum Given {
    /// The driver's, or nonsense.
    Foreign,
    Ours(Held),
    /// One of ours that stands for nothing (any more), or in a child of a fork.
    Nothing(CUresult),
}

/// Whose it is. One of ours never gets to the driver, for which it is an address.
pub(super) fn given<F: Fn() -> CUresult>(bare: &Bare<F>, handle: CUmemGenericAllocationHandle) -> Given {
    if handle & OURS == 0 {
        return Given::Foreign;
    }
    bare.keep_from_driver();
    if !life::active() {
        return Given::Nothing(CUresult::CUDA_ERROR_NOT_INITIALIZED);
    }
    memory::hold(handle).map_or(Given::Nothing(INVALID), Given::Ours)
}

/// Makes the call with the pieces of a handle, and again after room was made where the driver lacks memory.
pub(super) fn with_pieces<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    held: &Held,
    call: impl Fn(&[Piece]) -> CUresult,
) -> CUresult {
    let attempt = || {
        let _pass = turn::pass();
        held.pieces().map_or_else(error_for_good, |pieces| call(&pieces))
    };
    let real = bare.instead(attempt);
    room::again(&real, real.call(), None, None, || real.call())
}

/// What all calls answer since the device failed: else whoever has passed the gate finds its memory there.
pub(super) fn error_for_good() -> CUresult {
    let (mut free, mut total) = (0, 0);
    // SAFETY: places for the two answers.
    let answer = unsafe { driver().cuMemGetInfo_v2(&raw mut free, &raw mut total) };
    if answer.ok() { CUresult::CUDA_ERROR_UNKNOWN } else { answer }
}

pub(crate) unsafe fn release<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: CUmemGenericAllocationHandle,
) -> CUresult {
    if handle & OURS == 0 {
        // SAFETY: the application's own arguments.
        return unsafe { unswappable::release(bare, handle) };
    }
    bare.keep_from_driver();
    if !life::active() {
        return CUresult::CUDA_ERROR_NOT_INITIALIZED;
    }
    // After its shutdown the driver answers so, whatever it is asked.
    let mut context = std::ptr::null_mut();
    // SAFETY: `context` is where the answer goes.
    let alive = unsafe { driver().cuCtxGetCurrent(&raw mut context) };
    if alive == CUresult::CUDA_ERROR_DEINITIALIZED {
        return alive;
    }
    memory::release(handle).unwrap_or(INVALID)
}

pub(crate) unsafe fn reserve<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: *mut CUdeviceptr,
    bytes: usize,
) -> CUresult {
    // SAFETY: the application's own arguments.
    let result = unsafe { room::lazy(bare) };
    if result.ok() && !at.is_null() && life::active() {
        // SAFETY: the driver has just stored the address there.
        virtuals::change(|virtuals| virtuals.reserved(unsafe { at.read() }, bytes as u64));
    }
    result
}

/// With something mapped there it is refused, wherever that is now.
pub(crate) unsafe fn unreserve<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: CUdeviceptr,
    bytes: usize,
) -> CUresult {
    if questions::known(at).is_some() || between::is(at) {
        return INVALID;
    }
    if !life::active() {
        return bare.call();
    }
    // Out before: the next who reserves may get the same.
    let taken = virtuals::change(|virtuals| {
        if virtuals.within(at, bytes as u64).next().is_some() {
            return Err(INVALID);
        }
        Ok(virtuals.unreserved(at))
    });
    match taken {
        Err(refused) => refused,
        Ok(reserved) => {
            let result = bare.call();
            if let Some(length) = reserved.filter(|_| !result.ok()) {
                virtuals::change(|virtuals| virtuals.reserved(at, length));
            }
            result
        }
    }
}

pub(crate) unsafe fn map<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: CUdeviceptr,
    bytes: usize,
    offset: usize,
    handle: CUmemGenericAllocationHandle,
    flags: u64,
) -> CUresult {
    if questions::known(at).is_some() || between::is(at) {
        return INVALID;
    }
    match given(bare, handle) {
        // SAFETY: the application's own arguments.
        Given::Foreign => unsafe { unswappable::map(bare, at, bytes, handle) },
        Given::Nothing(code) => code,
        Given::Ours(held) => with_pieces(bare, &held, |pieces| {
            let result = if let [piece] = pieces {
                // SAFETY: the application's own call, with the handle as the driver knows it.
                unsafe { driver().cuMemMap(at, bytes, offset, piece.handle, flags) }
            } else if flags != 0 {
                INVALID
            } else if offset != 0 || bytes as u64 != held.handle.bytes {
                // As of one that is whole to the driver: a part cannot be mapped.
                let device = device::by_index(held.handle.device);
                let is_whole =
                    |value: u64| device.is_none_or(|device| value.is_multiple_of(device.granularity));
                if is_whole(at) && is_whole(bytes as u64) && bytes > 0 {
                    CUresult::CUDA_ERROR_NOT_SUPPORTED
                } else {
                    INVALID
                }
            } else {
                in_pieces(at, pieces)
            };
            if result.ok() {
                // Within the pass: whoever moves it must know.
                held.mapped(at);
            }
            result
        }),
    }
}

/// Maps all pieces, or none.
fn in_pieces(at: CUdeviceptr, pieces: &[Piece]) -> CUresult {
    for piece in pieces {
        // SAFETY: as if the handle were one: the addresses are the application's.
        let mapped =
            unsafe { driver().cuMemMap(at + piece.offset, piece.bytes as usize, 0, piece.handle, 0) };
        if !mapped.ok() {
            if piece.offset > 0 {
                // SAFETY: mapped just now, without access for anybody.
                let _ = unsafe { driver().cuMemUnmap(at, piece.offset as usize) };
            }
            return mapped;
        }
    }
    CUresult::CUDA_SUCCESS
}

/// Whether something of ours is mapped in the range, or where it begins.
fn concerns(at: CUdeviceptr, bytes: usize) -> bool {
    if !life::active() || !virtuals::are_there() {
        return false;
    }
    let virtuals = virtuals::look();
    virtuals.is_mapped(at) || virtuals.within(at, bytes as u64).next().is_some()
}

pub(crate) unsafe fn unmap<F: Fn() -> CUresult>(bare: &Bare<F>, at: CUdeviceptr, bytes: usize) -> CUresult {
    if questions::known(at).is_some() || between::is(at) {
        return INVALID;
    }
    if concerns(at, bytes) && !memory::forget_what_is_out(at, bytes as u64) {
        let _pass = turn::pass();
        let taken = virtuals::change(|virtuals| {
            (!virtuals.is_cut(at, bytes as u64)).then(|| virtuals.take(at, bytes as u64))
        });
        let Some(taken) = taken else { return INVALID };
        // SAFETY: the application's own arguments.
        let result = unsafe { unswappable::unmap(bare, at, bytes) };
        let ended = virtuals::change(|virtuals| {
            if result.ok() {
                virtuals.unmapped(taken)
            } else {
                virtuals.put_back(taken);
                Vec::new()
            }
        });
        ended.iter().for_each(memory::dispose);
        return result;
    }
    // SAFETY: the application's own arguments.
    unsafe { unswappable::unmap(bare, at, bytes) }
}

pub(crate) unsafe fn set_access<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    at: CUdeviceptr,
    bytes: usize,
    granted: *const CUmemAccessDesc,
    count: usize,
) -> CUresult {
    if questions::known(at).is_some() || between::is(at) {
        return INVALID;
    }
    if !concerns(at, bytes) {
        // SAFETY: the application's own arguments.
        return unsafe { room::lazy(bare) };
    }
    let attempt = || {
        let _pass = turn::pass();
        if virtuals::look().is_cut(at, bytes as u64) {
            return INVALID;
        }
        let result = bare.call();
        if result.ok() && !granted.is_null() {
            // SAFETY: the driver has read as many; they have this layout.
            let granted = unsafe { std::slice::from_raw_parts(granted.cast::<Access>(), count) };
            virtuals::change(|virtuals| virtuals.set_access(at, bytes as u64, granted));
        }
        result
    };
    room::again(bare, attempt(), None, None, attempt)
}

/// One more reference to what is mapped there.
pub(crate) unsafe fn retain<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    handle: *mut CUmemGenericAllocationHandle,
    at: *mut c_void,
) -> CUresult {
    let address = at.expose_provenance() as u64;
    if !handle.is_null()
        && life::active()
        && virtuals::are_there()
        && let Some(number) = virtuals::change(|virtuals| virtuals.retained(address))
    {
        // SAFETY: the application's place for the handle.
        unsafe { handle.write(number) };
        return CUresult::CUDA_SUCCESS;
    }
    // SAFETY: the application's own arguments.
    unsafe { questions::retain(bare, handle, at) }
}

/// Whoever gets the descriptor keeps the memory: it stays on the device.
pub(crate) unsafe fn export<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    shareable: *mut c_void,
    handle: CUmemGenericAllocationHandle,
    kind: CEnum,
    flags: u64,
) -> CUresult {
    match given(bare, handle) {
        Given::Foreign => bare.call(),
        Given::Nothing(code) => code,
        Given::Ours(held) => with_pieces(bare, &held, |pieces| {
            let Some(piece) = pieces.first() else { return INVALID };
            // SAFETY: the application's own call, with the handle as the driver knows it: one that may be exported is one piece.
            let result =
                unsafe { driver().cuMemExportToShareableHandle(shareable, piece.handle, kind, flags) };
            if result.ok() {
                held.stays();
            }
            result
        }),
    }
}

pub(crate) unsafe fn properties<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    properties: *mut CUmemAllocationProp,
    handle: CUmemGenericAllocationHandle,
) -> CUresult {
    match given(bare, handle) {
        Given::Foreign => bare.call(),
        Given::Nothing(code) => code,
        Given::Ours(held) => {
            let Some(device) = device::by_index(held.handle.device).filter(|_| !properties.is_null()) else {
                return INVALID;
            };
            // SAFETY: the application's place for them.
            unsafe { properties.write(device.kind.properties(held.handle.asked)) };
            CUresult::CUDA_SUCCESS
        }
    }
}

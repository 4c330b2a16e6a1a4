//! Copies that are described: rows, slices of rows, boxes. Their ends are the host's memory, a device's, or arrays.

use cudarc::driver::sys::{CUarray, CUcontext, CUresult};

use super::copy::not_null;
use crate::array::Array;
use crate::call::Outcome;
use crate::context;
use crate::execution::work::{Plane, Transfer, device_end};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CU_MEMORYTYPE_HOST`, `_DEVICE`, `_ARRAY`, `_UNIFIED`.
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;
const UNIFIED: u32 = 4;

/// `CUDA_MEMCPY2D`, with plain numbers where it has enums.
#[repr(C)]
pub(crate) struct Rows {
    from: RowEnd,
    to: RowEnd,
    width: usize,
    height: usize,
}

#[repr(C)]
struct RowEnd {
    x: usize,
    y: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: CUarray,
    pitch: usize,
}

/// `CUDA_MEMCPY3D` and `CUDA_MEMCPY3D_PEER`, with plain numbers where they have enums.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Slices {
    from: SliceEnd,
    to: SliceEnd,
    width: usize,
    height: usize,
    depth: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SliceEnd {
    x: usize,
    y: usize,
    z: usize,
    lod: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: CUarray,
    context: CUcontext,
    pitch: usize,
    height: usize,
}

/// `CUDA_MEMCPY3D_BATCH_OP`.
#[repr(C)]
pub(crate) struct Boxes {
    from: BoxEnd,
    to: BoxEnd,
    width: usize,
    height: usize,
    depth: usize,
    pub(super) order: u32,
    flags: u32,
}

/// `CUmemcpy3DOperand`: an address, a row's length, a slice's height and a hint; or an array and a place in it.
#[repr(C)]
struct BoxEnd {
    kind: u32,
    what: u64,
    words: [usize; 3],
}

/// `CU_MEMCPY_OPERAND_TYPE_POINTER`, `_ARRAY`.
const POINTER: u32 = 1;
const ARRAY_OPERAND: u32 = 2;

impl BoxEnd {
    fn array(&self) -> Outcome<Option<std::sync::Arc<Array>>> {
        match self.kind {
            POINTER => Ok(None),
            ARRAY_OPERAND => Array::by_handle(self.what as CUarray).map(Some).ok_or(INVALID),
            _ => Err(INVALID),
        }
    }
}

/// What an end of a copy lies in.
enum Place {
    /// Memory, from this address on.
    Memory(u64),
    /// An array.
    Array(std::sync::Arc<Array>),
}

fn place(kind: u32, host: u64, device: u64, array: CUarray) -> Outcome<Place> {
    match kind {
        HOST => not_null(host).map(|()| Place::Memory(host)),
        DEVICE => device_end(device).map(|()| Place::Memory(device)),
        ARRAY => Array::by_handle(array).map(Place::Array).ok_or(INVALID),
        UNIFIED => Ok(Place::Memory(device)),
        _ => Err(INVALID),
    }
}

fn transfer(to: Plane, from: Plane, extents: [usize; 3]) -> Transfer {
    let [width, height, depth] = extents.map(|length| length as u64);
    Transfer { to, from, width, height, depth, by: None, staged: None }
}

/// One copy of a batch. Where an end is an array, lengths are in its elements.
pub(super) fn boxes(copy: &Boxes) -> Outcome<Transfer> {
    let arrays = [copy.from.array()?, copy.to.array()?];
    let mut sizes = arrays.iter().flatten().map(|array| array.form.element() as usize);
    let element = sizes.next().unwrap_or(1);
    if sizes.any(|size| size != element) {
        return Err(INVALID);
    }
    let width = copy.width.checked_mul(element).ok_or(INVALID)?;
    let extents = [width, copy.height, copy.depth];
    let end = |end: &BoxEnd, array: &Option<std::sync::Arc<Array>>| {
        let [a, b, c] = end.words;
        if let Some(array) = array {
            let x = a.checked_mul(element).ok_or(INVALID)?;
            return array.plane([x, b, c], extents);
        }
        let row = if a == 0 { copy.width } else { a };
        let rows = if b == 0 { copy.height } else { b };
        if row < copy.width || rows < copy.height {
            return Err(INVALID);
        }
        not_null(end.what)?;
        let pitch = row.checked_mul(element).ok_or(INVALID)? as u64;
        Ok(Plane { address: end.what, pitch, slice: pitch * rows as u64 })
    };
    let (from, to) = (end(&copy.from, &arrays[0])?, end(&copy.to, &arrays[1])?);
    Ok(transfer(to, from, extents))
}

/// Rows.
pub(super) fn rows(copy: &Rows) -> Outcome<Transfer> {
    let extents = [copy.width, copy.height, 1];
    let end = |end: &RowEnd| {
        let base = match place(end.kind, end.host, end.device, end.array)? {
            Place::Array(array) => return array.plane([end.x, end.y, 0], extents),
            Place::Memory(base) => base,
        };
        let pitch = if end.pitch == 0 { copy.width } else { end.pitch };
        if pitch < copy.width && copy.height > 1 {
            return Err(INVALID);
        }
        let address = base + (end.y * pitch + end.x) as u64;
        Ok(Plane { address, pitch: pitch as u64, slice: (pitch * copy.height) as u64 })
    };
    let (from, to) = (end(&copy.from)?, end(&copy.to)?);
    Ok(transfer(to, from, extents))
}

/// Slices.
pub(super) fn slices(copy: &Slices) -> Outcome<Transfer> {
    let extents = [copy.width, copy.height, copy.depth];
    let end = |end: &SliceEnd| {
        if end.lod != 0 {
            return Err(INVALID);
        }
        let base = match place(end.kind, end.host, end.device, end.array)? {
            Place::Array(array) => return array.plane([end.x, end.y, end.z], extents),
            Place::Memory(base) => base,
        };
        let pitch = if end.pitch == 0 { copy.width } else { end.pitch };
        let height = if end.height == 0 { copy.height } else { end.height };
        if (pitch < copy.width && copy.height > 1) || (height < copy.height && copy.depth > 1) {
            return Err(INVALID);
        }
        let slice = pitch * height;
        let address = base + (end.z * slice + end.y * pitch + end.x) as u64;
        Ok(Plane { address, pitch: pitch as u64, slice: slice as u64 })
    };
    let (from, to) = (end(&copy.from)?, end(&copy.to)?);
    Ok(transfer(to, from, extents))
}

/// Like [`slices`], with the contexts of both ends, which stand where the others have reserved words.
pub(super) fn between(copy: &Slices) -> Outcome<Transfer> {
    // An end in the host's memory names no context.
    let [from, to] = [&copy.from, &copy.to].map(|end| match end.kind {
        HOST => Ok(None),
        _ => context::by_handle(end.context).map(Some),
    });
    let contexts = [from?, to?];
    let transfer = slices(copy)?;
    let by = contexts.map(|of| of.map_or(0, |context| context.device));
    Ok(Transfer { by: Some(by), ..transfer })
}

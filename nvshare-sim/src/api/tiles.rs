//! `cuMemMapArrayAsync`: memory behind arrays whose mapping is deferred, in stream order.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUarray, CUarrayMapInfo, CUmipmappedArray, CUresult, CUstream};
use nvshare_sim_card::Point;

use crate::array::{Array, Levelled};
use crate::call::{Call, Outcome};
use crate::execution::capture;
use crate::execution::work::{self, Custom, Work};
use crate::export::export;
use crate::flight::submitted_so_far;
use crate::memory::physical::HandleValue;
use crate::memory::space::Area;
use crate::memory::tiles::{self, Part};
use crate::parameters::{Count, List};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CUarrayMapInfo`, with plain numbers where it has enums and unions.
#[repr(C)]
#[derive(Clone, Copy)]
struct Operation {
    kind: c_uint,
    array: c_ulonglong,
    /// Which part of a sparse array.
    part: c_uint,
    place: [c_ulonglong; 4],
    how: c_uint,
    handle_kind: c_uint,
    handle: c_ulonglong,
    offset: c_ulonglong,
    devices: c_uint,
    flags: c_uint,
    reserved: [c_uint; 2],
}

const _: () = {
    assert!(size_of::<Operation>() == size_of::<CUarrayMapInfo>());
    assert!(std::mem::offset_of!(Operation, how) == std::mem::offset_of!(CUarrayMapInfo, memOperationType));
};

/// `CU_RESOURCE_TYPE_ARRAY`, `_MIPMAPPED_ARRAY`.
const ARRAY: c_uint = 0;
const LEVELLED: c_uint = 1;
/// `CU_MEM_OPERATION_TYPE_MAP`, `_UNMAP`.
const MAP: c_uint = 1;
const UNMAP: c_uint = 2;

/// What an operation takes a device, in nanoseconds: 50,000 to 1,300,000 on an H200.
const TIME: u64 = 100_000;

export! {
    fn cuMemMapArrayAsync / cuMemMapArrayAsync_ptsz(list: List<Operation>, count: Count<c_uint>, stream: CUstream) |cx| {
        submit(cx, list.of(count)?, stream)
    }
}

impl Operation {
    /// The memory of the array that it is about, and the part of a tile pool that goes behind it, if one does. A device has
    /// to be named, which must be `device`.
    fn check(&self, device: usize) -> Outcome<(Arc<Area>, Option<Part>)> {
        let gone = CUresult::CUDA_ERROR_INVALID_HANDLE;
        if self.devices != 1 << device || self.flags != 0 || self.reserved != [0; 2] {
            return Err(INVALID);
        }
        let memory = match self.kind {
            ARRAY => Array::by_handle(self.array as CUarray).ok_or(gone)?.deferred().cloned(),
            LEVELLED => Levelled::by_handle(self.array as CUmipmappedArray).ok_or(gone)?.deferred().cloned(),
            _ => None,
        };
        let memory = memory.filter(|memory| memory.device == device).ok_or(INVALID)?;
        let part = match self.how {
            MAP if self.handle_kind == 0 => {
                Some(tiles::part(&memory, HandleValue(self.handle), self.offset)?)
            }
            UNMAP if self.handle == 0 => None,
            _ => return Err(INVALID),
        };
        Ok((memory, part))
    }
}

fn submit(cx: &Call, list: &[Operation], stream: CUstream) -> Outcome {
    let stream = cx.stream(stream)?;
    stream.usable()?;
    if list.is_empty() {
        return Err(INVALID);
    }
    capture::forbid(&stream, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)?;
    stream.context.jam.pass();
    crate::faults::at_call(Point::Map)?;
    // All of them before the first is done: where one is refused nothing changes.
    let device = stream.context.device;
    let operations = list.iter().map(|one| one.check(device)).collect::<Outcome<Vec<_>>>()?;
    let operations = Mutex::new(operations);
    let submitted = submitted_so_far();
    let custom = Custom {
        name: "cuMemMapArrayAsync",
        touches: Vec::new(),
        run: Box::new(move |timeline| {
            timeline.pass(TIME);
            timeline.sleep();
            let operations = std::mem::take(&mut *operations.lock().unwrap_or_else(PoisonError::into_inner));
            operations.into_iter().try_for_each(|(memory, part)| tiles::put(&memory, part, submitted))
        }),
    };
    work::submit(&stream, Work::Custom(Arc::new(custom))).map(|_| ())
}

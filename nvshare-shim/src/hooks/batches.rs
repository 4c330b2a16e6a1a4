//! Many copies in one call, without an order among them. Those that the stream's device cannot make are made one by one, by the
//! contexts of their ends.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::across::{ORDER_DURING_API_CALL, SliceEnd, Slices, UNIFIED, linear_across, returned};
use super::reach::{device_below, distant, grant, is_out_of_reach};
use super::{Bare, work};
use crate::cuda::CUresult;
use crate::cuda::sys::{CUDA_MEMCPY3D_BATCH_OP, CUdeviceptr, CUmemcpyAttributes, CUstream};
use crate::device;
use crate::driver::{Symbol, driver};

/// Many copies without an order among them. `failed` is where some variants say which one was refused.
#[expect(clippy::too_many_arguments, reason = "as many as the driver's function has")]
pub(crate) unsafe fn batch<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: *mut CUdeviceptr,
    from: *mut CUdeviceptr,
    bytes: *mut usize,
    count: usize,
    attributes: *mut CUmemcpyAttributes,
    attribute_count: usize,
    stream: CUstream,
) -> CUresult {
    if !device::several() || to.is_null() || from.is_null() || bytes.is_null() {
        // SAFETY: the application's own call.
        return unsafe { work::at_addresses(bare, stream) };
    }
    let in_stream = bare.stream(stream);
    // SAFETY: the application's arrays of that length.
    let one =
        |index: usize| unsafe { (to.add(index).read(), from.add(index).read(), bytes.add(index).read()) };
    if !(0..count).map(one).any(|(to, from, _)| is_out_of_reach(in_stream, &[to, from])) {
        // SAFETY: the application's own call.
        return unsafe { work::at_addresses(bare, stream) };
    }
    // SAFETY: the application's array of that length; the order is read as a number, it may be newer than this build.
    let during_the_call = (0..attribute_count)
        .any(|index| unsafe { attributes.add(index).cast::<u32>().read() } == ORDER_DURING_API_CALL);
    let across = bare.instead(|| {
        for (to, from, bytes) in (0..count).map(one) {
            let copied = if is_out_of_reach(in_stream, &[to, from]) {
                linear_across(in_stream, to, from, bytes, false)
            } else {
                // SAFETY: one of the application's copies.
                unsafe { driver().cuMemcpyAsync(to, from, bytes, in_stream) }
            };
            if !copied.ok() {
                return copied;
            }
        }
        returned(in_stream, CUresult::CUDA_SUCCESS, during_the_call)
    });
    // SAFETY: the application's own call in another form.
    unsafe { work::at_addresses(&across, stream) }
}

/// Many boxes without an order among them. `flags` are those of the call.
pub(crate) unsafe fn boxes<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    count: usize,
    list: *mut CUDA_MEMCPY3D_BATCH_OP,
    flags: u64,
    stream: CUstream,
) -> CUresult {
    let in_stream = bare.stream(stream);
    // SAFETY: the application's array of that length.
    let one = |index: usize| unsafe { list.cast::<Boxes>().add(index).read() };
    if !device::several()
        || list.is_null()
        || !(0..count).any(|index| is_out_of_reach(in_stream, &one(index).addresses()))
    {
        // SAFETY: the application's own call.
        return unsafe { work::at_addresses(bare, stream) };
    }
    let across = bare.instead(|| {
        for index in 0..count {
            let copy = one(index);
            let copied = match copy.slices() {
                Some(slices) if is_out_of_reach(in_stream, &copy.addresses()) => {
                    copy.across(slices, in_stream)
                }
                _ => {
                    grant(&distant(&copy.addresses(), || device_below(in_stream)));
                    // SAFETY: one of the application's copies.
                    unsafe { alone(list.add(index), flags, in_stream) }
                }
            };
            if !copied.ok() {
                return copied;
            }
        }
        CUresult::CUDA_SUCCESS
    });
    // SAFETY: the application's own call in another form.
    unsafe { work::at_addresses(&across, stream) }
}

/// One box.
pub(crate) unsafe fn one_box<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    copy: *const CUDA_MEMCPY3D_BATCH_OP,
    stream: CUstream,
) -> CUresult {
    let in_stream = bare.stream(stream);
    // SAFETY: null, or the application's description, which the driver would read too.
    let copy = unsafe { copy.cast::<Boxes>().as_ref() }.copied();
    if let Some(copy) = copy.filter(|copy| is_out_of_reach(in_stream, &copy.addresses())) {
        if let Some(slices) = copy.slices() {
            let across = bare.instead(|| copy.across(slices, in_stream));
            // SAFETY: the application's own call in another form.
            return unsafe { work::at_addresses(&across, stream) };
        }
        grant(&distant(&copy.addresses(), || device_below(in_stream)));
    }
    // SAFETY: the same.
    unsafe { work::at_addresses(bare, stream) }
}

/// One copy of a batch.
unsafe fn alone(copy: *mut CUDA_MEMCPY3D_BATCH_OP, flags: u64, stream: CUstream) -> CUresult {
    let mut failed = 0;
    // SAFETY: the caller's copy; a place for what is not asked.
    unsafe {
        if driver().has(Symbol::cuMemcpy3DBatchAsync_v2) {
            driver().cuMemcpy3DBatchAsync_v2(1, copy, flags, stream)
        } else {
            driver().cuMemcpy3DBatchAsync(1, copy, &raw mut failed, flags, stream)
        }
    }
}

/// `CUDA_MEMCPY3D_BATCH_OP`, with plain numbers where it has enums.
#[derive(Clone, Copy)]
#[repr(C)]
struct Boxes {
    from: BoxEnd,
    to: BoxEnd,
    width: usize,
    height: usize,
    depth: usize,
    order: u32,
    flags: u32,
}

/// `CUmemcpy3DOperand`: what its words mean depends on `kind`.
#[derive(Clone, Copy)]
#[repr(C)]
struct BoxEnd {
    kind: u32,
    address: u64,
    row: usize,
    rows: usize,
    hint: u64,
}

const _: () = assert!(size_of::<Boxes>() == size_of::<CUDA_MEMCPY3D_BATCH_OP>());

/// `CU_MEMCPY_OPERAND_TYPE_POINTER`.
const POINTER: u32 = 1;

impl Boxes {
    /// Where its ends begin that may be a device's.
    fn addresses(&self) -> Vec<u64> {
        let pointers = [&self.from, &self.to].into_iter().filter(|end| end.kind == POINTER);
        pointers.map(|end| end.address).collect()
    }

    /// As slices, where no end is an array, whose box is not measured in bytes.
    fn slices(&self) -> Option<Slices> {
        let end = |end: &BoxEnd| {
            let or = |length: usize, all: usize| if length == 0 { all } else { length };
            (end.kind == POINTER).then(|| SliceEnd {
                kind: UNIFIED,
                device: end.address,
                pitch: or(end.row, self.width),
                height: or(end.rows, self.height),
                ..SliceEnd::default()
            })
        };
        let (from, to) = (end(&self.from)?, end(&self.to)?);
        Some(Slices { from, to, width: self.width, height: self.height, depth: self.depth })
    }

    /// The copy, as `slices`, by the contexts of its ends.
    fn across(&self, slices: Slices, stream: CUstream) -> CUresult {
        returned(stream, slices.across(stream, false), self.order == ORDER_DURING_API_CALL)
    }
}

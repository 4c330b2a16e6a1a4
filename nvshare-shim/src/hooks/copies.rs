//! Copies. Where an end is memory of ours that the stream's device has no access to, the plain form would be refused (seen
//! on an H200) or end in an error for good, and bare the driver stages such copies: the form that names the contexts of
//! both ends is used in its place, in the same stream. A process with one device pays a load for that.
//!
//! In captures, for copies described as parts of graphs ([`super::nodes`]), and for arrays in batches there is no such form: the stream's device
//! gets access to the memory where the cards allow it, else they pass and the driver refuses them.

use std::ffi::c_void;

use super::contexts::{self, device_of};
use super::{Bare, work};
use crate::allocation::{self, owner};
use crate::cuda::sys::{
    CUDA_MEMCPY2D, CUDA_MEMCPY3D, CUDA_MEMCPY3D_BATCH_OP, CUDA_MEMCPY3D_PEER, CUarray, CUcontext, CUdevice,
    CUdeviceptr, CUmemcpyAttributes, CUstream,
};
use crate::cuda::{CUresult, STREAM_LEGACY, STREAM_PER_THREAD};
use crate::driver::{Symbol, driver};
use crate::streams::{self, current_device};
use crate::{device, life};

/// An address, as the calls pass it.
pub(crate) trait Address: Copy {
    /// Its value.
    fn number(self) -> u64;
}

impl Address for CUdeviceptr {
    fn number(self) -> u64 {
        self
    }
}

impl Address for *const c_void {
    fn number(self) -> u64 {
        self.expose_provenance() as u64
    }
}

impl Address for *mut c_void {
    fn number(self) -> u64 {
        self.expose_provenance() as u64
    }
}

/// The context that work in `stream` runs in.
pub(super) fn context_of(stream: CUstream) -> Option<CUcontext> {
    if stream == STREAM_LEGACY || stream == STREAM_PER_THREAD {
        return streams::current_context();
    }
    let mut context = std::ptr::null_mut();
    // SAFETY: the application's own stream; `context` is where the answer goes.
    unsafe { driver().cuStreamGetCtx(stream, &raw mut context) }.result().ok()?;
    (!context.is_null()).then_some(context)
}

/// The device that work in `stream` runs on.
fn device_below(stream: CUstream) -> Option<CUdevice> {
    if stream == STREAM_LEGACY || stream == STREAM_PER_THREAD {
        return current_device();
    }
    context_of(stream).and_then(device_of)
}

/// Whether there is memory of ours at one of the addresses that the device of `stream` cannot reach. While the stream is
/// captured the forms for that break the capture (seen on an H200); there the device gets access, where it can have it.
pub(super) fn is_out_of_reach(stream: CUstream, addresses: &[u64]) -> bool {
    if !device::several() || !life::active() {
        return false;
    }
    let distant = distant(addresses, || device_below(stream));
    if distant.is_empty() {
        return false;
    }
    if streams::is_capturing(stream) {
        grant(&distant);
        return false;
    }
    true
}

/// The devices that have memory of ours at the addresses, each with `here`, which cannot reach it.
pub(super) fn distant(
    addresses: &[u64],
    here: impl FnOnce() -> Option<CUdevice>,
) -> Vec<(CUdevice, CUdevice)> {
    let owners: Vec<_> = addresses.iter().filter_map(|address| owner::owner(*address)).collect();
    if owners.is_empty() {
        return Vec::new();
    }
    let Some(here) = here() else { return Vec::new() };
    let distant = owners.iter().filter(|owner| !owner.is_reachable(here));
    distant.map(|owner| (owner.device, here)).collect()
}

/// Gives the second device of each pair access to all memory of the first, as the application could by itself.
pub(super) fn grant(pairs: &[(CUdevice, CUdevice)]) {
    for &(of, from) in pairs {
        let mut can = 0;
        // SAFETY: `can` is where the answer goes.
        let asked = unsafe { driver().cuDeviceCanAccessPeer(&raw mut can, from, of) };
        if asked.ok() && can != 0 {
            allocation::on_peer_access(of, from);
        }
    }
}

/// A copy of `bytes` in a row, in the default stream.
pub(crate) unsafe fn linear_now<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: impl Address,
    from: impl Address,
    bytes: usize,
) -> CUresult {
    let stream = bare.stream(std::ptr::null_mut());
    let (to, from) = (to.number(), from.number());
    if is_out_of_reach(stream, &[to, from]) {
        let across = bare.instead(|| linear_across(stream, to, from, bytes, true));
        // SAFETY: the application's own call in another form.
        return unsafe { work::blocking(&across) };
    }
    // SAFETY: the same.
    unsafe { work::blocking(bare) }
}

/// A copy of `bytes` in a row, in `stream`.
pub(crate) unsafe fn linear<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: impl Address,
    from: impl Address,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    let (in_stream, to, from) = (bare.stream(stream), to.number(), from.number());
    if is_out_of_reach(in_stream, &[to, from]) {
        let across = bare.instead(|| linear_across(in_stream, to, from, bytes, false));
        // SAFETY: the application's own call in another form.
        return unsafe { work::at_addresses(&across, stream) };
    }
    // SAFETY: the same.
    unsafe { work::at_addresses(bare, stream) }
}

/// As [`linear`], with a word on when the source is read.
pub(crate) unsafe fn linear_with<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
    attributes: *const CUmemcpyAttributes,
    stream: CUstream,
) -> CUresult {
    let in_stream = bare.stream(stream);
    if !attributes.is_null() && is_out_of_reach(in_stream, &[to, from]) {
        // SAFETY: the application's; the order is read as a number, it may be newer than this build.
        let order = unsafe { attributes.cast::<u32>().read() };
        let across = bare.instead(|| {
            returned(
                in_stream,
                linear_across(in_stream, to, from, bytes, false),
                order == ORDER_DURING_API_CALL,
            )
        });
        // SAFETY: the application's own call in another form.
        return unsafe { work::at_addresses(&across, stream) };
    }
    // SAFETY: the same.
    unsafe { work::at_addresses(bare, stream) }
}

/// Rows of bytes, in the default stream.
pub(crate) unsafe fn rows_now<F: Fn() -> CUresult>(bare: &Bare<F>, copy: *const CUDA_MEMCPY2D) -> CUresult {
    let stream = bare.stream(std::ptr::null_mut());
    // SAFETY: null, or the application's description, which the driver would read too.
    let slices = unsafe { copy.cast::<Rows>().as_ref() }.map(Slices::from);
    if let Some(slices) = slices.filter(|slices| slices.is_out_of_reach(stream)) {
        let across = bare.instead(|| slices.across(stream, true));
        // SAFETY: the application's own call in another form.
        return unsafe { work::blocking(&across) };
    }
    // SAFETY: the same.
    unsafe { work::blocking(bare) }
}

/// Rows of bytes, in `stream`.
pub(crate) unsafe fn rows<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    copy: *const CUDA_MEMCPY2D,
    stream: CUstream,
) -> CUresult {
    let in_stream = bare.stream(stream);
    // SAFETY: null, or the application's description, which the driver would read too.
    let slices = unsafe { copy.cast::<Rows>().as_ref() }.map(Slices::from);
    if let Some(slices) = slices.filter(|slices| slices.is_out_of_reach(in_stream)) {
        let across = bare.instead(|| slices.across(in_stream, false));
        // SAFETY: the application's own call in another form.
        return unsafe { work::at_addresses(&across, stream) };
    }
    // SAFETY: the same.
    unsafe { work::at_addresses(bare, stream) }
}

/// Slices of rows, in the default stream.
pub(crate) unsafe fn slices_now<F: Fn() -> CUresult>(bare: &Bare<F>, copy: *const CUDA_MEMCPY3D) -> CUresult {
    let stream = bare.stream(std::ptr::null_mut());
    // SAFETY: null, or the application's description, which the driver would read too.
    let slices = unsafe { copy.cast::<Slices>().as_ref() }.copied();
    if let Some(slices) = slices.filter(|slices| slices.is_out_of_reach(stream)) {
        let across = bare.instead(|| slices.across(stream, true));
        // SAFETY: the application's own call in another form.
        return unsafe { work::blocking(&across) };
    }
    // SAFETY: the same.
    unsafe { work::blocking(bare) }
}

/// Slices of rows, in `stream`.
pub(crate) unsafe fn slices<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    copy: *const CUDA_MEMCPY3D,
    stream: CUstream,
) -> CUresult {
    let in_stream = bare.stream(stream);
    // SAFETY: null, or the application's description, which the driver would read too.
    let slices = unsafe { copy.cast::<Slices>().as_ref() }.copied();
    if let Some(slices) = slices.filter(|slices| slices.is_out_of_reach(in_stream)) {
        let across = bare.instead(|| slices.across(in_stream, false));
        // SAFETY: the application's own call in another form.
        return unsafe { work::at_addresses(&across, stream) };
    }
    // SAFETY: the same.
    unsafe { work::at_addresses(bare, stream) }
}

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

/// Bytes of a row into an array of one dimension.
pub(crate) unsafe fn into_array<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    array: CUarray,
    offset: usize,
    from: CUdeviceptr,
    bytes: usize,
) -> CUresult {
    // SAFETY: the application's own call.
    unsafe { with_array(bare, SliceEnd::row(from, bytes), SliceEnd::array(array, offset), bytes) }
}

/// Bytes of a row out of an array of one dimension.
pub(crate) unsafe fn out_of_array<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    to: CUdeviceptr,
    array: CUarray,
    offset: usize,
    bytes: usize,
) -> CUresult {
    // SAFETY: the application's own call.
    unsafe { with_array(bare, SliceEnd::array(array, offset), SliceEnd::row(to, bytes), bytes) }
}

unsafe fn with_array<F: Fn() -> CUresult>(
    bare: &Bare<F>,
    from: SliceEnd,
    to: SliceEnd,
    bytes: usize,
) -> CUresult {
    let stream = bare.stream(std::ptr::null_mut());
    let slices = Slices { from, to, width: bytes, height: 1, depth: 1 };
    if slices.is_out_of_reach(stream) {
        let across = bare.instead(|| slices.across(stream, true));
        // SAFETY: the application's own call in another form.
        return unsafe { work::blocking(&across) };
    }
    // SAFETY: the application's own call.
    unsafe { work::blocking(bare) }
}

/// `CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL`: the sources are the caller's again when the call returns.
const ORDER_DURING_API_CALL: u32 = 2;
/// How much of a copy from or to host memory is described as one row.
const LONGEST_ROW: usize = 1 << 30;

/// The copy was submitted, with this answer. `done`: it is over when the call returns, for its source is the caller's again.
fn returned(stream: CUstream, submitted: CUresult, done: bool) -> CUresult {
    if done && submitted.ok() { synchronize(stream) } else { submitted }
}

fn synchronize(stream: CUstream) -> CUresult {
    // SAFETY: the application's own stream.
    unsafe { driver().cuStreamSynchronize(stream) }
}

/// What an address is that is not ours.
enum Place {
    Host,
    Device(CUcontext),
}

impl Place {
    fn of(address: u64) -> Place {
        let ask = |attribute: u32| {
            let mut value = 0_u64;
            // SAFETY: none of the attributes asked for is wider than the eight bytes of `value`.
            let known =
                unsafe { driver().cuPointerGetAttribute((&raw mut value).cast(), attribute, address) };
            known.ok().then_some(value)
        };
        if let Some(owner) = owner::owner(address) {
            return Place::Device(owner.context);
        }
        if ask(MEMORY_TYPE) != Some(ON_DEVICE) {
            return Place::Host;
        }
        if let Some(context) = ask(CONTEXT).filter(|context| *context != 0) {
            return Place::Device(std::ptr::with_exposed_provenance_mut(context as usize));
        }
        // Of a pool, or mapped by the application: its device is known.
        let device = ask(DEVICE_ORDINAL).unwrap_or(0) as CUdevice;
        Place::Device(contexts::primary(device).unwrap_or(std::ptr::null_mut()))
    }
}

/// `CU_POINTER_ATTRIBUTE_CONTEXT`, `_MEMORY_TYPE` and `_DEVICE_ORDINAL`.
const CONTEXT: u32 = 1;
const MEMORY_TYPE: u32 = 2;
const DEVICE_ORDINAL: u32 = 9;
const ON_DEVICE: u64 = 2;

/// The copy by the contexts of its ends. `now`: the host waits for it where an end is in its memory.
fn linear_across(stream: CUstream, to: u64, from: u64, bytes: usize, now: bool) -> CUresult {
    if let (Place::Device(to_context), Place::Device(from_context)) = (Place::of(to), Place::of(from)) {
        // SAFETY: the application's own copy; the contexts are those of its ends.
        return unsafe { driver().cuMemcpyPeerAsync(to, to_context, from, from_context, bytes, stream) };
    }
    let mut done = 0;
    while done < bytes {
        let row = (bytes - done).min(LONGEST_ROW);
        let end = |address: u64| SliceEnd::row(address + done as u64, row);
        let slices = Slices { from: end(from), to: end(to), width: row, height: 1, depth: 1 };
        let copied = slices.across(stream, now && done + row == bytes);
        if !copied.ok() {
            return copied;
        }
        done += row;
    }
    CUresult::CUDA_SUCCESS
}

/// `CUDA_MEMCPY2D`, with plain numbers where it has enums.
#[repr(C)]
struct Rows {
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
    array: u64,
    pitch: usize,
}

/// `CUDA_MEMCPY3D` and `CUDA_MEMCPY3D_PEER`: the contexts of the second stand where the first has reserved words.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Slices {
    from: SliceEnd,
    to: SliceEnd,
    width: usize,
    height: usize,
    depth: usize,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct SliceEnd {
    x: usize,
    y: usize,
    z: usize,
    lod: usize,
    kind: u32,
    host: u64,
    device: u64,
    array: u64,
    context: u64,
    pitch: usize,
    height: usize,
}

const _: () = assert!(
    size_of::<Rows>() == size_of::<CUDA_MEMCPY2D>()
        && size_of::<Slices>() == size_of::<CUDA_MEMCPY3D>()
        && size_of::<Slices>() == size_of::<CUDA_MEMCPY3D_PEER>()
);

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

/// `CU_MEMORYTYPE_HOST`, `_DEVICE`, `_ARRAY` and `_UNIFIED`.
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;
const UNIFIED: u32 = 4;

impl From<&Rows> for Slices {
    fn from(rows: &Rows) -> Slices {
        let end = |end: &RowEnd| SliceEnd {
            x: end.x,
            y: end.y,
            kind: end.kind,
            host: end.host,
            device: end.device,
            array: end.array,
            pitch: end.pitch,
            height: end.y + rows.height,
            ..SliceEnd::default()
        };
        Slices { from: end(&rows.from), to: end(&rows.to), width: rows.width, height: rows.height, depth: 1 }
    }
}

impl SliceEnd {
    /// A row of bytes at an address.
    fn row(address: u64, bytes: usize) -> SliceEnd {
        SliceEnd { kind: UNIFIED, device: address, pitch: bytes, height: 1, ..SliceEnd::default() }
    }

    /// Bytes of an array of one dimension.
    fn array(array: CUarray, offset: usize) -> SliceEnd {
        let array = array.expose_provenance() as u64;
        SliceEnd { kind: ARRAY, array, x: offset, ..SliceEnd::default() }
    }

    /// Where the first byte is, if that is an address that may be a device's.
    fn first(&self) -> Option<u64> {
        let offset = self.z * self.pitch * self.height + self.y * self.pitch + self.x;
        matches!(self.kind, DEVICE | UNIFIED).then(|| self.device.wrapping_add(offset as u64))
    }

    /// Says whose it is; `here` is the context of what the address does not tell.
    fn resolved(mut self, here: CUcontext) -> SliceEnd {
        let context = match self.first().map(Place::of) {
            Some(Place::Device(context)) => {
                self.kind = DEVICE;
                context
            }
            Some(Place::Host) => {
                (self.kind, self.host) = (HOST, self.device);
                std::ptr::null_mut()
            }
            None if self.kind == ARRAY => here,
            None => std::ptr::null_mut(),
        };
        self.context = context.expose_provenance() as u64;
        self
    }
}

impl Slices {
    /// Where its ends begin that may be a device's.
    pub(super) fn addresses(&self) -> Vec<u64> {
        [&self.from, &self.to].into_iter().filter_map(SliceEnd::first).collect()
    }

    fn is_out_of_reach(&self, stream: CUstream) -> bool {
        is_out_of_reach(stream, &self.addresses())
    }

    /// As [`linear_across`].
    fn across(&self, stream: CUstream, now: bool) -> CUresult {
        let here = context_of(stream).unwrap_or(std::ptr::null_mut());
        let copy = Slices { from: self.from.resolved(here), to: self.to.resolved(here), ..*self };
        // SAFETY: the description lives through the call and says what the application said.
        let copied = unsafe { driver().cuMemcpy3DPeerAsync((&raw const copy).cast(), stream) };
        let with_host = copy.from.kind == HOST || copy.to.kind == HOST;
        if now && copied.ok() && with_host { synchronize(stream) } else { copied }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_one_slice_and_keep_their_offsets() {
        let end = |x, y, device| RowEnd { x, y, kind: DEVICE, host: 0, device, array: 0, pitch: 512 };
        let rows = Rows { from: end(4, 1, 0x1000), to: end(0, 3, 0x9000), width: 100, height: 7 };
        let slices = Slices::from(&rows);
        assert_eq!((slices.width, slices.height, slices.depth), (100, 7, 1));
        assert_eq!(slices.from.first(), Some(0x1000 + 512 + 4));
        assert_eq!(slices.to.first(), Some(0x9000 + 3 * 512));
        assert!(slices.to.height >= slices.to.y + slices.height, "a slice holds all its rows");
    }
}

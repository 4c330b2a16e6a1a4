//! Copies by the contexts of their ends, which the driver carries between devices, whoever has access to what. Shapes are as the
//! header has them, with plain numbers where it has enums: a newer program may send what this build does not know.

#![expect(unsafe_code, reason = "hooks have the driver's contract: what they are given is the application's")]

use super::contexts;
use super::reach::{context_of, is_out_of_reach};
use crate::allocation::owner;
use crate::cuda::CUresult;
use crate::cuda::sys::{
    CUDA_MEMCPY2D, CUDA_MEMCPY3D, CUDA_MEMCPY3D_PEER, CUarray, CUcontext, CUdevice, CUstream,
};
use crate::driver::driver;

/// `CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL`: the sources are the caller's again when the call returns.
pub(super) const ORDER_DURING_API_CALL: u32 = 2;
/// How much of a copy from or to host memory is described as one row.
const LONGEST_ROW: usize = 1 << 30;

/// The copy was submitted, with this answer. `done`: it is over when the call returns, for its source is the caller's again.
pub(super) fn returned(stream: CUstream, submitted: CUresult, done: bool) -> CUresult {
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
pub(super) fn linear_across(stream: CUstream, to: u64, from: u64, bytes: usize, now: bool) -> CUresult {
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
pub(super) struct Rows {
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
    pub(super) from: SliceEnd,
    pub(super) to: SliceEnd,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) depth: usize,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct SliceEnd {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) z: usize,
    pub(super) lod: usize,
    pub(super) kind: u32,
    pub(super) host: u64,
    pub(super) device: u64,
    pub(super) array: u64,
    pub(super) context: u64,
    pub(super) pitch: usize,
    pub(super) height: usize,
}

const _: () = assert!(
    size_of::<Rows>() == size_of::<CUDA_MEMCPY2D>()
        && size_of::<Slices>() == size_of::<CUDA_MEMCPY3D>()
        && size_of::<Slices>() == size_of::<CUDA_MEMCPY3D_PEER>()
);

/// `CU_MEMORYTYPE_HOST`, `_DEVICE`, `_ARRAY` and `_UNIFIED`.
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;
pub(super) const UNIFIED: u32 = 4;

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
    pub(super) fn row(address: u64, bytes: usize) -> SliceEnd {
        SliceEnd { kind: UNIFIED, device: address, pitch: bytes, height: 1, ..SliceEnd::default() }
    }

    /// Bytes of an array of one dimension.
    pub(super) fn array(array: CUarray, offset: usize) -> SliceEnd {
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

    pub(super) fn is_out_of_reach(&self, stream: CUstream) -> bool {
        is_out_of_reach(stream, &self.addresses())
    }

    /// As [`linear_across`].
    pub(super) fn across(&self, stream: CUstream, now: bool) -> CUresult {
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

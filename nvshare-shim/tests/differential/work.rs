//! Work of a script: memsets, copies and kernels, on memory that may be used so and after what used it before.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::driver::sys::{
    CUDA_MEMCPY2D, CUDA_MEMCPY3D, CUDA_MEMCPY3D_PEER, CUfunction, CUmemorytype, CUstream,
};

use crate::script::Op;
use crate::uses::By;
use crate::world::{World, cu, hash, relaxed};

/// The pitch of both ends of copies in two and three dimensions.
const PITCH: u64 = 256;
/// Rows of a slice of theirs.
const ROWS: u64 = 4;

impl World {
    pub(crate) fn run_work(&mut self, op: &Op) -> Option<String> {
        let arg = |index: usize| op.args.get(index).copied().unwrap_or(0);
        let code = match op.verb() {
            // Known to differ: without a current context the simulator refuses copies of one row (201, a guess); between
            // devices the library makes them in another form, which is not refused.
            "h2d" | "d2h" | "copy" if self.current().is_none() => return None,
            "set8" | "set32" => {
                let element = if op.verb() == "set8" { 1 } else { 4 };
                let (at, bytes) = (arg(1) / element * element, arg(2) / element * element);
                let stream = if arg(5) == 0 { 0 } else { arg(4) };
                let (handle, start) = self.ready(arg(0), at, bytes, stream, By::Set)?;
                let (count, value) = ((bytes / element) as usize, arg(3) as u32);
                let code = match (element, arg(5)) {
                    (1, 0) => cu!(cuMemsetD8_v2(start, value as u8, count)),
                    (1, _) => cu!(cuMemsetD8Async(start, value as u8, count, handle)),
                    (_, 0) => cu!(cuMemsetD32_v2(start, value, count)),
                    _ => cu!(cuMemsetD32Async(start, value, count, handle)),
                };
                self.done(arg(0), stream, code)
            }
            "set2d" => {
                let (pitch, width, height) = (arg(2), arg(3).min(arg(2)), arg(4));
                let stream = if arg(7) == 0 { 0 } else { arg(6) };
                let (handle, start) = self.ready(arg(0), arg(1), pitch * height, stream, By::Set)?;
                let (pitch, value) = (pitch as usize, arg(5) as u8);
                let (width, height) = (width as usize, height as usize);
                let code = match arg(7) {
                    0 => cu!(cuMemsetD2D8_v2(start, pitch, value, width, height)),
                    _ => cu!(cuMemsetD2D8Async(start, pitch, value, width, height, handle)),
                };
                self.done(arg(0), stream, code)
            }
            "h2d" => {
                let stream = if arg(5) == 0 { 0 } else { arg(4) };
                let (handle, start) = self.ready(arg(0), arg(1), arg(2), stream, By::Copy)?;
                let seed = arg(3);
                // In a capture the source is read at the launch, and must be there then.
                let from: Vec<u8> =
                    (0..arg(2)).map(|index| (index.wrapping_mul(seed | 1) >> 3) as u8 ^ seed as u8).collect();
                let bytes = from.len();
                let code = if arg(5) == 0 {
                    cu!(cuMemcpyHtoD_v2(start, from.as_ptr().cast(), bytes))
                } else {
                    if self.is_captured(handle) {
                        return None;
                    }
                    cu!(cuMemcpyHtoDAsync_v2(start, from.as_ptr().cast(), bytes, handle))
                };
                self.done(arg(0), stream, code)
            }
            "d2h" => {
                let stream = if arg(4) == 0 { 0 } else { arg(3) };
                let (handle, start) = self.ready(arg(0), arg(1), arg(2), stream, By::Copy)?;
                let mut to = vec![0_u8; arg(2) as usize];
                let code = if arg(4) == 0 {
                    cu!(cuMemcpyDtoH_v2(to.as_mut_ptr().cast(), start, to.len()))
                } else {
                    if self.is_captured(handle) {
                        return None;
                    }
                    let code = cu!(cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), start, to.len(), handle));
                    relaxed(|| cu!(cuStreamSynchronize(handle)));
                    code
                };
                self.done(arg(0), stream, code);
                let found = if code == 0 { hash(&to) } else { 0 };
                return Some(format!("{code} {found:x}"));
            }
            "copy" => {
                let (stream, kind) = (if matches!(arg(6), 0 | 1 | 4) { 0 } else { arg(5) }, arg(6));
                let bytes = arg(4);
                let (handle, to, from) = self.ready_both(op, bytes, stream)?;
                let [there, here] = [arg(0), arg(2)].map(|slot| self.owner(slot));
                let bytes = bytes as usize;
                let code = match kind {
                    0 => cu!(cuMemcpyDtoD_v2(to, from, bytes)),
                    1 => cu!(cuMemcpy(to, from, bytes)),
                    2 => cu!(cuMemcpyDtoDAsync_v2(to, from, bytes, handle)),
                    3 => cu!(cuMemcpyAsync(to, from, bytes, handle)),
                    4 => cu!(cuMemcpyPeer(to, there?, from, here?, bytes)),
                    _ => cu!(cuMemcpyPeerAsync(to, there?, from, here?, bytes, handle)),
                };
                self.done(arg(0), stream, code);
                self.done(arg(2), stream, code)
            }
            "copy2d" => {
                let (width, height) = (arg(4).min(PITCH), arg(5));
                let stream = if arg(7) == 0 { 0 } else { arg(6) };
                let (handle, to, from) = self.ready_both(op, PITCH * height, stream)?;
                let mut room = MaybeUninit::<CUDA_MEMCPY2D>::zeroed();
                let copy = room.as_mut_ptr();
                let device = CUmemorytype::CU_MEMORYTYPE_DEVICE;
                // SAFETY: fields of a plain C structure, for which zeros mean nothing.
                unsafe {
                    ((*copy).srcMemoryType, (*copy).dstMemoryType) = (device, device);
                    ((*copy).srcDevice, (*copy).dstDevice) = (from, to);
                    ((*copy).srcPitch, (*copy).dstPitch) = (PITCH as usize, PITCH as usize);
                    ((*copy).WidthInBytes, (*copy).Height) = (width as usize, height as usize);
                }
                let code = match arg(7) {
                    0 => cu!(cuMemcpy2D_v2(copy)),
                    _ => cu!(cuMemcpy2DAsync_v2(copy, handle)),
                };
                self.done(arg(0), stream, code);
                self.done(arg(2), stream, code)
            }
            "copy3d" => self.copy3d(op)?,
            "fill" => self.kernel(op, "nvshare_fill", &[arg(3), arg(1)])?,
            "step" => self.kernel(op, "nvshare_step", &[arg(3)])?,
            "sum" => {
                if self.result.is_null() {
                    return None;
                }
                // SAFETY: pinned memory that lives as long as the context it was made in; nobody writes it now.
                unsafe { self.result.write_volatile(0) };
                let (stream, _) = self.stream(arg(3))?;
                if self.is_captured(stream) {
                    return None;
                }
                let op = Op::new(op.thread, "step", &[arg(0), arg(1), arg(2), 0, arg(3)]);
                let code = self.kernel(&op, "nvshare_sum", &[self.result as u64])?;
                relaxed(|| cu!(cuStreamSynchronize(stream)));
                // SAFETY: as above.
                return Some(format!("{code} {:x}", unsafe { self.result.read_volatile() }));
            }
            "spin" => {
                let (stream, context) = self.stream(arg(0))?;
                let nanoseconds = arg(1);
                self.launch(stream, context, "nvshare_spin", &[nanoseconds])?
            }
            "host_func" => {
                unsafe extern "C" fn count(word: *mut c_void) {
                    // SAFETY: the world's word, which lives until its context ends.
                    unsafe { word.cast::<u64>().add(1).write_volatile(1) };
                }
                let (stream, _) = self.stream(arg(0))?;
                if self.result.is_null() || self.is_captured(stream) {
                    return None;
                }
                let code = cu!(cuLaunchHostFunc(stream, Some(count), self.result.cast()));
                if code == 0 {
                    relaxed(|| cu!(cuStreamSynchronize(stream)));
                }
                code
            }
            _ => return None,
        };
        Some(code.to_string())
    }

    fn copy3d(&mut self, op: &Op) -> Option<u32> {
        let arg = |index: usize| op.args.get(index).copied().unwrap_or(0);
        let (width, height, depth) = (arg(4).min(PITCH), arg(5).min(ROWS), arg(6));
        let kind = arg(8);
        let stream = if kind == 0 || kind == 2 { 0 } else { arg(7) };
        let (handle, to, from) = self.ready_both(op, PITCH * ROWS * depth, stream)?;
        let device = CUmemorytype::CU_MEMORYTYPE_DEVICE;
        let (mut room, mut peers) =
            (MaybeUninit::<CUDA_MEMCPY3D>::zeroed(), MaybeUninit::<CUDA_MEMCPY3D_PEER>::zeroed());
        let (copy, peer) = (room.as_mut_ptr(), peers.as_mut_ptr());
        macro_rules! describe {
            ($copy:ident) => {
                // SAFETY: fields of a plain C structure, for which zeros mean nothing.
                unsafe {
                    ((*$copy).srcMemoryType, (*$copy).dstMemoryType) = (device, device);
                    ((*$copy).srcDevice, (*$copy).dstDevice) = (from, to);
                    ((*$copy).srcPitch, (*$copy).dstPitch) = (PITCH as usize, PITCH as usize);
                    ((*$copy).srcHeight, (*$copy).dstHeight) = (ROWS as usize, ROWS as usize);
                    ((*$copy).WidthInBytes, (*$copy).Height) = (width as usize, height as usize);
                    (*$copy).Depth = depth as usize;
                }
            };
        }
        describe!(copy);
        describe!(peer);
        if kind >= 2 {
            let owners = (self.owner(arg(2))?, self.owner(arg(0))?);
            // SAFETY: as above.
            unsafe { ((*peer).srcContext, (*peer).dstContext) = owners };
        }
        let code = match kind {
            0 => cu!(cuMemcpy3D_v2(copy)),
            1 => cu!(cuMemcpy3DAsync_v2(copy, handle)),
            2 => cu!(cuMemcpy3DPeer(peer)),
            _ => cu!(cuMemcpy3DPeerAsync(peer, handle)),
        };
        self.done(arg(0), stream, code);
        Some(self.done(arg(2), stream, code))
    }

    /// A kernel of (address, words, more ..) on a range; the last argument of the step is the stream.
    fn kernel(&mut self, op: &Op, name: &str, more: &[u64]) -> Option<u32> {
        let (at, bytes) = (op.args[1] / 8 * 8, op.args[2] / 8 * 8);
        let stream = *op.args.last()?;
        let (handle, start) = self.ready(op.args[0], at, bytes, stream, By::Kernel)?;
        if !start.is_multiple_of(8) {
            return None;
        }
        let (_, context) = self.stream(stream)?;
        let mut parameters = vec![start, bytes / 8];
        parameters.extend(more);
        let code = self.launch(handle, context, name, &parameters)?;
        Some(self.done(op.args[0], stream, code))
    }

    /// Launches with a module of the stream's context.
    fn launch(&self, stream: CUstream, context: usize, name: &str, parameters: &[u64]) -> Option<u32> {
        let (module, _) = self.modules.iter().flatten().find(|(_, of)| *of == context)?;
        let name = std::ffi::CString::new(name).ok()?;
        let mut function: CUfunction = std::ptr::null_mut();
        let found = cu!(cuModuleGetFunction(&raw mut function, *module, name.as_ptr()));
        if found != 0 {
            return Some(10_000 + found);
        }
        let mut values = parameters.to_vec();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let (pointers, none) = (pointers.as_mut_ptr(), std::ptr::null_mut());
        Some(cu!(cuLaunchKernel(function, 4, 1, 1, 64, 1, 1, 0, stream, pointers, none)))
    }
}

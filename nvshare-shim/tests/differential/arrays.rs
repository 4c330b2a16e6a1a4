//! Arrays of a script: slots of memory that have no address. Rows are 256 bytes, of elements of four.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::mem::MaybeUninit;

use cudarc::driver::sys::{
    CUDA_ARRAY3D_DESCRIPTOR, CUDA_MEMCPY2D, CUDA_MEMCPY3D, CUarray, CUarray_format, CUmemorytype, CUstream,
};

use crate::script::Op;
use crate::uses::By;
use crate::world::{Kind, MEMORIES, Memory, World, cu, hash, relaxed};

/// Bytes of a row.
pub(crate) const ROW: u64 = 256;
/// Bytes of an element.
const ELEMENT: u64 = 4;

/// One end of a copy.
#[derive(Clone, Copy)]
enum End {
    Array { array: u64, x: u64, y: u64 },
    Device(u64),
    Host(u64),
}

/// A copy of rows, or of one slice of them.
struct Copy {
    to: End,
    from: End,
    width: u64,
    height: u64,
}

macro_rules! describe {
    ($copy:ident, $this:ident) => {
        for (end, is_source) in [($this.from, true), ($this.to, false)] {
            // SAFETY: fields of a plain C structure, for which zeros mean nothing.
            unsafe {
                let (kind, host, device, array, pitch, x, y) = match end {
                    End::Array { array, x, y } => (CUmemorytype::CU_MEMORYTYPE_ARRAY, 0, 0, array, 0, x, y),
                    End::Device(at) => (CUmemorytype::CU_MEMORYTYPE_DEVICE, 0, at, 0, ROW, 0, 0),
                    End::Host(at) => (CUmemorytype::CU_MEMORYTYPE_HOST, at, 0, 0, ROW, 0, 0),
                };
                if is_source {
                    ((*$copy).srcMemoryType, (*$copy).srcDevice, (*$copy).srcArray) =
                        (kind, device, array as CUarray);
                    ((*$copy).srcHost, (*$copy).srcPitch) = (host as *const _, pitch as usize);
                    ((*$copy).srcXInBytes, (*$copy).srcY) = (x as usize, y as usize);
                } else {
                    ((*$copy).dstMemoryType, (*$copy).dstDevice, (*$copy).dstArray) =
                        (kind, device, array as CUarray);
                    ((*$copy).dstHost, (*$copy).dstPitch) = (host as *mut _, pitch as usize);
                    ((*$copy).dstXInBytes, (*$copy).dstY) = (x as usize, y as usize);
                }
                ((*$copy).WidthInBytes, (*$copy).Height) = ($this.width as usize, $this.height as usize);
            }
        }
    };
}

impl Copy {
    /// Makes it by one of the calls: rows or a slice, and whether they wait.
    fn make(&self, kind: u64, stream: CUstream) -> u32 {
        if kind < 2 {
            let mut room = MaybeUninit::<CUDA_MEMCPY2D>::zeroed();
            let copy = room.as_mut_ptr();
            describe!(copy, self);
            return if kind == 0 { cu!(cuMemcpy2D_v2(copy)) } else { cu!(cuMemcpy2DAsync_v2(copy, stream)) };
        }
        let mut room = MaybeUninit::<CUDA_MEMCPY3D>::zeroed();
        let copy = room.as_mut_ptr();
        describe!(copy, self);
        // SAFETY: as above.
        unsafe { (*copy).Depth = 1 };
        if kind == 2 { cu!(cuMemcpy3D_v2(copy)) } else { cu!(cuMemcpy3DAsync_v2(copy, stream)) }
    }
}

impl World {
    pub(crate) fn run_arrays(&mut self, op: &Op) -> Option<String> {
        let arg = |index: usize| op.args.get(index).copied().unwrap_or(0);
        let slot = arg(0) as usize % MEMORIES;
        // As with plain memory, making and destroying is refused beside captures, at other moments under the library.
        let unsafe_in_captures = ["array", "array_end", "array_hash"].contains(&op.verb());
        if unsafe_in_captures && !self.captured.is_empty() {
            return None;
        }
        // Calls without a stream use the default one.
        let stream_of = |kind: u64, stream: u64| if kind.is_multiple_of(2) { 0 } else { stream };
        match op.verb() {
            "array" => {
                self.vacate(slot)?;
                Some(self.make_array(slot, arg(1) as usize, arg(2) as usize).to_string())
            }
            "array_end" => {
                let memory = self.memories[slot].as_mut().filter(|memory| memory.kind == Kind::Array)?;
                if memory.gone {
                    return None;
                }
                let (array, last) = (memory.start, memory.last.take());
                self.settle(last);
                let code = cu!(cuArrayDestroy(array as CUarray));
                if code == 0 {
                    self.memories[slot].as_mut()?.gone = true;
                }
                Some(code.to_string())
            }
            "array_hash" => {
                self.memories[slot].as_ref().filter(|memory| memory.kind == Kind::Array)?;
                Some(self.contents(slot))
            }
            "to_array" | "from_array" => {
                let (x, y, other, at, width, height) = (arg(1), arg(2), arg(3), arg(4), arg(5), arg(6));
                let kind = arg(8);
                let stream = stream_of(kind, arg(7));
                let (handle, array) = self.ready(arg(0), 0, 1, stream, By::Array)?;
                let (_, memory) = self.ready(other, at, ROW * height, stream, By::Copy)?;
                let (array, memory) = (End::Array { array, x, y }, End::Device(memory));
                let (to, from) = if op.verb() == "to_array" { (array, memory) } else { (memory, array) };
                let code = Copy { to, from, width, height }.make(kind, handle);
                self.done(arg(0), stream, code);
                Some(self.done(other, stream, code).to_string())
            }
            "array_row" => {
                // One row of bytes: with memory of the device, in the default stream.
                let (x, other, at, bytes) = (arg(1) as usize, arg(2), arg(3), arg(4));
                let (_, array) = self.ready(arg(0), 0, 1, 0, By::Array)?;
                let (_, memory) = self.ready(other, at, bytes, 0, By::Copy)?;
                let array = array as CUarray;
                let code = if arg(5) == 0 {
                    cu!(cuMemcpyDtoA_v2(array, x, memory, bytes as usize))
                } else {
                    cu!(cuMemcpyAtoD_v2(memory, array, x, bytes as usize))
                };
                self.done(arg(0), 0, code);
                Some(self.done(other, 0, code).to_string())
            }
            "array_copy" => {
                let (other, kind) = (arg(3), arg(7));
                if slot == other as usize % MEMORIES {
                    return None;
                }
                let stream = stream_of(kind, arg(6));
                let (handle, to) = self.ready(arg(0), 0, 1, stream, By::Array)?;
                let (_, from) = self.ready(other, 0, 1, stream, By::Array)?;
                let end = |array, x| End::Array { array, x, y: 0 };
                let copy =
                    Copy { to: end(to, arg(1)), from: end(from, arg(2)), width: arg(4), height: arg(5) };
                let code = copy.make(kind, handle);
                self.done(arg(0), stream, code);
                Some(self.done(other, stream, code).to_string())
            }
            _ => None,
        }
    }

    /// Makes an array, with known contents.
    fn make_array(&mut self, slot: usize, height: usize, channels: usize) -> u32 {
        let Some(context) = self.current() else { return 0 };
        let form = CUDA_ARRAY3D_DESCRIPTOR {
            Width: (ROW / ELEMENT) as usize,
            Height: height,
            Depth: 0,
            Format: CUarray_format::CU_AD_FORMAT_UNSIGNED_INT8,
            NumChannels: channels as u32,
            Flags: 0,
        };
        let mut array: CUarray = std::ptr::null_mut();
        let code = cu!(cuArray3DCreate_v2(&raw mut array, &raw const form));
        if code != 0 {
            return code;
        }
        let bytes = ROW * height.max(1) as u64;
        let device = self.contexts[context].as_ref().map_or(0, |context| context.device);
        self.made += 1;
        self.memories[slot] = Some(Memory {
            kind: Kind::Array,
            start: array as u64,
            bytes,
            context,
            device,
            known: false,
            gone: false,
            freed_at: 0,
            last: None,
            mapped: std::collections::BTreeMap::new(),
            own: Vec::new(),
        });
        let filling: Vec<u8> = (0..bytes).map(|byte| (byte * 7 + slot as u64) as u8).collect();
        let filled = self.whole_array(slot, filling.as_ptr() as u64, true);
        if let Some(memory) = &mut self.memories[slot] {
            memory.known = filled == 0;
        }
        code
    }

    /// Copies all of an array from or to the host, without a trace.
    fn whole_array(&self, slot: usize, host: u64, into: bool) -> u32 {
        let Some(memory) = &self.memories[slot] else { return 1 };
        let Some(context) = &self.contexts[memory.context] else { return 1 };
        let (array, host) = (End::Array { array: memory.start, x: 0, y: 0 }, End::Host(host));
        let (to, from) = if into { (array, host) } else { (host, array) };
        relaxed(|| {
            cu!(cuCtxPushCurrent_v2(context.handle));
            let code = Copy { to, from, width: ROW, height: memory.bytes / ROW }.make(1, context.filler);
            let done = cu!(cuStreamSynchronize(context.filler));
            cu!(cuCtxPopCurrent_v2(std::ptr::null_mut()));
            code.max(done)
        })
    }

    /// What is in an array that nobody uses: a hash.
    pub(crate) fn array_contents(&self, slot: usize) -> String {
        let Some(memory) = &self.memories[slot] else { return "nothing".to_owned() };
        let mut bytes = vec![0_u8; memory.bytes as usize];
        match self.whole_array(slot, bytes.as_mut_ptr() as u64, false) {
            0 => format!("{:x}", hash(&bytes)),
            code => format!("error {code}"),
        }
    }
}

//! Memory of graphs in a script: graphs that allocate, use and free, and captures that do.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::collections::BTreeSet;
use std::mem::MaybeUninit;

use cudarc::driver::sys::{
    CUDA_MEM_ALLOC_NODE_PARAMS, CUDA_MEMCPY3D, CUDA_MEMSET_NODE_PARAMS, CUgraph,
    CUgraphMem_attribute as Attribute, CUgraphNode, CUmemAllocationType, CUmemLocationType, CUmemorytype,
};

use crate::script::Op;
use crate::uses::By;
use crate::world::{Executable, Graph, Kind, MEMORIES, SLOTS, World, cu};

/// Frees what it allocates; leaves it allocated, and cannot be launched again; frees it when it is launched again.
const FREES: u64 = 0;
const FREES_AT_LAUNCH: u64 = 2;

impl World {
    pub(crate) fn run_graph_memory(&mut self, op: &Op) -> Option<String> {
        let arg = |index: usize| op.args.get(index).copied().unwrap_or(0);
        match op.verb() {
            "graph_memory" => self.graph_with_memory(op),
            "captured_memory" => {
                // Allocates, fills, copies out and frees, all in the graph.
                let (slot, at, bytes, value, stream) = (arg(0), arg(1), arg(2), arg(3), arg(4));
                let (handle, to) = self.ready(slot, at, bytes, stream, By::Copy)?;
                if !self.is_captured(handle) {
                    return None;
                }
                let (mut inside, count) = (0, bytes as usize);
                let codes = [
                    cu!(cuMemAllocAsync(&raw mut inside, count, handle)),
                    cu!(cuMemsetD8Async(inside, value as u8, count, handle)),
                    cu!(cuMemcpyDtoDAsync_v2(to, inside, count, handle)),
                    cu!(cuMemFreeAsync(inside, handle)),
                ];
                self.done(slot, stream, codes[2]);
                Some(format!("{codes:?}"))
            }
            "graph_trim" => {
                self.settle_all();
                Some(cu!(cuDeviceGraphMemTrim(arg(0) as i32)).to_string())
            }
            // Roughly: a launch takes over what another one is done with, which is a matter of time.
            "graph_books" => {
                self.settle_all();
                let ask = |attribute| {
                    let mut bytes = 0_u64;
                    let code =
                        cu!(cuDeviceGetGraphMemAttribute(arg(0) as i32, attribute, (&raw mut bytes).cast()));
                    format!("{code} ~{bytes}")
                };
                let used = ask(Attribute::CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT);
                Some(used + " " + &ask(Attribute::CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT))
            }
            _ => None,
        }
    }

    /// A graph that allocates, fills what it allocated, copies it to a slot's memory, and perhaps frees it.
    fn graph_with_memory(&mut self, op: &Op) -> Option<String> {
        let [executable, graph, slot, at, bytes, value, kind] = op.args[..] else { return None };
        let (executable, graph, slot) =
            (executable as usize % SLOTS, graph as usize % SLOTS, slot as usize % MEMORIES);
        let current = self.current()?;
        let (context, device) = {
            let context = self.contexts[current].as_ref()?;
            (context.handle, context.device)
        };
        let memory = self.memories[slot].as_ref()?;
        let inside = bytes > 0 && at.checked_add(bytes).is_some_and(|end| end <= memory.bytes);
        let is_here = memory.device == device && matches!(memory.kind, Kind::Plain | Kind::Async);
        let vacant = self.graphs[graph].is_none() && self.executables[executable].is_none();
        if memory.gone || !memory.known || !inside || !is_here || !vacant {
            return None;
        }
        let to = memory.start + at;
        let mut made: CUgraph = std::ptr::null_mut();
        let mut codes = vec![cu!(cuGraphCreate(&raw mut made, 0))];
        let mut nodes: [CUgraphNode; 4] = [std::ptr::null_mut(); 4];
        let none = std::ptr::null();
        let mut room = MaybeUninit::<CUDA_MEM_ALLOC_NODE_PARAMS>::zeroed();
        let parameters = room.as_mut_ptr();
        // SAFETY: fields of a plain C structure, for which zeros mean nothing.
        unsafe {
            (*parameters).poolProps.allocType = CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
            (*parameters).poolProps.location.type_ = CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
            (*parameters).poolProps.location.id = device as i32;
            (*parameters).bytesize = bytes as usize;
        }
        codes.push(cu!(cuGraphAddMemAllocNode(&raw mut nodes[0], made, none, 0, parameters)));
        // SAFETY: written by the driver, or zero.
        let from = unsafe { (*parameters).dptr };
        let set = CUDA_MEMSET_NODE_PARAMS {
            dst: from,
            pitch: bytes as usize,
            value: value as u32 & 0xff,
            elementSize: 1,
            width: bytes as usize,
            height: 1,
        };
        codes.push(cu!(cuGraphAddMemsetNode(
            &raw mut nodes[1],
            made,
            &raw const nodes[0],
            1,
            &raw const set,
            context
        )));
        let mut room = MaybeUninit::<CUDA_MEMCPY3D>::zeroed();
        let copy = room.as_mut_ptr();
        let memory = CUmemorytype::CU_MEMORYTYPE_DEVICE;
        // SAFETY: as above.
        unsafe {
            ((*copy).srcMemoryType, (*copy).dstMemoryType) = (memory, memory);
            ((*copy).srcDevice, (*copy).dstDevice) = (from, to);
            ((*copy).WidthInBytes, (*copy).Height, (*copy).Depth) = (bytes as usize, 1, 1);
        }
        codes.push(cu!(cuGraphAddMemcpyNode(&raw mut nodes[2], made, &raw const nodes[1], 1, copy, context)));
        if kind == FREES {
            codes.push(cu!(cuGraphAddMemFreeNode(&raw mut nodes[3], made, &raw const nodes[2], 1, from)));
        }
        let mut handle = std::ptr::null_mut();
        let flags = u64::from(kind == FREES_AT_LAUNCH);
        let instantiated = cu!(cuGraphInstantiateWithFlags(&raw mut handle, made, flags));
        codes.push(instantiated);
        let uses = BTreeSet::from([slot]);
        self.graphs[graph] = Some(Graph { handle: made, uses: uses.clone(), context: current });
        if instantiated == 0 {
            self.executables[executable] = Some(Executable { handle, uses, context: current });
        }
        Some(format!("{codes:?}"))
    }
}

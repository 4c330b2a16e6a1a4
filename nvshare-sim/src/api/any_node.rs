//! Nodes of graphs by the functions for any kind: the kind stands first in the parameters.

#![expect(unsafe_code, reason = "a field of a union, which the kind of the node names")]

use std::ffi::{c_int, c_void};

use cudarc::driver::sys::{CUcontext, CUgraph, CUgraphExec, CUgraphNode, CUresult};

use super::described::{Slices, slices};
use super::graph::{executable_of, graph_of};
use super::graph_memory::{Parameters as Allocation, add_allocation, add_free};
use super::node::{Host, Kernel, Memset, add, host, kernel, memset, set, working_in};
use crate::call::{Call, Outcome};
use crate::execution::executable::Executable;
use crate::execution::graph::NodeKind;
use crate::execution::work::Work;
use crate::export::export;
use crate::parameters::{Count, In, InOut, List, Out};

export! {
    fn cuGraphAddNode(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count, parameters: InOut<Any>,
    ) |cx| {
        add_any(cx, made, graph, (after, count), parameters)
    }

    fn cuGraphAddNode_v2(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, data: *const c_void, count: Count,
        parameters: InOut<Any>,
    ) |cx| {
        add_any(cx, made, graph, (after, count), parameters)
    }

    fn cuGraphAddNode_v3(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, data: *const c_void, count: Count,
        parameters: InOut<Any>,
    ) |cx| {
        add_any(cx, made, graph, (after, count), parameters)
    }

    fn cuGraphNodeSetParams(node: CUgraphNode, parameters: In<Any>) |cx| {
        set(node, part(cx, parameters.get()?)?)
    }

    fn cuGraphNodeSetParams_v2(node: CUgraphNode, parameters: In<Any>) |cx| {
        set(node, part(cx, parameters.get()?)?)
    }

    fn cuGraphExecNodeSetParams(of: CUgraphExec, node: CUgraphNode, parameters: In<Any>) |cx| {
        executable_of(of)?.set(node, part(cx, parameters.get()?)?)
    }
}

/// `CUgraphNodeParams`.
#[repr(C)]
struct Any {
    kind: u32,
    reserved: [c_int; 3],
    of_kind: OfKind,
    reserved_too: i64,
}

const _: () = assert!(size_of::<Any>() == size_of::<cudarc::driver::sys::CUgraphNodeParams>());

/// As for one kind, in the newest version.
#[repr(C)]
union OfKind {
    kernel: Kernel,
    copy: CopyNode,
    memset: MemsetNode,
    host: Host,
    graph: CUgraph,
    allocation: Allocation,
    freed: u64,
    words: [i64; 29],
}

/// `CUDA_MEMCPY_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
struct CopyNode {
    flags: c_int,
    reserved: c_int,
    context: CUcontext,
    copy: Slices,
}

/// `CUDA_MEMSET_NODE_PARAMS_v2`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemsetNode {
    of_all: Memset,
    context: CUcontext,
}

fn add_any(
    cx: &Call,
    made: Out<CUgraphNode>,
    graph: CUgraph,
    after: (List<CUgraphNode>, Count),
    mut parameters: InOut<Any>,
) -> Outcome {
    let any = parameters.get()?;
    match any.kind {
        kind if kind == NodeKind::Allocate as u32 => {
            // SAFETY: what the kind says is there.
            add_allocation(made, graph, after, unsafe { &mut any.of_kind.allocation })
        }
        kind if kind == NodeKind::Free as u32 => {
            // SAFETY: as above.
            add_free(made, graph, after, unsafe { any.of_kind.freed })
        }
        _ => add(made, graph, after, part(cx, any)?),
    }
}

fn part(cx: &Call, any: &Any) -> Outcome<Work> {
    // SAFETY: what the kind says is there.
    unsafe {
        match any.kind {
            kind if kind == NodeKind::Kernel as u32 => kernel(cx, &any.of_kind.kernel),
            kind if kind == NodeKind::Copy as u32 => Ok(Work::Transfer(slices(&any.of_kind.copy.copy)?)),
            kind if kind == NodeKind::Set as u32 => {
                let MemsetNode { of_all, context } = &any.of_kind.memset;
                memset(of_all, working_in(*context))
            }
            kind if kind == NodeKind::Host as u32 => host(&any.of_kind.host),
            kind if kind == NodeKind::Graph as u32 => {
                Ok(Work::Graph(Executable::snapshot_of(&graph_of(any.of_kind.graph)?)?))
            }
            kind if kind == NodeKind::Empty as u32 => Ok(Work::Nothing),
            // What a node allocates or frees stays what it is.
            kind if kind == NodeKind::Allocate as u32 || kind == NodeKind::Free as u32 => {
                Err(CUresult::CUDA_ERROR_INVALID_VALUE)
            }
            _ => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
        }
    }
}

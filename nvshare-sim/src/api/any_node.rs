//! Nodes of graphs by the functions for any kind: the kind stands first in the parameters.

use std::ffi::{c_int, c_void};

use cudarc::driver::sys::{CUcontext, CUgraph, CUgraphExec, CUgraphNode, CUresult};

use super::described::{Slices, slices};
use super::graph::{executable_of, graph_of};
use super::graph_memory::{add_allocation, add_free};
use super::node::{Memset, add, host, kernel, memset, set, working_in};
use crate::executable::Executable;
use crate::export::{Call, Outcome, export};
use crate::graph::NodeKind;
use crate::work::Work;

export! {
    fn cuGraphAddNode(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, parameters: *mut Any,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add_any(cx, made, graph, after, count, parameters) }
    }

    fn cuGraphAddNode_v2(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, data: *const c_void, count: usize,
        parameters: *mut Any,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add_any(cx, made, graph, after, count, parameters) }
    }

    fn cuGraphAddNode_v3(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, data: *const c_void, count: usize,
        parameters: *mut Any,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add_any(cx, made, graph, after, count, parameters) }
    }

    fn cuGraphNodeSetParams(node: CUgraphNode, parameters: *const Any) |cx| {
        // SAFETY: parameters as the driver API demands them.
        set(node, unsafe { part(cx, parameters) }?)
    }

    fn cuGraphNodeSetParams_v2(node: CUgraphNode, parameters: *const Any) |cx| {
        // SAFETY: parameters as the driver API demands them.
        set(node, unsafe { part(cx, parameters) }?)
    }

    fn cuGraphExecNodeSetParams(of: CUgraphExec, node: CUgraphNode, parameters: *const Any) |cx| {
        // SAFETY: parameters as the driver API demands them.
        executable_of(of)?.set(node, unsafe { part(cx, parameters) }?)
    }
}

/// `CUgraphNodeParams`.
#[repr(C)]
struct Any {
    kind: u32,
    reserved: [c_int; 3],
    /// As for one kind, in the newest version.
    of_kind: [i64; 29],
    reserved_too: i64,
}

const _: () = assert!(size_of::<Any>() == size_of::<cudarc::driver::sys::CUgraphNodeParams>());

/// `CUDA_MEMCPY_NODE_PARAMS`.
#[repr(C)]
struct CopyNode {
    flags: c_int,
    reserved: c_int,
    context: CUcontext,
    copy: Slices,
}

/// `CUDA_MEMSET_NODE_PARAMS_v2`.
#[repr(C)]
struct MemsetNode {
    of_all: Memset,
    context: CUcontext,
}

/// # Safety
/// `made` is null or writable, `after` points to `count` handles, `parameters` is null or what the driver API demands.
unsafe fn add_any(
    cx: &Call,
    made: *mut CUgraphNode,
    graph: CUgraph,
    after: *const CUgraphNode,
    count: usize,
    parameters: *mut Any,
) -> Outcome {
    // SAFETY: the caller's; what the kind says is there.
    unsafe {
        let any = parameters.as_mut().ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let of_kind = &raw mut any.of_kind;
        match any.kind {
            kind if kind == NodeKind::Allocate as u32 => {
                add_allocation(made, graph, after, count, of_kind.cast())
            }
            kind if kind == NodeKind::Free as u32 => {
                add_free(made, graph, after, count, of_kind.cast::<u64>().read())
            }
            _ => add(made, graph, after, count, part(cx, parameters)?),
        }
    }
}

/// # Safety
/// `parameters` is null or what the driver API demands.
unsafe fn part(cx: &Call, parameters: *const Any) -> Outcome<Work> {
    // SAFETY: the caller's; what the kind says is there.
    unsafe {
        let any = parameters.as_ref().ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let of_kind = &raw const any.of_kind;
        match any.kind {
            kind if kind == NodeKind::Kernel as u32 => kernel(cx, of_kind.cast(), true),
            kind if kind == NodeKind::Copy as u32 => {
                let node = of_kind.cast::<CopyNode>();
                Ok(Work::Transfer(slices(&raw const (*node).copy)?))
            }
            kind if kind == NodeKind::Set as u32 => {
                let node = of_kind.cast::<MemsetNode>();
                let context = (&raw const (*node).context).read();
                memset(&raw const (*node).of_all, working_in(context))
            }
            kind if kind == NodeKind::Host as u32 => host(of_kind.cast()),
            kind if kind == NodeKind::Graph as u32 => {
                Ok(Work::Graph(Executable::snapshot_of(&graph_of(of_kind.cast::<CUgraph>().read())?)?))
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

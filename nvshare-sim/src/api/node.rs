//! Nodes of graphs: added, and their parameters changed, by the functions for one kind.

use std::ffi::{c_uint, c_void};
use std::sync::{Arc, PoisonError};

use cudarc::driver::sys::{CUcontext, CUfunction, CUgraph, CUgraphExec, CUgraphNode, CUkernel, CUresult};

use super::described::{Slices, slices};
use super::graph::{executable_of, graph_of, node_of, nodes_of};
use super::launch::{function_of, known};
use super::memset::check;
use crate::executable::Executable;
use crate::export::{Call, Outcome, export, put};
use crate::graph::NodeKind;
use crate::kernel::{Launch, Shape};
use crate::work::{Fill, HostCall, Work};

export! {
    fn cuGraphAddKernelNode(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, parameters: *const Kernel,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add(made, graph, after, count, kernel(cx, parameters, false)?) }
    }

    fn cuGraphAddKernelNode_v2(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, parameters: *const Kernel,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add(made, graph, after, count, kernel(cx, parameters, true)?) }
    }

    fn cuGraphKernelNodeSetParams(node: CUgraphNode, parameters: *const Kernel) |cx| {
        // SAFETY: parameters as the driver API demands them.
        set(node, unsafe { kernel(cx, parameters, false) }?)
    }

    fn cuGraphKernelNodeSetParams_v2(node: CUgraphNode, parameters: *const Kernel) |cx| {
        // SAFETY: parameters as the driver API demands them.
        set(node, unsafe { kernel(cx, parameters, true) }?)
    }

    fn cuGraphExecKernelNodeSetParams(of: CUgraphExec, node: CUgraphNode, parameters: *const Kernel) |cx| {
        // SAFETY: parameters as the driver API demands them.
        executable_of(of)?.set(node, unsafe { kernel(cx, parameters, false) }?)
    }

    fn cuGraphExecKernelNodeSetParams_v2(of: CUgraphExec, node: CUgraphNode, parameters: *const Kernel) |cx| {
        // SAFETY: parameters as the driver API demands them.
        executable_of(of)?.set(node, unsafe { kernel(cx, parameters, true) }?)
    }

    fn cuGraphAddMemcpyNode(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, copy: *const Slices,
        context: CUcontext,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add(made, graph, after, count, Work::Transfer(slices(copy)?)) }
    }

    fn cuGraphMemcpyNodeSetParams(node: CUgraphNode, copy: *const Slices) |cx| {
        // SAFETY: parameters as the driver API demands them.
        set(node, Work::Transfer(unsafe { slices(copy) }?))
    }

    fn cuGraphExecMemcpyNodeSetParams(
        of: CUgraphExec, node: CUgraphNode, copy: *const Slices, context: CUcontext,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        executable_of(of)?.set(node, Work::Transfer(unsafe { slices(copy) }?))
    }

    fn cuGraphAddMemsetNode(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, parameters: *const Memset,
        context: CUcontext,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add(made, graph, after, count, memset(parameters, working_in(context))?) }
    }

    fn cuGraphMemsetNodeSetParams(node: CUgraphNode, parameters: *const Memset) |cx| {
        // SAFETY: parameters as the driver API demands them.
        set(node, unsafe { memset(parameters, None) }?)
    }

    fn cuGraphExecMemsetNodeSetParams(
        of: CUgraphExec, node: CUgraphNode, parameters: *const Memset, context: CUcontext,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        executable_of(of)?.set(node, unsafe { memset(parameters, working_in(context)) }?)
    }

    fn cuGraphAddHostNode(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, parameters: *const Host,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add(made, graph, after, count, host(parameters)?) }
    }

    fn cuGraphAddEmptyNode(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add(made, graph, after, count, Work::Nothing) }
    }

    fn cuGraphAddChildGraphNode(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, child: CUgraph,
    ) |cx| {
        let child = Executable::snapshot_of(&graph_of(child)?)?;
        // SAFETY: parameters as the driver API demands them.
        unsafe { add(made, graph, after, count, Work::Graph(child)) }
    }
}

/// `CUDA_KERNEL_NODE_PARAMS`; the first version ends before `code`.
#[repr(C)]
pub(super) struct Kernel {
    function: CUfunction,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    parameters: *const *const c_void,
    extra: *const *const c_void,
    code: CUkernel,
    context: CUcontext,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
pub(super) struct Memset {
    address: u64,
    pitch: usize,
    value: c_uint,
    element: c_uint,
    width: usize,
    height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
pub(super) struct Host {
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    argument: *mut c_void,
}

/// The context that a node names, or the current one.
pub(super) fn working_in(context: CUcontext) -> Option<u64> {
    crate::context::by_handle(context).ok().or_else(crate::context::current).map(|context| context.id)
}

/// # Safety
/// `parameters` is null or what the driver API demands, in its second version with `newer`.
pub(super) unsafe fn kernel(cx: &Call, parameters: *const Kernel, newer: bool) -> Outcome<Work> {
    if parameters.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's; the last two fields are read only where they are there.
    let (function, shape, values, extra) = unsafe {
        let function = &raw const (*parameters).function;
        let kernel = if newer { (&raw const (*parameters).code).read() } else { std::ptr::null_mut() };
        let function = if function.read().is_null() { kernel.cast() } else { function.read() };
        let shape = Shape {
            grid: (&raw const (*parameters).grid).read(),
            block: (&raw const (*parameters).block).read(),
            shared: (&raw const (*parameters).shared).read(),
        };
        (
            function,
            shape,
            (&raw const (*parameters).parameters).read(),
            (&raw const (*parameters).extra).read(),
        )
    };
    let function = function_of(cx, function)?;
    known(&function)?;
    // SAFETY: values as for a launch.
    Ok(Work::Kernel(Arc::new(unsafe { Launch::new(&function, shape, values, extra) }?)))
}

/// # Safety
/// `parameters` is null or what the driver API demands.
pub(super) unsafe fn memset(parameters: *const Memset, context: Option<u64>) -> Outcome<Work> {
    // SAFETY: the caller's.
    let parameters = unsafe { parameters.as_ref() }.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    if !matches!(parameters.element, 1 | 2 | 4) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let fill = Fill {
        address: parameters.address,
        pitch: parameters.pitch as u64,
        element: u64::from(parameters.element),
        value: parameters.value,
        width: parameters.width as u64,
        height: parameters.height as u64,
        context: context.unwrap_or(0),
    };
    check(&fill)?;
    Ok(Work::Fill(fill))
}

/// # Safety
/// `parameters` is null or what the driver API demands.
pub(super) unsafe fn host(parameters: *const Host) -> Outcome<Work> {
    // SAFETY: the caller's.
    let parameters = unsafe { parameters.as_ref() }.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    let function = parameters.function.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    Ok(Work::Host(HostCall { function, argument: parameters.argument as usize }))
}

/// # Safety
/// `made` is null or writable, `after` points to `count` handles.
pub(super) unsafe fn add(
    made: *mut CUgraphNode,
    graph: CUgraph,
    after: *const CUgraphNode,
    count: usize,
    work: Work,
) -> Outcome {
    let graph = graph_of(graph)?;
    // SAFETY: the caller's.
    unsafe { put(made, graph.add(work, nodes_of(after, count)?).handle()) }
}

pub(super) fn set(node: CUgraphNode, work: Work) -> Outcome {
    let node = node_of(node)?;
    let mut before = node.work.lock().unwrap_or_else(PoisonError::into_inner);
    if !NodeKind::can_become(&before, &work) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    *before = work.in_place_of(&before);
    Ok(())
}

//! Nodes of graphs: added, and their parameters changed, by the functions for one kind.

use std::ffi::{c_uint, c_void};
use std::sync::{Arc, PoisonError};

use cudarc::driver::sys::{CUcontext, CUfunction, CUgraph, CUgraphExec, CUgraphNode, CUkernel, CUresult};

use super::described::{Slices, slices};
use super::graph::{executable_of, graph_of, node_of, nodes_of};
use super::launch::{function_of, known};
use super::memset::check;
use crate::call::{Call, Outcome};
use crate::execution::executable::Executable;
use crate::execution::graph::NodeKind;
use crate::execution::kernel::{Launch, Shape};
use crate::execution::work::{Fill, HostCall, Work};
use crate::export::export;
use crate::parameters::{Arguments, Count, Extra, In, List, Out};

export! {
    fn cuGraphAddKernelNode(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count,
        parameters: In<OldKernel>,
    ) |cx| {
        let work = kernel(cx, &parameters.get()?.with_code())?;
        add(made, graph, (after, count), work)
    }

    fn cuGraphAddKernelNode_v2(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count, parameters: In<Kernel>,
    ) |cx| {
        add(made, graph, (after, count), kernel(cx, parameters.get()?)?)
    }

    fn cuGraphKernelNodeSetParams(node: CUgraphNode, parameters: In<OldKernel>) |cx| {
        set(node, kernel(cx, &parameters.get()?.with_code())?)
    }

    fn cuGraphKernelNodeSetParams_v2(node: CUgraphNode, parameters: In<Kernel>) |cx| {
        set(node, kernel(cx, parameters.get()?)?)
    }

    fn cuGraphExecKernelNodeSetParams(of: CUgraphExec, node: CUgraphNode, parameters: In<OldKernel>) |cx| {
        executable_of(of)?.set(node, kernel(cx, &parameters.get()?.with_code())?)
    }

    fn cuGraphExecKernelNodeSetParams_v2(of: CUgraphExec, node: CUgraphNode, parameters: In<Kernel>) |cx| {
        executable_of(of)?.set(node, kernel(cx, parameters.get()?)?)
    }

    fn cuGraphAddMemcpyNode(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count, copy: In<Slices>,
        context: CUcontext,
    ) |cx| {
        add(made, graph, (after, count), Work::Transfer(slices(copy.get()?)?))
    }

    fn cuGraphMemcpyNodeSetParams(node: CUgraphNode, copy: In<Slices>) |cx| {
        set(node, Work::Transfer(slices(copy.get()?)?))
    }

    fn cuGraphExecMemcpyNodeSetParams(
        of: CUgraphExec, node: CUgraphNode, copy: In<Slices>, context: CUcontext,
    ) |cx| {
        executable_of(of)?.set(node, Work::Transfer(slices(copy.get()?)?))
    }

    fn cuGraphAddMemsetNode(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count, parameters: In<Memset>,
        context: CUcontext,
    ) |cx| {
        add(made, graph, (after, count), memset(parameters.get()?, working_in(context))?)
    }

    fn cuGraphMemsetNodeSetParams(node: CUgraphNode, parameters: In<Memset>) |cx| {
        set(node, memset(parameters.get()?, None)?)
    }

    fn cuGraphExecMemsetNodeSetParams(
        of: CUgraphExec, node: CUgraphNode, parameters: In<Memset>, context: CUcontext,
    ) |cx| {
        executable_of(of)?.set(node, memset(parameters.get()?, working_in(context))?)
    }

    fn cuGraphAddHostNode(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count, parameters: In<Host>,
    ) |cx| {
        add(made, graph, (after, count), host(parameters.get()?)?)
    }

    fn cuGraphAddEmptyNode(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count,
    ) |cx| {
        add(made, graph, (after, count), Work::Nothing)
    }

    fn cuGraphAddChildGraphNode(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count, child: CUgraph,
    ) |cx| {
        let child = Executable::snapshot_of(&graph_of(child)?)?;
        add(made, graph, (after, count), Work::Graph(child))
    }
}

/// `CUDA_KERNEL_NODE_PARAMS_v1`.
#[repr(C)]
#[derive(Clone, Copy)]
struct OldKernel {
    function: CUfunction,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    parameters: Arguments,
    extra: Extra,
}

impl OldKernel {
    /// As the newer functions are given it.
    fn with_code(&self) -> Kernel {
        Kernel { old: *self, code: std::ptr::null_mut(), context: std::ptr::null_mut() }
    }
}

/// `CUDA_KERNEL_NODE_PARAMS`: the function may be a kernel instead.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    old: OldKernel,
    code: CUkernel,
    context: CUcontext,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
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
#[derive(Clone, Copy)]
pub(super) struct Host {
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    argument: *mut c_void,
}

/// The context that a node names, or the current one.
pub(super) fn working_in(context: CUcontext) -> Option<u64> {
    crate::context::by_handle(context).ok().or_else(crate::context::current).map(|context| context.id)
}

pub(super) fn kernel(cx: &Call, &Kernel { old, code, .. }: &Kernel) -> Outcome<Work> {
    let function = function_of(cx, if old.function.is_null() { code.cast() } else { old.function })?;
    known(&function)?;
    let shape = Shape { grid: old.grid, block: old.block, shared: old.shared };
    Ok(Work::Kernel(Arc::new(Launch::new(&function, shape, old.parameters, old.extra)?)))
}

pub(super) fn memset(parameters: &Memset, context: Option<u64>) -> Outcome<Work> {
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

pub(super) fn host(parameters: &Host) -> Outcome<Work> {
    let function = parameters.function.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    Ok(Work::Host(HostCall { function, argument: parameters.argument as usize }))
}

pub(super) fn add(
    made: Out<CUgraphNode>,
    graph: CUgraph,
    after: (List<CUgraphNode>, Count),
    work: Work,
) -> Outcome {
    let graph = graph_of(graph)?;
    made.set(graph.add(work, nodes_of(after)?).handle())
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

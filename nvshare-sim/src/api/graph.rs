//! Graphs: made, asked, instantiated, launched.

use std::ffi::{c_char, c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphNode, CUresult, CUstream};

use crate::executable::{EXECUTABLES, Executable};
use crate::export::{Outcome, export, put, put_if};
use crate::graph::{GRAPHS, Graph, NODES, Node, NodeKind};
use crate::handles::handle_of;

export! {
    fn cuGraphCreate(made: *mut CUgraph, flags: c_uint) |cx| {
        if made.is_null() || flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(made, Graph::new().handle()) }
    }

    fn cuGraphDestroy(handle: CUgraph) |cx| {
        graph_of(handle)?.destroy();
        Ok(())
    }

    fn cuGraphClone(made: *mut CUgraph, original: CUgraph) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(made, graph_of(original)?.duplicate()?.handle()) }
    }

    fn cuGraphGetNodes(handle: CUgraph, nodes: *mut CUgraphNode, count: *mut usize) |cx| {
        // SAFETY: out-parameters of the driver API.
        unsafe { list(&graph_of(handle)?.nodes(), nodes, count) }
    }

    fn cuGraphGetRootNodes(handle: CUgraph, nodes: *mut CUgraphNode, count: *mut usize) |cx| {
        let mut roots = graph_of(handle)?.nodes();
        roots.retain(|node| node.after().is_empty());
        // SAFETY: out-parameters of the driver API.
        unsafe { list(&roots, nodes, count) }
    }

    fn cuGraphGetEdges(handle: CUgraph, from: *mut CUgraphNode, to: *mut CUgraphNode, count: *mut usize) |cx| {
        // SAFETY: out-parameters of the driver API.
        unsafe { edges(&graph_of(handle)?, from, to, count) }
    }

    fn cuGraphGetEdges_v2(
        handle: CUgraph, from: *mut CUgraphNode, to: *mut CUgraphNode, data: *mut [u8; 8], count: *mut usize,
    ) |cx| {
        // SAFETY: out-parameters of the driver API.
        unsafe {
            if !data.is_null() && !count.is_null() {
                data.write_bytes(0, count.read());
            }
            edges(&graph_of(handle)?, from, to, count)
        }
    }

    fn cuGraphNodeGetType(handle: CUgraphNode, kind: *mut c_uint) |cx| {
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(kind, NodeKind::of(&node_of(handle)?.work()) as c_uint) }
    }

    fn cuGraphNodeGetDependencies(handle: CUgraphNode, nodes: *mut CUgraphNode, count: *mut usize) |cx| {
        // SAFETY: out-parameters of the driver API.
        unsafe { list(&node_of(handle)?.after(), nodes, count) }
    }

    fn cuGraphNodeGetDependencies_v2(
        handle: CUgraphNode, nodes: *mut CUgraphNode, data: *mut [u8; 8], count: *mut usize,
    ) |cx| {
        // SAFETY: out-parameters of the driver API.
        unsafe {
            if !data.is_null() && !count.is_null() {
                data.write_bytes(0, count.read());
            }
            list(&node_of(handle)?.after(), nodes, count)
        }
    }

    fn cuGraphAddDependencies(
        handle: CUgraph, from: *const CUgraphNode, to: *const CUgraphNode, count: usize,
    ) |cx| {
        graph_of(handle)?;
        // SAFETY: the caller's arrays of that many.
        unsafe { connect(from, to, count) }
    }

    fn cuGraphAddDependencies_v2(
        handle: CUgraph, from: *const CUgraphNode, to: *const CUgraphNode, data: *const c_void, count: usize,
    ) |cx| {
        graph_of(handle)?;
        // SAFETY: the caller's arrays of that many.
        unsafe { connect(from, to, count) }
    }

    fn cuGraphDestroyNode(handle: CUgraphNode) |cx| {
        let node = node_of(handle)?;
        if let Some(graph) = node.graph.upgrade() {
            graph.remove(&node)?;
        }
        Ok(())
    }

    fn cuGraphInstantiate(
        made: *mut CUgraphExec, handle: CUgraph, wrong: *mut CUgraphNode, log: *mut c_char, bytes: usize,
    ) |cx| {
        // SAFETY: out-parameters of the driver API.
        unsafe { instantiate(made, handle, 0) }
    }

    fn cuGraphInstantiate_v2(
        made: *mut CUgraphExec, handle: CUgraph, wrong: *mut CUgraphNode, log: *mut c_char, bytes: usize,
    ) |cx| {
        // SAFETY: out-parameters of the driver API.
        unsafe { instantiate(made, handle, 0) }
    }

    fn cuGraphInstantiateWithFlags(made: *mut CUgraphExec, handle: CUgraph, flags: u64) |cx| {
        // SAFETY: out-parameters of the driver API.
        unsafe { instantiate(made, handle, flags) }
    }

    fn cuGraphInstantiateWithParams / cuGraphInstantiateWithParams_ptsz(
        made: *mut CUgraphExec, handle: CUgraph, parameters: *mut Parameters,
    ) |cx| {
        if parameters.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: in- and out-parameters of the driver API.
        unsafe {
            instantiate(made, handle, (*parameters).flags)?;
            (*parameters).wrong = std::ptr::null_mut();
            (*parameters).result = 0;
        }
        Ok(())
    }

    fn cuGraphExecDestroy(handle: CUgraphExec) |cx| {
        EXECUTABLES.remove(handle).map(|_| ()).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
    }

    fn cuGraphExecUpdate(handle: CUgraphExec, graph: CUgraph, wrong: *mut CUgraphNode, result: *mut c_uint) |cx| {
        let updated = executable_of(handle)?.update(&graph_of(graph)?);
        // SAFETY: optional out-parameters of the driver API.
        unsafe {
            put_if(wrong, std::ptr::null_mut());
            put_if(result, c_uint::from(updated.is_err()));
        }
        updated
    }

    fn cuGraphExecUpdate_v2(handle: CUgraphExec, graph: CUgraph, information: *mut [u64; 3]) |cx| {
        let updated = executable_of(handle)?.update(&graph_of(graph)?);
        // SAFETY: an out-parameter of the driver API: a result and two nodes.
        unsafe { put_if(information, [u64::from(updated.is_err()), 0, 0]) };
        updated
    }

    fn cuGraphUpload / cuGraphUpload_ptsz(handle: CUgraphExec, stream: CUstream) |cx| {
        executable_of(handle)?;
        cx.stream(stream).map(|_| ())
    }

    fn cuGraphLaunch / cuGraphLaunch_ptsz(handle: CUgraphExec, stream: CUstream) |cx| {
        let stream = cx.stream(stream)?;
        executable_of(handle)?.launch(&stream)
    }
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`, with a plain number where it has an enum.
#[repr(C)]
struct Parameters {
    flags: u64,
    stream: CUstream,
    wrong: CUgraphNode,
    result: u32,
}

/// The graph that a handle names.
pub(crate) fn graph_of(handle: CUgraph) -> Outcome<Arc<Graph>> {
    GRAPHS.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
}

/// The node that a handle names.
pub(crate) fn node_of(handle: CUgraphNode) -> Outcome<Arc<Node>> {
    NODES.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
}

/// The executable graph that a handle names.
pub(crate) fn executable_of(handle: CUgraphExec) -> Outcome<Arc<Executable>> {
    EXECUTABLES.get(handle).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
}

/// The nodes of an array of handles.
///
/// # Safety
/// `nodes` points to `count` handles, or `count` is 0.
pub(crate) unsafe fn nodes_of(nodes: *const CUgraphNode, count: usize) -> Outcome<Vec<Arc<Node>>> {
    if count > 0 && nodes.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's array.
    (0..count).map(|index| node_of(unsafe { nodes.add(index).read() })).collect()
}

/// Tells how many there are, and as many of them as there is room for.
///
/// # Safety
/// `count` is writable and says how many handles fit into `to`, unless that is null.
unsafe fn list(nodes: &[Arc<Node>], to: *mut CUgraphNode, count: *mut usize) -> Outcome {
    if count.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's.
    unsafe {
        if !to.is_null() {
            let room = count.read();
            for index in 0..room {
                to.add(index).write(nodes.get(index).map_or(std::ptr::null_mut(), Node::handle));
            }
        }
        count.write(nodes.len());
    }
    Ok(())
}

/// # Safety
/// As [`list`], for two arrays.
unsafe fn edges(
    graph: &Arc<Graph>,
    from: *mut CUgraphNode,
    to: *mut CUgraphNode,
    count: *mut usize,
) -> Outcome {
    let pairs = graph.nodes().into_iter().flat_map(|node| {
        let after = node.after();
        after.into_iter().map(move |before| (before, Arc::clone(&node)))
    });
    let (before, after): (Vec<_>, Vec<_>) = pairs.unzip();
    if count.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's.
    unsafe {
        let mut room = count.read();
        list(&before, from, &raw mut room)?;
        list(&after, to, count)
    }
}

/// # Safety
/// `from` and `to` point to `count` handles each.
unsafe fn connect(from: *const CUgraphNode, to: *const CUgraphNode, count: usize) -> Outcome {
    // SAFETY: the caller's.
    let (from, to) = unsafe { (nodes_of(from, count)?, nodes_of(to, count)?) };
    for (before, node) in from.into_iter().zip(to) {
        node.after.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(before);
    }
    Ok(())
}

/// # Safety
/// `made` is null or writable.
unsafe fn instantiate(made: *mut CUgraphExec, handle: CUgraph, flags: u64) -> Outcome {
    if made.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's.
    unsafe { put(made, handle_of(&Executable::new(&graph_of(handle)?, flags)?)) }
}

//! Graphs: made, asked, instantiated, launched.

use std::ffi::{c_char, c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphNode, CUresult, CUstream};

use crate::call::Outcome;
use crate::execution::executable::{EXECUTABLES, Executable};
use crate::execution::graph::{GRAPHS, Graph, NODES, Node, NodeKind};
use crate::export::export;
use crate::handles::handle_of;
use crate::parameters::{Count, InOut, List, Maybe, Out, Places, Room};

export! {
    fn cuGraphCreate(made: Out<CUgraph>, flags: c_uint) |cx| {
        if made.is_null() || flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        made.set(Graph::new().handle())
    }

    fn cuGraphDestroy(handle: CUgraph) |cx| {
        graph_of(handle)?.destroy();
        Ok(())
    }

    fn cuGraphClone(made: Out<CUgraph>, original: CUgraph) |cx| {
        made.set(graph_of(original)?.duplicate()?.handle())
    }

    fn cuGraphGetNodes(handle: CUgraph, nodes: Places<CUgraphNode>, count: Room) |cx| {
        list(&graph_of(handle)?.nodes(), &nodes, count)
    }

    fn cuGraphGetRootNodes(handle: CUgraph, nodes: Places<CUgraphNode>, count: Room) |cx| {
        let mut roots = graph_of(handle)?.nodes();
        roots.retain(|node| node.after().is_empty());
        list(&roots, &nodes, count)
    }

    fn cuGraphGetEdges(
        handle: CUgraph, from: Places<CUgraphNode>, to: Places<CUgraphNode>, count: Room,
    ) |cx| {
        edges(&graph_of(handle)?, &from, &to, count)
    }

    fn cuGraphGetEdges_v2(
        handle: CUgraph, from: Places<CUgraphNode>, to: Places<CUgraphNode>, data: Places<Edge>, count: Room,
    ) |cx| {
        no_data(&data, &count)?;
        edges(&graph_of(handle)?, &from, &to, count)
    }

    fn cuGraphNodeGetType(handle: CUgraphNode, kind: Out<c_uint>) |cx| {
        kind.set(NodeKind::of(&node_of(handle)?.work()) as c_uint)
    }

    fn cuGraphNodeGetDependencies(handle: CUgraphNode, nodes: Places<CUgraphNode>, count: Room) |cx| {
        list(&node_of(handle)?.after(), &nodes, count)
    }

    fn cuGraphNodeGetDependencies_v2(
        handle: CUgraphNode, nodes: Places<CUgraphNode>, data: Places<Edge>, count: Room,
    ) |cx| {
        no_data(&data, &count)?;
        list(&node_of(handle)?.after(), &nodes, count)
    }

    fn cuGraphAddDependencies(
        handle: CUgraph, from: List<CUgraphNode>, to: List<CUgraphNode>, count: Count,
    ) |cx| {
        graph_of(handle)?;
        connect(from, to, count)
    }

    fn cuGraphAddDependencies_v2(
        handle: CUgraph, from: List<CUgraphNode>, to: List<CUgraphNode>, data: *const c_void, count: Count,
    ) |cx| {
        graph_of(handle)?;
        connect(from, to, count)
    }

    fn cuGraphDestroyNode(handle: CUgraphNode) |cx| {
        let node = node_of(handle)?;
        if let Some(graph) = node.graph.upgrade() {
            graph.remove(&node)?;
        }
        Ok(())
    }

    fn cuGraphInstantiate(
        made: Out<CUgraphExec>, handle: CUgraph, wrong: *mut CUgraphNode, log: *mut c_char, bytes: usize,
    ) |cx| {
        instantiate(made, handle, 0)
    }

    fn cuGraphInstantiate_v2(
        made: Out<CUgraphExec>, handle: CUgraph, wrong: *mut CUgraphNode, log: *mut c_char, bytes: usize,
    ) |cx| {
        instantiate(made, handle, 0)
    }

    fn cuGraphInstantiateWithFlags(made: Out<CUgraphExec>, handle: CUgraph, flags: u64) |cx| {
        instantiate(made, handle, flags)
    }

    fn cuGraphInstantiateWithParams / cuGraphInstantiateWithParams_ptsz(
        made: Out<CUgraphExec>, handle: CUgraph, parameters: InOut<Parameters>,
    ) |cx| {
        let mut parameters = parameters;
        let parameters = parameters.get()?;
        instantiate(made, handle, parameters.flags)?;
        parameters.wrong = std::ptr::null_mut();
        parameters.result = 0;
        Ok(())
    }

    fn cuGraphExecDestroy(handle: CUgraphExec) |cx| {
        EXECUTABLES.remove(handle).map(|_| ()).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
    }

    fn cuGraphExecUpdate(
        handle: CUgraphExec, graph: CUgraph, wrong: Maybe<CUgraphNode>, result: Maybe<c_uint>,
    ) |cx| {
        let updated = executable_of(handle)?.update(&graph_of(graph)?);
        wrong.set(std::ptr::null_mut());
        result.set(c_uint::from(updated.is_err()));
        updated
    }

    fn cuGraphExecUpdate_v2(handle: CUgraphExec, graph: CUgraph, information: Maybe<[u64; 3]>) |cx| {
        let updated = executable_of(handle)?.update(&graph_of(graph)?);
        information.set([u64::from(updated.is_err()), 0, 0]);
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

/// The nodes that a list of handles names.
pub(crate) fn nodes_of((nodes, count): (List<CUgraphNode>, Count)) -> Outcome<Vec<Arc<Node>>> {
    nodes.of(count)?.iter().map(|node| node_of(*node)).collect()
}

/// Tells how many there are, and as many of them as there is room for; null for those that are not.
fn list(nodes: &[Arc<Node>], to: &Places<CUgraphNode>, room: Room) -> Outcome {
    write(nodes, to, &room)?;
    room.set(nodes.len())
}

fn write(nodes: &[Arc<Node>], to: &Places<CUgraphNode>, room: &Room) -> Outcome {
    let handles = nodes.iter().map(Node::handle).chain(std::iter::repeat(std::ptr::null_mut()));
    let room = room.count()?;
    if to.is_null() { Ok(()) } else { to.fill(room, handles.map(Ok)) }
}

/// `CUgraphEdgeData`.
type Edge = [u8; 8];

/// Edges have none.
fn no_data(to: &Places<Edge>, room: &Room) -> Outcome {
    let room = room.count()?;
    if to.is_null() { Ok(()) } else { to.fill(room, std::iter::repeat(Ok([0; 8]))) }
}

fn edges(graph: &Arc<Graph>, from: &Places<CUgraphNode>, to: &Places<CUgraphNode>, room: Room) -> Outcome {
    let pairs = graph.nodes().into_iter().flat_map(|node| {
        let after = node.after();
        after.into_iter().map(move |before| (before, Arc::clone(&node)))
    });
    let (before, after): (Vec<_>, Vec<_>) = pairs.unzip();
    write(&before, from, &room)?;
    list(&after, to, room)
}

fn connect(from: List<CUgraphNode>, to: List<CUgraphNode>, count: Count) -> Outcome {
    let (from, to) = (nodes_of((from, count))?, nodes_of((to, count))?);
    for (before, node) in from.into_iter().zip(to) {
        node.after.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(before);
    }
    Ok(())
}

fn instantiate(made: Out<CUgraphExec>, handle: CUgraph, flags: u64) -> Outcome {
    made.needed()?;
    made.set(handle_of(&Executable::new(&graph_of(handle)?, flags)?))
}

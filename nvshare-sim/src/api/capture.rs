//! Stream capture.

use std::cell::RefCell;
use std::ffi::{c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUgraph, CUgraphNode, CUstream};

use super::graph::{graph_of, nodes_of};
use crate::call::{Call, Outcome};
use crate::execution::capture::{self, Mode, Status};
use crate::execution::graph::{Graph, Node};
use crate::export::export;
use crate::parameters::{Count, InOut, List, Maybe, Out};

/// `CU_STREAM_CAPTURE_STATUS_NONE`, `_ACTIVE`, `_INVALIDATED`.
const NONE: c_uint = 0;
const ACTIVE: c_uint = 1;
const INVALIDATED: c_uint = 2;

thread_local! {
    /// The nodes that a thread was told of last: the driver's answer is valid until the next call.
    static TOLD: RefCell<Vec<CUgraphNode>> = const { RefCell::new(Vec::new()) };
}

export! {
    fn cuStreamBeginCapture / cuStreamBeginCapture_ptsz(stream: CUstream) |cx| {
        begin(cx, stream, Mode::Global as c_uint)
    }

    fn cuStreamBeginCapture_v2 / cuStreamBeginCapture_v2_ptsz(stream: CUstream, mode: c_uint) |cx| {
        begin(cx, stream, mode)
    }

    fn cuStreamBeginCaptureToGraph / cuStreamBeginCaptureToGraph_ptsz(
        stream: CUstream, graph: CUgraph, after: List<CUgraphNode>, data: *const c_void, count: Count, mode: c_uint,
    ) |cx| {
        let after = nodes_of((after, count))?;
        capture::begin(&cx.stream(stream)?, Mode::from_value(mode)?, graph_of(graph)?, after)
    }

    fn cuStreamEndCapture / cuStreamEndCapture_ptsz(stream: CUstream, made: Maybe<CUgraph>) |cx| {
        let ended = capture::end(&cx.stream(stream)?);
        let handle = ended.as_ref().map_or(std::ptr::null_mut(), Graph::handle);
        made.set(handle);
        ended.map(|_| ())
    }

    fn cuStreamIsCapturing / cuStreamIsCapturing_ptsz(stream: CUstream, status: Out<c_uint>) |cx| {
        let value = match capture::status(&cx.stream(stream)?)? {
            Status::None => NONE,
            Status::Active { .. } => ACTIVE,
            Status::Invalidated { .. } => INVALIDATED,
        };
        status.set(value)
    }

    fn cuStreamGetCaptureInfo / cuStreamGetCaptureInfo_ptsz(
        stream: CUstream, status: Out<c_uint>, id: Maybe<u64>,
    ) |cx| {
        tell(cx, stream, status, id, &More::NOTHING)
    }

    fn cuStreamGetCaptureInfo_v2 / cuStreamGetCaptureInfo_v2_ptsz(
        stream: CUstream, status: Out<c_uint>, id: Maybe<u64>, graph: Maybe<CUgraph>,
        nodes: Maybe<*const CUgraphNode>, count: Maybe<usize>,
    ) |cx| {
        tell(cx, stream, status, id, &More { graph, nodes, edges: Maybe::NONE, count })
    }

    fn cuStreamGetCaptureInfo_v3 / cuStreamGetCaptureInfo_v3_ptsz(
        stream: CUstream, status: Out<c_uint>, id: Maybe<u64>, graph: Maybe<CUgraph>,
        nodes: Maybe<*const CUgraphNode>, edges: Maybe<*const c_void>, count: Maybe<usize>,
    ) |cx| {
        tell(cx, stream, status, id, &More { graph, nodes, edges, count })
    }

    fn cuStreamUpdateCaptureDependencies / cuStreamUpdateCaptureDependencies_ptsz(
        stream: CUstream, nodes: List<CUgraphNode>, count: Count, flags: c_uint,
    ) |cx| {
        let nodes = nodes_of((nodes, count))?;
        capture::set_tails(&cx.stream(stream)?, nodes, flags == 0)
    }

    fn cuStreamUpdateCaptureDependencies_v2 / cuStreamUpdateCaptureDependencies_v2_ptsz(
        stream: CUstream, nodes: List<CUgraphNode>, data: *const c_void, count: Count, flags: c_uint,
    ) |cx| {
        let nodes = nodes_of((nodes, count))?;
        capture::set_tails(&cx.stream(stream)?, nodes, flags == 0)
    }

    fn cuThreadExchangeStreamCaptureMode(mode: InOut<c_uint>) |cx| {
        let mut mode = mode;
        let mode = mode.get()?;
        *mode = capture::exchange_mode(Mode::from_value(*mode)?) as c_uint;
        Ok(())
    }
}

fn begin(cx: &Call, stream: CUstream, mode: c_uint) -> Outcome {
    let (stream, mode) = (cx.stream(stream)?, Mode::from_value(mode)?);
    let graph = Graph::new();
    capture::begin(&stream, mode, Arc::clone(&graph), Vec::new()).inspect_err(|_| graph.destroy())
}

/// What the newer versions tell besides status and number.
struct More {
    graph: Maybe<CUgraph>,
    nodes: Maybe<*const CUgraphNode>,
    edges: Maybe<*const c_void>,
    count: Maybe<usize>,
}

impl More {
    const NOTHING: More =
        More { graph: Maybe::NONE, nodes: Maybe::NONE, edges: Maybe::NONE, count: Maybe::NONE };
}

fn tell(cx: &Call, stream: CUstream, status: Out<c_uint>, id: Maybe<u64>, more: &More) -> Outcome {
    match capture::status(&cx.stream(stream)?)? {
        Status::None => status.set(NONE),
        Status::Invalidated { id: number } => {
            id.set(number);
            status.set(INVALIDATED)
        }
        Status::Active { id: number, graph, tails } => {
            id.set(number);
            more.graph.set(graph.handle());
            more.count.set(tails.len());
            more.edges.set(std::ptr::null());
            more.nodes.set(remember(&tails));
            status.set(ACTIVE)
        }
    }
}

fn remember(nodes: &[Arc<Node>]) -> *const CUgraphNode {
    TOLD.with_borrow_mut(|told| {
        *told = nodes.iter().map(Node::handle).collect();
        told.as_ptr()
    })
}

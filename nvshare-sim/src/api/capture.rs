//! Stream capture.

use std::cell::RefCell;
use std::ffi::{c_uint, c_void};
use std::sync::Arc;

use cudarc::driver::sys::{CUgraph, CUgraphNode, CUresult, CUstream};

use super::graph::{graph_of, nodes_of};
use crate::capture::{self, Mode, Status};
use crate::export::{Call, Outcome, export, put, put_if};
use crate::graph::{Graph, Node};

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
        stream: CUstream, graph: CUgraph, after: *const CUgraphNode, data: *const c_void, count: usize, mode: c_uint,
    ) |cx| {
        // SAFETY: the caller's array of that many.
        let after = unsafe { nodes_of(after, count) }?;
        capture::begin(&cx.stream(stream)?, Mode::from_value(mode)?, graph_of(graph)?, after)
    }

    fn cuStreamEndCapture / cuStreamEndCapture_ptsz(stream: CUstream, made: *mut CUgraph) |cx| {
        let ended = capture::end(&cx.stream(stream)?);
        let handle = ended.as_ref().map_or(std::ptr::null_mut(), Graph::handle);
        // SAFETY: an optional out-parameter of the driver API.
        unsafe { put_if(made, handle) };
        ended.map(|_| ())
    }

    fn cuStreamIsCapturing / cuStreamIsCapturing_ptsz(stream: CUstream, status: *mut c_uint) |cx| {
        let value = match capture::status(&cx.stream(stream)?)? {
            Status::None => NONE,
            Status::Active { .. } => ACTIVE,
            Status::Invalidated { .. } => INVALIDATED,
        };
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(status, value) }
    }

    fn cuStreamGetCaptureInfo / cuStreamGetCaptureInfo_ptsz(
        stream: CUstream, status: *mut c_uint, id: *mut u64,
    ) |cx| {
        // SAFETY: out-parameters of the driver API.
        unsafe { tell(cx, stream, status, id, &More::NOTHING) }
    }

    fn cuStreamGetCaptureInfo_v2 / cuStreamGetCaptureInfo_v2_ptsz(
        stream: CUstream, status: *mut c_uint, id: *mut u64, graph: *mut CUgraph, nodes: *mut *const CUgraphNode,
        count: *mut usize,
    ) |cx| {
        let more = More { graph, nodes, edges: std::ptr::null_mut(), count };
        // SAFETY: out-parameters of the driver API.
        unsafe { tell(cx, stream, status, id, &more) }
    }

    fn cuStreamGetCaptureInfo_v3 / cuStreamGetCaptureInfo_v3_ptsz(
        stream: CUstream, status: *mut c_uint, id: *mut u64, graph: *mut CUgraph, nodes: *mut *const CUgraphNode,
        edges: *mut *const c_void, count: *mut usize,
    ) |cx| {
        let more = More { graph, nodes, edges, count };
        // SAFETY: out-parameters of the driver API.
        unsafe { tell(cx, stream, status, id, &more) }
    }

    fn cuStreamUpdateCaptureDependencies / cuStreamUpdateCaptureDependencies_ptsz(
        stream: CUstream, nodes: *mut CUgraphNode, count: usize, flags: c_uint,
    ) |cx| {
        // SAFETY: the caller's array of that many.
        let nodes = unsafe { nodes_of(nodes, count) }?;
        capture::set_tails(&cx.stream(stream)?, nodes, flags == 0)
    }

    fn cuStreamUpdateCaptureDependencies_v2 / cuStreamUpdateCaptureDependencies_v2_ptsz(
        stream: CUstream, nodes: *mut CUgraphNode, data: *const c_void, count: usize, flags: c_uint,
    ) |cx| {
        // SAFETY: the caller's array of that many.
        let nodes = unsafe { nodes_of(nodes, count) }?;
        capture::set_tails(&cx.stream(stream)?, nodes, flags == 0)
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) |cx| {
        if mode.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: an in- and out-parameter of the driver API.
        unsafe { mode.write(capture::exchange_mode(Mode::from_value(mode.read())?) as c_uint) };
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
    graph: *mut CUgraph,
    nodes: *mut *const CUgraphNode,
    edges: *mut *const c_void,
    count: *mut usize,
}

impl More {
    const NOTHING: More = More {
        graph: std::ptr::null_mut(),
        nodes: std::ptr::null_mut(),
        edges: std::ptr::null_mut(),
        count: std::ptr::null_mut(),
    };
}

/// # Safety
/// All pointers are null or writable.
unsafe fn tell(cx: &Call, stream: CUstream, status: *mut c_uint, id: *mut u64, more: &More) -> Outcome {
    let told = capture::status(&cx.stream(stream)?)?;
    // SAFETY: the caller's.
    unsafe {
        match told {
            Status::None => put(status, NONE),
            Status::Invalidated { id: number } => {
                put_if(id, number);
                put(status, INVALIDATED)
            }
            Status::Active { id: number, graph, tails } => {
                put_if(id, number);
                put_if(more.graph, graph.handle());
                put_if(more.count, tails.len());
                put_if(more.edges, std::ptr::null());
                put_if(more.nodes, remember(&tails));
                put(status, ACTIVE)
            }
        }
    }
}

fn remember(nodes: &[Arc<Node>]) -> *const CUgraphNode {
    TOLD.with_borrow_mut(|told| {
        *told = nodes.iter().map(Node::handle).collect();
        told.as_ptr()
    })
}

//! Allocation in stream order: `cuMemAllocAsync` and `cuMemFreeAsync`, also where the stream is being captured and a graph
//! allocates.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cudarc::driver::sys::{CUmemoryPool, CUresult};

use crate::call::Outcome;
use crate::device::card;
use crate::execution::capture;
use crate::execution::stream::Stream;
use crate::execution::work::{self, Custom, Submitted, Work};
use crate::flight::submitted_so_far;
use crate::memory::graph::Allocation;
use crate::memory::leaving::Leaving;
use crate::memory::pool::Pool;
use crate::memory::space::{self, Area, Kind};
use crate::memory::{piece, plain};
use crate::strict;

/// Allocates at once: the address is valid in the stream from here on.
pub(crate) fn allocate(stream: &Arc<Stream>, pool: CUmemoryPool, bytes: u64) -> Outcome<u64> {
    let pool = Pool::by_handle(pool)?;
    if pool.is_imported {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    if pool.device >= card().config().cards as usize {
        return Err(CUresult::CUDA_ERROR_INVALID_DEVICE);
    }
    if let Some(start) = allocate_in_graph(stream, pool.device, bytes)? {
        return Ok(start);
    }
    if bytes == 0 {
        return Ok(0);
    }
    let (start, waits) = pool.allocate(stream.id, bytes)?;
    if !waits.is_empty() {
        stream.enqueue((Work::Nothing, None), &waits, false);
    }
    Ok(start)
}

/// Frees in stream order. Work of other streams that was submitted before and still uses the memory then is a violation.
pub(crate) fn free(stream: &Arc<Stream>, start: u64) -> Outcome {
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let area = space::find(start).filter(|area| area.start == start).ok_or(invalid)?;
    match &area.kind {
        Kind::Plain(Some(pool)) => return free_piece(stream, pool, &area),
        Kind::Graph(allocation) => return free_of_graph(stream, allocation, &area),
        Kind::Plain(None) => {}
        Kind::Opened(opened) if opened.is_piece => {}
        _ => return Err(invalid),
    }
    // A graph frees what graphs allocated.
    if capture::is_capturing(stream) {
        return Err(invalid);
    }
    if area.leaving.swap(true, Ordering::AcqRel) {
        return Err(invalid);
    }
    let custom = Custom {
        name: "cuMemFreeAsync",
        touches: Vec::new(),
        run: {
            let area = Arc::clone(&area);
            let submitted = submitted_so_far();
            Box::new(move |timeline| {
                timeline.sleep();
                plain::remove_before(&area, "cuMemFreeAsync", submitted).map_err(|_| {
                    let what = piece(area.start, area.bytes);
                    strict::violation(&format!(
                        "cuMemFreeAsync of {what}: it was freed before its turn came"
                    ));
                    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
                })
            })
        },
    };
    match work::submit(stream, Work::Custom(Arc::new(custom))) {
        Ok(Submitted::Running(_)) => Ok(()),
        failed => {
            area.leaving.store(false, Ordering::Release);
            failed.and(Err(CUresult::CUDA_ERROR_NOT_SUPPORTED))
        }
    }
}

/// Frees a piece of a pool: nobody knows it from here on, and its pool says who has it next.
fn free_piece(stream: &Arc<Stream>, pool: &Pool, area: &Arc<Area>) -> Outcome {
    if capture::is_capturing(stream) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let leaving = Arc::new(Leaving::begin(area)?);
    match work::submit(stream, Work::Leave(Arc::clone(&leaving))) {
        Ok(Submitted::Running(done)) => {
            pool.freed(area, stream.context.id, done);
            Ok(())
        }
        failed => {
            leaving.stay();
            failed.and(Err(CUresult::CUDA_ERROR_NOT_SUPPORTED))
        }
    }
}

/// In a stream that is being captured the graph allocates, with the pool's properties.
fn allocate_in_graph(stream: &Arc<Stream>, device: usize, bytes: u64) -> Outcome<Option<u64>> {
    let Some(graph) = capture::graph_of(stream)? else { return Ok(None) };
    let hold = Allocation::create(&graph.owner, device, bytes, Vec::new())?;
    let start = hold.start;
    match work::submit(stream, Work::Allocate(hold))? {
        Submitted::Captured => Ok(Some(start)),
        Submitted::Running(_) => Err(CUresult::CUDA_ERROR_UNKNOWN),
    }
}

/// Frees what a graph allocated: in another graph, or in stream order.
fn free_of_graph(stream: &Arc<Stream>, allocation: &Arc<Allocation>, area: &Arc<Area>) -> Outcome {
    if let Some(graph) = capture::graph_of(stream)? {
        let hold = allocation.freed_in(&graph.owner)?;
        return work::submit(stream, Work::Free(hold)).map(|_| ());
    }
    let context = allocation.free_by_call()?;
    let custom = Custom {
        name: "cuMemFreeAsync",
        touches: Vec::new(),
        run: {
            let (allocation, area) = (Arc::clone(allocation), Arc::clone(area));
            let submitted = submitted_so_far();
            Box::new(move |timeline| {
                timeline.sleep();
                plain::check_unused(area.start, area.bytes, "cuMemFreeAsync", submitted);
                allocation.set_valid(false);
                Ok(())
            })
        },
    };
    let submitted = work::submit(stream, Work::Custom(Arc::new(custom)));
    submitted.map(|_| ()).inspect_err(|_| allocation.take_back(context))
}

//! Allocation in stream order: `cuMemAllocAsync` and `cuMemFreeAsync`, also where the stream is being captured and a graph
//! allocates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{CUmemoryPool, CUresult};

use crate::call::Outcome;
use crate::device::card;
use crate::execution::capture;
use crate::execution::stream::Stream;
use crate::execution::work::{self, Custom, Submitted, Work};
use crate::flight::submitted_so_far;
use crate::memory::graph::Allocation;
use crate::memory::pool::Pool;
use crate::memory::space::{self, Area, Kind};
use crate::memory::{piece, plain, shared};
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
    if let Some(again) = pool.take_back(stream.id, stream.context.id, bytes) {
        return Ok(again.start);
    }
    Ok(plain::allocate(&stream.context, bytes, Some(pool))?.start)
}

/// Frees in stream order. Work of other streams that was submitted before and still uses the memory then is a violation.
pub(crate) fn free(stream: &Arc<Stream>, start: u64) -> Outcome {
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let area = space::find(start).filter(|area| area.start == start).ok_or(invalid)?;
    let pool = match &area.kind {
        Kind::Plain(pool) => pool.as_ref(),
        Kind::Opened(opened) if opened.is_piece => None,
        Kind::Graph(allocation) => return free_of_graph(stream, allocation, &area),
        _ => return Err(invalid),
    };
    // A graph frees what graphs allocated.
    if capture::is_capturing(stream) {
        return Err(invalid);
    }
    if area.leaving.swap(true, Ordering::AcqRel) {
        return Err(invalid);
    }
    let taken = Arc::new(AtomicBool::new(false));
    let custom = Custom {
        name: "cuMemFreeAsync",
        touches: Vec::new(),
        run: {
            let (area, taken) = (Arc::clone(&area), Arc::clone(&taken));
            let submitted = submitted_so_far();
            Box::new(move |timeline| {
                timeline.sleep();
                if taken.swap(true, Ordering::AcqRel) {
                    plain::check_unused(&area, "cuMemFreeAsync", submitted);
                    shared::end(&area);
                    return Ok(());
                }
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
    let submitted = work::submit(stream, Work::Custom(Arc::new(custom)));
    match submitted {
        Ok(Submitted::Running(done)) => {
            if let Some(pool) = pool {
                pool.leaves(&area, stream.id, done, taken);
            }
            Ok(())
        }
        failed => {
            area.leaving.store(false, Ordering::Release);
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
                plain::check_unused(&area, "cuMemFreeAsync", submitted);
                allocation.set_valid(false);
                Ok(())
            })
        },
    };
    let submitted = work::submit(stream, Work::Custom(Arc::new(custom)));
    submitted.map(|_| ()).inspect_err(|_| allocation.take_back(context))
}

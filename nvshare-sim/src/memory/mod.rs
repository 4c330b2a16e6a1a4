//! The memory of this process as the driver sees it: device memory (allocated or mapped), managed memory, pinned host
//! memory. What crosses processes (who holds which block of the card) is nvshare-sim-card's.
//!
//! - [`space`]: every address the driver knows, and what is behind it
//! - [`address`]: pieces of the process's address space, reserved and mapped
//! - [`physical`]: handles of physical memory; [`mapping`]: physical memory behind reserved addresses
//! - [`plain`]: `cuMemAlloc`; [`chunk`]: memory behind addresses of the driver's own; [`host`]: pinned, and [`pins`], what that
//!   takes of a card; [`managed`]: paged by the driver
//! - [`pool`]: what allocation in stream order takes from; [`device_pools`]: which of them a device's streams take from;
//!   [`blocks`]: where its pieces are; [`freed`]: who may have again what was freed; [`leaving`]: pieces that nobody knows any more
//!   but the work before their free
//! - [`tiles`]: memory of arrays that the application maps
//! - [`grant`]: what applications say of it
//! - [`shared`]: what of it other processes may open, and what of theirs is open here
//! - [`graph`]: what graphs allocate, [`graph_pool`]: what is behind it

mod address;
mod blocks;
mod chunk;
pub(crate) mod device_pools;
mod freed;
pub(crate) mod grant;
pub(crate) mod graph;
pub(crate) mod graph_pool;
pub(crate) mod host;
pub(crate) mod leaving;
pub(crate) mod managed;
pub(crate) mod mapping;
pub(crate) mod physical;
mod pins;
pub(crate) mod plain;
pub(crate) mod pool;
pub(crate) mod shared;
pub(crate) mod space;
pub(crate) mod tiles;

use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::config::MAX_CARDS;
use nvshare_sim_card::now;

pub(crate) use managed::touch_managed;
pub(crate) use space::{Location, access, classify, classify_for_copy, needs_peer_access};

use crate::call::Outcome;
use crate::context::Context;
use crate::device::card;
use crate::failure;

/// Physical memory comes in multiples of this.
pub(crate) const GRANULARITY: u64 = nvshare_sim_card::BLOCK_BYTES;

/// Contexts of this process on each card: the first one is charged for what the driver occupies there.
static CONTEXTS: [AtomicUsize; MAX_CARDS] = [const { AtomicUsize::new(0) }; MAX_CARDS];

/// A context was made on the device: the process occupies a part of the card now.
pub(crate) fn context_opened(device: usize) -> Outcome {
    if CONTEXTS[device].fetch_add(1, Ordering::AcqRel) == 0 && card().charge_context(device).is_err() {
        CONTEXTS[device].fetch_sub(1, Ordering::AcqRel);
        return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
    Ok(())
}

/// A context is gone, with all work that it had: so is the memory that was allocated in it. What pools and graphs hold stays
/// on the card, also after the last context.
pub(crate) fn context_destroyed(context: &Context) {
    let gone = space::write().remove_context(context.id);
    for (_, area) in gone {
        area.dispose();
    }
    plain::forget_context(context.id);
    pool::drained(context);
    if CONTEXTS[context.device].fetch_sub(1, Ordering::AcqRel) == 1 {
        graph::forget_device(context.device);
        card().release_context(context.device);
    }
}

/// Waits for all work of a context. The answer is the error for good, if there was one.
pub(crate) fn wait_for(context: &Context) -> Outcome {
    for completion in context.unfinished() {
        completion.wait();
    }
    failure::check()
}

/// The same as `cuCtxSynchronize` does it: what its device's pools hold beyond their thresholds is the card's again.
pub(crate) fn synchronize(context: &Context) -> Outcome {
    let outcome = wait_for(context);
    pool::drained(context);
    outcome
}

/// The process ends: physical memory that no address led to for a second (not just between its creation and its mapping)
/// was lost. The memory itself is the card's again when the process is gone, and no thread of it can touch it any more.
pub(crate) fn report_leaks() {
    const A_SECOND: u64 = 1_000_000_000;
    let Some(space) = space::try_read() else { return };
    for (id, handle) in &space.handles {
        if handle.mappings == 0 && now().saturating_sub(handle.loose_since) > A_SECOND {
            let (id, size) = (id.0, size(handle.bytes));
            crate::strict::report(&format!(
                "handle {id:#x} of {size} is neither released nor mapped at the end"
            ));
        }
    }
}

/// For messages: `0x..+2MiB`.
pub(crate) fn piece(start: u64, bytes: u64) -> String {
    format!("{start:#x}+{}", size(bytes))
}

fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes > 0 && bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ => format!("{bytes}B"),
    }
}

//! Calls of the driver that wait, inside the driver, for the application, and may not be made by a thread of ours but in calm
//! (`turn/calm.rs`): checked in debug builds.

use std::cell::Cell;

use super::Symbol;
use crate::life;

thread_local! {
    static HERE: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread may make them from now on.
pub(crate) fn allow(here: bool) {
    HERE.set(here);
}

/// Whether the driver may let the caller wait for the application's work. Not in the list, because they were seen not to:
/// `cuStreamIsCapturing`, `cuStreamGetCtx`, `cuEventQuery`, `cuMemGetInfo`, making current, all calls of virtual memory
/// management, copies, launches, records and waits in streams of our own, pinning host memory, figures of pools, trimming the
/// memory of graphs. `cuStreamQuery`
/// of the application's streams waits too: it is asked by the drain's thread, for which nobody waits without a limit.
const fn may_wait(symbol: Symbol) -> bool {
    matches!(
        symbol,
        Symbol::cuEventCreate
            | Symbol::cuStreamCreate
            | Symbol::cuStreamDestroy_v2
            | Symbol::cuMemAlloc_v2
            | Symbol::cuMemFree_v2
            | Symbol::cuMemHostUnregister
            | Symbol::cuMemFreeHost
            | Symbol::cuModuleLoadData
            | Symbol::cuModuleUnload
    )
}

/// The shim itself makes a call.
#[inline]
pub(crate) fn check(symbol: Symbol) {
    debug_assert!(
        !may_wait(symbol) || !life::is_engine() || HERE.get(),
        "{} may wait for the application, on a thread of ours",
        symbol.name()
    );
}

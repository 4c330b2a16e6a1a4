//! The table of observed driver functions: the eBPF programs count hits by [`Call`], the shim counts the calls it
//! makes by the same [`Call`] (the first [`Call::COMPARED`] of them), so the two can be compared exactly.
//!
//! What is not in it, plain copies and memsets first of all, has a reason: `unobserved.rs` beside this file lists them, and fails
//! for a function that is in neither.

/// What an observed driver function does. The value is the index of its counter and the probe's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Call {
    /// Device memory is allocated: `cuMemAlloc`, `cuMemAllocPitch`.
    Alloc = 0,
    /// Device memory is freed: `cuMemFree`.
    Free = 1,
    /// Stream-ordered allocation.
    AllocAsync = 2,
    /// Stream-ordered free.
    FreeAsync = 3,
    /// Managed memory is allocated.
    AllocManaged = 4,
    /// A physical handle is created: `cuMemCreate`.
    Create = 5,
    /// A physical handle is released.
    Release = 6,
    /// A handle is mapped at an address.
    Map = 7,
    /// A mapping is removed.
    Unmap = 8,
    /// A kernel is launched.
    Launch = 9,
    /// A graph is launched.
    GraphLaunch = 10,
    /// Managed memory is prefetched.
    Prefetch = 11,
    /// Advice on managed memory is given.
    Advise = 12,
    /// A thread waits for a stream, an event or a context.
    Synchronize = 13,
    /// A context, and with it everything in it, goes away, or one reference of it.
    ContextDestroy = 14,
    /// A context is made, or one reference to it.
    ContextCreate = 15,
    /// One more reference to a physical handle: retained, or imported from another process.
    Handle = 16,
    /// Memory is shared with another process.
    Share = 17,
    /// Pinned host memory is allocated or registered.
    HostAlloc = 18,
    /// An array is created.
    Array = 19,
    /// A pool is created.
    Pool = 20,
    /// Code is loaded.
    Module = 21,
    /// A function of the host is put into a stream.
    HostFunction = 22,
    /// Many operations are submitted by one call.
    Batch = 23,
}

impl Call {
    /// How many kinds there are: the length of every array indexed by kind.
    pub const COUNT: usize = 24;

    /// How many of them, the first ones, the shim counts as well. Of the others only the uprobes tell.
    pub const COMPARED: usize = 15;

    /// All kinds, in the order of their values.
    pub const ALL: [Call; Call::COUNT] = [
        Call::Alloc,
        Call::Free,
        Call::AllocAsync,
        Call::FreeAsync,
        Call::AllocManaged,
        Call::Create,
        Call::Release,
        Call::Map,
        Call::Unmap,
        Call::Launch,
        Call::GraphLaunch,
        Call::Prefetch,
        Call::Advise,
        Call::Synchronize,
        Call::ContextDestroy,
        Call::ContextCreate,
        Call::Handle,
        Call::Share,
        Call::HostAlloc,
        Call::Array,
        Call::Pool,
        Call::Module,
        Call::HostFunction,
        Call::Batch,
    ];

    /// Whether the shim counts it too.
    pub const fn is_compared(self) -> bool {
        (self as usize) < Call::COMPARED
    }

    /// Whether communication libraries and the like are known to put jumps over the beginnings of such functions, to
    /// hear of memory that comes and goes.
    pub const fn is_hooked_by_others(self) -> bool {
        use Call as C;
        match self {
            C::Alloc
            | C::Free
            | C::AllocAsync
            | C::FreeAsync
            | C::AllocManaged
            | C::Create
            | C::Release
            | C::Map
            | C::Unmap
            | C::Handle
            | C::Share
            | C::HostAlloc => true,
            C::Launch
            | C::GraphLaunch
            | C::Prefetch
            | C::Advise
            | C::Synchronize
            | C::ContextDestroy
            | C::ContextCreate
            | C::Array
            | C::Pool
            | C::Module
            | C::HostFunction
            | C::Batch => false,
        }
    }

    /// The kind as a metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Call::Alloc => "alloc",
            Call::Free => "free",
            Call::AllocAsync => "alloc_async",
            Call::FreeAsync => "free_async",
            Call::AllocManaged => "alloc_managed",
            Call::Create => "create",
            Call::Release => "release",
            Call::Map => "map",
            Call::Unmap => "unmap",
            Call::Launch => "launch",
            Call::GraphLaunch => "graph_launch",
            Call::Prefetch => "prefetch",
            Call::Advise => "advise",
            Call::Synchronize => "synchronize",
            Call::ContextDestroy => "context_destroy",
            Call::ContextCreate => "context_create",
            Call::Handle => "handle",
            Call::Share => "share",
            Call::HostAlloc => "host_alloc",
            Call::Array => "array",
            Call::Pool => "pool",
            Call::Module => "module",
            Call::HostFunction => "host_function",
            Call::Batch => "batch",
        }
    }
}

/// One observed function.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// The exported symbol, exactly.
    pub symbol: &'static str,
    /// Under which heading its calls are counted.
    pub call: Call,
    /// Whether its result is needed (a return probe is attached where the kernel allows it).
    pub returns: bool,
}

macro_rules! probes {
    ($($call:ident $returns:literal: $($symbol:literal)*;)*) => {
        &[$($(Probe { symbol: $symbol, call: Call::$call, returns: $returns },)*)*]
    };
}

/// Every observed function. A library that lacks one (an older driver) is observed without it.
pub const PROBES: &[Probe] = probes! {
    Alloc true: "cuMemAlloc" "cuMemAlloc_v2" "cuMemAllocPitch" "cuMemAllocPitch_v2";
    Free true: "cuMemFree" "cuMemFree_v2";
    AllocAsync true: "cuMemAllocAsync" "cuMemAllocAsync_ptsz" "cuMemAllocFromPoolAsync"
        "cuMemAllocFromPoolAsync_ptsz";
    FreeAsync true: "cuMemFreeAsync" "cuMemFreeAsync_ptsz";
    AllocManaged true: "cuMemAllocManaged";
    Create true: "cuMemCreate";
    Release true: "cuMemRelease";
    Map true: "cuMemMap";
    Unmap true: "cuMemUnmap";
    Launch false: "cuLaunchKernel" "cuLaunchKernel_ptsz" "cuLaunchKernelEx" "cuLaunchKernelEx_ptsz"
        "cuLaunchCooperativeKernel" "cuLaunchCooperativeKernel_ptsz";
    GraphLaunch false: "cuGraphLaunch" "cuGraphLaunch_ptsz";
    Prefetch false: "cuMemPrefetchAsync" "cuMemPrefetchAsync_ptsz" "cuMemPrefetchAsync_v2"
        "cuMemPrefetchAsync_v2_ptsz";
    Advise false: "cuMemAdvise" "cuMemAdvise_v2";
    Synchronize false: "cuStreamSynchronize" "cuStreamSynchronize_ptsz" "cuEventSynchronize"
        "cuCtxSynchronize" "cuCtxSynchronize_v2";
    ContextDestroy true: "cuCtxDestroy" "cuCtxDestroy_v2" "cuDevicePrimaryCtxRelease"
        "cuDevicePrimaryCtxRelease_v2" "cuDevicePrimaryCtxReset" "cuDevicePrimaryCtxReset_v2";
    ContextCreate true: "cuDevicePrimaryCtxRetain" "cuCtxCreate" "cuCtxCreate_v2" "cuCtxCreate_v3" "cuCtxCreate_v4";
    Handle true: "cuMemRetainAllocationHandle" "cuMemImportFromShareableHandle";
    Share false: "cuMemExportToShareableHandle" "cuIpcGetMemHandle" "cuIpcOpenMemHandle" "cuIpcOpenMemHandle_v2"
        "cuMemGetHandleForAddressRange" "cuMemPoolExportToShareableHandle" "cuMemPoolImportFromShareableHandle"
        "cuMemPoolExportPointer" "cuMemPoolImportPointer";
    HostAlloc false: "cuMemAllocHost" "cuMemAllocHost_v2" "cuMemHostAlloc" "cuMemHostRegister" "cuMemHostRegister_v2";
    Array false: "cuArrayCreate" "cuArrayCreate_v2" "cuArray3DCreate" "cuArray3DCreate_v2" "cuMipmappedArrayCreate";
    Pool false: "cuMemPoolCreate";
    Module false: "cuModuleLoad" "cuModuleLoadData" "cuModuleLoadDataEx" "cuModuleLoadFatBinary" "cuLibraryLoadData"
        "cuLibraryLoadFromFile";
    HostFunction false: "cuLaunchHostFunc" "cuLaunchHostFunc_ptsz" "cuLaunchHostFunc_v2" "cuLaunchHostFunc_v2_ptsz"
        "cuStreamAddCallback" "cuStreamAddCallback_ptsz";
    Batch false: "cuMemcpyBatchAsync" "cuMemcpyBatchAsync_ptsz" "cuMemcpy3DBatchAsync" "cuMemcpy3DBatchAsync_ptsz"
        "cuMemcpyBatchAsync_v2" "cuMemcpyBatchAsync_v2_ptsz" "cuMemcpy3DBatchAsync_v2" "cuMemcpy3DBatchAsync_v2_ptsz"
        "cuStreamBatchMemOp" "cuStreamBatchMemOp_ptsz" "cuStreamBatchMemOp_v2" "cuStreamBatchMemOp_v2_ptsz"
        "cuMemPrefetchBatchAsync" "cuMemPrefetchBatchAsync_ptsz" "cuMemDiscardBatchAsync" "cuMemDiscardBatchAsync_ptsz"
        "cuMemDiscardAndPrefetchBatchAsync" "cuMemDiscardAndPrefetchBatchAsync_ptsz" "cuMemBatchDecompressAsync"
        "cuMemBatchDecompressAsync_ptsz";
};

/// Which of the functions of one [`Call`] it was, where that matters to who reads its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Manner {
    /// The usual.
    Usual = 0,
    /// One reference to a device's primary context is taken.
    PrimaryRetain = 1,
    /// One is given back.
    PrimaryRelease = 2,
    /// A device's primary context loses everything in it, and keeps its references.
    PrimaryReset = 3,
    /// A handle is imported: its memory is another process's.
    Import = 4,
}

impl Manner {
    /// All, in the order of their values.
    pub const ALL: [Manner; 5] =
        [Manner::Usual, Manner::PrimaryRetain, Manner::PrimaryRelease, Manner::PrimaryReset, Manner::Import];

    /// That of a function.
    pub fn of(symbol: &str) -> Manner {
        match symbol {
            "cuDevicePrimaryCtxRetain" => Manner::PrimaryRetain,
            "cuDevicePrimaryCtxRelease" | "cuDevicePrimaryCtxRelease_v2" => Manner::PrimaryRelease,
            "cuDevicePrimaryCtxReset" | "cuDevicePrimaryCtxReset_v2" => Manner::PrimaryReset,
            "cuMemImportFromShareableHandle" => Manner::Import,
            _ => Manner::Usual,
        }
    }
}

/// The first bytes of the names of the shim's own threads (`/proc/PID/task/TID/comm`): calls made by such a thread
/// are the engine's, all others the application's. The colon keeps them apart from a program that is called
/// `nvshare-something`, whose main thread has its name. Exactly eight bytes: the programs compare one word.
pub const ENGINE_THREAD_PREFIX: &[u8; 8] = b"nvshare:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_at_its_own_index() {
        for (index, call) in Call::ALL.iter().enumerate() {
            assert_eq!(*call as usize, index);
        }
    }

    #[test]
    fn the_kinds_that_the_shim_counts_come_first() {
        assert_eq!(Call::ALL[Call::COMPARED], Call::ContextCreate);
        assert!(Call::ContextDestroy.is_compared() && !Call::ContextCreate.is_compared());
        for (index, manner) in Manner::ALL.iter().enumerate() {
            assert_eq!(*manner as usize, index);
        }
    }

    #[test]
    fn no_symbol_is_listed_twice() {
        for (index, probe) in PROBES.iter().enumerate() {
            assert!(PROBES[..index].iter().all(|other| other.symbol != probe.symbol), "{}", probe.symbol);
        }
    }
}

//! The table of observed driver functions: the eBPF programs count hits by [`Call`], the shim counts the calls it
//! makes by the same [`Call`], so the two can be compared exactly.

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
    /// A context, and with it everything in it, goes away.
    ContextDestroy = 14,
}

impl Call {
    /// How many kinds there are: the length of every array indexed by kind.
    pub const COUNT: usize = 15;

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
    ];

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
            | C::Unmap => true,
            C::Launch | C::GraphLaunch | C::Prefetch | C::Advise | C::Synchronize | C::ContextDestroy => {
                false
            }
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
    Free false: "cuMemFree" "cuMemFree_v2";
    AllocAsync true: "cuMemAllocAsync" "cuMemAllocAsync_ptsz" "cuMemAllocFromPoolAsync"
        "cuMemAllocFromPoolAsync_ptsz";
    FreeAsync false: "cuMemFreeAsync" "cuMemFreeAsync_ptsz";
    AllocManaged true: "cuMemAllocManaged";
    Create true: "cuMemCreate";
    Release false: "cuMemRelease";
    Map false: "cuMemMap";
    Unmap false: "cuMemUnmap";
    Launch false: "cuLaunchKernel" "cuLaunchKernel_ptsz" "cuLaunchKernelEx" "cuLaunchKernelEx_ptsz"
        "cuLaunchCooperativeKernel" "cuLaunchCooperativeKernel_ptsz";
    GraphLaunch false: "cuGraphLaunch" "cuGraphLaunch_ptsz";
    Prefetch false: "cuMemPrefetchAsync" "cuMemPrefetchAsync_ptsz" "cuMemPrefetchAsync_v2"
        "cuMemPrefetchAsync_v2_ptsz";
    Advise false: "cuMemAdvise" "cuMemAdvise_v2";
    Synchronize false: "cuStreamSynchronize" "cuStreamSynchronize_ptsz" "cuEventSynchronize"
        "cuCtxSynchronize" "cuCtxSynchronize_v2";
    ContextDestroy false: "cuCtxDestroy" "cuCtxDestroy_v2" "cuDevicePrimaryCtxRelease"
        "cuDevicePrimaryCtxRelease_v2" "cuDevicePrimaryCtxReset" "cuDevicePrimaryCtxReset_v2";
};

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
    fn no_symbol_is_listed_twice() {
        for (index, probe) in PROBES.iter().enumerate() {
            assert!(PROBES[..index].iter().all(|other| other.symbol != probe.symbol), "{}", probe.symbol);
        }
    }
}

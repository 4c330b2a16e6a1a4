//! Every function of the driver that has no probe, by family, with the reason. Together with [`PROBES`] this is the whole driver
//! API; a name that is in neither fails the test below, so that a new one is decided upon.
//!
//! A probe costs every call of every program on the node half a microsecond. So nothing has one that is asked a million times a
//! second, or that is called beside each launch, and nothing by which nobody decides or finds out anything.

use crate::probe::PROBES;

/// Functions that are called in the innermost loops of programs and libraries: these must never get a probe. The reason, then
/// names; a star stands for any end.
const TOO_OFTEN: &[(&str, &str)] = &[
    (
        "communication libraries ask this of every buffer they are given, without end",
        "cuPointerGetAttribute*",
    ),
    (
        "asked again and again until it is so",
        "cuEventQuery cuStreamQuery cuStreamQuery_ptsz cuStreamIsCapturing* cuStreamGetCaptureInfo* cuEventElapsedTime*",
    ),
    (
        "asked before each call, by every library for itself",
        "cuCtxGet* cuCtxSetCurrent cuCtxPushCurrent* cuCtxPopCurrent* cuDeviceGet* cuStreamGet* cuFuncGet* \
         cuKernelGet* cuOccupancy* cuThreadExchangeStreamCaptureMode cuDevicePrimaryCtxGetState cuGetError*",
    ),
    (
        "look-ups of other functions, by the hundred at the start of each library",
        "cuGetProcAddress* cuGetExportTable",
    ),
    (
        "plain copies and memsets: as frequent as launches, and nobody decides anything by them",
        "cuMemcpy cuMemcpy_ptds cuMemcpyAsync* cuMemcpy2D* cuMemcpy3D cuMemcpy3D_* cuMemcpy3DAsync* cuMemcpy3DPeer* \
         cuMemcpy3DWithAttributes* cuMemcpyAto* cuMemcpyDto* cuMemcpyHto* cuMemcpyPeer* cuMemcpyWithAttributes* cuMemset*",
    ),
    (
        "orders work, beside each launch; waits for nobody",
        "cuEventRecord* cuStreamWaitEvent* cuStreamWaitValue* cuStreamWriteValue* cuSignalExternal* cuWaitExternal* \
         cuCtxRecordEvent cuCtxWaitEvent cuGreenCtxRecordEvent cuGreenCtxWaitEvent",
    ),
    ("arguments of launches, one by one, of before CUDA 4", "cuParamSet*"),
];

/// All others.
const OTHERS: &[(&str, &str)] = &[
    (
        "launches of before CUDA 4, or gone since: nothing built in the last decade calls them. The shim knows them; a program \
         without it that launches by nothing else looks idle, which costs it nothing",
        "cuLaunch cuLaunchGrid cuLaunchGridAsync cuLaunchCooperativeKernelMultiDevice",
    ),
    (
        "references to contexts as before CUDA 4: what was in such a context stays in the books, which decide nothing",
        "cuCtxAttach cuCtxDetach",
    ),
    (
        "questions about memory, seldom asked: the agent asks NVML itself",
        "cuMemGetInfo* cuDeviceTotalMem* cuMemGetAccess cuMemGetAddressRange* cuMemGetAllocation* cuMemGetLocationInfo \
         cuMemHostGet* cuMemRangeGet* cuArrayGet* cuArray3DGet* cuMipmappedArrayGet* cuMulticastGetGranularity",
    ),
    (
        "questions about devices, errors and the process: they move nothing",
        "cuInit cuDeviceCanAccessPeer cuDeviceComputeCapability cuDeviceRegister* cuDeviceUnregister* cuDriverGetVersion \
         cuCoredump* cuLogs* cuProfilerStart cuProfilerStop cuFlushGPUDirectRDMAWrites",
    ),
    (
        "settings of contexts and devices",
        "cuCtxDisablePeerAccess cuCtxEnablePeerAccess cuCtxResetPersistingL2Cache cuCtxSet* cuDevicePrimaryCtxSetFlags* \
         cuPointerSetAttribute",
    ),
    (
        "parts of a device: what works there works in streams, what is allocated is allocated as ever",
        "cuCtxFromGreenCtx cuDevResource* cuDevSm* cuGreenCtxCreate cuGreenCtxDestroy cuGreenCtxGet* cuGreenCtxStreamCreate",
    ),
    (
        "address space and rights, not memory; one that is mapped in pieces asks for rights with every piece",
        "cuMemAddressReserve cuMemAddressFree cuMemSetAccess cuMulticast* cuLogicalEndpoint*",
    ),
    (
        "physical memory under arrays: the books keep a handle that is only mapped there for as long as it is referenced, and \
         decide nothing",
        "cuMemMapArrayAsync*",
    ),
    (
        "what gives memory back of which only the making is counted: no figure is made of it, NVML tells what is left",
        "cuArrayDestroy cuMipmappedArrayDestroy cuMemFreeHost cuMemHostUnregister cuIpcCloseMemHandle cuModuleUnload \
         cuLibraryUnload cuMemPoolDestroy",
    ),
    (
        "settings of pools, and what trims them: how much they keep NVML tells",
        "cuMemPoolGet* cuMemPoolSet* cuMemPoolTrimTo cuDeviceSetMemPool cuMemGetDefaultMemPool cuMemGetMemPool cuMemSetMemPool \
         cuDeviceGraphMemTrim cuDeviceSetGraphMemAttribute",
    ),
    (
        "memory of others (graphics, other devices), borrowed",
        "cuImportExternal* cuExternalMemory* cuDestroyExternal* cuGraphics*",
    ),
    (
        "builds graphs: what they do is done by their launches; memory that they allocate is seen by NVML only",
        "cuGraphAdd* cuGraphBatchMemOp* cuGraphChild* cuGraphClone cuGraphConditional* cuGraphCreate cuGraphDebugDotPrint \
         cuGraphDestroy* cuGraphEvent* cuGraphExec* cuGraphExternal* cuGraphGet* cuGraphHostNode* cuGraphInstantiate* \
         cuGraphKernelNode* cuGraphMem* cuGraphNode* cuGraphReleaseUserObject cuGraphRemove* cuGraphRetainUserObject \
         cuGraphUpload* cuUserObject*",
    ),
    (
        "streams and events as such, and captures into graphs",
        "cuStreamCreate* cuStreamDestroy* cuStreamCopyAttributes* cuStreamSetAttribute* cuStreamUpdateCapture* \
         cuStreamBeginCapture* cuStreamBeginRecapture* cuStreamEndCapture* cuStreamAttachMemAsync* cuEventCreate \
         cuEventDestroy* cuIpcGetEventHandle cuIpcOpenEventHandle",
    ),
    (
        "code that is loaded already, found and set up; and the linker, whose result is loaded by what is counted",
        "cuFuncIsLoaded cuFuncLoad cuFuncSet* cuKernelSet* cuLibraryEnumerateKernels cuLibraryGet* cuLink* \
         cuModuleEnumerateFunctions cuModuleGet*",
    ),
    (
        "textures, surfaces and descriptors of tensors: they describe memory",
        "cuTexRef* cuTexObject* cuSurf* cuTensorMap*",
    ),
    ("checkpoints of other processes: NVML tells what they hold meanwhile", "cuCheckpoint*"),
    ("between nodes; not met yet", "cuFabricCpyBatchAsync*"),
];

fn covers(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |beginning| name.starts_with(beginning))
}

fn patterns(families: &'static [(&str, &str)]) -> impl Iterator<Item = &'static str> {
    families.iter().flat_map(|(_, family)| family.split_whitespace())
}

/// The whole driver API.
fn names() -> Vec<&'static str> {
    let names = include_str!("../../nvshare-sim/names.txt").lines().filter(|line| !line.starts_with('#'));
    names.filter_map(|line| line.split(' ').next()).collect()
}

#[test]
fn every_function_of_the_driver_has_a_probe_or_a_reason() {
    let decided = |name: &&str| {
        PROBES.iter().any(|probe| probe.symbol == *name)
            || patterns(TOO_OFTEN).chain(patterns(OTHERS)).any(|pattern| covers(pattern, name))
    };
    let undecided: Vec<_> = names().into_iter().filter(|name| !decided(name)).collect();
    assert!(undecided.is_empty(), "neither probed nor left out for a reason: {undecided:?}");
}

#[test]
fn no_probe_is_on_what_is_called_in_innermost_loops() {
    for probe in PROBES {
        let often = patterns(TOO_OFTEN).find(|pattern| covers(pattern, probe.symbol));
        assert_eq!(often, None, "{} must not be probed", probe.symbol);
    }
}

#[test]
fn what_is_left_out_exists() {
    let names = names();
    for pattern in patterns(TOO_OFTEN).chain(patterns(OTHERS)) {
        let exists = |name: &&str| covers(pattern, name) && PROBES.iter().all(|probe| probe.symbol != *name);
        assert!(names.iter().any(exists), "{pattern} is no function, or all of it is probed");
    }
}

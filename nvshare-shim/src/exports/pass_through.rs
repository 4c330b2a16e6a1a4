//! Every other function that libcuda exports, by family, with the reason why it is not hooked. Together with the table
//! this is the whole driver API; a name that is in neither fails the test below, so that a new one is decided upon.

/// Families: the reason, then the names, separated by spaces.
pub(crate) const PASSED_THROUGH: &[(&str, &str)] = &[
    (
        "asks about devices, the driver or errors; moves nothing",
        "cuCoredumpDeregisterCompleteCallback cuCoredumpDeregisterStartCallback cuCoredumpGetAttribute \
         cuCoredumpGetAttributeGlobal cuCoredumpRegisterCompleteCallback cuCoredumpRegisterStartCallback \
         cuCoredumpSetAttribute cuCoredumpSetAttributeGlobal cuDeviceCanAccessPeer cuDeviceComputeCapability \
         cuDeviceGet cuDeviceGetAttribute cuDeviceGetByPCIBusId cuDeviceGetCliqueCount cuDeviceGetCliqueInfo \
         cuDeviceGetCount cuDeviceGetDevResource cuDeviceGetExecAffinitySupport cuDeviceGetFabricClusterUuid \
         cuDeviceGetHostAtomicCapabilities cuDeviceGetLuid cuDeviceGetName cuDeviceGetNvSciSyncAttributes \
         cuDeviceGetP2PAtomicCapabilities cuDeviceGetP2PAttribute cuDeviceGetPCIBusId cuDeviceGetProperties \
         cuDeviceGetTexture1DLinearMaxWidth cuDeviceGetUuid cuDeviceGetUuid_v2 cuDevicePrimaryCtxGetState \
         cuDriverGetVersion cuGetErrorName cuGetErrorString cuLogsCurrent \
         cuLogsDumpToFile cuLogsDumpToMemory cuLogsRegisterCallback cuLogsUnregisterCallback",
    ),
    ("tables of private functions between NVIDIA's libraries: not ours to change", "cuGetExportTable"),
    (
        "settings and notifications of a device or context: no memory, no work",
        "cuCtxDisablePeerAccess cuCtxGetApiVersion cuCtxGetCacheConfig cuCtxGetCurrent \
         cuCtxGetDevResource cuCtxGetDevice cuCtxGetDevice_v2 cuCtxGetExecAffinity cuCtxGetFlags cuCtxGetId \
         cuCtxGetLimit cuCtxGetSharedMemConfig cuCtxGetStreamPriorityRange cuCtxPopCurrent cuCtxPopCurrent_v2 \
         cuCtxPushCurrent cuCtxPushCurrent_v2 cuCtxResetPersistingL2Cache cuCtxSetCacheConfig cuCtxSetCurrent \
         cuCtxSetFlags cuCtxSetSharedMemConfig cuDevicePrimaryCtxSetFlags cuDevicePrimaryCtxSetFlags_v2 \
         cuDeviceRegisterAsyncNotification cuDeviceUnregisterAsyncNotification cuFlushGPUDirectRDMAWrites cuProfilerInitialize cuProfilerStart cuProfilerStop \
         cuThreadExchangeStreamCaptureMode",
    ),
    (
        "partitions a device: work goes into streams, which are known",
        "cuDevResourceGenerateDesc cuDevSmResourceSplit cuDevSmResourceSplitByCount \
         cuGreenCtxGetDevResource cuGreenCtxGetId cuGreenCtxRecordEvent cuGreenCtxWaitEvent \
         cuStreamGetDevResource cuStreamGetDevResource_ptsz cuStreamGetGreenCtx",
    ),
    (
        "orders work or asks about it; executes nothing",
        "cuCtxRecordEvent cuCtxWaitEvent cuEventDestroy cuEventDestroy_v2 cuEventElapsedTime \
         cuEventElapsedTime_v2 cuEventQuery cuStreamCopyAttributes cuStreamCopyAttributes_ptsz cuStreamGetAttribute \
         cuStreamGetAttribute_ptsz cuStreamGetCaptureInfo cuStreamGetCaptureInfo_ptsz cuStreamGetCaptureInfo_v2 \
         cuStreamGetCaptureInfo_v2_ptsz cuStreamGetCaptureInfo_v3 cuStreamGetCaptureInfo_v3_ptsz cuStreamGetCtx \
         cuStreamGetCtx_ptsz cuStreamGetCtx_v2 cuStreamGetCtx_v2_ptsz cuStreamGetDevice cuStreamGetDevice_ptsz \
         cuStreamGetFlags cuStreamGetFlags_ptsz cuStreamGetId cuStreamGetId_ptsz cuStreamGetPriority \
         cuStreamGetPriority_ptsz cuStreamIsCapturing cuStreamIsCapturing_ptsz cuStreamQuery cuStreamQuery_ptsz \
         cuStreamSetAttribute cuStreamSetAttribute_ptsz cuStreamUpdateCaptureDependencies \
         cuStreamUpdateCaptureDependencies_ptsz cuStreamUpdateCaptureDependencies_v2 \
         cuStreamUpdateCaptureDependencies_v2_ptsz",
    ),
    ("managed memory: stays with the driver", "cuMemGetLocationInfo"),
    (
        "code and its attributes; its memory is the driver's overhead, which NVML shows",
        "cuFuncGetModule cuFuncGetName cuFuncGetParamCount cuFuncGetParamInfo cuFuncIsLoaded \
         cuFuncSetBlockShape cuFuncSetCacheConfig cuFuncSetSharedMemConfig \
         cuFuncSetSharedSize cuKernelGetLibrary cuKernelGetName \
         cuKernelGetParamCount cuKernelGetParamInfo cuKernelSetCacheConfig \
         cuLibraryEnumerateKernels cuLibraryGetKernelCount \
         cuLibraryUnload cuLinkAddData \
         cuLinkAddData_v2 cuLinkAddFile cuLinkAddFile_v2 cuLinkCreate cuLinkCreate_v2 \
         cuLinkDestroy cuModuleEnumerateFunctions cuModuleGetFunctionCount \
         cuModuleGetLoadingMode cuModuleGetSurfRef cuModuleGetTexRef cuModuleUnload \
         cuOccupancyAvailableDynamicSMemPerBlock \
         cuOccupancyMaxActiveClusters \
         cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags \
         cuOccupancyMaxPotentialClusterSize cuParamSetSize cuParamSetTexRef cuParamSetf cuParamSeti cuParamSetv",
    ),
    (
        "host memory",
        "cuMemAllocHost cuMemAllocHost_v2 cuMemFreeHost cuMemHostAlloc cuMemHostGetDevicePointer \
         cuMemHostGetDevicePointer_v2 cuMemHostGetFlags cuMemHostRegister cuMemHostRegister_v2 \
         cuMemHostUnregister",
    ),
    (
        "mappings made by the application: their memory is counted where it is created",
        "cuLogicalEndpointAddDevice cuLogicalEndpointCreate \
         cuLogicalEndpointDestroy cuLogicalEndpointExport cuLogicalEndpointGetLimits cuLogicalEndpointIdRelease \
         cuLogicalEndpointIdReserve cuLogicalEndpointImport cuLogicalEndpointQuery cuLogicalEndpointUnbind \
         cuMemGetAllocationGranularity \
         cuMulticastAddDevice \
         cuMulticastCreate cuMulticastGetGranularity cuMulticastUnbind",
    ),
    (
        "pools: what is taken from them is counted where it is taken",
        "cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuMemGetDefaultMemPool cuMemGetMemPool \
         cuMemPoolExportPointer cuMemPoolExportToShareableHandle \
         cuMemPoolGetAccess cuMemPoolImportFromShareableHandle cuMemPoolImportPointer",
    ),
    (
        "32-bit variants of questions: nothing that runs on a 64-bit machine uses them",
        "cuArray3DCreate cuArrayCreate cuMemGetAddressRange cuMemGetInfo cuTexRefSetAddress",
    ),
    (
        "arrays, textures, surfaces: questions and views of memory that is counted where it is created",
        "cuArray3DGetDescriptor cuArrayGetDescriptor cuArrayGetDescriptor_v2 \
         cuArrayGetPlane cuArrayGetSparseProperties \
         cuMipmappedArrayGetSparseProperties cuSurfObjectDestroy cuSurfObjectGetResourceDesc \
         cuSurfRefGetArray cuSurfRefSetArray cuTensorMapEncodeIm2col cuTensorMapEncodeIm2colWide \
         cuTensorMapEncodeTiled cuTensorMapReplaceAddress cuTensorMapSetAllocationClass \
         cuTexObjectDestroy cuTexObjectGetResourceDesc cuTexObjectGetResourceViewDesc cuTexObjectGetTextureDesc \
         cuTexRefCreate cuTexRefDestroy cuTexRefGetAddress cuTexRefGetAddressMode cuTexRefGetAddress_v2 \
         cuTexRefGetArray cuTexRefGetBorderColor cuTexRefGetFilterMode cuTexRefGetFlags cuTexRefGetFormat \
         cuTexRefGetMaxAnisotropy cuTexRefGetMipmapFilterMode cuTexRefGetMipmapLevelBias \
         cuTexRefGetMipmapLevelClamp cuTexRefGetMipmappedArray \
         cuTexRefSetAddressMode cuTexRefSetArray \
         cuTexRefSetBorderColor cuTexRefSetFilterMode cuTexRefSetFlags cuTexRefSetFormat cuTexRefSetMaxAnisotropy \
         cuTexRefSetMipmapFilterMode cuTexRefSetMipmapLevelBias cuTexRefSetMipmapLevelClamp \
         cuTexRefSetMipmappedArray",
    ),
    (
        "builds and changes graphs; what a graph does is gated when it is launched",
        "cuDeviceGetGraphMemAttribute cuDeviceSetGraphMemAttribute \
         cuGraphAddDependencies cuGraphAddDependencies_v2 cuGraphAddEmptyNode \
         cuGraphAddEventRecordNode cuGraphAddEventWaitNode cuGraphAddExternalSemaphoresSignalNode \
         cuGraphAddExternalSemaphoresWaitNode cuGraphAddHostNode cuGraphAddKernelNode cuGraphAddKernelNode_v2 \
         cuGraphAddMemFreeNode \
         cuGraphBatchMemOpNodeGetParams \
         cuGraphChildGraphNodeGetGraph cuGraphClone cuGraphConditionalHandleCreate cuGraphCreate \
         cuGraphDebugDotPrint cuGraphDestroy cuGraphDestroyNode cuGraphEventRecordNodeGetEvent \
         cuGraphEventRecordNodeSetEvent cuGraphEventWaitNodeGetEvent cuGraphEventWaitNodeSetEvent \
         cuGraphExecDestroy \
         cuGraphExecEventRecordNodeSetEvent cuGraphExecEventWaitNodeSetEvent \
         cuGraphExecExternalSemaphoresSignalNodeSetParams cuGraphExecExternalSemaphoresWaitNodeSetParams \
         cuGraphExecGetFlags cuGraphExecGetId cuGraphExecHostNodeSetParams cuGraphExecKernelNodeSetParams \
         cuGraphExecKernelNodeSetParams_v2 \
         cuGraphExternalSemaphoresSignalNodeGetParams cuGraphExternalSemaphoresSignalNodeSetParams \
         cuGraphExternalSemaphoresWaitNodeGetParams cuGraphExternalSemaphoresWaitNodeSetParams cuGraphGetEdges \
         cuGraphGetEdges_v2 cuGraphGetId cuGraphGetNodes cuGraphGetRootNodes cuGraphHostNodeGetParams \
         cuGraphHostNodeSetParams cuGraphKernelNodeCopyAttributes cuGraphKernelNodeGetAttribute \
         cuGraphKernelNodeGetParams cuGraphKernelNodeGetParams_v2 cuGraphKernelNodeSetAttribute \
         cuGraphKernelNodeSetParams cuGraphKernelNodeSetParams_v2 cuGraphMemAllocNodeGetParams \
         cuGraphMemFreeNodeGetParams cuGraphMemcpyNodeGetParams \
         cuGraphMemsetNodeGetParams cuGraphNodeFindInClone \
         cuGraphNodeGetContainingGraph cuGraphNodeGetDependencies cuGraphNodeGetDependencies_v2 \
         cuGraphNodeGetDependentNodes cuGraphNodeGetDependentNodes_v2 cuGraphNodeGetEnabled cuGraphNodeGetLocalId \
         cuGraphNodeGetParams cuGraphNodeGetToolsId cuGraphNodeGetType cuGraphNodeSetEnabled \
         cuGraphReleaseUserObject cuGraphRemoveDependencies cuGraphRemoveDependencies_v2 \
         cuGraphRetainUserObject cuUserObjectCreate cuUserObjectRelease cuUserObjectRetain",
    ),
    (
        "other processes' or other interfaces' memory and semaphores: not ours to move",
        "cuDestroyExternalMemory cuDestroyExternalSemaphore \
         cuExternalMemoryGetMappedMipmappedArray cuGraphicsMapResources cuGraphicsMapResources_ptsz \
         cuGraphicsResourceGetMappedMipmappedArray cuGraphicsResourceGetMappedPointer \
         cuGraphicsResourceGetMappedPointer_v2 cuGraphicsResourceSetMapFlags cuGraphicsResourceSetMapFlags_v2 \
         cuGraphicsSubResourceGetMappedArray cuGraphicsUnmapResources cuGraphicsUnmapResources_ptsz \
         cuGraphicsUnregisterResource cuImportExternalSemaphore \
         cuIpcGetEventHandle cuIpcOpenEventHandle \
         cuSignalExternalSemaphoresAsync cuSignalExternalSemaphoresAsync_ptsz cuWaitExternalSemaphoresAsync \
         cuWaitExternalSemaphoresAsync_ptsz",
    ),
    (
        "checkpoints of whole processes from outside",
        "cuCheckpointOperationComplete cuCheckpointProcessCheckpoint cuCheckpointProcessGetRestoreThreadId \
         cuCheckpointProcessGetState cuCheckpointProcessLock cuCheckpointProcessRestore cuCheckpointProcessUnlock",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::process::Command;

    use nvshare_common::probe::{Call, PROBES};

    use super::PASSED_THROUGH;
    use crate::driver::{Symbol, probed};
    use crate::exports::table::{HOOKS, Hook};

    fn passed_through() -> BTreeSet<&'static str> {
        let mut names = BTreeSet::new();
        for (reason, family) in PASSED_THROUGH {
            for name in family.split_whitespace() {
                assert!(
                    names.insert(name),
                    "{name} is passed through twice, the second time because: {reason}"
                );
            }
        }
        names
    }

    /// The source file of cudarc's bindings, which list the whole API.
    fn bindings() -> PathBuf {
        let output = Command::new(env!("CARGO"))
            // Without the filter the packages of other platforms would have to be there too.
            .args([
                "metadata",
                "--format-version",
                "1",
                "--offline",
                "--filter-platform",
                "x86_64-unknown-linux-gnu",
            ])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let cudarc = metadata["packages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|package| package["name"] == "cudarc")
            .expect("this crate depends on cudarc");
        PathBuf::from(cudarc["manifest_path"].as_str().unwrap()).with_file_name("src/driver/sys/mod.rs")
    }

    /// The names that follow `before` in `text`.
    fn names_after<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
        text.match_indices(before)
            .filter_map(|(at, _)| {
                let rest = text[at + before.len()..].trim_start();
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
                let name = &rest[..end];
                (name.starts_with("cu") && name.chars().nth(2).is_some_and(char::is_uppercase))
                    .then_some(name)
            })
            .collect()
    }

    #[test]
    fn every_function_of_the_driver_is_hooked_or_passed_through_for_a_reason() {
        let passed_through = passed_through();
        let hooked: BTreeSet<&str> = HOOKS.iter().map(Hook::name).collect();
        assert_eq!(hooked.len(), HOOKS.len(), "a symbol is hooked twice");
        assert_eq!(hooked.intersection(&passed_through).next(), None, "hooked and passed through");

        let bindings = std::fs::read_to_string(bindings()).unwrap();
        let mut known = names_after(&bindings, "pub unsafe fn ");
        assert!(known.len() > 500, "only {} functions found in cudarc's bindings", known.len());
        let header = ["CUDA_HOME", "CUDA_PATH"]
            .into_iter()
            .filter_map(std::env::var_os)
            .map(PathBuf::from)
            .chain([PathBuf::from("/usr/local/cuda")])
            .find_map(|toolkit| std::fs::read_to_string(toolkit.join("include/cuda.h")).ok());
        if let Some(header) = &header {
            known.extend(names_after(header, "CUDAAPI"));
        }
        let undecided: Vec<_> =
            known.iter().filter(|name| !hooked.contains(*name) && !passed_through.contains(*name)).collect();
        assert!(undecided.is_empty(), "neither hooked nor passed through: {undecided:?}");
    }

    #[test]
    fn every_probed_function_is_hooked_so_that_its_calls_are_counted() {
        for probe in PROBES.iter().filter(|probe| (probe.call as usize) < Call::COMPARED) {
            let known = HOOKS.iter().any(|hook| hook.name() == probe.symbol);
            assert!(known, "{} is probed but not hooked", probe.symbol);
        }
        for symbol in Symbol::ALL.iter().skip(HOOKS.len()) {
            assert!(
                probed(symbol.name()).is_none() || HOOKS.iter().any(|hook| hook.symbol == *symbol),
                "{} is probed, and called by the shim only",
                symbol.name()
            );
        }
    }

    #[test]
    fn symbols_and_hooks_are_numbered_alike_and_called_by_their_names() {
        for (number, hook) in HOOKS.iter().enumerate() {
            assert_eq!(hook.symbol as usize, number);
        }
        for symbol in Symbol::ALL {
            let name = format!("{symbol:?}");
            assert_eq!(symbol.name(), name);
            assert_eq!(symbol.c_name().to_str(), Ok(&*name));
        }
    }
}

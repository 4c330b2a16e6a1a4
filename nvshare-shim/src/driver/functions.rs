//! The one list of driver functions, for whoever expands it. `hooked` names every symbol that is interposed, once, with its
//! signature and the hook that handles it (`<family>::<function>` of `hooks`, or of `exports` for the look-ups); symbols in
//! one line share both and differ in the default stream. `bare` names what the shim itself calls besides.
//!
//! From here come the symbols and the real entry points (`symbols`), and the exports, the answers of `dlsym`, the map from real
//! addresses to hooks and the test that every function of the header is accounted for (`exports`).

macro_rules! functions {
    ($expand:ident) => { $expand! {
  hooked {
    // First use, and the look-up by name.
    [cuInit] (Flags: u32) => lookup::init(Flags);
    [cuGetProcAddress] (symbol: *const c_char, pfn: *mut *mut c_void, cudaVersion: i32, flags: u64) => lookup::address(symbol, pfn, cudaVersion, flags);
    [cuGetProcAddress_v2] (symbol: *const c_char, pfn: *mut *mut c_void, cudaVersion: i32, flags: u64, symbolStatus: *mut c_void) => lookup::address(symbol, pfn, cudaVersion, flags);

    // Device memory.
    [cuMemAlloc_v2] (dptr: *mut CUdeviceptr, bytesize: usize) => memory::alloc(dptr, bytesize);
    [cuMemAllocPitch_v2] (dptr: *mut CUdeviceptr, pPitch: *mut usize, WidthInBytes: usize, Height: usize, ElementSizeBytes: u32) => memory::alloc_pitch(dptr, pPitch, WidthInBytes, Height, ElementSizeBytes);
    [cuMemFree_v2] (dptr: CUdeviceptr) => memory::free(dptr);
    [cuMemGetInfo_v2] (free: *mut usize, total: *mut usize) => memory::info(free, total);
    [cuMemGetAddressRange_v2] (pbase: *mut CUdeviceptr, psize: *mut usize, dptr: CUdeviceptr) => questions::address_range(pbase, psize, dptr);
    [cuPointerGetAttribute] (data: *mut c_void, attribute: CEnum, ptr: CUdeviceptr) => questions::attribute(data, attribute, ptr);
    [cuPointerGetAttributes] (numAttributes: u32, attributes: *mut CEnum, data: *mut *mut c_void, ptr: CUdeviceptr) => questions::attributes(numAttributes, attributes, data, ptr);
    [cuPointerSetAttribute] (value: *const c_void, attribute: CEnum, ptr: CUdeviceptr) => questions::set_attribute(value, attribute, ptr);
    // With 32-bit addresses: nothing that runs on a 64-bit machine can use what these return.
    [cuMemAlloc] (dptr: *mut u32, bytesize: u32) => plain::counted();
    [cuMemAllocPitch] (dptr: *mut u32, pPitch: *mut u32, WidthInBytes: u32, Height: u32, ElementSizeBytes: u32) => plain::counted();
    [cuMemFree] (dptr: u32) => plain::counted();

    // Memory that cannot be moved yet.
    [cuMemAllocManaged] (dptr: *mut CUdeviceptr, bytesize: usize, flags: u32) => unswappable::managed(dptr, bytesize);
    [cuMemAllocAsync cuMemAllocAsync_ptsz] (dptr: *mut CUdeviceptr, bytesize: usize, hStream: CUstream) => pools::alloc(dptr, bytesize, hStream);
    [cuMemAllocFromPoolAsync cuMemAllocFromPoolAsync_ptsz] (dptr: *mut CUdeviceptr, bytesize: usize, pool: CUmemoryPool, hStream: CUstream) => pools::alloc_from_pool(dptr, bytesize, pool, hStream);
    [cuMemFreeAsync cuMemFreeAsync_ptsz] (dptr: CUdeviceptr, hStream: CUstream) => pools::free(dptr, hStream);
    [cuMemPoolCreate] (pool: *mut CUmemoryPool, poolProps: *const CUmemPoolProps) => pools::create(pool, poolProps);
    [cuMemPoolDestroy] (pool: CUmemoryPool) => pools::destroy(pool);
    [cuMemPoolTrimTo] (pool: CUmemoryPool, minBytesToKeep: usize) => pools::trim(pool, minBytesToKeep);
    [cuMemPoolSetAttribute] (pool: CUmemoryPool, attr: CEnum, value: *mut c_void) => pools::set_attribute(pool, attr, value);
    [cuMemPoolGetAttribute] (pool: CUmemoryPool, attr: CEnum, value: *mut c_void) => pools::attribute(pool, attr, value);
    [cuMemPoolSetAccess] (pool: CUmemoryPool, map: *const CUmemAccessDesc, count: usize) => pools::set_access(pool, map, count);
    [cuDeviceSetMemPool] (dev: CUdevice, pool: CUmemoryPool) => pools::choose();
    [cuMemSetMemPool] (location: *mut CUmemLocation, kind: CEnum, pool: CUmemoryPool) => pools::choose();
    [cuDeviceGraphMemTrim] (device: CUdevice) => unswappable::trims_graphs();
    [cuMemCreate] (handle: *mut CUmemGenericAllocationHandle, size: usize, prop: *const CUmemAllocationProp, flags: u64) => virtuals::create(handle, size, prop, flags);
    [cuMemRelease] (handle: CUmemGenericAllocationHandle) => virtuals::release(handle);
    [cuMemImportFromShareableHandle] (handle: *mut CUmemGenericAllocationHandle, osHandle: *mut c_void, shHandleType: CEnum) => unswappable::import(handle);
    [cuMemMap] (ptr: CUdeviceptr, size: usize, offset: usize, handle: CUmemGenericAllocationHandle, flags: u64) => virtuals::map(ptr, size, offset, handle, flags);
    [cuMemUnmap] (ptr: CUdeviceptr, size: usize) => virtuals::unmap(ptr, size);
    [cuIpcGetMemHandle] (pHandle: *mut CUipcMemHandle, dptr: CUdeviceptr) => ipc::get(pHandle, dptr);
    [cuMemGetHandleForAddressRange] (handle: *mut c_void, dptr: CUdeviceptr, size: usize, handleType: CEnum, flags: u64) => unswappable::export(dptr, size);
    [cuMemRetainAllocationHandle] (handle: *mut CUmemGenericAllocationHandle, addr: *mut c_void) => virtuals::retain(handle, addr);
    [cuMemGetAccess] (flags: *mut u64, location: *const CUmemLocation, ptr: CUdeviceptr) => questions::access(flags, location, ptr);
    [cuMemSetAccess] (ptr: CUdeviceptr, size: usize, desc: *const CUmemAccessDesc, count: usize) => virtuals::set_access(ptr, size, desc, count);
    [cuMemAddressReserve] (ptr: *mut CUdeviceptr, size: usize, alignment: usize, addr: CUdeviceptr, flags: u64) => virtuals::reserve(ptr, size);
    [cuMemAddressFree] (ptr: CUdeviceptr, size: usize) => virtuals::unreserve(ptr, size);
    [cuMemExportToShareableHandle] (shareableHandle: *mut c_void, handle: CUmemGenericAllocationHandle, handleType: CEnum, flags: u64) => virtuals::export(shareableHandle, handle, handleType, flags);
    [cuMemGetAllocationPropertiesFromHandle] (prop: *mut CUmemAllocationProp, handle: CUmemGenericAllocationHandle) => virtuals::properties(prop, handle);
    [cuMulticastBindMem] (mcHandle: CUmemGenericAllocationHandle, mcOffset: usize, memHandle: CUmemGenericAllocationHandle, memOffset: usize, size: usize, flags: u64) => bound::bind(mcHandle, mcOffset, memHandle, memOffset, size, flags);
    [cuMulticastBindMem_v2] (mcHandle: CUmemGenericAllocationHandle, dev: CUdevice, mcOffset: usize, memHandle: CUmemGenericAllocationHandle, memOffset: usize, size: usize, flags: u64) => bound::bind_on(mcHandle, dev, mcOffset, memHandle, memOffset, size, flags);
    [cuLogicalEndpointBindMem] (leId: u32, dev: CUdevice, offset: u64, memHandle: CUmemGenericAllocationHandle, memOffset: u64, size: u64, flags: u64) => bound::bind_to_endpoint(leId, dev, offset, memHandle, memOffset, size, flags);
    [cuMemMapArrayAsync cuMemMapArrayAsync_ptsz] (mapInfoList: *mut CUarrayMapInfo, count: u32, hStream: CUstream) => bound::map_arrays(mapInfoList, count, hStream);
    [cuMulticastBindAddr] (mcHandle: CUmemGenericAllocationHandle, mcOffset: usize, memptr: CUdeviceptr, size: usize, flags: u64) => unswappable::bind(memptr, size);
    [cuLogicalEndpointBindAddr] (leId: u32, dev: CUdevice, offset: u64, ptr: *mut c_void, size: u64, flags: u64) => unswappable::export_all(ptr, size);
    [cuMulticastBindAddr_v2] (mcHandle: CUmemGenericAllocationHandle, dev: CUdevice, mcOffset: usize, memptr: CUdeviceptr, size: usize, flags: u64) => unswappable::bind(memptr, size);
    [cuArrayCreate_v2] (pHandle: *mut CUarray, pAllocateArray: *const CUDA_ARRAY_DESCRIPTOR) => arrays::array(pHandle, pAllocateArray);
    [cuArray3DCreate_v2] (pHandle: *mut CUarray, pAllocateArray: *const CUDA_ARRAY3D_DESCRIPTOR) => arrays::array_3d(pHandle, pAllocateArray);
    [cuArrayDestroy] (hArray: CUarray) => arrays::array_destroy(hArray);
    [cuMipmappedArrayCreate] (pHandle: *mut CUmipmappedArray, pMipmappedArrayDesc: *const CUDA_ARRAY3D_DESCRIPTOR, numMipmapLevels: u32) => arrays::mipmapped(pHandle, pMipmappedArrayDesc, numMipmapLevels);
    [cuMipmappedArrayDestroy] (hMipmappedArray: CUmipmappedArray) => arrays::mipmapped_destroy(hMipmappedArray);
    [cuMipmappedArrayGetLevel] (pLevelArray: *mut CUarray, hMipmappedArray: CUmipmappedArray, level: u32) => arrays::level(pLevelArray, hMipmappedArray);
    [cuArray3DGetDescriptor_v2] (pArrayDescriptor: *mut CUDA_ARRAY3D_DESCRIPTOR, hArray: CUarray) => arrays::descriptor(pArrayDescriptor, hArray);
    [cuArrayGetMemoryRequirements] (memoryRequirements: *mut CUDA_ARRAY_MEMORY_REQUIREMENTS, array: CUarray, device: CUdevice) => arrays::requirements(array);
    [cuMipmappedArrayGetMemoryRequirements] (memoryRequirements: *mut CUDA_ARRAY_MEMORY_REQUIREMENTS, mipmap: CUmipmappedArray, device: CUdevice) => arrays::requirements_of_levels(mipmap);

    // Managed memory.
    [cuMemPrefetchAsync cuMemPrefetchAsync_ptsz] (devPtr: CUdeviceptr, count: usize, dstDevice: CUdevice, hStream: CUstream) => questions::prefetch(devPtr, hStream);
    [cuMemPrefetchAsync_v2 cuMemPrefetchAsync_v2_ptsz] (devPtr: CUdeviceptr, count: usize, location: Location, flags: u32, hStream: CUstream) => questions::prefetch(devPtr, hStream);
    [cuMemPrefetchBatchAsync cuMemPrefetchBatchAsync_ptsz] (dptrs: *mut CUdeviceptr, sizes: *mut usize, count: usize, prefetchLocs: *mut CUmemLocation, prefetchLocIdxs: *mut usize, numPrefetchLocs: usize, flags: u64, hStream: CUstream) => work::on(hStream);
    [cuMemDiscardBatchAsync cuMemDiscardBatchAsync_ptsz] (dptrs: *mut CUdeviceptr, sizes: *mut usize, count: usize, flags: u64, hStream: CUstream) => work::on(hStream);
    [cuMemDiscardAndPrefetchBatchAsync cuMemDiscardAndPrefetchBatchAsync_ptsz] (dptrs: *mut CUdeviceptr, sizes: *mut usize, count: usize, prefetchLocs: *mut CUmemLocation, prefetchLocIdxs: *mut usize, numPrefetchLocs: usize, flags: u64, hStream: CUstream) => work::on(hStream);
    [cuMemAdvise] (devPtr: CUdeviceptr, count: usize, advice: CEnum, device: CUdevice) => questions::not_for_plain(devPtr);
    [cuMemAdvise_v2] (devPtr: CUdeviceptr, count: usize, advice: CEnum, location: Location) => questions::not_for_plain(devPtr);
    [cuMemRangeGetAttribute] (data: *mut c_void, dataSize: usize, attribute: CEnum, devPtr: CUdeviceptr, count: usize) => questions::not_for_plain(devPtr);
    [cuMemRangeGetAttributes] (data: *mut *mut c_void, dataSizes: *mut usize, attributes: *mut CEnum, numAttributes: usize, devPtr: CUdeviceptr, count: usize) => questions::not_for_plain(devPtr);
    [cuStreamAttachMemAsync cuStreamAttachMemAsync_ptsz] (hStream: CUstream, dptr: CUdeviceptr, length: usize, flags: u32) => questions::not_for_plain(dptr);

    // Copies.
    [cuMemcpy cuMemcpy_ptds] (dst: CUdeviceptr, src: CUdeviceptr, ByteCount: usize) => copies::linear_now(dst, src, ByteCount);
    [cuMemcpyAsync cuMemcpyAsync_ptsz] (dst: CUdeviceptr, src: CUdeviceptr, ByteCount: usize, hStream: CUstream) => copies::linear(dst, src, ByteCount, hStream);
    [cuMemcpyPeer cuMemcpyPeer_ptds] (dstDevice: CUdeviceptr, dstContext: CUcontext, srcDevice: CUdeviceptr, srcContext: CUcontext, ByteCount: usize) => work::blocking();
    [cuMemcpyPeerAsync cuMemcpyPeerAsync_ptsz] (dstDevice: CUdeviceptr, dstContext: CUcontext, srcDevice: CUdeviceptr, srcContext: CUcontext, ByteCount: usize, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpyHtoD] (dstDevice: u32, srcHost: *const c_void, ByteCount: u32) => work::blocking();
    [cuMemcpyHtoD_v2 cuMemcpyHtoD_v2_ptds] (dstDevice: CUdeviceptr, srcHost: *const c_void, ByteCount: usize) => copies::linear_now(dstDevice, srcHost, ByteCount);
    [cuMemcpyHtoDAsync] (dstDevice: u32, srcHost: *const c_void, ByteCount: u32, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpyHtoDAsync_v2 cuMemcpyHtoDAsync_v2_ptsz] (dstDevice: CUdeviceptr, srcHost: *const c_void, ByteCount: usize, hStream: CUstream) => copies::linear(dstDevice, srcHost, ByteCount, hStream);
    [cuMemcpyDtoH] (dstHost: *mut c_void, srcDevice: u32, ByteCount: u32) => work::blocking();
    [cuMemcpyDtoH_v2 cuMemcpyDtoH_v2_ptds] (dstHost: *mut c_void, srcDevice: CUdeviceptr, ByteCount: usize) => copies::linear_now(dstHost, srcDevice, ByteCount);
    [cuMemcpyDtoHAsync] (dstHost: *mut c_void, srcDevice: u32, ByteCount: u32, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpyDtoHAsync_v2 cuMemcpyDtoHAsync_v2_ptsz] (dstHost: *mut c_void, srcDevice: CUdeviceptr, ByteCount: usize, hStream: CUstream) => copies::linear(dstHost, srcDevice, ByteCount, hStream);
    [cuMemcpyDtoD] (dstDevice: u32, srcDevice: u32, ByteCount: u32) => work::blocking();
    [cuMemcpyDtoD_v2 cuMemcpyDtoD_v2_ptds] (dstDevice: CUdeviceptr, srcDevice: CUdeviceptr, ByteCount: usize) => copies::linear_now(dstDevice, srcDevice, ByteCount);
    [cuMemcpyDtoDAsync] (dstDevice: u32, srcDevice: u32, ByteCount: u32, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpyDtoDAsync_v2 cuMemcpyDtoDAsync_v2_ptsz] (dstDevice: CUdeviceptr, srcDevice: CUdeviceptr, ByteCount: usize, hStream: CUstream) => copies::linear(dstDevice, srcDevice, ByteCount, hStream);
    [cuMemcpyDtoA] (dstArray: CUarray, dstOffset: u32, srcDevice: u32, ByteCount: u32) => work::blocking();
    [cuMemcpyDtoA_v2 cuMemcpyDtoA_v2_ptds] (dstArray: CUarray, dstOffset: usize, srcDevice: CUdeviceptr, ByteCount: usize) => copies::into_array(dstArray, dstOffset, srcDevice, ByteCount);
    [cuMemcpyAtoD] (dstDevice: u32, srcArray: CUarray, srcOffset: u32, ByteCount: u32) => work::blocking();
    [cuMemcpyAtoD_v2 cuMemcpyAtoD_v2_ptds] (dstDevice: CUdeviceptr, srcArray: CUarray, srcOffset: usize, ByteCount: usize) => copies::out_of_array(dstDevice, srcArray, srcOffset, ByteCount);
    [cuMemcpyHtoA] (dstArray: CUarray, dstOffset: u32, srcHost: *const c_void, ByteCount: u32) => work::blocking();
    [cuMemcpyHtoA_v2 cuMemcpyHtoA_v2_ptds] (dstArray: CUarray, dstOffset: usize, srcHost: *const c_void, ByteCount: usize) => work::blocking();
    [cuMemcpyAtoH] (dstHost: *mut c_void, srcArray: CUarray, srcOffset: u32, ByteCount: u32) => work::blocking();
    [cuMemcpyAtoH_v2 cuMemcpyAtoH_v2_ptds] (dstHost: *mut c_void, srcArray: CUarray, srcOffset: usize, ByteCount: usize) => work::blocking();
    [cuMemcpyAtoA] (dstArray: CUarray, dstOffset: u32, srcArray: CUarray, srcOffset: u32, ByteCount: u32) => work::blocking();
    [cuMemcpyAtoA_v2 cuMemcpyAtoA_v2_ptds] (dstArray: CUarray, dstOffset: usize, srcArray: CUarray, srcOffset: usize, ByteCount: usize) => work::blocking();
    [cuMemcpyHtoAAsync] (dstArray: CUarray, dstOffset: u32, srcHost: *const c_void, ByteCount: u32, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpyHtoAAsync_v2 cuMemcpyHtoAAsync_v2_ptsz] (dstArray: CUarray, dstOffset: usize, srcHost: *const c_void, ByteCount: usize, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpyAtoHAsync] (dstHost: *mut c_void, srcArray: CUarray, srcOffset: u32, ByteCount: u32, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpyAtoHAsync_v2 cuMemcpyAtoHAsync_v2_ptsz] (dstHost: *mut c_void, srcArray: CUarray, srcOffset: usize, ByteCount: usize, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpy2D] (pCopy: *const c_void) => work::blocking();
    [cuMemcpy2D_v2 cuMemcpy2D_v2_ptds] (pCopy: *const CUDA_MEMCPY2D) => copies::rows_now(pCopy);
    [cuMemcpy2DUnaligned] (pCopy: *const c_void) => work::blocking();
    [cuMemcpy2DUnaligned_v2 cuMemcpy2DUnaligned_v2_ptds] (pCopy: *const CUDA_MEMCPY2D) => copies::rows_now(pCopy);
    [cuMemcpy2DAsync] (pCopy: *const c_void, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpy2DAsync_v2 cuMemcpy2DAsync_v2_ptsz] (pCopy: *const CUDA_MEMCPY2D, hStream: CUstream) => copies::rows(pCopy, hStream);
    [cuMemcpy3D] (pCopy: *const c_void) => work::blocking();
    [cuMemcpy3D_v2 cuMemcpy3D_v2_ptds] (pCopy: *const CUDA_MEMCPY3D) => copies::slices_now(pCopy);
    [cuMemcpy3DAsync] (pCopy: *const c_void, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpy3DAsync_v2 cuMemcpy3DAsync_v2_ptsz] (pCopy: *const CUDA_MEMCPY3D, hStream: CUstream) => copies::slices(pCopy, hStream);
    [cuMemcpy3DPeer cuMemcpy3DPeer_ptds] (pCopy: *const CUDA_MEMCPY3D_PEER) => work::blocking();
    [cuMemcpy3DPeerAsync cuMemcpy3DPeerAsync_ptsz] (pCopy: *const CUDA_MEMCPY3D_PEER, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemcpyBatchAsync cuMemcpyBatchAsync_ptsz] (dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize, attrs: *mut CUmemcpyAttributes, attrsIdxs: *mut usize, numAttrs: usize, failIdx: *mut usize, hStream: CUstream) => batches::batch(dsts, srcs, sizes, count, attrs, numAttrs, hStream);
    [cuMemcpyBatchAsync_v2 cuMemcpyBatchAsync_v2_ptsz] (dsts: *mut CUdeviceptr, srcs: *mut CUdeviceptr, sizes: *mut usize, count: usize, attrs: *mut CUmemcpyAttributes, attrsIdxs: *mut usize, numAttrs: usize, hStream: CUstream) => batches::batch(dsts, srcs, sizes, count, attrs, numAttrs, hStream);
    [cuMemcpy3DBatchAsync cuMemcpy3DBatchAsync_ptsz] (numOps: usize, opList: *mut CUDA_MEMCPY3D_BATCH_OP, failIdx: *mut usize, flags: u64, hStream: CUstream) => batches::boxes(numOps, opList, flags, hStream);
    [cuMemcpy3DBatchAsync_v2 cuMemcpy3DBatchAsync_v2_ptsz] (numOps: usize, opList: *mut CUDA_MEMCPY3D_BATCH_OP, flags: u64, hStream: CUstream) => batches::boxes(numOps, opList, flags, hStream);
    [cuMemcpyWithAttributesAsync cuMemcpyWithAttributesAsync_ptsz] (dst: CUdeviceptr, src: CUdeviceptr, size: usize, attr: *mut CUmemcpyAttributes, hStream: CUstream) => copies::linear_with(dst, src, size, attr, hStream);
    [cuMemcpy3DWithAttributesAsync cuMemcpy3DWithAttributesAsync_ptsz] (op: *mut CUDA_MEMCPY3D_BATCH_OP, flags: u64, hStream: CUstream) => batches::one_box(op, hStream);
    [cuFabricCpyBatchAsync cuFabricCpyBatchAsync_ptsz] (numOps: usize, opList: *mut c_void, flags: u64, hStream: CUstream) => work::at_addresses(hStream);
    [cuMemBatchDecompressAsync cuMemBatchDecompressAsync_ptsz] (paramsArray: *mut CUmemDecompressParams, count: usize, flags: u32, errorIndex: *mut usize, stream: CUstream) => work::at_addresses(stream);

    // Memsets.
    [cuMemsetD8] (dstDevice: u32, uc: u8, N: u32) => work::blocking();
    [cuMemsetD8_v2 cuMemsetD8_v2_ptds] (dstDevice: CUdeviceptr, uc: u8, N: usize) => memsets::row_now(dstDevice, uc, N);
    [cuMemsetD8Async cuMemsetD8Async_ptsz] (dstDevice: CUdeviceptr, uc: u8, N: usize, hStream: CUstream) => memsets::row(dstDevice, uc, N, hStream);
    [cuMemsetD16] (dstDevice: u32, us: u16, N: u32) => work::blocking();
    [cuMemsetD16_v2 cuMemsetD16_v2_ptds] (dstDevice: CUdeviceptr, us: u16, N: usize) => memsets::row_now(dstDevice, us, N);
    [cuMemsetD16Async cuMemsetD16Async_ptsz] (dstDevice: CUdeviceptr, us: u16, N: usize, hStream: CUstream) => memsets::row(dstDevice, us, N, hStream);
    [cuMemsetD32] (dstDevice: u32, ui: u32, N: u32) => work::blocking();
    [cuMemsetD32_v2 cuMemsetD32_v2_ptds] (dstDevice: CUdeviceptr, ui: u32, N: usize) => memsets::row_now(dstDevice, ui, N);
    [cuMemsetD32Async cuMemsetD32Async_ptsz] (dstDevice: CUdeviceptr, ui: u32, N: usize, hStream: CUstream) => memsets::row(dstDevice, ui, N, hStream);
    [cuMemsetD2D8] (dstDevice: u32, dstPitch: u32, uc: u8, Width: u32, Height: u32) => work::blocking();
    [cuMemsetD2D8_v2 cuMemsetD2D8_v2_ptds] (dstDevice: CUdeviceptr, dstPitch: usize, uc: u8, Width: usize, Height: usize) => memsets::rows_now(dstDevice, dstPitch, uc, Width, Height);
    [cuMemsetD2D8Async cuMemsetD2D8Async_ptsz] (dstDevice: CUdeviceptr, dstPitch: usize, uc: u8, Width: usize, Height: usize, hStream: CUstream) => memsets::rows(dstDevice, dstPitch, uc, Width, Height, hStream);
    [cuMemsetD2D16] (dstDevice: u32, dstPitch: u32, us: u16, Width: u32, Height: u32) => work::blocking();
    [cuMemsetD2D16_v2 cuMemsetD2D16_v2_ptds] (dstDevice: CUdeviceptr, dstPitch: usize, us: u16, Width: usize, Height: usize) => memsets::rows_now(dstDevice, dstPitch, us, Width, Height);
    [cuMemsetD2D16Async cuMemsetD2D16Async_ptsz] (dstDevice: CUdeviceptr, dstPitch: usize, us: u16, Width: usize, Height: usize, hStream: CUstream) => memsets::rows(dstDevice, dstPitch, us, Width, Height, hStream);
    [cuMemsetD2D32] (dstDevice: u32, dstPitch: u32, ui: u32, Width: u32, Height: u32) => work::blocking();
    [cuMemsetD2D32_v2 cuMemsetD2D32_v2_ptds] (dstDevice: CUdeviceptr, dstPitch: usize, ui: u32, Width: usize, Height: usize) => memsets::rows_now(dstDevice, dstPitch, ui, Width, Height);
    [cuMemsetD2D32Async cuMemsetD2D32Async_ptsz] (dstDevice: CUdeviceptr, dstPitch: usize, ui: u32, Width: usize, Height: usize, hStream: CUstream) => memsets::rows(dstDevice, dstPitch, ui, Width, Height, hStream);

    // Launches.
    [cuLaunchKernel cuLaunchKernel_ptsz] (f: CUfunction, gridDimX: u32, gridDimY: u32, gridDimZ: u32, blockDimX: u32, blockDimY: u32, blockDimZ: u32, sharedMemBytes: u32, hStream: CUstream, kernelParams: *mut *mut c_void, extra: *mut *mut c_void) => work::launch(hStream);
    [cuLaunchKernelEx cuLaunchKernelEx_ptsz] (config: *const CUlaunchConfig, f: CUfunction, kernelParams: *mut *mut c_void, extra: *mut *mut c_void) => work::launch_ex(config);
    [cuLaunchCooperativeKernel cuLaunchCooperativeKernel_ptsz] (f: CUfunction, gridDimX: u32, gridDimY: u32, gridDimZ: u32, blockDimX: u32, blockDimY: u32, blockDimZ: u32, sharedMemBytes: u32, hStream: CUstream, kernelParams: *mut *mut c_void) => work::launch(hStream);
    [cuLaunchCooperativeKernelMultiDevice] (launchParamsList: *mut CUDA_LAUNCH_PARAMS, numDevices: u32, flags: u32) => work::launch_list(launchParamsList, numDevices);
    [cuLaunch] (f: CUfunction) => work::launch_blocking();
    [cuLaunchGrid] (f: CUfunction, grid_width: i32, grid_height: i32) => work::launch_blocking();
    [cuLaunchGridAsync] (f: CUfunction, grid_width: i32, grid_height: i32, hStream: CUstream) => work::launch(hStream);
    [cuLaunchHostFunc cuLaunchHostFunc_ptsz] (hStream: CUstream, function: CUhostFn, userData: *mut c_void) => work::on(hStream);
    [cuLaunchHostFunc_v2 cuLaunchHostFunc_v2_ptsz] (hStream: CUstream, function: CUhostFn, userData: *mut c_void, syncMode: u32) => work::on(hStream);
    [cuStreamAddCallback cuStreamAddCallback_ptsz] (hStream: CUstream, callback: *mut c_void, userData: *mut c_void, flags: u32) => work::on(hStream);

    // Graphs.
    [cuGraphLaunch cuGraphLaunch_ptsz] (hGraph: CUgraphExec, hStream: CUstream) => work::launch_graph(hStream);
    [cuGraphUpload cuGraphUpload_ptsz] (hGraph: CUgraphExec, hStream: CUstream) => work::launch_graph(hStream);
    [cuGraphAddMemAllocNode] (phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, numDependencies: usize, nodeParams: *mut CUDA_MEM_ALLOC_NODE_PARAMS) => unswappable::graph_node(nodeParams);
    [cuGraphAddNode] (phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, numDependencies: usize, nodeParams: *mut CUgraphNodeParams) => nodes::any(nodeParams);
    [cuGraphAddNode_v2 cuGraphAddNode_v3] (phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, dependencyData: *const CUgraphEdgeData, numDependencies: usize, nodeParams: *mut CUgraphNodeParams) => nodes::any(nodeParams);
    [cuGraphAddMemcpyNode] (phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, numDependencies: usize, copyParams: *const c_void, ctx: CUcontext) => nodes::copy(copyParams, ctx);
    [cuGraphMemcpyNodeSetParams] (hNode: CUgraphNode, nodeParams: *const c_void) => nodes::copy_as_before(nodeParams);
    [cuGraphExecMemcpyNodeSetParams] (hGraphExec: CUgraphExec, hNode: CUgraphNode, copyParams: *const c_void, ctx: CUcontext) => nodes::copy(copyParams, ctx);
    [cuGraphNodeSetParams cuGraphNodeSetParams_v2] (hNode: CUgraphNode, nodeParams: *mut CUgraphNodeParams) => nodes::changed(nodeParams);
    [cuGraphExecNodeSetParams] (hGraphExec: CUgraphExec, hNode: CUgraphNode, nodeParams: *mut CUgraphNodeParams) => nodes::changed(nodeParams);
    [cuGraphAddMemsetNode] (phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, numDependencies: usize, memsetParams: *const c_void, ctx: CUcontext) => work::described();
    [cuGraphMemsetNodeSetParams] (hNode: CUgraphNode, nodeParams: *const c_void) => work::described();
    [cuGraphExecMemsetNodeSetParams] (hGraphExec: CUgraphExec, hNode: CUgraphNode, memsetParams: *const c_void, ctx: CUcontext) => work::described();
    [cuGraphAddBatchMemOpNode] (phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, numDependencies: usize, nodeParams: *const c_void) => work::described();
    [cuGraphBatchMemOpNodeSetParams] (hNode: CUgraphNode, nodeParams: *const c_void) => work::described();
    [cuGraphExecBatchMemOpNodeSetParams] (hGraphExec: CUgraphExec, hNode: CUgraphNode, nodeParams: *const c_void) => work::described();
    [cuGraphAddChildGraphNode] (phGraphNode: *mut CUgraphNode, hGraph: CUgraph, dependencies: *const CUgraphNode, numDependencies: usize, childGraph: CUgraph) => work::described();
    [cuGraphExecChildGraphNodeSetParams] (hGraphExec: CUgraphExec, hNode: CUgraphNode, childGraph: CUgraph) => work::described();
    [cuGraphExecUpdate] (hGraphExec: CUgraphExec, hGraph: CUgraph, hErrorNode_out: *mut CUgraphNode, updateResult_out: *mut CEnum) => work::described();
    [cuGraphExecUpdate_v2] (hGraphExec: CUgraphExec, hGraph: CUgraph, resultInfo: *mut c_void) => work::described();
    [cuGraphInstantiate] (phGraphExec: *mut CUgraphExec, hGraph: CUgraph, phErrorNode: *mut CUgraphNode, logBuffer: *mut c_char, bufferSize: usize) => work::instantiate();
    [cuGraphInstantiate_v2] (phGraphExec: *mut CUgraphExec, hGraph: CUgraph, phErrorNode: *mut CUgraphNode, logBuffer: *mut c_char, bufferSize: usize) => work::instantiate();
    [cuGraphInstantiateWithFlags] (phGraphExec: *mut CUgraphExec, hGraph: CUgraph, flags: u64) => work::instantiate();
    [cuGraphInstantiateWithParams cuGraphInstantiateWithParams_ptsz] (phGraphExec: *mut CUgraphExec, hGraph: CUgraph, instantiateParams: *mut CUDA_GRAPH_INSTANTIATE_PARAMS) => work::instantiate();

    // Textures over linear memory, and engines that are told an address.
    [cuTexRefSetAddress_v2] (ByteOffset: *mut usize, hTexRef: CUtexref, dptr: CUdeviceptr, bytes: usize) => work::described();
    [cuTexRefSetAddress2D] (hTexRef: CUtexref, desc: *const c_void, dptr: CUdeviceptr, Pitch: usize) => work::described();
    [cuTexRefSetAddress2D_v2] (hTexRef: CUtexref, desc: *const c_void, dptr: CUdeviceptr, Pitch: usize) => work::described();
    [cuTexRefSetAddress2D_v3] (hTexRef: CUtexref, desc: *const c_void, dptr: CUdeviceptr, Pitch: usize) => work::described();
    [cuTexObjectCreate] (pTexObject: *mut c_void, pResDesc: *const c_void, pTexDesc: *const c_void, pResViewDesc: *const c_void) => work::described_lazily();

    // Stream memory operations.
    [cuStreamWriteValue32 cuStreamWriteValue32_ptsz] (stream: CUstream, addr: CUdeviceptr, value: u32, flags: u32) => work::at_addresses(stream);
    [cuStreamWriteValue32_v2 cuStreamWriteValue32_v2_ptsz] (stream: CUstream, addr: CUdeviceptr, value: u32, flags: u32) => work::at_addresses(stream);
    [cuStreamWriteValue64 cuStreamWriteValue64_ptsz] (stream: CUstream, addr: CUdeviceptr, value: u64, flags: u32) => work::at_addresses(stream);
    [cuStreamWriteValue64_v2 cuStreamWriteValue64_v2_ptsz] (stream: CUstream, addr: CUdeviceptr, value: u64, flags: u32) => work::at_addresses(stream);
    [cuStreamWaitValue32 cuStreamWaitValue32_ptsz] (stream: CUstream, addr: CUdeviceptr, value: u32, flags: u32) => work::at_addresses(stream);
    [cuStreamWaitValue32_v2 cuStreamWaitValue32_v2_ptsz] (stream: CUstream, addr: CUdeviceptr, value: u32, flags: u32) => work::at_addresses(stream);
    [cuStreamWaitValue64 cuStreamWaitValue64_ptsz] (stream: CUstream, addr: CUdeviceptr, value: u64, flags: u32) => work::at_addresses(stream);
    [cuStreamWaitValue64_v2 cuStreamWaitValue64_v2_ptsz] (stream: CUstream, addr: CUdeviceptr, value: u64, flags: u32) => work::at_addresses(stream);
    [cuStreamBatchMemOp cuStreamBatchMemOp_ptsz] (stream: CUstream, count: u32, paramArray: *mut CUstreamBatchMemOpParams, flags: u32) => work::at_addresses(stream);
    [cuStreamBatchMemOp_v2 cuStreamBatchMemOp_v2_ptsz] (stream: CUstream, count: u32, paramArray: *mut CUstreamBatchMemOpParams, flags: u32) => work::at_addresses(stream);

    // Streams and captures.
    [cuStreamCreate] (phStream: *mut CUstream, Flags: u32) => streams::create(phStream);
    [cuStreamCreateWithPriority] (phStream: *mut CUstream, flags: u32, priority: i32) => streams::create(phStream);
    [cuGreenCtxStreamCreate] (phStream: *mut CUstream, greenCtx: CUgreenCtx, flags: u32, priority: i32) => streams::create_green(phStream);
    [cuStreamDestroy] (hStream: CUstream) => streams::destroy(hStream);
    [cuStreamDestroy_v2] (hStream: CUstream) => streams::destroy(hStream);
    [cuStreamBeginCapture cuStreamBeginCapture_ptsz] (hStream: CUstream) => streams::begin_capture(hStream);
    [cuStreamBeginCapture_v2 cuStreamBeginCapture_v2_ptsz] (hStream: CUstream, mode: CEnum) => streams::begin_capture(hStream);
    [cuStreamBeginCaptureToGraph cuStreamBeginCaptureToGraph_ptsz] (hStream: CUstream, hGraph: CUgraph, dependencies: *const CUgraphNode, dependencyData: *const CUgraphEdgeData, numDependencies: usize, mode: CEnum) => streams::begin_capture(hStream);
    [cuStreamBeginRecaptureToGraph cuStreamBeginRecaptureToGraph_ptsz] (hStream: CUstream, mode: CEnum, hGraph: CUgraph, callbackFunc: *mut c_void, userData: *mut c_void) => streams::begin_capture(hStream);
    [cuStreamBeginCaptureToCig cuStreamBeginCaptureToCig_ptsz] (hStream: CUstream, streamCigCaptureParams: *mut c_void) => streams::begin_capture(hStream);
    [cuStreamEndCapture cuStreamEndCapture_ptsz] (hStream: CUstream, phGraph: *mut CUgraph) => streams::end_capture(hStream);
    [cuStreamEndCaptureToCig cuStreamEndCaptureToCig_ptsz] (hStream: CUstream) => streams::end_capture(hStream);
    [cuStreamWaitEvent cuStreamWaitEvent_ptsz] (hStream: CUstream, hEvent: CUevent, Flags: u32) => streams::wait_event(hStream, hEvent);
    [cuEventRecord cuEventRecord_ptsz] (hEvent: CUevent, hStream: CUstream) => streams::record_event(hEvent, hStream);
    [cuEventRecordWithFlags cuEventRecordWithFlags_ptsz] (hEvent: CUevent, hStream: CUstream, flags: u32) => streams::record_event(hEvent, hStream);

    // Waiting: not gated, but a client that waits is not idle.
    [cuStreamSynchronize cuStreamSynchronize_ptsz] (hStream: CUstream) => waiting::stream(hStream);
    [cuEventSynchronize] (hEvent: CUevent) => waiting::event();
    [cuCtxSynchronize] () => waiting::current();
    [cuCtxSynchronize_v2] (ctx: CUcontext) => waiting::context(ctx);

    // Contexts.
    [cuCtxCreate] (pctx: *mut CUcontext, flags: u32, dev: CUdevice) => contexts::create(pctx, dev);
    [cuCtxCreate_v2] (pctx: *mut CUcontext, flags: u32, dev: CUdevice) => contexts::create(pctx, dev);
    [cuCtxCreate_v3] (pctx: *mut CUcontext, paramsArray: *mut c_void, numParams: i32, flags: u32, dev: CUdevice) => contexts::create(pctx, dev);
    [cuCtxCreate_v4] (pctx: *mut CUcontext, ctxCreateParams: *mut c_void, flags: u32, dev: CUdevice) => contexts::create(pctx, dev);
    [cuDevicePrimaryCtxRetain] (pctx: *mut CUcontext, dev: CUdevice) => contexts::retain(pctx, dev);
    [cuDevicePrimaryCtxRelease] (dev: CUdevice) => contexts::release(dev);
    [cuDevicePrimaryCtxRelease_v2] (dev: CUdevice) => contexts::release(dev);
    [cuDevicePrimaryCtxReset] (dev: CUdevice) => contexts::reset(dev);
    [cuDevicePrimaryCtxReset_v2] (dev: CUdevice) => contexts::reset(dev);
    [cuCtxDestroy] (ctx: CUcontext) => contexts::destroy(ctx);
    [cuCtxDestroy_v2] (ctx: CUcontext) => contexts::destroy(ctx);
    [cuCtxAttach] (pctx: *mut CUcontext, flags: u32) => contexts::attach(pctx);
    [cuCtxDetach] (ctx: CUcontext) => contexts::detach(ctx);
    [cuCtxEnablePeerAccess] (peerContext: CUcontext, Flags: u32) => contexts::enable_peer(peerContext);
    [cuGreenCtxDestroy] (hCtx: CUgreenCtx) => contexts::destroy_green(hCtx);
    [cuCtxFromGreenCtx] (pContext: *mut CUcontext, hCtx: CUgreenCtx) => contexts::from_green(pContext);

    // The driver takes memory for itself: asked again once after room was made.
    [cuModuleLoad] (module: *mut CUmodule, fname: *const c_char) => room::retried();
    [cuModuleLoadData] (module: *mut CUmodule, image: *const c_void) => room::retried();
    [cuModuleLoadDataEx] (module: *mut CUmodule, image: *const c_void, numOptions: u32, options: *mut CEnum, optionValues: *mut *mut c_void) => room::retried();
    [cuModuleLoadFatBinary] (module: *mut CUmodule, fatCubin: *const c_void) => room::retried();
    [cuLibraryLoadData] (library: *mut CUlibrary, code: *const c_void, jitOptions: *mut CEnum, jitOptionsValues: *mut *mut c_void, numJitOptions: u32, libraryOptions: *mut CEnum, libraryOptionValues: *mut *mut c_void, numLibraryOptions: u32) => room::retried();
    [cuLibraryLoadFromFile] (library: *mut CUlibrary, fileName: *const c_char, jitOptions: *mut CEnum, jitOptionsValues: *mut *mut c_void, numJitOptions: u32, libraryOptions: *mut CEnum, libraryOptionValues: *mut *mut c_void, numLibraryOptions: u32) => room::retried();
    [cuCtxSetLimit] (limit: CEnum, value: usize) => room::retried();
    [cuLinkComplete] (state: CUlinkState, cubinOut: *mut *mut c_void, sizeOut: *mut usize) => room::retried();
    // Where modules are loaded lazily, these load them.
    [cuModuleGetFunction] (hfunc: *mut CUfunction, hmod: CUmodule, name: *const c_char) => room::lazy();
    [cuModuleGetGlobal] (dptr: *mut u32, bytes: *mut u32, hmod: CUmodule, name: *const c_char) => room::lazy();
    [cuModuleGetGlobal_v2] (dptr: *mut CUdeviceptr, bytes: *mut usize, hmod: CUmodule, name: *const c_char) => room::lazy();
    [cuLibraryGetModule] (pMod: *mut CUmodule, library: CUlibrary) => room::retried();
    [cuLibraryGetKernel] (pKernel: *mut CUkernel, library: CUlibrary, name: *const c_char) => room::lazy();
    [cuLibraryGetGlobal] (dptr: *mut CUdeviceptr, bytes: *mut usize, library: CUlibrary, name: *const c_char) => room::lazy();
    [cuLibraryGetManaged] (dptr: *mut CUdeviceptr, bytes: *mut usize, library: CUlibrary, name: *const c_char) => room::lazy();
    [cuLibraryGetUnifiedFunction] (fptr: *mut *mut c_void, library: CUlibrary, symbol: *const c_char) => room::lazy();
    [cuKernelGetFunction] (pFunc: *mut CUfunction, kernel: CUkernel) => room::lazy();
    [cuKernelGetAttribute] (pi: *mut i32, attrib: CEnum, kernel: CUkernel, dev: CUdevice) => room::lazy();
    [cuKernelSetAttribute] (attrib: CEnum, val: i32, kernel: CUkernel, dev: CUdevice) => room::lazy();
    [cuFuncLoad] (function: CUfunction) => room::lazy();
    [cuFuncGetAttribute] (pi: *mut i32, attrib: CEnum, hfunc: CUfunction) => room::lazy();
    [cuFuncSetAttribute] (hfunc: CUfunction, attrib: CEnum, value: i32) => room::lazy();
    [cuOccupancyMaxActiveBlocksPerMultiprocessor] (numBlocks: *mut i32, func: CUfunction, blockSize: i32, dynamicSMemSize: usize) => room::lazy();
    [cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags] (numBlocks: *mut i32, func: CUfunction, blockSize: i32, dynamicSMemSize: usize, flags: u32) => room::lazy();
    // Page tables, and what the driver keeps of things that are mapped.
    [cuGreenCtxCreate] (phCtx: *mut CUgreenCtx, desc: CUdevResourceDesc, dev: CUdevice, flags: u32) => room::retried();
    [cuEventCreate] (phEvent: *mut CUevent, Flags: u32) => room::lazy();
    [cuSurfObjectCreate] (pSurfObject: *mut CUsurfObject, pResDesc: *const CUDA_RESOURCE_DESC) => room::lazy();
    [cuImportExternalMemory] (extMem_out: *mut CUexternalMemory, memHandleDesc: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC) => room::lazy();
    [cuExternalMemoryGetMappedBuffer] (devPtr: *mut CUdeviceptr, extMem: CUexternalMemory, bufferDesc: *const CUDA_EXTERNAL_MEMORY_BUFFER_DESC) => room::lazy();
    [cuIpcOpenMemHandle cuIpcOpenMemHandle_v2] (pdptr: *mut CUdeviceptr, handle: CUipcMemHandle, Flags: u32) => ipc::open(pdptr, handle, Flags);
    [cuIpcCloseMemHandle] (dptr: CUdeviceptr) => ipc::close(dptr);

    // How large the device is.
    [cuDeviceTotalMem] (bytes: *mut u32, dev: CUdevice) => size::total_32(bytes, dev);
    [cuDeviceTotalMem_v2] (bytes: *mut usize, dev: CUdevice) => size::total(bytes, dev);
  }
  bare {
    cuDriverGetVersion(driverVersion: *mut i32);
    cuGetErrorName(error: CEnum, pStr: *mut *const c_char);
    cuGetErrorString(error: CEnum, pStr: *mut *const c_char);
    cuDeviceGet(device: *mut CUdevice, ordinal: i32);
    cuDeviceGetCount(count: *mut i32);
    cuDeviceCanAccessPeer(canAccessPeer: *mut i32, dev: CUdevice, peerDev: CUdevice);
    cuDeviceGetAttribute(pi: *mut i32, attrib: CEnum, dev: CUdevice);
    cuDeviceGetUuid(uuid: *mut CUuuid, dev: CUdevice);
    cuDeviceGetUuid_v2(uuid: *mut CUuuid, dev: CUdevice);
    cuDevicePrimaryCtxGetState(dev: CUdevice, flags: *mut u32, active: *mut i32);
    cuCtxGetCurrent(pctx: *mut CUcontext);
    cuCtxSetCurrent(ctx: CUcontext);
    cuCtxPushCurrent_v2(ctx: CUcontext);
    cuCtxPopCurrent_v2(pctx: *mut CUcontext);
    cuCtxGetApiVersion(ctx: CUcontext, version: *mut u32);
    cuCtxGetDevice(device: *mut CUdevice);
    cuCtxGetId(ctx: CUcontext, ctxId: *mut u64);
    cuStreamGetCtx(hStream: CUstream, pctx: *mut CUcontext);
    cuStreamGetCtx_v2(hStream: CUstream, pCtx: *mut CUcontext, pGreenCtx: *mut CUgreenCtx);
    cuStreamIsCapturing(hStream: CUstream, captureStatus: *mut CEnum);
    cuStreamIsCapturing_ptsz(hStream: CUstream, captureStatus: *mut CEnum);
    cuStreamGetFlags(hStream: CUstream, flags: *mut u32);
    cuStreamQuery(hStream: CUstream);
    cuThreadExchangeStreamCaptureMode(mode: *mut CEnum);
    cuEventQuery(hEvent: CUevent);
    cuEventDestroy_v2(hEvent: CUevent);
    cuEventElapsedTime(pMilliseconds: *mut f32, hStart: CUevent, hEnd: CUevent);
    cuMemGetAllocationGranularity(granularity: *mut usize, prop: *const CUmemAllocationProp, option: CEnum);
    cuMemFreeHost(p: *mut c_void);
    cuMemHostAlloc(pp: *mut *mut c_void, bytesize: usize, Flags: u32);
    cuMemHostRegister_v2(p: *mut c_void, bytesize: usize, Flags: u32);
    cuMemHostUnregister(p: *mut c_void);
    cuDeviceGetDefaultMemPool(pool_out: *mut CUmemoryPool, dev: CUdevice);
    cuDeviceGetMemPool(pool: *mut CUmemoryPool, dev: CUdevice);
    cuDeviceGetGraphMemAttribute(device: CUdevice, attr: CEnum, value: *mut c_void);
    cuMemHostGetDevicePointer_v2(pdptr: *mut CUdeviceptr, p: *mut c_void, Flags: u32);
    cuModuleUnload(hmod: CUmodule);
    cuLinkCreate_v2(numOptions: u32, options: *mut CEnum, optionValues: *mut *mut c_void, stateOut: *mut CUlinkState);
    cuLinkAddData_v2(state: CUlinkState, kind: CEnum, data: *mut c_void, size: usize, name: *const c_char, numOptions: u32, options: *mut CEnum, optionValues: *mut *mut c_void);
    cuLinkDestroy(state: CUlinkState);
  }
    } };
}
pub(crate) use functions;

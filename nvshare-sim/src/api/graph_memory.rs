//! Memory of graphs: nodes that allocate and free, and the pools that they use.

use std::ffi::{c_uint, c_void};

use cudarc::driver::sys::{CUdevice, CUdeviceptr, CUgraph, CUgraphNode, CUresult};

use super::graph::{graph_of, node_of, nodes_of};
use super::vmm::{Grant, Location, ON_DEVICE};
use crate::device;
use crate::export::{Outcome, export, put};
use crate::memory::graph::{self, Allocation};
use crate::memory::graph_pool;
use crate::work::Work;

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// `CUmemPoolProps`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Properties {
    kind: c_uint,
    handle_types: c_uint,
    location: Location,
    security: *const c_void,
    most: usize,
    usage: u16,
    reserved: [u8; 54],
}

/// `CUDA_MEM_ALLOC_NODE_PARAMS`, of both versions.
#[repr(C)]
pub(super) struct Parameters {
    pool: Properties,
    grants: *const Grant,
    grant_count: usize,
    bytes: usize,
    address: CUdeviceptr,
}

const _: () =
    assert!(size_of::<Parameters>() == size_of::<cudarc::driver::sys::CUDA_MEM_ALLOC_NODE_PARAMS>());

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
const PINNED: c_uint = 1;

/// `CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT`, `_HIGH`, `_RESERVED_MEM_CURRENT`, `_HIGH`.
const USED: c_uint = 0;
const USED_HIGH: c_uint = 1;
const RESERVED: c_uint = 2;
const RESERVED_HIGH: c_uint = 3;

export! {
    fn cuGraphAddMemAllocNode(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, parameters: *mut Parameters,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add_allocation(made, graph, after, count, parameters) }
    }

    fn cuGraphMemAllocNodeGetParams(node: CUgraphNode, parameters: *mut Parameters) |cx| {
        let Work::Allocate(hold) = node_of(node)?.work() else { return Err(INVALID) };
        let location = Location { kind: ON_DEVICE, id: hold.device as i32 };
        let pool = Properties {
            kind: PINNED,
            handle_types: 0,
            location,
            security: std::ptr::null(),
            most: 0,
            usage: 0,
            reserved: [0; 54],
        };
        let (grants, grant_count) = (hold.grants.as_ptr(), hold.grants.len());
        let known = Parameters { pool, grants, grant_count, bytes: hold.bytes as usize, address: hold.start };
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(parameters, known) }
    }

    fn cuGraphAddMemFreeNode(
        made: *mut CUgraphNode, graph: CUgraph, after: *const CUgraphNode, count: usize, pointer: CUdeviceptr,
    ) |cx| {
        // SAFETY: parameters as the driver API demands them.
        unsafe { add_free(made, graph, after, count, pointer) }
    }

    fn cuGraphMemFreeNodeGetParams(node: CUgraphNode, pointer: *mut CUdeviceptr) |cx| {
        let Work::Free(hold) = node_of(node)?.work() else { return Err(INVALID) };
        // SAFETY: an out-parameter of the driver API.
        unsafe { put(pointer, hold.start) }
    }

    fn cuDeviceGraphMemTrim(of: CUdevice) |cx| {
        graph::trim(device::index(of)?);
        Ok(())
    }

    fn cuDeviceGetGraphMemAttribute(of: CUdevice, attribute: c_uint, value: *mut c_void) |cx| {
        let pool = graph_pool::of_device(device::index(of)?);
        let known = match attribute {
            USED => pool.used.now,
            USED_HIGH => pool.used.high,
            RESERVED => pool.reserved.now,
            RESERVED_HIGH => pool.reserved.high,
            _ => return Err(INVALID),
        };
        // SAFETY: the caller passes room for the attribute, all are of 64 bits.
        unsafe { put(value.cast::<u64>(), known) }
    }

    fn cuDeviceSetGraphMemAttribute(of: CUdevice, attribute: c_uint, value: *mut c_void) |cx| {
        let mut pool = graph_pool::of_device(device::index(of)?);
        // SAFETY: null, or a value of the attribute's type.
        if unsafe { value.cast::<u64>().as_ref() } != Some(&0) {
            return Err(INVALID);
        }
        match attribute {
            USED_HIGH => pool.used.reset(),
            RESERVED_HIGH => pool.reserved.reset(),
            _ => return Err(INVALID),
        }
        Ok(())
    }
}

/// # Safety
/// `made` is null or writable, `after` points to `count` handles, `parameters` is null or what the driver API demands.
pub(super) unsafe fn add_allocation(
    made: *mut CUgraphNode,
    graph: CUgraph,
    after: *const CUgraphNode,
    count: usize,
    parameters: *mut Parameters,
) -> Outcome {
    // SAFETY: the caller's.
    let parameters = unsafe { parameters.as_mut() }.filter(|_| !made.is_null()).ok_or(INVALID)?;
    let pool = &parameters.pool;
    if pool.kind != PINNED || pool.handle_types != 0 || pool.location.kind != ON_DEVICE {
        return Err(INVALID);
    }
    let on = device::index(pool.location.id).map_err(|_| INVALID)?;
    let devices = device::count();
    if parameters.grant_count > devices || (parameters.grant_count > 0 && parameters.grants.is_null()) {
        return Err(INVALID);
    }
    // SAFETY: the caller's array of that many.
    let grants: Vec<Grant> =
        (0..parameters.grant_count).map(|index| unsafe { parameters.grants.add(index).read() }).collect();
    let is_device =
        |grant: &Grant| grant.location.kind == ON_DEVICE && device::index(grant.location.id).is_ok();
    if !grants.iter().all(is_device) {
        return Err(INVALID);
    }
    let graph = graph_of(graph)?;
    // SAFETY: the caller's.
    let after = unsafe { nodes_of(after, count) }?;
    let hold = Allocation::create(&graph, on, parameters.bytes as u64, grants)?;
    parameters.address = hold.start;
    // SAFETY: the caller's.
    unsafe { put(made, graph.add(Work::Allocate(hold), after).handle()) }
}

/// # Safety
/// `made` is null or writable, `after` points to `count` handles.
pub(super) unsafe fn add_free(
    made: *mut CUgraphNode,
    graph: CUgraph,
    after: *const CUgraphNode,
    count: usize,
    pointer: CUdeviceptr,
) -> Outcome {
    if made.is_null() {
        return Err(INVALID);
    }
    let graph = graph_of(graph)?;
    // SAFETY: the caller's.
    let after = unsafe { nodes_of(after, count) }?;
    let hold = Allocation::at(pointer)?.freed_in(&graph)?;
    // SAFETY: the caller's.
    unsafe { put(made, graph.add(Work::Free(hold), after).handle()) }
}

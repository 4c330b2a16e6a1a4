//! Memory of graphs: nodes that allocate and free, and the pools that they use.

#![expect(unsafe_code, reason = "a list that a description points to")]

use std::ffi::{c_uint, c_void};

use cudarc::driver::sys::{CUdevice, CUdeviceptr, CUgraph, CUgraphNode, CUresult};

use super::graph::{graph_of, node_of, nodes_of};
use crate::call::Outcome;
use crate::device;
use crate::execution::work::Work;
use crate::export::export;
use crate::memory::grant::{Grant, Location, ON_DEVICE};
use crate::memory::graph::{self, Allocation};
use crate::memory::graph_pool;
use crate::parameters::{Count, In, InOut, List, Out};

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
#[derive(Clone, Copy)]
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
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count,
        parameters: InOut<Parameters>,
    ) |cx| {
        let mut parameters = parameters;
        add_allocation(made, graph, (after, count), parameters.get()?)
    }

    fn cuGraphMemAllocNodeGetParams(node: CUgraphNode, parameters: Out<Parameters>) |cx| {
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
        parameters.set(known)
    }

    fn cuGraphAddMemFreeNode(
        made: Out<CUgraphNode>, graph: CUgraph, after: List<CUgraphNode>, count: Count, pointer: CUdeviceptr,
    ) |cx| {
        add_free(made, graph, (after, count), pointer)
    }

    fn cuGraphMemFreeNodeGetParams(node: CUgraphNode, pointer: Out<CUdeviceptr>) |cx| {
        let Work::Free(hold) = node_of(node)?.work() else { return Err(INVALID) };
        pointer.set(hold.start)
    }

    fn cuDeviceGraphMemTrim(of: CUdevice) |cx| {
        graph::trim(device::index(of)?);
        Ok(())
    }

    fn cuDeviceGetGraphMemAttribute(of: CUdevice, attribute: c_uint, value: Out<u64>) |cx| {
        let pool = graph_pool::of_device(device::index(of)?);
        let known = match attribute {
            USED => pool.used.now,
            USED_HIGH => pool.used.high,
            RESERVED => pool.reserved.now,
            RESERVED_HIGH => pool.reserved.high,
            _ => return Err(INVALID),
        };
        value.set(known)
    }

    fn cuDeviceSetGraphMemAttribute(of: CUdevice, attribute: c_uint, value: In<u64>) |cx| {
        let mut pool = graph_pool::of_device(device::index(of)?);
        if value.given() != Some(&0) {
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

pub(super) fn add_allocation(
    made: Out<CUgraphNode>,
    graph: CUgraph,
    after: (List<CUgraphNode>, Count),
    parameters: &mut Parameters,
) -> Outcome {
    made.needed()?;
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
    let after = nodes_of(after)?;
    let hold = Allocation::create(&graph.owner, on, parameters.bytes as u64, grants)?;
    parameters.address = hold.start;
    made.set(graph.add(Work::Allocate(hold), after).handle())
}

pub(super) fn add_free(
    made: Out<CUgraphNode>,
    graph: CUgraph,
    after: (List<CUgraphNode>, Count),
    pointer: CUdeviceptr,
) -> Outcome {
    made.needed()?;
    let graph = graph_of(graph)?;
    let after = nodes_of(after)?;
    let hold = Allocation::at(pointer)?.freed_in(&graph.owner)?;
    made.set(graph.add(Work::Free(hold), after).handle())
}

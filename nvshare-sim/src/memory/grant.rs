//! What applications say of memory: where it is, and what devices may do with it, as they pass it.

use std::ffi::{c_int, c_uint};

/// `CUmemLocation`, with its kind as the number the caller passed.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Location {
    pub(crate) kind: c_uint,
    pub(crate) id: c_int,
}

/// `CU_MEM_LOCATION_TYPE_DEVICE` and the kinds of host memory.
pub(crate) const ON_DEVICE: c_uint = 1;
pub(crate) const ON_HOST: c_uint = 2;
pub(crate) const ON_HOST_NODE: c_uint = 3;
pub(crate) const ON_NEAREST_NODE: c_uint = 4;

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Grant {
    pub(crate) location: Location,
    pub(crate) flags: c_uint,
}

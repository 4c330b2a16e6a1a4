//! Allocations, extents, the slab of small allocations, the address map.

pub mod extent;
pub mod ranges;
pub mod space;

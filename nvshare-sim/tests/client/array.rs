//! Arrays and copies to and from them, for the tests of these.

use crate::{call, ok};

/// `CU_AD_FORMAT_UNSIGNED_INT8`, `_UNSIGNED_INT16`, `_FLOAT`.
pub(crate) const BYTE: u32 = 1;
pub(crate) const SHORT: u32 = 2;
pub(crate) const FLOAT: u32 = 0x20;

/// `CUDA_ARRAY3D_LAYERED`, `_SURFACE_LDST`.
pub(crate) const LAYERED: u32 = 1;
pub(crate) const SURFACE: u32 = 2;

/// `CUDA_ARRAY3D_DESCRIPTOR`; what has two dimensions leaves `depth` and `flags` out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Form {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
    pub(crate) format: u32,
    pub(crate) channels: u32,
    pub(crate) flags: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Flat {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) format: u32,
    pub(crate) channels: u32,
}

/// `CUDA_MEMCPY3D`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Copy {
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) extents: [usize; 3],
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct End {
    pub(crate) at: [usize; 3],
    pub(crate) lod: usize,
    pub(crate) kind: u32,
    pub(crate) host: u64,
    pub(crate) device: u64,
    pub(crate) array: u64,
    pub(crate) context: u64,
    pub(crate) pitch: usize,
    pub(crate) height: usize,
}

pub(crate) fn host<T>(of: &[T], pitch: usize) -> End {
    End { kind: 1, host: of.as_ptr() as u64, pitch, ..End::default() }
}

/// As [`host`], to be written.
pub(crate) fn into<T>(to: &mut [T], pitch: usize) -> End {
    End { kind: 1, host: to.as_mut_ptr() as u64, pitch, ..End::default() }
}

pub(crate) fn device(address: u64, pitch: usize) -> End {
    End { kind: 2, device: address, pitch, ..End::default() }
}

pub(crate) fn array(array: u64, at: [usize; 3]) -> End {
    End { kind: 3, array, at, ..End::default() }
}

pub(crate) fn copy(from: End, to: End, extents: [usize; 3]) -> u32 {
    let copy = Copy { from, to, extents };
    call!(cuMemcpy3D_v2(&raw const copy))
}

pub(crate) fn made(form: Form) -> u64 {
    let mut made = 0_u64;
    ok!(cuArray3DCreate_v2(&raw mut made, &raw const form));
    made
}

pub(crate) const PLANE: Form = Form { width: 64, height: 16, depth: 0, format: SHORT, channels: 2, flags: 0 };

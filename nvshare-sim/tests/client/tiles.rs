//! Tile pools, and what is mapped of them behind arrays, for the tests of these.

use crate::{call, ok};

/// `CU_MEM_CREATE_USAGE_TILE_POOL`, and memory for nothing in particular.
pub(crate) const TILES: u32 = 1;
pub(crate) const PLAIN: u32 = 0;

/// `CU_MEM_OPERATION_TYPE_MAP`, `_UNMAP`.
const MAP: u32 = 1;
const UNMAP: u32 = 2;

/// `CUarrayMapInfo`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Operation {
    pub(crate) kind: u32,
    pub(crate) array: u64,
    pub(crate) part: u32,
    pub(crate) place: [u64; 4],
    pub(crate) how: u32,
    pub(crate) handle_kind: u32,
    pub(crate) handle: u64,
    pub(crate) offset: u64,
    pub(crate) devices: u32,
    pub(crate) flags: u32,
    pub(crate) reserved: [u32; 2],
}

pub(crate) fn map(array: u64, handle: u64) -> Operation {
    Operation { array, how: MAP, handle, devices: 1, ..Operation::default() }
}

pub(crate) fn unmap(array: u64) -> Operation {
    Operation { how: UNMAP, handle: 0, ..map(array, 0) }
}

/// Submits operations to a stream; the call's answer.
pub(crate) fn submit(list: &[Operation], stream: u64) -> u32 {
    call!(cuMemMapArrayAsync(list.as_ptr(), list.len() as u32, stream))
}

/// Does an operation, and waits for it.
pub(crate) fn done(one: Operation) {
    assert_eq!(submit(&[one], 0), 0);
    ok!(cuStreamSynchronize(0_u64));
}

pub(crate) fn properties(usage: u32) -> [u32; 8] {
    [1, 0, 1, 0, 0, 0, usage << 16, 0]
}

pub(crate) fn created(bytes: usize, usage: u32) -> u64 {
    let (mut handle, properties) = (0_u64, properties(usage));
    ok!(cuMemCreate(&raw mut handle, bytes, properties.as_ptr(), 0_u64));
    handle
}

/// What an array asks for: bytes, and their alignment.
pub(crate) fn required(array: u64) -> Result<[usize; 2], u32> {
    let mut requirements = [0_usize; 4];
    match call!(cuArrayGetMemoryRequirements(requirements.as_mut_ptr(), array, 0_i32)) {
        0 => Ok([requirements[0], requirements[1]]),
        code => Err(code),
    }
}

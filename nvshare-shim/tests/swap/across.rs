//! Two cards without peer access: copies and memsets reach the memory of the other one as they do bare.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use cudarc::driver::sys::{self, CUcontext, CUdeviceptr, CUstream};

use super::gpu::{alloc, cu, read, stream, synchronize, write};
use super::{client, run, two_cards};

/// A copy or memset in a stream.
type Act<'a> = &'a dyn Fn(CUstream);

const BYTES: usize = 4 << 20;

#[test]
fn copies_and_memsets_reach_the_memory_of_a_card_without_peer_access() {
    let Some(node) = two_cards() else { return };
    let mut command = client(&node, "across");
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "25ms");
    run(&node, command);
}

/// Memory of the second card, filled with ones.
fn prepared(contexts: &[CUcontext; 2], far: CUdeviceptr) {
    cu!(cuCtxSetCurrent(contexts[1]));
    cu!(cuMemsetD8_v2(far, 1, BYTES));
    cu!(cuCtxSynchronize());
    cu!(cuCtxSetCurrent(contexts[0]));
}

/// Whether all bytes of the second card's memory are `value`, asked in its own context.
fn holds(contexts: &[CUcontext; 2], far: CUdeviceptr, value: u8) -> bool {
    cu!(cuCtxSetCurrent(contexts[1]));
    let right = read(far, BYTES).iter().all(|byte| *byte == value);
    cu!(cuCtxSetCurrent(contexts[0]));
    right
}

fn rows(from: CUdeviceptr, to: CUdeviceptr) -> sys::CUDA_MEMCPY2D {
    let mut copy = std::mem::MaybeUninit::<sys::CUDA_MEMCPY2D>::zeroed();
    let at = copy.as_mut_ptr();
    // SAFETY: zero is a valid value of all fields but the two kinds, which are set.
    unsafe {
        (*at).srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        (*at).dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        ((*at).srcDevice, (*at).dstDevice) = (from, to);
        ((*at).srcPitch, (*at).dstPitch) = (BYTES / 4, BYTES / 4);
        ((*at).WidthInBytes, (*at).Height) = (BYTES / 4, 4);
        copy.assume_init()
    }
}

/// Four planes of four rows.
fn boxes(from: CUdeviceptr, to: CUdeviceptr) -> sys::CUDA_MEMCPY3D_BATCH_OP {
    let mut copy = std::mem::MaybeUninit::<sys::CUDA_MEMCPY3D_BATCH_OP>::zeroed();
    let at = copy.as_mut_ptr();
    // SAFETY: zero is a valid value of all fields but the kinds and the order, which are set.
    unsafe {
        for (end, address) in [(&raw mut (*at).src, from), (&raw mut (*at).dst, to)] {
            (*end).type_ = sys::CUmemcpy3DOperandType::CU_MEMCPY_OPERAND_TYPE_POINTER;
            (*end).op.ptr.ptr = address;
        }
        (*at).extent = sys::CUextent3D { width: BYTES / 16, height: 4, depth: 4 };
        (*at).srcAccessOrder = sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
        copy.assume_init()
    }
}

pub(crate) fn role() {
    cu!(cuInit(0));
    let mut contexts = [std::ptr::null_mut(); 2];
    let mut memory = [0; 2];
    for device in 0..2 {
        cu!(cuDevicePrimaryCtxRetain(&raw mut contexts[device], device as i32));
        cu!(cuCtxSetCurrent(contexts[device]));
        memory[device] = alloc(BYTES);
    }
    cu!(cuCtxSetCurrent(contexts[0]));
    let ([near, far], stream) = (memory, stream());
    let host = vec![9_u8; BYTES];
    let acts: [(&str, u8, Act<'_>); 10] = [
        ("cuMemcpyDtoD", 7, &|_| cu!(cuMemcpyDtoD_v2(far, near, BYTES))),
        ("cuMemcpyDtoDAsync", 7, &|stream| cu!(cuMemcpyDtoDAsync_v2(far, near, BYTES, stream))),
        ("cuMemcpyAsync", 7, &|stream| cu!(cuMemcpyAsync(far, near, BYTES, stream))),
        ("cuMemcpyPeerAsync", 7, &|stream| {
            cu!(cuMemcpyPeerAsync(far, contexts[1], near, contexts[0], BYTES, stream));
        }),
        ("cuMemcpy2D", 7, &|_| {
            let copy = rows(near, far);
            cu!(cuMemcpy2D_v2(&raw const copy));
        }),
        ("cuMemcpy3DBatchAsync", 7, &|stream| {
            let (mut list, mut failed) = ([boxes(near, far)], 0);
            cu!(cuMemcpy3DBatchAsync(1, list.as_mut_ptr(), &raw mut failed, 0, stream));
        }),
        ("cuMemcpyHtoD", 9, &|_| write(far, &host)),
        ("cuMemcpyHtoDAsync", 9, &|stream| {
            cu!(cuMemcpyHtoDAsync_v2(far, host.as_ptr().cast(), BYTES, stream));
        }),
        ("cuMemsetD32", 3, &|_| cu!(cuMemsetD32_v2(far, 0x0303_0303, BYTES / 4))),
        ("cuMemsetD2D16Async", 5, &|stream| {
            cu!(cuMemsetD2D16Async(far, BYTES / 2, 0x0505, BYTES / 4, 2, stream));
        }),
    ];
    for round in 0..4 {
        for (name, value, act) in &acts {
            prepared(&contexts, far);
            // What comes before in the stream is done before.
            cu!(cuMemsetD8Async(near, 7, BYTES, stream));
            synchronize(stream);
            act(stream);
            synchronize(stream);
            cu!(cuCtxSynchronize());
            assert!(holds(&contexts, far, *value), "{name}, round {round}");
            assert!(read(far, BYTES).iter().all(|byte| byte == value), "cuMemcpyDtoH after {name}");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

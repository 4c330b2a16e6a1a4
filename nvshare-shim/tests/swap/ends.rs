//! Contexts that end, and contexts that do not although it looked so.

#![expect(unsafe_code, reason = "the driver is called as programs do")]

use std::time::Duration;

use cudarc::driver::sys::{self, CUresult};

use super::gpu::{self, Gpu, alloc, cu, free, others, stream, synchronize};
use super::{client, node, run};

const BYTES: usize = 8 << 20;

fn run_with_swaps(role: &str) {
    let node = node();
    let mut command = client(&node, role);
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "15ms");
    run(&node, command);
}

#[test]
fn memory_survives_the_refused_end_of_its_context_and_every_release_but_the_last() {
    run_with_swaps("refused");
}

#[test]
fn a_reset_takes_the_memory_and_leaves_the_references() {
    run_with_swaps("references");
}

#[test]
fn under_a_context_that_was_reset_nothing_is_allocated_freed_or_told() {
    run_with_swaps("under gone");
}

#[test]
fn after_an_illegal_address_a_reset_mends_nothing_and_the_program_ends() {
    if super::is_real() {
        return;
    }
    let node = node();
    let mut command = client(&node, "for good");
    // The illegal address is reported, and meant.
    command.env("NVSHARE_DEBUG_SWAP_EVERY", "15ms").env("NVSHARE_SIM_STRICT", "0");
    let status = nvshare_testbed::Client::start(&mut command).end();
    assert!(status.success(), "the client ended with {status}");
}

pub(crate) fn refused() {
    let gpu = Gpu::open();
    let (memory, stream) = (alloc(BYTES), stream());
    for value in 1..20 {
        gpu.launch("nvshare_store", stream, &[memory, BYTES as u64 / 8, value]);
        synchronize(stream);
        let mut context = std::ptr::null_mut();
        cu!(cuDevicePrimaryCtxRetain(&raw mut context, 0));
        // SAFETY: the driver refuses the end of a primary context.
        let ended = unsafe { sys::cuCtxDestroy_v2(context) };
        assert_eq!(ended, CUresult::CUDA_ERROR_INVALID_CONTEXT);
        cu!(cuDevicePrimaryCtxRelease_v2(0));
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(others(memory, BYTES, value), 0, "round {value}");
    }
}

fn is_active() -> bool {
    let (mut flags, mut active) = (0, 0);
    cu!(cuDevicePrimaryCtxGetState(0, &raw mut flags, &raw mut active));
    active != 0
}

pub(crate) fn references() {
    Gpu::open();
    let gone = alloc(BYTES);
    let before = gpu::free_bytes();
    cu!(cuDevicePrimaryCtxReset_v2(0));
    let gpu = Gpu::open();
    assert!(gpu::free_bytes() >= before + BYTES, "a reset takes the memory");
    let (mut base, mut size) = (0, 0);
    // SAFETY: places for the answers.
    let known = unsafe { sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut size, gone) };
    assert_ne!(known, CUresult::CUDA_SUCCESS);
    let (memory, stream) = (alloc(BYTES), stream());
    gpu.launch("nvshare_store", stream, &[memory, BYTES as u64 / 8, 5]);
    synchronize(stream);
    let mut released = 0;
    loop {
        cu!(cuDevicePrimaryCtxRelease_v2(0));
        released += 1;
        if !is_active() {
            break;
        }
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(others(memory, BYTES, 5), 0, "after release {released}");
    }
    assert_eq!(released, 2, "one before the reset, one after");
}

/// As an H200 answers it.
pub(crate) fn under_gone() {
    Gpu::open();
    let mut primary = std::ptr::null_mut();
    cu!(cuCtxGetCurrent(&raw mut primary));
    let mut other = std::ptr::null_mut();
    cu!(cuCtxCreate_v2(&raw mut other, 0, 0));
    let theirs = alloc(BYTES);
    cu!(cuMemsetD8_v2(theirs, 7, BYTES));
    cu!(cuCtxSynchronize());
    cu!(cuCtxSetCurrent(primary));
    cu!(cuDevicePrimaryCtxReset_v2(0));
    let (mut at, mut pitch, mut free_bytes, mut total) = (0, 0, 0, 0);
    // SAFETY: memory of the program, and places for answers.
    let refused = unsafe {
        [
            sys::cuMemAlloc_v2(&raw mut at, BYTES),
            sys::cuMemAllocPitch_v2(&raw mut at, &raw mut pitch, 100, 100, 4),
            sys::cuMemFree_v2(theirs),
            sys::cuMemFreeAsync(theirs, std::ptr::null_mut()),
            sys::cuMemGetInfo_v2(&raw mut free_bytes, &raw mut total),
            sys::cuMemGetAddressRange_v2(&raw mut at, &raw mut pitch, theirs),
        ]
    };
    assert_eq!(refused, [CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED; 6]);
    cu!(cuCtxSetCurrent(other));
    let mut first = 0_u8;
    cu!(cuMemcpyDtoH_v2((&raw mut first).cast(), theirs, 1));
    assert_eq!(first, 7, "nobody freed it");
    free(theirs);
}

pub(crate) fn for_good() {
    let gpu = Gpu::open();
    let kept = alloc(BYTES);
    gpu.launch("nvshare_store", std::ptr::null_mut(), &[0x10, 8, 1]);
    let (mut context, mut memory) = (std::ptr::null_mut(), 0);
    let broken = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    // SAFETY: memory of the program, and a place for an answer.
    let refused = unsafe {
        [sys::cuCtxSynchronize(), sys::cuMemFree_v2(kept), sys::cuMemAlloc_v2(&raw mut memory, BYTES)]
    };
    assert_eq!(refused, [broken; 3]);
    cu!(cuDevicePrimaryCtxReset_v2(0));
    for _ in 0..3 {
        // SAFETY: places for answers.
        let refused = unsafe {
            [sys::cuDevicePrimaryCtxRetain(&raw mut context, 0), sys::cuCtxCreate_v2(&raw mut context, 0, 0)]
        };
        assert_eq!(refused, [broken; 2]);
        std::thread::sleep(Duration::from_millis(100));
    }
}

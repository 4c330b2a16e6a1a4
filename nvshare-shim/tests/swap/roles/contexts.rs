//! Contexts that come and go, and two devices.

use std::time::Duration;

use cudarc::driver::sys;

use crate::gpu::{self, Gpu, alloc, cu, others, stream, synchronize};

/// Contexts come and go, with memory in them that swaps at any moment: what was in one is free after it.
pub(super) fn contexts() {
    let bytes = 6 << 20;
    let mut free = Vec::new();
    for _ in 0..6 {
        let mut context = std::ptr::null_mut();
        cu!(cuInit(0));
        cu!(cuCtxCreate_v2(&raw mut context, 0, 0));
        let gpu = Gpu::load();
        free.push(gpu::free_bytes());
        let stream = stream();
        let (first, second) = (alloc(bytes), alloc(5000));
        for value in 1..6 {
            gpu.launch("nvshare_store", stream, &[first, bytes as u64 / 8, value]);
            gpu.launch("nvshare_store", stream, &[second, 5000 / 8, value]);
            std::thread::sleep(Duration::from_millis(25));
            synchronize(stream);
            assert_eq!(others(first, bytes, value), 0);
            assert_eq!(others(second, 5000, value), 0);
        }
        cu!(cuCtxDestroy_v2(context));
    }
    // The first one may have paid for things that stay.
    assert!(free[5] >= free[1], "contexts leave memory behind: {free:?}");
}

/// Two devices, worked on in turns.
pub(super) fn two_devices() {
    cu!(cuInit(0));
    let bytes = 6 << 20;
    let mut all = Vec::new();
    for device in 0..2 {
        let mut context = std::ptr::null_mut();
        cu!(cuDevicePrimaryCtxRetain(&raw mut context, device));
        cu!(cuCtxSetCurrent(context));
        all.push((context, Gpu::load(), stream(), alloc(bytes)));
    }
    for value in 1..40 {
        for (context, gpu, stream, buffer) in &all {
            cu!(cuCtxSetCurrent(*context));
            gpu.launch("nvshare_store", *stream, &[*buffer, bytes as u64 / 8, value]);
        }
        std::thread::sleep(Duration::from_millis(10));
        for (context, _, stream, buffer) in &all {
            cu!(cuCtxSetCurrent(*context));
            synchronize(*stream);
            assert_eq!(others(*buffer, bytes, value), 0);
        }
    }
}

/// Contexts of one device come and go, with the arenas that are pinned in them, while the other device swaps.
pub(super) fn one_device_leaves() {
    cu!(cuInit(0));
    let bytes = 6 << 20;
    let stays = std::thread::spawn(move || {
        let mut context = std::ptr::null_mut();
        cu!(cuDevicePrimaryCtxRetain(&raw mut context, 1));
        cu!(cuCtxSetCurrent(context));
        let (gpu, stream, buffer) = (Gpu::load(), stream(), alloc(bytes));
        for value in 1..60 {
            gpu.launch("nvshare_store", stream, &[buffer, bytes as u64 / 8, value]);
            std::thread::sleep(Duration::from_millis(7));
            synchronize(stream);
            assert_eq!(others(buffer, bytes, value), 0);
        }
    });
    let mut rounds = 0;
    while !stays.is_finished() || rounds < 3 {
        let mut context = std::ptr::null_mut();
        cu!(cuCtxCreate_v2(&raw mut context, 0, 0));
        let (gpu, stream, buffer) = (Gpu::load(), stream(), alloc(bytes));
        for value in 1..3 {
            gpu.launch("nvshare_store", stream, &[buffer, bytes as u64 / 8, value]);
            std::thread::sleep(Duration::from_millis(20));
            synchronize(stream);
            assert_eq!(others(buffer, bytes, value), 0);
        }
        cu!(cuCtxDestroy_v2(context));
        rounds += 1;
    }
    stays.join().unwrap();
}

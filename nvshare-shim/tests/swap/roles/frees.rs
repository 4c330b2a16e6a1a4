//! Frees, while work and captures go on.

use std::time::{Duration, Instant};

use cudarc::driver::sys;

use super::number;
use crate::gpu::{Gpu, alloc, cu, free, others, stream, synchronize};

/// Memory is freed while a kernel still writes it; the next allocation must not meet that kernel.
pub(super) fn freed_while_written() {
    let gpu = Gpu::open();
    let (slow, fast) = (stream(), stream());
    for bytes in [64 << 10, 4 << 20] {
        for _ in 0..4 {
            let first = alloc(bytes);
            gpu.launch("nvshare_store_late", slow, &[first, bytes as u64 / 8, 0xBAD, 60_000_000]);
            free(first);
            let second = alloc(bytes);
            gpu.launch("nvshare_store", fast, &[second, bytes as u64 / 8, 7]);
            synchronize(fast);
            synchronize(slow);
            assert_eq!(
                others(second, bytes, 7),
                0,
                "a kernel wrote into memory that was given to somebody else"
            );
            free(second);
        }
    }
}

/// Plain memory is freed in the order of a stream, while a kernel there still writes it.
pub(super) fn freed_in_order() {
    let gpu = Gpu::open();
    let (slow, fast) = (stream(), stream());
    for bytes in [64 << 10, 4 << 20] {
        let first = alloc(bytes);
        gpu.launch("nvshare_store_late", slow, &[first, bytes as u64 / 8, 0xBAD, 60_000_000]);
        let began = Instant::now();
        cu!(cuMemFreeAsync(first, slow));
        let waited = began.elapsed();
        let second = alloc(bytes);
        gpu.launch("nvshare_store", fast, &[second, bytes as u64 / 8, 7]);
        synchronize(fast);
        synchronize(slow);
        assert!(waited < Duration::from_millis(50), "a free in stream order waited {waited:?}");
        assert_eq!(others(second, bytes, 7), 0, "a kernel wrote into memory that was given to somebody else");
        free(second);
    }
}

/// A `cuMemFree` beside a capture: it waits for the kernel as the driver's own does (seen on an H200), and leaves the capture
/// alone.
pub(super) fn freed_during_a_capture() {
    let gpu = Gpu::open();
    let (slow, fast, captured) = (stream(), stream(), stream());
    for bytes in [64 << 10, 4 << 20] {
        let first = alloc(bytes);
        let in_graph = alloc(4096);
        cu!(cuStreamBeginCapture_v2(captured, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED));
        gpu.launch("nvshare_store", captured, &[in_graph, 512, 3]);
        gpu.launch("nvshare_store_late", slow, &[first, bytes as u64 / 8, 0xBAD, 150_000_000]);
        let began = Instant::now();
        free(first);
        let waited = began.elapsed();
        let second = alloc(bytes);
        gpu.launch("nvshare_store", fast, &[second, bytes as u64 / 8, 7]);
        synchronize(fast);
        let mut graph = std::ptr::null_mut();
        cu!(cuStreamEndCapture(captured, &raw mut graph));
        synchronize(slow);
        assert!(waited > Duration::from_millis(50), "a free waited {waited:?} for a kernel of 150 ms");
        assert_eq!(others(second, bytes, 7), 0, "a kernel wrote into memory that was given to somebody else");
        free(second);
        cu!(cuGraphDestroy(graph));
        free(in_graph);
    }
}

/// One thread captures a graph again and again while another allocates and swaps are forced behind both.
pub(super) fn capture_while_swapped() {
    let gpu = Gpu::open();
    let bytes = 2 << 20;
    let end = Instant::now() + Duration::from_millis(number("MILLISECONDS"));
    let mut context = std::ptr::null_mut();
    cu!(cuCtxGetCurrent(&raw mut context));
    let context = context.expose_provenance();
    let other = std::thread::spawn(move || {
        cu!(cuCtxSetCurrent(std::ptr::with_exposed_provenance_mut(context)));
        let mut rounds = 0_u64;
        while Instant::now() < end {
            let (large, small) = (alloc(3 << 20), alloc(10_000));
            free(large);
            free(small);
            rounds += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        rounds
    });
    let (captured, stream) = (stream(), stream());
    let (buffer, copy) = (alloc(bytes), alloc(bytes));
    let mut expected = 0_u64;
    // Both kernels are loaded before: a driver that loads lazily may not do so in a capture.
    gpu.launch("nvshare_step", stream, &[buffer, bytes as u64 / 8, 0]);
    gpu.launch("nvshare_store", stream, &[buffer, bytes as u64 / 8, 0]);
    synchronize(stream);
    let mut rounds = 0;
    while Instant::now() < end {
        cu!(cuStreamBeginCapture_v2(captured, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
        for add in 1..=3 {
            gpu.launch("nvshare_step", captured, &[buffer, bytes as u64 / 8, add]);
            std::thread::sleep(Duration::from_millis(5));
            // The driver looks at the addresses of a copy during the call, and nothing may be behind them just then.
            cu!(cuMemcpyDtoDAsync_v2(copy, buffer, bytes, captured));
        }
        let mut graph = std::ptr::null_mut();
        cu!(cuStreamEndCapture(captured, &raw mut graph));
        let mut executable = std::ptr::null_mut();
        cu!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
        for _ in 0..3 {
            cu!(cuGraphLaunch(executable, stream));
            expected += 6;
        }
        synchronize(stream);
        assert_eq!(others(buffer, bytes, expected), 0, "a replay went wrong");
        assert_eq!(others(copy, bytes, expected), 0, "a copy in a replay went wrong");
        cu!(cuGraphExecDestroy(executable));
        cu!(cuGraphDestroy(graph));
        rounds += 1;
    }
    let others = other.join().unwrap();
    assert!(rounds > 2 && others > 2, "{rounds} captures, {others} rounds of allocation: somebody hung");
}

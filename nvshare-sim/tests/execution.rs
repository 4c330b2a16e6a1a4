//! Contexts, streams, events, copies and kernels, through the library as a program uses it.

mod client;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use client::{Context, DRIVER, PTX};

const MIB: usize = 1 << 20;
const NOT_READY: u32 = 600;

fn words(bytes: usize) -> u64 {
    (bytes / 8) as u64
}

/// Waits on the host's side, without the driver.
fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_kernel_fills_device_memory_and_a_copy_brings_it_back() {
    let context = Context::new();
    let (device, bytes) = (context.device(8 * MIB), 8 * MIB);
    assert_eq!(context.launch(0, "nvshare_fill", &[device, words(bytes), 42, 0]), 0);
    assert_eq!(context.launch(0, "nvshare_step", &[device, words(bytes), 5]), 0);
    let result = context.device(16);
    ok!(cuMemsetD8_v2(result, 0_u8, 16_usize));
    assert_eq!(context.launch(0, "nvshare_verify", &[device, words(bytes), 42, 0, 5, result]), 0);
    assert_eq!(context.launch(0, "nvshare_verify", &[device, words(bytes), 42, 0, 6, result + 8]), 0);
    let mut found = [9_u64; 2];
    ok!(cuMemcpyDtoH_v2(found.as_mut_ptr(), result, 16_usize));
    assert_eq!(found, [0, words(bytes)]);
    let mut host = vec![0_u64; bytes / 8];
    ok!(cuMemcpyDtoH_v2(host.as_mut_ptr(), device, bytes));
    // Word 0 of the pattern is splitmix64 of the seed: its first output for state 42.
    assert_eq!(host[0].wrapping_sub(5), 0xBDD7_3226_2FEB_6E95);
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn work_is_asynchronous_and_events_tell_when_it_is_over() {
    let context = Context::new();
    let (stream, start, end) = (context.stream(0), context.event(), context.event());
    let flag = context.pinned(4096);
    flag[0] = 0;
    ok!(cuEventRecord(start, stream));
    assert_eq!(context.launch(stream, "nvshare_wait_flag", &[flag.as_ptr() as u64]), 0);
    assert_eq!(context.launch(stream, "nvshare_spin", &[5_000_000]), 0);
    ok!(cuEventRecord(end, stream));
    ok!(cuEventQuery(start));
    assert_eq!(call!(cuEventQuery(end)), NOT_READY);
    assert_eq!(call!(cuStreamQuery(stream)), NOT_READY);
    let mut milliseconds = 0_f32;
    assert_eq!(call!(cuEventElapsedTime(&raw mut milliseconds, start, end)), NOT_READY);
    set_flag(flag);
    ok!(cuEventSynchronize(end));
    ok!(cuStreamQuery(stream));
    ok!(cuEventElapsedTime(&raw mut milliseconds, start, end));
    assert!((5.0..5000.0).contains(&milliseconds), "{milliseconds} ms");
}

fn set_flag(flag: &mut [u64]) {
    // SAFETY: the first word of the caller's memory; the kernel reads it atomically too.
    unsafe { AtomicU32::from_ptr(flag.as_mut_ptr().cast()) }.store(1, Ordering::SeqCst);
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_only_and_they_for_it() {
    let context = Context::new();
    let (blocking, other) = (context.stream(0), context.stream(1));
    let flags = context.pinned(4096);
    flags.fill(0);
    let (first, second) = flags.split_at_mut(8);
    let device = context.device(64);

    // A store in the legacy stream comes after what a blocking stream does, and before what it does next.
    assert_eq!(context.launch(blocking, "nvshare_wait_flag", &[first.as_ptr() as u64]), 0);
    assert_eq!(context.launch(0, "nvshare_store", &[device, 1, 7]), 0);
    assert_eq!(context.launch(blocking, "nvshare_step", &[device, 1, 1]), 0);
    let event = context.event();
    ok!(cuEventRecord(event, 0_u64));
    assert_eq!(call!(cuStreamQuery(0_u64)), NOT_READY);
    // A stream that does not block goes on meanwhile.
    assert_eq!(context.launch(other, "nvshare_spin", &[1000]), 0);
    ok!(cuStreamSynchronize(other));
    assert_eq!(call!(cuEventQuery(event)), NOT_READY);
    set_flag(first);
    ok!(cuCtxSynchronize());
    let mut value = 0_u64;
    ok!(cuMemcpyDtoH_v2(&raw mut value, device, 8_usize));
    assert_eq!(value, 8);

    // And a stream that does not block holds nobody up.
    assert_eq!(context.launch(other, "nvshare_wait_flag", &[second.as_ptr() as u64]), 0);
    assert_eq!(context.launch(0, "nvshare_store", &[device, 1, 9]), 0);
    ok!(cuStreamSynchronize(0_u64));
    assert_eq!(call!(cuStreamQuery(other)), NOT_READY);
    set_flag(second);
}

#[test]
fn a_thread_has_a_default_stream_of_its_own() {
    let context = Context::new();
    let flag = context.pinned(4096);
    flag[0] = 0;
    let function = context.function("nvshare_wait_flag");
    let address = flag.as_ptr() as u64;
    let parameters = [&raw const address];
    ok!(cuLaunchKernel_ptsz(
        function,
        1_u32,
        1_u32,
        1_u32,
        1_u32,
        1_u32,
        1_u32,
        0_u32,
        0_u64,
        parameters.as_ptr(),
        0_u64
    ));
    assert_eq!(call!(cuStreamQuery_ptsz(0_u64)), NOT_READY);
    assert_eq!(call!(cuStreamQuery(2_u64)), NOT_READY, "CU_STREAM_PER_THREAD is the same stream");
    let handle = context.handle;
    let elsewhere = std::thread::spawn(move || {
        ok!(cuCtxSetCurrent(handle));
        call!(cuStreamQuery_ptsz(0_u64))
    });
    assert_eq!(elsewhere.join().expect("the thread"), 0, "another thread's stream is idle");
    set_flag(flag);
    ok!(cuStreamSynchronize_ptsz(0_u64));
}

#[test]
fn streams_wait_for_events_of_other_streams() {
    let context = Context::new();
    let (one, two) = (context.stream(1), context.stream(1));
    let (device, event) = (context.device(4096), context.event());
    assert_eq!(context.launch(one, "nvshare_store_late", &[device, 1, 3, 20_000_000]), 0);
    ok!(cuEventRecord(event, one));
    ok!(cuStreamWaitEvent(two, event, 0_u32));
    assert_eq!(context.launch(two, "nvshare_step", &[device, 1, 4]), 0);
    ok!(cuStreamSynchronize(two));
    let mut value = 0_u64;
    ok!(cuMemcpyDtoH_v2(&raw mut value, device, 8_usize));
    assert_eq!(value, 7);
}

#[test]
fn host_functions_run_in_stream_order() {
    unsafe extern "C" fn double(argument: *mut u64) {
        // SAFETY: the test's word, which outlives the stream's work.
        unsafe { *argument *= 2 };
    }
    let context = Context::new();
    let stream = context.stream(1);
    let word = context.pinned(4096);
    word[0] = 1;
    let address = word.as_mut_ptr();
    assert_eq!(context.launch(stream, "nvshare_store_late", &[address as u64, 1, 20, 5_000_000]), 0);
    ok!(cuLaunchHostFunc(stream, double as unsafe extern "C" fn(*mut u64), address));
    assert_eq!(context.launch(stream, "nvshare_step", &[address as u64, 1, 2]), 0);
    ok!(cuStreamSynchronize(stream));
    // SAFETY: the stream is idle.
    assert_eq!(unsafe { address.read_volatile() }, 42);
}

/// Nanoseconds that `act` and the wait for both streams take.
fn time(streams: [u64; 2], act: impl FnOnce()) -> u128 {
    let start = Instant::now();
    act();
    for stream in streams {
        ok!(cuStreamSynchronize(stream));
    }
    start.elapsed().as_nanos()
}

#[test]
fn copies_take_the_links_time_and_the_two_ways_overlap() {
    let context = Context::new();
    let bytes = 32 * MIB;
    let (one, two) = (context.stream(1), context.stream(1));
    let (a, b) = (context.device(bytes), context.device(bytes));
    let (x, y) = (context.pinned(bytes), context.pinned(bytes));
    x.fill(1);
    y.fill(2);
    ok!(cuMemsetD8Async(b, 3_u8, bytes, two));
    ok!(cuStreamSynchronize(two));
    let expected = bytes as u128; // 1 GB/s
    let in_ = time([one, two], || ok!(cuMemcpyHtoDAsync_v2(a, x.as_ptr(), bytes, one)));
    let both = time([one, two], || {
        ok!(cuMemcpyHtoDAsync_v2(a, x.as_ptr(), bytes, one));
        ok!(cuMemcpyDtoHAsync_v2(y.as_mut_ptr(), b, bytes, two));
    });
    assert!(in_ >= expected, "{in_} ns for {bytes} bytes at 1 GB/s");
    assert!(both < expected * 19 / 10, "{both} ns both ways, {in_} ns one way");
    assert!(y.iter().all(|word| *word == 0x0303_0303_0303_0303));
    ok!(cuMemcpyDtoH_v2(y.as_mut_ptr(), a, bytes));
    assert!(y.iter().all(|word| *word == 1));
    // Two copies in one direction share it.
    let shared = time([one, two], || {
        ok!(cuMemcpyHtoDAsync_v2(a, x.as_ptr(), bytes, one));
        ok!(cuMemcpyHtoDAsync_v2(b, x.as_ptr(), bytes, two));
    });
    assert!(shared >= expected * 2, "{shared} ns for twice {bytes} bytes");
}

#[test]
fn pageable_memory_is_copied_at_half_the_speed_and_before_the_call_returns() {
    let context = Context::new();
    let (bytes, stream) = (16 * MIB, context.stream(1));
    let (device, mut host) = (context.device(bytes), vec![7_u64; bytes / 8]);
    let start = Instant::now();
    ok!(cuMemcpyHtoDAsync_v2(device, host.as_ptr(), bytes, stream));
    assert!(start.elapsed().as_nanos() >= 2 * bytes as u128);
    host.fill(8);
    ok!(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), device, bytes, stream));
    assert!(host.iter().all(|word| *word == 7), "it is there when the call returns");
    // A little is taken at the call and copied later.
    let flag = context.pinned(4096);
    flag[0] = 0;
    assert_eq!(context.launch(stream, "nvshare_wait_flag", &[flag.as_ptr() as u64]), 0);
    let mut small = [1_u64; 16];
    ok!(cuMemcpyHtoDAsync_v2(device, small.as_ptr(), 128_usize, stream));
    small.fill(2);
    set_flag(flag);
    ok!(cuMemcpyDtoHAsync_v2(small.as_mut_ptr(), device, 128_usize, stream));
    assert_eq!(small, [1; 16]);
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn copies_in_two_dimensions_leave_what_is_between_the_rows() {
    #[repr(C)]
    struct End {
        x: usize,
        y: usize,
        kind: u32,
        host: *mut u8,
        device: u64,
        array: u64,
        pitch: usize,
    }
    #[repr(C)]
    struct Copy {
        from: End,
        to: End,
        width: usize,
        height: usize,
    }
    let context = Context::new();
    let device = context.device(4096);
    let mut host: Vec<u8> = (0..64).collect();
    ok!(cuMemsetD8_v2(device, 0xee_u8, 4096_usize));
    let at_host =
        |host: &mut [u8], x, y| End { x, y, kind: 1, host: host.as_mut_ptr(), device: 0, array: 0, pitch: 8 };
    let at_device = |x, y| End { x, y, kind: 2, host: std::ptr::null_mut(), device, array: 0, pitch: 32 };
    let copy = Copy { from: at_host(&mut host, 1, 1), to: at_device(2, 1), width: 3, height: 4 };
    ok!(cuMemcpy2D_v2(&raw const copy));
    let mut found = [0_u8; 160];
    ok!(cuMemcpyDtoH_v2(found.as_mut_ptr(), device, 160_usize));
    for (index, byte) in found.iter().enumerate() {
        let (x, y) = (index % 32, index / 32);
        let copied = (2..5).contains(&x) && (1..5).contains(&y);
        let expected = if copied { ((y - 1 + 1) * 8 + x - 2 + 1) as u8 } else { 0xee };
        assert_eq!(*byte, expected, "row {y}, column {x}");
    }
    let back = Copy { from: at_device(2, 1), to: at_host(&mut host, 5, 4), width: 3, height: 2 };
    ok!(cuMemcpy2DUnaligned_v2(&raw const back));
    assert_eq!(host[37..40], [9, 10, 11]);
    assert_eq!(host[45..48], [17, 18, 19]);
}

#[test]
fn memsets_write_elements_of_every_size() {
    let context = Context::new();
    let device = context.device(4096);
    ok!(cuMemsetD32_v2(device, 0x0102_0304_u32, 1024_usize));
    ok!(cuMemsetD16_v2(device + 8, 0xa0b0_u16, 3_usize));
    ok!(cuMemsetD8_v2(device + 15, 0xff_u8, 1_usize));
    ok!(cuMemsetD2D32_v2(device + 64, 64_usize, 0_u32, 2_usize, 3_usize));
    let mut found = [0_u32; 64];
    ok!(cuMemcpyDtoH_v2(found.as_mut_ptr(), device, 256_usize));
    assert_eq!(found[..4], [0x0102_0304, 0x0102_0304, 0xa0b0_a0b0, 0xff02_a0b0]);
    for (index, word) in found.iter().enumerate().skip(16) {
        let zero = matches!(index, 16 | 17 | 32 | 33 | 48 | 49);
        assert_eq!(*word, if zero { 0 } else { 0x0102_0304 }, "{index}");
    }
    assert_eq!(call!(cuMemsetD32_v2(device + 2, 0_u32, 1_usize)), 1, "an address that is not aligned");
}

#[test]
fn without_a_context_calls_say_so() {
    let context = Context::new();
    let nobody = std::thread::spawn(|| {
        let (mut device, mut word) = (0_i32, 0_u64);
        [
            call!(cuCtxGetDevice(&raw mut device)),
            call!(cuMemAlloc_v2(&raw mut word, 4096_usize)),
            call!(cuStreamCreate(&raw mut word, 0_u32)),
            call!(cuCtxSynchronize()),
            call!(cuEventCreate(&raw mut word, 0_u32)),
            call!(cuModuleLoadData(&raw mut word, PTX.as_ptr())),
            call!(cuStreamSynchronize(0_u64)),
        ]
    });
    assert_eq!(nobody.join().expect("the thread"), [201; 7]);
    let mut current = 1_u64;
    std::thread::scope(|scope| {
        scope.spawn(|| ok!(cuCtxGetCurrent(&raw mut current))).join().expect("the thread");
    });
    assert_eq!(current, 0);
    drop(context);
}

#[test]
fn contexts_are_stacked_and_a_destroyed_one_is_useless() {
    let context = Context::new();
    let (mut inner, mut seen) = (0_u64, 0_u64);
    ok!(cuCtxCreate_v2(&raw mut inner, 0_u32, 0_i32));
    ok!(cuCtxGetCurrent(&raw mut seen));
    assert_eq!(seen, inner);
    let stream = context.stream(0);
    ok!(cuCtxPopCurrent_v2(&raw mut seen));
    assert_eq!(seen, inner);
    ok!(cuCtxGetCurrent(&raw mut seen));
    assert_eq!(seen, context.handle);
    ok!(cuCtxDestroy_v2(inner));
    assert_eq!(call!(cuCtxPushCurrent_v2(inner)), 201);
    assert_ne!(call!(cuStreamSynchronize(stream)), 0);
}

#[test]
fn the_primary_context_is_one_and_counted() {
    let context = Context::new();
    let (mut one, mut two, mut flags, mut active) = (0_u64, 0_u64, 0_u32, 9_i32);
    ok!(cuDevicePrimaryCtxRetain(&raw mut one, 0_i32));
    ok!(cuDevicePrimaryCtxRetain(&raw mut two, 0_i32));
    assert_eq!(one, two);
    assert_eq!(call!(cuCtxDestroy_v2(one)), 201);
    ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    ok!(cuDevicePrimaryCtxGetState(0_i32, &raw mut flags, &raw mut active));
    assert_eq!(active, 1);
    ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    ok!(cuDevicePrimaryCtxGetState(0_i32, &raw mut flags, &raw mut active));
    assert_eq!(active, 0);
    assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(0_i32)), 201);
    drop(context);
}

#[test]
fn launches_are_checked_as_the_driver_checks_them() {
    let context = Context::new();
    let function = context.function("nvshare_spin");
    let nanoseconds = 0_u64;
    let parameters = [&raw const nanoseconds];
    let launch = |grid: u32, block: u32, shared: u32, parameters: *const *const u64| {
        call!(cuLaunchKernel(
            function, grid, 1_u32, 1_u32, block, 1_u32, 1_u32, shared, 0_u64, parameters, 0_u64
        ))
    };
    assert_eq!(launch(1, 1, 0, parameters.as_ptr()), 0);
    assert_eq!(launch(0, 1, 0, parameters.as_ptr()), 1);
    assert_eq!(launch(1, 1025, 0, parameters.as_ptr()), 1);
    assert_eq!(launch(1, 1, 1 << 20, parameters.as_ptr()), 1);
    assert_eq!(launch(1, 1, 0, std::ptr::null()), 1);
    // The parameters can come in one buffer.
    let bytes = 8_usize;
    let extra = [1, &raw const nanoseconds as u64, 2, &raw const bytes as u64, 0];
    ok!(cuLaunchKernel(
        function,
        1_u32,
        1_u32,
        1_u32,
        1_u32,
        1_u32,
        1_u32,
        0_u32,
        0_u64,
        0_u64,
        extra.as_ptr()
    ));
    assert_eq!(context.launch(0, "somebody_elses", &[1, 2]), 801);
    let mut missing = 0_u64;
    assert_eq!(call!(cuModuleGetFunction(&raw mut missing, context.module, c"nothing".as_ptr())), 500);
    let (mut offset, mut size) = (0_usize, 0_usize);
    let other = context.function("somebody_elses");
    ok!(cuFuncGetParamInfo(other, 1_usize, &raw mut offset, &raw mut size));
    assert_eq!((offset, size), (8, 4));
    assert_eq!(call!(cuFuncGetParamInfo(other, 2_usize, &raw mut offset, &raw mut size)), 1);
}

#[test]
fn libraries_are_code_for_every_context() {
    let context = Context::new();
    let (mut library, mut kernel, mut function) = (0_u64, 0_u64, 0_u64);
    ok!(cuLibraryLoadData(&raw mut library, PTX.as_ptr(), 0_u64, 0_u64, 0_u32, 0_u64, 0_u64, 0_u32));
    ok!(cuLibraryGetKernel(&raw mut kernel, library, c"nvshare_store".as_ptr()));
    ok!(cuKernelGetFunction(&raw mut function, kernel));
    let (device, one, value) = (context.device(4096), 1_u64, 77_u64);
    let parameters = [&raw const device, &raw const one, &raw const value];
    // A kernel can stand where a function does.
    for launched in [function, kernel] {
        ok!(cuLaunchKernel(
            launched,
            1_u32,
            1_u32,
            1_u32,
            1_u32,
            1_u32,
            1_u32,
            0_u32,
            0_u64,
            parameters.as_ptr(),
            0_u64
        ));
    }
    let mut found = 0_u64;
    ok!(cuMemcpyDtoH_v2(&raw mut found, device, 8_usize));
    assert_eq!(found, 77);
    ok!(cuLibraryUnload(library));
    assert_eq!(call!(cuKernelGetFunction(&raw mut function, kernel)), 400);
}

#[test]
fn a_destroyed_context_ends_even_a_kernel_that_never_would() {
    let context = Context::new();
    let mut inner = 0_u64;
    let flag = context.pinned(4096);
    flag[0] = 0;
    ok!(cuCtxCreate_v2(&raw mut inner, 0_u32, 0_i32));
    let (mut module, mut function) = (0_u64, 0_u64);
    ok!(cuModuleLoadData(&raw mut module, PTX.as_ptr()));
    ok!(cuModuleGetFunction(&raw mut function, module, c"nvshare_spin".as_ptr()));
    let forever = u64::MAX / 4;
    let parameters = [&raw const forever];
    ok!(cuLaunchKernel(
        function,
        1_u32,
        1_u32,
        1_u32,
        1_u32,
        1_u32,
        1_u32,
        0_u32,
        0_u64,
        parameters.as_ptr(),
        0_u64
    ));
    ok!(cuCtxDestroy_v2(inner));
    // The context of this test goes on.
    ok!(cuCtxSynchronize());
}

#[test]
fn the_fingerprint_kernel_computes_what_the_library_does() {
    use nvshare_common::fingerprint::{Fingerprint, Key, fingerprint};
    let context = Context::new();
    let (blocks, block_bytes) = (3_usize, 64 << 10);
    let (base, out, key_at) =
        (context.device(blocks * block_bytes), context.device(4096), context.device(4096));
    ok!(cuMemsetD8_v2(base, 0_u8, blocks * block_bytes));
    assert_eq!(context.launch(0, "nvshare_fill", &[base, words(block_bytes), 3, 0]), 0);
    let key = Key::from_random([11, 22, 33, 44]).expect("a key");
    ok!(cuMemcpyHtoD_v2(key_at, key.words().as_ptr(), 32_usize));
    let arguments = [base, blocks as u64, block_bytes as u64, key_at, out];
    assert_eq!(context.launch(0, "nvshare_fingerprint", &arguments), 0);
    let mut found = [Fingerprint::default(); 3];
    ok!(cuMemcpyDtoH_v2(found.as_mut_ptr(), out, size_of_val(&found)));
    let mut host = vec![0_u8; blocks * block_bytes];
    ok!(cuMemcpyDtoH_v2(host.as_mut_ptr(), base, host.len()));
    let expected: Vec<_> = host.chunks(block_bytes).map(|block| fingerprint(&key, block)).collect();
    assert_eq!(found[..], expected[..]);
    assert!(!found[0].is_zero() && found[1].is_zero());
}

#[test]
fn a_stream_writes_words_and_waits_for_them() {
    let context = Context::new();
    let (one, two, device) = (context.stream(1), context.stream(1), context.device(4096));
    let flag = context.pinned(4096);
    flag.fill(0);
    let address = flag.as_ptr() as u64;
    ok!(cuMemsetD8_v2(device, 0_u8, 4096_usize));
    ok!(cuCtxSynchronize());
    ok!(cuStreamWaitValue32_v2(one, address, 2_u32, 0_u32));
    assert_eq!(context.launch(one, "nvshare_store", &[device, 1, 6]), 0);
    ok!(cuStreamWriteValue32_v2(two, address, 1_u32, 0_u32));
    ok!(cuStreamSynchronize(two));
    assert_eq!(call!(cuStreamQuery(one)), NOT_READY);
    ok!(cuStreamWriteValue64_v2(two, address, 3_u64, 0_u32));
    ok!(cuStreamSynchronize(one));
    let mut value = 0_u64;
    ok!(cuMemcpyDtoH_v2(&raw mut value, device, 8_usize));
    assert_eq!(value, 6);
    assert_eq!(call!(cuStreamWaitValue32_v2(one, address + 2, 2_u32, 0_u32)), 1);
}

#[test]
fn a_threads_default_stream_goes_with_the_thread_after_its_work() {
    let threads = || std::fs::read_dir("/proc/self/task").expect("the threads of this process").count();
    let context = Context::new();
    let (handle, device) = (context.handle, context.device(4096));
    ok!(cuMemsetD8_v2(device, 0_u8, 8_usize));
    ok!(cuCtxSynchronize());
    let before = threads();
    let function = context.function("nvshare_store_late");
    for round in 1..=20_u64 {
        let thread = std::thread::spawn(move || {
            ok!(cuCtxSetCurrent(handle));
            let (one, late) = (1_u64, 1_000_000_u64);
            let parameters = [&raw const device, &raw const one, &raw const round, &raw const late];
            ok!(cuLaunchKernel_ptsz(
                function,
                1_u32,
                1_u32,
                1_u32,
                1_u32,
                1_u32,
                1_u32,
                0_u32,
                0_u64,
                parameters.as_ptr(),
                0_u64
            ));
        });
        thread.join().expect("the thread");
        ok!(cuCtxSynchronize());
        let mut value = 0_u64;
        ok!(cuMemcpyDtoH_v2(&raw mut value, device, 8_usize));
        assert_eq!(value, round, "the work is done although the thread is gone");
    }
    wait("the streams' threads are gone", || threads() <= before + 1);
}

#[test]
fn bytes_move_between_two_cards() {
    if !client::is_alone() {
        client::alone("bytes_move_between_two_cards", &[("NVSHARE_SIM_CARDS", "2")]);
        return;
    }
    let context = Context::new();
    let (mut count, mut can, mut other) = (0, 0, 0_u64);
    ok!(cuDeviceGetCount(&raw mut count));
    ok!(cuDeviceCanAccessPeer(&raw mut can, 0_i32, 1_i32));
    assert_eq!((count, can), (2, 1));
    let here = context.device(MIB);
    assert_eq!(context.launch(0, "nvshare_fill", &[here, words(MIB), 1, 0]), 0);
    ok!(cuCtxSynchronize());
    ok!(cuCtxCreate_v2(&raw mut other, 0_u32, 1_i32));
    let there = context.device(MIB);
    ok!(cuMemcpyPeer(there, other, here, context.handle, MIB));
    let mut host = vec![0_u64; MIB / 8];
    ok!(cuMemcpyDtoH_v2(host.as_mut_ptr(), there, MIB));
    assert_eq!(host[0], 0x910A_2DEC_8902_5CC1, "splitmix64's first output for state 1");
    ok!(cuCtxEnablePeerAccess(context.handle, 0_u32));
    assert_eq!(call!(cuCtxEnablePeerAccess(context.handle, 0_u32)), 704);
    ok!(cuCtxDisablePeerAccess(context.handle));
    assert_eq!(call!(cuCtxDisablePeerAccess(context.handle)), 705);
    ok!(cuCtxDestroy_v2(other));
}

#[test]
fn kernels_reach_another_cards_memory_by_peer_access_only_and_mapped_memory_is_not_staged() {
    if !client::is_alone() {
        for part in ["plain", "mapped", "kernel"] {
            client::alone(
                "kernels_reach_another_cards_memory_by_peer_access_only_and_mapped_memory_is_not_staged",
                &[("NVSHARE_SIM_CARDS", "2"), ("PART", part)],
            );
        }
        return;
    }
    let part = std::env::var("PART").expect("which part");
    let context = Context::new();
    let (here, mut other, mut there) = (context.device(MIB), 0_u64, 0_u64);
    ok!(cuCtxCreate_v2(&raw mut other, 0_u32, 1_i32));
    if part == "mapped" {
        there = client::vmm_of(1, 2 * MIB).start;
    } else {
        ok!(cuMemAlloc_v2(&raw mut there, MIB));
    }
    ok!(cuMemsetD8_v2(there, 7_u8, MIB));
    ok!(cuCtxSynchronize());
    ok!(cuCtxSetCurrent(context.handle));
    let mut word = 0_u64;
    match part.as_str() {
        "plain" => {
            ok!(cuMemcpyDtoD_v2(here, there, MIB));
            ok!(cuMemcpyDtoH_v2(&raw mut word, there, 8_usize));
            assert_eq!(word, 0x0707_0707_0707_0707);
            ok!(cuCtxEnablePeerAccess(other, 0_u32));
            ok!(cuMemsetD8_v2(there, 9_u8, MIB));
            assert_eq!(context.launch(0, "nvshare_step", &[there, 1, 1]), 0);
            ok!(cuMemcpyDtoH_v2(&raw mut word, there, 8_usize));
            assert_eq!(word, 0x0909_0909_0909_090a);
        }
        "mapped" => {
            // With the contexts of both ends each device looks at its own.
            ok!(cuMemcpyPeer(here, context.handle, there, other, MIB));
            ok!(cuMemcpyDtoH_v2(&raw mut word, here, 8_usize));
            assert_eq!(word, 0x0707_0707_0707_0707);
            let copied = call!(cuMemcpyDtoD_v2(here, there, MIB));
            assert!(copied == 0 || copied == 700);
            assert_eq!(call!(cuCtxSynchronize()), 700);
            assert_eq!(call!(cuCtxSynchronize()), 700, "for good");
            std::process::exit(0);
        }
        _ => {
            assert_eq!(context.launch(0, "nvshare_step", &[there, 1, 1]), 0);
            assert_eq!(call!(cuCtxSynchronize()), 700);
            std::process::exit(0);
        }
    }
    ok!(cuCtxDestroy_v2(other));
}

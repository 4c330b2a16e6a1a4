//! Contexts, streams and events, through the library as a program uses it.

#![expect(unsafe_code, reason = "a host function, and the word that it is about")]

mod client;

use std::time::{Duration, Instant};

use client::{Context, DRIVER, PTX, set_flag};

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
    assert_eq!(client::launch_in_own_stream(function, &[address]), 0);
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
            let words = [device, 1, round, 1_000_000];
            assert_eq!(client::launch_in_own_stream(function, &words), 0);
        });
        thread.join().expect("the thread");
        ok!(cuCtxSynchronize());
        let mut value = 0_u64;
        ok!(cuMemcpyDtoH_v2(&raw mut value, device, 8_usize));
        assert_eq!(value, round, "the work is done although the thread is gone");
    }
    wait("the streams' threads are gone", || threads() <= before + 1);
}

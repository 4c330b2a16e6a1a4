//! What ends with a context, what a primary and a green context keep, and which calls wait for what runs: as an H200 with
//! driver 580 showed it.

mod client;

use std::time::{Duration, Instant};

use client::{Context, DRIVER, PTX, Word, set_flag};

const MIB: usize = 1 << 20;
const NOT_READY: u32 = 600;

/// How long the kernels run that calls wait for, or do not.
const RUNS: Duration = Duration::from_millis(300);

fn state() -> i32 {
    let (mut flags, mut active) = (0_u32, 9_i32);
    ok!(cuDevicePrimaryCtxGetState(0_i32, &raw mut flags, &raw mut active));
    active
}

fn retain() -> Word {
    let mut context = 0;
    ok!(cuDevicePrimaryCtxRetain(&raw mut context, 0_i32));
    context
}

fn word_at(at: Word) -> Result<u32, u32> {
    let mut value = 0_u32;
    match call!(cuMemcpyDtoH_v2(&raw mut value, at, 4_usize)) {
        0 => Ok(value),
        error => Err(error),
    }
}

fn written(value: u32) -> Word {
    let mut at = 0;
    ok!(cuMemAlloc_v2(&raw mut at, 2 * MIB));
    ok!(cuMemsetD32_v2(at, value, 1024_usize));
    at
}

#[test]
fn a_reset_releases_no_reference_and_keeps_the_handle() {
    let _turn = Context::new();
    let (one, two) = (retain(), retain());
    ok!(cuCtxSetCurrent(one));
    let at = written(0x5eed);
    ok!(cuDevicePrimaryCtxReset_v2(0_i32));
    let mut current = 0;
    ok!(cuCtxGetCurrent(&raw mut current));
    assert_eq!((two, current, state()), (one, one, 0));
    assert_eq!(retain(), one);
    assert_eq!((state(), word_at(at)), (1, Err(1)), "its memory is gone");
    written(1);
    for active in [1, 1, 0] {
        ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
        assert_eq!(state(), active);
    }
    assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(0_i32)), 201);
}

#[test]
fn after_a_reset_the_handles_of_events_are_given_out_again() {
    let _turn = Context::new();
    ok!(cuCtxSetCurrent(retain()));
    let event = || {
        let mut event = 0;
        ok!(cuEventCreate(&raw mut event, 2_u32));
        event
    };
    let before: [Word; 64] = std::array::from_fn(|_| event());
    ok!(cuDevicePrimaryCtxReset_v2(0_i32));
    retain();
    assert_eq!(call!(cuEventQuery(before[0])), 400, "it went with its context");
    let after: [Word; 64] = std::array::from_fn(|_| event());
    assert!(after.iter().any(|event| before.contains(event)), "whoever kept a handle would get away with it");
    for _ in 0..2 {
        ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    }
}

#[test]
fn nothing_works_between_a_reset_and_the_next_retain() {
    let _turn = Context::new();
    ok!(cuCtxSetCurrent(retain()));
    ok!(cuDevicePrimaryCtxReset_v2(0_i32));
    let mut at: Word = 0;
    assert_eq!(call!(cuMemAlloc_v2(&raw mut at, 4096_usize)), 709);
    assert_eq!(state(), 0);
    ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    ok!(cuDevicePrimaryCtxReset_v2(0_i32));
    assert_eq!(state(), 0);
}

#[test]
fn a_context_that_was_reset_tells_about_itself_can_be_made_current_and_does_nothing() {
    let turn = Context::new();
    let (others, primary) = (turn.device(4096), retain());
    ok!(cuCtxSetCurrent(primary));
    let own = written(1);
    ok!(cuDevicePrimaryCtxReset_v2(0_i32));
    let (mut device, mut word, mut size) = (9_i32, 9_u32, 0_usize);
    for _ in 0..2 {
        ok!(cuCtxGetDevice(&raw mut device));
        ok!(cuCtxGetFlags(&raw mut word));
        assert_eq!((device, word), (0, 0));
        assert_eq!(call!(cuCtxGetApiVersion(0_u64, &raw mut word)), 709);
        assert_eq!(call!(cuStreamQuery(0_u64)), 709);
        for memory in [others, own, 0, 0x1234_5600_0000] {
            assert_eq!(call!(cuMemFree_v2(memory)), 709);
        }
        assert_eq!(call!(cuMemGetInfo_v2(&raw mut size, &raw mut size)), 709);
        assert_eq!(word_at(own), Err(709));
        let rows = [0_u64; 16];
        assert_eq!(call!(cuMemcpy2D_v2(rows.as_ptr())), 709);
        ok!(cuCtxSetCurrent(turn.handle));
        assert_eq!(word_at(others).map(|_| ()), Ok(()), "another context's memory is still there");
        ok!(cuCtxSetCurrent(primary));
        (device, word) = (9, 9);
    }
    assert_eq!(retain(), primary);
    written(2);
    for _ in 0..2 {
        ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    }
    ok!(cuCtxSetCurrent(turn.handle));
}

#[test]
fn destroying_the_primary_context_is_refused_and_changes_nothing() {
    let _turn = Context::new();
    let primary = retain();
    ok!(cuCtxSetCurrent(primary));
    let at = written(0x5eed);
    assert_eq!(call!(cuCtxDestroy_v2(primary)), 201);
    let mut current = 0;
    ok!(cuCtxGetCurrent(&raw mut current));
    assert_eq!((current, state(), word_at(at)), (primary, 1, Ok(0x5eed)));
    ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    assert_eq!(state(), 0);
}

fn green() -> Word {
    let (mut whole, mut parts, mut rest) = ([0_u8; 256], [0_u8; 256], [0_u8; 256]);
    let (mut count, mut description, mut made) = (1_u32, 0, 0);
    ok!(cuDeviceGetDevResource(0_i32, whole.as_mut_ptr(), 1_u32));
    ok!(cuDevSmResourceSplitByCount(
        parts.as_mut_ptr(),
        &raw mut count,
        whole.as_ptr(),
        rest.as_mut_ptr(),
        0_u32,
        16_u32
    ));
    ok!(cuDevResourceGenerateDesc(&raw mut description, parts.as_ptr(), 1_u32));
    let description: Word = description;
    ok!(cuGreenCtxCreate(&raw mut made, description, 0_i32, 1_u32));
    made
}

#[test]
fn a_green_context_keeps_the_primary_one_and_its_memory() {
    let _turn = Context::new();
    let first = green();
    assert_eq!(state(), 1, "alone");
    ok!(cuGreenCtxDestroy(first));
    assert_eq!(state(), 0);
    let primary = retain();
    ok!(cuCtxSetCurrent(primary));
    let at = written(0x5eed);
    let second = green();
    ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    assert_eq!((state(), word_at(at)), (1, Ok(0x5eed)));
    assert_eq!((retain(), word_at(at)), (primary, Ok(0x5eed)));
    ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    assert_eq!(state(), 1);
    ok!(cuGreenCtxDestroy(second));
    assert_eq!(state(), 0);
}

#[test]
fn a_green_contexts_stream_is_the_primarys_and_not_covered_by_its_legacy_stream() {
    let mut turn = Context::new();
    let (own, primary) = (turn.handle, retain());
    ok!(cuCtxSetCurrent(primary));
    ok!(cuModuleLoadData(&raw mut turn.module, PTX.as_ptr()));
    let (green, event) = (green(), turn.event());
    let (mut stream, mut found, mut its, mut as_context): (Word, Word, Word, Word) = (0, 0, 0, 0);
    ok!(cuGreenCtxStreamCreate(&raw mut stream, green, 1_u32, 0_i32));
    ok!(cuStreamGetCtx(stream, &raw mut found));
    assert_eq!(found, green);
    ok!(cuStreamGetCtx_v2(stream, &raw mut found, &raw mut its));
    assert_eq!((found, its), (primary, green));
    ok!(cuCtxFromGreenCtx(&raw mut as_context, green));

    // While it is current the legacy stream is its own, and of a thread's own stream nothing is told.
    ok!(cuCtxSetCurrent(as_context));
    ok!(cuStreamGetCtx(1_u64, &raw mut found));
    assert_eq!(found, green);
    ok!(cuStreamGetCtx_v2(1_u64, &raw mut found, &raw mut its));
    assert_eq!((found, its), (primary, green));
    assert_eq!(call!(cuStreamGetCtx(2_u64, &raw mut found)), 400);
    assert_eq!(call!(cuStreamGetCtx_v2(2_u64, &raw mut found, &raw mut its)), 400);

    // Functions and events of the primary context work there, whichever of the two is current.
    for current in [primary, as_context] {
        ok!(cuCtxSetCurrent(current));
        ok!(cuCtxGetCurrent(&raw mut found));
        assert_eq!(found, current);
        assert_eq!(turn.launch(stream, "nvshare_spin", &[0]), 0);
        ok!(cuEventRecord(event, stream));
        ok!(cuStreamSynchronize(stream));
        ok!(cuStreamQuery(stream));
    }
    let at = written(1);
    ok!(cuCtxSynchronize());
    let run = || assert_eq!(turn.launch(stream, "nvshare_spin", &[RUNS.as_nanos() as u64]), 0);
    run();
    assert_eq!(call!(cuStreamQuery(stream)), NOT_READY);
    ok!(cuEventRecord(event, 1_u64));
    ok!(cuEventSynchronize(event));
    assert_eq!(call!(cuStreamQuery(stream)), NOT_READY, "it is over before the green context's work is");
    ok!(cuGreenCtxRecordEvent(green, event));
    assert_eq!(call!(cuEventQuery(event)), NOT_READY);
    ok!(cuCtxSynchronize());
    ok!(cuStreamQuery(stream));
    run();
    ok!(cuMemFree_v2(at));
    ok!(cuStreamQuery(stream));
    // It ends at once, under its work.
    run();
    ok!(cuEventRecord(event, stream));
    ok!(cuGreenCtxDestroy(green));
    assert_eq!(call!(cuEventQuery(event)), NOT_READY);
    assert_eq!(call!(cuStreamQuery(stream)), 709);
    ok!(cuCtxSetCurrent(primary));
    ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    assert_eq!(state(), 0);
    turn.handle = own;
}

/// Whether `act` waits for a kernel that runs in a stream which blocks nobody.
fn waits(context: &Context, stream: Word, act: impl FnOnce() -> u32) -> bool {
    ok!(cuStreamSynchronize(stream));
    let begin = Instant::now();
    assert_eq!(context.launch(stream, "nvshare_spin", &[RUNS.as_nanos() as u64]), 0);
    assert_eq!(act(), 0);
    let took = begin.elapsed();
    let runs = call!(cuStreamQuery(stream)) == NOT_READY;
    assert!(runs || took >= RUNS, "{took:?}: neither waited nor came back in time");
    !runs
}

#[test]
fn these_calls_wait_for_the_kernels_of_their_context_and_these_do_not() {
    let context = Context::new();
    let (stream, other) = (context.stream(1), context.stream(1));
    let (device, host) = (context.device(MIB), context.pinned(4096).as_ptr() as Word);
    let mut own = vec![0_u64; 4096];
    let registered = own.as_mut_ptr();
    ok!(cuMemHostRegister_v2(registered, 4096 * 8_usize, 1_u32));
    let (mut module, mut managed, mut stack): (Word, Word, usize) = (0, 0, 0);
    ok!(cuModuleLoadData(&raw mut module, PTX.as_ptr()));
    ok!(cuMemAllocManaged(&raw mut managed, MIB, 1_u32));
    ok!(cuCtxGetLimit(&raw mut stack, 0_u32));
    let mut made: Word = 0;
    assert!(waits(&context, stream, || call!(cuMemFree_v2(device))));
    assert!(waits(&context, stream, || call!(cuMemFreeHost(host))));
    assert!(waits(&context, stream, || call!(cuMemHostUnregister(registered))));
    assert!(waits(&context, stream, || call!(cuModuleUnload(module))));
    assert!(waits(&context, stream, || call!(cuModuleLoadData(&raw mut module, PTX.as_ptr()))));
    assert!(waits(&context, stream, || call!(cuCtxSetLimit(0_u32, stack + 8192))));
    assert!(waits(&context, stream, || call!(cuMemFree_v2(managed))));
    assert!(!waits(&context, stream, || call!(cuCtxSetLimit(1_u32, 2 * MIB))));
    assert!(!waits(&context, stream, || call!(cuMemAlloc_v2(&raw mut made, MIB))));
    assert!(!waits(&context, stream, || call!(cuMemHostAlloc(&raw mut made, MIB, 1_u32))));
    assert!(!waits(&context, stream, || call!(cuMemHostRegister_v2(registered, 4096 * 8_usize, 1_u32))));
    assert!(!waits(&context, stream, || call!(cuStreamDestroy_v2(other))));
    let mapped = client::vmm(2 * MIB);
    assert!(!waits(&context, stream, || {
        mapped.end();
        0
    }));
    ok!(cuMemHostUnregister(registered));
    assert_eq!(DRIVER.violations(), Vec::<String>::new());
}

#[test]
fn frees_wait_for_the_owners_context_and_a_contexts_end_for_all_of_the_card() {
    let context = Context::new();
    let (stream, mine) = (context.stream(1), context.device(MIB));
    let (mut second, mut theirs): (Word, Word) = (0, 0);
    ok!(cuCtxCreate_v2(&raw mut second, 0_u32, 0_i32));
    ok!(cuMemAlloc_v2(&raw mut theirs, MIB));
    assert!(!waits(&context, stream, || call!(cuMemFree_v2(theirs))));
    assert!(waits(&context, stream, || call!(cuMemFree_v2(mine))), "whichever is current");
    assert!(waits(&context, stream, || call!(cuCtxDestroy_v2(second))), "an idle one");
    ok!(cuCtxSetCurrent(context.handle));
}

#[test]
fn an_event_in_the_legacy_stream_holds_up_blocking_streams_and_a_question_does_not() {
    let context = Context::new();
    let (a, b, free, event) = (context.stream(0), context.stream(0), context.stream(1), context.event());
    let flag = context.pinned(4096);
    let mut held = |act: &dyn Fn(), then: Word| {
        flag[0] = 0;
        assert_eq!(context.launch(a, "nvshare_wait_flag", &[flag.as_ptr() as u64]), 0);
        act();
        assert_eq!(context.launch(then, "nvshare_spin", &[0]), 0);
        let end = Instant::now() + RUNS;
        while call!(cuStreamQuery(then)) == NOT_READY && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        let held = call!(cuStreamQuery(then)) == NOT_READY;
        set_flag(flag);
        ok!(cuCtxSynchronize());
        held
    };
    assert!(held(&|| ok!(cuEventRecord(event, 1_u64)), b));
    assert!(held(&|| ok!(cuEventRecord(event, 0_u64)), b));
    assert!(!held(&|| (), b));
    assert!(!held(&|| assert_eq!(call!(cuStreamQuery(1_u64)), NOT_READY), b));
    assert!(!held(&|| ok!(cuEventRecord(event, 1_u64)), free));
    assert!(!held(&|| ok!(cuEventRecord(event, b)), b));
    assert!(!held(&|| ok!(cuEventRecord(event, 2_u64)), b));
}

#[test]
fn a_capture_ends_with_its_context() {
    let _turn = Context::new();
    ok!(cuCtxSetCurrent(retain()));
    let mut stream: Word = 0;
    ok!(cuStreamCreate(&raw mut stream, 0_u32));
    ok!(cuStreamBeginCapture_v2(stream, 0_u32));
    assert_eq!(call!(cuCtxSynchronize()), 900, "while it is captured in global mode");
    ok!(cuDevicePrimaryCtxReset_v2(0_i32));
    ok!(cuCtxSetCurrent(retain()));
    written(1);
    ok!(cuCtxSynchronize());
    for _ in 0..2 {
        ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    }
}

#[test]
fn a_capture_of_a_threads_own_stream_ends_with_the_thread() {
    let _turn = Context::new();
    let mut context: Word = 0;
    ok!(cuCtxGetCurrent(&raw mut context));
    std::thread::spawn(move || {
        ok!(cuCtxSetCurrent(context));
        ok!(cuStreamBeginCapture_v2(2 as Word, 0_u32));
    })
    .join()
    .expect("a thread that captures");
    ok!(cuCtxSynchronize());
}

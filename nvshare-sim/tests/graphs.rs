//! Graphs and captures, and what is forbidden during them.

mod client;

use client::{Context, DRIVER};

const UNSUPPORTED: u32 = 900;
const INVALIDATED: u32 = 901;
const UNMATCHED: u32 = 903;
const UNJOINED: u32 = 904;
const ISOLATION: u32 = 905;
const IMPLICIT: u32 = 906;
const CAPTURED_EVENT: u32 = 907;
const WRONG_THREAD: u32 = 908;

const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

fn begin(stream: u64, mode: u32) {
    ok!(cuStreamBeginCapture_v2(stream, mode));
}

fn end(stream: u64) -> (u32, u64) {
    let mut graph = 0;
    (call!(cuStreamEndCapture(stream, &raw mut graph)), graph)
}

fn status(stream: u64) -> u32 {
    let mut status = 9;
    ok!(cuStreamIsCapturing(stream, &raw mut status));
    status
}

fn read(device: u64) -> u64 {
    let mut value = 0;
    ok!(cuMemcpyDtoH_v2(&raw mut value, device, 8_usize));
    value
}

fn instantiate(graph: u64) -> u64 {
    let mut executable = 0;
    ok!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0_u64));
    executable
}

#[test]
fn what_is_captured_runs_when_the_graph_is_launched_and_not_before() {
    let context = Context::new();
    let (stream, device) = (context.stream(1), context.device(4096));
    ok!(cuMemsetD8_v2(device, 0_u8, 4096_usize));
    ok!(cuCtxSynchronize());
    begin(stream, GLOBAL);
    assert_eq!(status(stream), 1);
    assert_eq!(context.launch(stream, "nvshare_step", &[device, 1, 5]), 0);
    ok!(cuMemcpyDtoDAsync_v2(device + 8, device, 8_usize, stream));
    ok!(cuMemsetD32Async(device + 16, 7_u32, 1_usize, stream));
    let (result, graph) = end(stream);
    assert_eq!((result, status(stream)), (0, 0));
    assert_eq!(read(device), 0);
    let mut count = 0_usize;
    ok!(cuGraphGetNodes(graph, 0_u64, &raw mut count));
    assert_eq!(count, 3);
    let executable = instantiate(graph);
    ok!(cuGraphDestroy(graph));
    for _ in 0..3 {
        ok!(cuGraphLaunch(executable, stream));
    }
    ok!(cuStreamSynchronize(stream));
    assert_eq!([read(device), read(device + 8), read(device + 16)], [15, 15, 7]);
    ok!(cuGraphExecDestroy(executable));
}

#[test]
fn a_capture_spreads_over_streams_by_events_and_must_come_back() {
    let context = Context::new();
    let (one, two) = (context.stream(1), context.stream(1));
    let (fork, join, device) = (context.event(), context.event(), context.device(4096));
    ok!(cuMemsetD8_v2(device, 0_u8, 4096_usize));
    // It is not waited for by itself, and these streams do not wait for it either.
    ok!(cuCtxSynchronize());
    begin(one, THREAD_LOCAL);
    assert_eq!(context.launch(one, "nvshare_store", &[device, 1, 1]), 0);
    ok!(cuEventRecord(fork, one));
    ok!(cuStreamWaitEvent(two, fork, 0_u32));
    assert_eq!(status(two), 1);
    assert_eq!(context.launch(two, "nvshare_step", &[device, 1, 10]), 0);
    ok!(cuEventRecord(join, two));
    assert_eq!(end(two).0, UNMATCHED);
    // That was an error of ours; begin again.
    assert_eq!(end(one).0, INVALIDATED);

    begin(one, THREAD_LOCAL);
    assert_eq!(context.launch(one, "nvshare_store", &[device, 1, 1]), 0);
    ok!(cuEventRecord(fork, one));
    ok!(cuStreamWaitEvent(two, fork, 0_u32));
    assert_eq!(context.launch(two, "nvshare_step", &[device, 1, 10]), 0);
    assert_eq!(end(one).0, UNJOINED);
    assert_eq!(status(two), 0, "the capture is over for all its streams");

    begin(one, THREAD_LOCAL);
    assert_eq!(context.launch(one, "nvshare_store", &[device, 1, 1]), 0);
    ok!(cuEventRecord(fork, one));
    ok!(cuStreamWaitEvent(two, fork, 0_u32));
    assert_eq!(context.launch(two, "nvshare_step", &[device, 1, 10]), 0);
    ok!(cuEventRecord(join, two));
    ok!(cuStreamWaitEvent(one, join, 0_u32));
    assert_eq!(context.launch(one, "nvshare_step", &[device, 1, 100]), 0);
    let (result, graph) = end(one);
    assert_eq!(result, 0);
    let executable = instantiate(graph);
    ok!(cuGraphLaunch(executable, one));
    ok!(cuStreamSynchronize(one));
    assert_eq!(read(device), 111);
}

#[test]
fn waiting_for_what_is_captured_is_forbidden_and_spoils_the_capture() {
    let context = Context::new();
    let (stream, event) = (context.stream(1), context.event());
    let spoil = |call: &dyn Fn() -> u32, expected: u32| {
        begin(stream, RELAXED);
        ok!(cuEventRecord(event, stream));
        assert_eq!(call(), expected);
        assert_eq!(status(stream), 2);
        assert_eq!(context.launch(stream, "nvshare_spin", &[0]), INVALIDATED);
        assert_eq!(end(stream).0, INVALIDATED);
        assert_eq!(status(stream), 0);
    };
    spoil(&|| call!(cuStreamSynchronize(stream)), UNSUPPORTED);
    spoil(&|| call!(cuStreamQuery(stream)), UNSUPPORTED);
    spoil(&|| call!(cuCtxSynchronize()), UNSUPPORTED);
    spoil(&|| call!(cuEventQuery(event)), CAPTURED_EVENT);
    spoil(&|| call!(cuEventSynchronize(event)), CAPTURED_EVENT);
    // The event can be used again.
    ok!(cuEventRecord(event, stream));
    ok!(cuEventSynchronize(event));
}

#[test]
fn the_legacy_stream_must_not_be_used_while_a_blocking_stream_is_captured() {
    let context = Context::new();
    let (blocking, other, device) = (context.stream(0), context.stream(1), context.device(4096));
    begin(blocking, RELAXED);
    assert_eq!(context.launch(0, "nvshare_spin", &[0]), IMPLICIT);
    assert_eq!(end(blocking).0, INVALIDATED);
    begin(blocking, RELAXED);
    assert_eq!(call!(cuMemsetD8_v2(device, 0_u8, 8_usize)), IMPLICIT);
    assert_eq!(end(blocking).0, INVALIDATED);
    begin(other, RELAXED);
    assert_eq!(context.launch(0, "nvshare_spin", &[0]), 0, "no order between these two");
    assert_eq!(end(other).0, 0);
    assert_eq!(call!(cuStreamBeginCapture_v2(0_u64, RELAXED)), UNSUPPORTED);
}

#[test]
fn unsafe_calls_are_forbidden_by_the_modes_of_the_capture_and_of_the_thread() {
    let context = Context::new();
    let handle = context.handle;
    let stream = context.stream(1);
    let elsewhere = |mode: u32| {
        std::thread::spawn(move || {
            ok!(cuCtxSetCurrent(handle));
            let (mut mode, mut address) = (mode, 0_u64);
            ok!(cuThreadExchangeStreamCaptureMode(&raw mut mode));
            assert_eq!(mode, GLOBAL, "the mode that every thread begins with");
            let result = call!(cuMemAlloc_v2(&raw mut address, 4096_usize));
            if result == 0 {
                assert_eq!(call!(cuMemFree_v2(address)), 0);
            }
            result
        })
        .join()
        .expect("the thread")
    };
    let ended = |expected| assert_eq!(end(stream).0, expected);
    for (capture, thread, result) in [
        (GLOBAL, GLOBAL, UNSUPPORTED),
        (GLOBAL, THREAD_LOCAL, 0),
        (GLOBAL, RELAXED, 0),
        (THREAD_LOCAL, GLOBAL, 0),
        (RELAXED, GLOBAL, 0),
    ] {
        begin(stream, capture);
        assert_eq!(elsewhere(thread), result, "capture {capture}, other thread {thread}");
        ended(if result == 0 { 0 } else { INVALIDATED });
    }
    let here = || {
        let mut address = 0_u64;
        call!(cuMemAlloc_v2(&raw mut address, 4096_usize))
    };
    for (capture, result) in [(GLOBAL, UNSUPPORTED), (THREAD_LOCAL, UNSUPPORTED), (RELAXED, 0)] {
        begin(stream, capture);
        assert_eq!(here(), result, "capture {capture}, same thread");
        ended(if result == 0 { 0 } else { INVALIDATED });
    }
    let mut mode = RELAXED;
    ok!(cuThreadExchangeStreamCaptureMode(&raw mut mode));
    begin(stream, GLOBAL);
    assert_eq!(here(), 0, "the thread asked to be let alone");
    ended(0);
    ok!(cuThreadExchangeStreamCaptureMode(&raw mut mode));
    assert_eq!(mode, RELAXED);
}

#[test]
fn a_capture_ends_in_the_thread_where_it_began_unless_it_is_relaxed() {
    let context = Context::new();
    let (handle, stream) = (context.handle, context.stream(1));
    let elsewhere = || {
        let ending = move || {
            ok!(cuCtxSetCurrent(handle));
            end(stream).0
        };
        std::thread::spawn(ending).join().expect("the thread")
    };
    begin(stream, THREAD_LOCAL);
    assert_eq!(elsewhere(), WRONG_THREAD);
    assert_eq!(end(stream).0, 0);
    begin(stream, RELAXED);
    assert_eq!(elsewhere(), 0);
    assert_eq!(end(stream).0, 401, "nothing is being captured");
}

#[test]
fn a_capture_does_not_wait_for_work_outside_of_it() {
    let context = Context::new();
    let (stream, other, event) = (context.stream(1), context.stream(1), context.event());
    ok!(cuEventRecord(event, other));
    begin(stream, RELAXED);
    assert_eq!(call!(cuStreamWaitEvent(stream, event, 0_u32)), ISOLATION);
    assert_eq!(end(stream).0, INVALIDATED);
}

#[test]
fn what_happens_in_other_streams_does_not_harm_a_relaxed_capture() {
    let context = Context::new();
    let (stream, other, event, device) =
        (context.stream(0), context.stream(1), context.event(), context.device(1 << 20));
    ok!(cuMemsetD8_v2(device, 0_u8, 8_usize));
    ok!(cuCtxSynchronize());
    begin(stream, RELAXED);
    assert_eq!(context.launch(stream, "nvshare_step", &[device, 1, 3]), 0);
    assert_eq!(context.launch(other, "nvshare_step", &[device, 1, 4]), 0);
    ok!(cuEventRecord(event, other));
    ok!(cuEventSynchronize(event));
    ok!(cuStreamSynchronize(other));
    let (result, graph) = end(stream);
    assert_eq!(result, 0);
    assert_eq!(read(device), 4);
    ok!(cuGraphLaunch(instantiate(graph), stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(read(device), 7);
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn graphs_are_built_node_by_node_too() {
    #[repr(C)]
    struct Kernel {
        function: u64,
        shape: [u32; 7],
        parameters: *const *const u64,
        extra: u64,
        code: u64,
        context: u64,
    }
    #[repr(C)]
    struct Memset {
        address: u64,
        pitch: usize,
        value: u32,
        element: u32,
        width: usize,
        height: usize,
    }
    let context = Context::new();
    let (stream, device) = (context.stream(1), context.device(4096));
    let (mut graph, mut first, mut second, mut last) = (0_u64, 0_u64, 0_u64, 0_u64);
    ok!(cuGraphCreate(&raw mut graph, 0_u32));
    let (one, add) = (1_u64, 5_u64);
    let parameters = [&raw const device, &raw const one, &raw const add];
    let mut kernel = Kernel {
        function: context.function("nvshare_step"),
        shape: [1, 1, 1, 1, 1, 1, 0],
        parameters: parameters.as_ptr(),
        extra: 0,
        code: 0,
        context: 0,
    };
    let memset = Memset { address: device, pitch: 0, value: 1, element: 4, width: 2, height: 1 };
    // Added before what it comes after.
    ok!(cuGraphAddKernelNode_v2(&raw mut second, graph, 0_u64, 0_usize, &raw const kernel));
    ok!(cuGraphAddMemsetNode(&raw mut first, graph, 0_u64, 0_usize, &raw const memset, context.handle));
    ok!(cuGraphAddDependencies(graph, &raw const first, &raw const second, 1_usize));
    ok!(cuGraphAddEmptyNode(&raw mut last, graph, &raw const second, 1_usize));
    let executable = instantiate(graph);
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(read(device), 0x0000_0001_0000_0006);
    let more = 6_u64;
    let parameters = [&raw const device, &raw const one, &raw const more];
    kernel.parameters = parameters.as_ptr();
    ok!(cuGraphExecKernelNodeSetParams_v2(executable, second, &raw const kernel));
    ok!(cuGraphLaunch(executable, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(read(device), 0x0000_0001_0000_0007);
    // A circle has no order.
    ok!(cuGraphAddDependencies(graph, &raw const last, &raw const first, 1_usize));
    let mut other = 0_u64;
    assert_eq!(call!(cuGraphInstantiateWithFlags(&raw mut other, graph, 0_u64)), 1);
}

#[test]
fn a_node_of_any_kind_is_added_and_changed_by_one_function() {
    /// `CUgraphNodeParams` of a copy (1) or a memset (2).
    #[repr(C)]
    struct Any {
        kind: u64,
        reserved: u64,
        of_kind: [u64; 30],
    }
    let copy = |to: u64, from: u64| {
        let mut any = Any { kind: 1, reserved: 0, of_kind: [0; 30] };
        // Flags, the context, and two ends: three offsets, a level, the kind of memory, three addresses, a word, a pitch, a
        // height.
        (any.of_kind[6], any.of_kind[8]) = (2, from);
        (any.of_kind[17], any.of_kind[19]) = (2, to);
        (any.of_kind[24], any.of_kind[25], any.of_kind[26]) = (8, 1, 1);
        any
    };
    let context = Context::new();
    let (stream, device) = (context.stream(1), context.device(4096));
    ok!(cuMemsetD8_v2(device, 0_u8, 4096_usize));
    ok!(cuCtxSynchronize());
    let mut memset = Any { kind: 2, reserved: 0, of_kind: [0; 30] };
    memset.of_kind[..5].copy_from_slice(&[device, 0, 4 << 32 | 5, 2, 1]);
    let (mut graph, mut first, mut second) = (0_u64, 0_u64, 0_u64);
    ok!(cuGraphCreate(&raw mut graph, 0_u32));
    ok!(cuGraphAddNode(&raw mut first, graph, 0_u64, 0_usize, &raw const memset));
    let onward = copy(device + 8, device);
    ok!(cuGraphAddNode_v2(&raw mut second, graph, &raw const first, 0_u64, 1_usize, &raw const onward));
    let executable = instantiate(graph);
    let launch = || {
        ok!(cuGraphLaunch(executable, stream));
        ok!(cuStreamSynchronize(stream));
    };
    launch();
    let words = [0, 8, 16].map(|offset| read(device + offset));
    assert_eq!(words, [0x0000_0005_0000_0005, 0x0000_0005_0000_0005, 0]);
    let elsewhere = copy(device + 16, device);
    ok!(cuGraphExecNodeSetParams(executable, second, &raw const elsewhere));
    launch();
    assert_eq!(read(device + 16), 0x0000_0005_0000_0005);
    memset.of_kind[2] = 4 << 32 | 6;
    ok!(cuGraphNodeSetParams(first, &raw const memset));
    launch();
    assert_eq!(read(device), 0x0000_0005_0000_0005, "what was instantiated is as it was");
    let unknown = Any { kind: 99, reserved: 0, of_kind: [0; 30] };
    assert_eq!(call!(cuGraphAddNode(&raw mut first, graph, 0_u64, 0_usize, &raw const unknown)), 801);
}

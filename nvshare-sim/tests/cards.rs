//! Two cards in one process: what each may do with the other's memory, what waits for whom, and what an error on one means for
//! the other. All as an H200's host with driver 580 showed it.

mod client;

use std::time::{Duration, Instant};

use client::{Context, DRIVER, PTX, Word};

const MIB: usize = 1 << 20;
const INVALID_VALUE: u32 = 1;
const NOT_READY: u32 = 600;
const ILLEGAL_ADDRESS: u32 = 700;
const UNSUPPORTED: u32 = 900;
const INVALIDATED: u32 = 901;

/// Runs the test in a process of its own with two cards.
fn on_two_cards(name: &str, test: impl FnOnce(&Cards)) {
    if client::is_alone() {
        test(&Cards::new());
    } else {
        client::alone(name, &[("NVSHARE_SIM_CARDS", "2")]);
    }
}

/// A context on each card, with a MiB of plain memory filled with sevens; that of the first card is current.
struct Cards {
    here: Context,
    ours: Word,
    there: Word,
    theirs: Word,
}

impl Cards {
    fn new() -> Cards {
        let here = Context::new();
        let ours = here.device(MIB);
        let (mut there, mut theirs) = (0, 0);
        ok!(cuMemsetD8_v2(ours, 7_u8, MIB));
        ok!(cuCtxSynchronize());
        ok!(cuCtxCreate_v2(&raw mut there, 0_u32, 1_i32));
        ok!(cuMemAlloc_v2(&raw mut theirs, MIB));
        ok!(cuMemsetD8_v2(theirs, 8_u8, MIB));
        ok!(cuCtxSynchronize());
        ok!(cuCtxSetCurrent(here.handle));
        Cards { here, ours, there, theirs }
    }

    /// The first byte of the other card's memory.
    fn told(&self) -> u8 {
        let mut byte = 0_u8;
        ok!(cuMemcpyDtoH_v2(&raw mut byte, self.theirs, 1_usize));
        byte
    }
}

/// What a captured call answers, and the end of its capture; with its graph.
fn captured(stream: Word, act: impl FnOnce() -> u32) -> (u32, u32, Word) {
    let mut graph = 0;
    ok!(cuStreamBeginCapture_v2(stream, 2_u32));
    let answer = act();
    (answer, call!(cuStreamEndCapture(stream, &raw mut graph)), graph)
}

fn instantiate(graph: Word) -> (u32, Word) {
    let mut executable = 0;
    (call!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0_u64)), executable)
}

#[test]
fn copies_of_plain_memory_between_the_cards_are_captured_and_the_peer_forms_are_not() {
    let name = "copies_of_plain_memory_between_the_cards_are_captured_and_the_peer_forms_are_not";
    on_two_cards(name, |cards| {
        let stream = cards.here.stream(1);
        let (to, from) = (cards.theirs, cards.ours);
        let (rc, end, graph) = captured(stream, || call!(cuMemcpyDtoDAsync_v2(to, from, MIB, stream)));
        assert_eq!((rc, end), (0, 0));
        let (rc, executable) = instantiate(graph);
        assert_eq!(rc, 0);
        ok!(cuGraphLaunch(executable, stream));
        ok!(cuStreamSynchronize(stream));
        assert_eq!(cards.told(), 7);
        // Whatever memory it is about, also that of one card.
        for (to, to_context) in [(cards.theirs, cards.there), (cards.ours + 4096, cards.here.handle)] {
            let peer = || call!(cuMemcpyPeerAsync(to, to_context, from, cards.here.handle, 64_usize, stream));
            let (rc, end, _) = captured(stream, peer);
            assert_eq!((rc, end), (UNSUPPORTED, INVALIDATED));
            let mut boxes = [0_u64; 25];
            (boxes[4], boxes[6], boxes[8], boxes[9]) = (2, from, cards.here.handle, 64);
            (boxes[15], boxes[17], boxes[19], boxes[20]) = (2, to, to_context, 64);
            (boxes[22], boxes[23], boxes[24]) = (64, 1, 1);
            let (rc, end, _) = captured(stream, || call!(cuMemcpy3DPeerAsync(boxes.as_ptr(), stream)));
            assert_eq!((rc, end), (UNSUPPORTED, INVALIDATED));
            ok!(cuMemcpy3DPeerAsync(boxes.as_ptr(), stream));
        }
        ok!(cuStreamSynchronize(stream));
    });
}

#[test]
fn a_memset_of_the_other_cards_plain_memory_is_refused_at_the_call_or_with_its_graph() {
    let name = "a_memset_of_the_other_cards_plain_memory_is_refused_at_the_call_or_with_its_graph";
    on_two_cards(name, |cards| {
        let (stream, at) = (cards.here.stream(1), cards.theirs);
        assert_eq!(call!(cuMemsetD8_v2(at, 9_u8, 16_usize)), INVALID_VALUE);
        assert_eq!(call!(cuMemsetD32Async(at, 9_u32, 16_usize, stream)), INVALID_VALUE);
        assert_eq!(call!(cuMemsetD2D8_v2(at, 64_usize, 9_u8, 16_usize, 2_usize)), INVALID_VALUE);
        let (rc, end, graph) = captured(stream, || call!(cuMemsetD32Async(at, 9_u32, 16_usize, stream)));
        assert_eq!((rc, end), (0, 0));
        assert_eq!(instantiate(graph).0, INVALID_VALUE);
        assert_eq!(cards.told(), 8);

        // A node in the owner's context is fine, and stays there when it is changed.
        let (mut graph, mut node) = (0_u64, 0_u64);
        ok!(cuGraphCreate(&raw mut graph, 0_u32));
        let mut set = [at, 0, 0x9 | 1 << 32, 16, 1];
        let first = std::ptr::null::<u64>();
        ok!(cuGraphAddMemsetNode(&raw mut node, graph, first, 0_usize, set.as_ptr(), cards.there));
        set[2] = 0xa | 1 << 32;
        ok!(cuGraphMemsetNodeSetParams(node, set.as_ptr()));
        let (rc, executable) = instantiate(graph);
        assert_eq!(rc, 0);
        ok!(cuGraphLaunch(executable, stream));
        ok!(cuStreamSynchronize(stream));
        assert_eq!(cards.told(), 10);
        let here = cards.here.handle;
        assert_eq!(
            call!(cuGraphExecMemsetNodeSetParams(executable, node, set.as_ptr(), here)),
            INVALID_VALUE
        );

        ok!(cuCtxEnablePeerAccess(cards.there, 0_u32));
        ok!(cuMemsetD8_v2(at, 11_u8, 16_usize));
        assert_eq!(cards.told(), 11);
    });
}

#[test]
fn a_kernel_that_writes_the_other_cards_plain_memory_ends_the_contexts_of_both() {
    let name = "a_kernel_that_writes_the_other_cards_plain_memory_ends_the_contexts_of_both";
    on_two_cards(name, |cards| {
        assert_eq!(cards.here.launch(0, "nvshare_step", &[cards.theirs, 1, 1]), 0);
        assert_eq!(call!(cuCtxSynchronize()), ILLEGAL_ADDRESS);
        ok!(cuCtxSetCurrent(cards.there));
        assert_eq!(call!(cuCtxSynchronize()), ILLEGAL_ADDRESS);
        let mut third = 0_u64;
        assert_eq!(call!(cuCtxCreate_v2(&raw mut third, 0_u32, 1_i32)), ILLEGAL_ADDRESS);
    });
}

/// How long the kernel on the other card runs.
const RUNS: Duration = Duration::from_millis(600);

#[test]
fn the_end_of_a_context_waits_for_the_other_card_and_nothing_else_does() {
    let name = "the_end_of_a_context_waits_for_the_other_card_and_nothing_else_does";
    on_two_cards(name, |cards| {
        let (mut module, mut function, mut stream) = (0_u64, 0_u64, 0_u64);
        ok!(cuCtxSetCurrent(cards.there));
        ok!(cuModuleLoadData(&raw mut module, PTX.as_ptr()));
        ok!(cuModuleGetFunction(&raw mut function, module, c"nvshare_spin".as_ptr()));
        ok!(cuStreamCreate(&raw mut stream, 1_u32));
        let (mut primary, mut second) = (0_u64, 0_u64);
        ok!(cuDevicePrimaryCtxRetain(&raw mut primary, 0_i32));
        ok!(cuCtxCreate_v2(&raw mut second, 0_u32, 0_i32));
        ok!(cuCtxSetCurrent(cards.here.handle));
        let host = cards.here.pinned(4096).as_ptr();
        // Each beside a kernel of its own, so that none has to hurry.
        let waits = |act: &mut dyn FnMut() -> u32| {
            let nanoseconds = RUNS.as_nanos() as u64;
            ok!(cuCtxSetCurrent(cards.there));
            let begin = Instant::now();
            assert_eq!(client::launch(function, stream, &[nanoseconds]), 0);
            ok!(cuCtxSetCurrent(cards.here.handle));
            assert_eq!(act(), 0);
            let took = begin.elapsed();
            let runs = call!(cuStreamQuery(stream)) == NOT_READY;
            assert!(runs || took >= RUNS, "{took:?}: neither waited nor came back in time");
            ok!(cuStreamSynchronize(stream));
            !runs
        };
        assert!(!waits(&mut || call!(cuMemFree_v2(cards.ours))));
        assert!(!waits(&mut || call!(cuMemFreeHost(host))));
        assert!(!waits(&mut || call!(cuModuleLoadData(&raw mut module, PTX.as_ptr()))));
        assert!(!waits(&mut || call!(cuDevicePrimaryCtxReset_v2(0_i32))));
        assert!(!waits(&mut || call!(cuCtxSynchronize())));
        assert!(waits(&mut || call!(cuCtxDestroy_v2(second))));
        assert_eq!(DRIVER.violations(), [""; 0]);
    });
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
    assert_eq!(context.launch(0, "nvshare_fill", &[here, MIB as u64 / 8, 1, 0]), 0);
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

//! Who has again what was freed in stream order, whatever context it is of, and what `cuMemFree` of a piece does.

mod client;

use client::pool::{from_pool, in_stream_order, made_pool, pool_mib, set_threshold};
use client::{Context, DRIVER, Word, set_flag};

const MIB: usize = 1 << 20;
const NOT_READY: u32 = 600;

/// A stream that is busy until it is told to end.
struct Busy {
    stream: Word,
    flag: &'static mut [u64],
}

impl Busy {
    fn new(context: &Context, stream: Word) -> Busy {
        let flag = context.pinned(4096);
        assert_eq!(context.launch(stream, "nvshare_wait_flag", &[flag.as_ptr() as Word]), 0);
        Busy { stream, flag }
    }

    fn end(self) {
        set_flag(self.flag);
        ok!(cuStreamSynchronize(self.stream));
    }
}

/// Which of the three ways to have memory again of other streams a pool may use.
fn allow(pool: Word, ways: [i32; 3]) {
    for (attribute, mut value) in (1_u32..).zip(ways) {
        ok!(cuMemPoolSetAttribute(pool, attribute, &raw mut value));
    }
}

fn wait_for(stream: Word, event: Word) {
    ok!(cuStreamWaitEvent(stream, event, 0_u32));
}

fn no_violations() {
    assert_eq!(DRIVER.violations(), Vec::<String>::new());
}

#[test]
fn a_stream_has_at_once_again_what_was_freed_in_it_and_others_do_not() {
    let context = Context::new();
    let (stream, other) = (context.stream(1), context.stream(1));
    let start = in_stream_order(4 * MIB, stream);
    assert_eq!(context.launch(stream, "nvshare_store_late", &[start, 8, 1, 100_000_000]), 0);
    ok!(cuMemFreeAsync(start, stream));
    let elsewhere = in_stream_order(4 * MIB, other);
    assert_ne!(elsewhere, start, "the kernel still uses it");
    assert_eq!(in_stream_order(4 * MIB, stream), start);
    assert_eq!(context.launch(stream, "nvshare_step", &[start, 8, 1]), 0);
    let mut word = 0_u64;
    ok!(cuMemcpyDtoHAsync_v2(&raw mut word, start, 8_usize, stream));
    assert_eq!(word, 2);
    ok!(cuMemFreeAsync(start, stream));
    ok!(cuMemFreeAsync(elsewhere, other));
    ok!(cuCtxSynchronize());
    assert_eq!(DRIVER.violations(), Vec::<String>::new());
}

#[test]
fn a_stream_has_a_part_of_what_it_freed_at_once() {
    let context = Context::new();
    let (pool, stream) = (made_pool(0), context.stream(1));
    let busy = Busy::new(&context, stream);
    let piece = from_pool(8 * MIB, pool, stream);
    ok!(cuMemFreeAsync(piece, stream));
    assert_eq!(from_pool(3 * MIB, pool, stream), piece);
    assert_eq!(from_pool(5 * MIB, pool, stream), piece + (3 << 20), "and the rest");
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (32, 8));
    busy.end();
}

#[test]
fn who_waited_for_an_event_after_the_free_has_it() {
    let context = Context::new();
    let pool = made_pool(0);
    let [one, two, three] = [(); 3].map(|()| context.stream(1));
    let [before, after, through] = [(); 3].map(|()| context.event());
    let busy = Busy::new(&context, one);
    let piece = from_pool(8 * MIB, pool, one);
    ok!(cuEventRecord(before, one));
    ok!(cuMemFreeAsync(piece, one));
    ok!(cuEventRecord(after, one));
    wait_for(two, before);
    assert_ne!(from_pool(8 * MIB, pool, two), piece, "the event was before the free");
    wait_for(two, after);
    allow(pool, [0, 1, 1]);
    assert_ne!(from_pool(8 * MIB, pool, two), piece, "it is not allowed");
    allow(pool, [1, 1, 1]);
    ok!(cuEventRecord(through, two));
    wait_for(three, through);
    assert_eq!(from_pool(4 * MIB, pool, three), piece, "it waited for what waited");
    assert_eq!(from_pool(4 * MIB, pool, two), piece + (4 << 20));
    busy.end();
    no_violations();
}

#[test]
fn another_context_that_waited_has_it_as_well() {
    let context = Context::new();
    let (pool, one, event) = (made_pool(0), context.stream(1), context.event());
    let busy = Busy::new(&context, one);
    let piece = from_pool(8 * MIB, pool, one);
    ok!(cuMemFreeAsync(piece, one));
    ok!(cuEventRecord(event, one));
    let mut other: Word = 0;
    ok!(cuCtxCreate_v2(&raw mut other, 0_u32, 0_i32));
    let two = context.stream(1);
    wait_for(two, event);
    assert_eq!(from_pool(8 * MIB, pool, two), piece);
    ok!(cuCtxSetCurrent(context.handle));
    busy.end();
    ok!(cuCtxDestroy_v2(other));
}

#[test]
fn what_a_stream_is_done_with_is_everybodys_where_that_is_allowed() {
    let context = Context::new();
    let (pool, one, two) = (made_pool(0), context.stream(1), context.stream(1));
    set_threshold(pool, 1 << 60);
    allow(pool, [1, 0, 1]);
    let piece = from_pool(8 * MIB, pool, one);
    ok!(cuMemFreeAsync(piece, one));
    ok!(cuStreamQuery(one));
    let elsewhere = from_pool(8 * MIB, pool, two);
    assert_ne!(elsewhere, piece);
    allow(pool, [0, 1, 0]);
    assert_eq!(from_pool(8 * MIB, pool, two), piece);
    allow(pool, [0, 0, 0]);
    ok!(cuMemFreeAsync(piece, one));
    ok!(cuStreamSynchronize(one));
    assert_eq!(from_pool(8 * MIB, pool, two), piece, "the host has waited");
}

#[test]
fn where_a_pool_cannot_grow_the_stream_waits_and_the_call_does_not() {
    let context = Context::new();
    let (pool, one, two) = (made_pool(32 * MIB), context.stream(1), context.stream(1));
    let piece = from_pool(24 * MIB, pool, one);
    let busy = Busy::new(&context, one);
    assert_eq!(context.launch(one, "nvshare_store", &[piece, 8, 1]), 0);
    ok!(cuMemFreeAsync(piece, one));
    allow(pool, [1, 1, 0]);
    let mut again: Word = 0;
    assert_eq!(call!(cuMemAllocFromPoolAsync(&raw mut again, 24 * MIB, pool, two)), 2, "it is not allowed");
    allow(pool, [1, 1, 1]);
    assert_eq!(from_pool(24 * MIB, pool, two), piece);
    assert_eq!(context.launch(two, "nvshare_step", &[piece, 8, 1]), 0);
    assert_eq!((call!(cuStreamQuery(one)), call!(cuStreamQuery(two))), (NOT_READY, NOT_READY));
    busy.end();
    let mut word = 0_u64;
    ok!(cuMemcpyDtoHAsync_v2(&raw mut word, piece, 8_usize, two));
    ok!(cuStreamSynchronize(two));
    assert_eq!(word, 2, "what the new stream did came after what the old one did");
    no_violations();
}

#[test]
fn another_threads_own_stream_is_another_stream() {
    let context = Context::new();
    let pool = made_pool(0);
    let own = |bytes: usize| {
        let mut start: Word = 0;
        ok!(cuMemAllocFromPoolAsync_ptsz(&raw mut start, bytes, pool, 0_u64));
        start
    };
    let busy = Busy::new(&context, 2);
    let piece = own(4 * MIB);
    ok!(cuMemFreeAsync_ptsz(piece, 0_u64));
    let theirs = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            ok!(cuCtxSetCurrent(context.handle));
            own(4 * MIB)
        });
        other.join().expect("the other thread")
    });
    assert_ne!(theirs, piece);
    assert_eq!(own(4 * MIB), piece);
    busy.end();
}

#[test]
fn a_destroyed_streams_memory_is_no_other_streams() {
    let context = Context::new();
    let (pool, gone) = (made_pool(0), context.stream(1));
    let busy = Busy::new(&context, gone);
    let piece = from_pool(4 * MIB, pool, gone);
    ok!(cuMemFreeAsync(piece, gone));
    ok!(cuStreamDestroy_v2(gone));
    let next = context.stream(1);
    assert_ne!(from_pool(4 * MIB, pool, next), piece, "whatever its handle is");
    set_flag(busy.flag);
    ok!(cuCtxSynchronize());
    assert_eq!(from_pool(4 * MIB, pool, next), piece);
}

#[test]
fn freeing_a_piece_waits_for_nothing_and_the_memory_is_had_again_at_once() {
    let context = Context::new();
    let (pool, one, two) = (made_pool(0), context.stream(1), context.stream(1));
    let piece = from_pool(4 * MIB, pool, one);
    assert_eq!(context.launch(one, "nvshare_spin", &[300_000_000]), 0);
    ok!(cuMemFree_v2(piece));
    assert_eq!(call!(cuMemFree_v2(piece)), 1);
    assert_eq!(call!(cuStreamQuery(one)), NOT_READY);
    assert_eq!(pool_mib(pool, 7), 0);
    assert_eq!(from_pool(4 * MIB, pool, two), piece);
    let used = from_pool(4 * MIB, pool, one);
    assert_eq!(context.launch(one, "nvshare_store", &[used, 8, 1]), 0);
    ok!(cuMemFree_v2(used));
    ok!(cuStreamSynchronize(one));
    no_violations();
}

#[test]
fn work_that_still_uses_what_another_stream_has_now_is_a_violation() {
    if !client::is_alone() {
        client::alone("work_that_still_uses_what_another_stream_has_now_is_a_violation", &[]);
        return;
    }
    let context = Context::new();
    let (pool, one, two) = (made_pool(0), context.stream(1), context.stream(1));
    let piece = from_pool(4 * MIB, pool, one);
    assert_eq!(context.launch(one, "nvshare_store_late", &[piece, 8, 1, 100_000_000]), 0);
    ok!(cuMemFree_v2(piece));
    assert_eq!(from_pool(4 * MIB, pool, one), piece, "the work's own stream may have it");
    no_violations();
    ok!(cuMemFree_v2(piece));
    assert_eq!(from_pool(4 * MIB, pool, two), piece);
    assert!(
        DRIVER.violations().iter().any(|line| line.contains("still uses it")),
        "{:?}",
        DRIVER.violations()
    );
    // An error for good: there is nothing to end.
    std::mem::forget(context);
}

#[test]
fn pieces_outlive_their_contexts() {
    let context = Context::new();
    let (pool, stream) = (made_pool(0), context.stream(1));
    let used = |piece: Word| {
        ok!(cuMemsetD8Async(piece, 1_u8, 4096_usize, stream));
        ok!(cuStreamSynchronize(stream));
        ok!(cuMemFreeAsync(piece, stream));
        ok!(cuStreamSynchronize(stream));
    };
    let mut other: Word = 0;
    ok!(cuCtxCreate_v2(&raw mut other, 0_u32, 0_i32));
    let piece = from_pool(4 * MIB, pool, context.stream(1));
    ok!(cuCtxDestroy_v2(other));
    ok!(cuCtxSetCurrent(context.handle));
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (32, 4));
    used(piece);
    ok!(cuDevicePrimaryCtxRetain(&raw mut other, 0_i32));
    ok!(cuCtxSetCurrent(other));
    let piece = from_pool(4 * MIB, pool, context.stream(1));
    ok!(cuDevicePrimaryCtxReset_v2(0_i32));
    ok!(cuCtxSetCurrent(context.handle));
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (32, 4));
    used(piece);
    ok!(cuDevicePrimaryCtxRelease_v2(0_i32));
    assert_eq!(pool_mib(pool, 5), 0);
    no_violations();
}

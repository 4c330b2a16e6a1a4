//! Memory in stream order, and the pools that it is taken from: what they hold, what they give back when, and what is said of their
//! pieces. Who has again what was freed: `reuse`.

mod client;

use client::pool::{
    default_pool, from_pool, in_stream_order, made_pool, pool_bytes, pool_mib, set_threshold,
};
use client::{Context, DRIVER, Word, free_bytes};

const MIB: usize = 1 << 20;

#[test]
fn memory_in_stream_order_leaves_at_the_next_synchronisation() {
    let context = Context::new();
    let (before, pool, stream) = (free_bytes(), default_pool(), context.stream(1));
    let start = in_stream_order(64 * MIB, stream);
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (64, 64));
    assert_eq!(context.launch(stream, "nvshare_store_late", &[start, 8, 1, 100_000_000]), 0);
    ok!(cuMemFreeAsync(start, stream));
    assert_eq!(call!(cuMemFreeAsync(start, stream)), 1, "freed already");
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (64, 0), "the kernel before it still runs");
    assert_eq!(free_bytes(), before - 64 * MIB);
    ok!(cuStreamSynchronize(stream));
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (0, 0));
    assert_eq!(free_bytes(), before);
    assert!(pool_mib(pool, 6) >= 64 && pool_mib(pool, 8) >= 64, "the most there ever were");
    assert_eq!(call!(cuMemPoolDestroy(pool)), 1, "the default pool stays");
    assert_eq!(call!(cuMemFreeAsync(start, stream)), 1);
    ok!(cuStreamDestroy_v2(stream));
}

#[test]
fn a_pool_keeps_what_is_below_its_threshold_until_it_is_trimmed() {
    let context = Context::new();
    let (before, pool, stream) = (free_bytes(), default_pool(), context.stream(1));
    set_threshold(pool, u64::MAX);
    let start = in_stream_order(64 * MIB, stream);
    let small = in_stream_order(4 * MIB, stream);
    assert_eq!(pool_mib(pool, 5), 96, "a small piece takes 32 MiB from the card");
    ok!(cuMemFreeAsync(start, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (96, 4));
    ok!(cuMemPoolTrimTo(pool, 0_usize));
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (32, 4), "a live piece keeps its block");
    ok!(cuMemFreeAsync(small, stream));
    ok!(cuStreamSynchronize(stream));
    assert_eq!(free_bytes(), before - 32 * MIB);
    ok!(cuMemPoolTrimTo(pool, 0_usize));
    assert_eq!(free_bytes(), before);
    set_threshold(pool, 0);
    ok!(cuStreamDestroy_v2(stream));
}

#[test]
fn a_pool_grows_by_whole_multiples_of_32_mib() {
    let context = Context::new();
    let (pool, stream) = (default_pool(), context.stream(1));
    for (asked, reserved) in [(1, 32), (31, 32), (33, 64), (40, 64), (64, 64), (100, 128)] {
        let piece = in_stream_order(asked * MIB, stream);
        assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (reserved, asked as u64));
        ok!(cuMemFreeAsync(piece, stream));
        ok!(cuStreamSynchronize(stream));
        assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (0, 0));
    }
}

#[test]
fn a_pool_outlives_the_last_context_with_what_it_holds() {
    if !client::is_alone() {
        client::alone("a_pool_outlives_the_last_context_with_what_it_holds", &[]);
        return;
    }
    let context = Context::new();
    let (pool, stream) = (default_pool(), context.stream(1));
    set_threshold(pool, 1 << 60);
    let piece = in_stream_order(100 * MIB, stream);
    ok!(cuMemFreeAsync(piece, stream));
    ok!(cuCtxSynchronize());
    drop(context);
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (128, 0));
    let _again = Context::new();
    let before = free_bytes();
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (128, 0));
    ok!(cuMemPoolTrimTo(pool, 0_usize));
    assert_eq!((pool_mib(pool, 5), free_bytes()), (0, before + 128 * MIB));
}

#[test]
fn a_pools_attributes_can_be_set() {
    let _context = Context::new();
    let mut pool: Word = 0;
    let mut properties = [0_u32; 22];
    (properties[0], properties[2]) = (1, 1);
    ok!(cuMemPoolCreate(&raw mut pool, properties.as_ptr()));
    let (mut keep, mut read) = (u64::MAX, 0_u64);
    ok!(cuMemPoolSetAttribute(pool, 4_u32, &raw mut keep));
    ok!(cuMemPoolGetAttribute(pool, 4_u32, &raw mut read));
    assert_eq!(read, keep);
    let mut flag = 0_i32;
    ok!(cuMemPoolGetAttribute(pool, 1_u32, &raw mut flag));
    assert_eq!(flag, 1);
    ok!(cuDeviceSetMemPool(0_i32, pool));
    let mut current: Word = 0;
    ok!(cuDeviceGetMemPool(&raw mut current, 0_i32));
    assert_eq!(current, pool);
    ok!(cuMemPoolDestroy(pool));
    ok!(cuDeviceGetMemPool(&raw mut current, 0_i32));
    assert_ne!(current, pool);
}

#[test]
fn pieces_are_counted_as_asked_for_and_lie_in_units_of_512_bytes() {
    let context = Context::new();
    let (pool, stream) = (made_pool(0), context.stream(1));
    let first = from_pool(1, pool, stream);
    assert_eq!((pool_bytes(pool, 7), pool_bytes(pool, 5)), (1, 32 << 20));
    assert!(first.is_multiple_of(32 << 20));
    let second = from_pool(513, pool, stream);
    let third = from_pool(33 * MIB, pool, stream);
    assert_eq!((second - first, third - second), (512, 1024));
    assert_eq!((pool_bytes(pool, 7), pool_bytes(pool, 5)), (1 + 513 + (33 << 20), 64 << 20));
    for piece in [first, second, third] {
        ok!(cuMemFreeAsync(piece, stream));
    }
    assert_eq!(pool_bytes(pool, 7), 0);
    ok!(cuMemPoolDestroy(pool));
}

#[test]
fn a_pool_grows_at_its_end_and_gives_back_chunk_by_chunk() {
    let context = Context::new();
    let (pool, stream) = (made_pool(0), context.stream(1));
    set_threshold(pool, 1 << 60);
    let live = from_pool(80 * MIB, pool, stream);
    let gone = from_pool(64 * MIB, pool, stream);
    ok!(cuMemFreeAsync(gone, stream));
    ok!(cuStreamSynchronize(stream));
    let large = from_pool(200 * MIB, pool, stream);
    assert_eq!(
        (large, pool_mib(pool, 5)),
        (live + (80 << 20), 160 + 128),
        "what was free at the end is a part of it"
    );
    ok!(cuMemFreeAsync(large, stream));
    ok!(cuMemFreeAsync(live, stream));
    ok!(cuStreamSynchronize(stream));
    ok!(cuMemPoolTrimTo(pool, 0_usize));
    set_threshold(pool, 100 << 20);
    let pieces = [(); 3].map(|()| from_pool(60 * MIB, pool, stream));
    assert_eq!(pool_mib(pool, 5), 192);
    for piece in pieces {
        ok!(cuMemFreeAsync(piece, stream));
    }
    ok!(cuStreamSynchronize(stream));
    assert_eq!(pool_mib(pool, 5), 96);
    ok!(cuMemPoolDestroy(pool));
}

#[test]
fn a_pool_takes_no_more_than_its_limit() {
    let context = Context::new();
    let (pool, stream) = (made_pool(64 * MIB), context.stream(1));
    let piece = from_pool(40 * MIB, pool, stream);
    let mut more: Word = 0;
    assert_eq!(call!(cuMemAllocFromPoolAsync(&raw mut more, 40 * MIB, pool, stream)), 2);
    let rest = from_pool(24 * MIB, pool, stream);
    assert_eq!((pool_mib(pool, 5), pool_mib(pool, 7)), (64, 64));
    ok!(cuMemFreeAsync(piece, stream));
    ok!(cuMemFreeAsync(rest, stream));
    ok!(cuMemPoolDestroy(pool));
}

#[test]
fn no_bytes_are_a_null_pointer_and_freeing_that_is_nothing() {
    let context = Context::new();
    let stream = context.stream(1);
    let mut start: Word = 1;
    ok!(cuMemAllocAsync(&raw mut start, 0_usize, stream));
    assert_eq!(start, 0);
    ok!(cuMemFreeAsync(start, stream));
}

/// What the driver says of an address: the answer, and the attribute.
fn said(address: Word, attribute: u32) -> (u32, Word) {
    let mut value: Word = 0;
    (call!(cuPointerGetAttribute(&raw mut value, attribute, address)), value)
}

const CONTEXT: u32 = 1;
const SYNC_MEMOPS: u32 = 6;
const BUFFER_ID: u32 = 7;
const IPC_CAPABLE: u32 = 10;
const RDMA_CAPABLE: u32 = 15;
const MEMPOOL: u32 = 17;
const MAPPING_SIZE: u32 = 18;
const MAPPING_BASE: u32 = 19;
const BLOCK_ID: u32 = 20;

#[test]
fn a_piece_is_its_pools_and_no_contexts() {
    let context = Context::new();
    let (pool, stream) = (made_pool(0), context.stream(1));
    let small = from_pool(5000, pool, stream);
    let large = from_pool(40 * MIB + 1, pool, stream);
    for piece in [small, small + 77, large] {
        for attribute in [CONTEXT, SYNC_MEMOPS, IPC_CAPABLE, RDMA_CAPABLE] {
            assert_eq!(said(piece, attribute), (0, 0), "attribute {attribute}");
        }
        for (attribute, value) in [(MEMPOOL, pool), (MAPPING_SIZE, 32 << 20)] {
            assert_eq!(said(piece, attribute), (0, value), "attribute {attribute}");
        }
        assert_eq!(said(piece, MAPPING_BASE), (0, small), "the chunk that it begins in");
    }
    let far = from_pool(MIB, pool, stream);
    assert_eq!(said(far, MAPPING_BASE), (0, small + (32 << 20)));
    let buffers = [small, large, far].map(|piece| said(piece, BUFFER_ID).1);
    assert!(buffers[0] != buffers[1] && buffers[1] != buffers[2] && buffers[0] != buffers[2]);
    assert_eq!(said(small, BLOCK_ID), said(far, BLOCK_ID));
    let elsewhere = in_stream_order(512, stream);
    assert_ne!(said(small, BLOCK_ID), said(elsewhere, BLOCK_ID), "another pool's");
    let mut handle = 0_u64;
    let range = call!(cuMemGetHandleForAddressRange(&raw mut handle, large, 2 * MIB, 1_u32, 0_u64));
    assert_eq!(range, 1);
    for piece in [small, large, far, elsewhere] {
        ok!(cuMemFreeAsync(piece, stream));
    }
    ok!(cuCtxSynchronize());
    ok!(cuMemPoolDestroy(pool));
}

#[test]
fn nobody_knows_a_piece_that_was_freed_but_the_work_before() {
    let context = Context::new();
    let (pool, stream) = (made_pool(0), context.stream(1));
    let piece = from_pool(MIB, pool, stream);
    assert_eq!(context.launch(stream, "nvshare_store_late", &[piece, 8, 1, 100_000_000]), 0);
    ok!(cuMemFreeAsync(piece, stream));
    for attribute in (1..=21).filter(|attribute| *attribute != 5) {
        assert_eq!(said(piece, attribute).0, 1, "attribute {attribute}");
    }
    let (mut start, mut bytes): (Word, usize) = (0, 0);
    assert_eq!(call!(cuMemGetAddressRange_v2(&raw mut start, &raw mut bytes, piece)), 500);
    assert_eq!(call!(cuStreamQuery(stream)), 600, "the kernel still runs");
    ok!(cuStreamSynchronize(stream));
    assert_eq!(DRIVER.violations(), Vec::<String>::new());
    ok!(cuMemPoolDestroy(pool));
}

#[test]
fn a_pool_gives_back_when_the_host_has_waited_for_a_free_and_not_before() {
    let context = Context::new();
    let (pool, stream, other) = (made_pool(0), context.stream(1), context.stream(1));
    let (plain, spare, event) = (context.device(4096), context.device(4096), context.event());
    let mut word = 0_u64;
    let free = |of: Word| {
        ok!(cuMemFreeAsync(from_pool(64 * MIB, pool, of), of));
        ok!(cuEventRecord(event, of));
        while call!(cuStreamQuery(of)) == 600 {
            std::thread::yield_now();
        }
    };
    free(stream);
    ok!(cuEventQuery(event));
    ok!(cuStreamSynchronize(other));
    ok!(cuMemcpyDtoH_v2(&raw mut word, plain, 8_usize));
    ok!(cuMemFree_v2(spare));
    free_bytes();
    ok!(cuMemPoolTrimTo(pool, 0_usize));
    assert_eq!(pool_mib(pool, 5), 64);
    ok!(cuStreamSynchronize(stream));
    assert_eq!(pool_mib(pool, 5), 0);
    free(stream);
    ok!(cuEventSynchronize(event));
    assert_eq!(pool_mib(pool, 5), 0);
    free(stream);
    ok!(cuCtxSynchronize());
    assert_eq!(pool_mib(pool, 5), 0);
    ok!(cuMemPoolDestroy(pool));
}

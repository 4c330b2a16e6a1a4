//! Memory in stream order, and the pools that it is taken from.

mod client;

use client::{Context, DRIVER, Word, free_bytes};

const MIB: usize = 1 << 20;

fn default_pool() -> Word {
    let mut pool = 0;
    ok!(cuDeviceGetDefaultMemPool(&raw mut pool, 0_i32));
    pool
}

/// A pool's attribute, in MiB: 5 and 6 are what it took from the card now and at most, 7 and 8 what is in use of it.
fn pool_mib(pool: Word, attribute: u32) -> u64 {
    let mut value = 0_u64;
    ok!(cuMemPoolGetAttribute(pool, attribute, &raw mut value));
    value >> 20
}

fn set_threshold(pool: Word, mut bytes: u64) {
    ok!(cuMemPoolSetAttribute(pool, 4_u32, &raw mut bytes));
}

fn in_stream_order(bytes: usize, stream: Word) -> Word {
    let mut start = 0;
    ok!(cuMemAllocAsync(&raw mut start, bytes, stream));
    start
}

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

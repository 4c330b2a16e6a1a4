//! Device memory and pinned memory.

mod client;

use std::time::{Duration, Instant};

use client::{Context, DRIVER, Word, free_bytes};

const MIB: usize = 1 << 20;

fn copy_round(start: Word, words: &[u64]) -> Vec<u64> {
    let mut back = vec![0; words.len()];
    ok!(cuMemcpyHtoD_v2(start, words.as_ptr(), size_of_val(words)));
    ok!(cuMemcpyDtoH_v2(back.as_mut_ptr(), start, size_of_val(words)));
    back
}

#[test]
fn allocations_are_aligned_keep_their_bytes_and_come_back() {
    let context = Context::new();
    let before = free_bytes();
    let all: Vec<Word> =
        [1, 500, 4096, 100_000, 3 * MIB].into_iter().map(|bytes| context.device(bytes)).collect();
    for start in &all {
        assert!(start.is_multiple_of(512), "{start:#x}");
    }
    let large: Vec<u64> = (0..3 * MIB as u64 / 8).collect();
    assert_eq!(copy_round(all[4], &large), large);
    assert_eq!(copy_round(all[2], &large[..512]), large[..512]);
    for start in all {
        ok!(cuMemFree_v2(start));
        assert_eq!(call!(cuMemFree_v2(start)), 1, "freed already");
    }
    assert_eq!(free_bytes(), before);
    ok!(cuMemFree_v2(0_u64));
    let mut none: Word = 0;
    assert_eq!(call!(cuMemAlloc_v2(&raw mut none, 0_usize)), 1);
    assert_eq!(call!(cuMemAlloc_v2(&raw mut none, 1_usize << 40)), 2);
}

#[test]
fn small_allocations_share_blocks() {
    let context = Context::new();
    let before = free_bytes();
    let all: Vec<Word> = (0..10_000).map(|_| context.device(4096)).collect();
    let used = before - free_bytes();
    assert!(used <= 10_000 * 4096 + 2 * MIB, "{used}");
    for start in all {
        ok!(cuMemFree_v2(start));
    }
    assert_eq!(free_bytes(), before);
}

#[test]
fn rows_of_a_pitched_allocation_start_aligned() {
    let _context = Context::new();
    let (mut start, mut pitch): (Word, usize) = (0, 0);
    ok!(cuMemAllocPitch_v2(&raw mut start, &raw mut pitch, 1000_usize, 10_usize, 4_u32));
    assert!(pitch >= 1000 && pitch.is_multiple_of(512));
    let (mut base, mut bytes): (Word, usize) = (0, 0);
    ok!(cuMemGetAddressRange_v2(&raw mut base, &raw mut bytes, start + 5 * pitch as Word));
    assert_eq!((base, bytes), (start, 10 * pitch));
    assert_eq!(call!(cuMemAllocPitch_v2(&raw mut start, &raw mut pitch, 1000_usize, 10_usize, 3_u32)), 1);
    ok!(cuMemFree_v2(start));
}

#[test]
fn a_free_waits_for_the_kernel_that_uses_the_memory() {
    let context = Context::new();
    let start = context.device(4096);
    let begin = Instant::now();
    assert_eq!(context.launch(0, "nvshare_store_late", &[start, 8, 1, 100_000_000]), 0);
    ok!(cuMemFree_v2(start));
    assert!(begin.elapsed() >= Duration::from_millis(100));
    assert_eq!(DRIVER.violations(), Vec::<String>::new());
}

#[test]
fn what_a_context_allocated_goes_with_it() {
    let context = Context::new();
    let before = free_bytes();
    let mut other: Word = 0;
    ok!(cuCtxCreate_v2(&raw mut other, 0_u32, 0_i32));
    context.device(5 * MIB);
    context.device(5000);
    context.pinned(4096);
    ok!(cuCtxDestroy_v2(other));
    ok!(cuCtxSetCurrent(context.handle));
    assert_eq!(free_bytes(), before);
}

#[test]
fn pinned_memory_is_known_by_address() {
    let context = Context::new();
    let words = context.pinned(1 << 16);
    words[3] = 42;
    let host = words.as_ptr() as Word;
    let (mut device, mut flags): (Word, u32) = (0, 0);
    ok!(cuMemHostGetDevicePointer_v2(&raw mut device, host, 0_u32));
    assert_eq!(device, host);
    ok!(cuMemHostGetFlags(&raw mut flags, host + 8));
    let target = context.device(8);
    assert_eq!(context.launch(0, "nvshare_sum", &[host + 24, 1, target]), 0);
    ok!(cuMemFreeHost(host));
    assert_eq!(call!(cuMemFreeHost(host)), 1);
    assert_eq!(call!(cuMemHostGetDevicePointer_v2(&raw mut device, host, 0_u32)), 1);
    ok!(cuMemFree_v2(target));
}

#[test]
fn memory_can_be_registered_once_if_it_is_there() {
    let _context = Context::new();
    let mut own = vec![0_u64; 4096];
    let (start, bytes) = (own.as_mut_ptr(), 4096 * 8_usize);
    ok!(cuMemHostRegister_v2(start, bytes, 1_u32));
    assert_eq!(call!(cuMemHostRegister_v2(start, bytes, 0_u32)), 712, "already registered");
    assert_eq!(call!(cuMemHostRegister_v2(start.wrapping_add(100), 8_usize, 0_u32)), 712);
    ok!(cuMemHostUnregister(start));
    assert_eq!(call!(cuMemHostUnregister(start)), 713, "not registered");
    assert_eq!(call!(cuMemHostRegister_v2(4096 as *mut u64, 4096_usize, 0_u32)), 1, "nothing is there");
}

//! Device memory, pinned memory, managed memory, pools, and what the driver says about their pointers.

mod client;

use std::ffi::c_void;
use std::time::{Duration, Instant};

use client::{Context, DRIVER, Word, alone, is_alone};
use nvshare_sim_card::{Cards, Config};

const MIB: usize = 1 << 20;

fn free_bytes() -> usize {
    let (mut free, mut total) = (0_usize, 0_usize);
    ok!(cuMemGetInfo_v2(&raw mut free, &raw mut total));
    free
}

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

fn managed(bytes: usize) -> Word {
    let mut start = 0;
    ok!(cuMemAllocManaged(&raw mut start, bytes, 1_u32));
    start
}

fn card() -> Cards {
    Cards::open(&DRIVER.card, &Config::default()).expect("the card of this process")
}

/// On a card of 32 MiB, of which a context takes four, with a link of 1 GB/s.
fn on_a_small_card(name: &str, test: impl FnOnce(&Context)) {
    if is_alone() {
        test(&Context::new());
    } else {
        alone(name, &[("NVSHARE_SIM_CARD_BYTES", "32M")]);
    }
}

#[test]
fn managed_memory_larger_than_the_card_pays_for_every_sweep() {
    on_a_small_card("managed_memory_larger_than_the_card_pays_for_every_sweep", |context| {
        let bytes = 48 * MIB;
        let (start, words) = (managed(bytes), bytes as Word / 8);
        assert_eq!(context.launch(0, "nvshare_fill", &[start, words, 1, 0]), 0);
        ok!(cuCtxSynchronize());
        let before = card().traffic(0);
        let begin = Instant::now();
        assert_eq!(context.launch(0, "nvshare_step", &[start, words, 1]), 0);
        ok!(cuCtxSynchronize());
        let (took, after) = (begin.elapsed(), card().traffic(0));
        assert_eq!(
            after.faulted_in - before.faulted_in,
            bytes as u64,
            "each page faults again: LRU and a sweep"
        );
        assert_eq!(after.evicted - before.evicted, bytes as u64);
        assert!(took >= Duration::from_millis(280), "{took:?}: six times the link's 50 ms");
        assert_eq!(free_bytes(), 0);
        ok!(cuMemFree_v2(start));
        assert_eq!(free_bytes(), 28 * MIB);
    });
}

#[test]
fn managed_memory_that_fits_faults_once_and_keeps_its_bytes() {
    on_a_small_card("managed_memory_that_fits_faults_once_and_keeps_its_bytes", |context| {
        let start = managed(8 * MIB);
        // SAFETY: managed memory is the host's too; no kernel runs.
        unsafe { (start as *mut u64).write(41) };
        assert_eq!(context.launch(0, "nvshare_step", &[start, 8 * MIB as Word / 8, 1]), 0);
        ok!(cuCtxSynchronize());
        // SAFETY: as above.
        assert_eq!(unsafe { (start as *const u64).read() }, 42);
        assert_eq!(card().traffic(0).faulted_in, 2 * MIB as u64, "only the page that the host had touched");
        assert_eq!(context.launch(0, "nvshare_step", &[start, 8 * MIB as Word / 8, 1]), 0);
        ok!(cuCtxSynchronize());
        assert_eq!(card().traffic(0).faulted_in, 2 * MIB as u64);
        ok!(cuMemFree_v2(start));
    });
}

#[test]
fn a_prefetch_succeeds_and_does_nothing_on_untouched_pages_and_on_a_full_card() {
    on_a_small_card(
        "a_prefetch_succeeds_and_does_nothing_on_untouched_pages_and_on_a_full_card",
        |context| {
            let start = managed(8 * MIB);
            ok!(cuMemPrefetchAsync(start, 8 * MIB, 0_i32, 0_u64));
            ok!(cuCtxSynchronize());
            assert_eq!(free_bytes(), 28 * MIB, "untouched");
            // SAFETY: managed memory is the host's too; no kernel runs.
            unsafe { (start as *mut u8).write_bytes(1, 8 * MIB) };
            let full = context.device(26 * MIB);
            ok!(cuMemPrefetchAsync(start, 8 * MIB, 0_i32, 0_u64));
            ok!(cuCtxSynchronize());
            assert_eq!(free_bytes(), 0, "one page found room, for the others it was a hint");
            ok!(cuMemFree_v2(full));
            ok!(cuMemPrefetchAsync(start, 8 * MIB, 0_i32, 0_u64));
            ok!(cuCtxSynchronize());
            assert_eq!(free_bytes(), 20 * MIB);
            assert_eq!(card().traffic(0).faulted_in, 8 * MIB as u64);
            ok!(cuMemPrefetchAsync(start, 8 * MIB, -1_i32, 0_u64));
            ok!(cuCtxSynchronize());
            assert_eq!(free_bytes(), 28 * MIB);
            assert_eq!(call!(cuMemPrefetchAsync(start, 9 * MIB, 0_i32, 0_u64)), 1, "over the end");
            assert_eq!(call!(cuMemPrefetchAsync(start, 8 * MIB, 7_i32, 0_u64)), 101, "no such device");
            ok!(cuMemFree_v2(start));
        },
    );
}

#[test]
fn plain_memory_pushes_managed_memory_out() {
    on_a_small_card("plain_memory_pushes_managed_memory_out", |context| {
        let start = managed(20 * MIB);
        assert_eq!(context.launch(0, "nvshare_fill", &[start, 20 * MIB as Word / 8, 1, 0]), 0);
        ok!(cuCtxSynchronize());
        assert_eq!(free_bytes(), 8 * MIB);
        let plain = context.device(20 * MIB);
        assert_eq!(free_bytes(), 0);
        assert_eq!(card().traffic(0).evicted, 12 * MIB as u64);
        ok!(cuMemFree_v2(plain));
        ok!(cuMemFree_v2(start));
    });
}

#[test]
fn advice_is_remembered() {
    let _context = Context::new();
    let start = managed(4 * MIB);
    let ask = |attribute: u32| {
        let mut value = 99_i32;
        ok!(cuMemRangeGetAttribute(&raw mut value, 4_usize, attribute, start, 4 * MIB));
        value
    };
    assert_eq!((ask(1), ask(2), ask(4)), (0, -2, -2));
    ok!(cuMemAdvise(start, 4 * MIB, 1_u32, 0_i32));
    ok!(cuMemAdvise(start, 4 * MIB, 3_u32, -1_i32));
    assert_eq!((ask(1), ask(2)), (1, -1));
    assert_eq!(call!(cuMemAdvise(start, 4 * MIB, 99_u32, 0_i32)), 1);
    ok!(cuMemFree_v2(start));
}

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

fn pointer_attribute(attribute: u32, address: Word) -> Result<u64, u32> {
    let mut value = 0_u64;
    match call!(cuPointerGetAttribute(&raw mut value, attribute, address)) {
        0 => Ok(value),
        error => Err(error),
    }
}

#[test]
fn the_driver_knows_its_pointers() {
    let context = Context::new();
    let (device, host, managed) =
        (context.device(5000), context.pinned(4096).as_ptr() as Word, managed(4096));
    let outside = &raw const context as Word;
    let types = [device + 8, host, managed, outside].map(|address| pointer_attribute(2, address));
    assert_eq!(types, [Ok(2), Ok(1), Ok(2), Err(1)], "memory type");
    assert_eq!([device, host, managed].map(|address| pointer_attribute(8, address)), [Ok(0), Ok(0), Ok(1)]);
    assert_eq!(pointer_attribute(1, device), Ok(context.handle));
    assert_eq!(pointer_attribute(11, device + 100), Ok(device));
    assert_eq!(pointer_attribute(12, device + 100), Ok(5000));
    assert_eq!(pointer_attribute(4, device), Err(1), "the host has no address for it");
    assert_eq!(pointer_attribute(4, host + 8), Ok(host + 8));
    assert_eq!([device, host].map(|address| pointer_attribute(18, address)), [Ok(2 << 20), Ok(2 << 20)]);
    let (mut base, mut bytes): (Word, usize) = (0, 0);
    assert_eq!(call!(cuMemGetAddressRange_v2(&raw mut base, &raw mut bytes, outside)), 500);
    assert_ne!(pointer_attribute(7, device), pointer_attribute(7, managed));

    assert_eq!(pointer_attribute(6, device), Ok(1), "on from the start, as an H200 has it");
    let off = 0_i32;
    ok!(cuPointerSetAttribute(&raw const off, 6_u32, device));
    assert_eq!(pointer_attribute(6, device), Ok(0));

    for start in [device, managed] {
        ok!(cuMemFree_v2(start));
    }
}

/// What `cuPointerGetAttributes` answers, with 0xee for what it does not write.
fn pointer_attributes<const N: usize>(asked: [u32; N], address: Word) -> Result<[u64; N], u32> {
    let mut values = [[0xee_u8; 16]; N];
    let data: Vec<*mut c_void> = values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
    match call!(cuPointerGetAttributes(N as u32, asked.as_ptr(), data.as_ptr(), address)) {
        0 => Ok(std::array::from_fn(|index| {
            let bytes = &values[index];
            let written = bytes.iter().position(|byte| *byte == 0xee).unwrap_or(16).min(8);
            bytes[..written].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        })),
        error => Err(error),
    }
}

const RESERVED_ONLY: [u32; 20] = [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21];

#[test]
fn of_an_address_with_nothing_behind_it_one_question_fails_and_a_list_is_zeros() {
    let _context = Context::new();
    let bytes = 4 * MIB;
    let mut bare: Word = 0;
    ok!(cuMemAddressReserve(&raw mut bare, bytes, 0_usize, 0_u64, 0_u64));
    let was = client::vmm(bytes);
    ok!(cuMemUnmap(was.start, bytes));
    let nobodys: Word = 0x7f00_0000_0000 - (64 << 30);
    for (at, range) in [(bare, Some(bare)), (was.start, Some(was.start)), (nobodys, None)] {
        for number in 1..=21 {
            assert_eq!(pointer_attribute(number, at), Err(1), "{number} of {at:#x}");
        }
        let mut expected = [0; 20];
        (expected[3], expected[7]) = (at, 0xffff_fffe);
        // Where nothing is reserved either, range and size are left as they were.
        (expected[9], expected[10]) = range.map_or((0, 0), |start| (start, bytes as u64));
        assert_eq!(pointer_attributes(RESERVED_ONLY, at), Ok(expected), "{at:#x}");
        assert_eq!(pointer_attributes([1, 5], at), Err(1));
        let (mut flags, mut first, mut size, mut handle): (u64, Word, usize, Word) = (0, 0, 0, 0);
        let device = [1_u32, 0];
        assert_eq!(call!(cuMemGetAccess(&raw mut flags, device.as_ptr(), at)), 1);
        assert_eq!(call!(cuMemGetAddressRange_v2(&raw mut first, &raw mut size, at)), 500);
        assert_eq!(call!(cuMemRetainAllocationHandle(&raw mut handle, at)), 1);
        let on = 1_i32;
        assert_eq!(call!(cuPointerSetAttribute(&raw const on, 6_u32, at)), 1);
        let mut value = 0_i32;
        assert_eq!(call!(cuMemRangeGetAttribute(&raw mut value, 4_usize, 1_u32, at, 2 * MIB)), 1);
        assert_eq!(call!(cuMemPrefetchAsync(at, 2 * MIB, 0_i32, 0_u64)), 1);
    }
    ok!(cuMemAddressFree(bare, bytes));
    assert_eq!(was.map(), 0);
    was.end();
}

#[test]
fn memory_that_the_application_mapped_has_the_answers_of_mapped_memory() {
    let _context = Context::new();
    let mapped = client::vmm(4 * MIB);
    let at = mapped.start;
    let one = |number| pointer_attribute(number, at + 4096);
    assert_eq!([1, 2, 3, 5, 6].map(one), [Ok(0), Ok(2), Ok(at + 4096), Ok(0), Ok(1)]);
    assert_eq!(one(4), Err(1), "the host has no address for it");
    assert_eq!([8, 9, 10, 11, 12, 13].map(one), [Ok(0), Ok(0), Ok(0), Ok(at), Ok(4 << 20), Ok(1)]);
    assert_eq!([14, 15, 16, 17, 18, 19].map(one), [Ok(0), Ok(0), Ok(3), Ok(0), Ok(4 << 20), Ok(at)]);
    assert!(one(7) > Ok(0) && one(20) > Ok(0), "numbers of the allocation and of its physical memory");
    assert_eq!(pointer_attributes([1, 2, 3, 4], at), Ok([0, 2, at, 0]));
    assert_eq!(pointer_attributes([1, 5], at), Err(1));
    let on = 1_i32;
    assert_eq!(call!(cuPointerSetAttribute(&raw const on, 6_u32, at)), 801);
    mapped.end();
}

//! Managed memory: what faults, what leaves the card, and what is advised.

#![expect(unsafe_code, reason = "managed memory, which is the host's too")]

mod client;

use std::time::{Duration, Instant};

use client::{Context, DRIVER, Word, alone, free_bytes, is_alone, managed};
use nvshare_sim_card::{Cards, Config};

const MIB: usize = 1 << 20;

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

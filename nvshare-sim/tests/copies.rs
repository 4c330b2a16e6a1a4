//! Copies and memsets: how long they take, when the call returns, and which bytes they touch.

mod client;

use std::time::Instant;

use client::{Context, DRIVER, set_flag};

const MIB: usize = 1 << 20;

/// Nanoseconds that `act` and the wait for both streams take.
fn time(streams: [u64; 2], act: impl FnOnce()) -> u128 {
    let start = Instant::now();
    act();
    for stream in streams {
        ok!(cuStreamSynchronize(stream));
    }
    start.elapsed().as_nanos()
}

#[test]
fn copies_take_the_links_time_and_the_two_ways_overlap() {
    let context = Context::new();
    let bytes = 32 * MIB;
    let (one, two) = (context.stream(1), context.stream(1));
    let (a, b) = (context.device(bytes), context.device(bytes));
    let (x, y) = (context.pinned(bytes), context.pinned(bytes));
    x.fill(1);
    y.fill(2);
    ok!(cuMemsetD8Async(b, 3_u8, bytes, two));
    ok!(cuStreamSynchronize(two));
    let expected = bytes as u128; // 1 GB/s
    let in_ = time([one, two], || ok!(cuMemcpyHtoDAsync_v2(a, x.as_ptr(), bytes, one)));
    let both = time([one, two], || {
        ok!(cuMemcpyHtoDAsync_v2(a, x.as_ptr(), bytes, one));
        ok!(cuMemcpyDtoHAsync_v2(y.as_mut_ptr(), b, bytes, two));
    });
    assert!(in_ >= expected, "{in_} ns for {bytes} bytes at 1 GB/s");
    assert!(both < expected * 19 / 10, "{both} ns both ways, {in_} ns one way");
    assert!(y.iter().all(|word| *word == 0x0303_0303_0303_0303));
    ok!(cuMemcpyDtoH_v2(y.as_mut_ptr(), a, bytes));
    assert!(y.iter().all(|word| *word == 1));
    // Two copies in one direction share it.
    let shared = time([one, two], || {
        ok!(cuMemcpyHtoDAsync_v2(a, x.as_ptr(), bytes, one));
        ok!(cuMemcpyHtoDAsync_v2(b, x.as_ptr(), bytes, two));
    });
    assert!(shared >= expected * 2, "{shared} ns for twice {bytes} bytes");
}

#[test]
fn pageable_memory_is_copied_at_half_the_speed_and_before_the_call_returns() {
    let context = Context::new();
    let (bytes, stream) = (16 * MIB, context.stream(1));
    let (device, mut host) = (context.device(bytes), vec![7_u64; bytes / 8]);
    let start = Instant::now();
    ok!(cuMemcpyHtoDAsync_v2(device, host.as_ptr(), bytes, stream));
    assert!(start.elapsed().as_nanos() >= 2 * bytes as u128);
    host.fill(8);
    ok!(cuMemcpyDtoHAsync_v2(host.as_mut_ptr(), device, bytes, stream));
    assert!(host.iter().all(|word| *word == 7), "it is there when the call returns");
    // A little is taken at the call and copied later.
    let flag = context.pinned(4096);
    flag[0] = 0;
    assert_eq!(context.launch(stream, "nvshare_wait_flag", &[flag.as_ptr() as u64]), 0);
    let mut small = [1_u64; 16];
    ok!(cuMemcpyHtoDAsync_v2(device, small.as_ptr(), 128_usize, stream));
    small.fill(2);
    set_flag(flag);
    ok!(cuMemcpyDtoHAsync_v2(small.as_mut_ptr(), device, 128_usize, stream));
    assert_eq!(small, [1; 16]);
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn copies_in_two_dimensions_leave_what_is_between_the_rows() {
    #[repr(C)]
    struct End {
        x: usize,
        y: usize,
        kind: u32,
        host: *mut u8,
        device: u64,
        array: u64,
        pitch: usize,
    }
    #[repr(C)]
    struct Copy {
        from: End,
        to: End,
        width: usize,
        height: usize,
    }
    let context = Context::new();
    let device = context.device(4096);
    let mut host: Vec<u8> = (0..64).collect();
    ok!(cuMemsetD8_v2(device, 0xee_u8, 4096_usize));
    let at_host =
        |host: &mut [u8], x, y| End { x, y, kind: 1, host: host.as_mut_ptr(), device: 0, array: 0, pitch: 8 };
    let at_device = |x, y| End { x, y, kind: 2, host: std::ptr::null_mut(), device, array: 0, pitch: 32 };
    let copy = Copy { from: at_host(&mut host, 1, 1), to: at_device(2, 1), width: 3, height: 4 };
    ok!(cuMemcpy2D_v2(&raw const copy));
    let mut found = [0_u8; 160];
    ok!(cuMemcpyDtoH_v2(found.as_mut_ptr(), device, 160_usize));
    for (index, byte) in found.iter().enumerate() {
        let (x, y) = (index % 32, index / 32);
        let copied = (2..5).contains(&x) && (1..5).contains(&y);
        let expected = if copied { ((y - 1 + 1) * 8 + x - 2 + 1) as u8 } else { 0xee };
        assert_eq!(*byte, expected, "row {y}, column {x}");
    }
    let back = Copy { from: at_device(2, 1), to: at_host(&mut host, 5, 4), width: 3, height: 2 };
    ok!(cuMemcpy2DUnaligned_v2(&raw const back));
    assert_eq!(host[37..40], [9, 10, 11]);
    assert_eq!(host[45..48], [17, 18, 19]);
}

#[test]
fn memsets_write_elements_of_every_size() {
    let context = Context::new();
    let device = context.device(4096);
    ok!(cuMemsetD32_v2(device, 0x0102_0304_u32, 1024_usize));
    ok!(cuMemsetD16_v2(device + 8, 0xa0b0_u16, 3_usize));
    ok!(cuMemsetD8_v2(device + 15, 0xff_u8, 1_usize));
    ok!(cuMemsetD2D32_v2(device + 64, 64_usize, 0_u32, 2_usize, 3_usize));
    let mut found = [0_u32; 64];
    ok!(cuMemcpyDtoH_v2(found.as_mut_ptr(), device, 256_usize));
    assert_eq!(found[..4], [0x0102_0304, 0x0102_0304, 0xa0b0_a0b0, 0xff02_a0b0]);
    for (index, word) in found.iter().enumerate().skip(16) {
        let zero = matches!(index, 16 | 17 | 32 | 33 | 48 | 49);
        assert_eq!(*word, if zero { 0 } else { 0x0102_0304 }, "{index}");
    }
    assert_eq!(call!(cuMemsetD32_v2(device + 2, 0_u32, 1_usize)), 1, "an address that is not aligned");
}

//! What the driver says about pointers: into memory of all kinds, and to where nothing is.

mod client;

use std::ffi::c_void;

use client::{Context, Word, managed};

const MIB: usize = 1 << 20;

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

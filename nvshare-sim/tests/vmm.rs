//! Virtual memory: the header's rules, and what the strict simulator says about work on unmapped memory.

#![expect(unsafe_code, reason = "a descriptor that the driver gave")]

mod client;

use std::ffi::c_void;

use client::{Context, DRIVER, Word, alone, is_alone};

const BLOCK: usize = 2 << 20;
const READ_WRITE: u32 = 3;

#[repr(C)]
struct Properties {
    kind: u32,
    handle_types: u32,
    location: [i32; 2],
    win32: *mut c_void,
    flags: [u8; 8],
}

#[repr(C)]
struct Grant {
    location: [i32; 2],
    flags: u32,
}

fn properties() -> Properties {
    Properties { kind: 1, handle_types: 1, location: [1, 0], win32: std::ptr::null_mut(), flags: [0; 8] }
}

fn try_create(bytes: usize, properties: &Properties) -> (u32, Word) {
    let mut handle = 0;
    let result = call!(cuMemCreate(&raw mut handle, bytes, std::ptr::from_ref(properties), 0_u64));
    (result, handle)
}

fn create(bytes: usize) -> Word {
    let (result, handle) = try_create(bytes, &properties());
    assert_eq!(result, 0, "cuMemCreate of {bytes}");
    handle
}

fn reserve(bytes: usize) -> Word {
    let mut start: Word = 0;
    ok!(cuMemAddressReserve(&raw mut start, bytes, 0_usize, 0_u64, 0_u64));
    start
}

fn map(start: Word, bytes: usize, handle: Word) -> u32 {
    call!(cuMemMap(start, bytes, 0_usize, handle, 0_u64))
}

fn grant(start: Word, bytes: usize, flags: u32) -> u32 {
    let grant = Grant { location: [1, 0], flags };
    call!(cuMemSetAccess(start, bytes, &raw const grant, 1_usize))
}

fn unmap(start: Word, bytes: usize) -> u32 {
    call!(cuMemUnmap(start, bytes))
}

fn free_bytes() -> usize {
    let (mut free, mut total) = (0_usize, 0_usize);
    ok!(cuMemGetInfo_v2(&raw mut free, &raw mut total));
    assert!(free <= total);
    free
}

/// Copies words in, and answers what the call says.
fn write(start: Word, words: &[u64]) -> u32 {
    call!(cuMemcpyHtoD_v2(start, words.as_ptr(), size_of_val(words)))
}

fn read(start: Word, count: usize) -> Vec<u64> {
    let mut words = vec![0; count];
    ok!(cuMemcpyDtoH_v2(words.as_mut_ptr(), start, count * 8));
    words
}

#[test]
fn physical_memory_keeps_its_bytes_wherever_it_is_mapped() {
    let _context = Context::new();
    let before = free_bytes();
    let (start, handle) = (reserve(4 * BLOCK), create(BLOCK));
    assert_eq!(map(start, BLOCK, handle), 0);
    assert_eq!(grant(start, BLOCK, READ_WRITE), 0);
    assert_eq!(write(start + 8, &[11, 22]), 0);
    assert_eq!(unmap(start, BLOCK), 0);
    assert_eq!(map(start + 2 * BLOCK as Word, BLOCK, handle), 0);
    assert_eq!(grant(start + 2 * BLOCK as Word, BLOCK, READ_WRITE), 0);
    assert_eq!(read(start + 2 * BLOCK as Word + 8, 2), [11, 22]);
    assert_eq!(free_bytes(), before - BLOCK);
    ok!(cuMemRelease(handle));
    assert_eq!(free_bytes(), before - BLOCK, "still mapped");
    assert_eq!(unmap(start + 2 * BLOCK as Word, BLOCK), 0);
    assert_eq!(free_bytes(), before);
    ok!(cuMemAddressFree(start, 4 * BLOCK));
}

#[test]
fn one_access_covers_a_range_of_several_handles() {
    let _context = Context::new();
    let start = reserve(3 * BLOCK);
    for index in 0..3 {
        let handle = create(BLOCK);
        assert_eq!(map(start + (index * BLOCK) as Word, BLOCK, handle), 0);
        ok!(cuMemRelease(handle));
    }
    assert_eq!(grant(start, 3 * BLOCK, READ_WRITE), 0);
    let across: Vec<u64> = (0..BLOCK as u64 / 4).collect();
    assert_eq!(write(start + BLOCK as Word - 64, &across), 0);
    assert_eq!(read(start + BLOCK as Word - 64, across.len()), across);
    assert_eq!(unmap(start, 3 * BLOCK), 0);
    ok!(cuMemAddressFree(start, 3 * BLOCK));
}

#[test]
fn calls_against_the_rules_are_refused() {
    let _context = Context::new();
    let start = reserve(4 * BLOCK);
    let handle = create(2 * BLOCK);
    let mut odd: Word = 0;
    assert_eq!(
        call!(cuMemAddressReserve(&raw mut odd, BLOCK + 4096, 0_usize, 0_u64, 0_u64)),
        1,
        "not whole blocks"
    );
    assert_eq!(call!(cuMemAddressReserve(&raw mut odd, BLOCK, 3_usize, 0_u64, 0_u64)), 1, "no alignment");
    assert_eq!(try_create(BLOCK / 2, &properties()).0, 1, "not a multiple of the granularity");
    assert_eq!(try_create(0, &properties()).0, 1);
    assert_eq!(try_create(BLOCK, &Properties { location: [1, 99], ..properties() }).0, 101, "no such device");
    assert_eq!(try_create(BLOCK, &Properties { location: [3, 0], ..properties() }).0, 801, "host memory");
    assert_eq!(try_create(1 << 40, &properties()).0, 2, "more than the card");
    assert_eq!(map(start, BLOCK, handle), 801, "a part of the handle");
    assert_eq!(map(start + 4096, 2 * BLOCK, handle), 1, "not aligned");
    assert_eq!(unmap(start, 4 * BLOCK), 0, "nothing is mapped");
    assert_eq!(map(start + 3 * BLOCK as Word, 2 * BLOCK, handle), 1, "over the end of the reservation");
    assert_eq!(map(start, 2 * BLOCK, handle + 1), 1, "no such handle");
    assert_eq!(grant(start, 2 * BLOCK, READ_WRITE), 1, "nothing is mapped");
    assert_eq!(map(start, 2 * BLOCK, handle), 0);
    assert_eq!(map(start + BLOCK as Word, 2 * BLOCK, handle), 1, "mapped already");
    assert_eq!(grant(start, 3 * BLOCK, READ_WRITE), 1, "not all is mapped");
    assert_eq!(grant(start, 2 * BLOCK, 2), 1, "no such access");
    assert_eq!(unmap(start, BLOCK), 1, "a part of the mapping");
    assert_eq!(call!(cuMemAddressFree(start, 4 * BLOCK)), 1, "something is mapped");
    assert_eq!(unmap(start, 2 * BLOCK), 0);
    assert_eq!(call!(cuMemAddressFree(start, 2 * BLOCK)), 1, "another size than was reserved");
    ok!(cuMemRelease(handle));
    assert_eq!(call!(cuMemRelease(handle)), 1, "released already");
    assert_eq!(map(start, 2 * BLOCK, handle), 1, "released");
    ok!(cuMemAddressFree(start, 4 * BLOCK));
    assert_eq!(DRIVER.violations(), Vec::<String>::new());
}

#[test]
fn a_hint_is_followed_where_it_is_free() {
    let _context = Context::new();
    let start = reserve(BLOCK);
    ok!(cuMemAddressFree(start, BLOCK));
    let mut again: Word = 0;
    ok!(cuMemAddressReserve(&raw mut again, BLOCK, 0_usize, start, 0_u64));
    assert_eq!(again, start);
    let mut other: Word = 0;
    ok!(cuMemAddressReserve(&raw mut other, BLOCK, 64 * BLOCK, start, 0_u64));
    assert_ne!(other, start);
    assert!(other.is_multiple_of(64 * BLOCK as Word));
    ok!(cuMemAddressFree(again, BLOCK));
    ok!(cuMemAddressFree(other, BLOCK));
}

#[test]
fn a_retained_handle_is_the_one_that_was_mapped() {
    let _context = Context::new();
    let before = free_bytes();
    let (start, handle) = (reserve(BLOCK), create(BLOCK));
    assert_eq!(map(start, BLOCK, handle), 0);
    ok!(cuMemRelease(handle));
    let mut retained: Word = 0;
    ok!(cuMemRetainAllocationHandle(&raw mut retained, start + 4096));
    assert_eq!(retained, handle);
    let mut known = Properties { kind: 0, handle_types: 0, location: [0, 9], ..properties() };
    ok!(cuMemGetAllocationPropertiesFromHandle(&raw mut known, retained));
    assert_eq!((known.kind, known.handle_types, known.location), (1, 1, [1, 0]));
    assert_eq!(unmap(start, BLOCK), 0);
    assert_eq!(free_bytes(), before - BLOCK);
    ok!(cuMemRelease(retained));
    assert_eq!(free_bytes(), before);
    assert_eq!(call!(cuMemRetainAllocationHandle(&raw mut retained, start)), 1, "not mapped");
    ok!(cuMemAddressFree(start, BLOCK));
}

#[test]
fn exported_memory_is_the_same_memory_where_it_is_imported() {
    let _context = Context::new();
    let (start, handle) = (reserve(2 * BLOCK), create(BLOCK));
    assert_eq!(map(start, BLOCK, handle), 0);
    assert_eq!(grant(start, BLOCK, READ_WRITE), 0);
    assert_eq!(write(start, &[77]), 0);
    let mut descriptor = -1_i32;
    ok!(cuMemExportToShareableHandle(&raw mut descriptor, handle, 1_u32, 0_u64));
    assert_eq!(unmap(start, BLOCK), 0);
    ok!(cuMemRelease(handle));
    let mut imported: Word = 0;
    ok!(cuMemImportFromShareableHandle(&raw mut imported, descriptor as usize as *mut c_void, 1_u32));
    // SAFETY: the descriptor that the export gave to this test.
    assert_eq!(unsafe { libc::close(descriptor) }, 0);
    assert_eq!(map(start + BLOCK as Word, BLOCK, imported), 0);
    assert_eq!(grant(start + BLOCK as Word, BLOCK, READ_WRITE), 0);
    assert_eq!(read(start + BLOCK as Word, 1), [77]);
    assert_eq!(unmap(start + BLOCK as Word, BLOCK), 0);
    ok!(cuMemRelease(imported));
    ok!(cuMemAddressFree(start, 2 * BLOCK));

    let private = Properties { handle_types: 0, ..properties() };
    let (_, handle) = try_create(BLOCK, &private);
    assert_eq!(call!(cuMemExportToShareableHandle(&raw mut descriptor, handle, 1_u32, 0_u64)), 1);
    ok!(cuMemRelease(handle));
}

/// What `misuse` does ends its context: each in a process of its own. The complaint is answered.
fn complaint(name: &str, misuse: impl FnOnce(&Context) -> u32) -> Option<String> {
    if !is_alone() {
        return Some(alone(name, &[]));
    }
    let context = std::mem::ManuallyDrop::new(Context::new());
    assert_eq!(misuse(&context), 700, "cudaErrorIllegalAddress");
    let mut free = 0_usize;
    assert_eq!(call!(cuMemGetInfo_v2(&raw mut free, &raw mut free)), 700, "and it stays");
    None
}

#[test]
fn a_copy_to_memory_without_access_is_an_illegal_address() {
    let said = complaint("a_copy_to_memory_without_access_is_an_illegal_address", |_| {
        let start = reserve(BLOCK);
        assert_eq!(map(start, BLOCK, create(BLOCK)), 0);
        write(start, &[1])
    });
    assert!(said.is_none_or(|said| said.contains("device 0 has no access to")));
}

#[test]
fn a_write_to_memory_that_may_only_be_read_is_an_illegal_address() {
    let said = complaint("a_write_to_memory_that_may_only_be_read_is_an_illegal_address", |_| {
        let start = reserve(BLOCK);
        assert_eq!(map(start, BLOCK, create(BLOCK)), 0);
        assert_eq!(grant(start, BLOCK, 1), 0);
        read(start, 1);
        write(start, &[1])
    });
    assert!(said.is_none_or(|said| said.contains("device 0 may only read")));
}

#[test]
fn a_kernel_on_unmapped_memory_is_an_illegal_address() {
    let said = complaint("a_kernel_on_unmapped_memory_is_an_illegal_address", |context| {
        let start = reserve(BLOCK);
        assert_eq!(context.launch(0, "nvshare_store", &[start, 8, 1]), 0);
        call!(cuCtxSynchronize())
    });
    assert!(said.is_none_or(|said| said.contains("nothing is mapped at")));
}

#[test]
fn unmapping_under_a_running_kernel_is_reported_with_what_and_where() {
    let said = complaint("unmapping_under_a_running_kernel_is_reported_with_what_and_where", |context| {
        let start = reserve(BLOCK);
        assert_eq!(map(start, BLOCK, create(BLOCK)), 0);
        assert_eq!(grant(start, BLOCK, READ_WRITE), 0);
        assert_eq!(context.launch(0, "nvshare_store_late", &[start, 8, 1, 200_000_000]), 0);
        assert_eq!(unmap(start, BLOCK), 0);
        call!(cuCtxSynchronize())
    });
    assert!(said.is_none_or(|said| said.contains("cuMemUnmap of 0x")
        && said.contains("+2MiB: kernel `nvshare_store_late`")
        && said.contains("still uses it")));
}

#[test]
fn a_handle_that_is_lost_is_reported_at_the_end() {
    let name = "a_handle_that_is_lost_is_reported_at_the_end";
    if is_alone() {
        let _context = Context::new();
        create(BLOCK);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        return;
    }
    let said = alone(name, &[]);
    assert!(said.contains("of 2MiB is neither released nor mapped at the end"), "{said}");
}

#[test]
fn a_create_fails_when_it_is_asked_to() {
    let name = "a_create_fails_when_it_is_asked_to";
    if !is_alone() {
        alone(name, &[("NVSHARE_SIM_FAULTS", "create:2=oom")]);
        return;
    }
    let _context = Context::new();
    let results = [(); 3].map(|()| try_create(BLOCK, &properties()));
    assert_eq!(results.map(|(result, _)| result), [0, 2, 0]);
    ok!(cuMemRelease(results[0].1));
    ok!(cuMemRelease(results[2].1));
}

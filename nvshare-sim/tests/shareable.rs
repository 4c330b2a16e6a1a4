//! Pools and physical memory that processes share by descriptors: each test with another process on the same card.

mod client;

use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};

use client::peer::{self, Peer, Ticket, byte, fill, is_known, only_violation, range, until_free};
use client::{Context, DRIVER, Word, alone, free_bytes, is_alone};

const MIB: usize = 1 << 20;
const INVALID_VALUE: u32 = 1;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`.
const LAZY: u32 = 1;

/// Not a test of its own: what the other process does.
#[test]
fn role() {
    peer::obey();
}

fn imported_pool(descriptor: &OwnedFd) -> Word {
    let mut pool = 0;
    let shareable = descriptor.as_raw_fd() as usize as *mut c_void;
    ok!(cuMemPoolImportFromShareableHandle(&raw mut pool, shareable, 1_u32, 0_u64));
    pool
}

fn imported(pool: Word, mut ticket: Ticket) -> (u32, Word) {
    let mut start = 0;
    (call!(cuMemPoolImportPointer(&raw mut start, pool, &raw mut ticket)), start)
}

#[test]
fn pieces_of_an_exported_pool_are_imported_and_freed() {
    let context = Context::new();
    let before = free_bytes();
    let mut peer = Peer::start();
    let theirs = peer.ask("pool", &[1]);
    let piece = peer.ask("piece", &[theirs, 1 << 20, 3]);
    let pool = imported_pool(&peer.descriptor("export-pool", theirs));
    let ticket = peer.ticket("piece-handle", piece);
    let (answer, ours) = imported(pool, ticket);
    assert_eq!((answer, byte(ours), range(ours)), (0, 3, (ours, MIB)));
    fill(ours, 4, 1);
    assert_eq!(peer.ask("byte", &[piece]), 4);
    let mut start = 0_u64;
    assert_eq!(call!(cuMemAllocFromPoolAsync(&raw mut start, 4096_usize, pool, 0_u64)), INVALID_VALUE);
    assert_eq!(call!(cuDeviceSetMemPool(0_i32, pool)), INVALID_VALUE);
    assert_eq!(call!(cuIpcCloseMemHandle(ours)), INVALID_VALUE, "it is freed, not closed");
    let opened = call!(cuIpcOpenMemHandle_v2(&raw mut start, ticket, LAZY));
    assert_eq!(opened, INVALID_VALUE, "nor is it a handle of the other kind");
    assert_eq!(imported(pool, ticket), (0, ours), "again it is the same");
    ok!(cuMemFreeAsync(ours, context.stream(1)));
    ok!(cuCtxSynchronize());
    assert!(!is_known(ours), "and the first free takes it away");
    let (answer, ours) = imported(pool, ticket);
    assert_eq!((answer, byte(ours)), (0, 4));
    ok!(cuMemFree_v2(ours));
    assert_eq!(call!(cuMemFree_v2(ours)), INVALID_VALUE);
    assert_eq!(peer.ask("free-piece", &[piece]), 0);
    ok!(cuMemPoolDestroy(pool));
    drop(peer);
    until_free(before);
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn large_pieces_of_an_exported_pool_are_imported_whole() {
    let _context = Context::new();
    let mut peer = Peer::start();
    let theirs = peer.ask("pool", &[1]);
    let sizes = [20_u64, 20, 40];
    let pieces = sizes.map(|mib| peer.ask("piece", &[theirs, mib << 20, mib]));
    let pool = imported_pool(&peer.descriptor("export-pool", theirs));
    for (piece, mib) in pieces.into_iter().zip(sizes) {
        let (answer, ours) = imported(pool, peer.ticket("piece-handle", piece));
        assert_eq!((answer, byte(ours), byte(ours + (mib << 20) - 1)), (0, mib as u8, mib as u8));
        ok!(cuMemFree_v2(ours));
    }
    ok!(cuMemPoolDestroy(pool));
}

#[test]
fn a_piece_is_imported_from_its_own_pool_in_another_process_only() {
    let _context = Context::new();
    let mut peer = Peer::start();
    let theirs = [peer.ask("pool", &[1]), peer.ask("pool", &[1])];
    let piece = peer.ask("piece", &[theirs[0], 4096, 3]);
    assert_eq!(peer.tell("piece-handle", &[piece])[0], 1, "its pool is not exported yet");
    let pools = theirs.map(|pool| imported_pool(&peer.descriptor("export-pool", pool)));
    let ticket = peer.ticket("piece-handle", piece);
    assert_eq!(peer.tell("piece-handle", &[piece + 512])[0], 1, "not its first address");
    let mut again = -1_i32;
    let exported = call!(cuMemPoolExportToShareableHandle(&raw mut again, pools[0], 1_u32, 0_u64));
    assert_eq!(exported, INVALID_VALUE, "it is another process's");
    assert_eq!(imported(pools[1], ticket).0, INVALID_VALUE);
    assert_eq!(imported(pools[0], Ticket::NONE).0, INVALID_VALUE);
    let closed = peer.ask("pool", &[0]);
    let piece = peer.ask("piece", &[closed, 4096, 3]);
    assert_eq!(peer.tell("piece-handle", &[piece])[0], 1, "its pool is not to be exported");
    let (mut pool, mut descriptor) = (0_u64, -1_i32);
    ok!(cuDeviceGetDefaultMemPool(&raw mut pool, 0_i32));
    let exported = call!(cuMemPoolExportToShareableHandle(&raw mut descriptor, pool, 1_u32, 0_u64));
    assert_eq!(exported, INVALID_VALUE);
    assert_eq!(imported(pool, ticket).0, INVALID_VALUE, "it was not imported");
    let (file, mut pool) = (std::fs::File::open("/proc/self/exe").expect("this executable"), 0_u64);
    let shareable = file.as_raw_fd() as usize as *mut c_void;
    let made = call!(cuMemPoolImportFromShareableHandle(&raw mut pool, shareable, 1_u32, 0_u64));
    assert_eq!(made, INVALID_VALUE);
}

#[test]
fn a_piece_that_is_freed_before_those_who_imported_it_freed_it_is_a_violation() {
    if !is_alone() {
        alone("a_piece_that_is_freed_before_those_who_imported_it_freed_it_is_a_violation", &[]);
        return;
    }
    let _context = Context::new();
    let mut peer = Peer::start();
    let theirs = peer.ask("pool", &[1]);
    let piece = peer.ask("piece", &[theirs, 1 << 20, 3]);
    let pool = imported_pool(&peer.descriptor("export-pool", theirs));
    let ticket = peer.ticket("piece-handle", piece);
    let (_, ours) = imported(pool, ticket);
    assert_eq!(peer.ask("free-piece", &[piece]), 0);
    assert_eq!(peer.ask("finish", &[]), 0);
    assert_eq!(byte(ours), 3, "the old bytes");
    assert!(only_violation().contains("1MiB was freed, and 1 other processes have it open"));
    let again = peer.ask("piece", &[theirs, 1 << 20, 9]);
    assert_ne!(peer.ticket("piece-handle", again), ticket);
    assert_eq!(imported(pool, ticket).0, 0, "what is open here is");
    ok!(cuMemFree_v2(ours));
    assert_eq!(imported(pool, ticket).0, INVALID_VALUE);
}

fn import(descriptor: &OwnedFd) -> Word {
    let mut handle = 0;
    let shareable = descriptor.as_raw_fd() as usize as *mut c_void;
    ok!(cuMemImportFromShareableHandle(&raw mut handle, shareable, 1_u32));
    handle
}

#[test]
fn physical_memory_outlives_its_process_in_a_descriptor_and_each_import_is_a_handle_of_its_own() {
    let _context = Context::new();
    let before = free_bytes();
    let mut peer = Peer::start();
    let descriptor = peer.descriptor("export", 6);
    peer.kill();
    until_free(before - 2 * MIB);
    let handles = [import(&descriptor), import(&descriptor)];
    assert_ne!(handles[0], handles[1]);
    let (mut again, mut properties) = (-1_i32, [0_u32; 8]);
    ok!(cuMemGetAllocationPropertiesFromHandle(properties.as_mut_ptr(), handles[0]));
    assert_eq!(properties, [1, 0, 1, 0, 0, 0, 0, 0], "an imported handle is not for export");
    let exported = call!(cuMemExportToShareableHandle(&raw mut again, handles[0], 1_u32, 0_u64));
    assert_eq!(exported, INVALID_VALUE);
    drop(descriptor);
    let mut places = [0; 2];
    for (place, handle) in places.iter_mut().zip(handles) {
        ok!(cuMemAddressReserve(&raw mut *place, 2 * MIB, 0_usize, 0_u64, 0_u64));
        ok!(cuMemMap(*place, 2 * MIB, 0_usize, handle, 0_u64));
        ok!(cuMemSetAccess(*place, 2 * MIB, [1_u32, 0, 3].as_ptr(), 1_usize));
    }
    fill(places[0] + 1, 7, 1);
    assert_eq!(places.map(byte), [6, 6]);
    assert_eq!(byte(places[1] + 1), 7, "both are the same memory");
    for (place, handle) in places.into_iter().zip(handles) {
        let mut retained = 0_u64;
        ok!(cuMemRetainAllocationHandle(&raw mut retained, place as *mut c_void));
        assert_eq!(retained, handle);
        ok!(cuMemRelease(retained));
        assert_eq!(free_bytes(), before - 2 * MIB);
        ok!(cuMemUnmap(place, 2 * MIB));
        ok!(cuMemRelease(handle));
        assert_eq!(call!(cuMemRelease(handle)), INVALID_VALUE);
        ok!(cuMemAddressFree(place, 2 * MIB));
    }
    assert_eq!(free_bytes(), before);
}

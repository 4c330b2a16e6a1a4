//! Memory and events that processes share by handles of 64 bytes: each test with another process on the same card.

mod client;

use std::time::{Duration, Instant};

use client::peer::{self, Peer, Ticket, byte, fill, is_known, only_violation, range, until_free};
use client::{Context, DRIVER, Word, alone, free_bytes, is_alone};

const MIB: usize = 1 << 20;
const INVALID_VALUE: u32 = 1;
const NO_CONTEXT: u32 = 201;
const ALREADY_MAPPED: u32 = 208;
const INVALID_HANDLE: u32 = 400;
const CAPTURED_EVENT: u32 = 907;
const NOT_READY: u32 = 600;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`.
const LAZY: u32 = 1;

/// Not a test of its own: what the other process does.
#[test]
fn role() {
    peer::obey();
}

fn open(ticket: Ticket) -> (u32, Word) {
    let mut start = 0;
    (call!(cuIpcOpenMemHandle_v2(&raw mut start, ticket, LAZY)), start)
}

fn opened(ticket: Ticket) -> Word {
    let (answer, start) = open(ticket);
    assert_eq!(answer, 0);
    start
}

fn handle_of(address: Word) -> u32 {
    let mut ticket = Ticket::NONE;
    call!(cuIpcGetMemHandle(&raw mut ticket, address))
}

#[test]
fn two_processes_see_what_either_writes_into_shared_memory() {
    let _context = Context::new();
    let mut peer = Peer::start();
    let theirs = peer.ask("allocate", &[4 << 20, 7]);
    let (ticket, before) = (peer.ticket("handle", theirs), free_bytes());
    assert_eq!(peer.ticket("handle", theirs), ticket, "the same each time");
    assert_eq!(peer.ticket("handle", theirs + 4096), ticket, "of the whole allocation");
    let ours = opened(ticket);
    assert_eq!((byte(ours), byte(ours + (4 << 20) - 1), range(ours + 9)), (7, 7, (ours, 4 * MIB)));
    fill(ours + 1, 8, 1);
    assert_eq!(peer.ask("byte", &[theirs + 1]), 8);
    assert_eq!(free_bytes(), before, "it takes nothing more of the card");
    assert_eq!(opened(ticket), ours, "once more");
    assert_eq!(call!(cuMemFree_v2(ours)), INVALID_VALUE, "it is closed, not freed");
    assert_eq!(handle_of(ours), INVALID_VALUE, "nor handed on");
    ok!(cuIpcCloseMemHandle(ours));
    assert_eq!(byte(ours), 7);
    assert_eq!(call!(cuIpcCloseMemHandle(ours + 512)), INVALID_VALUE, "not its first address");
    ok!(cuIpcCloseMemHandle(ours));
    assert!(!is_known(ours));
    assert_eq!(call!(cuIpcCloseMemHandle(ours)), INVALID_VALUE);
    assert_eq!(peer.ask("free", &[theirs]), 0);
    until_free(before + 4 * MIB);
    assert_eq!(open(ticket).0, INVALID_VALUE, "it is gone");
    let again = peer.ask("allocate", &[4 << 20, 9]);
    assert_ne!(peer.ticket("handle", again), ticket);
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn small_pieces_have_handles_of_their_own_and_each_is_opened_alone() {
    let _context = Context::new();
    let mut peer = Peer::start();
    let theirs = [1, 2].map(|value| peer.ask("allocate", &[1000, value]));
    let tickets = theirs.map(|piece| peer.ticket("handle", piece));
    assert_ne!(tickets[0], tickets[1]);
    let ours = tickets.map(opened);
    assert_eq!((ours.map(byte), range(ours[1])), ([1, 2], (ours[1], 1000)));
    assert_eq!(ours[1].wrapping_sub(ours[0]), theirs[1].wrapping_sub(theirs[0]), "as they lie at home");
    ok!(cuIpcCloseMemHandle(ours[0]));
    assert_eq!((is_known(ours[0]), byte(ours[1])), (false, 2), "the other one stays");
    ok!(cuIpcCloseMemHandle(ours[1]));
    for piece in theirs {
        assert_eq!(peer.ask("free", &[piece]), 0);
    }
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn what_cu_mem_alloc_did_not_make_has_no_handle() {
    let context = Context::new();
    let plain = context.device(4096);
    assert_eq!(handle_of(plain), 0);
    let mut pooled = 0_u64;
    ok!(cuMemAllocAsync(&raw mut pooled, 4096_usize, 0_u64));
    let mapped = client::vmm(2 * MIB);
    let pinned = context.pinned(4096).as_ptr() as Word;
    for address in [pooled, mapped.start, pinned, client::managed(4096), 0, plain + 4096] {
        assert_eq!(handle_of(address), INVALID_VALUE, "{address:#x}");
    }
    ok!(cuMemFree_v2(plain));
    assert_eq!(handle_of(plain), INVALID_VALUE, "it was freed");
    mapped.end();
}

#[test]
fn a_handle_is_opened_elsewhere_in_a_context_and_for_access_by_peers() {
    let context = Context::new();
    let (own, mut ticket, mut start) = (context.device(4096), Ticket::NONE, 0_u64);
    assert_eq!(open(Ticket::NONE).0, INVALID_VALUE, "it is no handle");
    ok!(cuIpcGetMemHandle(&raw mut ticket, own));
    assert_eq!(open(ticket).0, NO_CONTEXT, "it is this process's own");
    assert_eq!(call!(cuIpcCloseMemHandle(own)), INVALID_VALUE);
    let mut peer = Peer::start();
    let theirs = peer.ask("allocate", &[4096, 1]);
    let ticket = peer.ticket("handle", theirs);
    assert_eq!(call!(cuIpcOpenMemHandle_v2(&raw mut start, ticket, 0_u32)), INVALID_VALUE);
    let nobody = std::thread::spawn(move || (open(ticket).0, call!(cuIpcCloseMemHandle(own))));
    assert_eq!(nobody.join().expect("the thread"), (NO_CONTEXT, NO_CONTEXT));
}

#[test]
fn of_a_process_one_context_of_a_device_opens_handles() {
    let context = Context::new();
    let mut peer = Peer::start();
    let theirs = [1, 2].map(|value| peer.ask("allocate", &[4096, value]));
    let tickets = theirs.map(|piece| peer.ticket("handle", piece));
    let (ours, mut second) = (opened(tickets[0]), 0_u64);
    ok!(cuCtxCreate_v2(&raw mut second, 0_u32, 0_i32));
    assert_eq!(open(tickets[0]).0, INVALID_HANDLE);
    assert_eq!(open(tickets[1]).0, INVALID_HANDLE, "another one of that process, too");
    assert_eq!(byte(ours), 1, "what is open is used in all contexts");
    ok!(cuIpcCloseMemHandle(ours));
    let ours = opened(tickets[1]);
    ok!(cuCtxDestroy_v2(second));
    assert!(!is_known(ours), "it was closed with its context");
    ok!(cuCtxSetCurrent(context.handle));
    ok!(cuIpcCloseMemHandle(opened(tickets[0])));
    for piece in theirs {
        assert_eq!(peer.ask("free", &[piece]), 0);
    }
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn memory_that_is_freed_while_it_is_open_elsewhere_is_a_violation_and_stays_there() {
    if !is_alone() {
        alone("memory_that_is_freed_while_it_is_open_elsewhere_is_a_violation_and_stays_there", &[]);
        return;
    }
    let _context = Context::new();
    let mut peer = Peer::start();
    let before = free_bytes();
    let theirs = peer.ask("allocate", &[4 << 20, 5]);
    let ticket = peer.ticket("handle", theirs);
    let ours = opened(ticket);
    assert_eq!(peer.ask("free", &[theirs]), 0);
    assert!(only_violation().contains("4MiB was freed, and 1 other processes have it open"));
    assert_eq!((opened(ticket), byte(ours)), (ours, 5), "once more");
    ok!(cuIpcCloseMemHandle(ours));
    assert_eq!((byte(ours), free_bytes()), (5, before - 4 * MIB));
    ok!(cuIpcCloseMemHandle(ours));
    assert_eq!((free_bytes(), open(ticket).0), (before, INVALID_VALUE));
}

#[test]
fn a_place_where_something_old_is_still_open_is_not_opened_anew() {
    if !is_alone() {
        alone("a_place_where_something_old_is_still_open_is_not_opened_anew", &[]);
        return;
    }
    let _context = Context::new();
    let mut peer = Peer::start();
    let theirs = [1, 2].map(|value| peer.ask("allocate", &[1000, value]));
    let old = opened(peer.ticket("handle", theirs[0]));
    assert_eq!(peer.ask("free", &[theirs[0]]), 0);
    assert_eq!(peer.ask("allocate", &[1000, 3]), theirs[0]);
    let ticket = peer.ticket("handle", theirs[0]);
    assert_eq!(open(ticket).0, ALREADY_MAPPED);
    ok!(cuIpcCloseMemHandle(old));
    assert_eq!(byte(opened(ticket)), 3);
}

#[test]
fn closing_waits_for_the_work_of_its_context() {
    let context = Context::new();
    let mut peer = Peer::start();
    let theirs = peer.ask("allocate", &[4096, 0]);
    let ours = opened(peer.ticket("handle", theirs));
    let begun = Instant::now();
    assert_eq!(context.launch(context.stream(1), "nvshare_store_late", &[ours, 1, 3, 50_000_000]), 0);
    ok!(cuIpcCloseMemHandle(ours));
    assert!(begun.elapsed() >= Duration::from_millis(40), "{:?}", begun.elapsed());
    assert_eq!(peer.ask("byte", &[theirs]), 3);
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn whoever_is_killed_leaves_the_other_its_memory_and_nothing_is_lost() {
    let context = Context::new();
    let before = free_bytes();
    // The owner is killed.
    let mut peer = Peer::start();
    let theirs = peer.ask("allocate", &[4 << 20, 6]);
    let ticket = peer.ticket("handle", theirs);
    let ours = opened(ticket);
    peer.kill();
    until_free(before - 4 * MIB);
    assert_eq!((opened(ticket), byte(ours)), (ours, 6), "once more");
    ok!(cuIpcCloseMemHandle(ours));
    ok!(cuIpcCloseMemHandle(ours));
    assert_eq!((free_bytes(), open(ticket).0), (before, INVALID_VALUE));
    // Whoever opened it is killed.
    let (own, mut ticket) = (context.device(4 * MIB), Ticket::NONE);
    ok!(cuIpcGetMemHandle(&raw mut ticket, own));
    let mut peer = Peer::start();
    let answer = peer.tell("open", &ticket.0.map(Word::from));
    assert_eq!(answer[0], 0);
    fill(own, 4, 1);
    assert_eq!(peer.ask("byte", &[answer[1]]), 4);
    peer.kill();
    ok!(cuMemFree_v2(own));
    until_free(before);
    assert!(DRIVER.violations().is_empty(), "the dead have nothing open");
}

#[test]
fn a_stream_waits_for_work_of_another_process_by_an_event() {
    let context = Context::new();
    let mut peer = Peer::start();
    let (theirs, event) = (peer.ask("allocate", &[4096, 0]), peer.ask("event", &[]));
    let ours = opened(peer.ticket("handle", theirs));
    let (ticket, mut shared, mut twin) = (peer.ticket("event-handle", event), 0_u64, 0_u64);
    ok!(cuIpcOpenEventHandle(&raw mut shared, ticket));
    ok!(cuIpcOpenEventHandle(&raw mut twin, ticket));
    assert_ne!(shared, twin);
    ok!(cuEventQuery(shared));
    let (stream, result) = (context.stream(1), context.device(8));
    ok!(cuMemsetD8_v2(result, 0_u8, 8_usize));
    ok!(cuCtxSynchronize());
    let (flag, word) = (0, 8);
    assert_eq!(peer.ask("wait-flag", &[theirs + flag]), 0);
    assert_eq!(peer.ask("store", &[theirs + word, 42]), 0);
    assert_eq!(peer.ask("record", &[event]), 0);
    assert_eq!([shared, twin].map(|event| call!(cuEventQuery(event))), [NOT_READY; 2]);
    ok!(cuStreamWaitEvent(stream, shared, 0_u32));
    assert_eq!(context.launch(stream, "nvshare_sum", &[ours + word, 1, result]), 0);
    assert_eq!(call!(cuStreamQuery(stream)), NOT_READY);
    ok!(cuMemsetD8_v2(ours + flag, 1_u8, 1_usize));
    ok!(cuStreamSynchronize(stream));
    let mut sum = 0_u64;
    ok!(cuMemcpyDtoH_v2(&raw mut sum, result, 8_usize));
    assert_eq!(sum, 42);
    ok!(cuEventSynchronize(shared));
    assert_eq!(peer.ask("query", &[event]), 0);
    // The other way round.
    let flag = 16;
    assert_eq!(context.launch(stream, "nvshare_wait_flag", &[ours + flag]), 0);
    assert_eq!(context.launch(stream, "nvshare_store", &[ours + word, 1, 43]), 0);
    ok!(cuEventRecord(shared, stream));
    assert_eq!(peer.ask("query", &[event]), Word::from(NOT_READY));
    assert_eq!(peer.ask("set", &[theirs + flag, 1]), 0);
    assert_eq!(peer.ask("synchronize", &[event]), 0);
    assert_eq!(peer.ask("byte", &[theirs + word]), 43);
    // In a capture it is a place there, until it is recorded anew.
    let mut graph = 0_u64;
    ok!(cuStreamBeginCapture_v2(stream, 2_u32));
    ok!(cuEventRecord(shared, stream));
    ok!(cuStreamEndCapture(stream, &raw mut graph));
    assert_eq!(call!(cuEventQuery(shared)), CAPTURED_EVENT);
    assert_eq!(peer.ask("record", &[event]), 0);
    ok!(cuEventSynchronize(shared));
    ok!(cuEventDestroy_v2(shared));
    assert_eq!(peer.ask("record", &[event]), 0, "it is the owner's");
    ok!(cuIpcCloseMemHandle(ours));
    assert!(DRIVER.violations().is_empty());
}

#[test]
fn an_event_of_one_process_alone_has_no_handle() {
    let context = Context::new();
    let (mut ticket, mut event, mut made) = (Ticket::NONE, 0_u64, 0_u64);
    assert_eq!(call!(cuIpcGetEventHandle(&raw mut ticket, context.event())), INVALID_HANDLE);
    assert_eq!(call!(cuEventCreate(&raw mut event, 4_u32)), INVALID_VALUE, "it cannot have a time");
    ok!(cuEventCreate(&raw mut event, 6_u32));
    ok!(cuIpcGetEventHandle(&raw mut ticket, event));
    assert_eq!(call!(cuIpcOpenEventHandle(&raw mut made, ticket)), NO_CONTEXT, "its own");
    assert_eq!(call!(cuIpcOpenEventHandle(&raw mut made, Ticket::NONE)), INVALID_VALUE);
    let mut milliseconds = 0_f32;
    ok!(cuEventRecord(event, 0_u64));
    ok!(cuEventSynchronize(event));
    assert_eq!(call!(cuEventElapsedTime(&raw mut milliseconds, event, event)), INVALID_HANDLE);
    ok!(cuEventDestroy_v2(event));
}

#[test]
fn using_an_event_that_its_owner_destroyed_is_a_violation_and_keeps_nobody_waiting() {
    if !is_alone() {
        alone("using_an_event_that_its_owner_destroyed_is_a_violation_and_keeps_nobody_waiting", &[]);
        return;
    }
    let _context = Context::new();
    let mut peer = Peer::start();
    let (theirs, event) = (peer.ask("allocate", &[4096, 0]), peer.ask("event", &[]));
    let (ticket, mut shared) = (peer.ticket("event-handle", event), 0_u64);
    ok!(cuIpcOpenEventHandle(&raw mut shared, ticket));
    assert_eq!(peer.ask("store-late", &[theirs, 1, 50_000_000]), 0);
    assert_eq!(peer.ask("record", &[event]), 0);
    assert_eq!(peer.ask("destroy-event", &[event]), 0);
    ok!(cuEventSynchronize(shared));
    ok!(cuEventQuery(shared));
    ok!(cuEventRecord(shared, 0_u64));
    assert!(only_violation().contains("an event of another process is used that was destroyed there"));
    let mut made = 0_u64;
    assert_eq!(call!(cuIpcOpenEventHandle(&raw mut made, ticket)), INVALID_VALUE);
}

#[test]
fn nobody_waits_for_a_process_that_was_killed() {
    let context = Context::new();
    let mut peer = Peer::start();
    let (theirs, event) = (peer.ask("allocate", &[4096, 0]), peer.ask("event", &[]));
    let (ticket, mut shared, stream) = (peer.ticket("event-handle", event), 0_u64, context.stream(1));
    ok!(cuIpcOpenEventHandle(&raw mut shared, ticket));
    assert_eq!(peer.ask("store-late", &[theirs, 1, 3_600_000_000_000]), 0);
    assert_eq!(peer.ask("record", &[event]), 0);
    ok!(cuStreamWaitEvent(stream, shared, 0_u32));
    assert_eq!(call!(cuStreamQuery(stream)), NOT_READY);
    peer.kill();
    ok!(cuEventSynchronize(shared));
    ok!(cuStreamSynchronize(stream));
    assert!(DRIVER.violations().is_empty());
}

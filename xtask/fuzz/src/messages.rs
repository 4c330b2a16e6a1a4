//! What comes over the socket and out of memory that others write: frames both ways, the counter page, the ring's records.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use nvshare_agent::control::CounterPage;
use nvshare_agent::observer::doors;
use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
use nvshare_common::counters::PAGE_BYTES;
use nvshare_common::event::{Kind, Record};
use nvshare_common::frame;
use nvshare_common::ids::{ArenaId, ClientId, DeviceId, Ticket};
use nvshare_common::probe::Call;
use nvshare_common::protocol::{Answer, Held, Hello, Purpose, ToAgent, ToShim};
use nvshare_common::share;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::pwrite;

/// A packet, read as each of the messages it could be. What was understood is written and read again: the same.
pub(crate) fn messages(packet: &[u8]) {
    if let Ok(message) = frame::decode::<ToAgent>(packet) {
        let again = frame::encode(&message).expect("no longer than what it came in");
        assert_eq!(frame::decode::<ToAgent>(&again).as_ref(), Ok(&message));
    }
    if let Ok(message) = frame::decode::<ToShim>(packet) {
        let again = frame::encode(&message).expect("no longer than what it came in");
        assert_eq!(frame::decode::<ToShim>(&again).as_ref(), Ok(&message));
    }
    if let Ok(answer) = frame::decode::<share::Answer>(packet) {
        let again = frame::encode(&answer).expect("no longer than what it came in");
        assert_eq!(frame::decode::<share::Answer>(&again).as_ref(), Ok(&answer));
        // Whatever is sound can be added up.
        if let (true, share::Answer::Given { bytes, offset, pieces, .. }) = (answer.is_sound(), &answer) {
            assert!(pieces.iter().map(|piece| piece.0).sum::<u64>() >= offset.0 + bytes.0);
        }
    }
    if let Some(ticket) = share::Ticket::read(packet) {
        assert_eq!(ticket.write(), packet);
    }
    if let Ok(hello) = frame::decode_hello(packet) {
        let again = frame::encode_hello(&hello).expect("no longer than what it came in");
        assert_eq!(frame::decode_hello(&again).as_ref(), Ok(&hello));
    }
    if let Ok(answer @ Answer::Welcome { .. }) = frame::decode_answer(packet) {
        let again = frame::encode_answer(&answer).expect("no longer than what it came in");
        assert_eq!(frame::decode_answer(&again).as_ref(), Ok(&answer));
    }
}

const CARD: DeviceId = DeviceId([7; 16]);

/// A few of each direction.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let held = Held { device: CARD, granted: Bytes::GIB, resident: Bytes::GIB, total: Bytes::GIB };
    let hello =
        Hello { release: "0.1.0".into(), running: true, devices: vec![held; 2], arenas: 1, bypass: false };
    let mut all: Vec<_> = to_agent().iter().map(frame::encode).collect();
    let range = DeviceRange { start: DevicePtr(1 << 40), bytes: Bytes::GIB };
    let (ticket, device, bytes) = (Ticket(3), CARD, Bytes::GIB);
    let to_shim = [
        ToShim::Limit { device, bytes },
        ToShim::Grant { device, bytes },
        ToShim::Run,
        ToShim::Stop { ticket, stall_ms: 2000 },
        ToShim::SwapOut { ticket, device, bytes, coldest: vec![range; 3] },
        ToShim::Arena { arena: ArenaId(1), bytes },
    ];
    all.extend(to_shim.iter().map(frame::encode));
    all.push(frame::encode_hello(&hello));
    all.push(frame::encode_answer(&Answer::Welcome {
        client: ClientId(1),
        limits: vec![(CARD, Bytes::GIB)],
        sizes: vec![(CARD, Bytes::GIB)],
    }));
    all.push(frame::encode_answer(&Answer::Refused { why: "two builds".into() }));
    all.push(Ok(share::Ticket { place: [7; 16], number: 1 << 63, secret: [8; 16] }.write().to_vec()));
    let (offset, pieces) = (Bytes(512), vec![Bytes::GIB; 3]);
    all.push(frame::encode(&share::Answer::Given { device, bytes, offset, pieces }));
    all.into_iter().map(|packet| packet.expect("a short message")).collect()
}

/// What clients say, one of most kinds.
pub(crate) fn to_agent() -> Vec<ToAgent> {
    let (ticket, device, bytes) = (Ticket(1), CARD, Bytes::GIB);
    vec![
        ToAgent::ArenaHeld { arena: ArenaId(1) },
        ToAgent::Want { device, total: bytes, purpose: Purpose::Work },
        ToAgent::Want { device, total: bytes, purpose: Purpose::Allocation },
        ToAgent::WantRoom { ticket, device, bytes },
        ToAgent::Stopped { ticket },
        ToAgent::DrainStalled { ticket },
        ToAgent::Released { ticket: Some(ticket), device, bytes },
        ToAgent::Released { ticket: None, device, bytes },
        ToAgent::SwapOutDone { ticket, copied: bytes, clean: Bytes::ZERO },
        ToAgent::SwapFailed { ticket, why: "no arena".into() },
        ToAgent::Resident { device, copied: bytes },
        ToAgent::Unswappable { device, bytes, reason: "array".into() },
        ToAgent::ArenaReady { arena: ArenaId(1) },
        ToAgent::ArenaReturned { arena: ArenaId(1) },
        ToAgent::Dead { why: "an illegal address".into() },
    ]
}

/// A counter page as its client may have left it.
pub(crate) fn page(bytes: &[u8]) {
    thread_local! {
        static PAGE: RefCell<(OwnedFd, CounterPage)> = RefCell::new({
            let memory = memfd_create("page", MemfdFlags::ALLOW_SEALING).expect("a memfd");
            ftruncate(&memory, PAGE_BYTES as u64).expect("a page");
            fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW).expect("seals");
            let page = CounterPage::map(&memory).expect("a sealed page");
            (memory, page)
        });
    }
    let mut whole = [0; PAGE_BYTES];
    let length = bytes.len().min(PAGE_BYTES);
    whole[..length].copy_from_slice(&bytes[..length]);
    PAGE.with_borrow(|(memory, page)| {
        pwrite(memory, &whole, 0).expect("a page is written");
        let held = page.holdings().count();
        assert!(held <= nvshare_common::counters::MAX_DEVICES);
        let _ = page.calls();
    });
}

/// A page with a device in it.
pub(crate) fn pages() -> Vec<Vec<u8>> {
    let words: Vec<u64> = (0..PAGE_BYTES as u64 / 8).map(|word| word % 5).collect();
    vec![words.iter().flat_map(|word| word.to_ne_bytes()).collect(), vec![0xff; PAGE_BYTES]]
}

/// A record of the ring buffer, and of the ring of mappings.
pub(crate) fn records(bytes: &[u8]) {
    let _ = doors::record(bytes);
    let _ = doors::mapping(bytes);
}

/// A call, a launch, a mapping of a library.
pub(crate) fn record_seeds() -> Vec<Vec<u8>> {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    let call = Record::head(Kind::Call, Call::Alloc as usize, Record::RETURNED);
    let launch = Record::head(Kind::Launch, Call::Launch as usize, 0);
    let mut mapping = vec![0; 72];
    mapping.extend(b"/usr/lib/libcuda.so.1\0\0\0");
    vec![
        words(&[call, 7 << 32 | 7, 1, 2, 0, 1 << 40, 4096, 0, 0]),
        words(&[launch, 7 << 32 | 7, 1, 2, 0, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        mapping,
    ]
}

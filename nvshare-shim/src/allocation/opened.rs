//! Opening memory of another process, and closing it: mapped at addresses of our own, out of descriptors of its pieces. It stays on
//! the card as long as it is open: its owner hears when it is not.

#![expect(unsafe_code, reason = "the driver is called")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::DeviceId;
use nvshare_common::share::{Answer, Ticket};

use super::describe::Described;
use super::shared::DESCRIPTOR;
use crate::config::BLOCK_BYTES;
use crate::cuda::{CUresult, sys};
use crate::device::{self, vmm};
use crate::driver::driver;
use crate::log;
use crate::memory::map;
use crate::memory::opened::{self, Wish};
use crate::streams::{self, Relaxed};
use crate::turn::dead;

/// The owner of what is opened.
pub trait Lender: Send {
    /// The descriptor of its next piece.
    fn next(&mut self) -> Result<OwnedFd, CUresult>;
    /// Nothing of it is mapped here any more. Where this is not called the owner keeps it where it is until this process ends.
    fn returned(&mut self);
}

type Opened = opened::Opened<Box<dyn Lender>>;
type Table = opened::Table<Box<dyn Lender>>;

static OPENED: Mutex<Table> = Mutex::new(Table::new());
/// Something was opened: until then no question about an address takes the lock.
static ANY: AtomicBool = AtomicBool::new(false);

fn opened() -> MutexGuard<'static, Table> {
    OPENED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens what `ticket` names; if it is not open already, `ask` talks to the owner and passes on what that says.
pub fn open(
    ticket: Ticket,
    ask: impl FnOnce() -> Result<(Answer, Box<dyn Lender>), CUresult>,
) -> Result<u64, CUresult> {
    let mut context = std::ptr::null_mut();
    // SAFETY: `context` is where the answer goes.
    unsafe { driver().cuCtxGetCurrent(&raw mut context) }.result()?;
    if context.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
    streams::check_current()?;
    loop {
        let wish = opened().wish(ticket);
        match wish {
            Wish::Again(start) => return Ok(start),
            Wish::Wait => std::thread::sleep(Duration::from_millis(1)),
            Wish::First => break,
        }
    }
    // Also where something of ours panics: the next one may try.
    let mut settled = Settled { ticket, opened: None };
    let (answer, lender) = ask()?;
    let opened = map_pieces(&answer, context, lender)?;
    let start = opened.start;
    settled.opened = Some(opened);
    ANY.store(true, Ordering::Release);
    Ok(start)
}

/// Tells the table what came of it.
struct Settled {
    ticket: Ticket,
    opened: Option<Opened>,
}

impl Drop for Settled {
    fn drop(&mut self) {
        opened().settle(self.ticket, self.opened.take());
    }
}

fn map_pieces(
    answer: &Answer,
    context: sys::CUcontext,
    mut lender: Box<dyn Lender>,
) -> Result<Opened, CUresult> {
    let Answer::Given { device, bytes, offset, pieces } = answer else {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    };
    let (mut here, device) = (0, ordinal(*device)?);
    // SAFETY: `here` is where the answer goes.
    unsafe { driver().cuCtxGetDevice(&raw mut here) }.result()?;
    let _relaxed = Relaxed::new();
    let whole: u64 = pieces.iter().map(|piece| piece.0).sum();
    let span = vmm::reserve(whole, BLOCK_BYTES)?;
    let mut mapped = Vec::new();
    let mut readers = vec![device];
    readers.extend((here != device).then_some(here));
    let done = pieces.iter().try_for_each(|Bytes(bytes)| {
        let at = span + mapped.iter().sum::<u64>();
        map_one(&lender.next()?, at, *bytes, &readers)?;
        mapped.push(*bytes);
        Ok(())
    });
    let mut opened = Opened {
        start: span + offset.0,
        bytes: bytes.0,
        span,
        whole,
        pieces: mapped,
        context: streams::owner_under(context),
        device,
        number: map::number(),
        lender,
    };
    match done {
        Ok(()) => Ok(opened),
        Err(error) => {
            unmap(&mut opened);
            Err(error)
        }
    }
}

fn map_one(descriptor: &OwnedFd, at: u64, bytes: u64, readers: &[sys::CUdevice]) -> Result<(), CUresult> {
    let mut handle = 0;
    let number = descriptor.as_raw_fd() as usize;
    // SAFETY: `handle` is where the answer goes; the descriptor is passed as its number, and stays ours.
    unsafe {
        driver().cuMemImportFromShareableHandle(
            &raw mut handle,
            std::ptr::without_provenance_mut(number),
            DESCRIPTOR,
        )
    }
    .result()?;
    // SAFETY: addresses of our own reservation with nothing behind them; a handle of another length is refused.
    let mapped = unsafe { vmm::map(at, bytes, handle, readers) };
    // SAFETY: imported above, given back once: what is mapped stays.
    let _ = unsafe { vmm::release(handle) };
    mapped
}

/// Takes everything from behind the addresses, gives these back, and says so to the owner. Nothing reaches it any more.
fn unmap(opened: &mut Opened) {
    let mut at = opened.span;
    let mut all = true;
    for bytes in &opened.pieces {
        // SAFETY: a whole mapping of ours, out of the records; whoever closed it waited for the work that could reach it.
        if let Err(code) = unsafe { vmm::unmap(at, *bytes) } {
            if code == CUresult::CUDA_ERROR_DEINITIALIZED || dead::is_dead() {
                return;
            }
            log::warning!("cannot unmap memory of another process at {at:#x}: {}", driver().error_name(code));
            all = false;
        }
        at += bytes;
    }
    if all {
        // SAFETY: nothing is mapped in it, and its addresses are in no record.
        let _ = unsafe { vmm::unreserve(opened.span, opened.whole) };
        opened.lender.returned();
    }
}

/// The card with that UUID, as the driver numbers it here.
fn ordinal(id: DeviceId) -> Result<sys::CUdevice, CUresult> {
    let mut count = 0;
    // SAFETY: `count` is where the answer goes.
    unsafe { driver().cuDeviceGetCount(&raw mut count) }.result()?;
    (0..count).find(|ordinal| device::id_of(*ordinal) == Ok(id)).ok_or_else(|| {
        log::warning!("memory on {id} cannot be opened: this process does not see that card");
        CUresult::CUDA_ERROR_INVALID_DEVICE
    })
}

/// Closes what begins at `start`; `None`: it was not opened here. The last time it waits for the work of its context, as a free
/// does.
pub fn close(start: u64) -> Option<CUresult> {
    let Some((ticket, mut last)) = opened().close(start)? else { return Some(CUresult::CUDA_SUCCESS) };
    let _relaxed = Relaxed::new();
    let mut settled = Settled { ticket, opened: None };
    if let Err((code, _)) = streams::finish(last.context) {
        if code.is_final() {
            dead::on_device_error(code);
        }
        // As it was: what may still be used stays.
        settled.opened = Some(last);
        return Some(code);
    }
    unmap(&mut last);
    Some(CUresult::CUDA_SUCCESS)
}

/// A context is gone, and its work with it.
pub(super) fn context_ended(context: usize) {
    let gone = opened().end_of(context);
    for mut opened in gone {
        unmap(&mut opened);
    }
}

/// What is known of memory that was opened, around `at`.
pub(super) fn describe(at: u64) -> Option<Described> {
    if !ANY.load(Ordering::Acquire) {
        return None;
    }
    let table = opened();
    let found = table.find(at)?;
    Some(Described {
        start: found.start,
        bytes: found.bytes,
        context: std::ptr::with_exposed_provenance_mut(found.context),
        device: found.device,
        // As bare, also where its owner's is (seen on an H200).
        rdma: false,
        ipc: false,
        number: found.number,
        sync: true,
        pool: None,
    })
}

//! Memory of ours that other processes may use by CUDA IPC: whoever comes with a ticket is lent it. What is lent stays on the card
//! until it is returned; who has it mapped when it is freed keeps its physical memory, as bare. Between whiles it moves.

#![expect(unsafe_code, reason = "the driver is called, and hands out a descriptor")]

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nvshare_common::bytes::Bytes;
use nvshare_common::share::{Answer, PIECES};

use super::unswappable::report_kept;
use crate::cuda::CUresult;
use crate::device::{self, Device, State};
use crate::driver::driver;
use crate::memory::extent::Presence;
use crate::memory::map::{ALLOCATIONS, Allocation, Of};
use crate::memory::space::Lent;

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub(super) const DESCRIPTOR: u32 = 1;

/// What was shared: by the number of its allocation, where it begins and what is known to who may have it.
static TICKETS: Mutex<BTreeMap<u64, (u64, [u8; 16])>> = Mutex::new(BTreeMap::new());

fn tickets() -> MutexGuard<'static, BTreeMap<u64, (u64, [u8; 16])>> {
    TICKETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The allocation around `at` may be lent from now on: its number and its secret, which is `secret` unless it has one. `None`: it is
/// not ours, or cannot be shared. Inside a pass of the gate, where all of it is there.
pub fn share(at: u64, secret: [u8; 16]) -> Option<(u64, [u8; 16])> {
    let (start, allocation) = ALLOCATIONS.find(at)?;
    let device = device::by_index(allocation.device)?;
    pieces(&device.state(), device, start, &allocation)?;
    forget_what_is_gone();
    let secret = tickets().entry(allocation.number).or_insert((start, secret)).1;
    Some((allocation.number, secret))
}

/// Numbers are never given twice: nobody finds what is gone.
fn forget_what_is_gone() {
    let known: Vec<(u64, u64)> = tickets().iter().map(|(number, (start, _))| (*number, *start)).collect();
    let gone = known.into_iter().filter(|(number, start)| !is_there(*start, *number));
    for (number, _) in gone.collect::<Vec<_>>() {
        tickets().remove(&number);
    }
}

fn is_there(start: u64, number: u64) -> bool {
    ALLOCATIONS.find(start).is_some_and(|(at, allocation)| at == start && allocation.number == number)
}

/// The extents that hold an allocation, each with its handle, and where it begins in the first; `None` while one of them cannot be
/// exported.
fn pieces(
    state: &State,
    device: &Device,
    start: u64,
    allocation: &Allocation,
) -> Option<(Vec<(u64, u64)>, u64)> {
    if !device.kind.is_exportable() || matches!(allocation.of, Of::Pool(_)) {
        return None;
    }
    let (mut found, mut at, mut offset) = (Vec::new(), start, None);
    while at < start + allocation.bytes {
        let extent = state.space.extent(state.space.at(at)?);
        if extent.presence() != Presence::Resident || !extent.exportable || found.len() == PIECES {
            return None;
        }
        offset.get_or_insert_with(|| start - extent.start);
        found.push((extent.bytes, extent.handle));
        at = extent.start + extent.bytes;
    }
    Some((found, offset?))
}

/// What is lent to one who came with a ticket. It stays on the card as long as this lives.
#[derive(Debug)]
pub struct Loan {
    device: &'static Device,
    number: u64,
    lent: Option<Lent>,
}

impl Loan {
    /// Whether it is still there: it may have been freed meanwhile.
    pub fn is_there(&self) -> bool {
        let start = tickets().get(&self.number).map(|(start, _)| *start);
        start.is_some_and(|start| is_there(start, self.number))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(lent) = self.lent.take() {
            self.device.state().space.returned(lent);
            report_kept(self.device);
        }
    }
}

/// Lends what the ticket with this number and secret names, if there is such a thing: what to say of it, and the handles to be
/// exported. Inside a pass of the gate, where nothing of it leaves before it is lent.
pub fn lend(number: u64, secret: [u8; 16]) -> Option<(Loan, Answer, Vec<u64>)> {
    let (start, known) = tickets().get(&number).copied()?;
    let (at, allocation) = ALLOCATIONS.find(start)?;
    if known != secret || at != start || allocation.number != number {
        return None;
    }
    let device = device::by_index(allocation.device)?;
    let (pieces, offset, lent) = {
        let mut state = device.state();
        let (pieces, offset) = pieces(&state, device, start, &allocation)?;
        (pieces, offset, state.space.lend(start, allocation.bytes)?)
    };
    let loan = Loan { device, number, lent: Some(lent) };
    report_kept(device);
    let answer = Answer::Given {
        device: device.id,
        bytes: Bytes(allocation.bytes),
        offset: Bytes(offset),
        pieces: pieces.iter().map(|(bytes, _)| Bytes(*bytes)).collect(),
    };
    Some((loan, answer, pieces.into_iter().map(|(_, handle)| handle).collect()))
}

/// A descriptor of the piece behind a handle of [`lend`]. It is this piece if the loan is still there afterwards: a handle that
/// was released meanwhile may be another's.
pub fn export(handle: u64) -> Result<OwnedFd, CUresult> {
    let mut descriptor: i32 = -1;
    // SAFETY: `descriptor` is where the answer goes, an `int` for this type of handle.
    unsafe { driver().cuMemExportToShareableHandle((&raw mut descriptor).cast(), handle, DESCRIPTOR, 0) }
        .result()?;
    // SAFETY: the driver has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

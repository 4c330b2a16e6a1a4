//! Memory that processes share by its address: what this one lets others open, and what it opened of theirs (`cuIpc*`, and pieces
//! of exported pools).

#![expect(unsafe_code, reason = "mappings that are its own")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::process::Identity;
use nvshare_sim_card::ticket::Kind as For;
use nvshare_sim_card::{HandleId, ShareError, ShareId, Ticket};

use super::pool::Pool;
use super::space::{self, Area, Kind};
use super::{GRANULARITY, address, piece, plain};
use crate::call::Outcome;
use crate::context::Context;
use crate::device::card;
use crate::strict;

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// Memory of another process, in an area of this one.
pub(crate) struct Opened {
    share: ShareId,
    mapping: Mapping,
    owner: Identity,
    /// The device of the context that it was opened in.
    reached_from: usize,
    /// It is a piece of a pool, which is freed; other memory is closed.
    pub(crate) is_piece: bool,
    /// How often it was opened and not closed; changed with [`HELD`] locked.
    opens: AtomicU32,
}

/// A handle of others in a context (its number): it is mapped once, and what of it is opened lies there as it does at home.
type Mapping = (HandleId, u64);

/// Where a handle is mapped, and for how many areas.
struct Mapped {
    first: u64,
    bytes: u64,
    areas: u32,
}

/// What this process has of others. Whoever opens something keeps the lock meanwhile, so that the second finds what the first
/// has made. The space is locked after it.
struct Held {
    /// How many areas there are of each share.
    shares: BTreeMap<ShareId, u32>,
    mappings: BTreeMap<Mapping, Mapped>,
}

static HELD: Mutex<Held> = Mutex::new(Held { shares: BTreeMap::new(), mappings: BTreeMap::new() });

fn held() -> MutexGuard<'static, Held> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    /// One area more of a share that is open, whose handle this process holds: where the handle is mapped.
    fn take(&mut self, share: ShareId, mapping: Mapping) -> Outcome<u64> {
        *self.shares.entry(share).or_insert(0) += 1;
        if let Some(mapped) = self.mappings.get_mut(&mapping) {
            mapped.areas += 1;
            return Ok(mapped.first);
        }
        match Mapped::new(mapping.0) {
            Ok(mapped) => Ok(self.mappings.entry(mapping).or_insert(mapped).first),
            Err(error) => {
                self.close(share);
                self.let_go(mapping.0);
                Err(error)
            }
        }
    }

    /// One area less.
    fn give_back(&mut self, share: ShareId, mapping: Mapping) {
        self.close(share);
        let Some(mapped) = self.mappings.get_mut(&mapping) else { return };
        mapped.areas -= 1;
        if mapped.areas == 0 {
            if let Some(Mapped { first, bytes, .. }) = self.mappings.remove(&mapping) {
                // SAFETY: mapped for areas, of which the last is gone: nobody finds the place any more.
                unsafe { address::release(first, bytes) };
            }
            self.let_go(mapping.0);
        }
    }

    fn close(&mut self, share: ShareId) {
        let areas = self.shares.entry(share).or_insert(1);
        *areas -= 1;
        if *areas == 0 {
            self.shares.remove(&share);
            card().close_share(share);
        }
    }

    /// Lets go of a handle unless it is mapped in another context.
    fn let_go(&mut self, handle: HandleId) {
        if self.mappings.range((handle, 0)..=(handle, u64::MAX)).next().is_none() {
            card().let_go(handle);
        }
    }
}

impl Mapped {
    /// Puts a handle that this process holds behind new addresses, for one area.
    fn new(handle: HandleId) -> Outcome<Mapped> {
        let known = card().allocation(handle).ok_or(CUresult::CUDA_ERROR_MAP_FAILED)?;
        let bytes = known.bytes;
        let first = address::reserve(bytes, GRANULARITY).ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        // SAFETY: reserved just now, for this.
        if unsafe { address::back(first, known.card, &known.runs) }.is_err() {
            // SAFETY: as above.
            unsafe { address::release(first, bytes) };
            return Err(CUresult::CUDA_ERROR_MAP_FAILED);
        }
        Ok(Mapped { first, bytes, areas: 1 })
    }
}

/// What others can open the allocation around an address by: `cuIpcGetMemHandle`.
pub(crate) fn ticket(address: u64) -> Outcome<Ticket> {
    let area = space::find(address).ok_or(INVALID)?;
    match &area.kind {
        Kind::Plain(None) => share(&area, 0),
        _ => Err(INVALID),
    }
}

/// What others can open a piece of an exportable pool by. They get its first address, so that is what must be asked for.
pub(crate) fn ticket_of_piece(address: u64) -> Outcome<Ticket> {
    let area = space::find(address).filter(|area| area.start == address).ok_or(INVALID)?;
    match &area.kind {
        Kind::Plain(Some(pool)) if pool.is_exported.load(Ordering::Acquire) => {
            share(&area, pool.name().ok_or(INVALID)?.number)
        }
        _ => Err(INVALID),
    }
}

fn share(area: &Area, pool: u64) -> Outcome<Ticket> {
    if area.leaving.load(Ordering::Acquire) {
        return Err(INVALID);
    }
    let (handle, start) = plain::backing(area).ok_or(INVALID)?;
    let shared = card().share(handle, (start, area.bytes), pool);
    let (share, ticket) = shared.ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
    area.share.store(share.0, Ordering::Release);
    Ok(ticket)
}

/// An allocation is gone for its owner, and nobody can open it any more. That somebody still has it open is a violation.
pub(crate) fn end(area: &Area) {
    let share = area.share.swap(0, Ordering::AcqRel);
    if share == 0 {
        return;
    }
    let open = card().unshare(ShareId(share));
    if open > 0 {
        let what = piece(area.start, area.bytes);
        strict::report(&format!("{what} was freed, and {open} other processes have it open"));
    }
}

/// `cuIpcOpenMemHandle`: the same address each time, also when the owner is gone meanwhile.
pub(crate) fn open(context: &Context, ticket: &Ticket) -> Outcome<u64> {
    let share = card().share_of(For::Memory, ticket).ok_or(INVALID)?;
    let mut held = held();
    let known = opened();
    let known = || known.iter().filter_map(with_origin).filter(|(_, known)| !known.is_piece);
    let here = known().find(|(area, known)| known.share == share && area.context == context.id);
    if let Some((area, known)) = here {
        known.opens.fetch_add(1, Ordering::Relaxed);
        return Ok(area.start);
    }
    let (owner, device) = card().origin(share).map_err(refusal)?;
    // What a process has on a device only one context of each device may open.
    let of_another = |(area, known): (&Arc<Area>, &Opened)| {
        (known.owner, area.device, known.reached_from) == (owner, device, context.device)
            && area.context != context.id
    };
    if known().any(of_another) {
        return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    map(&mut held, share, context, None)
}

/// `cuMemPoolImportPointer`: the same address each time, which the first free takes away.
pub(crate) fn import(context: &Context, pool: &Pool, ticket: &Ticket) -> Outcome<u64> {
    let share = card().share_of(For::Piece, ticket).ok_or(INVALID)?;
    let of = pool.name().filter(|_| pool.is_imported).ok_or(INVALID)?;
    let mut held = held();
    let known = opened();
    let known = known.iter().filter_map(with_origin).find(|(_, known)| known.share == share);
    match known {
        Some((area, _)) => Ok(area.start),
        None => map(&mut held, share, context, Some(of.number)),
    }
}

/// What this process has open.
fn opened() -> Vec<Arc<Area>> {
    space::read().areas.values().filter(|area| matches!(area.kind, Kind::Opened(_))).cloned().collect()
}

fn with_origin(area: &Arc<Area>) -> Option<(&Arc<Area>, &Opened)> {
    match &area.kind {
        Kind::Opened(opened) => Some((area, opened)),
        _ => None,
    }
}

fn refusal(error: ShareError) -> CUresult {
    match error {
        ShareError::Gone => INVALID,
        ShareError::Own => CUresult::CUDA_ERROR_INVALID_CONTEXT,
    }
}

/// Opens a share and puts what it is a part of behind addresses; it must be a piece of `pool` if that is given.
fn map(held: &mut Held, share: ShareId, context: &Context, pool: Option<u64>) -> Outcome<u64> {
    let opened = card().open_share(share).map_err(refusal)?;
    let mapping = (opened.handle, context.id);
    let start = held.take(share, mapping)? + opened.start;
    let mut space = space::write();
    let refused = if pool.is_some_and(|pool| pool != opened.pool) {
        Some(INVALID)
    } else {
        // What was there before it at home, and was freed there, is still open here.
        space.overlaps(start, opened.bytes).then_some(CUresult::CUDA_ERROR_ALREADY_MAPPED)
    };
    if let Some(error) = refused {
        held.give_back(share, mapping);
        return Err(error);
    }
    let kind = Kind::Opened(Opened {
        share,
        mapping,
        owner: opened.owner,
        reached_from: context.device,
        is_piece: pool.is_some(),
        opens: AtomicU32::new(1),
    });
    space.insert(Area::new(start, opened.bytes, context.id, opened.card, kind));
    Ok(start)
}

/// `cuIpcCloseMemHandle`: with the last one the memory is gone from here, once its context's work is over.
pub(crate) fn close(start: u64) -> Outcome {
    let area = space::find(start).filter(|area| area.start == start).ok_or(INVALID)?;
    let (_, opened) = with_origin(&area).filter(|(_, opened)| !opened.is_piece).ok_or(INVALID)?;
    if opened.opens.load(Ordering::Relaxed) <= 1 {
        plain::wait_for_owner(&area)?;
        plain::check_unused(area.start, area.bytes, "cuIpcCloseMemHandle", u64::MAX);
    }
    {
        // Whoever opens it meanwhile finds it there, or makes another one.
        let _held = held();
        let mut space = space::write();
        let there = space.areas.get(&start).is_some_and(|there| Arc::ptr_eq(there, &area));
        if !there {
            return Err(INVALID);
        }
        if opened.opens.fetch_sub(1, Ordering::Relaxed) > 1 {
            return Ok(());
        }
        space.areas.remove(&start);
    }
    area.dispose();
    Ok(())
}

impl Opened {
    /// Gives back what is behind an area that is in the space no more.
    pub(super) fn dispose(&self) {
        held().give_back(self.share, self.mapping);
    }
}

//! Memory of graphs. An allocation has its address from the moment that its node is made; what is behind it is taken from the
//! device's pool ([`super::graph_pool`]) when a graph that allocates it is launched. It is there between the turn of its node
//! and that of its free, and stays behind the address until it is trimmed, another one needs it, or nobody can launch it any
//! more: graphs that are launched one after the other share it (as on an H200).

#![expect(unsafe_code, reason = "mappings that are its own")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::sys::CUresult;
use nvshare_sim_card::config::MAX_CARDS;

use super::grant::Grant;
use super::graph_pool::{self, Block};
use super::space::{self, Area, Kind};
use super::{GRANULARITY, address, plain};
use crate::call::Outcome;
use crate::completion::Completion;
use crate::context::{CONTEXTS, Context};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

/// A graph, as the memory of its nodes knows it: which one it is, and whether it is still there.
#[derive(Default)]
pub(crate) struct Owner(());

/// What an allocation node allocates.
pub(crate) struct Allocation {
    /// The address.
    pub(crate) start: u64,
    /// As it was asked for.
    pub(crate) bytes: u64,
    /// Where its memory is.
    pub(crate) device: usize,
    /// Devices that reach it, as the application said.
    pub(crate) grants: Vec<Grant>,
    /// The graph of its node.
    owner: Weak<Owner>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Who can launch it, or a graph that frees it.
    holds: usize,
    /// Launches of it that are being submitted.
    launching: usize,
    block: Option<Block>,
    /// A launch allocates it and nothing frees it so far, by the order of calls: the number of the launch's context.
    unfreed: Option<u64>,
    /// It may be used, by the order of work.
    valid: bool,
    /// The end of the last launch.
    last: Option<Arc<Completion>>,
    /// Its own graph frees it.
    freed_at_home: bool,
    /// Other graphs that do.
    freed_abroad: Vec<Weak<Owner>>,
}

/// All allocations of each device.
static ALL: [Mutex<Vec<Weak<Allocation>>>; MAX_CARDS] = [const { Mutex::new(Vec::new()) }; MAX_CARDS];

fn all(device: usize) -> Vec<Arc<Allocation>> {
    ALL[device].lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
}

/// The right to launch an allocation or its free, of a node, an executable graph, or a launch under way.
pub(crate) struct Hold(Arc<Allocation>);

impl std::ops::Deref for Hold {
    type Target = Arc<Allocation>;

    fn deref(&self) -> &Arc<Allocation> {
        &self.0
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.state().holds -= 1;
        self.0.settle();
    }
}

/// Keeps what is behind an allocation there while a launch of it is being submitted.
pub(crate) struct Backed(Arc<Allocation>);

impl Drop for Backed {
    fn drop(&mut self) {
        self.0.state().launching -= 1;
    }
}

impl State {
    /// Nobody uses what is behind the address, or will without another launch.
    fn is_idle(&self) -> bool {
        let running = self.last.as_ref().is_some_and(|last| last.finished().is_none());
        self.launching == 0 && !running && !self.valid && self.unfreed.is_none()
    }
}

impl Allocation {
    /// Gives a node of `graph` an address for so many bytes.
    pub(crate) fn create(
        graph: &Arc<Owner>,
        device: usize,
        bytes: u64,
        grants: Vec<Grant>,
    ) -> Outcome<Arc<Hold>> {
        let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        if bytes == 0 {
            return Err(INVALID);
        }
        let whole = bytes.checked_next_multiple_of(GRANULARITY).ok_or(full)?;
        let start = address::reserve(whole, GRANULARITY).ok_or(full)?;
        let owner = Arc::downgrade(graph);
        let allocation =
            Arc::new(Allocation { start, bytes, device, grants, owner, state: Mutex::default() });
        {
            let mut all = ALL[device].lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|other| other.strong_count() > 0);
            all.push(Arc::downgrade(&allocation));
        }
        space::write().insert(Area::new(start, bytes, 0, device, Kind::Graph(Arc::clone(&allocation))));
        Ok(allocation.hold())
    }

    /// The allocation that begins at the address.
    pub(crate) fn at(start: u64) -> Outcome<Arc<Allocation>> {
        match space::find(start).filter(|area| area.start == start).as_deref() {
            Some(Area { kind: Kind::Graph(allocation), .. }) => Ok(Arc::clone(allocation)),
            _ => Err(INVALID),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(self: &Arc<Allocation>) -> Arc<Hold> {
        self.state().holds += 1;
        Arc::new(Hold(Arc::clone(self)))
    }

    /// For a node of `graph` that frees it: once at home, or once in each other graph, not both.
    pub(crate) fn freed_in(self: &Arc<Allocation>, graph: &Arc<Owner>) -> Outcome<Arc<Hold>> {
        let here = Arc::downgrade(graph);
        let mut state = self.state();
        state.freed_abroad.retain(|other| other.strong_count() > 0);
        let at_home = self.owner.ptr_eq(&here);
        let twice = if at_home {
            !state.freed_abroad.is_empty()
        } else {
            state.freed_abroad.iter().any(|other| other.ptr_eq(&here))
        };
        if state.freed_at_home || twice {
            return Err(INVALID);
        }
        if at_home {
            state.freed_at_home = true;
        } else {
            state.freed_abroad.push(here);
        }
        drop(state);
        Ok(self.hold())
    }

    /// Whether a launch allocated it and nothing was called that frees it.
    pub(crate) fn is_unfreed(&self) -> bool {
        self.state().unfreed.is_some()
    }

    /// Puts memory behind the address, for a launch.
    pub(crate) fn back(self: &Arc<Allocation>) -> Outcome<Backed> {
        self.state().launching += 1;
        let backed = Backed(Arc::clone(self));
        if self.state().block.is_some() {
            return Ok(backed);
        }
        // Others' states are looked at for it, so ours is not locked.
        let block = block_for(self.device, self.whole())?;
        let mut state = self.state();
        if state.block.is_some() {
            graph_pool::of_device(self.device).keep(block);
            return Ok(backed);
        }
        // SAFETY: our reservation, behind which nothing is.
        let done = block.runs().map(|runs| unsafe { address::back(self.start, self.device, &runs) });
        state.block = Some(block);
        if !matches!(done, Ok(Ok(()))) {
            self.take_away(&mut state);
            drop(state);
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        drop(state);
        Ok(backed)
    }

    /// What is behind the address, if it is of that size and nobody uses it.
    fn spare(&self, bytes: u64) -> Option<Block> {
        let mut state = self.state();
        if self.whole() != bytes || !state.is_idle() {
            return None;
        }
        let block = state.block.take()?;
        // SAFETY: ours; no launch uses it, and work that does all the same is refused from now on.
        unsafe { address::unback(self.start, bytes) };
        Some(block)
    }

    /// Its size as the card sees it.
    fn whole(&self) -> u64 {
        self.bytes.next_multiple_of(GRANULARITY)
    }

    /// It was launched in `context`, until `done`; `stays` if that graph does not free it.
    pub(crate) fn launched(&self, context: &Context, done: &Arc<Completion>, stays: bool) {
        let mut state = self.state();
        state.last = Some(Arc::clone(done));
        if stays {
            state.unfreed = Some(context.id);
        }
    }

    /// Somebody frees it, by the order of calls: the number of the context that it was launched in. An error if it is not
    /// allocated, or its own graph frees it.
    pub(crate) fn free_by_call(&self) -> Outcome<u64> {
        self.state().unfreed.take().ok_or(INVALID)
    }

    /// A free that was refused after all.
    pub(crate) fn take_back(&self, context: u64) {
        self.state().unfreed = Some(context);
    }

    /// The turn of its node, or of its free.
    pub(crate) fn set_valid(&self, valid: bool) {
        self.state().valid = valid;
        if !valid {
            self.settle();
        }
    }

    /// Whether work may use it now.
    pub(super) fn is_valid(&self) -> bool {
        self.state().valid
    }

    /// Takes what is behind the address away.
    fn take_away(&self, state: &mut State) {
        if let Some(block) = state.block.take() {
            // SAFETY: ours; no launch uses it, and work that does all the same is refused from now on.
            unsafe { address::unback(self.start, self.whole()) };
            graph_pool::of_device(self.device).keep(block);
        }
    }

    /// Where it is neither allocated nor can be, its address is nobody's any more.
    fn settle(&self) {
        let mut state = self.state();
        if state.holds > 0 || state.unfreed.is_some() || state.valid {
            return;
        }
        self.take_away(&mut state);
        drop(state);
        let is_ours = |area: &Arc<Area>| matches!(&area.kind, Kind::Graph(other) if std::ptr::eq(&raw const **other, self));
        let mut space = space::write();
        if space.areas.get(&self.start).is_some_and(is_ours) {
            let area = space.areas.remove(&self.start);
            drop(space);
            // SAFETY: our reservation, which nobody finds any more.
            unsafe { address::release(self.start, self.whole()) };
            drop(area);
        }
    }
}

/// `cuMemFree` of an allocation: waits for the context that it was launched in.
pub(super) fn free(allocation: &Arc<Allocation>, area: &Area) -> Outcome {
    let context = allocation.free_by_call()?;
    if let Some(context) = CONTEXTS.find(|other| other.id == context) {
        context.jam.pass();
        super::wait_for(&context).inspect_err(|_| allocation.take_back(context.id))?;
    }
    plain::check_unused(area.start, area.bytes, "cuMemFree", u64::MAX);
    allocation.set_valid(false);
    Ok(())
}

/// `cuDeviceGraphMemTrim`: gives back what no graph uses that runs or will, and no allocation that is not freed.
pub(crate) fn trim(device: usize) {
    for allocation in all(device) {
        let mut state = allocation.state();
        if state.is_idle() {
            allocation.take_away(&mut state);
        }
    }
    graph_pool::of_device(device).trim();
}

/// The last context of a device is gone, with all work: nothing of its graphs is allocated, and the next trim gives it back.
pub(super) fn forget_device(device: usize) {
    for allocation in all(device) {
        let mut state = allocation.state();
        (state.unfreed, state.valid) = (None, false);
        drop(state);
        allocation.settle();
    }
}

/// Memory of that size: of what is kept, else of an allocation that does not need it, else of the card.
fn block_for(device: usize, bytes: u64) -> Outcome<Block> {
    if let Some(kept) = graph_pool::of_device(device).kept(bytes) {
        return Ok(kept);
    }
    if let Some(spare) = all(device).iter().find_map(|other| other.spare(bytes)) {
        return Ok(spare);
    }
    crate::faults::at_call(nvshare_sim_card::Point::Alloc)?;
    let grown = graph_pool::of_device(device).grow(device, bytes);
    grown.or_else(|_| {
        trim(device);
        graph_pool::of_device(device).grow(device, bytes)
    })
}

//! Swap-out: extents flow through three stages, fingerprint, copy, release, several at once and in order. What was
//! released is said at once, so that another client's swap-in overlaps.
//!
//! S3 is kept here: before a byte of a block's shadow is overwritten its fingerprint is erased, and it is set only after
//! the copy's event; memory is released only when every block is in its shadow, known to be equal to it, or zero.

#![expect(unsafe_code, reason = "the driver is called")]

use std::collections::VecDeque;

use nvshare_common::fingerprint::Fingerprint;
use nvshare_common::ids::Ticket;

use super::fingerprints::Fingerprinter;
use super::resources::{DEPTH, Resources};
use super::site::Site;
use super::stream::Event;
use super::views;
use crate::allocation::back::bury;
use crate::allocation::stream_ordered;
use crate::config::BLOCK_BYTES;
use crate::cuda::CUresult;
use crate::device::{Device, vmm};
use crate::driver::driver;
use crate::memory::extent::{ExtentId, Shadow, Slot};
use crate::turn::{dead, run_state};
use crate::{line, shadow};

/// What a swap-out did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Bytes of extents released.
    pub released: u64,
    /// Bytes that crossed the link.
    pub copied: u64,
    /// Bytes released without a copy.
    pub clean: u64,
    /// Why it ended early; what is not released is resident.
    pub failure: Option<String>,
}

/// An extent on its way out.
struct Job {
    id: ExtentId,
    /// Where it can be read.
    site: Site,
    bytes: u64,
    /// Where its fingerprints go, if they are taken.
    results: Option<usize>,
    prints: Option<Vec<Fingerprint>>,
    dirty: Vec<usize>,
    event: Option<Event>,
}

/// The extents' way out of `device`, with the tools of `resources`. Each begins only while nothing runs (S2).
pub struct Outward<'a> {
    device: &'static Device,
    resources: &'a mut Resources,
    /// For `Released`, where an agent ordered it.
    ticket: Option<Ticket>,
    outcome: Outcome,
    free_results: Vec<usize>,
}

impl<'a> Outward<'a> {
    /// Nothing under way.
    pub fn new(device: &'static Device, resources: &'a mut Resources, ticket: Option<Ticket>) -> Outward<'a> {
        Outward {
            device,
            resources,
            ticket,
            outcome: Outcome::default(),
            free_results: (0..=DEPTH).collect(),
        }
    }

    /// Moves them out in this order, and says of each that it is released.
    pub fn run(mut self, extents: &[ExtentId]) -> Outcome {
        let mut next = extents.iter().copied();
        let mut printing: VecDeque<Job> = VecDeque::new();
        let mut copying: VecDeque<Job> = VecDeque::new();
        loop {
            while printing.len() < DEPTH && self.outcome.failure.is_none() {
                let Some(id) = next.next() else { break };
                if let Some(job) = self.begin(id) {
                    printing.push_back(job);
                }
            }
            while copying.len() < DEPTH
                && let Some(job) = printing.front()
                && (copying.is_empty() || Self::is_printed(job))
            {
                let Some(job) = printing.pop_front() else { break };
                if let Some(job) = self.copy(job) {
                    copying.push_back(job);
                }
            }
            let Some(job) = copying.pop_front() else {
                if printing.is_empty() && (self.outcome.failure.is_some() || next.len() == 0) {
                    return self.outcome;
                }
                continue;
            };
            self.release(job);
        }
    }

    fn fail(&mut self, what: &str, code: CUresult) {
        if code.is_final() {
            dead::on_device_error(code);
        }
        let why = format!("{what}: {}", driver().error_name(code));
        self.outcome.failure.get_or_insert(why);
    }

    /// Resident -> leaving, and its fingerprints are being taken if that can help.
    fn begin(&mut self, id: ExtentId) -> Option<Job> {
        let device = self.device;
        let prints = self.resources.prints.as_ref().map(Fingerprinter::most_blocks);
        // What is allocated in it from now on has no contents before the client runs again.
        let chunk = device.state().space.get(id).map(|extent| extent.span);
        let begun = run_state::while_drained(|| {
            let unused = chunk.is_some_and(stream_ordered::is_unused);
            let mut state = device.state();
            if !state.leaving.is_empty() {
                return Err("the context that this works in is going away");
            }
            let Some(extent) = state.space.get(id).filter(|extent| extent.can_leave()) else {
                return Ok(None);
            };
            let (start, bytes) = (extent.start, extent.bytes);
            let printable = prints.is_some_and(|most| bytes / BLOCK_BYTES <= most as u64);
            // Nothing could touch it since it came in, so its shadow is up to date, or it never had contents.
            let untouched = run_state::is_untouched(extent.arrived);
            let saved = unused || untouched && (!extent.contents || extent.has_whole_shadow());
            state.space.begin_departure(id);
            let extent = state.space.extent_mut(id);
            extent.contents = !unused && (extent.contents || !untouched);
            let job = Job {
                id,
                site: Site::At(start),
                bytes,
                results: None,
                prints: None,
                dirty: Vec::new(),
                event: None,
            };
            Ok(Some((job, saved, !saved && printable && extent.backoff.take())))
        });
        // A `Run` may have come since the swap-out was ordered.
        let (mut job, saved, wanted) = match begun.unwrap_or(Err("the client is not stopped any more")) {
            Ok(begun) => begun?,
            Err(why) => {
                self.outcome.failure.get_or_insert_with(|| why.to_owned());
                return None;
            }
        };
        if saved {
            return Some(job);
        }
        match views::reach(device, id) {
            Ok(site) => job.site = site,
            Err(code) => {
                self.fail("cannot reach an extent", code);
                self.abandon(job);
                return None;
            }
        }
        job.dirty = (0..(job.bytes / BLOCK_BYTES) as usize).collect();
        if wanted
            && let Site::At(start) = job.site
            && let Some(slot) = self.free_results.pop()
            && let Some(prints) = &self.resources.prints
        {
            // SAFETY: the extent is resident and busy with us, and its place for results is free until `copy`.
            let started = unsafe { prints.start(&self.resources.inward, slot, start, job.dirty.len()) }
                .and_then(|()| self.resources.mark(|resources| &resources.inward));
            match started {
                Ok(event) => (job.results, job.event) = (Some(slot), Some(event)),
                Err(code) => {
                    // It may have started, and would read what is unmapped soon.
                    let _ = self.resources.inward.synchronize();
                    self.free_results.push(slot);
                    if code.is_final() {
                        self.fail("cannot take fingerprints", code);
                    }
                }
            }
        }
        Some(job)
    }

    fn is_printed(job: &Job) -> bool {
        job.event.as_ref().is_none_or(|event| event.done() != Ok(false))
    }

    /// Compares, then starts to copy what differs. `None`: it failed and the extent is resident again.
    fn copy(&mut self, mut job: Job) -> Option<Job> {
        if self.outcome.failure.is_some() {
            self.abandon(job);
            return None;
        }
        if let Some(event) = job.event.take() {
            let taken = event.wait();
            self.resources.keep(event);
            if let (Some(slot), Some(prints)) = (job.results.take(), &self.resources.prints) {
                self.free_results.push(slot);
                job.prints = taken.is_ok().then(|| prints.results(slot, job.dirty.len()));
            }
            if let Err(code) = taken
                && code.is_final()
            {
                self.fail("fingerprints failed", code);
                self.abandon(job);
                return None;
            }
        }
        if job.dirty.is_empty() {
            return Some(job);
        }
        if !self.compare(&mut job) {
            self.outcome.failure.get_or_insert_with(|| "no host memory is left for shadows".to_owned());
            self.abandon(job);
            return None;
        }
        let started = self.start_copies(&job);
        let recorded = started.and_then(|()| self.resources.mark(|resources| &resources.outward));
        match recorded {
            Ok(event) => {
                job.event = Some(event);
                Some(job)
            }
            Err(code) => {
                self.fail("cannot copy to the host", code);
                // What was started must not write to the shadow later.
                let _ = self.resources.outward.synchronize();
                self.abandon(job);
                None
            }
        }
    }

    /// Leaves in `job.dirty` the blocks that must be copied, each with a place in an arena and no fingerprint. False: there
    /// is no place.
    fn compare(&self, job: &mut Job) -> bool {
        let mut state = self.device.state();
        let extent = state.space.extent_mut(job.id);
        let mut compared = false;
        let mut dirty = Vec::new();
        let mut zeroed = Vec::new();
        for (index, block) in extent.blocks.iter_mut().enumerate() {
            let print = job.prints.as_ref().map(|prints| prints[index]);
            compared |= print.is_some() && block.print.is_some();
            match print {
                Some(print) if print.is_zero() => {
                    if let Shadow::Slot(slot) = block.shadow {
                        zeroed.push(slot);
                    }
                    (block.shadow, block.print) = (Shadow::Zero, None);
                }
                Some(print) if block.print == Some(print.hash) && matches!(block.shadow, Shadow::Slot(_)) => {
                }
                _ => {
                    block.print = None;
                    dirty.push(index);
                }
            }
        }
        if job.prints.is_some() {
            extent.backoff.learn(compared, extent.blocks.len() - dirty.len(), extent.blocks.len());
        }
        let homeless: Vec<usize> = dirty
            .iter()
            .copied()
            .filter(|index| !matches!(extent.blocks[*index].shadow, Shadow::Slot(_)))
            .collect();
        drop(state);
        shadow::give_back(self.device, zeroed);
        let slots = if homeless.is_empty() {
            Some(Vec::new())
        } else {
            shadow::take(self.device, homeless.len()).or_else(|| {
                // Shadows of extents that stay are the first to go; those still to come lose their fingerprints.
                shadow::forget(homeless.len());
                shadow::take(self.device, homeless.len())
            })
        };
        let Some(slots) = slots else { return false };
        let mut state = self.device.state();
        let extent = state.space.extent_mut(job.id);
        for (index, slot) in homeless.into_iter().zip(slots) {
            extent.blocks[index].shadow = Shadow::Slot(slot);
        }
        job.dirty = dirty;
        true
    }

    fn start_copies(&self, job: &Job) -> Result<(), CUresult> {
        let slots: Vec<(usize, Slot)> = {
            let state = self.device.state();
            let extent = state.space.extent(job.id);
            debug_assert!(job.dirty.iter().all(|index| extent.blocks[*index].print.is_none()), "S3");
            let slot = |index: &usize| match extent.blocks[*index].shadow {
                Shadow::Slot(slot) => Some((*index, slot)),
                Shadow::None | Shadow::Zero => None,
            };
            job.dirty.iter().filter_map(slot).collect()
        };
        for run in runs(&slots) {
            let (index, slot) = run[0];
            let (offset, bytes) = (index as u64 * BLOCK_BYTES, run.len() as u64 * BLOCK_BYTES);
            // SAFETY: the extent is in place until `release`, after the event; the blocks of the arena are its own.
            unsafe { job.site.copy_out(&self.resources.outward, offset, shadow::address(slot), bytes) }?;
        }
        Ok(())
    }

    /// Waits for the copy, then gives the memory back to the driver.
    fn release(&mut self, mut job: Job) {
        if let Some(event) = job.event.take() {
            let copied = event.wait();
            self.resources.keep(event);
            if let Err(code) = copied {
                self.fail("a copy to the host failed", code);
                self.abandon(job);
                return;
            }
        }
        if dead::is_dead() {
            self.abandon(job);
            return;
        }
        let handle = {
            let mut state = self.device.state();
            let extent = state.space.extent_mut(job.id);
            if let Some(prints) = &job.prints {
                for &index in &job.dirty {
                    extent.blocks[index].print = Some(prints[index].hash);
                }
            }
            debug_assert!(!extent.contents || extent.has_whole_shadow(), "S3");
            extent.handle
        };
        debug_assert!(run_state::is_drained(), "S2: memory leaves while the application may run");
        // Nothing of the application has run since the drain, and our own copy and kernel are complete.
        if let Err(code) = views::take_away(self.device, job.id) {
            self.fail("cannot unmap an extent", code);
            self.abandon(job);
            return;
        }
        // SAFETY: the handle is the one that was mapped there, and is mapped nowhere now.
        if let Err(code) = unsafe { vmm::release(handle) } {
            self.fail("cannot release an extent", code);
        }
        let copied = job.dirty.len() as u64 * BLOCK_BYTES;
        let clean = job.bytes - copied;
        // A `Hello` comes before both, and the agent hears what was released, or after both, and hears it by that.
        let device = self.device;
        let mut remains = None;
        let bytes = line::release(self.ticket, device.id, || {
            let mut state = device.state();
            // Under one lock: once the extent has left, whoever frees it takes it out of the records, and its id is another's.
            let span = state.space.extent(job.id).span;
            let bytes = state.space.finish_departure(job.id);
            remains = state.space.reap(span);
            state.announce = true;
            device.publish(&state);
            bytes
        });
        if let Some(counters) = self.device.counters() {
            use std::sync::atomic::Ordering::AcqRel;
            counters.copied_out.fetch_add(copied, AcqRel);
            counters.clean.fetch_add(clean, AcqRel);
        }
        bury(self.device, remains);
        self.outcome.released += bytes;
        self.outcome.copied += copied;
        self.outcome.clean += clean;
    }

    /// Leaving -> resident. Its memory was not released, and blocks whose shadow may have been written have no fingerprint.
    fn abandon(&mut self, job: Job) {
        if let Some(event) = job.event {
            let _ = event.wait();
            self.resources.keep(event);
        }
        if let Some(slot) = job.results {
            self.free_results.push(slot);
        }
        let mut state = self.device.state();
        state.space.abandon_departure(job.id);
        let extent = state.space.extent_mut(job.id);
        extent.arrived = None;
        let span = extent.span;
        let remains = state.space.reap(span);
        drop(state);
        bury(self.device, remains);
        run_state::reconsider();
    }
}

/// Groups of blocks that follow each other on the device and in an arena alike.
pub fn runs(blocks: &[(usize, Slot)]) -> impl Iterator<Item = &[(usize, Slot)]> {
    blocks
        .chunk_by(|(index, Slot(slot)), (next, Slot(next_slot))| index + 1 == *next && slot + 1 == *next_slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_either_side_is_interrupted() {
        let blocks = [(0, Slot(5)), (1, Slot(6)), (3, Slot(7)), (4, Slot(8)), (5, Slot(20))];
        let lengths: Vec<usize> = runs(&blocks).map(<[_]>::len).collect();
        assert_eq!(lengths, [2, 2, 1]);
    }
}

//! Swap-in: as the grant allows, memory is made for an extent, mapped, and its copy started while the one before is still
//! on the link. A failure leaves the shadow as it is, and the extent missing (S6).

#![expect(unsafe_code, reason = "the driver is called")]

use std::collections::VecDeque;

use super::outward::runs;
use super::resources::{DEPTH, Resources};
use super::stream::Event;
use super::views;
use crate::allocation::back::{Backed, back, bury, unback};
use crate::config::BLOCK_BYTES;
use crate::cuda::CUresult;
use crate::device::Device;
use crate::driver::driver;
use crate::memory::extent::{ExtentId, Presence, Shadow, Slot};
use crate::turn::{dead, run_state};
use crate::{log, shadow};

/// What [`Inward::begin_one`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Another extent is on its way.
    Began,
    /// Nothing is missing, or the grant is used up.
    Nothing,
    /// The device has no room although the grant has.
    NoRoom,
}

/// An extent on its way in.
#[derive(Debug)]
struct Arrival {
    id: ExtentId,
    copied: u64,
    /// None where it never had contents: nothing is copied.
    event: Option<Event>,
}

/// The extents' way in.
#[derive(Debug, Default)]
pub struct Inward {
    missing: VecDeque<ExtentId>,
    arriving: VecDeque<Arrival>,
}

impl Inward {
    /// Whether as many are on their way as may be.
    pub fn is_full(&self) -> bool {
        self.arriving.len() >= DEPTH
    }

    /// Whether none is on its way.
    pub fn is_empty(&self) -> bool {
        self.arriving.is_empty()
    }

    /// Starts with one more extent. Without resources only those can come that never had contents.
    pub fn begin_one(&mut self, device: &'static Device, resources: Option<&mut Resources>) -> Step {
        let Some(id) = self.next(device, resources.is_some()) else { return Step::Nothing };
        match back(device, id) {
            Backed::Yes => {}
            Backed::NotMissing => return Step::Began,
            Backed::NoGrant => {
                self.missing.push_front(id);
                return Step::Nothing;
            }
            Backed::Refused(code) => {
                self.missing.push_front(id);
                if code.is_final() {
                    dead::on_device_error(code);
                } else if code != CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                    log::warning!("cannot make memory for an extent: {}", driver().error_name(code));
                }
                return Step::NoRoom;
            }
        }
        if let Err(code) = views::put_in_place(device, id) {
            unback(device, id, code);
            return Step::NoRoom;
        }
        let Some(resources) = resources.filter(|_| device.state().space.extent(id).contents) else {
            self.arriving.push_back(Arrival { id, copied: 0, event: None });
            return Step::Began;
        };
        let started = Self::start_copies(device, resources, id).and_then(|copied| {
            let event = resources.mark(|resources| &resources.inward)?;
            Ok(Arrival { id, copied, event: Some(event) })
        });
        match started {
            Ok(arrival) => self.arriving.push_back(arrival),
            Err(code) => {
                let _ = resources.inward.synchronize();
                Self::undo(device, id, code);
                return Step::NoRoom;
            }
        }
        Step::Began
    }

    /// Completes the one that began first: waits for it, unless `only_if_done`. Says whether it did.
    pub fn finish_one(
        &mut self,
        device: &'static Device,
        resources: Option<&mut Resources>,
        only_if_done: bool,
    ) -> bool {
        let Some(first) = self.arriving.front() else { return false };
        if only_if_done && first.event.as_ref().is_some_and(|event| event.done() == Ok(false)) {
            return false;
        }
        let Some(arrival) = self.arriving.pop_front() else { return false };
        if let Some(event) = arrival.event {
            let arrived = event.wait();
            if let Some(resources) = resources {
                resources.keep(event);
            }
            if let Err(code) = arrived {
                Self::undo(device, arrival.id, code);
                return true;
            }
        }
        let untouched = run_state::untouched_since();
        let mut state = device.state();
        state.space.finish_arrival(arrival.id, untouched);
        state.copied_in += arrival.copied;
        if let Some(counters) = device.counters() {
            counters.copied_in.fetch_add(arrival.copied, std::sync::atomic::Ordering::AcqRel);
        }
        device.publish(&state);
        let span = state.space.extent(arrival.id).span;
        let remains = state.space.reap(span);
        drop(state);
        bury(device, remains);
        true
    }

    fn next(&mut self, device: &Device, with_contents: bool) -> Option<ExtentId> {
        let state = device.state();
        let missing = |id: ExtentId| {
            let extent = state.space.get(id)?;
            let wanted = match extent.presence() {
                Presence::Absent => true,
                Presence::Swapped => with_contents,
                Presence::Arriving | Presence::Resident | Presence::Leaving => false,
            };
            (wanted && state.space.is_anybodys(extent)).then_some(id)
        };
        if self.missing.is_empty() {
            if state.space.accounts().missing == 0 {
                return None;
            }
            self.missing = state.space.extents().filter_map(|(id, _)| missing(id)).collect();
        }
        while let Some(id) = self.missing.pop_front() {
            if missing(id).is_some() {
                return Some(id);
            }
        }
        None
    }

    fn start_copies(device: &Device, resources: &Resources, id: ExtentId) -> Result<u64, CUresult> {
        let (slots, zeros) = {
            let state = device.state();
            let extent = state.space.extent(id);
            debug_assert!(extent.has_whole_shadow(), "S4: a shadow was given up too early");
            let mut slots: Vec<(usize, Slot)> = Vec::new();
            let mut zeros: Vec<usize> = Vec::new();
            for (index, block) in extent.blocks.iter().enumerate() {
                match block.shadow {
                    Shadow::Slot(slot) => slots.push((index, slot)),
                    Shadow::Zero | Shadow::None => zeros.push(index),
                }
            }
            (slots, zeros)
        };
        let site = views::reach(device, id)?;
        let range = |first: usize, blocks: usize| (first as u64 * BLOCK_BYTES, blocks as u64 * BLOCK_BYTES);
        for run in runs(&slots) {
            let (index, slot) = run[0];
            let (offset, bytes) = range(index, run.len());
            // SAFETY: the extent is arriving, so in place and ours; its shadow stays until it is resident (S4).
            unsafe { site.copy_in(&resources.inward, offset, shadow::address(slot), bytes) }?;
        }
        for run in zeros.chunk_by(|index, next| index + 1 == *next) {
            let (offset, bytes) = range(run[0], run.len());
            // SAFETY: as above. Nothing promises that new memory is cleared.
            unsafe { site.clear(&resources.inward, offset, bytes) }?;
        }
        Ok(slots.len() as u64 * BLOCK_BYTES)
    }

    /// Arriving -> missing: the memory goes back, the shadow stays.
    fn undo(device: &Device, id: ExtentId, code: CUresult) {
        if code.is_final() {
            // No call of the application reaches it any more but the one that frees it, which must find it at rest.
            let mut state = device.state();
            state.space.finish_arrival(id, None);
            let span = state.space.extent(id).span;
            let remains = state.space.reap(span);
            drop(state);
            dead::on_device_error(code);
            bury(device, remains);
            return;
        }
        log::warning!("a copy to the device failed: {}", driver().error_name(code));
        if let Err(code) = views::take_away(device, id) {
            log::warning!("cannot take back memory: {}", driver().error_name(code));
        }
        unback(device, id, code);
    }
}

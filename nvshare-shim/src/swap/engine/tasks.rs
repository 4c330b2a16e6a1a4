//! What a swap thread does when it is told to: memory leaves, the context is left, host memory is given up.

use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use nvshare_common::bytes::{Bytes, DeviceRange};
use nvshare_common::ids::Ticket;
use nvshare_common::protocol::ToAgent;

use super::Engine;
use crate::allocation::pools;
use crate::config::BLOCK_BYTES;
use crate::device::tasks::Task;
use crate::device::{Device, home};
use crate::memory::extent::ExtentId;
use crate::memory::virtuals;
use crate::shadow::pins;
use crate::swap::outward::{Outcome, Outward};
use crate::swap::plan::{Candidate, choose};
use crate::swap::resources::Resources;
use crate::turn::{dead, run_state};
use crate::{line, log, shadow};

impl Engine {
    pub(super) fn obey(&mut self, task: Task) {
        match task {
            Task::SwapOut { ticket, bytes, coldest } => self.swap_out(ticket, bytes, &coldest),
            Task::Everything(answer) => {
                let _ = answer.send(self.can_come_back().and_then(|()| self.everything()));
            }
            Task::Restore(answer) => self.restore(&answer),
            Task::Withdraw(done) => {
                self.withdraw();
                let _ = done.send(());
            }
            Task::Trim { bytes } => {
                let given = shadow::trim(bytes);
                log::debug!("gave up {} of {} of host memory", Bytes(given), Bytes(bytes));
            }
            Task::Leave { context, left, gone } => self.leave(context, &left, &gone),
        }
    }

    /// Uses nothing in `context` until it is said what came of the call that may end it. Nothing is given back before: that
    /// would wait for the application's kernels, for a call that perhaps ends nothing. What was in a context that is gone
    /// went with it.
    fn leave(&mut self, context: usize, left: &Sender<()>, gone: &Receiver<bool>) {
        let resources = self.resources.take_if(|resources| resources.context == context);
        if let Some(resources) = &resources {
            resources.leave();
        }
        {
            // Before the call: the next context may have the same handle, and be adopted, before this thread runs again.
            let mut state = self.device.state();
            if state.home == Some(context) {
                state.home = None;
            }
        }
        let gone = shadow::while_context_may_end(context, || {
            let _ = left.send(());
            gone.recv().unwrap_or(true)
        });
        if !gone {
            self.resources = resources.and_then(Resources::come_back);
        }
        home::has_left(self.device, context, gone);
    }

    fn swap_out(&mut self, ticket: Ticket, bytes: u64, coldest: &[DeviceRange]) {
        let began = Instant::now();
        let device = self.device;
        if run_state::is_drained() {
            pools::trim_graphs(device);
        }
        let unused = line::release(Some(ticket), device.id, || device.state().space.give_up_slack(bytes));
        let need = bytes - unused;
        let outcome = if need > 0 { self.out(need, coldest, Some(ticket)) } else { Outcome::default() };
        log::debug!(
            "swapped out {} of {} on {} in {:?}: {} copied, {} clean",
            Bytes(outcome.released),
            Bytes(need),
            device.id,
            began.elapsed(),
            Bytes(outcome.copied),
            Bytes(outcome.clean)
        );
        line::send(&match outcome.failure {
            // Where there is no more, for some of it was shared or freed since, the greater part will do.
            None if outcome.released >= need || (unused + outcome.released) * 2 >= bytes => {
                ToAgent::SwapOutDone { ticket, copied: Bytes(outcome.copied), clean: Bytes(outcome.clean) }
            }
            None => {
                ToAgent::SwapFailed { ticket, why: "everything that can be moved is out already".to_owned() }
            }
            // The driver has taken everything back.
            Some(_) if dead::is_over() => ToAgent::SwapFailed { ticket, why: "the process ends".to_owned() },
            Some(why) if dead::is_dead() => ToAgent::SwapFailed { ticket, why },
            Some(why) => {
                log::warning!("a swap-out of {} ended early: {why}", Bytes(need));
                ToAgent::SwapFailed { ticket, why }
            }
        });
    }

    /// Moves at least `need` bytes out, if there are as many.
    pub(super) fn out(&mut self, need: u64, coldest: &[DeviceRange], ticket: Option<Ticket>) -> Outcome {
        let failed = |why: &str| Outcome { failure: Some(why.to_owned()), ..Outcome::default() };
        if dead::is_dead() {
            return failed("the device is dead");
        }
        if !run_state::is_drained() {
            return failed("the client is not stopped");
        }
        if self.resources.is_none() {
            return failed("the application has no context on this device");
        }
        if let Some(user) = self.other_user() {
            return failed(&format!(
                "{}: the memory may be in use without a call that is seen, and stays on the device",
                user.said
            ));
        }
        let Some(resources) = &mut self.resources else { return failed("the engine lost its context") };
        // Arenas that came just before are wanted now.
        while self.device.state().leaving.is_empty() && shadow::pin_one(resources.context) {}
        let chosen: Vec<ExtentId> = choose(&candidates(self.device), coldest, need)
            .into_iter()
            .map(|candidate| candidate.id)
            .collect();
        let _guard = pins::hold();
        Outward::new(self.device, resources, ticket).run(&chosen)
    }
}

/// What could leave, and what that would probably cost.
fn candidates(device: &Device) -> Vec<Candidate> {
    let state = device.state();
    state
        .space
        .extents()
        .filter(|(_, extent)| extent.can_leave())
        .map(|(id, extent)| {
            let dirty = if run_state::is_untouched(extent.arrived) {
                0
            } else {
                extent.blocks.iter().filter(|block| block.print.is_none()).count() as u64
            };
            // By the address that the application knows.
            let behind = state.space.behind(id).and_then(|(behind, offset)| {
                Some(virtuals::look().views(behind.number).first()?.start + offset)
            });
            let start = behind.unwrap_or(extent.start);
            Candidate { id, start, bytes: extent.bytes, cost: dirty * BLOCK_BYTES }
        })
        .collect()
}

//! All of a device's memory out, or all of it in: for a process without an agent.

#![expect(unsafe_code, reason = "the driver is called")]

use std::sync::mpsc::Sender;

use nvshare_common::bytes::Bytes;

use super::Engine;
use crate::allocation::{pools, room};
use crate::config::BLOCK_BYTES;
use crate::device::Device;
use crate::driver::driver;
use crate::shadow::pins;
use crate::swap::inward::Step;
use crate::{log, shadow};

impl Engine {
    /// Whether what is forced out surely comes back: with no agent nobody keeps a reserve.
    pub(super) fn can_come_back(&self) -> Result<(), String> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: places for the two answers; the context of our resources is current in this thread.
        let asked = self.resources.is_some()
            && unsafe { driver().cuMemGetInfo_v2(&raw mut free, &raw mut total) }.ok();
        let resident = self.device.state().space.accounts().resident;
        if asked && (free as u64) < room::beside(total as u64, resident) {
            return Err(format!("only {} of the card are free", Bytes(free as u64)));
        }
        Ok(())
    }

    pub(super) fn everything(&mut self) -> Result<(), String> {
        let need = self.device.state().space.accounts().resident;
        if self.resources.is_none() {
            return if need == 0 { Ok(()) } else { Err("no context to work in".to_owned()) };
        }
        pools::trim_graphs(self.device);
        let (lacking, free) = (blocks_without_shadow(self.device), shadow::free_blocks());
        if lacking > free {
            shadow::make_own((lacking - free) * BLOCK_BYTES)?;
        }
        match self.out(u64::MAX, &[], None).failure {
            None => Ok(()),
            Some(why) => Err(why),
        }
    }

    /// All or nothing: two clients that hold half each would wait for one another for ever.
    pub(super) fn restore(&mut self, answer: &Sender<bool>) {
        self.device.state().space.set_terms(|terms| terms.unlimited = true);
        self.guard = Some(pins::hold());
        while self.inward.begin_one(self.device, self.resources.as_mut()) == Step::Began {
            if self.inward.is_full() {
                self.inward.finish_one(self.device, self.resources.as_mut(), false);
            }
        }
        pools::graphs_return(self.device);
        self.finish_arrivals();
        let all = self.device.state().space.accounts().missing == 0;
        if !all {
            self.withdraw();
        }
        let _ = answer.send(all);
    }

    /// Leaves the device to others. What came in just before is untouched and goes without a copy.
    pub(super) fn withdraw(&mut self) {
        self.device.state().space.set_terms(|terms| {
            terms.unlimited = false;
            terms.granted = terms.resident + terms.unswappable;
        });
        if let Err(why) = self.everything() {
            log::debug!("not everything left {}: {why}", self.device.id);
        }
        // What was freed meanwhile is nobody's grant.
        self.device.state().space.give_up_slack(u64::MAX);
    }
}

/// How many blocks on the device have no place in host memory yet.
fn blocks_without_shadow(device: &Device) -> u64 {
    let state = device.state();
    let leaving = state.space.extents().filter(|(_, extent)| extent.can_leave());
    leaving.map(|(_, extent)| (extent.blocks.len() - extent.slots().count()) as u64).sum()
}

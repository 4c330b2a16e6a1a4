//! Who else may use the device's memory: while somebody does nothing leaves, and what is out is wanted back.

use std::time::Instant;

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::ToAgent;

use super::{Engine, IDLE_PAUSE};
use crate::swap::dma;
use crate::turn::want;
use crate::{line, log};

impl Engine {
    /// Who else may use this memory; the agent hears of it when that changes.
    pub(super) fn other_user(&mut self) -> Option<dma::User> {
        let user = dma::user();
        let reason = user.as_ref().map(|user| user.reason);
        let before = std::mem::replace(&mut self.kept_for, reason);
        if reason != before {
            let movable = {
                let state = self.device.state();
                let all = state.space.extents().filter(|(_, extent)| !extent.stays());
                all.map(|(_, extent)| extent.bytes).sum()
            };
            for (reason, bytes) in
                before.map(|reason| (reason, 0)).into_iter().chain(reason.map(|reason| (reason, movable)))
            {
                line::send(&ToAgent::Unswappable {
                    device: self.device.id,
                    bytes: Bytes(bytes),
                    reason: reason.to_owned(),
                });
            }
        }
        user
    }

    /// Memory that is out is wanted back when somebody turns up who may use it without a call that is seen.
    pub(super) fn look_around(&mut self) {
        if self.device.state().space.accounts().missing == 0
            || self.looked.is_some_and(|looked| looked.elapsed() < IDLE_PAUSE)
        {
            return;
        }
        self.looked = Some(Instant::now());
        let before = self.kept_for;
        if let Some(user) = self.other_user()
            && before.is_none()
        {
            log::warning!("{}: memory that is swapped out is wanted back, and will stay", user.said);
            want::want_to_run();
        }
    }
}

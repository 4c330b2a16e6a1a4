//! What is made only while the application rests: what the engine has in its context.

use std::time::{Duration, Instant};

use super::{Engine, NO_ROOM_PAUSE};
use crate::device::home;
use crate::driver::driver;
use crate::log;
use crate::swap::resources::Resources;
use crate::turn::calm::Calm;
use crate::turn::{dead, run_state};

/// How long after a try to make what the engine has in a context the next one is made, at first and at most, where the
/// application did not rest.
pub(super) const REST_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_mins(1));

impl Engine {
    /// Whether there is something to be made that has to wait until the application rests.
    pub(super) fn waits_for_rest(&self) -> bool {
        match &self.resources {
            None => self.device.state().home.is_some(),
            Some(resources) => resources.lacks(self.device),
        }
    }

    /// Makes what the engine has in the context, and what is lacking of it: in calm, for much of that waits for the application's
    /// work.
    pub(super) fn make_resources(&mut self) {
        if dead::has_failed(self.device) {
            return;
        }
        if self.resources.is_none()
            && Instant::now() >= self.rest.0
            && self.device.state().space.accounts().total > 0
        {
            // Memory that belongs to no context outlives the one that the engine was at home in.
            home::elect(self.device);
        }
        if !self.waits_for_rest() {
            return;
        }
        let awaited = self.resources.is_none() && self.device.state().space.has_swapped();
        if !awaited && !run_state::is_drained() && Instant::now() < self.rest.0 {
            return;
        }
        let calm = match Calm::now() {
            Some(calm) => calm,
            None if awaited => Calm::none_to_be_had(),
            None => {
                let (_, pause) = self.rest;
                self.rest = (Instant::now() + pause, (pause * 2).min(REST_PAUSE.1));
                return;
            }
        };
        self.rest = (Instant::now(), REST_PAUSE.0);
        if let Some(resources) = &mut self.resources {
            resources.prepare(self.device, &calm);
            return;
        }
        let Some(home) = self.device.state().home else { return };
        match Resources::open(self.device, home, &calm) {
            Ok(resources) => (self.resources, self.complained) = (Some(resources), false),
            Err(code) => {
                if code.is_final() {
                    dead::on_device_error(code);
                }
                if !std::mem::replace(&mut self.complained, true) {
                    log::warning!(
                        "cannot work in the application's context on {} yet: {}",
                        self.device.id,
                        driver().error_name(code)
                    );
                }
                if code.is_gone() {
                    // The next allocation is made in one that lives; or there is another that has some.
                    self.device.state().home = None;
                    self.rest = (Instant::now() + NO_ROOM_PAUSE, REST_PAUSE.0);
                } else {
                    // Mostly for want of memory, which others will give back.
                    self.no_room_until = Some(Instant::now() + NO_ROOM_PAUSE);
                    self.rest = (Instant::now() + NO_ROOM_PAUSE, REST_PAUSE.0);
                }
            }
        }
    }
}

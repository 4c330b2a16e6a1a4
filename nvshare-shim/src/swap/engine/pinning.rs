//! Pinning host memory for shadows, and unpinning it, while the application runs: it shall not notice.

use std::time::{Duration, Instant};

use nvshare_common::probe::Call;

use super::{CALM, Engine, PIN_PAUSE};
use crate::streams::Current;
use crate::turn::calm::Calm;
use crate::turn::run_state;
use crate::{counters, gate, shadow};

/// How often, and after how long once more, it is looked whether anybody is inside before a piece is pinned.
const MOMENTS: u32 = 100;
const MOMENT: Duration = Duration::from_micros(20);
/// After so long without such a moment it is done all the same.
const MOMENT_PATIENCE: Duration = Duration::from_millis(200);
/// How long one that does not rest is left alone between two pieces that are unpinned.
const UNREST: Duration = Duration::from_secs(1);

/// Waits a little for a moment in which no thread of the application submits anything.
fn nobody_inside() -> bool {
    let mut tries = 0..MOMENTS;
    tries.any(|_| {
        let nobody = gate::inside() == 0;
        if !nobody {
            std::thread::sleep(MOMENT);
        }
        nobody
    })
}

impl Engine {
    /// Pins or unpins one piece of host memory, if there is one and the application would not notice.
    pub(super) fn change_pins(&mut self) -> bool {
        // What the engine has in the context may have to wait for long until a busy program rests, and who is not stopped before it has host memory
        // would never rest: pinning needs the context alone.
        let (home, leaving) = {
            let state = self.device.state();
            (state.home, !state.leaving.is_empty())
        };
        let context = match (&self.resources, home) {
            (Some(resources), _) => resources.context,
            (None, Some(home)) if !leaving && (shadow::is_to_be_pinned() || shadow::is_to_be_unpinned()) => {
                home
            }
            _ => return false,
        };
        // It lives: who ends it waits for this thread first.
        let pushed =
            self.resources.is_none().then(|| Current::push(std::ptr::with_exposed_provenance_mut(context)));
        if matches!(pushed, Some(Err(_))) {
            return false;
        }
        // Beside a thread that is stuck in a full stream pinning waits (seen on an H200), and while memory is missing the
        // application waits for this thread. Yet its agent takes from it what others lack only once there is host memory: so,
        // in calm. Otherwise in moments in which nobody is in the driver: whoever comes then waits for us, and not we for it. A
        // program that is always there, in copies that wait say, is not waited for for long: nobody could take from it.
        if run_state::missing() > 0 && !run_state::is_drained() {
            if !shadow::is_to_be_pinned() && !shadow::is_to_be_unpinned() {
                return false;
            }
            // What is given up others may be waiting for, too.
            return Calm::now().is_some_and(|calm| shadow::pin_one(context) || shadow::unpin_one(&calm));
        }
        let quiet = gate::is_shut() || self.pinned.is_none_or(|pinned| pinned.elapsed() >= PIN_PAUSE);
        let wanted = quiet && shadow::is_to_be_pinned();
        if !shadow::is_to_be_pinned() {
            self.no_moment = None;
        }
        let in_vain = self.no_moment.is_some_and(|since| since.elapsed() > MOMENT_PATIENCE);
        let moment = wanted && (in_vain || nobody_inside());
        if wanted && !moment {
            self.no_moment.get_or_insert_with(Instant::now);
        }
        let changed = (moment && shadow::pin_one(context)) || (quiet && self.unpin_one());
        if changed {
            self.pinned = Some(Instant::now());
        }
        changed
    }

    /// Unpins one piece if there is one and nothing runs: the application is stopped, or has submitted nothing for a while. One
    /// that always submits is held back for it now and then: its agent counts on the host memory until it is back.
    fn unpin_one(&mut self) -> bool {
        if !shadow::is_to_be_unpinned() {
            self.unrest = None;
            return false;
        }
        let counts = &counters::page().application;
        let launches = [Call::Launch, Call::GraphLaunch]
            .map(|call| counts[call as usize].load(std::sync::atomic::Ordering::Relaxed));
        let rests = match self.calm {
            Some((before, since)) if before == launches => since.elapsed() >= CALM,
            _ => {
                self.calm = Some((launches, Instant::now()));
                false
            }
        };
        let since = *self.unrest.get_or_insert_with(Instant::now);
        if !rests && !run_state::is_drained() && since.elapsed() < UNREST {
            return false;
        }
        self.unrest = None;
        Calm::now().is_some_and(|calm| shadow::unpin_one(&calm))
    }
}

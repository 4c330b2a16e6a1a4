//! The swap thread of one device: does its [`tasks`] one by one, and between them brings in what is missing as far as the grant
//! reaches. [`pinning`], [`rest`], [`users`]: what it looks after besides; [`everything`]: without an agent.

mod everything;
mod pinning;
mod rest;
mod tasks;
mod users;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nvshare_common::bytes::Bytes;
use nvshare_common::protocol::ToAgent;

use self::rest::REST_PAUSE;
use super::inward::{Inward, Step};
use super::resources::Resources;
use crate::allocation::{free, pools};
use crate::device::Device;
use crate::shadow::pins::{self, PinGuard};
use crate::streams::Relaxed;
use crate::turn::{dead, run_state};
use crate::{line, log, shadow};

/// How long nothing is tried after the device had no room although the grant had.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(20);
/// How often quarantine is looked at.
const QUARANTINE_PAUSE: Duration = Duration::from_millis(5);
/// Between pieces of host memory that are pinned while the application runs: its launches stall for each a little.
const PIN_PAUSE: Duration = Duration::from_millis(5);
/// How long nothing was launched when host memory is unpinned beside the application, and how often that is looked at.
const CALM: Duration = Duration::from_millis(200);
/// After an error of our own.
const AFTER_PANIC: Duration = Duration::from_millis(100);
/// The longest sleep.
const IDLE_PAUSE: Duration = Duration::from_secs(1);

/// The thread's life.
pub fn run(device: &'static Device) {
    // For the life of the thread: nothing it does may break a capture of the application.
    let _relaxed = Relaxed::new();
    let mut engine = Engine {
        device,
        resources: None,
        complained: false,
        rest: (Instant::now(), REST_PAUSE.0),
        inward: Inward::default(),
        guard: None,
        no_room_until: None,
        seen: 0,
        kept_for: None,
        looked: None,
        pinned: None,
        no_moment: None,
        unrest: None,
        calm: None,
    };
    loop {
        // A mistake of ours must not take the thread away: what it has not done yet it can still do.
        if catch_unwind(AssertUnwindSafe(|| engine.turn())).is_err() {
            log::error!("the swap thread of {} met an error of its own; please report it", device.id);
            std::thread::sleep(AFTER_PANIC);
        }
    }
}

struct Engine {
    device: &'static Device,
    resources: Option<Resources>,
    /// That there is none was said.
    complained: bool,
    /// When it is tried again to make it, and how long after that once more.
    rest: (Instant, Duration),
    inward: Inward,
    /// While extents are on their way in.
    guard: Option<PinGuard>,
    /// The device was full at the last try.
    no_room_until: Option<Instant>,
    /// How much news this thread has seen.
    seen: u64,
    /// Why nothing leaves, as the agent was told.
    kept_for: Option<&'static str>,
    /// When that was last looked for while memory was out.
    looked: Option<Instant>,
    /// When the last piece of host memory was pinned or unpinned.
    pinned: Option<Instant>,
    /// Since when there was once no moment to pin one in, while there were some to be pinned.
    no_moment: Option<Instant>,
    /// Since when there is something to be unpinned, and the application does not rest.
    unrest: Option<Instant>,
    /// Since when the application has launched so much, and no more.
    calm: Option<([u64; 2], Instant)>,
}

impl Engine {
    fn turn(&mut self) {
        let order = {
            let mut state = self.device.state();
            self.seen = state.news;
            state.tasks.pop_front()
        };
        self.settle();
        self.make_resources();
        if let Some(order) = order {
            self.finish_arrivals();
            self.obey(order);
            return;
        }
        if dead::has_failed(self.device) {
            self.finish_arrivals();
            self.sleep(IDLE_PAUSE);
            return;
        }
        if self.advance() {
            return;
        }
        if self.change_pins() {
            return;
        }
        free::sweep(self.device);
        self.look_around();
        let has_context = self.resources.is_some() || self.device.state().home.is_some();
        let pause = if has_context && shadow::is_to_be_pinned() {
            PIN_PAUSE
        } else if self.resources.is_some() && shadow::is_to_be_unpinned() {
            CALM
        } else if self.no_room_until.is_some() {
            NO_ROOM_PAUSE
        } else if self.device.state().quarantine.is_empty() {
            IDLE_PAUSE
        } else {
            QUARANTINE_PAUSE
        };
        let rest = if self.waits_for_rest() { self.rest.0 } else { Instant::now() + IDLE_PAUSE };
        self.sleep(pause.min(rest.saturating_duration_since(Instant::now())));
    }

    fn sleep(&self, limit: Duration) {
        let state = self.device.state();
        if state.news == self.seen {
            drop(self.device.wait(state, limit));
        }
    }

    /// One step of the swap-in; false when there is nothing to do for now.
    fn advance(&mut self) -> bool {
        let advanced = self.step();
        if self.inward.is_empty() {
            self.guard = None;
        }
        advanced
    }

    fn step(&mut self) -> bool {
        if pools::graphs_return(self.device) {
            self.settle();
            return true;
        }
        let only_if_done = !self.inward.is_full();
        if self.inward.finish_one(self.device, self.resources.as_mut(), only_if_done) {
            self.settle();
            return true;
        }
        let full = self.no_room_until.is_some_and(|until| Instant::now() < until);
        if !full && pins::may_begin(&mut self.guard) {
            self.no_room_until = None;
            match self.inward.begin_one(self.device, self.resources.as_mut()) {
                Step::Began => return true,
                Step::Nothing => {}
                Step::NoRoom => self.no_room_until = Some(Instant::now() + NO_ROOM_PAUSE),
            }
        }
        if self.inward.finish_one(self.device, self.resources.as_mut(), false) {
            self.settle();
            return true;
        }
        false
    }

    fn finish_arrivals(&mut self) {
        while self.inward.finish_one(self.device, self.resources.as_mut(), false) {}
        self.guard = None;
        self.settle();
    }

    /// Once nothing is missing: says so, and lets the application go on.
    fn settle(&self) {
        let copied = {
            let mut state = self.device.state();
            if !state.announce || state.space.accounts().missing != 0 {
                return;
            }
            state.announce = false;
            std::mem::take(&mut state.copied_in)
        };
        log::debug!("everything is resident on {}, {} copied in", self.device.id, Bytes(copied));
        run_state::reconsider();
        line::send(&ToAgent::Resident { device: self.device.id, copied: Bytes(copied) });
    }
}

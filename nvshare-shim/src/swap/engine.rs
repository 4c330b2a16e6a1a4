//! The swap thread of one device: obeys orders one by one, and between them brings in what is missing as far as the grant
//! reaches.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use nvshare_common::probe::Call;
use nvshare_common::protocol::ToAgent;
use nvshare_common::units::{Bytes, DeviceRange, Ticket};

use super::dma;
use super::inward::{Inward, Step};
use super::outward::{Outcome, Outward};
use super::plan::{Candidate, choose};
use super::resources::Resources;
use crate::allocation::{free, room};
use crate::config::BLOCK_BYTES;
use crate::device::tasks::Task;
use crate::device::{Device, home};
use crate::driver::driver;
use crate::memory::extent::ExtentId;
use crate::shadow;
use crate::shadow::pins::{self, PinGuard};
use crate::streams::{Current, Relaxed};
use crate::turn::calm::Calm;
use crate::turn::{dead, run_state, want};
use crate::{counters, gate, line, log};

/// How long nothing is tried after the device had no room although the grant had.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(20);
/// How often quarantine is looked at.
const QUARANTINE_PAUSE: Duration = Duration::from_millis(5);
/// Between pieces of host memory that are pinned while the application runs: its launches stall for each a little.
const PIN_PAUSE: Duration = Duration::from_millis(5);
/// How often, and after how long once more, it is looked whether anybody is inside before a piece is pinned.
const MOMENTS: u32 = 100;
const MOMENT: Duration = Duration::from_micros(20);
/// After so long without such a moment it is done all the same.
const MOMENT_PATIENCE: Duration = Duration::from_millis(200);
/// How long nothing was launched when host memory is unpinned beside the application, and how often that is looked at.
const CALM: Duration = Duration::from_millis(200);
/// How long one that does not rest is left alone between two pieces that are unpinned.
const UNREST: Duration = Duration::from_secs(1);
/// How long after a try to make what the engine has in a context the next one is made, at first and at most, where the application did not rest.
const REST_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_mins(1));
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

    /// Pins or unpins one piece of host memory, if there is one and the application would not notice.
    fn change_pins(&mut self) -> bool {
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

    /// Whether there is something to be made that has to wait until the application rests.
    fn waits_for_rest(&self) -> bool {
        match &self.resources {
            None => self.device.state().home.is_some(),
            Some(resources) => resources.lacks(self.device),
        }
    }

    /// Makes what the engine has in the context, and what is lacking of it: in calm, for much of that waits for the application's
    /// work.
    fn make_resources(&mut self) {
        if dead::has_failed(self.device) {
            return;
        }
        if self.resources.is_none()
            && Instant::now() >= self.rest.0
            && self.device.state().space.has_swapped()
        {
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

    fn obey(&mut self, task: Task) {
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
            None if outcome.released >= need => {
                ToAgent::SwapOutDone { ticket, copied: Bytes(outcome.copied), clean: Bytes(outcome.clean) }
            }
            None => {
                ToAgent::SwapFailed { ticket, why: "everything that can be moved is out already".to_owned() }
            }
            // The process ends; the driver has taken everything back.
            Some(why) if dead::is_dead() => ToAgent::SwapFailed { ticket, why },
            Some(why) => {
                log::warning!("a swap-out of {} ended early: {why}", Bytes(need));
                ToAgent::SwapFailed { ticket, why }
            }
        });
    }

    /// Moves at least `need` bytes out, if there are as many.
    fn out(&mut self, need: u64, coldest: &[DeviceRange], ticket: Option<Ticket>) -> Outcome {
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

    /// Who else may use this memory; the agent hears of it when that changes.
    fn other_user(&mut self) -> Option<dma::User> {
        let user = dma::user();
        let reason = user.as_ref().map(|user| user.reason);
        let before = std::mem::replace(&mut self.kept_for, reason);
        if reason != before {
            let movable = {
                let state = self.device.state();
                let all = state.space.extents().filter(|(_, extent)| !extent.kept);
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
    fn look_around(&mut self) {
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

    /// Whether what is forced out surely comes back: with no agent nobody keeps a reserve.
    fn can_come_back(&self) -> Result<(), String> {
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

    fn everything(&mut self) -> Result<(), String> {
        let need = self.device.state().space.accounts().resident;
        if self.resources.is_none() {
            return if need == 0 { Ok(()) } else { Err("no context to work in".to_owned()) };
        }
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
    fn restore(&mut self, answer: &Sender<bool>) {
        self.device.state().space.set_terms(|terms| terms.unlimited = true);
        self.guard = Some(pins::hold());
        while self.inward.begin_one(self.device, self.resources.as_mut()) == Step::Began {
            if self.inward.is_full() {
                self.inward.finish_one(self.device, self.resources.as_mut(), false);
            }
        }
        self.finish_arrivals();
        let all = self.device.state().space.accounts().missing == 0;
        if !all {
            self.withdraw();
        }
        let _ = answer.send(all);
    }

    /// Leaves the device to others. What came in just before is untouched and goes without a copy.
    fn withdraw(&mut self) {
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
            Candidate { id, start: extent.start, bytes: extent.bytes, cost: dirty * BLOCK_BYTES }
        })
        .collect()
}

//! The processes that have a slot: from their first call to their death, which their descriptors tell.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::{Activity, Counts, Identity, Observation, Seen, What};
use nvshare_agent_core::process::Process;
use nvshare_common::event::{Kind, Loss, Record};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{ClockId, clock_gettime};

use super::slots::{Slots, Sum};
use super::translate;
use crate::proc;

/// The kernel counts the start of a process in these: 10 ms, `USER_HZ`.
const TICK: Duration = Duration::from_millis(10);

/// A process with a slot.
struct Live {
    process: Process,
    who: Arc<Identity>,
    /// Readable when it is dead. `None`: it was dead when we first heard of it.
    descriptor: Option<OwnedFd>,
    /// What was told of it last.
    told: Sum,
    /// It began when everything was observed; and how often something has not been since the start, then.
    whole: bool,
    gaps: u64,
}

/// All processes with a slot.
pub(super) struct Watch {
    /// Wakes the observer when a process is dead; carries its slot.
    epoll: Arc<OwnedFd>,
    slots: Slots,
    live: HashMap<u32, Live>,
    handed_out: u64,
    /// A process could not be followed, and that was said.
    blind: bool,
    /// Records lost by processes that are gone.
    lost_before: [u64; Loss::COUNT],
    /// From when on processes are observed from their beginning, and how often there was a gap since.
    coverage: Coverage,
}

/// Since when everything is observed that can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Coverage {
    /// The first library that is observed, and all of it; `None`: there is none.
    pub since: Option<Moment>,
    /// How often calls were not seen because a probe had to go.
    pub gaps: u64,
}

impl Watch {
    /// Nobody yet.
    pub(super) fn new(slots: Slots, epoll: Arc<OwnedFd>) -> Watch {
        Watch {
            epoll,
            slots,
            live: HashMap::new(),
            handed_out: 0,
            blind: false,
            lost_before: Default::default(),
            coverage: Coverage::default(),
        }
    }

    /// Since when, and how well, processes are observed.
    pub(super) fn cover(&mut self, coverage: Coverage) {
        self.coverage = coverage;
    }

    /// The next call of anybody wakes the observer.
    pub(super) fn sleep(&self) {
        self.slots.sleep();
    }

    /// Finds processes that made their first call since the last time.
    pub(super) fn find_new(&mut self) {
        let handed_out = self.slots.handed_out();
        if handed_out == self.handed_out {
            return;
        }
        self.handed_out = handed_out;
        let new: Vec<(u32, u32)> =
            self.slots.in_use().filter(|(slot, _)| !self.live.contains_key(slot)).collect();
        for (slot, pid) in new {
            self.adopt(slot, pid);
        }
    }

    fn adopt(&mut self, slot: u32, pid: u32) {
        let first = self.slots.read(slot).first;
        let descriptor = match Pid::from_raw(pid as i32).map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(descriptor)) => Some(descriptor),
            None | Some(Err(Errno::SRCH)) => None,
            // It says nothing about the process: it is looked for again.
            Some(Err(error)) => {
                if !std::mem::replace(&mut self.blind, true) {
                    tracing::warn!(pid, %error, "cannot follow a process");
                }
                self.handed_out = u64::MAX;
                return;
            }
        };
        self.blind = false;
        let process = proc::process(pid);
        // A process that began after the slot's first call has only inherited the number.
        let same = process.is_some_and(|process| began(process) <= Moment(first) + 2 * TICK);
        let descriptor = if same { descriptor } else { None };
        if let Some(descriptor) = &descriptor
            && let Err(error) = super::state::add(&self.epoll, descriptor, u64::from(slot))
        {
            tracing::warn!(pid, %error, "cannot wait for the end of a process: its slot stays in use");
        }
        // A process that is gone already has no start any more; nobody else can have its number together with 0.
        let process = process.filter(|_| same).unwrap_or(Process { pid, start: 0 });
        let coverage = self.coverage;
        // Its start is known to a tick; nobody loads a library and calls it within one.
        let whole = same && coverage.since.is_some_and(|since| since <= began(process) + TICK);
        let who = Arc::new(if same { proc::identity(pid) } else { Identity::default() });
        let (told, gaps) = (Sum::default(), coverage.gaps);
        self.live.insert(slot, Live { process, who, descriptor, told, whole, gaps });
    }

    /// What a record tells.
    pub(super) fn record(&mut self, record: &Record, tell: &mut Vec<Seen>) {
        let slot = record.slot as u32;
        if record.kind() == Some(Kind::Wake) {
            return;
        }
        if !self.live.contains_key(&slot) {
            // Its first call came after the last look.
            self.find_new();
        }
        let Some(live) = self.live.get(&slot).filter(|live| live.process.pid == record.tgid()) else {
            // Nobody's slot.
            return;
        };
        match record.kind() {
            Some(Kind::Exec) => self.replaced(slot, tell),
            // The descriptor tells when the last of its threads has ended.
            Some(Kind::Exit | Kind::Wake) | None => {}
            Some(Kind::Call | Kind::Launch) => {
                tell.extend(translate::what(record).map(|what| seen(live.process, what)));
            }
        }
    }

    /// Tells what changed since the last time.
    pub(super) fn report(&mut self, tell: &mut Vec<Seen>) {
        let mut ended = Vec::new();
        for (&slot, live) in &mut self.live {
            let now = self.slots.read(slot);
            if now != live.told {
                tell.push(activity(live, &now, self.coverage));
                live.told = now;
            }
            if now.ended != 0 {
                ended.push(slot);
            }
        }
        for slot in ended {
            self.replaced(slot, tell);
        }
    }

    /// Slots whose processes were dead before they could be waited for.
    pub(super) fn dead_on_arrival(&self) -> Vec<u32> {
        self.live.iter().filter(|(_, live)| live.descriptor.is_none()).map(|(slot, _)| *slot).collect()
    }

    /// The process is dead: its last counts are told, its slot is free.
    pub(super) fn died(&mut self, slot: u32, tell: &mut Vec<Seen>) {
        if let Some(process) = self.finish(slot, tell) {
            tell.push(seen(process, What::Exited));
        }
    }

    /// The process runs another program now, under another slot if it makes calls again.
    fn replaced(&mut self, slot: u32, tell: &mut Vec<Seen>) {
        if let Some(process) = self.finish(slot, tell) {
            tell.push(seen(process, What::Exec));
        }
    }

    fn finish(&mut self, slot: u32, tell: &mut Vec<Seen>) -> Option<Process> {
        let live = self.live.remove(&slot)?;
        let last = self.slots.reclaim(slot);
        if last != live.told {
            tell.push(activity(&live, &last, self.coverage));
        }
        add(&mut self.lost_before, &last.lost);
        Some(live.process)
    }

    /// Records lost so far, and calls that could be charged to nobody.
    pub(super) fn losses(&self) -> ([u64; Loss::COUNT], u64) {
        let nobody = self.slots.read(0);
        let mut lost = self.lost_before;
        add(&mut lost, &nobody.lost);
        self.live.values().for_each(|live| add(&mut lost, &live.told.lost));
        (lost, nobody.application.iter().chain(&nobody.engine).sum())
    }

    /// The process that has `pid`, if it has a slot.
    pub(super) fn process(&self, pid: u32) -> Option<Process> {
        self.live.values().map(|live| live.process).find(|process| process.pid == pid)
    }

    /// How many processes are watched.
    pub(super) fn processes(&self) -> usize {
        self.live.len()
    }
}

fn add(to: &mut [u64; Loss::COUNT], more: &[u64; Loss::COUNT]) {
    for (to, more) in to.iter_mut().zip(more) {
        *to += more;
    }
}

fn activity(live: &Live, slot: &Sum, coverage: Coverage) -> Seen {
    let activity = Activity {
        who: Arc::clone(&live.who),
        counts: Box::new(Counts { application: slot.application, engine: slot.engine }),
        first_call: Moment(slot.first),
        last_call: Moment(slot.last),
        last_launch: Moment(slot.last_launch),
        lost: slot.lost,
        whole: live.whole && live.gaps == coverage.gaps,
    };
    seen(live.process, What::Activity(activity))
}

fn seen(process: Process, what: What) -> Seen {
    Seen::Process(Observation { process, what })
}

/// When a process began, on the clock of the records.
fn began(process: Process) -> Moment {
    let nanoseconds = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    };
    // The kernel counts starts on the clock that also runs while the machine sleeps.
    let slept = nanoseconds(ClockId::Boottime).saturating_sub(nanoseconds(ClockId::Monotonic));
    Moment((process.start * TICK.as_nanos() as u64).saturating_sub(slept))
}

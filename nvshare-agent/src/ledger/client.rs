//! One client: its session, lease, commands under way, activity, and what it holds on each device.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nvshare_common::counters::{Holdings, MAX_DEVICES};
use nvshare_common::protocol::Hello;
use nvshare_common::units::{ArenaId, Bytes, ClientId, DeviceId, Ticket};

use super::heat::Heat;
use super::holding::{Doubt, Holding, MOST, Outgoing, Plausible, Proof};
use super::orders::Orders;
use super::readers::readers;
use crate::moment::Moment;
use crate::observation::{Counts, Process};
use crate::settings::Settings;

/// How many recent pauses are remembered.
const PAUSES: usize = 8;
/// A gap between two signs of work that counts as a pause.
const PAUSE: Duration = Duration::from_millis(5);
/// A client that showed a sign of work within this time is at work.
const BUSY: Duration = Duration::from_millis(100);

/// A connection of a client; a client has one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Clients that run together or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GangId(pub u64);

/// The right to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When `Run` was sent, or the client said that it runs.
    pub given: Moment,
    /// When everything was resident: from then on it counts.
    pub began: Option<Moment>,
    /// What the switch took that began it.
    pub cost: Duration,
    /// It ends at this moment at the latest: it was given while somebody else's turn was near.
    pub cap: Option<Moment>,
    /// It began a second time, because its holder had to wait for memory.
    pub renewed: bool,
    /// It was given out of turn, after a long wait: no priority ends it early.
    pub favoured: bool,
}

impl Lease {
    fn given(now: Moment, began: Option<Moment>, cap: Option<Moment>) -> Lease {
        Lease { given: now, began, cost: Duration::ZERO, cap, renewed: false, favoured: false }
    }

    /// Of one that runs without having been told to: it is over already, and never begins anew.
    fn unearned() -> Lease {
        Lease { renewed: true, ..Lease::given(Moment::NEVER, Some(Moment::NEVER), None) }
    }
}

/// A `Stop` without an answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Its number.
    pub ticket: Ticket,
    /// When it was sent; sooner, if it was sent before and the session ended without an answer.
    pub at: Moment,
}

/// Host memory that a client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// How much.
    pub bytes: Bytes,
    /// Mapped and registered.
    pub ready: bool,
}

/// A look at a client's counter page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Its calls.
    pub calls: Counts,
    /// Threads that wait for the device.
    pub waiting: u64,
    /// What it holds.
    pub holdings: Vec<(DeviceId, Holdings)>,
}

/// What an earlier agent learned of a client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Past {
    /// Driver work was seen that its shim did not pass.
    pub bypass: bool,
    /// What was ordered for it.
    pub orders: Orders,
    /// How long it had run, divided by its weight, if that is known.
    pub runtime: Option<Duration>,
    /// Drains in a row that stalled.
    pub stalls: u32,
    /// How often it was stopped, its drains stalled, its swap outs failed.
    pub totals: [u64; 3],
}

/// Whether what a process says of its grants can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The agent knows what it granted to this process: it cannot have more.
    Known,
    /// A previous agent may have granted it anything.
    Takeover,
    /// Nobody granted it anything: it has what NVML shows.
    Stranger,
}

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) id: ClientId,
    pub(super) process: Process,
    pub(super) name: String,
    pub(super) cgroup: String,
    pub(super) shim: String,
    pub(super) gang: GangId,
    pub(super) orders: Orders,
    pub(super) session: Option<SessionId>,
    pub(super) greeted: Moment,
    /// When it lost its session.
    pub(super) disconnected: Option<Moment>,
    pub(super) exited: Option<Moment>,
    pub(super) overdue: bool,
    pub(super) dead: Option<String>,
    pub(super) bypass: bool,
    pub(super) devices: BTreeMap<DeviceId, Holding>,
    /// When it began to use a device, in this session: a limit that counts its context comes from a later reading.
    pub(super) met: BTreeMap<DeviceId, Moment>,
    pub(super) unmanaged: BTreeMap<DeviceId, String>,
    pub(super) limits: BTreeMap<DeviceId, Bytes>,
    /// What it asked whether it may have, where the answer was yes.
    pub(super) promised: BTreeMap<DeviceId, Bytes>,
    pub(super) sizes: BTreeMap<DeviceId, Bytes>,
    /// It has a counter page.
    pub(super) paged: bool,
    pub(super) wants: Option<Moment>,
    pub(super) lease: Option<Lease>,
    pub(super) paced: bool,
    pub(super) stop: Option<Stop>,
    /// How long earlier sessions left a `Stop` without an answer.
    stop_waited: Duration,
    pub(super) retry_at: Moment,
    pub(super) stalls: u32,
    pub(super) unyielding: Option<Moment>,
    pub(super) swap_retry_at: Moment,
    pub(super) swap_failures: u32,
    pub(super) swap_problem: Option<String>,
    pub(super) active_at: Moment,
    /// Its latest pauses.
    pauses: VecDeque<Duration>,
    pub(super) runtime: Duration,
    accounted: Moment,
    pub(super) accustomed: Bytes,
    pub(super) arenas: BTreeMap<ArenaId, Arena>,
    pub(super) host_exhausted: bool,
    /// When its driver last got much room at once.
    pub(super) large_room: Option<Moment>,
    pub(super) calls: Counts,
    pub(super) heat: Heat,
    pub(super) untrusted: Option<String>,
    pub(super) stops_total: u64,
    pub(super) stalls_total: u64,
    pub(super) swap_failures_total: u64,
}

impl Client {
    readers! {
        /// The agent's number for it.
        id: ClientId,
        /// Its process.
        process: Process,
        /// The process's name.
        name: &str,
        /// The process's cgroup.
        cgroup: &str,
        /// The shim's release.
        shim: &str,
        /// With whom it runs.
        gang: GangId,
        /// What was ordered for it.
        orders: Orders,
        /// Its session, while there is one.
        session: Option<SessionId>,
        /// When its session began.
        greeted: Moment,
        /// When its process ended.
        exited: Option<Moment>,
        /// NVML showed its memory for too long after that.
        overdue: bool,
        /// The device error that ended it.
        dead: Option<&str>,
        /// Driver work was seen that its shim did not pass: it is never moved.
        bypass: bool,
        /// What it holds, on devices that are managed or may still turn out to be.
        devices: &BTreeMap<DeviceId, Holding>,
        /// Where it was told that it runs as without an agent, and why. Nothing is booked there until its next `Hello`.
        unmanaged: &BTreeMap<DeviceId, String>,
        /// The limits it was told.
        limits: &BTreeMap<DeviceId, Bytes>,
        /// The sizes it was told.
        sizes: &BTreeMap<DeviceId, Bytes>,
        /// Threads wait to run, since then.
        wants: Option<Moment>,
        /// The right to run.
        lease: Option<Lease>,
        /// It was told to keep its work in flight short.
        paced: bool,
        /// It is being stopped.
        stop: Option<Stop>,
        /// It is not to be stopped before: its last drain stalled.
        retry_at: Moment,
        /// Drains in a row that stalled.
        stalls: u32,
        /// It cannot be stopped; since then.
        unyielding: Option<Moment>,
        /// It is not asked to swap out before: its last swap out failed.
        swap_retry_at: Moment,
        /// Swap outs in a row that failed.
        swap_failures: u32,
        /// Why the last one failed.
        swap_problem: Option<&str>,
        /// Its last sign of work.
        active_at: Moment,
        /// How long it has run, divided by its weight.
        runtime: Duration,
        /// What it needed when everything was last resident.
        accustomed: Bytes,
        /// Its arenas.
        arenas: &BTreeMap<ArenaId, Arena>,
        /// No more host memory can be had for it.
        host_exhausted: bool,
        /// Its calls by its counter page.
        calls: &Counts,
        /// What its kernels used.
        heat: &Heat,
        /// Something it said cannot be true.
        untrusted: Option<&str>,
        /// How often it was stopped.
        stops_total: u64,
        /// How many of its drains stalled.
        stalls_total: u64,
        /// How many of its swap outs failed.
        swap_failures_total: u64,
    }
}

impl Client {
    pub(super) fn new(id: ClientId, process: Process, runtime: Duration) -> Client {
        Client {
            id,
            process,
            name: String::new(),
            cgroup: String::new(),
            shim: String::new(),
            gang: GangId(id.0),
            orders: Orders::default(),
            session: None,
            greeted: Moment::NEVER,
            disconnected: None,
            exited: None,
            overdue: false,
            dead: None,
            bypass: false,
            devices: BTreeMap::new(),
            met: BTreeMap::new(),
            unmanaged: BTreeMap::new(),
            limits: BTreeMap::new(),
            promised: BTreeMap::new(),
            sizes: BTreeMap::new(),
            paged: false,
            wants: None,
            lease: None,
            paced: false,
            stop: None,
            stop_waited: Duration::ZERO,
            retry_at: Moment::NEVER,
            stalls: 0,
            unyielding: None,
            swap_retry_at: Moment::NEVER,
            swap_failures: 0,
            swap_problem: None,
            active_at: Moment::NEVER,
            pauses: VecDeque::new(),
            runtime,
            accounted: Moment::NEVER,
            accustomed: Bytes::ZERO,
            arenas: BTreeMap::new(),
            host_exhausted: false,
            large_room: None,
            calls: Counts::default(),
            heat: Heat::default(),
            untrusted: None,
            stops_total: 0,
            stalls_total: 0,
            swap_failures_total: 0,
        }
    }

    pub(super) fn begin(
        &mut self,
        session: SessionId,
        hello: &Hello,
        word: Word,
        plausible: impl Fn(DeviceId) -> Plausible,
        now: Moment,
    ) {
        self.end_session(now);
        self.session = Some(session);
        self.greeted = now;
        self.disconnected = None;
        self.shim = hello.release.chars().filter(|c| !c.is_control()).take(64).collect();
        self.paced = false;
        self.arenas.clear();
        self.limits.clear();
        self.met.clear();
        self.unmanaged.clear();
        self.bypass |= hello.bypass;
        self.sizes.clear();
        self.host_exhausted = false;
        self.lease = match self.lease {
            _ if !hello.running => None,
            // Saying so again makes it no longer.
            Some(lease) => Some(lease),
            None if word == Word::Known => Some(Lease::unearned()),
            None => Some(Lease::given(now, Some(now), None)),
        };
        if !hello.running {
            self.stop_waited = Duration::ZERO;
        }
        self.active(now);
        let mut before = std::mem::take(&mut self.devices);
        for held in hello.devices.iter().take(MAX_DEVICES) {
            let old = before.remove(&held.device).unwrap_or_default();
            let plausible = plausible(held.device);
            let resident = held.resident.min(MOST);
            // What no device has nobody can need.
            let needed = held.total.min(plausible.total()).max(resident);
            let granted = match word {
                // Beyond its grant it may have allocated without an agent.
                Word::Known => held.granted.min(old.granted).max(resident.min(plausible.bytes())),
                Word::Takeover => held.granted.max(resident).min(plausible.total()),
                Word::Stranger => held.granted.max(resident).min(plausible.bytes()),
            };
            self.devices.insert(
                held.device,
                Holding {
                    granted: granted.min(MOST),
                    needed,
                    complete: resident >= needed,
                    page: old.page,
                    measured: old.measured,
                    samples: old.samples,
                    plausible,
                    proof: match word {
                        Word::Stranger if plausible == Plausible::Unknown => Proof::First,
                        Word::Takeover => Proof::Settled,
                        _ => Proof::Done,
                    },
                    // A new session does not begin the time again in which it has to answer.
                    doubt: old.doubt.map(|doubt| Doubt { asked: false, ..doubt }),
                    disbelieved: old.disbelieved || self.untrusted.is_some(),
                    ..Holding::default()
                },
            );
        }
    }

    pub(super) fn end_session(&mut self, now: Moment) {
        self.session = None;
        self.disconnected.get_or_insert(now);
        // A new session does not begin the time again in which it has to stop.
        if let Some(stop) = self.stop.take() {
            self.stop_waited = now.since(stop.at);
        }
        self.wants = None;
        for holding in self.devices.values_mut() {
            holding.outgoing = None;
            holding.reclaiming = None;
        }
    }

    /// Whether commands reach it and are obeyed.
    pub fn commandable(&self) -> bool {
        self.session.is_some() && self.dead.is_none() && self.exited.is_none()
    }

    /// Whether its memory can be taken.
    pub fn movable(&self) -> bool {
        self.commandable() && self.unyielding.is_none() && !self.bypass
    }

    /// What of a holding could be moved and stays all the same, because there is no host memory for it and none to be had.
    pub fn homeless(&self, holding: &Holding) -> Bytes {
        if !self.host_exhausted || !self.movable() {
            return Bytes::ZERO;
        }
        let movable = holding.booked().saturating_sub(holding.immovable());
        movable.saturating_sub(holding.unused().min(movable) + self.shadow_room())
    }

    /// It is swapped out by order.
    pub fn held_out(&self) -> bool {
        self.orders.held_out.is_some()
    }

    /// The holding on `device`, begun if there is none yet; `None` where it runs as without an agent, or uses too many
    /// devices already. Every way to a new holding leads through here.
    pub(super) fn holding(&mut self, device: DeviceId) -> Option<&mut Holding> {
        let many = self.devices.len() + self.unmanaged.len() >= MAX_DEVICES;
        if self.unmanaged.contains_key(&device) || (many && !self.devices.contains_key(&device)) {
            return None;
        }
        Some(self.devices.entry(device).or_insert_with(|| Holding {
            complete: true,
            disbelieved: self.untrusted.is_some(),
            ..Holding::default()
        }))
    }

    /// It was told that it runs on `device` as without an agent. `false`: it knows that already.
    pub(super) fn unmanage(&mut self, device: DeviceId, why: &str) -> bool {
        self.devices.remove(&device);
        self.limits.remove(&device);
        self.met.remove(&device);
        let room = self.unmanaged.len() < MAX_DEVICES || self.unmanaged.contains_key(&device);
        room && self.unmanaged.insert(device, why.to_owned()).is_none()
    }

    /// What an earlier agent learned of it.
    pub(super) fn recall(&mut self, past: &Past) {
        self.bypass |= past.bypass;
        self.orders = past.orders;
        self.runtime = past.runtime.unwrap_or(self.runtime);
        self.stalls = past.stalls;
        [self.stops_total, self.stalls_total, self.swap_failures_total] = past.totals;
    }

    /// What it says is not believed from now on: it is booked at what NVML shows.
    pub(super) fn distrust(&mut self, why: String) {
        self.untrusted = Some(why);
        for holding in self.devices.values_mut() {
            holding.disbelieved = true;
        }
    }

    /// It said what it needs on `device`.
    pub(super) fn needs(&mut self, device: DeviceId, total: Bytes) {
        if let Some(holding) = self.holding(device) {
            holding.need(total);
            holding.page_total = None;
            if holding.needed > holding.granted {
                holding.complete = false;
            }
        }
    }

    /// It said what it cannot move. The reason becomes a metric's label: it is cut to what may be one.
    pub(super) fn unswappable(&mut self, device: DeviceId, reason: &str, bytes: Bytes) {
        let reason: String =
            reason.chars().filter(|c| c.is_ascii_lowercase() || *c == '_').take(24).collect();
        if let Some(holding) = self.holding(device)
            && (holding.unswappable.len() < 16 || holding.unswappable.contains_key(&reason))
        {
            holding.unswappable.insert(reason, bytes.min(MOST));
        }
    }

    /// `Run` was sent.
    pub(super) fn run(&mut self, cap: Option<Moment>, now: Moment) {
        let began = self.complete().then_some(now);
        self.lease = Some(Lease::given(now, began, cap));
        self.accounted = now;
        if began.is_some() {
            self.wants = None;
        }
    }

    /// `Stop` was sent. Who wants to run from now on says so anew.
    pub(super) fn stopping(&mut self, ticket: Ticket, now: Moment) {
        self.stop = Some(Stop { ticket, at: now - self.stop_waited });
        self.wants = None;
        self.stops_total += 1;
    }

    /// It has stopped. `false` when nobody asked for that.
    pub(super) fn stopped(&mut self, ticket: Ticket) -> bool {
        let asked = self.stop.take_if(|stop| stop.ticket == ticket).is_some();
        if asked {
            self.stop_waited = Duration::ZERO;
            self.lease = None;
            self.stalls = 0;
            self.unyielding = None;
        }
        asked
    }

    /// Its drain stalled: it runs on, and is left alone for a while, longer each time.
    pub(super) fn stalled(&mut self, ticket: Ticket, settings: &Settings, now: Moment) -> bool {
        let asked = self.stop.take_if(|stop| stop.ticket == ticket).is_some();
        if asked {
            self.stop_waited = Duration::ZERO;
            self.stalls += 1;
            self.stalls_total += 1;
            let pause = settings.lease_floor * 2_u32.saturating_pow(self.stalls.min(10));
            self.retry_at = now + pause.min(settings.lease_ceiling);
            if self.stalls >= settings.stalls_until_unyielding {
                self.unyielding.get_or_insert(now);
            }
        }
        asked
    }

    /// All of `device` is resident. Says since when memory was granted for it.
    pub(super) fn resident(&mut self, device: DeviceId, now: Moment) -> Option<Moment> {
        let holding = self.devices.get_mut(&device)?;
        if holding.granted >= holding.needed {
            holding.complete = true;
        }
        let since = holding.granting_since.take();
        self.begin_lease(now);
        since
    }

    /// The lease counts from the moment when everything is resident. Says whether that is now.
    pub(super) fn begin_lease(&mut self, now: Moment) -> bool {
        // Who is being stopped and wants to run wants to run again.
        if !self.complete() || self.stop.is_some() {
            return false;
        }
        if let Some(lease) = &mut self.lease {
            // Once only: who allocates all the time would run for ever.
            let waited = self.wants.take().filter(|_| !std::mem::replace(&mut lease.renewed, true));
            if lease.began.is_none() || waited.is_some() {
                lease.cost =
                    now.since(if lease.began.is_none() { lease.given } else { waited.unwrap_or(now) });
                lease.began = Some(now);
                self.accounted = now;
                // It was made to wait: that was no pause of its own.
                self.active_at = self.active_at.max(now);
                return true;
            }
        }
        false
    }

    /// A swap out ended, well or not: it was this one.
    pub(super) fn swap_out_done(&mut self, ticket: Ticket, now: Moment) -> Option<Outgoing> {
        for holding in self.devices.values_mut() {
            if holding.reclaiming.take_if(|reclaiming| reclaiming.ticket == ticket).is_some() {
                holding.reclaimed(now);
            }
            if let Some(outgoing) = holding.outgoing.take_if(|outgoing| outgoing.ticket == ticket) {
                return Some(outgoing);
            }
        }
        None
    }

    /// A swap out brought all that was asked for.
    pub(super) fn swapped_out(&mut self) {
        self.swap_failures = 0;
    }

    /// A swap out could not do all: it is tried again later.
    /// One that goes on failing is served around, like one that cannot be stopped.
    pub(super) fn swap_failed(&mut self, why: &str, now: Moment) {
        self.swap_failures = self.swap_failures.saturating_add(1);
        self.swap_failures_total += 1;
        let pause = Duration::from_millis(250) * 2_u32.saturating_pow(self.swap_failures.min(7));
        self.swap_retry_at = now + pause;
        self.swap_problem = Some(why.chars().filter(|c| !c.is_control()).take(200).collect());
    }

    /// Its counter page was looked at. Says what it no longer holds of what was booked beyond its grants.
    pub(super) fn sample(&mut self, page: &Page, now: Moment) -> Vec<(DeviceId, Bytes)> {
        self.paged = true;
        if page.waiting > 0 || page.calls.application != self.calls.application {
            self.active(now);
        }
        self.calls = page.calls;
        let mut less = Vec::new();
        for (device, held) in &page.holdings {
            if let Some(holding) = self.holding(*device) {
                let before = holding.booked();
                holding.sample(held, now);
                if holding.booked() < before {
                    less.push((*device, before.saturating_sub(holding.booked())));
                }
            }
        }
        less
    }

    /// It showed a sign of work.
    pub(super) fn active(&mut self, at: Moment) {
        let pause = at.since(self.active_at);
        if pause > PAUSE && self.active_at != Moment::NEVER {
            if self.pauses.len() == PAUSES {
                self.pauses.pop_front();
            }
            self.pauses.push_back(pause);
        }
        self.active_at = self.active_at.max(at);
    }

    /// Its usual pause; none before it has had a few.
    pub fn usual_pause(&self) -> Option<Duration> {
        if self.pauses.len() < PAUSES / 2 {
            return None;
        }
        let mut pauses: Vec<_> = self.pauses.iter().copied().collect();
        pauses.sort_unstable();
        Some(pauses[pauses.len() / 2])
    }

    /// Whether it is at work, roughly.
    pub fn busy(&self, now: Moment) -> bool {
        now.since(self.active_at) < BUSY
    }

    /// Everything it needs is resident.
    pub fn complete(&self) -> bool {
        self.devices.values().all(|holding| holding.complete)
    }

    /// A command has been without an answer for too long: it is served around until it answers. Says what it failed to do.
    pub(super) fn late(&mut self, settings: &Settings, now: Moment) -> Option<&'static str> {
        let late = |at: Moment| now.since(at) > settings.command_deadline;
        let stop =
            self.stop.is_some_and(|stop| now.since(stop.at) > settings.stall + settings.command_deadline);
        let out =
            self.devices.values().any(|holding| holding.outgoing.is_some_and(|outgoing| late(outgoing.at)));
        let mut keeps = false;
        for holding in self.devices.values_mut() {
            keeps |= holding.keeps(settings.command_deadline, now);
        }
        if stop || out || keeps {
            let first = self.unyielding.replace(self.unyielding.unwrap_or(now)).is_none();
            return first.then_some(match (stop, out) {
                (true, _) => "did not stop",
                (_, true) => "did not swap out",
                _ => "did not give back what it does not use",
            });
        }
        if self.swap_failures >= settings.stalls_until_unyielding && self.unyielding.is_none() {
            self.unyielding = Some(now);
            return Some("fails to swap out");
        }
        if self.unyielding.is_some_and(|since| now.since(since) > settings.unyielding_retry) {
            self.unyielding = None;
            self.stalls = settings.stalls_until_unyielding.saturating_sub(1);
            self.swap_failures = self.swap_failures.min(self.stalls);
        }
        None
    }

    pub(super) fn account(&mut self, now: Moment) {
        let ran = now.since(self.accounted);
        if self.complete() {
            self.accustomed = self.devices.values().map(|holding| holding.needed).sum();
        }
        let runs = self.lease.is_some_and(|lease| lease.began.is_some()) && self.complete();
        if runs && self.busy(now) && self.accounted != Moment::NEVER {
            self.runtime += ran.div_f64(self.orders.weight.value());
        }
        self.accounted = now;
    }

    /// Bytes of arenas that it can use.
    pub fn arena_ready(&self) -> Bytes {
        self.arenas.values().filter(|arena| arena.ready).map(|arena| arena.bytes).sum()
    }

    /// Bytes of arenas that it has.
    pub fn arena_bytes(&self) -> Bytes {
        self.arenas.values().map(|arena| arena.bytes).sum()
    }

    /// How much more its arenas can take from the devices.
    pub fn shadow_room(&self) -> Bytes {
        let swapped: Bytes =
            self.devices.values().map(|holding| holding.page.swapped.min(holding.page.shadow)).sum();
        self.arena_ready().saturating_sub(swapped)
    }
}

//! The sessions of a client, one after another: what it says as one begins, what its end leaves, and what is known of it
//! for as long as its process lives.

use std::time::Duration;

use nvshare_common::counters::MAX_DEVICES;
use nvshare_common::ids::DeviceId;
use nvshare_common::protocol::Hello;

use super::client::Client;
use super::holding::{Doubt, Holding, MOST, Plausible, Proof};
use super::orders::Orders;
use crate::moment::Moment;

/// A connection of a client; a client has one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

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

impl Client {
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
        self.moves.arenas.clear();
        self.limits.clear();
        self.met.clear();
        self.unmanaged.clear();
        self.bypass |= hello.bypass;
        self.sizes.clear();
        self.moves.host_exhausted = false;
        self.says_it_runs(hello.running, word == Word::Known, now);
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
        self.forget_stop(now);
        for holding in self.devices.values_mut() {
            holding.outgoing = None;
            holding.reclaiming = None;
        }
    }

    /// Whether commands reach it and are obeyed.
    pub fn commandable(&self) -> bool {
        self.session.is_some() && self.dead.is_none() && self.exited.is_none()
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
        if let Some(runtime) = past.runtime {
            (self.turns.runtime, self.turns.levelled) = (runtime, true);
        }
        self.turns.stalls = past.stalls;
        [self.turns.stops_total, self.turns.stalls_total, self.moves.swap_failures_total] = past.totals;
    }

    /// What it says is not believed from now on: it is booked at what NVML shows.
    pub(super) fn distrust(&mut self, why: String) {
        self.untrusted = Some(why);
        for holding in self.devices.values_mut() {
            holding.disbelieved = true;
        }
    }
}

//! Which gangs run. Those whose lease still protects them go on; then, the highest rank first and within it least runtime
//! first, whoever fits beside the chosen ones; then idle ones that can stay. A gang runs with all of its memory on all of
//! its devices or not at all.
//!
//! The first gang that waits and does not fit is the head of its cards: after it, others start there only if their lease ends
//! before the head could start anyway, so that small ones cannot keep a large one waiting for ever. Who waits on one card behind
//! the head of that one keeps its other cards for itself no more than anybody else: cards are independent (A5).
//!
//! Managed memory takes no room that anybody granted; but of those whose managed memory thrashes on one card one runs at a time
//! ([`crate::ledger::Client::thrashes`]).
//!
//! The rule of ranks: pinned gangs come before high, normal and low priority. Against its own rank and lower ones a lease
//! protects its holder until its end, against a higher rank only until the lease floor. So a client of a high priority
//! waits for the floor and the switch; that its turns may then be shorter than 40 times the switch is what its priority
//! costs. Lower ranks run in a bounded time all the same: among the gangs that wait while a higher priority contends for a
//! device of theirs, the one that has waited longest has aged once it has waited for `AGING` lease ceilings and nobody's
//! turn on that card came by that for as long (`age`). It is next, before everybody of high priority, and keeps a whole
//! lease. So lower priorities together get at least one lease in about `AGING` ceilings, whatever the load, and each of
//! `n` waiting gangs runs within about `n` times that.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nvshare_common::ids::DeviceId;

use super::Hindrance;
use super::age::aged;
use super::gangs::{Gang, Rank, Role};
use super::most::Most;
use super::rooms::ROOM_WAITS;
use crate::ledger::{Client, Device, Ledger};
use crate::moment::Moment;
use crate::order::Priority;
use crate::settings::Settings;

/// The choice. Numbers are indices of gangs.
#[derive(Default)]
pub(super) struct Chosen {
    /// Who runs, in the order in which they get memory; with the latest end of a new lease.
    pub(super) running: Vec<(usize, Option<Moment>)>,
    /// Who waits, in the order in which they will run.
    pub(super) waiting: Vec<usize>,
    /// Who neither runs nor waits, and could run if it costs nobody anything.
    pub(super) resting: Vec<usize>,
    /// Who is next out of turn.
    pub(super) aged: BTreeSet<usize>,
    pub(super) hindered: Vec<Hindrance>,
}

/// What is left of each device.
struct Left {
    by_device: BTreeMap<DeviceId, i64>,
    /// What drivers want. It comes before whoever has no lease.
    drivers: BTreeMap<DeviceId, i64>,
    /// Cards on which somebody's managed memory thrashes, who has them for that.
    thrashed: BTreeSet<DeviceId>,
}

impl Left {
    /// Of all devices, with nobody running.
    fn new(ledger: &Ledger, gangs: &[Gang]) -> Left {
        let devices = ledger.devices().iter();
        let mut by_device: BTreeMap<DeviceId, i64> =
            devices.clone().map(|(id, device)| (*id, device.promised())).collect();
        for gang in gangs {
            for (device, need) in &gang.needs {
                *by_device.entry(*device).or_default() -= need.floor.0 as i64;
            }
        }
        Left {
            by_device,
            thrashed: BTreeSet::new(),
            drivers: devices.map(|(id, device)| (*id, device.room().0 as i64)).collect(),
        }
    }

    /// Whether the gang fits; with `beside_drivers`, beside what drivers want, too.
    fn fits(&self, gang: &Gang, beside_drivers: bool) -> bool {
        let kept = |device: &DeviceId| {
            if beside_drivers { self.drivers.get(device).copied().unwrap_or_default() } else { 0 }
        };
        if gang.thrashes.iter().any(|device| self.thrashed.contains(device)) {
            return false;
        }
        // What needs nothing more than it holds anyway always fits.
        gang.needs.iter().all(|(device, need)| {
            let fits = |left: &i64| need.more() <= *left - kept(device);
            need.more() == 0 || self.by_device.get(device).is_some_and(fits)
        })
    }

    /// Chooses the gang if it fits.
    fn take(&mut self, gang: &Gang, beside_drivers: bool) -> bool {
        let fits = self.fits(gang, beside_drivers);
        if fits {
            self.thrashed.extend(&gang.thrashes);
            for (device, need) in &gang.needs {
                *self.by_device.entry(*device).or_default() -= need.more();
            }
        }
        fits
    }
}

/// Whom others wait for: by card, until when whoever starts there may go on.
#[derive(Default)]
struct Heads(BTreeMap<DeviceId, Moment>);

impl Heads {
    /// Until when the gang may go on, where somebody is before it.
    fn before(&self, gang: &Gang) -> Option<Moment> {
        gang.contested().filter_map(|device| self.0.get(&device)).min().copied()
    }

    /// The gang waits: for those whose lease goes on on a card of its, unless it waits for another head.
    fn waits(&mut self, gang: &Gang, gangs: &[Gang], protected: &[usize], rank: Rank, ceiling: Duration) {
        if self.before(gang).is_some() {
            return;
        }
        // What never ends is nothing that anybody's turn could wait for; and whoever comes meanwhile must not move the head's turn
        // further and further away.
        let beside = protected.iter().map(|index| &gangs[*index]).filter(|other| other.contends_with(gang));
        let ends = beside.map(|other| ends(other, rank)).filter(|end| *end != Moment(u64::MAX));
        let horizon = ends.max().unwrap_or_default().min(gang.waits_since() + ceiling);
        self.0.extend(gang.contested().map(|device| (device, horizon)));
    }
}

/// Who goes on because of a lease, and who contends.
#[derive(Default)]
struct Field {
    /// Must not be stopped for anybody.
    fixed: Vec<usize>,
    /// Must not be stopped for equals.
    protected: Vec<usize>,
    contenders: Vec<usize>,
    idle: Vec<usize>,
    resting: Vec<usize>,
}

impl Field {
    fn new(ledger: &Ledger, settings: &Settings, gangs: &[Gang], now: Moment) -> Field {
        let rooms = ledger.devices().values().flat_map(Device::rooms);
        let asks: BTreeSet<_> = rooms.filter(|room| room.presses).map(|room| room.client).collect();
        // Whoever asks without end does not keep the lease for ever by that.
        let longest = settings.lease_ceiling + ROOM_WAITS;
        let asks = |client: &&Client| {
            asks.contains(&client.id())
                && client.lease().is_some_and(|lease| now.since(lease.given) < longest)
        };
        let mut field = Field::default();
        for (index, gang) in gangs.iter().enumerate() {
            let asks = || gang.members.iter().any(asks);
            match gang.role {
                Role::Fixed | Role::Leaving | Role::HeldOut => {}
                _ if gang.pinned() => field.contenders.push(index),
                Role::Protected { .. } if gang.outgrew() => field.contenders.push(index),
                Role::Protected { floor, .. } if floor > now && !gang.grew() => field.fixed.push(index),
                Role::Protected { .. } => field.protected.push(index),
                // It must not be stopped to make room for its own driver.
                Role::Expired | Role::Idle if asks() => field.fixed.push(index),
                Role::Expired | Role::Waiting => field.contenders.push(index),
                Role::Idle => field.idle.push(index),
                Role::Resting => field.resting.push(index),
            }
        }
        // A gang that grew must not push out one that needs nothing, however new its lease is.
        for leased in [&mut field.fixed, &mut field.protected] {
            leased.sort_by_key(|index| {
                let gang = &gangs[*index];
                let complete = gang.members.iter().all(|client| client.complete());
                (!complete, Reverse(gang.rank), gang.runtime, gang.id())
            });
        }
        field.idle.sort_by_key(|index| (Reverse(gangs[*index].active_at), gangs[*index].id()));
        field
    }
}

pub(super) fn choose(ledger: &Ledger, settings: &Settings, gangs: &[Gang], now: Moment) -> Chosen {
    let mut left = Left::new(ledger, gangs);
    let most = Most::new(ledger, gangs);
    let mut chosen = Chosen::default();
    let mut field = Field::new(ledger, settings, gangs, now);
    let mut protected = Vec::new();
    let mut contenders = field.contenders;
    for index in field.fixed {
        if left.take(&gangs[index], false) {
            chosen.running.push((index, None));
            protected.push(index);
        } else {
            contenders.push(index);
        }
    }
    chosen.aged = aged(ledger, settings, gangs, &most, now);
    let rank = |index: usize| {
        let gang = &gangs[index];
        if chosen.aged.contains(&index) { gang.rank.max(Rank::Priority(Priority::High)) } else { gang.rank }
    };
    let mut heads = Heads::default();
    let ranks = [
        Rank::Pinned,
        Rank::Priority(Priority::High),
        Rank::Priority(Priority::Normal),
        Rank::Priority(Priority::Low),
    ];
    for of in ranks {
        for index in field.protected.extract_if(.., |index| gangs[*index].rank == of) {
            if left.take(&gangs[index], false) {
                chosen.running.push((index, None));
                protected.push(index);
            } else {
                contenders.push(index);
            }
        }
        let mut equals: Vec<usize> = contenders.extract_if(.., |index| rank(*index) == of).collect();
        equals.sort_by_key(|index| {
            let gang = &gangs[*index];
            (!chosen.aged.contains(index), gang.runtime, gang.role != Role::Waiting, gang.id())
        });
        for index in equals {
            let gang = &gangs[index];
            let starts = gang.starts();
            let horizon = heads.before(gang).filter(|_| starts);
            // The end of a lease that it has already cannot be set.
            let in_time =
                horizon.is_none_or(|horizon| !gang.leased() && now + settings.lease_floor <= horizon);
            if in_time && left.take(gang, !gang.pinned()) {
                chosen.running.push((index, horizon));
            } else if let Some(why) = most.never(gang) {
                chosen.hindered.push(Hindrance { client: gang.id(), why });
            } else {
                heads.waits(gang, gangs, &protected, of, settings.lease_ceiling);
                chosen.waiting.push(index);
            }
        }
    }
    for index in field.idle {
        if left.take(&gangs[index], true) {
            chosen.running.push((index, None));
        }
    }
    // Whoever rests gets the lease beforehand where that can be done without taking from anybody.
    for index in field.resting {
        if heads.before(&gangs[index]).is_none() && left.take(&gangs[index], true) {
            chosen.resting.push(index);
        }
    }
    chosen
}

/// When the gang may be stopped for one of that rank.
fn ends(gang: &Gang, rank: Rank) -> Moment {
    match gang.role {
        Role::Protected { floor, .. } if gang.rank < rank => floor,
        Role::Protected { until, .. } => until,
        _ => Moment::NEVER,
    }
}

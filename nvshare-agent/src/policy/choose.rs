//! Which units run. Those whose lease still protects them go on; then, least runtime first, whoever fits beside the
//! chosen ones; then idle ones that can stay. A unit runs with all of its memory on all of its devices or not at all.
//!
//! The first unit that waits and does not fit is the head: after it, others start only if their lease ends before the
//! head could start anyway, so that small ones cannot keep a large one waiting for ever.

use std::collections::{BTreeMap, BTreeSet};

use nvshare_common::units::DeviceId;

use super::Hindrance;
use super::memory::ROOM_WAITS;
use super::units::{Role, Unit};
use crate::ledger::{Client, Ledger};
use crate::moment::Moment;
use crate::settings::Settings;

/// The choice. Numbers are indices of units.
#[derive(Default)]
pub(super) struct Chosen {
    /// Who runs, in the order in which they get memory; with the latest end of a new lease.
    pub(super) running: Vec<(usize, Option<Moment>)>,
    /// Who waits, in the order in which they will run.
    pub(super) waiting: Vec<usize>,
    /// Who neither runs nor waits, and could run if it costs nobody anything.
    pub(super) resting: Vec<usize>,
    pub(super) hindered: Vec<Hindrance>,
}

/// What is left of each device.
struct Room(BTreeMap<DeviceId, i64>);

impl Room {
    /// Of all devices, with nobody running and what these units hold anyway.
    fn new<'a>(ledger: &Ledger, units: impl Iterator<Item = &'a Unit<'a>>) -> Room {
        let mut left: BTreeMap<DeviceId, i64> =
            ledger.devices().iter().map(|(id, device)| (*id, device.budget())).collect();
        for unit in units {
            for (device, need) in &unit.needs {
                *left.entry(*device).or_default() -= need.floor.0 as i64;
            }
        }
        Room(left)
    }

    /// What drivers want comes before whoever has no lease.
    fn keep_for_drivers(&mut self, ledger: &Ledger) {
        for (id, device) in ledger.devices() {
            *self.0.entry(*id).or_default() -= device.room().0 as i64;
        }
    }

    /// Chooses the unit if it fits.
    fn take(&mut self, unit: &Unit) -> bool {
        let more = |need: &super::units::Need| need.needed.saturating_sub(need.floor).0 as i64;
        // What needs nothing more than it holds anyway always fits.
        let fits = unit.needs.iter().all(|(device, need)| {
            more(need) == 0 || self.0.get(device).is_some_and(|left| more(need) <= *left)
        });
        if fits {
            for (device, need) in &unit.needs {
                *self.0.entry(*device).or_default() -= more(need);
            }
        }
        fits
    }
}

pub(super) fn choose(ledger: &Ledger, settings: &Settings, units: &[Unit], now: Moment) -> Chosen {
    let mut room = Room::new(ledger, units.iter());
    // Whoever waits for the memory of the dead, which is about to be seen gone, has not to wait for ever.
    let empty = Room::new(ledger, units.iter().filter(|unit| !unit.dying()));
    let mut chosen = Chosen::default();
    let mut contenders = Vec::new();
    let mut protected = Vec::new();
    let rooms = ledger.devices().values().flat_map(|device| &device.rooms);
    let asks: BTreeSet<_> = rooms.filter(|room| room.presses).map(|room| room.client).collect();
    // Whoever asks without end does not keep the lease for ever by that.
    let longest = settings.lease_ceiling + ROOM_WAITS;
    let asks = |client: &&Client| {
        asks.contains(&client.id) && client.lease.is_some_and(|lease| now.since(lease.given) < longest)
    };
    let (mut idle, mut resting) = (Vec::new(), Vec::new());
    for (index, unit) in units.iter().enumerate() {
        match unit.role {
            Role::Fixed | Role::Leaving => {}
            Role::Protected(_) if unit.outgrew() => contenders.push(index),
            Role::Protected(_) => protected.push(index),
            // It must not be stopped to make room for its own driver.
            Role::Expired | Role::Idle if unit.members.iter().any(asks) => {
                protected.push(index);
            }
            Role::Expired | Role::Waiting => contenders.push(index),
            Role::Idle => idle.push(index),
            Role::Resting => resting.push(index),
        }
    }
    // A unit that grew must not push out one that needs nothing.
    protected.sort_by_key(|index| {
        let unit = &units[*index];
        let complete = unit.members.iter().all(|client| client.complete());
        (!complete, unit.runtime, unit.id())
    });
    let mut horizon = Moment::NEVER;
    for index in protected {
        if room.take(&units[index]) {
            chosen.running.push((index, None));
            // What never ends is nothing that anybody's turn could wait for.
            if let Role::Protected(until) = units[index].role
                && until != Moment(u64::MAX)
            {
                horizon = horizon.max(until);
            }
        } else {
            contenders.push(index);
        }
    }
    room.keep_for_drivers(ledger);
    contenders.sort_by_key(|index| {
        let unit = &units[*index];
        (unit.runtime, unit.role != Role::Waiting, unit.id())
    });
    let mut blocked = false;
    for index in contenders {
        let unit = &units[index];
        let starts = unit.starts();
        // The end of a lease that it has already cannot be set.
        let in_time = !blocked || !starts || (!unit.leased() && now + settings.lease_floor <= horizon);
        if in_time && room.take(unit) {
            chosen.running.push((index, (blocked && starts).then_some(horizon)));
        } else if let Some(why) = never(&empty, unit) {
            chosen.hindered.push(Hindrance { client: unit.id(), why });
        } else {
            if !blocked {
                // Whoever comes meanwhile must not move the head's turn further and further away.
                horizon = horizon.min(unit.waits_since() + settings.lease_ceiling);
            }
            blocked = true;
            chosen.waiting.push(index);
        }
    }
    idle.sort_by_key(|index| (std::cmp::Reverse(units[*index].active_at), units[*index].id()));
    for index in idle {
        if room.take(&units[index]) {
            chosen.running.push((index, None));
        }
    }
    // Whoever rests gets the lease beforehand where that can be done without taking from anybody.
    for index in resting {
        if !blocked && room.take(&units[index]) {
            chosen.resting.push(index);
        }
    }
    chosen
}

/// Why the unit would not run even if it were alone.
fn never(empty: &Room, unit: &Unit) -> Option<String> {
    unit.needs.iter().find_map(|(device, need)| {
        let most = empty.0.get(device).copied().unwrap_or_default() + need.floor.0 as i64;
        let most = nvshare_common::units::Bytes(most.max(0) as u64);
        (need.needed > most && need.needed > need.floor).then(|| {
            format!(
                "needs {} on {device}, where it can have at most {most} beside what cannot be moved: free memory there, \
                 or raise --capacity or --host-memory",
                need.needed
            )
        })
    })
}

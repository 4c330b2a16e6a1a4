//! Whose memory moves. The chosen gangs lack some; that much, no more, is taken: first what is granted and not used, then
//! from gangs that were not chosen: idle ones first, longest idle first, then those that will run again last. (They take
//! turns, so the one that just ran comes last, and is the best victim.) A victim that has the lease is stopped first. What
//! is pinned is nobody's victim; who is held out by order gives all it can, whoever needs it or not.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};

use super::Decisions;
use super::choose::Chosen;
use super::gangs::{Gang, Role, takeable};
use super::lacks::{Lack, PIECE, lacks, part};
use super::rooms::{MostRoom, ROOM_WAITS};
use crate::decision::{At, Decision};
use crate::ledger::{Client, Device, Holding, Ledger};
use crate::moment::Moment;

/// Unused grants below this are not worth a message, unless there are no others.
const SLACK: Bytes = Bytes(4 << 20);
/// No reading is asked for because of less than this.
const CRUMB: Bytes = Bytes(2 << 20);
/// How long a client that had nothing to give back is not asked again.
const RECLAIM_AGAIN: Duration = Duration::from_millis(500);

pub(super) fn arrange(ledger: &Ledger, gangs: &[Gang], chosen: Chosen, now: Moment) -> Decisions {
    let mut plan = Plan {
        ledger,
        gangs,
        now,
        stopping: BTreeSet::new(),
        leaving: BTreeMap::new(),
        free: BTreeMap::new(),
        out: Decisions::default(),
    };
    plan.hold_out();
    plan.part(&chosen);
    let victims = plan.victims(&chosen);
    let running: Vec<usize> = chosen.running.iter().map(|(index, _)| *index).collect();
    let mut reads = false;
    let mut spare = BTreeMap::new();
    for (id, device) in ledger.devices() {
        let lacks = plan.lacks(*id, &running);
        let lacking: i64 = lacks.iter().map(|lack| lack.bytes.0 as i64).sum();
        let free = ledger.free(*id);
        let grantable = device.grantable(now, || free);
        plan.free.insert(*id, free);
        let mut missing = lacking + device.room().0 as i64 - free;
        if missing > 0 {
            missing = plan.reclaim(*id, missing, &running);
        }
        if missing > 0 {
            let ahead = lacks.iter().map(|lack| lack.ahead.0 as i64).sum();
            plan.take(*id, missing, ahead, &victims, lacks.first().map(|lack| lack.client));
        }
        // What comes back in crumbs is seen by the next regular reading.
        let unseen = grantable.is_none() || device.unseen() >= CRUMB;
        let room_waits = plan.rooms(*id, device, grantable);
        reads |= room_waits && unseen;
        plan.out.pressing |= room_waits || !lacks.is_empty();
        let left = plan.grant(*id, device, grantable, &lacks);
        reads |= (unseen && free > 0 || device.step() > Bytes::ZERO) && !lacks.is_empty();
        spare.insert(*id, (left, lacks.is_empty()));
    }
    plan.run(&chosen, &spare);
    for index in &chosen.waiting {
        reads |= plan.ahead(&gangs[*index], &mut spare);
    }
    plan.out.pressing |= !chosen.waiting.is_empty();
    if reads {
        plan.out.todo.push(Decision::Read);
    }
    plan.out.hindered = chosen.hindered;
    plan.out
}

struct Plan<'a> {
    ledger: &'a Ledger,
    gangs: &'a [Gang<'a>],
    now: Moment,
    stopping: BTreeSet<ClientId>,
    /// What clients that are held out were told to give just now.
    leaving: BTreeMap<DeviceId, i64>,
    /// What could be granted before anything of this is done.
    free: BTreeMap<DeviceId, i64>,
    out: Decisions,
}

impl Plan<'_> {
    /// What the running clients lack on `device`, in order.
    fn lacks(&self, device: DeviceId, running: &[usize]) -> Vec<Lack> {
        running.iter().flat_map(|index| lacks(&self.gangs[*index], device, self.now)).collect()
    }

    /// The gangs that may lose memory, best victim first.
    fn victims(&self, chosen: &Chosen) -> Vec<usize> {
        let runs: BTreeSet<usize> = chosen.running.iter().map(|(index, _)| *index).collect();
        let places: BTreeMap<usize, usize> =
            chosen.waiting.iter().enumerate().map(|(place, index)| (*index, place)).collect();
        let place = |index: usize| places.get(&index).copied();
        let mut victims: Vec<usize> = (0..self.gangs.len())
            .filter(|index| !matches!(self.gangs[*index].role, Role::Fixed | Role::HeldOut))
            .filter(|index| !runs.contains(index))
            .collect();
        victims.sort_by_cached_key(|index| {
            let gang = &self.gangs[*index];
            // One that is being stopped just ran, unless it was stopped for doing nothing.
            let last = if gang.role == Role::Leaving { usize::MAX } else { place(*index).unwrap_or(0) };
            let works = gang.role == Role::Leaving || place(*index).is_some();
            (works, Reverse(last), if works { Moment::NEVER } else { gang.active_at }, gang.id())
        });
        victims
    }

    /// Asks for what is granted and not used: what is worth a message, and where that is not enough, every crumb, for nobody else
    /// may have any to give. Says what is still missing when all of that has come.
    fn reclaim(&mut self, device: DeviceId, mut missing: i64, running: &[usize]) -> i64 {
        let gangs = self.gangs;
        let clients = || running.iter().flat_map(|index| &gangs[*index].members);
        for client in clients() {
            if let Some(reclaiming) = client.devices().get(&device).and_then(Holding::reclaiming) {
                missing -= reclaiming.expected.0 as i64;
            }
        }
        for (least, most) in [(SLACK, Bytes(u64::MAX)), (Bytes(1), SLACK)] {
            for client in clients() {
                let Some(holding) = client.devices().get(&device) else { continue };
                let unused = holding.granted().saturating_sub(holding.held().max(holding.needed()));
                if missing > 0
                    && (least..most).contains(&unused)
                    && holding.reclaiming().is_none()
                    && client.commandable()
                    && self.now.since(holding.reclaimed_at()) > RECLAIM_AGAIN
                {
                    let at = At { client: client.id(), device };
                    self.out.todo.push(Decision::Reclaim(at, unused));
                    missing -= unused.0 as i64;
                }
            }
        }
        missing
    }

    /// Stops and swaps out, wholly, whoever is held out.
    fn hold_out(&mut self) {
        let gangs = self.gangs;
        for gang in gangs.iter().filter(|gang| gang.role == Role::HeldOut) {
            let leased = gang.members.iter().any(|client| client.lease().is_some());
            if leased {
                self.stop(gang, None);
            }
            for device in gang.devices() {
                let gives: Bytes = gang.members.iter().map(|client| takeable(client, *device)).sum();
                if gives == Bytes::ZERO || !(leased || self.willing(gang, *device, gives.0 as i64)) {
                    continue;
                }
                let mut out = 0;
                for client in &gang.members {
                    let all = takeable(client, *device);
                    out += if leased {
                        all.0 as i64
                    } else {
                        self.swap_out(client, *device, all.0 as i64, None)
                    };
                }
                *self.leaving.entry(*device).or_default() += out;
            }
        }
    }

    /// Stops who was not chosen and thrashes with somebody who was: no memory that is missing stops it.
    fn part(&mut self, chosen: &Chosen) {
        let gangs = self.gangs;
        for (index, gang) in gangs.iter().enumerate().filter(|(_, gang)| !gang.thrashes.is_empty()) {
            let runs = |of: usize| chosen.running.iter().any(|(running, _)| *running == of);
            let gains = chosen.running.iter().map(|(running, _)| &gangs[*running]);
            let mut gains = gains.filter(|gains| gang.thrashes_with(gains));
            if gang.leased()
                && !runs(index)
                && let Some(gains) = gains.next()
            {
                self.stop(gang, Some(gains.id()));
                self.out.pressing = true;
            }
        }
    }

    /// Whether somebody else has the lease who thrashes with it: then it waits until that one has stopped.
    fn thrashes_still(&self, gang: &Gang) -> bool {
        let leased = |other: &Gang| other.members.iter().any(|client| client.lease().is_some());
        let others = self.gangs.iter().filter(|other| other.id() != gang.id());
        others.filter(|other| gang.thrashes_with(other)).any(leased)
    }

    /// Takes what is missing from victims, and from those who do not run at the same time what will be asked for next.
    fn take(
        &mut self,
        device: DeviceId,
        mut missing: i64,
        ahead: i64,
        victims: &[usize],
        gains: Option<ClientId>,
    ) {
        missing -= self.leaving.get(&device).copied().unwrap_or_default();
        // What is under way already counts, whoever gives it.
        for (client, holding) in self.ledger.holdings(device) {
            if !client.movable() {
                continue;
            }
            if let Some(outgoing) = holding.outgoing() {
                missing -= outgoing.left.0 as i64;
            } else if client.stop().is_some() {
                missing -= takeable(client, device).0 as i64;
            }
        }
        for index in victims {
            let gang = &self.gangs[*index];
            let leased = gang.members.iter().any(|client| client.lease().is_some());
            let wanted = if leased { missing } else { missing + ahead };
            if missing <= 0 && wanted <= 0 {
                break;
            }
            let gives: Bytes = gang.members.iter().map(|client| takeable(client, device)).sum();
            let willing = wanted > 0 && self.willing(gang, device, wanted);
            if gives == Bytes::ZERO || gang.role == Role::Leaving || !willing {
                continue;
            }
            if leased {
                self.stop(gang, gains);
                missing -= gives.0 as i64;
                continue;
            }
            for client in &gang.members {
                missing -= self.swap_out(client, device, missing + ahead, gains);
            }
        }
    }

    /// Whether the gang can give now: its last attempt did not just fail, and host memory for it is there.
    fn willing(&self, gang: &Gang, device: DeviceId, missing: i64) -> bool {
        gang.members.iter().all(|client| {
            let Some(holding) = client.devices().get(&device) else { return true };
            let moves =
                Bytes(missing.max(0) as u64).min(takeable(client, device)).saturating_sub(holding.unused());
            let shadowed = client.host_exhausted() || client.shadow_room() >= moves;
            client.swap_retry_at() <= self.now && shadowed
        })
    }

    fn stop(&mut self, gang: &Gang, gains: Option<ClientId>) {
        for client in &gang.members {
            if client.lease().is_some() && client.stop().is_none() && self.stopping.insert(client.id()) {
                self.out.todo.push(Decision::Stop { client: client.id(), gains });
            }
        }
    }

    fn swap_out(&mut self, client: &Client, device: DeviceId, missing: i64, gains: Option<ClientId>) -> i64 {
        let Some(holding) = client.devices().get(&device) else { return 0 };
        if missing <= 0 || holding.outgoing().is_some() {
            return 0;
        }
        let whole = (missing as u64).next_multiple_of(PIECE);
        let bytes = Bytes(whole).min(takeable(client, device)).min(holding.granted());
        if bytes == Bytes::ZERO {
            return 0;
        }
        let at = At { client: client.id(), device };
        self.out.todo.push(Decision::SwapOut { at, bytes, gains });
        bytes.0 as i64
    }

    /// Answers drivers that want room. Says whether one still waits.
    fn rooms(&mut self, id: DeviceId, device: &Device, grantable: Option<i64>) -> bool {
        let mut open = false;
        // What drivers want may come from the reserve: it is there for that.
        let reserve = device.reserve().0 as i64;
        let made: Bytes =
            device.rooms().iter().filter(|room| room.made.is_some()).map(|room| room.bytes).sum();
        let mut left = grantable.map(|left| left + reserve - made.0 as i64);
        let mut waiting = device.rooms().iter().filter(|room| room.made.is_none()).peekable();
        if waiting.peek().is_none() {
            return false;
        }
        let most = MostRoom::new(self.ledger, id, device, self.now);
        for room in waiting {
            let bytes = room.bytes.0 as i64;
            let made = left.is_some_and(|left| bytes <= left);
            if !made && self.now.since(room.since) < ROOM_WAITS && bytes <= most.of(room.client) {
                open = true;
                continue;
            }
            left = left.map(|left| if made { left - bytes } else { left });
            self.out.todo.push(Decision::Room { client: room.client, ticket: room.ticket, made });
        }
        open
    }

    /// Grants what is free to those who lack it. Says what is left, or none while nothing may be granted.
    fn grant(
        &mut self,
        id: DeviceId,
        device: &Device,
        grantable: Option<i64>,
        lacks: &[Lack],
    ) -> Option<i64> {
        let mut left = grantable? - device.room().0 as i64;
        for lack in lacks {
            let bytes = part(lack.bytes, left);
            if bytes > Bytes::ZERO {
                let whole = bytes == lack.bytes;
                let ahead = if whole { part(lack.ahead, left - bytes.0 as i64) } else { Bytes::ZERO };
                left -= (bytes + ahead).0 as i64;
                self.out.todo.push(Decision::Grant(At { client: lack.client, device: id }, bytes + ahead));
            }
        }
        Some(left)
    }

    /// Leases for the chosen ones, and for those who rest where all they lack is there.
    fn run(&mut self, chosen: &Chosen, spare: &BTreeMap<DeviceId, (Option<i64>, bool)>) {
        for (index, cap) in &chosen.running {
            let waits = self.thrashes_still(&self.gangs[*index]);
            self.out.pressing |= waits;
            for client in &self.gangs[*index].members {
                if client.lease().is_none() && !waits {
                    self.out.todo.push(Decision::Run(client.id(), *cap));
                }
                if chosen.aged.contains(index) {
                    self.out.todo.push(Decision::Age(client.id()));
                }
            }
        }
        let mut left: BTreeMap<DeviceId, i64> =
            spare.iter().map(|(id, (left, _))| (*id, left.unwrap_or_default())).collect();
        for index in &chosen.resting {
            let gang = &self.gangs[*index];
            let lack = |device: &DeviceId| {
                lacks(gang, *device, self.now).iter().map(|lack| lack.bytes.0 as i64).sum::<i64>()
            };
            let free = gang.devices().all(|device| {
                lack(device) == 0 || left.get(device).is_some_and(|left| lack(device) <= *left)
            });
            if !free
                || self.thrashes_still(gang)
                || self.out.todo.iter().any(|decision| takes_from(decision, gang))
            {
                continue;
            }
            for device in gang.devices() {
                *left.entry(*device).or_default() -= lack(device);
            }
            for client in gang.members.iter().filter(|client| client.lease().is_none()) {
                self.out.todo.push(Decision::Run(client.id(), None));
            }
        }
    }

    /// What nobody needs now goes to who runs next: it need not be brought in when the turn comes. Says whether a
    /// reading is needed for that.
    fn ahead(&mut self, gang: &Gang, spare: &mut BTreeMap<DeviceId, (Option<i64>, bool)>) -> bool {
        let mut reads = false;
        for device in gang.devices() {
            let Some((left, true)) = spare.get_mut(device) else { continue };
            for lack in lacks(gang, *device, self.now) {
                let bytes = part(lack.bytes, left.unwrap_or_default());
                if let Some(left) = left
                    && bytes > Bytes::ZERO
                {
                    *left -= bytes.0 as i64;
                    let at = At { client: lack.client, device: *device };
                    self.out.todo.push(Decision::Grant(at, bytes));
                } else {
                    let free = self.free.get(device).copied().unwrap_or_default();
                    reads |= free - left.unwrap_or_default() >= PIECE as i64;
                }
            }
        }
        reads
    }
}

fn takes_from(decision: &Decision, gang: &Gang) -> bool {
    matches!(decision, Decision::SwapOut { at, .. } if gang.members.iter().any(|member| member.id() == at.client))
}

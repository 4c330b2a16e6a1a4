//! What the policy stops and resumes as one: a gang, seen through the question whether it may, must or wants to run.

use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};

use super::lease_length;
use crate::ledger::{Client, Holding, Ledger};
use crate::moment::Moment;
use crate::order::Priority;
use crate::settings::Settings;

/// A client is not idle before it has done nothing for this long, whatever a switch costs.
const SHORTEST_IDLE: Duration = Duration::from_millis(20);
/// How long a client may take to get its memory before its lease counts as begun.
const ARRIVAL: Duration = Duration::from_secs(10);

/// What a gang is doing, as far as the choice is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Cannot be told anything: what it holds stays.
    Fixed,
    /// Is being stopped.
    Leaving,
    /// Must not run, by order.
    HeldOut,
    /// Runs, and must not be stopped before `until`; before `floor` not even for somebody of a higher rank.
    Protected { floor: Moment, until: Moment },
    /// Runs, and may be stopped.
    Expired,
    /// Has the lease and does nothing.
    Idle,
    /// Wants to run.
    Waiting,
    /// Neither has the lease nor wants it.
    Resting,
}

/// Who comes first. The rank of a lease that was given out of turn is that of its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Priority(Priority),
    /// Runs whenever it wants to.
    Pinned,
}

/// A gang. What was ordered for one of its members holds for all.
pub(super) struct Gang<'a> {
    pub(super) members: Vec<&'a Client>,
    pub(super) role: Role,
    pub(super) rank: Rank,
    /// Since when it waits.
    pub(super) wants: Option<Moment>,
    pub(super) runtime: Duration,
    /// Its last sign of work.
    pub(super) active_at: Moment,
    /// By device, each once. Mostly one: a list costs less than a map.
    pub(super) needs: Vec<(DeviceId, Need)>,
    /// Where its managed memory thrashes. Mostly none.
    pub(super) thrashes: Vec<DeviceId>,
}

/// What a gang needs and holds on one device.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    /// To run.
    pub(super) needed: Bytes,
    /// What it has.
    pub(super) granted: Bytes,
    /// What stays there when it does not run.
    pub(super) floor: Bytes,
}

impl Need {
    /// What it takes beyond what stays there anyway.
    pub(super) fn more(&self) -> i64 {
        self.needed.saturating_sub(self.floor).0 as i64
    }
}

impl Gang<'_> {
    pub(super) fn id(&self) -> ClientId {
        self.members[0].id()
    }

    /// Choosing it begins something: it has no lease, or had it before it wanted more memory than it has (a new process
    /// runs until it is told otherwise, and what it allocates then must wait like anybody else).
    pub(super) fn starts(&self) -> bool {
        !self.leased() || self.outgrew()
    }

    /// The devices that it uses.
    pub(super) fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.needs.iter().map(|(device, _)| device)
    }

    /// Where it takes room that others may want, so that it has to wait for its turn, and others for it.
    pub(super) fn contested(&self) -> impl Iterator<Item = DeviceId> {
        let takes = |(device, need): &(DeviceId, Need)| (need.more() > 0).then_some(*device);
        self.needs.iter().filter_map(takes).chain(self.thrashes.iter().copied())
    }

    /// Whether both take room on one card.
    pub(super) fn contends_with(&self, other: &Gang) -> bool {
        self.contested().any(|device| other.contested().any(|taken| taken == device))
    }

    /// Whether both use one card.
    pub(super) fn shares_a_card(&self, other: &Gang) -> bool {
        self.devices().any(|device| other.devices().any(|used| used == device))
    }

    /// Whether both thrash on one card.
    pub(super) fn thrashes_with(&self, other: &Gang) -> bool {
        self.thrashes.iter().any(|device| other.thrashes.contains(device))
    }

    /// It has the lease, all of it.
    pub(super) fn leased(&self) -> bool {
        matches!(self.role, Role::Protected { .. } | Role::Expired | Role::Idle)
    }

    pub(super) fn pinned(&self) -> bool {
        self.rank == Rank::Pinned
    }

    /// It wants to grow by more than it ever ran with, under a lease that was not given for that.
    pub(super) fn outgrew(&self) -> bool {
        self.members.iter().any(|client| {
            let needed: Bytes = client.devices().values().map(Holding::needed).sum();
            !client.complete()
                && client.lease().is_some_and(|lease| lease.began.is_some())
                && needed.saturating_sub(client.accustomed()) > client.accustomed()
        })
    }

    /// It wants more than it had when its lease began.
    pub(super) fn grew(&self) -> bool {
        self.members
            .iter()
            .any(|client| !client.complete() && client.lease().is_some_and(|lease| lease.began.is_some()))
    }

    /// Its processes ended, and what they hold goes.
    pub(super) fn dying(&self) -> bool {
        self.members.iter().all(|client| client.exited().is_some() && !client.overdue())
    }

    /// When the longest-waiting of it began to wait.
    pub(super) fn waits_since(&self) -> Moment {
        self.members.iter().filter_map(|client| client.wants()).min().unwrap_or(Moment(u64::MAX))
    }
}

/// All gangs.
pub(super) fn gangs<'a>(ledger: &'a Ledger, settings: &Settings, now: Moment) -> Vec<Gang<'a>> {
    let mut clients: Vec<&Client> = ledger.clients().values().collect();
    // Stable: the members of a gang stay in the order of their numbers.
    clients.sort_by_key(|client| client.gang());
    let gangs = clients.chunk_by(|one, next| one.gang() == next.gang());
    gangs.map(|members| gang(ledger, settings, members.to_vec(), now)).collect()
}

fn gang<'a>(ledger: &Ledger, settings: &Settings, members: Vec<&'a Client>, now: Moment) -> Gang<'a> {
    let mut needs: Vec<(DeviceId, Need)> = Vec::with_capacity(members[0].devices().len());
    for client in &members {
        for (device, holding) in client.devices() {
            let at = needs.iter().position(|(known, _)| known == device).unwrap_or_else(|| {
                needs.push((*device, Need::default()));
                needs.len() - 1
            });
            let need = &mut needs[at].1;
            need.granted += holding.booked();
            let stays = holding.booked().saturating_sub(takeable(client, *device));
            // What a pinned one does not use can be asked back while it runs.
            need.floor += if client.commandable() && client.orders().pinned {
                stays.min(holding.claimed())
            } else {
                stays
            };
            need.needed += if client.commandable() { holding.needed() } else { holding.booked() };
        }
    }
    needs.sort_unstable_by_key(|(device, _)| *device);
    for (_, need) in &mut needs {
        need.needed = need.needed.max(need.floor);
    }
    let role = role(ledger, settings, &members, now);
    Gang {
        role,
        rank: rank(&members, role),
        wants: members.iter().filter_map(|client| client.wants()).min(),
        runtime: members.iter().map(|client| client.runtime()).max().unwrap_or_default(),
        active_at: members.iter().map(|client| client.active_at()).max().unwrap_or_default(),
        needs,
        thrashes: thrashes(settings, &members, now),
        members,
    }
}

/// Where managed memory of theirs thrashes. Who could not be stopped for somebody else keeps nobody waiting by that.
fn thrashes(settings: &Settings, members: &[&Client], now: Moment) -> Vec<DeviceId> {
    let stays = |client: &&Client| {
        !client.commandable() || client.unyielding().is_some() || client.bypass() || client.orders().pinned
    };
    if members.iter().any(stays) {
        return Vec::new();
    }
    members.iter().flat_map(|client| client.thrashes(settings, now)).collect()
}

/// What `client` could be made to give back on `device`: nothing while it cannot or must not be stopped or moved; as much
/// as its host memory takes.
pub(super) fn takeable(client: &Client, device: DeviceId) -> Bytes {
    let Some(holding) = client.devices().get(&device) else { return Bytes::ZERO };
    if !client.movable() || client.orders().pinned {
        return Bytes::ZERO;
    }
    holding.booked().saturating_sub(holding.immovable() + client.homeless(holding))
}

fn rank(members: &[&Client], role: Role) -> Rank {
    if members.iter().any(|client| client.orders().pinned) {
        return Rank::Pinned;
    }
    let aged = members.iter().any(|client| client.lease().is_some_and(|lease| lease.aged));
    if aged && matches!(role, Role::Protected { .. }) {
        return Rank::Priority(Priority::High);
    }
    Rank::Priority(members.iter().map(|client| client.orders().priority).max().unwrap_or_default())
}

fn role(ledger: &Ledger, settings: &Settings, members: &[&Client], now: Moment) -> Role {
    if !members.iter().all(|client| client.commandable()) {
        return Role::Fixed;
    }
    if members.iter().any(|client| client.stop().is_some()) {
        return Role::Leaving;
    }
    let wants = members.iter().any(|client| client.wants().is_some());
    let held_out = members.iter().any(|client| client.held_out());
    if members.iter().all(|client| client.lease().is_none()) && held_out {
        return Role::HeldOut;
    }
    if members.iter().any(|client| client.lease().is_none()) && !held_out {
        return if wants { Role::Waiting } else { Role::Resting };
    }
    if members.iter().any(|client| client.unyielding().is_some() || client.bypass()) {
        let never = Moment(u64::MAX);
        return Role::Protected { floor: never, until: never };
    }
    let retry = members.iter().map(|client| client.retry_at()).max().unwrap_or_default();
    if retry > now {
        return Role::Protected { floor: retry, until: retry };
    }
    if held_out {
        return Role::HeldOut;
    }
    // One that allocated and does not use it yet is idle too: it gets its memory when that costs nobody anything.
    if !wants && members.iter().all(|client| !arriving(client) && idle(ledger, client, now)) {
        return Role::Idle;
    }
    let until = members.iter().map(|client| lease_end(settings, client, now)).max().unwrap_or_default();
    let floor = members.iter().map(|client| lease_floor(settings, client)).max().unwrap_or_default();
    if until > now { Role::Protected { floor: floor.min(until), until } } else { Role::Expired }
}

/// It was told to run and its memory is on the way.
fn arriving(client: &Client) -> bool {
    client.lease().is_some_and(|lease| lease.began.is_none())
}

/// When nobody has to respect its lease any more.
fn lease_end(settings: &Settings, client: &Client, now: Moment) -> Moment {
    let Some(lease) = client.lease() else { return Moment::NEVER };
    let end = match lease.began {
        // Its turn begins with faults until all of it is there, which nobody reports.
        Some(began) if client.thrashes(settings, now).next().is_some() => began + settings.lease_ceiling,
        // Who fills its memory gets there in one turn: a lease that ended half way would have cost what it has taken, for nothing.
        Some(began) if client.devices().values().any(|holding| holding.growing(now) > Bytes::ZERO) => {
            began + settings.lease_ceiling
        }
        Some(began) => began + lease_length(settings, lease.cost),
        None => lease.given + settings.lease_ceiling + ARRIVAL,
    };
    // Also while its memory is on the way: somebody waits for the end of it.
    lease.cap.map_or(end, |cap| end.min(cap.max(lease.given + settings.lease_floor)))
}

/// When somebody of a higher rank may take its place.
fn lease_floor(settings: &Settings, client: &Client) -> Moment {
    let Some(lease) = client.lease() else { return Moment::NEVER };
    lease.began.unwrap_or(lease.given + ARRIVAL) + settings.lease_floor
}

/// Idle for as long as switching away and back would cost; at once if it usually pauses for longer than twice that.
fn idle(ledger: &Ledger, client: &Client, now: Moment) -> bool {
    let quiet = now.since(client.active_at());
    if quiet < SHORTEST_IDLE {
        return false;
    }
    let there_and_back = ledger.switch_cost() * 2;
    quiet >= there_and_back || client.usual_pause().is_some_and(|pause| pause > there_and_back * 2)
}

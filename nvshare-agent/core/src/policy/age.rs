//! Who is next because of a long wait: of those of a lower priority than others who contend on a card of theirs, the one that
//! has waited longest; on each card one at a time, and not before nobody there has aged for as long.

use std::collections::{BTreeMap, BTreeSet};

use nvshare_common::ids::DeviceId;

use super::gangs::{Gang, Rank, Role};
use super::most::Most;
use crate::ledger::Ledger;
use crate::moment::Moment;
use crate::settings::Settings;

/// After how many lease ceilings of waiting the longest waiting gang of a lower priority is next.
const AGING: u32 = 4;

/// Whose turn it is because of its long wait: indices of gangs that share no card.
pub(super) fn aged(
    ledger: &Ledger,
    settings: &Settings,
    gangs: &[Gang],
    most: &Most,
    now: Moment,
) -> BTreeSet<usize> {
    let mut highest: BTreeMap<DeviceId, Rank> = BTreeMap::new();
    let contend = |gang: &&Gang| matches!(gang.role, Role::Protected { .. } | Role::Expired | Role::Waiting);
    for gang in gangs.iter().filter(contend).filter(|gang| !gang.pinned()) {
        for device in gang.devices() {
            let highest = highest.entry(*device).or_insert(gang.rank);
            *highest = gang.rank.max(*highest);
        }
    }
    let long = settings.lease_ceiling * AGING;
    let old = gangs.iter().enumerate().filter_map(|(index, gang)| {
        // One that has had the lease since before anybody was there may wait for memory.
        let waits = matches!(gang.role, Role::Waiting | Role::Expired);
        let since = gang.wants.filter(|_| waits)?;
        let lower = || gang.devices().any(|device| highest.get(device).is_some_and(|rank| *rank > gang.rank));
        let last = gang.devices().map(|device| ledger.aged_at(*device)).max().unwrap_or_default();
        let long = now.since(since.max(last)) >= long;
        (long && lower() && most.never(gang).is_none()).then_some((since, gang.id(), index))
    });
    let mut old: Vec<_> = old.collect();
    old.sort_unstable();
    let mut next = BTreeSet::new();
    for (_, _, index) in old {
        let free = next.iter().all(|other: &usize| !gangs[*other].shares_a_card(&gangs[index]));
        if free {
            next.insert(index);
        }
    }
    next
}

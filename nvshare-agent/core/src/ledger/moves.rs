//! How a client's memory moves: its arenas in host memory, and how its swap outs went so far.

use std::collections::BTreeMap;
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ArenaId, Ticket};

use super::readers::readers;
use super::{Client, Holding, Outgoing};
use crate::moment::Moment;

/// Host memory that a client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// How much.
    pub bytes: Bytes,
    /// Mapped and registered.
    pub ready: bool,
}

/// What it takes to move the memory of one client, and what came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Moves {
    swap_retry_at: Moment,
    pub(super) swap_failures: u32,
    swap_problem: Option<String>,
    pub(super) swap_failures_total: u64,
    pub(super) arenas: BTreeMap<ArenaId, Arena>,
    pub(super) host_exhausted: bool,
}

/// How long nothing more is asked of who had no more to give.
const SHORT: Duration = Duration::from_millis(250);

impl Client {
    readers! {
        /// It is not asked to swap out before: its last swap out failed.
        swap_retry_at in moves: Moment,
        /// Swap outs in a row that failed.
        swap_failures in moves: u32,
        /// Why the last one failed.
        swap_problem in moves: Option<&str>,
        /// Its arenas.
        arenas in moves: &BTreeMap<ArenaId, Arena>,
        /// No more host memory can be had for it.
        host_exhausted in moves: bool,
        /// How many of its swap outs failed.
        swap_failures_total in moves: u64,
    }

    /// Whether its memory can be taken.
    pub fn movable(&self) -> bool {
        self.commandable() && self.turns.unyielding.is_none() && !self.bypass
    }

    /// What of a holding could be moved and stays all the same, because there is no host memory for it and none to be had.
    pub fn homeless(&self, holding: &Holding) -> Bytes {
        if !self.moves.host_exhausted || !self.movable() {
            return Bytes::ZERO;
        }
        let movable = holding.booked().saturating_sub(holding.immovable());
        movable.saturating_sub(holding.unused().min(movable) + self.shadow_room())
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
        self.moves.swap_failures = 0;
    }

    /// A swap out brought nearly all that was asked for, and there was no more: the next look at its counters says what there is.
    pub(super) fn swapped_short(&mut self, now: Moment) {
        self.moves.swap_retry_at = now + SHORT;
    }

    /// A swap out could not do all: it is tried again later.
    /// One that goes on failing is served around, like one that cannot be stopped.
    pub(super) fn swap_failed(&mut self, why: &str, now: Moment) {
        self.moves.swap_failures = self.moves.swap_failures.saturating_add(1);
        self.moves.swap_failures_total += 1;
        let pause = Duration::from_millis(250) * 2_u32.saturating_pow(self.moves.swap_failures.min(7));
        self.moves.swap_retry_at = now + pause;
        self.moves.swap_problem = Some(why.chars().filter(|c| !c.is_control()).take(200).collect());
    }

    /// Bytes of arenas that it can use.
    pub fn arena_ready(&self) -> Bytes {
        self.moves.arenas.values().filter(|arena| arena.ready).map(|arena| arena.bytes).sum()
    }

    /// Bytes of arenas that it has.
    pub fn arena_bytes(&self) -> Bytes {
        self.moves.arenas.values().map(|arena| arena.bytes).sum()
    }

    /// How much more its arenas can take from the devices.
    pub fn shadow_room(&self) -> Bytes {
        let swapped: Bytes =
            self.devices.values().map(|holding| holding.page.swapped.min(holding.page.shadow)).sum();
        self.arena_ready().saturating_sub(swapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_hardly_less_to_give_than_was_asked_for_has_not_failed() {
        let of = |left| Outgoing { ticket: Ticket(1), at: Moment(0), asked: Bytes(8), left: Bytes(left) };
        let short: Vec<bool> = [0, 2, 4, 5, 8].map(|left| of(left).fell_short()).to_vec();
        assert_eq!(short, [false, true, true, false, false]);
    }
}

//! How a client takes turns: whether it runs, since when it wants to, and what came of its turns so far.

use std::time::Duration;

use nvshare_common::ids::Ticket;

use super::readers::readers;
use super::{Client, Lease, Stop};
use crate::moment::Moment;
use crate::settings::Settings;

/// Where a client stands in taking turns. Nobody is being stopped who has no lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Turn {
    /// It does not run.
    #[default]
    Stopped,
    /// It has the lease.
    Running(Lease),
    /// It has the lease still, and was told to give it up.
    Stopping(Lease, Stop),
}

impl Turn {
    fn lease(self) -> Option<Lease> {
        match self {
            Turn::Stopped => None,
            Turn::Running(lease) | Turn::Stopping(lease, _) => Some(lease),
        }
    }

    pub(super) fn lease_mut(&mut self) -> Option<&mut Lease> {
        match self {
            Turn::Stopped => None,
            Turn::Running(lease) | Turn::Stopping(lease, _) => Some(lease),
        }
    }

    fn stop(self) -> Option<Stop> {
        if let Turn::Stopping(_, stop) = self { Some(stop) } else { None }
    }

    /// There is a lease from now on. What stops it goes on doing that.
    fn run(&mut self, lease: Lease) {
        *self = match *self {
            Turn::Stopping(_, stop) => Turn::Stopping(lease, stop),
            Turn::Stopped | Turn::Running(_) => Turn::Running(lease),
        };
    }

    /// Nothing stops the lease any more. Says what did.
    fn go_on(&mut self) -> Option<Stop> {
        let Turn::Stopping(lease, stop) = *self else { return None };
        *self = Turn::Running(lease);
        Some(stop)
    }
}

/// How one client takes turns.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    pub(super) turn: Turn,
    pub(super) wants: Option<Moment>,
    pub(super) paced: bool,
    /// How long earlier sessions left a `Stop` without an answer.
    stop_waited: Duration,
    pub(super) retry_at: Moment,
    pub(super) stalls: u32,
    pub(super) unyielding: Option<Moment>,
    pub(super) runtime: Duration,
    /// It has begun level with those who share a card with it.
    pub(super) levelled: bool,
    accounted: Moment,
    pub(super) stops_total: u64,
    pub(super) stalls_total: u64,
}

impl Client {
    readers! {
        /// Threads wait to run, since then.
        wants in turns: Option<Moment>,
        /// It was told to keep its work in flight short.
        paced in turns: bool,
        /// It is not to be stopped before: its last drain stalled.
        retry_at in turns: Moment,
        /// Drains in a row that stalled.
        stalls in turns: u32,
        /// It cannot be stopped; since then.
        unyielding in turns: Option<Moment>,
        /// How long it has run, divided by its weight.
        runtime in turns: Duration,
        /// How often it was stopped.
        stops_total in turns: u64,
        /// How many of its drains stalled.
        stalls_total in turns: u64,
    }

    /// The right to run.
    pub fn lease(&self) -> Option<Lease> {
        self.turns.turn.lease()
    }

    /// It is being stopped.
    pub fn stop(&self) -> Option<Stop> {
        self.turns.turn.stop()
    }

    /// Its session is over, and what it was told on it void. A new one does not begin the time again in which it has to stop.
    pub(super) fn forget_stop(&mut self, now: Moment) {
        if let Some(stop) = self.turns.turn.go_on() {
            self.turns.stop_waited = now.since(stop.at);
        }
        self.turns.wants = None;
    }

    /// It says as a session begins whether it runs. Whether nobody but this agent can have told it to is `known`.
    pub(super) fn says_it_runs(&mut self, running: bool, known: bool, now: Moment) {
        self.turns.paced = false;
        self.turns.turn = match self.turns.turn {
            _ if !running => Turn::Stopped,
            Turn::Stopped if known => Turn::Running(Lease::unearned()),
            Turn::Stopped => Turn::Running(Lease::given(now, Some(now), None)),
            // Saying so again makes it no longer.
            running => running,
        };
        if !running {
            self.turns.stop_waited = Duration::ZERO;
        }
    }

    /// `Run` was sent.
    pub(super) fn run(&mut self, cap: Option<Moment>, now: Moment) {
        let began = self.complete().then_some(now);
        self.turns.turn.run(Lease::given(now, began, cap));
        self.turns.accounted = now;
        if began.is_some() {
            self.turns.wants = None;
        }
    }

    /// `Stop` was sent. Who wants to run from now on says so anew. `false`: there is nothing to stop.
    pub(super) fn stopping(&mut self, ticket: Ticket, now: Moment) -> bool {
        let Some(lease) = self.lease() else { return false };
        let stop = Stop { ticket, at: now - self.turns.stop_waited };
        self.turns.turn = Turn::Stopping(lease, stop);
        self.turns.wants = None;
        self.turns.stops_total += 1;
        true
    }

    /// It answered a `Stop`. `false` when nobody asked for that.
    fn answered(&mut self, ticket: Ticket) -> bool {
        let asked = self.stop().is_some_and(|stop| stop.ticket == ticket);
        if asked {
            self.turns.turn.go_on();
            self.turns.stop_waited = Duration::ZERO;
        }
        asked
    }

    /// It has stopped. `false` when nobody asked for that.
    pub(super) fn stopped(&mut self, ticket: Ticket) -> bool {
        let asked = self.answered(ticket);
        if asked {
            self.turns.turn = Turn::Stopped;
            self.turns.stalls = 0;
            self.turns.unyielding = None;
        }
        asked
    }

    /// Its drain stalled: it runs on, and is left alone for a while, longer each time.
    pub(super) fn stalled(&mut self, ticket: Ticket, settings: &Settings, now: Moment) -> bool {
        let asked = self.answered(ticket);
        if asked {
            self.turns.stalls += 1;
            self.turns.stalls_total += 1;
            let pause = settings.lease_floor * 2_u32.saturating_pow(self.turns.stalls.min(10));
            self.turns.retry_at = now + pause.min(settings.lease_ceiling);
            if self.turns.stalls >= settings.stalls_until_unyielding {
                self.turns.unyielding.get_or_insert(now);
            }
        }
        asked
    }

    /// The lease counts from the moment when everything is resident. Says whether that is now.
    pub(super) fn begin_lease(&mut self, now: Moment) -> bool {
        let complete = self.complete();
        // Who is being stopped and wants to run wants to run again.
        let Turn::Running(lease) = &mut self.turns.turn else { return false };
        if !complete {
            return false;
        }
        // Once only: who allocates all the time would run for ever.
        let waited = self.turns.wants.take().filter(|_| !std::mem::replace(&mut lease.renewed, true));
        let begins = lease.began.is_none() || waited.is_some();
        if begins {
            // Who waited for memory under a lease waited for others' turns, too: what that switch took is booked as it ends.
            lease.cost = if lease.began.is_none() { now.since(lease.given) } else { Duration::ZERO };
            lease.began = Some(now);
            self.turns.accounted = now;
            // It was made to wait: that was no pause of its own.
            self.activity.worked(now);
            // Who allocates without a pause has asked for more before anybody looks again. What it grows by under a lease that it has
            // without having been told to run must wait like anybody else's.
            self.accustom();
        }
        begins
    }

    /// A command has been without an answer for too long: it is served around until it answers. Says what it failed to do.
    pub(super) fn late(&mut self, settings: &Settings, now: Moment) -> Option<&'static str> {
        let late = |at: Moment| now.since(at) > settings.command_deadline;
        let stop =
            self.stop().is_some_and(|stop| now.since(stop.at) > settings.stall + settings.command_deadline);
        let out =
            self.devices.values().any(|holding| holding.outgoing.is_some_and(|outgoing| late(outgoing.at)));
        let mut keeps = false;
        for holding in self.devices.values_mut() {
            keeps |= holding.keeps(settings.command_deadline, now);
        }
        if stop || out || keeps {
            let first = self.turns.unyielding.replace(self.turns.unyielding.unwrap_or(now)).is_none();
            return first.then_some(match (stop, out) {
                (true, _) => "did not stop",
                (_, true) => "did not swap out",
                _ => "did not give back what it does not use",
            });
        }
        if self.moves.swap_failures >= settings.stalls_until_unyielding && self.turns.unyielding.is_none() {
            self.turns.unyielding = Some(now);
            return Some("fails to swap out");
        }
        if self.turns.unyielding.is_some_and(|since| now.since(since) > settings.unyielding_retry) {
            self.turns.unyielding = None;
            self.turns.stalls = settings.stalls_until_unyielding.saturating_sub(1);
            self.moves.swap_failures = self.moves.swap_failures.min(self.turns.stalls);
        }
        None
    }

    /// What it needs is there: it ran with so much.
    pub(super) fn accustom(&mut self) {
        if self.complete() {
            self.accustomed = self.devices.values().map(|holding| holding.needed).sum();
        }
    }

    /// Charges the time since the last call to it, if it ran.
    pub(super) fn account(&mut self, now: Moment) {
        let ran = now.since(self.turns.accounted);
        self.accustom();
        let runs = self.lease().is_some_and(|lease| lease.began.is_some()) && self.complete();
        if runs && self.busy(now) && self.turns.accounted != Moment::NEVER {
            self.turns.runtime += ran.div_f64(self.orders.weight.value());
        }
        self.turns.accounted = now;
    }
}

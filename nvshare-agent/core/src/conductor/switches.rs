//! Measures switches: from the first `Stop` (or `SwapOut`) for a client until that client has everything resident.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, Ticket};

use crate::ledger::Ledger;
use crate::moment::Moment;
use crate::snapshot::{self, Histogram, SWITCHES};

/// Open and finished switches.
#[derive(Clone, Debug, Default)]
pub struct Switchboard {
    open: BTreeMap<ClientId, Open>,
    /// Those of clients that had arrived and were stopped again, with commands for them still without an end.
    ended: Vec<(ClientId, Open)>,
    count: u64,
    /// With when they were over.
    recent: VecDeque<(Moment, snapshot::Switch)>,
    out: Bytes,
    into: Bytes,
    seconds: Histogram,
    drain_seconds: Histogram,
}

#[derive(Clone, Debug)]
struct Open {
    began: Moment,
    drained: Moment,
    arrived: Option<Moment>,
    /// When its counters said so; its message, with the bytes, is on the way.
    looked: Option<Moment>,
    /// Commands for it without an end yet.
    pending: BTreeSet<Ticket>,
    /// All commands for it.
    tickets: BTreeSet<Ticket>,
    out: Bytes,
    clean: Bytes,
    into: Bytes,
    /// It was stopped itself before all was there: what follows until the next command for it is no part of a switch.
    interrupted: bool,
}

impl Switchboard {
    /// `client` was told to stop for the sake of `gains`.
    pub fn stop(&mut self, client: ClientId, ticket: Ticket, gains: Option<ClientId>, now: Moment) {
        if let Some(open) = self.open.get_mut(&client) {
            open.interrupted = true;
        }
        let arrived = |open: &Open| open.arrived.or(open.looked).is_some();
        if self.open.get(&client).is_some_and(arrived)
            && let Some(open) = self.open.remove(&client)
        {
            self.ended.push((client, Open { interrupted: false, ..open }));
        }
        self.begin(ticket, gains, now);
    }

    /// A client was told to swap out for the sake of `gains`.
    pub fn swap_out(&mut self, ticket: Ticket, gains: Option<ClientId>, now: Moment) {
        self.begin(ticket, gains, now);
    }

    fn begin(&mut self, ticket: Ticket, gains: Option<ClientId>, now: Moment) {
        let Some(gains) = gains else { return };
        let open = self.open.entry(gains).or_insert_with(|| Open {
            began: now,
            drained: now,
            arrived: None,
            looked: None,
            pending: BTreeSet::new(),
            tickets: BTreeSet::new(),
            out: Bytes::ZERO,
            clean: Bytes::ZERO,
            into: Bytes::ZERO,
            interrupted: false,
        });
        if std::mem::take(&mut open.interrupted) {
            (open.began, open.drained) = (now, now);
            open.pending.clear();
        }
        open.pending.insert(ticket);
        open.tickets.insert(ticket);
    }

    /// A `Stop` was answered.
    pub fn drained(&mut self, ticket: Ticket, now: Moment) {
        if let Some(open) = self.open.values_mut().find(|open| open.tickets.contains(&ticket)) {
            open.drained = now;
            open.pending.remove(&ticket);
        }
    }

    /// A `SwapOut` ended.
    pub fn swapped_out(&mut self, ticket: Ticket, copied: Bytes, clean: Bytes) {
        if let Some(open) = self.open.values_mut().find(|open| open.tickets.contains(&ticket)) {
            open.out.0 = open.out.0.saturating_add(copied.0);
            open.clean.0 = open.clean.0.saturating_add(clean.0);
            open.pending.remove(&ticket);
        }
    }

    /// A `SwapOut` failed.
    pub fn failed(&mut self, ticket: Ticket) {
        for open in self.open.values_mut() {
            open.pending.remove(&ticket);
        }
    }

    /// The client brought these bytes in; with `arrived`, everything is resident.
    pub fn swapped_in(&mut self, client: ClientId, copied: Bytes, arrived: Option<Moment>) {
        if let Some(open) = self.open.get_mut(&client) {
            open.into.0 = open.into.0.saturating_add(copied.0);
            open.arrived = open.arrived.or(arrived);
        }
    }

    /// The client's counters say that everything is resident.
    pub fn looks_arrived(&mut self, client: ClientId, now: Moment) {
        if let Some(open) = self.open.get_mut(&client) {
            open.looked.get_or_insert(now);
        }
    }

    /// The client is gone.
    pub fn forget(&mut self, client: ClientId) {
        self.open.remove(&client);
    }

    /// Books the switches that are over, and says what they took. Those whose victims died wait no longer than a moment.
    pub fn close(&mut self, ledger: &Ledger, now: Moment) -> Vec<(ClientId, Duration)> {
        let over = |open: &Open| {
            open.arrived
                .is_some_and(|arrived| open.pending.is_empty() || now.since(arrived) > Duration::from_secs(1))
        };
        let done: Vec<ClientId> =
            self.open.iter().filter(|(_, open)| over(open)).map(|(client, _)| *client).collect();
        let mut took = Vec::new();
        let over = done.into_iter().filter_map(|client| Some((client, self.open.remove(&client)?)));
        let over: Vec<(ClientId, Open)> = std::mem::take(&mut self.ended).into_iter().chain(over).collect();
        for (client, open) in over {
            let Some(arrived) = open.arrived.or(open.looked) else { continue };
            self.out.0 = self.out.0.saturating_add(open.out.0);
            self.into.0 = self.into.0.saturating_add(open.into.0);
            if open.interrupted {
                continue;
            }
            self.count += 1;
            let whole = arrived.since(open.began);
            self.seconds.record(whole.as_secs_f64());
            self.drain_seconds.record(open.drained.since(open.began).as_secs_f64());
            if self.recent.len() == SWITCHES {
                self.recent.pop_front();
            }
            let switch = snapshot::Switch {
                number: self.count,
                client,
                pid: ledger.client(client).map_or(0, |client| client.process().pid),
                up_seconds: 0.0,
                seconds: whole.as_secs_f64(),
                drain_seconds: open.drained.since(open.began).as_secs_f64(),
                bytes_out: open.out,
                bytes_in: open.into,
                clean: open.clean,
            };
            tracing::debug!(
                client = client.0,
                pid = switch.pid,
                seconds = switch.seconds,
                drain = switch.drain_seconds,
                bytes_out = switch.bytes_out.0,
                bytes_in = switch.bytes_in.0,
                clean = switch.clean.0,
                "switch"
            );
            self.recent.push_back((arrived, switch));
            took.push((client, whole));
        }
        took
    }

    /// For people and machines outside.
    pub fn snapshot(&self) -> snapshot::Switches {
        self.snapshot_since(Moment::NEVER)
    }

    /// The same by the time of an agent that began at `began`.
    pub fn snapshot_since(&self, began: Moment) -> snapshot::Switches {
        let recent = self.recent.iter().map(|(over, switch)| snapshot::Switch {
            up_seconds: over.since(began).as_secs_f64(),
            ..switch.clone()
        });
        snapshot::Switches {
            count: self.count,
            recent: recent.collect(),
            bytes_out: self.out,
            bytes_in: self.into,
            seconds: self.seconds.clone(),
            drain_seconds: self.drain_seconds.clone(),
        }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn seconds(board: &mut Switchboard, now: u64) -> Vec<f64> {
        let ledger = Ledger::default();
        board.close(&ledger, Moment(now * MS)).iter().map(|(_, took)| took.as_secs_f64()).collect()
    }

    #[test]
    fn who_is_stopped_before_all_is_there_waits_for_a_turn_and_not_for_a_switch() {
        let (one, other) = (ClientId(1), ClientId(2));
        let mut board = Switchboard::default();
        board.stop(other, Ticket(1), Some(one), Moment(0));
        board.drained(Ticket(1), Moment(10 * MS));
        board.stop(one, Ticket(2), Some(other), Moment(20 * MS));
        board.drained(Ticket(2), Moment(30 * MS));
        board.swapped_in(other, Bytes(5), Some(Moment(50 * MS)));
        assert_eq!(seconds(&mut board, 50), [0.03]);
        // Its next turn.
        board.stop(other, Ticket(3), Some(one), Moment(1000 * MS));
        board.drained(Ticket(3), Moment(1010 * MS));
        board.swapped_in(one, Bytes(5), Some(Moment(1100 * MS)));
        assert_eq!(seconds(&mut board, 1100), [0.1]);
    }

    #[test]
    fn a_switch_to_somebody_who_is_stopped_soon_after_counts_whatever_is_still_open() {
        let (one, other) = (ClientId(1), ClientId(2));
        let mut board = Switchboard::default();
        for turn in 0..3 {
            let now = turn * 200;
            board.stop(other, Ticket(2 * turn), Some(one), Moment(now * MS));
            // A command of which nobody hears again.
            board.swap_out(Ticket(1000 + turn), Some(one), Moment(now * MS));
            board.drained(Ticket(2 * turn), Moment((now + 1) * MS));
            board.swapped_in(one, Bytes(5), Some(Moment((now + 50) * MS)));
            assert_eq!(seconds(&mut board, now + 50), [] as [f64; 0]);
            board.stop(one, Ticket(2 * turn + 1), None, Moment((now + 150) * MS));
            assert_eq!(seconds(&mut board, now + 150), [0.05]);
        }
        assert_eq!(board.count(), 3);
        board.swap_out(Ticket(5000), Some(one), Moment(1000 * MS));
        board.failed(Ticket(5000));
        board.swapped_in(one, Bytes(0), Some(Moment(1010 * MS)));
        assert_eq!(seconds(&mut board, 1010), [0.01]);
    }

    #[test]
    fn bytes_that_moved_for_somebody_who_was_stopped_again_count_and_their_time_does_not() {
        let (one, other) = (ClientId(1), ClientId(2));
        let mut board = Switchboard::default();
        board.swap_out(Ticket(1), Some(one), Moment(0));
        board.swapped_out(Ticket(1), Bytes(7), Bytes(0));
        board.stop(one, Ticket(2), Some(other), Moment(20 * MS));
        board.swapped_in(one, Bytes(5), Some(Moment(3000 * MS)));
        assert_eq!(seconds(&mut board, 3000), [] as [f64; 0]);
        assert_eq!(
            (board.count(), board.snapshot().bytes_out, board.snapshot().bytes_in),
            (0, Bytes(7), Bytes(5))
        );
    }
}

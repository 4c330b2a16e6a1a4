//! What the agent tells of a run: its switches, looked at while the clients run, and its totals at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nvshare_common::bytes::Bytes;
use nvshare_common::probe::Call;
use nvshare_testbed::Agent;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Mode;
use super::report::{Count, Events, Run};

/// What is read of the agent's state. Its own type is not used: a newcomer's first demo would build the agent's core twice, here
/// with other features than there.
#[derive(Deserialize)]
struct State {
    clients: Vec<IgnoredAny>,
    ended_count: u64,
    ended_totals: Totals,
    observer: Observer,
    switches: Switches,
}

#[derive(Deserialize)]
struct Totals {
    application_calls: Calls,
    application_seen: Calls,
    engine_calls: Calls,
    engine_seen: Calls,
    copied_out: Bytes,
    copied_in: Bytes,
}

#[derive(Deserialize)]
struct Observer {
    lost: u64,
}

#[derive(Deserialize)]
struct Switches {
    count: u64,
    recent: Vec<Switch>,
}

#[derive(Clone, Deserialize)]
struct Switch {
    number: u64,
    seconds: f64,
    drain_seconds: f64,
    bytes_out: Bytes,
    bytes_in: Bytes,
}

/// Counts by [`Call::name`].
type Calls = BTreeMap<String, u64>;

/// Collects switches while the clients run: the agent remembers only the last ones.
pub(crate) struct Watch<'a> {
    agent: &'a Agent,
    switches: BTreeMap<u64, Switch>,
    next: Instant,
}

impl Watch<'_> {
    pub(crate) fn new(agent: &Agent) -> Watch<'_> {
        Watch { agent, switches: BTreeMap::new(), next: Instant::now() }
    }

    /// Looks at the agent's state, not too often.
    pub(crate) fn look(&mut self) {
        if Instant::now() >= self.next {
            self.next = Instant::now() + Duration::from_secs(1);
            // What is missed now is seen the next time; the last look must succeed.
            let _ = self.state();
        }
    }

    fn state(&mut self) -> Result<State> {
        let state: State = serde_json::from_value(self.agent.try_state()?).context("the agent's state")?;
        self.switches.extend(state.switches.recent.iter().map(|switch| (switch.number, switch.clone())));
        Ok(state)
    }

    /// The figures of the run. All clients have ended; the agent may need a moment to see that.
    pub(crate) fn finish(mut self, link: u64, processes: u64) -> Result<Run> {
        let end = Instant::now() + Duration::from_secs(10);
        let state = loop {
            let state = self.state()?;
            if state.clients.is_empty() && state.ended_count >= processes {
                break state;
            }
            ensure!(
                Instant::now() < end,
                "the agent saw {} of {processes} clients, and {} did not end",
                state.ended_count + state.clients.len() as u64,
                state.clients.len()
            );
            std::thread::sleep(Duration::from_millis(50));
        };
        let all: Vec<Switch> = self.switches.into_values().collect();
        let steady: Vec<Switch> = all.iter().filter(|switch| is_steady(switch)).cloned().collect();
        let of = |figure: &dyn Fn(&Switch) -> f64| median(steady.iter().map(figure).collect());
        let totals = &state.ended_totals;
        let events = Events {
            application: counts(&totals.application_calls, &totals.application_seen),
            engine: counts(&totals.engine_calls, &totals.engine_seen),
        };
        let sum = |count: fn(&Count) -> u64| events.application.iter().chain(&events.engine).map(count).sum();
        Ok(Run {
            mode: Mode::Nvshare,
            seconds: 0.0,
            slowest_first_response_seconds: all.iter().map(|switch| switch.seconds).fold(0.0, f64::max),
            bytes_moved: Some((totals.copied_out + totals.copied_in).0),
            switches: state.switches.count,
            switch_seconds_median: of(&|switch| switch.seconds),
            switch_over_link: of(&|switch| switch.seconds / link_seconds(switch, link)),
            drain_seconds_median: of(&|switch| switch.drain_seconds),
            data_errors: 0,
            events_expected: sum(|count| count.expected),
            events_seen: sum(|count| count.seen),
            events_lost: state.observer.lost,
            events: Some(events),
        })
    }
}

/// Whether it moved bytes both ways: not the first turns, when memory is new, nor the last, when there is room.
fn is_steady(switch: &Switch) -> bool {
    switch.bytes_out > Bytes::ZERO && switch.bytes_in > Bytes::ZERO
}

/// How long the link takes for its bytes, both ways at once.
fn link_seconds(switch: &Switch, link: u64) -> f64 {
    switch.bytes_out.max(switch.bytes_in).0 as f64 / link as f64
}

/// Of the calls that the shims count; some are only observed.
fn counts(expected: &Calls, seen: &Calls) -> Vec<Count> {
    let of = |calls: &Calls, call: &Call| calls.get(call.name()).copied().unwrap_or(0);
    let count = |call: &Call| Count {
        call: call.name().to_owned(),
        expected: of(expected, call),
        seen: of(seen, call),
    };
    let counted = Call::ALL.iter().filter(|call| call.is_compared() || of(expected, call) > 0);
    counted.map(count).filter(|count| count.expected + count.seen > 0).collect()
}

/// The middle one (the lower of two).
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use nvshare_agent_core::snapshot;
    use nvshare_common::ids::ClientId;

    use super::*;

    #[test]
    fn the_link_works_both_ways_at_once() {
        let switch = Switch {
            number: 1,
            seconds: 0.5,
            drain_seconds: 0.1,
            bytes_out: Bytes(300),
            bytes_in: Bytes(400),
        };
        assert!(is_steady(&switch));
        assert!((link_seconds(&switch, 1000) - 0.4).abs() < 1e-9);
    }

    #[test]
    fn a_call_that_only_one_side_made_is_kept_and_one_that_is_only_observed_is_not() {
        let all = |counts: &[(Call, u64)]| {
            counts.iter().map(|(call, count)| (call.name().to_owned(), *count)).collect()
        };
        let observed = *Call::ALL.iter().find(|call| !call.is_compared()).expect("some are only observed");
        let found = counts(&all(&[(Call::Alloc, 1)]), &all(&[(observed, 4), (Call::Free, 1)]));
        let found: Vec<_> = found.iter().map(|c| (c.call.as_str(), c.expected, c.seen)).collect();
        assert_eq!(found, [("alloc", 1, 0), ("free", 0, 1)]);
    }

    #[test]
    fn what_is_read_is_what_the_agent_says() {
        let mut said = snapshot::State { ended_count: 3, ..Default::default() };
        said.switches.recent = vec![snapshot::Switch {
            number: 1,
            client: ClientId(1),
            pid: 7,
            up_seconds: 0.0,
            seconds: 0.5,
            drain_seconds: 0.1,
            bytes_out: Bytes(5),
            bytes_in: Bytes::ZERO,
            clean: Bytes::ZERO,
        }];
        said.ended_totals.engine_calls.0[Call::Alloc as usize] = 2;
        let read: State =
            serde_json::from_value(serde_json::to_value(said).expect("JSON")).expect("all that is read");
        assert_eq!((read.ended_count, read.switches.recent[0].bytes_out), (3, Bytes(5)));
        assert_eq!(read.ended_totals.engine_calls.get("alloc"), Some(&2));
    }

    #[test]
    fn the_median_of_nothing_is_nothing() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    }
}
